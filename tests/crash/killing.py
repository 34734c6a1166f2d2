"""A training that is killed over and over in one run, and what must hold after each kill; also run by benchmarks/crash.py."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught.core import checkpoint
from selftaught.train import Loop, train

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for those who run it without pytest
from forked import PROCESSES  # noqa: E402

LOOP = sys.modules["selftaught.train"]  # the package's attribute of that name is the function


def write_data(path: Path, count: int = 40) -> Path:
    """(count, 32, 32, 3) uint8 pictures of coloured noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3))
    np.savez(path, images=pixels.astype(np.uint8))
    return path


def journalled(journal: Path, every_s: float, pause_s: float = 0.0) -> None:
    """Save every `every_s`, and write a line at each step and around each save; `pause_s` waits before a save."""
    torch.set_num_threads(1)
    LOOP.SAVE_EVERY_S, LOOP.SAVE_FRAC = every_s, 1.0  # type: ignore[attr-defined]
    handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    run, one_step, save = Loop.run, Loop.one_step, Loop.save

    def note(word: str, loop: Loop) -> None:
        os.write(handle, f"{word} {loop.step} {time.monotonic()} {loop.save_s}\n".encode())

    def noted(real: Callable[[Loop], None], before: str, after: str) -> Callable[[Loop], None]:
        def call(self: Loop) -> None:
            if before:
                note(before, self)
            if before == "saving" and pause_s:
                time.sleep(pause_s)
            real(self)
            if after:
                note(after, self)

        return call

    Loop.run = noted(run, "begin", "")  # type: ignore[method-assign]
    Loop.one_step = noted(one_step, "", "step")  # type: ignore[method-assign]
    Loop.save = noted(save, "saving", "saved")  # type: ignore[method-assign]


def train_in_child(journal: Path, every_s: float, arguments: dict[str, Any]) -> None:
    """What the child does."""
    journalled(journal, every_s)
    train(**arguments, quiet=True)


class Journal:
    """Reads what a child has written so far: (word, step, time in s, seconds of its last save)."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0
        self.lines: list[tuple[str, int, float, float]] = []
        path.touch()

    def read(self) -> list[tuple[str, int, float, float]]:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        self.offset += len(whole)
        for line in whole.decode().splitlines():
            word, step, at_s, save_s = line.split()
            self.lines.append((word, int(step), float(at_s), float(save_s)))
        return self.lines

    def wait(self, word: str, step: int, child: BaseProcess, since: int = 0, timeout_s: float = 550.0) -> bool:
        """Wait until the child has written `word` at `step` or later, among the lines from number `since`; False when it ended."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            alive = child.is_alive()
            if any(w == word and s >= step for w, s, _, _ in self.read()[since:]):
                return True
            if not alive:
                return False
            time.sleep(0.0005)
        raise TimeoutError(f"the child did not write {word!r} at step {step} in {timeout_s} s")


def lost(lines: list[tuple[str, int, float, float]], every_s: float) -> tuple[int, float, float]:
    """Of the lines of one killed process: (steps, seconds) since its last whole save, and by how much a step came too late.

    A save is due after the first step behind the interval, so that of the steps that were lost all but the last one lie inside.
    """
    start = max(i for i, line in enumerate(lines) if line[0] in ("saved", "begin"))
    saved_at_s, save_s = lines[start][2], lines[start][3]
    steps = [at_s for word, _, at_s, _ in lines[start:] if word == "step"]
    late = [at_s - saved_at_s - max(every_s, save_s) for at_s in steps[:-1]]
    return len(steps), (steps[-1] - saved_at_s if steps else 0.0), max(late, default=-every_s)


def patience(journal: Journal) -> float:
    """Seconds in which a process must have saved and ended: 10, or a hundred steps where other work slows the machine down."""
    times = [at_s for word, _, at_s, _ in journal.read() if word == "step"]
    return max(10.0, 100 * float(np.median(np.diff(times)))) if len(times) > 1 else 100.0


def check_after(run: Path, acknowledged: int) -> str:
    """What is wrong with the checkpoints after a kill, or ""."""
    for path in (run / "checkpoints").glob("step-*"):
        if problems := checkpoint.verify(path):
            return f"{path.name} is unreadable: {problems}"
    newest = checkpoint.latest(run / "checkpoints")
    step = checkpoint.load(newest)[1]["step"] if newest else 0
    return f"step {step} is older than the save of step {acknowledged}" if step < acknowledged else ""


def end(child: BaseProcess, number: int = signal.SIGKILL, timeout_s: float = 550.0) -> int | None:
    """Send a signal, wait, and return the exit code."""
    if child.pid and child.is_alive():
        os.kill(child.pid, number)
    child.join(timeout_s)
    return child.exitcode


