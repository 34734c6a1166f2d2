"""Fast bilateral solver: smooths a map within the regions of one picture and keeps the borders of its colours.

Barron & Poole, "The Fast Bilateral Solver" (ECCV 2016). Pixels fall into the cells of a grid over (x, y, luma, u, v);
the map is found on the V occupied cells as the solution of

    (lam (Dm - Dn B Dn) + diag(S c)) z = S (c t),        output = S^T z,

where S sums pixels into cells, B = 10 + (sum over the at most 10 neighbouring cells), n and m make Dn B Dn (nearly)
bistochastic with row sums m, t is the target and c the confidence. The constants are those with which TokenCut, LOST,
MOVE and FOUND use it. float64 on the CPU; about 0.01 s for 480x480.

The published code spends most of its time on finding the occupied cells by sorting all pixels. Here a table over the
box of cells that the picture's colours span says which are occupied, in one pass; pictures of so many colours that
the table would be large are sorted as well. Where numba is installed, compiled loops (`nets/bilateral_loops.py`) join the passes
after that; they agree to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError
from selftaught.nets import compiled

Floats = NDArray[np.float64]

ENGINES = ("auto", "numpy", "numba")
CONFIDENCE = 0.999
"""Confidence of every pixel in all published uses."""
LAM = 256.0
"""Weight of smoothness against the target."""
AXES = 5
"""x, y and the three colour channels."""
_YUV = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_BISTOCHASTIC_STEPS = 10
_DIAGONAL_MIN = 1e-5
_STRIP_PIXELS = 16384
"""Pixels whose colours are converted at once: their float64 values stay in the cache of a core."""
_TABLE_CELLS = 2**24
"""Largest table of cells, occupied or not (5 bytes each); beyond it, pixels are sorted."""


class BilateralGrid:
    """The grid of one picture; solve it for as many targets as needed.

    picture: (H, W, 3) RGB in 0..255, uint8 or float. sigma_space_px: cell side in pixels; sigma_luma and sigma_chroma:
    cell sides in grey levels. engine: numpy, numba, or auto, which takes numba where it is installed. Raises ConfigError for a
    wrong shape, sigma or engine, NumericError for NaN or infinite pixels.
    """

    def __init__(
        self,
        picture: NDArray[Any],
        sigma_space_px: float = 16,
        sigma_luma: float = 16,
        sigma_chroma: float = 8,
        *,
        engine: str = "auto",
    ) -> None:
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ConfigError(f"The picture has shape {picture.shape}.", expected="(H, W, 3), not empty")
        if min(sigma_space_px, sigma_luma, sigma_chroma) <= 0:
            raise ConfigError("A cell of the bilateral grid needs a positive size.", expected="sigmas > 0")
        if picture.dtype != np.uint8:
            if not np.isfinite(picture).all():
                raise NumericError("The picture holds NaN or infinite values.")
            if picture.min() < 0 or picture.max() > 256:
                raise ConfigError("Grey levels lie outside of 0..255.", expected="RGB in 0..255")
        self.shape = picture.shape[:2]
        self._compiled = _choose_engine(engine) == "numba"
        packed, strides, total = _pack(picture, sigma_space_px, sigma_luma, sigma_chroma)
        if self._compiled and total <= _TABLE_CELLS:
            from selftaught.nets import bilateral_loops

            found = bilateral_loops.grid(packed, strides, bilateral_loops.empty_table(total))
            self._cell_of_pixel, self._pixels_per_cell, self._starts, self._neighbours, self._n, self._m = found
            self.size = len(self._n)
            return
        self._compiled = False
        self._cell_of_pixel, self._blur = (_by_table if total <= _TABLE_CELLS else _by_sorting)(packed, strides, total)
        self.size = self._blur.shape[0]
        self._pixels_per_cell = np.bincount(self._cell_of_pixel, minlength=self.size).astype(np.float64)
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
        t, c = np.asarray(target, np.float64), np.asarray(confidence, np.float64)
        if t.shape != self.shape:
            raise ConfigError(f"The target has shape {t.shape}.", expected=f"{self.shape}, the picture's")
        if not (np.isfinite(t).all() and np.isfinite(c).all()):
            raise NumericError("The target or confidence holds NaN or infinite values.")
        if (c < 0).any() or not (c > 0).any():
            raise ConfigError("The confidence is negative, or zero everywhere.", expected=">= 0, somewhere > 0")
        if c.ndim == 0:
            weight, right = float(c) * self._pixels_per_cell, float(c) * self._splat(np.ascontiguousarray(t).ravel())
        else:
            c = np.broadcast_to(c, self.shape)
            weight, right = self._splat(c.ravel()), self._splat((c * t).ravel())
        diagonal = lam * (self._m - 2 * AXES * self._n**2) + weight
        inverse = 1.0 / np.maximum(diagonal, _DIAGONAL_MIN)
        # Cells without any confidence start from the mean; the published code divides 0 by 0 there.
        mean = right.sum() / weight.sum()
        start = np.divide(right, weight, out=np.full_like(right, mean), where=weight > 0)
        if self._compiled:
            from selftaught.nets import bilateral_loops

            bilateral_loops.conjugate_gradients(
                start, right, diagonal, inverse, self._n, lam, self._starts, self._neighbours, max_iter, tol
            )
            sliced: Floats = bilateral_loops.sliced(start, self._cell_of_pixel)
            return sliced.reshape(self.shape)
        solution = self._conjugate_gradients(start, right, self.matrix(weight, lam), inverse, max_iter, tol)
        return solution[self._cell_of_pixel].reshape(self.shape)

    def blur(self, values: Floats) -> Floats:
        """B times values (V,): ten times the cell plus its neighbours."""
        out: Floats = self._blur @ values
        return out

    def matrix(self, weight: Floats, lam: float) -> sparse.csr_matrix:
        """lam (Dm - Dn B Dn) + diag(weight), (V, V)."""
        values = self._smooth * -lam
        values[self._diagonal] += lam * self._m + weight
        return sparse.csr_matrix((values, self._blur.indices, self._blur.indptr), self._blur.shape)

    @functools.cached_property
    def _blur(self) -> sparse.csr_matrix:
        """B as a matrix, which compiled loops do without."""
        each = np.repeat(np.arange(self.size), np.diff(self._starts))
        around = sparse.csr_matrix((np.ones(len(each)), (each, self._neighbours)), (self.size, self.size))
        return (around + 2 * AXES * sparse.identity(self.size)).tocsr()

    @functools.cached_property
    def _diagonal(self) -> NDArray[np.intp]:
        return np.flatnonzero(self._blur.data == 2 * AXES)

    @functools.cached_property
    def _smooth(self) -> Floats:
        """The entries of Dn B Dn."""
        blur = self._blur
        entries: Floats = blur.data * self._n[blur.indices] * np.repeat(self._n, np.diff(blur.indptr))
        return entries

    def _splat(self, values: Floats) -> Floats:
        if self._compiled:
            from selftaught.nets import bilateral_loops

            found: Floats = bilateral_loops.splat(values, self._cell_of_pixel, self.size)
            return found
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
        self, x: Floats, right: Floats, matrix: sparse.csr_matrix, inverse: Floats, max_iter: int, tol: float
    ) -> Floats:
        enough = tol * float(np.linalg.norm(right))
        residual = right - matrix @ x
        direction = np.zeros_like(x)
        before = 1.0
        for step in range(max_iter):
            if float(np.linalg.norm(residual)) <= enough:
                break
            scaled = inverse * residual
            now = float(residual @ scaled)
            direction *= now / before if step else 0.0
            direction += scaled
            image = matrix @ direction
            length = now / float(direction @ image)
            x = x + length * direction
            image *= length
            residual -= image
            before = now
        return x


def refine(soft: NDArray[Any], mask: NDArray[Any], min_iou: float = 0.5) -> tuple[NDArray[np.float64], bool]:
    """Accept the solver's output, or keep the mask: (soft (H, W), True) when IoU(object of soft, mask) > min_iou.

    The object of `soft` is its part above 0.5, holes filled, largest 4-connected component. Otherwise (mask, False).
    """
    if compiled.is_there() and np.ndim(soft) == 2 and np.size(soft):
        from selftaught.nets import bilateral_loops

        values, given = np.ascontiguousarray(soft), np.ascontiguousarray(mask)
        kept = np.empty(values.shape, np.bool_)
        bilateral_loops.largest_filled(values, 0.5, kept)
        inside, together = bilateral_loops.overlap(kept, given)
        if not together or inside > min_iou * together:
            return np.clip(soft, 0.0, 1.0), True
        return (given > 0.5).astype(np.float64), False
    before = np.asarray(mask) > 0.5
    after = largest_filled(np.asarray(soft) > 0.5)
    union = np.logical_or(before, after).sum()
    iou = np.logical_and(before, after).sum() / union if union else 1.0
    accepted = bool(iou > min_iou)
    return (np.clip(soft, 0.0, 1.0) if accepted else before.astype(np.float64)), accepted


def largest_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the holes of a mask (H, W) and keep its largest 4-connected component; an empty mask stays empty."""
    kept = np.zeros_like(mask, dtype=bool)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return kept
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # The ring around the box is one piece of what is not the mask, and the first in reading order: holes are the others.
    filled = ndimage.label(~np.pad(mask[box], 1))[0] != 1
    labels, count = ndimage.label(filled)
    if count > 1:
        filled = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    kept[box] = filled[1:-1, 1:-1]
    return kept


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


