"""Which of two ways to find objects is kept without truth: what is measured, and the rule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.core.seeds import seed_all
from selftaught.measure.choose_masks import (
    MaskCriteria,
    above_chance,
    choose,
    measure_masks,
    mirrored_crop,
    overlaps,
    told_apart,
)

N, S = 48, 40


def squares(seed: int = 0) -> Tensor:
    """(N, 3, S, S) dark noise with one bright square each, at different places and of different sizes."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 0.25, (N, 3, S, S))
    for image in images:
        side = rng.integers(10, 18)
        r, c = rng.integers(6, S - 6 - side, 2)
        image[:, r : r + side, c : c + side] += 0.6
    return torch.from_numpy(images).float()


class Segments:
    """A rule for masks; `noise` is the share of pixels that are turned over by lot, anew for each call."""

    def __init__(self, rule: Any, noise: float = 0.0) -> None:
        self.rule, self.noise = rule, noise

    def segment(self, images: Tensor) -> Tensor:
        mask = self.rule(images)
        return torch.where(torch.rand(mask.shape) < self.noise, 1 - mask, mask)


def bright(images: Tensor) -> Tensor:
    return (images.mean(1) > 0.45).float()


def everywhere(images: Tensor) -> Tensor:
    return torch.ones_like(images[:, 0])


def nothing(images: Tensor) -> Tensor:
    return torch.zeros_like(images[:, 0])


def middle(images: Tensor) -> Tensor:
    mask = nothing(images)
    mask[:, S // 4 : 3 * S // 4, S // 4 : 3 * S // 4] = 1
    return mask


class Patches:
    """Mean colours of patches as features."""

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)


def scene(pictures: Tensor, masks: Tensor, by: Tensor) -> Any:
    """Moves over a flat background of the picture's darkest tenth."""
    flat = pictures.flatten(2).quantile(0.1, dim=2)[..., None, None].expand_as(pictures)
    unshifted = pictures * masks + flat * (1 - masks)
    moved = torch.stack([x.roll(tuple(d.tolist()), (1, 2)) for x, d in zip(unshifted, by, strict=True)])
    return SimpleNamespace(unshifted=unshifted, composite=moved)


def measured(rule: Any, noise: float = 0.0) -> MaskCriteria:
    seed_all(0, 0, 0)
    return measure_masks(Segments(rule, noise), Patches(), scene, squares())


def test_a_crop_brought_back_lies_on_the_picture() -> None:
    images = torch.rand(5, 1, S, S).round()
    views, begin = mirrored_crop(images)
    assert views.shape == images.shape and begin.tolist() == [[0, 0], [0, 6], [6, 0], [6, 6], [0, 0]]
    smooth = torch.linspace(0, 1, S).expand(1, 1, S, S)
    assert float(mirrored_crop(smooth)[0][0, 0, 0, -1]) == pytest.approx(0.0, abs=0.02), "mirrored"
    blob = torch.zeros(4, 1, S, S)
    blob[:, :, 8:24, 10:30] = 1
    same = overlaps(blob[:, 0], mirrored_crop(blob)[0][:, 0], mirrored_crop(blob)[1], torch.ones(4))
    assert (same[:, 0] > 0.9).all(), same


def test_a_stable_mask_beats_a_noisy_one_and_is_worth_what_it_is() -> None:
    stable, noisy = measured(bright), measured(bright, noise=0.1)
    assert stable.scores()["stability"].value > 0.8 > noisy.scores()["stability"].value
    for order in ({"cut": stable, "move": noisy}, {"move": noisy, "cut": stable}):
        choice = choose(order)
        assert choice.name == "cut" and choice.reason == "more stable"
    low, high = choose({"cut": stable, "move": noisy}).differences["stability"][1]
    assert low <= high < 0


@pytest.mark.parametrize("rule", [everywhere, nothing])
@pytest.mark.parametrize("first", [True, False])
def test_masks_without_an_object_never_win(rule: Any, first: bool) -> None:
    pair = {"bad": measured(rule), "good": measured(bright, noise=0.2)}
    choice = choose(pair if first else dict(reversed(pair.items())))
    assert choice.name == "good" and "finds no object" in choice.reason
    assert pair["bad"].scores()["stability"].value == 0 and pair["bad"].scores()["told_apart"].value == 1


def test_one_mask_for_all_pictures_is_not_stable() -> None:
    assert measured(middle).scores()["stability"].value < 0.05
    assert choose({"cut": measured(middle), "move": measured(bright, noise=0.1)}).name == "move"


def test_equally_stable_ones_are_told_by_how_real_moved_objects_look_and_then_by_order() -> None:
    rng = np.random.default_rng(0)
    overlap = np.stack([rng.uniform(0.6, 0.9, 200), rng.uniform(0.1, 0.3, 200)], 1)
    real, odd = rng.random(200) < 0.55, rng.random(200) < 0.9
    a = MaskCriteria(overlap, real.astype(float), np.ones(200))
    b = MaskCriteria(overlap, odd.astype(float), np.ones(200))
    assert choose({"cut": b, "move": a}).name == "move" and "more real" in choose({"cut": b, "move": a}).reason
    assert choose({"cut": a, "move": b}).name == "cut"
    same = choose({"cut": a, "move": a})
    assert same.name == "cut" and "no difference" in same.reason
    neither = MaskCriteria(overlap, real.astype(float), np.zeros(200))
    assert choose({"cut": neither, "move": neither}).name == "cut"


def test_agreement_above_chance_is_kappa() -> None:
    assert above_chance(np.array([[1.0, 0.3], [1.0, 0.5]])) == pytest.approx(1.0)
    assert above_chance(np.array([[0.4, 0.4]])) == 0
    assert above_chance(np.array([[0.7, 0.4]])) == pytest.approx((0.7 - 0.4) / (1 - 0.4))
    assert above_chance(np.array([[1.0, 1.0]])) == 0


def test_the_classifier_sees_what_is_there_and_only_that() -> None:
    noise = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
    assert 0.42 < told_apart(noise).mean() < 0.58, "half of what means nothing"
    assert told_apart(noise + 0.5).mean() > 0.95
    assert (told_apart(torch.zeros(10, 4)) == 0.5).all()


def test_it_agrees_with_the_slow_ridge_regression() -> None:
    d = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double() + 0.2
    right = np.zeros(40)
    for learn in (0, 1):
        x, y = d[learn::2].numpy(), d[1 - learn :: 2].numpy()
        scale = np.sqrt((x**2).mean(0))
        x, y = x / scale / np.sqrt(6), y / scale
        w = np.linalg.inv(x.T @ x + np.eye(6)) @ x.T @ np.ones(20)
        right[1 - learn :: 2] = y @ w > 0
    assert (told_apart(d.float()) == right).all()
