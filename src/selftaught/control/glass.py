"""GLASS: a video model that finds its own actions: where an agent goes (two numbers) and what it does there (one of K codes).

Paper: Davtyan and Favaro, "Controllable Video Generation through Global and Local Motion Dynamics", ECCV 2022. Global Motion
Analysis (`glass_gma.py`) cuts every frame into an agent and a filled-in background and measures how both move; Local Motion
Analysis (`glass_lma.py`) reads what is left of the change as a code and draws the next agent from the state, the motion and the code.
No gradient passes from the second to the first. Actions are never given; labels, masks and shifts are read by `evaluate` alone.
Differs: schedules are shares of the training; group norm, because batches are small; codes are standardised before they are
quantised, begin at k-means and are born again. Size `small` folds 2x2 pixels into channels, compares frames at every displacement
instead of regressing their shift, draws on the last foreground after its shift, is taught ever more weakly by what moves otherwise
than most of the frame (`first_teacher`), which takes the place of hundreds of thousands of steps, and makes its codes of what lasts in
the agent's look before the drawing begins (`glass_slow.py`), because drawing did not shape any, and with them a first guess of how an
agent looks under each (`glass_guess.py`), because drawing did not heed them; its perceptual loss is a fixed pyramid.
Size `paper` compares features that taught themselves, in the place of VGG's, which were learned from labels.
Cost: LMA draws frame after frame; at `small` a step takes 0.5 to 0.9 s of one CPU core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.control.glass_draw import local_loss, swapped, weighted
from selftaught.control.glass_figure import corners, cut
from selftaught.control.glass_gma import GMA, Agents, Layers, Moved, first_teacher, gma_losses, move
from selftaught.control.glass_lma import LMA, Drawn
from selftaught.control.glass_parts import build_gma, build_lma, perceptual_of
from selftaught.control.glass_play import GLASSControls, parse, play
from selftaught.control.glass_scores import glass_scores
from selftaught.control.glass_slow import looks, solid
from selftaught.core.config import read_json, refuse_outside, write_json
from selftaught.core.errors import RunError
from selftaught.core.rows import evenly
from selftaught.measure.score import Score
from selftaught.method import Actions, Method, Parsed, Parts, Picture, Played, Player, Progress, TrainConfig, ramp
from selftaught.nets.video_blocks import Norm
from selftaught.report.films import panels


@dataclass(frozen=True)
class GLASSConfig(TrainConfig):
    """Settings of GLASS."""

    image_px: int = 48
    """Height of the frames in pixels; a multiple of 8 (16 where pixels are folded)."""
    width_px: int = 64
    """Width of the frames in pixels; the same multiple."""
    fps: float = 0.0
    """Frames per second that clips are read at; 0 takes every frame."""
    every: int = 1
    """Take every n-th frame, so that an agent moves enough from one to the next."""
    window: int = 6
    """Frames of a training clip, at the end of its schedule."""
    window_start: int = 5
    """Frames of a training clip, at the beginning."""
    window_grows: tuple[float, float] = (0.5, 0.6)
    """Between which shares of the training the clip grows."""
    drawn: int = 0
    """Frames of a training clip that layers and drawings are learned from; 0 takes all."""
    warm_frac: float = 0.25
    """Share of the training in which only GMA learns."""
    real_frames: tuple[float, float] = (0.3, 0.7)
    """Between which shares of the training the real frames that LMA is shown fall from all but the last to the first."""
    teach_frac: float = 0.25
    """Share of the training in which whole-frame motion and what moves otherwise teach GMA, ever more weakly; 0 leaves that out."""
    teach_weight: float = 1.0
    """Weight of that teacher at the start."""
    teach_threshold: float = 0.09
    """Difference to the moved frame (of 2) above which a pixel counts as moving otherwise."""
    reach_px: int = 8
    """Largest displacement from frame to frame that `shift=correlation` can tell."""
    ground_reach_px: int = 4
    """Largest displacement of the background from frame to frame that is looked for."""
    gma_every: int = 1
    """After the warm-up GMA learns in every n-th step only, which saves time."""
    size: float = 0.0
    """Share of the frame that the agent covers (size prior): 0.06 in the paper for W-Sprites; 0 estimates it from what moves."""
    mask_twice: bool = False
    """Put layers together as the released code does, where the mask enters twice; otherwise by the usual rule for alpha."""
    w_frame: float = 1.0
    """Weight of the frame's reconstruction by the moved layers."""
    w_foreground: float = 1.0
    """Weight of the match of foregrounds."""
    w_background: float = 2.0
    """Weight of the match of backgrounds."""
    w_background_perceptual: float = 0.02
    """Weight of the same match in features."""
    w_binary: float = 0.5
    """Weight of the loss that makes masks binary."""
    w_size: float = 0.1
    """Weight of the size prior."""
    w_global_motion: float = 1.0
    """Weight of the drawn foreground's error, where it moves."""
    w_local_motion: float = 1.0
    """Weight of the same error, where the shift alone does not explain the change."""
    w_perceptual: float = 1.0
    """Weight of the drawn foreground's distance in features."""
    w_state: float = 0.2
    """Weight of the consistency of the states of real and drawn foregrounds."""
    w_vq: float = 0.1
    """Weight of the quantiser's loss."""
    w_code: float = 0.0
    """Weight of the recognition of codes in what is drawn by them, for `coding=slow`."""
    w_mask: float = 0.2
    """Weight of the drawn mask's error."""
    detach: bool = True
    """Keep LMA's gradients from GMA; false is an ablation."""
    perceptual: Literal["features", "vgg", "pyramid", "none"] = "features"
    """What compares pictures: the needed features, VGG19 (`vgg_weights`), a fixed pyramid, or nothing."""
    vgg_weights: str = ""
    """File of torchvision's vgg19 weights, for `perceptual=vgg`."""
    coding: Literal["learned", "slow"] = "learned"
    """Whether codes are learned with the drawing, as in the paper, or made before of what of the agent's look lasts (`glass_slow.py`)."""
    slow_from: float = 0.0
    """Share of the training from which looks are gathered for `coding=slow`; the codes are made at the end of the warm-up."""
    figure_px: int = 32
    """Side of the square that an agent is cut out in for `coding=slow` and `draws=agent`; a multiple of 8."""
    guess_parts: int = 64
    """Principal components of the first guess of how an agent looks under a code (`glass_guess.py`), for `coding=slow`, `draws=agent`."""
    slow_dims: int = 10
    """Lasting features that are sorted into codes."""
    slow_apart: int = 5
    """Frames that are so far apart show another action more often than neighbours do."""
    slow_who: float = 0.3
    """How strongly what differs from clip to clip is left out: who the agent is."""
    slow_ridge: float = 0.02
    """Share of the mean variance that is added to the change between neighbours, against chance in it."""
    codes: int = 6
    """Number K of local actions."""
    code_dim: int = 8
    """Width of a code."""
    quantiser: Literal["vq", "gumbel"] = "vq"
    """Nearest code, or Gumbel-softmax (ablation)."""
    vq_convention: Literal["vqvae", "glass"] = "vqvae"
    """Which of the two terms of the quantiser's loss has the 0.25: the commitment (VQ-VAE) or the codebook (released GLASS)."""
    temperature: tuple[float, float] = (1.0, 0.4)
    """Gumbel-softmax temperature after the warm-up and at the end."""
    dead_below: float = 0.01
    """A code used for less than this share is moved to a recent vector; 0 never."""
    dead_every: int = 100
    """Least number of steps between two such moves."""
    direction: Literal["bilinear", "plain"] = "bilinear"
    """How the direction of change is computed: by bilinear layers, or as a difference (ablation)."""
    conditioned: Literal["modulated", "plain"] = "modulated"
    """How actions enter: modulated convolutions, or maps beside the input (ablation)."""
    joint: bool = False
    """Give shift and code to every part of the dynamics (ablation)."""
    fill: Literal["network", "around"] = "network"
    """What fills the agent's place in backgrounds that are shown: the network, as in the paper, or the pixels around, closer ones more."""
    draws: Literal["frame", "agent"] = "frame"
    """What is drawn: whole frames, as in the paper, or a square of `figure_px` around the agent."""
    swap_frac: float = 0.0
    """Share of the shown frames that hold the agent as it looks in another frame of the clip: the code alone says how it looks next."""
    residual: bool = True
    """Draw on the last foreground after its shift, through a gate; false draws all of it from the state, as the paper does."""
    actions: Literal["learned", "none"] = "learned"
    """`none` gives the dynamics neither shift nor code: the baseline that must be beaten."""
    shift: Literal["correlation", "regression"] = "correlation"
    """How shifts are measured: by comparison at every displacement, or by the paper's regression."""
    fold: int = 2
    """Side of the squares of pixels that are folded into channels: 2 is several times faster, 1 is the paper's."""
    norm: Norm = "group"
    """group, or batch (the paper's)."""
    mask_widths: tuple[int, int, int] = (24, 48, 24)
    """Channels of the mask network: stem, body, way up."""
    mask_blocks: int = 3
    """Residual blocks of the mask network."""
    inpaint_widths: tuple[int, int, int] = (16, 24, 32)
    """Channels of the inpainting network."""
    shift_widths: tuple[int, int, int, int] = (16, 24, 48, 48)
    """Channels of the shift networks; `shift=correlation` uses half the first."""
    shift_hidden: tuple[int, int] = (32, 32)
    """Hidden widths of the regression."""
    state_widths: tuple[int, int, int] = (16, 24, 32)
    """Channels of the state network."""
    compressed: int = 8
    """State channels that the dynamics see."""
    hidden: int = 24
    """Channels of the dynamics."""
    bilinear: int = 2
    """Bilinear layers of the direction."""
    render_widths: tuple[int, int, int] = (48, 32, 24)
    """Channels of the renderer."""

    def __post_init__(self) -> None:
        refuse_outside(self, "every gma_every code_dim guess_parts slow_dims compressed hidden", 1)
        refuse_outside(self, "mask_widths inpaint_widths shift_hidden state_widths render_widths", 1)
        refuse_outside(self, "shift_widths", 2)
        refuse_outside(self, "warm_frac real_frames window_grows teach_frac slow_from swap_frac", 0, 1)
        refuse_outside(self, "slow_ridge", 1e-6)
        refuse_outside(self, "fps teach_weight teach_threshold dead_below dead_every slow_who mask_blocks bilinear", 0)
        refuse_outside(self, " ".join(name for name in vars(self) if name.startswith("w_")), 0)


