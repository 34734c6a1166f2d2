"""Scores of frozen features: weighted kNN, linear probe, ranks, and the two features every method must beat.

Features are (N, D) arrays or tensors, labels (N,) of any type. Probe settings are chosen on the training set only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selftaught.measure.pairs import as_array
from selftaught.measure.pixels import hog, raw_pixels
from selftaught.measure.score import Score, score_of

__all__ = [
    "Probe",
    "alignment_uniformity",
    "clip_k",
    "effective_rank",
    "feature_scores",
    "hog",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "normalise",
    "rank_me",
    "raw_pixels",
]

KNN_CONVENTIONS = {"knn20": (20, 0.07), "knn200": (200, 0.1)}
C_GRID = (1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2)
_CHUNK = 1024


def _features(features: Any, what: str) -> np.ndarray:
    array = as_array(features)
    if array.ndim != 2 or len(array) == 0:
        raise ValueError(f"{what}: expected (N, D) with N > 0, got shape {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(f"{what}: expected finite numbers, got NaN or infinity in row {int(np.argmax(bad))}")
    return array


def _set(features: Any, labels: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    array, names = _features(features, what), as_array(labels)
    if names.shape != (len(array),):
        raise ValueError(
            f"{what}: expected {len(array)} labels for {len(array)} rows, got labels of shape {names.shape}"
        )
    return array, names


def _same_width(first: np.ndarray, second: np.ndarray, what: str) -> None:
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{what}: expected features of one width, got {first.shape[1]} and {second.shape[1]}")


def normalise(features: Any) -> np.ndarray:
    """(N, D) float32 rows of length 1; a row of zeros stays zero."""
    array = _features(features, "features")
    length = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.where(length > 0, length, 1)


def clip_k(k: int, labels: Any) -> int:
    """k, at most a fifth of the mean number of items per class and at least 1: with more, the vote favours large
    classes.
    """
    names = as_array(labels)
    return max(1, min(k, len(names) // (5 * len(np.unique(names)))))


def knn_predict(bank: Any, bank_labels: Any, query: Any, k: int = 20, temperature: float = 0.07) -> np.ndarray:
    """(M,) labels voted for by the k nearest of the bank by cosine, votes weighted by exp(cosine / temperature).

    The estimator of InstDisc (Wu et al. 2018, eq. 8 ff.) and DINO (Caron et al. 2021); bank (N, D), query (M, D). k
    above N is N. Equal votes go to the label that sorts first. Memory: 1024 x N floats.
    """
    rows, names = _set(bank, bank_labels, "bank")
    wanted = _features(query, "query")
    _same_width(rows, wanted, "knn")
    if k < 1 or not temperature > 0:
        raise ValueError(f"knn: expected k >= 1 and temperature > 0, got k={k}, temperature={temperature}")
    k = min(k, len(rows))
    classes, codes = np.unique(names, return_inverse=True)
    keys, queries = normalise(rows).T, normalise(wanted)
    winners = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _CHUNK):
        cosine = queries[start : start + _CHUNK] @ keys
        nearest = np.argpartition(cosine, -k, axis=1)[:, -k:]
        close = np.take_along_axis(cosine, nearest, axis=1).astype(np.float64)
        # Weights relative to the best one: exp(1 / temperature) overflows for small temperatures.
        weights = np.exp((close - close.max(axis=1, keepdims=True)) / temperature)
        cells = np.arange(len(cosine))[:, None] * len(classes) + codes[nearest]
        votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(cosine) * len(classes))
        winners[start : start + _CHUNK] = votes.reshape(len(cosine), len(classes)).argmax(axis=1)
    return classes[winners]


def knn_accuracy(
    bank: Any,
    bank_labels: Any,
    query: Any,
    query_labels: Any,
    k: int = 20,
    temperature: float = 0.07,
    clip: bool = True,
) -> np.ndarray:
    """(M,) bool: is the vote of `knn_predict` right; the mean is kNN accuracy.

    Conventions: (k 20, temperature .07) of DINO, (200, .1) of InstDisc. `clip` applies `clip_k`. Chance: share of the
    largest class.
    """
    wanted, truth = _set(query, query_labels, "query")
    used = clip_k(k, bank_labels) if clip else k
    return knn_predict(bank, bank_labels, wanted, used, temperature) == truth


@dataclass(frozen=True)
class Probe:
    """What a linear probe found: `correct` (M,) bool, the `c` chosen, how many training rows, if it converged."""

    correct: np.ndarray
    c: float
    n_train: int
    converged: bool

    @property
    def note(self) -> str:
        """One line for the Score."""
        return f"C={self.c:g}, {self.n_train} training rows" + ("" if self.converged else ", iterations capped")


def linear_probe(
    train: Any,
    train_labels: Any,
    test: Any,
    test_labels: Any,
    *,
    c_grid: tuple[float, ...] = C_GRID,
    max_train: int = 10_000,
    max_iter: int = 200,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression on frozen features, without augmentation (usually 0.5 to 1.5 points below with).

    Standardised by training statistics; C (the inverse of the L2 strength) by accuracy on a fifth of the training set,
    taken class by class, the smallest C of equal ones, the search ends after two in a row below the best; then refitted
    on all of it. L-BFGS with at most `max_iter` iterations; a training set above `max_train` is subsampled. A pure
    function of its arguments. ValueError for fewer than two classes.
    """
    rows, names = _set(train, train_labels, "train")
    wanted, truth = _set(test, test_labels, "test")
    _same_width(rows, wanted, "linear probe")
    rng = np.random.default_rng(seed)
    if len(rows) > max_train:
        kept = np.sort(rng.choice(len(rows), max_train, replace=False))
        rows, names = rows[kept], names[kept]
    if len(np.unique(names)) < 2:
        raise ValueError(f"linear probe: expected at least two classes in the training labels, got {np.unique(names)}")
    mean, spread = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    spread = np.where(spread > 1e-6, spread, 1.0)
    rows, wanted = ((rows - mean) / spread).astype(np.float32), ((wanted - mean) / spread).astype(np.float32)
    held = _held_out(names, rng)
    best = 1.0
    if held.any() and len(np.unique(names[~held])) >= 2:
        right = _grid_accuracy(rows[~held], names[~held], rows[held], names[held], c_grid, max_iter)
        best = c_grid[int(np.argmax(right))]
    model, converged = _fit(rows, names, best, max_iter)
    return Probe(model.predict(wanted) == truth, float(best), len(rows), converged)


