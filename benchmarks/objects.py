"""All methods that find objects, on the same learned features: the talk's saliency table on data that a laptop can handle.

    python benchmarks/objects.py RUN [RUN ...] --data sample:things --name sample:things [--limit 512]
        [--move RUN [RUN ...] --on-move RUN [RUN ...]] [--only METHOD ...] [--sheet FILE.jpg]

Each RUN is a folder of `selftaught learn` (one per seed) with features and, where they were learned, masks. The cuts are made anew on
its features, with and without the bilateral solver; `selfmask` is its mask network. With --move and --on-move (one each per RUN, made by
benchmarks/move.py on the same features) MOVE and SelfMask on its masks stand beside them. --sheet draws twelve test pictures drawn at
random, one per column: picture, TokenCut, MOVE, SelfMask on MOVE, truth where there is one. Rows of other data and methods that were
measured before are kept.
Writes benchmarks/results/objects.json, and one file per method for its docs page.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measuring
from selftaught.core.config import read_json
from selftaught.data.evalset import EvalSet
from selftaught.evaluate import open_for
from selftaught.loading import load_method
from selftaught.measure.baselines import mask_baselines
from selftaught.measure.mask_scores import mask_scores, segment_all
from selftaught.registry import load_class
from selftaught.report.pictures import contact_sheet, encode, truth_ids
from selftaught.segmentation.cut import overlay

CUTS = ("lost", "tokencut", "spectral", "cutler", "freesolo")
SHOWN = ("iou", "accuracy", "max_f", "corloc")
SOLVER = {"refine": "bilateral", "sigma_space_px": 8.0, "sigma_luma": 8.0, "sigma_chroma": 8.0, "min_iou": 0.0}


def finders(run: Path, more: dict[str, Path]) -> dict[str, Any]:
    """Name -> what segments: the cuts on the features of a run of `learn`, its mask network, and `more` runs of mask networks."""
    features = load_method(run / "features")
    found: dict[str, Any] = {}
    for name in CUTS:
        cls = load_class(name)
        config: Any = replace(cls.sizes["small"], image_px=features.image_px)
        found[name] = cls(config, {"features": features})
        if all(hasattr(config, field) for field in SOLVER):
            found[f"{name}, bilateral"] = cls(replace(config, **SOLVER), {"features": features})
    masks = {"selfmask": run / "masks"} if (run / "masks").exists() else {}
    for name, folder in {**masks, **more}.items():
        for words, refine in (("", "none"), (", bilateral", "bilateral")):
            network = load_method(folder)
            network.config = replace(network.config, refine=refine)
            found[name + words] = network
    return found


def pictures_of(test: EvalSet, limit: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    masked = [i for i in range(len(test)) if test.mask(i) is not None]
    chosen = [masked[k] for k in np.linspace(0, len(masked) - 1, min(limit, len(masked))).astype(int)]
    return [test.image(i) for i in chosen], [np.asarray(test.mask(i)) for i in chosen]


@torch.no_grad()
def rows_of(  # fmt: skip
    runs: list[tuple[Path, dict[str, Path]]], data: str, name: str, limit: int, only: list[str]
) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for seed, (run, more) in enumerate(runs):
        test = open_for(data, load_method(run / "features").image_px, None, 0).test
        pictures, truths = pictures_of(test, limit)
        if not pictures:
            return []
        asked = {key: method for key, method in finders(run, more).items() if not only or key.partition(",")[0] in only}
        answers: dict[str, Any] = {key: segment_all(method, pictures) for key, method in asked.items()}
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


@torch.no_grad()
def sheet_of(run: Path, more: dict[str, Path], data: str) -> bytes:
    """JPEG of twelve test pictures drawn at random, one per column: the picture, then with each method's mask, then with the true one."""
    test = open_for(data, load_method(run / "features").image_px, None, 0).test
    chosen = np.random.default_rng(0).choice(len(test), min(12, len(test)), replace=False)
    found = finders(run, more)
    pictures = [torch.from_numpy(np.array(test.image(i))).permute(2, 0, 1)[None].float() / 255 for i in chosen]
    lines: list[list[np.ndarray]] = [[np.asarray(test.image(i)) for i in chosen]]
    for name in ("tokencut", *more):
        masks = [found[name].segment(picture)[0].float() for picture in pictures]
        lines.append([picture_of(overlay(p[0], m)) for p, m in zip(pictures, masks, strict=True)])
    truths = [test.mask(i) for i in chosen]
    if all(truth is not None for truth in truths):
        lines.append([
            picture_of(overlay(p[0], torch.from_numpy((truth_ids(t) > 0).astype(np.float32))))
            for p, t in zip(pictures, truths, strict=True)
        ])  # fmt: skip
    return encode(contact_sheet([cell for line in lines for cell in line], columns=len(chosen)))


def picture_of(picture: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of (3, H, W) in [0, 1]."""
    return (picture.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", default="sample:things")
    parser.add_argument("--name", default="sample:things")
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--move", nargs="*", type=Path, default=[])
    parser.add_argument("--on-move", nargs="*", type=Path, default=[])
    parser.add_argument("--only", nargs="*", default=[], help="ask these alone")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    kinds = {"move": args.move, "selfmask on move": args.on_move}
    runs = [(run, {kind: folders[k] for kind, folders in kinds.items() if folders}) for k, run in enumerate(args.runs)]
    if args.sheet:
        args.sheet.write_bytes(sheet_of(*runs[0], args.data))
    path = measuring.RESULTS / "objects.json"
    new = rows_of(runs, args.data, args.name, args.limit, args.only)
    again = {(row["data"], row["method"]) for row in new}
    old = read_json(path)["rows"] if path.exists() else []
    rows = [*(row for row in old if (row["data"], row["method"]) not in again), *new]
    measuring.write("objects", rows)
    for name in {method.partition(",")[0] for _, method in again} & set(CUTS):
        measuring.write(name, [row for row in rows if row["method"].split(",")[0] == name])


if __name__ == "__main__":
    main()
