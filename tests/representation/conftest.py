"""What the tests of all representation methods share: pictures, and a few steps of training without the loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.method import Method, Progress


@pytest.fixture
def pictures() -> Tensor:
    """(8, 3, 32, 32) uint8: smooth colours with some noise."""
    draw = torch.Generator().manual_seed(5)
    coarse = torch.rand(8, 3, 4, 4, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    return ((0.8 * smooth + 0.2 * torch.rand(8, 3, 32, 32, generator=draw)) * 255).to(torch.uint8)


@pytest.fixture
def train_steps(pictures: Tensor) -> Callable[..., list[float]]:
    """A function (method, steps=3) -> losses that trains by the contract of `Method` alone."""

    def run(method: Method, steps: int = 3) -> list[float]:
        torch.manual_seed(0)
        players = method.players()
        optimizers = {name: player.build_optimizer() for name, player in players.items()}
        method.train()
        losses = []
        for step in range(steps):
            progress = Progress(step, steps)
            for name, player in players.items():
                batch = method.prepare(pictures, np.arange(len(pictures)))
                loss, parts = method.loss(batch, name, progress)
                assert all(np.isfinite(value) for value in parts.values()), parts
                optimizers[name].zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                for group in optimizers[name].param_groups:
                    group["lr"] = player.lr_at(progress)
                optimizers[name].step()
                losses.append(float(loss.detach()))
            method.after_step(progress)
        return losses

    return run
