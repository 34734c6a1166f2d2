"""Depth maps held against true ones: SIDE and MAD, as Wu, Rupprecht and Vedaldi (CVPR 2020) report them.

Both look at pixels where prediction and truth are known, less a rim of one pixel of either: SIDE does not see the scale of
depth, MAD is the
mean angle between the normals that belong to the depths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from selftaught.measure.score import Score, score_of
from selftaught.nets.depth_maps import normals_of_depth

Array = np.ndarray


def eroded(masks: Any) -> Array:
    """Masks (N, H, W) without the pixels that have one outside within 3 x 3; beyond the picture counts as inside."""
    masks = np.asarray(masks, bool)
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    height, width = masks.shape[1:]
    kept = np.ones_like(masks)
    for i in range(3):
        for j in range(3):
            kept &= padded[:, i : i + height, j : j + width]
    return kept


def compared(predicted: Any, true: Any) -> Array:
    """Where depths (N, H, W) are compared: both above 0, each eroded."""
    return eroded(np.asarray(predicted) > 0) & eroded(np.asarray(true) > 0)


def side(predicted: Any, true: Any) -> Array:
    """Scale-invariant depth error per picture (N,): sqrt(mean D^2 - (mean D)^2) with D = log predicted - log true; NaN where
    nothing is compared (Eigen et al. 2014 in this form).
    """
    predicted, true = _depths(predicted, "predicted"), _depths(true, "true")
    where = compared(predicted, true)
    difference = np.zeros(true.shape)
    np.log(np.where(where, predicted, 1) / np.where(where, true, 1), out=difference)
    count = where.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (difference * where).sum((1, 2)) / count
        square = (difference**2 * where).sum((1, 2)) / count
    return np.sqrt(np.clip(square - mean**2, 0, None))


def mad_deg(predicted: Any, true: Any, fov_rad: float) -> Array:
    """Mean angle deviation of normals per picture (N,), in degrees; NaN where nothing is compared."""
    predicted, true = _depths(predicted, "predicted"), _depths(true, "true")
    where = compared(predicted, true)
    normals = [normals_of_depth(torch.from_numpy(depth), fov_rad).numpy() for depth in (predicted, true)]
    angle = np.rad2deg(np.arccos((normals[0] * normals[1]).sum(1).clip(-1, 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (angle * where).sum((1, 2)) / where.sum((1, 2))


def at_size(depth: Any, px: int) -> Array:
    """Square depths (N, H, H) at px x px: means over the pixels of a cell, 0 where one of them is unknown; nearest pixels where
    the sides are no multiples.
    """
    depth = np.asarray(depth)
    times, rest = divmod(depth.shape[1], px)
    if rest or not times:
        pick = ((np.arange(px) + 0.5) * depth.shape[1] / px).astype(int)
        return depth[:, pick][:, :, pick]
    cells = depth.reshape(len(depth), px, times, px, times)
    return np.where((cells > 0).all((2, 4)), cells.mean((2, 4)), 0)


def depth_scores(predicted: Any, true: Any, fov_rad: float) -> dict[str, Score]:
    """SIDE and MAD of depths (N, H, W), 0 where unknown; both in the view of the picture.

    Baselines: a plane that faces the camera, and (an oracle: it has seen true depths) the mean of the true depths of the other pictures.
    `depth_correlation` is the mean correlation of depth with the true one: below 0 for a hollow mould.
    """
    predicted, true = _depths(predicted, "predicted"), _depths(true, "true")
    known = true > 0
    plane = np.where(predicted > 0, 1.0, 0.0)
    centred = np.where(known, np.log(np.where(known, true, 1)), 0)
    count = known.sum((1, 2), keepdims=True)
    centred = np.where(known, centred - centred.sum((1, 2), keepdims=True) / np.maximum(count, 1), 0)
    others = known.sum(0) - known
    mean = np.exp((centred.sum(0) - centred) / np.maximum(others, 1)) * (others > 0)
    rivals = {"plane": plane, "mean_true_depth (oracle)": mean}
    where = compared(predicted, true)
    correlation = [
        float(np.corrcoef(p[m], t[m])[0, 1]) if m.sum() > 2 and p[m].std() > 0 else np.nan
        for p, t, m in zip(predicted, true, where, strict=True)
    ]
    return {
        "side": score_of(side(predicted, true), better="lower", unit="log depth", baselines={k: side(v, true) for k, v in rivals.items()}),
        "mad_deg": score_of(
            mad_deg(predicted, true, fov_rad), better="lower", unit="degrees",
            baselines={k: mad_deg(v, true, fov_rad) for k, v in rivals.items()},
        ),
        "depth_correlation": score_of(correlation, unit="correlation", baselines={"hollow": 0.0}),
    }  # fmt: skip


def _depths(found: Any, name: str) -> Array:
    array = np.asarray(found, np.float64)
    if array.ndim != 3 or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"{name}: expected finite depths (N, H, W) from 0 on, got {array.shape}")
    return array
