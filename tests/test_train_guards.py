"""The loop when something goes wrong: numbers that are not finite, a full disk, damaged checkpoints; and summed gradients."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught import cli, registry
from selftaught.core import checkpoint
from selftaught.core.errors import ConfigError, NumericError, RunError
from selftaught.method import Method, Player, TrainConfig
from selftaught.representation.dino import DINO
from selftaught.representation.simclr import SimCLR
from selftaught.train import Loop, resume, train

LOOP = sys.modules["selftaught.train"]  # the package's attribute of that name is the function
MAX_SKIPS = TrainConfig().max_skips

@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8))
    return path


def start(method: str, data: Path, out: Path, steps: int = 8, *more: str) -> Path:
    return train(method, data, out, size="tiny", steps=steps, set=["batch_size=8", *more], quiet=True)


def newest(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None
    return checkpoint.load(folder)


def same(a: Path, b: Path) -> bool:
    """Whether the newest checkpoints of two runs are equal in every bit."""
    (first, _), (second, _) = newest(a), newest(b)
    return all(torch.equal(v, second[part][k]) for part in first for k, v in first[part].items())


def test_a_folder_that_another_process_made_its_own_meanwhile_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def other(job: Any, quiet: bool) -> None:
        run.mkdir()
        (run / "config.json").write_text(json.dumps({**job.to_json(), "seed": 3}))

    monkeypatch.setattr(LOOP, "train_needs", other)
    with pytest.raises(RunError, match="holds another run: its seed is 3"):
        start("simclr", data, run)
    assert [p.name for p in run.iterdir()] == ["config.json"], "the lock is given back"
    assert json.loads((run / "config.json").read_text())["seed"] == 3


def test_a_run_inside_of_its_data_is_refused(tmp_path: Path) -> None:
    from selftaught.run_folder import refuse_within

    (tmp_path / "photos" / "more").mkdir(parents=True)
    for out in ("photos", "photos/run", "photos/more/deep/run", "other/../photos/run"):
        with pytest.raises(ConfigError, match="inside of the data"):
            train("simclr", tmp_path / "photos", tmp_path / out, size="tiny", quiet=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(ConfigError, match="inside of the data"):
        refuse_within(tmp_path / "link" / "run", str(tmp_path / "photos"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos" / "runs").symlink_to(tmp_path / "elsewhere")  # pictures behind such a link are read
    with pytest.raises(ConfigError, match="inside of the data"):
        refuse_within(tmp_path / "photos" / "runs" / "run", str(tmp_path / "photos"))
    for out, data in (
        ("photos-2/run", tmp_path / "photos"), ("photos/.runs/a", tmp_path / "photos"), ("run", "sample:things"), ("run", [1, 2]),
        ("run", tmp_path / "nowhere"),
    ):  # fmt: skip
        refuse_within(tmp_path / out, data)
    for part in ("Train", "val"):
        (tmp_path / "photos" / part).mkdir()
    refuse_within(tmp_path / "photos" / "run", tmp_path / "photos")  # beside official splits nothing is read
    with pytest.raises(ConfigError, match="inside of the data"):
        refuse_within(tmp_path / "photos" / "Train" / "run", tmp_path / "photos")


def spoil(patch: pytest.MonkeyPatch, method: type[Method], steps: set[int], where: str) -> list[tuple[int, bool]]:
    """Put NaN into the loss or the pictures of some steps; returns (step, whether the whole state stayed) of each of them."""
    loss, one_step, nan = method.loss, Loop.one_step, float("nan")
    kept: list[tuple[int, bool]] = []

    def spoiled(self: Any, batch: Any, player: str, progress: Any) -> Any:
        bad = progress.step in steps
        if bad and where == "pictures":
            batch = batch | {"views": batch["views"] * nan} if isinstance(batch, dict) else [x * nan for x in batch]
        total, parts = loss(self, batch, player, progress)
        return (total * nan if bad else total), parts

    def watched(self: Loop) -> None:
        step, before = self.step, {k: v.clone() for k, v in self.method.state_dict().items()}
        moments = {k: v.clone() for o in self.optimizers.values() for k, v in checkpoint.flatten_optimizer(o)[0].items()}
        one_step(self)
        if step in steps:
            after = {k: v for o in self.optimizers.values() for k, v in checkpoint.flatten_optimizer(o)[0].items()}
            stayed = all(torch.equal(v, before[k]) for k, v in self.method.state_dict().items())
            kept.append((step, stayed and all(torch.equal(v, moments[k]) for k, v in after.items())))

    patch.setattr(method, "loss", spoiled)
    patch.setattr(Loop, "one_step", watched)
    return kept


@pytest.mark.parametrize("where", ["loss", "pictures"])
@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_a_step_that_is_not_finite_changes_nothing(name: str, where: str, data: Path, tmp_path: Path) -> None:
    method = {"simclr": SimCLR, "dino": DINO}[name]
    with pytest.MonkeyPatch.context() as patch:
        kept = spoil(patch, method, {3}, where)
        run = start(name, data, tmp_path / "run")
    assert kept == [(3, True)]
    tensors, state = newest(run)
    assert state["step"] == 8 and state["skips"] == 1
    assert all(torch.isfinite(v).all() for part in tensors.values() for v in part.values())
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 5, 6, 7, 8]
    log = (run / "log.txt").read_text()
    assert "step 3: loss of" in log and "the weights are unchanged" in log
    assert not same(run, start(name, data, tmp_path / "whole")), "the step was taken when it was good"


def test_too_many_such_steps_in_a_row_stop_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, SimCLR, set(range(4, 20)), "loss")
        with pytest.raises(NumericError, match="in a row") as error:
            start("simclr", data, tmp_path / "run", 20)
    assert error.value.exit_code == 4 and "lr=" in error.value.do
    assert newest(tmp_path / "run")[1]["step"] == 4 + MAX_SKIPS
    assert not (tmp_path / "run" / "lock.json").exists()
    run = resume(tmp_path / "run", quiet=True)
    assert newest(run)[1] | {"step": 20, "skips": MAX_SKIPS} == newest(run)[1], "it goes on when the cause is gone"


def test_such_steps_apart_do_not_stop_it(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kept = spoil(patch, SimCLR, {0, 1, 2, 4, 5, 6, 8, 9}, "loss")
        run = start("simclr", data, tmp_path / "run", 12)
    assert len(kept) == 8 and all(stayed for _, stayed in kept)
    assert newest(run)[1]["skips"] == 8


def test_the_command_says_so_with_its_exit_code(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, SimCLR, set(range(20)), "loss")
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "simclr", str(data), "--out", str(tmp_path / "run"), "--size", "tiny", "--quiet"])
    assert stop.value.code == 4
    assert "not finite" in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    write, run = checkpoint._write, tmp_path / "run"

    def full(path: Path, content: bytes) -> dict[str, Any]:
        if "000005" in str(path) and path.name.startswith("optim"):
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        with pytest.raises(RunError, match="The disk is full") as error:
            start("simclr", data, run)
    assert error.value.exit_code == 5
    folders = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert folders == ["step-000003", "step-000004"]
    assert all(checkpoint.verify(run / "checkpoints" / name) == [] for name in folders)
    assert same(start("simclr", data, run), start("simclr", data, tmp_path / "whole"))


def test_a_damaged_checkpoint_is_not_used_and_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start("dino", data, tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
        start("dino", data, run)
    folders = sorted((run / "checkpoints").iterdir())
    assert [p.name for p in folders] == ["step-000007", "step-000008"]
    file = folders[1] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    resume(run, quiet=True)
    log = (run / "log.txt").read_text()
    assert "step-000008 is not used: model.safetensors" in log and "step 7/8" in log
    assert same(run, whole)


def test_with_every_checkpoint_damaged_it_starts_again(data: Path, tmp_path: Path) -> None:
    run = start("simclr", data, tmp_path / "run", 3)
    before = newest(run)
    (run / "checkpoints" / "step-000003" / "manifest.json").write_text("{")
    start("simclr", data, run, 3)
    assert all(torch.equal(v, newest(run)[0]["model"][k]) for k, v in before[0]["model"].items())
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_crash_between_two_renames_is_survived(data: Path, tmp_path: Path) -> None:
    run = start("simclr", data, tmp_path / "run", 3)
    before = newest(run)
    (run / "checkpoints" / "step-000003").rename(run / "checkpoints" / "step-000003.old")
    start("simclr", data, run, 3)
    assert all(torch.equal(v, newest(run)[0]["model"][k]) for k, v in before[0]["model"].items())


class Mean(Method):
    """Learns the mean colour: without randomness and without statistics of the batch."""

    name, Config, sizes = "mean", TrainConfig, {"tiny": TrainConfig(image_px=32, batch_size=8, steps=10, lr=0.1)}

    def __init__(self, config: TrainConfig, needs: Any = None):
        super().__init__(config, needs)
        self.colour = nn.Parameter(torch.rand(3, 2))

    def players(self) -> dict[str, Player]:
        return {"colour": self.main_player(optimizer="sgd", momentum=0.5)}

    def loss(self, batch: Tensor, player: str, progress: Any) -> Any:
        loss = (batch.mean((2, 3))[..., None] - self.colour).square().mean()
        return loss, {"double": 2 * float(loss.detach())}


@pytest.fixture
def mean_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register `Mean` as a method."""

    def load_class(name: str) -> Any:
        return Mean if name == "mean" else registry.load_class(name)

    monkeypatch.setattr(LOOP, "load_class", load_class)
    for module in ("loading", "settings"):
        monkeypatch.setattr(f"selftaught.{module}.load_class", load_class)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_gradients_of_parts_add_up(parts: int, mean_method: None, data: Path, tmp_path: Path) -> None:
    runs = [start("mean", data, tmp_path / str(n), 10, f"accumulate={n}") for n in (1, parts)]
    (first, _), (second, _) = newest(runs[0]), newest(runs[1])
    torch.testing.assert_close(first["model"]["colour"], second["model"]["colour"], rtol=0, atol=1e-5)
    lines = [[json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for one, other in zip(*lines, strict=True):
        for key in ("loss", "double", "lr"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key
    assert lines[0][-1]["loss"] < 0.5 * lines[0][0]["loss"]


def test_every_picture_is_used_equally_often(mean_method: None, data: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        prepare = Mean.prepare

        def watched(self: Mean, images: Tensor, indices: Any) -> Any:
            seen.extend(indices.tolist())
            return prepare(self, images, indices)

        patch.setattr(Mean, "prepare", watched)
        run = start("mean", data, tmp_path / "run", 10, "accumulate=3")
    log = (run / "log.txt").read_text()
    count = int(log.split(" pictures of")[0].rpartition(" ")[2])
    assert len(seen) == 80 and set(seen) == set(range(count))
    times = np.bincount(seen)
    assert times.max() - times.min() <= 1
