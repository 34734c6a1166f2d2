"""How good boxes and masks of several objects are: CorLoc of the best box, class-agnostic AP, and the walk through pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.measure.box_rules import BoxRule, FoundBoxes, boxes_of
from selftaught.measure.boxes import average_precision, corloc, instance_boxes, instance_masks, mask_to_box
from selftaught.measure.mask_scores import by_shape, masked_pictures
from selftaught.measure.score import Score, score_of

if TYPE_CHECKING:
    from selftaught.method import Detects, EvalData, FindsObjects


OBJECTS_PX = 8_000_000
"""Pixels of the pictures whose objects are asked for at once: there are tens of masks of each picture's size."""


@torch.no_grad()
def detect_all(method: Detects, pictures: Sequence[np.ndarray[Any, Any]], batch_size: int = 64) -> list[FoundBoxes]:
    """Boxes with scores of (H, W, 3) uint8 pictures of any sizes."""

    def ask(images: Tensor) -> list[FoundBoxes]:
        boxes, scores = (x.cpu().double().numpy() for x in method.detect(images))
        return [FoundBoxes(b[s > 0], s[s > 0]) for b, s in zip(boxes, scores, strict=True)]

    return by_shape(pictures, ask, batch_size)


@torch.no_grad()
def objects_all(
    method: FindsObjects, pictures: Sequence[np.ndarray[Any, Any]], batch_size: int = 64
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Soft masks (K, H, W) float32 and scores (K,) of (H, W, 3) uint8 pictures of any sizes."""

    def ask(images: Tensor) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        masks, scores = (x.cpu().numpy() for x in method.objects(images))
        return [(m[s > 0], s[s > 0].astype(np.float64)) for m, s in zip(masks, scores, strict=True)]

    return by_shape(pictures, ask, batch_size, OBJECTS_PX)


def boxes_of_masks(masks: Sequence[np.ndarray[Any, Any]], rule: BoxRule) -> list[FoundBoxes]:
    """`boxes_of` of each soft mask (H, W), with its standard threshold and smallest area."""
    return [boxes_of(mask, rule) for mask in masks]


def corloc_of(found: Sequence[FoundBoxes], truths: Sequence[np.ndarray[Any, Any]], threshold: float = 0.5) -> np.ndarray[Any, Any]:
    """(N,) `boxes.corloc` of the box with the highest score of each picture; a picture without a box is a miss."""
    return corloc([one.best for one in found], truths, threshold)


def box_scores(
    found: Sequence[FoundBoxes], truths: Sequence[np.ndarray[Any, Any]], baselines: Mapping[str, Sequence[FoundBoxes]]
) -> dict[str, Score]:
    """CorLoc of the best box and AP, AP50 and AR of all boxes against true boxes (M, 4), the baselines' beside.

    Scores that no picture defines (where there is no object) are left out.
    """

    def precision(boxes: Sequence[FoundBoxes]) -> dict[str, float]:
        return average_precision([b.boxes for b in boxes], [b.scores for b in boxes], truths)

    located = {name: corloc_of(boxes, truths) for name, boxes in baselines.items()}
    scores = {"corloc": score_of(corloc_of(found, truths), unit="share of pictures", baselines=located,
                                 note="box with the highest score")}  # fmt: skip
    own, beside = precision(found), {name: precision(boxes) for name, boxes in baselines.items()}
    for name, key in (("ap50", "AP50"), ("ap", "AP"), ("ar100", "AR")):
        value = own[key]
        scores[name] = Score(
            value, len(truths), (value, value), "higher", key, {n: b[key] for n, b in beside.items()},
            "all boxes, class-agnostic; no interval",
        )  # fmt: skip
    return {name: score for name, score in scores.items() if np.isfinite(score.value)}


def detection_scores(
    method: Detects, data: EvalData, others: Mapping[str, Callable[[Sequence[np.ndarray[Any, Any]]], list[FoundBoxes]]]
) -> dict[str, Score]:
    """Detect in the test pictures that have masks and score the boxes; `others` find boxes in the same pictures as baselines.

    Beside them: the whole picture, and a centred box of 0.6 of both sides.
    """
    pictures, truths = masked_pictures(data)
    if not pictures:
        return {}
    sizes = [picture.shape[:2] for picture in pictures]
    baselines: dict[str, Sequence[FoundBoxes]] = {
        "whole_image": [FoundBoxes(np.array([[0.0, 0.0, w, h]]), np.ones(1)) for h, w in sizes],
        "centre_box": [FoundBoxes(np.array([[0.2 * w, 0.2 * h, 0.8 * w, 0.8 * h]]), np.ones(1)) for h, w in sizes],
    }
    baselines |= {name: find(pictures) for name, find in others.items()}
    scores = box_scores(detect_all(method, pictures), [instance_boxes(t) for t in truths], baselines)
    if "corloc" not in scores:
        data.notes.append("no picture has an object, so it could not be scored whether objects are found")
    return scores


def object_scores(method: FindsObjects, data: EvalData, others: Mapping[str, FindsObjects]) -> dict[str, Score]:
    """Average precision of the objects that a method tells apart, as boxes and as masks cut at 0.5, and CorLoc of the best one.

    On the test pictures that have a map of objects, at their own size; `others` are baselines that tell objects apart too.
    """
    pictures, truths = masked_pictures(data)
    if not pictures:
        return {}
    true_boxes = [instance_boxes(truth) for truth in truths]
    own, beside = _objects_row(method, pictures, truths, true_boxes), {
        name: _objects_row(other, pictures, truths, true_boxes) for name, other in others.items()
    }  # fmt: skip
    located = {name: row.located for name, row in beside.items()}
    scores = {"corloc_best": score_of(own.located, unit="share of pictures", baselines=located, note="object with the highest score")}
    for name, value in own.precision.items():
        scores[name] = Score(
            value, len(pictures), (value, value), "higher", "AP", {n: row.precision[name] for n, row in beside.items()},
            "objects told apart, class-agnostic; no interval",
        )  # fmt: skip
    return {name: score for name, score in scores.items() if np.isfinite(score.value)}


class _ObjectsRow(NamedTuple):
    located: np.ndarray[Any, Any]
    precision: dict[str, float]


def _objects_row(
    method: FindsObjects, pictures: Sequence[np.ndarray[Any, Any]], truths: Sequence[np.ndarray[Any, Any]],
    true_boxes: Sequence[np.ndarray[Any, Any]],
) -> _ObjectsRow:  # fmt: skip
    masks, weights = [], []
    for soft, scores in objects_all(method, pictures):
        kept = (soft > 0.5).any((1, 2))
        masks.append(soft[kept] > 0.5)
        weights.append(scores[kept])
    boxes = [np.array([mask_to_box(m) for m in one], dtype=np.float64).reshape(-1, 4) for one in masks]
    found = [FoundBoxes(box, weight) for box, weight in zip(boxes, weights, strict=True)]
    as_boxes = average_precision(boxes, weights, true_boxes)
    as_masks = average_precision(masks, weights, [instance_masks(truth) for truth in truths], "masks")
    named = {f"box_{k}": as_boxes[v] for k, v in (("ap50", "AP50"), ("ap", "AP"), ("ar100", "AR"))}
    named |= {f"mask_{k}": as_masks[v] for k, v in (("ap50", "AP50"), ("ap", "AP"), ("ar100", "AR"))}
    return _ObjectsRow(corloc_of(found, true_boxes), named)
