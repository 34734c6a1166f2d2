"""The main job on clips, at size `tiny`: every part of the report is there, the command goes on, truth is scored where a world wrote it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from selftaught import learn
from selftaught.core.config import read_json
from selftaught.core.errors import RunError
from selftaught.data.clip_frames import frames_as_pictures
from selftaught.data.clip_reader import Want
from selftaught.data.clip_truth import open_clip_test
from selftaught.data.sources import open_data
from selftaught.evaluate import evaluate
from selftaught.worlds.making import load, make

pytest.importorskip("av")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    make("w-sprites", folder, clips=15, seed=1, size="tiny")
    return folder


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn(world, tmp_path_factory.mktemp("run") / "run", size="tiny", quiet=True)


def test_the_report_shows_every_part(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for section in ("layers", "global", "local", "timelines", "rollouts", "scores", "training", "next"):
        assert f'<section id="{section}">' in page
    assert page.count("data:image/gif;base64,") == 5 + 6 + 3, "five global actions, six local ones, a rollout of each test clip"
    assert page.count('class="line"') == 3 and "psnr_ar_1" in page and "mask_iou" in page
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:|#)', page) and len(page) < 5_000_000


def test_the_job_holds_features_actions_and_scores(run: Path, world: Path) -> None:
    assert {p.name for p in run.iterdir()} >= {"features", "actions", "scores.json", "seconds.json", "learn.json", "report.html"}
    assert read_json(run / "actions" / "config.json")["needs"] == {"features": "../features"}
    scores = read_json(run / "scores.json")["scores"]
    assert {"mask_iou", "global_direction", "ami_stay", "psnr_ar_1", "psnr_tf_1", "consistency", "code_perplexity"} <= set(scores)
    assert scores["psnr_ar_1"]["baselines"].keys() >= {"copy_last", "phase_correlation", "told_nothing", "oracle"}
    assert scores["psnr_ar_1"]["value"] == pytest.approx(scores["psnr_tf_1"]["value"]), "the first step is the same in both regimes"
    assert evaluate(run, world)["mask_iou"].value == pytest.approx(scores["mask_iou"]["value"])


def test_the_same_command_goes_on_and_another_is_refused(run: Path, world: Path) -> None:
    before = (run / "actions" / "metrics.jsonl").read_bytes()
    learn(world, run, size="tiny", quiet=True)
    assert (run / "actions" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(RunError, match="another job"):
        learn(world, run, size="tiny", seed=1, quiet=True)


def test_the_truth_of_a_world_is_that_of_its_scripts(world: Path) -> None:
    made = load(world)
    test = open_clip_test(world, Want(32, 32), 1)
    truth = test.truth
    assert truth is not None and truth.masks.shape == (3, 8, 32, 32)
    scripts = [s for s in made.scripts if s.part == "test"]
    for i, script in enumerate(scripts):
        assert np.array_equal(truth.moves[i], script.moves[1:]) and np.array_equal(truth.locals[i], script.locals[1:])
        assert np.array_equal(truth.shifts_px[i], script.shifts_px) and np.array_equal(truth.ground_shifts_px[i], script.ground_shifts_px)
    assert np.array_equal(truth.stays, truth.moves == 4)
    every_other = open_clip_test(world, Want(16, 64), 2).truth
    assert every_other is not None and every_other.masks.shape == (3, 4, 16, 64)
    steps = scripts[0].shifts_px
    assert every_other.shifts_px[0] == pytest.approx((steps[0:6:2] + steps[1:6:2]) * [2, 0.5]), "summed, in pixels of the frames read"
    assert np.array_equal(every_other.moves[0], scripts[0].moves[2::2])


def test_frames_of_clips_are_pictures_where_there_are_none(world: Path) -> None:
    train, test = (open_data(world, part) for part in ("train", "test"))
    assert (len(train), len(test)) == (48, 12) and not {k.split("@")[0] for k in train.keys} & {k.split("@")[0] for k in test.keys}
    assert train.image(5).shape == (32, 32, 3) and train.resized(5, 16)[0].shape == (16, 16, 3)
    frames = frames_as_pictures(np.arange(2 * 6 * 8 * 8 * 3).reshape(2, 6, 8, 8, 3).astype(np.uint8), per_clip=3)
    assert np.array_equal(frames.image(4)[0, 0], np.uint8([(1 * 6 + 3) * 192 % 256, (9 * 192 + 1) % 256, (9 * 192 + 2) % 256]))
