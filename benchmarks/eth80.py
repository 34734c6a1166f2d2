"""Viewpoints on photographs: `viewpoint` on each category of ETH-80; writes benchmarks/results/viewpoint_eth80.json.

    python benchmarks/eth80.py --data FOLDER [--runs runs/eth80] [--categories car cow dog horse cup] [--test 7]

FOLDER holds CATEGORYNN/POLAR-AZIMUTH.jpg (Leibe and Schiele, CVPR 2003; 10 objects of a category, 41 known views of each, on a blue
cloth). Used are the 28 views from the side (polar angles 66 to 90 degrees) of the objects that are there: --test is kept out, the others
are learned from, without their angles. That is far fewer pictures than the method asks for, and many of the same object. Scored are
what the circle says of the pictures that were learned from, and what the network says of those that were not. Azimuth 90 of the data is the front and
grows the other way round than ours, which is set here, since a mirrored circle is an error. One training per category.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from measuring import write
from selftaught.data.sources import open_data
from selftaught.loading import load_method
from selftaught.measure.viewpoint import azimuth_scores
from selftaught.train import train

LOWEST_POLAR, PX, STEPS = 60, 64, 300
SHOWN = ("azimuth_median_deg", "acc30", "azimuth_mod180_deg", "mirrored_deg")


def sorted_out(data: Path, folder: Path, category: str, test: int) -> Path:
    """Pictures of a category seen from the side, as folder/train and folder/test."""
    for path in sorted(data.glob(f"{category}[0-9][0-9]/*.jpg")):
        polar, number = int(path.stem[:3]), int(path.parent.name[-2:])
        goal = folder / ("test" if number == test else "train") / f"{path.parent.name}_{path.stem}.png"
        if polar >= LOWEST_POLAR and not goal.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("RGB").resize((PX, PX), Image.Resampling.BOX).save(goal)
    return folder


def true_azimuth(keys: Any) -> np.ndarray[Any, Any]:
    """Radians, 0 where the front is seen, from names as car03_066-207."""
    return np.deg2rad([90.0 - float(Path(key).stem.rpartition("-")[2]) for key in keys])


def measured(data: Path, run: Path, category: str) -> list[dict[str, Any]]:
    """Train once and score both parts."""
    train("viewpoint", data, run, size="small", seed=0, steps=STEPS)
    method: Any = load_method(run)
    rows = []
    for part, what in (("train", "circle, objects learned from"), ("test", "network, an object kept out")):
        source = open_data(data, part)
        if part == "train":
            found = np.load(run / "viewpoints.npy", allow_pickle=False)[:, 0]
        else:
            images = torch.from_numpy(np.stack([source.image(i) for i in range(len(source))])).permute(0, 3, 1, 2).float() / 255
            found = method.azimuth(images).numpy()
        scores = azimuth_scores(found.astype(float), true_azimuth(source.keys), 0)
        for name in SHOWN:
            s = scores[name].to_json()
            rows.append({"method": "viewpoint", "data": f"ETH-80 {category}: {what}", "score": name, "values": [s["value"]], "summary": False,
                         **{k: s[k] for k in ("unit", "better", "n", "ci95", "baselines")}})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/eth80"))
    parser.add_argument("--categories", nargs="+", default=["car", "cow", "dog", "horse", "cup"])
    parser.add_argument("--test", type=int, default=7)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for category in arguments.categories:
        folder = sorted_out(arguments.data, arguments.runs / category, category, arguments.test)
        rows += measured(folder, arguments.runs / f"viewpoint-{category}", category)
        write("viewpoint_eth80", rows, seeds=[0])


if __name__ == "__main__":
    main()
