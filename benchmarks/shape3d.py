"""Train the methods of shape at size `small` on worlds of solid objects, score them, and write benchmarks/results/METHOD.json.

    python benchmarks/shape3d.py [--methods viewpoint unsup3d shape_gan shape_autoencoder] [--backgrounds plain cluttered]
                                 [--runs runs/shape3d] [--seeds 0 1 2]

unsup3d: one set of 4,000 drawn heads, a training per seed; beside it one training without the mirrored reconstruction (flip_weight 0)
and one with learning rate 0. viewpoint: for every seed 2,500 drawn cars of their own (the choice of the way round the circle depends
on the pictures, not on the network), before a plain and before cluttered backgrounds; its control is the untrained network,
among the baselines. shape_gan: 4,000 drawn heads with room around them; unsup3d learns viewpoints from their middles, the generator is
told those; beside it trainings whose discriminator is told no viewpoint (a third of the steps: the mirrored solution shows early) and
with learning rate 0. shape_autoencoder: on those generators; its control has learning rate 0.
Results are written after every training. Every fifth object is held out; the scores are theirs. Trainings that were stopped continue;
finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from measuring import write
from selftaught.core.config import read_json, write_json
from selftaught.evaluate import evaluate
from selftaught.registry import load_class
from selftaught.train import train
from selftaught.worlds.meshes import writing

CONTROL_STEPS = 20
SHOWN = {
    "unsup3d": ("azimuth_median_deg", "rotation_median_deg", "mad_deg", "side", "depth_correlation"),
    "viewpoint": ("azimuth_median_deg", "acc30", "azimuth_mod180_deg"),
    "shape_gan": (
        "azimuth_correlation", "azimuth_median_deg", "rotation_median_deg", "chamfer", "thick_enough", "thickness_error", "relief",
        "spread_error", "area_error",
    ),
    "shape_autoencoder": (
        "mask_iou", "azimuth_median_deg", "azimuth_correlation", "rotation_median_deg", "chamfer", "thick_enough", "relief",
        "width_correlation", "depth_correlation", "picture_error",
    ),
}  # fmt: skip
UNTOLD_FRAC = 3
TIMES = {"side": (100.0, "0.01 log depth")}
"""Scores that are shown in hundredths, as papers do."""
SUMMARY = ("azimuth_median_deg", "mad_deg", "acc30", "azimuth_correlation", "circular_correlation", "chamfer", "mask_iou")
ROOM = "reach=1.45"
"""Heads with room around them, whose middle half is what `heads` shows."""
CROPPED = ("image_px=64", "crop_frac=0.5")


def pictures(folder: Path, world: str, count: int, seed: int, background: str, *more: str) -> Path:
    """A set of pictures, made when it is not there."""
    if not (folder / "world.json").exists():
        writing.make(world, folder, count, seed, "small", [f"background={background}", *more])
    return folder


def one_run(
    method: str, data: Path, run: Path, seed: int, settings: tuple[str, ...] = (), steps: int | None = None, need: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Train and score once; scores and the processor's seconds are kept in the run folder."""
    begun = (run / "config.json").exists()
    begin = time.process_time()
    train(method, data, run, size="small", seed=seed, steps=steps, set=settings, need=need)
    if not begun:
        write_json(run / "seconds.json", {"training": time.process_time() - begin})
    if not (run / "scores.json").exists():
        evaluate(run)
    timed = (run / "seconds.json").exists()
    seconds = read_json(run / "seconds.json")["training"] if timed else None
    return {"seed": seed, "seconds": seconds, **read_json(run / "scores.json")}


