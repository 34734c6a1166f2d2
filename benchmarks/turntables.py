"""Viewpoints on turntables that others rendered: the circle of `viewpoint` on the views of one object at a time; writes
benchmarks/results/viewpoint_turntables.json.

    python benchmarks/turntables.py --data FOLDER

FOLDER holds, at any depth, folders of portrait_NNNN.jpg: one object on black, turned once round in equal steps, as
data/graphics/items of the Debian package freedroidrpg-data does. All objects of 30 to 34 views are used, also those that move
otherwise than by turning. The views of an object are shuffled, laid on a circle without labels, and held against the true order:
azimuth k of n is 360 k / n degrees, growing as ours does (looked at); one offset is found on every other view, the rest is scored.
Thirty views are far fewer than the method is for: the graph has 4 neighbours and the curve 3 harmonics, set for the number of views
alone, before any score was seen.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from measuring import write
from selftaught.measure.score import score_of
from selftaught.measure.viewpoint import azimuth_scores
from selftaught.shape3d.viewpoint import Viewpoint, find_circle

PX = 64
VIEWS = (30, 34)
CONFIG = replace(Viewpoint.sizes["small"], neighbours=4, harmonics=3)
NEAR_DEG = 15.0


def turntables(data: Path) -> dict[str, list[Path]]:
    """Name of the object -> its views in order."""
    folders = sorted({path.parent for path in data.rglob("portrait_*.jpg")})
    found = {folder.relative_to(data).as_posix(): sorted(folder.glob("portrait_*.jpg")) for folder in folders}
    return {name: views for name, views in found.items() if VIEWS[0] <= len(views) <= VIEWS[1]}


def read(views: list[Path]) -> torch.Tensor:
    """(N, 3, PX, PX) uint8, padded with black to squares."""
    pictures = [np.asarray(ImageOps.pad(Image.open(view).convert("RGB"), (PX, PX), Image.Resampling.BOX)) for view in views]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    objects = turntables(arguments.data)
    if not objects:
        raise SystemExit(f"{arguments.data} holds no folder with {VIEWS[0]} to {VIEWS[1]} files portrait_NNNN.jpg")
    errors: list[dict[str, float]] = []
    for number, (name, views) in enumerate(objects.items()):
        order = np.random.RandomState(number).permutation(len(views))
        pictures = read([views[i] for i in order])
        circle = find_circle(pictures, CONFIG, lambda text: None)
        angles = np.zeros(len(views)) if circle is None else circle.place(pictures)[:, 0].astype(float)
        scores = azimuth_scores(angles, order * 2 * np.pi / len(views), 0)
        one = scores["azimuth_median_deg"]
        kept = {k: scores[k].value for k in ("azimuth_median_deg", "azimuth_mod180_deg", "mirrored_deg")}
        errors.append({**kept, "shuffled": one.baselines["shuffled"], "constant": one.baselines["constant"]})
        print(f"{name}: {one.value:.1f} degrees, mirrored {kept['mirrored_deg']:.1f}", flush=True)
    columns = {name: np.array([one[name] for one in errors]) for name in errors[0]}
    write("viewpoint_turntables", rows_of(columns), seeds=[0])


def rows_of(columns: dict[str, np.ndarray[Any, Any]]) -> list[dict[str, Any]]:
    """Over objects: the median of their median errors, the share of good ones, and of those that the mirrored order fits better."""
    median, mirrored = columns["azimuth_median_deg"], columns["mirrored_deg"]
    beside = {name: float(np.median(columns[name])) for name in ("constant", "shuffled")}
    good = {name: float((columns[name] < NEAR_DEG).mean()) for name in ("constant", "shuffled")}
    either = (np.minimum(median, mirrored) < NEAR_DEG).astype(float)
    shown = {
        "azimuth_median_deg": score_of(median, better="lower", unit="degrees", statistic=_median, baselines=beside),
        "mirrored_deg": score_of(mirrored, unit="degrees", statistic=_median),
        "azimuth_mod180_deg": score_of(columns["azimuth_mod180_deg"], better="lower", unit="degrees", statistic=_median),
        f"below {NEAR_DEG:.0f} degrees": score_of((median < NEAR_DEG).astype(float), unit="share of objects", baselines=good),
        f"below {NEAR_DEG:.0f} degrees in either direction": score_of(either, unit="share of objects"),
        "mirror image fits better": score_of((mirrored < median).astype(float), better="lower", unit="share of objects"),
    }
    rows = []
    for name, score in shown.items():
        s = score.to_json()
        rows.append({
            "method": "viewpoint", "data": f"turntables of {len(median)} objects", "score": name, "values": [s["value"]], "summary": False,
            **{k: s[k] for k in ("unit", "better", "n", "ci95", "baselines")},
        })  # fmt: skip
    return rows


def _median(rows: np.ndarray[Any, Any]) -> float:
    return float(np.median(rows))


if __name__ == "__main__":
    main()
