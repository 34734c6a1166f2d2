"""SIGKILL at random moments of one training: nothing unreadable, at most one interval lost, the same result bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import killing
import pytest
from killing import Journal, kill_run, lost

from selftaught.core import checkpoint


def check(figures: dict[str, Any], kills: int) -> None:
    print(json.dumps(figures, indent=1))
    assert figures["problems"] == [] and figures["kills"] == kills and figures["exit_codes"] == [0, 0]
    assert figures["bitwise_equal"]
    assert figures["steps_later_than_the_interval"] == 0
    assert figures["temporary_folders_left_in_the_end"] == 0


@pytest.mark.timeout(1500)
def test_twenty_five_kills_of_one_training(tmp_path: Path) -> None:
    figures = kill_run(tmp_path, 25, stride=8)
    check(figures, 25)
    assert figures["kills_during_a_save"] >= 3 and figures["steps_done_again"] > 0


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", ["dino", "mae", "simclr"])
def test_three_hundred_kills(tmp_path: Path, method: str) -> None:
    check(kill_run(tmp_path, 100, method, seed=1), 100)


def test_a_late_save_would_be_noticed() -> None:
    """Negative control of the bar on lost work: three steps after the interval and still no save."""
    line = [("begin", 0, 10.0, 0.0), ("step", 1, 10.1, 0.0), ("saving", 1, 10.1, 0.0), ("saved", 1, 10.2, 0.02)]
    good = [*line, ("step", 2, 10.25, 0.02), ("step", 3, 10.6, 0.02)]
    assert lost(good, 0.1) == (2, pytest.approx(0.4), pytest.approx(-0.05))
    assert lost([*good, ("step", 4, 10.7, 0.02)], 0.1)[2] == pytest.approx(0.3)


def test_an_unreadable_checkpoint_or_a_lost_save_would_be_noticed(tmp_path: Path) -> None:
    """Negative control of the checks after a kill."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        checkpoint.save(folder, step, {}, {"step": step})
    assert killing.check_after(tmp_path, 2) == ""
    assert "older than the save of step 3" in killing.check_after(tmp_path, 3)
    (folder / "step-000001" / "state.json").write_bytes(b"{")
    assert "step-000001 is unreadable" in killing.check_after(tmp_path, 2)


def test_a_journal_with_half_a_line_is_read_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.path.write_text("step 1 2.5 0.0\nsav")
    assert journal.read() == [("step", 1, 2.5, 0.0)]
    with open(journal.path, "a") as file:
        file.write("ed 1 2.75 0.25\n")
    assert journal.read()[1:] == [("saved", 1, 2.75, 0.25)]
