"""What the speed benchmarks share: alternating repeats, ratios with intervals, this machine, and the file of results."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

import selftaught
from selftaught.core.config import write_json

RESULTS = Path(__file__).resolve().parent / "results"
_shown: set[tuple[str, str]] = set()
_clock: list[Callable[[], float]] = [time.perf_counter]


def use_cpu_time() -> str:
    """Let `seconds` count the processor's time from now on; returns the words for it.

    Fair between sides of one thread each, and not disturbed by what else the machine does.
    """
    if torch.get_num_threads() != 1:
        raise SystemExit("--cpu-time compares one thread with one thread: set OMP_NUM_THREADS=1 MKL_NUM_THREADS=1")
    _clock[0] = time.process_time
    return "processor time, one thread"


def seconds(call: Callable[[], Any]) -> float:
    """Time of one call: wall time, unless `use_cpu_time` was called."""
    begin = _clock[0]()
    call()
    return _clock[0]() - begin


def alternating(calls: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each in turn, `repeats` times over: what slows the machine down for a while slows all of them.

    Every other round goes backwards, so that none always comes first.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(calls[name]())
            print(f"  round {turn + 1} of {repeats}, {name}: {found[name][-1]:.4g}", flush=True)
    return found


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, list[float] | None]:
    """How many times larger ours is: geometric mean over the rounds, and its 95 % interval (t on the logarithms)."""
    logs = np.log(np.asarray(ours) / np.asarray(theirs))
    mean = float(logs.mean())
    if len(logs) < 2:
        return math.exp(mean), None
    half = float(scipy.stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return math.exp(mean), [math.exp(mean - half), math.exp(mean + half)]


def ratio_row(
    method: str, data: str, score: str, rates: dict[str, list[float]], peer: str, unit: str = "times", **more: Any
) -> dict[str, Any]:
    """A row of a table: the ratio of the rates `ours` and `peer` of each round, and both mean rates beside it."""
    ours, theirs = rates["ours"], rates[peer]
    mean, interval = ratio(ours, theirs)
    return {
        "method": method, "data": data, "score": score, "unit": unit, "values": [mean], "ci95": interval,
        "rounds": [a / b for a, b in zip(ours, theirs, strict=True)],
        "baselines": {f"{name}, per s": float(np.mean(found)) for name, found in rates.items()},
        "summary": False, **more,
    }  # fmt: skip


def processor() -> str:
    """Name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def write(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write benchmarks/results/NAME.json, and the rows that are new to the terminal."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    result = {
        "machine": f"{processor()}, {cores} cores, {torch.get_num_threads()} threads of torch",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__, **more.pop("versions", {})},
        **more,
        "rows": rows,
    }
    write_json(RESULTS / f"{name}.json", result)
    for row in rows:
        values = ", ".join(f"{value:.4g}" for value in row["values"])
        interval = " to ".join(f"{end:.3g}" for end in row.get("ci95") or [])
        beside = ", ".join(f"{k} {v:.4g}" for k, v in (row.get("baselines") or {}).items())
        line = f"{row['method']}, {row['data']}: {row['score']} {values} ({interval or 'no interval'}); {beside}"
        if (name, line) not in _shown:
            print(line)
        _shown.add((name, line))
