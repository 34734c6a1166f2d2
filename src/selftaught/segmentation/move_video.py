"""MOVE on clips: the ground behind an object is taken from other frames, brought onto this one, and nothing has to be painted.

After Bielski, Favaro, "MOVE: Unsupervised Movable Object Segmentation and Detection", NeurIPS 2022; its tests on videos were shown and not
published. A head on frozen self-supervised features predicts a mask for each frame. Other frames of the clip are registered to it by the
motion of most of the frame. What they show of its ground must explain all that is outside of the mask (a wrong mask does not); what is
inside, moved and pasted over that ground, must look real to a discriminator.
Differs from MOVE: no inpainter; the error of the prediction teaches from the first step, so that no masks to start from are needed; the
head also sees how each pixel differs from the other frames (`cues`), because clips are there when it answers. Where no frame shows the
ground, the hole is filled from around. The discriminator reads our own self-supervised features, never labelled ones.
Cost: two players; each registers the frames of its batch (4 ms per pair of 96 px) and computes their features once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.errors import ConfigError
from selftaught.data.clip_truth import ClipTest
from selftaught.measure.baselines import centre_box
from selftaught.measure.score import Score, score_of
from selftaught.measure.video import mask_iou
from selftaught.method import EMA, Method, Parts, Picture, Player, Progress, TrainConfig
from selftaught.nets.discriminators import advance, fooled, hinge_fake, hinge_real
from selftaught.nets.registration import Motion
from selftaught.segmentation.cut import overlay
from selftaught.segmentation.move import KINDS, untouched
from selftaught.segmentation.move_ground import (
    Others,
    cues_of,
    difference_masks,
    ground_behind,
    others_of,
    prediction_loss,
    shows_ground,
    unexplained,
    unlike,
)
from selftaught.segmentation.move_nets import Judge, SegmenterHead, frozen_maps
from selftaught.segmentation.move_scene import (
    Scene,
    area_loss,
    binary_loss,
    draw_shift,
    recolour,
    separation,
    shift,
    three_scales,
)
from selftaught.segmentation.selfmask import resize

AT_ONCE = 32
"""Frames that features are computed of at once."""


@dataclass(frozen=True)
class MoveVideoConfig(TrainConfig):
    """Settings of MOVE on clips; `image_px` is the side of the square that frames are brought to, that of the features."""

    batch_size: int = 3
    """Windows of clips per optimiser step."""
    fps: float = 0.0
    """Frames per second that clips are read at; 0 takes every frame."""
    every: int = 1
    """Take every n-th frame."""
    window: int = 7
    """Frames of a training window."""
    gap: int = 2
    """Frames between those of a window that are compared: every `gap`-th one is."""
    others: int = 4
    """Frames that each frame is compared with, the closest ones; never more than the others of a window, (window - 1) // gap of them."""
    motion: Motion = "affine"
    """How the ground moves from frame to frame: none, translation, similarity, or affine."""
    noise: float = 0.05
    """Difference of a channel, in [0, 1], that means nothing."""
    cues: bool = True
    """Show the segmenter how each pixel differs from the other frames."""
    cue_drop: float = 0.1
    """Share of training windows in which it is not shown, so that single pictures can be segmented too."""
    head_reduce: int = 64
    """Channels to which the features are reduced first; 0 leaves them as they are."""
    head_least: int = 16
    """Smallest width of the segmenter's blocks."""
    head_shallow: int = 8
    """Channels of a convolution on the pixels that joins the segmenter's last block; 0 has none."""
    head_stride: int = 2
    """Pixels per value of the mask that the segmenter predicts; it is enlarged from there."""
    shift_frac: float = 0.125
    """Largest shift of the object in each direction, as a share of the frame's side."""
    disc_width: int = 32
    """Channels of the discriminator's finest projection and of its heads."""
    disc_px: int = 48
    """Side to which pictures are brought for the discriminator; 0 leaves them."""
    disc_lr_frac: float = 2.0
    """Learning rate of the discriminator, as a share of `lr`."""
    jitter: float = 0.1
    """Strength of random colours before the discriminator; 1 is DiffAugment's."""
    prediction_weight: float = 4.0
    """Weight of the error of the frame's prediction by the ground of others."""
    area_price: float = 0.2
    """What a pixel of the mask costs that the ground explains, relative to one left out of it that the ground does not explain."""
    adversarial_weight: float = 0.1
    """Weight of looking real; 0 has no discriminator."""
    least_area: float = 0.01
    """Share of the frame below which a mask is too small."""
    least_weight: float = 10.0
    """Weight of the loss on masks that are too small."""
    binary_weight: float = 0.2
    """Weight of the loss on values that are neither 0 nor 1."""
    ramp_frac: float = 0.4
    """Share of the training in which the weights of looking real and of that loss rise linearly from 0."""
    ema: float = 0.95
    """Momentum of the average of the segmenter that gives the answers; 0 is the segmenter itself."""

    def __post_init__(self) -> None:
        if not 1 <= self.gap < self.window or self.others < 1 or self.noise <= 0:
            raise ValueError("gap must be at least 1 and less than window, others at least 1, noise positive")
        refuse_outside(self, "every head_least head_stride disc_width", 1)
        refuse_outside(self, "fps head_reduce head_shallow disc_px disc_lr_frac jitter", 0)
        refuse_outside(self, "prediction_weight area_price adversarial_weight least_weight binary_weight", 0)
        refuse_outside(self, "cue_drop shift_frac least_area ramp_frac ema", 0, 1)

    @property
    def width_px(self) -> int:
        """Clips are read as squares."""
        return self.image_px


