"""Viewpoints on photographs: the circle of `viewpoint` on each category of ETH-80; writes benchmarks/results/viewpoint_eth80.json.

    python benchmarks/eth80.py --data FOLDER [--categories car cow dog horse cup]

FOLDER holds CATEGORYNN/POLAR-AZIMUTH.jpg (Leibe and Schiele, CVPR 2003; ten objects of a category, 41 known views of each, on a blue
cloth). Used are the 28 views from the side (polar angles 66 to 90 degrees) of all objects that are there. Scored is where the method
lays these pictures on its circle, before its network learns that: angles serve the score alone. These are far fewer pictures than the
method asks for. Azimuth 90 of the data is the front and azimuths grow the other way round than ours, which is set here, since a
mirrored circle is an error. There is no randomness, hence one row for each score.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from measuring import write
from selftaught.measure.viewpoint import azimuth_scores
from selftaught.shape3d.viewpoint import Viewpoint, find_circle

LOWEST_POLAR, PX = 60, 64
SHOWN = ("azimuth_median_deg", "acc30", "azimuth_mod180_deg", "mirrored_deg")


def read(data: Path, category: str) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Pictures (N, 3, PX, PX) uint8 and azimuths (N,) in radians, 0 where the front is seen."""
    pictures, azimuths = [], []
    for path in sorted(data.glob(f"{category}[0-9][0-9]/*.jpg")):
        polar, azimuth = (int(part) for part in path.stem.split("-"))
        if polar >= LOWEST_POLAR:
            pictures.append(np.asarray(Image.open(path).convert("RGB").resize((PX, PX), Image.Resampling.BOX)))
            azimuths.append(np.deg2rad(90.0 - azimuth))
    if not pictures:
        raise SystemExit(f"{data} holds no {category}NN/POLAR-AZIMUTH.jpg")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), np.array(azimuths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--categories", nargs="+", default=["car", "cow", "dog", "horse", "cup"])
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for category in arguments.categories:
        pictures, true = read(arguments.data, category)
        circle = find_circle(pictures, Viewpoint.sizes["small"], print)
        if circle is None:
            raise SystemExit(f"no circle was found in {len(pictures)} pictures of {category}")
        found = circle.place(pictures)[:, 0]
        # Every other picture fixes the frame: neighbours in the list are views of one object, hence the shuffle.
        order = np.random.RandomState(0).permutation(len(true))
        scores = azimuth_scores(found[order].astype(float), true[order], 0)
        for name in SHOWN:
            s = scores[name].to_json()
            kept = {k: s[k] for k in ("unit", "better", "n", "ci95", "baselines")}
            rows.append({
                "method": "viewpoint", "data": f"ETH-80, {category}, {len(true)} pictures", "score": name, "values": [s["value"]],
                "summary": False, **kept,
            })  # fmt: skip
        write("viewpoint_eth80", rows, seeds=[0])


if __name__ == "__main__":
    main()
