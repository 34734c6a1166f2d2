"""Runs of a method over seeds: train and score once each, and the rows of their tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.core.config import read_json, write_json
from selftaught.evaluate import evaluate
from selftaught.train import train


def one_run(  # fmt: skip
    method: str, data: str, run: Path, seed: int, settings: list[str], steps: int | None, limit: int | None, need: Sequence[str] = ()
) -> dict[str, Any]:
    """Train at size `small` and score once; scores and seconds are kept in the run folder."""
    begin = time.monotonic()
    finished = (run / "seconds.json").exists()
    train(method, data, run, size="small", seed=seed, steps=steps, set=settings, need=need)
    if not finished:
        write_json(run / "seconds.json", {"training": time.monotonic() - begin})
    if not (run / "scores.json").exists():
        evaluate(run, limit=limit)
    config = read_json(run / "config.json")["config"]
    seconds = read_json(run / "seconds.json")["training"]
    return {"seed": seed, "seconds": seconds, "steps": config["steps"], **read_json(run / "scores.json")}


def rows_of(
    method: str, shown: Sequence[str], main: Sequence[str], runs: Sequence[Mapping[str, Any]], controls: Mapping[str, Mapping[str, Any]],
    data: str = "w-sprites",
) -> list[dict[str, Any]]:  # fmt: skip
    """Table rows: each score over the seeds, with the widest interval, the baselines' means, and what the controls reach."""
    rows = []
    for name in shown:
        found = [run["scores"][name] for run in runs if name in run["scores"]]
        if not found:
            continue
        baselines = {k: float(np.mean([f["baselines"][k] for f in found])) for k in found[0]["baselines"]}
        reached = {k: c["scores"].get(name, {}).get("value") for k, c in controls.items()}
        beside = {f"control: {k}": v for k, v in reached.items() if v is not None}
        # A score of all clips together has no interval: both of its ends are the value.
        bounds = [f["ci95"] for f in found if f["ci95"][0] is not None and f["ci95"][0] < f["ci95"][1]]
        row = {
            "method": method, "data": f"{data}, {runs[0]['steps']} steps", "score": name, "unit": found[0]["unit"],
            "values": [f["value"] for f in found], "n": found[0]["n"], "note": found[0]["note"], "baselines": {**baselines, **beside},
            "summary": name in main,
        }  # fmt: skip
        rows.append(row | ({"ci95": [min(b[0] for b in bounds), max(b[1] for b in bounds)]} if bounds else {}))
    return rows
