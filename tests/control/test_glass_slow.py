"""Codes of what lasts: figures are cut out and described as told, the map is that of the formula, actions of unseen figures are found."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.control.glass import GLASS, GLASSConfig
from selftaught.control.glass_slow import SlowCodes, figures, looks, slow_map
from selftaught.measure.actions import grouping
from selftaught.method import Progress
from selftaught.worlds.w_sprites import SIZES, render, script

TINY = GLASS.sizes["tiny"]
assert isinstance(TINY, GLASSConfig)


def a_figure(x: int, y: int, frame: int = 48) -> tuple[Tensor, Tensor]:
    """An uneven figure of 8 x 13 pixels with its corner at (x, y), and its mask."""
    draw = torch.Generator().manual_seed(3)
    f, m = torch.zeros(1, 3, frame, frame), torch.zeros(1, 1, frame, frame)
    f[:, :, y : y + 13, x : x + 8] = torch.rand(3, 13, 8, generator=draw) * 2 - 1
    m[:, :, y : y + 13, x : x + 8] = 1
    m[:, :, y, x : x + 4] = 0.4  # less than one half: no part of the figure
    return f, m


def test_figures_are_cut_out_around_their_centre_wherever_they_are() -> None:
    cuts = [figures(*a_figure(x, y), 24) for x, y in ((20, 18), (0, 0), (40, 35), (3, 30))]
    assert cuts[0].shape == (1, 4, 24, 24)
    for cut in cuts[1:]:
        assert torch.equal(cut, cuts[0])
    f, m = a_figure(20, 18)
    found, inside = cuts[0][0, :3], cuts[0][0, 3] > 0
    assert int(inside.sum()) == 8 * 13 - 4 and bool((found[:, ~inside] == 0).all())
    assert torch.equal(found[:, inside], (f * (m > 0.5))[0, :, 18:31, 20:28].flatten(1)[:, ((m > 0.5)[0, 0, 18:31, 20:28]).flatten()])
    nothing = figures(torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32), 16)
    assert bool((nothing == 0).all()), "no agent at all"


def test_looks_tell_edges_and_not_colours() -> None:
    figure = figures(*a_figure(20, 18), 32)
    own = looks(figure)
    assert own.shape == (1, 8 * 64 + 256)
    other = figure[:, [2, 0, 1, 3]]
    assert torch.allclose(looks(other), own, atol=1e-5), "channels changed places"
    assert torch.allclose(looks(torch.cat([-figure[:, :3], figure[:, 3:]], 1)), own, atol=1e-5), "bright is dark"
    assert float((looks(figure.flip(-1)) - own).abs().max()) > 0.2, "a mirrored figure looks different"
    ramp = torch.arange(16.0).expand(1, 3, 16, 16) / 16
    one = looks(torch.cat([ramp, torch.ones(1, 1, 16, 16)], 1))[:, :128].unflatten(1, (8, 4, 4))[:, :, 1:3, 1:3]
    assert float(one[:, 0].min()) > 0.1 and float(one[:, 2:7].max()) < 1e-5, "a ramp to the right has edges of the first direction only"


def test_the_map_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    D, who, ridge = 5, 0.3, 0.02
    near, far, between = (x.T @ x / 20 for x in torch.randn(3, 20, D))
    far = far * 4
    found = slow_map(near, far, between, 3, who, ridge).double()
    quick = (near + who * between).double()
    for i in range(D):
        quick[i, i] += ridge * (near + who * between).trace() / D

    def quotient(a: Tensor) -> float:
        above = sum(float(a[i] * far[i, j] * a[j]) for i in range(D) for j in range(D))
        return above / sum(float(a[i] * quick[i, j] * a[j]) for i in range(D) for j in range(D))

    values = [quotient(found[:, k]) for k in range(3)]
    assert values == sorted(values, reverse=True)
    assert max(quotient(torch.randn(D)) for _ in range(200)) <= values[0] * (1 + 1e-4)
    gram = found.T @ quick @ found
    assert torch.allclose(gram, torch.diag(torch.tensor([max(v - 1, 1e-6) for v in values], dtype=torch.float64)), atol=1e-4)


def codes_of(slow: SlowCodes, clips: Tensor) -> Tensor:
    return slow(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])


def world(count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Looks (N, 12, D) of agents with an own offset, one of three lasting states and a quick phase in noise; and the states."""
    draw, base = np.random.default_rng(seed), np.random.default_rng(99)
    D = TEST_WIDTH
    states, phases, selves = base.normal(size=(3, D)), base.normal(size=(8, D)), base.normal(size=(20, D))
    switch = draw.random((count, 12)) < 0.2
    truth = np.zeros((count, 12), np.int64)
    for t in range(12):
        truth[:, t] = np.where(switch[:, t] | (t == 0), draw.integers(0, 3, count), truth[:, t - 1])
    phase = (draw.integers(0, 8, (count, 1)) + np.arange(12)) % 8
    who = draw.normal(size=(count, 1, 20)) @ selves
    x = 1.5 * states[truth] + 2 * phases[phase] + 0.6 * who + 0.3 * draw.normal(size=(count, 12, D))
    return torch.from_numpy(x).float(), truth


