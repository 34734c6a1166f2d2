"""LOST's loops, compiled: rows in bf16 with the error that this makes, counts of positive products, and the growing.

Imported only where numba is. The same answers as `nets/positive_products.py` and `segmentation/lost.py` give without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.nets.compiled import loops

_CHUNK = 128
"""Products that are looked at at once; only where one of them is doubtful they are looked at one by one."""

@loops(any_order=True)
def halves(rows: Any, half: Any, length: Any, error: Any) -> Any:
    """Of rows (N, D) float32 fill the lengths (N,) float64, the rows scaled to length 1 as the bits of bf16 (N, D) int16, and
    how long what bf16 leaves out of each is (N,) float64. Returns the size of the largest feature.
    """
    n, width = rows.shape
    unit, back = np.empty(width, np.float32), np.empty(width, np.uint32)
    bits, kept = unit.view(np.uint32), back.view(np.float32)
    largest = np.zeros(1, np.uint32)
    for i in range(n):
        row, out = rows[i], half[i]
        square = 0.0
        for d in range(width):
            square += np.float64(row[d]) * np.float64(row[d])
        length[i] = np.sqrt(square)
        scale = np.float32(1.0 / length[i]) if square > 0 else np.float32(0)
        for d in range(width):
            unit[d] = row[d] * scale
        plain = row.view(np.uint32)
        most = np.uint32(0)
        for d in range(width):  # sizes of floats are ordered as the integers of their bits
            most = max(most, np.uint32(plain[d] & np.uint32(0x7FFFFFFF)))
        largest[0] = max(largest[0], most)
        for d in range(width):  # to the nearest, ties to even
            short = (bits[d] + np.uint32(0x7FFF) + ((bits[d] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            out[d] = np.int16(short)
            back[d] = np.uint32(short << np.uint32(16))
        lost = np.float32(0)
        for d in range(width):
            lost += (unit[d] - kept[d]) * (unit[d] - kept[d])
        error[i] = np.sqrt(np.float64(lost))
    return largest.view(np.float32)[0]


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
def count_block(  # fmt: skip
    values: Any, near: int, rows: Any, length: Any, tol: float, top: int, counts: Any
) -> int:
    """Add to counts (N,) int32 the positive products above the diagonal of one block, for both of each pair.

    values: (H, W), the bits of the products of rows top .. top+H with rows top .. top+W. Those within `near` (bits) of zero are
    decided in float32 from `rows`, those within `tol` times the lengths of zero in float64. Returns how many were near.
    """
    height, width = values.shape
    close_to = np.int16(near)
    most = np.int16(0x7FFF)
    doubtful: Any = 0
    for i in range(height):
        this = rows[top + i]
        for begin in range(i + 1, width, _CHUNK):
            end = min(begin + _CHUNK, width)
            line, column = values[i, begin:end], counts[top + begin : top + end]
            positive, close = np.int32(0), np.int32(0)
            for j in range(len(line)):
                flag = np.int32(line[j] > 0)
                positive += flag
                column[j] += flag
                close += np.int32(np.int16(line[j] & most) <= close_to)
            counts[top + i] += positive
            if close == 0:
                continue
            doubtful += close
            for j in range(len(line)):
                if np.int16(line[j] & most) <= close_to:
                    at = top + begin + j
                    value: Any = np.float64(rough_product(this, rows[at]))
                    if not abs(value) > tol * length[top + i] * length[at]:
                        value = product(this, rows[at])
                    change = np.int32(value > 0) - np.int32(line[j] > 0)
                    counts[top + i] += change
                    column[j] += change
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
def grow(rows: Any, picked: Any, most: Any, total: Any, mask: Any) -> None:
    """Fill the sum (h, w) float32 of the helpers' rows of A, over most^2, and the object (h, w) bool, its piece with the seed.

    picked: the patches of lowest degree; the first is the seed, and those with a positive product with it help.
    """
    height, width = mask.shape
    seed = picked[0]
    together = np.zeros(rows.shape[1])
    for i in picked:
        if i == seed or product(rows[i], rows[seed]) > 0:
            for d in range(rows.shape[1]):
                together[d] += np.float64(rows[i, d] / most)
    positive = np.zeros(height * width, np.bool_)
    for i in range(height * width):
        share = product(rows[i], together)
        positive[i] = share > 0
        total[i // width, i % width] = share / most
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
