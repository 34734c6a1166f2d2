"""Viewpoints on a circle: each step on data whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selftaught.measure.pixels import hog
from selftaught.measure.viewpoint import angle_between, azimuth_scores
from selftaught.shape3d import circle


def ring(count: int = 300, noise: float = 0.05, seed: int = 0, dimensions: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features on a closed curve with two harmonics in a random frame, and their angles."""
    random = np.random.RandomState(seed)
    angle = random.uniform(-np.pi, np.pi, count)
    frame = np.linalg.qr(random.randn(dimensions, dimensions))[0][:4]
    plain = np.stack([np.cos(angle), np.sin(angle), 0.5 * np.cos(2 * angle), 0.5 * np.sin(2 * angle)], 1)
    return plain @ frame + noise * random.randn(count, dimensions), angle


def error_deg(found: np.ndarray, true: np.ndarray) -> float:
    """Median error up to offset and direction."""
    return min(azimuth_scores(sign * found, true)["azimuth_median_deg"].value for sign in (1, -1))


def test_histograms_are_like_those_of_the_field() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    mine = circle.hog_features(images).numpy().reshape(4, 4, 9, 3, 3).transpose(0, 3, 4, 1, 2)
    theirs = hog(images.numpy(), None).reshape(4, 3, 3, 4, 9)
    assert np.corrcoef(mine.ravel(), theirs.ravel())[0, 1] > 0.8, (
        "votes are shared between orientations here, so not equal"
    )
    np.testing.assert_allclose(np.linalg.norm(mine.reshape(4, 3, 3, 36), axis=3), 1, atol=1e-5)


def test_histograms_follow_a_slow_turn_without_jumps() -> None:
    """Votes shared between orientations: no step of a slow turn of stripes stands out, as some do when each pixel votes for one bin."""
    line = torch.arange(32) / 4.0
    turns = torch.linspace(0.1, 0.5, 17)
    stripes = torch.stack([torch.sin(line[None, :] * a.cos() + line[:, None] * a.sin()) for a in turns]) / 2 + 0.5
    stripes = stripes[:, None].expand(-1, 3, -1, -1)
    mine = circle.hog_features(stripes).diff(dim=0).norm(dim=1).numpy()
    theirs = np.linalg.norm(np.diff(hog(stripes.numpy(), None), axis=0), axis=1)
    assert mine.max() / mine.mean() < 2 < theirs.max() / theirs.mean()


def test_a_turn_moves_the_middle_to_the_right_and_back() -> None:
    spot = torch.zeros(1, 1, 32, 32)
    spot[:, :, :, 14:18] = 1
    where = torch.arange(32.0)

    def centre(picture: torch.Tensor) -> float:
        return float((picture.sum((0, 1, 2)) * where).sum() / picture.sum())

    for angle in (0.1, 0.3, -0.2):
        moved = (centre(circle.turned(spot, angle)) - centre(spot)) / 16
        assert moved == pytest.approx(0.9 * math.sin(angle), abs=0.03)
    image = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 32, 32), 7, 1, 3)
    back = circle.turned(circle.turned(image, 0.15), -0.15)
    assert float((back - image).abs().mean()) < 0.3 * float((circle.turned(image, 0.15) - image).abs().mean())


def test_the_graph_is_symmetric_and_joins_what_is_alike() -> None:
    features, angle = ring()
    graph = circle.neighbour_graph(features, 8)
    pairs = set(zip(graph.first.tolist(), graph.second.tolist(), strict=True))
    assert all((b, a) in pairs for a, b in pairs) and all(a != b for a, b in pairs)
    assert float(np.median(angle_between(angle[graph.first], angle[graph.second]))) < 0.15
    assert ((graph.weight > 0) & (graph.weight <= 1)).all() and set(graph.first.tolist()) == set(range(300))


def test_eigenvectors_agree_with_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = ring()
    graph = circle.neighbour_graph(features, 8)
    matrix = circle.normalised(graph, np.ones(len(graph.first)), 300)
    dense = circle.leading(matrix, 4)
    monkeypatch.setattr(circle, "_DENSE", 0)
    sparse = circle.leading(matrix, 4)
    np.testing.assert_allclose(dense[0], sparse[0], atol=1e-6)
    assert dense[0][0] == pytest.approx(1) and (dense[0] <= 1 + 1e-9).all()


