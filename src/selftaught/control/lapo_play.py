"""LAPO step by step, on the interface of all models that can be controlled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught.control.stepping import picture_distance
from selftaught.method import Act, ActionSpace, Parsed


class LAPOState(NamedTuple):
    """The last two frames (B, 3, H, W) in [0, 1], and where what moved was put (B, H, W)."""

    before: Tensor
    now: Tensor
    mask: Tensor


class LAPOControls:
    """A trained LAPO that is stepped; see `selftaught.method.Controls`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def parse(self, clips: Tensor) -> Parsed:
        parsed: Parsed = self.model.parse(clips)
        return parsed

    def start(self, frames: Tensor) -> LAPOState:
        clips = frames[:, None] if frames.ndim == 4 else frames
        mask = self.model.parse(clips).masks[:, -1] if clips.shape[1] > 1 else torch.zeros_like(clips[:, -1, 0])
        return LAPOState(clips[:, max(clips.shape[1] - 2, 0)], clips[:, -1], mask)

    @torch.no_grad()
    def step(self, state: LAPOState, act: Act) -> LAPOState:
        steady = self.model.steadied(state.now, act.ground)
        drawn = self.model.forward_model(state.before, state.now, steady, self.model.quantiser.look_up(act.codes))
        return LAPOState(state.now, drawn.frame, drawn.mask[:, 0])

    def render(self, state: LAPOState) -> Tensor:
        return state.now

    def masks(self, state: LAPOState) -> Tensor:
        return state.mask

    def action_space(self) -> ActionSpace:
        return ActionSpace(self.model.codes)

    def distance(self, state: LAPOState, goal: LAPOState) -> Tensor:
        return picture_distance(state.now, goal.now)
