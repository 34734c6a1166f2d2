"""What the processes of tests/crash/test_ranks.py run: selftaught commands, with something done to one rank at one step.

Environment:
    COMMANDS          one command per line, words parted by tabs
    EXACT=1           compute in double precision, so that the order of sums does not show in the numbers
    HARM=KIND:RANK:STEP  kill (SIGKILL between backward pass and update), freeze (SIGSTOP), stop (SIGTERM to itself), raise,
                      save (SIGKILL in the middle of writing the checkpoint of that step)
    SEEN=FOLDER       append the step and the numbers of the pictures of every batch to FOLDER/RANK
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from selftaught import cli
from selftaught.core import checkpoint, launch
from selftaught.data import image_ops
from selftaught.nets.torchvision_ops import make_torchvision_importable
from selftaught.segmentation.selfmask import SelfMask
from selftaught.train import Loop

RANK = int(os.environ.get("RANK", "0"))
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "stop": signal.SIGTERM}


def compute_exactly() -> None:
    """Double precision everywhere."""
    separable = image_ops._separable
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
    image_ops._separable = lambda x, rows, columns: separable(x, rows.to(x), columns.to(x))
    # The cuts take single precision only, and are not what is looked at.
    SelfMask.pseudo_masks = lambda self, images: (torch.nn.functional.avg_pool2d(images.mean(1), 8) > 0.5).double()  # type: ignore[method-assign]


def harm(kind: str, step: int) -> None:
    """Do it to this process."""
    average, write = launch.average_gradients, checkpoint._write
    hurt: list[Loop] = []

    def averaged(parameters: Any) -> None:
        # Once per run: a step with two players averages twice, and a second signal would not wait for the end of the step.
        if LOOPS and LOOPS[-1].step == step and LOOPS[-1] not in hurt:
            hurt.append(LOOPS[-1])
            if kind == "raise":
                raise OSError("the disk of this machine is broken")
            os.kill(os.getpid(), SIGNALS[kind])
        average(parameters)

    def written(path: Path, content: bytes) -> dict[str, Any]:
        if f"step-{step:06d}" in str(path) and path.name.startswith("optim"):
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    if kind == "save":
        checkpoint._write = written
    else:
        launch.average_gradients = averaged


LOOPS: list[Loop] = []


def watch_loops() -> None:
    """Remember the running loop, and write down what it looks at."""
    one_step, compute = Loop.one_step, Loop.compute

    def watched(self: Loop) -> None:
        LOOPS.append(self)
        one_step(self)

    def seen(self: Loop, player: str, indices: Any, progress: Any) -> Any:
        prepare = self.method.prepare

        def written(images: Any, numbers: Any) -> Any:
            with open(Path(os.environ["SEEN"]) / str(RANK), "a") as file:
                print(f"{self.job.method}/{player}", self.step, *numbers, file=file)
            return prepare(images, numbers)

        self.method.prepare = written  # type: ignore[method-assign]
        try:
            return compute(self, player, indices, progress)
        finally:
            self.method.prepare = prepare  # type: ignore[method-assign]

    Loop.one_step = watched  # type: ignore[method-assign]
    if "SEEN" in os.environ:
        Loop.compute = seen  # type: ignore[method-assign]


def main() -> None:
    os.fsync = os.fstat  # type: ignore[assignment]  # nobody cuts the power
    torch.set_num_threads(1)
    make_torchvision_importable()
    if os.environ.get("EXACT") == "1":
        compute_exactly()
    watch_loops()
    if os.environ.get("SAVE_OFTEN") == "1":
        sys.modules["selftaught.train"].SAVE_EVERY_S = -1.0  # type: ignore[attr-defined]
    kind, rank, step = (os.environ.get("HARM") or "none:-1:0").split(":")
    if int(rank) == RANK:
        harm(kind, int(step))
    codes = []
    for line in os.environ["COMMANDS"].splitlines():
        try:
            cli.main(line.split("\t"))
            codes.append(0)
        except SystemExit as stop:
            codes.append(int(stop.code or 0))
    print("CODES", codes)
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