def test_integration_recovers_angles_from_differences_with_wild_edges() -> None:
    """Angular synchronisation; a tenth of the edges says nothing but noise."""
    features, angle = ring(seed=2)
    graph = circle.neighbour_graph(features, 20)
    change = np.angle(np.exp(1j * (angle[graph.second] - angle[graph.first])))
    wild = np.random.RandomState(0).rand(len(change)) < 0.1
    # Both directions of an edge must tell the same.
    key = {(min(a, b), max(a, b)): w for a, b, w in zip(graph.first, graph.second, wild, strict=True)}
    wild = np.array([key[min(a, b), max(a, b)] for a, b in zip(graph.first, graph.second, strict=True)])
    noise = {k: v for k, v in zip(key, np.random.RandomState(1).uniform(-3, 3, len(key)), strict=True)}
    told = [noise[min(a, b), max(a, b)] * (1 if a < b else -1) for a, b in zip(graph.first, graph.second, strict=True)]
    change = np.where(wild, told, change)
    found, level = circle.integrate(graph, change, 300, 1.0)
    assert azimuth_scores(found, angle)["azimuth_median_deg"].value < 6, "and it runs the right way round"
    assert 0.7 < level < 1


def test_small_changes_have_the_sign_of_the_truth_and_of_the_edge() -> None:
    features, angle = ring(noise=0.0)
    ahead, behind = (np.stack([np.cos(angle + d), np.sin(angle + d)], 1) for d in (0.05, -0.05))
    plain = np.stack([np.cos(angle), np.sin(angle)], 1)
    graph = circle.neighbour_graph(features, 8)
    found = circle.small_changes(plain, (ahead - behind) / 0.1, graph)
    true = np.angle(np.exp(1j * (angle[graph.second] - angle[graph.first])))
    np.testing.assert_allclose(found, true, atol=0.02)


def test_the_curve_is_the_gaussian_model_of_its_docstring() -> None:
    features, angle = ring(count=80, dimensions=5)
    curve = circle.fit_curve(features, circle.share_of(angle), 3)
    covariance = np.linalg.inv(curve.whiten @ curve.whiten.T)
    means = circle.basis(circle.GRID, 3) @ curve.weights
    from scipy.stats import multivariate_normal

    density = np.stack([multivariate_normal(mean, covariance).pdf(features) for mean in means], 1)
    share, log_p = curve.posterior(features)
    np.testing.assert_allclose(share, density / density.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(log_p + 5 * -0.5 * math.log(2 * math.pi), np.log(density.mean(1)), atol=1e-6)


def test_following_the_curve_mends_rough_angles_and_raises_the_level() -> None:
    features, angle = ring(count=600, noise=0.1, seed=3)
    graph = circle.neighbour_graph(features, 8)
    rough = angle + 0.5 * np.random.RandomState(0).randn(600)
    found = [circle.settle("rough", features, graph, rough, ((3, rounds),)) for rounds in (0, 2, 10)]
    assert found[0].level < found[1].level <= found[2].level + 1e-3
    assert error_deg(found[2].angle, angle) < 0.5 * error_deg(rough, angle) and found[2].torn < 0.02
    random = circle.settle("random", features, graph, np.random.RandomState(1).uniform(-3, 3, 600), ((3, 2),))
    assert random.torn > 0.1 and random.level < found[2].level - 1


def test_arcs_where_front_and_back_were_swapped_are_swapped_back() -> None:
    features, angle = ring(count=600, noise=0.1, seed=6)
    graph = circle.neighbour_graph(features, 8)
    wrong = np.where((angle % np.pi > 0.6) & (angle % np.pi < 1.4), angle + np.pi, angle)
    before = circle.settle("wrong", features, graph, wrong, ((3, 0),))
    after = circle.swap_arcs(before, features, graph, 3, 12)
    assert azimuth_scores(wrong, angle)["acc30"].value < 0.85
    assert azimuth_scores(after.angle, angle)["acc30"].value > 0.97 and after.level > before.level


def test_halves_of_the_circle_are_told_apart_from_twice_the_angle() -> None:
    features, angle = ring(count=500, noise=0.1, seed=4)
    found = circle.unfold(features, 2 * angle + 0.1 * np.random.RandomState(0).randn(500), False)
    assert error_deg(found, angle) < 6
    assert azimuth_scores(found, angle)["acc30"].value > 0.97


def test_the_right_way_round_is_chosen_without_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circle, "_SWEEPS", 1)
    features, angle = ring(count=240, noise=0.08, seed=5)
    tangents = np.random.RandomState(0).randn(240, 12)  # the small changes say nothing here
    best, others = circle.find_way(features, tangents, 10, 3, 1, 5)
    assert [one.level for one in others] == sorted((one.level for one in others), reverse=True)
    assert error_deg(best.angle, angle) < 6 and any(error_deg(one.angle, angle) > 40 for one in others)
