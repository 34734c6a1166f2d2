"""LAPO: latent actions from watching: one of K codes says what happens between two frames, and a model draws what it does.

Paper: Schmidt and Jiang, "Learning to Act without Actions", ICLR 2024. An inverse model reads the action off the frames before, now and
next through a quantised bottleneck; a forward model draws the next frame from those before it and the action. Actions are never given.
Differs: one codebook of K codes and not two of 64 with four latents each, so that an action is a key that a person can press; a continuous
warm-up with noise before anything is quantised, codes that begin at k-means and are born again. Size `small` takes the ground's motion
out first (found without a network), because otherwise it is the largest change and the codes tell of it and not of what acts; its forward
model composes the next frame of the ground, of the frame moved by the action's own displacements (Finn, Goodfellow, Levine, NeurIPS 2016),
and of new pixels; it weights pixels that change, and learns from its own frames in the second half, so that eight steps hold together.
Cost: at `small` a step takes about 0.5 s of one CPU core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.control.lapo_nets import Draw, Drawn, ForwardModel, InverseModel
from selftaught.control.lapo_play import LAPOControls
from selftaught.control.lapo_scores import lapo_scores
from selftaught.core.config import refuse_outside
from selftaught.core.draws import rand, randn
from selftaught.measure.score import Score
from selftaught.method import Actions, Method, Parsed, Parts, Picture, Played, Player, Progress, TrainConfig, ramp
from selftaught.nets.phase_correlation import robust_match
from selftaught.nets.quantiser import Quantised, Quantiser
from selftaught.nets.video_blocks import Norm, from_px, shift_layer
from selftaught.report.films import code_panel, rollout_panel


@dataclass(frozen=True)
class LAPOConfig(TrainConfig):
    """Settings of LAPO."""

    image_px: int = 48
    """Height of the frames in pixels; a multiple of 4 (8 where pixels are folded)."""
    width_px: int = 64
    """Width of the frames in pixels; the same multiple."""
    fps: float = 0.0
    """Frames per second that clips are read at; 0 takes every frame."""
    every: int = 1
    """Take every n-th frame, so that an agent moves enough from one to the next."""
    window: int = 4
    """Frames of a training clip: T - 1 transitions."""
    codes: int = 12
    """Number K of latent actions."""
    code_dim: int = 4
    """Width of a code."""
    warm_frac: float = 0.3
    """Share of the training in which actions are vectors with noise and are not quantised."""
    quantised_frac: float = 0.45
    """Share of the training at which all actions are quantised; from `warm_frac` on ever more of them are."""
    noise: float = 0.5
    """Standard deviation of the noise on vectors that are not quantised, which have variance 1."""
    w_vq: float = 0.05
    """Weight of the quantiser's loss."""
    w_size: float = 0.01
    """Weight of the share of the frame that acts, for `draw=layers`: what need not move is ground."""
    dead_below: float = 0.01
    """A code used for less than this share is moved to a recent vector; 0 never."""
    dead_every: int = 50
    """Least number of steps between two such moves."""
    steady: bool = True
    """Find the ground's motion first and tell both models the frame after it; false leaves it to the codes, as the paper does."""
    ground_reach_px: int = 2
    """Largest displacement of the ground from frame to frame that is looked for."""
    draw: Draw = "layers"
    """Compose the next frame of ground, moved frame and new pixels, or draw it all (`direct`, the paper's)."""
    reach_px: int = 8
    """Largest displacement that an action's own motion can have, for `draw=layers`."""
    compare: bool = True
    """Let the inverse model compare the frames at every displacement as well; false leaves it to convolutions, as the paper does."""
    motion_weight: float = 10.0
    """How much more pixels count that change, per unit of change; 0 counts all alike, as the paper does."""
    squared: bool = False
    """Squared errors, as in the paper; else absolute ones."""
    real_frames: tuple[float, float] = (0.4, 0.6)
    """Between which shares of the training the real frames shown to the forward model fall from all but the last to the first."""
    fold: int = 4
    """Side of the squares of pixels that are folded into channels: 4 is many times faster, 1 is the paper's."""
    norm: Norm = "group"
    """group, or batch."""
    inverse_widths: tuple[int, int, int] = (32, 48, 48)
    """Channels of the inverse model."""
    inverse_hidden: int = 128
    """Width of the inverse model's linear layer."""
    forward_base: int = 24
    """Channels of the forward model at its finest level; twice as many below."""

    def __post_init__(self) -> None:
        refuse_outside(self, "every code_dim inverse_widths inverse_hidden forward_base", 1)
        refuse_outside(self, "fps noise w_vq w_size dead_below dead_every motion_weight", 0)
        refuse_outside(self, "real_frames", 0, 1)


PAPER = LAPOConfig(
    image_px=64, width_px=64, batch_size=128, steps=50_000, lr=3e-4, weight_decay=0.0, clip_norm=2.0, window=3, codes=64, code_dim=128,
    warm_frac=0.0, quantised_frac=0.0, noise=0.0, steady=False, draw="direct", compare=False, motion_weight=0.0, squared=True,
    real_frames=(1.0, 1.0),
    fold=1, inverse_widths=(64, 128, 128), inverse_hidden=256, forward_base=24,
)  # fmt: skip


