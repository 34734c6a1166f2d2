"""LOST's loops, compiled: rows in bf16 with the error that this makes, counts of positive products, and the growing.

Imported only where numba is. The same answers as `nets/positive_products.py` and `segmentation/lost.py` give without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.nets.compiled import loops

_CHUNK = 128
"""Products that are looked at at once; only where one of them is doubtful they are looked at one by one."""
_WAITING = 4096
"""Doubtful products that are decided together."""


@loops(any_order=True)
def halves(rows: Any, half: Any, length: Any, error: Any) -> Any:
    """Of rows (N, D) float32 fill the lengths (N,) float64, the rows scaled to length 1 as the bits of bf16 (N, D) int16, and
    how long what bf16 leaves out of each is (N,) float64. Returns the size of the largest feature.
    """
    n, width = rows.shape
    largest = np.uint32(0)
    for i in range(n):
        row, out = rows[i], half[i]
        square = 0.0
        for d in range(width):
            square += np.float64(row[d]) * np.float64(row[d])
        length[i] = np.sqrt(square)
        scale = np.float32(1.0 / length[i]) if square > 0 else np.float32(0)
        lost, most = np.float32(0), np.uint32(0)
        for d in range(width):
            # Sizes of floats are ordered as the integers of their bits.
            most = max(most, np.uint32(np.float32(row[d]).view(np.uint32) & np.uint32(0x7FFFFFFF)))
            unit = np.float32(row[d] * scale)
            bits = np.float32(unit).view(np.uint32)
            odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            short = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)  # to the nearest, ties to even
            out[d] = np.int16(np.uint32(short >> np.uint32(16)))
            rest = np.float32(unit - np.uint32(short & np.uint32(0xFFFF0000)).view(np.float32))
            lost += rest * rest
        largest = max(largest, most)
        error[i] = np.sqrt(np.float64(lost))
    return np.uint32(largest).view(np.float32)


@loops(any_order=True)
def product(a: Any, b: Any) -> float:
    """Product of two vectors, in float64."""
    total = 0.0
    for d in range(a.shape[0]):
        total += np.float64(a[d]) * np.float64(b[d])
    return total


@loops(any_order=True)
def rough_product(a: Any, b: Any) -> Any:
    """Product of two vectors in float32, twice as fast."""
    total = np.float32(0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@loops()
def decide(values: Any, places: Any, rows: Any, length: Any, tol: float, begin: int, counts: Any) -> int:  # fmt: skip
    """Correct `counts` by the signs at `places` (P, 2) of `values`: in float32, and within `tol` times the lengths of zero in float64.

    Many one after the other, since each alone would wait for its rows to come from memory. Returns 0, how many are left.
    """
    for p in range(len(places)):
        i, j = places[p, 0], places[p, 1]
        at = begin + j
        value: Any = np.float64(rough_product(rows[i], rows[at]))
        if not abs(value) > tol * length[i] * length[at]:
            value = product(rows[i], rows[at])
        change = np.int32(value > 0) - np.int32(values[i, j] > 0)
        counts[i] += change
        counts[at] += change
    return 0


@loops()
def count_block(  # fmt: skip
    values: Any, near: int, rows: Any, length: Any, tol: float, begin: int, counts: Any
) -> int:
    """Add to counts (N,) int32 the positive products above the diagonal of one block, for both of each pair.

    values: (H, W), the bits of the products of rows 0 .. H with rows begin .. begin+W. Those within `near` (bits) of zero are
    decided again from `rows`. Returns how many these were.
    """
    height, width = values.shape
    close_to = np.int16(near)
    most = np.int16(0x7FFF)
    column = np.zeros(width, np.int16)  # sums of 16 bits, and chunks of one: twice as many fit into a register
    waiting = np.empty((_WAITING, 2), np.int64)
    count = 0
    doubtful: Any = 0
    for i in range(height):
        for first in range(max(0, i + 1 - begin), width, _CHUNK):
            end = min(first + _CHUNK, width)
            line, below = values[i, first:end], column[first:end]
            positive, close = np.int16(0), np.int16(0)
            for j in range(len(line)):
                flag = np.int16(line[j] > 0)
                positive = np.int16(positive + flag)
                below[j] = np.int16(below[j] + flag)
                close = np.int16(close + np.int16(np.int16(line[j] & most) <= close_to))
            counts[i] += np.int32(positive)
            if close == 0:
                continue
            if count + close > _WAITING:
                count = decide(values, waiting[:count], rows, length, tol, begin, counts)
            doubtful += np.int64(close)
            for j in range(len(line)):
                if np.int16(line[j] & most) <= close_to:
                    waiting[count, 0], waiting[count, 1] = i, first + j
                    count += 1
        if i & 0x3FFF == 0x3FFF or i == height - 1:
            for j in range(width):
                counts[begin + j] += np.int32(column[j])
                column[j] = 0
    decide(values, waiting[:count], rows, length, tol, begin, counts)
    return doubtful


@loops()
def lowest(counts: Any, k: int) -> Any:
    """The k patches (K,) of lowest count, in its order; of equal ones the first comes first."""
    n = len(counts)
    starts = np.zeros(n + 1, np.int64)
    for count in counts:
        starts[count + 1] += 1
    for value in range(n):
        starts[value + 1] += starts[value]
    order = np.empty(n, np.int64)
    for i in range(n):
        order[starts[counts[i]]] = i
        starts[counts[i]] += 1
    return order[:k]


@loops()
def grow(rows: Any, length: Any, tol: float, picked: Any, most: Any, total: Any, mask: Any) -> None:  # fmt: skip
    """Fill the sum (h, w) float32 of the helpers' rows of A, over most^2, and the object (h, w) bool, its piece with the seed.

    picked: the patches of lowest degree; the first is the seed, and those with a positive product with it help. Sums within `tol`
    times the length of their row of zero are decided in float64.
    """
    height, width = mask.shape
    seed = picked[0]
    together = np.zeros(rows.shape[1])
    for i in picked:
        if i == seed or product(rows[i], rows[seed]) > 0:
            for d in range(rows.shape[1]):
                together[d] += np.float64(rows[i, d] / most)
    size = np.sqrt(product(together, together))
    size = size if size > 0 else 1.0
    rough = np.empty(rows.shape[1], np.float32)
    for d in range(rows.shape[1]):
        together[d] /= size
        rough[d] = np.float32(together[d])
    positive = np.zeros(height * width, np.bool_)
    for i in range(height * width):
        share: Any = np.float64(rough_product(rows[i], rough))
        if not abs(share) > tol * length[i]:
            share = product(rows[i], together)
        positive[i] = share > 0
        total[i // width, i % width] = share * size / most
    positive[seed] = False
    todo = np.empty(height * width, np.int64)
    todo[0] = seed
    count = 1
    while count:
        count -= 1
        at = todo[count]
        y, x = at // width, at % width
        mask[y, x] = True
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                other = (y + dy) * width + x + dx
                if positive[other]:
                    positive[other] = False
                    todo[count] = other
                    count += 1
