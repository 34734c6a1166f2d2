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
from pathlib import Path

import torch

import selftaught
from seed_runs import one_run, rows_of
from selftaught.core.config import write_json

RESULTS = Path(__file__).resolve().parent / "results"
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "methods" / "lapo"
MAIN = ("move_decoded", "ami_move", "psnr_ar_8")
SHOWN = (
    *MAIN[:2], "ami", "ami_stay", "nmi", "nmi_stay", "homogeneity_stay", "completeness_stay", "delta_mse", "delta_acc", "code_perplexity",
    "dead_codes", "consistency", "effect_separation", *(f"psnr_{regime}_{h}" for regime in ("ar", "tf") for h in range(1, 9)),
    "difference_psnr_ar", "ssim_ar_8", "ssim_tf_8",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="other than the size's own")
    parser.add_argument("--limit", type=int, help="test clips that are scored")
    parser.add_argument("--no-control", action="store_true")
    a = parser.parse_args()
    runs = [one_run("lapo", a.data, a.runs / f"lapo-{seed}", seed, [], a.steps, a.limit) for seed in a.seeds]
    controls = (
        {} if a.no_control else {"learning rate 0": one_run("lapo", a.data, a.runs / "lapo-lr-0", 0, ["lr=0"], 30, a.limit)}
    )
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
        "seconds": sum(run["seconds"] for run in runs), "seeds": a.seeds, "rows": rows_of("lapo", SHOWN, MAIN, runs, controls),
    }  # fmt: skip
    write_json(RESULTS / "lapo.json", result)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for picture in sorted((a.runs / f"lapo-{a.seeds[0]}" / "pictures").glob("*.png")):
        shutil.copy(picture, FIGURES / picture.name)
    for row in result["rows"]:
        print(f"{row['score']}: {', '.join(f'{v:.3f}' for v in row['values'])}; {row['baselines']}", flush=True)


if __name__ == "__main__":
    main()
