"""Speed of the normalised cut: Lanczos against the published dense call, in one run, on the same graphs.

    python benchmarks/cut_speed.py [--sides 30 60] [--repeats 3] [--graphs 2] [--out benchmarks/results/cut_speed.json]

Graphs: eight smooth segments with noisy features on a grid of patches, joined above a cosine of 0.2. `solve` is from
the boolean graph to the eigenvector, `whole` from the features to the mask. Both sides get the same number of threads
and the best of several alternating runs counts. Fails when a mask differs in a single patch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.linalg
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from selftaught.nets.normalized_cut import second_eigenvector
from selftaught.segmentation.tokencut import tokencut_masks

TAU, EPS = 0.2, 1e-5


def scene(side: int, seed: int, width: int = 384, parts: int = 8) -> Tensor:
    """Features (1, D, side, side) of smooth segments around common and own directions, with noise.

    The D of a patch lie together in memory, as the keys of a ViT do.
    """
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(1, parts, 5, 5, generator=generator)
    smooth = F.interpolate(low, (side, side), mode="bicubic", align_corners=True)
    share = torch.softmax(6 * smooth, 1)[0].flatten(1)
    centres = torch.randn(parts, width, generator=generator) + 0.5 * torch.randn(1, width, generator=generator)
    noise = torch.randn(width, side * side, generator=generator)
    made = (centres.T @ share + noise).view(1, width, side, side)
    return made.contiguous(memory_format=torch.channels_last)


def official_solve(graph: np.ndarray) -> np.ndarray:
    """The published call on the boolean graph (N, N)."""
    a = np.where(graph, 1.0, EPS)
    degree = np.diag(a.sum(1))
    return scipy.linalg.eigh(degree - a, degree, subset_by_index=[1, 2])[1][:, 0]


def official_mask(x: np.ndarray, side: int) -> np.ndarray:
    """The published rule from eigenvector (N,) to mask (side, side)."""
    foreground = x > x.mean()
    seed = int(np.argmax(np.abs(x)))
    foreground = foreground if foreground[seed] else ~foreground
    labels, _ = ndimage.label(foreground.reshape(side, side))
    return labels == labels.flat[seed]


def joined(keys: Tensor) -> Tensor:
    """Boolean graph (N, N) of features (1, D, h, w)."""
    rows = F.normalize(keys.flatten(2)[0].T, dim=-1)
    return rows @ rows.T > TAU


def official_whole(keys: Tensor) -> np.ndarray:
    """Features to mask by the published steps."""
    return official_mask(official_solve(joined(keys).numpy()), keys.shape[-1])


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def measure(side: int, seed: int, repeats: int) -> dict[str, Any]:
    """Time both ways on one graph; raises AssertionError when the masks differ."""
    keys = scene(side, seed)
    graph = joined(keys)
    calls: dict[str, Callable[[], Any]] = {
        "ours_solve": lambda: second_eigenvector(graph[None], EPS),
        "official_solve": lambda: official_solve(graph.numpy()),
        "ours_whole": lambda: tokencut_masks(keys, TAU, EPS),
        "official_whole": lambda: official_whole(keys),
    }
    calls["ours_solve"]()  # the first call of all pays for the threads of BLAS
    seconds = dict.fromkeys(calls, np.inf)
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            results[name], spent = timed(call)
            seconds[name] = min(seconds[name], spent)
    found = results["ours_whole"]
    equal = bool((found.masks[0].numpy() == results["official_whole"]).all())
    x, dense = results["ours_solve"].x[0].numpy(), results["official_solve"]
    split_equal = abs(int(((x > x.mean()) == (dense > dense.mean())).sum()) * 2 - x.size) == x.size
    assert equal and split_equal, f"side {side}, seed {seed}: the masks differ"
    return {
        "patches": side * side,
        "seed": seed,
        "density": round(float(graph.float().mean()), 3),
        "lambda2": float(found.lambda2[0]),
        "masks_equal": equal and split_equal,
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "ratio_solve": round(seconds["official_solve"] / seconds["ours_solve"], 1),
        "ratio_whole": round(seconds["official_whole"] / seconds["ours_whole"], 1),
    }


PARTS = {"solve": "eigenvector: speed-up over the dense call", "whole": "features to mask: speed-up over the dense call"}


def table_row(rows: list[dict[str, Any]], patches: int, part: str) -> dict[str, Any]:
    """One line of the docs' table: the ratios of all graphs of a size."""
    values = [row[f"ratio_{part}"] for row in rows if row["patches"] == patches]
    return {
        "method": "tokencut", "data": f"made graph, {patches:,} patches", "score": PARTS[part], "unit": "times", "values": values,
        "summary": part == "solve",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", default=[30, 60])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--graphs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cut_speed.json")
    arguments = parser.parse_args()
    rows = []
    for side in arguments.sides:
        for seed in range(arguments.graphs):
            rows.append(measure(side, seed, arguments.repeats))
            print(json.dumps(rows[-1]), flush=True)
    largest = [row for row in rows if row["patches"] == max(arguments.sides) ** 2]
    report = {
        "what": "seconds per graph of the normalised cut, best of alternating runs",
        "patches": largest[0]["patches"],
        "ratio": min(row["ratio_solve"] for row in largest),
        "ratio_whole": min(row["ratio_whole"] for row in largest),
        "seconds": {name: max(row["seconds"][name] for row in largest) for name in largest[0]["seconds"]},
        "masks_equal": all(row["masks_equal"] for row in rows),
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                     "scipy": scipy.__version__},
        "measurements": rows,
        "rows": [table_row(rows, patches, part) for patches in sorted({r["patches"] for r in rows}) for part in PARTS],
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['patches']} patches: {report['ratio']} times faster, whole call {report['ratio_whole']} times")


if __name__ == "__main__":
    main()
