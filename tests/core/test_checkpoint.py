"""A checkpoint is whole or not there, and an optimiser comes back bit for bit.

Faults at every operation, and every bit, are in ../crash/test_faults.py and test_damage.py.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftaught.core import checkpoint
from selftaught.core.errors import RunError

FILES = ("model.safetensors", "optim.safetensors", "state.json", "manifest.json")


def _tensors(value: float = 1.0) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"w": torch.full((4, 3), value), "b": torch.arange(3.0)},
        "optim": {"0.step": torch.tensor(value), "0.exp_avg": torch.rand(4, 3)},
    }


def _save(folder: Path, *steps: int, keep: int = 2) -> Path:
    for step in steps:
        path = checkpoint.save(folder, step, _tensors(float(step)), {"step": step, "best": float("inf")}, keep=keep)
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    wide = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tied = torch.rand(5)
    model = {
        "wide": wide,
        "tied_a": tied,
        "tied_b": tied,
        "view": torch.arange(10)[2:5],
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor(True),
        "half": torch.rand(3).bfloat16(),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    path = checkpoint.save(tmp_path, 12, {"model": model, "none": {}}, {"epoch": 3, "best": float("inf")})
    assert path.name == "step-000012"
    assert _names(path) == ["manifest.json", "model.safetensors", "none.safetensors", "state.json"]
    tensors, state = checkpoint.load(path)
    assert state == {"epoch": 3, "best": float("inf")}
    assert tensors["none"] == {} and set(tensors["model"]) == set(model)
    for name, tensor in model.items():
        read = tensors["model"][name]
        assert read.dtype == tensor.dtype and read.shape == tensor.shape
        assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8))


def test_the_newest_is_found_and_the_newest_two_stay(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None
    _save(tmp_path, 5, 999_999, 9, 1_000_000)
    assert _names(tmp_path) == ["step-1000000", "step-999999"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-1000000"


def _truncate(data: bytes) -> bytes:
    return data[:-1]


def _flip(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [_truncate, _flip, _empty, None])
def test_damage_is_named_and_the_one_before_is_used(
    name: str, damage: Callable[[bytes], bytes] | None, tmp_path: Path
) -> None:
    newest = _save(tmp_path, 10, 20)
    path = newest / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    problems = checkpoint.verify(newest)
    assert len(problems) == 1 and problems[0].startswith(f"{name}: ")
    heard: list[str] = []
    assert checkpoint.latest(tmp_path, heard.append) == tmp_path / "step-000010"
    assert len(heard) == 1 and name in heard[0] and "step-000020" in heard[0]
    with pytest.raises(RunError, match=name):
        checkpoint.load(newest)


@pytest.mark.parametrize(
    "manifest",
    [
        {"schema": 2, "step": 10, "files": {}},
        {"schema": 1, "step": 11, "files": None},
        {"schema": 1, "step": 10, "files": {"state.json": 3}},
        {"schema": 1, "step": 10, "files": {"state.json": {"size": 0}}},
        {"schema": 1, "step": 10, "files": {}},
        {"schema": 1},
    ],
)
def test_a_made_up_manifest_is_refused(manifest: dict[str, Any], tmp_path: Path) -> None:
    newest = _save(tmp_path, 10)
    (newest / "manifest.json").write_bytes(checkpoint._manifest_bytes(manifest))
    assert checkpoint.verify(newest)[0].startswith("manifest.json: ")


def test_a_manifest_reaches_no_other_folder(tmp_path: Path) -> None:
    newest = _save(tmp_path, 10)
    files = {"state.json": checkpoint._write(newest / "state.json", b"{}"), "../secret": {"size": 1, "sha256": ""}}
    text = checkpoint._manifest_bytes({"schema": 1, "step": 10, "files": files})
    (newest / "manifest.json").write_bytes(text)
    assert checkpoint.verify(newest) == ["../secret: a checkpoint holds no folders"]


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, 10).rename(tmp_path / "step-000099")
    assert checkpoint.latest(tmp_path, lambda text: None) is None


def test_bad_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot name a file"):
        checkpoint.save(tmp_path, 1, {"../up": {}}, {})
    assert _names(tmp_path) == []


def test_the_same_step_again_replaces_and_damaged_ones_go(tmp_path: Path) -> None:
    _save(tmp_path, 10, 20)
    (tmp_path / "step-000020" / "state.json").write_bytes(b"")
    _save(tmp_path, 15)
    assert _names(tmp_path) == ["step-000010", "step-000015"]
    checkpoint.save(tmp_path, 15, _tensors(77.0), {})
    assert _names(tmp_path) == ["step-000010", "step-000015"]
    assert float(checkpoint.load(tmp_path / "step-000015")[0]["model"]["w"][0, 0]) == 77.0


def test_keep_one_never_deletes_the_new_for_a_damaged_newer_one(tmp_path: Path) -> None:
    _save(tmp_path, 20)
    (tmp_path / "step-000020" / "manifest.json").unlink()
    _save(tmp_path, 15, keep=1)
    assert _names(tmp_path) == ["step-000015"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = _save(tmp_path, 20)
    path.rename(tmp_path / "step-000020.old")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000020.old"
    assert checkpoint.load(tmp_path / "step-000020.old")[1]["step"] == 20
    _save(tmp_path, 20)
    assert _names(tmp_path) == ["step-000020"]


def test_the_new_one_goes_before_the_one_that_it_replaces(tmp_path: Path) -> None:
    shutil.copytree(_save(tmp_path, 20), tmp_path / "step-000020.old")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000020"


def test_too_little_free_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 10)
    size = sum(tensor.nbytes for group in _tensors().values() for tensor in group.values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=int(1.2 * size) - 1))
    monkeypatch.setattr(checkpoint, "_write", lambda *_: pytest.fail("it wrote"))
    with pytest.raises(RunError, match="disk is full") as caught:
        _save(tmp_path, 20)
    assert caught.value.exit_code == 5
    assert _names(tmp_path) == ["step-000010"]


def test_a_disk_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 10)
    real = checkpoint._write

    def lie(path: Path, data: bytes) -> dict[str, Any]:
        entry = real(path, data)
        if path.name == "model.safetensors":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        return entry

    monkeypatch.setattr(checkpoint, "_write", lie)
    with pytest.raises(RunError, match=r"model\.safetensors"):
        _save(tmp_path, 20, keep=1)
    assert checkpoint.latest(tmp_path, lambda text: None) == tmp_path / "step-000010"


def test_stale_temporaries_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    for pid in (dead.pid, alive, os.getpid()):
        (tmp_path / f".tmp-step-000005-{pid}").mkdir()
        (tmp_path / f".tmp-step-000005-{pid}" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-of-somebody").mkdir()
    _save(tmp_path, 10)
    assert _names(tmp_path) == sorted([".tmp-of-somebody", f".tmp-step-000005-{alive}", "step-000010"])


def _save_until_killed(folder: Path, acknowledge: int) -> None:
    try:
        for step in range(1, 10_000):
            weights = torch.full((200_000,), float(step))
            checkpoint.save(folder, step, {"model": {"w": weights}}, {"step": step})
            os.write(acknowledge, step.to_bytes(4, "little"))
    finally:
        os._exit(1)


@pytest.mark.parametrize("trial", range(12))
def test_a_kill_at_a_random_moment_loses_nothing_acknowledged(trial: int, tmp_path: Path) -> None:
    draw = random.Random(trial)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _save_until_killed(tmp_path, writer)
    os.close(writer)
    last = 0
    for _ in range(draw.randrange(1, 4)):
        last = int.from_bytes(os.read(reader, 4), "little")
    time.sleep(draw.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while word := os.read(reader, 4):
        last = int.from_bytes(word, "little")
    os.close(reader)
    newest = checkpoint.latest(tmp_path, pytest.fail)
    assert newest is not None and last >= 1
    tensors, state = checkpoint.load(newest)
    assert state["step"] >= last
    assert bool((tensors["model"]["w"] == state["step"]).all())
    checkpoint.remove_stale(tmp_path)
    assert not list(tmp_path.glob(".tmp*"))


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05),
    "amsgrad": lambda groups: torch.optim.Adam(groups, lr=1e-2, amsgrad=True),
    "lr_tensor": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False),
    "sgd_momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
}


def _learner(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4), nn.Linear(4, 4))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model[3].requires_grad_(False)  # parameters without state
    groups = [{"params": list(model[0].parameters())}, {"params": [*model[2].parameters(), *model[3].parameters()]}]
    groups[1]["lr"] = 3e-3 if kind != "lr_tensor" else torch.tensor(3e-3)  # type: ignore[assignment]
    return model, OPTIMIZERS[kind](groups)


def _train(model: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        opt.zero_grad()
        model(torch.rand(2, 3, 8, 8)).square().mean().backward()
        opt.step()


def _bits(model: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Any]:
    tensors, meta = checkpoint.flatten_optimizer(opt)
    every = {**tensors, **{f"model.{name}": value for name, value in model.state_dict().items()}}
    raw = {name: (value.dtype, value.shape, value.contiguous().numpy().tobytes()) for name, value in every.items()}
    return {**raw, "meta": meta}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_an_optimiser_comes_back_bit_for_bit_and_continues_as_if_never_stopped(kind: str, tmp_path: Path) -> None:
    model, opt = _learner(kind)
    _train(model, opt, range(4))
    opt.param_groups[0]["weight_decay"] = 0.123  # as a schedule does
    tensors, meta = checkpoint.flatten_optimizer(opt)
    path = checkpoint.save(tmp_path, 4, {"model": model.state_dict(), "optim": tensors}, {"optim": meta})
    middle = _bits(model, opt)

    twin, twin_opt = _learner(kind)
    read, state = checkpoint.load(path)
    twin.load_state_dict(read["model"])
    checkpoint.restore_optimizer(twin_opt, read["optim"], state["optim"])
    assert _bits(twin, twin_opt) == middle
    for group, twin_group in zip(opt.param_groups, twin_opt.param_groups, strict=True):
        assert {key: type(value) for key, value in group.items()} == {key: type(v) for key, v in twin_group.items()}
        for parameter, twin_parameter in zip(group["params"], twin_group["params"], strict=True):
            for name, value in opt.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    assert value.stride() == twin_opt.state[twin_parameter][name].stride()

    _train(model, opt, range(4, 7))
    assert _bits(model, opt) != middle
    _train(twin, twin_opt, range(4, 7))
    assert _bits(twin, twin_opt) == _bits(model, opt)


def test_a_lost_moment_is_seen_by_the_continuation() -> None:
    """Negative control of the test above."""
    results = []
    for lose in (False, True):
        model, opt = _learner("adamw")
        _train(model, opt, range(4))
        tensors, meta = checkpoint.flatten_optimizer(opt)
        tensors = {
            name: torch.zeros_like(value) if lose and name == "0.exp_avg" else value.clone()
            for name, value in tensors.items()
        }
        checkpoint.restore_optimizer(opt, tensors, meta)
        _train(model, opt, range(4, 7))
        results.append(_bits(model, opt))
    assert results[0] != results[1]


def test_state_wider_than_its_parameter_keeps_its_type() -> None:
    parameter = nn.Parameter(torch.rand(3).bfloat16())
    opt = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    opt.state[parameter]["momentum_buffer"] = torch.rand(3)
    tensors, meta = checkpoint.flatten_optimizer(opt)
    saved = tensors["0.momentum_buffer"].clone()
    checkpoint.restore_optimizer(opt, {"0.momentum_buffer": saved}, meta)
    assert opt.state[parameter]["momentum_buffer"].dtype == torch.float32
    assert torch.equal(opt.state[parameter]["momentum_buffer"], saved)


def test_another_optimiser_is_refused() -> None:
    model, opt = _learner("adamw")
    _train(model, opt, range(1))
    tensors, meta = checkpoint.flatten_optimizer(opt)
    with pytest.raises(RunError, match="AdamW"):
        checkpoint.restore_optimizer(_learner("sgd")[1], tensors, meta)
    with pytest.raises(RunError, match=r"\[2, 4\]"):
        checkpoint.restore_optimizer(torch.optim.AdamW(model.parameters()), tensors, meta)
    tensors["0.exp_avg"] = torch.zeros(8, 3, 3, 4)
    with pytest.raises(RunError, match=r"shape \(8, 3, 3, 4\)"):
        checkpoint.restore_optimizer(opt, tensors, meta)


def test_state_that_cannot_be_saved_is_refused() -> None:
    model, opt = _learner("sgd")
    opt.state[next(model.parameters())]["history"] = [torch.zeros(1)]
    with pytest.raises(RunError, match="'history'"):
        checkpoint.flatten_optimizer(opt)
