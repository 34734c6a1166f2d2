"""Scores of actions against loops, scikit-learn and their own bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selftaught.measure import actions as act

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 400)


def test_groupings_do_not_depend_on_names_and_know_chance() -> None:
    renamed = np.array([3, 0, 4, 1, 2])[LABELS]
    same = act.grouping(LABELS, renamed)
    assert (same.nmi, same.ami, same.homogeneity, same.completeness, same.purity) == pytest.approx((1, 1, 1, 1, 1))
    chance = act.grouping(LABELS, RNG.integers(0, 40, 400))
    assert chance.nmi > 0.1 > abs(chance.ami), "the normalised one grows with the number of codes, the adjusted one does not"
    assert chance.permuted_nmi == pytest.approx(chance.nmi, abs=0.05) and abs(chance.permuted_ami) < 0.05
    merged = act.grouping(LABELS, LABELS // 2)
    assert merged.completeness == pytest.approx(1) and merged.homogeneity < 0.9
    with pytest.raises(ValueError, match="one name per item"):
        act.grouping(LABELS, LABELS[:-1])


def test_directions_count_within_45_degrees_where_something_moves() -> None:
    true = np.array([[4.0, 0], [4, 0], [4, 0], [0, 0], [0, -2]])
    found = np.array([[1.0, 0.9], [1, 1.1], [0, 0], [3, 3], [0.1, -9]])
    assert np.array_equal(act.direction_right(found, true), [1, 0, 0, np.nan, 1], equal_nan=True)
    assert act.shift_error(found, true)[2] == pytest.approx(4)


def test_delta_mse_is_the_formula_and_lies_between_its_bounds() -> None:
    ways = np.array([[4.0, 0], [-4, 0], [0, 4], [0, -4], [0, 0]])
    d = ways[LABELS] + 0.1 * RNG.standard_normal((400, 2))
    codes = np.where(LABELS < 2, 0, LABELS)
    within = sum(float(((d[i] - d[codes == codes[i]].mean(0)) ** 2).sum()) for i in range(400))
    total = sum(float(((d[i] - d.mean(0)) ** 2).sum()) for i in range(400))
    assert act.delta_mse(d, codes) == pytest.approx(within / total)
    floor, ceiling = act.delta_mse_bounds(d, 5, seed=1)
    assert floor == pytest.approx(act.delta_mse(d, LABELS), rel=1e-6) and 0.9 < ceiling <= 1
    assert floor < act.delta_mse(d, codes) < ceiling
    assert math.isnan(act.delta_mse(np.zeros((4, 2)), [0, 1, 0, 1]))


def test_delta_acc_is_held_out() -> None:
    d = np.array([[4.0, 0], [-4, 0], [0, 4], [0, -4], [0, 0]])[LABELS] + 0.1 * RNG.standard_normal((400, 2))
    assert act.delta_acc(d, np.where(LABELS == 4, 0, LABELS)) > 0.9
    noise = RNG.integers(0, 4, 400)
    floor, ceiling = act.delta_acc_bounds(d, noise, 4)
    assert act.delta_acc(d, noise) < floor + 0.1 and ceiling > 0.9
    assert act.delta_acc(d, np.zeros(400, int)) == 1
    assert np.isnan(act.delta_acc(d[:1], noise[:1])) and np.isnan(act.delta_acc_bounds(d[:1], noise[:1], 4)[1]), "nothing is held out"


def test_use_of_codes() -> None:
    assert act.perplexity([0, 1, 2, 3], 4) == pytest.approx(4) and act.perplexity([2, 2], 4) == pytest.approx(1)
    assert act.dead_share([0, 0, 1, 1], 4) == 0.5
    assert act.agreement([1, 2, 3, 3], [1, 2, 3, 0]) == 0.75
    with pytest.raises(ValueError, match="as many codes"):
        act.agreement([1], [1, 2])


def test_effects_are_separated_when_only_the_action_decides() -> None:
    by_action = np.broadcast_to(RNG.standard_normal((1, 4, 3)), (6, 4, 3))
    by_start = np.broadcast_to(RNG.standard_normal((6, 1, 3)), (6, 4, 3))
    assert act.effect_separation(by_action) == pytest.approx(1) and act.effect_separation(by_start) == pytest.approx(0)
    both = act.effect_separation(by_action + by_start)
    assert 0.1 < both < 0.9 and math.isnan(act.effect_separation(np.zeros((2, 3, 4))))
    with pytest.raises(ValueError, match="effects"):
        act.effect_separation(np.zeros((2, 3)))
