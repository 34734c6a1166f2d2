"""Scores of saliency maps as the field computes them (PySODMetrics): MAE, S-measure, E-measure, weighted F, and its F.

Each prediction is first stretched to [0, 1] by its own minimum and maximum (a constant one is left as it is), which
favours soft maps of low contrast; `masks` has the measures that do not stretch. Lists of (H, W) predictions and masks
as in `masks`. Ignored pixels (255) are left out of the stretching, of MAE, E and F; S and weighted F need the whole
rectangle, there an ignored pixel counts as background that was predicted right. A picture with all pixels ignored gives
NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from selftaught.measure.pairs import Pair, checked_pairs

_EPS = float(np.spacing(1))


def _stretched(predictions: Any, masks: Any) -> Iterator[Pair]:
    """Checked pairs in float64 with each prediction stretched to [0, 1]; 0 where ignored."""
    for soft, truth, valid in checked_pairs(predictions, masks):
        soft = soft.astype(np.float64)
        if valid.any():
            low, high = soft[valid].min(), soft[valid].max()
            if high > low:
                soft = (soft - low) / (high - low)
        yield Pair(np.where(valid, soft, 0.0), truth, valid)


def _per_image(predictions: Any, masks: Any, measure: Callable[[Pair], float]) -> np.ndarray:
    pairs = _stretched(predictions, masks)
    return np.array([measure(pair) if pair.valid.any() else np.nan for pair in pairs], dtype=np.float64)


def mae(predictions: Any, masks: Any) -> np.ndarray:
    """(N,) mean absolute difference after min-max stretching, in [0, 1], lower is better (Perazzi et al. 2012)."""
    return _per_image(
        predictions, masks, lambda pair: float(np.abs(pair.prediction - pair.foreground)[pair.valid].mean())
    )


def s_measure(predictions: Any, masks: Any, alpha: float = 0.5) -> np.ndarray:
    """(N,) structure measure, in [0, 1] up to rounding (Fan et al. 2017, eq. 1-9), min-max stretched.

    Empty truth: 1 - mean prediction; full truth: mean prediction.
    """

    def one(pair: Pair) -> float:
        share = float(pair.foreground.mean())
        if share in (0.0, 1.0):
            return float(1 - pair.prediction.mean() if share == 0 else pair.prediction.mean())
        whole = alpha * _object_part(pair, share) + (1 - alpha) * _region_part(pair.prediction, pair.foreground)
        return max(0.0, whole)

    return _per_image(predictions, masks, one)


def _object_part(pair: Pair, share: float) -> float:
    """S_object: brightness and evenness of the prediction on the object, and of its complement off it (eq. 4-6)."""

    def evenness(values: np.ndarray) -> float:
        mean = float(values.mean())
        spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
        return 2 * mean / (mean**2 + 1 + spread + _EPS)

    on, off = pair.prediction[pair.foreground], 1 - pair.prediction[~pair.foreground]
    return share * evenness(on) + (1 - share) * evenness(off)


def _region_part(soft: np.ndarray, truth: np.ndarray) -> float:
    """S_region: structural similarity of four quadrants around the object's centroid, weighted by area (eq. 1-3)."""
    height, width = truth.shape
    rows, columns = np.nonzero(truth)
    # One past the rounded centroid: the reference MATLAB code slices with an inclusive end.
    row, column = int(np.round(rows.mean())) + 1, int(np.round(columns.mean())) + 1
    total = 0.0
    for down in (slice(0, row), slice(row, height)):
        for across in (slice(0, column), slice(column, width)):
            part = truth[down, across]
            if part.size:
                total += part.size / truth.size * _similarity(soft[down, across], part.astype(np.float64))
    return total


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    mean_a, mean_b = a.mean(), b.mean()
    rest = a.size - 1 + _EPS
    var_a, var_b = ((a - mean_a) ** 2).sum() / rest, ((b - mean_b) ** 2).sum() / rest
    covariance = ((a - mean_a) * (b - mean_b)).sum() / rest
    top = 4 * mean_a * mean_b * covariance
    bottom = (mean_a**2 + mean_b**2) * (var_a + var_b)
    if top != 0:
        return float(top / (bottom + _EPS))
    return 1.0 if bottom == 0 else 0.0


def e_curves(predictions: Any, masks: Any) -> np.ndarray:
    """(N, 256) enhanced-alignment measure (Fan et al. 2018) at the grey values 255 down to 0, foreground where >=,
    stretched.

    Divides by the number of pixels minus one as the reference code does, so that a perfect small map exceeds 1
    slightly. Empty truth: share of predicted background; full truth: share of predicted foreground.
    """
    curves = []
    for pair in _stretched(predictions, masks):
        on, off = _at_least(pair)
        curves.append(_alignment(on, off, pair))
    return np.array(curves, dtype=np.float64).reshape(-1, 256)


