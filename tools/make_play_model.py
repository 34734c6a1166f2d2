"""Turn a run of LAPO on w-sprites into the small model that `selftaught play` opens: src/selftaught/web/model.

    selftaught data make w-sprites runs/w-sprites --clips 3000 --seed 0
    selftaught train lapo runs/w-sprites --out runs/lapo
    python tools/make_play_model.py runs/lapo

Weights are halved to 16 bits; what is usual to do is counted on training clips and goes along. Nothing else of the run is kept.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from selftaught.core import checkpoint
from selftaught.core.config import read_json, write_json
from selftaught.core.errors import RunError
from selftaught.playing import Playable
from selftaught.playing_input import shipped_folder

MAX_BYTES = 2_000_000


def make(run: Path, out: Path) -> int:
    """Write the folder anew; returns its size in bytes."""
    playable = Playable(run)
    if playable.notes:
        raise RunError(f"{run} does not know its clips any more.", why="; ".join(playable.notes))
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None
    weights, state = checkpoint.load(folder)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in weights["model"].items()}
    if out.exists():
        shutil.rmtree(out)
    checkpoint.save(out / "checkpoints", int(folder.name.rsplit("-", 1)[1]), {"model": halved}, {})
    config = read_json(run / "config.json")
    write_json(out / "config.json", {**config, "data": "w-sprites", "needs": {}})
    write_json(out / "habits.json", playable.habits.to_json())
    Playable(out)  # it opens
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    if size > MAX_BYTES:
        raise RunError(f"The model has {size} bytes.", expected=f"at most {MAX_BYTES}")
    return size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    a = parser.parse_args()
    print(f"{shipped_folder()}: {make(a.run, shipped_folder())} bytes")
