"""Groupings: the OCLF fixtures, scikit-learn for NMI and ARI, brute force over permutations for matches."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from selftaught.measure import clusters as c


def test_ari_fixtures() -> None:
    assert c.ari([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]) == pytest.approx(0.24242424)
    assert c.ari(np.arange(6), np.zeros(6)) == 0.0
    assert c.ari([0, 1, 1, 2], [5, 3, 3, 9]) == 1.0
    assert c.ari([0], [4]) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_nmi_and_ari_equal_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 200)
    clusters = np.where(rng.random(200) < 0.6, labels, rng.integers(0, 9, 200))
    assert c.nmi(labels, clusters) == pytest.approx(metrics.normalized_mutual_info_score(labels, clusters), abs=1e-12)
    assert c.ari(labels, clusters) == pytest.approx(metrics.adjusted_rand_score(labels, clusters), abs=1e-12)


def test_nmi_edges_and_refusals() -> None:
    assert c.nmi(["a"] * 4, [0] * 4) == 1.0 and c.nmi(["a", "b"] * 3, [0] * 6) == 0.0
    with pytest.raises(ValueError, match="3 and 2 items"):
        c.nmi([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="none"):
        c.ari([], [])


def test_cluster_accuracy_against_all_permutations() -> None:
    rng = np.random.default_rng(1)
    labels, clusters = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    best = max(float(np.mean(np.array(order)[clusters] == labels)) for order in permutations(range(4)))
    assert c.cluster_accuracy(labels, clusters) == pytest.approx(best)
    assert c.cluster_accuracy([0, 0, 1, 1], [7, 7, 7, 7]) == 0.5


def test_segments_of_two_equal_halves() -> None:
    halves = np.zeros((2, 4, 4), bool)
    halves[0, :2], halves[1, 2:] = True, True
    everything = np.ones((1, 4, 4), bool)
    assert c.matched_iou(halves, everything).tolist() == [0.5, 0.0]
    ids = np.array([1, 1, 2, 2])[:, None].repeat(4, axis=1)
    assert c.best_overlap(ids, everything).tolist() == [0.5, 0.5]
    assert c.best_overlap(ids, np.zeros((0, 4, 4))).tolist() == [0.0, 0.0]


def test_foreground_ari_sees_object_pixels_only() -> None:
    true = np.array([[0, 0, 1, 1], [255, 2, 2, 2]])
    found = np.array([[4, 5, 8, 8], [9, 3, 3, 3]])
    assert c.foreground_ari(true, found) == 1.0
    assert np.isnan(c.foreground_ari(np.zeros((2, 2)), np.zeros((2, 2))))
    with pytest.raises(ValueError, match="one shape"):
        c.foreground_ari(true, found[:1])
