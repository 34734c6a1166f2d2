"""MOVE on clips: the ground of other frames, the losses, an object that is found because it moves, and odd clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.method import Progress
from selftaught.nets.registration import Motion
from selftaught.registry import load_class
from selftaught.segmentation.move import KINDS
from selftaught.segmentation.move_ground import (
    cues_of,
    difference_masks,
    fill_around,
    ground_behind,
    neighbours,
    others_of,
    prediction_loss,
    shows_ground,
    unexplained,
    unlike,
)
from selftaught.segmentation.move_video import MoveVideo, MoveVideoConfig, ground_of, make_scene

TINY: Any = MoveVideo.sizes["tiny"]
T, SIDE = 6, 10


def toy(seed: int = 0, walks: int = 4, drifts: int = 1, px: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """A square of noise walks right over noise that drifts left: frames (T, 3, S, S), masks (T, 1, S, S), grounds (T, 3, S, S)."""
    g = torch.Generator().manual_seed(seed)
    smooth = nn.functional.interpolate(torch.rand(2, 3, 20, 20, generator=g), (80, 80), mode="bicubic").clamp(0, 1)
    y = int(torch.randint(2, px - SIDE - 2, (1,), generator=g))
    clip, masks, grounds = torch.empty(T, 3, px, px), torch.zeros(T, 1, px, px), torch.empty(T, 3, px, px)
    for t in range(T):
        grounds[t] = smooth[0, :, 20 : 20 + px, 20 + drifts * t : 20 + drifts * t + px]
        clip[t] = grounds[t]
        x = 1 + walks * t
        clip[t, :, y : y + SIDE, x : x + SIDE] = 1 - smooth[1, :, :SIDE, :SIDE] * torch.tensor([0.2, 1.0, 1.0])[:, None, None]
        masks[t, :, y : y + SIDE, x : x + SIDE] = 1
    return clip, masks, grounds


@pytest.fixture(scope="module")
def features() -> Any:
    torch.manual_seed(0)
    cls = load_class("simclr")
    return cls(cls.sizes["tiny"]).eval().requires_grad_(False)


def made(features: Any, **changes: Any) -> tuple[MoveVideo, dict[str, Any]]:
    """A method and a batch of two windows for it."""
    torch.manual_seed(0)
    method = MoveVideo(replace(TINY, **changes), {"features": features}).train()
    clips = torch.stack([toy(seed)[0] for seed in (0, 1)])
    return method, method.prepare((clips * 255).to(torch.uint8), np.arange(2))


def overlap(found: Tensor, truth: Tensor) -> float:
    a, b = found > 0.5, truth[:, 0] > 0.5
    return float((a & b).sum() / (a | b).sum())


def test_pieces_of_a_batch_are_the_batch_in_double_precision(features: Any, monkeypatch: Any) -> None:
    method, batch = made(features, jitter=0.0)
    method.double().eval()
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    batch = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.items()}
    batch["others"] = batch["others"]._replace(**{k: getattr(batch["others"], k).double() for k in ("pictures", "seen", "motions")})

    def part_of(rows: slice) -> dict[str, Any]:
        kept = batch["others"]
        pairs = slice(rows.start * kept.rows.shape[1], rows.stop * kept.rows.shape[1])
        others = kept._replace(
            pictures=kept.pictures[rows], seen=kept.seen[rows], motions=kept.motions[pairs], rows=kept.rows[rows] - rows.start
        )
        return {k: v[rows] for k, v in batch.items() if k != "others"} | {"others": others}

    found = []
    for pieces in ([slice(0, 2 * T)], [slice(0, T), slice(T, 2 * T)]):
        method.zero_grad()
        for piece in pieces:
            for player in ("discriminator", "segmenter"):
                loss, _ = method.loss(part_of(piece), player, Progress(15, 20))
                (loss / len(pieces)).backward()
        found.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-12


def test_the_closest_frames_are_compared() -> None:
    assert neighbours(5, 1, 2).tolist() == [[1, 2], [2, 0], [3, 1], [4, 2], [3, 2]]
    assert neighbours(6, 2, 4).tolist() == [[2, 4], [3, 5], [4, 0], [5, 1], [2, 0], [3, 1]]
    assert neighbours(2, 4, 3).tolist() == [[1], [0]] and neighbours(1, 1, 3).shape == (1, 0)


def test_other_frames_are_brought_onto_each() -> None:
    clip, masks, grounds = toy()
    others = others_of(clip[None], 1, 3, "affine")
    truth = others.brought(masks)
    ground = (others.seen * (1 - truth)) > 0.99
    apart = (others.pictures - grounds[:, None]).abs().amax(2, keepdim=True)
    assert float(apart[ground].quantile(0.99)) < 0.02, "what they show of the ground is this frame's"
    still = others_of(clip[None], 1, 3, "none")
    assert float((still.pictures - grounds[:, None]).abs().amax(2, keepdim=True)[ground].mean()) > 0.05
    assert torch.equal(still.pictures, clip[still.rows]) and bool((still.seen == 1).all())


def test_what_is_not_explained_as_a_slow_loop() -> None:
    g = torch.Generator().manual_seed(3)
    d, m, seen = (torch.rand(2, 3, 1, 4, 4, generator=g) for _ in range(3))
    seen = (seen > 0.3).float()
    ground, mask = shows_ground(seen, m), torch.rand(2, 1, 4, 4, generator=g)
    error, known = unexplained(d, ground)
    total = 0.0
    for n in range(2):
        for y in range(4):
            for x in range(4):
                w = [float(seen[n, k, 0, y, x]) * min(1.0, 2 * (1 - float(m[n, k, 0, y, x]))) for k in range(3)]
                e = min(max(float(d[n, k, 0, y, x]), 1 - w[k]) for k in range(3))
                here = float(mask[n, 0, y, x])
                total += max(w) * e * (1 - here) + 0.3 * (1 - max(w) * e) * here
    assert float(prediction_loss(mask, error, known, 0.3)) == pytest.approx(total / 32, rel=1e-5)


def changed(masks: Tensor, kind: str) -> Tensor:
    if kind == "grown":
        return nn.functional.max_pool2d(masks, 5, 1, 2)
    if kind == "shrunk":
        return -nn.functional.max_pool2d(-masks, 5, 1, 2)
    if kind == "displaced":
        return masks.roll(4, 2)
    return torch.full_like(masks, {"empty": 0.0, "full": 1.0}[kind])


def predicted(clip: Tensor, masks: Tensor, motion: Motion = "affine") -> float:
    others = others_of(clip[None], 1, 4, motion)
    error, known = unexplained(unlike(clip, others.pictures, 0.05), shows_ground(others.seen, others.brought(masks)))
    return float(prediction_loss(masks, error, known, 0.2))


@pytest.mark.parametrize("kind", ["grown", "shrunk", "displaced", "empty", "full"])
def test_the_true_mask_predicts_best(kind: str) -> None:
    for seed in range(4):
        clip, masks, _ = toy(seed)
        assert predicted(clip, masks) < 0.9 * predicted(clip, changed(masks, kind)), seed


def test_gradients_go_the_right_way() -> None:
    clip, masks, _ = toy()
    others = others_of(clip[None], 1, 4, "affine")
    grey = torch.full_like(masks, 0.5).requires_grad_()
    ground = shows_ground(others.seen, others.brought(grey.detach()))
    prediction_loss(grey, *unexplained(unlike(clip, others.pictures, 0.05), ground), 0.2).backward()  # type: ignore[no-untyped-call]
    assert grey.grad is not None
    right = (grey.grad < 0) == (masks > 0.5)
    assert float(right[masks > 0.5].float().mean()) > 0.8, "the mask rises inside of the object"
    assert float(right[masks < 0.5].float().mean()) > 0.95, "and falls outside"


def test_an_object_can_be_left_out_and_a_wrong_mask_leaves_a_ghost() -> None:
    clip, masks, grounds = toy(walks=4)
    others = others_of(clip[None], 1, 5, "affine")

    def left(mask: Tensor) -> float:
        batch = {"frames": clip, "shift": torch.zeros(T, 2, dtype=torch.int64), "others": others}
        background = make_scene(batch, mask, shows_ground(others.seen, others.brought(mask))).background
        return float(((background - grounds).abs() * masks).sum() / (3 * masks.sum()))

    assert left(masks) < 0.03
    assert left(changed(masks, "shrunk")) > 5 * left(masks) and left(changed(masks, "displaced")) > 5 * left(masks)


def test_scenes_are_put_together_as_the_formulas_say(features: Any) -> None:
    method, batch = made(features)
    mask = method.logits(batch).sigmoid().detach()
    scene = make_scene(batch, mask, ground_of(batch, mask))
    x, n = batch["frames"], 3
    dy, dx = batch["shift"][n].tolist()
    behind = ground_behind(x, mask, batch["others"].pictures, ground_of(batch, mask))
    b = x[n] * (1 - mask[n]) + behind[n] * mask[n]
    y, c = 16, 15
    m, xd = mask[n, 0, y - dy, c - dx], x[n, :, y - dy, c - dx]
    assert torch.allclose(scene.composite[n, :, y, c], xd * m + b[:, y, c] * (1 - m), atol=1e-6)
    assert torch.allclose(scene.copied[n, :, y, c], xd * m + x[n, :, y, c] * (1 - m), atol=1e-6)
    assert torch.allclose(scene.unshifted[n], x[n] * mask[n] + b * (1 - mask[n]), atol=1e-6)


def test_holes_that_no_frame_shows_are_filled_from_around() -> None:
    flat, hole = torch.full((1, 3, 21, 32), 0.3), torch.ones(1, 1, 21, 32)
    hole[:, :, 4:15, 8:20] = 0
    picture = flat * hole + (1 - hole)
    assert torch.allclose(fill_around(picture, hole), flat, atol=1e-5)
    assert torch.isfinite(fill_around(picture, torch.zeros_like(hole))).all()
    nothing = torch.zeros(1, 2, 1, 21, 32)
    assert torch.allclose(ground_behind(picture, 1 - hole, torch.rand(1, 2, 3, 21, 32), nothing), flat, atol=1e-4)


def test_losses_of_both_players(features: Any) -> None:
    method, batch = made(features, jitter=0.0, adversarial_weight=0.3, ramp_frac=0.5)
    loss, parts = method.loss(batch, "discriminator", Progress(0, 100))
    with torch.no_grad():
        mask = method.logits(batch).sigmoid()
        scene = make_scene(batch, mask, ground_of(batch, mask))
        said = method.judge(torch.cat([getattr(scene, kind) for kind in KINDS]), method.encoder).view(4, len(mask), -1).numpy()
    hinge = 0.5 * sum(np.maximum(0, 1 - said[i]).mean() for i in (0, 1)) + 0.5 * sum(np.maximum(0, 1 + said[i]).mean() for i in (2, 3))
    assert float(loss.detach()) == pytest.approx(hinge, rel=1e-5)
    assert parts["right_copied"] == pytest.approx((said[3] <= 0).mean(), abs=1e-6)
    loss, parts = method.loss(batch, "segmenter", Progress(25, 100))
    expected = 4.0 * parts["prediction"] + 10 * parts["area"] + 0.5 * 0.2 * parts["binary"] + 0.5 * 0.3 * parts["fooled"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.net.parameters())
    assert all(p.grad is None for p in method.judge.parameters())
    assert set(replace_players(features)) == {"segmenter"}


def replace_players(features: Any) -> dict[str, Any]:
    return MoveVideo(replace(TINY, adversarial_weight=0.0), {"features": features}).players()


def learned(features: Any, steps: int = 60, **changes: Any) -> float:
    """Train on six toy clips, as the loop does; overlap with the truth on two others."""
    clips = torch.stack([toy(seed)[0] for seed in range(6)])
    torch.manual_seed(0)
    method = MoveVideo(replace(TINY, window=T, others=4, **({"lr": 1e-2} | changes)), {"features": features}).train()
    players = method.players()
    optimizers = {name: p.build_optimizer() for name, p in players.items()}
    for step in range(steps):
        torch.manual_seed(step)
        for name, optimizer in optimizers.items():
            batch = method.prepare((clips[torch.randperm(6)[:3]] * 255).to(torch.uint8), np.arange(3))
            loss, _ = method.loss(batch, name, Progress(step, steps))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        method.after_step(Progress(step, steps))
    method.eval()
    return float(np.mean([overlap(method.segment_clip(toy(seed)[0]), toy(seed)[1]) for seed in (7, 8)]))


def test_an_object_that_moves_is_found(features: Any) -> None:
    found = learned(features)
    assert found > 0.65
    assert learned(features, steps=1, lr=0.0) < 0.4, "without learning"
    assert learned(features, motion="none") < found - 0.25, "on a ground that moves and is not registered"


def test_the_registered_difference_alone_finds_it_too() -> None:
    clip, masks, _ = toy()

    def found(motion: Motion) -> float:
        others = others_of(clip[None], 1, 4, motion)
        return overlap(difference_masks(cues_of(unlike(clip, others.pictures, 0.05), others.seen)), masks)

    assert found("affine") > 0.75 > 0.5 > found("none")


def test_odd_clips(features: Any) -> None:
    method = MoveVideo(TINY, {"features": features}).eval()
    clip = toy()[0]
    for frames in (clip[:1], clip[:2], clip[:1].expand(5, -1, -1, -1), torch.full((4, 3, 32, 32), 0.5), torch.rand(3, 3, 20, 77)):
        masks, scores = method.segment_clip(frames), method.clip_objectness(frames)
        assert masks.shape == (len(frames), *frames.shape[-2:]) and scores.shape == (len(frames),)
        assert torch.isfinite(masks).all() and bool(((scores >= 0) & (scores <= 1)).all())
    assert float(method.clip_objectness(torch.full((4, 3, 32, 32), 0.5)).max()) < 1e-3, "nothing is on grey frames"
    assert not method.cues(clip[:1]).any() and not method.cues(clip[:1].expand(5, -1, -1, -1)).any(), "nothing moves"
    assert torch.equal(method.segment_clip(clip[:1]), method.segment(clip[:1])), "one frame is a picture"


def test_settings_that_make_no_sense(features: Any) -> None:
    for wrong in ({"gap": 9}, {"gap": 0}, {"others": 0}, {"noise": 0.0}):
        with pytest.raises(ValueError, match="gap must be"):
            MoveVideoConfig(**wrong)
    for named in ({"every": 0}, {"cue_drop": 2.0}, {"ema": -0.5}, {"area_price": -1.0}, {"shift_frac": 3.0}, {"disc_width": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(named))} is"):
            MoveVideoConfig(**named)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="learned at 32 px"):
        MoveVideo(replace(TINY, image_px=64), {"features": features})
    with pytest.raises(ConfigError, match="needs learned features"):
        MoveVideo(TINY, {"features": object()})
