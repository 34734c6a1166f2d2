"""Settings shared by all tests: one thread, no network, a cache that is thrown away, and the shared data."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# huggingface_hub reads this once, when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from selftaught.nets.torchvision_ops import make_torchvision_importable
from trained_runs import runs as runs  # a fixture

# A shell that starts the tests in the background ignores these, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

torch.set_num_threads(1)
make_torchvision_importable()

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point SELFTAUGHT_CACHE at a folder of this test session, so that no test reads or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFTAUGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
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
