"""Features of pictures that were learned from small patches of such pictures, without labels or any downloaded network.

Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011: whitened patches, k-means, and how
much nearer than usual each centre is, averaged over the four quarters of a picture. `patch_kid` is KID on them. It is beside KID on
Inception's features and not instead of it: numbers compare only where the dictionary was learned from the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selftaught.measure.frechet import kid

Array = np.ndarray
FEWEST = 8
"""Fewest pictures that a dictionary is learned from."""


@dataclass(frozen=True)
class PatchDictionary:
    """Centres (K, D) of whitened patches of `size` x `size` pixels, D = 3 size^2; `whiten` (D, D) and `mean` (D,) lead there."""

    size: int
    mean: Tensor
    whiten: Tensor
    centres: Tensor

    @staticmethod
    def learned(pictures: Any, size: int = 6, count: int = 48, seed: int = 0, patches: int = 20_000, rounds: int = 12) -> PatchDictionary:
        """From pictures (N, 3, S, S) in [0, 1]; ValueError for fewer than `FEWEST`, or smaller than two patches."""
        x = _checked(pictures, size)
        if len(x) < FEWEST:
            raise ValueError(f"expected at least {FEWEST} pictures to learn from, got {len(x)}")
        made = torch.Generator().manual_seed(seed)
        each = max(patches // len(x), 1)
        place = torch.randint((x.shape[-2] - size + 1) * (x.shape[-1] - size + 1), (len(x), each), generator=made)
        rows = torch.cat([_patches(one[None], size)[0][at] for one, at in zip(x, place, strict=True)])
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        whiten = vectors * (values.clamp_min(0) + 1e-3).rsqrt() @ vectors.T  # as of noise of 8 steps in 255
        rows = (rows - mean) @ whiten
        centres = rows[torch.randperm(len(rows), generator=made)[:count]]
        for _ in range(rounds):
            nearest = torch.cdist(rows, centres).argmin(1)
            total = torch.zeros_like(centres).index_add_(0, nearest, rows)
            number = torch.bincount(nearest, minlength=len(centres))[:, None]
            centres = torch.where(number > 0, total / number.clamp_min(1), centres)
        return PatchDictionary(size, mean, whiten, centres)

    def features(self, pictures: Any) -> Array:
        """(N, 3, S, S) in [0, 1] to (N, 4 K) float64."""
        found = []
        for x in _checked(pictures, self.size).split(32):
            high, wide = (side - self.size + 1 for side in x.shape[-2:])
            away = torch.cdist((_patches(x, self.size) - self.mean) @ self.whiten, self.centres)
            near = (away.mean(2, keepdim=True) - away).clamp_min(0)
            maps = near.transpose(1, 2).reshape(len(x), -1, high, wide)
            found.append(functional.adaptive_avg_pool2d(maps, 2).flatten(1).double().numpy())
        return np.concatenate(found)


def patch_kid(real: Any, made: dict[str, Any], parts: int = 5, seed: int = 0) -> dict[str, Array]:
    """KID (parts,) of each set of made pictures (N, 3, S, S) against as many real ones, on features learned from the real ones.

    Every part compares other pictures, so that an interval can be given. "real" is that of two halves of each part of the real ones: what
    cannot be told from them is about there, near 0. Features are scaled to a mean square of 1.
    """
    dictionary = PatchDictionary.learned(real, seed=seed)
    first = dictionary.features(real)
    scale = np.sqrt((first**2).mean()).clip(min=1e-12)
    found = {"real": np.array([kid(first[i :: 2 * parts] / scale, first[i + parts :: 2 * parts] / scale) for i in range(parts)])}
    for name, pictures in made.items():
        second = dictionary.features(pictures)
        found[name] = np.array([kid(first[i::parts] / scale, second[i::parts] / scale) for i in range(parts)])
    return found


def _patches(x: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) to (N, places, 3 size^2)."""
    return functional.unfold(x, size).transpose(1, 2)


def _checked(pictures: Any, size: int) -> Tensor:
    x = torch.as_tensor(np.asarray(pictures), dtype=torch.float32)
    if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < 2 * size or not bool(x.isfinite().all()):
        raise ValueError(f"expected finite pictures (N, 3, H, W) of at least {2 * size} pixels, got {tuple(x.shape)}")
    return x
