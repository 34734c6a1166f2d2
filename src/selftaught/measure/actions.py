"""Scores of discovered actions: codes against true actions, shifts against true motion, and what each action does.

Codes have no names, so groupings are compared; scikit-learn computes what the field computes with it. Every score that a trivial answer can
raise comes with that answer's value: random codes, k-means on the truth itself, the most frequent code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from selftaught.measure.clusters import contingency


@dataclass(frozen=True)
class Grouping:
    """How codes and true actions go together; `permuted_*` are the means over codes that were shuffled."""

    nmi: float
    ami: float
    homogeneity: float
    completeness: float
    purity: float
    permuted_nmi: float
    permuted_ami: float
    n: int


def grouping(labels: Any, codes: Any, seed: int = 0, rounds: int = 5) -> Grouping:
    """Normalised and adjusted mutual information (arithmetic means), homogeneity, completeness, purity of (N,) codes.

    NMI and purity grow with the number of codes even when they mean nothing; AMI is corrected for that (Vinh et al., JMLR 2010).
    Raises ValueError for lengths that differ or nothing at all.
    """
    from sklearn.metrics import (
        adjusted_mutual_info_score,
        homogeneity_completeness_v_measure,
        normalized_mutual_info_score,
    )

    table = contingency(labels, codes)  # checks both
    a, b = np.asarray(labels).ravel(), np.asarray(codes).ravel()
    homogeneity, completeness, _ = homogeneity_completeness_v_measure(a, b)
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(b) for _ in range(rounds)]
    return Grouping(
        float(normalized_mutual_info_score(a, b)), float(adjusted_mutual_info_score(a, b)), float(homogeneity), float(completeness),
        float(table.max(0).sum() / table.sum()), float(np.mean([normalized_mutual_info_score(a, s) for s in shuffled])),
        float(np.mean([adjusted_mutual_info_score(a, s) for s in shuffled])), len(a),
    )  # fmt: skip


def direction_right(found: Any, true: Any) -> np.ndarray:
    """(N,) float: 1 where (N, 2) motion found is within 45 degrees of the true one, 0 where not, NaN where nothing truly moves.

    GLASS's evaluation: cosine above 1 / sqrt 2; motion of no length is wrong.
    """
    a, b = _vectors(found), _vectors(true)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    right = (a * b).sum(1) > lengths / np.sqrt(2)
    return np.where(np.linalg.norm(b, axis=1) > 0, (right & (lengths > 0)).astype(float), np.nan)


def shift_error(found_px: Any, true_px: Any) -> np.ndarray:
    """(N,) Euclidean distance in pixels of (N, 2) motion found to the true one."""
    return np.linalg.norm(_vectors(found_px) - _vectors(true_px), axis=1)


def delta_mse(displacements: Any, codes: Any) -> float:
    """sum_a sum_{i in a} |d_i - mean_a|^2 / sum_i |d_i - mean|^2 of (N, D) displacements.

    0 when a code tells all of the motion, 1 when it tells nothing, NaN when nothing moves.
    """
    d, a = _vectors(displacements), np.asarray(codes).ravel()
    total = float(((d - d.mean(0)) ** 2).sum())
    within = sum(float(((d[a == k] - d[a == k].mean(0)) ** 2).sum()) for k in np.unique(a))
    return within / total if total > 0 else float("nan")


def delta_mse_bounds(displacements: Any, count: int, seed: int = 0) -> tuple[float, float]:
    """Floor and ceiling of `delta_mse` for `count` codes: k-means on the displacements themselves, and random codes."""
    d = _vectors(displacements)
    rng = np.random.default_rng(seed)
    return delta_mse(d, k_means_codes(d, count, seed)), delta_mse(d, rng.integers(count, size=len(d)))


def k_means_codes(vectors: Any, count: int, seed: int = 0) -> np.ndarray:
    """(N,) codes of (N, D) vectors by k-means; fewer where there are fewer different vectors."""
    from sklearn.cluster import KMeans

    v = _vectors(vectors)
    count = min(count, len(np.unique(v.round(6), axis=0)))
    return np.asarray(KMeans(count, n_init=10, random_state=seed).fit_predict(v))


def delta_acc(displacements: Any, codes: Any, seed: int = 0) -> float:
    """Share right of a linear support vector machine that tells the code from the displacement, on a held-out half of (N, D).

    The released code of CADDY trains and tests on the same transitions. With a single code 1, with a single transition NaN.
    """
    from sklearn.svm import LinearSVC

    d, a = _vectors(displacements), np.asarray(codes).ravel()
    if len(d) < 2:
        return float("nan")
    order = np.random.default_rng(seed).permutation(len(d))
    train, test = order[: len(d) // 2], order[len(d) // 2 :]
    if len(np.unique(a[train])) < 2:
        return float((a[test] == a[train][0]).mean())
    scale = d[train].std(0) + 1e-9
    machine = LinearSVC(random_state=seed, dual=False).fit(d[train] / scale, a[train])
    return float(machine.score(d[test] / scale, a[test]))


def delta_acc_bounds(displacements: Any, codes: Any, count: int, seed: int = 0) -> tuple[float, float]:
    """Floor and ceiling of `delta_acc`: the most frequent code for everything, and k-means on the displacements as codes."""
    a = np.asarray(codes).ravel()
    return float(np.bincount(a).max() / len(a)), delta_acc(displacements, k_means_codes(displacements, count, seed), seed)


def perplexity(codes: Any, count: int) -> float:
    """exp of the entropy of how often `count` codes are used: 1 for one code, `count` when all are used alike."""
    p = np.bincount(np.asarray(codes).ravel(), minlength=count) / max(np.asarray(codes).size, 1)
    some = p[p > 0]
    return float(np.exp(-(some * np.log(some)).sum()))


def dead_share(codes: Any, count: int, below: float = 0.01) -> float:
    """Share of `count` codes that are used in less than `below` of all cases."""
    p = np.bincount(np.asarray(codes).ravel(), minlength=count) / max(np.asarray(codes).size, 1)
    return float((p < below).mean())


def effect_separation(effects: Any) -> float:
    """Variance between actions over all variance, of effects (N, A, D): what each of A actions did from each of N same beginnings.

    1: the action alone decides; 0: actions do nothing of their own. NaN when nothing differs.
    """
    e = np.asarray(effects, np.float64)
    if e.ndim != 3 or not e.size:
        raise ValueError(f"expected effects (starts, actions, dimensions), got {e.shape}")
    mean = e.mean((0, 1))
    total = float(((e - mean) ** 2).sum())
    between = float(((e.mean(0) - mean) ** 2).sum()) * len(e)
    return between / total if total > 0 else float("nan")


def agreement(first: Any, second: Any) -> float:
    """Share of equal codes: of a clip and of the clip that was generated from its actions and parsed again."""
    a, b = np.asarray(first).ravel(), np.asarray(second).ravel()
    if len(a) != len(b) or not len(a):
        raise ValueError(f"expected as many codes in both, got {len(a)} and {len(b)}")
    return float((a == b).mean())


def _vectors(values: Any) -> np.ndarray:
    v = np.asarray(values, np.float64)
    if v.ndim < 2 or not v.size:
        raise ValueError(f"expected (N, D) vectors, got {v.shape}")
    return v.reshape(-1, v.shape[-1])
