"""Freed memory is kept for the next step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from selftaught.core.allocator import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def steps(count):
    for _ in range(count):
        np.ones(2**23)
steps(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str, **environment: str) -> int:
    # numpy asks for large pages itself, which would hide the faults.
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {"NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], env=env, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is set where there is glibc")
def test_blocks_that_are_freed_are_used_again() -> None:
    assert page_faults("leave") > 10 * 2**23 * 8 / os.sysconf("SC_PAGE_SIZE") / 2
    assert page_faults("keep") < 1000
    assert page_faults("keep", MALLOC_MMAP_THRESHOLD_="131072") > 10_000, "the environment comes first"
