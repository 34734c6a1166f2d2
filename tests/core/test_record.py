"""A recorder appends lines, rewinds them, and shows progress."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from selftaught.core import record
from selftaught.core.errors import RunError
from selftaught.core.record import Recorder


def _steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def _fill(run: Path, steps: range) -> None:
    with Recorder(run, 100, quiet=True) as recorder:
        for step in steps:
            recorder.metrics(step, {"loss": 1.0 / step})
            recorder.timing(step, {"seconds": 0.1})


def test_metrics_hold_exact_numbers_and_no_clock(tmp_path: Path) -> None:
    with Recorder(tmp_path, 10, quiet=True) as recorder:
        recorder.metrics(3, {"loss": torch.tensor(0.1), "n": 4, "bad": math.nan, "worse": -math.inf})
        recorder.progress(3, 0.1, "learning")
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 3, "loss": 0.10000000149011612, "n": 4, "bad": null, "worse": null}\n'
    assert _steps(tmp_path / "timings.jsonl") == [3]


def test_rewind_then_repeat_gives_the_same_bytes(tmp_path: Path) -> None:
    _fill(tmp_path / "straight", range(1, 21))
    _fill(tmp_path / "resumed", range(1, 16))
    with Recorder(tmp_path / "resumed", 100, quiet=True) as recorder:
        recorder.rewind(10)
        assert _steps(tmp_path / "resumed" / "metrics.jsonl") == list(range(1, 11))
        assert _steps(tmp_path / "resumed" / "timings.jsonl") == list(range(1, 11))
    _fill(tmp_path / "resumed", range(11, 21))
    straight, resumed = (tmp_path / name / "metrics.jsonl" for name in ("straight", "resumed"))
    assert straight.read_bytes() == resumed.read_bytes()


def test_rewind_to_the_start_empties(tmp_path: Path) -> None:
    _fill(tmp_path, range(1, 5))
    Recorder(tmp_path, 100, quiet=True).rewind(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "tail", [b'{"step": 5, "lo', b'{"step": 5, "loss": 1}', b"\0\0\0\0", b"\xff\n", b"[1]\n", b"{}\n"]
)
def test_a_torn_line_goes_at_once_and_what_follows_is_whole(tail: bytes, tmp_path: Path) -> None:
    _fill(tmp_path, range(1, 5))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    if tail.endswith(b"\n"):
        Recorder(tmp_path, 100, quiet=True).rewind(4)
    _fill(tmp_path, range(5, 7))
    steps = [values.get("step") for values in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "timings.jsonl"}


def test_say_prints_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    with Recorder(tmp_path, 10) as recorder:
        recorder.say("[red]not markup[/red]")
        recorder.say(f"evil \x1b[2J name {long}")
    with Recorder(tmp_path, 10, quiet=True) as recorder:
        recorder.say("unseen")
    out = capsys.readouterr().out
    assert out == f"[red]not markup[/red]\nevil ?[2J name {long}\n"
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("Z ", 1)[1] for line in log] == [*out.splitlines(), "unseen"]


class Clock:
    """A clock that tests move."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def strftime(self, *_: Any) -> str:
        return "now"

    def gmtime(self) -> None:
        return None


def test_plain_progress_is_one_line_every_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(record, "time", clock)
    with Recorder(tmp_path, 200, images_per_step=32) as recorder:
        for step in range(1, 201):
            clock.now_s += 0.25
            recorder.progress(step, 2.0, "learning")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/200", "41/200", "81/200", "121/200", "161/200", "200/200"]
    assert lines[1] == "step 41/200  20 %  128 img/s  40 s left  loss 2  learning"
    assert _steps(tmp_path / "timings.jsonl") == [1, 41, 81, 121, 161]


def test_a_terminal_gets_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_on_terminal", lambda: True)
    with Recorder(tmp_path, 4) as recorder:
        assert recorder._bar is None
        for step in range(1, 5):
            recorder.progress(step, 0.5, "learning")
        assert recorder._bar is not None and recorder._bar.tasks[0].completed == 4
    out = capsys.readouterr().out
    assert "4/4" in out and "loss 0.5" in out and "learning" in out
    assert "step 4/4" not in out


def test_quiet_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Recorder(tmp_path, 4, quiet=True) as recorder:
        recorder.progress(4, 0.5, "learning")
        recorder.say("hello")
    assert capsys.readouterr().out == ""


def test_a_full_disk_is_exit_code_five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, 4, quiet=True)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(RunError, match=r"metrics\.jsonl") as caught:
        recorder.metrics(1, {"loss": 1.0})
    assert caught.value.exit_code == 5
