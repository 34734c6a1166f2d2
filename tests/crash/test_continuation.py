"""A stopped run is the same run, bit for bit: every registered method, a new process, any moment, any number of threads."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.data import cache
from selftaught.data.arrays import ArraySource
from selftaught.data.cache import ImageSet
from selftaught.data.clips import ArrayClips
from selftaught.evaluate import evaluate
from selftaught.loading import load_method
from selftaught.method import Actions
from selftaught.registry import load_class
from selftaught.train import Loop, Stopped, resume, train
from trained_runs import METHODS, SMALL, TRAINED, Runs, as_clips, differing, newest, structured_noise

LOOP = sys.modules["selftaught.train"]  # the package's attribute of that name is the function
LABELLED = ArraySource(structured_noise(24), labels=["a", "b"] * 12, masks=np.ones((24, 32, 32), np.uint8))
CLIPS = ArrayClips(list(as_clips(structured_noise(24))))
ACTIONS = Actions(torch.full((3, 2, 2), 0.1), torch.zeros(3, 2, 2), torch.zeros(3, 2, dtype=torch.int64))
EPOCH = 5
"""Steps in which the 40 pictures of `runs` are seen once, 8 at a time."""


def assert_same(first: Path, second: Path, steps: int = 20) -> None:
    """Weights, averages, moments, counters, metrics lines and pictures of two runs are equal in every byte."""
    assert differing(first, second) == []
    states = newest(first)[1], newest(second)[1]
    assert states[0] == states[1] and states[0]["done"]
    if (first / "metrics.jsonl").exists():
        lines = (first / "metrics.jsonl").read_bytes()
        assert (second / "metrics.jsonl").read_bytes() == lines
        assert [json.loads(x)["step"] for x in lines.splitlines()] == list(range(1, steps + 1))
    pictures = [{p.name: p.read_bytes() for p in (run / "pictures").iterdir()} for run in (first, second)]
    assert pictures[0] and pictures[0] == pictures[1]


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_in_a_new_process(runs: Runs, name: str) -> None:
    assert runs.codes[name] == (143 if name in TRAINED else 0)
    if name in TRAINED:
        assert [p.name for p in (runs.halves / name / "checkpoints").iterdir()] == ["step-000010"]
        assert len((runs.halves / name / "metrics.jsonl").read_bytes().splitlines()) == 10
        assert (runs.straight / name / "metrics.jsonl").exists()
    assert_same(runs.straight / name, runs.stopped / name)


@pytest.mark.parametrize("name", METHODS)
def test_both_give_the_same_answers(runs: Runs, name: str) -> None:
    methods = [load_method(folder / name) for folder in (runs.straight, runs.stopped)]
    images = torch.from_numpy(structured_noise(3, seed=9)).permute(0, 3, 1, 2).float() / 255
    for capability in methods[0].capabilities:
        more = {"inpaint": (images[:, 0],), "play": (ACTIONS,)}
        arguments = (images, *more.get(capability, ()))
        first, second = (getattr(m, capability)(*arguments) for m in methods)
        pairs = [(first, second)] if isinstance(first, torch.Tensor) else list(zip(first, second, strict=True))
        assert pairs and all(a is b is None or torch.equal(a, b) for a, b in pairs), capability


def start(runs: Runs, name: str, out: Path, **changes: Any) -> Path:
    """Train as the straight run of `runs` was trained, with changes."""
    arguments = {"size": "tiny", "set": SMALL, "need": runs.needs(name), "quiet": True}
    return train(name, runs.data, out, **{**arguments, **changes})  # type: ignore[arg-type]


@contextmanager
def signalled(number: int, owner: Any, attribute: str, when: Callable[[Any], bool]) -> Iterator[None]:
    """Send this process a signal after a call of owner.attribute for whose first argument `when` is true."""
    real = getattr(owner, attribute)

    def watched(first: Any, *rest: Any, **more: Any) -> Any:
        result = real(first, *rest, **more)
        if when(first):
            os.kill(os.getpid(), number)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, attribute, watched)
        yield


POINTS = {"first step": 1, "mid-epoch": 3, "last step of an epoch": EPOCH, "first of the next": EPOCH + 1, "last": 20}


def evaluation_interrupted(run: Path, name: str) -> None:
    """Begin to evaluate a run, and stop: not a byte of it changes."""
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with signalled(signal.SIGINT, type(load_method(run)), "evaluate", lambda method: True):
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, CLIPS if load_class(name).reads == "clips" else LABELLED)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", TRAINED)
def test_stopped_at_any_step_and_during_an_evaluation(runs: Runs, tmp_path: Path, name: str) -> None:
    """One run with a stop at each of POINTS: what one of them loses, no later one brings back, and it shows at the end."""
    run = tmp_path / "run"
    for step in POINTS.values():
        torch.rand(3)  # other random numbers before
        np.random.rand(3)
        with signalled(signal.SIGTERM, Loop, "log", lambda loop, step=step: loop.step == step):  # type: ignore[misc]
            with pytest.raises(Stopped, match=f"step {step} of 20") as stop:
                resume(run, quiet=True) if run.exists() else start(runs, name, run)
        assert stop.value.exit_code == 143 and newest(run)[1]["step"] == step
        if step == EPOCH + 1:
            evaluation_interrupted(run, name)
    assert_same(runs.straight / name, resume(run, quiet=True))


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_before_it_begins_and_while_it_finishes(runs: Runs, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    for owner, attribute in ((Loop, "choose_plan"), (LOOP, "load_method"), (LOOP, "draw_pictures")):
        with signalled(signal.SIGINT, owner, attribute, lambda first: True), pytest.raises(KeyboardInterrupt):
            start(runs, name, run)
        assert not (run / "lock.json").exists()
    assert newest(run)[1]["done"]
    assert_same(runs.straight / name, start(runs, name, run))


@pytest.mark.parametrize("name", TRAINED)
def test_another_seed_is_another_run(runs: Runs, tmp_path: Path, name: str) -> None:
    """And nothing else is: see the runs above, which met other random numbers before each start."""
    with signalled(signal.SIGTERM, Loop, "log", lambda loop: loop.step == 1), pytest.raises(Stopped):
        start(runs, name, tmp_path / "other", seed=1)
    first, other = ((run / "metrics.jsonl").read_text().splitlines()[0] for run in (runs.straight / name, tmp_path / "other"))
    assert json.loads(first)["step"] == json.loads(other)["step"] == 1 and first != other


@pytest.mark.parametrize("name", TRAINED)
def test_more_threads_only_round_differently(
    runs: Runs, tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    """What docs/how-to/resume.md says about threads; the losses' largest relative difference is recorded."""
    torch.set_num_threads(2)
    try:
        with signalled(signal.SIGTERM, Loop, "log", lambda loop: loop.step == 5), pytest.raises(Stopped):
            start(runs, name, tmp_path / "run")
    finally:
        torch.set_num_threads(1)
    lines = [(run / "metrics.jsonl").read_text().splitlines()[:5] for run in (runs.straight / name, tmp_path / "run")]
    losses = np.array([[json.loads(line)["loss"] for line in part] for part in lines])
    difference = float(np.abs(losses[0] / losses[1] - 1).max())
    record_property("largest_relative_difference_of_the_loss", difference)
    print(f"{name}: 1 against 2 threads, losses of {losses.shape[1]} steps differ by {difference:.1e} at most, relatively")
    assert difference < 1e-3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(structured_noise(30, px=40, seed=4)):
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg")
    return folder


