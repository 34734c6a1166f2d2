"""Boxes and instance masks: brute force for IoU and CorLoc, faster-coco-eval for average precision."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest

from selftaught.measure import boxes as b


def random_boxes(rng: np.random.Generator, n: int, side: int = 60) -> np.ndarray:
    low = rng.integers(0, side - 12, size=(n, 2))
    return np.concatenate([low, low + rng.integers(3, 12, size=(n, 2)) * rng.integers(1, 4)], axis=1).astype(np.float64)


def test_mask_to_box_has_exclusive_ends_and_none_for_empty() -> None:
    mask = np.zeros((10, 12), np.uint8)
    assert b.mask_to_box(mask) is None and b.largest_component_box(mask) is None
    mask[3, 4] = 1
    assert b.mask_to_box(mask).tolist() == [4, 3, 5, 4]  # type: ignore[union-attr]
    mask[9, 11] = 1
    assert b.mask_to_box(mask).tolist() == [4, 3, 12, 10]  # type: ignore[union-attr]


def test_largest_component_touches_by_edges_only() -> None:
    soft = np.zeros((8, 8))
    soft[0:2, 0:2], soft[2:5, 2:4], soft[7, 7] = 0.9, 0.8, 1.0  # the corner at (2, 2) does not join the first two
    assert b.largest_component_box(soft).tolist() == [2, 2, 4, 5]  # type: ignore[union-attr]
    assert b.largest_component(soft > 0.5).sum() == 6


def test_instance_maps() -> None:
    ids = np.zeros((6, 6), np.uint8)
    ids[0:2, 0:3], ids[4:6, 4:6], ids[3] = 7, 2, 255
    assert b.instance_boxes(ids).tolist() == [[4, 4, 6, 6], [0, 0, 3, 2]]
    assert b.instance_masks(ids).sum(axis=(1, 2)).tolist() == [4, 6]
    assert b.instance_boxes(np.zeros((3, 3), np.uint8)).shape == (0, 4)


def test_box_and_mask_iou_against_pixel_sets() -> None:
    rng = np.random.default_rng(0)
    first, second = random_boxes(rng, 15), random_boxes(rng, 11)

    def pixels(box: np.ndarray) -> np.ndarray:
        mask = np.zeros((90, 90), bool)
        mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        return mask

    drawn_a, drawn_b = np.stack([pixels(x) for x in first]), np.stack([pixels(x) for x in second])
    want = [[(p & q).sum() / (p | q).sum() for q in drawn_b] for p in drawn_a]
    np.testing.assert_allclose(b.box_iou(first, second), want, atol=1e-12)
    np.testing.assert_allclose(b.mask_iou(drawn_a, drawn_b), want, atol=1e-12)
    assert b.box_iou(np.zeros((0, 4)), second).shape == (0, 11)
    assert b.box_iou([1, 1, 1, 1], [1, 1, 1, 1])[0, 0] == 0.0


def test_corloc_of_truth_of_exactly_half_and_of_misses() -> None:
    truth = [np.array([[0, 0, 10, 10], [20, 20, 30, 30]])] * 4 + [np.zeros((0, 4))]
    guesses = [[20, 20, 30, 30], [0, 0, 10, 5], [0, 0, 10, 4.999], None, [0, 0, 1, 1]]
    got = b.corloc(guesses, truth)
    assert got[:4].tolist() == [1.0, 1.0, 0.0, 0.0] and math.isnan(got[4])
    rng = np.random.default_rng(1)
    many = [random_boxes(rng, 3) for _ in range(50)]
    assert b.corloc([boxes[1] for boxes in many], many).mean() == 1.0
    single = [random_boxes(rng, 1)[0] for _ in many]
    slow = [max(float(b.box_iou(one, t)[0, 0]) for t in boxes) >= 0.5 for one, boxes in zip(single, many, strict=True)]
    assert b.corloc(single, many).tolist() == [float(hit) for hit in slow]
    with pytest.raises(ValueError, match="prediction 0: expected one box"):
        b.corloc([many[0]], [many[0]])
    with pytest.raises(ValueError, match="truth 0: expected x0 <= x1"):
        b.corloc([None], [[[5, 5, 1, 1]]])


def coco(predictions: list, scores: list, truths: list, kind: str) -> dict[str, float]:
    """The same through faster-coco-eval, one category."""
    library = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is an optional test dependency")
    coder: Any = pytest.importorskip("faster_coco_eval.core.mask")

    def shape_of(item: np.ndarray) -> dict:
        if kind == "boxes":
            x0, y0, x1, y1 = (float(v) for v in item)
            return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        code = coder.encode(np.asfortranarray(item.astype(np.uint8)))
        return {"segmentation": code, "area": float(item.sum()), "bbox": [float(v) for v in coder.toBbox(code)]}

    images = [{"id": i + 1, "height": 90, "width": 90} for i in range(len(truths))]
    true, found = [], []
    for index in range(len(truths)):
        base = {"image_id": index + 1, "category_id": 1, "iscrowd": 0}
        true += [{**base, **shape_of(item)} for item in truths[index]]
        found += [
            {**base, **shape_of(item), "score": float(s)}
            for item, s in zip(predictions[index], scores[index], strict=True)
        ]
    for number, item in enumerate(true):
        item["id"] = number + 1
    with contextlib.redirect_stdout(io.StringIO()):
        data = library.COCO({"images": images, "annotations": true, "categories": [{"id": 1, "name": "thing"}]})
        run = library.COCOeval_faster(data, data.loadRes(found), "bbox" if kind == "boxes" else "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {"AP": run.stats[0], "AP50": run.stats[1], "AP75": run.stats[2], "AR": run.stats[8]}


def random_detections(seed: int, kind: str) -> tuple[list, list, list]:
    """Jittered truths plus noise, repeated boxes, tied scores, a picture without truth and one without detections."""
    rng = np.random.default_rng(seed)
    predictions, scores, truths = [], [], []
    for index in range(9):
        truth = random_boxes(rng, int(rng.integers(1, 6)))
        found = np.concatenate([truth + rng.integers(-2, 3, size=truth.shape), random_boxes(rng, 4), truth[:1]])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        found = np.clip(found, 0, 89)
        predictions.append(found if index != 1 else np.zeros((0, 4)))
        scores.append(np.round(rng.random(len(predictions[-1])), 2))
        truths.append(truth if index != 0 else np.zeros((0, 4)))
    if kind == "masks":
        predictions, truths = [draw(boxes) for boxes in predictions], [draw(boxes) for boxes in truths]
    return predictions, scores, truths


def draw(boxes: np.ndarray) -> np.ndarray:
    masks = np.zeros((len(boxes), 90, 90), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
        mask[y0, x0] = False
    return masks


@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_equals_coco(seed: int, kind: Any) -> None:
    case = random_detections(seed, kind)
    got, want = b.average_precision(*case, kind=kind), coco(*case, kind)
    assert got == pytest.approx(want, abs=1e-6)
    assert 0.02 < got["AP"] < 0.98, "a case that proves something"


def test_average_precision_counts_only_the_first_hundred() -> None:
    rng = np.random.default_rng(4)
    truth = random_boxes(rng, 8)
    found = np.concatenate([random_boxes(rng, 110), truth])
    case = ([found], [rng.random(118)], [truth])
    assert b.average_precision(*case) == pytest.approx(coco(*case, "boxes"), abs=1e-6)
    assert b.average_precision(*case, max_detections=200)["AR"] == 1.0


def test_average_precision_of_truth_nothing_and_refusals() -> None:
    truth = random_boxes(np.random.default_rng(2), 4)
    assert set(b.average_precision([truth], [np.ones(4)], [truth]).values()) == {1.0}
    assert b.average_precision([np.zeros((0, 4))], [[]], [truth])["AP"] == 0.0
    assert math.isnan(b.average_precision([truth], [np.ones(4)], [np.zeros((0, 4))])["AP"])
    with pytest.raises(ValueError, match="scores 0: expected 4 finite scores, got 3"):
        b.average_precision([truth], [np.ones(3)], [truth])
