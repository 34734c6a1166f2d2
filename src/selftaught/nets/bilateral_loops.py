"""The bilateral solver's passes, compiled: cells, their neighbours, bistochastisation, conjugate gradients, slicing, and the
largest filled piece. Imported only where numba is; the formulas are those of `nets/bilateral.py`, sums are added in another order.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selftaught.nets.compiled import loops

_KEPT_CELLS = 2**22
"""Largest table that a thread keeps for its next picture (16 MB); clearing the cells that were used is all it then needs."""
_own = threading.local()


def empty_table(total: int) -> NDArray[np.int32]:
    """A table of `total` cells at least, all -1; `grid` leaves it so."""
    table: NDArray[np.int32] | None = getattr(_own, "table", None)
    if table is None or len(table) < total:
        table = np.full(max(total, 2**20), -1, np.int32)
        if len(table) <= _KEPT_CELLS:
            _own.table = table
    return table


@loops()
def grid(packed: Any, strides: Any, table: Any) -> Any:
    """Number the cells as they come, and find their neighbours and the weights that make the blur bistochastic.

    Returns the cell of every pixel (P,) int32, pixels per cell (V,), the neighbours of all cells one after the other (E,) int32
    with where those of each begin (V+1,) int32, n (V,) and m (V,).
    """
    cell = np.empty(len(packed), np.int32)
    keys = np.empty(min(len(packed), len(table)), np.int64)
    size = 0
    last, here = np.int64(-1), np.int32(-1)
    many = np.empty(len(keys), np.int64)
    begin = 0
    for p in range(len(packed)):
        if packed[p] != last:
            if p:
                many[here] += p - begin
            begin, last = p, packed[p]
            here = table[last]
            if here < 0:
                here = np.int32(size)
                table[last] = here
                keys[size], many[size] = last, 0
                size += 1
        cell[p] = here
    many[here] += len(packed) - begin
    count = many[:size].astype(np.float64)
    starts = np.empty(size + 1, np.int32)
    neighbours = np.empty(2 * len(strides) * size, np.int32)
    edges = 0
    for v in range(size):
        starts[v] = edges
        for axis in range(len(strides)):
            for step in (-strides[axis], strides[axis]):
                other = table[keys[v] + step]
                if other >= 0:
                    neighbours[edges] = other
                    edges += 1
    starts[size] = edges
    for v in range(size):
        table[keys[v]] = -1
    neighbours = neighbours[:edges].copy()
    n, m = bistochastic(count, starts, neighbours, 2.0 * len(strides))
    return cell, count, starts, neighbours, n, m


@loops()
def bistochastic(count: Any, starts: Any, neighbours: Any, middle: float) -> Any:
    """n and m, so that Dn B Dn has row sums m, after ten steps."""
    size = len(count)
    n, blurred = np.ones(size), np.empty(size)
    for step in range(11):
        for v in range(size):
            total = middle * n[v]
            for e in range(starts[v], starts[v + 1]):
                total += n[neighbours[e]]
            blurred[v] = total
        if step < 10:
            for v in range(size):
                n[v] = np.sqrt(n[v] * count[v] / blurred[v])
    return n, n * blurred


@loops()
def splat(values: Any, cell: Any, size: int) -> Any:
    """Sums (V,) of the pixels' values (P,) in each cell."""
    total = np.zeros(size)
    for p in range(len(values)):
        total[cell[p]] += values[p]
    return total


@loops()
def sliced(values: Any, cell: Any) -> Any:
    """Each pixel's value (P,) of its cell's (V,)."""
    out = np.empty(len(cell))
    for p in range(len(cell)):
        out[p] = values[cell[p]]
    return out


@loops(any_order=True)
def times(x: Any, out: Any, scaled: Any, diagonal: Any, n: Any, lam: float, starts: Any, neighbours: Any) -> float:
    """Fill out (V,) with (diag(diagonal) - lam Dn (B - 10) Dn) x and return x . out; scaled (V,) is for n x."""
    both = 0.0
    for v in range(len(x)):
        scaled[v] = n[v] * x[v]
    for v in range(len(x)):
        total = 0.0
        for e in range(starts[v], starts[v + 1]):
            total += scaled[neighbours[e]]
        out[v] = diagonal[v] * x[v] - lam * n[v] * total
        both += x[v] * out[v]
    return both


