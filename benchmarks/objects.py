"""All methods that find objects, on the same learned features: the talk's saliency table on data that a laptop can handle.

    python benchmarks/objects.py RUN [RUN ...] --data sample:things --name sample:things [--limit 512]

Each RUN is a folder of `selftaught learn` (one per seed) with features and masks. The cuts are made anew on its features, with and without
the bilateral solver; `selfmask` is its mask network. Rows of other data that were measured before are kept.
Writes benchmarks/results/objects.json, and one file per method for its docs page.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import measuring
from selftaught.core.config import read_json
from selftaught.data.evalset import EvalSet
from selftaught.evaluate import open_for
from selftaught.loading import load_method
from selftaught.measure.baselines import mask_baselines
from selftaught.measure.mask_scores import mask_scores, segment_all
from selftaught.registry import load_class

CUTS = ("lost", "tokencut", "spectral", "cutler", "freesolo")
SHOWN = ("iou", "accuracy", "max_f", "corloc")
SOLVER = {"refine": "bilateral", "sigma_space_px": 8.0, "sigma_luma": 8.0, "sigma_chroma": 8.0, "min_iou": 0.0}


def finders(run: Path) -> dict[str, Any]:
    """Name -> what segments."""
    features = load_method(run / "features")
    masks = load_method(run / "masks")
    found: dict[str, Any] = {}
    for name in CUTS:
        cls = load_class(name)
        config: Any = replace(cls.sizes["small"], image_px=features.image_px)
        found[name] = cls(config, {"features": features})
        if all(hasattr(config, field) for field in SOLVER):
            found[f"{name}, bilateral"] = cls(replace(config, **SOLVER), {"features": features})
    masks.config = replace(masks.config, refine="none")
    found["selfmask"] = masks
    again = load_method(run / "masks")
    again.config = replace(again.config, refine="bilateral")
    return {**found, "selfmask, bilateral": again}


def pictures_of(test: EvalSet, limit: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    masked = [i for i in range(len(test)) if test.mask(i) is not None]
    chosen = [masked[k] for k in np.linspace(0, len(masked) - 1, min(limit, len(masked))).astype(int)]
    return [test.image(i) for i in chosen], [np.asarray(test.mask(i)) for i in chosen]


@torch.no_grad()
def rows_of(runs: list[Path], data: str, name: str, limit: int) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for seed, run in enumerate(runs):
        test = open_for(data, load_method(run / "features").image_px, None, 0).test
        pictures, truths = pictures_of(test, limit)
        answers: dict[str, Any] = {key: segment_all(method, pictures) for key, method in finders(run).items()}
        if seed == 0:
            answers |= mask_baselines(pictures)
        for method, found in answers.items():
            scores = mask_scores(found, truths, {})
            for score in SHOWN:
                if score not in scores:
                    continue
                row = rows.setdefault((method, score), {
                    "method": method, "data": name, "score": score, "unit": "", "values": [], "n": len(pictures),
                    "ci95": list(scores[score].ci95 or []), "summary": False})  # fmt: skip
                row["values"].append(scores[score].value)
            print(f"{run.name}, {method}: " + ", ".join(f"{s} {scores[s].value:.3f}" for s in SHOWN if s in scores), flush=True)
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", default="sample:things")
    parser.add_argument("--name", default="sample:things")
    parser.add_argument("--limit", type=int, default=512)
    args = parser.parse_args()
    path = measuring.RESULTS / "objects.json"
    old = [row for row in read_json(path)["rows"] if row["data"] != args.name] if path.exists() else []
    rows = [*old, *rows_of(args.runs, args.data, args.name, args.limit)]
    measuring.write("objects", rows)
    for name in CUTS:
        measuring.write(name, [row for row in rows if row["method"].split(",")[0] == name])


if __name__ == "__main__":
    main()
