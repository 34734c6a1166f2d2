"""SelfMask: losses, clustering and vote against slow loops, the pseudo-mask file, any picture size, and a toy that is learned."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.method import Progress
from selftaught.segmentation.cut import centred
from selftaught.segmentation.selfmask import SelfMask, dice_loss, largest, otsu, ranking_loss, without_wisps
from selftaught.segmentation.voting import kmeans, pseudo_mask_file, spectral_candidates, vote

TINY: Any = SelfMask.sizes["tiny"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Patches(nn.Module):
    """An encoder that knows the mean colour of each patch of 4 px."""

    token_width = 6

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.avg_pool2d(images, 4)
        tokens = torch.cat([x, 1 - x], 1)
        return tokens.mean((2, 3)), tokens


class Brightness(nn.Module):
    """Features whose keys tell bright patches from dark ones, with noise; deterministic per picture."""

    image_px, patch_px = 32, 4

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.patches, self.noise = Patches(), noise

    def encoder(self) -> nn.Module:
        return self.patches

    def features(self, images: Tensor) -> Tensor:
        keys = self.patches(images)[1]
        return keys + self.noise * torch.randn(keys.shape, generator=generator(int(images.sum() * 1e3) % 2**31))

    def untrained(self, seed: int = 0) -> Brightness:
        return self


class Pictures:
    """The part of an ImageSet that training reads: bright rectangles on dark noise, with their truth."""

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = rng.integers(20, 80, (count, 3, 32, 32)).astype(np.uint8)
        self.truth = np.zeros((count, 32, 32), bool)
        for i in range(count):
            h, w = rng.integers(9, 16, 2)
            y, x = rng.integers(2, 30 - h), rng.integers(2, 30 - w)
            self.truth[i, y : y + h, x : x + w] = True
            self.images[i][:, self.truth[i]] = rng.integers(180, 240, (3, h * w))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return torch.from_numpy(self.images[np.asarray(indices)])


def tiny(**changes: Any) -> SelfMask:
    torch.manual_seed(0)
    return SelfMask(replace(TINY, **changes), {"features": Brightness()})


def test_dice_is_the_formula() -> None:
    draw = generator(0)
    p = torch.rand(2, 3, 4, 5, generator=draw, dtype=torch.float64)
    t = torch.rand(2, 1, 4, 5, generator=draw, dtype=torch.float64)
    found = dice_loss(p, t)
    for b, q in itertools.product(range(2), range(3)):
        cells = list(itertools.product(range(4), range(5)))
        both = sum(float(p[b, q, i, j] * t[b, 0, i, j]) for i, j in cells)
        total = sum(float(p[b, q, i, j] + t[b, 0, i, j]) for i, j in cells)
        assert float(found[b, q]) == pytest.approx(1 - (2 * both + 1) / (total + 1), abs=1e-9)


def test_dice_at_known_points() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    assert float(dice_loss(mask, mask)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(1 - mask, mask)) == pytest.approx(1 - 1 / 17)
    assert float(dice_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))) == 0, "nothing there, nothing said"


@pytest.mark.parametrize(("B", "Q"), [(1, 2), (3, 4), (2, 7)])
def test_ranking_is_the_slow_loop(B: int, Q: int) -> None:
    draw = generator(Q)
    scores = torch.randn(B, Q, generator=draw, dtype=torch.float64)
    dice = torch.rand(B, Q, generator=draw, dtype=torch.float64)
    total, pairs = 0.0, 0
    for b, i, j in itertools.product(range(B), range(Q), range(Q)):
        if dice[b, i] < dice[b, j]:
            pairs += 1
            total += max(0.0, float(scores[b, j] - scores[b, i]))
    # The count of pairs is kept in float32.
    assert float(ranking_loss(scores, dice)) == pytest.approx(total / pairs, rel=1e-9)


def test_the_better_mask_must_have_the_higher_score() -> None:
    dice = torch.tensor([[0.1, 0.5, 0.9]])
    right, wrong = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert float(ranking_loss(right, dice)) == 0
    assert float(ranking_loss(wrong, dice)) == pytest.approx((1 + 1 + 2) / 3)
    scores = wrong.clone().requires_grad_()
    ranking_loss(scores, dice).backward()
    assert scores.grad is not None and scores.grad[0, 0] < 0 < scores.grad[0, 2], "down the gradient the best one rises"
    assert float(ranking_loss(wrong, torch.full((1, 3), 0.5))) == 0, "equally good masks are not ranked"


def slow_vote(masks: np.ndarray) -> tuple[dict[int, float], dict[int, float]]:
    """Sum of IoU with all that are left, and mean IoU with the others, of the (M, h, w) masks that are left."""

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        return float((a & b).sum() / max((a | b).sum(), 1))

    def spans(m: np.ndarray) -> bool:
        return bool((m[0].any() and m[-1].any()) or (m[:, 0].any() and m[:, -1].any()))

    left = [i for i, m in enumerate(masks) if m.any() and not spans(m)] or list(range(len(masks)))
    totals = {i: sum(iou(masks[i], masks[j]) for j in left) for i in left}
    others = {i: [iou(masks[i], masks[j]) for j in left if j != i] for i in left}
    return totals, {i: float(np.mean(x)) if x else 0.0 for i, x in others.items()}


def test_the_vote_is_the_slow_one() -> None:
    rng = np.random.default_rng(0)
    for trial in range(40):
        masks = np.zeros((7, 6, 5), bool)
        for m in masks:
            y, x = rng.integers(0, 6), rng.integers(0, 5)
            m[y : y + rng.integers(1, 7), x : x + rng.integers(1, 6)] = True
            m ^= rng.random((6, 5)) < 0.05 * (trial % 3)
        winner, agreement = vote(torch.from_numpy(masks[None]).float())
        totals, agreements = slow_vote(masks)
        chosen = [i for i in totals if np.array_equal(masks[i], winner[0].numpy() > 0)]
        assert chosen and max(totals[i] for i in chosen) > max(totals.values()) - 1e-5, trial
        assert float(agreement) == pytest.approx(agreements[chosen[0]], abs=1e-5)


def test_pictures_vote_on_their_own_and_spanning_masks_lose() -> None:
    square = torch.zeros(6, 6)
    square[2:4, 2:4] = 1
    stripe = torch.zeros(6, 6)
    stripe[:, 2:4] = 1
    both = torch.stack([torch.stack([stripe, stripe, stripe, square]), torch.stack([stripe, stripe, stripe, stripe])])
    winners, agreement = vote(both)
    assert torch.equal(winners[0], square) and torch.equal(winners[1], stripe), "the last resort is what there is"
    assert agreement.tolist() == pytest.approx([0.0, 1.0])


def inertia(points: Tensor, groups: Tensor) -> float:
    """Sum of squared distances of (N, D) points to the mean of their group."""
    return sum(
        float((points[groups == g] - points[groups == g].mean(0)).square().sum()) for g in groups.unique().tolist()
    )


def test_kmeans_never_gets_worse_with_iterations() -> None:
    points = torch.randn(5, 60, 3, generator=generator(1), dtype=torch.float64)
    for k in (2, 3, 5):
        found = [[inertia(p, g) for p, g in zip(points, kmeans(points, k, n), strict=True)] for n in range(12)]
        for before, after in itertools.pairwise(np.array(found)):
            assert (after <= before + 1e-9).all()
        assert np.array(found)[-1].sum() < np.array(found)[0].sum()


@pytest.mark.parametrize("k", [2, 3, 4])
def test_kmeans_finds_what_sklearn_finds_in_separated_blobs(k: int) -> None:
    rng = np.random.default_rng(k)
    centres = 10 * np.eye(4)[:k]
    truth = rng.integers(0, k, (3, 80))
    points = centres[truth] + rng.normal(size=(3, 80, 4))
    for i, groups in enumerate(kmeans(torch.from_numpy(points), k)):
        other = KMeans(k, n_init=5, random_state=0).fit(points[i])
        assert adjusted_rand_score(groups.numpy(), other.labels_) == 1.0
        assert inertia(torch.from_numpy(points[i]), groups) == pytest.approx(other.inertia_)


def test_kmeans_of_fewer_different_points_than_groups() -> None:
    groups = kmeans(torch.ones(1, 6, 2), 3)
    assert groups.shape == (1, 6) and len(groups.unique()) == 1


def test_candidates_contain_a_square_that_differs_from_its_ground() -> None:
    square = torch.zeros(2, 8, 8)
    square[0, 2:5, 3:6], square[1, 1:4, 1:3] = 1, 1
    a, b = torch.randn(2, 16, generator=generator(0))
    maps = torch.where(square[:, None] > 0, a[:, None, None], b[:, None, None])
    maps = maps + 0.05 * torch.randn(maps.shape, generator=generator(1))
    found = spectral_candidates(maps)
    assert found.shape == (2, 9, 8, 8) and set(found.unique().tolist()) == {0.0, 1.0}
    for i in range(2):
        assert any(torch.equal(candidate, square[i]) for candidate in found[i, :2]), "two groups: the square and the rest"
        for first, last in ((0, 2), (2, 5), (5, 9)):
            assert torch.equal(found[i, first:last].sum(0), torch.ones(8, 8)), "each k divides the picture"
        assert torch.equal(vote(found)[0][i], square[i])


def test_pseudo_masks_are_made_once(tmp_path: Path) -> None:
    path, said, calls = tmp_path / "pseudo_masks.npy", list[str](), list[int]()

    def make(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return batch.mean(1)

    images = Pictures(10)
    first = pseudo_mask_file(path, images, make, said.append, batch_size=4)
    assert isinstance(first, np.memmap), "many pictures' masks do not fit into memory"
    assert first.shape == (10, 32, 32) and first.dtype == np.uint8 and calls == [4, 4, 2]
    np.testing.assert_array_equal(first[7], np.rint(images.images[7].astype(np.float32).mean(0)))
    assert np.array_equal(pseudo_mask_file(path, images, make, said.append), first) and len(calls) == 3 and not said
    assert len(pseudo_mask_file(path, Pictures(6), make, said.append)) == 6 and calls[3:] == [6]
    assert "does not fit" in said[0]
    path.write_bytes(path.read_bytes()[:200])
    assert len(pseudo_mask_file(path, Pictures(6), make, said.append)) == 6 and len(said) == 2
    np.save(path, np.zeros((6, 8, 8)))
    assert pseudo_mask_file(path, Pictures(6), make, said.append).dtype == np.uint8 and len(said) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["pseudo_masks.npy"], "nothing half-written is left"


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (20, 200), (200, 20), (1, 9), (7, 5), (64, 64)])
def test_masks_have_the_size_of_the_picture(size: tuple[int, int]) -> None:
    method = tiny().eval()
    images = torch.rand(2, 3, *size, generator=generator(0))
    masks = method.segment(images)
    assert masks.shape == (2, *size) and masks.dtype == torch.float32
    assert float(masks.min()) >= 0 and float(masks.max()) <= 1
    torch.testing.assert_close(method.segment(images[1:])[0], masks[1], rtol=1e-4, atol=1e-5)


def test_segmenting_does_not_disturb_a_training() -> None:
    method = tiny().train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.segment(torch.rand(2, 3, 32, 32))
    assert method.net.training and method.average.module.training
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_what_is_given_stays_as_it_was() -> None:
    method = tiny()
    assert not any("features" in name for name in method.state_dict())
    assert method.net.encoder is not method.given["features"].encoder()
    frozen = tiny(encoder_lr_frac=0.0)
    assert all(not p.requires_grad for p in frozen.net.encoder.parameters())


@pytest.mark.parametrize("changes", [
    {"queries": 0}, {"decoder_depth": 0}, {"decoder_width": 18}, {"jitter": 5.0}, {"correct_weight": 2.0}, {"taus": (2.0,)},
    {"crop_min": -1.0}, {"crop_min": 2.0}, {"encoder_lr_frac": -1.0}, {"ema": -0.5},
])  # fmt: skip
def test_settings_that_cannot_be_trained_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, ConfigError)):
        replace(TINY, **changes)


def test_needs_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="needs features"):
        SelfMask(TINY, {})
    with pytest.raises(ConfigError, match="works at 64 px.*32 px"):
        SelfMask(replace(TINY, image_px=64), {"features": Brightness()})
    with pytest.raises(ConfigError, match="needs learned features"):
        SelfMask(TINY, {"features": tiny()})
    with pytest.raises(RuntimeError, match="begin"):
        tiny().prepare(Pictures(4).batch(range(4)), np.arange(4))


class Halves:
    """A run that says that the left half of every picture is the object."""

    name, capabilities = "halves", ("segment",)

    def segment(self, images: Tensor) -> Tensor:
        masks = torch.zeros_like(images[:, 0])
        masks[..., : images.shape[-1] // 2] = 1.25  # more than a mask may be
        return masks


def test_the_masks_of_a_run_are_the_pseudo_masks(tmp_path: Path) -> None:
    config, images = replace(TINY, teacher="run"), Pictures(32)
    with pytest.raises(ValueError, match="needs masks"):
        SelfMask(config, {"features": Brightness()})
    with pytest.raises(ConfigError, match="does not segment"):
        SelfMask(config, {"features": Brightness(), "masks": type("Blind", (), {"name": "blind", "capabilities": ()})()})
    method = SelfMask(config, {"features": Brightness(), "masks": Halves()})
    method.begin(images, tmp_path, lambda text: None)
    assert method.pseudo is not None
    assert method.pseudo.shape == (32, 32, 32) and (method.pseudo[..., :16] == 255).all() and not method.pseudo[..., 16:].any()
    assert set(SelfMask.needs_of(config)) == {"features", "masks"} and set(SelfMask.needs_of(TINY)) == {"features"}


def test_targets_are_cropped_like_pictures() -> None:
    method, images = tiny(jitter=0.0), Pictures(16)
    # Pseudo-masks at full size that are the truth: cropped brightness and cropped target must agree.
    method.pseudo = images.truth.astype(np.uint8) * 255
    torch.manual_seed(0)
    batch = method.prepare(images.batch(range(16)), np.arange(16))
    target = target_seen(method, batch)
    bright = nn.functional.avg_pool2d((batch["images"].mean(1, keepdim=True) > 0.5).float(), 2)
    assert float(((target > 0.5) == (bright > 0.5)).float().mean()) > 0.95


def target_seen(method: SelfMask, batch: dict[str, Tensor]) -> Tensor:
    """The target that the loss gives to Dice."""
    seen: list[Tensor] = []

    def record(probability: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return dice_loss(probability, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selftaught.segmentation.selfmask.dice_loss", record)
        method.loss(batch, "network", Progress(0, 10))
    return seen[0]


def mean_iou(masks: np.ndarray, truth: np.ndarray) -> float:
    found = masks > 0.5
    return float(((found & truth).sum((1, 2)) / (found | truth).sum((1, 2))).mean())


def learned_toy(steps: int, lr: float, tmp_path: Path) -> tuple[float, float]:
    """IoU of the pseudo-masks and of the network that was trained on them, with noisy features."""
    torch.manual_seed(0)
    config = replace(TINY, steps=steps, lr=lr, batch_size=32)
    method = SelfMask(config, {"features": Brightness(noise=0.25)})
    images = Pictures(96)
    method.begin(images, tmp_path, lambda text: None)
    player = method.players()["network"]
    optimizer = player.build_optimizer()
    for step in range(steps):
        progress = Progress(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = player.lr_at(progress)
        indices = np.random.default_rng(step).integers(0, 96, 32)
        loss, parts = method.loss(method.prepare(images.batch(indices), indices), "network", progress)
        assert math.isfinite(parts["dice"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(progress)
    method.eval()
    assert method.pseudo is not None
    pseudo = (method.pseudo / 255).repeat(4, 1).repeat(4, 2)
    return mean_iou(pseudo, images.truth), mean_iou(method.segment(images.batch(range(96)).float() / 255).numpy(), images.truth)


def test_the_network_gets_better_than_its_noisy_teachers(tmp_path: Path) -> None:
    pseudo, learned = learned_toy(60, 5e-3, tmp_path)
    assert 0.3 < pseudo < 0.9
    assert learned > pseudo + 0.03, (pseudo, learned)


def test_without_learning_it_does_not(tmp_path: Path) -> None:
    pseudo, learned = learned_toy(5, 0.0, tmp_path)
    assert learned < pseudo, (pseudo, learned)


@pytest.mark.parametrize("side", [4, 5, 8])
def test_a_blank_picture_does_not_stop_the_others(side: int) -> None:
    maps = torch.randn(3, 4, side, side, generator=generator(0))
    maps[1] = 2.0
    assert torch.isfinite(spectral_candidates(maps)).all()
    assert torch.equal(spectral_candidates(maps)[[0, 2]], spectral_candidates(maps[[0, 2]]))
    assert (centred(maps)[0].mean((1, 2)).abs() < 1e-6).all() and (centred(maps)[1] != 0).all()
    blank = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    assert tiny().pseudo_masks(blank).shape == (2, 8, 8)


def slow_otsu(values: list[float], bins: int) -> float:
    """The first of the thresholds 1/bins, 2/bins, ... with the largest variance between the two parts."""
    best, found = -1.0, 0.0
    for i in range(1, bins):
        above, below = [v for v in values if v > i / bins], [v for v in values if v <= i / bins]
        between = 0.0
        if above and below:
            between = len(above) * len(below) / len(values) ** 2 * (np.mean(above) - np.mean(below)) ** 2
        if between > best + 1e-9:
            best, found = between, i / bins
    return found


def test_otsu_is_the_slow_one() -> None:
    soft = torch.rand(6, 1, 7, 5, generator=generator(0), dtype=torch.float64)
    soft[1:] = soft[1:] ** 3
    soft[2, :, 2:4, 2:4] = 0.9
    found = otsu(soft)
    assert found.shape == (6, 1, 1, 1)
    assert found.flatten().tolist() == pytest.approx([slow_otsu(x.flatten().tolist(), 32) for x in soft])
    two = torch.where(torch.arange(16).view(1, 1, 4, 4) < 5, 0.6, 0.3)
    assert 0.3 < float(otsu(two)) < 0.6
    assert 0 < float(otsu(torch.full((1, 1, 4, 4), 0.5))) < 1, "a flat mask has some threshold as well"


def test_wisps_go_and_things_stay() -> None:
    thing = torch.full((1, 20, 20), 0.1)
    thing[0, 4:12, 4:12] = 0.9
    with_wisp = thing.clone()
    with_wisp[0, 8:10, 12:] = 0.9
    assert torch.equal(without_wisps(with_wisp, 3), thing)
    wide = thing.clone()
    wide[0, 8:11, 12:] = 0.9
    assert torch.equal(without_wisps(wide, 3), wide)
    assert torch.equal(without_wisps(with_wisp, 1), with_wisp)


def test_the_largest_values_are_as_many_as_the_share() -> None:
    soft = torch.rand(3, 1, 6, 8, generator=generator(1))
    found = largest(soft, 0.25)
    assert int(found.sum()) == 36 and set(found.unique().tolist()) == {0.0, 1.0}
    assert float(soft[found > 0].min()) >= float(soft[found == 0].max())
    assert float(largest(soft, 0.0).sum()) == 0 and float(largest(soft, 1.0).mean()) == 1


def test_masks_cover_at_the_end_what_the_pseudo_masks_cover() -> None:
    method, pictures = tiny().eval(), Pictures(12)
    shares = (0.1, 0.4)
    parts = []
    for share in shares:
        method.pseudo = np.zeros((12, 10, 10), np.uint8)
        method.pseudo[:, : round(10 * share)] = 255
        method.settle(pictures)
        with torch.no_grad():
            found = method.segment(pictures.batch(np.arange(12)).float() / 255) > 0.5
        assert float(found.float().mean()) == pytest.approx(share, abs=0.03)
        parts.append(float(method.part))
    assert parts[0] > parts[1]
