"""Settings shared by all tests: one thread, no network, a cache that is thrown away, no waiting for the disk, and the shared data."""

from __future__ import annotations

import os
import signal
import socket
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# huggingface_hub reads this once, when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from forked import Program
from selftaught.nets.torchvision_ops import make_torchvision_importable
from trained_runs import runs as runs  # a fixture

# A shell that starts the tests in the background ignores these, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

torch.set_num_threads(1)
make_torchvision_importable()

LONGEST = ("crash/test_continuation.py", "crash/test_ranks.py", "test_precision.py", "crash/test_kills.py", "test_odd_data.py",
           "crash/test_lost_state.py", "segmentation/test_move_video.py", "test_cluster.py", "crash/test_faults.py", "test_numbers.py",
           "test_learn.py", "test_learn_objects.py", "shape3d/test_shape_gan.py", "shape3d/test_unsup3d.py",
           "segmentation/test_move_finds.py", "representation/test_pretrained.py")  # fmt: skip
"""Files that take longest. Two that want `runs` do not begin together: one would wait for the other."""
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first: a worker that takes one of them when all else is done would leave the other idle."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point SELFTAUGHT_CACHE at a folder of this test session, so that no test reads or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFTAUGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing is forced onto the disk: no test cuts the power, and a save would wait for it longer than for all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses what fsync refuses
        yield


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return a function NAME -> folder of the shared data set NAME, which skips the test when it is not there."""

    def folder(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"shared data set {name!r} is not at {path.parent}")
        return path

    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """A function that lets `selftaught.loading.load` return its argument, whatever the run."""

    def install(learned: Any) -> None:
        fake = types.ModuleType("selftaught.loading")
        fake.load = lambda run: learned  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "selftaught.loading", fake)

    return install


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Program]]]:
    """A function (program and its arguments, number of processes, **environment) that starts processes as torchrun would."""
    started: list[Program] = []
    root = tmp_path_factory.mktemp("output")

    def start(arguments: list[str], world: int = 2, **environment: str) -> list[Program]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                  "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment}  # fmt: skip
        found = []
        for rank in range(world):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            found.append(Program(arguments, own, root / str(len(started))))
            started.append(found[-1])
        return found

    yield start
    for process in started:
        process.kill()
