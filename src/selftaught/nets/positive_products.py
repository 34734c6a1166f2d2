"""With how many others each row of a matrix has a positive product: exact counts from fast, inexact products.

LOST asks only for signs. A product computed in less precision has the right sign unless it is near zero, and how near
is known: |error| <= tol |f| |g|. So all products of rows of unit length are computed fast, and the few within tol of zero
(two in a thousand) again in float64 from the rows as they were given. The counts are those of float64, whatever the
processor.

The fast product: where the processor multiplies bf16 matrices in tiles (AMX), f = h + l with bf16 h and l, so that
f.g = l.h' + h.l' + h.h' up to 3 * 2^-16 |f| |g|, as one product of rows (l, h, h) and (h, l, h); elsewhere float32. Of the
symmetric matrix only the blocks on and above the diagonal are computed, each counted while it is in the cache.

With compiled loops, which decide a doubtful product in a tenth of a microsecond, one product h.h' is enough. What it leaves
out is measured: with e = |f - h|, the longest of all rows, it errs by at most (2 e + e^2) |f| |g| and the rounding of its
sums. A third of the multiplications; two products in a thousand are decided again, and where they are more than
`_MANY_COMPILED` the counts are made as above.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK_VALUES = 2**20
"""About how many products a block has: they and their signs fit into the second-level cache of a core."""
_BLOCK_ROWS = 384
"""Most rows of a block; fewer skip more of the half below the diagonal, but multiply more slowly."""
_STRIP_ROWS = 256
"""Rows that are divided into h and l at once."""
_MANY = 0.02
"""Share of a block's products near zero beyond which the whole block is computed in float64."""
_MANY_COMPILED = 0.1
"""The same of one product of bf16, beyond which three are faster."""
_SCRATCH_BYTES = 2**23
_own = threading.local()
_CHUNK = 4096
"""Products near zero that are computed at once."""


def positive_counts(rows: Tensor, unit: Tensor) -> Tensor:
    """Count for each row how many others it has a positive product with: (N,) int64.

    rows: (N, D) float32. unit: the same with each row scaled to length 1.
    """
    if rows.device.type != "cpu":
        return _counts_at_once(rows, unit)
    return _counts_in_blocks(rows, unit.contiguous(), bf16=tiles_bf16())


class Halves(NamedTuple):
    """What compiled loops make of the features of one picture; the memory of its matrices is used again for the next."""

    rows: NDArray[np.float32]
    """(N, D), as given; only for reading."""
    half: Tensor
    """(N, D) bf16, h of the rows of length 1."""
    length: NDArray[np.float64]
    """(N,)"""
    error: float
    """e, the length of what the halves leave out of a row, the longest."""
    most: np.float32
    """Size of the largest feature."""


def unit_halves(keys: Tensor) -> Halves:
    """By compiled loops, from features (D, N) float32 on the CPU.

    Where the D of a patch lie together in memory, as in the keys of a ViT, `rows` is that memory and not a copy.
    """
    from selftaught.nets import sign_loops

    width, n = keys.shape
    rows = keys.T.numpy()
    if not rows.flags.c_contiguous:
        rows = np.frombuffer(_scratch("rows", 4 * n * width), np.float32, n * width).reshape(n, width)
        np.copyto(rows, keys.numpy().T)
    half = np.frombuffer(_scratch("half", 2 * n * width), np.int16, n * width).reshape(n, width)
    length, error = np.empty(n), np.empty(n)
    most = sign_loops.halves(rows, half, length, error)
    return Halves(rows, torch.from_numpy(half).view(torch.bfloat16), length, float(error.max()), np.float32(most))


def _scratch(name: str, size: int) -> NDArray[np.uint8]:
    """Memory of this thread for `size` bytes, with what the last call of the name left in it: fresh memory costs time."""
    kept: NDArray[np.uint8] | None = getattr(_own, name, None)
    if kept is None or len(kept) < size:
        whole = np.empty(size + 64, np.uint8)
        begin = -whole.ctypes.data % 64  # a cache line, in which tiles are read
        kept = whole[begin : begin + size]
        if size <= _SCRATCH_BYTES:
            setattr(_own, name, kept)
    return kept[:size]


def half_tolerance(width: int, error: float) -> float:
    """Largest error of the product of two rows of `unit_halves`, with room for the rounding of the rows and of `error`."""
    left_out = error * (1 + width * 2.0**-23) + 8 * 2.0**-24
    sums = (width + 16) * 2.0**-24 * (1 + left_out) ** 2
    return (2 * left_out + left_out**2 + sums) * (1 + 2.0**-20)


def counts_compiled(found: Halves) -> NDArray[np.int32] | None:
    """`positive_counts` by compiled loops; None where too many products are doubtful."""
    from selftaught.nets import sign_loops

    n, width = found.rows.shape
    near = _bits_of(half_tolerance(width, found.error), bf16=True)
    tol = tolerance(width, bf16=False)
    counts = np.zeros(n, np.int32)
    height, doubtful = block_rows(n), 0
    scratch = torch.from_numpy(_scratch("products", 2 * n * min(height, n))).view(torch.bfloat16)
    for begin in range(0, n, height):
        # The right side is put in another order at each call: here each row is so once.
        left, right = found.half[: begin + height], found.half[begin : begin + height]
        products = scratch[: len(left) * len(right)].view(len(left), len(right))
        torch.mm(left, right.mT, out=products)
        values = products.view(torch.int16).numpy()
        doubtful += sign_loops.count_block(values, near, found.rows, found.length, tol, begin, counts)
        if doubtful > _MANY_COMPILED * n * n / 2:
            return None
    return counts


