"""What a person is told when a library brings the whole process down."""

from __future__ import annotations

import contextlib
import faulthandler


def tell_of_crashes() -> None:
    """Let SIGSEGV, SIGABRT and their like print where every thread of Python was; nothing where there is no stderr."""
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError, RuntimeError, AttributeError):
            faulthandler.enable()
