"""The main job with MOVE beside the cut: all stages, the choice, going on after each stop, and jobs of earlier versions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selftaught import apply
from selftaught.core import checkpoint
from selftaught.core.config import read_json, write_json
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.tune import Plan
from selftaught.evaluate import evaluate
from selftaught.learn import learn
from selftaught.learn_objects import MOVE_MINUTES, NEEDS, SHARES, STAGE_METHODS, first_config, in_one_line, objects_of
from selftaught.loading import load, objects_part
from selftaught.measure import mask_scores
from selftaught.train import Loop, Stopped

JOB = sys.modules["selftaught.learn"]  # the package's attribute of that name is the function
SAMPLE = "sample:things:48"
STAGES = ("features", "masks", "inpainter", "move", "masks_move")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Any:
    """No scores, no exports and no check of the sample for leaks: what they take is not what is tested."""
    leak = mask_scores.local_leak
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_scores, "local_leak", lambda *sets: leak(*sets, steps=1))
        patch.setattr(JOB, "evaluate", lambda run, data: write_json(run / "scores.json", {"scores": {}}))
        patch.setattr(apply, "export", lambda *rest, **more: [])
        yield


def few_steps(monkeypatch: pytest.MonkeyPatch, steps: int = 6) -> None:
    """Let every training take so few steps."""
    stage = JOB.run_stage

    def short(s: Any, *rest: Any) -> Any:
        return stage(JOB.replace(s, config=JOB.replace(s.config, steps=steps, batch_size=8)), *rest)

    monkeypatch.setattr(JOB, "run_stage", short)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job with both ways."""
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        return learn(SAMPLE, tmp_path_factory.mktemp("objects") / "run", size="tiny", objects="move", quiet=True)


def weights(run: Path) -> dict[str, bytes]:
    """The last weights of each stage."""
    found = {part: checkpoint.latest(run / part / "checkpoints") for part in STAGES}
    return {part: (folder / "model.safetensors").read_bytes() for part, folder in found.items() if folder}


def test_all_stages_run_and_the_choice_is_written(run: Path) -> None:
    assert set(weights(run)) == set(STAGES)
    assert list(read_json(run / "learn.json")["stages"]) == list(STAGES)
    assert read_json(run / "learn.json")["asked"]["objects"] == "move"
    inpainter = read_json(run / "inpainter/config.json")["config"]
    assert (inpainter["mask_frac"], inpainter["norm_pixels"], inpainter["block_prob"], inpainter["seen_weight"]) == (0.5, False, 1.0, 0.3)
    assert read_json(run / "move/config.json")["needs"] == {"features": "../features", "inpainter": "../inpainter"}
    assert read_json(run / "masks_move/config.json")["needs"] == {"features": "../features", "masks": "../move"}
    found = read_json(run / "objects.json")
    assert found["chosen"] in ("cut", "move") and found["part"] == {"cut": "masks", "move": "masks_move"}[found["chosen"]]
    for name in ("cut", "move"):
        for score in found["criteria"][name].values():
            assert score["ci95"][0] <= score["value"] <= score["ci95"][1] and score["n"] == found["pictures"] == 48
    assert set(found["move_minus_cut"]) == {"stability", "told_apart"}
    line = in_one_line(found)
    assert line.startswith(f"objects: {found['chosen']} (stability ") and found["reason"] in line and " against " in line


def test_the_report_shows_both_ways(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "Two ways to find objects" in text and text.count('<div class="ways">') == 12
    for head in ("picture", "the cut", "MOVE", "learned from the cut", "learned from MOVE", "object moved"):
        assert text.count(f"<figcaption>{head}</figcaption>") == 12
    criteria = read_json(run / "objects.json")["criteria"]["move"]
    assert f"{criteria['told_apart']['value']:.3f} <span>±" in text and "Overlap with the truth" in text
    assert "objects, from MOVE" in text and "masks by MOVE" in text


def test_the_choice_is_what_everyone_opens(run: Path, tmp_path: Path) -> None:
    both = tmp_path / "run"
    shutil.copytree(run, both)
    picture = [np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)]
    found, masks = read_json(both / "objects.json"), {}
    for chosen, part in (("cut", "masks"), ("move", "masks_move")):
        write_json(both / "objects.json", {**found, "chosen": chosen})
        assert objects_part(both) == part and load(both).run == both / part
        masks[chosen] = load(both).segment(picture)[0]
        np.testing.assert_array_equal(masks[chosen], load(both / part).segment(picture)[0])
        assert load(both).embed(picture).shape[0] == 1
        given = evaluate(both, SAMPLE, limit=8)["iou"].baselines
        assert ("teacher" in given) == (chosen == "move"), "only the network that was kept is scored"
    assert not np.array_equal(masks["cut"], masks["move"])
    write_json(both / "objects.json", {"chosen": "../else"})
    with pytest.raises(RunError, match=r"objects.json is damaged"):
        load(both)


