"""The world `arm` as a model that can be stepped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import RunError
from selftaught.method import Act, ActionSpace
from selftaught.worlds.arm import ArmRecipe, Bodies, Script, advance, checked, draw
from selftaught.worlds.w_sprites import GLOBALS
from selftaught.worlds.world_play import WorldPlay, by_script


class ArmState(NamedTuple):
    """What is true of B tables."""

    base: Tensor
    """(B,) int64: which script it began with."""
    gripper: Tensor
    """(B, 2) float64 pixels."""
    things: Tensor
    """(B, K, 2)."""
    contacts: Tensor
    """(B, K) bool: pushed in the last step."""


class ArmPlay(WorldPlay):
    """Steps the world; code k is way k of left, right, up, down, stay."""

    def __init__(self, recipe: ArmRecipe, scripts: Sequence[Script]) -> None:
        self.recipe, self.scripts = checked(recipe), list(scripts)
        if not self.scripts:
            raise RunError("A world needs a script to begin with.")

    def action_space(self) -> ActionSpace:
        return ActionSpace(len(GLOBALS), names=GLOBALS)

    def codes_of(self, script: Script) -> np.ndarray:
        """True actions of a script's transitions (T - 1,) as codes."""
        return script.moves[1:]

    def begin(self, bases: Sequence[int], frame: int = 0) -> ArmState:
        """The states of frame `frame` of some scripts."""
        found = [self.scripts[i].bodies(frame) for i in bases]
        bodies = (torch.from_numpy(np.concatenate(x)) for x in zip(*found, strict=True))
        return ArmState(torch.tensor(list(bases)), *bodies)

    def step(self, state: ArmState, act: Act) -> ArmState:
        bodies = advance(self.recipe, Bodies(*(x.numpy() for x in state[1:])), act.codes.numpy())
        return ArmState(state.base, *(torch.from_numpy(x) for x in bodies))

    def _draw(self, state: ArmState) -> tuple[np.ndarray, np.ndarray]:
        bodies = [x.numpy() for x in state[1:]]
        return by_script(
            state.base, lambda number, rows: draw(self.recipe, self.scripts[number], Bodies(*(x[rows] for x in bodies)))[0]
        )

    def distance(self, state: ArmState, goal: ArmState) -> Tensor:
        """Steps between the places of the grippers."""
        return ((state.gripper - goal.gripper).norm(dim=1) / self.recipe.step_px).float()

    def reached(self, state: ArmState, goal: ArmState) -> Tensor:
        """(B,) bool: the gripper is within one step of the goal's."""
        return self.distance(state, goal) <= 1
