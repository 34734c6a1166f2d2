"""The main job from pictures to a report: what is written, going on, what is refused, and what was learned."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught import apply
from selftaught.core.config import read_json
from selftaught.core.errors import ConfigError, DataError, RunError
from selftaught.data.sources import open_data
from selftaught.evaluate import evaluate
from selftaught.learn import learn
from selftaught.loading import Learned, load
from selftaught.measure import mask_scores
from selftaught.report.exports import read_embeddings

JOB = sys.modules["selftaught.learn"]  # the package's attribute of that name is the function
SAMPLE = "sample:things:64"
EXPORTED = {"masks", "objects.coco.json", "yolo", "embeddings.npz"}
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


@pytest.fixture(scope="module", autouse=True)
def _short_leak_check() -> Iterator[None]:
    """The check of the sample for leaks trains a network for 400 steps; three are enough here."""
    leak = mask_scores.local_leak
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_scores, "local_leak", lambda *sets: leak(*sets, steps=3))
        yield


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest and is tested once."""
    monkeypatch.setattr(apply, "_installed", lambda package: package == "pyarrow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the sample."""
    return learn(SAMPLE, tmp_path_factory.mktemp("learn") / "run", size="tiny", quiet=True)


@pytest.fixture(scope="module")
def learned(run: Path) -> Learned:
    return load(run)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirty pictures of many sizes without any truth, a blank one and one that is broken among them."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(30):
        h, w = rng.integers(20, 90, 2)
        pixels = rng.integers(0, 255, (h, w, 3)).astype(np.uint8) // 2
        pixels[h // 4 : h // 2, w // 4 : w // 2] += 100
        Image.fromarray(pixels * (i != 3)).save(folder / f"{i:02d}.png")
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:60])
    return folder


def stamps(run: Path) -> dict[str, int]:
    """When each file of a checkpoint was written."""
    return {str(p): p.stat().st_mtime_ns for p in run.glob("*/checkpoints/**/*") if p.is_file()}


def test_a_report_scores_and_exports_are_written(run: Path) -> None:
    assert 50_000 < (run / "report.html").stat().st_size < 5_000_000
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "things" in text and "http://" not in text.replace("http://www.w3.org", ""), "it needs no network"
    scores = read_json(run / "scores.json")["scores"]
    assert {"iou", "knn20", "corloc", "linear_probe", "leak_7x7"} <= set(scores)
    for name, baselines in (("iou", {"centre_box", "colour_otsu", "untrained_cut"}), ("knn20", {"raw_pixels", "untrained"})):
        score = scores[name]
        assert baselines <= set(score["baselines"]) and score["n"] == 64
        assert 0 <= score["value"] <= 1 and score["ci95"][0] <= score["value"] + 1e-9
    assert EXPORTED <= {p.name for p in (run / "export").iterdir()}
    assert len(list((run / "export" / "masks").rglob("*.png"))) == 128
    assert not list(run.rglob("lock.json")) and not list(run.rglob(".tmp*"))
    assert read_json(run / "learn.json")["asked"]["data"] == SAMPLE
    assert {"features", "masks", "scoring"} <= set(read_json(run / "seconds.json"))


def test_exported_embeddings_are_those_of_the_api(run: Path, learned: Learned) -> None:
    names, vectors = read_embeddings(run / "export" / "embeddings.npz")
    source = open_data(SAMPLE)
    assert len(names) == len(source) == 128
    for i in (0, 77, 127):
        np.testing.assert_allclose(learned.embed([source.image(i)])[0], vectors[i], rtol=1e-4, atol=1e-5)


