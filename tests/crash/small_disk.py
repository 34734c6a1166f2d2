"""A training on a real file system of 8 MB that fills up while a checkpoint is written; run by test_disk.py below `unshare`.

    python small_disk.py DISK OTHER       prints what happened as JSON; DISK is the small file system, OTHER a usual folder
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from killing import LOOP, equal, write_data

from selftaught import cli
from selftaught.core import checkpoint


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        try:
            cli.main([str(x) for x in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, shown.getvalue()


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def main() -> None:
    disk, other = Path(sys.argv[1]), Path(sys.argv[2])
    data = write_data(other / "data.npz")
    common = ["train", "mae", data, "--size", "tiny", "--steps", 6, "--set", "batch_size=4", "--quiet", "--out"]
    LOOP.SAVE_EVERY_S = -1.0  # type: ignore[attr-defined]
    write, out, told = checkpoint._write, disk / "run", dict[str, Any]()
    told["whole"] = run(*common, other / "whole")

    def write_and_fill(path: Path, content: bytes) -> dict[str, Any]:
        if "step-000004" in str(path) and path.name.startswith("optim"):
            fill(disk / "filler")
        return write(path, content)

    checkpoint._write = write_and_fill
    told["full"] = run(*common, out)
    checkpoint._write = write
    told["checkpoints"] = {p.name: checkpoint.verify(p) for p in (out / "checkpoints").iterdir()}
    fill(disk / "filler")
    told["still full"] = run(*common, out)
    told["after that"] = {p.name: checkpoint.verify(p) for p in (out / "checkpoints").iterdir()}
    (disk / "filler").unlink()
    told["freed"] = run(*common, out)
    told["equal"] = equal(other / "whole", out)
    told["litter"] = [str(p) for p in out.rglob(".tmp-*")] + [str(p) for p in out.rglob("lock.json")]
    before = {str(p): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    told["read-only"] = run(*common, disk / "new")
    told["read-only, the same run"] = run(*common, out)
    told["untouched"] = before == {str(p): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    told["loads"] = cli_reads(out)
    print("TOLD " + json.dumps(told))


def cli_reads(run_dir: Path) -> bool:
    """Whether a run on a read-only disk can still be opened."""
    from selftaught.loading import load

    return "embed" in load(run_dir).capabilities


if __name__ == "__main__":
    os.environ["COLUMNS"] = "500"
    main()
