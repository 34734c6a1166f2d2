"""A number that goes wrong on one of two processes: no rank takes the step, and the rank where it arose keeps a capture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from forked import Program
from selftaught.core import capture, checkpoint

# Rank 1 breaks step 1 by its loss (its gradients are finite) and step 3 by a gradient; rank 0 breaks step 5 by a buffer.
WORKER = """
import os, sys
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from selftaught.representation.simclr import SimCLR
from selftaught.train import Loop, train
rank, data, out = int(os.environ["RANK"]), sys.argv[1], sys.argv[2]
loss, finish = SimCLR.loss, Loop.finish

def spoiled(self, batch, player, progress):
    total, parts = loss(self, batch, player, progress)
    first = next(self.parameters())
    if (rank, progress.step) == (1, 1):
        total = total + float("nan")
    if (rank, progress.step) == (1, 3):
        first = first * 1
        first.register_hook(lambda g: g * float("nan"))
        total = total + 0 * first.sum()
    if (rank, progress.step) == (0, 5):
        next(self.buffers()).view(-1)[0] = float("inf")
    return total, parts

def finished(self):
    save_file({k: v.clone().contiguous() for k, v in self.method.named_parameters()}, f"{out}-{rank}.safetensors")
    with open(f"{out}-{rank}.txt", "w") as file:
        file.write(f"{self.step} {self.skips} {self.skips_in_row}")
    finish(self)

SimCLR.loss, Loop.finish = spoiled, finished
train("simclr", data, out, size="tiny", steps=6, set=["batch_size=8"], quiet=True)
"""


@pytest.fixture(scope="module")
def run(start_ranks: Callable[..., list[Program]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of six steps on two processes."""
    root = tmp_path_factory.mktemp("ranks")
    np.savez(root / "data.npz", images=np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8))
    (root / "worker.py").write_text(WORKER)
    for process in start_ranks([str(root / "worker.py"), str(root / "data.npz"), str(root / "run")]):
        assert process.wait(timeout=300) == 0, process.communicate(timeout=0)[-3000:]
    return root / "run"


def test_both_ranks_leave_the_same_steps_out(run: Path) -> None:
    from safetensors.torch import load_file

    for rank in range(2):
        assert run.with_name(f"run-{rank}.txt").read_text() == "6 3 1"
    first, second = (load_file(run.with_name(f"run-{rank}.safetensors")) for rank in range(2))
    assert all(torch.isfinite(v).all() and torch.equal(v, second[k]) for k, v in first.items())
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None
    assert all(torch.isfinite(v).all() for part in checkpoint.load(folder)[0].values() for v in part.values())
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(steps) == {1, 3, 5}


def test_the_rank_where_it_arose_keeps_the_capture(run: Path) -> None:
    captures = sorted(str(p.parent.relative_to(run / "captures")) for p in (run / "captures").rglob("manifest.json"))
    # An averaged gradient no longer tells which rank it came from, so both keep step 3.
    assert captures == ["rank-1/step-000001", "rank-1/step-000003", "step-000003", "step-000005"]
    tensors, info = capture.read(run / "captures" / "rank-1" / "step-000001")
    assert (info["rank"], info["world"], info["offender"], info["loss"]) == (1, 2, "loss", "nan")
    assert tensors["batch"]["indices"].shape == (8,), "the batch of all processes"
    _, info = capture.read(run / "captures" / "step-000005")
    assert info["offender"].startswith("buffer ")
