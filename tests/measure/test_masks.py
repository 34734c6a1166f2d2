"""Mask scores: a hand-made 8 x 8 fixture, slow loops, three official examples, and pysodmetrics on random maps."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selftaught.measure import masks as m
from selftaught.measure.saliency import e_curves

OFFICIAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "official_examples" / "sod_metrics"


def fixture_8x8() -> tuple[list[np.ndarray], list[np.ndarray]]:
    i, j = np.mgrid[:8, :8]
    truth = (i >= 2) & (i <= 5) & (j >= 1) & (j <= 4)
    a = np.where(truth, 100 + 10 * ((7 * i + 11 * j) % 13), 10 * ((5 * i + 3 * j) % 17))
    b = np.where(truth, 60 + 5 * ((7 * i + 11 * j) % 13), 40 + 6 * ((5 * i + 3 * j) % 17))
    return [a / 255, b / 255], [truth, truth]


def test_fixture_mae_s_weighted_f() -> None:
    soft, truth = fixture_8x8()
    assert m.mae(soft, truth) == pytest.approx([0.335938, 0.487142], abs=1e-6)
    assert m.s_measure(soft, truth) == pytest.approx([0.610048, 0.348929], abs=1e-6)
    assert m.weighted_f(soft, truth) == pytest.approx([0.519638, 0.368076], abs=1e-6)


def test_fixture_stretched_f_and_e() -> None:
    soft, truth = fixture_8x8()
    adaptive, curves = m.sod_f_measure(soft, truth)
    assert adaptive == pytest.approx([0.5, 0.0], abs=1e-6)
    assert curves.mean(axis=1) == pytest.approx([0.490108, 0.231089], abs=1e-6)
    assert curves.max(axis=1) == pytest.approx([0.771186, 0.366197], abs=1e-6)
    assert m.max_of_mean(curves) == pytest.approx(0.458627, abs=1e-6)
    assert m.e_measure(soft, truth) == pytest.approx([0.439312, 0.383138], abs=1e-6)
    assert m.e_measure(soft, truth, "mean") == pytest.approx([0.498899, 0.406763], abs=1e-6)
    assert m.e_measure(soft, truth, "max") == pytest.approx([0.847566, 0.628275], abs=1e-6)
    assert m.max_of_mean(e_curves(soft, truth)) == pytest.approx(0.729076, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fixture_max_f_conventions_iou_accuracy(dtype: type) -> None:
    soft, truth = fixture_8x8()
    soft = [picture.astype(dtype) for picture in soft]
    assert m.max_f(soft, truth) == pytest.approx(0.420726, abs=1e-6)
    assert m.max_f(soft, truth, "per_image") == pytest.approx(0.568692, abs=1e-6)
    assert m.max_f(soft, truth, "per_image_b09") == pytest.approx(0.615188, abs=1e-6)
    each = [m.max_f([p], [t]) for p, t in zip(soft, truth, strict=True)]
    assert each == pytest.approx([0.771186, 0.366197], abs=1e-6)
    each = [m.max_f([p], [t], "per_image_b09") for p, t in zip(soft, truth, strict=True)]
    assert each == pytest.approx([0.904028, 0.326347], abs=1e-6)
    assert m.iou(soft, truth) == pytest.approx([12 / 27, 0.0])
    assert m.accuracy(soft, truth) == pytest.approx([0.765625, 0.671875])


def random_pairs(seed: int, n: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Grey maps of several sizes with blobs, a constant one, an empty truth, a full truth, a one-pixel truth."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    soft, truth = [], []
    for _ in range(n):
        height, width = rng.integers(7, 60, size=2)
        field = gaussian_filter(rng.normal(size=(height, width)), 3)
        near = field + gaussian_filter(rng.normal(size=(height, width)), 2) * rng.random()
        near = (near - near.min()) / (near.max() - near.min() + 1e-9)
        soft.append((near * rng.uniform(0.4, 1.0) * 255).astype(np.uint8))
        truth.append(field > np.quantile(field, rng.uniform(0.3, 0.9)))
    soft[0][:] = 77
    truth[1][:] = False
    truth[2][:] = True
    truth[3][:] = False
    truth[3][3, 2] = True
    return soft, truth


def slow_f(soft: np.ndarray, truth: np.ndarray, threshold: float, beta2: float) -> float:
    """F from the formula, pixel sets and all."""
    found = soft > threshold
    hit, size, true = int((found & truth).sum()), int(found.sum()), int(truth.sum())
    if true == 0:
        return 0.0
    precision, recall = (hit / size if size else 1.0), hit / true
    bottom = beta2 * precision + recall
    return (1 + beta2) * precision * recall / bottom if bottom and hit else 0.0


def test_f_curves_against_a_slow_loop() -> None:
    grey, truth = random_pairs(0)
    soft = [picture / 255 for picture in grey]
    curves = m.f_curves(soft, truth)
    slow = [[slow_f(p, t, k / 255, 0.3) for k in range(255)] for p, t in zip(soft, truth, strict=True)]
    np.testing.assert_allclose(curves, slow, atol=1e-12)
    assert m.max_f(soft, truth) == pytest.approx(np.mean(slow, axis=0).max())
    in_single = m.f_curves([picture.astype(np.float32) for picture in soft], truth)
    np.testing.assert_allclose(in_single, curves, atol=1e-12)


def oracle(grey: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, np.ndarray]:
    sod = pytest.importorskip("py_sod_metrics", reason="pysodmetrics is an optional test dependency")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meters: dict[str, Any] = {
            "f": sod.Fmeasure(), "e": sod.Emeasure(), "s": sod.Smeasure(), "w": sod.WeightedFmeasure(), "mae": sod.MAE()
        }  # fmt: skip
    for picture, mask in zip(grey, truth, strict=True):
        for meter in meters.values():
            meter.step(picture, mask.astype(np.uint8) * 255)
    return {
        "mae": np.array(meters["mae"].maes),
        "s": np.array(meters["s"].sms),
        "w": np.array(meters["w"].weighted_fms),
        "e_adaptive": np.array(meters["e"].adaptive_ems),
        "e": np.array(meters["e"].changeable_ems),
        "f_adaptive": np.array(meters["f"].adaptive_fms),
        "f": np.array(meters["f"].changeable_fms),
    }


@pytest.mark.parametrize("seed", range(4))
def test_saliency_scores_equal_pysodmetrics(seed: int) -> None:
    grey, truth = random_pairs(seed)
    soft = [picture / 255 for picture in grey]
    want = oracle(grey, truth)
    adaptive, curves = m.sod_f_measure(soft, truth)
    got = {
        "mae": m.mae(soft, truth),
        "s": m.s_measure(soft, truth),
        "w": m.weighted_f(soft, truth),
        "e_adaptive": m.e_measure(soft, truth),
        "e": e_curves(soft, truth),
        "f_adaptive": adaptive,
        "f": curves,
    }
    for name, values in got.items():
        np.testing.assert_allclose(values, want[name], atol=1e-9, err_msg=name)


def test_object_in_the_last_corner_is_finite() -> None:
    # The quadrants past the centroid are empty here: their weight is 0 and they must not turn S into NaN.
    truth = np.zeros((9, 7), bool)
    truth[-1, -1] = True
    soft = np.linspace(0, 1, 63).reshape(9, 7)
    for measure in (m.s_measure, m.e_measure, m.weighted_f, m.mae):
        assert np.isfinite(measure([soft], [truth])).all()
    assert m.s_measure([truth.astype(float)], [truth])[0] == pytest.approx(1.0)


def test_perfect_and_inverted_maps() -> None:
    _, truth = fixture_8x8()
    right, wrong = [t.astype(float) for t in truth], [1.0 - t for t in truth]
    assert m.mae(right, truth).tolist() == [0.0, 0.0] and m.mae(wrong, truth).tolist() == [1.0, 1.0]
    assert m.e_measure(right, truth, "max") == pytest.approx([64 / 63] * 2)
    for measure in (m.s_measure, m.weighted_f, m.iou):
        assert measure(right, truth) == pytest.approx([1.0, 1.0]) and (measure(wrong, truth) < 0.5).all()
    assert m.max_f(right, truth) == 1.0


def test_official_examples() -> None:
    if not OFFICIAL.is_dir():
        pytest.skip(f"official PySODMetrics examples not found at {OFFICIAL}")
    image = pytest.importorskip("PIL.Image")
    want = json.loads((OFFICIAL / "expected.json").read_text())["v1_4_0"]
    paths = sorted(OFFICIAL.glob("*.pred.png"))
    soft = [np.array(image.open(path).convert("L")) / 255 for path in paths]
    truth = [np.array(image.open(str(path).replace(".pred", ".mask")).convert("L")) > 128 for path in paths]
    assert len(paths) == 3
    adaptive, curves = m.sod_f_measure(soft, truth)
    e = e_curves(soft, truth)
    got = {
        "MAE": m.mae(soft, truth).mean(),
        "Smeasure": m.s_measure(soft, truth).mean(),
        "wFmeasure": m.weighted_f(soft, truth).mean(),
        "adpEm": m.e_measure(soft, truth).mean(),
        "meanEm": e.mean(),
        "maxEm": m.max_of_mean(e),
        "adpFm": adaptive.mean(),
        "meanFm": curves.mean(),
        "maxFm": m.max_of_mean(curves),
    }
    for name, value in got.items():
        assert value == pytest.approx(want[name], abs=1e-9), name


def test_iou_and_accuracy_of_easy_cases() -> None:
    empty, full = np.zeros((4, 6), bool), np.ones((4, 6), bool)
    half = empty.copy()
    half[:2] = True
    got = m.iou([empty, full, empty, half, half], [empty, empty, full, full, half])
    assert got.tolist() == [1.0, 0.0, 0.0, 0.5, 1.0]
    assert m.accuracy([empty, full, half], [empty, empty, full]).tolist() == [1.0, 0.0, 0.5]
    assert m.iou([np.full((4, 6), 0.5)], [full]).tolist() == [0.0], "exactly the threshold is background"


def test_ignored_pixels_do_not_count() -> None:
    truth = np.zeros((6, 6), np.uint8)
    truth[1:3, 1:3], truth[4:] = 3, 255
    soft = np.zeros((6, 6), np.float32)
    soft[1:3, 1:4] = 0.9
    changed = soft.copy()
    changed[4:] = 1.0
    cropped = ([soft[:4]], [truth[:4] > 0])
    assert m.iou([soft], [truth])[0] == pytest.approx(4 / 6)
    for measure in (m.iou, m.accuracy, m.mae, m.e_measure, m.max_f):
        assert measure([changed], [truth]) == pytest.approx(measure(*cropped)), measure.__name__
    for measure in (m.s_measure, m.weighted_f):
        assert measure([changed], [truth]) == pytest.approx(measure([soft], [truth])), measure.__name__
    assert np.isnan(m.iou([soft, soft], [np.full((6, 6), 255, np.uint8), truth])[0])
    nothing = [np.full((6, 6), 255, np.uint8), truth]
    for measure in (m.mae, m.s_measure, m.e_measure, m.weighted_f):
        assert np.isnan(measure([soft, soft], nothing)[0])
    assert m.max_f([soft, soft], nothing) == pytest.approx(m.max_f([soft], [truth]))


def test_refusals_say_which_and_what() -> None:
    good, truth = np.zeros((4, 4)), np.ones((4, 4), bool)
    bad = good.copy()
    bad[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"prediction 1: .*NaN at \(row, column\) \(2, 3\)"):
        m.iou([good, bad], [truth, truth])
    with pytest.raises(ValueError, match=r"prediction 1: expected the shape of its mask \(4, 4\), got \(4, 5\)"):
        m.max_f([good, np.zeros((4, 5))], [truth, truth])
    with pytest.raises(ValueError, match="prediction 0: expected values in .* got 0 to 255"):
        m.mae([truth.astype(np.uint8) * 255 * np.eye(4, dtype=np.uint8)], [truth])
    with pytest.raises(ValueError, match="2 predictions and 1 masks"):
        m.accuracy([good, good], [truth])
    with pytest.raises(ValueError, match="mask > 128"):
        m.iou([good], [np.array([[0, 255], [0, 0]] * 2, np.uint8).repeat(2, axis=1)])
    with pytest.raises(ValueError, match="mask 0: expected"):
        m.iou([good], [np.full((4, 4), 0.3)])
    with pytest.raises(ValueError, match="convention"):
        m.max_f([good], [truth], "best")  # type: ignore[arg-type]


def test_max_f_score_has_interval_and_baselines() -> None:
    grey, truth = random_pairs(7, n=20)
    soft = [picture / 255 for picture in grey]
    ones = [np.ones(picture.shape) for picture in truth]
    score = m.max_f_score(soft, truth, baselines={"whole_image": ones, "zero": 0.0})
    assert score.value == m.max_f(soft, truth) and score.n == 20 and score.ci95[0] <= score.value
    assert score.baselines["whole_image"] == pytest.approx(m.max_f(ones, truth)) and score.baselines["zero"] == 0.0


def test_torch_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    soft = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = soft > 0.5
    assert m.iou(soft, truth).tolist() == [1.0, 1.0, 1.0]
    assert m.iou(soft.bfloat16(), truth).shape == (3,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_are_strict_next_to_every_grey_value(dtype: type) -> None:
    grid: np.ndarray = (np.arange(256) / 255).astype(dtype)
    low, high = np.nextafter(grid, dtype(0)), np.minimum(np.nextafter(grid, dtype(2)), dtype(1))
    values = np.concatenate([grid, low, high])
    curve = m.f_curves([values[None]], [np.ones((1, len(values)), bool)])[0]
    above = np.array([(values > threshold).sum() for threshold in grid[:255]])
    recall = above / len(values)  # precision is 1: everything is object
    np.testing.assert_allclose(curve, 1.3 * recall / (0.3 + recall), atol=1e-12)
