"""Negative controls of exact continuation: whatever part of the state is lost, the continued run is another one."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from selftaught.core import checkpoint
from selftaught.method import Player
from selftaught.train import Loop, resume, train
from trained_runs import TRAINED, Runs, differing, newest

SETTLED = {"model.whitening", "model.part"}
"""What `Method.settle` fixes anew at the end: that its old values are lost must not show."""
FORGOTTEN = {f"optim.{player}.*.exp_avg" for player in ("discriminator", "critic", "maker")}
"""Moments with a momentum of 0: they are the last gradient, and the next step does not look at them."""
LOOP = sys.modules["selftaught.train"]
Tensors = dict[str, dict[str, Tensor]]


class Another(Exception):
    """A line of metrics differs from the straight run's: how this run ends need not be seen."""


def goes_on_the_same(runs: Runs, name: str, out: Path, change: Callable[[Tensors, dict[str, Any]], None]) -> bool:
    """Whether the run that was stopped at step 10, with something changed in its checkpoint, writes the metrics of the straight one and
    ends in the same state.
    """
    out.mkdir(parents=True)
    for path in (runs.halves / name).iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, out / path.name)
    tensors, state = newest(out)
    change(tensors, state)
    checkpoint.save(out / "checkpoints", 10, tensors, state, keep=1)
    straight, log = runs.straight / name, Loop.log
    lines = (straight / "metrics.jsonl").read_bytes()

    def compared(self: Loop, logged: dict[str, float]) -> None:
        log(self, logged)
        if not lines.startswith((out / "metrics.jsonl").read_bytes()):
            raise Another

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "log", compared)
        patch.setattr(LOOP, "load_method", lambda run: None)  # nobody looks at the pictures
        patch.setattr(LOOP, "draw_pictures", lambda *rest: None)
        try:
            resume(out, quiet=True)
        except Another:
            return False
    return not differing(out, straight) and newest(out)[1] == newest(straight)[1] and (out / "metrics.jsonl").read_bytes() == lines


def kind(part: str, name: str) -> str:
    """What a saved tensor is: an optimiser's entry by its name, a weight or buffer by the module that it lies in."""
    return f"{part}.*.{name.partition('.')[2]}" if part.startswith("optim") else f"{part}.{name.partition('.')[0]}"


@pytest.fixture(scope="module")
def beginnings(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tensors]:
    """A function: method name -> what its checkpoint holds before the first step."""
    root, made = tmp_path_factory.mktemp("beginnings"), dict[str, Tensors]()

    def beginning(name: str) -> Tensors:
        if name not in made:
            out = root / name
            train(name, runs.data, out, "tiny", steps=0, set=["batch_size=8"], need=runs.needs(name), quiet=True)
            made[name] = newest(out)[0]
        return made[name]

    return beginning


@pytest.mark.parametrize("name", TRAINED)
def test_every_kind_of_tensor_counts(
    runs: Runs, tmp_path: Path, name: str, beginnings: Callable[[str], Tensors]
) -> None:
    """Each kind of tensor that training has changed is put back to what it was before: all of the kind, then the largest.

    The largest, because buffers inside of an average are copied at each step, so that losing a small one may be healed.
    """
    half = newest(runs.halves / name)[0]
    assert goes_on_the_same(runs, name, tmp_path / "nothing", lambda tensors, state: None)
    changed: dict[str, list[tuple[str, str, Tensor]]] = {}
    for part, tensors in half.items():
        for key, value in tensors.items():
            before = beginnings(name).get(part, {}).get(key, value.new_zeros(value.shape))
            if not value.equal(before) and kind(part, key) not in SETTLED | FORGOTTEN:
                changed.setdefault(kind(part, key), []).append((part, key, before))
    moments = {kind(part, key) for part, tensors in half.items() for key in tensors if key.endswith(".exp_avg")}
    expected = {"exp_avg_sq", "step"} | ({"exp_avg"} if moments - FORGOTTEN else set())
    assert expected <= {k.rpartition(".")[2] for k in changed}
    blind = []
    for number, (what, entries) in enumerate(changed.items()):
        for lost in (entries, [max(entries, key=lambda entry: entry[2].numel())]):

            def forget(tensors: Tensors, state: dict[str, Any], lost: list[tuple[str, str, Tensor]] = lost) -> None:
                for part, key, before in lost:
                    tensors[part][key] = before.clone()

            if goes_on_the_same(runs, name, tmp_path / f"{number}-{len(lost)}-{lost is entries}", forget):
                blind.append((what, len(lost)))
    assert not blind
    print(f"{name}: {len(changed)} kinds of tensors: {', '.join(changed)}")


def at_step(number: int) -> Callable[[Tensors, dict[str, Any]], None]:
    def change(tensors: Tensors, state: dict[str, Any]) -> None:
        state["step"] = number

    return change


def without_verdict(tensors: Tensors, state: dict[str, Any]) -> None:
    state["collapse"] = {"points": 0, "history": {}}


def other_rates(tensors: Tensors, state: dict[str, Any]) -> None:
    for optimizer in state["optimizers"].values():
        for group in optimizer["groups"]:
            group["weight_decay"] = group["weight_decay"] / 2 + 0.01


@pytest.mark.parametrize("change", [at_step(9), at_step(0), without_verdict, other_rates])
@pytest.mark.parametrize("name", TRAINED)
def test_every_counter_counts(
    runs: Runs, tmp_path: Path, name: str, change: Callable[[Tensors, dict[str, Any]], None]
) -> None:
    assert not goes_on_the_same(runs, name, tmp_path / "run", change)


@pytest.mark.parametrize("name", TRAINED)
def test_the_schedule_counts(runs: Runs, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that starts again at the resume is noticed."""
    rate = Player.lr_at
    monkeypatch.setattr(
        Player, "lr_at", lambda self, progress: rate(self, dataclasses.replace(progress, step=progress.step - 10))
    )
    assert not goes_on_the_same(runs, name, tmp_path / "run", lambda tensors, state: None)


@pytest.mark.parametrize("name", TRAINED)
def test_the_random_numbers_and_the_order_count(
    runs: Runs, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attribute in ("seed_all", "batch_indices"):
        with monkeypatch.context() as patch:
            real = getattr(LOOP, attribute)
            # seed_all(seed, rank, step) and batch_indices(n, batch, seed, step): the step comes last
            patch.setattr(LOOP, attribute, lambda *given, real=real: real(*given[:-1], max(given[-1] - 10, 0)))
            assert not goes_on_the_same(runs, name, tmp_path / attribute, lambda tensors, state: None), attribute
