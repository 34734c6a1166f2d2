"""What any video model must beat, on one interface: clips in, the same clips predicted from their first frame (or each real frame before).

Each has `bits`: what it is told about every step, because a model that is told more predicts better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from selftaught.method import Actions, Parsed
from selftaught.nets.phase_correlation import phase_correlation
from selftaught.nets.video_blocks import from_px, shift_layer


class Predicts(Protocol):
    """Anything that predicts clips."""

    bits: str
    """What it is told about each step."""

    def predict(self, clips: Tensor, forced: bool) -> tuple[Tensor, Tensor]:
        """Clips (B, T, 3, H, W) in [0, 1] to the predicted ones, whose first frame is the real one, and the agent's masks (B, T, H, W).

        `forced`: every frame is predicted from the real frame before (teacher-forced); else from the first alone (autoregressive).
        """
        ...


@dataclass
class CopyLast:
    """The last frame that is known, again."""

    bits = "nothing"

    def predict(self, clips: Tensor, forced: bool) -> tuple[Tensor, Tensor]:
        before = clips[:, :-1] if forced else clips[:, :1].expand(-1, clips.shape[1] - 1, -1, -1, -1)
        frames = torch.cat([clips[:, :1], before], 1)
        return frames, torch.zeros_like(frames[:, :, 0])


@dataclass
class PhaseCorrelation:
    """The last frame that is known, shifted as a whole by the shift that phase correlation measures in the real clip."""

    reach_px: int = 8
    bits = "2 floats (shift of the whole frame)"

    def shifts(self, clips: Tensor) -> Tensor:
        """(B, T - 1, 2) shifts of whole frames, in units of half the frame."""
        B, T, _, H, W = clips.shape
        reach = min(self.reach_px, (min(H, W) - 1) // 2)
        d = phase_correlation(clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1), reach)
        return from_px(d, H, W).unflatten(0, (B, T - 1))

    def predict(self, clips: Tensor, forced: bool) -> tuple[Tensor, Tensor]:
        d = self.shifts(clips)
        B, T = clips.shape[:2]
        before = clips[:, :-1] if forced else clips[:, :1].expand(-1, T - 1, -1, -1, -1)
        moved = shift_layer(before.flatten(0, 1), (d if forced else d.cumsum(1)).flatten(0, 1), "border").unflatten(0, (B, T - 1))
        frames = torch.cat([clips[:, :1], moved], 1)
        return frames, torch.zeros_like(frames[:, :, 0])


@dataclass
class Model:
    """A learned model under the actions that it parses from the real clip."""

    model: Any
    bits: str = ""

    def __post_init__(self) -> None:
        codes = self.model.config.codes
        told = getattr(self.model, "told", "")
        glass = f"4 floats (shifts of agent and background) + {np.log2(codes):.1f} bits (one of {codes} codes)"
        known = f"{told} of {codes}" if told else glass
        self.bits = self.bits or known

    def actions(self, clips: Tensor, parsed: Parsed) -> Actions:
        """The actions that the model is given."""
        return parsed.actions

    def predict(self, clips: Tensor, forced: bool) -> tuple[Tensor, Tensor]:
        played = self.model.play(clips[:, 0], self.actions(clips, self.model.parse(clips)), clips if forced else None)
        return played.frames, played.masks


@dataclass
class Still(Model):
    """The same model told nothing of the agent: no shift, always one code; the background's shift is given."""

    code: int = 0

    def __post_init__(self) -> None:
        self.bits = "2 floats (shift of the background)"

    def actions(self, clips: Tensor, parsed: Parsed) -> Actions:
        a = parsed.actions
        return Actions(torch.zeros_like(a.shifts), a.ground_shifts, torch.full_like(a.codes, self.code))


@dataclass
class Oracle(Model):
    """The same model under true actions: true shifts, and for each true local action the code that it mostly got on other clips."""

    decoder: dict[tuple[int, int], int] | None = None
    moves: Any = None
    locals: Any = None
    shifts: Any = None
    ground_shifts: Any = None

    def actions(self, clips: Tensor, parsed: Parsed) -> Actions:
        table = self.decoder or {}
        fallback = int(parsed.actions.codes.flatten().mode().values)
        true = np.stack([self.moves, self.locals], -1).astype(int).tolist()
        codes = [[table.get((m, k), fallback) for m, k in row] for row in true]
        H, W = clips.shape[-2:]
        shifts, ground = (from_px(torch.as_tensor(np.asarray(x), dtype=torch.float32), H, W) for x in (self.shifts, self.ground_shifts))
        return Actions(shifts, ground, torch.tensor(codes))


def decoded(moves: np.ndarray, locals_: np.ndarray, codes: np.ndarray) -> dict[tuple[int, int], int]:
    """For each true (global, local) action the code that it has most often; what few labelled transitions are enough for."""
    table: dict[tuple[int, int], int] = {}
    for pair in {*zip(moves.ravel().tolist(), locals_.ravel().tolist(), strict=True)}:
        mine = codes[(moves == pair[0]) & (locals_ == pair[1])]
        table[pair] = int(np.bincount(mine).argmax())
    return table
