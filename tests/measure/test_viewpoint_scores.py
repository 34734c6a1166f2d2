"""Errors of viewpoints: chance levels that can be computed by hand, frames that are found again, mirrored answers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from selftaught.measure import viewpoint
from selftaught.measure.viewpoint import (
    azimuth_correlation,
    azimuth_scores,
    circular_correlation,
    common_frame,
    geodesic_rad,
    known_views,
    rotation_scores,
)
from selftaught.nets.renderer import rotation_from_angles


def rotations(count: int, seed: int = 0) -> np.ndarray:
    return Rotation.random(count, random_state=seed).as_matrix()


def test_geodesic_distance_is_that_of_scipy() -> None:
    first, second = rotations(200, 0), rotations(200, 1)
    theirs = (Rotation.from_matrix(first).inv() * Rotation.from_matrix(second)).magnitude()
    np.testing.assert_allclose(geodesic_rad(first, second), theirs, atol=1e-9)
    tiny = Rotation.from_rotvec([[1e-7, 0, 0]]).as_matrix()
    np.testing.assert_allclose(geodesic_rad(tiny, np.eye(3)[None]), 1e-7, rtol=1e-6)


def test_azimuth_is_read_back_from_any_rotation() -> None:
    random = np.random.default_rng(0)
    azimuth, elevation, roll = random.uniform(-3.1, 3.1, 50), random.uniform(-1.4, 1.4, 50), random.uniform(-3, 3, 50)
    made = rotation_from_angles(*(torch.from_numpy(x) for x in (azimuth, elevation, roll))).numpy()
    np.testing.assert_allclose(viewpoint.azimuth_of(made), azimuth, atol=1e-12)


def test_the_common_frame_is_found_among_wild_answers() -> None:
    true, frame = rotations(300, 2), rotations(1, 3)[0]
    predicted = true @ frame.T
    predicted[:90] = rotations(90, 4)  # nearly a third is wrong altogether
    noise = Rotation.from_rotvec(np.random.default_rng(5).normal(0, 0.02, (300, 3))).as_matrix()
    assert np.rad2deg(geodesic_rad(common_frame(predicted @ noise, true), frame)) < 1
    scores = rotation_scores(predicted, true)["rotation_median_deg"]
    assert scores.value < 1 and scores.baselines["constant"] > 60


def test_chance_levels_over_the_whole_circle_and_over_a_part() -> None:
    random = np.random.default_rng(0)
    for reach, median, share in ((np.pi, 90.0, 1 / 6), (np.pi / 3, 30.0, 0.5)):
        true = random.uniform(-reach, reach, 8_000)
        scores = azimuth_scores(random.uniform(-np.pi, np.pi, 8_000), true)
        assert scores["azimuth_median_deg"].baselines["constant"] == pytest.approx(median, abs=4)
        assert scores["acc30"].baselines["constant"] == pytest.approx(share, abs=0.03)
        if reach == np.pi:
            assert scores["azimuth_median_deg"].value == pytest.approx(90, abs=5)
            assert scores["azimuth_mod180_deg"].value == pytest.approx(45, abs=3)


def test_offsets_are_forgiven_and_mirrored_answers_are_not() -> None:
    random = np.random.default_rng(1)
    true = random.uniform(-np.pi, np.pi, 400)
    near = azimuth_scores(true + 1.234 + random.normal(0, 0.05, 400), true)
    assert near["azimuth_median_deg"].value < 3 and near["acc30"].value == 1 and near["mirrored_deg"].value > 40
    mirrored = azimuth_scores(-true + 0.3, true)
    assert mirrored["azimuth_median_deg"].value > 40 and mirrored["mirrored_deg"].value < 1


def test_flips_of_front_and_back_show_in_one_number_only() -> None:
    random = np.random.default_rng(2)
    true = random.uniform(-np.pi, np.pi, 600)
    flipped = true + np.pi * (random.random(600) < 0.4)
    scores = azimuth_scores(flipped, true)
    assert scores["azimuth_mod180_deg"].value < 1 and scores["acc30"].value == pytest.approx(0.6, abs=0.08)


def test_scored_pictures_do_not_choose_the_frame() -> None:
    true = np.random.default_rng(3).uniform(-np.pi, np.pi, 100)
    predicted = true.copy()
    predicted[1::2] += 1.0  # only the scored half is off
    assert azimuth_scores(predicted, true)["azimuth_median_deg"].value == pytest.approx(np.rad2deg(1.0), abs=1)


@pytest.mark.parametrize("bad", [np.full(8, np.nan), np.zeros(3), np.zeros((8, 2))])
def test_bad_azimuths_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite azimuths"):
        azimuth_scores(bad, bad)
    with pytest.raises(ValueError, match="rotations"):
        common_frame(np.full((4, 3, 3), np.nan), rotations(4))


def test_correlation_of_azimuths_tells_a_mirrored_solution() -> None:
    random = np.random.default_rng(0)
    true = random.uniform(-0.7, 0.7, 200)
    noisy = 0.8 * true + 0.05 * random.normal(size=200) + 3.0  # beyond pi, in another frame
    assert azimuth_correlation(noisy, true).value > 0.98
    assert azimuth_correlation(-noisy, true).value < -0.98
    assert azimuth_correlation(np.zeros(200), true).value == 0
    assert azimuth_correlation(noisy, true).baselines["mirrored"] == pytest.approx(-azimuth_correlation(noisy, true).value)


def test_correlation_around_the_circle_is_the_sum_over_pairs() -> None:
    random = np.random.default_rng(1)
    true = random.uniform(-np.pi, np.pi, 40)
    found = (true + 0.3 * random.normal(size=40) + 4.0) % (2 * np.pi)  # in another frame
    pairs = [(np.sin(found[i] - found[j]), np.sin(true[i] - true[j])) for i in range(40) for j in range(i)]
    first, second = np.array(pairs).T
    wanted = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    own = circular_correlation(found, true)
    assert own.value == pytest.approx(wanted, abs=1e-9) and own.value > 0.85
    assert circular_correlation(-found, true).value == pytest.approx(own.baselines["mirrored"]) == pytest.approx(-wanted)
    assert circular_correlation(np.full(40, 2.0), true).value == 0


FEW = "known of 7 test pictures alone (8 are needed)"


@pytest.mark.parametrize(("views", "says"), [(None, "not known of all"), ([0] * 7, FEW), ([0] * 8, "")])
def test_too_few_known_viewpoints_are_said(views: list[int] | None, says: str) -> None:
    data = SimpleNamespace(test=SimpleNamespace(views=lambda: views), notes=[])
    assert known_views(data) == (None if says else views)
    assert len(data.notes) == bool(says) and all(says in note for note in data.notes)
