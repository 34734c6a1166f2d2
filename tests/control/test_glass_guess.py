"""The first guess of how an agent looks under a code: its formula, agents never seen, and that the drawing follows codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.control.glass import GLASS
from selftaught.control.glass_draw import swapped
from selftaught.control.glass_figure import corners, cut, paste
from selftaught.control.glass_guess import SOFT, FirstGuess, maps_of
from selftaught.control.glass_slow import SlowCodes
from selftaught.method import Actions

SIDE, FRAMES = 16, 6


def test_a_square_is_cut_out_around_the_centre_and_put_back() -> None:
    torch.manual_seed(0)
    frames, masks = torch.rand(3, 4, 20, 28), torch.zeros(3, 1, 20, 28)
    for i, (y, x) in enumerate(((4, 6), (0, 0), (15, 24))):
        masks[i, :, y : y + 5, x : x + 3] = 1
    corner = corners(masks, 8)
    assert corner.tolist() == [[7 - 4, 6 - 4], [1 - 4, 2 - 4], [25 - 4, 17 - 4]]
    squares = cut(frames, corner, 8)
    assert torch.equal(squares[0], frames[0, :, 2:10, 3:11])
    assert float(squares[1, :, :2].abs().max()) == 0, "outside of the frame"
    assert torch.equal(paste(squares, corner, frames), frames)
    put = paste(torch.ones_like(squares), corner, torch.zeros_like(frames))
    assert float(put[0].sum()) == 4 * 64 and bool((put[0, :, 2:10, 3:11] == 1).all()) and float(put[1].sum()) == 4 * 6 * 5


def test_the_maps_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    N, T, P, K = 4, 3, 2, 3
    z, codes = torch.randn(N, T, P), torch.randint(K - 1, (N, T))
    found = maps_of(z, codes, K)
    for k in range(K - 1):
        pairs = [(z[i, s], z[i, t]) for i in range(N) for s in range(T) for t in range(T) if int(codes[i, t]) == k]
        x = torch.stack([torch.cat([s, torch.ones(1)]) for s, _ in pairs]).double()
        y = torch.stack([t for _, t in pairs]).double()
        soft = SOFT * float(z.square().mean()) * len(pairs)
        left = x.T @ x + torch.diag(torch.tensor([soft + 1e-6] * P + [1e-6 * (soft + 1e-6)], dtype=torch.float64))
        assert torch.allclose(found[k].double(), torch.linalg.solve(left, x.T @ y), atol=1e-4)
    assert float(found[K - 1].abs().max()) == 0, "a code that nothing has"


def agents(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Squares (N, 6, 4, 16, 16) of agents of two colours, which lie side by side or one above the other, and which of both."""
    draw = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 2, 3, generator=draw) * 1.6 - 0.8
    way = torch.randint(2, (count, FRAMES), generator=draw)
    out = torch.zeros(count, FRAMES, 4, SIDE, SIDE)
    for n in range(count):
        for t in range(FRAMES):
            one, two = colours[n]
            if int(way[n, t]):
                out[n, t, :3, 3:8, 5:11], out[n, t, :3, 8:13, 5:11] = one[:, None, None], two[:, None, None]
                out[n, t, 3, 3:13, 5:11] = 1
            else:
                out[n, t, :3, 5:11, 3:8], out[n, t, :3, 5:11, 8:13] = one[:, None, None], two[:, None, None]
                out[n, t, 3, 5:11, 3:13] = 1
    return out, way


