"""LOST against the published procedure in slow loops, its invariants, and its method class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError
from selftaught.nets.components import patch_boxes_px
from selftaught.segmentation.lost import Lost, LostConfig, lost_masks

EXAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "official_examples" / "lost_tokencut"


def scene(seed: int, h: int = 9, w: int = 11, d: int = 16) -> Tensor:
    """Keys (d, h, w) with a positively correlated background and one blob."""
    rng = np.random.default_rng(seed)
    blob = np.zeros((h, w), bool)
    top, left = rng.integers(0, h - 4), rng.integers(0, w - 4)
    blob[top : top + 4, left : left + 3] = True
    base, thing = rng.normal(size=(2, d))
    centre = np.where(blob[..., None], thing - 0.3 * base, base)
    return torch.from_numpy((centre + 0.8 * rng.normal(size=(h, w, d))).transpose(2, 0, 1)).float()


def official(keys: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Mask, map, degrees and seed by the published steps for one picture, in float64."""
    d, h, w = keys.shape
    f = keys.double().reshape(d, -1).T.numpy()
    n = len(f)
    a = np.array([[float(f[i] @ f[j]) for j in range(n)] for i in range(n)])
    degree = np.array([sum(1 for j in range(n) if j != i and a[i, j] > 0) for i in range(n)])
    order = sorted(range(n), key=lambda i: (degree[i], i))
    seed = order[0]
    total = np.zeros(n)
    for s in order[:k]:
        if a[seed, s] > 0:
            total += a[s]
    labels, _ = ndimage.label((total > 0).reshape(h, w))
    assert labels.flat[seed] > 0
    return labels == labels.flat[seed], total.reshape(h, w), degree.reshape(h, w), seed


@pytest.mark.parametrize("k", [1, 5, 30, 100, 1000])
def test_equals_the_published_procedure(k: int) -> None:
    keys = torch.stack([scene(seed) for seed in range(5)])
    found = lost_masks(keys, k)
    for index in range(5):
        mask, total, degree, seed = official(keys[index], k)
        assert int(found.seed[index]) == seed
        assert (found.degree[index].numpy() == degree).all()
        assert (found.masks[index].numpy() == mask).all()
        scale = float(keys[index].abs().max()) ** 2
        np.testing.assert_allclose(found.maps[index].numpy() * scale, total, atol=1e-4 * np.abs(total).max())


def test_ties_of_degree_go_to_the_first_patch() -> None:
    found = lost_masks(torch.ones(2, 4, 3, 3))
    assert found.seed.tolist() == [0, 0] and found.masks.all() and (found.degree == 8).all()


def test_scaling_each_patch_keeps_degrees_and_seed_and_one_factor_keeps_the_mask() -> None:
    keys = torch.stack([scene(seed) for seed in range(4)])
    factor = torch.rand(4, 1, 9, 11, generator=torch.Generator().manual_seed(2)) * 5 + 0.1
    plain, scaled = lost_masks(keys), lost_masks(keys * factor)
    assert torch.equal(plain.degree, scaled.degree) and torch.equal(plain.seed, scaled.seed)
    for size in (1e-15, 0.37, 1e15):
        assert torch.equal(lost_masks(keys * size).masks, plain.masks)


def test_a_patch_that_resembles_nothing_is_the_whole_object() -> None:
    keys = torch.zeros(1, 2, 4, 4)
    keys[:, 0] = 1.0
    keys[0, :, 1, 2] = torch.tensor([-1.0, 0.0])
    found = lost_masks(keys)
    assert int(found.seed[0]) == 6 and int(found.masks.sum()) == 1 and int(found.degree[0, 1, 2]) == 0


def test_two_patches_are_enough_and_one_is_not() -> None:
    assert lost_masks(torch.tensor([[[[1.0, -1.0]]]])).masks.tolist() == [[[True, False]]]
    with pytest.raises(ConfigError, match="one patch"):
        lost_masks(torch.ones(1, 3, 1, 1))


def test_a_picture_does_not_depend_on_its_batch() -> None:
    keys = torch.stack([scene(seed) for seed in range(4)])
    together = lost_masks(keys).masks
    assert torch.equal(together, torch.cat([lost_masks(one[None]).masks for one in keys]))


def test_refuses_bad_features_and_settings() -> None:
    keys = scene(0)[None]
    with pytest.raises(ConfigError, match="k is 0"):
        lost_masks(keys, 0)
    with pytest.raises(ValueError):
        LostConfig(k=0)
    with pytest.raises(NumericError, match="NaN"):
        lost_masks(torch.where(keys > 1, torch.nan, keys))
    with pytest.raises(NumericError, match="NaN"):
        lost_masks(torch.where(keys > 1, torch.inf, keys))
    with pytest.raises(NumericError, match="all zero"):
        lost_masks(torch.zeros(1, 2, 3, 3))


class Features:
    """Stands for learned features: signed colours of the patches."""

    image_px, patch_px = 32, 4

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, self.patch_px) - 0.4


def test_the_method_finds_a_square() -> None:
    images = torch.zeros(2, 3, 64, 64)
    images[:, 1] = 0.9
    images[:, :, 16:40, 24:48] = torch.tensor([0.9, 0.0, 0.9])[:, None, None]
    truth = torch.zeros(2, 64, 64)
    truth[:, 16:40, 24:48] = 1
    method = Lost(LostConfig(), {"features": Features()})
    assert torch.equal(method.segment(images), truth)
    assert method.boxes(images).tolist() == [[24, 16, 48, 40]] * 2
    assert method.players() == {} and Lost.capabilities == ("segment",)


def test_published_boxes_have_the_format_of_ours() -> None:
    if not (EXAMPLES / "boxes.json").exists():
        pytest.skip("the published examples are not there")
    boxes = json.loads((EXAMPLES / "boxes.json").read_text())["lost"]
    for x0, y0, x1, y1 in boxes.values():
        assert x0 % 16 == y0 % 16 == 0 and x0 < x1 and y0 < y1
        grid = torch.zeros(1, 32, 32, dtype=torch.bool)
        grid[0, y0 // 16 : -(-y1 // 16), x0 // 16 : -(-x1 // 16)] = True
        assert patch_boxes_px(grid, 16, max(x1, 1), max(y1, 1)).tolist() == [[x0, y0, x1, y1]]
