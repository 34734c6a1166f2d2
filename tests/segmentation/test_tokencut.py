"""TokenCut against the published procedure written out densely in float64, its invariants, and its method class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import ndimage
from torch import Tensor, nn

from selftaught.core.config import from_json, to_json
from selftaught.core.errors import ConfigError, NumericError
from selftaught.segmentation.cut import graph_slices, overlay
from selftaught.segmentation.tokencut import TokenCut, TokenCutConfig, orient, tokencut_masks

EXAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "official_examples" / "lost_tokencut"


def scene(seed: int, h: int = 12, w: int = 12, d: int = 24, noise: float = 0.15) -> tuple[Tensor, Tensor]:
    """Keys (d, h, w) of one blob on a background of two related parts, and the blob."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(1, h - 5), rng.integers(1, w - 5)
    blob = np.zeros((h, w), bool)
    blob[top : top + rng.integers(3, 5), left : left + rng.integers(3, 5)] = True
    base, other, thing = np.sqrt(d) * np.linalg.qr(rng.normal(size=(d, 3)))[0].T
    other = 0.7 * base + 0.7 * other
    centre = np.where(blob[..., None], thing, np.where(np.arange(w)[None, :, None] < w // 2, base, other))
    keys = centre + noise * np.sqrt(d) * rng.normal(size=(h, w, d)) / 2
    return torch.from_numpy(keys.transpose(2, 0, 1)).float(), torch.from_numpy(blob)


def official(keys: Tensor, tau: float, eps: float, binary: bool = True) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Mask, eigenvector, eigenvalue and seed by the published steps for one picture."""
    d, h, w = keys.shape
    f = torch.nn.functional.normalize(keys.reshape(d, -1).T, dim=1)
    cosine = (f @ f.T).double().numpy()
    a = np.full_like(cosine, eps)
    for i in range(h * w):
        for j in range(h * w):
            if cosine[i, j] > tau:
                a[i, j] = 1.0 if binary else cosine[i, j]
    degree = np.diag(a.sum(1))
    values, vectors = scipy.linalg.eigh(degree - a, degree, subset_by_index=[1, 2])
    x = vectors[:, 0]
    side = x > x.mean()
    seed = int(np.argmax(np.abs(x)))
    if not side[seed]:
        x, side = -x, ~side
    labels, _ = ndimage.label(side.reshape(h, w))
    return labels == labels.flat[seed], x.reshape(h, w), float(values[0]), seed


@pytest.mark.parametrize("tau", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("side", [8, 12])
def test_equals_the_published_procedure(side: int, tau: float) -> None:
    keys = torch.stack([scene(seed, side, side + 1)[0] for seed in range(6)])
    found = tokencut_masks(keys, tau, 1e-5)
    for index in range(len(keys)):
        mask, x, lambda2, seed = official(keys[index], tau, 1e-5)
        assert not found.repeated[index]
        assert (found.masks[index].numpy() == mask).all()
        assert float(found.lambda2[index]) == pytest.approx(lambda2, abs=2e-6)
        np.testing.assert_allclose(found.eigenvectors[index].numpy(), x, atol=2e-3 * np.abs(x).max())
        assert np.abs(x).flat[int(found.seed[index])] >= (1 - 2e-3) * np.abs(x).flat[seed]
        assert bool(found.masks[index].flatten()[found.seed[index]])


def test_weighted_graph_equals_the_published_procedure() -> None:
    keys = torch.stack([scene(seed)[0] for seed in range(3)])
    found = tokencut_masks(keys, 0.2, 1e-5, binary=False)
    for index in range(3):
        mask, _, lambda2, _ = official(keys[index], 0.2, 1e-5, binary=False)
        assert (found.masks[index].numpy() == mask).all()
        assert float(found.lambda2[index]) == pytest.approx(lambda2, abs=2e-6)


def test_finds_a_clear_object() -> None:
    scenes = [scene(seed, noise=0.02) for seed in range(8)]
    found = tokencut_masks(torch.stack([keys for keys, _ in scenes]), 0.5)
    assert torch.equal(found.masks, torch.stack([blob for _, blob in scenes]))
    assert float(found.lambda2.max()) < 1e-2 and not found.repeated.any()


def test_the_smaller_of_two_blocks_is_the_object() -> None:
    keys = torch.zeros(1, 2, 4, 4)
    keys[:, 0], keys[:, 0, :, 0], keys[:, 1, :, 0] = 1.0, 0.0, 1.0
    found = tokencut_masks(keys)
    assert torch.equal(found.masks[0], keys[0, 1] > 0)
    assert float(found.lambda2[0]) == pytest.approx(3.333242e-5, abs=1e-9)
    x = found.eigenvectors[0]
    assert float(x[0, 0] / x[0, 1]) == pytest.approx(-8.99976, rel=1e-5)


def test_only_the_piece_with_the_seed_is_kept() -> None:
    keys = torch.zeros(1, 2, 6, 6)
    keys[:, 0] = 1.0
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(4, 6), slice(4, 5))):
        keys[:, 0, rows, columns], keys[:, 1, rows, columns] = 0.0, 1.0
    found = tokencut_masks(keys)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(found.masks[0], expected) and int(found.seed[0]) == 0


def test_scaling_patches_changes_nothing() -> None:
    keys = torch.stack([scene(seed)[0] for seed in range(4)])
    factor = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 10 + 0.01
    assert torch.equal(tokencut_masks(keys).masks, tokencut_masks(keys * factor).masks)
    assert torch.equal(tokencut_masks(keys).masks, tokencut_masks(keys * 1e-20).masks)


def test_the_sign_of_the_eigenvector_changes_nothing() -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    for one, two in zip(orient(x), orient(-x), strict=True):
        assert torch.equal(one, two)


def test_identical_features_are_reported() -> None:
    for side in (4, 12):
        found = tokencut_masks(torch.ones(1, 3, side, side))
        assert found.repeated[0] and float(found.lambda2[0]) == pytest.approx(1.0, abs=1e-5)
        assert found.masks[0].any()


def test_disconnected_equal_parts_are_reported() -> None:
    keys = torch.eye(3).repeat_interleave(4, 1).reshape(1, 3, 3, 4)
    assert tokencut_masks(keys).repeated[0]


def test_large_batches_are_cut_into_parts_that_fit_the_memory() -> None:
    parts = list(graph_slices(100, 3600))
    assert [part.start for part in parts] == list(range(0, 100, 5)) and parts[-1].stop == 100
    assert list(graph_slices(3, 10)) == [slice(0, 3)] and list(graph_slices(2, 10**6))[0] == slice(0, 1)


def test_refuses_bad_features_and_settings() -> None:
    good = scene(0)[0][None]
    with pytest.raises(ConfigError, match="one patch"):
        tokencut_masks(torch.ones(1, 3, 1, 1))
    with pytest.raises(ConfigError, match="shape"):
        tokencut_masks(good[0])
    broken = good.repeat(2, 1, 1, 1)
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(NumericError, match="picture 1"):
        tokencut_masks(broken)
    empty = good.clone()
    empty[0, :, 2, 2] = 0
    with pytest.raises(NumericError, match="all zero"):
        tokencut_masks(empty)
    for tau, eps, binary in ((1.0, 1e-5, True), (-2.0, 1e-5, True), (0.2, 0.0, True), (-0.1, 1e-5, False)):
        with pytest.raises(ConfigError):
            tokencut_masks(good, tau, eps, binary=binary)
        with pytest.raises(ConfigError):
            TokenCutConfig(tau=tau, eps=eps, binary=binary)
    with pytest.raises(ValueError):
        TokenCutConfig(max_patches=1)


class ColourFeatures(nn.Module):
    """Stands for learned features: the mean colour of each patch, centred."""

    image_px, patch_px = 48, 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, ...]] = []

    def features(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return (nn.functional.avg_pool2d(images, self.patch_px) - 0.5) * self.weight


def pictures(batch: int = 3, h: int = 96, w: int = 72) -> tuple[Tensor, Tensor]:
    """Red rectangles on green, and their masks; sides are multiples of the patch at 96 x 72."""
    images, truth = torch.zeros(batch, 3, h, w), torch.zeros(batch, h, w)
    images[:, 1] = 1.0
    for index in range(batch):
        truth[index, 24 : 48 + 8 * index, 12:36] = 1
    images[:, 0], images[:, 1] = truth, 1 - truth
    return images, truth


def made(**settings: Any) -> tuple[TokenCut, ColourFeatures]:
    features = ColourFeatures()
    return TokenCut(TokenCutConfig(**settings), {"features": features}), features


def test_the_method_segments_pictures_of_any_shape() -> None:
    method, features = made(batch_size=2)
    images, truth = pictures()
    got = method.segment(images)
    assert got.shape == truth.shape and got.dtype == torch.float32
    assert torch.equal(got, truth)
    assert features.seen == [(2, 3, 48, 48), (1, 3, 48, 48)]
    assert method.boxes(images).tolist() == [[12, 24, 36, 48 + 8 * index] for index in range(3)]


def test_the_method_with_the_bilateral_solver() -> None:
    images, _ = pictures(2)
    images = torch.roll(images, (2, 1), dims=(2, 3))  # the object's rim now lies inside of patches
    truth = images[:, 0] > 0.5
    coarse = made()[0].segment(images)
    got = made(refine="bilateral", sigma_space_px=8.0)[0].segment(images)
    assert float(got.min()) >= 0 and float(got.max()) <= 1 and len(got.unique()) > 2
    assert not torch.equal(coarse > 0.5, truth) and torch.equal(got > 0.5, truth)
    strict, _ = made(refine="bilateral", min_iou=1.0)
    assert torch.equal(strict.segment(images), coarse), "a refused refinement leaves the mask"


def test_the_method_has_nothing_to_train_and_saves_nothing_of_its_features() -> None:
    method, _ = made()
    assert method.players() == {} and method.state_dict() == {} and list(method.parameters()) == []
    assert TokenCut.needs == {"features": "simclr"} and TokenCut.capabilities == ("segment",)
    for config in TokenCut.sizes.values():
        assert from_json(TokenCutConfig, to_json(config)) == config and config.steps == 0


def test_the_method_shows_pictures_and_objects() -> None:
    method, _ = made()
    sheet = method.show(pictures(2)[0])["objects"]
    assert sheet.shape == (192, 144, 3) and sheet.dtype == np.uint8
    assert (sheet[:96, :72] == (pictures(1)[0][0].permute(1, 2, 0) * 255).byte().numpy()).all()


def test_overlay_dims_the_background_and_colours_the_rim() -> None:
    mask = torch.zeros(5, 5)
    mask[1:4, 1:4] = 1
    drawn = overlay(torch.ones(3, 5, 5), mask)
    assert drawn[:, 0, 0].tolist() == pytest.approx([0.35] * 3) and drawn[:, 2, 2].tolist() == [1, 1, 1]
    assert drawn[:, 1, 1].tolist() == pytest.approx([0.95, 0.25, 0.1])


def test_the_method_refuses_too_many_patches_and_other_pictures() -> None:
    with pytest.raises(ConfigError, match="max_patches"):
        made(max_patches=100)[0].segment(pictures()[0])
    with pytest.raises(ConfigError, match="pictures"):
        made()[0].segment(pictures()[0].byte())
    with pytest.raises(ConfigError, match="pictures"):
        made()[0].segment(pictures()[0][:0])
    with pytest.raises(ConfigError, match="features"):
        TokenCut(TokenCutConfig(), {"features": object()})


def test_published_boxes_have_the_format_of_ours() -> None:
    if not (EXAMPLES / "boxes.json").exists():
        pytest.skip("the published examples are not there")
    boxes = json.loads((EXAMPLES / "boxes.json").read_text())["tokencut"]
    assert boxes
    for x0, y0, x1, y1 in boxes.values():
        assert x0 % 16 == y0 % 16 == 0 and x0 < x1 and y0 < y1
        assert (x1 % 16 == 0 or x1 <= 500) and (y1 % 16 == 0 or y1 <= 500)


def test_what_all_patches_share_is_taken_away_where_asked() -> None:
    """Features that resemble each other everywhere join all patches; without what they share the blob is found."""
    generator = torch.Generator().manual_seed(0)
    blob = torch.zeros(12, 12, dtype=torch.bool)
    blob[3:7, 4:9] = True
    common, thing = torch.randn(2, 24, 1, 1, generator=generator)
    keys = 10 * common + torch.where(blob, thing, -0.3 * thing) + 0.1 * torch.randn(24, 12, 12, generator=generator)

    class Alike(nn.Module):
        image_px, patch_px = 12, 1

        def features(self, images: Tensor) -> Tensor:
            return keys.expand(len(images), -1, -1, -1)

    images = torch.rand(1, 3, 12, 12)
    plain, centre = (TokenCut(TokenCutConfig(image_px=12, centre=c), {"features": Alike()}).segment(images)[0] > 0.5 for c in (False, True))
    overlaps = [float((m & blob).sum() / (m | blob).sum()) for m in (plain, centre)]
    assert overlaps[0] < 0.3 and overlaps[1] > 0.8, overlaps