class Known(SlowCodes):
    """Codes that are told by the mask: tall agents have the code 1."""

    def __init__(self) -> None:
        super().__init__(2, 4, SIDE, 4, 2, 0.3, 0.02)
        self.started.fill_(1)

    def forward(self, seen: Tensor) -> Tensor:
        mask = seen[:, -((SIDE // 2) ** 2) :].unflatten(1, (SIDE // 2, SIDE // 2))
        return (mask.amax(2).sum(1) > mask.amax(1).sum(1)).long()


@pytest.mark.parametrize("mixed", [False, True])
def test_a_look_never_seen_is_guessed_under_the_other_code_and_not_when_agents_are_mixed_up(mixed: bool) -> None:
    torch.manual_seed(0)
    guess = FirstGuess(2, SIDE, FRAMES, 16)
    clips, _ = agents(120, 0)
    kept = clips.flatten(0, 1)[torch.randperm(120 * FRAMES)].unflatten(0, (120, FRAMES)) if mixed else clips
    guess.start(Known())
    assert not int(guess.started), "nothing was remembered"
    for part in kept.split(8):
        guess.remember(part)
    guess.start(Known())
    test, way = agents(40, 1)
    a, b = test[:, 0], test[:, 1]
    turned = way[:, 0] != way[:, 1]
    drawn = guess(guess.who(a), F.one_hot(way[:, 1], 2), b)
    error, stays = ((x - b)[turned].abs().mean() for x in (drawn, a))
    assert error > 0.5 * stays if mixed else error < 0.2 * stays, (error, stays)
    assert float(guess(guess.who(a), torch.zeros(40, 2), b).abs().max()) == 0, "no code, no guess"


def test_codes_are_recognised_in_what_shows_them_and_the_gradient_is_finite_where_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    slow = SlowCodes(2, 4, SIDE, 4, 2, 0.3, 0.02)
    clips, way = agents(64, 0)
    seen = slow.seen(clips[:, :, :3].flatten(0, 1), clips[:, :, 3:].flatten(0, 1))
    for part in seen.unflatten(0, (64, FRAMES)).split(8):
        slow.remember(part)
    slow.start()
    codes = slow(seen)
    assert len(codes.unique()) == 2
    right, wrong = (float(slow.recognised(clips.flatten(0, 1), c)) for c in (codes, 1 - codes))
    assert right < 0.4 < wrong, (right, wrong)
    drawn = torch.zeros(2, 4, SIDE, SIDE, requires_grad=True)
    slow.recognised(drawn, torch.tensor([0, 1])).backward()
    assert drawn.grad is not None and bool(torch.isfinite(drawn.grad).all())
    blurred = (0.7 * clips[:4, 0] + 0.1).requires_grad_()
    slow.recognised(blurred, codes.unflatten(0, (64, FRAMES))[:4, 1]).backward()
    assert blurred.grad is not None and float(blurred.grad[:, :3].abs().sum()) > 0
    assert float(blurred.grad[:, 3:].abs().sum()) == 0, "the mask is not for writing codes in"


def small_model(guess: bool) -> GLASS:
    """An untrained model with codes of tall and wide agents, with the first guess of them or before it is made."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        GLASS.sizes["tiny"], coding="slow", draws="agent", figure_px=SIDE, slow_apart=2, perceptual="pyramid", codes=2, window=FRAMES,
        guess_parts=16,
    )  # fmt: skip
    model = GLASS(config).eval()
    assert model.lma.guess is not None and model.lma.slow is not None
    model.lma.slow.started.fill_(1)
    if guess:
        for part in agents(64, 0)[0].split(8):
            model.lma.guess.remember(part)
        model.lma.guess.start(Known())
    return model


def test_the_film_follows_the_code_from_the_first_step_on() -> None:
    """A wide agent is played under the code of tall ones: its mask becomes tall where there is a guess."""
    test, way = agents(8, 2)
    frame = torch.zeros(1, 4, 32, 32)
    frame[0, :, 8:24, 8:24] = test[way == 0][0]
    for guess in (True, False):
        model = small_model(guess)
        model.gma.masks = lambda x: frame[:, 3:].expand(len(x), -1, -1, -1)  # type: ignore[method-assign, assignment]
        tall = []
        for code in (0, 1):
            still = torch.zeros(1, 4, 2)
            masks = model.play(frame[:, :3] / 2 + 0.5, Actions(still, still, torch.full((1, 4), code))).masks[0, -1]
            tall.append(float(masks[10:22].sum(0).max() / masks[:, 10:22].sum(1).max()))
        assert (tall[1] > 1.2 * tall[0]) == guess, tall


def test_shown_frames_hold_the_agent_as_it_looks_elsewhere_in_its_clip() -> None:
    model = small_model(True)
    model.config = dataclasses.replace(model.config, swap_frac=0.5)
    draw = np.random.default_rng(0)
    batch = torch.from_numpy(draw.random((6, FRAMES, 3, 32, 32), dtype=np.float32))
    agents_of = model.gma.agents(batch[:, :3])
    torch.manual_seed(0)
    canvases = swapped(model, batch, agents_of, 2)
    here = torch.cat([agents_of.foregrounds, agents_of.masks], 2)[:, :2]
    assert canvases is not None and canvases.shape == here.shape
    same = (canvases == here).flatten(2).all(2)
    assert 0 < int(same.sum()) < 12, "some are as they were, some are not"
    model.config = dataclasses.replace(model.config, swap_frac=0.0)
    assert swapped(model, batch, agents_of, 2) is None
