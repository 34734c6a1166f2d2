"""Scores of one soft mask per picture against the true foreground: IoU, pixel accuracy, maximal F, and those of
`saliency`.

All functions take two lists of equal length, predictions (H, W) float in [0, 1] and masks (H, W) bool or integer ids (0
background, 1..254 objects, 255 ignored), picture sizes may differ; `measure.pairs.checked_pairs` lists the ValueErrors.
They return one number per picture, so that `score_of` gives the mean and its interval; NaN marks a picture in which
every pixel is ignored. A prediction is foreground where it is strictly above the threshold (0.5 where not said
otherwise).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from selftaught.measure.pairs import checked_pairs
from selftaught.measure.saliency import e_measure, mae, s_measure, sod_f_measure, weighted_f
from selftaught.measure.score import Score, score_of

__all__ = [
    "accuracy",
    "e_measure",
    "f_curves",
    "iou",
    "mae",
    "max_f",
    "max_f_score",
    "max_of_mean",
    "mean_of_max",
    "s_measure",
    "sod_f_measure",
    "weighted_f",
]

Convention = Literal["mean_then_max", "per_image", "per_image_b09"]
N_THRESHOLDS = 255


def iou(predictions: Any, masks: Any, threshold: float = 0.5) -> np.ndarray:
    """(N,) intersection over union of the foreground per picture, in [0, 1], ignored pixels left out.

    Truth and prediction both empty: 1 (they agree); truth empty, prediction not: 0. Published codes differ only there
    (TokenCut gives NaN, MOVE and SelfMask 0 for an empty pair).
    """
    values = []
    for soft, truth, valid in checked_pairs(predictions, masks):
        found = (soft > threshold) & valid
        union = np.count_nonzero(found | truth)
        both = np.count_nonzero(found & truth)
        values.append(np.nan if not valid.any() else 1.0 if union == 0 else both / union)
    return np.array(values, dtype=np.float64)


def accuracy(predictions: Any, masks: Any, threshold: float = 0.5) -> np.ndarray:
    """(N,) share of pixels (not ignored) whose side is right, in [0, 1]; empty truth needs no special case."""
    values = []
    for soft, truth, valid in checked_pairs(predictions, masks):
        n_valid = np.count_nonzero(valid)
        right = np.count_nonzero(((soft > threshold) == truth) & valid)
        values.append(right / n_valid if n_valid else np.nan)
    return np.array(values, dtype=np.float64)


def f_curves(predictions: Any, masks: Any, beta2: float = 0.3, levels: int = N_THRESHOLDS) -> np.ndarray:
    """(N, levels) F = (1 + beta2) P R / (beta2 P + R) per picture at the thresholds k/levels, k = 0..levels-1, strictly above.

    With 255 levels as in TokenCut (Wang et al. 2022), with 256 as in MOVE (Bielski & Favaro 2022): an empty binary map has
    precision 1 and recall 0, so F = 0; F = 0 also at every threshold when the truth is empty. No min-max stretching
    (`saliency.sod_f_measure` has it).
    """
    curves = []
    for soft, truth, valid in checked_pairs(predictions, masks):
        if not valid.any():
            curves.append(np.full(levels, np.nan))
            continue
        on, off = _above(soft[truth], levels), _above(soft[valid & ~truth], levels)
        n_truth = max(np.count_nonzero(truth), 1)
        precision = on / np.maximum(on + off, 1)
        recall = on / n_truth
        bottom = beta2 * precision + recall
        curves.append(np.where(on > 0, (1 + beta2) * precision * recall / np.where(bottom > 0, bottom, 1), 0.0))
    return np.array(curves, dtype=np.float64).reshape(-1, levels)


def _above(values: np.ndarray, levels: int) -> np.ndarray:
    """(levels,) how many values are strictly above k/levels."""
    # Thresholds in the dtype of the values: 100/255 in float32 must not count as above 100/255 in float64.
    thresholds = (np.arange(levels + 1) / levels).astype(values.dtype)
    # A rounded product can only be one too high, and then the comparison adds nothing.
    level = (values * levels).astype(np.int64)
    passed = np.bincount(level + (values > thresholds[level]), minlength=levels + 1)
    return np.cumsum(passed[::-1])[::-1][1:]


def max_of_mean(curves: np.ndarray) -> float:
    """Maximum over thresholds of the mean curve of (N, T) curves: the statistic of "mean_then_max"."""
    return float(curves.mean(axis=0).max())


def mean_of_max(curves: np.ndarray) -> float:
    """Mean over pictures of each curve's own maximum: the statistic of "per_image"."""
    return float(curves.max(axis=1).mean())


def _curves_of(predictions: Any, masks: Any, convention: Convention, beta2: float) -> np.ndarray:
    if convention not in ("mean_then_max", "per_image", "per_image_b09"):
        raise ValueError(f"max_f: expected convention mean_then_max, per_image or per_image_b09, got {convention!r}")
    return f_curves(predictions, masks, beta2**2 if convention == "per_image_b09" else beta2)


def max_f(predictions: Any, masks: Any, convention: Convention = "mean_then_max", beta2: float = 0.3) -> float:
    """Maximal F of the whole set, in [0, 1]; the conventions differ by tenths and must never be compared with each
    other.

    "mean_then_max": mean F over pictures at each threshold, then the best threshold (TokenCut, MOVE). "per_image": best
    threshold of each picture, then the mean (MOVE's second figure). "per_image_b09": the same with beta2 squared once
    more, 0.09, as the codes of SelfMask, FOUND and PEEKABOO do. Fully ignored pictures are left out; NaN when none
    remains.
    """
    curves = _curves_of(predictions, masks, convention, beta2)
    curves = curves[~np.isnan(curves[:, 0])]
    if len(curves) == 0:
        return float("nan")
    return max_of_mean(curves) if convention == "mean_then_max" else mean_of_max(curves)


def max_f_score(
    predictions: Any,
    masks: Any,
    convention: Convention = "mean_then_max",
    beta2: float = 0.3,
    baselines: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Score:
    """`max_f` as a Score: the interval resamples pictures and takes the best threshold of each resample anew.

    baselines: name -> list of predictions for the same masks (measured here), or a number.
    """
    statistic = max_of_mean if convention == "mean_then_max" else mean_of_max
    beside = {
        name: float(other) if isinstance(other, (int, float)) else max_f(other, masks, convention, beta2)
        for name, other in (baselines or {}).items()
    }
    curves = _curves_of(predictions, masks, convention, beta2)
    return score_of(curves, unit="F", statistic=statistic, baselines=beside, seed=seed, note=f"convention {convention}")
