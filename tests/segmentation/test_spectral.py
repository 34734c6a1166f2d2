"""Deep Spectral Methods against a dense float64 solve, its sign rule, its colour graph, and its method class."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import ndimage
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError
from selftaught.segmentation.spectral import Spectral, SpectralConfig, color_affinity, smaller_side, spectral_masks


def scene(seed: int, h: int = 12, w: int = 11, d: int = 16) -> Tensor:
    """Keys (d, h, w) of one blob on a background."""
    rng = np.random.default_rng(seed)
    blob = np.zeros((h, w), bool)
    top, left = rng.integers(0, h - 5), rng.integers(0, w - 5)
    blob[top : top + 5, left : left + 4] = True
    base, thing = rng.normal(size=(2, d))
    keys = np.where(blob[..., None], thing, base) + 0.6 * rng.normal(size=(h, w, d))
    return torch.from_numpy(keys.transpose(2, 0, 1)).float()


def pictures(batch: int, px: int = 48) -> Tensor:
    return torch.rand(batch, 3, px, px, generator=torch.Generator().manual_seed(0))


def official(keys: Tensor, extra: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Mask and eigenvalue by the published steps for one picture."""
    d, h, w = keys.shape
    f = keys.double().reshape(d, -1).T.numpy()
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    weight = np.maximum(f @ f.T, 0)
    weight = weight / weight.max()
    if extra is not None:
        weight = weight + extra
    degree = np.diag(weight.sum(1))
    values, vectors = scipy.linalg.eigh(degree - weight, degree, subset_by_index=[1, 1])
    mask = vectors[:, 0] > 0
    if 0.5 < mask.mean() < 1.0:
        mask = ~mask
    return mask.reshape(h, w), float(values[0])


def test_equals_the_published_procedure() -> None:
    keys = torch.stack([scene(seed) for seed in range(8)])
    found = spectral_masks(keys)
    for index in range(8):
        mask, lambda2 = official(keys[index])
        assert (found.masks[index].numpy() == mask).all()
        assert float(found.lambda2[index]) == pytest.approx(lambda2, abs=2e-6)
        assert bool(((found.eigenvectors[index] > 0) == found.masks[index]).all())


def test_the_largest_piece() -> None:
    keys = torch.stack([scene(seed) for seed in range(8)])
    every, largest = spectral_masks(keys), spectral_masks(keys, keep="largest")
    for whole, piece in zip(every.masks.numpy(), largest.masks.numpy(), strict=True):
        labels, _ = ndimage.label(whole)
        assert (piece == (labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))).all()


def test_colour_graph_equals_slow_loops() -> None:
    picture = pictures(1, 7)[0]
    n = 49
    y, x = np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 7), indexing="ij")
    expected = np.zeros((n, n))
    for count, weight in ((20, 2.0), (10, 0.1)):
        points = [[*picture[:, i // 7, i % 7].tolist(), weight * x.flat[i], weight * y.flat[i]] for i in range(n)]
        for i in range(n):
            gaps = [sum((a - b) ** 2 for a, b in zip(points[i], other, strict=True)) for other in points]
            for j in np.argsort(gaps, kind="stable")[:count]:
                expected[i, j] += 1
                expected[j, i] += 1
    got = color_affinity(picture)
    np.testing.assert_array_equal(got.numpy(), expected)
    assert torch.equal(got, got.T)
    assert color_affinity(picture[:, :2, :3]).sum() == 2 * 2 * 36, "few patches are all neighbours"


def test_with_colour_equals_the_published_procedure() -> None:
    keys, images = torch.stack([scene(seed) for seed in range(3)]), pictures(3)
    found = spectral_masks(keys, images, color=0.5)
    small = torch.nn.functional.interpolate(images, (12, 11), mode="bilinear", antialias=True)
    for index in range(3):
        mask, lambda2 = official(keys[index], 0.5 * color_affinity(small[index]).double().numpy())
        assert (found.masks[index].numpy() == mask).all()
        assert float(found.lambda2[index]) == pytest.approx(lambda2, abs=2e-6)


def test_the_sign_changes_nothing_and_the_object_is_at_most_half() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (9, 10):
        x = torch.randn(200, n, generator=generator)
        for one, two in zip(smaller_side(x), smaller_side(-x), strict=True):
            assert torch.equal(one, two)
        assert float(smaller_side(x)[1].float().mean(1).max()) <= 0.5


def test_scaling_patches_changes_nothing() -> None:
    keys = torch.stack([scene(seed) for seed in range(4)])
    factor = torch.rand(4, 1, 12, 11, generator=torch.Generator().manual_seed(1)) * 10 + 0.01
    assert torch.equal(spectral_masks(keys).masks, spectral_masks(keys * factor).masks)


def test_identical_features_and_equal_parts_are_reported() -> None:
    flat = spectral_masks(torch.ones(1, 3, 12, 12))
    assert flat.repeated[0] and float(flat.lambda2[0]) == pytest.approx(1.0, abs=1e-5)
    assert spectral_masks(torch.eye(3).repeat_interleave(4, 1).reshape(1, 3, 3, 4)).repeated[0]


def test_two_disconnected_parts_cost_nothing() -> None:
    keys = torch.zeros(1, 2, 4, 4)
    keys[:, 0], keys[:, 0, :, 0], keys[:, 1, :, 0] = 1.0, 0.0, 1.0
    found = spectral_masks(keys)
    assert torch.equal(found.masks[0], keys[0, 1] > 0)
    assert float(found.lambda2[0]) == pytest.approx(0.0, abs=1e-12) and not found.repeated[0]


def test_refuses_bad_features_and_settings() -> None:
    keys = scene(0)[None]
    with pytest.raises(ConfigError, match="one patch"):
        spectral_masks(torch.ones(1, 3, 1, 1))
    with pytest.raises(NumericError, match="NaN"):
        spectral_masks(torch.where(keys > 1, torch.nan, keys))
    with pytest.raises(ConfigError, match="colour"):
        spectral_masks(keys, color=1.0)
    with pytest.raises(ConfigError, match="colour"):
        spectral_masks(keys, pictures(2), color=1.0)
    for settings in ({"color": -1.0}, {"keep": "some"}):
        with pytest.raises(ConfigError):
            spectral_masks(keys, **settings)
    with pytest.raises(ValueError):
        SpectralConfig(color=-1.0)


class Features:
    """Stands for learned features: signed colours of the patches."""

    image_px, patch_px = 48, 4

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, self.patch_px) - 0.3


def test_the_method_finds_a_square_with_and_without_colour() -> None:
    images = torch.zeros(2, 3, 96, 96)
    images[:, 1] = 0.9
    images[:, :, 16:40, 24:48] = torch.tensor([0.9, 0.1, 0.9])[:, None, None]
    truth = torch.zeros(2, 96, 96)
    truth[:, 16:40, 24:48] = 1
    method = Spectral(SpectralConfig(), {"features": Features()})
    assert torch.equal(method.segment(images), truth)
    assert method.boxes(images).tolist() == [[24, 16, 48, 40]] * 2
    # Nine patches have fewer than 20 neighbours of their own colour, so the colour graph draws the next ones in.
    coloured = Spectral(SpectralConfig(color=0.1), {"features": Features()}).segment(images)
    assert bool((coloured >= truth).all()) and float(coloured.mean()) < 2 * float(truth.mean())
    assert method.players() == {} and set(Spectral.sizes) == {"tiny", "small", "paper"}