def kill_run(
    root: Path, kills: int, method: str = "dino", seed: int = 0, every_s: float = 0.03, stride: int = 12
) -> dict[str, Any]:
    """Kill one training `kills` times at random moments, let it end, and compare it with an undisturbed one.

    A third of the kills wait for a save to begin, a sixth strike before the first step of a process, the others anywhere; `stride` steps
    lie between two of them, and saves are due after five twelfths of that.
    Returns counts and figures; `problems` must be empty and `bitwise_equal` true.
    """
    draw, steps = random.Random(seed), stride * kills
    journal, whole, run = Journal(root / "journal"), root / "whole", root / "run"
    data, first_s = write_data(root / "data.npz"), every_s
    arguments = {"method": method, "data": data, "size": "tiny", "steps": steps, "set": ["batch_size=4"]}
    figures: dict[str, Any] = {"method": method, "steps": steps, "kills": 0, "kills_during_a_save": 0,
                               "kills_before_the_first_step": 0, "temporary_folders_left_by_kills": 0, "steps_done_again": 0}  # fmt: skip
    problems: list[str] = []
    losses: list[tuple[int, float, float]] = []

    def process(out: Path, log: Path) -> BaseProcess:
        child = PROCESSES.Process(target=train_in_child, args=(log, every_s, {**arguments, "out": out}))
        child.start()
        return child

    undisturbed = process(whole, root / "journal-whole")
    undisturbed.join()
    # Some steps of this machine as it is now: kills then strike steps and saves alike.
    times = [at_s for word, _, at_s, _ in Journal(root / "journal-whole").read() if word == "step"]
    every_s = max(first_s, 5 * stride // 12 * float(np.median(np.diff(times))))
    target = 0
    while figures["kills"] < kills:
        first = len(journal.read())
        child = process(run, root / "journal")
        moment = draw.choice(["any", "any", "any", "save", "save", "start"])
        reached = moment == "start" or journal.wait("step", target, child, first)
        if moment == "save" and reached:
            reached = journal.wait("saving", 0, child, len(journal.lines))
            time.sleep(draw.random() * max(line[3] for line in journal.lines))
        elif reached:
            time.sleep(draw.random() * (0.3 if moment == "start" else 2 * every_s))
        code = end(child)
        if code != -signal.SIGKILL:
            problems.append(f"the process of kill {figures['kills']} ended by itself with {code}")
            break
        lines = journal.read()
        figures["kills"] += 1
        figures["kills_during_a_save"] += bool(lines[first:]) and lines[-1][0] == "saving"
        figures["kills_before_the_first_step"] += not any(line[0] == "step" for line in lines[first:])
        figures["temporary_folders_left_by_kills"] += any(run.rglob(".tmp-*"))
        if any(line[0] == "begin" for line in lines[first:]):
            losses.append(lost(lines[first:], every_s))
        problem = check_after(run, max((step for word, step, *_ in lines if word == "saved"), default=0))
        problems += [problem] if problem else []
        if moment != "start":
            target = min(target + stride, steps - 6)
    last = process(run, root / "journal")
    last.join()
    done = [word for word, *_ in journal.read()].count("step")
    figures |= {
        "interval_s": round(every_s, 4),
        "steps_done_again": done - steps,
        "most_steps_lost": max(steps for steps, _, _ in losses),
        "most_seconds_lost": round(max(seconds for _, seconds, _ in losses), 4),
        "steps_later_than_the_interval": sum(late > 0 for _, _, late in losses),
        "exit_codes": [undisturbed.exitcode, last.exitcode],
        "temporary_folders_left_in_the_end": len(list(run.rglob(".tmp-*"))),
        "bitwise_equal": not last.exitcode and equal(whole, run),
        "problems": problems,
    }
    return figures


def equal(first: Path, second: Path) -> bool:
    """Whether weights, optimiser, state, metrics and pictures of two finished runs are equal in every byte."""
    files = [
        {
            str(p.relative_to(run)): p.read_bytes()
            for p in run.rglob("*")
            if p.is_file() and p.name not in ("log.txt", "timings.jsonl") and newest_or_other(run, p)
        }
        for run in (first, second)
    ]
    return files[0] == files[1] and any(name.endswith("model.safetensors") for name in files[0])


def newest_or_other(run: Path, path: Path) -> bool:
    """Of the checkpoints only the newest is compared: when the ones before it were written depends on the clock."""
    newest = checkpoint.latest(run / "checkpoints")
    return "checkpoints" not in path.relative_to(run).parts or newest in path.parents


def main() -> None:
    """Print the figures of `kills` kills as JSON: python tests/crash/killing.py FOLDER KILLS."""
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    print(json.dumps(kill_run(root, int(sys.argv[2])), indent=1))


if __name__ == "__main__":
    main()
