"""The verbs of a model that can be controlled: parse, rollout, plan, transfer, what if; each gives films and a report.

    playable = Playable("runs/lapo")               # or Playable(SHIPPED), the small model that comes along
    playable.parse("clip.mp4").write("out/parse")
    playable.plan("clip.mp4@0", "clip.mp4@8").report["keys"]

Keys are numbers from 0: what `rollout` and `whatif` are told, and what `parse` and `plan` answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from selftaught.control.habits import Habits, Keys, diversity, futures
from selftaught.control.planning import Budget, plan
from selftaught.control.stepping import controls_of, pick, rollout, same_ground
from selftaught.control.synthesis import by_synthesis
from selftaught.control.whatif import changed_codes, counterfactual, transfer
from selftaught.core.config import read_json, write_json
from selftaught.core.errors import ConfigError, DataError, SelftaughtError
from selftaught.data.clip_cache import build_clips
from selftaught.data.clip_reader import Want, have_av
from selftaught.data.clip_windows import first_windows
from selftaught.data.clips import open_clips
from selftaught.loading import Learned
from selftaught.method import Played
from selftaught.playing_input import SHIPPED, keys_of, read_frames_of, shipped_folder
from selftaught.report.film_files import write_film
from selftaught.report.films import sheet

FPS = 6
"""Of the films that are written."""
LOOKED_AT = 256
"""Training clips that habits are counted on,"""
COUNTED = 8
"""and frames of each at most."""
MAX_STEPS = 200


@dataclass
class Told:
    """What a verb answers: `report` goes to JSON, `films` are rows of frames (R, T, 3, H, W) in [0, 1] that are shown together."""

    report: dict[str, Any]
    films: dict[str, Tensor] = field(default_factory=dict)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json, and FILM.mp4 (where PyAV is installed) and FILM.gif for every film; returns the paths."""
        out = Path(folder).expanduser()
        out.mkdir(parents=True, exist_ok=True)
        written = [out / "report.json"]
        write_json(written[0], self.report)
        for name, rows in self.films.items():
            frames = film_frames(rows)
            for suffix in (".mp4", ".gif") if have_av() else (".gif",):
                written.append(write_film(out / f"{name}{suffix}", frames, FPS))
        return written


