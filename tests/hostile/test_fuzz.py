"""Every reader is given damaged files, 500 here and 50,000 in the nightly lane, in a process of its own.

The bar: no crash, no exception but SelftaughtError, no case of more than 5 s, and less than 256 MB more memory. A
failure names the case; `python tests/hostile/hostile_readers.py READER CASE 1 < FILE` runs it again, where FILE is any
file opened for reading and writing (`<> FILE`).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_mutations import damage, damage_json
from hostile_readers import NAMES

FUZZER = Path(__file__).with_name("hostile_readers.py")
MAX_GROWTH_MB = 256
NEVER_REFUSED = ("journal.jsonl",)  # what cannot be used of a journal is decoded again


def fuzz(name: str, count: int, tmp_path: Path, *more: str) -> dict[str, Any]:
    """Run cases of a reader; returns what it tells, or fails with the number of the case that ended the process."""
    at = tmp_path / "at"
    at.touch()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    with at.open("r+b") as told, (tmp_path / "errors").open("w+b") as errors:  # libtiff writes a line for each case
        command = [sys.executable, "-W", "ignore", str(FUZZER), name, "0", str(count), *more]
        done = subprocess.run(command, stdin=told, stdout=subprocess.PIPE, stderr=errors, env=environment)
        errors.seek(0, 2)
        errors.seek(max(0, errors.tell() - 3000))
        last = errors.read().decode(errors="replace")
    assert done.returncode == 0, f"case {at.read_text().strip()} ended the process with {done.returncode}\n{last}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not result["failures"], "\n".join(result["failures"])
    assert result["growth_mb"] < MAX_GROWTH_MB, result
    return result


def check(name: str, count: int, tmp_path: Path) -> None:
    result = fuzz(name, count, tmp_path)
    assert result["well"] + result["refused"] == count
    assert result["well"] > 0, "nothing was read: the damage is too coarse to reach the reader"
    assert result["refused"] > 0 or name in NEVER_REFUSED, "nothing was refused: the damage does nothing"


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    check(name, 500, tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused_or_read_fifty_thousand(name: str, tmp_path: Path) -> None:
    check(name, 50_000, tmp_path)


@pytest.mark.parametrize(
    ("way", "says"),
    [("aborts", "case 29 ended the process with -6"), ("spins", "case 29 ended the process with -27"),
     ("hoards", "< 256"), ("raises", "case 29")],
)  # fmt: skip
def test_the_fuzzer_sees_a_reader_that_misbehaves(way: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=says):
        fuzz(way, 60, tmp_path, "0.5")


def test_the_same_seed_is_the_same_damage() -> None:
    data, text = bytes(range(200)), b'{"a": [1, {"b": 2.5}], "c": "d"}'
    for make, given in ((damage, data), (damage_json, text)):
        first = [make(given, random.Random(f"x:{i}")) for i in range(50)]
        assert first == [make(given, random.Random(f"x:{i}")) for i in range(50)]
        assert len(set(first)) > 25