@loops(any_order=True)
def conjugate_gradients(
    x: Any, right: Any, diagonal: Any, inverse: Any, n: Any, lam: float, starts: Any, neighbours: Any, steps: int, tol: float
) -> None:
    """Move x (V,) towards the solution, with the preconditioner `inverse`; at most `steps` steps."""
    size = len(x)
    image, direction, residual, scaled = np.empty(size), np.zeros(size), np.empty(size), np.empty(size)
    times(x, image, scaled, diagonal, n, lam, starts, neighbours)
    norm, enough, now, before = 0.0, 0.0, 0.0, 1.0
    for v in range(size):
        residual[v] = right[v] - image[v]
        norm += residual[v] * residual[v]
        enough += right[v] * right[v]
        now += residual[v] * inverse[v] * residual[v]
    enough = tol * np.sqrt(enough)
    for step in range(steps):
        if np.sqrt(norm) <= enough:
            break
        again = now / before if step else 0.0
        for v in range(size):
            direction[v] = again * direction[v] + inverse[v] * residual[v]
        length = now / times(direction, image, scaled, diagonal, n, lam, starts, neighbours)
        before, now, norm = now, 0.0, 0.0
        for v in range(size):
            x[v] += length * direction[v]
            residual[v] -= length * image[v]
            norm += residual[v] * residual[v]
            now += residual[v] * inverse[v] * residual[v]


@loops()
def find(parent: Any, run: int) -> int:
    """The first run of the piece that a run is in."""
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@loops()
def join(parent: Any, a: int, b: int) -> None:
    a, b = find(parent, a), find(parent, b)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b


@loops()
def join_rows(parent: Any, kind: Any, end: Any, first: Any) -> None:
    """Join the runs of one kind that touch from one row to the next.

    kind, end: of every run; first (H+1,): the first run of each row. Runs of a row follow each other without gaps.
    """
    for y in range(len(first) - 2):
        above, below = first[y], first[y + 1]
        while above < first[y + 1] and below < first[y + 2]:
            if kind[above] == kind[below]:
                join(parent, above, below)
            if end[above] < end[below]:
                above += 1
            elif end[above] > end[below]:
                below += 1
            else:
                above += 1
                below += 1


@loops()
def runs_of(values: Any, level: float) -> Any:
    """Cut the rows of (H, W) into runs of above and not above `level`: kind (R,) bool, end (R,), first run of each row (H+1,)."""
    height, width = values.shape
    first = np.empty(height + 1, np.int64)
    count: Any = 0
    for y in range(height):
        count += 1
        line = values[y]
        for x in range(1, width):
            count += np.int64((line[x] > level) != (line[x - 1] > level))
    kind, end = np.empty(count, np.bool_), np.empty(count, np.int64)
    count = 0
    for y in range(height):
        first[y] = count
        line = values[y]
        for x in range(1, width):
            if (line[x] > level) != (line[x - 1] > level):
                kind[count], end[count] = line[x - 1] > level, x
                count += 1
        kind[count], end[count] = line[width - 1] > level, width
        count += 1
    first[height] = count
    return kind, end, first


@loops()
def fill_holes(kind: Any, end: Any, first: Any, parent: Any, width: int) -> None:
    """Set kind (R,) of the runs of holes, the pieces of False that do not reach the border of the picture."""
    height = len(first) - 1
    outside = np.zeros(len(kind), np.bool_)
    for y in range(height):
        for run in range(first[y], first[y + 1]):
            at_side = run == first[y] or end[run] == width
            if not kind[run] and (y == 0 or y == height - 1 or at_side):
                outside[find(parent, run)] = True
    for run in range(len(kind)):
        kind[run] = kind[run] or not outside[find(parent, run)]


@loops()
def largest_filled(values: Any, level: float, kept: Any) -> None:
    """Mark in kept (H, W) bool the largest piece (4 neighbours) of what is above `level`, its holes filled; the first of equal."""
    kind, end, first = runs_of(values, level)
    count, height = len(kind), values.shape[0]
    parent = np.arange(count)
    join_rows(parent, kind, end, first)
    fill_holes(kind, end, first, parent, values.shape[1])
    begin = np.zeros(count, np.int64)
    parent[:] = np.arange(count)
    for y in range(height):
        for run in range(first[y] + 1, first[y + 1]):
            begin[run] = end[run - 1]
            if kind[run] and kind[run - 1]:  # a hole and what is around it
                join(parent, run - 1, run)
    join_rows(parent, kind, end, first)
    pixels = np.zeros(count, np.int64)
    for run in range(count):
        if kind[run]:
            pixels[find(parent, run)] += end[run] - begin[run]
    best = np.argmax(pixels)
    for y in range(height):
        for run in range(first[y], first[y + 1]):
            kept[y, begin[run] : end[run]] = kind[run] and find(parent, run) == best


@loops()
def overlap(kept: Any, mask: Any) -> Any:
    """Pixels in both of (H, W) bool and the part of a mask above 0.5, and pixels in one of them at least."""
    both: Any = 0
    any_of: Any = 0
    for y in range(kept.shape[0]):
        for x in range(kept.shape[1]):
            inside = mask[y, x] > 0.5
            both += np.int64(kept[y, x] & inside)
            any_of += np.int64(kept[y, x] | inside)
    return both, any_of
