"""The loop: what is refused, and what is left alone.

The guards (numbers, disk, damaged checkpoints) are in test_train_guards.py, exact continuation is in crash/test_continuation.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.core.config import read_json
from selftaught.core.errors import ConfigError, RunError
from selftaught.data.arrays import ArraySource
from selftaught.data.base import Truth
from selftaught.data.clips import ArrayClips
from selftaught.evaluate import evaluate
from selftaught.loading import load, load_method
from selftaught.registry import load_class
from selftaught.train import resume, train
from trained_runs import METHODS, SMALL, TRAINED, Runs, as_clips, differing, newest, structured_noise


def test_a_finished_run_is_left_alone(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(runs.straight / "simclr", tmp_path / "run")
    files = [p for p in run.rglob("*") if p.is_file() and p.parent.name != "pictures" and p.name != "log.txt"]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns if "checkpoints" in p.parts else 0) for p in files}
    assert len(before) >= 7
    train("simclr", runs.data, run, size="tiny", set=SMALL)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns if "checkpoints" in p.parts else 0) for p in files} == before
    assert "step 20/20" in capsys.readouterr().out
    assert not (run / "lock.json").exists()


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"seed": 3}, ["seed is 0", "asked for is 3"]),
        ({"set": [*SMALL, "lr=0.5"]}, ["lr=0.001", "lr=0.5"]),
        ({"method": "mae"}, ["'simclr'", "'mae'"]),
        ({"steps": 30}, ["steps=20", "steps=30"]),
    ],
)
def test_another_run_in_the_folder_is_refused(runs: Runs, tmp_path: Path, changes: dict[str, Any], texts: list[str]) -> None:
    run = shutil.copytree(runs.straight / "simclr", tmp_path / "run")
    before = (run / "config.json").read_bytes()
    arguments = {"method": "simclr", "data": runs.data, "out": run, "size": "tiny", "set": SMALL, "quiet": True}
    with pytest.raises(RunError, match="holds another run") as error:
        train(**{**arguments, **changes})  # type: ignore[arg-type]
    assert all(text in str(error.value) for text in texts), str(error.value)
    assert "batch_size" not in str(error.value), "only what differs is named"
    assert (run / "config.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_not_touched(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"dear")
    for out in (tmp_path / "photos", tmp_path / "photos" / "a.jpg"):
        with pytest.raises(RunError, match="is no run folder"):
            train("simclr", runs.data, out, size="tiny", quiet=True)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    with pytest.raises(RunError, match="Cannot write"):
        train("simclr", runs.data, tmp_path / "photos" / "a.jpg" / "run", size="tiny", quiet=True)
    with pytest.raises(RunError, match="is no run folder"):
        resume(tmp_path / "photos")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": "smal"}, "Did you mean 'small'"),
        ({"set": ["batchsize=4"]}, "Did you mean 'batch_size'"),
        ({"set": ["lr=fast"]}, "lr"),
        ({"method": "simcrl"}, "Did you mean 'simclr'"),
        ({"device": "cuda0"}, "Did you mean 'cuda'"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"set": ["batch_size=4", "accumulate=5"]}, "at most batch_size"),
        ({"set": ["backbone=resnet18-23"]}, "Did you mean"),
        ({"set": ["batch_size=1"]}, "at least two pictures"),
        ({"set": ["clip_norm=-1"]}, "clip_norm of encoder is -1"),
        ({"set": ["weight_decay=-0.5"]}, "weight_decay of encoder is -0.5"),
        ({"set": ["warmup_frac=9"]}, "warmup_frac of encoder is 9"),
        ({"method": "dino", "set": ["teacher_temperature=0.2"]}, "must be below"),
        ({"method": "mae", "set": ["stem=conv"]}, "linear stem"),
    ],
)
def test_settings_that_cannot_be_are_named(runs: Runs, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    arguments = {"method": "simclr", "data": runs.data, "out": tmp_path / "run", "size": "tiny", "steps": 1, "quiet": True}
    with pytest.raises(ConfigError, match=text):
        train(**{**arguments, **changes})  # type: ignore[arg-type]
    # The folder can be used by the command that mends it.
    method = changes.get("method", "simclr")
    run = train("simclr" if method == "simcrl" else method, runs.data, tmp_path / "run", size="tiny", steps=1, quiet=True)
    assert newest(run)[1]["step"] == 1


def test_needs_that_are_given_wrongly_are_named(runs: Runs, tmp_path: Path) -> None:
    def job(need: str, method: str = "selfmask") -> None:
        train(method, runs.data, tmp_path / "run", size="tiny", need=[need], quiet=True)

    with pytest.raises(ConfigError, match="Did you mean 'features'"):
        job(f"feature={runs.straight / 'dino'}")
    with pytest.raises(ConfigError, match="names nothing"):
        job("features")
    with pytest.raises(RunError, match="is no run folder"):
        job(f"features={tmp_path / 'nothing'}")
    with pytest.raises(ConfigError, match="no needs"):
        job(f"features={runs.straight / 'dino'}", method="simclr")
    for method in ("selfmask", "tokencut"):
        with pytest.raises(ConfigError, match="features"):
            job(f"features={runs.straight / 'lost'}", method=method)
    assert not (tmp_path / "run" / "config.json").exists()


def test_needs_are_trained_on_demand_and_move_with_the_run(runs: Runs, tmp_path: Path) -> None:
    data = runs.data
    run = train("lost", data, tmp_path / "lost", size="tiny", quiet=True)
    below = run / "needs" / "features"
    assert newest(below)[1]["step"] == 20 and read_json(run / "config.json")["needs"] == {"features": "needs/features"}
    moved = run.rename(tmp_path / "moved")
    images = torch.rand(2, 3, 32, 32)
    assert load_method(moved).segment(images).shape == (2, 32, 32)  # type: ignore[operator]
    stamp = (moved / "needs/features/checkpoints/step-000020/manifest.json").stat().st_mtime_ns
    train("lost", data, moved, size="tiny", quiet=True)
    assert (moved / "needs/features/checkpoints/step-000020/manifest.json").stat().st_mtime_ns == stamp


def test_no_steps_are_a_run_too(runs: Runs, tmp_path: Path) -> None:
    run = train("mae", runs.data, tmp_path / "run", size="tiny", steps=0, quiet=True)
    tensors, state = newest(run)
    assert state["step"] == 0 and state["done"] and tensors["model"]
    assert load_method(run).embed(torch.rand(2, 3, 32, 32)).shape == (2, 32)  # type: ignore[operator]
    assert newest(resume(run, steps=2, quiet=True))[1]["step"] == 2
    assert read_json(run / "config.json")["config"]["steps"] == 2


@pytest.mark.parametrize("name", TRAINED)
def test_without_a_learning_rate_nothing_is_learned(runs: Runs, tmp_path: Path, name: str) -> None:
    arguments: dict[str, Any] = {"size": "tiny", "need": runs.needs(name), "quiet": True}
    ends = [
        train(name, runs.data, tmp_path / str(n), steps=n, set=[*SMALL, "lr=0"], **arguments) for n in (0, 3)
    ]
    trained = [n for n, p in load_method(ends[0]).named_parameters() if "teacher" not in n and "average" not in n]
    (first, _), (second, _) = newest(ends[0]), newest(ends[1])
    assert trained and all(torch.equal(first["model"][n], second["model"][n]) for n in trained)


class Blinded(ArraySource):
    """Pictures with truth that must not be looked at."""

    def __init__(self) -> None:
        super().__init__(structured_noise(24), labels=["a", "b"] * 12, masks=np.ones((24, 32, 32), np.uint8))

    def truth(self, i: int) -> Truth:
        raise AssertionError("training looked at the truth")


class BlindedClips(ArrayClips):
    """Clips with classes that must not be looked at."""

    def label(self, i: int) -> str | None:
        raise AssertionError("training looked at the truth")


@pytest.mark.parametrize("name", METHODS)
def test_training_never_reads_the_truth(runs: Runs, tmp_path: Path, name: str) -> None:
    steps = 2 if name in TRAINED else None
    clips = load_class(name).reads == "clips"
    data = BlindedClips(list(as_clips(structured_noise(24)))) if clips else Blinded()
    run = train(name, data, tmp_path / "run", "tiny", steps, need=runs.needs(name), quiet=True)
    assert newest(run)[1]["done"]
    with pytest.raises(RunError, match="same objects"):
        resume(run)


def test_the_plan_of_a_run_is_frozen(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.halves / "dino", run)
    plan = {**read_json(run / "plan.json"), "precision": "bf16", "attention": "plain", "reason": "it was so"}
    (run / "plan.json").write_text(json.dumps(plan))
    resume(run, quiet=True)
    assert read_json(run / "plan.json") == plan
    assert "computed in bf16, plain attention: it was so" in (run / "log.txt").read_text()
    assert differing(run, runs.straight / "dino"), "bf16 computes other numbers"


def test_a_home_in_a_path_is_the_home_and_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(structured_noise(1)[0] // (i + 1)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train("simclr", "~/photos", "~/run", size="tiny", steps=1, set=SMALL, quiet=True)
    assert read_json(tmp_path / "run" / "config.json")["data"] == str(tmp_path / "photos")
    assert newest(resume("~/run", steps=2, quiet=True))[1]["step"] == 2 and load("~/run").capabilities == ("embed",)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_does_not_go_on_with_other_pictures_unsaid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = structured_noise(24)
    train("simclr", pixels, tmp_path / "memory", size="tiny", steps=1, set=SMALL, quiet=True)
    train("simclr", pixels.copy(), tmp_path / "memory", size="tiny", steps=1, set=SMALL, quiet=True)
    with pytest.raises(RunError, match="other pictures"):
        train("simclr", 255 - pixels, tmp_path / "memory", size="tiny", steps=1, set=SMALL, quiet=True)
    with pytest.raises(RunError, match="was trained on <ndarray"):
        evaluate(tmp_path / "memory")
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i}.png")
    train("simclr", folder, tmp_path / "run", size="tiny", steps=1, set=SMALL, quiet=True)
    capsys.readouterr()
    resume(tmp_path / "run", steps=2)
    assert "no longer those" not in capsys.readouterr().out
    Image.fromarray(pixels[0]).save(folder / "one_more.png")
    resume(tmp_path / "run", steps=3)
    assert "no longer those" in capsys.readouterr().out


def test_scores_of_a_run_that_cannot_be_written_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = structured_noise(24)
    run = train("simclr", pixels, tmp_path / "run", size="tiny", steps=0, set=SMALL, quiet=True)
    monkeypatch.setattr("selftaught.evaluate.os.access", lambda path, mode: False)
    with pytest.raises(RunError, match="cannot be written") as error:
        evaluate(run, pixels)
    assert "--json" in error.value.do
    scores = evaluate(run, pixels, json=tmp_path / "scores.json")
    assert read_json(tmp_path / "scores.json")["scores"].keys() == scores.keys() and not (run / "scores.json").exists()
