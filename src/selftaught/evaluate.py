"""Measure a run on held-out pictures, with the baselines beside; truth is read here and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from selftaught.core.config import write_json
from selftaught.data.evalset import open_eval
from selftaught.data.sources import open_data
from selftaught.loading import load_method, part_of, read_run
from selftaught.measure.score import Score
from selftaught.method import EvalData


def evaluate(
    run: str | os.PathLike[str], data: Any = None, json: str | os.PathLike[str] | None = None, limit: int | None = None
) -> dict[str, Score]:
    """Score a run; of a folder of `selftaught learn`, its features and its masks.

    Args:
        run: run folder.
        data: pictures with truth; the data that the run was trained on when None. Official or made splits are kept: the test part is
            scored, the training part serves as bank of nearest neighbours.
        json: write {"run", "data", "scores": {name: {"value", "n", "ci95", "better", "baselines"}}} there too.
        limit: use at most so many pictures of each part.

    Returns:
        name -> Score; empty where the data hold no truth that the method can be measured with.
    """
    run = Path(run)
    parts = [
        part
        for part in ("features", "masks")
        if (run / "learn.json").exists() and (run / part / "config.json").exists()
    ]
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for folder in [run / part for part in parts] or [part_of(run)]:
        saved = read_run(folder)
        method = load_method(folder)
        opened = open_for(saved.data if data is None else data, method.config.image_px, limit, saved.seed)
        with torch.no_grad():
            scores |= method.evaluate(opened)
        notes += [note for note in opened.notes if note not in notes]
    if data is None:
        data = saved.data
    named = str(data) if isinstance(data, (str, os.PathLike)) else f"<{type(data).__name__} given from Python>"
    result = {
        "run": run.name,
        "data": Path(named).name,
        "notes": notes,
        "scores": {k: s.to_json() for k, s in scores.items()},
    }
    write_json(run / "scores.json", result)
    if json is not None:
        write_json(json, result)
    return scores


def open_for(data: Any, image_px: int, limit: int | None, seed: int) -> EvalData:
    """Open the bank and the test part of some data for evaluation; broken pictures are left out and noted."""
    labelled = open_data(data, "train").has_labels
    # A test part may be so small that one broken picture is a large share of it.
    bank = open_eval(data, "train", image_px, limit, max_bad_frac=1.0) if labelled else None
    test = open_eval(data, "test", image_px, limit, max_bad_frac=1.0)
    bad = test.images.bad
    notes = [f"{len(bad)} test pictures cannot be read, e.g. {bad[0][0]}: {bad[0][1]}"] if bad else []
    return EvalData(bank, test, seed, isinstance(data, str) and data.startswith("sample:"), notes)
