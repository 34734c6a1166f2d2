"""bf16 autocast against float32: the stated tolerance, for every method that is trained.

Loss within 2 %, direction of the gradient within a cosine of 0.97, and the loss at the end of 20 steps within 10 %.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selftaught import registry
from selftaught.core.config import write_json
from selftaught.core.tune import Plan
from selftaught.train import Loop, train
from trained_runs import as_clips

TRAINED = [name for name in registry.methods() if registry.load_class(name).sizes["tiny"].steps]
LOSS_REL, GRADIENT_COSINE, END_REL = 0.02, 0.97, 0.1
FEWER = {"move": 8, "move_video": 4, "glass": 4, "lapo": 8}
"""Pictures or clips of a step where it is not 32: bf16 convolutions are slow where the processor has none. Less is averaged, too."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.random((32, 3, 5, 5), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear").permute(0, 2, 3, 1).numpy()
    images = (255 * smooth).astype(np.uint8)
    np.savez(path, images=images, clips=as_clips(images))
    return path


@pytest.fixture(scope="module")
def given(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a method may need, already learned: name -> "name=RUN"."""
    root = tmp_path_factory.mktemp("given")

    def run(name: str, method: str, need: tuple[str, ...] = ()) -> str:
        return f"{name}={train(method, data, root / name, size='tiny', steps=2, set=['batch_size=8'], need=need, quiet=True)}"

    features = run("features", "simclr")
    pose = run("pose", "unsup3d")
    others = {"pose": pose, "generator": run("generator", "shape_gan", (pose,))}
    return {"features": features, "masks": run("masks", "tokencut", (features,)), "inpainter": run("inpainter", "mae")} | others


def learn(name: str, data: Path, given: dict[str, str], out: Path, precision: str) -> tuple[list[float], torch.Tensor, str]:
    """Train for 20 steps; returns the losses, the gradient of the first step (one vector) and the log."""
    gradients: list[torch.Tensor] = []
    move = Loop.move

    def watched(self: Loop, player: str, *args: Any) -> dict[str, float]:
        logged = move(self, player, *args)
        if not gradients:
            grads = [p.grad for _, p in self.players[player].parameters if p.grad is not None]
            assert all(g.dtype == torch.float32 for g in grads)
            gradients.append(torch.cat([g.flatten() for g in grads]))
        return logged

    write_json(out / "plan.json", asdict(Plan(precision, reason="the test")))
    cls = registry.load_class(name)
    need = [given[what] for what in cls.needs_of(cls.sizes["tiny"])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "move", watched)
        train(name, data, out, size="tiny", set=[f"batch_size={FEWER.get(name, 32)}"], need=need, quiet=True)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return losses, gradients[0], (out / "log.txt").read_text()


@pytest.mark.parametrize("name", TRAINED)
def test_bf16_stays_within_the_stated_tolerance(name: str, data: Path, given: dict[str, str], tmp_path: Path) -> None:
    full, gradient, _ = learn(name, data, given, tmp_path / "fp32", "fp32")
    half, gradient_half, log = learn(name, data, given, tmp_path / "bf16", "bf16")
    assert "computed in bf16: the test" in log and "not finite" not in log
    assert full != half, "bf16 was on"
    assert len(half) == 20 and half[0] == pytest.approx(full[0], rel=LOSS_REL)
    cosine = float(torch.nn.functional.cosine_similarity(gradient, gradient_half, dim=0))
    assert cosine > GRADIENT_COSINE, cosine
    assert np.mean(half[-5:]) == pytest.approx(np.mean(full[-5:]), rel=END_REL)
    print(name, f"loss {abs(half[0] / full[0] - 1):.2%}, cosine {cosine:.4f}, end {abs(np.mean(half[-5:]) / np.mean(full[-5:]) - 1):.2%}")
