"""MOVE from nothing: what it finds when objects are pasted onto other pictures, and what is left of that without its parts; writes
benchmarks/results/move_exchange.json.

    python benchmarks/move_exchange.py --features RUN --inpainter RUN --runs FOLDER [--seeds 3] [--only NAME ...]

One run of `simclr` and one of `mae` at 96 px (trained here when they are missing) serve all seeds. No masks to start from, no hold on
any, no losses on masks: they cover a share of the picture that is drawn at each step, and the segmenter learns from the discriminator
alone which places come first. Each control is one seed. TokenCut, LOST and Deep Spectral on the same features stand beside. Then
SelfMask is trained on the masks of each seed. Runs that are there are kept.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import measuring
from move import INPAINTER, SHOWN, labels_shuffled, move_run, scored_alone
from seed_runs import one_run, rows_of
from selftaught.segmentation.move import Move
from selftaught.train import train

DATA = "sample:things"
SETTINGS = [
    "init=none", "anchor_weight=0", "adversarial_weight=1", "least_weight=0", "binary_weight=0", "paste=others", "discriminator=places",
    "disc_width=24", "disc_px=48", "share_from=0.2", "share_to=0.3", "rim_frac=0.08", "wait_frac=0.4", "lr=5e-4", "disc_lr_frac=2",
    "jitter=0", "ema=0.99", "head_stride=4", "head_shallow=0",
]  # fmt: skip
CONTROLS: dict[str, list[str]] = {
    "nothing moves": ["paste=own", "shift_frac=0"],
    "shift 0": ["shift_frac=0"],
    "moved on its own ground": ["paste=own"],
    "labels shuffled": [],
    "untrained inpainter": [],
    "no adversary": ["adversarial_weight=0"],
}
CUTS = ("lost", "spectral")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--inpainter", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Move.sizes["small"].steps)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--only", nargs="*", choices=["seeds", "selfmask", *CONTROLS], default=["seeds", *CONTROLS, "selfmask"])
    a = parser.parse_args()
    torch.set_num_threads(1)
    if not a.features.exists():
        train("simclr", DATA, a.features, size="small", steps=400)
    if not a.inpainter.exists():
        train("mae", DATA, a.inpainter, size="small", steps=500, set=INPAINTER)
    found: dict[str, list[dict[str, Any]]] = {"move": [], "selfmask on move": []}
    controls: dict[str, dict[str, Any]] = {}
    cuts = {name: one_run(name, DATA, a.runs / name, 0, [], None, a.limit, [f"features={a.features}"]) for name in CUTS}

    def save() -> None:
        rows = [row for name, runs in found.items() if runs for row in rows_of(name, SHOWN, (), runs, controls, DATA)]
        for row in rows:
            if row["method"] == "move":
                row["baselines"] |= {name: cut["scores"][row["score"]]["value"] for name, cut in cuts.items()}
            else:
                row["baselines"] = {k: v for k, v in row["baselines"].items() if not k.startswith("control")}
        measuring.write("move_exchange", rows)

    for what in a.only:
        if what == "selfmask":
            for seed in range(a.seeds):
                needs = (f"features={a.features}", f"masks={a.runs / f'move-{seed}'}")
                run = a.runs / f"selfmask-{seed}"
                found["selfmask on move"].append(one_run("selfmask", DATA, run, seed, ["teacher=run"], a.steps // 2, a.limit, needs))
                save()
        elif what == "seeds":
            for seed in range(a.seeds):
                found["move"].append(move_run(DATA, a.runs / f"move-{seed}", a.features, a.inpainter, seed, a.steps, SETTINGS, a.limit))
                save()
        else:
            inpainter = a.inpainter
            if what == "untrained inpainter":
                inpainter = a.runs / "untrained inpainter"
                train("mae", DATA, inpainter, size="small", steps=0, set=INPAINTER, quiet=True)
            run, settings = a.runs / f"control {what}", [*SETTINGS, *CONTROLS[what]]
            with mock.patch.object(Move, "evaluate", scored_alone), labels_shuffled() if what == "labels shuffled" else nullcontext():
                controls[what] = move_run(DATA, run, a.features, inpainter, 0, a.steps, settings, a.limit)
            save()


if __name__ == "__main__":
    main()
