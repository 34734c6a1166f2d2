"""Distances between sets of feature vectors: Frechet distance and KID.

Frechet distance of Gaussians: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017 (FID), and Unterthiner et
al., 2018 (FVD). KID: Binkowski et al., "Demystifying MMD GANs", ICLR 2018, the unbiased estimate with the cubic kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def frechet_distance(first: Any, second: Any, ridge: float = 1e-6) -> float:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of (N, D) and (M, D) vectors, float64.

    The root's trace is that of the eigenvalues' roots of S_1^(1/2) S_2 S_1^(1/2), which is symmetric, so that nothing becomes complex.
    With fewer vectors than dimensions the distance is biased upwards: compare only at equal numbers. Raises ValueError for fewer than two.
    """
    a, b = _rows(first), _rows(second)
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected two sets of at least two vectors of one width, got {a.shape} and {b.shape}")
    if a.shape == b.shape and np.array_equal(a, b):
        return 0.0
    eye = ridge * np.eye(a.shape[1])
    s, t = (np.atleast_2d(np.cov(x, rowvar=False)) + eye for x in (a, b))
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ t @ root), 0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * trace)


def kid(first: Any, second: Any) -> float:
    """Unbiased squared maximum mean discrepancy with k(x, y) = (x.y / D + 1)^3 of (N, D) and (M, D) vectors; may be below zero."""
    a, b = _rows(first), _rows(second)
    n, m, d = len(a), len(b), a.shape[1]
    if min(n, m) < 2 or b.shape[1] != d:
        raise ValueError(f"expected two sets of at least two vectors of one width, got {a.shape} and {b.shape}")
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    return float((aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1)) - 2 * ab.mean())


def motion_vectors(clips: Any, reach_px: int = 8) -> np.ndarray:
    """Hand-made motion descriptors (N, 16 + 4) of clips (N, T, C, H, W) in [0, 1]: no weights, blind to what frames look like.

    A histogram of the robustly matched shifts of four quarters of the frame from frame to frame (8 directions, by size), and mean and
    standard deviation of their components. For `motion_frechet`, which is beside FVD and not instead of it.
    """
    import torch

    from selftaught.nets.phase_correlation import robust_match

    x = torch.as_tensor(np.asarray(clips), dtype=torch.float32)
    N, T, _, H, W = x.shape
    a, b = x[:, :-1].flatten(0, 1) * 2 - 1, x[:, 1:].flatten(0, 1) * 2 - 1
    reach = min(reach_px, (min(H, W) // 2 - 1) // 2)
    quarters = [(slice(r * (H // 2), (r + 1) * (H // 2)), slice(c * (W // 2), (c + 1) * (W // 2))) for r in (0, 1) for c in (0, 1)]
    matched = torch.stack([robust_match(a[:, :, y, z], b[:, :, y, z], reach) for y, z in quarters], 1)
    d = matched.unflatten(0, (N, T - 1)).flatten(1, 2).numpy()
    size = np.linalg.norm(d, axis=-1)
    way = np.round(np.arctan2(d[..., 1], d[..., 0]) / (np.pi / 4)).astype(int) % 8
    cell = np.where(size == 0, -1, way + 8 * (size > reach / 2))
    histogram = np.stack([(cell == k).mean(1) for k in range(16)], 1)
    return np.concatenate([histogram, d.mean(1), d.std(1)], 1)


def motion_frechet(first: Any, second: Any, reach_px: int = 8) -> float:
    """Frechet distance of `motion_vectors` of two sets of clips: sees motion only."""
    return frechet_distance(motion_vectors(first, reach_px), motion_vectors(second, reach_px))


def _rows(vectors: Any) -> np.ndarray:
    x = np.asarray(vectors, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"expected finite (N, D) vectors, got {x.shape}")
    return x
