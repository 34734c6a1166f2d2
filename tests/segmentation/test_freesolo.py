"""FreeSOLO's free masks: queries, maskness, matrix NMS and the rules against slow loops; hand-made scenes; its method class."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_cutler import Features, block_keys, block_labels

from selftaught.core.errors import ConfigError, NumericError
from selftaught.segmentation.freesolo import (
    FreeSolo,
    FreeSoloConfig,
    allowed,
    free_masks,
    maskness,
    matrix_nms,
    query_maps,
)
from selftaught.segmentation.many import pair_ious

TINY: Any = FreeSolo.sizes["tiny"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_query_maps_against_a_slow_loop() -> None:
    keys = torch.randn(2, 5, 4, 6, generator=generator(0))
    found = query_maps(keys, (1.0, 0.5))
    assert found.shape == (2, 24 + 2 * 3, 4, 6)
    unit = torch.nn.functional.normalize(keys, dim=1)
    # Half the size, bilinear: the mean of 2x2 places.
    half = torch.stack([unit[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(2) for j in range(3)], 1)
    queries = torch.cat([unit.flatten(2).mT, half], 1)
    for b in range(2):
        for q in range(30):
            cosine = np.array([
                [float(queries[b, q] @ unit[b, :, y, x]) / float(queries[b, q].norm()) for x in range(6)] for y in range(4)
            ])  # fmt: skip
            want = (cosine - cosine.min()) / (cosine.max() - cosine.min())
            np.testing.assert_allclose(found[b, q], want, atol=1e-5)


def test_a_blank_picture_gives_no_masks() -> None:
    keys = torch.ones(1, 4, 5, 5)
    assert not query_maps(keys).any()
    found = free_masks(keys, FreeSoloConfig())
    assert not found.masks.any() and not found.scores.any() and found.masks.shape == (1, 20, 5, 5)


def test_maskness_is_the_mean_inside() -> None:
    soft = torch.tensor([[[[0.9, 0.7], [0.5, 0.1]], [[0.9, 0.2], [0.1, 0.3]], [[0.1, 0.2], [0.1, 0.3]]]])
    masks, score = maskness(soft)
    assert masks[0, 0].tolist() == [[True, True], [False, False]], "0.5 itself is not above"
    assert score.tolist() == [pytest.approx([0.8, 0.0, 0.0])], "one patch, or none, is no mask"


def test_matrix_nms_against_a_slow_loop() -> None:
    masks = torch.rand(3, 12, 5, 6, generator=generator(1)) > 0.4
    masks[1, 4] = masks[1, 2]
    scores = torch.rand(3, 12, generator=generator(2)).sort(1, descending=True).values
    found = matrix_nms(masks, scores, 2.0)
    iou = pair_ious(masks)
    for b in range(3):
        for j in range(12):
            factor = 1.0
            for i in range(j):
                covered = max((float(iou[b, k, i]) for k in range(i)), default=0.0)
                factor = min(factor, math.exp(-2 * float(iou[b, i, j]) ** 2) / math.exp(-2 * covered**2))
            assert float(found[b, j]) == pytest.approx(float(scores[b, j]) * factor, rel=1e-5)


def test_two_equal_masks_and_one_far_away() -> None:
    masks = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    masks[0, :2, :2], masks[0, 2, 3:] = True, True
    assert matrix_nms(masks, torch.tensor([[0.9, 0.8, 0.7]])).tolist() == [pytest.approx([0.9, 0.8 * math.exp(-2), 0.7])]


def test_the_rules_about_the_top_and_the_width() -> None:
    masks = torch.zeros(1, 4, 10, 20, dtype=torch.bool)
    masks[0, 0, :4, 5:9] = True  # centre at 0.2: allowed at just 0.2
    masks[0, 1, :3, 5:9] = True  # centre at 0.15
    masks[0, 2, 5:8, :19] = True  # 0.95 of the width
    masks[0, 3, 5:8, 1:19] = True
    assert allowed(masks, 0.2, 0.95).tolist() == [[True, False, False, True]]
    assert allowed(masks, 0.0, 2.0).all()


def test_two_blocks_are_the_two_best_objects() -> None:
    labels = block_labels()
    found = free_masks(block_keys(labels), FreeSoloConfig(top_frac=0.0))
    best = [m.numpy() for m in found.masks[0, :2]]
    assert {tuple(map(tuple, np.argwhere(m))) for m in best} == {tuple(map(tuple, np.argwhere(labels == k))) for k in (1, 2)}
    assert found.scores[0, :2].tolist() == pytest.approx([1.0, 1.0])
    background = [m for m, s in zip(found.masks[0], found.scores[0], strict=True) if s > 0 and m[0, 0]]
    assert not background, "as wide as the picture"
    every = free_masks(block_keys(labels), FreeSoloConfig(top_frac=0.0, max_width=2.0))
    assert any(bool(m[0, 0]) for m in every.masks[0])


def test_a_picture_does_not_depend_on_its_batch_and_scores_fall() -> None:
    keys = torch.randn(3, 6, 7, 8, generator=generator(4)) + 0.5
    c = FreeSoloConfig(min_score=0.0, max_masks=40, top_frac=0.0, max_width=2.0)
    found = free_masks(keys, c)
    alone = free_masks(keys[1:2], c)
    assert torch.equal(found.masks[1], alone.masks[0]) and torch.equal(found.scores[1], alone.scores[0])
    assert bool((found.scores[:, 1:] <= found.scores[:, :-1]).all()) and float(found.scores.max()) <= 1
    few = free_masks(keys, replace(c, max_objects=2))
    assert few.masks.shape[1] == 2 and torch.equal(few.scores, found.scores[:, :2])


@pytest.mark.parametrize("refine", ["none", "bilateral"])
def test_the_method_finds_two_squares(refine: Any) -> None:
    method = FreeSolo(replace(TINY, refine=refine, sigma_space_px=4.0), {"features": Features()})
    images = torch.full((1, 3, 32, 32), 0.1)
    images[:, 2] = 0.6
    images[0, :, 8:16, 4:16] = torch.tensor([0.9, 0.1, 0.05])[:, None, None]
    images[0, :, 20:28, 16:28] = torch.tensor([0.1, 0.9, 0.05])[:, None, None]
    found = method.objects(images)
    truths = torch.zeros(2, 32, 32)
    truths[0, 8:16, 4:16], truths[1, 20:28, 16:28] = 1, 1
    overlaps = pair_ious(torch.cat([found.masks[0, :4] > 0.5, truths > 0.5])[None])[0, :4, 4:]
    assert float(overlaps.amax(0).min()) > 0.9
    assert method.segment(images).shape == (1, 32, 32)
    assert method.show(images)["objects"].shape == (64, 32, 3)


def test_bad_settings_and_features_are_refused() -> None:
    for wrong in ({"scales": ()}, {"scales": (2.0,)}, {"cut_at": 1.0}, {"sigma": -1.0}, {"max_objects": 0}, {"max_width": 0.0}):
        with pytest.raises(ValueError):
            FreeSoloConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(NumericError):
        free_masks(torch.full((1, 3, 2, 2), torch.inf), FreeSoloConfig())
    with pytest.raises(ConfigError):
        free_masks(torch.ones(1, 3, 4), FreeSoloConfig())


