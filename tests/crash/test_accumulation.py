"""A batch in k pieces gives the gradients of the whole batch, for every method without statistics over the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from selftaught.train import Loop, train
from trained_runs import TRAINED, Runs

BATCH, PIECES = 24, 3
OVER_THE_BATCH = {
    "simclr": "the pictures of a batch are each other's negatives",
    "selfmask": "the corrected masks of a batch together cover what its pseudo-masks cover",
    "viewpoint": "weights of pictures, how sure their angles are, are divided by their sum over the batch",
    "unsup3d": "errors are means over all pixels of the batch that an explanation reaches",
}
WITHOUT = {"shape_autoencoder": ["spread_weight=0"]}
"""Terms over the batch that can be switched off, so that all others are held to the bar: how evenly the hypotheses are used."""
ROUNDING = {"glass": 3e-6, "shape_autoencoder": 3e-6, "move": 1e-5, "move_video": 3e-5}
"""Where sums of large terms of both signs round more; the tests of `move` and `move_video` hold the same to 1e-12 in double precision."""


class OneDraw(TorchFunctionMode):
    """Gives each piece of a batch the random numbers that its pictures get in the whole batch.

    Whatever is drawn at `piece` pictures is drawn at BATCH pictures instead, and cut. Every `restart` begins the stream anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size, self.first = BATCH, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in (torch.rand, torch.randn, torch.randint, torch.randperm) or self.size == BATCH:
            return function(*args, **(kwargs or {}))
        listed = next((i for i, a in enumerate(args) if isinstance(a, (tuple, list))), None)
        shape = list(args if listed is None else args[listed])
        if self.size not in shape:
            raise AssertionError(f"{function.__name__}{args} draws something else than one number per picture")
        axis = shape.index(self.size)
        shape[axis] = BATCH
        given = shape if listed is None else [*args[:listed], shape, *args[listed + 1 :]]
        return function(*given, **(kwargs or {})).narrow(axis, self.first, self.size)


def gradients(runs: Runs, name: str, out: Path, pieces: int) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients and logged numbers of the second step, whose weights, averages and centres come from the same first one."""
    draw, found = OneDraw(), list[Tensor]()
    logged: dict[str, float] = {}
    compute, move = Loop.compute, Loop.move
    state: dict[str, Any] = {"piece": 0, "random": torch.get_rng_state()}

    def computed(self: Loop, player: str, indices: Any, progress: Any) -> Any:
        if state["piece"] == 0:
            state["random"] = torch.get_rng_state()
        torch.set_rng_state(state["random"])
        draw.size, draw.first = len(indices), state["piece"] * len(indices)
        state["piece"] = (state["piece"] + 1) % self.job.config.accumulate
        with draw:
            return compute(self, player, indices, progress)

    def moved(self: Loop, player: str, *rest: Any) -> dict[str, float]:
        parts = move(self, player, *rest)
        found[:] = [p.grad.clone() for _, p in self.players[player].parameters if p.grad is not None]
        logged.update(parts)
        return parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "compute", computed)
        patch.setattr(Loop, "move", moved)
        settings = [f"batch_size={BATCH}", f"accumulate={pieces}", "warmup_frac=0", "lr=1e-6", *WITHOUT.get(name, [])]
        train(name, runs.data, out, "tiny", steps=2, set=settings, need=runs.needs(name), quiet=True)
    return found, logged


def relative(first: list[Tensor], second: list[Tensor]) -> float:
    """|a - b| / |a| over all gradients."""
    gap = sum(float((a - b).double().square().sum()) for a, b in zip(first, second, strict=True))
    return (gap / sum(float(a.double().square().sum()) for a in first)) ** 0.5


@pytest.fixture(autouse=True)
def fixed_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms take their running statistics, so that what is left over the batch is the method's own."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "forward", forward)


@pytest.mark.parametrize("name", TRAINED)
def test_pieces_of_a_batch_are_the_batch(runs: Runs, tmp_path: Path, name: str) -> None:
    whole, first = gradients(runs, name, tmp_path / "whole", 1)
    parts, second = gradients(runs, name, tmp_path / "parts", PIECES)
    difference = relative(whole, parts)
    print(f"{name}: gradients of {PIECES} pieces differ by {difference:.1e}")
    if name in OVER_THE_BATCH:
        assert difference > 1e-4, f"{name} has no statistics over the batch any more: hold it to the bar"
        return
    assert difference < ROUNDING.get(name, 1e-6)
    losses = [key for key in first if key.rpartition("/")[2] == "loss"]
    assert losses and all(first[key] == pytest.approx(second[key], rel=ROUNDING.get(name, 1e-6)) for key in losses)


def test_another_weighing_of_the_pieces_is_noticed(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = gradients(runs, "mae", tmp_path / "whole", 1)
    compute = Loop.compute

    def uneven(self: Loop, player: str, indices: Any, progress: Any) -> Any:
        total, parts = compute(self, player, indices, progress)
        return total * (1.001 if self.job.config.accumulate > 1 and indices[0] % 2 else 1), parts

    monkeypatch.setattr(Loop, "compute", uneven)
    assert relative(whole, gradients(runs, "mae", tmp_path / "parts", PIECES)[0]) > 1e-5
