"""Features that need no learning: small pictures and histograms of oriented gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.measure.pairs import as_array

_CHUNK = 256


def _images(images: Any) -> np.ndarray:
    array = as_array(images)
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"images: expected (N, 3, H, W), got shape {array.shape}")
    return array


def _unit(images: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] of uint8 or float pictures."""
    return images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)


def _area_weights(size: int, out: int) -> np.ndarray:
    """(out, size) float32: how much of each input pixel lies in each of `out` equal intervals; rows add up to 1."""
    edges = np.linspace(0, size, out + 1)
    left, right = np.arange(size), np.arange(1, size + 1)
    covered = np.minimum(edges[1:, None], right) - np.maximum(edges[:-1, None], left)
    return (np.clip(covered, 0, None) * out / size).astype(np.float32)


def area_resize(images: np.ndarray, px: int) -> np.ndarray:
    """(N, C, px, px) float32 mean over areas of (N, C, H, W) pictures; a side smaller than px is repeated."""
    rows, columns = _area_weights(images.shape[2], px), _area_weights(images.shape[3], px)
    return np.matmul(np.matmul(rows, images), columns.T)


def raw_pixels(images: Any, px: int = 16) -> np.ndarray:
    """(N, 3 px px) float32: the picture averaged down to px x px, its own mean subtracted, flattened.

    images: (N, 3, H, W) uint8, or float in [0, 1]. Without the mean the cosine of any two pictures is close to 1.
    """
    array = _images(images)
    features = np.empty((len(array), 3 * px * px), np.float32)
    for start in range(0, len(array), _CHUNK):
        small = area_resize(_unit(array[start : start + _CHUNK]), px).reshape(-1, 3 * px * px)
        features[start : start + _CHUNK] = small - small.mean(axis=1, keepdims=True)
    return features


def hog(images: Any, px: int | None = 64, cell_px: int = 8, bins: int = 9) -> np.ndarray:
    """(N, D) float32 histograms of oriented gradients (Dalal & Triggs 2005), D = (px/cell - 1)^2 * 4 * bins.

    images: (N, 3, H, W) uint8, or float in [0, 1]; averaged to `px` first unless None or already smaller. Central
    differences (0 at the border), the channel with the strongest gradient, unsigned angles without interpolation
    between bins, blocks of 2 x 2 cells with L2-Hys: the features of `skimage.feature.hog`. ValueError under 2 x 2
    cells.
    """
    array = _images(images)
    if px is not None and min(array.shape[2:]) < px:
        px = None
    height, width = (px, px) if px else array.shape[2:]
    rows, columns = height // cell_px, width // cell_px
    if min(rows, columns) < 2:
        raise ValueError(f"hog: expected at least {2 * cell_px} px on each side, got {height} x {width}")
    features = np.empty((len(array), (rows - 1) * (columns - 1) * 4 * bins), np.float32)
    for start in range(0, len(array), _CHUNK):
        part = _unit(array[start : start + _CHUNK])
        cells = _cells(area_resize(part, px) if px else part, cell_px, bins)
        features[start : start + _CHUNK] = _blocks(cells).reshape(len(part), -1)
    return features


def _cells(images: np.ndarray, cell_px: int, bins: int) -> np.ndarray:
    """(N, rows, columns, bins) mean gradient strength by orientation in each cell."""
    n, _, height, width = images.shape
    down, across = np.zeros_like(images), np.zeros_like(images)
    down[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    across[:, :, :, 1:-1] = images[:, :, :, 2:] - images[:, :, :, :-2]
    strongest = (down**2 + across**2).argmax(axis=1)[:, None]
    down, across = (np.take_along_axis(side, strongest, axis=1)[:, 0] for side in (down, across))
    strength = np.sqrt(down**2 + across**2)
    angle = np.rad2deg(np.arctan2(down, across)) % 180
    orientation = np.minimum((angle * (bins / 180)).astype(np.int64), bins - 1)
    rows, columns = height // cell_px, width // cell_px
    orientation = orientation[:, : rows * cell_px, : columns * cell_px]
    strength = strength[:, : rows * cell_px, : columns * cell_px]
    cell = (np.arange(rows * cell_px) // cell_px)[:, None] * columns + np.arange(columns * cell_px) // cell_px
    index = ((np.arange(n)[:, None, None] * rows * columns + cell) * bins + orientation).ravel()
    histogram = np.bincount(index, strength.ravel(), minlength=n * rows * columns * bins)
    return histogram.reshape(n, rows, columns, bins) / cell_px**2


def _blocks(cells: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """(N, rows - 1, columns - 1, 4, bins): blocks of 2 x 2 cells, normalised, clipped at 0.2, normalised again."""
    blocks = np.stack([cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:]], axis=3)
    for limit in (0.2, np.inf):
        length = np.sqrt((blocks**2).sum(axis=(3, 4), keepdims=True) + eps**2)
        blocks = np.minimum(blocks / length, limit)
    return blocks