def test_a_job_stopped_in_the_middle_of_each_stage_is_the_same_job(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch)
    monkeypatch.setattr(JOB, "finish", lambda out, *rest: out / "report.html")
    stopped: list[str] = []
    log = Loop.log

    def stop_once(self: Loop, logged: dict[str, float]) -> None:
        log(self, logged)
        if self.step == 3 and self.job.out.name not in stopped:
            stopped.append(self.job.out.name)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loop, "log", stop_once)
    for stage in STAGES:
        with pytest.raises(Stopped, match=r"Stopped at step [34] of 6"):
            learn(SAMPLE, tmp_path / "run", size="tiny", objects="move", quiet=True)
        assert stopped[-1] == stage and not (tmp_path / "run/objects.json").exists()
        assert load(tmp_path / "run").capabilities[0] == ("embed" if stage == "features" else "segment"), "what is there can be used"
    learn(SAMPLE, tmp_path / "run", size="tiny", quiet=True)  # auto: what the folder holds
    assert tuple(stopped) == STAGES and weights(tmp_path / "run") == weights(run)
    assert (tmp_path / "run/objects.json").read_bytes() == (run / "objects.json").read_bytes()


def test_what_was_decided_stays_decided(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(JOB, "finish", lambda out, *rest: out / "report.html")
    monkeypatch.setattr(JOB, "run_stage", lambda *rest: None)
    monkeypatch.setattr("selftaught.learn_objects.measure_masks", lambda *rest: pytest.fail("measured again"))
    learn(SAMPLE, tmp_path / "run", size="tiny")
    assert in_one_line(read_json(run / "objects.json")) in capsys.readouterr().out
    with pytest.raises(RunError, match="objects='move'"):
        learn(SAMPLE, tmp_path / "run", size="tiny", objects="cut", quiet=True)


def test_a_job_of_an_earlier_version_goes_on_as_it_began(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "run"
    shutil.copytree(run / "features", old / "features")
    plan = read_json(run / "learn.json")
    del plan["asked"]["objects"]
    plan["asked"]["minutes"] = 100.0  # a new job of so many minutes would have MOVE
    (old / "learn.json").write_text(json.dumps({**plan, "stages": {"features": plan["stages"]["features"]}}))
    done: list[str] = []
    monkeypatch.setattr(JOB, "fit_minutes", lambda stage, *rest: stage)
    monkeypatch.setattr(JOB, "run_stage", lambda stage, data, out, *rest: done.append(out.name))
    monkeypatch.setattr(JOB, "finish", lambda out, *rest: out / "report.html")
    for objects in ("auto", "cut"):
        learn(SAMPLE, old, size="tiny", minutes=100.0, objects=objects, quiet=True)
    assert done == ["features", "masks"] * 2 and not (old / "objects.json").exists()
    with pytest.raises(RunError, match="objects='cut'"):
        learn(SAMPLE, old, size="tiny", minutes=100.0, objects="move", quiet=True)


def test_auto_takes_move_when_there_is_time(tmp_path: Path) -> None:
    cases = [(8.0, "small"), (MOVE_MINUTES - 0.1, "paper"), (None, "small"), (None, "tiny"), (MOVE_MINUTES, "small"), (None, "paper")]
    assert [objects_of("auto", m, s, tmp_path) for m, s in cases] == ["cut"] * 4 + ["move"] * 2
    assert objects_of("move", 8.0, "small", tmp_path) == "move" and objects_of("cut", None, "paper", tmp_path) == "cut"
    with pytest.raises(ConfigError, match="Did you mean 'move'"):
        objects_of("mov", None, "small", tmp_path)


def test_minutes_are_divided_and_needs_are_trained_before() -> None:
    for shares in SHARES.values():
        assert 0.7 < sum(shares.values()) < 0.85, "the rest is for what is no training"
    order = list(SHARES["move"])
    assert tuple(order) == STAGES == tuple(NEEDS)
    assert SHARES["cut"] == {"features": 0.48, "masks": 0.30}, "as ever"
    assert all(order.index("move" if need == "masks" else need) < order.index(name) for name in order for need in NEEDS[name])
    for name in STAGE_METHODS:
        config = first_config(name, 96, "small", SAMPLE)
        assert config.image_px == 96
    assert first_config("masks_move", 96, "small", SAMPLE).teacher == "run" and first_config("move", 224, "paper", SAMPLE).init == "cut"
    held = first_config("move", 96, "small", "sample:things")
    assert (held.init, held.anchor_weight, held.paste, held.share_to) == ("cut", 1.0, "own", 0.0), "learn holds masks to the cut"


def test_minutes_become_steps_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of each stage runs, with needs that have learned nothing."""
    fit = JOB.fit_minutes
    monkeypatch.setattr(JOB, "fit_minutes", lambda *rest: fit(*rest, trial_s=0.0))
    monkeypatch.setattr(JOB, "choose", lambda method, step: Plan())
    monkeypatch.setattr(JOB, "run_stage", lambda *rest: None)
    monkeypatch.setattr(JOB, "keep_better", lambda *rest: None)
    monkeypatch.setattr(JOB, "finish", lambda out, *rest: out / "report.html")
    out = learn(SAMPLE, tmp_path / "run", size="tiny", objects="move", minutes=0.05, quiet=True)
    stages = read_json(out / "learn.json")["stages"]
    assert list(stages) == list(STAGES) and all(c["steps"] >= 20 for c in stages.values())
    assert all((out / name / "plan.json").exists() for name in STAGES)


def test_trainings_that_took_too_long_shorten_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def fit(stage: Any, parts: Any, minutes: float, *rest: Any) -> Any:
        given.append(minutes)
        return stage

    monkeypatch.setattr(JOB, "fit_minutes", fit)
    learner = JOB.features_stage("simclr", None, "tiny", SAMPLE)
    asked = {"minutes": 100.0, "need": [], "size": "tiny", "seed": 0, "data": SAMPLE, "objects": "move"}
    spent = {"reading pictures": 900.0, "features": 27 * 60.0, "masks": 12 * 60.0}
    for name in STAGES:
        JOB.planned(name, asked, learner, SAMPLE, None, tmp_path, True, {} if name in ("features", "masks") else spent)
    assert given == pytest.approx([28.0, 10.0, 18.0, 12.0, 4.0]), "two minutes over"


def test_what_cannot_be_is_refused_before_anything_is_learned(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no rule 'mvoe'"):
        learn(SAMPLE, tmp_path / "run", size="tiny", objects="mvoe")
    monkeypatch.setattr(JOB, "is_clips", lambda data: True)
    with pytest.raises(ConfigError, match="is for pictures"):
        learn(SAMPLE, tmp_path / "run", size="tiny", objects="move")
    monkeypatch.undo()
    odd = JOB.features_stage("simclr", None, "tiny", SAMPLE)
    monkeypatch.setattr(JOB, "features_stage", lambda *rest: JOB.replace(odd, config=JOB.replace(odd.config, image_px=36)))
    with pytest.raises(ConfigError, match=r"MOVE cannot be built .*image_px 36 is not a multiple of patch_px 8"):
        learn(SAMPLE, tmp_path / "run", size="tiny", objects="move", quiet=True)
    assert not list((tmp_path / "run").rglob("learn.json"))


def test_composites_of_a_paste_are_of_the_picture() -> None:
    """The object that was moved lies where it was moved to."""
    from selftaught.learn_objects import composites
    from selftaught.segmentation.move_scene import make_scene

    class Flat:
        patch_px = 8

        def inpaint(self, images: torch.Tensor, masks: torch.Tensor, masked_encoder: bool = False) -> torch.Tensor:
            return torch.zeros_like(images)

    class Mover:
        class config:  # noqa: N801
            shift_frac = 0.125

        def scene(self, pictures: torch.Tensor, masks: torch.Tensor, by: torch.Tensor) -> Any:
            return make_scene(pictures, masks, by, Flat(), tiles=False)

    pictures = torch.full((2, 3, 32, 32), 0.5)
    pictures[:, :, 8:16, 8:16] = 1.0
    mask = (pictures[:, 0] > 0.9).numpy().astype(np.float32)
    first, second = composites(Mover(), pictures, [mask[0], mask[1]])
    assert (first[12:20, 12:20] == 255).all() and (first[8:12, 8:12] == 0).all() and (first[0:8] == 128).all()
    assert (second[12:20, 4:12] == 255).all() and (second[8:12, 12:16] == 0).all()
