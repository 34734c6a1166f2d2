"""SimCLR: the loss against equation 1 in a slow loop, known values, invariances, and the method class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.method import Progress
from selftaught.representation.simclr import SimCLR, nt_xent, turn

TINY = SimCLR.sizes["tiny"]


def slow_nt_xent(z1: Tensor, z2: Tensor, t: float) -> float:
    """Equation 1 in float64, pair by pair."""
    B = len(z1)
    z = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in torch.cat([z1, z2]).double().tolist()]

    def like(i: int, k: int) -> float:
        return math.exp(sum(a * b for a, b in zip(z[i], z[k], strict=True)) / t)

    total = 0.0
    for i in range(2 * B):
        j = i + B if i < B else i - B
        total += -math.log(like(i, j) / sum(like(i, k) for k in range(2 * B) if k != i))
    return total / (2 * B)


@pytest.mark.parametrize(("B", "D", "t"), [(2, 3, 0.5), (3, 2, 0.1), (5, 8, 0.2), (4, 1, 1.0), (7, 16, 0.07)])
def test_the_loss_is_equation_1(B: int, D: int, t: float) -> None:
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        z1, z2 = torch.randn(2, B, D, generator=draw, dtype=torch.float64) * 3
        assert float(nt_xent(z1, z2, t)) == pytest.approx(slow_nt_xent(z1, z2, t), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("B", [2, 4, 9])
def test_identical_vectors_give_the_loss_of_guessing(B: int) -> None:
    z = torch.tensor([[0.3, -2.0, 1.0]]).expand(B, 3)
    assert float(nt_xent(z, z, 0.2)) == pytest.approx(math.log(2 * B - 1), abs=1e-5)


def test_known_value_of_two_opposite_pairs() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    # One positive at cosine 1, two negatives at cosine -1.
    assert float(nt_xent(z, z, 1.0)) == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-6)


def test_order_view_and_length_do_not_matter() -> None:
    draw = torch.Generator().manual_seed(1)
    z1, z2 = torch.randn(2, 6, 5, generator=draw)
    loss = float(nt_xent(z1, z2, 0.2))
    order = torch.randperm(6, generator=draw)
    assert float(nt_xent(z1[order], z2[order], 0.2)) == pytest.approx(loss, abs=1e-6)
    assert float(nt_xent(z2, z1, 0.2)) == pytest.approx(loss, abs=1e-6)
    assert float(nt_xent(z1 * torch.rand(6, 1, generator=draw).add(0.1), 7 * z2, 0.2)) == pytest.approx(loss, abs=1e-6)
    assert float(nt_xent(z1, z2[order], 0.2)) != pytest.approx(loss, abs=1e-2), "pairs that do not belong together"


def test_a_step_down_the_gradient_brings_the_views_together() -> None:
    draw = torch.Generator().manual_seed(2)
    z1, z2 = torch.randn(2, 6, 5, generator=draw)
    z1.requires_grad_()
    nt_xent(z1, z2, 0.2).backward()
    assert z1.grad is not None
    cosine = torch.nn.functional.cosine_similarity
    assert cosine((z1 - 0.1 * z1.grad).detach(), z2).mean() > cosine(z1.detach(), z2).mean()


def test_one_picture_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="at least two pictures"):
        nt_xent(torch.ones(1, 2), torch.ones(1, 2), 0.2)
    with pytest.raises(ValueError, match="at least two pictures"):
        SimCLR(replace(TINY, batch_size=1))
    with pytest.raises(ValueError, match="at least two pictures"):
        SimCLR(replace(TINY, batch_size=8, accumulate=5))


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="temperature"):
        SimCLR(replace(TINY, temperature=0.0))
    with pytest.raises(ConfigError, match="no map of stride 3"):
        SimCLR(replace(TINY, patch_px=3))
    with pytest.raises(ConfigError, match="Did you mean 'resnet18-16'"):
        SimCLR(replace(TINY, backbone="resnet18-61"))


def test_tiny_trains_and_embeds(train_steps: Callable[..., list[float]], pictures: Tensor) -> None:
    method = SimCLR(TINY)
    losses = train_steps(method, 3)
    assert len(losses) == 3 and all(math.isfinite(x) and x > 0 for x in losses)
    method.eval()
    images = pictures.float() / 255
    with torch.no_grad():
        vectors, maps = method.embed(images), method.features(images)
        alone = method.embed(images[2:3])
    side = TINY.image_px // method.patch_px
    assert vectors.shape == (8, method.backbone.width) and vectors.dtype == torch.float32
    assert maps.shape == (8, method.backbone.token_width, side, side)
    torch.testing.assert_close(alone[0], vectors[2], rtol=1e-4, atol=1e-5)


def test_views_may_be_smaller_than_the_pictures(train_steps: Callable[..., list[float]], pictures: Tensor) -> None:
    method = SimCLR(replace(TINY, view_px=24))
    views = method.prepare(pictures, np.arange(8))["views"]
    assert views.shape == (16, 3, 24, 24) and not torch.equal(views[:8], views[8:])
    assert all(math.isfinite(x) for x in train_steps(method, 1))
    assert method.embed(pictures.float() / 255).shape == (8, method.backbone.width)


def test_collapse_shows_in_the_meters(pictures: Tensor) -> None:
    method = SimCLR(TINY)
    healthy = method.loss(method.prepare(pictures, np.arange(8)), "encoder", Progress(0, 1))[1]
    collapsed = method.loss({"views": torch.full((16, 3, 32, 32), 0.5)}, "encoder", Progress(0, 1))[1]
    assert collapsed["std_z"] < 1e-4 < healthy["std_z"]


def test_pictures_are_turned_by_quarters() -> None:
    images = torch.arange(4 * 3 * 9.0).view(4, 3, 3, 3)
    turned = turn(images, torch.tensor([0, 1, 2, 3]))
    for i in range(4):
        for y in range(3):
            for x in range(3):
                to_y, to_x = [(y, x), (2 - x, y), (2 - y, 2 - x), (x, 2 - y)][i]  # counter-clockwise
                assert torch.equal(turned[i, :, to_y, to_x], images[i, :, y, x])
    assert torch.equal(turn(turned, torch.tensor([0, 3, 2, 1])), images)


def test_telling_the_turn_is_a_part_of_the_loss(train_steps: Callable[..., list[float]], pictures: Tensor) -> None:
    torch.manual_seed(0)
    method = SimCLR(replace(TINY, rotation=0.5))
    batch = method.prepare(pictures, np.arange(8))
    assert batch["turned"].shape == (8, 3, 32, 32) and set(batch["turns"].tolist()) <= {0, 1, 2, 3}
    loss, parts = method.loss(batch, "encoder", Progress(0, 1))
    assert float(loss.detach()) == pytest.approx(parts["contrast"] + 0.5 * parts["turning"], rel=1e-6)
    assert 0 <= parts["turns_right"] <= 1
    loss.backward()  # type: ignore[no-untyped-call]
    assert method.turn_head is not None and all(p.grad is not None for p in method.turn_head.parameters())
    assert "turns" not in SimCLR(TINY).prepare(pictures, np.arange(8))
    assert all(math.isfinite(x) for x in train_steps(method, 2))
