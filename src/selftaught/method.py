"""The contract that every method of every room fulfils, and the capabilities that learned methods offer each other.

A newcomer's map: `Config` says what can be set, `sizes` gives three settings that work, `needs` names what must be learned before,
`players()` says which parameters are trained how, `loss()` is the paper's formula, `after_step()` moves what is not trained by
gradients, `evaluate()` measures, `show()` draws. The loop that calls them is `selftaught/train.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.tune import fast_memory

if TYPE_CHECKING:
    from selftaught.data.cache import ImageSet
    from selftaught.data.clip_windows import WindowSet
    from selftaught.data.evalset import EvalSet
    from selftaught.measure.score import Score

Picture: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
Parts: TypeAlias = "dict[str, float]"


@dataclass(frozen=True)
class TrainConfig:
    """What every method's `Config` has."""

    image_px: int = 96
    """Side in pixels of the square pictures that the method sees."""
    batch_size: int = 128
    """Pictures per optimiser step."""
    accumulate: int = 1
    """Parts that a batch is cut into to save memory; gradients are summed."""
    steps: int = 1000
    """Optimiser steps in all."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay; never on biases, norms and one-dimensional parameters."""
    warmup_frac: float = 0.1
    """Share of the steps in which the learning rate rises linearly from zero."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 does not clip."""
    max_skips: int = 3
    """Steps in a row that may be left out because a number was not finite; one more stops the run, 0 stops at the first."""


