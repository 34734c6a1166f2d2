"""Random numbers for the pictures of a batch that do not depend on how many processes the batch is divided over.

Every process draws for the whole batch, from one seed, and keeps the rows of its own pictures: numbers are cheap, pixels are not. Without a
`share` around (one process, or no training) the functions are torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from selftaught.core.launch import place

_share: tuple[int, slice] | None = None


@contextmanager
def share(total: int) -> Iterator[slice]:
    """Give this process's part of a batch of `total` pictures, and let all drawing in the block know of it."""
    global _share
    before = _share
    _share = (total, part_of(total))
    try:
        yield _share[1]
    finally:
        _share = before


def part_of(total: int) -> slice:
    """Which pictures of a batch are this process's: parts in the order of ranks whose sizes differ by at most one."""
    rank, world = place()
    small, larger = divmod(total, world)
    start = rank * small + min(rank, larger)
    return slice(start, start + small + (rank < larger))


def weight(total: int) -> float:
    """What a mean over this process's part counts in the mean over processes; 1 when all parts have one size."""
    mine = part_of(total)
    return (mine.stop - mine.start) * place()[1] / total


def rand(*shape: int, rows: int = 0, **options: Any) -> Tensor:
    """`torch.rand`, where dimension `rows` runs over pictures."""
    return _draw(lambda whole: torch.rand(whole, **options), shape, rows)


def randn(*shape: int, rows: int = 0, **options: Any) -> Tensor:
    """`torch.randn`, where dimension `rows` runs over pictures."""
    return _draw(lambda whole: torch.randn(whole, **options), shape, rows)


def randint(high: int, *shape: int, rows: int = 0, **options: Any) -> Tensor:
    """`torch.randint` from 0 to `high` - 1, where dimension `rows` runs over pictures."""
    return _draw(lambda whole: torch.randint(high, whole, **options), shape, rows)


def _draw(draw: Any, shape: tuple[int, ...], rows: int) -> Tensor:
    if _share is None or place()[1] == 1:
        return draw(shape)
    total, mine = _share
    rows %= len(shape)
    if shape[rows] != mine.stop - mine.start:
        raise ValueError(
            f"numbers are drawn for {shape[rows]} rows, but this process has {mine.stop - mine.start} pictures of the batch: "
            "draw for all of them and choose afterwards, or the numbers depend on the number of processes"
        )
    whole = draw((*shape[:rows], total, *shape[rows + 1 :]))
    return whole[(slice(None),) * rows + (mine,)]