def e_measure(predictions: Any, masks: Any, kind: str = "adaptive") -> np.ndarray:
    """(N,) E-measure per picture: "adaptive" (threshold min(2 mean, 1)), "mean" or "max" over the 256 thresholds.

    The field's "max E" of a set is `max_of_mean(e_curves(...))`, not the mean of this function's "max".
    """
    if kind == "adaptive":

        def one(pair: Pair) -> float:
            found = _adaptive(pair)
            on = np.array([np.count_nonzero(found & pair.foreground)])
            off = np.array([np.count_nonzero(found & ~pair.foreground)])
            return float(_alignment(on, off, pair)[0])

        return _per_image(predictions, masks, one)
    if kind not in ("mean", "max"):
        raise ValueError(f"e_measure: expected kind adaptive, mean or max, got {kind!r}")
    curves = e_curves(predictions, masks)
    return curves.mean(axis=1) if kind == "mean" else curves.max(axis=1)


def _adaptive(pair: Pair) -> np.ndarray:
    return (pair.prediction >= min(2 * float(pair.prediction[pair.valid].mean()), 1.0)) & pair.valid


def _at_least(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """(256,) pixels on and off the object whose grey value is at least 255, 254, ..., 0."""
    grey = (pair.prediction * 255).astype(np.uint8)
    on = np.bincount(grey[pair.foreground], minlength=256)
    off = np.bincount(grey[pair.valid & ~pair.foreground], minlength=256)
    return np.cumsum(on[::-1]), np.cumsum(off[::-1])


def _alignment(on: np.ndarray, off: np.ndarray, pair: Pair) -> np.ndarray:
    """E of binary maps with `on` true and `off` false positives: the four kinds of pixel, each with one alignment
    value.
    """
    n, n_truth = np.count_nonzero(pair.valid), np.count_nonzero(pair.foreground)
    if n == 0:
        return np.full(on.shape, np.nan)
    found = on + off
    if n_truth in (0, n):
        return (n - found if n_truth == 0 else found) / (n - 1 + _EPS)
    counts = (on, off, n_truth - on, n - n_truth - off)
    predicted = (1.0, 1.0, 0.0, 0.0) - (found / n)[:, None]
    true = np.array([1.0, 0.0, 1.0, 0.0]) - n_truth / n
    align = 2 * predicted * true / (predicted**2 + true**2 + _EPS)
    return ((align + 1) ** 2 / 4 * np.stack(counts, axis=1)).sum(axis=1) / (n - 1 + _EPS)


def sod_f_measure(predictions: Any, masks: Any, beta2: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """(N,) F at the adaptive threshold and (N, 256) F at the grey values 255 down to 0, stretched (Achanta et al.
    2009).

    0 for empty truth. "max F" of PySODMetrics is the maximum of the mean curve; see `masks.max_f` for the other
    conventions.
    """
    adaptive, curves = [], []
    for pair in _stretched(predictions, masks):
        if not pair.valid.any():
            adaptive.append(np.nan)
            curves.append(np.full(256, np.nan))
            continue
        found = _adaptive(pair)
        on, off = _at_least(pair)
        n_truth = np.count_nonzero(pair.foreground)
        hit = np.append(on, np.count_nonzero(found & pair.foreground))
        size = np.append(on + off, np.count_nonzero(found))
        # (1 + b) P R / (b P + R) with P = hit / size and R = hit / truth
        f_values = (1 + beta2) * hit / np.maximum(beta2 * n_truth + size, 1)
        adaptive.append(f_values[-1])
        curves.append(f_values[:-1])
    return np.array(adaptive, dtype=np.float64), np.array(curves, dtype=np.float64).reshape(-1, 256)


def weighted_f(predictions: Any, masks: Any, beta2: float = 1.0) -> np.ndarray:
    """(N,) weighted F in [0, 1] (Margolin et al. 2014, eq. 4-11), min-max stretched; 0 for empty truth."""
    return _per_image(predictions, masks, lambda pair: _weighted_f(pair, beta2))


def _weighted_f(pair: Pair, beta2: float) -> float:
    from scipy.ndimage import correlate1d, distance_transform_edt

    truth = pair.foreground
    if not truth.any():
        return 0.0
    distance, nearest = distance_transform_edt(~truth, return_indices=True)
    error = np.abs(pair.prediction - truth)
    spread = np.where(truth, error, error[nearest[0], nearest[1]])
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets**2) / (2 * 5.0**2))
    kernel /= kernel.sum()
    smooth = correlate1d(correlate1d(spread, kernel, axis=0, mode="constant"), kernel, axis=1, mode="constant")
    weighted = np.where(truth, np.minimum(error, smooth), error * (2 - np.exp(np.log(0.5) / 5 * distance)))
    missed, wrong = weighted[truth].sum(), weighted[~truth & pair.valid].sum()
    hit = np.count_nonzero(truth) - missed
    recall = 1 - weighted[truth].mean()
    precision = hit / (hit + wrong + _EPS)
    return float((1 + beta2) * recall * precision / (recall + beta2 * precision + _EPS))
