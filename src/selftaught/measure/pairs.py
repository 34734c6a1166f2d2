"""Pairs of a soft prediction and a true mask, checked once for all mask measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

IGNORE = 255


class Pair(NamedTuple):
    """One picture: `prediction` (H, W) float32 or float64 in [0, 1], `foreground` and `valid` (H, W) bool."""

    prediction: np.ndarray
    foreground: np.ndarray
    valid: np.ndarray


def as_array(value: Any) -> np.ndarray:
    """Numpy view of an array or of a torch tensor on any device (half precisions become float32)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()
        return value.numpy()
    return np.asarray(value)


def checked_pairs(predictions: Any, masks: Any) -> Iterator[Pair]:
    """Pairs of the two lists, in order; pictures may have different sizes.

    predictions: (H, W) float in [0, 1] or binary; masks: (H, W) bool, or integer with 0 background, 1..254 objects and
    255 ignored. ValueError names the index, what was expected and what came: lists of different length, shapes that
    differ, NaN, values outside [0, 1], and (after the last picture) truth that has 255 but no object anywhere, which is
    a 0/255 mask that should have been passed as `mask > 128`.
    """
    if len(predictions) != len(masks):
        raise ValueError(
            f"expected as many masks as predictions, got {len(predictions)} predictions and {len(masks)} masks"
        )
    ignored = objects = False
    for index, (prediction, mask) in enumerate(zip(predictions, masks, strict=True)):
        soft = _prediction(as_array(prediction), index)
        foreground, valid = _truth(as_array(mask), index)
        if soft.shape != foreground.shape:
            raise ValueError(
                f"prediction {index}: expected the shape of its mask {foreground.shape}, got {soft.shape}; "
                "resize the prediction to the mask first"
            )
        ignored |= not valid.all()
        objects |= bool(foreground.any())
        yield Pair(soft, foreground, valid)
    if ignored and not objects:
        raise ValueError(
            "the masks have no object, only 0 and 255, and 255 means ignored; pass 0/255 masks as `mask > 128`"
        )


def _prediction(prediction: np.ndarray, index: int) -> np.ndarray:
    if prediction.ndim != 2:
        raise ValueError(f"prediction {index}: expected (H, W), got shape {prediction.shape}")
    if prediction.size == 0:
        raise ValueError(f"prediction {index}: expected at least one pixel, got shape {prediction.shape}")
    if prediction.dtype not in (np.float32, np.float64):
        prediction = prediction.astype(np.float32)
    low, high = float(prediction.min()), float(prediction.max())
    if np.isnan(low) or np.isnan(high):
        where = tuple(int(axis[0]) for axis in np.nonzero(np.isnan(prediction)))
        raise ValueError(f"prediction {index}: expected numbers in [0, 1], got NaN at (row, column) {where}")
    if low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(f"prediction {index}: expected values in [0, 1], got {low:g} to {high:g}")
    return np.clip(prediction, 0, 1) if low < 0 or high > 1 else prediction


def _truth(mask: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(foreground, valid) of one true mask."""
    if mask.ndim != 2:
        raise ValueError(f"mask {index}: expected (H, W), got shape {mask.shape}")
    if mask.dtype == bool:
        return mask, np.ones(mask.shape, bool)
    if np.issubdtype(mask.dtype, np.floating) and not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"mask {index}: expected bool, or integer ids (255 ignored), got {mask.dtype} that is not 0 or 1"
        )
    if mask.size and (mask.min() < 0 or mask.max() > IGNORE):
        raise ValueError(f"mask {index}: expected ids 0 to 254 and 255 for ignored, got {mask.min()} to {mask.max()}")
    valid = mask != IGNORE
    return (mask > 0) & valid, valid
