"""All pictures of a source, decoded once, stretched to one size and kept as one memory-mapped uint8 file.

Training reads only this. A cache is a folder `NAME-PXpx-KEY/` with `images.u8` (N, 3, S, S) and `index.json`, where KEY
comes from the source's fingerprint. It is built in `.partial-KEY/`, which a later call continues after an interruption,
and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from selftaught.core.config import FULL, digest, sync_folder
from selftaught.core.errors import EXIT_DATA, EXIT_DISK, DataError
from selftaught.core.rows import evenly
from selftaught.data.base import Source
from selftaught.data.readers import BadFile

if TYPE_CHECKING:
    import torch

    from selftaught.data.clips import ClipSource

SCHEMA = 3
"""Rises when the same files give other pixels."""
THREADS = max(2, min(8, os.cpu_count() or 2))
_CHUNK = 512
_PIECE, _AHEAD, _AHEAD_BYTES = 16, 32, 32 * 2**20
"""Pictures that a thread decodes before it hands them over; most such pieces ahead, and most bytes of all of them."""
_SPOTS = 64
_SPARE_BYTES = 32 * 2**20

Report = Callable[[int, int], None]
T = TypeVar("T")


@dataclass
class ImageSet:
    """Pictures of one size: `images` memory map uint8 (N, 3, S, S), `sizes` original (H, W) int64 (N, 2).

    `source_index` (N,) says which picture of the source each row is; `bad` names what could not be read, and why.
    """

    images: np.ndarray
    keys: list[str]
    sizes: np.ndarray
    source_index: np.ndarray
    bad: list[tuple[str, str]]
    image_px: int
    name: str
    folder: Path

    def __len__(self) -> int:
        return len(self.keys)

    def mark(self) -> str:
        """What tells these pictures from others, wherever they lie: a digest of their names and of a few of them."""
        return digest([self.keys, spots(self.images)])

    def batch(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return uint8 (B, 3, S, S), a copy in memory."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.images[np.asarray(indices, dtype=np.int64)]))


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of all caches: the argument, else $SELFTAUGHT_CACHE, else ~/.cache/selftaught."""
    if cache_dir is not None:
        return Path(cache_dir)
    told = os.environ.get("SELFTAUGHT_CACHE")
    return Path(told).expanduser() if told else Path.home() / ".cache" / "selftaught"


def build_cache(
    source: Source,
    image_px: int,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    max_bad_frac: float = 0.2,
    report: Report | None = None,
) -> ImageSet:
    """Return the pictures of `source` at `image_px` x `image_px`, from the cache when it is whole and true.

    `report(done, total)` is called while decoding. Raises DataError with exit code 3 when more than `max_bad_frac` of
    the pictures (or all) cannot be read, 5 when the disk has no room.
    """
    if image_px < 1:
        raise DataError(f"image_px is {image_px}", expected="at least 1")
    total, fingerprint = len(source), source.fingerprint()
    key = hashlib.sha256(f"{SCHEMA}|{image_px}|{fingerprint}".encode()).hexdigest()[:16]
    found = kept_or_built(
        cache_dir, f"{source.name}/{image_px}px", key,
        lambda folder: _open(folder, source, image_px, fingerprint),
        lambda partial, folder: _Work(partial, source, image_px).build(max_bad_frac, report, fingerprint, folder),
    )  # fmt: skip
    refuse(found.bad, total, total, max_bad_frac)
    return found


def kept_or_built(
    cache_dir: str | os.PathLike[str] | None, name: str, key: str, opened: Callable[[Path], T | None],
    build: Callable[[Path, Path], None],
) -> T:  # fmt: skip
    """Open the cache of a key where it is whole; else build it (in a partial folder, which gets the name of the cache at the end)."""
    root = cache_root(cache_dir)
    words, _, size = name.rpartition("/")
    folder = root / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', words)[:60]}-{size}-{key}"
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        with only_one(root / f".{key}.lock"):
            found = opened(folder)
            if found is None:
                shutil.rmtree(folder, ignore_errors=True)
                build(root / f".partial-{key}", folder)
                found = opened(folder)
    if found is None:
        raise DataError(f"the cache {folder} does not read back as it was written", do="check the disk, try again")
    return found


