"""The world `drawn-tennis` as a model that can be stepped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import RunError
from selftaught.method import Act, ActionSpace
from selftaught.worlds.tennis import ACTIONS, Rally, Script, TennisRecipe, advance, checked, draw
from selftaught.worlds.world_play import WorldPlay, by_script


class TennisState(NamedTuple):
    """What is true of B games: which script each began with, and the fields of `tennis.Rally`."""

    base: Tensor
    player: Tensor
    swing: Tensor
    opponent: Tensor
    came: Tensor
    goes: Tensor
    done: Tensor
    speed: Tensor
    flights: Tensor
    to_player: Tensor

    def rally(self, rows: np.ndarray | None = None) -> Rally:
        """The games, or some rows of them, as arrays."""
        return Rally(*(x.numpy() if rows is None else x.numpy()[rows] for x in self[1:]))


class TennisPlay(WorldPlay):
    """Steps the world; code k is left, right, up, down, stay or swing."""

    def __init__(self, recipe: TennisRecipe, scripts: Sequence[Script]) -> None:
        self.recipe, self.scripts = checked(recipe), list(scripts)
        if not self.scripts:
            raise RunError("A world needs a script to begin with.")
        self._luck = np.stack([s.luck for s in self.scripts])

    def action_space(self) -> ActionSpace:
        return ActionSpace(len(ACTIONS), names=ACTIONS)

    def codes_of(self, script: Script) -> np.ndarray:
        """True actions of a script's transitions (T - 1,) as codes."""
        return script.actions[1:]

    def begin(self, bases: Sequence[int], frame: int = 0) -> TennisState:
        """The states of frame `frame` of some scripts."""
        found = zip(*(self.scripts[i].at(frame) for i in bases), strict=True)
        return TennisState(torch.tensor(list(bases)), *(torch.from_numpy(np.concatenate(x)) for x in found))

    def step(self, state: TennisState, act: Act) -> TennisState:
        game = advance(self.recipe, state.rally(), act.codes.numpy(), self._luck[state.base.numpy()])
        return TennisState(state.base, *(torch.from_numpy(x) for x in game))

    def _draw(self, state: TennisState) -> tuple[np.ndarray, np.ndarray]:
        return by_script(state.base, lambda number, rows: draw(self.recipe, self.scripts[number], state.rally(rows)))

    def distance(self, state: TennisState, goal: TennisState) -> Tensor:
        """Steps between the places of the players."""
        return ((state.player - goal.player).norm(dim=1) / self.recipe.step_px).float()

    def reached(self, state: TennisState, goal: TennisState) -> Tensor:
        """(B,) bool: the player is within one step of the goal's place."""
        return self.distance(state, goal) <= 1
