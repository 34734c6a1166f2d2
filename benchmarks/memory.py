"""Peak memory of training and of embedding when the data set grows tenfold; each is measured in a process of its own.

    python benchmarks/memory.py [--pictures 1000 10000] [--px 96] [--steps 12]

Private memory (RssAnon of /proc/PID/status) is what a process needs. The pictures themselves are mapped from the cache
(RssFile): such pages count as resident while they are warm, and the system takes them back whenever it wants. So the
first must stay flat, and the second may grow up to the size of the cache. Linux only.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from measuring import write
from selftaught.data.sources import open_data
from selftaught.train import train

JOBS = {
    "train simclr": "from selftaught.train import train; train('simclr', {data!r}, {out!r}, steps={steps}, quiet=True, "
    "set=['backbone=resnet10-32', 'image_px={px}', 'batch_size=64'])",
    "build the cache": "from selftaught.data.cache import build_cache; from selftaught.data.sources import open_data; "
    "build_cache(open_data({data!r}), {px})",
    "embed --engine ray, a worker's part": "from pathlib import Path; from dataclasses import asdict; "
    "from selftaught import cluster; t = cluster.Task('embed', {run!r}, {data!r}, {out!r}, 32); Path({out!r}).mkdir(); "
    "w = cluster.Worker(asdict(t)); [w.work(p) for p in cluster.plan({data!r}, 'x')]",
}
"""Plain calls of what the command runs."""


def write_pictures(path: Path, count: int, side: int) -> None:
    """A folder of `count` JPEGs: 40 different ones again and again."""
    source, files = open_data("sample:things:64", "train"), []
    for i in range(40):
        buffer = io.BytesIO()
        Image.fromarray(source.image(i)).resize((side, side)).save(buffer, "JPEG", quality=85)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    path.mkdir()
    for i in range(count):
        (path / f"{i:06d}.jpg").write_bytes(files[i % 40].tobytes())


def peaks(code: str, environment: dict[str, str]) -> dict[str, float]:
    """Run Python code; the largest private and mapped memory that it had, in MB, looked at every 10 ms."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env={**os.environ, **environment})
    found = {"RssAnon": 0.0, "RssFile": 0.0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            name, _, value = line.partition(":")
            if name in found:
                found[name] = max(found[name], int(value.split()[0]) / 1024)
        time.sleep(0.01)
    if process.wait():
        raise SystemExit(f"failed: {code}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs=2, default=[1000, 10_000])
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = train("simclr", "sample:things:64", work / "run", size="tiny", quiet=True)
        found: dict[str, list[dict[str, float]]] = {job: [] for job in JOBS}
        for count in arguments.pictures:
            write_pictures(work / f"p{count}", count, 256)
            for number, (job, code) in enumerate(JOBS.items()):
                values = {"data": str(work / f"p{count}"), "out": str(work / f"o{count}-{number}"), "run": str(run)}
                cache = {"SELFTAUGHT_CACHE": str(work / f"cache-{count}-{number}")}
                found[job].append(peaks(code.format(**values, px=arguments.px, steps=arguments.steps), cache))
                print(f"{count:,} pictures, {job}: {found[job][-1]}", flush=True)
    few, many = (f"{count:,} pictures" for count in arguments.pictures)
    for job, (small, large) in found.items():
        rows.append(
            {"method": job, "data": f"JPEGs of 256 px, {few} to {many}", "score": "peak private memory", "unit": "MB",
             "values": [large["RssAnon"]], "baselines": {few: small["RssAnon"]}, "summary": False,
             "mapped_mb": [small["RssFile"], large["RssFile"]], "growth": large["RssAnon"] / small["RssAnon"]}
        )  # fmt: skip
    write("memory", rows, jobs=JOBS)


if __name__ == "__main__":
    main()
