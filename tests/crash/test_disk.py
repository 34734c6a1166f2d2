"""A small disk that fills up, a read-only one, one that tells nothing about its space; and what saving costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from killing import LOOP
from torch import Tensor

from selftaught.core import checkpoint
from selftaught.core.errors import EXIT_DISK, EXIT_USAGE
from selftaught.registry import load_class
from selftaught.train import Loop
from trained_runs import TRAINED

HERE = Path(__file__).parent
IN_NAMESPACE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount -t tmpfs -o size=8m tmpfs "$1" && '


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What small_disk.py saw; the mount lives and ends with its process."""
    root = tmp_path_factory.mktemp("disk")
    disk, other = root / "disk", root / "other"
    disk.mkdir()
    other.mkdir()
    if shutil.which("unshare") is None or subprocess.run([*IN_NAMESPACE, MOUNT + "true", "sh", disk], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system (unshare --mount, mount -t tmpfs)")
    script = MOUNT + 'exec "$2" "$3" "$1" "$4"'
    done = subprocess.run(
        [*IN_NAMESPACE, script, "sh", disk, sys.executable, HERE / "small_disk.py", other],
        capture_output=True, text=True, timeout=580, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.rpartition("TOLD ")[2])
    return found


def test_a_disk_that_fills_up_while_saving(told: dict[str, Any]) -> None:
    assert told["whole"][0] == 0
    code, text = told["full"]
    assert code == EXIT_DISK and "The disk is full" in text and "step-000004" in text and " bytes " in text
    assert "Traceback" not in text and "Free some space" in text
    assert told["checkpoints"] == {"step-000002": [], "step-000003": []}


def test_a_disk_that_stays_full(told: dict[str, Any]) -> None:
    code, text = told["still full"]
    assert code == EXIT_DISK and "The disk is full" in text and "Traceback" not in text
    assert told["after that"] == told["checkpoints"]


def test_after_space_is_freed_it_is_the_same_run(told: dict[str, Any]) -> None:
    assert told["freed"][0] == 0, told["freed"]
    assert told["equal"] and told["litter"] == []


def test_a_read_only_disk_is_refused_and_read(told: dict[str, Any]) -> None:
    for case in ("read-only", "read-only, the same run"):
        code, text = told[case]
        assert code == EXIT_USAGE and "cannot be written" in text and "read-only" in text and "Traceback" not in text
    assert told["untouched"] and told["loads"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    from selftaught.core.errors import RunError
    from selftaught.run_folder import refuse_folder

    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RunError, match="cannot be written"):
            refuse_folder(tmp_path / "run", {})
    finally:
        tmp_path.chmod(0o755)


def test_a_file_system_that_tells_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(total=0, free=0))
    assert checkpoint.verify(checkpoint.save(tmp_path, 1, {}, {})) == []


def small(name: str) -> Any:
    cls = load_class(name)
    config = cls.sizes["small"]
    return cls(config, {need: small(method) for need, method in cls.needs_of(config).items()})


@pytest.mark.parametrize("name", TRAINED)
def test_saving_costs_little_at_size_small(name: str, tmp_path: Path) -> None:
    """Below 5 % at the default interval of a minute, all with the second moments that an optimiser has."""
    method = small(name)
    weights = dict(method.state_dict())
    moments = {f"{i}.{k}": p for i, p in enumerate(method.parameters()) for k in ("exp_avg", "exp_avg_sq") if p.requires_grad}
    tensors: dict[str, dict[str, Tensor]] = {"model": weights, "optim": moments}
    seconds = []
    for step in range(3):
        begin = time.monotonic()
        checkpoint.save(tmp_path, step, tensors, {})
        seconds.append(time.monotonic() - begin)
    size = sum(t.nbytes for part in tensors.values() for t in part.values())
    share = min(seconds) / LOOP.SAVE_EVERY_S
    print(f"{name}: {size / 1e6:.1f} MB saved in {min(seconds):.3f} s, {share:.2%} of {LOOP.SAVE_EVERY_S:.0f} s")
    assert share < LOOP.SAVE_FRAC


@pytest.mark.parametrize(("save_s", "interval_s"), [(0.0, 60.0), (2.9, 60.0), (6.0, 120.0), (60.0, 1200.0)])
def test_where_saving_is_slow_it_is_rarer(save_s: float, interval_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that saving takes at most 5 % of the time, however large the model and slow the disk."""
    for after_s, due in ((interval_s - 0.01, False), (interval_s + 0.01, True)):
        monkeypatch.setattr(LOOP.time, "monotonic", lambda after_s=after_s: 1000.0 + after_s)
        assert Loop.save_due(SimpleNamespace(saved_at=1000.0, save_s=save_s)) == due  # type: ignore[arg-type]
    assert save_s / interval_s <= LOOP.SAVE_FRAC