@dataclass(frozen=True)
class Progress:
    """Where a training is: `step` counts from 0, `total` steps in all."""

    step: int
    total: int

    @property
    def frac(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        return self.step / max(self.total, 1)


def ramp(frac: float, start: float, end: float) -> float:
    """0 before `start`, 1 from `end` on, linear between: what comes in over a part of the training."""
    return float(frac >= start) if end <= start else min(max((frac - start) / (end - start), 0.0), 1.0)


@dataclass
class Player:
    """A group of parameters with its own optimiser; one for most methods, two for adversarial ones."""

    parameters: list[tuple[str, nn.Parameter]]
    lr: float
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.9
    warmup_frac: float = 0.1
    final_lr_frac: float = 0.0
    clip_norm: float = 0.0
    lr_scales: dict[str, float] = field(default_factory=dict)
    """Name prefix -> factor on the learning rate, for parts that are learned already."""

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimiser; groups differ in weight decay (none on biases, norms and tokens) and in the factor on the rate."""
        members: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, p in self.parameters:
            decay = self.weight_decay if p.ndim > 1 and min(p.shape[:2]) > 1 else 0.0
            scale = next((s for prefix, s in self.lr_scales.items() if name.startswith(prefix)), 1.0)
            members.setdefault((decay, scale), []).append(p)
        groups = [{"params": ps, "weight_decay": d, "lr_scale": s} for (d, s), ps in members.items()]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        raise ValueError(f"optimizer must be 'adamw' or 'sgd', got {self.optimizer!r}")

    def lr_at(self, progress: Progress) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to `final_lr_frac` of the highest."""
        warmup = self.warmup_frac * progress.total
        if progress.step < warmup:
            return self.lr * (progress.step + 1) / max(warmup, 1.0)
        done = (progress.step - warmup) / max(progress.total - warmup, 1.0)
        low = self.final_lr_frac
        return self.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@dataclass
class EvalData:
    """What a method is measured on: the labelled bank (may be None) and the test pictures, both with truth where it exists."""

    train: EvalSet | None
    test: EvalSet
    seed: int = 0
    made: bool = False
    """Whether the pictures were composed by a program, so that it must be checked whether pasted edges give objects away."""
    notes: list[str] = field(default_factory=list)


class Method(nn.Module):
    """One way to learn. Whatever changes during training is a parameter or a registered buffer, so the state dict is the whole state.

    `needs` arrive as already learned objects and stay outside of the module tree: they are frozen and never saved with it.
    """

    name: ClassVar[str]
    Config: ClassVar[type[TrainConfig]]
    sizes: ClassVar[Mapping[str, TrainConfig]]
    small_px32: ClassVar[TrainConfig | None] = None
    """What size `small` means for pictures of 48 px and less, where that differs."""
    needs: ClassVar[Mapping[str, str]] = {}
    reads: ClassVar[Literal["pictures", "clips"]] = "pictures"
    """What a batch is made of: pictures (B, 3, S, S), or windows of clips (B, T, 3, H, W); uint8."""
    capabilities: ClassVar[tuple[str, ...]] = ()
    cpu_only: ClassVar[bool] = False
    """Whether it is trained on the CPU alone."""
    alternate: ClassVar[bool] = False
    """Whether each player sees pictures of its own: of P players, number p of step s gets batch s P + p; otherwise all see batch s."""
    loss_uniform: float | None = None
    """Loss of a model that knows nothing, where that is known; a loss that stays there raises the alarm."""

    def __init__(self, config: TrainConfig, needs: Mapping[str, Any] | None = None):
        super().__init__()
        self.config = config
        given = dict(needs or {})
        missing = set(type(self).needs_of(config)) - set(given)
        if missing:
            raise ValueError(f"{self.name} needs {', '.join(sorted(missing))}, which was not given")
        self.given = given

    @classmethod
    def needs_of(cls, config: Any) -> Mapping[str, str]:
        """Those of `needs` that a config makes use of; all of them unless the method says otherwise."""
        return cls.needs

    def start(self, say: Any) -> None:
        """Take over weights learned elsewhere: called once before the first step of a new run, never when a run goes on or is opened."""
        return None

    def begin(self, images: ImageSet | WindowSet, run_dir: Path, say: Any) -> None:
        """Prepare what training needs once, e.g. pseudo-masks of all pictures, kept as files in `run_dir`; must be repeatable."""
        return None

    def players(self) -> dict[str, Player]:
        """Name the parameter groups and their optimiser settings; empty for methods without training."""
        return {}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> Any:
        """Turn a (B, 3, S, S) uint8 batch of pictures number `indices` into what `loss` takes, e.g. augmented views."""
        return images.float() / 255

    def loss(self, batch: Any, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        """Return the scalar loss of a player and the numbers to log; it may change buffers, but no parameters.

        When the loss or a gradient of any player is not finite, the step is undone for all players.
        """
        raise RuntimeError(f"{self.name} has players but no loss")

    def after_step(self, progress: Progress) -> None:
        """Move what gradients do not: averages, queues, centres."""

    def settle(self, images: ImageSet | WindowSet) -> None:
        """Fix, once the last step is done, what needs the finished network, e.g. statistics of its answers; must be repeatable."""

    def evaluate(self, data: Any) -> dict[str, Score]:
        """Measure on held-out pictures (an `EvalData`) or clips (a `ClipTest`), with the baselines beside."""
        return {}

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Draw what a person should look at; `images` is (B, 3, S, S) in [0, 1], pictures are (H, W, 3) uint8."""
        return {}

    def main_player(self, module: nn.Module | None = None, **changes: Any) -> Player:
        """The usual single player: all trainable parameters of `module` (default: the method), set up from the config."""
        c = self.config
        named = [(n, p) for n, p in (module or self).named_parameters() if p.requires_grad]
        settings: dict[str, Any] = dict(
            lr=c.lr, weight_decay=c.weight_decay, warmup_frac=c.warmup_frac, clip_norm=c.clip_norm
        )
        return Player(named, **(settings | changes))

    def untrained(self, seed: int = 0) -> Method:
        """A fresh copy with random weights and the same needs: the baseline that learning must beat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self)(self.config, self.given).eval()
        return fast_memory(fresh)


class EMA(nn.Module):
    """Exponential moving average of a module: weights are averaged, buffers copied; it never gets gradients.

    average <- m * average + (1 - m) * weights, after each step.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module, momentum: float) -> None:
        """Move towards `source` by 1 - `momentum`."""
        mine: list[Tensor] = list(self.module.parameters())
        theirs = [p.detach() for p in source.parameters()]
        torch._foreach_mul_(mine, momentum)
        torch._foreach_add_(mine, theirs, alpha=1 - momentum)
        for a, b in zip(self.module.buffers(), source.buffers(), strict=True):
            a.copy_(b)


@runtime_checkable
class Embeds(Protocol):
    """Capability `embed`: vectors that tell what a picture shows, and maps that tell what is where."""

    image_px: int
    patch_px: int

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D) float32."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D, h, w) float32 patch features."""
        ...


@runtime_checkable
class Segments(Protocol):
    """Capability `segment`: soft object masks."""

    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, H, W) in [0, 1]."""
        ...


class Detections(NamedTuple):
    """Boxes of B pictures, the best first; a picture with fewer than K has boxes of zeros with score 0 at the end."""

    boxes: Tensor
    """(B, K, 4) float32 (x0, y0, x1, y1) in pixels, exclusive ends."""
    scores: Tensor
    """(B, K) float32 in [0, 1]."""


class Objects(NamedTuple):
    """Masks of several objects in each of B pictures, the best first; a picture with fewer than K has empty ones with score 0."""

    masks: Tensor
    """(B, K, H, W) float32 in [0, 1]."""
    scores: Tensor
    """(B, K) float32 in [0, 1]."""


@runtime_checkable
class Detects(Protocol):
    """Capability `detect`: boxes with scores."""

    def detect(self, images: Tensor) -> Detections:
        """(B, 3, H, W) in [0, 1] to boxes in pixels of these pictures."""
        ...


@runtime_checkable
class FindsObjects(Protocol):
    """Capability `objects`: a mask with a score for each of several objects."""

    def objects(self, images: Tensor) -> Objects:
        """(B, 3, H, W) in [0, 1] to masks at the size of these pictures."""
        ...


class Shapes(NamedTuple):
    """Solid objects seen in B pictures, in the frames of `nets.renderer`: object +Y up, +Z front; the camera looks down -Z."""

    points: Tensor
    """(B, V, 3) in the object's frame."""
    faces: Tensor
    """(F, 3) int64, counterclockwise from outside."""
    uv: Tensor
    """(V, 2) in [0, 1], (0, 0) is the upper left corner of the texture."""
    texture: Tensor
    """(B, 3, h, w) in [0, 1], colours without light."""
    rotation: Tensor
    """(B, 3, 3), from the object's frame to the camera's."""
    position: Tensor
    """(B, 3), the object's origin in the camera's frame."""
    fov_rad: Tensor
    """(B,), angle of view from the lower to the upper edge."""
    depth: Tensor
    """(B, S, S), depth in the picture's own view, 0 where no object was found."""
    image: Tensor
    """(B, 3, S, S) in [0, 1], the picture as it was explained."""
    background: Tensor | None = None
    """(B, 3, S, S) in [0, 1], what is behind the object, where the method says so."""


