"""LAPO step by step, on the interface of all models that can be controlled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught.control.stepping import mask_centres, picture_distance
from selftaught.method import Act, ActionSpace, Parsed


class LAPOState(NamedTuple):
    """The last two frames (B, 3, H, W) in [0, 1], and what is known of what acts."""

    before: Tensor
    now: Tensor
    drawn: Tensor
    """(B, 1, H, W): where it was drawn in the last frame; zeros where that is not known."""
    mask: Tensor
    """(B, H, W): where it is."""


class LAPOControls:
    """A trained LAPO that is stepped; see `selftaught.method.Controls`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def parse(self, clips: Tensor) -> Parsed:
        parsed: Parsed = self.model.parse(clips)
        return parsed

    def start(self, frames: Tensor) -> LAPOState:
        # A convolution takes its kernel by how a picture lies in memory; the same picture is the same state, bit for bit.
        clips = (frames[:, None] if frames.ndim == 4 else frames).contiguous()
        now = clips[:, -1]
        return LAPOState(
            clips[:, max(clips.shape[1] - 2, 0)], now, torch.zeros_like(now[:, :1]), self.model.acting(now)[:, 0]
        )

    @torch.no_grad()
    def step(self, state: LAPOState, act: Act) -> LAPOState:
        vector = self.model.quantiser.look_up(act.codes)
        drawn = self.model.forward_model(state.before, state.now, state.drawn, act.ground, vector)
        return LAPOState(state.now, drawn.frame, drawn.mask, drawn.mask[:, 0])

    def render(self, state: LAPOState) -> Tensor:
        return state.now

    def masks(self, state: LAPOState) -> Tensor:
        return state.mask

    def action_space(self) -> ActionSpace:
        return ActionSpace(self.model.codes)

    def distance(self, state: LAPOState, goal: LAPOState) -> Tensor:
        """Distance of the centres of what acts in units of half the frame, and of its pictures; of whole pictures if drawn directly."""
        if self.model.config.draw == "direct":
            return picture_distance(state.now, goal.now)
        # The ground is left out: what a model leaves behind where it drew must not outweigh where the agent is.
        away = (mask_centres(state.mask) - mask_centres(goal.mask)).norm(dim=1)
        return away + picture_distance(state.mask[:, None] * state.now, goal.mask[:, None] * goal.now)