def film_frames(rows: Tensor) -> np.ndarray:
    """Films (R, T, 3, H, W) side by side, at most eight in a row, as frames (T, H', W', 3) uint8 of a size that is well seen."""
    R, T, _, H, W = rows.shape
    columns = min(R, 8)
    empty = -R % columns
    if empty:
        rows = torch.cat([rows, rows.new_ones(empty, *rows.shape[1:])])
    zoom = max(1, min(6, 900 // (columns * W)))
    return np.stack([sheet(rows[:, t].unflatten(0, (-1, columns)), gap=2, zoom=zoom) for t in range(T)])


class Playable:
    """A run of a model that can be controlled, and what can be asked of it.

    Clips are paths (`FILE`, `FOLDER`, `sample:w-sprites/NUMBER`), arrays uint8 (T, H, W, 3) or tensors (T, 3, H, W) in [0, 1]; of frames
    the first one is taken, or that named by `@N` behind a path. Everything is brought to the size that the run learned at.
    """

    def __init__(self, run: str | os.PathLike[str] | Learned) -> None:
        learned = run if isinstance(run, Learned) else Learned(shipped_folder() if str(run) == SHIPPED else run)
        self.learned = learned
        self.method = learned.provider("play")
        self.model = controls_of(self.method)
        self.height, self.width = self.method.config.image_px, self.method.config.width_px
        self.notes: list[str] = []
        self.habits = self._habits()

    @property
    def keys(self) -> Keys:
        """The actions that can be chosen from."""
        return self.habits.keys

    def _habits(self) -> Habits:
        """Read RUN/habits.json, or count it on training clips; without those every code is alike."""
        space, path = self.model.action_space(), self.learned.run / "habits.json"
        if path.is_file():
            return Habits.from_json(read_json(path), space)
        try:
            config = self.method.config
            data = read_json(self.learned.run / "config.json")["data"]
            clips = build_clips(open_clips(data, "train"), Want(self.height, self.width, config.fps))
            windows = first_windows(clips, COUNTED, config.every).first(LOOKED_AT)
        except SelftaughtError as error:
            self.notes.append(
                f"what is usually done is not known, because the run's clips cannot be read: {error.what}"
            )
            return Habits.unknown(space)
        parts = [
            self.model.parse(windows.batch(rows).float() / 255).actions
            for rows in np.array_split(np.arange(len(windows)), -(-len(windows) // 32))
        ]
        actions = type(parts[0])(*(torch.cat(x) for x in zip(*parts, strict=True)))
        keys = Keys.fit(space, actions)
        habits = Habits.fit(keys, keys.of(actions))
        try:
            write_json(path, habits.to_json())
        except SelftaughtError:
            self.notes.append(f"{path} cannot be written, so it is counted each time")
        return habits

    def clip(self, data: Any, at_least: int = 2) -> Tensor:
        """A clip (1, T, 3, H, W) in [0, 1]; raises DataError for shorter ones."""
        clip = read_frames_of(data, Want(self.height, self.width, self.method.config.fps), self.method.config.every)
        if clip.shape[1] < at_least:
            raise DataError(f"The clip has {clip.shape[1]} frame(s).", expected=f"at least {at_least}")
        return clip

    def frame(self, data: Any) -> Tensor:
        """A frame (1, 3, H, W) in [0, 1]."""
        return self.clip(data, 1)[:, 0]

    def chosen(self, keys: str | Sequence[int]) -> Tensor:
        """(1, n) keys from numbers or from text such as "0*4,2"; raises ConfigError for keys that are not there."""
        numbers = keys_of(keys, MAX_STEPS)
        if max(numbers) >= len(self.keys):
            raise ConfigError(f"There is no action {max(numbers)}.", expected=f"0 to {len(self.keys) - 1}")
        return torch.tensor([numbers])

    def about(self, keys: Tensor) -> list[dict[str, Any]]:
        """Keys (n,) in words: code, and shift in pixels where the model has shifts."""
        scale = torch.tensor([self.width / 2, self.height / 2])
        shifts = (self.keys.shifts * scale).tolist()
        has = self.model.action_space().shift_low is not None
        return [{"key": k, "code": int(self.keys.codes[k])} | ({"shift_px": [round(x, 2) for x in shifts[k]]} if has else {})
                for k in keys.tolist()]  # fmt: skip

    def report(self, **more: Any) -> dict[str, Any]:
        """What every report begins with."""
        run = SHIPPED if self.learned.run == shipped_folder() else self.learned.run.name
        return {"run": run, "method": self.method.name, "notes": self.notes, "actions": len(self.keys), **more}

    def parse(self, clip: Any, synthesis: bool = False, switch: float = 0.0) -> Told:
        """Which actions a clip is made of, and where the agent is; `synthesis` tries every action too and says how far both agree."""
        frames = self.clip(clip)
        parsed = self.model.parse(frames)
        keys = self.keys.of(parsed.actions)
        again = rollout(self.model, self.model.start(frames[:, 0]), parsed.actions).frames
        scale = torch.tensor([self.width / 2, self.height / 2])
        report = self.report(
            keys=keys[0].tolist(), codes=parsed.actions.codes[0].tolist(),
            background_shift_px=(parsed.actions.ground_shifts[0] * scale).tolist(),
            psnr_db=psnr_of(again, frames),
        )  # fmt: skip
        if self.model.action_space().shift_low is not None:
            report["shift_px"] = (parsed.actions.shifts[0] * scale).tolist()
        if synthesis:
            found = by_synthesis(self.model, frames, self.keys, switch)
            report |= {"synthesised_keys": found.keys[0].tolist(), "agreement": float(found.agreement[0])}
        masks = parsed.masks[:, :, None].expand_as(frames)
        return Told(report, {"clip": frames, "masks": masks, "played": torch.cat([frames, again])})

    def rollout(
        self, start: Any, keys: str | Sequence[int] | None = None, steps: int = 8, count: int = 16, seed: int = 0
    ) -> Told:
        """What comes of some actions; or, when none are given, `count` futures under actions that are drawn by habit."""
        self._check_steps(steps, count)
        state = self.model.start(self.frame(start))
        if keys is not None:
            chosen = self.chosen(keys)
            played = rollout(self.model, state, self.keys.actions(chosen))
            return Told(self.report(keys=chosen[0].tolist(), steps=self.about(chosen[0])), {"rollout": played.frames})
        drawn = self.habits.sample(None, steps, count, seed)
        played = futures(self.model, state, self.habits, steps, count, seed)
        return Told(
            self.report(futures=drawn.tolist(), diversity=diversity(played.frames), seed=seed),
            {"futures": played.frames},
        )

    def plan(
        self, start: Any, goal: Any, how: Literal["cem", "beam"] = "cem", budget: Budget | None = None, seed: int = 0
    ) -> Told:
        """Actions that lead from a start to a goal; the goal is first brought onto the start's background."""
        first = self.frame(start)
        aim = same_ground(first, self.frame(goal))
        found = plan(self.model, self.model.start(first), self.model.start(aim), self.habits, how, budget, seed)
        keys = self.keys.of(found.actions)[0]
        report = self.report(
            planner=how, keys=keys.tolist(), steps=self.about(keys), distances=found.distances.tolist(), evaluations=found.evaluations,
            seconds=round(found.seconds, 3), seed=seed,
        )  # fmt: skip
        return Told(report, {"plan": torch.cat([found.played.frames, aim[:, None].expand_as(found.played.frames)])})

    def transfer(self, source: Any, target: Any, camera: bool = False) -> Told:
        """What the target's figure does when it does what the source's does."""
        clip, first = self.clip(source), self.frame(target)
        actions, played = transfer(self.model, clip, first, camera)
        keys = self.keys.of(actions)[0]
        return Told(
            self.report(keys=keys.tolist(), steps=self.about(keys)),
            {"transfer": torch.cat([clip, played.frames]), "result": played.frames},
        )

    def whatif(self, clip: Any, keys: str | Sequence[int], at: int = 0) -> Told:
        """What would have happened, had other actions been done from step `at` on."""
        frames = self.clip(clip)
        parsed = self.model.parse(frames).actions
        chosen = self.chosen(keys)
        n = parsed.codes.shape[1] - at
        if not 0 <= at < parsed.codes.shape[1] or chosen.shape[1] > n:
            raise ConfigError(
                f"{chosen.shape[1]} actions from step {at} of a clip with {parsed.codes.shape[1]}.",
                expected="steps of the clip",
            )
        new = changed_codes(parsed, at, self.keys.codes[chosen], self.keys.shifts[chosen])
        both = counterfactual(self.model, self.model.start(frames[:, 0]), parsed, new)
        report = self.report(
            factual=self.keys.of(parsed)[0].tolist(), other=self.keys.of(new)[0].tolist(), difference=both.difference[0].tolist(),
        )  # fmt: skip
        gap = (both.factual.frames - both.other.frames).abs().mul(2).clamp(0, 1)
        return Told(report, {"whatif": torch.cat([frames, both.factual.frames, both.other.frames, gap])})

    def vectors(self) -> Tensor | None:
        """(K, D) what the model is told of each code: codes that are near mean much the same."""
        lma = getattr(self.method, "lma", None)
        quantiser = getattr(self.method, "quantiser", None) if lma is None else lma.codes
        return None if quantiser is None else quantiser.look_up(torch.arange(self.method.codes))

    def effects(self, start: Any, steps: int = 6) -> Played:
        """Films (V, steps + 1, ...) of every key, held, from one frame (1, 3, H, W) or from a state of the model."""
        V = len(self.keys)
        begin = self.model.start(start) if isinstance(start, Tensor) else start
        state = pick(begin, torch.zeros(V, dtype=torch.int64))
        return rollout(self.model, state, self.keys.actions(torch.arange(V)[:, None].expand(V, steps)))

    @staticmethod
    def _check_steps(steps: int, count: int) -> None:
        if not 1 <= steps <= MAX_STEPS or not 1 <= count <= 64:
            raise ConfigError(
                f"{count} futures of {steps} steps.", expected=f"1 to 64 futures of 1 to {MAX_STEPS} steps"
            )


def psnr_of(found: Tensor, real: Tensor) -> list[float]:
    """PSNR in dB of each frame after the first."""
    error = (found - real).square().mean((0, 2, 3, 4))[1:]
    return [round(float(-10 * torch.log10(e.clamp(min=1e-10))), 2) for e in error]


__all__ = ["SHIPPED", "Playable", "Told"]