class MoveVideo(Method):
    """Segmenter against discriminator and the ground of other frames; capability `segment`, also for whole clips."""

    name = "move_video"
    Config = MoveVideoConfig
    reads = "clips"
    needs = {"features": "simclr"}
    capabilities = ("segment",)
    sizes = {
        "tiny": MoveVideoConfig(
            image_px=32, batch_size=4, steps=20, lr=2e-3, weight_decay=0.0, window=3, gap=1, others=2, motion="translation", head_reduce=8,
            head_least=8, head_shallow=0, head_stride=1, disc_width=8, disc_px=0, ema=0.9,
        ),
        "small": MoveVideoConfig(steps=100, lr=1e-2, weight_decay=0.0),
        "paper": MoveVideoConfig(
            image_px=224, batch_size=8, steps=13_200, lr=2e-4, weight_decay=0.0, warmup_frac=0.0, head_reduce=0, head_least=128,
            head_shallow=0, head_stride=1, disc_width=64, disc_px=0, disc_lr_frac=1.0, jitter=1.0,
        ),
    }  # fmt: skip
    config: MoveVideoConfig

    def __init__(self, config: MoveVideoConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c, features = config, self.given["features"]
        if not callable(getattr(features, "encoder", None)):
            raise ConfigError("move_video needs learned features.", expected="a method with the capability `embed`")
        if features.image_px != c.image_px:
            raise ConfigError(
                f"move_video works at {c.image_px} px, its features were learned at {features.image_px} px.",
                do=f"--set image_px={features.image_px}",
            )
        self.encoder = copy.deepcopy(features.encoder()).eval().requires_grad_(False)
        self.net = SegmenterHead(
            self.encoder.token_width, features.patch_px, c.head_least, c.head_reduce, c.head_shallow, c.head_stride, cues=2 * c.cues
        )
        assert self.net.leave.bias is not None
        nn.init.constant_(self.net.leave.bias, -2.0)  # most of a frame is ground, and what is taken for object explains nothing
        self.average = EMA(self.net)
        self.judge = Judge("features", c.disc_width, c.disc_px or c.image_px, self.encoder)
        self.image_px, self.patch_px = c.image_px, features.patch_px

    def train(self, mode: bool = True) -> MoveVideo:
        """Set the mode of what is trained; the frozen network stays as it is."""
        super().train(mode)
        self.encoder.eval()
        return self

    def players(self) -> dict[str, Player]:
        c = self.config
        segmenter = self.main_player(self.net, final_lr_frac=0.1)
        if not c.adversarial_weight:
            return {"segmenter": segmenter}
        judge = self.main_player(self.judge, lr=c.disc_lr_frac * c.lr, betas=(0.0, 0.99), weight_decay=0.0, final_lr_frac=1.0)
        return {"discriminator": judge, "segmenter": segmenter}

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] to the frozen features (N, E, h, w) that the segmenter reads."""
        return torch.cat([frozen_maps(self.encoder, part, "keys") for part in images.split(AT_ONCE)])

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Windows (B, T, 3, S, S) uint8, mirrored or not, to frames with what the others of their window show."""
        c = self.config
        clips = images[:, :: c.gap].float() / 255
        B, T = clips.shape[:2]
        drawn = draws.rand(B, 2).to(clips.device)
        clips = torch.where((drawn[:, 0] < 0.5)[:, None, None, None, None], clips.flip(4), clips)
        by = draw_shift(B, c.shift_frac * c.image_px).repeat_interleave(T, 0)
        others = others_of(clips, 1, min(c.others, T - 1), c.motion)
        frames = clips.flatten(0, 1)
        differences = unlike(frames, others.pictures, c.noise)
        shown = (drawn[:, 1] >= c.cue_drop).float().repeat_interleave(T)[:, None, None, None]
        return {
            "frames": frames, "maps": self.maps(frames), "shift": by, "others": others, "differences": differences,
            "cues": shown * cues_of(differences, others.seen),
        }  # fmt: skip

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Mask logits (N, 1, S, S) of a prepared batch."""
        return self.net(batch["maps"], batch["frames"], batch["cues"] if self.config.cues else None)

    def said(self, *kinds: Tensor) -> Tensor:
        """What the discriminator says of kinds of pictures (N, 3, S, S), each under random colours of its own, window by window."""
        T = -(-self.config.window // self.config.gap)
        coloured = []
        for pictures in kinds:  # the frames of a window one below the other: one picture, whose colours change as one
            columns = recolour(pictures.unflatten(0, (-1, T)).transpose(1, 2).flatten(2, 3), self.config.jitter)
            coloured.append(columns.unflatten(2, (T, -1)).transpose(1, 2).flatten(0, 1))
        return self.judge(torch.cat(coloured), self.encoder)

    def loss(self, batch: dict[str, Any], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        if player == "discriminator":
            return self.discriminator_loss(batch)
        return self.segmenter_loss(batch, progress)

    def discriminator_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Parts]:
        """Hinge losses, mean over the two real kinds plus mean over the two fakes."""
        with torch.no_grad():
            mask = self.logits(batch).sigmoid()
            scene = make_scene(batch, mask, ground_of(batch, mask))
        said = self.said(*(getattr(scene, kind) for kind in KINDS)).chunk(len(KINDS))
        losses = [0.5 * (hinge_real(x) if i < 2 else hinge_fake(x)) for i, x in enumerate(said)]
        right = [float(((x > 0) == (i < 2)).float().mean()) for i, x in enumerate(said)]
        return torch.stack(losses).sum(), {f"right_{kind}": x for kind, x in zip(KINDS, right, strict=True)}

    def segmenter_loss(self, batch: dict[str, Any], progress: Progress) -> tuple[Tensor, Parts]:
        """Let the ground of other frames explain what is outside, look real when moved, be neither empty nor grey."""
        c = self.config
        mask = self.logits(batch).sigmoid()
        ground = ground_of(batch, mask)
        error, known = unexplained(batch["differences"], ground)
        ramp = min(progress.frac / max(c.ramp_frac, 1e-9), 1.0)
        scales = three_scales(mask, self.patch_px)
        losses = {
            "prediction": prediction_loss(mask, error, known, c.area_price),
            "area": sum((area_loss(m, c.least_area, 1.0, 0.0) for m in scales), mask.new_zeros(())),
            "binary": sum((binary_loss(m) for m in scales), mask.new_zeros(())),
        }
        weights = {"prediction": c.prediction_weight, "area": c.least_weight, "binary": c.binary_weight * ramp}
        if c.adversarial_weight:
            with untouched(self.judge):
                losses["fooled"] = fooled(self.said(make_scene(batch, mask, ground).composite))
            weights["fooled"] = c.adversarial_weight * ramp
        parts = {name: float(loss.detach()) for name, loss in losses.items()}
        with torch.no_grad():
            parts |= {
                "area_frac": float(mask.mean()), "unsure_frac": float(((mask > 0.1) & (mask < 0.9)).float().mean()),
                "unexplained_frac": float((error * known).mean()), "known_frac": float(known.mean()),
            }  # fmt: skip
        return sum((weights[name] * loss for name, loss in losses.items()), mask.new_zeros(())), parts

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the average and the spectral norms."""
        self.average.update(self.net, min(self.config.ema, (1 + progress.step) / (10 + progress.step)))
        advance(self.judge)

    def answer(self, squares: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (N, S, S) in [0, 1] and object scores (N,) of (N, 3, S, S) and cues (N, 2, S, S), by the average in evaluation mode.

        The score is the share of the variance of the features that the mask explains, times the range of the mask, as for `move`.
        """
        net, found = self.average.module, []
        was_training = net.training
        net.eval()
        for part, told in zip(squares.split(AT_ONCE), cues.split(AT_ONCE), strict=True):
            maps = self.maps(part)
            mask = net(maps, part, told if self.config.cues else None).sigmoid()
            coarse = nn.functional.adaptive_avg_pool2d(mask, (maps.shape[-2], maps.shape[-1]))[:, 0]
            sure = mask.flatten(1).amax(1) - mask.flatten(1).amin(1)
            found.append((mask[:, 0], separation(maps, coarse) * sure))
        net.train(was_training)
        masks, scores = (torch.cat(x) for x in zip(*found, strict=True))
        return masks, scores

    def cues(self, squares: Tensor) -> Tensor:
        """(T, 3, S, S) of one clip to its cues (T, 2, S, S)."""
        c = self.config
        count = min(c.others, -(-c.window // c.gap) - 1)
        others: Others = others_of(squares[None], c.gap, count, c.motion)
        return cues_of(unlike(squares, others.pictures, c.noise), others.seen)

    def squares(self, frames: Tensor) -> Tensor:
        """Frames brought to the square of the features."""
        return resize(frames, (self.image_px, self.image_px)).clamp(0, 1)

    @torch.no_grad()
    def segment_clip(self, frames: Tensor) -> Tensor:
        """Masks (T, H, W) in [0, 1] of the frames (T, 3, H, W) in [0, 1] of one clip."""
        squares = self.squares(frames)
        return resize(self.answer(squares, self.cues(squares))[0][:, None], frames.shape[-2:])[:, 0]

    @torch.no_grad()
    def clip_objectness(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] of one clip to scores (T,) in [0, 1]: whether each frame shows an object; 0 for flat frames or masks."""
        squares = self.squares(frames)
        return self.answer(squares, self.cues(squares))[1]

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to masks (B, H, W) in [0, 1] by their looks alone, as if nothing moved."""
        squares = self.squares(images)
        return resize(self.answer(squares, torch.zeros_like(squares[:, :2]))[0][:, None], images.shape[-2:])[:, 0]

    def evaluate(self, data: ClipTest) -> dict[str, Score]:
        """Jaccard of masks of test clips, a mean over the frames of each; baselines: the registered difference, a box, no training."""
        if data.truth is None:
            data.notes.append("no masks were found, so objects could not be scored")
            return {}
        fresh: Any = self.untrained(data.seed)
        found: dict[str, list[float]] = {}
        box = centre_box(self.image_px, self.image_px)
        for i, truth in enumerate(data.truth.masks):
            frames = data.batch([i])[0].to(next(self.parameters()).device)
            masks = {
                "": self.segment_clip(frames), "looks_alone": self.segment(frames), "untrained": fresh.segment_clip(frames),
                "registered_difference": difference_masks(self.cues(frames)),
            }  # fmt: skip
            for name, mask in [*((n, m.cpu().numpy()) for n, m in masks.items()), ("centre_box", np.broadcast_to(box, truth.shape))]:
                found.setdefault(name, []).append(float(mask_iou(mask, truth).mean()))
        others = {name: float(np.mean(values)) for name, values in found.items() if name}
        return {"jaccard": score_of(np.array(found[""]), unit="IoU", baselines=others)}

    @torch.no_grad()
    def show(self, images: Tensor) -> dict[str, Picture]:
        """For each clip a row: frames, least difference, masks, ground behind, the object moved; `images` is (B, T, 3, S, S) in [0, 1]."""
        return {"masks": np.concatenate([self.sheet(clip) for clip in images[:4]])}

    def sheet(self, clip: Tensor) -> Picture:
        """Rows of one clip (T, 3, S, S): at most six frames."""
        c = self.config
        frames = clip[:: c.gap][:6]
        others = others_of(frames[None], 1, min(c.others, len(frames) - 1), c.motion)
        differences = unlike(frames, others.pictures, c.noise)
        cues = cues_of(differences, others.seen)
        mask = self.answer(frames, cues)[0][:, None]
        by = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])[torch.arange(len(frames)) % 4] * round(c.shift_frac * c.image_px)
        batch = {"frames": frames, "shift": by, "others": others}
        scene = make_scene(batch, mask, shows_ground(others.seen, others.brought(mask)))
        masked = torch.stack([overlay(x, m) for x, m in zip(frames, mask[:, 0], strict=True)])
        rows: list[Tensor] = [frames, cues[:, :1].expand_as(frames), masked, scene.background, scene.composite]
        return _drawn(rows)


def ground_of(batch: dict[str, Any], mask: Tensor) -> Tensor:
    """Where the other frames show ground, by the masks of all frames (N, 1, S, S); no gradient goes to them this way."""
    others: Others = batch["others"]
    return shows_ground(others.seen, others.brought(mask.detach()))


def make_scene(batch: dict[str, Any], mask: Tensor, ground: Tensor) -> Scene:
    """Cut, move and paste over the ground that other frames show.

    x_d = shift(x), m_d = shift(m), g the ground behind the object, b = x (1 - m) + g m,
    composite = x_d m_d + b (1 - m_d), unshifted = x m + b (1 - m), copied = x_d m_d + x (1 - m_d).
    """
    x, by = batch["frames"], batch["shift"]
    moved, shifted = shift(mask, by), shift(x, by)
    behind = ground_behind(x, mask.detach(), batch["others"].pictures, ground)
    background = x * (1 - mask) + behind * mask
    return Scene(
        x, x * mask + background * (1 - mask), shifted * moved + background * (1 - moved), shifted * moved + x * (1 - moved),
        background, mask, moved,
    )  # fmt: skip


def _drawn(rows: list[Tensor]) -> Picture:
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    return (sheet.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
