"""MOVE on sample:things: seeds, SelfMask on its masks, detectors on its boxes, and what it comes to without its parts.

    python benchmarks/move.py --features RUN [RUN ...] --inpainter RUN --runs FOLDER [--controls NAME ...] [--limit 400] [--no-boxes]
                              [--data DATA --name NAME] [--controls-only]

One run of `simclr` at 96 px per seed (`selftaught learn` makes them), one inpainter for all (trained here when it is missing).
Each seed trains `move`, then `selfmask` with `teacher=run` on it, then `cad` on its largest boxes and on all of them (Multi). The
controls train `move` with half the steps on the first features; `half the steps` is what to compare them with. Runs that are there
are kept, and rows of other data. --controls-only with --name trains and compares the controls alone, for features and an inpainter
that are not those of the other rows: the row's values are those of `half the steps`. Data without masks are trained and not scored:
look at them with benchmarks/objects.py --sheet.
Writes benchmarks/results/move.json, and the detectors' rows for their page into cad.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import measuring
from seed_runs import one_run, rows_of
from selftaught.core import draws
from selftaught.core.config import read_json
from selftaught.measure.mask_scores import segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import EvalData
from selftaught.segmentation.move import Move
from selftaught.train import train

SHOWN = ("iou", "accuracy", "max_f", "corloc")
CONTROLS: dict[str, list[str]] = {
    "half the steps": [],
    "no adversary": ["adversarial_weight=0"],
    "shift 0": ["shift_frac=0"],
    "labels shuffled": [],
    "untrained inpainter": [],
    "holes of tiles": ["hole=tiles"],
    "no least area": ["least_weight=0"],
    "no binarisation": ["binary_weight=0"],
    "the paper's binarisation": ["binary_weight=12.5"],
    "no masks to hold to": ["anchor_weight=0"],
    "masked in the decoder only": ["masked_encoder=false"],
    "auto-encoded reals": ["copy_real=false"],
    "discriminator on pixels": ["discriminator=pixels"],
    "discriminator on patches": ["discriminator=patches", "disc_px=96"],
    "discriminator on patches, shift 0": ["discriminator=patches", "disc_px=96", "shift_frac=0"],
}
INPAINTER = ["image_px=96", "mask_frac=0.5", "norm_pixels=false", "block_prob=1", "seen_weight=0.3"]


@contextmanager
def labels_shuffled() -> Iterator[None]:
    """What the discriminator is told of each picture's four kinds is told of them in an order drawn anew."""
    loss = Move.logits

    def shuffled(self: Move, *kinds: Tensor) -> Tensor:
        if len(kinds) == 1:
            return loss(self, *kinds)
        order = draws.rand(len(kinds[0]), len(kinds)).argsort(1).to(kinds[0].device)
        rows = torch.arange(len(order), device=order.device)
        return loss(self, *torch.stack(kinds, 1)[rows[:, None], order].unbind(1))

    with mock.patch.object(Move, "logits", shuffled):
        yield


def scored_alone(method: Move, data: EvalData) -> dict[str, Score]:
    """The scores of the masks alone: the baselines of a control are those of what it is compared with."""
    return segmentation_scores(method, replace(data, made=False), {})


def move_run(  # fmt: skip
    data: str, run: Path, features: Path, inpainter: Path, seed: int, steps: int, settings: Sequence[str], limit: int
) -> dict[str, Any]:
    needs = (f"features={features}", f"inpainter={inpainter}")
    return one_run("move", data, run, seed, list(settings), steps, limit, needs)


def control(name: str, data: str, root: Path, features: Path, inpainter: Path, steps: int, limit: int) -> dict[str, Any]:
    run = root / f"control {name}"
    if name == "untrained inpainter":
        inpainter = root / "untrained inpainter"
        train("mae", data, inpainter, size="small", steps=0, set=INPAINTER, quiet=True)
    changed = mock.patch.object(Move, "evaluate", scored_alone) if name != "half the steps" else nullcontext()
    with changed, labels_shuffled() if name == "labels shuffled" else nullcontext():
        return move_run(data, run, features, inpainter, 0, steps, CONTROLS[name], limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=Path, required=True)
    parser.add_argument("--inpainter", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", default="sample:things")
    parser.add_argument("--name", help="the data's name in the tables; --data itself when not given")
    parser.add_argument("--controls", nargs="*", default=list(CONTROLS), choices=list(CONTROLS))
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--steps", type=int, default=Move.sizes["small"].steps)
    parser.add_argument("--no-boxes", action="store_true", help="leave out the detectors")
    parser.add_argument("--controls-only", action="store_true", help="train no seeds; compare the controls with `half the steps`")
    a = parser.parse_args()
    if a.controls_only and (a.name is None or "half the steps" not in a.controls):
        parser.error('--controls-only needs --name, and "half the steps" among the controls')
    name_of, main_scores = a.name or a.data, ("iou", "corloc") if a.name is None else ()
    path = measuring.RESULTS / "move.json"
    others = [row for row in read_json(path)["rows"] if row["data"].partition(",")[0] != name_of] if path.exists() else []
    if not a.inpainter.exists():
        train("mae", a.data, a.inpainter, size="small", steps=500, set=INPAINTER)
    found: dict[str, list[dict[str, Any]]] = {"move": [], "selfmask on move": [], "move + cad": [], "move multi + cad": []}
    controls: dict[str, dict[str, Any]] = {}

    def save() -> None:
        rows = [row for name, runs in found.items() if runs
                for row in rows_of(name, SHOWN if "cad" not in name else ("corloc", "ap50"), main_scores, runs,
                                   controls if name == "move" else {}, name_of)]  # fmt: skip
        measuring.write("move", [*others, *rows])
        if not a.controls_only:
            measuring.write("cad", [{**row, "summary": False} for row in [*others, *rows] if row["method"].endswith("cad")])

    for seed, features in enumerate([] if a.controls_only else a.features):
        run = a.runs / f"move-{seed}"
        found["move"].append(move_run(a.data, run, features, a.inpainter, seed, a.steps, (), a.limit))
        needs = (f"features={features}", f"masks={run}")
        found["selfmask on move"].append(
            one_run("selfmask", a.data, a.runs / f"selfmask-{seed}", seed, ["teacher=run"], a.steps // 2, a.limit, needs)
        )
        for name, pseudo in () if a.no_boxes else (("move + cad", "largest"), ("move multi + cad", "all")):
            cad = a.runs / f"cad-{pseudo}-{seed}"
            found[name].append(one_run("cad", a.data, cad, seed, [f"pseudo={pseudo}"], a.steps // 2, a.limit, needs[1:]))
        save()
    for name in a.controls:
        reached = control(name, a.data, a.runs, a.features[0], a.inpainter, a.steps // 2, a.limit)
        if a.controls_only and name == "half the steps":
            found["move"] = [reached]
        else:
            controls[name] = reached
        save()


if __name__ == "__main__":
    main()