class Building(ABC):
    """What building a cache of pictures and one of clips have in common."""

    folder: Path
    source: Source | ClipSource
    bad: list[tuple[int, str]]

    @abstractmethod
    def run(self, max_bad_frac: float, report: Report | None) -> None:
        """Decode what the journal does not have yet."""

    @abstractmethod
    def index(self) -> dict[str, Any]:
        """What index.json says beside what all caches say."""

    def build(self, max_bad_frac: float, report: Report | None, fingerprint: str, folder: Path) -> None:
        """Decode, index and rename; a full disk gets its room back, any other interruption can be continued."""
        try:
            self.run(max_bad_frac, report)
            self.finish(fingerprint, folder)
        except OSError as error:
            if error.errno in FULL:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def finish(self, fingerprint: str, folder: Path) -> None:
        """Write the index, then give the whole folder its name."""
        index = {"name": self.source.name, "fingerprint": fingerprint, "bad": self.named(), **self.index()}
        with (self.folder / "index.json").open("wb") as stream:
            stream.write(json.dumps(index).encode())
            to_disk(stream)
        (self.folder / "journal.jsonl").unlink(missing_ok=True)
        os.replace(self.folder, folder)
        sync_folder(folder.parent)

    def named(self) -> list[tuple[str, str]]:
        """What could not be read, and why."""
        return [(self.source.keys[i], reason) for i, reason in self.bad]


