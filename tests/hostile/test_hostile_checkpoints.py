"""Checkpoints and run folders made to do harm, with manifests that are right: refused or named, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from selftaught.core import checkpoint
from selftaught.core.errors import RunError, SelftaughtError
from selftaught.loading import load, load_method
from selftaught.train import resume, train

CPU_S = 5.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on thirty noise pictures."""
    root = tmp_path_factory.mktemp("run")
    pixels = np.random.default_rng(0).integers(0, 255, (30, 16, 16, 3)).astype(np.uint8)
    np.savez(root / "data.npz", images=pixels)
    train("simclr", root / "data.npz", root / "run", size="tiny", steps=3, set=["batch_size=8"], quiet=True)
    return root / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that the attacks would make if they ran."""
    return tmp_path / "canary"


class Attack:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch '{canary}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def newest(run: Path) -> Path:
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None
    return folder


def put(run: Path, name: str, data: bytes) -> None:
    """Replace or add a file of the newest checkpoint, and sign the manifest anew."""
    folder = newest(run)
    (folder / name).write_bytes(data)
    old = json.loads((folder / "manifest.json").read_text())
    files = {**old["files"], name: checkpoint._write(folder / name, data)}
    (folder / "manifest.json").write_bytes(checkpoint._manifest_bytes({"schema": 1, "step": old["step"], "files": files}))
    assert checkpoint.verify(folder) == []


def refused(run: Path, *words: str) -> None:
    """Neither using the run nor going on with it works, and the messages hold the words."""
    for use in (load, lambda run: resume(run, steps=5, quiet=True)):
        start = time.process_time()
        with pytest.raises(SelftaughtError) as caught:
            use(run)
        assert time.process_time() - start < CPU_S
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_good_run_passes_the_same_checks(run: Path) -> None:
    put(run, "model.safetensors", (newest(run) / "model.safetensors").read_bytes())
    assert "embed" in load(run).capabilities
    assert resume(run, steps=5, quiet=True) == run


def test_the_attack_would_make_its_canary(canary: Path) -> None:
    pickle.loads(pickle.dumps(Attack(canary)))
    assert canary.exists()


def test_a_pickle_that_is_called_safetensors(run: Path, canary: Path) -> None:
    for protocol in (0, 2, 5):
        put(run, "model.safetensors", pickle.dumps(Attack(canary), protocol))
        refused(run, "model.safetensors")
    torch.save({"model": Attack(canary)}, run / "x")
    put(run, "model.safetensors", (run / "x").read_bytes())
    refused(run, "model.safetensors")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.pt", "pickle.pkl", "hook.py", "../model.pth", "/model.pth", "a\0b", "\ud800", "", "."])
def test_other_files_in_the_manifest(name: str, run: Path, canary: Path) -> None:
    folder = newest(run)
    if name in ("model.pt", "pickle.pkl", "hook.py"):  # a pickle beside the weights
        torch.save({"model": Attack(canary)}, folder / name)
        put(run, name, (folder / name).read_bytes())
        refused(run, name)
    else:
        files = {**json.loads((folder / "manifest.json").read_text())["files"], name: {"size": 1, "sha256": "0" * 64}}
        (folder / "manifest.json").write_bytes(checkpoint._manifest_bytes({"schema": 1, "step": 3, "files": files}))
        assert checkpoint.verify(folder) != [] and checkpoint.latest(run / "checkpoints", lambda text: None) is None
    assert not canary.exists()


def header(entries: dict[str, Any] | bytes, data: int = 64, told: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if told is None else told) + text + bytes(data)


def entry(start: int, end: int, *shape: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}


BROKEN = {
    "header of 100 MB": header(b"{" + b" " * (100 * 2**20) + b"}", 0),
    "header longer than the file": header({}, told=2**63),
    "header that is no JSON": header(b"{[}"),
    "header that is no UTF-8": header(b'{"\xff": 1}'),
    "header of brackets": header(b"[" * 100_000),
    "overlap": header({"a": entry(0, 40, 10), "b": entry(24, 64, 10)}),
    "hole": header({"a": entry(0, 32, 8), "b": entry(40, 64, 6)}),
    "beyond the end": header({"a": entry(0, 4096, 1024)}),
    "backwards": header({"a": entry(64, 0, 16)}),
    "shape that does not fit": header({"a": entry(0, 64, 17)}),
    "shape that overflows": header({"a": entry(0, 64, 2**62, 2**62)}),
    "shape below zero": header({"a": entry(0, 64, -16)}),
    "unknown type": header({"a": entry(0, 64, 16, kind="PICKLE")}),
    "one name twice": header(b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 64, 16)).encode(),) * 2)),
    "bytes behind the last tensor": header({"a": entry(0, 32, 8)}),
    "empty": b"",
    "three bytes": b"abc",
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_safetensors_file_that_is_none(name: str, run: Path) -> None:
    put(run, "model.safetensors", BROKEN[name])
    refused(run, "step-000003")


def changed(run: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    """Change the tensors of the newest checkpoint; returns the name of the first float tensor."""
    tensors = from_bytes((newest(run) / "model.safetensors").read_bytes())
    name = next(name for name, value in sorted(tensors.items()) if value.is_floating_point() and value.dim() > 1)
    change(tensors)
    put(run, "model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    return name


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, value in sorted(tensors.items()) if value.is_floating_point() and value.dim() > 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, run: Path) -> None:
    name = changed(run, lambda tensors: tensors[first(tensors)].view(-1)[:1].fill_(value))
    refused(run, "not finite", name)


def test_wrong_shapes_extra_and_missing_keys_are_named(run: Path, finished: Path) -> None:
    changed(run, lambda tensors: tensors.update(evil=torch.zeros(3)))
    refused(run, "evil")
    shutil.rmtree(run)
    shutil.copytree(finished, run)
    name = changed(run, lambda tensors: tensors.update({first(tensors): torch.zeros(2, 2)}))
    refused(run, name)
    shutil.rmtree(run)
    shutil.copytree(finished, run)
    name = changed(run, lambda tensors: tensors.pop(first(tensors)))
    refused(run, name)


@pytest.mark.parametrize(
    "state", [{}, {"step": "x"}, {"step": -1}, {"optimizers": []}, {"optimizers": {"main": {"groups": [{}]}}}, {"skips": None},
              {"collapse": {"points": "many"}}, {"collapse": None}],
)  # fmt: skip
def test_a_state_that_does_not_fit_stops_the_run_with_its_name(state: dict[str, Any], run: Path) -> None:
    good = json.loads((newest(run) / "state.json").read_text())
    put(run, "state.json", json.dumps({**good, **state} if state else {}).encode())
    before = {path.name: path.read_bytes() for path in newest(run).iterdir()}
    with pytest.raises(RunError, match=r"state\.json"):
        resume(run, steps=5, quiet=True)
    assert before == {path.name: path.read_bytes() for path in newest(run).iterdir()}


def write_config(run: Path, **fields: Any) -> None:
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("need", [".", "../run", "checkpoints/.."])
def test_a_run_that_needs_itself(need: str, run: Path) -> None:
    write_config(run, needs={"features": need})
    with pytest.raises(RunError, match="needs itself"):
        load(run)


def test_a_config_that_asks_for_more_than_was_saved(run: Path) -> None:
    """A number in a text file must not take gigabytes before it is compared with the weights."""
    import tracemalloc

    config = json.loads((run / "config.json").read_text())["config"]
    wide = [k for k, v in config.items() if isinstance(v, int) and any(word in k for word in ("width", "dim", "hidden", "embed"))]
    assert wide, config
    for name in wide:
        write_config(run, config={**config, name: 2**20})
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(RunError, match="do not fit|describes no network"):
            load_method(run)
        assert time.process_time() - start < CPU_S and tracemalloc.get_traced_memory()[1] < 2**26
        tracemalloc.stop()


@pytest.mark.parametrize(
    "fields", [{"method": "nothing"}, {"method": 3}, {"method": "os:system"}, {"config": []}, {"config": {"x": 1}}, {"needs": []},
               {"needs": {"features": 5}}, {"data": None}, {"seed": "0"}, {"device": "rm"}],
)  # fmt: skip
def test_a_config_that_was_changed(fields: dict[str, Any], run: Path) -> None:
    write_config(run, **fields)
    with pytest.raises(SelftaughtError) as caught:
        resume(run, steps=5, quiet=True)
    assert "Traceback" not in str(caught.value)


def test_pipes_devices_and_huge_files_are_not_read(run: Path) -> None:
    folder = newest(run)
    for name in ("model.safetensors", "state.json", "manifest.json"):
        path = folder / name
        good = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        assert checkpoint.verify(folder)[0].startswith(f"{name}: ")
        path.unlink()
        path.symlink_to("/dev/zero")
        assert checkpoint.verify(folder)[0].startswith(f"{name}: ")
        path.unlink()
        path.write_bytes(good)
    assert checkpoint.verify(folder) == []
    for place in ("/dev/zero", "huge"):
        (run / "config.json").unlink()
        (run / "config.json").symlink_to(place)
        with open(run / "huge", "wb") as file:
            file.truncate(10**12)
        with pytest.raises(RunError, match="is not read"):
            load(run)
