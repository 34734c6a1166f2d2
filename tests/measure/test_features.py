"""Feature scores: kNN against scikit-learn and a slow loop, probe, ranks, pixel and HOG features."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selftaught.measure import features as f
from selftaught.measure.pixels import area_resize


def blobs(
    n: int, classes: int = 4, width: int = 12, spread: float = 1.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, n)
    return (centres[labels] + rng.normal(0, spread, (n, width))).astype(np.float32), labels


def slow_knn(bank: np.ndarray, names: np.ndarray, query: np.ndarray, k: int, temperature: float) -> list:
    answers = []
    for row in query.astype(np.float64):
        cosine = [float(row @ other / np.linalg.norm(row) / np.linalg.norm(other)) for other in bank.astype(np.float64)]
        votes = dict.fromkeys(sorted(set(names.tolist())), 0.0)
        for index in np.argsort(cosine)[::-1][:k]:
            votes[names[index]] += math.exp(cosine[index] / temperature)
        answers.append(max(votes, key=lambda name: votes[name]))
    return answers


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (200, 0.1), (1, 0.07), (10_000, 0.5)])
def test_knn_against_a_slow_loop(k: int, temperature: float) -> None:
    (bank, names), (query, _) = blobs(300), blobs(40, seed=1)
    assert f.knn_predict(bank, names, query, k, temperature).tolist() == slow_knn(bank, names, query, k, temperature)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (50, 0.1)])
def test_knn_equals_scikit_learn_across_chunks(k: int, temperature: float) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    (bank, names), (query, truth) = blobs(700), blobs(2500, seed=1)
    model = neighbors.KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank, names)
    want = model.predict(query) == truth
    got = f.knn_accuracy(bank, names, query, truth, k, temperature, clip=False)
    assert got.dtype == bool and np.mean(got != want) < 2e-3, "float32 may decide a tie otherwise"


def test_knn_of_itself_and_majority_and_text_labels() -> None:
    bank, codes = blobs(101)
    names = np.array(["cat", "dog", "emu", "fox"])[codes]
    assert f.knn_accuracy(bank, names, bank, names, k=1).all()
    # With a huge temperature and all of the bank, the largest class wins everywhere.
    largest = max(set(names), key=list(names).count)
    assert set(f.knn_predict(bank, names, bank, 101, 1e6)) == {largest}
    assert not f.knn_accuracy(bank, names, bank, np.full(101, "gnu")).any()
    assert np.isfinite(bank).all() and f.knn_predict(bank, names, np.zeros((1, 12))).shape == (1,)
    assert f.knn_accuracy(bank, names, bank, names, k=1, temperature=1e-4).all(), "no overflow"


def test_k_is_clipped_to_a_fifth_of_the_class() -> None:
    labels = np.arange(1000) % 10
    assert f.clip_k(20, labels) == 20 and f.clip_k(200, labels) == 20 and f.clip_k(20, labels[:100]) == 2
    assert f.clip_k(20, labels[:10]) == 1
    (bank, names), (query, truth) = blobs(100), blobs(50, seed=1)
    used = f.clip_k(20, names)
    assert used == 5
    want = f.knn_predict(bank, names, query, used) == truth
    assert (f.knn_accuracy(bank, names, query, truth, k=20) == want).all()


def test_refusals() -> None:
    bank, names = blobs(20)
    broken = bank.copy()
    broken[7, 0] = np.inf
    with pytest.raises(ValueError, match="bank: .* row 7"):
        f.knn_predict(broken, names, bank)
    with pytest.raises(ValueError, match="20 labels for 20 rows|expected 20 labels"):
        f.knn_predict(bank, names[:5], bank)
    with pytest.raises(ValueError, match="12 and 3"):
        f.knn_predict(bank, names, bank[:, :3])
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        f.rank_me(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="two classes"):
        f.linear_probe(bank, np.zeros(20), bank, np.zeros(20))


def test_probe_is_good_where_it_should_be_and_chance_where_not() -> None:
    pytest.importorskip("sklearn")
    (train, names), (test, truth) = blobs(600, spread=0.8), blobs(400, spread=0.8, seed=1)
    probe = f.linear_probe(train, names, test, truth)
    assert probe.correct.mean() > 0.9 and probe.c in f.C_GRID and probe.n_train == 600
    again = f.linear_probe(train, names, test, truth)
    assert (again.correct == probe.correct).all() and again.c == probe.c
    shuffled = np.random.default_rng(0).permutation(names)
    assert f.linear_probe(train, shuffled, test, truth).correct.mean() < 0.45


def test_probe_equals_plain_scikit_learn_at_its_c_and_ignores_scale() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    (train, names), (test, truth) = blobs(300, spread=2.0), blobs(300, spread=2.0, seed=1)
    probe = f.linear_probe(train, names, test, truth)
    mean, spread = train.mean(axis=0), train.std(axis=0)
    model = linear.LogisticRegression(C=probe.c, max_iter=1000).fit((train - mean) / spread, names)
    want = model.predict((test - mean) / spread) == truth
    assert np.mean(want != probe.correct) <= 0.01
    scaled = f.linear_probe(train * 1000 + 5, names, test * 1000 + 5, truth)
    assert np.mean(scaled.correct != probe.correct) <= 0.01


def test_probe_chooses_c_without_the_test_set_and_survives_odd_sets() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    train, names = rng.normal(size=(200, 300)).astype(np.float32), np.arange(200) % 2
    train[:, 0] += names * 2
    train[:, 1] = 7.0  # constant: no division by zero
    probe = f.linear_probe(train, names, train, names, max_iter=1)
    assert not probe.converged and "capped" in probe.note
    small = f.linear_probe(train[:3], [0, 1, 1], train, names)
    assert small.c == 1.0 and small.n_train == 3
    sub = f.linear_probe(train, names, train, names, max_train=50)
    assert sub.n_train == 50


def test_ranks_of_known_matrices() -> None:
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.normal(size=(64, 8)))[0]
    assert f.rank_me(orthogonal) == pytest.approx(8, abs=1e-3)
    one = np.outer(rng.normal(size=50), rng.normal(size=6))
    assert f.rank_me(one) == pytest.approx(1, abs=1e-4) and f.rank_me(np.zeros((5, 3))) == 0.0
    features = rng.normal(size=(200, 16)) * np.arange(1, 17)
    sigma = np.linalg.svd(features.astype(np.float32).astype(np.float64), compute_uv=False)
    share = sigma / sigma.sum() + 1e-7
    assert f.rank_me(features) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-9)
    wide = features[:10]
    assert 1 < f.rank_me(wide) <= 10.001
    assert f.effective_rank(one + 100) == pytest.approx(1, abs=1e-3), "the mean does not count"


def test_alignment_and_uniformity_against_loops() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 5))
    unit_a = a / np.linalg.norm(a, axis=1, keepdims=True)
    unit_b = b / np.linalg.norm(b, axis=1, keepdims=True)
    want_align = np.mean([((x - y) ** 2).sum() for x, y in zip(unit_a, unit_b, strict=True)])
    pairs = [math.exp(-2 * ((unit_a[i] - unit_a[j]) ** 2).sum()) for i in range(30) for j in range(30) if i != j]
    assert f.alignment_uniformity(a, b) == pytest.approx((want_align, math.log(np.mean(pairs))), abs=1e-5)
    same = np.ones((4, 3))
    assert f.alignment_uniformity(same, same) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_raw_pixels_average_areas() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    small = (images / 255).reshape(3, 3, 16, 2, 16, 2).mean(axis=(3, 5)).reshape(3, -1)
    want = small - small.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(f.raw_pixels(images), want, atol=1e-6)
    np.testing.assert_allclose(f.raw_pixels(images.astype(np.float32) / 255), want, atol=1e-6)
    odd = area_resize(np.ones((1, 3, 7, 5), np.float32), 4)
    np.testing.assert_allclose(odd, 1.0, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        f.raw_pixels(images[0])


def test_hog_equals_scikit_image() -> None:
    feature = pytest.importorskip("skimage.feature")
    image = np.random.default_rng(0).random((2, 3, 32, 40))
    got = f.hog(image, px=None)
    for row, picture in zip(got, image, strict=True):
        want = feature.hog(
            picture.transpose(1, 2, 0), 9, (8, 8), (2, 2), block_norm="L2-Hys", channel_axis=-1, feature_vector=True
        )
        np.testing.assert_allclose(row, want, atol=1e-5)
    assert f.hog((image * 255).astype(np.uint8), px=16).shape == (2, 36)
    with pytest.raises(ValueError, match="at least 16 px"):
        f.hog(np.zeros((1, 3, 8, 8)))


def test_feature_scores_have_baselines_and_say_the_k() -> None:
    pytest.importorskip("sklearn")
    (train, names), (test, truth) = blobs(400, spread=1.0), blobs(200, spread=1.0, seed=1)
    noise = np.random.default_rng(2).normal(size=(600, 5))
    scores = f.feature_scores(train, names, test, truth, {"noise": (noise[:400], noise[400:])})
    assert set(scores) == {"knn20", "knn200", "linear_probe"}
    for name in ("knn20", "knn200", "linear_probe"):
        assert scores[name].n == 200 and scores[name].beats(0.2) and scores[name].baselines["noise"] < 0.45
        assert scores[name].ci95[0] < scores[name].value < scores[name].ci95[1]
    assert "k=20" in scores["knn20"].note and "clipped from 200" in scores["knn200"].note
