"""LAPO: its loss against a slow loop, displacements, schedules, that it learns and a control does not, and bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.control.lapo import LAPO, LAPOConfig, weighted_error
from selftaught.control.lapo_nets import UNet, from_around, grown
from selftaught.measure.actions import grouping
from selftaught.method import Actions, Plays, Progress
from selftaught.nets.video_blocks import from_px, shift_layer

TINY = LAPO.sizes["tiny"]
assert isinstance(TINY, LAPOConfig)


def build(seed: int = 0, **changes: Any) -> LAPO:
    torch.manual_seed(seed)
    return LAPO(dataclasses.replace(TINY, **changes)).train()


def blocks(count: int, frames: int = 3, px: int = 32, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """(B, T, 3, px, px) in [0, 1]: a speckled block that goes one of four ways by 2 px a frame over a still ground; and the ways (B,)."""
    draw = np.random.default_rng(seed)
    ways = draw.integers(0, 4, count)
    ground = torch.from_numpy(draw.random((count, 3, 6, 6), dtype=np.float32))
    out = torch.nn.functional.interpolate(ground, (px, px), mode="bilinear")[:, None].repeat(1, frames, 1, 1, 1) * 0.5
    for b, way in enumerate(ways):
        colour = torch.from_numpy(draw.random((3, 8, 8), dtype=np.float32)) * 0.4 + 0.6
        x, y = draw.integers(8, px - 16, 2)
        for t in range(frames):
            dx, dy = ((-2, 0), (2, 0), (0, -2), (0, 2))[way]
            out[b, t, :, y + t * dy : y + t * dy + 8, x + t * dx : x + t * dx + 8] = colour
    return out, ways


@pytest.mark.parametrize("squared", [False, True])
def test_the_loss_is_that_of_the_formula(squared: bool) -> None:
    torch.manual_seed(0)
    drawn, after, steady = torch.rand(3, 2, 2, 3, 4, 5).unbind(0)
    want = 0.0
    for b in range(2):
        for t in range(2):
            for y in range(4):
                for x in range(5):
                    w = 1 + 10 * sum(abs(float(after[b, t, c, y, x] - steady[b, t, c, y, x])) for c in range(3)) / 3
                    for c in range(3):
                        e = abs(float(after[b, t, c, y, x] - drawn[b, t, c, y, x]))
                        want += w * (e * e if squared else e) / after.numel()
    assert float(weighted_error(drawn, after, steady, 10.0, squared)) == pytest.approx(want, rel=1e-5)


def test_displacements_move_the_frame_as_a_slow_loop_does() -> None:
    model = build().forward_model
    frame, code = torch.rand(2, 3, 32, 32), torch.randn(2, 4)
    k = model.displacements(code)
    assert k.shape == (2, 7, 7) and torch.allclose(k.sum((1, 2)), torch.ones(2))
    want = torch.zeros_like(frame)
    padded = torch.nn.functional.pad(frame, (3, 3, 3, 3))
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            want += k[:, dy + 3, dx + 3][:, None, None, None] * padded[:, :, 3 - dy : 35 - dy, 3 - dx : 35 - dx]
    assert torch.allclose(model.moved(frame, code), want, atol=1e-5)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_growing_is_max_pooling(reach: int) -> None:
    x = torch.rand(2, 3, 9, 14)
    assert torch.equal(grown(x, reach), torch.nn.functional.max_pool2d(x, 2 * reach + 1, 1, reach))


@pytest.mark.parametrize("code", [0, 4])
def test_pixels_need_not_be_folded_to_be_embedded(code: int) -> None:
    net = UNet(3, 8, 1, code, 4, "group")
    x, told = torch.rand(2, 3, 16, 32), torch.randn(2, 4)
    folded = torch.nn.functional.pixel_unshuffle(x, 4)
    if code:
        folded = torch.cat([folded, net.to_input(told)[..., None, None].expand(-1, -1, 4, 8)], 1)
    assert torch.allclose(net.embedded(x, told if code else None), net.embed(folded), atol=1e-5)


def test_a_displacement_has_the_sign_of_all_shifts() -> None:
    model = build().forward_model
    frame = torch.rand(1, 3, 32, 32)
    one = torch.zeros(1, 7, 7)
    one[0, 3 + 1, 3 + 2] = 1  # 2 to the right, 1 down
    model.displacements = lambda code: one  # type: ignore[method-assign]
    want = shift_layer(frame, from_px(torch.tensor([[2.0, 1.0]]), 32, 32), "zeros")
    assert torch.allclose(model.moved(frame, torch.zeros(1, 4)), want, atol=1e-5)


def test_what_is_put_somewhere_is_taken_away_where_it_was() -> None:
    """With a perfect mask, one displacement and no new pixels the layers are those of the formula; nothing is left behind."""
    model = build().forward_model
    frame = torch.full((1, 3, 32, 32), 0.25)
    frame[:, :, 10:14, 10:14] = 1.0
    a = torch.zeros(1, 1, 32, 32)
    a[:, :, 10:14, 10:14] = 1.0
    one = torch.zeros(1, 7, 7)
    one[0, 3, 3 + 2] = 1
    model.displacements = lambda code: one  # type: ignore[method-assign]
    model.actor.forward = lambda x: 40 * a - 20  # type: ignore[method-assign]
    model.net.forward = lambda x, code: torch.full((1, 4, 32, 32), -30.0)  # type: ignore[method-assign]
    drawn = model(frame, frame, torch.zeros(1, 1, 32, 32), torch.zeros(1, 2), torch.zeros(1, 4))
    want = torch.full((1, 3, 32, 32), 0.25)
    want[:, :, 10:14, 12:16] = 1.0
    assert torch.allclose(drawn.frame, want, atol=1e-4) and torch.allclose(drawn.mask, torch.roll(a, 2, -1), atol=1e-4)


def test_a_ground_that_stays_is_not_warped_and_that_changes_nothing() -> None:
    model = LAPO(LAPO.sizes["tiny"]).eval().requires_grad_(False)
    before, now, code = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.randn(2, model.config.code_dim)
    mask, still = torch.zeros(2, 1, 32, 32), torch.zeros(2, 2)
    with torch.enable_grad():
        warped = model.forward_model(before, now, mask, still, code)
    with torch.no_grad():
        as_it_is = model.forward_model(before, now, mask, still, code)
        moved = model.forward_model(before, now, mask, still + 0.25, code)
    assert torch.allclose(warped.frame, as_it_is.frame, atol=1e-5) and torch.allclose(warped.mask, as_it_is.mask, atol=1e-5)
    assert not torch.allclose(moved.frame, as_it_is.frame, atol=1e-3)


def test_holes_are_filled_from_around_them() -> None:
    x = torch.linspace(0, 1, 32).expand(1, 3, 24, 32).clone()
    seen = torch.ones(1, 1, 24, 32)
    assert torch.equal(from_around(x, seen), x)
    seen[:, :, 8:16, 10:20] = 0
    broken = torch.where(seen > 0, x, torch.tensor(9.0))
    filled = from_around(broken, seen)
    assert torch.equal(filled, from_around(x, seen)), "what is not known does not count"
    assert float((filled - x).abs().max()) < 0.12 and bool((filled.diff(dim=3) > -0.03).all())
    assert torch.isfinite(from_around(broken, torch.zeros_like(seen))).all()
    one = torch.rand(2, 3, 1, 5)
    assert torch.equal(from_around(one, torch.ones(2, 1, 1, 5)), one)


def test_schedules_go_from_real_frames_and_vectors_to_own_frames_and_codes() -> None:
    model = build(window=4, quantised_frac=0.45)
    assert [model.real_at(f) for f in (0.0, 0.39, 0.5, 0.6, 1.0)] == [3, 3, 2, 1, 1]
    assert [model.quantised_at(f) for f in (0.0, 0.3, 0.45, 1.0)] == [0.0, 0.0, 1.0, 1.0]


def test_after_the_warm_up_the_forward_model_is_told_codes_and_nothing_else() -> None:
    model = build()
    z = torch.randn(4, 2, 4)
    q, told = model.quantise(z, 1.0)
    assert torch.allclose(told.flatten(0, 1), model.quantiser.look_up(q.codes), atol=1e-6)
    _, free = model.quantise(z, 0.0)
    assert not any(torch.isclose(model.quantiser.codebook, v).all(1).any() for v in free.flatten(0, 1))


def train(model: LAPO, clips: Tensor, steps: int, lr: float) -> list[float]:
    player = model.players()["model"]
    player.lr = lr
    optimizer = player.build_optimizer()
    errors = []
    for step in range(steps):
        torch.manual_seed(step)
        progress = Progress(step, steps)
        rows = torch.randint(len(clips), (16,))
        total, parts = model.loss(clips[rows], "model", progress)
        total.backward()
        for group in optimizer.param_groups:
            group["lr"] = player.lr_at(progress)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(progress)
        errors.append(parts["prediction"])
    return errors


@pytest.mark.parametrize(("lr", "learns"), [(4e-3, True), (0.0, False)])
def test_it_finds_the_four_ways_and_without_learning_it_does_not(lr: float, learns: bool) -> None:
    clips, _ = blocks(96)
    new, ways = blocks(48, seed=1)
    model = build(codes=6, quantised_frac=0.45)
    errors = train(model, clips, 100, lr)
    model.eval()
    codes = model.parse(new).actions.codes
    ami = grouping(np.repeat(ways, 2), codes.numpy()).ami
    played = model.play(new[:, 0], Actions(torch.zeros(48, 2, 2), torch.zeros(48, 2, 2), codes)).frames
    gain = float((new[:, 0] - new[:, -1]).abs().mean() / (played[:, -1] - new[:, -1]).abs().mean())
    print(
        f"lr {lr}: AMI {ami:.2f}, error {np.mean(errors[:10]):.4f} to {np.mean(errors[-10:]):.4f}, gain over copying {gain:.2f}"
    )
    # Comparing frames at every displacement tells much of the ways before anything is learned: that is no evidence of learning.
    assert ami > 0.6 or not learns
    assert (gain > 1.2) == learns
    assert (np.mean(errors[-10:]) < 0.6 * np.mean(errors[:10])) == learns


def test_parse_and_play_have_the_shapes_of_the_capability() -> None:
    model = build().eval()
    assert isinstance(model, Plays)
    clips = torch.rand(2, 4, 3, 32, 32)
    parsed = model.parse(clips)
    assert parsed.masks.shape == (2, 4, 32, 32) and parsed.actions.codes.shape == (2, 3)
    assert (
        not parsed.actions.shifts.any()
        and 0 <= int(parsed.actions.codes.min()) <= int(parsed.actions.codes.max()) < model.codes
    )
    played = model.play(clips[:, 0], parsed.actions)
    assert played.frames.shape == clips.shape and torch.equal(played.frames[:, 0], clips[:, 0])
    forced = model.play(clips[:, 0], parsed.actions, clips)
    assert torch.equal(forced.frames[:, 1], played.frames[:, 1]), "both begin with the first real frame"
    assert not torch.equal(forced.frames[:, 2], played.frames[:, 2])
    alone = model.parse(clips[:1]).actions.codes
    assert torch.equal(alone, parsed.actions.codes[:1]), "a clip is parsed the same alone"


@pytest.mark.parametrize(
    "changes",
    [{"draw": "direct"}, {"steady": False}, {"compare": False}, {"fold": 1}, {"squared": True}, {"norm": "batch"}],
)
def test_every_option_can_be_trained(changes: dict[str, Any]) -> None:
    model = build(**changes)
    batch = torch.rand(4, 3, 3, 32, 32)
    for step in (0, 19):
        total, parts = model.loss(batch, "model", Progress(step, 20))
        total.backward()
        assert torch.isfinite(total) and all(np.isfinite(v) for v in parts.values())
    missing = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing


@pytest.mark.parametrize(
    "changes",
    [
        {"image_px": 30},
        {"fold": 3},
        {"window": 2},
        {"warm_frac": 0.5, "quantised_frac": 0.2},
        {"reach_px": 16},
        {"reach_px": 0},
        {"ground_reach_px": 16},
        {"codes": 1},
        {"code_dim": 0},
        {"inverse_widths": (8, 0, 8)},
        {"real_frames": (0.4, 2.0)},
        {"motion_weight": -1.0},
        {"noise": -0.5},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        build(**changes)