PAPER = GLASSConfig(
    image_px=96, width_px=128, batch_size=12, steps=470_000, lr=4e-4, weight_decay=1e-6, warmup_frac=0.0, window=12, window_start=6,
    window_grows=(0.106, 0.17), warm_frac=0.0064, real_frames=(0.0064, 0.053), teach_frac=0.0, size=0.06, mask_twice=True,
    vq_convention="glass", code_dim=16, shift="regression", fold=1, norm="batch", mask_widths=(64, 256, 64), mask_blocks=9,
    inpaint_widths=(16, 32, 64), shift_widths=(16, 32, 64, 128), shift_hidden=(64, 32), state_widths=(16, 32, 64), hidden=32, bilinear=4,
    render_widths=(128, 64, 32), residual=False,
)  # fmt: skip


class GLASS(Method):
    """Global and local actions of one agent, its layers, and a model that plays them."""

    name = "glass"
    Config = GLASSConfig
    reads = "clips"
    sizes = {
        "tiny": GLASSConfig(
            image_px=32, width_px=32, batch_size=4, steps=20, window=4, window_start=3, reach_px=4, ground_reach_px=1,
            mask_widths=(8, 8, 8), mask_blocks=1, inpaint_widths=(8, 8, 8), shift_widths=(8, 8, 8, 8), shift_hidden=(8, 8),
            state_widths=(8, 8, 8), hidden=8, compressed=4, code_dim=4, bilinear=1, render_widths=(8, 8, 8), lr=2e-3, clip_norm=1.0,
        ),
        "small": GLASSConfig(
            batch_size=8, steps=420, lr=2e-3, weight_decay=1e-4, clip_norm=1.0, warm_frac=0.5, teach_frac=0.9, gma_every=3, window=12,
            drawn=5, coding="slow", slow_from=0.2, draws="agent", swap_frac=0.5, w_code=0.05, fill="around", real_frames=(0.5, 0.75),
            perceptual="pyramid",
        ),
        "paper": PAPER,
    }  # fmt: skip
    needs = {"features": "simclr"}
    capabilities = ("segment", "play")
    config: GLASSConfig

    share: Tensor

    def __init__(self, config: GLASSConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        if not 0 <= c.size < 1 or c.fold not in (1, 2):
            raise ValueError("size is a share in [0, 1), fold is 1 or 2")
        unit = 8 * c.fold if c.fold > 1 else 8
        if c.image_px % unit or c.width_px % unit or min(c.image_px, c.width_px) < 16:
            raise ValueError(f"frames must have sides that are multiples of {unit}, these are {c.width_px}x{c.image_px}")
        if c.drawn and not 3 <= c.drawn <= c.window:
            raise ValueError(f"drawn must be 0 or from 3 to window, got {c.drawn} and {c.window}")
        if c.coding == "slow" and not 1 <= c.slow_apart < c.window:
            raise ValueError(f"slow_apart must be less than window, got {c.slow_apart} and {c.window}")
        if c.coding == "slow" and not c.slow_from < c.warm_frac:
            raise ValueError(f"slow_from must be less than warm_frac, got {c.slow_from} and {c.warm_frac}: looks are gathered in between")
        if (c.coding == "slow" or c.draws == "agent" or c.swap_frac) and (c.figure_px < 8 or c.figure_px % 8):
            raise ValueError(f"figure_px must be a multiple of 8, got {c.figure_px}")
        if min(c.temperature) <= 0:
            raise ValueError(f"temperature must be above 0 at both ends, got {c.temperature}")
        if not 0 <= 2 * c.ground_reach_px < min(c.image_px, c.width_px):
            raise ValueError(f"frames must be more than twice as large as a reach of {c.ground_reach_px} px, which is at least 0")
        if not 3 <= c.window_start <= c.window:
            raise ValueError(f"window_start and window must be 3 or more and in this order, got {c.window_start} and {c.window}")
        self.image_px, self.width_px, self.codes = c.image_px, c.width_px, c.codes
        self.gma: GMA = build_gma(c)
        self.lma: LMA = build_lma(c)
        self.perceptual = perceptual_of(c, self.given.get("features"))
        self.register_buffer("share", torch.tensor(c.size or 0.06))

    @classmethod
    def needs_of(cls, config: Any) -> Mapping[str, str]:
        """Features are needed where they are the perceptual loss."""
        return cls.needs if config.perceptual == "features" else {}

    def begin(self, images: Any, run_dir: Path, say: Any) -> None:
        """Estimate the size prior from what moves in training clips, where the config leaves it open; RUN/size_prior.json keeps it."""
        if self.config.size:
            return
        path = run_dir / "size_prior.json"
        if path.exists():
            kept = read_json(path).get("share")
            if not isinstance(kept, float) or not 0 < kept < 1:
                raise RunError(f"{path} is damaged.", expected='{"share": number between 0 and 1}', do="Remove it; it is made again.")
            self.share.fill_(kept)
            return
        rows = evenly(len(images), 64)
        _, moving = first_teacher(self.scaled(images.batch(rows)), self.config.ground_reach_px, self.config.teach_threshold)
        self.share.fill_(float(moving.mean().clamp(0.01, 0.3)))
        write_json(path, {"share": float(self.share)})
        say(f"size prior: {float(self.share):.3f} of the frame, from what moves otherwise than most of it")

    def players(self) -> dict[str, Player]:
        return {"model": self.main_player(betas=(0.9, 0.99), final_lr_frac=0.02)}

    @staticmethod
    def scaled(clip: Tensor) -> Tensor:
        """uint8 to float in [-1, 1]."""
        return clip.float() / 127.5 - 1

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> Tensor:
        """(B, T, 3, H, W) uint8 to float in [-1, 1]."""
        return self.scaled(images)

    # Schedules: functions of the share of the training that is done.

    def frames_at(self, frac: float) -> int:
        """Frames of a training clip that are learned from."""
        c = self.config
        if c.drawn:
            return c.drawn
        return c.window_start + int(round((c.window - c.window_start) * ramp(frac, *c.window_grows)))

    def real_at(self, frac: float, frames: int) -> int:
        """Real frames that LMA is shown of a clip: all but the last at first, the first alone in the end."""
        return max(1, int(round((frames - 1) + (2 - frames) * ramp(frac, *self.config.real_frames))))

    def teach_at(self, frac: float) -> float:
        """Weight of the first teacher."""
        c = self.config
        return c.teach_weight * max(0.0, 1 - frac / c.teach_frac) if c.teach_frac > 0 else 0.0

    def temperature_at(self, frac: float) -> float:
        """Gumbel-softmax temperature."""
        high, low = self.config.temperature
        return high + (low - high) * ramp(frac, self.config.warm_frac, 1.0)

    def loss(self, batch: Tensor, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c, frac = self.config, progress.frac
        frames = self.frames_at(frac)
        # Where only a part of the frames is drawn, it is another part in every step.
        first = progress.step % (batch.shape[1] - frames + 1) if c.drawn else 0
        clip = batch[:, first : first + frames]
        warm = frac < c.warm_frac
        # Where only LMA learns, nothing asks for backgrounds.
        learns = warm or progress.step % c.gma_every == 0 or not c.detach
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            if learns:
                layers = self.gma(clip)
                moved = move(layers, c.mask_twice)
                total, parts = self.global_loss(clip, layers, moved, self.teach_at(frac))
                agents = Agents(layers.masks, layers.foregrounds, layers.shifts, moved.foregrounds)
            else:
                total, parts, agents = clip.new_zeros(()), {}, self.gma.agents(clip)
        if warm and self.lma.slow is not None and frac >= c.slow_from and self.training:
            self.gather_looks(batch, agents.masks, first)
        if not warm:
            if c.detach:
                agents = Agents(*(x.detach() for x in agents))
            real = self.real_at(frac, clip.shape[1])
            local, more = local_loss(self, agents, real, self.temperature_at(frac), swapped(self, batch, agents, real))
            total, parts = total + local, parts | more
        # The loss is another one when LMA begins and when the teacher ends: its course is judged anew then.
        parts["phase"] = float(not warm)
        return total, parts

    @torch.no_grad()
    def gather_looks(self, batch: Tensor, masks: Tensor | None = None, first: int = 0) -> None:
        """Remember how the agents of whole clips (B, T, 3, H, W) look; `masks` of the frames from `first` on may be known."""
        slow, guess = self.lma.slow, self.lma.guess
        assert slow is not None
        if masks is None:
            m = self.gma.masks(batch.flatten(0, 1))
        else:
            last = first + masks.shape[1]
            rest = torch.cat([batch[:, :first], batch[:, last:]], 1)
            other = self.gma.masks(rest.flatten(0, 1)).unflatten(0, rest.shape[:2]) if rest.shape[1] else rest[:, :, :1]
            m = torch.cat([other[:, :first], masks, other[:, first:]], 1).flatten(0, 1)
        squares = cut(torch.cat([m * batch.flatten(0, 1), m], 1), corners(m, slow.side), slow.side)
        slow.remember(looks(solid(squares)).unflatten(0, batch.shape[:2]))
        if guess is not None:
            guess.remember(squares.unflatten(0, batch.shape[:2]))

    def global_loss(self, clip: Tensor, layers: Layers, moved: Moved, teach: float) -> tuple[Tensor, Parts]:
        """GMA's losses, weighted; (scalar, numbers to log)."""
        c = self.config
        losses = gma_losses(clip, layers, moved, float(self.share))
        weights = {"frame": c.w_frame, "foreground": c.w_foreground, "background": c.w_background, "binary": c.w_binary, "size": c.w_size}
        if c.w_background_perceptual and c.perceptual != "none":
            losses["perceptual"] = self.perceptual(moved.backgrounds.flatten(0, 1), layers.backgrounds[:, 1:].flatten(0, 1))
            weights["perceptual"] = c.w_background_perceptual
        if teach > 0:
            losses["teacher"] = self.taught(clip, layers)
            weights["teacher"] = teach
        parts = {f"global_{k}": float(v.detach()) for k, v in losses.items()}
        parts["mask_frac"] = float(layers.masks.detach().mean())
        return weighted(losses, weights), parts

    def taught(self, clip: Tensor, layers: Layers) -> Tensor:
        """Distance to what a clip says without a network: mean |d_b - d| in tenths of the frame, and cross-entropy of the masks."""
        shifts, moving = first_teacher(clip, self.config.ground_reach_px, self.config.teach_threshold)
        m = layers.masks[:, 1:-1].clamp(1e-4, 1 - 1e-4)
        cross = -(moving * m.log() + (1 - moving) * (1 - m).log()).mean()
        return (layers.ground_shifts - shifts).abs().mean() * 10 + cross

    def step(self, state: Tensor, canvas: Tensor, shift: Tensor, code: Tensor, memory: Any) -> tuple[Drawn, Any]:
        """One step: the state (B, C, h, w) of a foreground, and itself with its mask (B, 4, H, W), to the next drawn one."""
        if self.config.actions == "none":
            shift, code = torch.zeros_like(shift), torch.zeros_like(code)
        return self.lma.step(state, canvas, shift, code, memory)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Begin the codebook at k-means, and move codes that nothing uses; make the codes of what lasts when the warm-up ends."""
        c, lma = self.config, self.lma
        if lma.slow is not None:
            # The next step is the first that draws.
            if (progress.step + 1) / max(progress.total, 1) >= c.warm_frac:
                lma.slow.start()
                if lma.guess is not None:
                    lma.guess.start(lma.slow)
        elif progress.frac >= c.warm_frac and c.dead_below > 0 and lma.quantiser is not None:
            lma.quantiser.renew(c.dead_below, c.dead_every)

    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to the agent's mask (B, H, W) in [0, 1]."""
        size = (self.config.image_px, self.config.width_px)
        x = nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        m = self.gma.masks(2 * x - 1)
        return nn.functional.interpolate(m, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]

    def parse(self, clips: Tensor) -> Parsed:
        """Clips (B, T, 3, H, W) in [0, 1] to layers and actions."""
        return parse(self, clips)

    def play(self, images: Tensor, actions: Actions, real: Tensor | None = None) -> Played:
        """Frames after the first ones (B, 3, H, W) in [0, 1] under T - 1 actions; with `real` (B, T, 3, H, W) teacher-forced."""
        return play(self, images, actions, real)

    def controls(self) -> GLASSControls:
        """The model step by step."""
        return GLASSControls(self)

    def evaluate(self, data: Any) -> dict[str, Score]:
        """Layers, motion, actions and predictions on test clips (`data.clip_truth.ClipTest`), with baselines."""
        return glass_scores(self, data)

    def show(self, images: Tensor) -> dict[str, Picture]:
        """The talk's three panels: layers, global actions, local actions; `images` is (B, T, 3, H, W) in [0, 1]."""
        return panels(self, images)
