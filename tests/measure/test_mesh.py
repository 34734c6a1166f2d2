"""Chamfer distance and thickness on shapes whose answers are known, and against all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from selftaught.measure.mesh import (
    chamfer,
    ellipsoid_like,
    in_unit_cube,
    inside_silhouettes,
    relief_correlation,
    sample_surface,
    shape_scores,
    solid_thickness,
    surface_distance,
    thickness,
)
from selftaught.nets.renderer import icosphere

SPHERE = tuple(part.numpy() for part in icosphere(3))
CARD = (np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]]))


def test_chamfer_is_that_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(40, 3)), random.normal(size=(60, 3))
    pairs = np.linalg.norm(first[:, None] - second[None], axis=2)
    assert chamfer(first, second) == pytest.approx((pairs.min(1).mean() + pairs.min(0).mean()) / 2)
    assert chamfer(first, first) == 0


def test_two_planes_apart_have_their_distance() -> None:
    points = sample_surface(*CARD, 4000)
    assert chamfer(points, points + [0, 0, 0.25]) == pytest.approx(0.25, abs=1e-3)


def test_samples_are_uniform_over_the_area() -> None:
    two = (
        np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [10, 0, 0], [13, 0, 0], [10, 3, 0]]),
        np.array([[0, 1, 2], [3, 4, 5]]),
    )
    found = sample_surface(*two, 20_000)
    assert (found[:, 0] > 5).mean() == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(found[found[:, 0] < 5].mean(0), [1 / 3, 1 / 3, 0], atol=0.02)


def test_size_and_place_are_forgiven_and_proportions_are_not() -> None:
    points, faces = SPHERE
    same = surface_distance(points * 3 + 5, faces, points, faces)
    flat = surface_distance(points * [1, 0.5, 1], faces, points, faces)
    assert same < 0.02 < 0.05 < flat


def test_thickness_tells_a_card_from_a_ball() -> None:
    assert thickness(SPHERE[0]) > 0.98 and thickness(sample_surface(*CARD)) < 1e-6
    assert thickness(SPHERE[0] * [1, 1, 0.3]) == pytest.approx(0.3, abs=0.01)
    assert thickness(np.zeros((5, 3))) == 0


def test_thickness_of_solids_is_that_of_what_silhouettes_enclose() -> None:
    points, faces = SPHERE
    half = np.array([1.0, 0.3, 0.5])
    inside = inside_silhouettes(points * half, faces) * 2  # the longest half axis is 1 again
    within = ((inside / half) ** 2).sum(1) <= 1.1**2
    assert within.mean() > 0.97 and len(inside) == pytest.approx(np.pi / 6 * 24**3, rel=0.15)
    assert solid_thickness(points * half, faces) == pytest.approx(0.3, rel=0.03)
    assert solid_thickness(*CARD) < 0.02
    # What is hidden inside, as the insides of wheels are, changes what samples of the surface say, not what can be seen.
    hidden = points * [0.9, 0.02, 0.02]
    both = (np.concatenate([points * half, *[hidden] * 20]), np.concatenate([faces + k * len(points) for k in range(21)]))
    assert solid_thickness(*both) == pytest.approx(solid_thickness(points * half, faces), rel=1e-6)
    assert abs(thickness(sample_surface(*both)) / thickness(sample_surface(points * half, faces)) - 1) > 0.05


def test_scores_stand_beside_the_ellipsoid() -> None:
    points, faces = SPHERE
    box = points * [1.0, 0.6, 0.8]
    truth = (np.clip(box * 1.3, box.min(0), box.max(0)), faces)  # a rounded box
    scores = shape_scores([truth, CARD], [truth, truth], mean_truth=truth, count=3000)
    chamfers = scores["chamfer"]
    assert chamfers.baselines["mean_shape (oracle)"] < 0.5 * min(chamfers.baselines[k] for k in ("ellipsoid", "sphere"))
    assert scores["thickness_error"].value == pytest.approx(0.5, abs=0.02), "one is right, the other a card"
    low, high = (part(ellipsoid_like(*truth)[0], axis=0) for part in (np.min, np.max))
    np.testing.assert_allclose([low, high], [truth[0].min(0), truth[0].max(0)], atol=1e-6)


def test_surfaces_that_are_none_are_refused() -> None:
    points, faces = SPHERE
    broken = points.copy()
    broken[5] = np.nan
    for bad, told in (
        ((broken, faces), "NaN"), ((points, faces[:0]), "at least one"), ((points * 0, faces), "no size"),
        ((points[:, :2], faces), "expected points"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            in_unit_cube(*bad)
    with pytest.raises(ValueError, match="area 0"):
        sample_surface(points, np.array([[0, 0, 1]]))


def test_relief_tells_a_face_from_its_hollow_mould() -> None:
    points, faces = SPHERE
    bumpy = points * (1 + 0.3 * np.exp(-8 * ((points - [0.2, 0.1, 0.9]) ** 2).sum(1)))[:, None]
    assert relief_correlation((bumpy, faces), (bumpy, faces)) == pytest.approx(1, abs=1e-6)
    assert relief_correlation((points * [1, 1, 0.5], faces), (points, faces)) > 0.95
    front = faces[(points[faces][:, :, 2] > -0.05).all(1)]
    hollow = points * [1, 1, -1]
    assert relief_correlation((hollow, front[:, ::-1].copy()), (points, front)) < -0.9
    assert relief_correlation(CARD, (points, faces)) == 0
    scores = shape_scores([(points, faces), (points * [1, 1, 0.2], faces)], [(points, faces)] * 2)
    assert scores["thick_enough"].value == 0.5 and scores["relief"].value > 0.9
    # The truth is a sphere here, so that this baseline is perfect.
    assert scores["thick_enough"].baselines == {"flat card": 0.0, "sphere": 1.0} and scores["relief"].baselines["sphere"] > 0.99
    assert scores["thickness_error"].baselines["sphere"] < 0.05 < scores["thickness_error"].value
