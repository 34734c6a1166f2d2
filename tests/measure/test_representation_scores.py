"""Scores of embeddings that are known to be good or bad, their baselines, and data without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.data.arrays import ArraySource
from selftaught.data.evalset import EvalSet, open_eval
from selftaught.measure import representation as module
from selftaught.measure.representation import embed_all, representation_scores
from selftaught.method import EvalData

NAMES = {"knn20", "knn200", "linear_probe", "rank_me"}


class Colour:
    """Embeds a picture by its mean colour, with some noise of its texture; useless when `blind`."""

    image_px, patch_px = 16, 4

    def __init__(self, blind: bool = False) -> None:
        self.blind, self.calls = blind, list[int]()

    def embed(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        corner = images[:, :, :2, :2]
        texture = (corner - corner.mean((2, 3), keepdim=True)).flatten(1)
        return texture if self.blind else torch.cat([10 * images.mean((2, 3)), 0.1 * texture], 1)

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)


def coloured(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(N, 16, 16, 3) noise, brighter in the channel of its class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 200, (count, 16, 16, 3))
    images[np.arange(count), :, :, labels] += 55
    return images.astype(np.uint8), np.array(["red", "green", "blue"])[labels]


def opened(images: Any, labels: Any = None) -> EvalSet:
    return open_eval(ArraySource(images, labels), "all", 16)


@pytest.fixture
def data() -> EvalData:
    return EvalData(opened(*coloured(120, 0)), opened(*coloured(45, 1)))


def test_a_separable_embedding_is_always_right(data: EvalData) -> None:
    scores = representation_scores(Colour(), Colour(blind=True), data)
    assert set(scores) == NAMES
    for name in ("knn20", "knn200", "linear_probe"):
        score = scores[name]
        assert score.value == 1.0 and score.n == 45 and score.better == "higher", name
        assert set(score.baselines) == {"raw_pixels", "hog", "untrained"}
        assert score.baselines["untrained"] < 0.7, "the negative control"
        assert score.ci95[0] <= 1.0 <= score.ci95[1] + 1e-9
    assert set(scores["rank_me"].baselines) == {"untrained"}
    assert 1 <= scores["rank_me"].value <= 15


def test_a_blind_embedding_is_as_good_as_guessing(data: EvalData) -> None:
    scores = representation_scores(Colour(blind=True), Colour(), data)
    assert scores["knn20"].value < 0.7 and scores["knn20"].baselines["untrained"] == 1.0


def test_the_order_of_the_bank_does_not_matter(data: EvalData) -> None:
    images, labels = coloured(120, 0)
    order = np.random.default_rng(0).permutation(120)
    other = EvalData(opened(images[order], labels[order]), data.test)
    for name in ("knn20", "knn200"):
        first, second = (representation_scores(Colour(True), Colour(), d)[name].value for d in (data, other))
        assert first == second, name


@pytest.mark.parametrize("bank", ["none", "unlabelled", "one class"])
def test_without_classes_only_the_rank_is_told(bank: str, data: EvalData) -> None:
    images, labels = coloured(30, 0)
    train = {"none": None, "unlabelled": opened(images), "one class": opened(images, ["cat"] * 30)}[bank]
    scores = representation_scores(Colour(), Colour(True), EvalData(train, data.test))
    assert set(scores) == {"rank_me"} and "could not be scored" in scores["rank_me"].note
    assert np.isfinite(scores["rank_me"].value)


def test_without_labels_of_the_test_pictures_only_the_rank_is_told(data: EvalData) -> None:
    for test in (opened(coloured(20, 1)[0]), opened(coloured(20, 1)[0], [""] * 20)):
        assert set(representation_scores(Colour(), Colour(True), EvalData(data.train, test))) == {"rank_me"}


def test_pictures_without_a_label_are_left_out() -> None:
    (images, labels), (others, truth) = coloured(90, 0), coloured(30, 1)
    labels[::2], truth[:10] = "", ""
    scores = representation_scores(Colour(), Colour(True), EvalData(opened(images, labels), opened(others, truth)))
    assert scores["knn20"].n == 20 and scores["knn20"].value == 1.0


def test_large_sets_are_thinned_evenly(data: EvalData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BANK", 60)
    monkeypatch.setattr(module, "MAX_TEST", 20)
    method = Colour()
    scores = representation_scores(method, Colour(True), data)
    # No picture is looked at twice.
    assert scores["knn20"].n == 20 and sum(method.calls) == 80


def test_the_rank_of_sorted_pictures_without_labels_is_that_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = coloured(120, 0)
    data = EvalData(None, opened(images[np.argsort(labels, kind="stable")]))
    whole = representation_scores(Colour(), Colour(True), data)["rank_me"]
    monkeypatch.setattr(module, "MAX_BANK", 40)
    part = representation_scores(Colour(), Colour(True), data)["rank_me"]
    assert part.n == 40 and part.value == pytest.approx(whole.value, rel=0.05), "the first forty are of one colour"


class Whitened(Colour):
    """Twice as wide colours, halved once the method is settled; settled on the training pictures when it is the untrained one."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__(blind)
        self.settled_on = 0

    def pooled(self, images: Tensor) -> Tensor:
        return 2 * super().embed(images)

    def whitened(self, pooled: Tensor) -> Tensor:
        return pooled / 2

    def embed(self, images: Tensor) -> Tensor:
        raise AssertionError("pooled vectors are enough")

    def settle_on(self, pooled: Tensor) -> None:
        self.settled_on += len(pooled)


def test_vectors_are_whitened_for_neighbours_and_not_for_the_rank(data: EvalData) -> None:
    method, untrained = Whitened(), Whitened(True)
    scores, plain = representation_scores(method, untrained, data), representation_scores(Colour(), Colour(True), data)
    assert data.train is not None
    assert (method.settled_on, untrained.settled_on) == (0, len(data.train))
    for name, score in plain.items():
        assert scores[name].value == pytest.approx(score.value, rel=1e-5)


def test_embeddings_come_in_order_whatever_the_batch(data: EvalData) -> None:
    whole = embed_all(Colour(), data.test.images)
    assert whole.shape == (45, 15) and whole.dtype == np.float32
    np.testing.assert_allclose(embed_all(Colour(), data.test.images, batch_size=7), whole, rtol=1e-6)
