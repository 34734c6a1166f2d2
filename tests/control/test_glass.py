"""GLASS: its losses against slow loops written from the formulas, where gradients stop, its schedules, its options, and bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught.control.glass import GLASS, GLASSConfig
from selftaught.control.glass_gma import Layers, first_teacher, gma_losses, move
from selftaught.control.glass_lma import LocalLoss, lma_losses
from selftaught.method import Actions, Progress
from selftaught.nets.video_blocks import from_px

TINY = GLASS.sizes["tiny"]
assert isinstance(TINY, GLASSConfig)


class Seen(nn.Module):
    """Features that stand for an encoder's."""

    image_px = 16

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], 1)


def build(seed: int = 0, **changes: Any) -> GLASS:
    torch.manual_seed(seed)
    return GLASS(dataclasses.replace(TINY, **changes), {"features": Seen()}).train()


def clips(count: int = 2, frames: int = 4, px: int = 32, seed: int = 0) -> Tensor:
    """uint8 (B, T, 3, px, px): a bright speckled block that moves by 2 px over a smooth ground that moves by 1."""
    draw = np.random.default_rng(seed)
    coarse = torch.from_numpy(draw.random((count, 3, 8, 8), dtype=np.float32))
    ground = torch.nn.functional.interpolate(coarse, (px + frames, px + frames), mode="bilinear", align_corners=True) * 180
    out = torch.zeros(count, frames, 3, px, px)
    for b in range(count):
        x, y = draw.integers(4, px - 14, 2)
        colour = torch.from_numpy(draw.integers(180, 255, (3, 8, 6)).astype(np.float32))
        for t in range(frames):
            out[b, t] = ground[b, :, t : t + px, :px]
            out[b, t, :, y : y + 8, x + 2 * t : x + 2 * t + 6] = colour
    return out.round().to(torch.uint8)


def some_layers(B: int = 2, T: int = 3, px: int = 8) -> tuple[Tensor, Layers]:
    torch.manual_seed(1)
    clip, m = torch.rand(B, T, 3, px, px) * 2 - 1, torch.rand(B, T, 1, px, px)
    return clip, Layers(m, m * clip, torch.rand(B, T, 3, px, px) * 2 - 1, 0.2 * torch.randn(B, T - 1, 2), 0.2 * torch.randn(B, T - 1, 2))


@pytest.mark.parametrize("twice", [False, True])
def test_gma_losses_are_those_of_the_formulas(twice: bool) -> None:
    clip, layers = some_layers()
    moved = move(layers, twice)
    found = gma_losses(clip, layers, moved, 0.06)
    B, T, _, H, W = clip.shape
    want = dict.fromkeys(found, 0.0)
    for b in range(B):
        for t in range(T):
            m = layers.masks[b, t, 0]
            want["size"] += abs(float(m.mean()) - 0.06) / (B * T)
            for y in range(H):
                for x in range(W):
                    want["binary"] += min(float(m[y, x]), 1 - float(m[y, x])) / (B * T * H * W)
            if t == 0:
                continue
            alpha = moved.masks[b, t - 1, 0]
            front = moved.foregrounds[b, t - 1] * (alpha if twice else 1)
            frame = front + (1 - alpha) * moved.backgrounds[b, t - 1]
            before = clip[b, 0] if t == 1 else moved.frames[b, t - 2]
            weight = (clip[b, t] - clip[b, t - 1]).abs().sum(0) + (frame - before).abs().sum(0) + 0.001
            n = B * (T - 1) * 3 * H * W
            want["frame"] += float((weight * (clip[b, t] - frame).abs()).sum()) / n
            want["foreground"] += float((layers.foregrounds[b, t] - moved.foregrounds[b, t - 1]).square().sum()) / n
            want["background"] += float((layers.backgrounds[b, t] - moved.backgrounds[b, t - 1]).abs().sum()) / n
    assert {k: float(v) for k, v in found.items()} == pytest.approx(want, rel=1e-5)


