"""Memory that a training step frees is kept for the next step, in large pages.

Every step asks for the same large blocks. By default the C library gives each back to the system when it is freed, and the system
must find and clear its pages again, 4 KiB at a time; without that a step takes about a tenth less time and the process a tenth more memory.
"""

from __future__ import annotations

import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_BYTES, _TRIM_BYTES = 2**30, 2**31 - 1


def keep_memory() -> None:
    """Set it for this process; nothing where there is no glibc. Large pages only when torch has not allocated yet.

    Settings of the environment (`MALLOC_MMAP_THRESHOLD_`, `THP_MEM_ALLOC_ENABLE`) come first.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
