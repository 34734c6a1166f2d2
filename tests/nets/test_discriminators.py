"""Discriminators: hinge losses and spectral norms against NumPy, fixed projections, and both kinds learn to tell noise from smooth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught.nets.discriminators import (
    Head,
    PatchDiscriminator,
    PixelDiscriminator,
    PlaceDiscriminator,
    ProjectedDiscriminator,
    RandomProjections,
    SpectralConv2d,
    advance,
    fooled,
    hinge_fake,
    hinge_real,
    unchanged_loss,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hinges_are_the_formulas() -> None:
    logits = 2 * torch.randn(4, 7, generator=generator(0))
    x = logits.numpy()
    assert float(hinge_real(logits)) == pytest.approx(np.maximum(0, 1 - x).mean(), rel=1e-6)
    assert float(hinge_fake(logits)) == pytest.approx(np.maximum(0, 1 + x).mean(), rel=1e-6)
    assert float(fooled(logits)) == pytest.approx(-x.mean(), rel=1e-5)
    assert float(hinge_real(torch.full((2, 3), 1.5)) + hinge_fake(torch.full((2, 3), -1.5))) == 0


def test_the_spectral_norm_becomes_one() -> None:
    torch.manual_seed(0)
    layer = SpectralConv2d(5, 7, 3)
    layer.advance(200)
    largest = np.linalg.svd(layer.weight.detach().flatten(1).numpy(), compute_uv=False)[0]
    assert float(layer.sigma().detach()) == pytest.approx(largest, rel=1e-4)
    x = torch.randn(2, 5, 6, 6, generator=generator(1))
    expected = nn.functional.conv2d(x, layer.weight / largest, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)


def test_a_forward_pass_moves_nothing_and_advance_does() -> None:
    torch.manual_seed(0)
    net = PixelDiscriminator(4).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(torch.rand(2, 3, 32, 32, generator=generator(2)))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    advance(net)
    changed = {k.rpartition(".")[2] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"u", "v"}


def test_the_estimate_may_move_between_forward_and_backward() -> None:
    torch.manual_seed(0)
    layer = SpectralConv2d(3, 4, 3)
    loss = layer(torch.rand(1, 3, 5, 5, generator=generator(3))).sum()
    layer.advance()
    loss.backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None and torch.isfinite(layer.weight.grad).all()


def maps(seed: int = 4) -> list[Tensor]:
    draw = generator(seed)
    return [torch.randn(2, c, s, s, generator=draw) for c, s in ((6, 16), (10, 8), (12, 4))]


def slow_mix(found: list[Tensor], fixed: RandomProjections) -> list[Tensor]:
    below, out = None, []
    for i in (2, 1, 0):
        x = torch.einsum("oc,bchw->bohw", fixed.get_buffer(f"enter{i}")[..., 0, 0], found[i])
        x = x if below is None else x + below
        if i:
            x = nn.functional.interpolate(x, size=found[i - 1].shape[-2:], mode="bilinear", align_corners=True)
        below = torch.einsum("oc,bchw->bohw", fixed.get_buffer(f"mix{i}")[..., 0, 0], x)
        out.insert(0, below)
    return out


def test_projections_are_fixed_and_mix_channels_and_scales() -> None:
    torch.manual_seed(0)
    fixed = RandomProjections((6, 10, 12), 8)
    assert not list(fixed.parameters()) and fixed.widths == [8, 8, 16]
    found = fixed(maps())
    assert [tuple(x.shape[1:]) for x in found] == [(8, 16, 16), (8, 16, 16), (16, 8, 8)]
    for a, b in zip(found, slow_mix(maps(), fixed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    larger = RandomProjections((6, 10, 12), 8, enlarge=True)(maps())
    assert larger[0].shape[-1] == 32
    changed = maps()
    changed[2] = changed[2] + 1
    assert not torch.allclose(fixed(changed)[0], found[0]), "what is coarse reaches what is fine"


def test_widths_are_those_of_projected_gan() -> None:
    assert RandomProjections((24, 40, 112, 320), 64).widths == [64, 64, 128, 256]


@pytest.mark.parametrize("size", [3, 4, 8, 12, 24, 48])
def test_heads_take_any_size(size: int) -> None:
    logits = Head(5, size, 6)(torch.randn(2, 5, size, size, generator=generator(5)))
    assert logits.shape[:2] == (2, 1) and logits.shape[-1] >= 1


def test_patches_are_judged_alike_wherever_they_are() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(4).eval()
    images = torch.rand(2, 3, 48, 48, generator=generator(8))
    with torch.no_grad():
        logits, moved = net(images), net(images.roll((8, -4), (2, 3)))
    assert torch.allclose(moved[:, :, 3:7, 1:6], logits[:, :, 1:5, 2:7], atol=1e-5), "moved by a stride of 4, a logit moves by one"
    images.requires_grad_(True)
    net(images)[:, :, 3, 3].sum().backward()
    seen = images.grad.abs().amax((0, 1)) > 0  # type: ignore[union-attr]
    assert int(seen.any(1).sum()) == int(seen.any(0).sum()) == 22
    images.grad = None
    net(images).sum().backward()
    assert bool((images.grad.abs().amax((0, 1)) > 0).all()), "the border is seen as well"  # type: ignore[union-attr]


def test_a_place_is_changed_as_far_as_its_most_changed_pixel() -> None:
    logits = torch.randn(2, 1, 4, 4, generator=generator(9))
    changed = torch.zeros(2, 1, 16, 16)
    changed[0, 0, 5, 9], changed[1, 0, 15, 0] = 1.0, 0.25
    target = np.ones((2, 1, 4, 4))
    target[0, 0, 1, 2], target[1, 0, 3, 0] = 0.0, 0.75
    z = logits.double().numpy()
    by_hand = (np.log1p(np.exp(-z)) * target + np.log1p(np.exp(z)) * (1 - target)).mean()
    assert float(unchanged_loss(logits, changed)) == pytest.approx(by_hand, rel=1e-6)
    assert float(unchanged_loss(logits, None)) == pytest.approx(np.log1p(np.exp(-z)).mean(), rel=1e-6)


def test_places_learn_where_noise_was_pasted() -> None:
    torch.manual_seed(0)
    net = PlaceDiscriminator(6).train()
    assert net(torch.rand(2, 3, 48, 40)).shape == (2, 1, 12, 10)
    draw = generator(10)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(80):
        smooth = nn.functional.interpolate(torch.rand(8, 3, 3, 3, generator=draw), (32, 32), mode="bilinear")
        changed = torch.zeros(8, 1, 32, 32)
        for i, (top, left) in enumerate(torch.randint(0, 24, (8, 2), generator=draw).tolist()):
            changed[i, :, top : top + 8, left : left + 8] = 1
        pictures = torch.where(changed > 0, torch.rand(8, 3, 32, 32, generator=draw), smooth)
        logits = net(pictures)
        loss = unchanged_loss(logits, changed)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    there = nn.functional.adaptive_avg_pool2d(changed, (8, 8))
    assert float((logits[there == 1] < 0).float().mean()) > 0.9 and float((logits[there == 0] > 0).float().mean()) > 0.8


@pytest.mark.parametrize("kind", ["pixels", "patches", "places", "features"])
def test_noise_is_told_from_smooth_pictures(kind: str) -> None:
    torch.manual_seed(0)
    frozen = nn.ModuleList([nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 10, 3, 2, 1)]).requires_grad_(False)

    def pyramid(x: Tensor) -> list[Tensor]:
        first = frozen[0](x).relu()
        return [first, frozen[1](first).relu()]

    on_pixels = {"pixels": PixelDiscriminator, "patches": PatchDiscriminator, "places": PlaceDiscriminator}
    net: Any = on_pixels[kind](4) if kind in on_pixels else ProjectedDiscriminator((6, 10), (16, 8), 8)

    def judge(x: Tensor) -> Tensor:
        return net(x if kind in on_pixels else pyramid(x))

    draw = generator(6)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, betas=(0.0, 0.99))
    for _ in range(60):
        noise = torch.rand(16, 3, 32, 32, generator=draw)
        smooth = nn.functional.interpolate(torch.rand(16, 3, 2, 2, generator=draw), (32, 32), mode="bilinear")
        real, fake = judge(torch.cat([smooth, noise])).chunk(2)  # batch norms must see both kinds at once
        loss = hinge_real(real) + hinge_fake(fake)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        advance(net)
    assert float((real > 0).float().mean()) > 0.8 and float((fake < 0).float().mean()) > 0.8
    assert all(p.grad is None for p in frozen.parameters())
