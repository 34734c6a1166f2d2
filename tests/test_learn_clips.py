"""What the report of clips says in words: nothing better than the figures beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selftaught.control.glass import GLASS
from selftaught.learn_clips import configs_of, in_words, keep_plan, width_for
from selftaught.registry import load_class
from selftaught.report.clip_page import next_steps, score_rows


def score(value: float, note: str = "", **baselines: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 1, value + 1], "unit": "dB", "note": note, "baselines": baselines}


def test_a_drawing_is_not_praised_for_what_it_does_without_its_actions() -> None:
    """Scores of a training of four minutes on clips of people who hardly move."""
    poor = {
        "psnr_ar_1": score(34.5, copy_last=40.8, phase_correlation=41.0, told_nothing=34.4),
        "psnr_ar_8": score(26.5, copy_last=25.3, phase_correlation=26.4, told_nothing=26.5, oracle=27.0),
    }
    text = in_words(44, poor, 45 / 420)
    assert "(phase correlation) reaches 26.4 dB: it is no better than that" in text
    assert "reaches 26.5 dB: its drawing makes no use of the actions" in text
    assert "One step ahead it is worse (34.5 dB) than repeating the last frame (40.8 dB)" in text
    assert "11% of the steps" in text and "too few" in text and "for you to see" in text
    good = {
        "psnr_ar_1": score(28.0, copy_last=22.6, told_nothing=23.9),
        "psnr_ar_8": score(24.2, copy_last=17.1, phase_correlation=17.7, told_nothing=20.3), "mask_iou": score(0.74),
    }  # fmt: skip
    text = in_words(2400, good)
    assert "it is better than that" in text and "the actions are worth 3.9 dB" in text
    assert not any(x in text for x in ("worse", "too few", "for you to see"))
    assert "it is worse than that" in in_words(5, {"psnr_ar_2": score(16.0, copy_last=17.0)})


def test_notes_are_said_once_and_slow_clips_get_a_hint() -> None:
    rows = score_rows({"a": score(1, "told 4 numbers"), "b": score(2, "told 4 numbers"), "c": score(3, "else")})
    assert [row["note"] for row in rows] == ["told 4 numbers", "", "else"]
    hint = [step for step in next_steps(Path("run"), slow=True) if "every=3" in step.command]
    assert len(hint) == 1 and not any("every=" in step.command for step in next_steps(Path("run")))


def test_a_score_of_all_clips_together_shows_no_interval() -> None:
    together = {**score(4.1), "ci95": [4.1, 4.1]}
    assert [row["interval"] for row in score_rows({"codes": together, "psnr": score(30.0)})] == ["", "29.0 to 31.0"]


@pytest.mark.parametrize(
    ("size", "sizes", "width"),
    [
        ("small", [[64, 64]], 48), ("small", [[480, 640]], 64), ("small", [[720, 1280], [1080, 1920], [64, 64]], 80),
        ("small", [[1920, 1080]], 32),
        ("small", [[100, 900]], 96), ("paper", [[1080, 1920]], 168), ("tiny", [[48, 64]], 48), ("small", [], 64),
    ],
)  # fmt: skip
def test_frames_get_the_shape_of_the_clips_and_a_width_that_the_networks_take(size: str, sizes: list[list[int]], width: int) -> None:
    config: Any = GLASS.sizes[size]
    assert width_for(config, np.array(sizes, np.int64).reshape(-1, 2)) == width and width % (8 * config.fold) == 0


def test_a_plan_with_given_features_of_another_method_is_taken_up_again(tmp_path: Path) -> None:
    asked = {"features": "simclr", "need": ["features=runs/dino"], "data": "clips"}
    configs = {"features": load_class("dino").sizes["tiny"], "actions": GLASS.sizes["tiny"]}
    keep_plan(asked, configs, tmp_path / "learn.json")
    assert configs_of(asked, "dino", tmp_path / "learn.json") == configs
