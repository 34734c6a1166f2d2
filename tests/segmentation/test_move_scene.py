"""What MOVE makes of a picture and a mask: shift, holes, composites and losses against plain NumPy, gradients, and the object score."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught.segmentation.move_scene import (
    area_loss,
    binary_loss,
    draw_shift,
    holes,
    like_rim,
    make_scene,
    ranked,
    recolour,
    separation,
    shift,
    three_scales,
    union,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Grey(nn.Module):
    """Paints the middle grey where the mask is, softly; counts its passes and says what it was asked."""

    patch_px, image_px = 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def inpaint(self, images: Tensor, masks: Tensor, masked_encoder: bool = False) -> Tensor:
        self.calls.append((images, masks, masked_encoder))
        tiles = nn.functional.max_pool2d(masks[:, None], self.patch_px)
        hidden = nn.functional.interpolate(tiles, scale_factor=self.patch_px)
        return hidden * self.level + (1 - hidden) * images


def slow_shift(x: np.ndarray, dy: int, dx: int) -> np.ndarray:
    out = np.zeros_like(x)
    H, W = x.shape[-2:]
    for i, j in itertools.product(range(H), range(W)):
        if 0 <= i - dy < H and 0 <= j - dx < W:
            out[..., i, j] = x[..., i - dy, j - dx]
    return out


def test_the_shift_is_the_slow_one_and_nothing_wraps_around() -> None:
    x = torch.rand(5, 2, 6, 7, generator=generator(0))
    by = torch.tensor([[0, 0], [2, -3], [-1, 4], [6, 0], [-9, 9]])
    found = shift(x, by)
    for i, (dy, dx) in enumerate(by.tolist()):
        np.testing.assert_array_equal(found[i].numpy(), slow_shift(x[i].numpy(), dy, dx))
    assert float(found[3:].abs().sum()) == 0, "moved out of the picture"


def test_shifts_are_whole_pixels_in_reach_and_different_per_picture() -> None:
    torch.manual_seed(0)
    by = draw_shift(400, 3.0)
    assert by.shape == (400, 2) and by.dtype == torch.int64
    assert set(by.unique().tolist()) == set(range(-3, 4)) and float(by.float().mean().abs()) < 0.3
    assert float(draw_shift(5, 0.0).abs().sum()) == 0


def test_the_union_and_the_holes() -> None:
    a, b = torch.rand(2, 3, 1, 8, 8, generator=generator(1))
    np.testing.assert_allclose(union(a, b).numpy(), (a + b - a * b).numpy(), atol=1e-6)
    assert bool((union(a, b) <= a + b + 1e-6).all())
    region = torch.zeros(1, 1, 8, 8)
    region[0, 0, 5, 2], region[0, 0, 0, 7] = 1.0, 0.05
    found = holes(region, 4)
    assert bool((found[0, 0, 4:, :4] == 1).all()) and bool((found[0, 0, :4, 4:] == 0.05).all()), "the largest value of each tile"
    assert float(found.sum()) == pytest.approx(16 * 1.05)


def pictures_and_mask(seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    pictures = torch.rand(3, 3, 16, 16, generator=generator(seed))
    mask = torch.rand(3, 1, 16, 16, generator=generator(seed + 1))
    return pictures, mask, torch.tensor([[1, 2], [-2, 0], [0, 0]])


@pytest.mark.parametrize(("copy_real", "whole_tiles"), [(True, True), (True, False), (False, True)])
def test_the_scene_is_the_formula(copy_real: bool, whole_tiles: bool) -> None:
    pictures, mask, by = pictures_and_mask()
    mask[:, :, :, :8] = 0
    painter = Grey()
    scene = make_scene(pictures, mask, by, painter, copy_real=copy_real, masked_encoder=False, tiles=whole_tiles)
    assert len(painter.calls) == (1 if copy_real else 3), "no pass of the inpainter that is not needed"
    x, m = pictures.numpy(), mask.numpy()
    for i, (dy, dx) in enumerate(by.tolist()):
        xd, md = slow_shift(x[i], dy, dx), slow_shift(m[i], dy, dx)
        u = 1 - (1 - m[i]) * (1 - md)
        tiles = u.reshape(1, 4, 4, 4, 4).max((2, 4)).repeat(4, 1).repeat(4, 2)
        painted = tiles * 0.5 + (1 - tiles) * x[i]
        hole = tiles if whole_tiles else u
        b = painted * hole + x[i] * (1 - hole) if copy_real else painted
        for name, expected in {
            "picture": x[i], "background": b, "moved": md,
            "unshifted": x[i] * m[i] + b * (1 - m[i]),
            "composite": xd * md + b * (1 - md),
            "copied": xd * md + x[i] * (1 - md),
        }.items():  # fmt: skip
            np.testing.assert_allclose(getattr(scene, name)[i].numpy(), expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("tiles", "left"), [(True, 0.0), (False, 1.0)])
def test_what_a_small_mask_misses_is_left_behind_unless_whole_tiles_are_painted(tiles: bool, left: float) -> None:
    """An object of 8 x 8 px on two by two tiles, a mask that misses its rim of 2 px: the rim is what speaks against such a mask."""
    picture, mask = torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    picture[..., 4:12, 4:12] = 1
    mask[..., 6:10, 6:10] = 1
    scene = make_scene(picture, mask, torch.zeros(1, 2, dtype=torch.int64), Grey(), tiles=tiles)
    rim = picture[:, :1] * (1 - mask)
    assert float(((scene.composite == 1) * rim).sum() / (3 * rim.sum())) == left


def test_empty_and_full_masks() -> None:
    pictures, _, by = pictures_and_mask()
    nothing, everything = torch.zeros(3, 1, 16, 16), torch.ones(3, 1, 16, 16)
    empty = make_scene(pictures, nothing, by, Grey())
    assert torch.equal(empty.copied, pictures) and torch.equal(empty.composite, pictures) and torch.equal(empty.unshifted, pictures)
    full = make_scene(pictures, everything, by, Grey())
    inside = shift(everything, by)
    assert torch.equal(full.composite * inside, shift(pictures, by))
    assert torch.allclose(full.composite * (1 - inside), 0.5 * (1 - inside).expand(-1, 3, -1, -1))


def test_what_the_inpainter_is_asked() -> None:
    pictures, mask, by = pictures_and_mask()
    painter = Grey()
    make_scene(pictures, mask, by, painter, masked_encoder=True)
    asked, region, hidden = painter.calls[0]
    assert torch.equal(asked, pictures) and hidden and torch.allclose(region, union(mask, shift(mask, by))[:, 0])
    make_scene(pictures, mask, by, painter, soft=False)
    assert set(painter.calls[1][1].unique().tolist()) <= {0.0, 1.0}
    make_scene(pictures, mask, by, painter, copy_real=False)
    for (images, masks, _), expected in zip(painter.calls[3:], (pictures, shift(pictures, by)), strict=True):
        assert torch.equal(images, expected) and float(masks.abs().sum()) == 0, "auto-encoded: shifted first"


@pytest.mark.parametrize("soft", [True, False])
def test_the_gradient_of_the_fake_reaches_the_mask(soft: bool) -> None:
    pictures, _, by = pictures_and_mask()
    logits = torch.randn(3, 1, 16, 16, generator=generator(9)).requires_grad_()
    painter = Grey()
    painter.level.requires_grad_(False)
    scene = make_scene(pictures, logits.sigmoid(), by, painter, soft=soft)
    scene.composite.square().sum().backward()
    assert logits.grad is not None and bool((logits.grad.abs().flatten(1).sum(1) > 0).all())
    assert painter.level.grad is None
    if soft:  # finite differences at the pixel of each tile that decides
        picture, by0 = pictures[:1].double(), by[:1]
        painter = Grey().double()
        start = logits[:1].detach().double()

        def value(z: Tensor) -> Tensor:
            return make_scene(picture, z.sigmoid(), by0, painter).composite.square().sum()

        assert torch.autograd.gradcheck(value, (start.requires_grad_(),), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize(("level", "area", "binary"), [(0.5, 0.0, 0.5), (0.0, 0.05, 0.0), (1.0, 0.0, 0.0), (0.02, 0.03, 0.02)])
def test_mask_losses_at_known_points(level: float, area: float, binary: float) -> None:
    mask = torch.full((2, 1, 8, 8), level)
    assert float(area_loss(mask, 0.05, 1.0, 0.0)) == pytest.approx(area, abs=1e-6)
    assert float(binary_loss(mask)) == pytest.approx(binary, abs=1e-6)


def test_mask_losses_are_the_formulas_on_three_scales() -> None:
    mask = torch.rand(3, 1, 16, 16, generator=generator(3)) * torch.tensor([0.02, 0.5, 1.0]).view(3, 1, 1, 1)
    m = mask.numpy()
    blocks = m.reshape(3, 1, 4, 4, 4, 4)
    for found, expected in zip(three_scales(mask, 4), (m, blocks.mean((3, 5)), blocks.max((3, 5))), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
        areas = expected.reshape(3, -1).mean(1)
        most = np.maximum(areas - 0.3, 0).mean()
        assert float(area_loss(found, 0.05, 0.3, 2.0)) == pytest.approx(np.maximum(0.05 - areas, 0).mean() + 2 * most, abs=1e-6)
        assert float(binary_loss(found)) == pytest.approx(np.minimum(expected, 1 - expected).mean(), abs=1e-6)


def test_colours_change_and_nothing_moves() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(4, 3, 8, 8, generator=generator(4))
    assert torch.equal(recolour(pictures, 0.0), pictures)
    torch.manual_seed(1)
    found = recolour(pictures, 1.0)
    torch.manual_seed(1)
    u = (2 * torch.rand(4, 3) - 1).numpy().reshape(4, 3, 1, 1, 1)
    x = pictures.numpy() + 0.25 * u[:, 0]
    grey = x.mean(1, keepdims=True)
    x = (x - grey) * (1 + u[:, 1]) + grey
    mean = x.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found.numpy(), (x - mean) * (1 + 0.5 * u[:, 2]) + mean, atol=1e-5)
    flat = torch.full((2, 3, 8, 8), 0.4)
    assert float(recolour(flat, 1.0).flatten(1).std(1).max()) < 1e-6


def slow_separation(f: np.ndarray, m: np.ndarray) -> float:
    points, weights = f.reshape(len(f), -1).T, m.flatten()
    inside = (points * weights[:, None]).sum(0) / weights.sum()
    outside = (points * (1 - weights)[:, None]).sum(0) / (1 - weights).sum()
    w = weights.mean()
    return float(w * (1 - w) * ((inside - outside) ** 2).sum() / ((points - points.mean(0)) ** 2).sum(1).mean())


def test_the_object_score_is_the_explained_variance() -> None:
    maps = torch.randn(3, 5, 4, 4, generator=generator(5), dtype=torch.float64)
    mask = torch.rand(3, 4, 4, generator=generator(6), dtype=torch.float64)
    for i in range(3):
        assert float(separation(maps, mask)[i]) == pytest.approx(slow_separation(maps[i].numpy(), mask[i].numpy()), rel=1e-4)
    two: Any = torch.zeros(1, 2, 4, 4)
    two[0, 0, :2], two[0, 1, 2:] = 1, 1
    half = torch.zeros(1, 4, 4)
    half[0, :2] = 1
    assert float(separation(two, half)) == pytest.approx(1.0, abs=1e-5), "the mask explains everything"
    assert float(separation(torch.ones(1, 2, 4, 4), half)) == 0, "a flat picture has no object"
    assert float(separation(two, torch.zeros(1, 4, 4))) == 0 == float(separation(two, torch.ones(1, 4, 4)))


def test_what_is_pasted_onto_others_is_the_formula() -> None:
    pictures, mask, by = pictures_and_mask()
    onto = torch.tensor([2, 0, 1])
    scene = make_scene(pictures, mask, by, Grey(), masked_encoder=False, tiles=False, onto=onto)
    canvas, theirs = pictures[onto], mask[onto]
    moved, pasted = shift(mask, by), shift(like_rim(pictures, canvas), by)
    hole = union(theirs, moved)
    tiles = holes(hole, 4)
    ground = (tiles * 0.5 + (1 - tiles) * canvas) * hole + canvas * (1 - hole)
    expected = {
        "picture": canvas, "mask": theirs, "moved": moved, "background": ground, "unshifted": canvas * theirs + ground * (1 - theirs),
        "composite": pasted * moved + ground * (1 - moved), "copied": pasted * moved + canvas * (1 - moved),
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(getattr(scene, name), value, msg=name)
    changed = scene.changed()
    assert changed["picture"] is changed["unshifted"] is None
    assert changed["composite"] is not None and torch.equal(changed["composite"], hole) and changed["copied"] is scene.moved


def test_colours_of_the_rim_become_those_of_the_other_rim() -> None:
    pictures = 0.3 + 0.2 * torch.rand(2, 3, 16, 16, generator=generator(5))
    canvas = 0.4 + 0.1 * torch.rand(2, 3, 16, 16, generator=generator(6))
    found = like_rim(pictures, canvas, 0.125)
    rim = torch.ones(16, 16, dtype=torch.bool)
    rim[2:-2, 2:-2] = False
    for measure in (torch.mean, torch.std):
        torch.testing.assert_close(measure(found[:, :, rim], 2), measure(canvas[:, :, rim], 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(like_rim(pictures, pictures), pictures)
    flat = like_rim(torch.full((1, 3, 16, 16), 0.2), canvas[:1])
    assert bool(flat.isfinite().all()) and float(flat.std((2, 3)).max()) < 1e-6, "a flat picture stays flat, in the other's colour"


def test_ranked_masks_hold_the_largest_logits_up_to_their_share() -> None:
    logits = torch.randn(3, 1, 20, 20, generator=generator(7)).mul(4).requires_grad_()
    shares = torch.tensor([0.1, 0.25, 0.4])
    found = ranked(logits, shares, rim_frac=0.1)
    inside = found > 0.5
    np.testing.assert_allclose(inside.float().mean((1, 2, 3)).numpy(), shares.numpy(), atol=1 / 400)
    assert float((found[:, :, :2].sum() + found[..., -2:].sum()).detach()) == 0, "nothing in the rim"
    inner, kept = logits.detach()[:, 0, 2:-2, 2:-2], inside[:, 0, 2:-2, 2:-2]
    assert all(float(z[k].min()) >= float(z[~k].max()) for z, k in zip(inner, kept, strict=True))
    torch.testing.assert_close(ranked(5 * logits + 3, shares, 0.1), found, msg="neither scale nor offset of the logits counts")
    torch.testing.assert_close(ranked(logits, 0.25, 0.1)[1], found[1])
    (gradient,) = torch.autograd.grad((found * torch.rand_like(found)).sum(), logits)
    assert float(gradient.abs().sum()) > 0 and float(gradient[:, :, :2].abs().sum()) == 0
    flat = ranked(torch.zeros(1, 1, 20, 20), 0.2, 0.1)
    assert bool(flat.isfinite().all())
