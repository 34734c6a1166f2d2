"""The world `w-sprites` as a model that can be stepped: the truth beside learned models, and the oracle among planners.

It knows what it draws and reads nothing from pixels, so it starts from scripts and not from frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import RunError
from selftaught.method import Act, ActionSpace
from selftaught.worlds.w_sprites import GLOBALS, LOCALS, STAY, WALKS, WAYS, Recipe, Script, checked, render, room_of
from selftaught.worlds.world_play import WorldPlay


class SpriteState(NamedTuple):
    """What is true of B pictures; all int64."""

    base: Tensor
    """(B,) which script it began with: who it is, and where."""
    position: Tensor
    """(B, 2) the (x, y) of the figure's square in pixels."""
    doing: Tensor
    """(B,) local action."""
    phase: Tensor
    """(B,) of it."""
    window: Tensor
    """(B, 2) of the ground."""


class SpritesPlay(WorldPlay):
    """Steps the world; codes are true actions, `pairs` of a way and a local action."""

    def __init__(self, recipe: Recipe, scripts: Sequence[Script]) -> None:
        self.recipe, self.scripts = checked(recipe), list(scripts)
        if not self.scripts:
            raise RunError("A world needs a script to begin with.")
        stays = [(STAY, k) for k in range(3 if recipe.correlated else 0, len(LOCALS))]
        walks = (
            [(w, WALKS[w]) for w in range(4)]
            if recipe.correlated
            else [(w, k) for w in range(4) for k in range(len(LOCALS))]
        )
        self.pairs = [*walks, *stays]
        self._index = {pair: i for i, pair in enumerate(self.pairs)}

    def codes_of(self, moves: np.ndarray, locals_: np.ndarray) -> np.ndarray:
        """True actions as codes, in the shape of the arrays."""
        flat = [self._index[pair] for pair in zip(np.ravel(moves).tolist(), np.ravel(locals_).tolist(), strict=True)]
        return np.array(flat, np.int64).reshape(np.shape(moves))

    def action_space(self) -> ActionSpace:
        def name(way: int, k: int) -> str:
            if way == STAY:
                return LOCALS[k]
            return f"walk {GLOBALS[way]}" if self.recipe.correlated else f"{LOCALS[k]}, going {GLOBALS[way]}"

        names = tuple(name(way, k)
                      for way, k in self.pairs)  # fmt: skip
        return ActionSpace(len(self.pairs), names=names)

    def begin(self, bases: Sequence[int], frame: int = 0) -> SpriteState:
        """The states of frame `frame` of some scripts."""
        chosen = [self.scripts[i] for i in bases]
        one = torch.tensor([[*s.positions[frame], s.locals[frame], s.phases[frame], *s.windows[frame]] for s in chosen])
        return SpriteState(torch.tensor(list(bases)), one[:, :2], one[:, 2], one[:, 3], one[:, 4:])

    def step(self, state: SpriteState, act: Act) -> SpriteState:
        r = self.recipe
        pairs = torch.tensor(self.pairs)[act.codes]
        room = torch.from_numpy(room_of(r))
        position = torch.minimum((state.position + r.step_px * torch.from_numpy(WAYS)[pairs[:, 0]]).clamp(min=0), room)
        doing = pairs[:, 1]
        phase = torch.where(doing == state.doing, (state.phase + 1) % 8, 0)
        ground_px = (act.ground * torch.tensor([r.width / 2, r.height / 2])).round().long()
        return SpriteState(state.base, position, doing, phase, (state.window - ground_px).clamp(0, r.margin_px))

    def _draw(self, state: SpriteState) -> tuple[np.ndarray, np.ndarray]:
        frames, masks = [], []
        for base, position, doing, phase, window in zip(*(x.numpy() for x in state), strict=True):
            one = dataclasses.replace(
                self.scripts[int(base)], moves=np.array([STAY]), locals=doing[None], phases=phase[None], positions=position[None],
                windows=window[None], other=None,
            )  # fmt: skip
            clip = render(self.recipe, one)
            frames.append(clip.frames[0])
            masks.append(clip.masks[0])
        return np.stack(frames), np.stack(masks)

    def distance(self, state: SpriteState, goal: SpriteState) -> Tensor:
        """Steps between the places, and half a step where something else is done."""
        away = (state.position - goal.position).float().norm(dim=1) / self.recipe.step_px
        return away + 0.5 * (state.doing != goal.doing).float() + 0.05 * (state.phase != goal.phase).float()

    def reached(self, state: SpriteState, goal: SpriteState, pose: bool = False) -> Tensor:
        """(B,) bool: within one step of the goal's place, and (`pose`) doing the same."""
        near = (state.position - goal.position).float().norm(dim=1) <= self.recipe.step_px
        return near & (state.doing == goal.doing) if pose else near