def rows_of(
    method: str, data: str, runs: list[dict[str, Any]], others: dict[str, dict[str, Any]], shown: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Table rows: each score over the seeds, the widest interval, the strongest of each baseline, and other trainings."""
    rows = []
    for score in shown or SHOWN[method]:
        found = [run["scores"][score] for run in runs]
        times, unit = TIMES.get(score, (1.0, found[0]["unit"]))
        best = max if found[0]["better"] == "higher" else min
        common = [k for k in found[0]["baselines"] if all(k in f["baselines"] for f in found)]  # earlier runs may have fewer
        baselines = {k: best(f["baselines"][k] for f in found) for k in common}
        baselines |= {name: other["scores"][score]["value"] for name, other in others.items()}
        rows.append({
            "method": method, "data": data, "score": score, "unit": unit, "better": found[0]["better"],
            "values": [times * f["value"] for f in found], "n": found[0]["n"],
            "ci95": [times * min(f["ci95"][0] for f in found), times * max(f["ci95"][1] for f in found)],
            "baselines": {k: times * v for k, v in baselines.items()}, "summary": score in SUMMARY,
        })  # fmt: skip
    return rows


def heads(folder: Path, seeds: list[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and runs of unsup3d."""
    data = pictures(folder / "heads", "heads", 4000, 0, "plain")
    runs = [one_run("unsup3d", data, folder / f"unsup3d-{seed}", seed) for seed in seeds]
    others = {
        "no mirror": one_run("unsup3d", data, folder / "unsup3d-no-mirror", 0, ("flip_weight=0.0",)),
        "control (lr 0)": one_run("unsup3d", data, folder / "unsup3d-control", 0, ("lr=0.0",), CONTROL_STEPS),
    }
    return rows_of("unsup3d", "heads, 32 px", runs, others), runs


def solids(method: str, folder: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """Runs of shape_gan, or of shape_autoencoder on them; results are written after each."""
    data = pictures(folder / "heads_room", "heads", 4000, 0, "plain", ROOM)
    runs: list[dict[str, Any]] = []
    others: dict[str, dict[str, Any]] = {}

    def told() -> None:
        seconds = [run["seconds"] for run in runs]
        more = {} if None in seconds else {"seconds": sum(seconds), "clock": "processor time of the trainings with seeds"}
        write(method, rows_of(method, "heads, 32 px", runs, others), seeds=seeds[: len(runs)], **more)

    def need(seed: int) -> tuple[str, ...]:
        pose = folder / f"pose-{seed}"
        one_run("unsup3d", data, pose, seed, CROPPED)
        return (f"pose={pose}",) if method == "shape_gan" else (f"generator={folder / f'shape_gan-{seed}'}",)

    for seed in seeds:
        runs.append(one_run(method, data, folder / f"{method}-{seed}", seed, need=need(seed)))
        told()
        if seed == seeds[0]:
            others["control (lr 0)"] = one_run(
                method, data, folder / f"{method}-control", seed, ("lr=0.0",), CONTROL_STEPS, need(seed)
            )
            told()
    if method == "shape_gan":
        steps = load_class(method).sizes["small"].steps // UNTOLD_FRAC
        untold = folder / "shape_gan-untold"
        others["not told the viewpoint"] = one_run(method, data, untold, seeds[0], ("pose_conditioning=false",), steps, need(seeds[0]))
        told()
    return runs


def cars(folder: Path, seeds: list[int], backgrounds: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and runs of viewpoint."""
    rows, every = [], []
    for background in backgrounds:
        sets = [pictures(folder / f"cars_{background}-{seed}", "cars", 2500, seed, background) for seed in seeds]
        runs = [one_run("viewpoint", data, folder / f"viewpoint-{background}-{seed}", seed) for seed, data in zip(seeds, sets, strict=True)]
        rows += rows_of("viewpoint", f"cars, {background} background", runs, {})
        every += runs
    return rows, every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(SHOWN), choices=list(SHOWN))
    parser.add_argument("--backgrounds", nargs="+", default=["plain", "cluttered"], choices=["plain", "cluttered"])
    parser.add_argument("--runs", type=Path, default=Path("runs/shape3d"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    for method in arguments.methods:
        if method in ("shape_gan", "shape_autoencoder"):
            solids(method, arguments.runs, arguments.seeds)
            continue
        if method == "unsup3d":
            rows, runs = heads(arguments.runs, arguments.seeds)
        else:
            rows, runs = cars(arguments.runs, arguments.seeds, arguments.backgrounds)
        seconds = [run["seconds"] for run in runs]
        more = {} if None in seconds else {"seconds": sum(seconds), "clock": "processor time of the trainings with seeds"}
        write(method, rows, seeds=arguments.seeds, **more)


if __name__ == "__main__":
    main()