@runtime_checkable
class Reconstructs(Protocol):
    """Capability `reconstruct`: the solid object in a picture."""

    def reconstruct(self, images: Tensor) -> Shapes:
        """(B, 3, H, W) in [0, 1] to shapes with texture and viewpoint."""
        ...


@runtime_checkable
class SeesViewpoints(Protocol):
    """Capability `viewpoint`: from where an object is seen."""

    def viewpoint(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to rotations (B, 3, 3) from the object's frame to the camera's."""
        ...


@runtime_checkable
class Inpaints(Protocol):
    """Capability `inpaint`: fill what a soft mask takes away."""

    def inpaint(self, images: Tensor, masks: Tensor, masked_encoder: bool = False) -> Tensor:
        """(B, 3, S, S) in [0, 1] and (B, S, S) soft masks (1 = fill) to (B, 3, S, S).

        `masked_encoder`: the encoder does not see what is to be filled.
        """
        ...


class Actions(NamedTuple):
    """What is done in each of T - 1 steps."""

    shifts: Tensor
    """(B, T - 1, 2) motion of the agent as (x, y), in units of half the frame: the global actions."""
    ground_shifts: Tensor
    """(B, T - 1, 2) motion of the background."""
    codes: Tensor
    """(B, T - 1) int64 in [0, K): the local actions."""


class Parsed(NamedTuple):
    """What a model says of clips of T frames; pictures are in [0, 1]."""

    masks: Tensor
    """(B, T, H, W) in [0, 1]."""
    foregrounds: Tensor
    """(B, T, 3, H, W): frames times masks."""
    backgrounds: Tensor
    """(B, T, 3, H, W): frames with the agent's place filled in."""
    actions: Actions


class Played(NamedTuple):
    """T frames, the first of which was given; in [0, 1]."""

    frames: Tensor
    """(B, T, 3, H, W)."""
    masks: Tensor
    """(B, T, H, W)."""


@runtime_checkable
class Plays(Protocol):
    """Capability `play`: clips to actions, and actions to clips."""

    image_px: int
    width_px: int
    codes: int
    """Number K of local actions."""

    def parse(self, clips: Tensor) -> Parsed:
        """(B, T, 3, H, W) in [0, 1] to layers and actions."""
        ...

    def play(self, images: Tensor, actions: Actions, real: Tensor | None = None) -> Played:
        """First frames (B, 3, H, W) in [0, 1] and T - 1 actions to T frames; with `real` (B, T, 3, H, W) each from the real one before."""
        ...


class Act(NamedTuple):
    """One action for each of B states."""

    codes: Tensor
    """(B,) int64 in [0, K)."""
    shifts: Tensor
    """(B, 2) motion of the agent as (x, y), in units of half the frame; zeros for models without shifts."""
    ground: Tensor
    """(B, 2) motion of the background, in the same units."""


@dataclass(frozen=True)
class ActionSpace:
    """What can be done in a model: `codes` keys, and shifts in a box where the model has them."""

    codes: int
    shift_low: tuple[float, float] | None = None
    """Least shift (x, y) in units of half the frame; None where the code is all."""
    shift_high: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    """Names of the codes, where they have some."""


@runtime_checkable
class Controls(Protocol):
    """A model that can be stepped: what prediction, parsing, planning, counterfactuals and transfer are written on.

    A state is a NamedTuple of tensors (nested ones too) whose first dimension runs over B states.
    """

    def parse(self, clips: Tensor) -> Parsed:
        """(B, T, 3, H, W) in [0, 1] to layers and actions."""
        ...

    def start(self, frames: Tensor) -> Any:
        """The state after clips (B, T, 3, H, W) in [0, 1], or single frames (B, 3, H, W)."""
        ...

    def step(self, state: Any, act: Act) -> Any:
        """The state after one action."""
        ...

    def render(self, state: Any) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        ...

    def masks(self, state: Any) -> Tensor:
        """(B, H, W) in [0, 1]: where the agent is, as far as the model knows."""
        ...

    def action_space(self) -> ActionSpace:
        """What can be done."""
        ...

    def distance(self, state: Any, goal: Any) -> Tensor:
        """(B,) costs, 0 where a state is the goal; `goal` is one state (B = 1), or B of them."""
        ...
