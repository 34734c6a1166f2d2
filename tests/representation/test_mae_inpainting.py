"""MAE as an inpainter: holes of the size of objects, an encoder that does not see them, and adversarial fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.method import Progress
from selftaught.nets.vit import Attention, ViT, patchify
from selftaught.representation.mae import MAE, block_keep, random_keep

TINY: Any = MAE.sizes["tiny"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_by_default_nothing_is_new() -> None:
    method = MAE(TINY)
    assert list(method.players()) == ["autoencoder"] and method.critic is None and TINY.block_prob == 0
    assert MAE.sizes["small"].critic_weight == 0 == MAE.sizes["paper"].block_prob


def longest_runs(hidden: np.ndarray) -> int:
    """Area of the largest rectangle of hidden patches, by trying them all."""
    h, w = hidden.shape
    best = 0
    for top in range(h):
        for bottom in range(top + 1, h + 1):
            run = 0
            for column in hidden[top:bottom].all(0):
                run = run + 1 if column else 0
                best = max(best, run * (bottom - top))
    return best


def test_blocks_are_hidden_and_as_many_patches_stay_as_asked() -> None:
    config = replace(TINY, mask_frac=0.5, block_prob=1.0, block_min=0.25, block_max=0.4)
    torch.manual_seed(0)
    keep, hidden = block_keep(60, 10, 12, config)
    assert keep.shape == (60, 60) and bool((hidden.sum(1) == 60).all())
    assert bool((hidden.gather(1, keep) == 0).all()) and all(len(set(row)) == 60 for row in keep.tolist())
    torch.manual_seed(0)
    _, random = block_keep(60, 10, 12, replace(config, block_prob=0.0))
    with_block = [longest_runs(x.view(10, 12).numpy() > 0) for x in hidden]
    without = [longest_runs(x.view(10, 12).numpy() > 0) for x in random]
    assert min(with_block) >= 0.6 * 0.25 * 120, "rounding to whole patches may take a row"
    assert max(without) < min(with_block)
    torch.manual_seed(1)
    _, some = block_keep(300, 10, 12, replace(config, block_prob=0.5))
    share = np.mean([longest_runs(x.view(10, 12).numpy() > 0) >= 18 for x in some])
    assert 0.35 < share < 0.65


def test_blocks_lie_everywhere() -> None:
    torch.manual_seed(0)
    _, hidden = block_keep(3000, 8, 8, replace(TINY, mask_frac=0.4, block_prob=1.0, block_min=0.1, block_max=0.3))
    often = hidden.mean(0).view(8, 8)
    assert float(hidden.mean()) == pytest.approx(26 / 64, abs=1e-6)  # 64 - floor(0.6 * 64)
    assert float(often[0, 0]) > 0.2 and float(often[4, 4]) > float(often[0, 0]), "a block covers the middle more often"


def test_settings_that_cannot_be_are_refused() -> None:
    for share in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="mask_frac"):
            MAE(replace(TINY, mask_frac=share))
    for wrong in ({"block_min": 0.5, "block_max": 0.4}, {"block_max": 0.9}, {"block_min": 0.0}):
        with pytest.raises(ValueError, match="block_min"):
            MAE(replace(TINY, block_prob=1.0, **wrong))


@pytest.mark.parametrize("kernel", ["fused", "plain"])
def test_what_is_not_seen_changes_nothing_and_the_rest_is_as_if_it_were_gathered(kernel: str) -> None:
    torch.manual_seed(0)
    vit = ViT(32, 8, 32, 2, 2).eval()
    for part in vit.modules():
        if isinstance(part, Attention):
            part.kernel = kernel
    images = torch.randn(2, 3, 32, 32, generator=generator(0))
    keep = torch.tensor([[0, 3, 5, 9], [1, 2, 12, 15]])
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter(1, keep, True)
    with torch.no_grad():
        gathered = vit(images, keep=keep)
        masked = vit(images, seen=seen)
        place = keep[..., None].expand(-1, -1, 32)
        torch.testing.assert_close(masked[:, :1], gathered[:, :1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masked[:, 1:].gather(1, place), gathered[:, 1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vit(images, seen=torch.ones(2, 16, dtype=torch.bool)), vit(images), rtol=1e-4, atol=1e-5)
        nothing = vit(images, seen=torch.zeros(2, 16, dtype=torch.bool))
    assert torch.isfinite(nothing).all(), "the class token is always seen"


def test_a_masked_encoder_leaks_nothing_of_what_is_filled(pictures: Tensor) -> None:
    torch.manual_seed(0)
    method = MAE(TINY).eval()
    images = pictures.float() / 255
    masks = torch.zeros(8, 32, 32)
    masks[:, 8:24, 8:24] = 1
    other = images * (1 - masks[:, None]) + torch.rand(images.shape, generator=generator(1)) * masks[:, None]
    with torch.no_grad():
        torch.testing.assert_close(
            method.inpaint(images, masks, masked_encoder=True), method.inpaint(other, masks, masked_encoder=True), rtol=0, atol=1e-5
        )
        leaking = method.inpaint(images, masks) - method.inpaint(other, masks)
    assert float(leaking.abs().max()) > 1e-4, "otherwise the encoder sees what it is to fill"


def test_with_a_masked_encoder_gradients_still_reach_soft_masks(pictures: Tensor) -> None:
    method = MAE(TINY).eval().requires_grad_(False)
    images = pictures.float() / 255
    masks = torch.zeros(8, 32, 32)
    masks[:, 8:24, 8:24] = 0.7
    masks.requires_grad_()
    (method.inpaint(images, masks, masked_encoder=True) - images).square().mean().backward()
    assert masks.grad is not None and bool(((masks.grad.abs() > 0).flatten(1).sum(1) >= 4).all())


def critical(**changes: Any) -> MAE:
    torch.manual_seed(0)
    return MAE(replace(TINY, critic_weight=0.1, critic_from=0.5, critic_width=4, norm_pixels=False, **changes)).train()


def test_the_critic_waits_for_its_time(pictures: Tensor) -> None:
    method = critical()
    players = method.players()
    assert list(players) == ["critic", "autoencoder"]
    names = {key: {name for name, _ in player.parameters} for key, player in players.items()}
    assert not any(name.startswith("critic") for name in names["autoencoder"])
    assert len(names["critic"]) + len(names["autoencoder"]) == len(list(method.parameters()))
    batch = method.prepare(pictures, np.arange(8))
    for step, judged in ((0, False), (9, False), (10, True)):
        loss, parts = method.loss(batch, "critic", Progress(step, 20))
        loss.backward()  # type: ignore[no-untyped-call]
        assert (float(loss) > 0) == judged and ("fooled" in method.loss(batch, "autoencoder", Progress(step, 20))[1]) == judged
        gradient = sum(float(p.grad.abs().sum()) for p in method.critic.parameters() if p.grad is not None)  # type: ignore[union-attr]
        assert (gradient > 0) == judged
        assert all(p.grad is None for n, p in method.named_parameters() if not n.startswith("critic."))
        method.zero_grad()


def test_the_critic_steers_only_what_is_painted(pictures: Tensor) -> None:
    """Down the critic's part of the gradient, what the critic says of the painted picture rises."""
    method = critical()
    batch = method.prepare(pictures, np.arange(8))
    found = []
    for weight in (0.0, 0.1):
        method.config = replace(method.config, critic_weight=weight)
        torch.manual_seed(3)
        loss, parts = method.loss(batch, "autoencoder", Progress(15, 20))
        found.append(float(loss.detach()))
    assert found[1] - found[0] == pytest.approx(0.1 * parts["fooled"], abs=1e-5)


