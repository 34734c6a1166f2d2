"""Two processes on one run: the second is refused, the first goes on; locks of the dead are taken over, foreign ones are not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from killing import PROCESSES, Journal, end, equal, journalled, write_data

from selftaught.core.errors import EXIT_LOCKED, RunError
from selftaught.train import Loop, resume, train


def hold(journal: Path, go: Path, data: Path, out: Path) -> None:
    """Train in a child, and wait at step 3 until a byte comes through the named pipe `go`."""
    journalled(journal, 1000.0)
    log = Loop.log

    def wait(self: Loop, logged: dict[str, float]) -> None:
        log(self, logged)
        if self.step == 4:
            open(go, "rb").read(1)

    Loop.log = wait  # type: ignore[method-assign]
    start(data, out)


def start(data: Path, out: Path) -> Path:
    return train("mae", data, out, "tiny", steps=8, set=["batch_size=4"], quiet=True)


def everything(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize("killed", [False, True], ids=["the first ends", "the first is killed"])
def test_a_second_process_is_refused(tmp_path: Path, killed: bool) -> None:
    data, run, journal, go = write_data(tmp_path / "data.npz"), tmp_path / "run", tmp_path / "journal", tmp_path / "go"
    os.mkfifo(go)
    whole = start(data, tmp_path / "whole")
    log = Journal(journal)
    child = PROCESSES.Process(target=hold, args=(journal, go, data, run))
    child.start()
    assert log.wait("step", 3, child)
    with open(go, "wb") as release:  # opens when the child waits for it
        before = everything(run)
        for again in (lambda: start(data, run), lambda: resume(run, quiet=True)):
            with pytest.raises(RunError, match=f"in use by process {child.pid} on this machine") as error:
                again()
            assert error.value.exit_code == EXIT_LOCKED and "lock.json" in str(error.value)
        assert everything(run) == before
        if killed:
            assert end(child) == -signal.SIGKILL
            assert (run / "lock.json").exists(), "the lock of a dead process"
        else:
            release.write(b"x")
    child.join()
    assert child.exitcode == (-signal.SIGKILL if killed else 0)
    assert equal(whole, resume(run, quiet=True))
    assert not (run / "lock.json").exists()


def test_a_lock_of_another_host_is_refused_with_advice(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz")
    run = start(data, tmp_path / "run")
    lock = {"pid": 1, "host": "elsewhere.example", "started_utc": "2026-01-01T00:00:00Z", "birth": ""}
    (run / "lock.json").write_text(json.dumps(lock))
    before = everything(run)
    with pytest.raises(RunError, match="process 1 on the machine elsewhere.example") as error:
        start(data, run)
    assert error.value.exit_code == EXIT_LOCKED and f"delete {run / 'lock.json'}" in error.value.do
    assert everything(run) == before
    (run / "lock.json").unlink()
    start(data, run)