def test_lma_losses_are_those_of_the_formulas() -> None:
    torch.manual_seed(2)
    B, T, px = 2, 2, 8
    real, before, moved, seen = (torch.randn(B, T, 3, px, px) for _ in range(4))
    drawn = [torch.randn(B, T, 3, px, px), torch.randn(B, T, 3, px // 2, px // 2)]
    masks, drawn_masks = torch.rand(B, T, 1, px, px), torch.rand(B, T, 1, px, px)
    states = torch.randn(B, T, 5, 2, 2), torch.randn(B, T, 5, 2, 2)
    found = lma_losses(LocalLoss(real, before, moved, masks, drawn, seen, drawn_masks, states))
    weights = {
        "global_motion": (real - before).abs().sum(2, keepdim=True) + (drawn[0] - seen).abs().sum(2, keepdim=True),
        "local_motion": (real - moved).abs().sum(2, keepdim=True) + (real - drawn[0]).abs().sum(2, keepdim=True),
    }
    for name, w in weights.items():
        want = 0.0
        for guess in drawn:
            for b in range(B):
                for t in range(T):
                    if guess.shape[-1] == px:
                        target, weight = real[b, t], w[b, t]
                    else:  # halving by bilinear interpolation takes the mean of 2x2 pixels
                        target, weight = (v[b, t].unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2)) for v in (real, w))
                    want += float((weight * (target - guess[b, t]).abs()).mean()) / (B * T * len(drawn))
        assert float(found[name]) == pytest.approx(want, rel=1e-5)
    assert float(found["state"]) == pytest.approx(float((states[0] - states[1]).abs().mean()))
    assert float(found["mask"]) == pytest.approx(float((drawn_masks - masks).abs().mean()))


def test_weights_and_targets_of_the_losses_get_no_gradient() -> None:
    clip, layers = some_layers()
    masks = layers.masks.clone().requires_grad_()
    real = torch.randn(1, 1, 3, 8, 8, requires_grad=True)
    drawn = torch.randn(1, 1, 3, 8, 8, requires_grad=True)
    e = [torch.randn(1, 1, 5, 2, 2, requires_grad=True) for _ in range(2)]
    mask = torch.rand(1, 1, 1, 8, 8, requires_grad=True)
    fixed, drawn_mask = real.detach(), torch.rand(1, 1, 1, 8, 8)
    x = LocalLoss(fixed, fixed + 1, fixed - 1, mask, [drawn], fixed, drawn_mask, (e[0], e[1]))
    lma_losses(x)["state"].backward()
    assert e[0].grad is None and e[1].grad is not None
    (gradient,) = torch.autograd.grad(lma_losses(x)["global_motion"], drawn)
    weight = ((x.real - x.before).abs() + (drawn - x.drawn_before).abs()).sum(2, keepdim=True).detach()
    assert torch.allclose(gradient, -(weight * (x.real - drawn).sign()).detach() / drawn.numel(), atol=1e-7)
    assert not lma_losses(x)["mask"].requires_grad
    assert gma_losses(clip, layers._replace(masks=masks), move(layers, False), 0.06)["binary"].requires_grad


def parts_with_gradients(model: GLASS, loss: Tensor) -> set[str]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}


def test_no_gradient_passes_between_the_stages() -> None:
    model, batch = build(), GLASS.scaled(clips())
    layers = model.gma(batch)
    moved = move(layers, False)
    assert parts_with_gradients(model, model.global_loss(batch, layers, moved, 0.5)[0]) == {"gma"}
    assert parts_with_gradients(model, model.loss(batch, "model", Progress(15, 20))[0]) == {"gma", "lma"}
    late = dataclasses.replace(TINY, gma_every=7)
    model.config = late
    assert parts_with_gradients(model, model.loss(batch, "model", Progress(15, 20))[0]) == {"lma"}


def test_without_the_detach_the_second_stage_moves_masks() -> None:
    def gradient(**changes: Any) -> Tensor:
        model, batch = build(**changes), GLASS.scaled(clips())
        for name in ("w_frame", "w_foreground", "w_background", "w_background_perceptual", "w_binary", "w_size"):
            model.config = dataclasses.replace(model.config, **{name: 0.0})
        model.loss(batch, "model", Progress(19, 20))[0].backward()
        return torch.stack([p.grad.abs().max() for p in model.gma.parameters() if p.grad is not None]).max()

    assert float(gradient()) == 0 and float(gradient(detach=False)) > 0


