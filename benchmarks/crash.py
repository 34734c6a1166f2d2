"""One training killed a hundred times, and every fault, cut and flipped bit that the crash tests try, as JSON.

    python benchmarks/crash.py [--kills 100] [--method dino] [--seed 0] [--no-faults] [--out benchmarks/results/crash.json]

The kills are real SIGKILLs at random moments of one run; see tests/crash/killing.py. Then tests/crash/test_faults.py and
test_damage.py run, and what they count is added. Fails when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "crash"))

from killing import kill_run  # noqa: E402


def counted(folder: Path) -> dict[str, int]:
    """Run the tests of faults and damage; return the sums of what they recorded. Raises RuntimeError when one fails."""
    tests = [ROOT / "tests" / "crash" / name for name in ("test_faults.py", "test_damage.py")]
    command = [sys.executable, "-m", "pytest", "-q", *tests, f"--junitxml={folder / 'tests.xml'}", f"--basetemp={folder / 'tests'}"]
    done = subprocess.run([*command, "--timeout=3600"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:])
    sums: dict[str, int] = {}
    for entry in ET.parse(folder / "tests.xml").iter("property"):
        sums[entry.attrib["name"]] = sums.get(entry.attrib["name"], 0) + int(entry.attrib["value"])
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--method", default="dino")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "crash.json")
    arguments = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SELFTAUGHT_CACHE"] = f"{folder}/cache"
        figures = kill_run(Path(folder), arguments.kills, arguments.method, arguments.seed)
        print(json.dumps(figures, indent=2), flush=True)
        faults = counted(Path(folder)) if arguments.faults else {}
    report: dict[str, Any] = {
        "what": "one training killed over and over; faults at every operation on files; damaged checkpoints",
        "kills": figures,
        "faults": faults,
        "seconds": round(time.monotonic() - begin, 1),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "processor": platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(faults, indent=2))
    kept = not figures["problems"] and figures["bitwise_equal"] and not figures["steps_later_than_the_interval"]
    raise SystemExit(0 if kept and figures["kills"] == arguments.kills else 1)


# The processes that are killed import this file as well.
if __name__ == "__main__":
    main()
