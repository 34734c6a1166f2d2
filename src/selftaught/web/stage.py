"""What is played on: a model, first pictures with goals, and the true world beside it where there is one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.control.naming import Names, few
from selftaught.core.config import read_json
from selftaught.core.errors import DataError, SelftaughtError
from selftaught.data.clip_cache import build_clips
from selftaught.data.clip_reader import Want
from selftaught.data.clip_windows import first_windows
from selftaught.data.clips import open_clips
from selftaught.method import Actions
from selftaught.playing import Playable
from selftaught.playing_input import WORLD_SEED, shipped_folder

SCENES = 8
"""First pictures to choose from."""
GOAL_AFTER = 6
"""Steps after the first picture at which the goal lies that a scene comes with."""
LABELLED = 40
"""Labelled transitions that name the model's actions, so that the true world can do the same."""


@dataclass
class Scene:
    """One beginning: a clip (1, T, 3, H, W) in [0, 1], and the index of its script where the world is known."""

    clip: Tensor
    script: int | None = None


@dataclass
class Stage:
    """A model with what it is played on; shared by all sessions, and only read by them."""

    playable: Playable
    scenes: list[Scene]
    world: Any = None
    """`SpritesPlay`, or None."""
    names: Names | None = None
    """From the model's actions to the world's."""
    ways: list[tuple[float, float]] = field(default_factory=list)
    """How far each key moves the agent, as (x, y) in pixels; measured on the model's own masks."""

    @classmethod
    def open(cls, run: Any) -> Stage:
        """Open a run with scenes from its test clips; for the model that comes along, with the world itself."""
        playable = run if isinstance(run, Playable) else Playable(run)
        if playable.learned.run == shipped_folder():
            stage = cls._of_world(playable)
        else:
            stage = cls(playable, [Scene(clip) for clip in test_clips(playable)])
        stage.ways = ways_of(playable.effects(stage.scenes[0].clip[:, 0], 3).masks)
        return stage

    @classmethod
    def _of_world(cls, playable: Playable) -> Stage:
        from selftaught.worlds.sprites_play import SpritesPlay
        from selftaught.worlds.w_sprites import SIZES, render, script

        recipe = SIZES["small"]
        # Every fifth clip is a test clip; its figure and its ground were held out of the training.
        scripts = [script(recipe, WORLD_SEED, 5 * i + 4) for i in range(24)]
        # The camera stays, as it does in what is played: a goal then looks as it is reached.
        scripts = [dataclasses.replace(s, windows=np.repeat(s.windows[:1], len(s), 0)) for s in scripts]
        world = SpritesPlay(recipe, scripts)
        clips = (
            torch.from_numpy(np.stack([render(recipe, s).frames for s in scripts])).permute(0, 1, 4, 2, 3).float() / 255
        )
        parsed = playable.model.parse(clips).actions
        true = np.stack([world.codes_of(s.moves[1:], s.locals[1:]) for s in scripts])
        flat = Actions(*(x.flatten(0, 1) for x in parsed))
        chosen = torch.from_numpy(few(true.ravel(), LABELLED))
        names = Names.fit(
            Actions(*(x[chosen] for x in flat)),
            torch.from_numpy(true.ravel())[chosen],
            playable.method.codes,
            len(world.pairs),
            playable.vectors(),
        )
        # First those in which most happens: a still figure makes a dull beginning.
        order = np.argsort([-np.abs(s.shifts_px[:GOAL_AFTER].sum(0)).sum() for s in scripts], kind="stable")[:SCENES]
        return cls(playable, [Scene(clips[i : i + 1], int(i)) for i in order], world, names)

    def world_key(self, key: int) -> int | None:
        """The true action that a key stands for, or None where the world is not known."""
        if self.names is None:
            return None
        keys = self.playable.keys
        return int(self.names.label(Actions(keys.shifts[key], torch.zeros(2), keys.codes[key])))

    def describe(self) -> dict[str, Any]:
        """What the page shows of the model before anything is played."""
        playable = self.playable
        space = self.world.action_space() if self.world is not None else None
        keys = []
        for k in range(len(playable.keys)):
            named = self.world_key(k)
            keys.append(
                {
                    "way": [round(x, 1) for x in self.ways[k]],
                    "name": space.names[named] if space and named is not None else "",
                }
            )
        return {
            "method": playable.method.name, "run": "w-sprites" if playable.learned.run == shipped_folder() else playable.learned.run.name,
            "width": playable.width, "height": playable.height, "keys": keys, "scenes": len(self.scenes), "world": self.world is not None,
            "notes": playable.notes, "labelled": LABELLED if self.names else 0,
        }  # fmt: skip


def test_clips(playable: Playable) -> list[Tensor]:
    """Beginnings from the test clips of a run's data; raises DataError when they cannot be read."""
    config = playable.method.config
    data = read_json(playable.learned.run / "config.json")["data"]
    try:
        clips = build_clips(open_clips(data, "test"), Want(playable.height, playable.width, config.fps))
        windows = first_windows(clips, GOAL_AFTER + 1, config.every).first(SCENES)
    except SelftaughtError as error:
        raise DataError(
            "There is nothing to play on: the clips of this run cannot be read.",
            why=error.what,
            do="Put them back where they were.",
        ) from error
    return [windows.batch([i]).float() / 255 for i in range(len(windows))]


def ways_of(masks: Tensor) -> list[tuple[float, float]]:
    """How far (x, y) in pixels a step the agent goes in each of V films, from its masks (V, T, H, W), T of at least 3.

    The first mask is left out: a model that sees agents by their motion has none yet.
    """
    H, W = masks.shape[2:]
    weight = masks[:, 1:].double()
    total = weight.sum((2, 3)) + 1e-6
    x, y = (weight.sum(2) * torch.arange(W)).sum(2) / total, (weight.sum(3) * torch.arange(H)).sum(2) / total
    steps = masks.shape[1] - 2
    seen = (total.amin(1) > 4).double() / steps
    return [(float(a), float(b)) for a, b in zip((x[:, -1] - x[:, 0]) * seen, (y[:, -1] - y[:, 0]) * seen, strict=True)]
