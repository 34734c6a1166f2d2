"""MOVE on sample:things: seeds, SelfMask on its masks, detectors on its boxes, and what it comes to without its parts.

    python benchmarks/move.py --features RUN [RUN ...] --inpainter RUN --runs FOLDER [--seeds 3] [--only NAME ...] [--limit 400]
                              [--data DATA --name NAME] [--set NAME=VALUE ...] [--file move]

Runs of `simclr` at 96 px, one per seed or one for all, and one inpainter for all; sample:things trains what is missing. Each seed trains
`move`, then `selfmask` with `teacher=run` on it, then `cad` on its largest boxes and on all of them (Multi). Controls train `move` on the
first features; ablations do so with half the steps, `half the steps` is what to compare them with. The cuts on the first features,
with and without the bilateral solver, stand beside. Runs that are there are kept, and rows of other data. --set changes the settings of
every run of `move`, and --file what is written. Data without masks are trained and not scored: look at them with
benchmarks/objects.py --sheet. Writes benchmarks/results/move.json, and the detectors' rows for their page into cad.json.
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
from torch import Tensor, nn

import measuring
from objects import SOLVER
from seed_runs import one_run, rows_of
from selftaught.core import draws
from selftaught.core.config import read_json
from selftaught.measure.mask_scores import segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import EvalData
from selftaught.segmentation.move import Move
from selftaught.train import train

SHOWN = ("iou", "accuracy", "max_f", "corloc")
FILLINGS = ("not filled", "of the mean colour", "of noise", "of neighbours")
"""What stands in the inpainter's place: the picture itself, the mean of what is seen, noise of its mean and deviation, neighbours."""
UNRANKED = ["share_from=0", "share_to=0", "rim_frac=0", "least_weight=100", "binary_weight=1"]
CONTROLS: dict[str, list[str]] = {
    "nothing moves": ["paste=own", "shift_frac=0"],
    "labels shuffled": [],
    "untrained inpainter": [],
}
ABLATIONS: dict[str, list[str]] = {
    "half the steps": [],
    "moved on its own ground": ["paste=own"],
    "moved on its own ground, untrained inpainter": ["paste=own"],
    "moved on its own ground, labels shuffled": ["paste=own"],
    **{f"moved on its own ground, holes {kind}": ["paste=own"] for kind in FILLINGS},
    "moved on its own ground, holes chequered": ["paste=own", "fill=chequered"],
    "holes chequered": ["fill=chequered"],
    "moved on its own ground, holes chequered, labels shuffled": ["paste=own", "fill=chequered"],
    "moved on its own ground, holes chequered, no gradient through them": ["paste=own", "fill=chequered", "soft_inpainting=false"],
    "holes chequered, nothing moves": ["paste=own", "fill=chequered", "shift_frac=0"],
    "not ranked": UNRANKED,
    "not ranked, no least area": [*UNRANKED, "least_weight=0"],
    "not ranked, no binarisation": [*UNRANKED, "binary_weight=0"],
    "discriminator on features": ["discriminator=features", "disc_width=32"],
    "discriminator on pixels": ["discriminator=pixels", "disc_width=32"],
    "auto-encoded reals": ["copy_real=false"],
    "masked in the decoder only": ["masked_encoder=false"],
    "holes of tiles": ["hole=tiles"],
    "no gradient through the inpainting": ["soft_inpainting=false"],
    "started from the cut": ["init=cut"],
    "no wait": ["wait_frac=0"],
    "a finer head": ["head_stride=2", "head_shallow=8"],
    "shift 0": ["shift_frac=0"],
    "no adversary": ["adversarial_weight=0"],
}
CUTS = ("lost", "tokencut", "spectral")
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


class Filling:
    """An inpainter that learned nothing: one of FILLINGS."""

    patch_px = 8

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def inpaint(self, pictures: Tensor, region: Tensor, masked_encoder: bool = False) -> Tensor:
        """(B, 3, S, S) pictures and what is to be filled (B, S, S), both in [0, 1], to what is painted (B, 3, S, S)."""
        if self.kind == "not filled":
            return pictures
        seen = (1 - region)[:, None].detach()
        if self.kind == "of neighbours":
            return blurred(pictures, seen)
        total = seen.sum((2, 3), keepdim=True).clamp(min=1)
        mean = (pictures * seen).sum((2, 3), keepdim=True) / total
        if self.kind == "of the mean colour":
            return mean.expand_as(pictures)
        std = (((pictures - mean).square() * seen).sum((2, 3), keepdim=True) / total).sqrt()
        return (mean + std * draws.randn(*pictures.shape).to(pictures)).clamp(0, 1)