def test_exported_networks_compute_the_same(run: Path, learned: Learned) -> None:
    if not ONNX:
        assert not list((run / "export").glob("*.onnx"))
        return
    import onnxruntime

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, capability in (("features", "embed"), ("masks", "segment")):
        session = onnxruntime.InferenceSession(str(run / "export" / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            expected = getattr(learned.provider(capability), capability)(images).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_same_call_again_learns_nothing_new(run: Path, no_onnx: None) -> None:
    before, scores, metrics = stamps(run), read_json(run / "scores.json"), (run / "masks/metrics.jsonl").read_bytes()
    assert len(before) >= 8
    (run / "report.html").unlink()
    assert learn(SAMPLE, run, size="tiny", quiet=True) == run
    assert stamps(run) == before and (run / "report.html").exists()
    assert read_json(run / "scores.json") == scores and (run / "masks/metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize(
    ("changes", "text"), [({"seed": 1}, "seed=0"), ({"minutes": 3.0}, "minutes=None"), ({"features": "mae"}, "features='simclr'"),
     ({"objects": "move"}, "objects='cut'")],
)
def test_another_job_in_the_folder_is_refused(run: Path, changes: dict[str, Any], text: str) -> None:
    before = stamps(run)
    with pytest.raises(RunError, match="holds another job") as error:
        learn(SAMPLE, run, **{"size": "tiny", "quiet": True, **changes})
    assert text in str(error.value) and stamps(run) == before


def test_arguments_that_cannot_be_are_named(run: Path, tmp_path: Path) -> None:
    def job(**changes: Any) -> None:
        learn(SAMPLE, tmp_path / "run", **{"size": "tiny", "quiet": True, **changes})

    with pytest.raises(ConfigError, match="minutes is -1"):
        job(minutes=-1)
    with pytest.raises(ConfigError, match="minutes is nan"):
        job(minutes=float("nan"))
    with pytest.raises(ConfigError, match="Did you mean 'simclr'"):
        job(features="simcrl")
    with pytest.raises(ConfigError, match="Did you mean 'features'"):
        job(need=[f"feature={run / 'features'}"])
    with pytest.raises(RunError, match="is no run folder"):
        job(need=[f"features={tmp_path}"])
    assert not (tmp_path / "run" / "learn.json").exists()


def test_pictures_without_truth_give_a_report_and_no_scores(photos: Path, tmp_path: Path, no_onnx: None) -> None:
    run = learn(photos, tmp_path / "run", size="tiny", quiet=True)
    written = read_json(run / "scores.json")
    assert set(written["scores"]) <= {"rank_me"} and any("no masks" in note for note in written["notes"])
    assert sum("torn: truncated" in note for note in written["notes"]) == 1
    assert (run / "report.html").stat().st_size < 5_000_000
    assert "torn" in (run / "report.html").read_text(encoding="utf-8"), "what could not be read is named"
    assert len(list((run / "export" / "masks").glob("*.png"))) == 30
    assert evaluate(run, photos, limit=4).keys() <= {"rank_me"}


def test_learned_features_can_be_given(run: Path, photos: Path, tmp_path: Path, no_onnx: None) -> None:
    before = stamps(run)
    other = learn(photos, tmp_path / "other", size="tiny", need=[f"features={run / 'features'}"], quiet=True)
    assert not (other / "features").exists() and stamps(run) == before
    assert load(other).embed(np.zeros((1, 9, 9, 3), np.uint8)).shape[0] == 1
    assert (other / "report.html").exists()


def test_arrays_can_be_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JOB, "finish", lambda out, *rest: out / "report.html")
    images = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3)).astype(np.uint8)
    run = learn(images, tmp_path / "run", size="tiny", quiet=True)
    assert read_json(run / "scores.json")["data"] == "<ndarray given from Python>"
    assert load(run).embed(images[:2]).shape[0] == 2


@pytest.mark.parametrize("which", ["half of all", "all of the test part"])
def test_too_many_broken_pictures_stop_before_learning(which: str, photos: Path, tmp_path: Path) -> None:
    keys = [f"{i:02d}" for i in range(0, 30, 2)] if which == "half of all" else open_data(photos, "test").keys
    for key in keys:
        (photos / f"{key}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read") as error:
        learn(photos, tmp_path / "run", size="tiny", quiet=True)
    assert error.value.exit_code == 3
    assert not (tmp_path / "run" / "learn.json").exists() and not list((tmp_path / "run").rglob("checkpoints"))
    assert not (tmp_path / "run" / "lock.json").exists()


def test_minutes_become_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    fit = JOB.fit_minutes

    def watched(stage: Any, *rest: Any) -> Any:
        measured.append(stage.method)
        return fit(stage, *rest, trial_s=0.0)  # five steps

    monkeypatch.setattr(JOB, "fit_minutes", watched)
    monkeypatch.setattr(JOB, "evaluate", lambda *rest: {})
    monkeypatch.setattr(JOB, "finish", lambda out, *rest: out / "report.html")
    run = learn(SAMPLE, tmp_path / "run", size="tiny", minutes=0.02, quiet=True)
    assert measured == ["simclr", "selfmask"]
    steps = {k: c["steps"] for k, c in read_json(run / "learn.json")["stages"].items()}
    assert all(20 <= n <= 2000 for n in steps.values()), steps
    for part, count in steps.items():
        assert read_json(run / part / "config.json")["config"]["steps"] == count
        assert (run / part / "checkpoints" / f"step-{count:06d}").is_dir()
        assert "measured" in read_json(run / part / "plan.json")["reason"]
    before, plan = stamps(run), (run / "learn.json").read_bytes()
    learn(SAMPLE, run, size="tiny", minutes=0.02, quiet=True)
    assert measured == ["simclr", "selfmask"], "no second measurement"
    assert stamps(run) == before and (run / "learn.json").read_bytes() == plan


