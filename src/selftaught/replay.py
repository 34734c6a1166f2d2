"""Compute a captured step again: does it go wrong again, and where did the first bad number come from?"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import __version__
from selftaught.core import capture, checkpoint
from selftaught.core.config import from_json
from selftaught.core.errors import RunError
from selftaught.core.guards import NotFinite
from selftaught.core.trace import Trace
from selftaught.core.tune import Plan
from selftaught.core.undo import Undo
from selftaught.data.cache import ImageSet
from selftaught.loading import move_needs
from selftaught.registry import load_class
from selftaught.train import Job, Loop


@dataclass
class Replay:
    """What came out of a captured step when it was computed again."""

    path: Path
    info: dict[str, Any]
    """The capture's state.json."""
    offender: str = ""
    """What is not finite this time; "" when all numbers are."""
    player: str = ""
    found: list[str] = field(default_factory=list)
    """Where the first NaN, the first infinity and the first module with such an output were."""

    @property
    def same(self) -> bool:
        """Whether the same number of the same player went wrong again."""
        return (self.offender, self.player) == (self.info["offender"], self.info["player"])

    def lines(self) -> list[str]:
        """The report, line by line."""
        i, job = self.info, self.info["job"]
        again = f"{self.offender} of {self.player} is not finite" if self.offender else "all numbers are finite"
        shown = ", ".join(i["pictures"][:8]) + (" ..." if len(i["pictures"]) > 8 else "")
        return [
            f"captured: step {i['step']} of {job['method']}, seed {job['seed']}, rank {i['rank']} of {i['world']}: "
            f"{i['offender']} of {i['player']} was not finite (loss {i['loss']})",
            f"again: {again}{', as captured' if self.same else ''}",
            *self.found,
            f"{len(i['pictures'])} pictures: {shown}",
        ]


def replay(path: str | os.PathLike[str]) -> Replay:
    """Compute the step of a capture again, in the same order and with the same random numbers, and watch every operation.

    Nothing is written, and a run that is at work is not disturbed. What the method needs, and files that its `begin` made, are taken
    from the run folder that the capture lies in. Raises RunError when the folder is no capture or its step does not go wrong again.
    """
    path = Path(path)
    tensors, info = capture.read(path)
    loop = _Again(path, tensors, info)
    with Trace(loop.method) as trace:
        loop.one_step()
    result = Replay(path, info, found=trace.lines())
    if loop.found is not None:
        result.offender, result.player = loop.found.offender, loop.found.player
        return result
    theirs, ours = info["job"]["versions"], {"selftaught": __version__, "torch": torch.__version__}
    other = [f"{name} {theirs.get(name)} then, {version} now" for name, version in ours.items() if theirs.get(name) != version]
    why = ", ".join(other)
    if info["world"] > 1:
        why = why or "several processes took part, whose sums were rounded otherwise"
    raise RunError(f"{path} does not go wrong again: all numbers are finite.", why=why,
                   do="Replay the captures of the other ranks." if info["world"] > 1 else "")  # fmt: skip


class _Silent:
    """Stands in for the recorder: a replay writes nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""


class _Pictures(ImageSet):
    """The pictures of a capture, under the numbers that they have in the whole data set."""

    def __init__(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        pixels = tensors["pixels"]
        super().__init__(pixels.numpy(), info["pictures"], np.zeros((0, 2)), np.zeros(0), [], pixels.shape[-1], "", Path())
        self._rows = {int(index): row for row, index in enumerate(tensors["indices"])}
        self._count = int(info["count"])

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Any) -> Tensor:
        rows = [self._rows.get(int(i), -1) for i in indices]
        if -1 in rows:
            raise RunError("The method asks for pictures that are not in the capture.",
                           why="a file that it made before training is missing in the run folder")  # fmt: skip
        return torch.from_numpy(np.ascontiguousarray(self.images[rows]))


class _Again(Loop):
    """The training loop set up as it was before a captured step."""

    def __init__(self, path: Path, tensors: dict[str, dict[str, Tensor]], info: dict[str, Any]) -> None:
        saved = info["job"]
        config = from_json(load_class(saved["method"]).Config, saved["config"])
        device = saved["device"] if torch.cuda.is_available() else "cpu"
        job = Job(saved["method"], saved["data"], capture.run_of(path), saved["size"], saved["seed"], config, saved["needs"], device)
        # A capture holds the batch of all processes: one computes what they did together.
        super().__init__(job, _Pictures(tensors["batch"], info), _Silent(), 0, 1)  # type: ignore[arg-type]
        self.found: NotFinite | None = None
        self.method.begin(self.images, job.out, self.recorder.say)
        move_needs(self.method, job.device)
        self.plan = Plan(**info["plan"])
        self.plan.apply(self.method)
        self.method.load_state_dict(tensors.get("model", {}))
        self.optimizers = {name: player.build_optimizer() for name, player in self.players.items()}
        for name, meta in info["optimizers"].items():
            checkpoint.restore_optimizer(self.optimizers[name], tensors.get(f"optim.{name}", {}), meta)
        self.undo = Undo(self.method)
        self.step = info["step"]
        self.method.train()

    def skip(self, found: NotFinite, indices: Any) -> None:
        """Keep what was found instead of counting it."""
        self.found = found

    def log(self, logged: dict[str, float]) -> None:
        """Write nothing."""
