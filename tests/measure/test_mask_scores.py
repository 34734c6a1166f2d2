"""Mask scores of known predictions, their baselines, pictures of any size, and data without truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.data.arrays import ArraySource
from selftaught.data.evalset import EvalSet, open_eval
from selftaught.measure import mask_scores as module
from selftaught.measure.mask_scores import by_shape, mask_scores, resize_nearest, segment_all, segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import EvalData

NAMES = {"iou", "accuracy", "max_f", "corloc", "s_measure", "e_measure", "mae", "ap50_single_box"}


class Bright:
    """Segments what is bright."""

    def __init__(self, inverted: bool = False) -> None:
        self.inverted, self.batches = inverted, list[tuple[int, ...]]()

    def segment(self, images: Tensor) -> Tensor:
        self.batches.append(tuple(images.shape))
        mask = (images.mean(1) > 0.5).float()
        return 1 - mask if self.inverted else mask


def scenes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, 24, 30, 3) pictures with one bright block, and its mask."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (count, 24, 30, 3)).astype(np.uint8)
    masks = np.zeros((count, 24, 30), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        y, x = rng.integers(2, 10), rng.integers(2, 12)
        mask[y : y + 9, x : x + 12] = 1
        image[mask > 0] = rng.integers(170, 255)
    return images, masks


def opened(images: Any, masks: Any = None, split: str = "all", labels: Any = None) -> EvalSet:
    return open_eval(ArraySource(images, labels, masks), split, 16)


def test_perfect_masks_have_perfect_scores() -> None:
    images, truths = scenes(12)
    scores = mask_scores([t.astype(np.float32) for t in truths], list(truths), {"whole": [np.ones((24, 30))] * 12})
    assert set(scores) == NAMES
    for name in ("iou", "accuracy", "max_f", "corloc", "ap50_single_box"):
        assert scores[name].value == pytest.approx(1.0, abs=1e-6), name
    for name in ("s_measure", "e_measure"):  # E divides by one pixel less than there are
        assert scores[name].value == pytest.approx(1.0, abs=0.01), name
    assert scores["mae"].value == 0 and scores["mae"].better == "lower"
    share = float(np.mean([t.mean() for t in truths]))
    assert scores["iou"].baselines == {"whole": pytest.approx(share)}
    assert scores["mae"].baselines == {"whole": pytest.approx(1 - share)}
    assert all(s.n == 12 for s in scores.values())


def test_wrong_masks_have_the_worst_scores() -> None:
    _, truths = scenes(6)
    scores = mask_scores([1.0 - t for t in truths], list(truths), {})
    assert scores["iou"].value == 0 and scores["accuracy"].value == 0 and scores["mae"].value == 1
    assert scores["corloc"].value == 0 and scores["ap50_single_box"].value == 0
    nothing = mask_scores([np.zeros((24, 30))] * 6, list(truths), {})
    assert nothing["iou"].value == 0 and nothing["corloc"].value == 0


def test_half_a_mask_by_hand() -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[2:6, 2:6] = 1
    half = truth.astype(np.float32)
    half[4:] = 0
    scores = mask_scores([half], [truth], {})
    assert scores["iou"].value == pytest.approx(0.5) and scores["mae"].value == pytest.approx(8 / 64)
    assert scores["accuracy"].value == pytest.approx(56 / 64)
    assert scores["corloc"].value == 1.0, "a box that overlaps by half counts"
    half[3:] = 0
    assert mask_scores([half], [truth], {})["corloc"].value == 0.0


def test_every_baseline_stands_beside_every_score() -> None:
    data = EvalData(None, opened(*scenes(8)))
    scores = segmentation_scores(Bright(), data, {"inverted": Bright(inverted=True)})
    assert set(scores) == NAMES and not data.notes
    for name, score in scores.items():
        assert {"whole_image", "centre_box", "centre_ellipse", "colour", "colour_otsu", "inverted"} <= set(score.baselines), name
        assert np.isfinite(score.value) and all(np.isfinite(v) for v in score.baselines.values())
    assert scores["iou"].value == 1 and scores["iou"].baselines["inverted"] == 0
    assert scores["corloc"].value == 1


def test_without_truth_there_are_no_scores_but_a_note() -> None:
    method = Bright()
    data = EvalData(None, opened(scenes(4)[0]))
    assert segmentation_scores(method, data, {}) == {} and "no masks" in data.notes[0]
    assert not method.batches, "nothing is computed for nothing"


def test_pictures_are_segmented_at_their_own_size() -> None:
    rng = np.random.default_rng(0)
    sizes = [(8, 9), (20, 5), (8, 9), (1, 30), (8, 9)]
    pictures = [rng.integers(0, 255, (*s, 3)).astype(np.uint8) for s in sizes]
    method = Bright()
    masks = segment_all(method, pictures, batch_size=2)
    assert [m.shape for m in masks] == sizes and all(m.dtype == np.float32 for m in masks)
    for picture, mask in zip(pictures, masks, strict=True):
        assert np.array_equal(mask > 0.5, picture.mean(2) > 127.5)
    assert sorted(method.batches) == sorted([(2, 3, 8, 9), (1, 3, 8, 9), (1, 3, 20, 5), (1, 3, 1, 30)])
    batches: list[int] = []
    by_shape(pictures * 3, lambda images: batches.append(len(images)) or list(images), 64, 2 * pictures[0].shape[0] * pictures[0].shape[1])
    assert batches == [2, 2, 2, 2, 1, 1, 1, 1, 3], "144 px hold two of 8x9, one of 20x5, four of 1x30"
    assert segment_all(method, []) == []


def test_a_large_set_is_scored_on_an_even_part_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PICTURES", 5)
    data = EvalData(None, opened(*scenes(11)))
    scores = segmentation_scores(Bright(), data, {})
    assert scores["iou"].n == 5 and scores["iou"].value == 1
    assert "5 of 11 pictures" in data.notes[0]


def test_large_pictures_are_scored_within_a_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = 24 * 30
    monkeypatch.setattr(module, "MAX_PIXELS", 3 * pixels + 1)
    data = EvalData(None, opened(*scenes(11)))
    assert segmentation_scores(Bright(), data, {})["iou"].n == 3 and "3 of 11 pictures" in data.notes[0]
    method = Bright()
    segment_all(method, [np.zeros((4000, 4001, 3), np.uint8)] * 2)
    assert [b[0] for b in method.batches] == [1, 1], "not 64 photographs at once"


def test_made_pictures_are_checked_for_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[Any]] = []

    def leak(*sets: Any) -> Score:
        seen.append(sets)
        return Score(0.5, 1, (0.0, 1.0), "lower", "IoU", {})

    monkeypatch.setattr(module, "local_leak", leak)
    images, masks = scenes(10)
    train, test = opened(images, masks), opened(*scenes(6, 1))
    assert "leak_7x7" in segmentation_scores(Bright(), EvalData(train, test, made=True), {})
    (sets,) = seen
    assert [x.shape for x in sets] == [(10, 3, 16, 16), (10, 16, 16), (6, 3, 16, 16), (6, 16, 16)]
    assert "leak_7x7" not in segmentation_scores(Bright(), EvalData(train, test), {})
    assert "leak_7x7" not in segmentation_scores(Bright(), EvalData(None, test, made=True), {})


def test_the_leak_is_measured_where_gradients_are_off() -> None:
    images, masks = scenes(4)
    small = np.ascontiguousarray(images[:, :16, :16].transpose(0, 3, 1, 2))
    with torch.no_grad():
        score = module.local_leak(small, masks[:, :16, :16], small, masks[:, :16, :16], steps=3)
    assert 0 <= score.value <= 1 and {"whole picture", "centred box"} == set(score.baselines)


def test_nearest_resize_takes_the_middle_of_each_cell() -> None:
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert resize_nearest(mask, 2).tolist() == [[5, 7], [13, 15]]
    assert np.array_equal(resize_nearest(mask, 4), mask)
    assert np.array_equal(resize_nearest(mask, 8), mask.repeat(2, 0).repeat(2, 1))
