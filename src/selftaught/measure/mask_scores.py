"""How good masks are: Acc, IoU, maxF, S, E, MAE, CorLoc and AP, against a centre box, the whole picture, colour and an untrained cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core.rows import evenly
from selftaught.measure.baselines import mask_baselines
from selftaught.measure.boxes import average_precision, corloc, instance_boxes, largest_component_box
from selftaught.measure.leak import local_leak
from selftaught.measure.masks import accuracy, iou, max_f_score
from selftaught.measure.saliency import e_measure, mae, s_measure
from selftaught.measure.score import Score, score_of

if TYPE_CHECKING:
    from selftaught.method import EvalData, Segments

MAX_PICTURES = 1024
MAX_PIXELS = 64_000_000
"""Pixels of the scored pictures together: with truth, answers and baselines each takes about 50 bytes."""
AT_ONCE_PX = 32_000_000
"""Pixels of the pictures that are shown to a method at once, as float32."""
Masks = Sequence["np.ndarray[Any, Any]"]


def by_shape(
    pictures: Sequence[np.ndarray[Any, Any]], ask: Callable[[Tensor], Sequence[Any]], batch_size: int = 64, most_px: int = AT_ONCE_PX
) -> list[Any]:
    """What `ask` answers for each of (H, W, 3) uint8 pictures of any sizes; pictures of one size share a batch.

    `ask` takes (B, 3, H, W) in [0, 1] and returns B answers. Batches have at most `most_px` pixels, or one picture.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(i)
    found: dict[int, Any] = {}
    for shape, same in groups.items():
        size = max(1, min(batch_size, most_px // (shape[0] * shape[1])))
        for start in range(0, len(same), size):
            part = same[start : start + size]
            stack = torch.from_numpy(np.stack([pictures[i] for i in part])).permute(0, 3, 1, 2).float() / 255
            found |= dict(zip(part, ask(stack), strict=True))
    return [found[i] for i in range(len(pictures))]


@torch.no_grad()
def segment_all(
    method: Segments, pictures: Sequence[np.ndarray[Any, Any]], batch_size: int = 64
) -> list[np.ndarray[Any, Any]]:
    """Soft masks (H, W) float32 in [0, 1] of (H, W, 3) uint8 pictures of any sizes; pictures of one size share a batch."""
    return by_shape(pictures, lambda images: [mask.float().cpu().numpy() for mask in method.segment(images)], batch_size)


def mask_scores(predictions: Masks, truths: Masks, baselines: Mapping[str, Masks]) -> dict[str, Score]:
    """All scores of soft masks against instance maps, with the same measure of each baseline's masks beside.

    Scores that no picture defines (where there is no object to locate) are left out.

    Args:
        predictions: N (H, W) arrays in [0, 1].
        truths: N (H, W) instance maps, 0 = background, 255 = ignore.
        baselines: name -> N (H, W) arrays in [0, 1].
    """
    boxes = [instance_boxes(t) for t in truths]

    def located(masks: Masks) -> np.ndarray[Any, Any]:
        return corloc([largest_component_box(m) for m in masks], boxes)

    def ap50(masks: Masks) -> float:
        single = [largest_component_box(m) for m in masks]
        found = [np.zeros((0, 4)) if b is None else b[None] for b in single]
        weights = [np.zeros(0) if b is None else np.array([m.max()]) for b, m in zip(single, masks, strict=True)]
        return average_precision(found, weights, boxes)["AP50"]

    def beside(measure: Any) -> dict[str, float]:
        return {name: _mean(measure(masks, truths)) for name, masks in baselines.items()}

    value = ap50(predictions)
    scores = {
        "iou": score_of(iou(predictions, truths), unit="IoU", baselines=beside(iou)),
        "accuracy": score_of(accuracy(predictions, truths), unit="share of pixels", baselines=beside(accuracy)),
        "max_f": max_f_score(predictions, truths, baselines=dict(baselines)),
        "corloc": score_of(
            located(predictions), unit="share of pictures", baselines={n: _mean(located(m)) for n, m in baselines.items()}
        ),
        "s_measure": score_of(s_measure(predictions, truths), unit="S", baselines=beside(s_measure)),
        "e_measure": score_of(e_measure(predictions, truths), unit="E", baselines=beside(e_measure), note="adaptive threshold"),
        "mae": score_of(mae(predictions, truths), better="lower", unit="[0,1]", baselines=beside(mae)),
        "ap50_single_box": Score(
            value, len(truths), (value, value), "higher", "AP", {n: ap50(m) for n, m in baselines.items()},
            "one box per picture against all objects; no interval",
        ),
    }  # fmt: skip
    return {name: score for name, score in scores.items() if np.isfinite(score.value)}


def _mean(values: np.ndarray[Any, Any]) -> float:
    """Mean of the pictures that have a value; NaN when none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def masked_pictures(
    data: EvalData,
) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """The test pictures (H, W, 3) that have a map of objects, and these maps (H, W).

    At most MAX_PICTURES, and about MAX_PIXELS, spread over the set; a note says when they are not all.
    """
    test = data.test
    pixels = {i: mask.size for i in range(len(test)) if (mask := test.mask(i)) is not None} if test.has_masks else {}
    if not pixels:
        data.notes.append("no masks were found, so objects could not be scored")
        return [], []
    masked, fits = list(pixels), max(1, MAX_PIXELS * len(pixels) // sum(pixels.values()))
    chosen = [masked[k] for k in evenly(len(masked), min(MAX_PICTURES, fits))]
    if len(chosen) < len(masked):
        data.notes.append(f"{len(chosen)} of {len(masked)} pictures with masks were scored, spread over the set")
    return [test.image(i) for i in chosen], [np.asarray(test.mask(i)) for i in chosen]


def segmentation_scores(method: Segments, data: EvalData, others: Mapping[str, Segments]) -> dict[str, Score]:
    """Segment the test pictures that have masks, at their own size, and score them; `others` are baselines that segment too."""
    pictures, truths = masked_pictures(data)
    if not pictures:
        return {}
    baselines: dict[str, Masks] = dict(mask_baselines(pictures))
    for name, other in others.items():
        baselines[name] = segment_all(other, pictures)
    scores = mask_scores(segment_all(method, pictures), truths, baselines)
    if "corloc" not in scores:
        data.notes.append("no picture has an object, so it could not be scored whether objects are found")
    if data.made and data.train is not None and data.train.has_masks:
        scores["leak_7x7"] = made_leak(data)
    return scores


def made_leak(data: EvalData, pictures: int = 2048, test_pictures: int = 512) -> Score:
    """What a network that sees 7x7 pixels reaches when it is trained on the true masks of a made sample: a check of the data, not of
    the method."""
    assert data.train is not None
    sets = []
    for part, count in ((data.train, pictures), (data.test, test_pictures)):
        rows = np.arange(min(count, len(part)))
        truths = [part.mask(int(i)) for i in rows]
        side = part.images.image_px
        sets += [part.images.images[rows], np.stack([resize_nearest(np.asarray(t), side) for t in truths])]
    return local_leak(*sets)


def resize_nearest(mask: np.ndarray[Any, Any], px: int) -> np.ndarray[Any, Any]:
    """(H, W) instance map to (px, px)."""
    rows = (np.arange(px) + 0.5) * mask.shape[0] / px
    columns = (np.arange(px) + 0.5) * mask.shape[1] / px
    return mask[rows.astype(int)][:, columns.astype(int)]
