"""MOVE on clips: masks of moving scenes with truth, with and without its parts, beside the registered difference alone.

    python benchmarks/move_video.py CLIPS --features RUN --runs FOLDER [--clips 60] [--controls NAME ...] [--sheet SHEET.png]

CLIPS is a folder of w-sprites (`selftaught data make w-sprites`), the train part of which is learned from. The score is that of
benchmarks/video_masks.py on the same test clips (the first of the test part of each seed): the mean over clips of the mean over frames of
the IoU. Runs that are there are kept. Writes benchmarks/results/move_video.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measuring
from selftaught.apply_clips import drawn
from selftaught.loading import load_method
from selftaught.measure.baselines import centre_box
from selftaught.measure.masks import iou
from selftaught.measure.score import score_of
from selftaught.report.pictures import encode
from selftaught.segmentation.move_ground import difference_masks
from selftaught.segmentation.selfmask import resize
from selftaught.train import train
from video_masks import Clip, sprites

CONTROLS = {
    "no adversary": ["adversarial_weight=0"],
    "ground not registered": ["adversarial_weight=0", "motion=none"],
    "no cues": ["adversarial_weight=0", "cues=false"],
    "no prediction": ["prediction_weight=0"],
}


def frames_of(clip: Clip) -> Tensor:
    return torch.from_numpy(clip[0]).permute(0, 3, 1, 2).float() / 255


def jaccard(masks: np.ndarray, clip: Clip) -> float:
    return float(iou(list(masks), list(clip[1])).mean())


def difference(method: Any, frames: Tensor) -> np.ndarray:
    """No learning: what no other registered frame shows."""
    masks = difference_masks(method.cues(method.squares(frames)))
    return resize(masks[:, None], frames.shape[-2:])[:, 0].numpy()


def scored(run: Path, clips: list[Clip]) -> dict[str, list[float]]:
    """Jaccard of each clip by the method, by its looks alone, and without learning."""
    method: Any = load_method(run)
    found: dict[str, list[float]] = {"clip": [], "looks alone": [], "difference": [], "box": []}
    for clip in clips:
        frames = frames_of(clip)
        found["clip"].append(jaccard(method.segment_clip(frames).numpy(), clip))
        found["looks alone"].append(jaccard(method.segment(frames).numpy(), clip))
        found["difference"].append(jaccard(difference(method, frames), clip))
        found["box"].append(jaccard(np.stack([centre_box(*clip[0].shape[1:3])] * len(frames)).astype(np.float32), clip))
    return found


def trained(name: str, args: argparse.Namespace, seed: int) -> Path:
    run = args.runs / f"{name.replace(' ', '-')}-{seed}"
    needs = (f"features={args.features}",)
    return train("move_video", args.data, run, "small", args.steps, seed, CONTROLS.get(name, []), needs, quiet=True)


def row(name: str, runs: list[list[float]]) -> dict[str, Any]:
    return {
        "method": name, "data": "w-sprites, test", "score": "Jaccard", "unit": "", "summary": name == "move_video",
        "values": [float(np.mean(v)) for v in runs], "ci95": list(score_of(np.concatenate(runs)).ci95),
    }  # fmt: skip


def sheet_of(run: Path, clips: list[Clip]) -> bytes:
    """For each of six clips a row: every other frame with the mask drawn in."""
    method: Any = load_method(run)
    rows = [np.concatenate(list(drawn(c[0], method.segment_clip(frames_of(c)).numpy())[::2]), 1) for c in clips[:6]]
    return encode(np.concatenate(rows), "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--features", required=True, type=Path)
    parser.add_argument("--runs", required=True, type=Path)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", nargs="*", default=list(CONTROLS), choices=list(CONTROLS))
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    jobs = [("move_video", seed) for seed in args.seeds] + [(name, args.seeds[0]) for name in args.controls]
    for name, seed in jobs:
        clips = list(sprites(seed, args.clips))
        scores = scored(trained(name, args, seed), clips)
        label = name if name == "move_video" else f"control: {name}"
        found.setdefault(label, []).append(scores["clip"])
        if name == "move_video":
            others = {"looks alone": "move_video, frame by frame", "difference": "registered difference", "box": "centre box"}
            for part, words in others.items():
                found.setdefault(words, []).append(scores[part])
        print(label, seed, {k: round(float(np.mean(v)), 3) for k, v in scores.items()}, flush=True)
        if args.sheet and name == "move_video" and seed == args.seeds[0]:
            args.sheet.write_bytes(sheet_of(args.runs / f"move_video-{seed}", clips))
        measuring.write("move_video", [row(label, runs) for label, runs in found.items()])


if __name__ == "__main__":
    main()
