"""The warp's sign and units, blocks at odd sizes, the modulated convolution against the formula, the LSTM's state."""

from __future__ import annotations

import pytest
import torch

from selftaught.nets.phase_correlation import correlation_surface, neighbour_surfaces, phase_correlation, robust_match
from selftaught.nets.video_blocks import ConvLSTM, ModConv, ResBlock, SameBlock, UpBlock, from_px, shift_layer, to_px


@pytest.mark.parametrize("dx,dy", [(3, 0), (0, 2), (-4, 1), (0, 0), (2, -5)])
def test_whole_pixel_shifts_are_rolls_inside_of_the_frame(dx: int, dy: int) -> None:
    x = torch.rand(2, 3, 12, 20)
    d = from_px(torch.tensor([[float(dx), float(dy)]]), 12, 20).expand(2, 2)
    moved, rolled = shift_layer(x, d, "zeros"), torch.roll(x, (dy, dx), (2, 3))
    rows, columns = slice(max(dy, 0), 12 + min(dy, 0)), slice(max(dx, 0), 20 + min(dx, 0))
    assert torch.allclose(moved[:, :, rows, columns], rolled[:, :, rows, columns], atol=1e-5)
    outside = torch.ones(12, 20, dtype=torch.bool)
    outside[rows, columns] = False
    assert float(moved[:, :, outside].abs().sum()) < 1e-4
    border = shift_layer(x, d, "border")
    if dx > 0:
        assert torch.allclose(border[:, :, rows, 0], x[:, :, max(-dy, 0) : 12 - max(dy, 0), 0], atol=1e-5)
    assert torch.allclose(to_px(d, 12, 20)[0], torch.tensor([float(dx), float(dy)]), atol=1e-5)


def test_half_pixel_shifts_interpolate_and_go_back() -> None:
    x = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 20, 20), 5, 1, 2)
    d = from_px(torch.tensor([[0.5, 0.0]]), 20, 20)
    assert torch.allclose(shift_layer(x, d, "zeros")[..., 1:], (x[..., 1:] + x[..., :-1]) / 2, atol=1e-5)
    there_and_back = shift_layer(shift_layer(x, d, "border"), -d, "border")
    assert float((there_and_back - x)[..., 2:-2].abs().max()) < 0.05


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30])
def test_a_shift_that_is_not_finite_is_seen_and_does_no_harm(bad: float) -> None:
    x, shift = torch.rand(2, 3, 8, 8, requires_grad=True), torch.tensor([[bad, 0.0], [0.25, 0.0]], requires_grad=True)
    for padding in ("zeros", "border"):
        out = shift_layer(x, shift, padding)  # type: ignore[arg-type]
        out.sum().backward()
        assert bool(torch.isfinite(out[1]).all()) and (abs(bad) < 1e31 or not bool(torch.isfinite(out[0]).any()))


def test_blocks_have_their_shapes_at_odd_sizes() -> None:
    x = torch.rand(2, 4, 10, 14)
    assert SameBlock(4, 6, 2)(x).shape == (2, 6, 5, 7)
    assert ResBlock(4, 6, 2)(x).shape == (2, 6, 5, 7) and ResBlock(4, 4)(x).shape == x.shape
    assert UpBlock(4, 6)(x).shape == (2, 6, 20, 28) and UpBlock(4, 6, late=True)(x, (11, 15)).shape == (2, 6, 11, 15)
    assert ModConv(4, 6, 3, 2)(x, torch.rand(2, 3)).shape == (2, 6, 5, 7)


@pytest.mark.parametrize("size", [(12, 16), (11, 16)])
def test_halving_without_gradients_is_the_same(size: tuple[int, int]) -> None:
    for block in (ResBlock(5, 8, 2), SameBlock(5, 8, 2)):
        x = torch.randn(2, 5, *size)
        with torch.no_grad():
            fast = block(x)
        assert torch.allclose(fast, block(x), atol=1e-5)