@dataclass
class _Work(Building):
    """A cache being built: pictures are appended in order, and every `_CHUNK` of them is recorded in a journal."""

    folder: Path
    source: Source
    image_px: int
    done: int = 0
    rows: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)

    @property
    def images_path(self) -> Path:
        return self.folder / "images.u8"

    @property
    def row_bytes(self) -> int:
        return 3 * self.image_px * self.image_px

    def run(self, max_bad_frac: float, report: Report | None) -> None:
        total = len(self.source)
        self._resume(total)
        self._check_room(total)
        if report is not None:
            report(self.done, total)
        with self.images_path.open("ab") as images, (self.folder / "journal.jsonl").open("ab") as journal:
            images.truncate(len(self.rows) * self.row_bytes)
            images.seek(0, os.SEEK_END)
            marks = (len(self.rows), len(self.bad))
            for i, result in decoded_in_order(self.source, self.image_px, self.done):
                if isinstance(result, BadFile):
                    self.bad.append((i, result.reason))
                    refuse(self.named(), i + 1, total, max_bad_frac)
                else:
                    pixels, size = result
                    images.write(np.ascontiguousarray(pixels.transpose(2, 0, 1)).data)
                    self.rows.append(i)
                    self.sizes.append(size)
                self.done = i + 1
                if self.done % _CHUNK == 0 or self.done == total:
                    to_disk(images)
                    self._record(journal, *marks)
                    marks = (len(self.rows), len(self.bad))
                if report is not None and (self.done % 32 == 0 or self.done == total):
                    report(self.done, total)
        refuse(self.named(), total, total, max_bad_frac)

    def index(self) -> dict[str, Any]:
        images = np.memmap(self.images_path, np.uint8, "r", shape=(len(self.rows), self.row_bytes))
        return {
            "schema": SCHEMA, "image_px": self.image_px, "keys": [self.source.keys[i] for i in self.rows], "sizes": self.sizes,
            "source_index": self.rows, "spots": spots(images),
        }  # fmt: skip

    def _resume(self, total: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        have = self.images_path.stat().st_size if self.images_path.exists() else 0
        journal = self.folder / "journal.jsonl"
        good_bytes = 0
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else []:
            entry = _journal_entry(line, self.done, total)
            if entry is None or (len(self.rows) + len(entry["rows"])) * self.row_bytes > have:
                break
            self.done = entry["done"]
            self.rows += entry["rows"]
            self.sizes += [(h, w) for h, w in entry["sizes"]]
            self.bad += [(i, reason) for i, reason in entry["bad"]]
            good_bytes += len(line)
        if journal.exists():
            os.truncate(journal, good_bytes)

    def _record(self, journal: BinaryIO, rows_from: int, bad_from: int) -> None:
        entry = {
            "done": self.done,
            "rows": self.rows[rows_from:],
            "sizes": self.sizes[rows_from:],
            "bad": self.bad[bad_from:],
        }
        journal.write(json.dumps(entry).encode() + b"\n")
        to_disk(journal)

    def _check_room(self, total: int) -> None:
        need = (total - self.done) * self.row_bytes + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise DataError(
                f"the cache of {total:,} pictures needs {need / 2**30:.2f} GB, {free / 2**30:.2f} GB are free",
                why=f"decoded pictures are kept in {self.folder.parent}",
                do="free some room, set SELFTAUGHT_CACHE to another disk, or take a smaller image_px",
                exit_code=EXIT_DISK,
            )


def decoded_in_order(source: Source, px: int, start: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield (index, (pixels, size) or BadFile) in order; pieces of a few pictures are decoded ahead in threads.

    Pieces rather than pictures: handing over costs as much as a tenth of decoding. Enough of them wait to keep the
    threads busy while what is there is written to the disk.
    """

    def piece(first: int) -> list[Any]:
        return list(source.resized_many(range(first, min(first + _PIECE, len(source))), px))

    most = max(2 * THREADS, min(_AHEAD, _AHEAD_BYTES // (3 * px * px * _PIECE)))
    waiting: deque[tuple[int, Future[list[Any]]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for first in range(start, len(source), _PIECE):
                waiting.append((first, pool.submit(piece, first)))
                if len(waiting) >= most:
                    begin, future = waiting.popleft()
                    yield from enumerate(future.result(), begin)
            while waiting:
                begin, future = waiting.popleft()
                yield from enumerate(future.result(), begin)
        finally:
            for _, future in waiting:
                future.cancel()


def refuse(bad: list[tuple[str, str]], seen: int, total: int, max_bad_frac: float, what: str = "pictures") -> None:
    """Raise DataError (exit code 3) when too many pictures (or clips) are broken, or all."""
    if len(bad) <= max_bad_frac * total and len(bad) < total:
        return
    shown = [f"  {key}: {reason}" for key, reason in bad[:10]]
    more = [f"  and {len(bad) - 10} more"] if len(bad) > 10 else []
    so_far = "" if seen == total else f" among the first {seen}"
    raise DataError(
        "\n".join([f"{len(bad)} of {total} {what} cannot be read{so_far}:", *shown, *more]),
        expected=f"at most {max_bad_frac:.0%} broken (max_bad_frac)",
        do="repair or remove them, or allow a larger share",
        exit_code=EXIT_DATA,
    )


def _open(folder: Path, source: Source, px: int, fingerprint: str) -> ImageSet | None:
    """Return the cache in `folder`, or None when it is missing, torn, changed, or of other data."""
    try:
        index = json.loads((folder / "index.json").read_bytes())
        rows = len(index["keys"])
        same = index["schema"] == SCHEMA and index["fingerprint"] == fingerprint and index["image_px"] == px
        whole = (folder / "images.u8").stat().st_size == rows * 3 * px * px
        if not (same and whole and _all_sizes(index["sizes"], rows)):
            return None
        picked = np.asarray(index["source_index"])
        # The keys are the source's own: a changed index must not name pictures after others.
        if picked.shape != (rows,) or picked.dtype != np.int64 or picked.min() < 0 or picked.max() >= len(source.keys):
            return None
        if index["keys"] != [source.keys[i] for i in picked]:
            return None
        flat = np.memmap(folder / "images.u8", np.uint8, "r", shape=(rows, 3 * px * px))
        if spots(flat) != index["spots"]:
            return None
        bad = [(str(key), str(reason)) for key, reason in index["bad"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    sizes = np.asarray(index["sizes"], np.int64).reshape(rows, 2)
    return ImageSet(flat.reshape(rows, 3, px, px), index["keys"], sizes, picked, bad, px, source.name, folder)


def _journal_entry(line: bytes, done: int, total: int) -> dict[str, Any] | None:
    """Return one entry of a journal, or None when it is torn, changed, or does not go on where `done` ends."""
    try:
        entry = json.loads(line)
        rows, bad = entry["rows"], [i for i, reason in entry["bad"] if isinstance(reason, str)]
        seen = sorted([*rows, *bad])
        whole = line.endswith(b"\n") and done < entry["done"] <= total and rows == sorted(rows)
        if whole and seen == list(range(done, entry["done"])) and _all_sizes(entry["sizes"], len(rows)):
            return dict(entry)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass  # a line that is none is as if it had not been written
    return None


def _all_sizes(sizes: Any, rows: int) -> bool:
    """Whether these are `rows` pairs of a height and a width in pixels."""
    found = np.asarray(sizes) if rows else np.zeros((0, 2), np.int64)
    return found.shape == (rows, 2) and found.dtype == np.int64 and bool((found > 0).all())


def spots(images: np.ndarray) -> list[int]:
    """Return check sums of up to 64 rows spread over the file: they notice pages that a crash left empty."""
    rows = evenly(len(images), _SPOTS)
    return [zlib.crc32(np.ascontiguousarray(images[row]).data) for row in rows]


def to_disk(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Let one process at a time build a cache; others wait and then find it. The lock ends with its process."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: two builders would only do the work twice
        yield
        return
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        raise DataError(
            f"the cache in {root} cannot be written ({error.strerror or error})",
            do="free some room" if full else "set SELFTAUGHT_CACHE to a folder that can be written",
            exit_code=EXIT_DISK if full else 2,
        ) from error
