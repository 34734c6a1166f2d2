"""The main job for clips: from a folder of unlabelled videos to layers, actions, a model that plays them, and a report.

    RUN/features/      a training of the room `representation` on frames of the clips
    RUN/actions/       GLASS, whose perceptual loss compares those features
    RUN/scores.json    predictions and use of actions; layers, motion and actions where a world wrote the truth
    RUN/report.html    what a person looks at
    RUN/learn.json     the plan, as for pictures

Every stage continues where it stopped when the same command is given again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.core.config import from_json, read_json, to_json, write_json
from selftaught.core.errors import RunError
from selftaught.data.clip_truth import ClipTest
from selftaught.data.clip_windows import WindowSet
from selftaught.evaluate import evaluate, open_clips_for
from selftaught.loading import load_method
from selftaught.method import TrainConfig
from selftaught.registry import load_class
from selftaught.report.clip_page import ClipReport, next_steps, write_clip_report
from selftaught.report.collect import verdict
from selftaught.report.content import ReportContent
from selftaught.report.plots import read_curves
from selftaught.settings import base_config, open_items

METHOD = "glass"
SHARES = {"features": 0.2, "actions": 0.65}
"""How `minutes` is divided; the rest is for reading, scoring and the report."""
TELLS_DB = 0.3
"""A difference of drawings below this is called none: nobody sees it."""
ALIKE_DB = 35.0
"""Where a copy of the last frame is as good as this, hardly anything moves from one frame to the next."""
STAGES = {"features": "Features", "actions": "Layers and actions"}
SHOWN_CURVES = ("loss", "health", "mask_frac", "global_frame", "local_global_motion", "code_perplexity", "real_frames", "std_z")


def configs_of(asked: Mapping[str, Any], features: str, path: Path) -> dict[str, TrainConfig] | None:
    """The configs of a job that was planned before, or None; raises RunError when it was another job.

    `features` is the method that learned the features: of a run that was given it may be another one than was asked for.
    """
    if not path.exists():
        return None
    kept = read_json(path)
    before, trained = kept.get("asked"), kept.get("stages")
    if not isinstance(before, dict) or not isinstance(trained, dict) or set(trained) != set(SHARES):
        raise RunError(f"{path} is damaged.", expected="what `selftaught learn` writes of clips", do="Choose another --out.")
    changed = [k for k in asked if before.get(k) != asked[k]]
    if changed:
        texts = ", ".join(f"{k}={before.get(k)!r}" for k in changed)
        raise RunError(f"{path.parent} holds another job, with {texts}.", do="Choose another --out, or repeat the first command.")
    names = {"features": features, "actions": METHOD}
    return {k: from_json(load_class(names[k]).Config, c) for k, c in trained.items()}


def first_configs(features: TrainConfig, size: str, data: Any, sizes: np.ndarray) -> dict[str, TrainConfig]:
    """The configs of a new job, before `minutes` is fitted; the perceptual loss compares the features that are learned first.

    Frames get the shape of the clips, whose heights and widths are `sizes` (N, 2): stretched people are hard to know again.
    """
    actions: Any = base_config(METHOD, size, data)
    return {"features": features, "actions": replace(actions, perceptual="features", width_px=width_for(actions, sizes))}


def width_for(config: Any, sizes: np.ndarray) -> int:
    """Width in pixels that goes with the config's height for clips of sizes (N, 2): their median shape, from 2 to 1 up to 1 to 2."""
    unit = 8 * config.fold
    shape = float(np.clip(np.median(sizes[:, 1] / sizes[:, 0]), 0.5, 2.0)) if len(sizes) else config.width_px / config.image_px
    return max(unit * round(config.image_px * shape / unit), 32)


