"""Train LAPO at size `small` on w-sprites with several seeds, with its controls, and write benchmarks/results/lapo.json.

    selftaught data make w-sprites runs/w-sprites --clips 3000 --seed 0
    python benchmarks/lapo.py runs/w-sprites --runs runs/bench --seeds 0 1 2

Test clips hold other figures and other grounds than those that are learned from. Trainings that were stopped continue; finished ones are
not repeated. Control: `learning rate 0`, the same network without any learning.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import selftaught
from selftaught.core.config import read_json, write_json
from selftaught.evaluate import evaluate
from selftaught.train import train

RESULTS = Path(__file__).resolve().parent / "results"
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "methods" / "lapo"
MAIN = ("move_decoded", "ami_move", "psnr_ar_8")
SHOWN = (
    *MAIN[:2], "ami", "ami_stay", "nmi", "nmi_stay", "homogeneity_stay", "completeness_stay", "delta_mse", "delta_acc", "code_perplexity",
    "dead_codes", "consistency", "effect_separation", *(f"psnr_{regime}_{h}" for regime in ("ar", "tf") for h in range(1, 9)),
    "difference_psnr_ar", "ssim_ar_8", "ssim_tf_8",
)  # fmt: skip


def one_run(
    data: str, run: Path, seed: int, settings: list[str], steps: int | None, limit: int | None
) -> dict[str, Any]:
    """Train and score once; scores and seconds are kept in the run folder."""
    begin = time.monotonic()
    finished = (run / "seconds.json").exists()
    train("lapo", data, run, size="small", seed=seed, steps=steps, set=settings)
    if not finished:
        write_json(run / "seconds.json", {"training": time.monotonic() - begin})
    if not (run / "scores.json").exists():
        evaluate(run, limit=limit)
    config = read_json(run / "config.json")["config"]
    return {
        "seed": seed,
        "seconds": read_json(run / "seconds.json")["training"],
        "steps": config["steps"],
        **read_json(run / "scores.json"),
    }


def rows_of(runs: list[dict[str, Any]], controls: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Table rows: each score over the seeds, with the widest interval, the baselines' means, and what the controls reach."""
    rows = []
    for name in SHOWN:
        found = [run["scores"][name] for run in runs if name in run["scores"]]
        if not found:
            continue
        baselines = {k: float(np.mean([f["baselines"][k] for f in found])) for k in found[0]["baselines"]}
        reached = {k: c["scores"].get(name, {}).get("value") for k, c in controls.items()}
        beside = {f"control: {k}": v for k, v in reached.items() if v is not None}
        # A score of all clips together has no interval: both of its ends are the value.
        bounds = [f["ci95"] for f in found if f["ci95"][0] is not None and f["ci95"][0] < f["ci95"][1]]
        row = {
            "method": "lapo", "data": f"w-sprites, {runs[0]['steps']} steps", "score": name, "unit": found[0]["unit"],
            "values": [f["value"] for f in found], "n": found[0]["n"], "note": found[0]["note"], "baselines": {**baselines, **beside},
            "summary": name in MAIN,
        }  # fmt: skip
        rows.append(row | ({"ci95": [min(b[0] for b in bounds), max(b[1] for b in bounds)]} if bounds else {}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="other than the size's own")
    parser.add_argument("--limit", type=int, help="test clips that are scored")
    parser.add_argument("--no-control", action="store_true")
    a = parser.parse_args()
    runs = [one_run(a.data, a.runs / f"lapo-{seed}", seed, [], a.steps, a.limit) for seed in a.seeds]
    controls = (
        {} if a.no_control else {"learning rate 0": one_run(a.data, a.runs / "lapo-lr-0", 0, ["lr=0"], 30, a.limit)}
    )
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
        "seconds": sum(run["seconds"] for run in runs), "seeds": a.seeds, "rows": rows_of(runs, controls),
    }  # fmt: skip
    write_json(RESULTS / "lapo.json", result)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for picture in sorted((a.runs / f"lapo-{a.seeds[0]}" / "pictures").glob("*.png")):
        shutil.copy(picture, FIGURES / picture.name)
    for row in result["rows"]:
        print(f"{row['score']}: {', '.join(f'{v:.3f}' for v in row['values'])}; {row['baselines']}", flush=True)


if __name__ == "__main__":
    main()
