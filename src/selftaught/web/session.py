"""One person's play: where they are, what they did, what they aim at. It knows nothing of the web.

`Session.do` takes one request as a dictionary and answers with another; everything in a request is checked, because it comes from outside.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.control.planning import Budget, plan
from selftaught.control.stepping import pick, same_ground
from selftaught.core.errors import ConfigError
from selftaught.data import readers
from selftaught.data.clip_decoding import fit
from selftaught.method import Act
from selftaught.web.stage import GOAL_AFTER, Scene, Stage

UNDO = 64
"""Steps that can be taken back."""
RECORDED = 600
"""Frames of a recording at most."""
MAX_PICTURE_BYTES = 1_500_000
"""Of a picture that is uploaded."""
MAX_PIXELS = 16_000_000
FILM_STEPS = 4
"""Steps of the small films of the actions."""


@dataclass
class Moment:
    """Where the play is after some steps."""

    state: Any
    world: Any
    key: int | None
    """What led here; None for the beginning."""


class Session:
    """Requests are `{"do": VERB, ...}`: hello, effects, reset, upload, act, undo, goal, plan, record. For one thread at a time."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.playable = stage, stage.playable
        self.scene: Scene = stage.scenes[0]
        self.number: int | None = 0
        self.moments: deque[Moment] = deque(maxlen=UNDO + 1)
        self.goal: Tensor | None = None
        self.recording: list[np.ndarray] | None = None
        self.film: list[np.ndarray] = []
        self.hurried: Callable[[], bool] = lambda: False
        """Whether something waits that a person wants sooner than films of actions."""
        self._begin(0)

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; raises ConfigError or another SelftaughtError for one that cannot be answered."""
        verbs = {
            "hello": self.hello, "effects": self.effects, "reset": self.reset, "upload": self.upload, "act": self.act, "undo": self.undo,
            "goal": self.set_goal, "plan": self.make_plan, "record": self.record,
        }  # fmt: skip
        verb = request.get("do")
        if not isinstance(verb, str) or verb not in verbs:
            raise ConfigError("There is no such request.", expected=", ".join(verbs))
        return verbs[verb](request)

    def _begin(self, number: int | None) -> None:
        first = self.scene.clip[:, 0]
        world = (
            None
            if self.stage.world is None or self.scene.script is None
            else self.stage.world.begin([self.scene.script])
        )
        self.number = number
        self.moments.clear()
        self.moments.append(Moment(self.playable.model.start(first), world, None))
        self.goal = self.of_clip()
        self.keep()

    def of_clip(self) -> Tensor | None:
        """Where the scene's own clip went, on the ground of its beginning: the camera of a clip moves, that of the play stays."""
        clip = self.scene.clip
        at = min(GOAL_AFTER, clip.shape[1] - 1)
        return same_ground(clip[:, 0], clip[:, at]) if at else None

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Everything the page needs to draw itself, at the beginning and after a reload."""
        scenes = [packed(scene.clip[0, 0]) for scene in self.stage.scenes]
        return {"about": self.stage.describe(), "scenes": scenes, **self.view(), **self.aims()}

    def effects(self, request: dict[str, Any]) -> dict[str, Any]:
        """A small film of every action from where the play is; given up when something else is asked meanwhile."""
        model, keys = self.playable.model, self.playable.keys
        state, every = pick(self.moments[-1].state, torch.zeros(len(keys), dtype=torch.int64)), keys.act(torch.arange(len(keys)))
        films: list[Tensor] = []
        for _ in range(FILM_STEPS):
            if self.hurried():
                return {"stale": True}
            state = model.step(state, every)
            films.append(model.render(state))
        return {"effects": [[packed(frame) for frame in film] for film in torch.stack(films, 1)]}

    def view(self) -> dict[str, Any]:
        """What is seen now."""
        moment = self.moments[-1]
        model = self.playable.model
        return {
            "frame": packed(model.render(moment.state)[0]), "mask": packed(model.masks(moment.state)[0][None]),
            "truth": None if moment.world is None else packed(self.stage.world.render(moment.world)[0]),
            "keys": [m.key for m in self.moments if m.key is not None], "scene": self.number, "recorded": len(self.recording or ()),
            "recording": self.recording is not None, "film": len(self.film), "undo": len(self.moments) - 1,
        }  # fmt: skip

    def aims(self) -> dict[str, Any]:
        """The goal, and what the scene's own clip was made of."""
        clip = self.scene.clip
        parsed = self.playable.keys.of(self.playable.model.parse(clip).actions)[0].tolist() if clip.shape[1] > 1 else []
        return {"goal": None if self.goal is None else packed(self.goal[0]), "parsed": parsed}

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin anew, in another scene where one is named; in the same one the goal stays, which may be a place that was walked to."""
        if request.get("scene") is not None:
            number = whole(request, "scene", len(self.stage.scenes))
            self.scene = self.stage.scenes[number]
            self._begin(number)
        else:
            goal = self.goal
            self._begin(self.number)
            self.goal = goal
        return {**self.view(), **self.aims()}

    def upload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin with a picture of one's own: PNG, JPEG and the like, in base64."""
        text = request.get("picture")
        if not isinstance(text, str) or len(text) > MAX_PICTURE_BYTES * 4 // 3 + 4:
            raise ConfigError("The picture is too large, or none.", expected=f"at most {MAX_PICTURE_BYTES // 1000} kB")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError("The picture is no base64.") from error
        pixels = fit(readers.decode(data, max_pixels=MAX_PIXELS), self.playable.height, self.playable.width, False)
        self.scene = Scene(torch.tensor(pixels).permute(2, 0, 1).float()[None, None] / 255)
        self._begin(None)
        return {**self.view(), **self.aims()}

    def act(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one action."""
        key = whole(request, "key", len(self.playable.keys))
        now = self.moments[-1]
        done = self.playable.keys.act(torch.tensor([key]))
        state = self.playable.model.step(now.state, done)
        world, true = now.world, self.stage.world_key(key)
        if world is not None and true is not None:
            world = self.stage.world.step(world, Act(torch.tensor([true]), torch.zeros(1, 2), torch.zeros(1, 2)))
        self.moments.append(Moment(state, world, key))
        self.keep()
        return self.view()

    def undo(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the last step back."""
        if len(self.moments) > 1:
            self.moments.pop()
            self.keep()
        return self.view()

    def set_goal(self, request: dict[str, Any]) -> dict[str, Any]:
        """Aim at what is seen now (`from` "now"), or at where the scene's own clip went ("clip")."""
        where = request.get("from")
        if where not in ("now", "clip"):
            raise ConfigError("A goal is taken from somewhere.", expected='"now" or "clip"')
        if where == "now":
            self.goal = self.playable.model.render(self.moments[-1].state)
        else:
            self.goal = self.of_clip()
        return self.aims()

    def make_plan(self, request: dict[str, Any]) -> dict[str, Any]:
        """Find keys that lead from what is seen now to the goal; the page then does them one by one."""
        if self.goal is None:
            raise ConfigError("There is no goal.", do="Set one first.")
        how = request.get("how", "cem")
        if how not in ("cem", "beam"):
            raise ConfigError("There is no such planner.", expected="cem or beam")
        model, state = self.playable.model, self.moments[-1].state
        aim = model.start(same_ground(model.render(state), self.goal))
        budget = Budget() if how == "cem" else Budget(sequences=24)
        found = plan(model, state, aim, self.playable.habits, how, budget, seed=len(self.moments))
        keys = self.playable.keys.of(found.actions)[0].tolist()
        return {
            "plan": keys,
            "distances": [round(x, 5) for x in found.distances.tolist()],
            "plan_ms": round(1000 * found.seconds),
            "tried": found.evaluations,
        }

    def record(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin to record (`on` true), or end it (false): the film then waits to be fetched."""
        on = request.get("on")
        if not isinstance(on, bool):
            raise ConfigError("Recording is switched.", expected='"on": true or false')
        if on:
            self.recording = []
            self.keep()
        elif self.recording is not None:
            self.film, self.recording = self.recording, None
        return self.view()

    def keep(self) -> None:
        """Add what is seen now to the recording."""
        if self.recording is None or len(self.recording) >= RECORDED:
            return
        moment = self.moments[-1]
        parts = [self.playable.model.render(moment.state)[0]]
        if moment.world is not None:
            parts.append(self.stage.world.render(moment.world)[0])
        frame = torch.cat(parts, 2).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        # As small as it is: sixteen sessions of 600 frames that are large enough to look at would be gigabytes.
        self.recording.append(frame)


def whole(request: dict[str, Any], name: str, below: int) -> int:
    """A whole number from 0 to `below` - 1 of a request; raises ConfigError for anything else."""
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise ConfigError(f"'{name}' is not what was expected.", expected=f"a whole number from 0 to {below - 1}")
    return value


def packed(picture: Tensor) -> str:
    """(C, H, W) in [0, 1] as base64 of its bytes, rows of pixels of C channels."""
    return base64.b64encode(
        picture.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().tobytes()
    ).decode()
