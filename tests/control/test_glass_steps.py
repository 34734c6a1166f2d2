"""What makes a training step of GLASS quick changes no number: windows, frames taken together, what is known already, what is left out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.control.glass import GLASS
from selftaught.control.glass_draw import Probe, local_loss, unroll
from selftaught.control.glass_figure import cut, paste
from selftaught.control.glass_gma import move
from selftaught.method import Progress

SIDE = 16


def build(**changes: Any) -> GLASS:
    torch.manual_seed(0)
    config = dataclasses.replace(
        GLASS.sizes["tiny"], coding="slow", draws="agent", figure_px=SIDE, slow_apart=2, perceptual="pyramid", drawn=3, warm_frac=0.5,
        slow_from=0.25, guess_parts=8, **changes,
    )  # fmt: skip
    return GLASS(config).train()


def clip(count: int = 3, frames: int = 4) -> Tensor:
    return torch.rand(count, frames, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


def sliced(frames: Tensor, corner: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """`cut` and `paste` one picture after the other, with slices."""
    side, (H, W) = squares.shape[2], frames.shape[2:]
    cuts, pasted = [], []
    for frame, (x, y), square in zip(frames, corner.tolist(), squares, strict=True):
        sheet = torch.nn.functional.pad(frame, (side, side, side, side))
        cuts.append(sheet[:, y + side : y + 2 * side, x + side : x + 2 * side])
        sheet = sheet.clone()
        sheet[:, y + side : y + 2 * side, x + side : x + 2 * side] = square
        pasted.append(sheet[:, side : side + H, side : side + W])
    return torch.stack(cuts), torch.stack(pasted)


def test_windows_and_their_gradients_are_those_of_slices() -> None:
    torch.manual_seed(0)
    corner = torch.tensor([[3, 2], [-4, -3], [19, 15], [0, -8], [-8, 12]])
    found = []
    for work in (lambda f, s: (cut(f, corner, 8), paste(s, corner, f)), lambda f, s: sliced(f, corner, s)):
        torch.manual_seed(1)
        frames, squares = torch.rand(5, 4, 20, 24, requires_grad=True), torch.rand(5, 4, 8, 8, requires_grad=True)
        a, b = work(frames, squares)
        ((a * torch.rand_like(a)).sum() + (b * torch.rand_like(b)).sum()).backward()
        found.append((a, b, frames.grad, squares.grad))
    for one, two in zip(*found, strict=True):
        assert one is not None and two is not None and torch.equal(one, two)


def test_frames_that_nothing_waits_for_are_seen_together_and_alike() -> None:
    """The states of drawn frames in their order, however many real ones are shown."""
    model = build()
    canvases = torch.cat([clip(2, 5), torch.rand(2, 5, 1, 32, 32)], 2)
    shifts, codes = 0.1 * torch.randn(2, 4, 2), model.lma.vectors(torch.randint(6, (2, 4)))
    with torch.no_grad():
        for real in (1, 2, 3, 4):
            drawn, seen, own, tried = unroll(model, canvases, None, shifts, codes, real)
            assert own.shape[:2] == (2, 4) and seen.shape == (2, 4, 4, 32, 32)
            for t in range(4):
                assert torch.allclose(own[:, t], model.lma.see(drawn[t].whole), atol=1e-5), (real, t)
                assert torch.equal(seen[:, t], canvases[:, t] if t < real else drawn[t - 1].whole), (real, t)
            assert len(tried) == 0
            probe = Probe(model.lma.see(canvases[:, 1]), canvases[:, 1], torch.tensor([0, 3]))
            beside, _, _, tried = unroll(model, canvases, None, shifts, codes, real, probe)
            for one, two in zip(drawn, beside, strict=True):
                assert torch.allclose(one.whole, two.whole, atol=1e-5), "what is drawn beside the clip changes nothing in it"
            alone, _ = model.step(probe.state, probe.canvas, torch.zeros(2, 2), model.lma.vectors(probe.codes), None)
            assert torch.allclose(tried, alone.whole, atol=1e-5)


def test_looks_are_the_same_where_masks_are_known_already() -> None:
    batch = clip()
    for first in (0, 1):
        one, two = build(), build()
        with torch.no_grad():
            one.gather_looks(batch)
            two.gather_looks(batch, two.gma.masks(batch[:, first : first + 3].flatten(0, 1)).unflatten(0, (3, 3)), first)
        for name, value in one.lma.state_dict().items():
            assert torch.allclose(value.float(), two.lma.state_dict()[name].float(), atol=1e-4, rtol=1e-4), name


def test_a_step_that_only_draws_asks_for_no_background_and_draws_the_same() -> None:
    model, batch = build(gma_every=2, swap_frac=0.0), clip()
    with torch.no_grad():
        layers, agents = model.gma(batch), model.gma.agents(batch)
        assert torch.allclose(agents.moved, move(layers, False).foregrounds, atol=1e-6)
        assert torch.equal(agents.masks, layers.masks) and torch.equal(agents.shifts, layers.shifts)
        both, drawn = (model.loss(batch, "model", Progress(step, 20)) for step in (18, 19))
        model.gma.inpainter.forward = None  # type: ignore[method-assign, assignment]
        assert float(model.loss(batch, "model", Progress(19, 20))[0]) == pytest.approx(float(drawn[0]))
    assert "global_frame" in both[1] and not any(k.startswith("global_") for k in drawn[1])
    part = local_loss(model, model.gma.agents(batch[:, 1:]), 1, 0.4)[0]
    assert float(drawn[0]) == pytest.approx(float(part.detach()), rel=1e-5), "the loss of such a step is that of the drawing alone"
