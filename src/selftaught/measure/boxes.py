"""Scores of boxes and instance masks: CorLoc and class-agnostic COCO average precision, on plain numpy.

Boxes are (x0, y0, x1, y1) in pixels with exclusive ends, so that a box of one pixel is (x, y, x + 1, y + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from selftaught.measure.pairs import IGNORE, as_array

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)


def mask_to_box(mask: Any) -> np.ndarray | None:
    """(4,) float64 box around all true pixels of an (H, W) binary mask, None for an empty one."""
    array = as_array(mask)
    if array.ndim != 2:
        raise ValueError(f"mask_to_box: expected (H, W), got shape {array.shape}")
    rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
    if rows.size == 0:
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def largest_component(mask: Any) -> np.ndarray:
    """(H, W) bool of the largest piece of a binary mask, pieces touch by edges (4 neighbours); first of equals."""
    from scipy.ndimage import label

    array = as_array(mask) > 0
    pieces, count = label(array)
    if count <= 1:
        return array
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == int(np.argmax(sizes))


def largest_component_box(soft: Any, threshold: float = 0.5) -> np.ndarray | None:
    """(4,) box of the largest piece of a soft (H, W) mask strictly above `threshold`: the one box CorLoc asks for."""
    return mask_to_box(largest_component(as_array(soft) > threshold))


def instance_masks(ids: Any) -> np.ndarray:
    """(M, H, W) bool, one per object of an (H, W) map of ids, in order of id; 0 is background and 255 ignored."""
    array = as_array(ids)
    present = [value for value in np.unique(array) if value not in (0, IGNORE)]
    return np.stack([array == value for value in present]) if present else np.zeros((0, *array.shape), bool)


def instance_boxes(ids: Any) -> np.ndarray:
    """(M, 4) float64 boxes of the objects of an (H, W) map of ids, in order of id; (0, 4) when there is none."""
    boxes = [mask_to_box(mask) for mask in instance_masks(ids)]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _as_boxes(boxes: Any, what: str) -> np.ndarray:
    array = as_array(boxes).astype(np.float64)
    array = array.reshape(-1, 4) if array.size == 0 or array.shape == (4,) else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{what}: expected boxes (K, 4), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: expected finite corners, got a box with NaN or infinity")
    if (array[:, 2:] < array[:, :2]).any():
        raise ValueError(f"{what}: expected x0 <= x1 and y0 <= y1, got a box the other way round")
    return array


def box_iou(a: Any, b: Any) -> np.ndarray:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes, in [0, 1]; 0 for two boxes without area."""
    first, second = _as_boxes(a, "first boxes"), _as_boxes(b, "second boxes")
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(first[:, 2:] - first[:, :2], axis=1)
    area_b = np.prod(second[:, 2:] - second[:, :2], axis=1)
    union = area_a[:, None] + area_b[None, :] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def mask_iou(a: Any, b: Any) -> np.ndarray:
    """(N, M) intersection over union of (N, H, W) and (M, H, W) binary masks, in [0, 1]; 0 for two empty ones."""
    first, second = as_array(a) > 0, as_array(b) > 0
    if len(first) == 0 or len(second) == 0:
        return np.zeros((len(first), len(second)))
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"mask_iou: expected masks of one size, got {first.shape[1:]} and {second.shape[1:]}")
    flat_a, flat_b = first.reshape(len(first), -1), second.reshape(len(second), -1)
    # float32 counts exactly up to 2^24 pixels and uses the fast matrix product.
    exact = np.float32 if flat_a.shape[1] < 2**24 else np.float64
    both = np.asarray(np.dot(flat_a.astype(exact), flat_b.astype(exact).T), dtype=np.float64)
    union = flat_a.sum(axis=1)[:, None] + flat_b.sum(axis=1)[None, :] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def corloc(predictions: Sequence[Any], truths: Sequence[Any], threshold: float = 0.5) -> np.ndarray:
    """(N,) 1 where the single predicted box has IoU >= `threshold` with any true box, else 0; NaN without true boxes.

    predictions: one (4,) box or None (a miss) per picture; truths: (K, 4) boxes per picture. CorLoc (Deselaers et al.
    2010) is the mean over pictures with truth; ">=" as in all released evaluators, without their epsilon in the union.
    """
    if len(predictions) != len(truths):
        raise ValueError(f"corloc: expected as many truths as predictions, got {len(predictions)} and {len(truths)}")
    found = np.full(len(truths), np.nan)
    for index, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        true_boxes = _as_boxes(truth, f"truth {index}")
        box = np.zeros((0, 4)) if prediction is None else _as_boxes(prediction, f"prediction {index}")
        if len(box) > 1:
            raise ValueError(f"prediction {index}: expected one box or None, got {len(box)} boxes")
        if len(true_boxes):
            found[index] = float(len(box) > 0 and box_iou(box, true_boxes).max() >= threshold)
    return found


