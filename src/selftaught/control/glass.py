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

from selftaught.control.glass_figure import corners, cut, paste
from selftaught.control.glass_gma import GMA, Layers, Moved, first_teacher, gma_losses, move
from selftaught.control.glass_lma import LMA, Drawn, compared, lma_losses
from selftaught.control.glass_parts import build_gma, build_lma, perceptual_of
from selftaught.control.glass_play import GLASSControls, parse, play
from selftaught.control.glass_scores import glass_scores
from selftaught.core.config import read_json, write_json
from selftaught.core.errors import RunError
from selftaught.measure.score import Score
from selftaught.method import Actions, Method, Parsed, Parts, Picture, Played, Player, Progress, TrainConfig
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
        if c.coding == "slow" and (c.figure_px < 8 or c.figure_px % 8):
            raise ValueError(f"figure_px must be a multiple of 8, got {c.figure_px}")
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
        rows = np.unique(np.linspace(0, len(images) - 1, min(64, len(images))).astype(int))
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
        return c.window_start + int(round((c.window - c.window_start) * _ramp(frac, *c.window_grows)))

    def real_at(self, frac: float, frames: int) -> int:
        """Real frames that LMA is shown of a clip: all but the last at first, the first alone in the end."""
        return max(1, int(round((frames - 1) + (2 - frames) * _ramp(frac, *self.config.real_frames))))

    def teach_at(self, frac: float) -> float:
        """Weight of the first teacher."""
        c = self.config
        return c.teach_weight * max(0.0, 1 - frac / c.teach_frac) if c.teach_frac > 0 else 0.0

    def temperature_at(self, frac: float) -> float:
        """Gumbel-softmax temperature."""
        high, low = self.config.temperature
        return high + (low - high) * _ramp(frac, self.config.warm_frac, 1.0)

    def loss(self, batch: Tensor, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c, frac = self.config, progress.frac
        frames = self.frames_at(frac)
        # Where only a part of the frames is drawn, it is another part in every step.
        first = progress.step % (batch.shape[1] - frames + 1) if c.drawn else 0
        clip = batch[:, first : first + frames]
        warm = frac < c.warm_frac
        if warm and self.lma.slow is not None and frac >= c.slow_from and self.training:
            self.gather_looks(batch)
        learns = warm or progress.step % c.gma_every == 0 or not c.detach
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            layers = self.gma(clip)
            moved = move(layers, c.mask_twice)
            total, parts = self.global_loss(clip, layers, moved, self.teach_at(frac))
        if not learns:
            total = clip.new_zeros(())
        if not warm:
            if c.detach:
                layers, moved = Layers(*(x.detach() for x in layers)), Moved(*(x.detach() for x in moved))
            real = self.real_at(frac, clip.shape[1])
            local, more = self.local_loss(layers, moved, real, self.temperature_at(frac), self.swapped(batch, layers, real))
            total, parts = total + local, parts | more
        # The loss is another one when LMA begins and when the teacher ends: its course is judged anew then.
        parts["phase"] = float(not warm)
        return total, parts

    @torch.no_grad()
    def gather_looks(self, batch: Tensor) -> None:
        """Remember how the agents of whole clips look."""
        assert self.lma.slow is not None
        frames = batch.flatten(0, 1)
        m = self.gma.masks(frames)
        self.lma.slow.remember(self.lma.slow.seen(m * frames, m).unflatten(0, batch.shape[:2]))
        if self.lma.guess is not None:
            side = self.config.figure_px
            self.lma.guess.remember(cut(torch.cat([m * frames, m], 1), corners(m, side), side).unflatten(0, batch.shape[:2]))

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
        return _weighted(losses, weights), parts

    def taught(self, clip: Tensor, layers: Layers) -> Tensor:
        """Distance to what a clip says without a network: mean |d_b - d| in tenths of the frame, and cross-entropy of the masks."""
        shifts, moving = first_teacher(clip, self.config.ground_reach_px, self.config.teach_threshold)
        m = layers.masks[:, 1:-1].clamp(1e-4, 1 - 1e-4)
        cross = -(moving * m.log() + (1 - moving) * (1 - m).log()).mean()
        return (layers.ground_shifts - shifts).abs().mean() * 10 + cross

    def local_loss(self, layers: Layers, moved: Moved, real: int, temperature: float, other: Tensor | None = None) -> tuple[Tensor, Parts]:
        """LMA's losses, weighted; the first `real` frames are shown, or `other` ones (B, real, 4, H, W), then the network's own."""
        c, lma = self.config, self.lma
        B, T = layers.masks.shape[:2]
        canvases = torch.cat([layers.foregrounds, layers.masks], 2)
        states = lma.see(canvases.flatten(0, 1)).unflatten(0, (B, T))
        q = lma.code(
            moved.foregrounds.flatten(0, 1), layers.foregrounds[:, 1:].flatten(0, 1), layers.masks[:, 1:].flatten(0, 1),
            states[:, 1:].flatten(0, 1), temperature, learn=self.training,
        )  # fmt: skip
        before = canvases if other is None else torch.cat([other, canvases[:, other.shape[1] :]], 1)
        drawn, seen, own = self.unroll(before, states if other is None else None, layers.shifts, q.vectors.unflatten(0, (B, T - 1)), real)
        losses = lma_losses(compared(canvases[:, 1:], before[:, :-1], moved.foregrounds, drawn, seen, (states[:, 1:], own), real))
        weights = {"global_motion": c.w_global_motion, "local_motion": c.w_local_motion, "state": c.w_state, "mask": c.w_mask}
        if lma.slow is None:
            losses["vq"], weights["vq"] = q.loss, c.w_vq
        if c.perceptual != "none":
            losses["perceptual"] = self.foreground_perceptual(drawn, layers.foregrounds[:, 1:])
            weights["perceptual"] = c.w_perceptual
        if lma.slow is not None and c.w_code and c.actions == "learned":
            losses["code"], weights["code"] = self.told_apart(canvases, states, drawn, q.codes.unflatten(0, (B, T - 1))), c.w_code
        parts = {f"local_{k}": float(v.detach()) for k, v in losses.items()}
        parts |= {"real_frames": float(real), "code_perplexity": lma.codes.perplexity()}
        parts["usage_frac"] = parts["code_perplexity"] / c.codes
        return _weighted(losses, weights), parts

    def unroll(
        self, canvases: Tensor, states: Tensor | None, shifts: Tensor, codes: Tensor, real: int
    ) -> tuple[list[Drawn], Tensor, Tensor]:
        """Draw frames 1 to T - 1; returns them, what was shown before each (B, T - 1, 4, H, W), and the states of the drawn ones."""
        T = canvases.shape[1]
        see = self.lma.see
        drawn: list[Drawn] = []
        seen: list[Tensor] = []
        own: list[Tensor] = []
        memory: Any = None
        for t in range(T - 1):
            shown = t < real
            seen.append(canvases[:, t] if shown else drawn[-1].whole)
            state = own[-1] if not shown else see(canvases[:, t]) if states is None else states[:, t]
            one, memory = self.step(state, seen[-1], shifts[:, t], codes[:, t], memory)
            drawn.append(one)
            own.append(see(one.whole))
        return drawn, torch.stack(seen, 1), torch.stack(own, 1)

    def step(self, state: Tensor, canvas: Tensor, shift: Tensor, code: Tensor, memory: Any) -> tuple[Drawn, Any]:
        """One step: the state (B, C, h, w) of a foreground, and itself with its mask (B, 4, H, W), to the next drawn one."""
        if self.config.actions == "none":
            shift, code = torch.zeros_like(shift), torch.zeros_like(code)
        return self.lma.step(state, canvas, shift, code, memory)

    def told_apart(self, canvases: Tensor, states: Tensor, drawn: list[Drawn], codes: Tensor) -> Tensor:
        """Whether codes (B, T - 1) are recognised in what was drawn, and any code in what it makes of the first canvas, unmoved."""
        lma, slow = self.lma, self.lma.slow
        assert slow is not None
        other = torch.randint(self.codes, codes[:, 0].shape, device=codes.device)
        still = canvases.new_zeros(len(other), 2)
        one, _ = self.step(states[:, 0], canvases[:, 0], still, lma.vectors(other), None)
        whole = torch.cat([torch.stack([d.whole for d in drawn], 1).flatten(0, 1), one.whole])
        return slow.recognised(whole, torch.cat([codes.flatten(), other]))

    @torch.no_grad()
    def swapped(self, batch: Tensor, layers: Layers, real: int) -> Tensor | None:
        """Canvases (B, real, 4, H, W) of which a share holds the agent as it looks in another frame of its clip (B, T, 3, H, W)."""
        c, side = self.config, self.config.figure_px
        if not c.swap_frac:
            return None
        B, T, R = *batch.shape[:2], min(real, layers.masks.shape[1])
        here = torch.cat([layers.foregrounds, layers.masks], 2)[:, :R]
        others = batch[torch.arange(B)[:, None], torch.randint(T, (B, R))].flatten(0, 1)
        m = self.gma.masks(others)
        look = cut(torch.cat([m * others, m], 1), corners(m, side), side)
        own = here.flatten(0, 1)
        put = paste(look, corners(own[:, 3:], side), torch.zeros_like(own)).unflatten(0, (B, R))
        return torch.where((torch.rand(B, R) < c.swap_frac).to(batch.device)[..., None, None, None], put, here)

    def foreground_perceptual(self, drawn: list[Drawn], real: Tensor) -> Tensor:
        """Distance in features: at every scale (VGG, pyramid), or at full size (features)."""
        scales = [torch.cat(s) for s in zip(*(d.scales for d in drawn), strict=True)]
        target = real.transpose(0, 1).flatten(0, 1)
        corner = [d.corner for d in drawn if d.corner is not None]
        if corner:
            target = cut(target, torch.cat(corner), self.lma.side)
        used = scales[:1] if self.config.perceptual == "features" else scales
        total = real.new_zeros(())
        for x in used:
            size = (x.shape[2], x.shape[3])
            y = target if size == target.shape[2:] else nn.functional.interpolate(target, size=size, mode="bilinear", align_corners=False)
            total = total + self.perceptual(x, y) / len(used)
        return total

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


def _ramp(x: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, linear between."""
    return float(x >= start) if end <= start else min(max((x - start) / (end - start), 0.0), 1.0)


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[k] * v for k, v in losses.items()]).sum()
