"""MaskCut: blocks whose cuts are known by formula, a slow dense version of the rounds, the corner rule, and its method class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import ndimage
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError
from selftaught.segmentation.cutler import LEAST_SCORE, Cutler, CutlerConfig, maskcut, object_side
from selftaught.segmentation.many import best_first, pair_ious

TINY: Any = Cutler.sizes["tiny"]
BLOCKS = ((1, 1, 3, 3), (6, 5, 2, 3))  # top, left, height, width


def block_labels(h: int = 9, w: int = 10) -> np.ndarray:
    """0 background, 1 and 2 two blocks that do not touch."""
    labels = np.zeros((h, w), int)
    for number, (top, left, height, width) in enumerate(BLOCKS, 1):
        labels[top : top + height, left : left + width] = number
    return labels


def block_keys(labels: np.ndarray) -> Tensor:
    """Features (1, 3, h, w): one direction per label, of lengths that differ."""
    length = np.random.default_rng(0).uniform(0.5, 3, labels.shape)
    return torch.from_numpy((np.eye(3)[labels] * length[..., None]).transpose(2, 0, 1)[None]).float()


class Features:
    """Learned features that tell the colours of 4x4 patches well apart."""

    image_px, patch_px, capabilities = 32, 4, ("embed",)
    given: dict[str, Any] = {}

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4) ** 3 + 1e-4

    def untrained(self, seed: int = 0) -> Features:
        return self


def test_two_blocks_are_two_objects_with_the_eigenvalues_of_the_formula() -> None:
    labels = block_labels()
    found = maskcut(block_keys(labels), CutlerConfig(eps=1e-3, tau=0.15))
    sizes = [int((labels == k).sum()) for k in (0, 1, 2)]
    assert [np.argwhere(m.numpy()).tolist() for m in found.masks[0, :2]] == [np.argwhere(labels == k).tolist() for k in (1, 2)]
    assert not found.masks[0, 2].any() and float(found.scores[0, 2]) == 0
    # Of joined blocks of n_i patches x is constant on each: a generalised eigenproblem of 3 unknowns, here scaled by n_i.
    eps, n = 1e-3, np.array(sizes, float)
    weight = eps + (1 - eps) * np.eye(3)
    degree = weight @ n
    lambda2 = scipy.linalg.eigh(np.diag(degree * n) - weight * np.outer(n, n), np.diag(degree * n), eigvals_only=True)[1]
    assert float(found.scores[0, 0]) == pytest.approx(1 - lambda2, abs=1e-5)


def slow(keys: Tensor, c: CutlerConfig) -> tuple[list[np.ndarray], list[float]]:
    """The rounds for one picture in plain loops with a dense solver, in float64."""
    d, h, w = keys.shape
    rows = keys.double().reshape(d, -1).T.numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    taken, before, masks, scores = np.zeros((h, w), bool), np.zeros((h, w), bool), [], []
    for _ in range(c.rounds):
        cosine = rows @ rows.T
        a = np.where(cosine > c.tau, 1.0, c.eps)
        degree = np.diag(a.sum(1))
        values, vectors = scipy.linalg.eigh(degree - a, degree, subset_by_index=[1, 1])
        x = vectors[:, 0] * np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0] - vectors[:, 0].mean())
        side = (x > x.mean()).reshape(h, w)
        if side[0, 0] + side[0, -1] + side[-1, 0] + side[-1, -1] >= c.corners:
            x, side = -x, ~side
        labels, _ = ndimage.label(side)
        mask = labels == labels.flat[x.argmax()]
        union = (mask | before).sum()
        same = before.any() and (mask & before).sum() / union > c.same_iou
        own = mask & ~taken
        if not same and mask.mean() > c.min_area and own.any():
            masks.append(own)
            scores.append(1 - values[0])
        taken, before = taken | mask, mask
        rows = np.where(mask.reshape(-1, 1), 0.0, rows)
    return masks, scores


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_equals_the_slow_rounds(rounds: int) -> None:
    c = CutlerConfig(rounds=rounds, tau=0.2)
    labels = block_labels(7, 8)
    noise = np.random.default_rng(3).normal(size=(6, 3, 7, 8))
    keys = torch.from_numpy(np.eye(3)[labels].transpose(2, 0, 1) + 0.35 * noise).float()
    found = maskcut(keys, c)
    several = 0
    for b in range(6):
        masks, scores = slow(keys[b], c)
        order = np.argsort(-np.array(scores), kind="stable")
        kept = found.masks[b][found.scores[b] > 0].numpy()
        assert len(kept) == len(masks)
        several += len(masks) > 1
        np.testing.assert_allclose(found.scores[b, : len(masks)], np.array(scores)[order], atol=1e-4)
        for k, index in enumerate(order):
            assert np.array_equal(kept[k], masks[index]), (b, k)
    assert several or rounds == 1


def test_objects_never_share_a_patch_and_the_features_scale_does_not_matter() -> None:
    keys = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.8
    found = maskcut(keys, CutlerConfig())
    assert int(found.masks.sum(1).max()) <= 1
    scaled = maskcut(keys * (0.1 + torch.rand(4, 1, 8, 8)), CutlerConfig())
    assert torch.equal(found.masks, scaled.masks)


def test_the_side_with_the_corners_is_the_background() -> None:
    x = torch.full((1, 6, 6), -3.0)
    x[0, 2:4, 2:5] = 1.0  # the frame is more extreme, but it holds all corners
    inner = torch.zeros(6, 6, dtype=torch.bool)
    inner[2:4, 2:5] = True
    assert torch.equal(object_side(x)[0], inner) and torch.equal(object_side(-x)[0], inner), "the sign does not matter"
    assert torch.equal(object_side(x, corners=5)[0], ~inner), "without the rule the frame is the object"
    corner = torch.full((1, 6, 6), 0.0)
    corner[0, :, :2] = 2.0  # two corners are allowed
    assert object_side(corner)[0].sum() == 12
    assert object_side(torch.zeros(1, 3, 3)).sum() == 1, "no side at all: one patch, which is too small to be kept"


def test_nothing_but_noise_still_gives_something_and_says_how_unsure_it_is() -> None:
    blank = maskcut(torch.ones(1, 4, 6, 6), CutlerConfig())
    assert float(blank.scores.max()) <= LEAST_SCORE + 1e-6 and blank.masks.shape == (1, 3, 6, 6)


@pytest.mark.parametrize("refine", ["none", "bilateral"])
def test_the_method_finds_two_squares(refine: Any) -> None:
    method = Cutler(replace(TINY, refine=refine, sigma_space_px=4.0), {"features": Features()})
    images = torch.full((2, 3, 64, 64), 0.1)
    images[:, 2] = 0.6
    images[0, :, 8:24, 8:32] = torch.tensor([0.9, 0.1, 0.05])[:, None, None]
    images[0, :, 40:56, 32:56] = torch.tensor([0.1, 0.9, 0.05])[:, None, None]
    images[1] = images[0].flip(-1)
    found = method.objects(images)
    assert found.masks.shape == (2, 3, 64, 64)
    truths = torch.zeros(2, 64, 64)
    truths[0, 8:24, 8:32], truths[1, 40:56, 32:56] = 1, 1
    # Which of the two is found first is decided by their sizes, which are equal here: either order is right.
    overlaps = pair_ious(torch.cat([found.masks[0, :2] > 0.5, truths > 0.5])[None])[0, :2, 2:]
    assert float(overlaps.amax(0).min()) > 0.9 and float(found.scores[0, 2]) < 0.5
    soft = method.segment(images)
    both = truths.sum(0) > 0.5
    assert float(((soft[0] > 0.5) == both).float().mean()) > 0.97
    assert method.show(images)["objects"].shape == (128, 128, 3)
    if refine == "none":
        assert torch.equal(method.patch_masks(images), (found.masks > 0.5)[:, :2, ::8, ::8].any(1))


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError):
        maskcut(torch.ones(1, 3, 1, 1), CutlerConfig())
    with pytest.raises(NumericError):
        maskcut(torch.full((1, 3, 2, 2), torch.nan), CutlerConfig())
    for wrong in ({"tau": -0.1}, {"rounds": 0}, {"same_iou": 1.5}, {"min_area": 1.0}):
        with pytest.raises((ValueError, ConfigError)):
            CutlerConfig(**wrong)  # type: ignore[arg-type]


def test_best_first_sorts_empties_and_fills_up() -> None:
    masks = torch.ones(1, 3, 2, 2, dtype=torch.bool)
    masks[0, 1, 0, 0] = False
    found = best_first(masks, torch.tensor([[0.2, 0.9, 0.0]]), 4)
    assert found.scores.tolist() == [pytest.approx([0.9, 0.2, 0, 0])]
    assert [int(m.sum()) for m in found.masks[0]] == [3, 4, 0, 0]