def blurred(pictures: Tensor, seen: Tensor) -> Tensor:
    """At each place the mean of what is seen (B, 1, S, S) in the smallest square around it that is seen by 0.15 of it, then smoothed."""
    def mean(x: Tensor, side: int) -> Tensor:
        rows = nn.functional.avg_pool2d(x, (side, 1), 1, (side // 2, 0))
        return nn.functional.avg_pool2d(rows, (1, side), 1, (0, side // 2))

    found, known = torch.zeros_like(pictures), torch.zeros_like(seen)
    for side in (9, 17, 33, 65, 129):
        share = mean(seen, side)
        new = (share > 0.15).to(seen) * (1 - known)
        found = found + new * mean(pictures * seen, side) / share.clamp(min=1e-6)
        known = known + new
    return nn.functional.avg_pool2d(nn.functional.pad(found, (4,) * 4, mode="reflect"), 9, 1)


def scored_alone(method: Move, data: EvalData) -> dict[str, Score]:
    """The scores of the masks alone: the baselines of a control are those of what it is compared with."""
    return segmentation_scores(method, replace(data, made=False), {})


class Bench:
    """What the runs of one data set have in common, and the rows that were found so far."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.name = a, a.name or a.data
        self.features = list(a.features) * a.seeds if len(a.features) == 1 else list(a.features)
        self.path = measuring.RESULTS / f"{a.file}.json"
        before = read_json(self.path)["rows"] if self.path.exists() else []
        self.others = [row for row in before if row["data"].partition(",")[0] != self.name]
        self.found: dict[str, list[dict[str, Any]]] = {
            "move": [], "selfmask on move": [], "move + cad": [], "move multi + cad": [], "move, half the steps": [],
        }  # fmt: skip
        self.controls: dict[str, dict[str, Any]] = {}
        self.ablations: dict[str, dict[str, Any]] = {}
        self.cuts: dict[str, dict[str, Any]] = {}

    def move(self, run: Path, features: Path, inpainter: Path, seed: int, steps: int, settings: Sequence[str]) -> dict[str, Any]:
        needs = (f"features={features}", f"inpainter={inpainter}")
        return one_run("move", self.a.data, run, seed, [*self.a.set, *settings], steps, self.a.limit, needs)

    def seed(self, seed: int, boxes: bool) -> None:
        """MOVE, SelfMask on its masks, detectors on its boxes."""
        a, features, run = self.a, self.features[seed], self.a.runs / f"move-{seed}"
        self.found["move"].append(self.move(run, features, a.inpainter, seed, a.steps, ()))
        needs = (f"features={features}", f"masks={run}")
        mask_run = a.runs / f"selfmask-{seed}"
        self.found["selfmask on move"].append(one_run("selfmask", a.data, mask_run, seed, ["teacher=run"], a.steps // 2, a.limit, needs))
        for name, pseudo in (("move + cad", "largest"), ("move multi + cad", "all")) if boxes else ():
            cad = a.runs / f"cad-{pseudo}-{seed}"
            self.found[name].append(one_run("cad", a.data, cad, seed, [f"pseudo={pseudo}"], a.steps // 2, a.limit, needs[1:]))

    def without(self, name: str) -> None:
        """A control, or an ablation with half the steps."""
        a, half = self.a, name in ABLATIONS
        inpainter = a.inpainter
        if "untrained inpainter" in name:
            inpainter = a.runs / "untrained inpainter"
            train("mae", a.data, inpainter, size="small", steps=0, set=INPAINTER, quiet=True)
        run, settings = a.runs / f"{'ablation' if half else 'control'} {name}", (ABLATIONS if half else CONTROLS)[name]
        alone = mock.patch.object(Move, "evaluate", scored_alone) if name != "half the steps" else nullcontext()
        kind = next((k for k in FILLINGS if name.endswith(k)), None)
        filled = mock.patch.object(Move, "inpainter", Filling(kind)) if kind else nullcontext()
        with alone, filled, labels_shuffled() if "labels shuffled" in name else nullcontext():
            reached = self.move(run, self.features[0], inpainter, 0, a.steps // 2 if half else a.steps, settings)
        if name == "half the steps":
            self.found["move, half the steps"] = [reached]
        else:
            (self.ablations if half else self.controls)[name] = reached

    def cut(self) -> None:
        for name in CUTS:
            for words, settings in (("", []), (", bilateral", [f"{k}={v}" for k, v in SOLVER.items()])):
                run = self.a.runs / f"{name}{words.replace(', ', '-')}"
                need = [f"features={self.features[0]}"]
                self.cuts[name + words] = one_run(name, self.a.data, run, 0, settings, None, self.a.limit, need)

    def save(self) -> None:
        rows = []
        for name, runs in self.found.items():
            summed_up = self.a.file == "move" and self.name == "sample:things" and "half" not in name
            shown, main = (SHOWN if "cad" not in name else ("corloc", "ap50")), ("iou", "corloc") if summed_up else ()
            beside = {"move": self.controls, "move, half the steps": self.ablations}.get(name, {})
            for row in rows_of(name, shown, main, runs, beside, self.name) if runs else ():
                if name == "move":
                    row["baselines"] |= {k: cut["scores"][row["score"]]["value"] for k, cut in self.cuts.items()}
                rows.append(row)
        rows = sorted([*self.others, *rows], key=lambda row: not row["data"].startswith("sample:things"))
        measuring.write(self.a.file, rows)
        if self.a.file == "move":
            measuring.write("cad", [{**row, "summary": False} for row in rows if row["method"].endswith("cad")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=Path, required=True)
    parser.add_argument("--inpainter", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", default="sample:things")
    parser.add_argument("--name", help="the data's name in the tables; --data itself when not given")
    names = ["cuts", "seeds", "boxes", *CONTROLS, *ABLATIONS]
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--steps", type=int, default=Move.sizes["small"].steps)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--file", default="move")
    a = parser.parse_args()
    if a.data == "sample:things":
        for features in a.features:
            if not features.exists():
                train("simclr", a.data, features, size="small", steps=400)
    if not a.inpainter.exists():
        train("mae", a.data, a.inpainter, size="small", steps=500, set=INPAINTER)
    bench = Bench(a)
    if "cuts" in a.only:
        bench.cut()
    for seed in range(len(bench.features)) if "seeds" in a.only else ():
        bench.seed(seed, "boxes" in a.only)
        bench.save()
    for name in a.only:
        if name in CONTROLS or name in ABLATIONS:
            bench.without(name)
            bench.save()


if __name__ == "__main__":
    main()
