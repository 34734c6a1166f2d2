"""Fast bilateral solver: smooths a map within the regions of one picture and keeps the borders of its colours.

Barron & Poole, "The Fast Bilateral Solver" (ECCV 2016). Pixels fall into the cells of a grid over (x, y, luma, u, v);
the map is found on the V occupied cells as the solution of

    (lam (Dm - Dn B Dn) + diag(S c)) z = S (c t),        output = S^T z,

where S sums pixels into cells, B = 10 + (sum over the at most 10 neighbouring cells), n and m make Dn B Dn (nearly)
bistochastic with row sums m, t is the target and c the confidence. No matrix is built: B is a table of neighbours.
The constants are those with which TokenCut, LOST, MOVE and FOUND use it. float64 on the CPU; about 0.05 s for 300x400.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError

Floats = NDArray[np.float64]

CONFIDENCE = 0.999
"""Confidence of every pixel in all published uses."""
LAM = 256.0
"""Weight of smoothness against the target."""
AXES = 5
"""x, y and the three colour channels."""
_YUV = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_BISTOCHASTIC_STEPS = 10
_DIAGONAL_MIN = 1e-5


class BilateralGrid:
    """The grid of one picture; solve it for as many targets as needed.

    picture: (H, W, 3) RGB in 0..255, uint8 or float. sigma_space_px: cell side in pixels; sigma_luma and sigma_chroma:
    cell sides in grey levels. Raises ConfigError for a wrong shape or sigma, NumericError for NaN or infinite pixels.
    """

    def __init__(
        self, picture: NDArray[Any], sigma_space_px: float = 16, sigma_luma: float = 16, sigma_chroma: float = 8
    ) -> None:
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ConfigError(f"The picture has shape {picture.shape}.", expected="(H, W, 3), not empty")
        if min(sigma_space_px, sigma_luma, sigma_chroma) <= 0:
            raise ConfigError("A cell of the bilateral grid needs a positive size.", expected="sigmas > 0")
        if not np.isfinite(picture).all():
            raise NumericError("The picture holds NaN or infinite values.")
        if picture.min() < 0 or picture.max() > 256:
            raise ConfigError("Grey levels lie outside of 0..255.", expected="RGB in 0..255")
        self.shape = picture.shape[:2]
        cells = _cells(picture, sigma_space_px, sigma_luma, sigma_chroma)
        self._cell_of_pixel, self._neighbours = _index(cells)
        self.size = len(self._neighbours[0])
        self._pixels_per_cell = self._splat(np.ones(self._cell_of_pixel.shape))
        self._n, self._m = self._bistochastic()

    def solve(
        self,
        target: NDArray[Any],
        confidence: NDArray[Any] | float = CONFIDENCE,
        *,
        lam: float = LAM,
        max_iter: int = 25,
        tol: float = 1e-5,
    ) -> Floats:
        """Return the smoothed target (H, W), float64; up to `max_iter` steps of conjugate gradients.

        target: (H, W), usually in [0, 1]. confidence: >= 0, a number or (H, W). A constant target comes back as it is.
        """
        t = np.asarray(target, np.float64)
        c = np.broadcast_to(np.asarray(confidence, np.float64), self.shape)
        if t.shape != self.shape:
            raise ConfigError(f"The target has shape {t.shape}.", expected=f"{self.shape}, the picture's")
        if not (np.isfinite(t).all() and np.isfinite(c).all()):
            raise NumericError("The target or confidence holds NaN or infinite values.")
        if (c < 0).any() or not (c > 0).any():
            raise ConfigError("The confidence is negative, or zero everywhere.", expected=">= 0, somewhere > 0")
        weight = self._splat(c.ravel())
        right = self._splat((c * t).ravel())
        diagonal = lam * (self._m - 2 * AXES * self._n**2) + weight
        inverse = 1.0 / np.maximum(diagonal, _DIAGONAL_MIN)
        # Cells without any confidence start from the mean; the published code divides 0 by 0 there.
        mean = right.sum() / weight.sum()
        start = np.divide(right, weight, out=np.full_like(right, mean), where=weight > 0)
        solution = self._conjugate_gradients(start, right, weight, inverse, lam, max_iter, tol)
        return solution[self._cell_of_pixel].reshape(self.shape)

    def blur(self, values: Floats) -> Floats:
        """B times values (V,): ten times the cell plus its neighbours."""
        padded = np.append(values, 0.0)
        out = 2 * AXES * values
        for table in self._neighbours:
            out += padded[table]
        return out

    def operator(self, values: Floats, weight: Floats, lam: float) -> Floats:
        """(lam (Dm - Dn B Dn) + diag(weight)) times values (V,)."""
        return lam * (self._m * values - self._n * self.blur(self._n * values)) + weight * values

    def _splat(self, values: Floats) -> Floats:
        sums: Floats = np.bincount(self._cell_of_pixel, weights=values, minlength=self.size).astype(
            np.float64, copy=False
        )
        return sums

    def _bistochastic(self) -> tuple[Floats, Floats]:
        n = np.ones(self.size)
        for _ in range(_BISTOCHASTIC_STEPS):
            n = np.sqrt(n * self._pixels_per_cell / self.blur(n))
        # m from n, not the pixel counts: then the smoothness of a constant is exactly zero.
        return n, n * self.blur(n)

    def _conjugate_gradients(
        self, x: Floats, right: Floats, weight: Floats, inverse: Floats, lam: float, max_iter: int, tol: float
    ) -> Floats:
        enough = tol * float(np.linalg.norm(right))
        residual = right - self.operator(x, weight, lam)
        direction = np.zeros_like(x)
        before = 1.0
        for step in range(max_iter):
            if float(np.linalg.norm(residual)) <= enough:
                break
            scaled = inverse * residual
            now = float(residual @ scaled)
            direction = scaled + (now / before if step else 0.0) * direction
            image = self.operator(direction, weight, lam)
            length = now / float(direction @ image)
            x = x + length * direction
            residual = residual - length * image
            before = now
        return x


def refine(soft: NDArray[Any], mask: NDArray[Any], min_iou: float = 0.5) -> tuple[NDArray[np.float64], bool]:
    """Accept the solver's output, or keep the mask: (soft (H, W), True) when IoU(object of soft, mask) > min_iou.

    The object of `soft` is its part above 0.5, holes filled, largest 4-connected component. Otherwise (mask, False).
    """
    before = np.asarray(mask) > 0.5
    after = largest_filled(np.asarray(soft) > 0.5)
    union = np.logical_or(before, after).sum()
    iou = np.logical_and(before, after).sum() / union if union else 1.0
    accepted = bool(iou > min_iou)
    return (np.clip(soft, 0.0, 1.0) if accepted else before.astype(np.float64)), accepted


def largest_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the holes of a mask (H, W) and keep its largest 4-connected component; an empty mask stays empty."""
    labels, count = ndimage.label(ndimage.binary_fill_holes(mask))
    if count == 0:
        return np.zeros_like(mask, dtype=bool)
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def bilateral_solve(
    pictures: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    confidences: Sequence[NDArray[Any] | float] | float = CONFIDENCE,
    *,
    sigma_space_px: float = 16,
    sigma_luma: float = 16,
    sigma_chroma: float = 8,
    lam: float = LAM,
    threads: int = 2,
) -> list[Floats]:
    """Solve many pictures (each (H, W, 3) in 0..255, sizes may differ) on `threads` threads; see `BilateralGrid`."""
    if len(pictures) != len(targets):
        raise ConfigError(f"{len(pictures)} pictures and {len(targets)} targets.", expected="as many of both")
    each = [confidences] * len(targets) if isinstance(confidences, (int, float)) else list(confidences)
    if len(each) != len(targets):
        raise ConfigError(f"{len(targets)} targets and {len(each)} confidences.", expected="as many of both")

    def one(index: int) -> Floats:
        grid = BilateralGrid(pictures[index], sigma_space_px, sigma_luma, sigma_chroma)
        return grid.solve(targets[index], each[index], lam=lam)

    if threads <= 1 or len(pictures) <= 1:
        return [one(index) for index in range(len(pictures))]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(pictures))))