def test_in_the_warm_up_only_gma_learns() -> None:
    model, batch = build(), GLASS.scaled(clips())
    total, parts = model.loss(batch, "model", Progress(0, 20))
    assert parts_with_gradients(model, total) == {"gma"}
    assert parts["phase"] == 0 and "global_teacher" in parts and not any(k.startswith("local_") for k in parts)
    assert model.loss(batch, "model", Progress(5, 20))[1]["phase"] == 1


def test_schedules_are_functions_of_the_share_that_is_done() -> None:
    model = build(window=6, window_start=4, window_grows=(0.4, 0.6), real_frames=(0.2, 0.8), teach_frac=0.5, warm_frac=0.2)
    assert [model.frames_at(x) for x in (0, 0.4, 0.5, 0.6, 1)] == [4, 4, 5, 6, 6]
    assert [model.real_at(x, 6) for x in (0, 0.2, 0.5, 0.8, 1)] == [5, 5, 3, 1, 1]
    assert [model.teach_at(x) for x in (0, 0.25, 0.5, 0.9)] == [1, 0.5, 0, 0]
    assert [round(model.temperature_at(x), 3) for x in (0, 0.2, 0.6, 1)] == [1, 1, 0.7, 0.4]
    steep = build(real_frames=(0.5, 0.5))
    assert [steep.real_at(x, 4) for x in (0.49, 0.5)] == [3, 1]


def test_the_paper_size_has_the_numbers_of_the_paper() -> None:
    c = GLASS.sizes["paper"]
    assert isinstance(c, GLASSConfig)
    weights = [c.w_frame, c.w_foreground, c.w_background, c.w_background_perceptual, c.w_binary, c.w_size]
    assert weights == [1.0, 1.0, 2.0, 0.02, 0.5, 0.1] and c.size == 0.06
    assert [c.w_global_motion, c.w_local_motion, c.w_perceptual, c.w_state, c.w_vq, c.w_mask] == [1.0, 1.0, 1.0, 0.2, 0.1, 0.2]
    assert (c.image_px, c.width_px, c.codes, c.code_dim, c.batch_size, c.lr, c.steps) == (96, 128, 6, 16, 12, 4e-4, 470_000)
    with torch.device("meta"):
        model = GLASS(c, {"features": Seen()})
        assert model.lma.state(torch.zeros(1, 3, 96, 128)).shape == (1, 65, 12, 16)
        layers = model.gma(torch.zeros(1, 2, 3, 96, 128))
    assert layers.masks.shape == (1, 2, 1, 96, 128) and layers.shifts.shape == (1, 1, 2)
    at = [c.steps * x for x in (c.warm_frac, *c.real_frames, *c.window_grows)]
    assert at == pytest.approx([3000, 3000, 25_000, 50_000, 80_000], rel=0.01)


ABLATIONS: list[dict[str, Any]] = [
    {"quantiser": "gumbel"}, {"direction": "plain"}, {"conditioned": "plain"}, {"joint": True}, {"codes": 4}, {"actions": "none"},
    {"shift": "regression"}, {"norm": "batch"}, {"perceptual": "pyramid"}, {"perceptual": "none"}, {"vq_convention": "glass"}, {"fold": 1},
    {"mask_twice": True}, {"residual": False}, {"teach_frac": 0.0}, {"width_px": 48},
    {"coding": "slow", "slow_apart": 2, "figure_px": 24}, {"drawn": 3},
]  # fmt: skip