def positive_products(rows: Tensor, row: Tensor, products: Tensor, size: Tensor) -> Tensor:
    """Which of the products (N,) in float32 of rows (N, D) with row (D,) float64 are positive: (N,) bool, as in float64.

    size: (N,) or (), the lengths by whose product the error of a product is bounded.
    """
    positive = products > 0
    near = (products.abs() <= tolerance(rows.shape[1], bf16=False) * size).nonzero()[:, 0]
    if len(near):
        positive[near] = rows[near].double() @ row > 0
    return positive


def tiles_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices in tiles, many times faster than float32."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(supported()) and torch.backends.mkldnn.is_available()


def tolerance(width: int, bf16: bool) -> float:
    """Largest error of a fast product of unit rows of `width` features, with room for the rounding of the rows themselves.

    Each addition rounds by at most 2^-24 of what is summed. bf16: h and l are off by 2^-8 and 2^-16 of a feature, so that
    l.l' and what is left of either row are left out; three times as many additions.
    """
    return 3 * 2.0**-16 + (3 * width + 16) * 2.0**-24 if bf16 else (width + 16) * 2.0**-24


def block_rows(n: int) -> int:
    """Rows of a block of N x N products: a multiple of 64, which multiply fastest."""
    return min(_BLOCK_ROWS, -(-_BLOCK_VALUES // (64 * n)) * 64)


def _counts_at_once(rows: Tensor, unit: Tensor) -> Tensor:
    """(N,) counts of one matrix (N, D) from the whole matrix of products."""
    product = unit @ unit.mT
    positive = product > 0
    first, second = (product.abs() <= tolerance(rows.shape[1], bf16=False)).nonzero(as_tuple=True)
    for pair in zip(first.split(_CHUNK), second.split(_CHUNK), strict=True):
        positive[pair] = (rows[pair[0]].double() * rows[pair[1]].double()).sum(1) > 0
    return positive.sum(1) - 1  # itself


def _counts_in_blocks(rows: Tensor, unit: Tensor, bf16: bool) -> Tensor:
    """The same, block by block."""
    n, width = rows.shape
    left, right = _halves(unit) if bf16 else (unit, unit)
    bits: Any = np.int16 if bf16 else np.int32
    near = _bits_of(tolerance(width, bf16), bf16)
    counts = np.zeros(n, np.int64)
    height = block_rows(n)
    for top in range(0, n, height):
        product = left[top : top + height] @ right[top:].mT
        values = product.view(torch.int16 if bf16 else torch.int32).numpy()
        positive = values > 0  # the integer with the bits of a float is positive just where the float is
        doubtful = np.flatnonzero((values & np.iinfo(bits).max) <= near)
        if len(doubtful) > _MANY * values.size:
            positive = (rows[top : top + height].double() @ rows[top:].mT.double() > 0).numpy()
        elif len(doubtful):
            positive.reshape(-1)[doubtful] = _signs(rows, top, doubtful, values.shape[1])
        flags = positive.view(np.int8)
        counts[top : top + height] += flags.sum(1, dtype=np.int32)
        counts[top + height :] += flags[:, height:].sum(0, dtype=np.int32)
    return torch.from_numpy(counts - 1)  # itself


def _halves(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (l, h, h) and (h, l, h) (N, 3 D) in bf16; both are parts of one buffer h, l, h, h."""
    n, width = unit.shape
    buffer = torch.empty(n, 4 * width, dtype=torch.bfloat16)
    for part, made in zip(unit.split(_STRIP_ROWS), buffer.split(_STRIP_ROWS), strict=True):
        # numpy widens and copies several times faster than torch does
        high = part.bfloat16().view(torch.int16).numpy()
        rest = part.numpy() - (high.astype(np.int32) << 16).view(np.float32)
        low = torch.from_numpy(rest).bfloat16().view(torch.int16).numpy()
        values = made.view(torch.int16).numpy().reshape(-1, 4, width)
        values[:, 0] = values[:, 2] = values[:, 3] = high
        values[:, 1] = low
    return buffer[:, width:], buffer[:, : 3 * width]


def _bits_of(tol: float, bf16: bool) -> int:
    """The bits of `tol` as an integer, rounded upwards in its precision."""
    bits = int(np.float32(tol).view(np.int32)) + 1
    return (bits >> 16) + 1 if bf16 else bits


def _signs(rows: Tensor, top: int, doubtful: NDArray[np.intp], width: int) -> NDArray[np.bool_]:
    """Whether products are positive, in float64; `doubtful` counts through a block of `width` columns from `top` on."""
    first, second = np.divmod(doubtful, width)
    pairs = torch.from_numpy(np.stack([first, second]) + top)
    signs = [
        (rows[a].double() * rows[b].double()).sum(1) > 0
        for a, b in zip(pairs[0].split(_CHUNK), pairs[1].split(_CHUNK), strict=True)
    ]
    return torch.cat(signs).numpy()
