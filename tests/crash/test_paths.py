"""Odd paths and clocks: works, or is refused clearly; and temporary folders lie beside what they become."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from killing import LOOP, equal, write_data

from selftaught import cli
from selftaught.core.errors import RunError
from selftaught.loading import load
from selftaught.train import resume, train
from trained_runs import differing

NAMES = {
    "spaces": "my run  1 ",
    "quotes": "it's \"$HOME\" `x`; & *",
    "markup": "[bold]{0} %s %n",
    "line break": "two\nlines",
    "tab": "a\tb",
    "other letters": "Übung-学習-обучение-🦆",
    "combining": "e\u0301\u202e",
    "255 bytes": "n" * 255,
    "255 bytes in 85 letters": "学" * 85,
    "no UTF-8": os.fsdecode(b"\xff\xfe-run"),
    "dash": "-run",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paths")
    start(write_data(root / "data.npz"), root / "whole")
    return root / "whole"


def start(data: Path, out: Path) -> Path:
    return train("mae", data, out, "tiny", steps=4, set=["batch_size=4"], quiet=True)


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_any_name_will_do(whole: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """For the run and for the folder of its data; the command line prints it, and resumes."""
    try:
        (tmp_path / name).mkdir()
    except OSError as error:
        pytest.skip(f"this file system cannot hold the name: {error.strerror}")
    shutil.copy(whole.parent / "data.npz", tmp_path / name / "data.npz")
    run = tmp_path / "runs" / name
    cli.main(["train", "mae", str(tmp_path / name / "data.npz"), f"--out={run}", "--size", "tiny", "--steps", "4",
              "--set", "batch_size=4"])  # fmt: skip
    cli.main(["resume", str(run)])
    assert equal_but_config(whole, run)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "mae", str(tmp_path / name / "data.npz"), f"--out={run}", "--size", "tiny", "--steps", "5"])
    assert stop.value.code == 2 and "holds another run" in capfd.readouterr().err
    assert "embed" in load(run).capabilities


def equal_but_config(first: Path, second: Path) -> bool:
    """config.json names the data, which lie elsewhere."""
    shutil.copy(first / "config.json", second / "kept.json")
    os.rename(second / "config.json", second.parent / "config.json")
    os.rename(second / "kept.json", second / "config.json")
    try:
        return equal(first, second)
    finally:
        os.replace(second.parent / "config.json", second / "config.json")


@pytest.mark.parametrize("name", ["n" * 256, "学" * 86, "a/" * 2100 + "b"])
def test_a_name_that_cannot_be_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="File name too long"):
        start(whole.parent / "data.npz", tmp_path / name)
    with pytest.raises(RunError, match="is no run folder"):
        resume(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_links_are_followed(whole: Path, tmp_path: Path) -> None:
    data = whole.parent / "data.npz"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "above").symlink_to(tmp_path)
    assert equal(whole, start(data, tmp_path / "link"))
    assert equal(whole, resume(tmp_path / "above" / "real", quiet=True))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "config.json").exists()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(RunError, match=r"Cannot write .*nowhere"):
        start(data, tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(RunError, match="round"):
        start(data, tmp_path / "round")


def test_temporary_folders_are_siblings_on_the_same_device(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename is only whole within one file system, also when the checkpoints are linked to another one."""
    elsewhere = next((p for p in (Path("/dev/shm"), Path("/var/tmp")) if os.access(p, os.W_OK)), tmp_path)
    far = elsewhere / f"selftaught-test-{os.getpid()}"
    far.mkdir()
    run, seen = tmp_path / "run", list[tuple[str, str]]()
    (run / "needs").mkdir(parents=True)

    def watched(real: Any) -> Any:
        def call(source: Any, target: Any) -> None:
            a, b = (os.path.dirname(os.path.realpath(p)) for p in (source, target))
            assert a == b and os.lstat(source).st_dev == os.stat(b).st_dev, (source, target)
            seen.append((str(source), str(target)))
            real(source, target)

        return call

    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    try:
        (tmp_path / "first").mkdir()
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, watched(getattr(os, name)))
        assert equal(whole, start(whole.parent / "data.npz", run))
        near, seen[:] = len(seen), []
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").symlink_to(far)
        assert differing(whole, start(whole.parent / "data.npz", run)) == []
        assert sorted(p.name for p in far.iterdir()) == ["step-000003", "step-000004"]
        assert near >= 8 and len(seen) >= 6 and any("step-000004" in target for _, target in seen)
    finally:
        shutil.rmtree(far)


def test_a_clock_that_jumps_changes_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + draw.uniform(-1e9, 1e9))
    monkeypatch.setattr(time, "gmtime", lambda *given, gmtime=time.gmtime: gmtime(draw.uniform(0, 4e9)))
    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    run = start(whole.parent / "data.npz", tmp_path / "run")
    assert equal(whole, run)
    for path in run.rglob("*"):  # files from the future and from long ago
        moment = draw.uniform(0, 4e9)
        os.utime(path, (moment, moment))
    newest = max((run / "checkpoints").iterdir())
    (newest / "state.json").write_bytes(b"")
    assert equal(whole, resume(run, quiet=True)), "the one before is found by its step, not by its time"