TEST_WIDTH = 8 * 4 + 16
"""Of looks of figures of 8 pixels."""


@pytest.mark.parametrize("order", ["as filmed", "torn", "shuffled"])
def test_what_lasts_becomes_codes_and_nothing_does_when_frames_are_shuffled(order: str) -> None:
    """`torn`: in every twentieth clip parts that are otherwise empty light up for some frames, as where a mask is torn."""
    torch.manual_seed(0)
    slow = SlowCodes(3, 4, 8, 8, 5, 0.3, 0.02)
    clips, _ = world(320, 0)
    if order == "torn":
        clips[..., -2:] = 0
        for i in range(0, 320, 20):
            clips[i, 6:, -1 - (i // 20) % 2] = 12.0 + i / 40
    if order == "shuffled":
        clips = torch.stack([c[torch.randperm(12)] for c in clips])
    for part in clips.split(8):
        slow.remember(part)
    slow.start()
    test, truth = world(60, 1)
    if order == "torn":
        test[..., -2:] = 0
    ami = grouping(truth, codes_of(slow, test).numpy()).ami
    assert ami < 0.2 if order == "shuffled" else ami > 0.8, ami


def test_codes_are_made_once_and_go_on_as_they_were() -> None:
    torch.manual_seed(0)
    slow, again = (SlowCodes(3, 4, 8, 4, 5, 0.3, 0.02) for _ in range(2))
    clips, _ = world(160, 0)
    slow.start()
    assert not int(slow.started), "nothing was remembered"
    assert float(slow.look_up(torch.tensor([0, 2])).detach().abs().max()) == 0
    for i, part in enumerate(clips.split(8)):
        (slow if i < 10 else again).remember(part)
        if i == 9:
            again.load_state_dict(slow.state_dict())
        if i >= 10:
            slow.remember(part)
    torch.manual_seed(1)
    slow.start()
    torch.manual_seed(1)
    again.start()
    assert torch.equal(slow.centres, again.centres) and int(slow.started)
    kept = slow.centres.clone()
    slow.remember(clips[:8] + 3)
    slow.start()
    assert torch.equal(slow.centres, kept)
    assert torch.equal(slow.look_up(torch.tensor([0, 2])), slow.codebook[[0, 2]])


BINS_AND_MASK = 8 * 8**2 + 16**2
"""Numbers of a look at a figure of 32 px."""


def sprites(indices: list[int]) -> tuple[Tensor, np.ndarray, np.ndarray, list[int]]:
    """Looks (N, T, D) of true figures, true local actions, which transitions are stays, and who they are."""
    slow = SlowCodes(6, 4, 32, 10, 5, 0.3, 0.02)
    seen, local, stays, who = [], [], [], []
    for i in indices:
        one = script(SIZES["small"], 0, i)
        clip = render(SIZES["small"], one)
        m = torch.from_numpy(clip.masks)[:, None].float() / 255
        seen.append(slow.seen((torch.from_numpy(clip.frames).float().permute(0, 3, 1, 2) / 127.5 - 1) * m, m))
        local.append(one.locals[1:])
        stays.append(one.moves[1:] == 4)
        who.append(one.identity)
    return torch.stack(seen), np.stack(local), np.stack(stays), who


def test_local_actions_of_figures_never_seen_are_found_in_true_masks() -> None:
    """Codes from true foregrounds, of clips with other figures than those that are learned from; none when frames are shuffled."""
    train = [i for i in range(400) if i % 5 != 4]
    looks_, _, _, known = sprites(train)
    test, truth, stays, others = sprites(list(range(4, 240, 5)))
    assert not {*known} & {*others}

    def ami(clips: Tensor) -> float:
        torch.manual_seed(0)
        slow = SlowCodes(6, 4, 32, 10, 5, 0.3, 0.02)
        for part in clips.split(8):
            slow.remember(part)
        slow.start()
        return grouping(truth[stays], codes_of(slow, test[:, 1:]).numpy()[stays]).ami

    torch.manual_seed(1)
    shuffled = torch.stack([c[torch.randperm(len(c))] for c in looks_])
    found, control = ami(looks_), ami(shuffled)
    assert found > 0.4 and control < 0.2, (found, control)


def build(**changes: Any) -> GLASS:
    torch.manual_seed(0)
    return GLASS(dataclasses.replace(TINY, coding="slow", figure_px=24, slow_apart=2, perceptual="pyramid", **changes)).train()


def test_looks_are_gathered_in_the_warm_up_and_codes_made_at_its_end() -> None:
    model = build(drawn=3, warm_frac=0.5, slow_from=0.25)
    slow = model.lma.slow
    assert slow is not None and model.lma.quantiser is None
    batch = torch.rand(4, 4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        for step, gathered, made in ((0, 0, 0), (4, 0, 0), (5, 4, 0), (8, 1, 0), (9, 1, 1)):
            model.loss(batch, "model", Progress(step, 20))
            model.after_step(Progress(step, 20))
            assert (int(slow.filled) >= gathered, int(slow.started)) == (True, made), step
    filled = int(slow.filled)
    loss, parts = model.loss(batch, "model", Progress(10, 20))
    loss.backward()
    assert slow.codebook.grad is not None and float(slow.codebook.grad.abs().sum()) > 0, "the drawing hears of the codes"
    assert int(slow.filled) == filled and 1 <= parts["code_perplexity"] <= 6 and "local_vq" not in parts
    with torch.autocast("cpu", torch.bfloat16):
        rounded = slow(slow.seen(batch[:, 0], torch.ones(4, 1, 32, 32)))
    assert torch.equal(rounded, slow(slow.seen(batch[:, 0], torch.ones(4, 1, 32, 32))))


def test_another_part_of_the_clip_is_drawn_in_every_step() -> None:
    model = build(drawn=3, warm_frac=0.9)
    seen: list[Tensor] = []
    model.gma.forward = lambda clip: (seen.append(clip), type(model.gma).forward(model.gma, clip))[1]  # type: ignore[assignment,func-returns-value]
    batch = torch.rand(1, 4, 3, 32, 32) * 2 - 1
    for step in (0, 1, 2):
        model.loss(batch, "model", Progress(step, 20))
    assert [torch.equal(x, batch[:, f : f + 3]) for x, f in zip(seen, (0, 1, 0), strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"slow_apart": 4}, "less than window"), ({"figure_px": 20}, "multiple of 8"), ({"drawn": 2}, "from 3 to window"),
        ({"slow_from": 0.3, "warm_frac": 0.3}, "gathered in between"), ({"codes": 1}, "2 codes"), ({"codes": 3000}, "at most 2048"),
        ({"slow_dims": 1000}, "at most the 432 numbers"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GLASS(dataclasses.replace(TINY, **{"coding": "slow", "slow_apart": 2, "figure_px": 24, "perceptual": "pyramid"} | changes))


@pytest.mark.parametrize("constant", [0.0, 1.7])
def test_clips_in_which_nothing_moves_make_codes_and_end_no_training(constant: float) -> None:
    """Statistics are then zeros, or rounding that is not positive definite: the training stopped with a LinAlgError at half of its time."""
    torch.manual_seed(0)
    slow = SlowCodes(6, 4, 32, 10, 5, 0.3, 0.02)
    look = constant * torch.rand(BINS_AND_MASK)
    for _ in range(30):
        slow.remember(look.expand(8, 12, -1))
    slow.start()
    assert int(slow.started) and bool(torch.isfinite(slow.basis).all()) and bool(torch.isfinite(slow.centres).all())
    assert len(slow(look[None].expand(4, -1)).unique()) == 1