def _held_out(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool: a fifth of each class, rounded down, so that a class of fewer than five stays in training."""
    held = np.zeros(len(labels), bool)
    for name in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == name))
        held[members[: len(members) // 5]] = True
    return held


def _fit(rows: np.ndarray, labels: np.ndarray, c: float, max_iter: int, model: Any = None) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = model or LogisticRegression(max_iter=max_iter, warm_start=True)
    model.C = c
    # One thread: the same sums on any machine, and at these sizes less time than two threads that wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels)
    return model, bool(np.max(model.n_iter_) < max_iter)


def _grid_accuracy(
    rows: np.ndarray,
    labels: np.ndarray,
    held: np.ndarray,
    held_labels: np.ndarray,
    c_grid: tuple[float, ...],
    max_iter: int,
) -> list[float]:
    """Accuracy on the held-out rows for each C; each fit starts where the one before ended, which saves most
    iterations.
    """
    model = None
    right: list[float] = []
    for c in c_grid:
        model, _ = _fit(rows, labels, c, max_iter, model)
        right.append(float(np.mean(model.predict(held) == held_labels)))
        # Two in a row below the best so far: the weaker penalties to come only overfit more, and cost the most.
        if len(right) > 2 and max(right[-2:]) < max(right):
            break
    return right


def _singular_values(array: np.ndarray) -> np.ndarray:
    """(min(N, D),) singular values of a float64 (N, D) matrix, to about 1e-8 of the largest."""
    # From the smaller Gram matrix: an SVD of the tall matrix costs 50 times as much, and eps hides what is lost.
    gram = array.T @ array if array.shape[0] > array.shape[1] else array @ array.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))


def _entropy_rank(values: np.ndarray, eps: float) -> float:
    total = values.sum()
    if total == 0:
        return 0.0
    share = values / total + eps
    share = share[share > 0]
    return float(math.exp(-(share * np.log(share)).sum()))


def rank_me(features: Any, eps: float = 1e-7) -> float:
    """RankMe: exp of the entropy of the singular values of the (N, D) features, 1 to about min(N, D); 0 if all are
    zero.

    Garrido et al. 2023, eq. 1 (not centred, eps added to each share). Compares runs of one method and width; N should
    be several times D.
    """
    return _entropy_rank(_singular_values(_features(features, "features").astype(np.float64)), eps)


def effective_rank(features: Any) -> float:
    """Effective rank (Roy & Vetterli 2007, eq. 4) of the centred (N, D) features: `rank_me` without the mean and the
    eps.
    """
    array = _features(features, "features").astype(np.float64)
    return _entropy_rank(_singular_values(array - array.mean(axis=0)), 0.0)


def alignment_uniformity(first: Any, second: Any, max_rows: int = 4096) -> tuple[float, float]:
    """(alignment, uniformity) of two views' (N, D) features, rows made unit length (Wang & Isola 2020, eq. 1 and 2).

    Alignment: mean squared distance of the two views of one picture, 0 to 4, lower is better. Uniformity: log of the
    mean of exp(-2 d^2) over pairs of different pictures of the first view (the first `max_rows`), at most 0, lower is
    better.
    """
    a, b = normalise(first).astype(np.float64), normalise(second).astype(np.float64)
    if a.shape != b.shape:
        raise ValueError(f"alignment: expected two views of the same pictures, got {a.shape} and {b.shape}")
    alignment = float(((a - b) ** 2).sum(axis=1).mean())
    a = a[:max_rows]
    if len(a) < 2:
        return alignment, math.nan
    length = (a**2).sum(axis=1)
    distance = np.maximum(length[:, None] + length[None, :] - 2 * a @ a.T, 0)
    others = np.exp(-2 * distance).sum() - len(a)
    return alignment, float(np.log(max(others, np.finfo(float).tiny) / (len(a) * (len(a) - 1))))


def feature_scores(
    embed_train: Any,
    labels_train: Any,
    embed_test: Any,
    labels_test: Any,
    baselines: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores "knn20", "knn200" and "linear_probe": shares right of the test set.

    baselines: name -> (train features, test features) of the same pictures, measured the same way ("raw_pixels", "hog",
    "untrained"). The k that was used after clipping is in the note.
    """
    train, names = _set(embed_train, labels_train, "embed_train")
    test, truth = _set(embed_test, labels_test, "embed_test")
    others = dict(baselines or {})
    scores: dict[str, Score] = {}
    for key, (k, temperature) in KNN_CONVENTIONS.items():
        used = clip_k(k, names)
        note = f"k={used}, temperature {temperature}" + (
            f" (k clipped from {k}: images per class / 5)" if used < k else ""
        )
        beside = {
            name: knn_accuracy(bank, names, query, truth, used, temperature, clip=False).mean()
            for name, (bank, query) in others.items()
        }
        correct = knn_accuracy(train, names, test, truth, used, temperature, clip=False)
        scores[key] = score_of(correct, unit="share right", baselines=beside, note=note)
    probe = linear_probe(train, names, test, truth, seed=seed)
    beside = {name: linear_probe(a, names, b, truth, seed=seed).correct.mean() for name, (a, b) in others.items()}
    scores["linear_probe"] = score_of(probe.correct, unit="share right", baselines=beside, note=probe.note)
    return scores