@pytest.mark.parametrize("changes", ABLATIONS, ids=[str(a) for a in ABLATIONS])
def test_every_option_computes_and_passes_gradients(changes: dict[str, Any]) -> None:
    model = build(**changes)
    batch = GLASS.scaled(clips())
    batch = torch.nn.functional.interpolate(batch.flatten(0, 1), (model.config.image_px, model.config.width_px)).unflatten(0, (2, 4))
    total, _ = model.loss(batch, "model", Progress(10, 20))
    total.backward()
    bad = [n for n, p in model.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    allowed = {"joint", "actions"} & set(changes)
    assert bool(torch.isfinite(total)) and (not bad or allowed), bad


def test_without_actions_the_drawing_does_not_depend_on_them() -> None:
    first = clips()[:, 0].float() / 255
    for kind, same in (("none", True), ("learned", False)):
        model = build(actions=kind).eval()
        with torch.no_grad():
            for block in (model.lma.dynamics.shift_in, model.lma.dynamics.code_in):
                block.weight.normal_()  # newborn networks hardly listen
        films = [
            model.play(first, Actions(torch.full((2, 2, 2), s), torch.zeros(2, 2, 2), torch.full((2, 2), k))).frames
            for s, k in ((0.0, 0), (0.3, 3))
        ]
        assert torch.equal(*films) == same


def test_the_first_teacher_sees_the_ground_and_what_moves_otherwise() -> None:
    batch = clips(count=3, frames=5)
    shifts, moving = first_teacher(GLASS.scaled(batch), 3)
    assert torch.equal(shifts, from_px(torch.tensor([0.0, -1.0]), 32, 32).expand(3, 4, 2))
    area = moving.mean((1, 2, 3, 4))
    assert bool((area > 0.03).all()) and bool((area < 0.1).all()), "the block covers 48 of 1024 pixels, 4.7 %"
    still = first_teacher(GLASS.scaled(batch[:, :1].expand(-1, 5, -1, -1, -1)), 3)
    assert float(still[0].abs().max()) == 0 and float(still[1].max()) == 0


def test_parsing_does_not_look_ahead_and_playing_is_told_nothing_else() -> None:
    model = build().eval()
    clip = clips(count=2, frames=4).float() / 255
    other = clip.clone()
    other[:, 3] = torch.rand_like(other[:, 3])
    one, two = model.parse(clip), model.parse(other)
    for a, b in zip(one.actions, two.actions, strict=True):
        assert torch.allclose(a[:, :2].float(), b[:, :2].float(), atol=1e-6), "actions depend on their two frames"
    assert torch.equal(model.play(clip[:, 0], one.actions).frames, model.play(other[:, 0], one.actions).frames)
    again = model.play(clip[:, 0], one.actions).frames
    assert torch.equal(again, model.play(clip[:, 0], one.actions).frames), "no state is left behind"
    forced = model.play(clip[:, 0], one.actions, clip).frames
    assert torch.equal(forced[:, 1], again[:, 1]) and not torch.equal(forced[:, 2], again[:, 2])
    assert 0 <= float(again.min()) and float(again.max()) <= 1 and torch.equal(again[:, 0], clip[:, 0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image_px": 40}, "multiples of 16"), ({"window_start": 2}, "3 or more"), ({"window_start": 5}, "3 or more"),
        ({"codes": 1}, "2 codes"), ({"size": 1.0}, "share"), ({"fold": 3}, "fold"), ({"reach_px": 16}, "twice as large"),
        ({"temperature": (1.0, 0.0)}, "temperature"), ({"temperature": (-1.0, 0.4)}, "temperature"),
        ({"perceptual": "vgg"}, "vgg_weights"), ({"gma_every": 0}, "gma_every"), ({"draws": "agent", "figure_px": 12}, "multiple of 8"),
        ({"ground_reach_px": 0}, "twice as large"), ({"ground_reach_px": 40, "shift": "regression"}, "twice as large"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build(**changes)
    with pytest.raises(ValueError, match="needs features"):
        GLASS(TINY)


def test_masks_learn_in_a_few_steps_and_do_not_without_a_learning_rate() -> None:
    """A bright block over a moving ground: the mask finds it; the same with learning rate 0 does not."""
    batch = GLASS.scaled(clips(count=8))
    truth = (clips(count=8).float().amin(2) >= 180)[:, 1:-1]

    def overlap(lr: float) -> float:
        model = build(size=0.05)
        optimizer = torch.optim.AdamW(model.gma.parameters(), lr=lr)
        for step in range(40):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model.loss(batch, "model", Progress(min(step, 4), 20))[0].backward()
            optimizer.step()
        found = model.gma(batch).masks[:, 1:-1, 0] > 0.5
        return float((found & truth).sum() / (found | truth).sum())

    assert overlap(5e-3) > 0.5 > 0.2 > overlap(0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("warm_frac", 1.5), ("real_frames", (0.5, 2.0)), ("swap_frac", -0.1), ("w_size", -1.0), ("slow_ridge", 0.0), ("slow_who", -1.0),
     ("code_dim", 0), ("mask_widths", (8, 0, 8)), ("shift_widths", (1, 8, 8, 8)), ("gma_every", 0), ("guess_parts", 0)],
)  # fmt: skip
def test_settings_out_of_their_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        dataclasses.replace(GLASS.sizes["tiny"], **{name: value})
