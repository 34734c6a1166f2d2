"""Masks of moving scenes with truth: cuts frame by frame, smoothed in time, and one cut of the whole clip.

    python benchmarks/video_masks.py --features RUN [--clips 60] [--seeds 0 1 2] [--frames DATA ...] [--sheet sheet.png]

Clips of w-sprites (12 frames of 48x64, a puppet over a moving ground), the first of the test part of each seed. The score is the mean
over clips of the mean over frames of the IoU (Jaccard); its interval is over clips. With --frames also pictures with masks whose folders
are clips, such as DAVIS: whole sequences, every other frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measuring
from selftaught.data.sources import open_data
from selftaught.loading import load_method
from selftaught.measure.baselines import centre_box
from selftaught.measure.masks import iou
from selftaught.measure.score import score_of
from selftaught.report.pictures import encode
from selftaught.segmentation.cut import overlay
from selftaught.segmentation.tokencut import TokenCut, TokenCutConfig
from selftaught.segmentation.tokencut_video import TokenCutVideo, smooth_in_time
from selftaught.worlds.w_sprites import SIZES, part_of, render, script

Clip = tuple[np.ndarray, np.ndarray]
"""Frames (T, H, W, 3) uint8 and true masks (T, H, W) bool."""


def sprites(seed: int, count: int) -> Iterator[Clip]:
    for i in [i for i in range(5 * count) if part_of(i) == "test"]:
        clip = render(SIZES["small"], script(SIZES["small"], seed, i))
        yield clip.frames, clip.masks > 127


def sequences(data: str) -> Iterator[Clip]:
    source = open_data(data)
    order = sorted(range(len(source)), key=lambda i: source.keys[i])
    for _, members in groupby(order, key=lambda i: source.keys[i].rpartition("/")[0]):
        numbers = list(members)[::2]
        frames = np.stack([source.image(i) for i in numbers])
        yield frames, np.stack([np.isin(source.truth(i).mask, (0, 255), invert=True) for i in numbers])


def methods(features: str) -> tuple[TokenCut, dict[str, TokenCutVideo]]:
    needs = {"features": load_method(features)}
    video = TokenCutVideo.sizes["small"]
    frame = TokenCut(TokenCutConfig(refine="bilateral", sigma_space_px=8.0, sigma_luma=8.0, min_iou=0.0), needs)
    shares = (("looks", 1.0), ("motion", 0.0), ("looks and motion", 0.5))
    return frame, {f"whole clip, {words}": TokenCutVideo(type(video)(**{**vars(video), "alpha": alpha}), needs) for words, alpha in shares}


def masks_of(clip: Clip, frame: TokenCut, whole: dict[str, TokenCutVideo]) -> dict[str, np.ndarray]:
    frames = torch.from_numpy(clip[0]).permute(0, 3, 1, 2).float() / 255
    single = frame.segment(frames).numpy()
    masks = {"frame by frame": single, "frame by frame, median of 3": smooth_in_time(single, 3)}
    masks |= {name: method.segment_clip(frames).numpy() for name, method in whole.items()}
    masks["looks and motion, median of 3"] = smooth_in_time(masks["whole clip, looks and motion"], 3)
    return masks | {"centre box": np.stack([centre_box(*clip[0].shape[1:3])] * len(frames)).astype(np.float32)}


def shown(clip: Clip, masks: dict[str, np.ndarray]) -> Tensor:
    """The middle frame: truth above the masks of each method."""
    t = len(clip[0]) // 2
    picture = torch.from_numpy(clip[0][t]).permute(2, 0, 1).float() / 255
    every = [clip[1], *(m for name, m in masks.items() if name != "centre box")]
    return torch.cat([overlay(picture, torch.from_numpy(m[t].astype(np.float32))) for m in every], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", nargs="*", default=[])
    parser.add_argument("--sheet", help="draw the first eight clips of each kind to SHEET-0.png, SHEET-1.png")
    args = parser.parse_args()
    frame, whole = methods(args.features)
    kinds: list[tuple[str, list[Any]]] = [("w-sprites, test", [sprites(seed, args.clips) for seed in args.seeds])]
    kinds += [(Path(data).name, [sequences(data)]) for data in args.frames]
    rows: list[dict[str, Any]] = []
    for number, (kind, runs) in enumerate(kinds):
        found: dict[str, list[list[float]]] = {}
        sheet: list[Tensor] = []
        for clips in runs:
            of_run: dict[str, list[float]] = {}
            for clip in clips:
                masks = masks_of(clip, frame, whole)
                for name, mask in masks.items():
                    of_run.setdefault(name, []).append(float(iou(list(mask), list(clip[1])).mean()))
                sheet += [shown(clip, masks)] if len(sheet) < 8 else []
            for name, values in of_run.items():
                found.setdefault(name, []).append(values)
        if args.sheet:
            drawn = (torch.cat(sheet, 2).permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
            Path(f"{args.sheet}-{number}.png").write_bytes(encode(drawn, "png"))
        for name, values in found.items():
            row = {"method": name, "data": kind, "score": "Jaccard", "unit": "", "summary": False}
            rows.append({**row, "values": [float(np.mean(v)) for v in values], "ci95": list(score_of(np.concatenate(values)).ci95)})
        measuring.write("tokencut_video", rows)


if __name__ == "__main__":
    main()
