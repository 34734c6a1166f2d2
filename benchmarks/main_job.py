"""Collect the scores of runs of `selftaught learn` into benchmarks/results/main_job.json.

    python benchmarks/main_job.py RUN [RUN ...]

Each run is one row per score, named by the data that it learned from; several runs on the same data (other seeds) share a row.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch

import selftaught
from selftaught.core.config import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "main_job.json"
SHOWN = ("knn20", "iou", "corloc", "max_f", "accuracy", "leak_7x7")
SUMMARY = ("knn20", "iou", "corloc")


def rows_of(runs: list[Path]) -> list[dict[str, Any]]:
    """One row per data and score."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        result, plan = read_json(run / "scores.json"), read_json(run / "learn.json")
        minutes = plan["asked"]["minutes"]
        for name in SHOWN:
            if name not in result["scores"]:
                continue
            score = result["scores"][name]
            row = rows.setdefault(
                (result["data"], name),
                {
                    "method": f"learn, {minutes:g} minutes" if minutes else "learn",
                    "data": result["data"], "score": name, "unit": score["unit"], "values": [], "n": score["n"],
                    "ci95": score["ci95"], "baselines": score["baselines"], "summary": name in SUMMARY,
                },
            )  # fmt: skip
            row["values"].append(score["value"])
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    write_json(
        RESULTS,
        {
            "machine": f"{platform.machine()}, 2 cores",
            "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
            "seconds": {run.name: read_json(run / "seconds.json") for run in runs},
            "rows": rows_of(runs),
        },
    )


if __name__ == "__main__":
    main()
