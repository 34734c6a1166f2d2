"""Make the i-th operation on the files below a folder fail, or kill the process there: open, write, fsync, rename, unlink, mkdir."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NUMBERS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
CALLS = {"fsync": "fsync", "rename": "rename", "replace": "rename", "unlink": "unlink", "remove": "unlink",
         "rmdir": "unlink", "mkdir": "mkdir", "ftruncate": "write", "pwrite": "write", "open": "open"}  # fmt: skip
"""Functions of `os`, and the kind of operation that each is."""


class _File(io.FileIO):
    """A file whose writes count as operations; a failing one writes half of what it was given, as a full disk does."""

    faults: Faults

    def write(self, data: Any) -> int:
        half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        self.faults.meet("write", str(self.name), lambda: super(_File, self).write(half))
        return super().write(data) or 0


class Faults:
    """Context manager: operation number `at` (from 1; 0: none) below `root` fails with `number`, or kills when that is None.

    `lasting` lets all later ones fail as well, which is what a full disk does. `met` lists (kind, file name) of the
    operations so far, `place` is the one that failed.
    """

    def __init__(self, root: Path, at: int = 0, number: int | None = errno.EIO, lasting: bool = False) -> None:
        self.root, self.at, self.number, self.lasting = os.path.realpath(root), at, number, lasting
        self.met: list[tuple[str, str]] = []
        self.place: tuple[str, str] | None = None
        self._patch = pytest.MonkeyPatch()

    def meet(self, kind: str, path: str, before: Any = None) -> None:
        """Count an operation, and let it fail when it is its turn; `before` is what a failing one still does."""
        self.met.append((kind, path))
        turn = len(self.met) == self.at
        # A full disk lets itself be tidied: only what needs room keeps failing.
        if turn or (self.lasting and self.at and len(self.met) > self.at and kind in ("write", "fsync", "mkdir")):
            if before is not None:
                before()
            if self.number is None:
                os.kill(os.getpid(), signal.SIGKILL)
            self.place = self.place or (kind, path)
            raise OSError(self.number, os.strerror(self.number or 0), path)

    def _below(self, path: Any, directory: Any = None) -> str | None:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        elif directory is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), os.fspath(path))
        text = os.path.abspath(os.fsdecode(path))
        return text if text == self.root or text.startswith(self.root + os.sep) else None

    def __enter__(self) -> Faults:
        for name, kind in CALLS.items():
            self._patch.setattr(os, name, self._counted(getattr(os, name), kind))
        real = io.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or (path := self._below(file)) is None:
                return real(file, mode, buffering, *rest, **more)
            self.meet("open", path)
            raw = _File(file, mode.replace("b", "").replace("t", ""))
            raw.faults = self
            stream: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return stream if "b" in mode else io.TextIOWrapper(stream, *rest, **more)

        self._patch.setattr(io, "open", opened)
        self._patch.setattr(builtins, "open", opened)
        return self

    def _counted(self, real: Any, kind: str) -> Any:
        def counted(*args: Any, **more: Any) -> Any:
            reads = kind == "open" and not args[1:2] or kind == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)
            path = None if reads or not args else self._below(args[0], more.get("dir_fd") or more.get("src_dir_fd"))
            if path is not None:
                self.meet(kind, path)
            return real(*args, **more)

        return counted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()
