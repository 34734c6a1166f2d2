"""Write files so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selftaught.core.config import sync_folder, write_error


@contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to, which takes the place of `path` when the block ends well.

    The sibling keeps the suffix, because writers choose the format by it. Raises RunError, with exit code 5 for a full
    disk; after any error the sibling is removed and `path` is as it was. Without `durable` it may be lost when the power fails: for one of
    many files that a repetition writes again, since waiting for the disk takes longer than making them.
    """
    path = Path(path)
    mark = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    temp = path.with_name(f".tmp-{os.getpid()}-{mark}{path.suffix[:16]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        if durable:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temp, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        size_bytes = temp.stat().st_size if temp.exists() else 0
        raise write_error(path, size_bytes, error) from error
    finally:
        with suppress(OSError):
            temp.unlink()


def write_bytes(path: str | os.PathLike[str], data: bytes, durable: bool = True) -> None:
    """Write `data` to `path` at once; raises RunError, with exit code 5 for a full disk."""
    with replacing(path, durable) as temp:
        temp.write_bytes(data)
