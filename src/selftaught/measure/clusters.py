"""Scores of groupings whose names mean nothing: clusters against labels, predicted segments against true objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.measure.boxes import instance_masks, mask_iou
from selftaught.measure.pairs import IGNORE, as_array


def contingency(first: Any, second: Any) -> np.ndarray:
    """(A, B) int64 table: how many items have the a-th name of `first` and the b-th of `second`; ValueError if lengths
    differ.
    """
    a, b = as_array(first).ravel(), as_array(second).ravel()
    if len(a) != len(b):
        raise ValueError(f"contingency: expected one name per item in both, got {len(a)} and {len(b)} items")
    if len(a) == 0:
        raise ValueError("contingency: expected at least one item, got none")
    names_a, at_a = np.unique(a, return_inverse=True)
    names_b, at_b = np.unique(b, return_inverse=True)
    return np.bincount(at_a * len(names_b) + at_b, minlength=len(names_a) * len(names_b)).reshape(
        len(names_a), len(names_b)
    )


def nmi(labels: Any, clusters: Any) -> float:
    """Normalised mutual information in [0, 1], arithmetic mean of the two entropies (Strehl & Ghosh 2002).

    1 when both are one single group; 0 when only one of them is.
    """
    joint = contingency(labels, clusters) / len(as_array(labels).ravel())
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    if len(rows) == len(columns) == 1:
        return 1.0
    some = joint > 0
    mutual = float((joint[some] * np.log(joint[some] / np.outer(rows, columns)[some])).sum())
    entropy = -float((rows * np.log(rows)).sum() + (columns * np.log(columns)).sum()) / 2
    return max(0.0, min(1.0, mutual / entropy))


def ari(labels: Any, clusters: Any) -> float:
    """Adjusted Rand index, 1 for equal groupings, about 0 for random ones, at least -0.5 (Hubert & Arabie 1985, eq. 5).

    1 when the index is not defined because both groupings are one group, or both split everything.
    """
    table = contingency(labels, clusters).astype(np.float64)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    together, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    everything = pairs(table.sum(keepdims=True))
    chance = rows * columns / everything if everything else 0.0
    best = (rows + columns) / 2
    return 1.0 if best == chance else (together - chance) / (best - chance)


def cluster_accuracy(labels: Any, clusters: Any) -> float:
    """Share of items right under the best one-to-one match of clusters to labels (Kuhn 1955), in [0, 1]."""
    from scipy.optimize import linear_sum_assignment

    table = contingency(labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def foreground_ari(true_ids: Any, segment_ids: Any) -> float:
    """ARI of an (H, W) map of predicted segments on the true object pixels (not 0, not 255); NaN without any."""
    true, predicted = as_array(true_ids), as_array(segment_ids)
    if true.shape != predicted.shape:
        raise ValueError(f"foreground_ari: expected maps of one shape, got {true.shape} and {predicted.shape}")
    where = (true != 0) & (true != IGNORE)
    return ari(true[where], predicted[where]) if where.any() else float("nan")


def best_overlap(true_ids: Any, segments: Any) -> np.ndarray:
    """(M,) best IoU of each true object with any of the (K, H, W) predicted masks; their mean is mBO (Pont-Tuset et al.
    2017).
    """
    overlap = mask_iou(instance_masks(true_ids), segments)
    return overlap.max(axis=1) if overlap.shape[1] else np.zeros(len(overlap))


def matched_iou(true_masks: Any, segments: Any) -> np.ndarray:
    """(M,) IoU of each of the (M, H, W) true masks with the predicted mask it gets in the best one-to-one match, 0 if
    none.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = mask_iou(true_masks, segments)
    values = np.zeros(len(overlap))
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    values[rows] = overlap[rows, columns]
    return values
