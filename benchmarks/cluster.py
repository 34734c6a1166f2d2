"""20,000 pictures in tar shards embedded by two workers of a local Ray, one of which is killed midway; compared with one process.

    pip install "selftaught[cluster]"
    python benchmarks/cluster.py [--pictures 20000] [--shard 800] [--work FOLDER]

The pictures are those of sample:things, turned by 0 to 3 quarters, so that none is there twice. Complete: the same paths in the
same order. Equal: the largest difference of a number. Memory: the largest private memory (RssAnon) of a worker
with a twelfth of the pictures and with all of them. Fails when anything is missing or differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

from measuring import write
from selftaught import apply, cluster
from selftaught.core.config import read_json
from selftaught.data.sources import open_data
from selftaught.report.exports import read_embeddings
from selftaught.train import train

WORKERS = 2
TOLERANCE = 1e-5


def write_shards(folder: Path, total: int, each: int) -> list[Path]:
    """Tars of JPEGs 000000.jpg and so on; those that are there are kept."""
    base = max(1, -(-total // 4) * 4 // 5)
    source = open_data(f"sample:things:{base}")
    paths = [folder / f"things-{number:03d}.tar" for number in range(-(-total // each))]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        temp = path.with_suffix(".part")
        with tarfile.open(temp, "w") as tar:
            for i in range(number * each, min((number + 1) * each, total)):
                buffer = io.BytesIO()
                Image.fromarray(np.rot90(source.image(i % len(source)), i // len(source))).save(buffer, "JPEG", quality=90)
                member = tarfile.TarInfo(f"{i:06d}.jpg")
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
        temp.rename(path)
    return paths


class Watch(threading.Thread):
    """Looks at the output folder: the name of an unfinished part holds its worker's process number.

    Keeps each worker's largest private memory in MB, and kills one worker when `kill_at` parts are finished.
    """

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        super().__init__(daemon=True)
        self.folder, self.kill_at = folder, kill_at
        self.peak_mb: dict[int, float] = {}
        self.killed: dict[str, Any] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.02):
            writing = [int(path.name.split("-")[1]) for path in self.folder.glob(".tmp-*.parquet")]
            for pid in writing:
                self.peak_mb[pid] = max(self.peak_mb.get(pid, 0.0), private_mb(pid))
            finished = len(list(self.folder.glob("part-*.parquet")))
            if self.kill_at is not None and not self.killed and finished >= self.kill_at and writing:
                os.kill(writing[0], signal.SIGKILL)
                self.killed = {"process": writing[0], "after_parts": finished}


def private_mb(pid: int | str) -> float:
    """RssAnon of a process in MB; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


def on_cluster(run: Path, data: list[Path], out: Path, kill_at: int | None) -> tuple[Watch, float]:
    watch = Watch(out, kill_at)
    watch.start()
    begin = time.perf_counter()
    cluster.embed(run, data, out, workers=WORKERS)
    spent = time.perf_counter() - begin
    watch.stop.set()
    watch.join()
    return watch, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--shard", type=int, default=800)
    parser.add_argument("--backbone", default="resnet10-32", help="network of the run, see `selftaught methods simclr`")
    parser.add_argument("--work", type=Path, help="folder to keep shards and outputs in")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as a worker has
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        shards = write_shards(work, arguments.pictures, arguments.shard)
        settings = [f"backbone={arguments.backbone}", "patch_px=8", "batch_size=32"]
        run = train("simclr", "sample:things:256", work / "run", steps=5, set=settings, quiet=True)
        measure(run, shards, work, arguments)


def measure(run: Path, shards: list[Path], work: Path, arguments: argparse.Namespace) -> None:
    begin = time.perf_counter()
    names, vectors = read_embeddings(apply.embed(run, shards, work / "one.npz", quiet=True))
    alone = time.perf_counter() - begin
    few, _ = on_cluster(run, shards[: max(1, len(shards) // 12)], work / "few", None)
    many, spent = on_cluster(run, shards, work / "many", len(shards) // 2)
    found, theirs = read_embeddings(work / "many")
    assert many.killed, "no worker was killed"
    assert found == names and len(names) == arguments.pictures, f"{len(found)} of {len(names)} pictures"
    gap = float(np.abs(theirs - vectors).max())
    assert gap <= TOLERANCE, gap
    manifest = read_json(work / "many" / cluster.MANIFEST)
    assert manifest["finished"] and manifest["pictures"] == arguments.pictures
    data = f"{arguments.pictures:,} pictures of 96 px in {len(shards)} shards, {arguments.backbone}"
    share = {"one process": len(names) / alone}
    row = {"method": "embed --engine ray", "data": data, "summary": False}
    killed = f"{WORKERS} workers, one killed after {many.killed['after_parts']} parts"
    peaks = {"few": max(few.peak_mb.values()), "many": max(many.peak_mb.values())}
    rows = [
        {**row, "score": f"pictures found again, {killed}", "unit": "share", "values": [len(set(found) & set(names)) / len(names)]},
        {**row, "score": "largest difference to one process", "unit": "", "values": [gap]},
        {**row, "score": "pictures bit for bit equal", "unit": "share", "values": [float((theirs == vectors).all(1).mean())]},
        {**row, "score": f"speed, {killed}", "unit": "pictures/s", "values": [len(names) / spent], "baselines": share},
        {**row, "score": "largest private memory of a worker", "unit": "MB", "values": [peaks["many"]],
         "baselines": {f"{max(1, len(shards) // 12)} shards": peaks["few"]}},
    ]  # fmt: skip
    versions = {"ray": ray.__version__, "numpy": np.__version__}
    write("cluster", rows, versions=versions, killed=many.killed, seconds={"one process": alone, "cluster": spent})


if __name__ == "__main__":
    main()
