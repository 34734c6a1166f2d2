"""Where a figure of a known colour is, and what of it a generated clip keeps: ADD and MDR.

Menapace et al., "Playable Video Generation" (CADDY), CVPR 2021: average detection distance, and missing detection rate. There a network
finds people; here the largest spot of the figure's colour stands in for it, which is exact where nothing else has that colour, and needs no
weights. Its own distance to what is true is measured beside, as the floor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Detected(NamedTuple):
    """Scores of generated frames against real ones."""

    add_px: float
    """Mean distance in pixels of the centres, over the frames in which both detect; NaN where there is none."""
    mdr: float
    """Share in per cent of the frames with a detection in the real one and none in the generated one; NaN without real ones."""
    both: int
    """Frames in which both detect."""


def colour_spots(frames: Any, colour: tuple[int, int, int], reach: float = 60.0, least_px: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Centres (..., 2) as (x, y) in pixels and sizes (...) of the largest connected spot of a colour in frames (..., 3, H, W) in [0, 1].

    Pixels belong to it whose colour is within `reach` of 255 of it (L2); NaN and 0 where no spot has `least_px`.
    """
    from scipy.ndimage import label

    x = np.asarray(frames, np.float64)
    if x.ndim < 3 or x.shape[-3] != 3:
        raise ValueError(f"expected frames (..., 3, H, W), got {x.shape}")
    near = np.linalg.norm(255 * x - np.asarray(colour, np.float64)[:, None, None], axis=-3) <= reach
    flat = near.reshape(-1, *near.shape[-2:])
    centres, sizes = np.full((len(flat), 2), np.nan), np.zeros(len(flat))
    for i, picture in enumerate(flat):
        parts, count = label(picture, np.ones((3, 3)))
        areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        if count and areas.max() >= least_px:
            rows, columns = np.nonzero(parts == areas.argmax() + 1)
            centres[i], sizes[i] = (columns.mean(), rows.mean()), areas.max()
    return centres.reshape(*near.shape[:-2], 2), sizes.reshape(near.shape[:-2])


def add_mdr(found: Any, real: Any) -> Detected:
    """ADD and MDR of centres (..., 2), NaN where nothing is detected."""
    a, b = np.asarray(found, np.float64), np.asarray(real, np.float64)
    if a.shape != b.shape or a.shape[-1:] != (2,):
        raise ValueError(f"expected centres (..., 2) of one shape, got {a.shape} and {b.shape}")
    mine, true = np.isfinite(a).all(-1), np.isfinite(b).all(-1)
    both = mine & true
    away = np.linalg.norm(a[both] - b[both], axis=-1)
    return Detected(
        float(away.mean()) if both.any() else float("nan"),
        100 * float((true & ~mine).sum() / true.sum()) if true.any() else float("nan"), int(both.sum()),
    )  # fmt: skip
