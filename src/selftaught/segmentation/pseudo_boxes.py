"""Pseudo-boxes: what a detector is trained on, from whatever an already learned run says of each picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core.atomic import replacing
from selftaught.core.errors import ConfigError
from selftaught.data.npy import read_kept
from selftaught.measure.box_rules import BoxRule, FoundBoxes, boxes_of
from selftaught.measure.boxes import mask_to_box

GIVES = ("detect", "objects", "segment")
"""Capabilities that boxes can be made of; the first that a run has is asked."""


def giving(need: Any) -> str:
    """The capability of a run that its pseudo-boxes come from; raises ConfigError when it has none of them."""
    for capability in GIVES:
        if capability in need.capabilities:
            return capability
    raise ConfigError(
        f"{getattr(need, 'name', 'The run')} finds no objects.", expected="a run that can segment, tell objects apart, or detect"
    )


@torch.no_grad()
def propose(need: Any, images: Tensor, rule: BoxRule, min_area: float, min_score: float) -> list[FoundBoxes]:
    """Boxes in pixels of (B, 3, S, S) pictures in [0, 1].

    A mask gives boxes by `rule`. A run that tells objects apart or detects gives one box per object under `all`, and the
    one with the highest score under the other rules. Boxes below `min_score` are left out.
    """
    kind = giving(need)
    if kind == "segment":
        found = [boxes_of(soft.float().cpu().numpy(), rule, min_area_frac=min_area) for soft in need.segment(images)]
    elif kind == "detect":
        boxes, scores = (x.cpu().double().numpy() for x in need.detect(images))
        found = [FoundBoxes(b[s > 0], s[s > 0]) for b, s in zip(boxes, scores, strict=True)]
    else:
        masks, scores = (x.cpu().numpy() for x in need.objects(images))
        found = [_around(m > 0.5, s, min_area) for m, s in zip(masks, scores, strict=True)]
    if kind != "segment" and rule != "all":
        found = [FoundBoxes(*(x[np.argsort(-one.scores, kind="stable")[:1]] for x in one)) for one in found]
    return [FoundBoxes(one.boxes[one.scores >= min_score], one.scores[one.scores >= min_score]) for one in found]


def _around(masks: np.ndarray[Any, Any], scores: np.ndarray[Any, Any], min_area: float) -> FoundBoxes:
    rows = [
        (mask_to_box(mask), float(score))
        for mask, score in zip(masks, scores, strict=True)
        if score > 0 and mask.sum() >= max(1.0, min_area * mask.size)
    ]
    boxes = np.array([box for box, _ in rows], dtype=np.float64).reshape(-1, 4)
    return FoundBoxes(boxes, np.array([score for _, score in rows], dtype=np.float64))


def pseudo_box_file(
    path: Path, images: Any, make: Callable[[Tensor], list[FoundBoxes]], count: int, say: Callable[[str], None],
    batch_size: int = 64,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """The pseudo-boxes of all cached pictures, from `path` when it is there and fits, made and written otherwise.

    `make` turns (B, 3, S, S) pictures in [0, 1] into boxes in pixels; the `count` first of each picture are kept.
    Returns (N, count, 5) float32: x0, y0, x1, y1 as shares of the picture, and the score; zeros where there is none.
    """
    kept = read_kept(path, (len(images), count, 5), np.float32, say)
    if kept is not None:
        return kept
    rows = np.zeros((len(images), count, 5), np.float32)
    for start in range(0, len(images), batch_size):
        batch = images.batch(np.arange(start, min(start + batch_size, len(images)))).float() / 255
        for i, one in enumerate(make(batch), start):
            amount = min(count, len(one.boxes))
            rows[i, :amount, :4] = np.clip(one.boxes[:amount] / batch.shape[-1], 0, 1)
            rows[i, :amount, 4] = one.scores[:amount]
        if (start // batch_size) % 16 == 15:
            say(f"pseudo-boxes of {start + len(batch)} of {len(images)} pictures")
    without = int((rows[..., 2] <= rows[..., 0]).all(1).sum())
    say(f"pseudo-boxes: {int((rows[..., 2] > rows[..., 0]).sum())} in {len(images)} pictures, {without} of them without any")
    with replacing(path) as temp:
        np.save(temp, rows)
    return rows
