"""MAE: loss against slow loops, what is hidden stays hidden, inpainting, and the method class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.method import Progress
from selftaught.nets.vit import patchify, unpatchify
from selftaught.representation.mae import MAE, mae_loss, patch_statistics, random_keep

TINY: Any = MAE.sizes["tiny"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_mae(painted: Tensor, patches: Tensor, hidden: Tensor, norm: bool) -> float:
    """The mean over hidden patches of the mean squared error to the (normalised) patch."""
    errors = []
    for b in range(len(patches)):
        for i in range(patches.shape[1]):
            if hidden[b, i] == 0:
                continue
            target = patches[b, i].tolist()
            if norm:
                n = len(target)
                mean = sum(target) / n
                variance = sum((x - mean) ** 2 for x in target) / (n - 1)
                target = [(x - mean) / math.sqrt(variance + 1e-4) for x in target]
            errors.append(sum((p - t) ** 2 for p, t in zip(painted[b, i].tolist(), target, strict=True)) / len(target))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("B", "N", "D"), [(1, 1, 3), (2, 4, 12), (3, 9, 27)])
def test_the_loss_is_the_mean_over_hidden_patches(B: int, N: int, D: int, norm: bool) -> None:
    for seed in range(3):
        draw = generator(seed)
        patches = torch.rand(B, N, D, generator=draw, dtype=torch.float64)
        painted = torch.randn(B, N, D, generator=draw)
        hidden = (torch.rand(B, N, generator=draw) < 0.6).double()
        hidden[0, 0] = 1
        assert float(mae_loss(painted, patches, hidden, norm)) == pytest.approx(
            slow_mae(painted, patches, hidden, norm), abs=1e-9, rel=1e-9
        )


def test_perfect_painting_costs_nothing_and_flat_patches_are_not_blown_up() -> None:
    patches = torch.rand(2, 4, 12, generator=generator(0))
    hidden = torch.ones(2, 4)
    assert float(mae_loss(patches, patches, hidden, False)) == 0
    mean, std = patch_statistics(patches)[..., None].unbind(2)
    assert float(mae_loss((patches - mean) / (std**2 + 1e-4).sqrt(), patches, hidden, True)) < 1e-12
    flat = 0.5 + 1e-4 * torch.randn(2, 4, 12, generator=generator(1))
    assert float(mae_loss(torch.zeros(2, 4, 12), flat, hidden, True)) < 1e-3
    assert float(mae_loss(patches, patches, torch.zeros(2, 4), True)) == 0, "nothing hidden, nothing to paint"


def test_visible_patches_get_no_gradient() -> None:
    draw = generator(2)
    painted = torch.randn(2, 6, 12, generator=draw, requires_grad=True)
    hidden = torch.tensor([[1.0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 1]])
    mae_loss(painted, torch.rand(2, 6, 12, generator=draw), hidden, True).backward()
    assert painted.grad is not None
    touched = painted.grad.abs().sum(-1) > 0
    assert torch.equal(touched, hidden > 0)


def test_the_order_of_pictures_and_patches_does_not_matter() -> None:
    draw = generator(3)
    painted, patches = torch.randn(3, 6, 12, generator=draw), torch.rand(3, 6, 12, generator=draw)
    hidden = (torch.rand(3, 6, generator=draw) < 0.5).float()
    rows, places = torch.randperm(3, generator=draw), torch.randperm(6, generator=draw)

    def shuffle(x: Tensor) -> Tensor:
        return x[rows][:, places]

    assert float(mae_loss(shuffle(painted), shuffle(patches), shuffle(hidden), True)) == pytest.approx(
        float(mae_loss(painted, patches, hidden, True)), rel=1e-6
    )


@pytest.mark.parametrize(("height", "width", "p"), [(8, 8, 4), (12, 6, 2), (6, 9, 3)])
def test_patches_go_back_to_the_picture(height: int, width: int, p: int) -> None:
    images = torch.rand(2, 3, height, width, generator=generator(0))
    patches = patchify(images, p)
    assert patches.shape == (2, height * width // p**2, 3 * p * p)
    assert torch.equal(unpatchify(patches, p, height), images)
    assert torch.equal(patches[1, 1].view(3, p, p), images[1, :, :p, p : 2 * p]), "row by row, channels first"
    with pytest.raises(ValueError, match="do not divide"):
        patchify(images, 5)


@pytest.mark.parametrize(
    ("N", "frac", "K"), [(16, 0.75, 4), (10, 0.8, 2), (10, 0.9, 1), (100, 0.8, 20), (9, 0.75, 2), (4, 0.99, 1), (5, 0.0, 5)]
)
def test_as_many_patches_stay_as_asked(N: int, frac: float, K: int) -> None:
    torch.manual_seed(N)
    keep, hidden = random_keep(6, N, frac)
    assert keep.shape == (6, K) and hidden.shape == (6, N)
    assert (hidden.sum(1) == N - K).all() and set(hidden.unique().tolist()) <= {0.0, 1.0}
    assert (hidden.gather(1, keep) == 0).all()
    assert all(len(set(row)) == K for row in keep.tolist())


def test_every_patch_is_kept_equally_often() -> None:
    torch.manual_seed(0)
    _, hidden = random_keep(4000, 8, 0.75)
    torch.testing.assert_close(hidden.mean(0), torch.full((8,), 0.75), rtol=0, atol=0.03)


def test_the_painting_knows_nothing_of_hidden_pixels(pictures: Tensor) -> None:
    method = MAE(TINY).eval()
    images = pictures.float() / 255
    torch.manual_seed(1)
    keep, hidden = random_keep(8, 16, 0.75)
    away = unpatchify(hidden[..., None].expand(-1, -1, 192), 8, 32)
    other = images * (1 - away) + torch.rand(images.shape, generator=generator(1)) * away
    seen = images * away + torch.rand(images.shape, generator=generator(1)) * (1 - away)
    with torch.no_grad():
        painted = method.paint(images, keep)
        assert torch.equal(method.paint(other, keep), painted)
        assert not torch.allclose(method.paint(seen, keep), painted)
    assert painted.shape == (8, 16, 3 * 8 * 8 + 2)


@pytest.mark.parametrize("norm", [True, False])
def test_a_perfect_painting_becomes_the_picture(norm: bool, pictures: Tensor) -> None:
    method = MAE(replace(TINY, norm_pixels=norm))
    images = pictures.float() / 255
    images[0] = 0.5 * images[0] * 0.02 + 0.4  # a picture of little contrast
    patches = patchify(images, 8)
    statistics = patch_statistics(patches)
    mean, std = statistics[..., None].unbind(2)
    pixels = (patches - mean) / (std**2 + 1e-4).sqrt() if norm else patches
    torch.testing.assert_close(method.picture(torch.cat([pixels, statistics], -1)), images, rtol=0, atol=1e-5)


def test_inpainting_gives_pictures_and_gradients_to_soft_masks(pictures: Tensor) -> None:
    method = MAE(TINY).eval()
    images = pictures.float() / 255
    masks = torch.zeros(8, 32, 32)
    masks[:, 8:24, 8:24] = 0.7
    masks.requires_grad_()
    filled = method.inpaint(images, masks)
    assert filled.shape == images.shape
    assert float(filled.detach().min()) >= 0 and float(filled.detach().max()) <= 1
    (filled - images).square().mean().backward()
    assert masks.grad is not None and torch.isfinite(masks.grad).all()
    touched = (masks.grad.abs() > 0).flatten(1).sum(1)
    assert (touched >= 4).all(), "the largest value of every patch of the hole has a gradient"
    with torch.no_grad():
        assert not torch.allclose(method.inpaint(images, torch.zeros(8, 32, 32)), method.inpaint(images, torch.ones(8, 32, 32)))


def test_a_full_mask_hides_every_token_from_the_decoder() -> None:
    method = MAE(TINY).eval()
    tokens = torch.randn(2, 16, method.backbone.width, generator=generator(0))
    cls = torch.randn(2, 1, method.backbone.width, generator=generator(1))
    with torch.no_grad():
        hidden = [method.decoder(cls, x, torch.zeros(2, 16), 4) for x in (tokens, -tokens)]
        seen = [method.decoder(cls, x, torch.ones(2, 16), 4) for x in (tokens, -tokens)]
    assert torch.equal(*hidden) and not torch.allclose(*seen)


def test_tiny_trains_and_embeds(train_steps: Callable[..., list[float]], pictures: Tensor) -> None:
    method = MAE(TINY)
    losses = train_steps(method, 3)
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    method.eval()
    with torch.no_grad():
        vectors, maps = method.embed(pictures.float() / 255), method.features(pictures.float() / 255)
        method.paint(pictures.float() / 255, torch.arange(4).expand(8, 4))
    assert vectors.shape == (8, method.backbone.width) and maps.shape == (8, method.backbone.width, 4, 4)
    shown = method.show(pictures.float() / 255)
    assert set(shown) == {"features", "painted"}
    assert shown["painted"].shape == (3 * 32, 8 * 32, 3) and shown["painted"].dtype == np.uint8


def test_training_paints_better_than_it_did() -> None:
    torch.manual_seed(0)
    method = MAE(replace(TINY, norm_pixels=False, crop_min=1.0)).train()
    ramp = torch.linspace(0, 1, 32)
    pictures = (torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)]) * 255).to(torch.uint8)
    pictures = pictures[:, None].expand(-1, 3, -1, -1).repeat(8, 1, 1, 1)
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    losses = []
    for step in range(40):
        loss, _ = method.loss(method.prepare(pictures, np.arange(16)), "autoencoder", Progress(step, 40))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.25 * np.mean(losses[:5])


@pytest.mark.parametrize("changes", [{"backbone": "resnet-tiny-test", "patch_px": 4}, {"stem": "conv"}])
def test_a_network_that_looks_into_hidden_patches_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ViT backbone with the linear stem"):
        MAE(replace(TINY, **changes))
