"""The main job: from a folder of unlabelled pictures to features, objects, exports and a report; of clips see `learn_clips.py`.

    RUN/features/      a training of the room `representation`
    RUN/masks/         SelfMask: votes pseudo-masks from the features, then trains the mask network
    RUN/inpainter/, move/, masks_move/, objects.json    with `objects=move`: MOVE as well, and which of both is kept (`learn_objects.py`)
    RUN/scores.json    where truth was found
    RUN/export/        COCO, YOLO, PNG masks, embeddings, ONNX
    RUN/report.html    what a person looks at
    RUN/learn.json     the plan: what was asked, and the steps that `minutes` became; a training's are frozen when it begins

Every stage continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from selftaught import apply
from selftaught.core.config import from_json, read_json, to_json, write_json
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.guards import RunLock
from selftaught.core.seeds import batch_indices, seed_all
from selftaught.core.tune import Plan, choose
from selftaught.data.cache import ImageSet, build_cache
from selftaught.data.clips import is_clips
from selftaught.data.sources import open_data
from selftaught.evaluate import evaluate
from selftaught.learn_clips import METHOD, configs_of, first_configs, keep_plan, report_clips
from selftaught.learn_clips import SHARES as CLIP_SHARES
from selftaught.learn_objects import (
    NEEDS,
    SHARES,
    STAGE_METHODS,
    first_config,
    keep_better,
    objects_of,
    side_by_side,
)
from selftaught.loading import BUILD_ERRORS, load
from selftaught.method import Method, Progress, TrainConfig
from selftaught.registry import load_class
from selftaught.report.collect import collect
from selftaught.report.html import write_report
from selftaught.run_folder import before_start, refuse_within
from selftaught.settings import base_config, open_items, parse_needs
from selftaught.train import describe_data, is_path, train

SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """One training of the job."""

    method: str
    config: TrainConfig


def learn(
    data: Any,
    out: str | os.PathLike[str],
    minutes: float | None = None,
    size: str = "small",
    seed: int = 0,
    features: str = "simclr",
    need: Sequence[str] = (),
    objects: str = "auto",
    quiet: bool = False,
) -> Path:
    """Learn features and objects from unlabelled pictures and write a report; the same call again continues.

    Args:
        data: folder, tar, npz, list file, URL, list of paths, array, or sample:NAME; a folder with videos is learned as clips.
        out: folder of the run.
        minutes: time for learning on this machine; becomes steps once, from a measured rate. The size's own steps when None.
        size: tiny (seconds, for tests), small (CPU minutes) or paper (GPUs).
        seed: seed of everything random.
        features: the method that learns the features.
        need: ("features=RUN",) takes learned features instead of learning them.
        objects: cut (a network learns from what stands out from the rim), move (also one that learns from MOVE; the better one by
            measures without truth is kept), or auto: move from `learn_objects.MOVE_MINUTES` on and at size paper, cut otherwise.

    Returns:
        The run folder; open report.html in it.
    """
    if minutes is not None and not 0 < minutes < 1e6:
        raise ConfigError(f"minutes is {minutes}.", expected="a positive number")
    out = Path(os.path.expanduser(out))
    refuse_within(out, data)
    if os.path.exists(out / "config.json"):
        raise RunError(f"{out} holds a run of `selftaught train`.", expected="a new folder, or one of `selftaught learn`",
                       do="Choose another --out; --need features=RUN builds on what that run learned.")  # fmt: skip
    refuse_foreign(out)
    asked = {
        "schema": SCHEMA, "size": size, "seed": seed, "minutes": minutes, "features": features, "need": list(need),
        "data": os.path.realpath(os.path.expanduser(data)) if is_path(data) else describe_data(data),
    }  # fmt: skip
    given = parse_needs(need, ("features",)).get("features")
    if is_clips(data):
        if objects not in ("auto", "cut"):
            raise ConfigError(f"--objects {objects} is for pictures.", why="clips are parted into layers by what moves in them")
        job = learn_clips
    else:
        asked["objects"] = objects_of(objects, minutes, size, out)
        job = learn_pictures
    with RunLock(out):
        report = job(asked, data, out, given, quiet, {})
    if not quiet:
        print(f"look at {report}")
    return out


def refuse_foreign(out: Path) -> None:
    """Raise RunError for a folder of other things: its report.html, scores.json and export would be written over."""
    if not os.path.isdir(out) or os.path.exists(out / "learn.json"):
        return
    ours = {*SHARES["move"], *CLIP_SHARES}  # a start that was stopped while it planned leaves these
    others = [name for name in sorted(os.listdir(out)) if name not in ours and not name.startswith(".") and not before_start(name)]
    if others:
        raise RunError(f"{out} exists and is no run of `selftaught learn`: it holds {others[0]}.", expected="a new or empty folder",
                       do="Choose another --out.")  # fmt: skip


def learn_pictures(
    asked: dict[str, Any], data: Any, out: Path, given: Path | None, quiet: bool, seconds: dict[str, float]
) -> Path:
    """The job for pictures; returns the report."""
    size, seed, objects = asked["size"], asked["seed"], asked["objects"]
    learner = features_stage(asked["features"], given, size, data)
    if objects == "move":
        refuse_misfit(learner, size, data)
    images = timed(seconds, "reading pictures", lambda: read_pictures(data, learner.config, quiet))
    for name in SHARES[objects]:
        stage = timed(seconds, "planning", lambda name=name: planned(name, asked, learner, data, images, out, quiet, seconds))
        if name == "features" and given is not None:
            continue
        parts = {"features": given or out / "features", "inpainter": out / "inpainter", "masks": out / "move"}
        needs = tuple(f"{need}={parts[need]}" for need in NEEDS[name])
        timed(seconds, name, lambda stage=stage, needs=needs, name=name: run_stage(stage, data, out / name, size, seed, needs, quiet))
    if objects == "move":
        timed(seconds, "comparing", lambda: keep_better(out, images, quiet))
    timed(seconds, "scoring", lambda: evaluate(out, data))
    timed(seconds, "exporting", lambda: apply.export(out, (), out / "export", data=data, quiet=quiet))
    return finish(out, data, images, seconds)


def learn_clips(
    asked: dict[str, Any], data: Any, out: Path, given: Path | None, quiet: bool, seconds: dict[str, float]
) -> Path:
    """The job for clips, see `learn_clips.py`; returns the report."""
    size, seed, minutes = asked["size"], asked["seed"], asked["minutes"]
    learner = features_stage(asked["features"], given, size, data)
    method = load_class(METHOD)
    clips: Any = timed(seconds, "reading clips", lambda: open_items(method, data, base_config(METHOD, size, data)))
    configs = configs_of(asked, learner.method, out / "learn.json")
    if configs is None:
        configs = first_configs(learner.config, size, data, clips.sizes)
        stages = {"features": Stage(learner.method, configs["features"]), "actions": Stage(METHOD, configs["actions"])}
        for name, share in CLIP_SHARES.items():
            if minutes is not None and not (name == "features" and given):
                cls = method if name == "actions" else load_class(learner.method)
                items: Any = open_items(cls, data, stages[name].config)
                stages[name] = fit_minutes(stages[name], stages, minutes * share, items, seed, out / name, quiet)
                configs[name] = stages[name].config
        keep_plan(asked, configs, out / "learn.json")
    features = given or out / "features"
    if given is None:
        stage = Stage(learner.method, configs["features"])
        timed(seconds, "features", lambda: run_stage(stage, data, features, size, seed, (), quiet))
    stage = Stage(METHOD, configs["actions"])
    need = (f"features={features}",)
    timed(seconds, "layers and actions", lambda: run_stage(stage, data, out / "actions", size, seed, need, quiet))
    keep_seconds(out, seconds)
    return report_clips(out, data, read_json(out / "seconds.json"))


def timed(seconds: dict[str, float], stage: str, work: Any) -> Any:
    """Run `work`, adding its time to `seconds`."""
    begin = time.monotonic()
    result = work()
    seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - begin
    return result


def read_pictures(data: Any, config: TrainConfig, quiet: bool) -> ImageSet:
    """Decode all pictures once, at the size that they are learned at, and return those for training."""
    told = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal told
        if not quiet and time.monotonic() - told > 5:
            told = time.monotonic()
            print(f"reading pictures: {done} of {total}", file=sys.stderr)

    images = build_cache(open_data(data, "train"), config.image_px, report=report)
    # Read now, so that a test part of which nothing can be read is refused before the training and not after it.
    build_cache(open_data(data, "test"), config.image_px, max_bad_frac=1.0, report=report)
    if not quiet:
        print(f"{len(images)} pictures, learned at {images.image_px} px; {len(images.bad)} could not be read")
    return images


def features_stage(features: str, given: Path | None, size: str, data: Any) -> Stage:
    """The training of the features, or that of a finished run that was given instead; raises ConfigError where nothing can be learned."""
    if given is not None:
        saved = read_json(given / "config.json")
        return Stage(saved["method"], from_json(load_class(saved["method"]).Config, saved["config"]))
    config = base_config(features, size, data)
    if not config.steps:
        raise ConfigError(
            f"{features} learns nothing by itself: it must be told which weights.",
            do=f"selftaught train {features} DATA --out RUN --set weights=FILE, then learn with --need features=RUN.",
        )
    return Stage(features, config)


def refuse_misfit(learner: Stage, size: str, data: Any) -> None:
    """Raise ConfigError, before anything is learned, where MOVE or its inpainter cannot be built on features of this kind."""
    parts = {n: Stage(STAGE_METHODS[n], first_config(n, learner.config.image_px, size, data)) for n in ("inpainter", "move")}
    try:
        untrained(parts["move"], {**parts, "features": learner})
    except (*BUILD_ERRORS, ConfigError) as error:
        raise ConfigError(f"MOVE cannot be built on these features ({learner.method}): {error}", do="Add --objects cut.") from error


def planned(
    name: str, asked: dict[str, Any], learner: Stage, data: Any, images: ImageSet, out: Path, quiet: bool,
    spent_s: Mapping[str, float],
) -> Stage:  # fmt: skip
    """One training of the job: from learn.json when it stands there, measured just before it begins and written otherwise.

    Features that were given stand in the plan too, but are neither measured nor trained; all else is learned at the size of the
    features, and sooner done when trainings before it took longer (`spent_s`) than was planned.
    """
    kept = kept_stages(asked, learner, out)
    if name in kept:
        return kept[name]
    stage = learner
    if name != "features":
        stage = Stage(STAGE_METHODS[name], first_config(name, learner.config.image_px, asked["size"], data))
    minutes, shares = asked["minutes"], SHARES[asked["objects"]]
    if minutes is not None and not (name == "features" and asked["need"]):
        share = minutes * shares[name]
        over = sum(max(spent_s[k] / 60 - minutes * shares[k], 0.0) for k in shares if k in spent_s)
        share -= min(over, share / 2)
        parts = {**kept, "features": learner, **({"masks": kept["move"]} if "move" in kept else {})}
        stage = fit_minutes(stage, parts, share, images, asked["seed"], out / name, quiet)
    out.mkdir(parents=True, exist_ok=True)
    stages = {k: to_json(s.config) for k, s in {**kept, name: stage}.items()}
    write_json(out / "learn.json", {"data": asked["data"], "asked": asked, "stages": stages})
    return stage


def kept_stages(asked: dict[str, Any], learner: Stage, out: Path) -> dict[str, Stage]:
    """The trainings that learn.json holds, none when it is not there; raises RunError when it is of another job."""
    path = out / "learn.json"
    if not path.exists():
        return {}
    names = {"features": learner.method, **STAGE_METHODS}
    kept = read_json(path)
    before, trained = kept.get("asked"), kept.get("stages")
    if not isinstance(before, dict) or not isinstance(trained, dict) or not {"features"} <= set(trained) <= set(names):
        raise RunError(f"{path} is damaged.", expected="what `selftaught learn` writes", do="Choose another --out.")
    before = {"objects": "cut", **before}  # a job of an earlier version knew nothing else
    changed = [k for k in asked if before.get(k) != asked[k]]
    if changed:
        texts = ", ".join(f"{k}={before.get(k)!r}" for k in changed)
        raise RunError(f"{out} holds another job, with {texts}.", do="Choose another --out, or repeat the first command.")
    return {k: Stage(names[k], from_json(load_class(names[k]).Config, c)) for k, c in trained.items()}


def fit_minutes(
    stage: Stage, parts: Mapping[str, Stage], minutes: float, images: ImageSet, seed: int, run: Path, quiet: bool, trial_s: float = 8.0
) -> Stage:
    """Set the steps of a stage so that it takes `minutes` here, from the time of the steps of a trial under the chosen plan.

    `parts` says which training fulfils each need; for the trial they are untrained.
    """
    seed_all(seed, 0, 0)
    method = untrained(stage, parts)
    if "features" in method.given:
        method.pseudo = np.zeros((len(images), 4, 4), np.uint8)  # type: ignore[assignment]
    players = method.players()
    optimizers = {n: p.build_optimizer() for n, p in players.items()}
    # Halfway through, every part of a step is at work.
    progress = Progress(500, 1000)

    def step(plan: Plan, number: int = 0) -> None:
        indices = batch_indices(len(images), stage.config.batch_size, seed, number)
        for name in players:
            batch = method.prepare(images.batch(indices), indices)
            with plan.autocast():
                loss, _ = method.loss(batch, name, progress)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers[name].step()
            optimizers[name].zero_grad()
        method.after_step(progress)

    plan = choose(method, step)
    times: list[float] = []
    while len(times) < 5 or (sum(times) < trial_s and len(times) < 50):
        begin = time.perf_counter()
        step(plan, len(times))
        times.append(time.perf_counter() - begin)
    # The median: the lower quartile promises steps that a machine with other work to do does not keep up for minutes.
    seconds = float(np.median(times))
    steps = max(int(minutes * 60 / seconds), 20)
    write_json(run / "plan.json", asdict(plan))
    if not quiet:
        print(f"{stage.method}: {seconds:.2f} s a step, {steps} steps in {minutes:.1f} minutes")
    return replace(stage, config=replace(stage.config, steps=steps))


def untrained(stage: Stage, parts: Mapping[str, Stage]) -> Method:
    """The method of a stage with needs, and theirs, that have learned nothing."""
    cls = load_class(stage.method)
    needs = {n: untrained(parts[n], parts).eval().requires_grad_(False) for n in cls.needs_of(stage.config)}
    method: Method = cls(stage.config, needs)
    return method


def run_stage(stage: Stage, data: Any, run: Path, size: str, seed: int, need: tuple[str, ...], quiet: bool) -> Path:
    """Train one stage with exactly its config."""
    base = to_json(base_config(stage.method, size, data))
    settings = [f"{k}={v}" for k, v in to_json(stage.config).items() if base[k] != v]
    return train(stage.method, data, run, size=size, seed=seed, set=settings, need=need, quiet=quiet)


def finish(out: Path, data: Any, images: ImageSet, seconds: dict[str, float]) -> Path:
    """Write the report."""
    keep_seconds(out, seconds)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    beside = side_by_side(out) if (out / "objects.json").exists() else None
    return write_report(out, collect(out, load(out), data, images, read_json(out / "seconds.json"), peak_gb, beside))


def keep_seconds(out: Path, seconds: dict[str, float]) -> None:
    """Add this start's times to those of earlier ones."""
    path = out / "seconds.json"
    before = {k: v for k, v in read_json(path).items() if isinstance(v, float)} if path.exists() else {}
    write_json(path, {k: round(before.get(k, 0.0) + seconds.get(k, 0.0), 1) for k in {**before, **seconds}})
