"""From a soft mask to boxes with scores: the published readings of "the box of the mask", by name.

MOVE (Bielski & Favaro 2022) published no code for its boxes, so both readings that are known are here, and `all` for its
variant Multi. Boxes are (x0, y0, x1, y1) in pixels with exclusive ends as everywhere, but for `refinement`, whose
published ends are inclusive and are kept, because that is what its numbers were measured with.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from selftaught.measure.pairs import as_array

BoxRule = Literal["largest", "refinement", "all"]
RULES: tuple[str, ...] = get_args(BoxRule)
DESCRIPTIONS = {
    "largest": "box of the piece with the most pixels (4 neighbours); none for an empty mask",
    "refinement": "largest box of a piece (8 neighbours) above (0.05 H)^2 px^2, ends inclusive; else the whole picture",
    "all": "box of every piece (4 neighbours) that covers a share of the picture, the largest piece first",
}
REFINEMENT_FRAC = 0.05
"""Share of the height whose square is the area, in px^2, that a box must exceed under `refinement`."""


class FoundBoxes(NamedTuple):
    """What one picture gives: `boxes` (K, 4) float64 in pixels, `scores` (K,) float64 in [0, 1]."""

    boxes: np.ndarray
    scores: np.ndarray

    @property
    def best(self) -> np.ndarray | None:
        """(4,) box of the highest score, the first of equal ones; None where there is none."""
        return self.boxes[int(np.argmax(self.scores))] if len(self.boxes) else None


def boxes_of(soft: Any, rule: BoxRule = "largest", threshold: float = 0.5, min_area_frac: float = 0.001) -> FoundBoxes:
    """Boxes of a soft (H, W) mask in [0, 1] by one of `DESCRIPTIONS`; a box's score is the mean of the mask in its piece.

    Pieces are where the mask is strictly above `threshold`. Of pieces or boxes of equal size the first in reading order
    is taken (the order of their first pixel). A mask that is empty, or has nothing large enough, gives no box under
    `largest` and `all`, and the whole picture with score 0 under `refinement`; a full mask gives the whole picture.
    `min_area_frac`, a share of the picture, is for `all` alone: MOVE does not say what Multi leaves out.
    ValueError for another rule, a mask that is not (H, W), no pixels, or values that are not finite.
    """
    array = as_array(soft).astype(np.float64)
    if rule not in RULES:
        raise ValueError(f"boxes_of: expected a rule of {', '.join(RULES)}, got {rule!r}")
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"boxes_of: expected a mask (H, W), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("boxes_of: expected finite numbers, got NaN or infinity")
    boxes, areas, scores = _pieces(array, threshold, corners=rule == "refinement")
    if rule == "largest":
        order = np.argsort(-areas, kind="stable")[:1]
    elif rule == "all":
        order = np.argsort(-areas, kind="stable")
        order = order[areas[order] >= max(1.0, min_area_frac * array.size)]
    else:
        return _refinement(boxes, scores, array.shape)
    return FoundBoxes(boxes[order], scores[order])


def _pieces(soft: np.ndarray, threshold: float, corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (K, 4), pixels (K,) and mean values (K,) of the connected pieces, in reading order of their first pixel."""
    from scipy.ndimage import find_objects, label

    pieces, count = label(soft > threshold, structure=np.ones((3, 3)) if corners else None)
    if count == 0:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    sums = np.bincount(pieces.ravel(), soft.ravel(), minlength=count + 1)[1:]
    spans = find_objects(pieces)
    boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in spans], dtype=np.float64)
    return boxes, areas.astype(np.float64), np.clip(sums / areas, 0.0, 1.0)


def _refinement(boxes: np.ndarray, scores: np.ndarray, shape: tuple[int, ...]) -> FoundBoxes:
    """The reading of Box-based Refinement (Gomel et al., ICCV 2023)."""
    height, width = shape
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.flatnonzero(sizes > (REFINEMENT_FRAC * height) ** 2)
    if len(kept) == 0:
        return FoundBoxes(np.array([[0.0, 0.0, width, height]]), np.zeros(1))
    chosen = kept[int(np.argmax(sizes[kept]))]
    return FoundBoxes(boxes[[chosen]] - np.array([0.0, 0.0, 1.0, 1.0]), scores[[chosen]])


def non_maximum(boxes: Any, scores: Any, iou: float) -> np.ndarray:
    """(M,) int64 indices of the boxes that remain, best score first (the first of equal ones): a box goes when its IoU
    with a better one that remains is above `iou`.
    """
    from selftaught.measure.boxes import box_iou

    corners, values = as_array(boxes).astype(np.float64).reshape(-1, 4), as_array(scores).astype(np.float64).ravel()
    if len(corners) != len(values):
        raise ValueError(f"non_maximum: expected as many scores as boxes, got {len(values)} and {len(corners)}")
    order = np.argsort(-values, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[box_iou(corners[best], corners[order])[0] <= iou]  # row by row: thousands of boxes may come
    return np.array(kept, dtype=np.int64)
