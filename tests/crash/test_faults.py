"""Every operation on files fails once, with every kind of failure: the old checkpoint stays, and the next start heals the rest."""

from __future__ import annotations

import collections
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import NUMBERS, Faults

from selftaught.core import checkpoint
from selftaught.core.errors import EXIT_DISK, RunError
from selftaught.train import train
from trained_runs import differing

LOOP = sys.modules["selftaught.train"]


def save(folder: Path, step: int, keep: int = 1) -> Path:
    tensors = {"model": {"w": torch.full((50,), float(step))}, "optim.a": {"0.exp_avg": torch.full((50,), 2.0 * step)}}
    return checkpoint.save(folder, step, tensors, {"step": step}, keep=keep)


def good_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints below `folder`; fails unless each of them verifies."""
    steps = []
    for path in sorted(folder.glob("step-*")):
        assert checkpoint.verify(path) == [], path
        steps.append(int(checkpoint.load(path)[1]["step"]))
    return steps


def temporaries(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".tmp-*"))


def prepared(folder: Path, case: str) -> int:
    """A folder before a save, and the step that is saved then: beside an older one, over it, or over the rest of a kill."""
    save(folder, 10)
    if case == "after a kill":
        (folder / "step-000010").rename(folder / "step-000010.old")
    return 20 if case == "beside" else 10


CASES = ("beside", "over", "after a kill")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", NUMBERS.values(), ids=list(NUMBERS))
def test_any_operation_of_a_save_may_fail(
    tmp_path: Path, number: int, lasting: bool, case: str, record_property: Callable[[str, object], None]
) -> None:
    """A retry may heal a full disk, and removals may fail unnoticed; whatever is reported names path, and bytes for a full disk."""
    kinds: collections.Counter[str] = collections.Counter()
    at, reported = 0, 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        step = prepared(folder, case)
        before = checkpoint.load(checkpoint.latest(folder) or folder)[0]
        with Faults(folder, at, number, lasting) as faults:
            try:
                save(folder, step)
                failed = False
            except RunError as error:
                failed = True
                assert str(folder) in str(error) and os.strerror(number) in str(error) + " No space left on device"
                assert error.exit_code == (EXIT_DISK if number == errno.ENOSPC else 2)
                assert number != errno.ENOSPC or "400 bytes" in str(error)
        if faults.place is None:
            break
        kinds[faults.place[0]] += 1
        reported += failed
        newest = checkpoint.latest(folder, pytest.fail)
        assert newest is not None and good_steps(folder)
        if failed:
            assert int(newest.name[5:11]) == 10 or step == 20, "the old one was there"
            now = checkpoint.load(newest)[0]
            assert int(newest.name[5:11]) == step or all(now[p]["w" if p == "model" else "0.exp_avg"].equal(v)
                       for p, part in before.items() for v in part.values())  # fmt: skip
        else:
            assert newest.name == f"step-{step:06d}"
        save(folder, 30)  # the next start
        assert good_steps(folder) == [30] and temporaries(folder) == []
    assert {"open", "write", "fsync", "rename", "mkdir"} <= set(kinds), kinds
    assert at > 15 and reported >= (0 if number == errno.ENOSPC and not lasting else 10)
    record_property("faults in a save", at - 1)
    record_property("faults in a save, reported", reported)
    record_property("faults in a save, healed by the second try or only a removal", at - 1 - reported)


@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_operation_of_a_save(
    tmp_path: Path, case: str, record_property: Callable[[str, object], None]
) -> None:
    """SIGKILL at each operation in turn, systematically: no checkpoint under its own name is ever unreadable."""
    for at in range(1, 100):
        folder = tmp_path / str(at)
        step = prepared(folder, case)
        child = os.fork()
        if child == 0:
            with Faults(folder, at, None):
                save(folder, step)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert set(good_steps(folder)) <= {10, step} and good_steps(folder)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 7 and good_steps(folder) == [step]
            break
        save(folder, 30)
        assert good_steps(folder) == [30] and temporaries(folder) == []
    assert 20 < at < 99
    record_property("kills at an operation of a save", at - 1)


def test_a_full_disk_is_tried_again_without_what_the_dead_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    for number in range(2):
        (tmp_path / f".tmp-step-000005-{2**22 + 5 + number}").mkdir()
    (tmp_path / ".tmp-of-somebody").mkdir()
    calls, fill = [0], checkpoint._fill

    def full_once(*given: Any) -> None:
        calls[0] += 1
        fill(*given)
        if calls[0] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_fill", full_once)
    assert save(tmp_path, 20) == checkpoint.latest(tmp_path)
    assert calls == [2] and sorted(os.listdir(tmp_path)) == [".tmp-of-somebody", "step-000020"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3)).astype(np.uint8))
    return path


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    yield


def start(data: Path, out: Path) -> Path:
    return train("mae", data, out, "tiny", steps=3, set=["batch_size=4"], quiet=True)


@pytest.mark.usefixtures("every_step")
def test_any_operation_of_a_training_may_fail(
    data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The same for all files of a whole run: refused with a message that names the file, and continued by the same command."""
    with Faults(tmp_path / "whole") as faults:
        whole = start(data, tmp_path / "whole")
    places, kinds = len(faults.met), collections.Counter(kind for kind, _ in faults.met)
    assert places > 60 and {"open", "write", "fsync", "rename", "unlink", "mkdir"} <= set(kinds)
    silent = []
    for at in range(1, places + 1):
        out, number = tmp_path / str(at), list(NUMBERS.values())[at % 3]
        with Faults(out, at, number, lasting=at % 2 == 0) as faults:
            try:
                start(data, out)
                if number != errno.ENOSPC and faults.place is not None:
                    silent.append(faults.place)
            except RunError as error:
                assert str(out) in str(error), faults.place
                assert error.exit_code == (EXIT_DISK if number == errno.ENOSPC else 2), faults.place
        good_steps(out / "checkpoints")
        if (out / "lock.json").exists():  # where it cannot be removed the end of the process frees the run
            assert faults.place is not None and faults.place[1].endswith("lock.json"), faults.place
            (out / "lock.json").unlink()
        start(data, out)
        assert differing(out, whole) == [] and temporaries(out) == [] and not (out / "lock.json").exists(), faults.place
        assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes(), faults.place
    # In silence may fail only what removes things, and the making of a folder that is there. (A full disk may be free again
    # at the second try.)
    odd = [(kind, name) for kind, name in silent if kind not in ("unlink", "mkdir") and not (kind == "rename" and "step-" in name)]
    assert not odd
    record_property("faults in a training, each continued bit for bit", places)