def average_precision(
    predictions: Sequence[Any],
    scores: Sequence[Any],
    truths: Sequence[Any],
    kind: Literal["boxes", "masks"] = "boxes",
    max_detections: int = 100,
) -> dict[str, float]:
    """Class-agnostic COCO average precision: {"AP" (IoU .50:.05:.95), "AP50", "AP75", "AR" (at `max_detections`)}, in
    [0, 1].

    Per picture: predictions (K, 4) boxes or (K, H, W) binary masks, scores (K,), truths (M, 4) or (M, H, W). Greedy
    matching by falling score, precision made monotone and read at 101 recalls (Lin et al. 2014, pycocotools); all
    areas, no crowd regions. NaN when no picture has truth. ValueError names the picture whose scores do not fit.
    """
    if not len(predictions) == len(scores) == len(truths):
        raise ValueError(
            f"average_precision: expected lists of one length, got {len(predictions)}, {len(scores)} and {len(truths)}"
        )
    if kind not in ("boxes", "masks"):
        raise ValueError(f"average_precision: expected kind boxes or masks, got {kind!r}")
    all_scores, all_hits, n_truth = [], [], 0
    for index, (found, weight, truth) in enumerate(zip(predictions, scores, truths, strict=True)):
        values = as_array(weight).astype(np.float64).ravel()
        if len(values) != len(found) or not np.isfinite(values).all():
            raise ValueError(
                f"scores {index}: expected {len(found)} finite scores, got {len(values)} (or NaN among them)"
            )
        order = np.argsort(-values, kind="stable")[:max_detections]
        overlap = box_iou(found, truth) if kind == "boxes" else mask_iou(found, truth)
        all_scores.append(values[order])
        all_hits.append(_match(overlap[order]))
        n_truth += overlap.shape[1]
    if n_truth == 0:
        return dict.fromkeys(("AP", "AP50", "AP75", "AR"), float("nan"))
    order = np.argsort(-np.concatenate(all_scores), kind="stable")
    hits = np.concatenate(all_hits, axis=1)[:, order]
    precision = np.array([_interpolated(row, n_truth) for row in hits])
    return {
        "AP": float(precision.mean()),
        "AP50": float(precision[0]),
        "AP75": float(precision[5]),
        "AR": float(hits.sum(axis=1).mean() / n_truth),
    }


def _match(overlap: np.ndarray) -> np.ndarray:
    """(T, K) bool: which of the K detections, best score first, take a true object of the (K, M) overlaps, per
    threshold.
    """
    hits = np.zeros((len(IOU_THRESHOLDS), len(overlap)), bool)
    if overlap.shape[1] == 0:
        return hits
    n_truth = overlap.shape[1]
    for level, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(n_truth, bool)
        for detection in np.flatnonzero(overlap.max(axis=1) >= threshold):
            left = np.where(free, overlap[detection], -1.0)
            # The last of equal overlaps wins in the reference code.
            best = n_truth - 1 - int(np.argmax(left[::-1]))
            if left[best] >= threshold:
                free[best] = False
                hits[level, detection] = True
    return hits


def _interpolated(hits: np.ndarray, n_truth: int) -> float:
    """Mean over 101 recalls of the monotone precision of detections sorted by falling score."""
    if hits.size == 0:
        return 0.0
    true_positives = np.cumsum(hits)
    precision = true_positives / np.arange(1, hits.size + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    where = np.searchsorted(true_positives / n_truth, _RECALLS, side="left")
    return float(np.where(where < hits.size, precision[np.minimum(where, hits.size - 1)], 0.0).mean())
