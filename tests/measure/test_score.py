"""The Score: values, intervals against known formulas and simulated coverage, JSON, refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from selftaught.measure.score import Score, bootstrap_ci, difference_ci, jackknife_ci, score_of, wilson_ci


def test_mean_and_bootstrap_interval_is_near_the_normal_one_and_repeats() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    score = score_of(values, unit="px", better="lower")
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert score.value == pytest.approx(values.mean()) and score.n == 2000 and score.better == "lower"
    assert score.ci95 == pytest.approx((values.mean() - half, values.mean() + half), abs=0.012)
    assert score_of(values) == score_of(values)
    assert bootstrap_ci(values, seed=1) != bootstrap_ci(values, seed=2)


def test_bootstrap_covers_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for round_ in range(300):
        low, high = bootstrap_ci(rng.exponential(1.0, size=80), n_boot=300, seed=round_)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 300 <= 0.99


def test_wilson_against_the_roots_of_its_quadratic() -> None:
    for k, n in ((0, 10), (10, 10), (7, 20), (1, 3)):
        z2 = 1.959963984540054**2
        # (p - k/n)^2 = z^2 p (1 - p) / n
        low, high = sorted(np.roots([1 + z2 / n, -(2 * k / n + z2 / n), (k / n) ** 2]).real)
        assert wilson_ci(k, n) == pytest.approx((low, high), abs=1e-9)
    assert all(math.isnan(bound) for bound in wilson_ci(0, 0))
    with pytest.raises(ValueError, match="k=4, n=3"):
        wilson_ci(4, 3)


def test_shares_get_wilson_so_that_perfection_keeps_a_width() -> None:
    score = score_of(np.ones(20, bool))
    assert score.value == 1.0 and score.ci95 == pytest.approx(wilson_ci(20, 20)) and score.ci95[0] < 0.9
    assert score_of(np.ones(20, bool), interval="bootstrap").ci95 == (1.0, 1.0)
    with pytest.raises(ValueError, match="zeros and ones"):
        score_of([0.5, 0.2], interval="wilson")


def test_undefined_items_are_left_out_and_said() -> None:
    score = score_of([1.0, math.nan, 0.0, 1.0])
    assert score.n == 3 and score.value == pytest.approx(2 / 3) and "1 items without truth left out" in score.note
    nothing = score_of([math.nan])
    assert nothing.n == 0 and math.isnan(nothing.value) and nothing.to_json()["value"] is None


def test_statistic_over_rows_and_baselines() -> None:
    rows = np.random.default_rng(1).random((40, 5))

    def best_column(chosen: np.ndarray) -> float:
        return float(chosen.mean(axis=0).max())

    others = {"half": rows / 2, "known": 0.1, "s": Score(0.3, 1, (0, 1))}
    score = score_of(rows, statistic=best_column, baselines=others)
    assert score.value == best_column(rows) and score.ci95[0] < score.value < score.ci95[1] + 0.1
    assert score.baselines == pytest.approx({"half": score.value / 2, "known": 0.1, "s": 0.3})
    assert score.beats() and not score.beats(margin=0.5)
    assert not score_of([1.0, 2.0], better="lower", baselines={"zero": 0.0}).beats()


def test_json_is_strict() -> None:
    plain = score_of([0.5, 0.25], baselines={"none": math.nan}, unit="IoU").to_json()
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert again["baselines"] == {"none": None} and again["better"] == "higher" and again["value"] == 0.375
    assert set(again) >= {"value", "n", "ci95", "better", "baselines"}


def test_paired_difference_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(5)
    hard = rng.random(200)
    a, b = hard + 0.05 + rng.normal(0, 0.02, 200), hard + rng.normal(0, 0.02, 200)
    difference, (low, high) = difference_ci(a, b)
    assert difference == pytest.approx((a - b).mean()) and 0.04 < low < difference < high < 0.06
    with pytest.raises(ValueError, match=r"\(200,\) and \(3,\)"):
        difference_ci(a, [1, 2, 3])
    a[0] = math.nan
    assert difference_ci(a, b)[0] == pytest.approx((a - b)[1:].mean())


def test_jackknife_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(2).normal(size=(1000, 1))
    low, high = jackknife_ci(values, lambda rows: float(rows.mean()), groups=50)
    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(1000), rel=0.3)
    rows = np.random.default_rng(3).normal(size=(2000, 100, 1))
    intervals = [jackknife_ci(one, lambda x: float(x.mean())) for one in rows]
    assert np.mean([low < 0 < high for low, high in intervals]) == pytest.approx(0.95, abs=0.015), "also with ten groups"
    assert math.isnan(jackknife_ci(values[:1], lambda rows: 0.0)[0])


def test_infinite_items_and_single_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"per_item\[1\]"):
        score_of([0.0, math.inf])
    with pytest.raises(ValueError, match="single number"):
        score_of(3.0)
