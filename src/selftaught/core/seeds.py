"""Randomness as a function of (seed, rank, step), so that a resumed run is the same run."""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from selftaught.core.errors import ConfigError, DataError


def step_seed(seed: int, rank: int, step: int) -> int:
    """Return the 63-bit seed of one step on one rank: a hash, so near steps and ranks share nothing."""
    return _hash63(f"step:{seed}:{rank}:{step}")


def seed_all(seed: int, rank: int, step: int) -> int:
    """Seed torch, numpy and python from `step_seed` and return it."""
    import torch

    value = step_seed(seed, rank, step)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    return value


def epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of samples in one epoch: a permutation of 0..n-1, int64 (n,).

    Raises DataError when n < 1.
    """
    if n < 1:
        raise DataError("There are no samples to order.", expected="at least one sample", do="Give other data.")
    return _order(int(n), int(seed), int(epoch)).copy()


def batch_indices(n: int, batch: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Return the sample indices of global step `step`, int64 (batch,).

    Epochs lie one behind the other without a border: step s covers positions s*batch to (s+1)*batch - 1, so nothing is
    dropped and a batch larger than the data wraps through several epochs. Raises DataError when n < 1, ConfigError when
    batch < 1 or step < 0.
    """
    if n < 1:
        raise DataError("There are no samples to draw from.", expected="at least one sample", do="Give other data.")
    if batch < 1:
        raise ConfigError(f"The batch size is {batch}.", expected="at least 1")
    if step < 0:
        raise ConfigError(f"The step is {step}.", expected="0 or more")
    start, stop = int(step) * int(batch), (int(step) + 1) * int(batch)
    pieces = []
    for epoch in range(start // n, (stop - 1) // n + 1):
        first = epoch * n
        pieces.append(_order(int(n), int(seed), epoch)[max(start - first, 0) : min(stop - first, n)])
    return np.concatenate(pieces)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # RandomState's stream is frozen for ever (NEP 19), that of numpy's newer Generator is not.
    value = _hash63(f"epoch:{seed}:{epoch}")
    state = np.random.RandomState([value & 0xFFFFFFFF, value >> 32])
    order = state.permutation(n).astype(np.int64)
    order.setflags(write=False)
    return order


def _hash63(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