def stream(photos: Path, run: Path, caches: list[Path], workers: list[int]) -> list[str]:
    """sha256 of every batch of three epochs, with stops in between and other numbers of decoding threads after each."""
    seen: list[str] = []
    batch = ImageSet.batch

    def watched(self: ImageSet, indices: Any) -> torch.Tensor:
        pixels = batch(self, indices)
        seen.append(hashlib.sha256(pixels.numpy().tobytes()).hexdigest())
        return pixels

    steps = np.linspace(0, 12, len(workers) + 1).astype(int)[1:]  # 30 pictures, 8 a step: more than three epochs
    for step, folder, count in zip(steps, caches, workers, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SELFTAUGHT_CACHE", str(folder))
            patch.setattr(cache, "THREADS", count)
            patch.setattr(ImageSet, "batch", watched)
            patch.setattr(LOOP, "draw_pictures", lambda *rest: None)
            with signalled(signal.SIGTERM, Loop, "log", lambda loop, step=step: loop.step == step):  # type: ignore[misc]
                with pytest.raises(Stopped):
                    train("mae", photos, run, size="tiny", steps=12, set=SMALL, quiet=True)
    return seen


def test_the_batches_are_the_same_whatever_decodes_them(photos: Path, tmp_path: Path) -> None:
    one = stream(photos, tmp_path / "one", [tmp_path / "cache"], [1])
    # A cache that exists is not decoded again, so that each count gets its own.
    caches = [tmp_path / f"cache{n}" for n in range(3)]
    assert stream(photos, tmp_path / "many", caches, [1, 4, 2]) == one
    assert stream(photos, tmp_path / "kept", [tmp_path / "cache"] * 4, [2] * 4) == one
    assert len(one) == 12 and len(set(one)) == 12
