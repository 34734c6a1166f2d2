"""SIGTERM, SIGINT, SIGHUP to real processes; a closed terminal and a closed pipe: saved, the right exit code, the same run."""

from __future__ import annotations

import fcntl
import os
import random
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from killing import PROCESSES, Journal, equal, journalled, patience, write_data

from selftaught import cli
from selftaught.core import checkpoint
from selftaught.train import resume

STEPS = 40


def command(journal: Path, arguments: list[str], pause_s: float, output: str, ignored: int) -> None:
    """What the child does: the command line, with a journal, and perhaps with its output in a terminal or a pipe."""
    if output:
        os.setsid()
        handle = os.open(output, os.O_RDWR if "pts" in output else os.O_WRONLY)
        if "pts" in output:
            fcntl.ioctl(handle, termios.TIOCSCTTY, 0)
        for stream in (1, 2):
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))
        os.environ["TERM"] = "xterm"
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    if ignored:
        signal.signal(ignored, signal.SIG_IGN)
    journalled(journal, 1000.0, pause_s)
    cli.main(arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run; beside it lie the data."""
    root = tmp_path_factory.mktemp("signals")
    cli.main(arguments(write_data(root / "data.npz"), root / "whole"))
    return root / "whole"


def arguments(data: Path, out: Path, quiet: bool = True) -> list[str]:
    settings = ["--size", "tiny", "--steps", str(STEPS), "--set", "batch_size=4"]
    return ["train", "mae", str(data), "--out", str(out), *settings, *(["--quiet"] if quiet else [])]


Start = Callable[..., tuple[BaseProcess, Journal]]


@pytest.fixture
def start(whole: Path, tmp_path: Path) -> Start:
    """A function that starts the run of `whole` in a real process and waits for a step."""

    def begin(step: int, pause_s: float = 0.0, output: str = "", ignored: int = 0) -> tuple[BaseProcess, Journal]:
        journal = Journal(tmp_path / "journal")
        given = arguments(whole.parent / "data.npz", tmp_path / "run", quiet=not output)
        child = PROCESSES.Process(target=command, args=(journal.path, given, pause_s, output, ignored))
        child.start()
        assert journal.wait("step", step, child)
        return child, journal

    return begin


def saved_step(run: Path) -> int:
    newest = checkpoint.latest(run / "checkpoints", pytest.fail)
    return int(checkpoint.load(newest)[1]["step"]) if newest else 0


def finished(whole: Path, run: Path) -> bool:
    """Go on to the end here, and compare."""
    resume(run, quiet=True)
    return equal(whole, run)


@pytest.mark.parametrize("trial", range(2))
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_at_a_random_step_saves(
    start: Start, whole: Path, tmp_path: Path, number: int, code: int, trial: int
) -> None:
    child, journal = start(random.Random(100 * code + trial).randrange(1, STEPS - 10))
    begin_s = time.monotonic()
    os.kill(child.pid or 0, number)
    child.join(550)
    assert child.exitcode == code and time.monotonic() - begin_s < patience(journal)
    steps = [step for word, step, *_ in journal.read() if word == "step"]
    assert saved_step(tmp_path / "run") == steps[-1] < STEPS, "the step that was under way is done and saved"
    assert not (tmp_path / "run" / "lock.json").exists()
    assert finished(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGHUP, signal.SIGHUP, 129),
     (signal.SIGTERM, signal.SIGINT, 130)],
)  # fmt: skip
def test_a_second_signal_ends_it_at_once(
    start: Start, whole: Path, tmp_path: Path, first: int, second: int, code: int
) -> None:
    child, journal = start(5, pause_s=600.0)
    os.kill(child.pid or 0, first)
    assert journal.wait("saving", 0, child), "the save that the first one asked for takes ten minutes"
    begin_s = time.monotonic()
    os.kill(child.pid or 0, second)
    child.join(550)
    assert child.exitcode == code and time.monotonic() - begin_s < patience(journal)
    assert saved_step(tmp_path / "run") == 0 and not list((tmp_path / "run").rglob(".tmp-*"))
    assert not (tmp_path / "run" / "lock.json").exists()
    assert finished(whole, tmp_path / "run")


def test_under_nohup_a_hangup_is_nothing(start: Start, whole: Path, tmp_path: Path) -> None:
    child, journal = start(3, ignored=signal.SIGHUP)
    os.kill(child.pid or 0, signal.SIGHUP)
    child.join(550)
    assert child.exitcode == 0 and equal(whole, tmp_path / "run")


def test_a_terminal_that_closes_is_a_polite_stop(start: Start, whole: Path, tmp_path: Path) -> None:
    """The kernel sends SIGHUP then, and every later write to the terminal fails."""
    master, slave = os.openpty()
    shown, enough = bytearray(), threading.Event()
    reader = threading.Thread(target=_read, args=(master, shown, enough))
    reader.start()
    child, _ = start(3, output=os.ttyname(slave))
    enough.set()
    reader.join()
    os.close(slave)
    os.close(master)
    child.join(550)
    assert b"parameters" in shown
    assert (child.exitcode, 3 <= saved_step(tmp_path / "run") < STEPS) == (129, True)
    assert finished(whole, tmp_path / "run")


def _read(handle: int, shown: bytearray, enough: threading.Event) -> None:
    """Read what a terminal shows, so that its writer is not held up."""
    while not enough.is_set():
        if select.select([handle], [], [], 0.05)[0]:
            shown += os.read(handle, 4096)


def test_a_pipe_whose_reader_goes_ends_no_training(start: Start, whole: Path, tmp_path: Path) -> None:
    """`selftaught train ... | head -1`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: open(pipe, "rb").readline())
    reader.start()
    child, _ = start(3, output=str(pipe))
    reader.join()
    child.join(550)
    assert (saved_step(tmp_path / "run"), child.exitcode) in ((STEPS, 0), (STEPS, 2))
    assert equal(whole, tmp_path / "run")
