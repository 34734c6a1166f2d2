"""FreeSOLO on sample:things: free masks, a detector of boxes on them, SOLO on them, its round of self-training, and controls.

    python benchmarks/solo.py --features RUN [RUN ...] --runs FOLDER [--steps 150] [--limit 400] [--data DATA --name NAME]
                              [--only STAGE ...] [--controls NAME ...] [--sheet FILE.jpg]

One run of features per seed (`selftaught learn` makes them). Each seed makes the free masks, trains `solo` on them, `solo` once
more on its own masks above 0.3, and `cad` on all boxes of the free masks. The controls train `solo` on the first features: on the
free masks of other pictures, and on the free masks themselves without the term that compares colours. Runs that are there are kept,
and rows of other data and methods. --sheet draws twelve test pictures drawn at random: picture, free masks, SOLO, SOLO taught by
itself, truth.
Writes benchmarks/results/solo.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import measuring
from objects import picture_of
from seed_runs import one_run, rows_of
from selftaught.core.config import read_json
from selftaught.evaluate import open_for
from selftaught.loading import load_method
from selftaught.report.pictures import contact_sheet, encode, truth_ids
from selftaught.segmentation.cut import overlay
from selftaught.segmentation.solo import Solo

SHOWN = ("iou", "max_f", "corloc", "corloc_best", "box_ap50", "mask_ap50", "mask_ap")
AGAIN = ["min_score=0.3"]
STAGES: dict[str, tuple[str, str, str, list[str]]] = {
    "freesolo": ("freesolo", "free", "", []),
    "solo": ("solo", "solo", "free", []),
    "solo, taught by itself": ("solo", "again", "solo", AGAIN),
    "freesolo + cad": ("cad", "cad", "free", ["pseudo=all"]),
}
"""Name in the table -> method, folder, folder of its need, settings."""
CONTROLS: dict[str, list[str]] = {"masks of other pictures": [], "no pairs": ["pair_weight=0"]}


@contextmanager
def of_other_pictures() -> Iterator[None]:
    """Every picture is taught the pseudo-masks of another one."""
    begin = Solo.begin

    def shifted(self: Solo, *given: Any) -> None:
        begin(self, *given)
        assert self.pseudo is not None
        self.pseudo = np.roll(self.pseudo, len(self.pseudo) // 3, axis=0)

    with mock.patch.object(Solo, "begin", shifted):
        yield


@torch.no_grad()
def sheet_of(runs: list[Path], data: str) -> bytes:
    """JPEG of twelve test pictures drawn at random, one per column: the picture, with each run's mask, with the true one."""
    methods = [load_method(run) for run in runs]
    test = open_for(data, methods[-1].config.image_px, None, 0).test
    chosen = np.random.default_rng(0).choice(len(test), min(12, len(test)), replace=False)
    pictures = [torch.from_numpy(np.array(test.image(i))).permute(2, 0, 1)[None].float() / 255 for i in chosen]
    cells = [np.asarray(test.image(i)) for i in chosen]
    for method in methods:
        cells += [picture_of(overlay(p[0], method.segment(p)[0].float())) for p in pictures]  # type: ignore[operator]
    truths = [torch.from_numpy((truth_ids(np.asarray(test.mask(i))) > 0).astype(np.float32)) for i in chosen]
    cells += [picture_of(overlay(p[0], t)) for p, t in zip(pictures, truths, strict=True)]
    return encode(contact_sheet(cells, columns=len(chosen)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", default="sample:things")
    parser.add_argument("--name", help="the data's name in the tables; --data itself when not given")
    parser.add_argument("--controls", nargs="*", default=list(CONTROLS), choices=list(CONTROLS))
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", nargs="*", default=list(STAGES), choices=list(STAGES), help="make and score these alone")
    parser.add_argument("--sheet", type=Path)
    a = parser.parse_args()
    name_of, path = a.name or a.data, measuring.RESULTS / "solo.json"
    old = read_json(path)["rows"] if path.exists() else []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in STAGES}
    controls: dict[str, dict[str, Any]] = {}

    def save() -> None:
        rows = []
        for name, runs in found.items():
            if not runs:
                continue
            shown = ("corloc", "ap50") if name.endswith("cad") else SHOWN
            rows += rows_of(name, shown, (), runs, controls if name == "solo" else {}, name_of)
        keep = {"teacher", "untrained", "untrained_cut", "centre_box", "colour_otsu", "pseudo_boxes"}
        for row in rows:
            row["baselines"] = {k: v for k, v in row["baselines"].items() if k in keep or k.startswith("control")}
        again = {row["method"] for row in rows}
        others = [row for row in old if row["data"].partition(",")[0] != name_of or row["method"] not in again]
        measuring.write("solo", [*others, *rows])

    for name, (method, folder, teacher, settings) in STAGES.items():
        for seed, features in enumerate(a.features if name in a.only else []):
            need = f"masks={a.runs / f'{teacher}-{seed}'}" if teacher else f"features={features}"
            steps = a.steps if teacher else None
            found[name].append(one_run(method, a.data, a.runs / f"{folder}-{seed}", seed, settings, steps, a.limit, (need,)))
            save()
        if name == "solo, taught by itself" and name in a.only and a.sheet:
            a.sheet.write_bytes(sheet_of([a.runs / f"{kind}-0" for kind in ("free", "solo", "again")], a.data))
    for name in a.controls:
        with of_other_pictures() if name == "masks of other pictures" else nullcontext():
            control = a.runs / f"control {name}"
            controls[name] = one_run("solo", a.data, control, 0, CONTROLS[name], a.steps, a.limit, (f"masks={a.runs / 'free-0'}",))
        save()


if __name__ == "__main__":
    main()
