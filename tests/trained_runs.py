"""Every method trained once straight through and once with a stop and a new process between: what several tests look at."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught import registry
from selftaught.core import checkpoint
from selftaught.data.cache import only_one
from selftaught.nets.torchvision_ops import make_torchvision_importable
from selftaught.train import train

torch.set_num_threads(1)
make_torchvision_importable()

METHODS = list(registry.methods())


def needs_at_tiny(name: str) -> Mapping[str, str]:
    """What a method makes use of at size tiny -> the method that is trained for it."""
    cls = registry.load_class(name)
    return cls.needs_of(cls.sizes["tiny"])


NEEDY = [name for name in METHODS if needs_at_tiny(name)]
TRAINED = [name for name in METHODS if registry.load_class(name).sizes["tiny"].steps]
SMALL = ["batch_size=8"]
STOP = """
import os, signal, sys, torch
os.fsync = os.fstat
torch.set_num_threads(1)
from selftaught.nets.torchvision_ops import make_torchvision_importable
make_torchvision_importable()
from selftaught import cli
from selftaught.train import Loop
log = Loop.log
def log_and_stop(self, logged):
    log(self, logged)
    if self.step == 10:
        os.kill(os.getpid(), signal.SIGTERM)
if os.environ.get("STOP") == "1":
    Loop.log = log_and_stop
codes = {}
for line in sys.stdin.read().splitlines():
    name, *arguments = line.split("\\t")
    try:
        cli.main(arguments)
        codes[name] = 0
    except SystemExit as stop:
        codes[name] = stop.code
print("CODES", codes)
"""


def in_new_process(commands: dict[str, list[str]], stop: bool) -> dict[str, int]:
    """Run `selftaught` commands one after the other in a new process, stopped at step 10; name -> exit code."""
    text = "".join("\t".join([name, *arguments]) + "\n" for name, arguments in commands.items())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STOP": "1" if stop else "0"}
    done = subprocess.run(
        [sys.executable, "-c", STOP], input=text, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    codes: dict[str, int] = ast.literal_eval(done.stdout.rpartition("CODES ")[2])
    return codes


@dataclass
class Runs:
    """Every method trained straight through, and again with a stop and a new process in between."""

    data: Path
    straight: Path
    stopped: Path
    halves: Path
    """Copies of the stopped runs as they were before they went on."""
    codes: dict[str, int]

    def needs(self, name: str) -> list[str]:
        # DINO's patches are few at size tiny, which makes the cuts quick.
        found = {need: "dino" if need == "features" else default for need, default in needs_at_tiny(name).items()}
        return [f"{need}={self.straight / method}" for need, method in found.items()]


def structured_noise(count: int, px: int = 32, seed: int = 0) -> np.ndarray:
    """(N, px, px, 3) uint8: coloured noise with a brighter block."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, px, px, 3)).astype(np.uint8)
    for image in images:
        y, x = rng.integers(2, px // 2, 2)
        image[y : y + px // 3, x : x + px // 3] += rng.integers(60, 130, 3).astype(np.uint8)
    return images


def as_clips(images: np.ndarray, frames: int = 4) -> np.ndarray:
    """(N, T, H, W, 3) from pictures (N, H, W, 3): each moves to the right by one pixel per frame."""
    return np.stack([np.roll(images, t, axis=2) for t in range(frames)], 1)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Made by the first of the workers that needs them, for all; so nobody may change them."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with only_one(base / "runs.lock"):
        if not (base / "runs.json").exists():
            root = tmp_path_factory.mktemp("runs")
            (base / "runs.json").write_text(json.dumps([str(root), trained(root)]))
    root_, codes = json.loads((base / "runs.json").read_text())
    return at(Path(root_), codes)


def at(root: Path, codes: dict[str, int]) -> Runs:
    return Runs(root / "data.npz", root / "straight", root / "stopped", root / "halves", codes)


def trained(root: Path) -> dict[str, int]:
    """Train all there is below a folder; the exit codes of those that were stopped."""
    images = structured_noise(40)
    made = at(root, {})
    np.savez(made.data, images=images, clips=as_clips(images))
    commands: dict[str, list[str]] = {}
    for name in sorted(METHODS, key=lambda n: n in NEEDY):
        train(name, made.data, made.straight / name, size="tiny", set=SMALL, need=made.needs(name), quiet=True)
        commands[name] = ["train", name, str(made.data), "--out", str(made.stopped / name), "--size", "tiny", "--quiet",
                          "--set", SMALL[0]]  # fmt: skip
        for need in made.needs(name):
            commands[name] += ["--need", need]
    stopped = in_new_process(commands, stop=True)
    shutil.copytree(made.stopped, made.halves)
    codes = in_new_process({name: ["resume", str(made.stopped / name)] for name in METHODS}, stop=False)
    assert set(codes.values()) == {0}, codes
    return stopped


def newest(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None
    return checkpoint.load(folder)


def differing(a: Path, b: Path) -> list[str]:
    """Names of the tensors in which the newest checkpoints of two runs differ by a bit."""
    (first, _), (second, _) = newest(a), newest(b)
    assert first.keys() == second.keys()
    names = []
    for part in first:
        assert first[part].keys() == second[part].keys()
        names += [f"{part}.{k}" for k, v in first[part].items() if v.numpy().tobytes() != second[part][k].numpy().tobytes()]
    return names
