"""Motion of the ground: known shifts, turns and changes of size are found, whatever moves before it; frames are brought onto each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from selftaught.nets.registration import compose, identity, inverse, register, warped


def scene(count: int, px: int = 160, seed: int = 0) -> Tensor:
    """Smooth random pictures (count, 3, px, px) in [0, 1]."""
    coarse = torch.rand(count, 3, px // 5, px // 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (px, px), mode="bicubic").clamp(0, 1)


def seen(ground: Tensor, motion: Tensor, px: int) -> Tensor:
    """What is in the middle of a large ground after a motion: b(M p) = ground(p)."""
    edge = (ground.shape[-1] - px) // 2
    return warped(ground, inverse(motion))[0][:, :, edge : edge + px, edge : edge + px]


def with_figure(frames: Tensor, at: int) -> Tensor:
    """A figure of a sixth of the frame, which does not move with the ground."""
    frames, side = frames.clone(), frames.shape[-1] * 2 // 5
    frames[:, :, at : at + side, at : at + side] = scene(1, 2 * side, seed=9)[:, :, :side, :side]
    return frames


def motion_of(kind: str, shift: tuple[float, float]) -> Tensor:
    turn, grow = (0.03, 1.03) if kind != "translation" else (0.0, 1.0)
    shear = 0.02 if kind == "affine" else 0.0
    c, s = grow * math.cos(turn), grow * math.sin(turn)
    return torch.tensor([[[c, -s + shear, shift[0]], [s, c, shift[1]]]])


@pytest.mark.parametrize("kind", ["translation", "similarity", "affine"])
@pytest.mark.parametrize("px", [32, 48, 96])
def test_known_motions_are_found_behind_a_figure_that_moves_otherwise(kind: str, px: int) -> None:
    corners = torch.tensor([[x, y, 1.0] for x in (-px / 2, px / 2) for y in (-px / 2, px / 2)]).T
    motions = torch.cat([motion_of(kind, s) for s in ((0.0, 0.0), (2.4, -1.3), (-3.7, 2.0), (0.5, 4.25))])
    ground = scene(4, 2 * px)
    edge = px // 2
    a = with_figure(ground[:, :, edge : edge + px, edge : edge + px], px // 4)
    b = with_figure(seen(ground, motions, px), px // 4 + 3)
    found = register(a, b, kind)  # type: ignore[arg-type]
    apart = ((found - motions) @ corners).norm(dim=1)
    assert float(apart[:, :].max()) < 0.5, "half a pixel, at the corners too"
    none = ((register(a, b, "none") - motions) @ corners).norm(dim=1)
    assert float(none[1:].min()) > 1, "without registering"


def test_flat_frames_and_noise_do_not_move_wildly() -> None:
    flat = torch.full((1, 3, 32, 32), 0.4)
    assert torch.equal(register(flat, flat), identity(1, flat))
    g = torch.Generator().manual_seed(0)
    noise = register(torch.rand(8, 3, 32, 32, generator=g), torch.rand(8, 3, 32, 32, generator=g))
    assert torch.isfinite(noise).all() and float((noise[:, :, :2] - torch.eye(2)).abs().max()) <= 0.5


def test_motions_one_after_the_other_and_back() -> None:
    one, two = motion_of("affine", (3.0, -2.0)), motion_of("similarity", (-1.0, 0.5))
    p = torch.tensor([[4.0], [-7.0], [1.0]])
    there = two @ torch.cat([one @ p, torch.ones(1, 1, 1)], 1)
    assert torch.allclose(compose(one, two) @ p, there, atol=1e-5)
    assert torch.allclose(compose(one, inverse(one)), identity(1, one), atol=1e-5)


def test_whole_pixels_are_moved_exactly() -> None:
    b = scene(1, 20)
    onto, inside = warped(b, motion_of("translation", (3.0, -2.0)))
    assert torch.allclose(onto[:, :, 2:, :-3], b[:, :, :-2, 3:], atol=1e-5), "the point p of a is at p + d in b"
    expected = torch.zeros(20, 20)
    expected[2:, :-3] = 1
    assert torch.equal(inside[0, 0], expected)