def test_it_trains_with_blocks_and_critic(train_steps: Callable[..., list[float]]) -> None:
    method = critical(block_prob=1.0)
    before = {n: p.clone() for n, p in method.named_parameters()}
    assert len(train_steps(method, 4)) == 8
    weights = [(n, p) for n, p in method.critic.named_parameters(prefix="critic") if p.ndim > 1]  # type: ignore[union-attr]
    assert weights and all(not torch.equal(p, before[n]) for n, p in weights)


def test_seen_patches_count_when_they_are_to_be_auto_encoded(pictures: Tensor) -> None:
    method = MAE(replace(TINY, norm_pixels=False)).eval()
    batch = pictures.float() / 255
    found = {}
    for weight in (0.0, 0.5):
        method.config = replace(method.config, seen_weight=weight)
        torch.manual_seed(3)
        found[weight] = method.loss(batch, "autoencoder", Progress(0, 1))[1]["pixels"]
    torch.manual_seed(3)
    keep, hidden = random_keep(8, 16, method.config.mask_frac)
    with torch.no_grad():
        error = (method.paint(batch, keep)[..., :-2] - patchify(batch, 8)).square().mean(-1)
    assert found[0.0] == pytest.approx(float((error * hidden).sum() / hidden.sum()), rel=1e-5)
    weights = hidden + 0.5 * (1 - hidden)
    assert found[0.5] == pytest.approx(float((error * weights).sum() / weights.sum()), rel=1e-5)
