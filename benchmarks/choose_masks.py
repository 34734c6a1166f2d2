"""Does the rule by which `learn` keeps one of two mask networks, without truth, keep the better one? Asked of the truth afterwards.

    python benchmarks/choose_masks.py --cut runs/a/masks runs/b/masks --move bench/move-0 bench/move-1 --masks-move bench/selfmask-0 ...

One run of each kind per seed, on the same features: SelfMask on the cut (`selftaught learn` makes it), MOVE, SelfMask on MOVE
(`benchmarks/move.py` makes both). Writes benchmarks/results/choose_masks.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import measuring
from selftaught.data.evalset import open_eval
from selftaught.learn_objects import scene_of
from selftaught.loading import load_method
from selftaught.measure.choose_masks import PICTURES, MaskCriteria, choose, measure_masks
from selftaught.measure.mask_scores import resize_nearest, segment_all
from selftaught.measure.masks import iou

DATA = "sample:things"
UNITS = {
    "stability": "IoU above chance", "told_apart": "share of pictures, lower is better", "with_object": "share of pictures", "iou": "IoU",
}  # fmt: skip


@torch.no_grad()
def measured(method: Any, move: Any) -> tuple[MaskCriteria, dict[str, Any]]:
    """The criteria on training pictures as `learn` takes them, and beside them the overlap with the truth of the same pictures."""
    data = open_eval(DATA, "train", move.config.image_px)
    chosen = np.unique(np.linspace(0, len(data) - 1, PICTURES).astype(int))
    criteria = measure_masks(method, move.given["features"], scene_of(move), data.images.batch(chosen).float() / 255)
    truths = [resize_nearest(np.asarray(data.mask(int(i))), move.config.image_px) for i in chosen]
    found = segment_all(method, [data.images.images[i].transpose(1, 2, 0) for i in chosen])
    return criteria, {**{k: s.value for k, s in criteria.scores().items()}, "iou": float(np.nanmean(iou(found, truths)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--cut", "--move", "--masks-move"):
        parser.add_argument(name, nargs="+", type=Path, required=True)
    a = parser.parse_args()
    rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(method: str, score: str, value: float, unit: str, n: int) -> None:
        row = rows.setdefault((method, score), {
            "method": method, "data": f"{DATA}, training pictures", "score": score, "unit": unit, "values": [], "n": n, "summary": False,
        })  # fmt: skip
        row["values"].append(value)

    for cut, move_run, masks_move in zip(a.cut, a.move, a.masks_move, strict=True):
        move: Any = load_method(move_run)
        criteria, truth = {}, {}
        for name, method in (("learned from the cut", load_method(cut)), ("learned from MOVE", load_method(masks_move)), ("MOVE", move)):
            criteria[name], values = measured(method, move)
            truth[name] = values["iou"]
            for score, value in values.items():
                add(name, score, value, UNITS[score], PICTURES)
        pairs = [("learned from the cut", "learned from MOVE"), ("MOVE", "learned from MOVE"), ("MOVE", "learned from the cut")]
        for pair in pairs:
            kept = choose({name: criteria[name] for name in pair})
            right = truth[kept.name] == max(truth[name] for name in pair)
            print(f"{pair}: {kept.name}, {kept.reason}, {'right' if right else 'wrong'}", flush=True)
            add("the rule: " + " or ".join(pair), "kept the one that overlaps more with the truth", float(right), "share of seeds", 1)
        measuring.write("choose_masks", list(rows.values()))


if __name__ == "__main__":
    main()
