"""What a run writes down: metrics.jsonl (equal in every repetition), timings.jsonl, log.txt; and its progress."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from selftaught.core.config import write_error

PLAIN_EVERY_S = 10.0
RATE_WINDOW_S = 30.0

# A file name inside a message must not steer the terminal.
_CONTROL = {code: "?" for code in [*range(32), 127, *range(128, 160)] if chr(code) not in "\n\t"}


class Recorder:
    """Context manager that records one run in `run_dir` and shows its progress on standard output.

    On a terminal it draws a bar, elsewhere one plain line every ten seconds; `quiet` shows nothing and still writes the
    files. When standard output fails (the terminal was closed, the reader of the pipe went) it becomes quiet.
    `images_per_step` turns steps into images per second (0: show steps). Of several processes one `writes`; the recorders
    of the others do nothing. Raises RunError when a file cannot be written, with exit code 5 when the disk is full.
    """

    def __init__(
        self, run_dir: str | os.PathLike[str], total_steps: int, quiet: bool = False, images_per_step: int = 0,
        writes: bool = True,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.total_steps = total_steps
        self.quiet, self.writes = quiet or not writes, writes
        self.images_per_step = images_per_step
        self._start_s = time.monotonic()
        self._marks: collections.deque[tuple[float, int]] = collections.deque()
        self._plain_due_s = -math.inf
        self._timing_due_s = -math.inf
        self._console = _Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if not writes:
            return
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.run_dir, 0, error) from error
        for name in ("metrics.jsonl", "timings.jsonl"):
            _cut(self.run_dir / name, None)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._show(self._bar.stop)
            self._bar = None

    def metrics(self, step: int, parts: Mapping[str, Any]) -> None:
        """Append {"step": step, ...} to metrics.jsonl; non-finite numbers become null. Give no clock times here."""
        self._append("metrics.jsonl", _line(step, parts))

    def timing(self, step: int, parts: Mapping[str, Any]) -> None:
        """Append {"step": step, ...} to timings.jsonl, for numbers that differ from run to run."""
        self._append("timings.jsonl", _line(step, parts))

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, and a torn last line, so that a resumed run writes them again."""
        for name in ("metrics.jsonl", "timings.jsonl") if self.writes else ():
            _cut(self.run_dir / name, step)
        self._marks.clear()

    def sync(self) -> None:
        """Flush the metrics to the disk, so that no checkpoint outlives the lines that belong before it."""
        try:
            with open(self.run_dir / "metrics.jsonl", "rb+") as file:
                os.fsync(file.fileno())
        except FileNotFoundError:  # nothing was written yet
            return
        except OSError as error:
            raise write_error(self.run_dir / "metrics.jsonl", 0, error) from error

    def say(self, text: str) -> None:
        """Print a line (unless quiet) and append it to log.txt behind the UTC time."""
        text = text.translate(_CONTROL)
        if not self.quiet:
            self._show(lambda: self._console.print(text, markup=False))
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}Z {text}\n")

    def progress(self, step: int, loss: float, health: str = "") -> None:
        """Show that `step` steps are done; cheap enough for every step. `health` is the verdict of the guards."""
        now = time.monotonic()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW_S:
            self._marks.popleft()
        rate_hz = self._rate_hz()
        if now >= self._timing_due_s:
            self._timing_due_s = now + PLAIN_EVERY_S
            self.timing(step, {"elapsed_s": round(now - self._start_s, 3), "steps_per_s": rate_hz})
        if self.quiet:
            return
        if _on_terminal():
            self._show(lambda: self._draw(step, loss, health, rate_hz))
        elif now >= self._plain_due_s or step >= self.total_steps:
            self._plain_due_s = now + PLAIN_EVERY_S
            share = f"{100 * step // max(self.total_steps, 1)} %"
            words = [f"step {step}/{self.total_steps}", share, *self._words(step, loss, health, rate_hz)]
            self._show(lambda: self._console.print("  ".join(words), markup=False))

    def _show(self, show: Callable[[], None]) -> None:
        """Write to standard output; a training must not die of a terminal that is gone."""
        try:
            show()
        except OSError:
            self.quiet = True

    def _rate_hz(self) -> float | None:
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s and last > first else None

    def _words(self, step: int, loss: float, health: str, rate_hz: float | None) -> list[str]:
        words = []
        if rate_hz:
            speed = rate_hz * (self.images_per_step or 1)
            number = f"{speed:.0f}" if speed >= 100 else f"{speed:.2g}"
            words.append(f"{number} {'img' if self.images_per_step else 'steps'}/s")
            words.append(f"{_duration(max(self.total_steps - step, 0) / rate_hz)} left")
        return [*words, f"loss {loss:.4g}", *([health] if health else [])]

    def _draw(self, step: int, loss: float, health: str, rate_hz: float | None) -> None:
        if self._bar is None:
            columns = (
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=self.total_steps)
            self._bar.start()
        words = "  ".join(self._words(step, loss, health, rate_hz))
        self._bar.update(self._task, completed=step, description=words)

    def _append(self, name: str, text: str) -> None:
        if not self.writes:
            return
        data = text.encode("utf-8", "backslashreplace")
        try:
            with open(self.run_dir / name, "ab") as file:
                file.write(data)
        except OSError as error:
            raise write_error(self.run_dir / name, len(data), error) from error


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the error itself: rich would end the process instead


def _on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _line(step: int, parts: Mapping[str, Any]) -> str:
    values: dict[str, Any] = {"step": int(step)}
    for name, value in parts.items():
        number = value.item() if hasattr(value, "item") else value
        values[name] = None if isinstance(number, float) and not math.isfinite(number) else number
    return json.dumps(values, allow_nan=False) + "\n"


def _cut(path: Path, step: int | None) -> None:
    """Drop from a file of JSON lines those that are torn, no JSON, or later than `step` (None: of any step)."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    good = [line for line in lines[:-1] if _belongs(line, step)]  # behind the last newline is nothing, or a torn line
    if len(good) == len(lines) - 1 and not lines[-1]:
        return
    data = b"".join(line + b"\n" for line in good)
    temp = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with open(temp, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise write_error(path, len(data), error) from error


def _belongs(line: bytes, step: int | None) -> bool:
    try:
        values = json.loads(line)
        return isinstance(values, dict) and (step is None or int(values["step"]) <= step)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
