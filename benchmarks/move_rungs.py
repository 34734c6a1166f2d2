"""The bottom of MOVE's ladder: drawn pictures of 32 px on which moving finds objects from nothing, and rungs on which it no longer does.

    python benchmarks/move_rungs.py --work FOLDER [--steps 400] [--seeds 3] [--only NAME ...]

Rung 0 is the ground `plaid` with the true ground in the inpainter's place, no masks to start from, and frozen features that learned
nothing. The controls take one thing away from it; as the segmenter of a discriminator that learns nothing never passes its gate, they are
without the gate as well. Further rungs change the grounds, the inpainter (`mae`, trained on the same pictures without truth) or the
discriminator. Scores are IoU on 128 pictures of other seeds; truth is used for scoring only. Runs that are in FOLDER are kept, with
pictures beside them, and so are rows of other rungs. Writes benchmarks/results/move_rungs.json.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import measuring
from move import labels_shuffled
from move_ladder import TrueBackground, iou, play, score
from rung_pictures import SIDE, Pictures
from selftaught.core.config import override, read_json, write_json
from selftaught.core.seeds import seed_all
from selftaught.loading import load_method
from selftaught.measure.baselines import centre_ellipse
from selftaught.registry import load_class
from selftaught.report.pictures import encode
from selftaught.segmentation.move import Move
from selftaught.train import BUILD_STEP, train

SETTINGS = [
    "init=none", "anchor_weight=0", "head_stride=1", "head_rim=false", "shift_frac=0.125", "discriminator=patches", "disc_width=16",
    "jitter=0", "lr=1.5e-3", "disc_lr_frac=1", "gate=0.55", "adversarial_weight=1", "binary_weight=1", "binary_ramp_frac=0.6",
    "least_area=0.06", "ema=0.9",
]  # fmt: skip
INPAINTER = ["image_px=32", "patch_px=4", "mask_frac=0.5", "norm_pixels=false", "block_prob=1", "seen_weight=0.3", "batch_size=128"]

BOUND = ("gate=0", "most_area=0.5", "most_weight=0.1")
"""Masks of more than half of the picture are too large: moved as a whole it has few seams. Beside it more steps, and no gate."""
PRICED = ("most_area=0.06", "most_weight=0.01")


class Rung(NamedTuple):
    ground: str = "plaid"
    settings: tuple[str, ...] = ()
    inpainter: str = ""
    """Empty for the true ground, `learned`, or `untrained`."""
    shuffled: bool = False
    times: int = 1
    """How many times as many steps as --steps says."""
    seeds: bool = False
    """Whether it is run with all seeds."""


def bound(ground: str, *settings: str, **more: Any) -> Rung:
    return Rung(ground, (*BOUND, *settings), times=2, **more)


RUNGS = {
    "rung 0: plaid": Rung(seeds=True),
    "control: shift 0": Rung(settings=("shift_frac=0",)),
    "control: shift 0, no gate": Rung(settings=("shift_frac=0", "gate=0")),
    "control: labels shuffled, no gate": Rung(settings=("gate=0",), shuffled=True),
    "control: no adversary": Rung(settings=("adversarial_weight=0",)),
    "discriminator=pixels, no gate": Rung(settings=("discriminator=pixels", "gate=0")),
    "plaid of any phase": Rung("plaid of any phase"),
    "smooth": Rung("smooth"),
    "smooth, area priced": Rung("smooth", PRICED),
    "control: smooth, area priced, shift 0, no gate": Rung("smooth", (*PRICED, "shift_frac=0", "gate=0")),
    "plaid and texture": Rung("plaid and texture"),
    "texture": Rung("texture"),
    "learned inpainter": Rung(inpainter="learned"),
    "untrained inpainter": Rung(inpainter="untrained"),
    "discriminator=features": Rung(settings=("discriminator=features",)),
    "smooth, at most half": bound("smooth", seeds=True),
    "control: smooth, at most half, shift 0": bound("smooth", "shift_frac=0"),
    "control: smooth, at most half, labels shuffled": bound("smooth", shuffled=True),
    "control: smooth, at most half, no adversary": bound("smooth", "adversarial_weight=0"),
    "smooth, any area, longer": bound("smooth", "most_weight=0"),
    "smooth, at most half, learned inpainter": bound("smooth", inpainter="learned"),
    "smooth, at most half, untrained inpainter": bound("smooth", inpainter="untrained"),
    "plaid of any phase, at most half": bound("plaid of any phase"),
    "texture, at most half": bound("texture"),
}


def inpainter_of(rung: Rung, work: Path, pictures: Pictures) -> Any:
    if not rung.inpainter:
        return TrueBackground(SIDE, 4)
    run = work / f"{rung.inpainter} inpainter"
    steps = 400 if rung.inpainter == "learned" else 0
    train("mae", list(pictures.images.transpose(0, 2, 3, 1)), run, size="small", steps=steps, set=INPAINTER)
    return load_method(run)


def build(rung: Rung, seed: int, steps: int, inpainter: Any) -> Move:
    """MOVE before its first step, on features of a frozen network that learned nothing."""
    simclr = load_class("simclr")
    seed_all(seed, 0, BUILD_STEP)
    features = simclr(simclr.small_px32).eval().requires_grad_(False)
    config = replace(override(Move.small_px32, [*SETTINGS, *rung.settings]), steps=steps)
    return Move(config, {"features": features, "inpainter": inpainter}).train()


def one(name: str, rung: Rung, seed: int, steps: int, work: Path) -> dict[str, Any]:
    """Train and score one run, or read what it came to."""
    path = work / f"{name.replace(':', '')} {seed} {steps}.json"
    if path.exists():
        return read_json(path)
    pictures, test = Pictures(1024, seed, rung.ground), Pictures(128, 10**6 + seed, rung.ground)
    method = build(rung, seed, steps, inpainter_of(rung, work, pictures))
    found: dict[str, Any] = {"untrained": score(method, test), "curve": []}

    def say(step: int, numbers: dict[str, float]) -> None:
        found["curve"].append({"step": step, "iou": score(method, test), **numbers})
        told = " ".join(f"{key} {value:.2f}" for key, value in numbers.items())
        print(f"{name}, seed {seed}, step {step}: iou {found['curve'][-1]['iou']:.3f}, {told}", flush=True)

    with tempfile.TemporaryDirectory() as folder, labels_shuffled() if rung.shuffled else nullcontext():
        method.begin(pictures, Path(folder), print)
        play(method, pictures, steps, seed, say)
    found |= {"iou": score(method, test), "whole_image": float(test.masks.mean())}
    found["centre_ellipse"] = float(iou(np.broadcast_to(centre_ellipse(SIDE, SIDE) > 0.5, test.masks.shape), test.masks).mean())
    write_json(path, found)
    path.with_suffix(".png").write_bytes(sheet(method, test))
    return found


def sheet(method: Move, test: Pictures) -> bytes:
    """Twelve test pictures, masks, filled grounds, the object moved and copied; each pixel four times as large."""
    first = np.arange(12)
    if isinstance(method.inpainter, TrueBackground):
        method.inpainter.show(test, first, test.batch(first).float() / 255)
    return encode(method.show(test.batch(first).float() / 255)["masks"].repeat(4, 0).repeat(4, 1), "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="of rung 0 and of its counterpart on smooth grounds; all others have one")
    parser.add_argument("--only", nargs="*", choices=list(RUNGS), default=list(RUNGS))
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.work.mkdir(parents=True, exist_ok=True)
    path = measuring.RESULTS / "move_rungs.json"
    kept, rows = read_json(path)["rows"] if path.exists() else [], []
    for name in a.only:
        rung = RUNGS[name]
        steps = rung.times * a.steps
        runs = [one(name, rung, seed, steps, a.work) for seed in range(a.seeds if rung.seeds else 1)]
        beside = {k: float(np.mean([run[k] for run in runs])) for k in ("untrained", "whole_image", "centre_ellipse")}
        rows.append({
            "method": "move", "data": f"{name}, {steps} steps", "score": "iou", "unit": "IoU", "values": [run["iou"] for run in runs],
            "baselines": beside, "summary": False,
        })  # fmt: skip
        anew = {row["data"] for row in rows}
        measuring.write("move_rungs", [row for row in kept if row["data"] not in anew] + rows)


if __name__ == "__main__":
    main()
