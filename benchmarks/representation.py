"""Train representation methods at size `small` with several seeds, score them, and write benchmarks/results/METHOD.json.

    python benchmarks/representation.py DATA --name "CIFAR-10 (JPEG)" --runs runs/bench --seeds 0 1 2

Trainings that were stopped continue; finished ones are not repeated. The negative control is the same training with learning rate 0
(the weights stay as they were born, only batch statistics are learned): it must not beat what learning beats.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch

import selftaught
from selftaught.core.config import read_json, write_json
from selftaught.evaluate import evaluate
from selftaught.train import train

RESULTS = Path(__file__).resolve().parent / "results"
SHOWN = ("knn20", "knn200", "linear_probe")
CONTROL_STEPS = 50


def one_run(method: str, data: str, run: Path, seed: int, settings: list[str], steps: int | None) -> dict[str, Any]:
    """Train and score once; the scores and the seconds are kept in the run folder."""
    begin = time.monotonic()
    finished = (run / "scores.json").exists()
    train(method, data, run, size="small", seed=seed, steps=steps, set=settings)
    if not finished:
        seconds = time.monotonic() - begin
        evaluate(run)
        write_json(run / "seconds.json", {"training": seconds})
    return {"seed": seed, "seconds": read_json(run / "seconds.json")["training"], **read_json(run / "scores.json")}


def rows_of(method: str, name: str, runs: list[dict[str, Any]], control: dict[str, Any]) -> list[dict[str, Any]]:
    """Table rows: each score over the seeds, with the worst interval and the baselines of the first seed."""
    rows = []
    for score in SHOWN:
        found = [run["scores"][score] for run in runs]
        baselines = {k: max(f["baselines"][k] for f in found) for k in found[0]["baselines"]}
        rows.append(
            {
                "method": method,
                "data": name,
                "score": score,
                "unit": "share right",
                "values": [f["value"] for f in found],
                "ci95": [min(f["ci95"][0] for f in found), max(f["ci95"][1] for f in found)],
                "n": found[0]["n"],
                "note": found[0].get("note", ""),
                "baselines": {**baselines, "control (lr 0)": control["scores"][score]["value"]},
                "summary": score == "knn20",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--name", required=True, help="what the tables call the data")
    parser.add_argument("--methods", nargs="+", default=["simclr", "dino", "mae"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for method in arguments.methods:
            one_run(method, arguments.data, arguments.runs / f"{method}-{seed}", seed, [], None)
            write_results(method, arguments)


def write_results(method: str, arguments: argparse.Namespace) -> None:
    """Write what is there so far, so that an interrupted benchmark leaves results."""
    done = [s for s in arguments.seeds if (arguments.runs / f"{method}-{s}" / "scores.json").exists()]
    runs = [one_run(method, arguments.data, arguments.runs / f"{method}-{s}", s, [], None) for s in done]
    control = one_run(method, arguments.data, arguments.runs / f"{method}-control", 0, ["lr=0.0"], CONTROL_STEPS)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
        "seconds": sum(run["seconds"] for run in runs),
        "seeds": done,
        "rows": rows_of(method, arguments.name, runs, control),
    }
    write_json(RESULTS / f"{method}.json", result)
    for row in result["rows"]:
        values = ", ".join(f"{v:.3f}" for v in row["values"])
        baselines = ", ".join(f"{k} {v:.3f}" for k, v in row["baselines"].items())
        print(f"{method} {row['score']}: {values}; {baselines}", flush=True)


if __name__ == "__main__":
    main()
