"""Processes forked from one that has imported everything: a start takes tenths of a second, where importing torch takes five.

torch._dynamo is what the first step of an optimiser imports; it alone takes two seconds.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([
    "selftaught.train", "selftaught.cli", "selftaught.representation.dino", "selftaught.representation.mae", "torch._dynamo",
])  # fmt: skip


def run_program(arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
    """What the child does: run a file of Python as `python FILE ...` would."""
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = list(arguments)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))  # torch reads the variable when it is imported: too early here
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a child of multiprocessing leaves them out


class Program:
    """A file of Python run in a process of its own; answers like a subprocess.Popen whose errors go where its output goes."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], output: Path):
        self.output = output
        self.process = PROCESSES.Process(target=run_program, args=(arguments, environment, output))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.output), timeout)
        return self.process.exitcode

    def communicate(self, timeout: float) -> str:
        """All that it has written, when it has ended."""
        self.wait(timeout)
        return self.output.read_text(errors="replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