def follow_edges(images: Tensor, masks: Tensor, **settings: Any) -> Tensor:
    """`bilateral_solve` on tensors: (B, 3, H, W) pictures in [0, 1] and (B, H, W) masks in [0, 1] to soft masks (B, H, W)."""
    pictures = list(images.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    solved = bilateral_solve(pictures, list(masks.cpu().numpy().astype(np.float64)), **settings)
    return torch.from_numpy(np.stack(solved)).to(masks)


def _cells(picture: NDArray[Any], space: float, luma: float, chroma: float) -> NDArray[np.int64]:
    """Return the integer grid coordinates (5, H*W) of every pixel, in the order x, y, luma, u, v."""
    height, width = picture.shape[:2]
    yuv = np.tensordot(picture.astype(np.float64), _YUV, axes=([2], [1]))
    yuv[..., 1:] += 128.0
    y, x = np.mgrid[:height, :width]
    parts = (x / space, y / space, yuv[..., 0] / luma, yuv[..., 1] / chroma, yuv[..., 2] / chroma)
    return np.stack([np.floor(part).astype(np.int64).ravel() for part in parts])


def _index(cells: NDArray[np.int64]) -> tuple[NDArray[np.intp], list[NDArray[np.intp]]]:
    """Number the occupied cells; return the cell of every pixel and 10 tables (V,) of neighbours.

    A table holds V where there is no neighbour. Coordinates are packed into one int64 with a margin of one cell on each
    side of every axis, so that a step of one never wraps into another axis.
    """
    cells = cells - cells.min(axis=1, keepdims=True) + 1
    extents = [int(extent) for extent in cells.max(axis=1) + 2]
    if np.prod([float(extent) for extent in extents]) >= 2.0**62:
        raise ConfigError("The bilateral grid has too many cells.", do="Use larger sigmas.")
    strides = [int(np.prod(extents[:axis], dtype=np.int64)) for axis in range(AXES)]
    packed = np.tensordot(np.array(strides, np.int64), cells, axes=1)
    keys, cell_of_pixel = np.unique(packed, return_inverse=True)
    tables = []
    for stride in strides:
        for wanted in (keys + stride, keys - stride):
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            tables.append(np.where(keys[place] == wanted, place, len(keys)))
    return cell_of_pixel.reshape(-1), tables
