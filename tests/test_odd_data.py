"""Odd but whole data, for every method: finite numbers everywhere, or an error that says what to do; never a silent NaN."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selftaught import load, registry
from selftaught.core import checkpoint
from selftaught.core.errors import ConfigError
from selftaught.evaluate import evaluate
from selftaught.segmentation.selfmask import SelfMask
from selftaught.train import train
from trained_runs import as_clips

METHODS = list(registry.methods())
NOISE = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8)
BLANK = np.zeros((24, 1, 1, 3), np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 255, (24, 1, 1, 3)).astype(np.uint8)
HALF = np.where(np.arange(24)[:, None, None, None] % 2 == 0, np.uint8(200), NOISE)
CASES: dict[str, np.ndarray] = {
    "black": np.broadcast_to(BLANK, NOISE.shape),
    "one white": np.broadcast_to(BLANK + np.uint8(255), NOISE.shape)[:1],
    "a colour each": np.broadcast_to(COLOURS, NOISE.shape),
    "one picture": NOISE[:1],
    "half blank": HALF,
}


Needs = Callable[[str, np.ndarray], list[str]]


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory) -> Needs:
    """A function: method, pictures -> NEED=RUN of each need, learned from the same pictures as a training would; once for all methods."""
    root, made = tmp_path_factory.mktemp("needs"), dict[tuple[str, bytes], Path]()

    def run(name: str, images: np.ndarray) -> Path:
        key = name, images.tobytes()
        if key not in made:
            folder = root / f"{name}-{len(made)}"
            folder.mkdir()
            save(folder / "data.npz", images)
            done = train(name, folder / "data.npz", folder / "run", size="tiny", need=of(name, images), quiet=True)
            check(done, images)
            made[key] = done
        return made[key]

    def of(name: str, images: np.ndarray) -> list[str]:
        cls = registry.load_class(name)
        return [f"{need}={run(method, images)}" for need, method in cls.needs_of(cls.sizes["tiny"]).items()]

    return of


def save(path: Path, images: np.ndarray, **truth: Any) -> None:
    np.savez(path, images=images, clips=as_clips(images), **truth)


def learn(name: str, images: np.ndarray, folder: Path, needs: Needs, *settings: str, **truth: Any) -> Path:
    """Train a method on pictures, with what it needs, at size `tiny`."""
    save(folder / "data.npz", images, **truth)
    steps = 4 if registry.load_class(name).sizes["tiny"].steps else 0
    need = needs(name, images)
    return train(name, folder / "data.npz", folder / "run", size="tiny", steps=steps, set=settings, need=need, quiet=True)


def check(run: Path, images: np.ndarray) -> None:
    """Everything that a run left behind and can be asked for is finite."""
    assert "not finite" not in (run / "log.txt").read_text()
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None
    tensors, state = checkpoint.load(folder)
    assert state["skips"] == 0
    bad = [name for group in tensors.values() for name, value in group.items() if not torch.isfinite(value).all()]
    assert not bad, bad
    metrics = run / "metrics.jsonl"
    for line in metrics.read_text().splitlines() if metrics.exists() else []:
        assert None not in json.loads(line).values(), "a number of the log is not finite"
    learned, few = load(run), list(images[:2])
    if "embed" in learned.capabilities:
        assert np.isfinite(learned.embed(few)).all()
    if "segment" in learned.capabilities:
        masks = learned.segment(few)
        assert all(np.isfinite(m).all() and m.min() >= 0 and m.max() <= 1 for m in masks)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_odd_pictures_give_finite_numbers(name: str, case: str, needs: Needs, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's "invalid value encountered"
        check(learn(name, CASES[case], tmp_path, needs, "batch_size=8"), CASES[case])


@pytest.mark.parametrize("settings", [("batch_size=1",), ("batch_size=4", "accumulate=4")])
@pytest.mark.parametrize("name", METHODS)
def test_one_picture_at_a_time_works_or_is_refused(name: str, settings: tuple[str, ...], needs: Needs, tmp_path: Path) -> None:
    try:
        run = learn(name, NOISE, tmp_path, needs, *settings)
    except ConfigError as error:
        assert name in ("simclr", "mae") and "at least two pictures" in str(error)
        assert not (tmp_path / "run" / "config.json").exists(), "a refused start claims no folder"
    else:
        assert name not in ("simclr", "mae")
        check(run, NOISE)


@pytest.mark.parametrize("case", ["black", "half blank"])
@pytest.mark.parametrize("name", METHODS)
def test_scores_of_blank_pictures_without_objects_are_finite(name: str, case: str, needs: Needs, tmp_path: Path) -> None:
    images = CASES[case]
    truth = {"masks": np.zeros(images.shape[:3], np.uint8), "labels": np.arange(len(images)) % 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        scores = evaluate(learn(name, images, tmp_path, needs, "batch_size=8", **truth))
    assert not scores or "corloc" not in scores, "there is nothing to find, so finding it has no score"
    for key, score in scores.items():
        numbers = [score.value, *score.ci95, *score.baselines.values()]
        assert np.isfinite(numbers).all(), (key, numbers)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_empty_and_full_pseudo_masks_are_learned(
    fill: float, needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def masks(self: SelfMask, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 4, 4), fill)

    monkeypatch.setattr(SelfMask, "pseudo_masks", masks)
    run = learn("selfmask", NOISE, tmp_path, needs, "batch_size=8", "lr=0.02")
    check(run, NOISE)
    areas = [json.loads(line)["area_frac"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (areas[-1] - areas[0]) * (fill - 0.5) > 0, "the masks move to what they are taught"