@pytest.mark.parametrize(("spent_min", "left_min"), [(0.0, 3.0), (4.8, 3.0), (6.0, 1.8), (60.0, 1.5)])
def test_features_that_took_too_long_shorten_the_masks(
    spent_min: float, left_min: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def fit(stage: Any, features: Any, minutes: float, *rest: Any) -> Any:
        given.append(minutes)
        return stage

    monkeypatch.setattr(JOB, "fit_minutes", fit)
    learner = JOB.features_stage("simclr", None, "tiny", SAMPLE)
    asked = {"minutes": 10.0, "need": [], "size": "tiny", "seed": 0, "data": SAMPLE, "objects": "cut"}
    for name, spent in (("features", {}), ("masks", {"features": spent_min * 60}), ("masks", {})):
        JOB.planned(name, asked, learner, SAMPLE, None, tmp_path, True, spent)
    assert given == pytest.approx([4.8, left_min]), "and no training is planned twice"


def test_a_job_that_stopped_in_the_middle_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, calls = JOB.run_stage, list[str]()

    def power_cut(s: Any, *rest: Any) -> Any:
        calls.append(s.method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stage(s, *rest)

    monkeypatch.setattr(JOB, "run_stage", power_cut)
    monkeypatch.setattr(JOB, "evaluate", lambda *rest: {})
    monkeypatch.setattr(JOB, "finish", lambda out, *rest: out / "report.html")
    with pytest.raises(KeyboardInterrupt):
        learn(SAMPLE, tmp_path / "run", size="tiny", quiet=True)
    before = stamps(tmp_path / "run")
    assert before and load(tmp_path / "run").capabilities == ("embed",), "what is there can be used"
    learn(SAMPLE, tmp_path / "run", size="tiny", quiet=True)
    assert calls == ["simclr", "selfmask"] * 2
    assert before.items() <= stamps(tmp_path / "run").items()
    assert load(tmp_path / "run").capabilities == ("segment", "embed")


def test_nothing_learned_yet_is_said(tmp_path: Path) -> None:
    (tmp_path / "learn.json").write_text(json.dumps({"data": SAMPLE}))
    with pytest.raises(RunError, match="learned nothing yet"):
        load(tmp_path)
    with pytest.raises(RunError, match="is no run folder"):
        load(tmp_path / "nothing")


def test_the_folder_of_a_training_is_not_learned_into(tmp_path: Path) -> None:
    """What is opened, scored and exported afterwards would be that training."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="holds a run of `selftaught train`"):
        learn(SAMPLE, tmp_path, size="tiny", minutes=0.01, features="nothing")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_of_other_things_is_not_learned_into(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "features").mkdir()
    with pytest.raises(RunError, match="holds report.html"):
        learn(SAMPLE, tmp_path, size="tiny", minutes=0.01, features="nothing")
    assert (tmp_path / "report.html").read_text() == "mine" and not (tmp_path / "lock.json").exists()


SIZES = [(20, 20), (400, 37), (1, 50), (33, 400), (20, 20), (1, 1)]


def test_pictures_of_any_sizes_can_be_given(learned: Learned) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in SIZES]
    vectors = learned.embed(pictures, batch_size=4)
    assert vectors.shape[0] == len(SIZES) and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    masks = learned.segment(pictures, batch_size=2)
    assert [m.shape for m in masks] == SIZES
    assert all(m.dtype == np.float32 and 0 <= m.min() and m.max() <= 1 for m in masks)
    for i in (1, 5):
        np.testing.assert_allclose(learned.embed([pictures[i]])[0], vectors[i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(learned.segment([pictures[i]])[0], masks[i], rtol=1e-4, atol=1e-5)


def test_arrays_tensors_and_nothing_can_be_given(learned: Learned) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_allclose(learned.embed(tensor), learned.embed(pictures), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.stack(learned.segment(tensor)), np.stack(learned.segment(list(pictures))), atol=1e-5)
    assert learned.embed([]).shape[0] == 0 and learned.segment([]) == []
    assert learned.embed(tensor[:0]).shape[0] == 0


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([np.zeros((8, 8), np.uint8)], r"Picture 0 is \(8, 8\) uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 1), np.uint8)], r"Picture 1 is \(8, 8, 1\)"),
        ([np.zeros((8, 8, 3), np.float32)], "float32"),
        ([np.zeros((0, 8, 3), np.uint8)], r"\(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), r"Picture 0 is \(8, 3\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 8, 8), 2.0), r"outside of \[0, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), "not finite"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
    ],
)
def test_what_is_no_picture_is_refused(learned: Learned, images: Any, text: str) -> None:
    for ask in (learned.embed, learned.segment):
        with pytest.raises(DataError, match=text) as error:
            ask(images)
        assert "expected" in str(error.value)


def test_what_was_not_learned_cannot_be_asked(learned: Learned) -> None:
    assert learned.capabilities == ("segment", "embed")
    with pytest.raises(RunError, match="cannot inpaint") as error:
        learned.provider("inpaint")
    assert error.value.expected == "a run that can inpaint"