class Seen(NamedTuple):
    """What both models see of each transition of B clips, each (B, T - 1, 3, H, W) in [0, 1]."""

    before: Tensor
    now: Tensor
    steady: Tensor
    after: Tensor
    ground: Tensor
    """(B, T - 1, 2) the ground's motion in units of half the frame."""


class LAPO(Method):
    """One of K latent actions per transition, and a model that plays them."""

    name = "lapo"
    Config = LAPOConfig
    reads = "clips"
    sizes = {
        "tiny": LAPOConfig(
            image_px=32, width_px=32, batch_size=4, steps=20, codes=4, window=3, ground_reach_px=1, reach_px=3, inverse_widths=(8, 8, 8),
            inverse_hidden=16, forward_base=8, quantised_frac=1.0, fold=2, lr=2e-3, clip_norm=1.0,
        ),
        "small": LAPOConfig(batch_size=8, steps=1000, lr=2e-3, weight_decay=1e-4, clip_norm=1.0),
        "paper": PAPER,
    }  # fmt: skip
    capabilities = ("play",)
    told = "2 floats (shift of the background) + one code"
    config: LAPOConfig

    def __init__(self, config: LAPOConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        unit = 4 * c.fold
        if c.fold not in (1, 2, 4) or c.image_px % unit or c.width_px % unit or min(c.image_px, c.width_px) < 16:
            raise ValueError(
                f"frames must have sides that are multiples of {unit} and fold 1, 2 or 4, got {c.width_px}x{c.image_px}"
            )
        if c.window < 3 or not 0 <= c.warm_frac <= c.quantised_frac <= 1:
            raise ValueError(
                f"window is 3 or more and warm_frac at most quantised_frac, got {c.window}, {c.warm_frac}, {c.quantised_frac}"
            )
        half = min(c.image_px, c.width_px) // 2
        if not 1 <= c.reach_px < half or not 0 <= c.ground_reach_px < half:
            raise ValueError(
                f"reach_px is at least 1 and ground_reach_px 0, both less than half the frame, got {c.reach_px} and {c.ground_reach_px}"
            )
        self.image_px, self.width_px, self.codes = c.image_px, c.width_px, c.codes
        reach = c.reach_px if c.compare else 0
        self.inverse = InverseModel(c.inverse_widths, c.inverse_hidden, c.code_dim, c.fold, c.norm, reach)
        self.forward_model = ForwardModel(c.forward_base, c.code_dim, c.draw, c.reach_px, c.fold, c.norm)
        self.quantiser = Quantiser(c.codes, c.code_dim)

    def players(self) -> dict[str, Player]:
        return {"model": self.main_player(betas=(0.9, 0.99), final_lr_frac=0.02)}

    def real_at(self, frac: float) -> int:
        """Frames of a training clip that the forward model is shown: all but the last at first, the first alone in the end."""
        return max(1, int(round((self.config.window - 1) - (self.config.window - 2) * ramp(frac, *self.config.real_frames))))

    def quantised_at(self, frac: float) -> float:
        """Share of the actions that are quantised."""
        return ramp(frac, self.config.warm_frac, self.config.quantised_frac)

    def seen(self, clips: Tensor) -> Seen:
        """Clips (B, T, 3, H, W) in [0, 1] as transitions; before the first frame there is that frame itself."""
        now, after = clips[:, :-1], clips[:, 1:]
        before = torch.cat([clips[:, :1], clips[:, :-2]], 1)
        B, n, _, H, W = now.shape
        if not self.config.steady:
            return Seen(before, now, now, after, clips.new_zeros(B, n, 2))
        ground = from_px(
            robust_match(now.flatten(0, 1), after.flatten(0, 1), self.config.ground_reach_px, stride=2), H, W
        )
        steady = shift_layer(now.flatten(0, 1), ground, "border", "nearest").view_as(now)
        return Seen(before, now, steady, after, ground.unflatten(0, (B, n)))

    def read(self, seen: Seen) -> Tensor:
        """Vectors (B, T - 1, D) of the actions, not quantised yet."""
        z = self.inverse(*(x.flatten(0, 1) for x in seen[:4]))
        return z.unflatten(0, seen.now.shape[:2])

    def quantise(self, z: Tensor, share: float) -> tuple[Quantised, Tensor]:
        """Codes of vectors (B, n, D), and what the forward model is told of them: the code for `share` of the actions, else the vector."""
        q = self.quantiser(z.flatten(0, 1), learn=self.training)
        vectors = q.vectors.view_as(z)
        if share < 1:
            B, n, D = z.shape
            free = self.quantiser.standard(z.flatten(0, 1).float()).view_as(z) + self.config.noise * randn(B, n, D).to(z.device)
            vectors = torch.where(rand(B, n, 1).to(z.device) < share, vectors, free)
        return q, vectors

    def loss(self, batch: Tensor, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c, frac = self.config, progress.frac
        seen = self.seen(batch[:, : c.window])
        share, real = self.quantised_at(frac), self.real_at(frac)
        q, vectors = self.quantise(self.read(seen), share)
        steps = self.unroll(seen, vectors, real)
        drawn, masks = (torch.stack(x, 1) for x in zip(*steps, strict=True))
        error = weighted_error(drawn, seen.after, seen.steady, c.motion_weight, c.squared)
        total = (
            error + (c.w_vq * q.loss if share > 0 else 0.0) + (c.w_size * masks.mean() if c.draw == "layers" else 0.0)
        )
        parts = {
            "prediction": float(error.detach()),
            "vq": float(q.loss.detach()),
            "real_frames": float(real),
            "quantised_frac": share,
        }
        parts["mask_frac"] = float(masks.detach().mean())
        parts["code_perplexity"] = self.quantiser.perplexity()
        parts["usage_frac"] = parts["code_perplexity"] / c.codes
        parts["phase"] = float(share > 0) + float(share >= 1)  # the loss is another one, and judged anew
        return total, parts

    def unroll(self, seen: Seen, vectors: Tensor, real: int) -> list[Drawn]:
        """Draw frames 1 to T - 1; the first `real` frames are shown, then the network's own."""
        drawn: list[Drawn] = []
        mask = torch.zeros_like(seen.now[:, 0, :1])
        for t in range(vectors.shape[1]):
            before, now = seen.before[:, t], seen.now[:, t]
            if t >= real:
                before = drawn[-2].frame if t > real else seen.now[:, t - 1]
                now = drawn[-1].frame
            drawn.append(self.forward_model(before, now, mask, seen.ground[:, t], vectors[:, t]))
            mask = drawn[-1].mask
        return drawn

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Begin the codebook at k-means after the warm-up, and move codes that nothing uses."""
        if progress.frac >= self.config.warm_frac and self.config.dead_below > 0:
            self.quantiser.renew(self.config.dead_below, self.config.dead_every)

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> Tensor:
        """(B, T, 3, H, W) uint8 to float in [0, 1]."""
        return images.float() / 255

    @torch.no_grad()
    def parse(self, clips: Tensor) -> Parsed:
        """Clips (B, T, 3, H, W) in [0, 1] to actions; masks are where the forward model puts what acts, the first where it begins."""
        seen = self.seen(clips)
        codes = self.quantiser(self.read(seen).flatten(0, 1)).codes.unflatten(0, seen.now.shape[:2])
        actions = Actions(torch.zeros_like(seen.ground), seen.ground, codes)
        masks = self.play(clips[:, 0], actions, clips).masks
        return Parsed(masks, clips * masks[:, :, None], clips, actions)

    @torch.no_grad()
    def play(self, images: Tensor, actions: Actions, real: Tensor | None = None) -> Played:
        """Frames after the first ones (B, 3, H, W) in [0, 1] under T - 1 actions; with `real` (B, T, 3, H, W) teacher-forced."""
        vectors = self.quantiser.look_up(actions.codes)
        frames, masks = [images], [torch.zeros_like(images[:, :1])]
        for t in range(vectors.shape[1]):
            now, before = (frames[-1], frames[max(t - 1, 0)]) if real is None else (real[:, t], real[:, max(t - 1, 0)])
            drawn = self.forward_model(before, now, masks[-1], actions.ground_shifts[:, t], vectors[:, t])
            frames.append(drawn.frame)
            masks.append(drawn.mask)
        masks[0] = self.acting(images)
        return Played(torch.stack(frames, 1), torch.stack(masks, 1)[:, :, 0])

    @torch.no_grad()
    def acting(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 1, H, W) in [0, 1]: what would act; nothing where frames are drawn directly."""
        nothing = torch.zeros_like(images[:, :1])
        if self.config.draw == "direct":
            return nothing
        return torch.sigmoid(self.forward_model.actor(torch.cat([images - 0.5, nothing], 1)))

    def controls(self) -> LAPOControls:
        """The model step by step."""
        return LAPOControls(self)

    def evaluate(self, data: Any) -> dict[str, Score]:
        """Actions and predictions on test clips (`data.clip_truth.ClipTest`), with baselines."""
        return lapo_scores(self, data)

    def show(self, images: Tensor) -> dict[str, Picture]:
        """What every code does, and rollouts beside the truth; `images` is (B, T, 3, H, W) in [0, 1]."""
        return {"local_actions": code_panel(self, images), "rollouts": rollout_panel(self, images[:6])}


def weighted_error(drawn: Tensor, after: Tensor, steady: Tensor, motion_weight: float, squared: bool) -> Tensor:
    """mean w |x_{t+1} - x^_{t+1}|^p,  w = 1 + motion_weight mean_c |x_{t+1} - x~_t|, of (B, T - 1, 3, H, W); p is 2 when squared, else 1.

    x~_t is the frame now after the ground's motion: what changes beyond that counts more, because it is a small part of the frame.
    """
    w = 1 + motion_weight * (after - steady).abs().mean(2, keepdim=True)
    error = (after - drawn).square() if squared else (after - drawn).abs()
    return (w * error).mean()
