"""Loops that numba compiles, where it is installed: one way to declare them, and one rule for when they are used.

A module of loops imports numba at its top, so it is imported only after `is_there()`. Compiled code is kept as numba does it,
beside the package's own bytecode or, where that folder cannot be written, in the user's cache; so only the first process that
ever uses a loop waits for the compiler, others for loading (seconds, and tenths of a second; docs/benchmarks.md has them). numba
reads what it kept with pickle: whoever can write there can change the package's own code as well.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def is_there() -> bool:
    """Whether numba is installed, and SELFTAUGHT_COMPILED is not 0."""
    return importlib.util.find_spec("numba") is not None and os.environ.get("SELFTAUGHT_COMPILED", "1") != "0"


def loops(*, any_order: bool = False) -> Callable[[F], F]:
    """Let numba compile a function at its first call, without the interpreter's lock and without fastmath.

    any_order: sums may be added in the order that suits the processor, which rounds otherwise than one by one.
    """
    import numba

    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"} if any_order else False}

    def declare(function: F) -> F:
        try:
            made = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to keep the code in
            made = numba.njit(**options)(function)
        return made  # type: ignore[no-any-return]

    return declare