def test_the_modulated_convolution_is_the_formula() -> None:
    """Weights made for every sample, as StyleGAN2's equations 1 and 3 say, with weight and style brought to unit rms first."""
    torch.manual_seed(0)
    block = ModConv(4, 6, 3)
    x, style = torch.rand(2, 4, 5, 7), torch.rand(2, 3)
    s = block.scale(style)
    s = s / s.square().mean(1, keepdim=True).sqrt()
    w = block.weight / block.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
    rows = []
    for b in range(2):
        own = w * s[b][None, :, None, None]
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        rows.append(torch.nn.functional.conv2d(x[b : b + 1], own, padding=1))
    want = torch.nn.functional.leaky_relu(block.norm(torch.cat(rows)), 0.2)
    assert torch.allclose(block(x, style), want, atol=1e-4)


def test_the_lstm_remembers_and_starts_anew() -> None:
    torch.manual_seed(1)
    cell = ConvLSTM(3, 5)
    torch.nn.init.normal_(cell.first)
    x = torch.rand(2, 3, 4, 6)
    first = cell(x, cell.start(2, 4, 6))
    second = cell(x, first)
    assert first[0].shape == (2, 5, 4, 6) and not torch.allclose(first[0], second[0])
    assert torch.equal(cell(x, cell.start(2, 4, 6))[0], first[0]), "nothing is left from one clip to the next"
    alone = cell(x[:1], cell.start(1, 4, 6))
    assert torch.allclose(alone[0], first[0][:1], atol=1e-6), "clips of a batch do not see each other"


def test_correlations_find_known_motion() -> None:
    torch.manual_seed(2)
    a = torch.rand(2, 3, 24, 32)
    b = torch.roll(a, (2, -3), (2, 3))
    want = torch.tensor([[-3.0, 2.0]]).expand(2, 2)
    assert torch.allclose(phase_correlation(a, b, 6), want, atol=0.1)
    assert torch.equal(robust_match(a, b, 4), want)
    surface = correlation_surface(a, b, 6)
    by_hand = float((a[0] * torch.roll(b[0], (-2, 3), (1, 2))).sum())
    assert float(surface[0, 6 + 2, 6 - 3]) == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(ValueError, match="reach"):
        correlation_surface(a, b, 12)


def test_the_gradient_of_a_correlation_is_that_of_its_sum() -> None:
    """Against products of rolled pictures, also where one picture is compared with all."""
    clip = torch.randn(2, 4, 3, 9, 12, requires_grad=True)
    pairs = correlation_surface(clip[:, :-1].flatten(0, 1), clip[:, 1:].flatten(0, 1), 2).unflatten(0, (2, 3))
    together, weight = neighbour_surfaces(clip, 2), torch.randn(2, 3, 5, 5)
    assert torch.allclose(together, pairs, atol=1e-4)
    (one,), (two,) = (torch.autograd.grad((x * weight).sum(), clip) for x in (pairs, together))
    assert torch.allclose(one, two, atol=1e-4)
    for count in (1, 2):
        found = []
        for by_hand in (False, True):
            torch.manual_seed(5)
            a, b = torch.randn(count, 3, 9, 12, requires_grad=True), torch.randn(2, 3, 9, 12, requires_grad=True)
            if by_hand:
                rows = [[(a * torch.roll(b, (-dy, -dx), (2, 3))).sum((1, 2, 3)) for dx in range(-2, 3)] for dy in range(-2, 3)]
                surface = torch.stack([torch.stack(row, 1) for row in rows], 1)
            else:
                surface = correlation_surface(a, b, 2)
            (surface * torch.randn(2, 5, 5)).sum().backward()
            found.append((surface, a.grad, b.grad))
        for one, two in zip(*found, strict=True):
            assert one is not None and two is not None and torch.allclose(one, two, atol=1e-4)


def test_the_robust_match_follows_the_ground_where_phase_correlation_follows_the_thing() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")

    def frame(t: int) -> torch.Tensor:
        ground = 0.5 + 0.2 * torch.sin((x + t) / 9) * torch.cos(y / 11)
        picture = ground.expand(3, -1, -1).clone()
        picture[:, 20:30, 10 + 4 * t : 18 + 4 * t] = (torch.arange(80).view(10, 8) % 3 == 0).float()
        return picture[None] * 2 - 1

    assert torch.equal(robust_match(frame(0), frame(1), 4), torch.tensor([[-1.0, 0.0]]))
    assert float(phase_correlation(frame(0), frame(1), 8)[0, 0]) == pytest.approx(4, abs=0.5)