def keep_plan(asked: Mapping[str, Any], configs: Mapping[str, TrainConfig], path: Path) -> None:
    """Write learn.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"data": asked["data"], "asked": dict(asked), "stages": {k: to_json(c) for k, c in configs.items()}})


def report_clips(out: Path, data: Any, seconds: Mapping[str, float]) -> Path:
    """Score what was learned and write the report."""
    method: Any = load_method(out / "actions")
    test: ClipTest = open_clips_for(data, method, None, 0)
    windows: WindowSet = open_items(type(method), data, method.config)  # type: ignore[assignment]
    shown = test.windows.first(64)
    clips = shown.batch(range(len(shown))).float() / 255
    evaluate(out, data)
    scores = read_json(out / "scores.json")
    logs = {title: out / part / "metrics.jsonl" for part, title in STAGES.items()}
    curves = {title: _shown(read_curves(path)) for title, path in logs.items() if path.exists()}
    content = ReportContent(
        title="", learned="", curves=curves, health=[verdict(title, curve) for title, curve in curves.items() if curve],
        scores=scores["scores"], how_to_go_on=next_steps(out, slow=_alike(scores["scores"])),
    )  # fmt: skip
    count, held = len(windows.clips), len(test.windows)
    facts = [(f"{count:,}", "clips learned from"), (f"{held:,}", "clips kept out"), (str(method.codes), "local actions"),
             (f"{sum(seconds.values()) / 60:.0f} min", "of computing")]  # fmt: skip
    share = method.config.steps / base_config(METHOD, read_json(out / "learn.json")["asked"]["size"], data).steps
    title = f"What was learned from {count:,} clips of {windows.name.partition(':')[0]}"
    report = ClipReport(title, in_words(count, scores["scores"], share), clips, shown.keys, content, facts, scores.get("notes", []))
    return write_clip_report(out, method, report)


def in_words(count: int, scores: Mapping[str, Any], share: float = 1.0) -> str:
    """One paragraph for people who know nothing of the method, with what speaks against it; `share` of the size's steps were taken."""
    text = (
        f"The machine watched {count:,} clips without any label and without being told what was done in them. It learned to part what acts "
        "from what lies behind it, to measure where the agent goes, and to sort what else it does into a few actions. "
    )
    if share < 0.5:
        text += f"It learned for {share:.0%} of the steps that are usual for its size: too few to judge it by; give it more minutes. "
    horizon = max((int(k.rsplit("_", 1)[1]) for k in scores if k.startswith("psnr_ar_")), default=0)
    if horizon:
        text += _drawing(scores[f"psnr_ar_{horizon}"], scores.get("psnr_ar_1"), horizon)
    usage = scores.get("code_perplexity")
    if usage:
        text += f"Of its local actions it uses {usage['value']:.1f} in effect. "
    if "mask_iou" not in scores:
        text += "No truth came with the clips, so whether layers and actions mean something is for you to see."
    return text


def _drawing(last: Mapping[str, Any], first: Mapping[str, Any] | None, horizon: int) -> str:
    """How well it draws: beside ways without a model, beside itself when it is told nothing, and one step ahead."""
    value, beside = last["value"], dict(last["baselines"])
    told = beside.pop("told_nothing", None)
    beside.pop("oracle", None)
    text = f"From one frame and the actions it draws the frame {horizon} steps ahead with {value:.1f} dB; "
    if beside:
        best, other = max(beside.items(), key=lambda x: x[1] or 0.0)
        text += f"the best of the simple ways ({best.replace('_', ' ')}) reaches {other:.1f} dB: it is {_than(value, other)} than that. "
    if told is not None:
        worth = value - told
        use = f"the actions are worth {worth:.1f} dB" if worth >= TELLS_DB else "its drawing makes no use of the actions"
        text += f"Told nothing of what is done it reaches {told:.1f} dB: {use}. "
    copied = first["baselines"].get("copy_last") if first else None
    if first and copied is not None and first["value"] < copied:
        text += (
            f"One step ahead it is worse ({first['value']:.1f} dB) than repeating the last frame ({copied:.1f} dB): what it draws is "
            "more blurred than frames differ. "
        )
    return text


def _than(value: float, other: float) -> str:
    return "no better" if abs(value - other) < TELLS_DB else "better" if value > other else "worse"


def _alike(scores: Mapping[str, Any]) -> bool:
    """Whether neighbouring frames are nearly the same."""
    return (scores.get("psnr_ar_1", {}).get("baselines", {}).get("copy_last") or 0.0) > ALIKE_DB


def _shown(curves: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in curves.items() if k in SHOWN_CURVES}
