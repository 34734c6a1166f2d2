"""Masks that need no learning: what every segmentation score is measured beside."""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.measure.pairs import as_array

# Linear sRGB to CIE XYZ (IEC 61966-2-1) divided by the D65 white point, so that white is (1, 1, 1).
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_XYZ_WHITE = _XYZ / np.array([[0.95047], [1.0], [1.08883]])


def whole_image(height: int, width: int) -> np.ndarray:
    """(H, W) float32 of ones: everything is object."""
    return np.ones((height, width), np.float32)


def centre_box(height: int, width: int, side_frac: float = 0.6) -> np.ndarray:
    """(H, W) float32 in {0, 1}: a centred rectangle with `side_frac` of both sides (0.6: 36 % of the area)."""
    _check_frac(side_frac)
    box_h, box_w = max(1, round(side_frac * height)), max(1, round(side_frac * width))
    top, left = (height - box_h) // 2, (width - box_w) // 2
    mask = np.zeros((height, width), np.float32)
    mask[top : top + box_h, left : left + box_w] = 1
    return mask


def centre_ellipse(height: int, width: int, side_frac: float = 0.6) -> np.ndarray:
    """(H, W) float32 in {0, 1}: a centred ellipse whose axes are `side_frac` of the sides (0.6: 28 % of the area)."""
    _check_frac(side_frac)
    rows = (np.arange(height) + 0.5) / height * 2 - 1
    columns = (np.arange(width) + 0.5) / width * 2 - 1
    return (rows[:, None] ** 2 + columns[None, :] ** 2 <= side_frac**2).astype(np.float32)


def _check_frac(side_frac: float) -> None:
    if not 0 < side_frac <= 1:
        raise ValueError(f"side_frac: expected a fraction above 0 and at most 1, got {side_frac}")


def rgb_to_lab(image: Any) -> np.ndarray:
    """(H, W, 3) CIE L*a*b* (D65, L in 0..100) of an (H, W, 3) sRGB picture, float in [0, 1] or uint8."""
    rgb = as_array(image)
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"image: expected (H, W, 3), got shape {rgb.shape}")
    # float32 all through: the power functions are the whole cost and run twice as fast.
    rgb = rgb.astype(np.float32) / np.float32(255 if rgb.dtype == np.uint8 else 1)
    if not (rgb.min() >= -1e-6 and rgb.max() <= 1 + 1e-6):
        raise ValueError(f"image: expected values in [0, 1], got {rgb.min():g} to {rgb.max():g}")
    rgb = np.clip(rgb, 0, 1)
    linear = np.where(
        rgb > 0.04045, ((rgb + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4), rgb / np.float32(12.92)
    )
    xyz = linear @ _XYZ_WHITE.T.astype(np.float32)
    curve = np.where(xyz > 0.008856, np.cbrt(xyz), np.float32(7.787) * xyz + np.float32(16 / 116))
    x, y, z = curve[..., 0], curve[..., 1], curve[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def colour_saliency(image: Any, border_frac: float = 0.05) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how far each pixel's colour lies from those of the picture's border.

    image: (H, W, 3) sRGB, float in [0, 1] or uint8. Mahalanobis distance in L*a*b* to the mean and covariance of a
    frame `border_frac` of the shorter side wide (at least 1 px), min-max stretched; zeros for a picture of one colour.
    The background prior is that of Wei et al. 2012 ("Geodesic saliency using background priors"); one Gaussian is our
    choice.
    """
    lab = rgb_to_lab(image).astype(np.float64)
    height, width = lab.shape[:2]
    edge = max(1, round(border_frac * min(height, width)))
    frame = np.ones((height, width), bool)
    frame[edge : height - edge, edge : width - edge] = False
    border = lab[frame]
    mean = border.mean(axis=0)
    centred = border - mean
    # One squared unit of L*a*b* is about the smallest difference seen; it keeps the inverse finite on a flat border.
    covariance = centred.T @ centred / len(border) + np.eye(3)
    away = lab - mean
    distance = np.sqrt(np.einsum("hwc,hwc->hw", away @ np.linalg.inv(covariance), away))
    low, high = distance.min(), distance.max()
    if high - low < 1e-6:
        return np.zeros((height, width), np.float32)
    return ((distance - low) / (high - low)).astype(np.float32)


def otsu_threshold(values: Any, bins: int = 256) -> float:
    """Threshold with the largest variance between the two classes (Otsu 1979); foreground is strictly above it.

    values: any shape of finite numbers. The centre of the chosen histogram bin is returned; the value itself if all are
    equal.
    """
    flat = as_array(values).ravel().astype(np.float64)
    if flat.size == 0 or not np.isfinite(flat).all():
        raise ValueError("otsu_threshold: expected at least one value, all finite")
    if flat.min() == flat.max():
        return float(flat[0])
    counts, edges = np.histogram(flat, bins=bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / below
    mean_above = np.cumsum((counts * centres)[::-1])[::-1] / above
    between = below[:-1] * above[1:].astype(np.float64) * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(np.argmax(between))])


def otsu_mask(soft: Any) -> np.ndarray:
    """(H, W) float32 in {0, 1}: `soft` strictly above its own Otsu threshold; all zeros for a constant map."""
    array = as_array(soft)
    return (array > otsu_threshold(array)).astype(np.float32)


def mask_baselines(images: Any) -> dict[str, list[np.ndarray]]:
    """The baselines of a whole set, name -> one (H, W) prediction per picture: images is a list of (H, W, 3) pictures.

    Names: whole_image, centre_box, centre_ellipse, colour (soft) and colour_otsu (binary).
    """
    colour = [colour_saliency(image) for image in images]
    sizes = [soft.shape for soft in colour]
    return {
        "whole_image": [whole_image(*size) for size in sizes],
        "centre_box": [centre_box(*size) for size in sizes],
        "centre_ellipse": [centre_ellipse(*size) for size in sizes],
        "colour": colour,
        "colour_otsu": [otsu_mask(soft) for soft in colour],
    }