def _choose_engine(engine: str) -> str:
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine {engine!r}.", expected=", ".join(ENGINES))
    if engine == "numba" and not compiled.is_there():
        raise ConfigError("The engine numba is not installed.", do='pip install "selftaught[fast]", or engine="numpy"')
    return ("numba" if compiled.is_there() else "numpy") if engine == "auto" else engine


def _pack(
    picture: NDArray[Any], space: float, luma: float, chroma: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Give each pixel one number for its cell: (H*W,) numbers, the step of each axis (5,), and how many numbers there are.

    The coordinates (x, y, luma, u, v) are packed with a margin of one cell on each side of every axis, so that a step of one
    never wraps into another axis.
    """
    height, width = picture.shape[:2]
    planes = np.moveaxis(picture, 2, 0)
    sides = np.array([[luma], [chroma], [chroma]], np.float64)
    small = 512.0 / float(sides.min()) < 2**31
    colours = np.empty((3, height * width), np.int32 if small else np.int64)
    matrix, offset = _YUV, np.array([[0.0], [128.0], [128.0]])
    exact = bool((np.frexp(sides)[0] == 0.5).all())  # powers of two: dividing before or after gives the same bits
    if exact:
        matrix, offset = matrix / sides, offset / sides
    rows = max(1, _STRIP_PIXELS // width)
    strips = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    for strip in strips:
        yuv = matrix @ np.ascontiguousarray(planes[:, strip], np.float64).reshape(3, -1)
        yuv += offset
        if not exact:
            yuv /= sides
        # Cuts the fraction off, as the published code does.
        colours[:, strip.start * width : strip.stop * width] = yuv
    x = np.floor(np.arange(width) / space).astype(np.int64)
    y = np.floor(np.arange(height) / space).astype(np.int64)
    lowest = [0, 0, *(int(low) for low in colours.min(1))]
    highest = [int(x[-1]), int(y[-1]), *(int(high) for high in colours.max(1))]
    extents = [high - low + 3 for low, high in zip(lowest, highest, strict=True)]
    total = int(np.prod([float(extent) for extent in extents]))
    if total >= 2**62:
        raise ConfigError("The bilateral grid has too many cells.", do="Use larger sigmas.")
    strides = [int(np.prod(extents[:axis], dtype=np.int64)) for axis in range(AXES)]
    origin = sum(stride * (1 - low) for stride, low in zip(strides, lowest, strict=True))
    kind: Any = np.int32 if small and total < 2**31 else np.int64  # sums that wrap round come back
    across: Any = (strides[0] * x).astype(kind)
    down: Any = (origin + strides[1] * y).astype(kind)
    packed = np.empty((height, width), np.int64)
    for strip in strips:
        place = down[strip, None] + across
        for plane, stride in zip(colours, strides[2:], strict=True):
            place += plane[strip.start * width : strip.stop * width].reshape(-1, width) * kind(stride)
        packed[strip] = place
    return packed.reshape(-1), np.array(strides, np.int64), total


def _by_table(
    packed: NDArray[np.int64], strides: NDArray[np.int64], total: int
) -> tuple[NDArray[np.intp], sparse.csr_matrix]:
    """Number the occupied cells in the order of their packed numbers: the cell of every pixel, and the blur B (V, V)."""
    occupied = np.zeros(total, bool)
    occupied[packed] = True
    keys = np.flatnonzero(occupied)
    number = np.empty(total, np.int32)  # read only where occupied
    number[keys] = np.arange(len(keys))
    around = (keys[:, None] + _steps(strides)).reshape(-1)
    present = np.flatnonzero(occupied[around])
    return number[packed].astype(np.intp), _blur_matrix(present, number[around[present]], len(keys))


def _by_sorting(
    packed: NDArray[np.int64], strides: NDArray[np.int64], total: int
) -> tuple[NDArray[np.intp], sparse.csr_matrix]:
    """The same as `_by_table` without a table of all cells."""
    keys, cell_of_pixel = np.unique(packed, return_inverse=True)
    around = (keys[:, None] + _steps(strides)).reshape(-1)
    places = np.minimum(np.searchsorted(keys, around), len(keys) - 1)
    present = np.flatnonzero(keys[places] == around)
    return cell_of_pixel.reshape(-1), _blur_matrix(present, places[present], len(keys))


def _steps(strides: NDArray[np.int64]) -> NDArray[np.int64]:
    """The packed steps to the ten neighbours and to the cell itself (at 5), in ascending order."""
    return np.concatenate([-strides[::-1], [0], strides])


def _blur_matrix(present: NDArray[np.intp], columns: NDArray[Any], size: int) -> sparse.csr_matrix:
    """B (V, V) from the places in the table (V, 11) of neighbours that are occupied, and the cells that are there."""
    steps = 2 * AXES + 1
    ends = np.searchsorted(present, steps * np.arange(size + 1)).astype(np.int32)
    weights = np.ones(len(present))
    weights[np.searchsorted(present, steps * np.arange(size) + AXES)] = 2 * AXES
    return sparse.csr_matrix((weights, columns.astype(np.int32, copy=False), ends), (size, size))
