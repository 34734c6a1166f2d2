"""All clips of a source, decoded once, brought to one size and kept as one memory-mapped uint8 file.

The same rules as for pictures (`cache`): a folder `NAME-WxH-KEY/` with `frames.u8` (F, 3, H, W) and `index.json`, built
in `.partial-KEY/`, which a later call continues, and renamed when it is whole. Training takes windows of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from selftaught.core.errors import EXIT_DISK, ConfigError, DataError
from selftaught.data import cache
from selftaught.data.clip_reader import LIMITS, ClipInfo, Decoder, Limits, Want
from selftaught.data.clips import ClipSource
from selftaught.data.readers import BadFile

if TYPE_CHECKING:
    import torch

SCHEMA = 1
"""Rises when the same files give other pixels."""
DECODERS = max(1, min(4, os.cpu_count() or 1))
_SYNC_BYTES = 64 * 2**20
_SYNC_CLIPS = 256
_SPARE_BYTES = 32 * 2**20

Report = Callable[[int, int], None]


@dataclass
class ClipSet:
    """Clips of one size: `frames` memory map uint8 (F, 3, H, W), all clips one behind the other.

    `starts` int64 (N + 1,): clip i is frames[starts[i]:starts[i + 1]]. `infos` says what each file was, `source_index`
    which clip of the source it is, `bad` names what could not be read and why.
    """

    frames: np.ndarray
    starts: np.ndarray
    keys: list[str]
    infos: list[ClipInfo]
    source_index: np.ndarray
    bad: list[tuple[str, str]]
    name: str
    folder: Path

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each clip, int64 (N,)."""
        return np.diff(self.starts)

    def windows(self, length: int, every: int = 1, step: int = 1) -> np.ndarray:
        """Return all cuts of `length` frames, `every`-th frames each, that begin `step` frames apart: int64 (M, 2) of
        (first frame in `frames`, clip). No window reaches over the end of its clip."""
        if min(length, every, step) < 1:
            raise ConfigError(f"Windows of {length} frames, every {every}, {step} apart.", expected="1 or more of each")
        span = (length - 1) * every + 1
        found = []
        for clip, (start, stop) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            first = np.arange(start, stop - span + 1, step, dtype=np.int64)
            found.append(np.stack([first, np.full(len(first), clip, np.int64)], axis=1))
        windows = np.concatenate(found)
        if not len(windows):
            raise DataError(
                f"No clip of {self.name} has {span} frames.", why=f"the longest has {self.lengths.max()}",
                do="take shorter windows, or fewer frames between",
            )  # fmt: skip
        return windows

    def batch(self, first: Sequence[int] | np.ndarray, length: int, every: int = 1) -> torch.Tensor:
        """Return uint8 (B, T, 3, H, W), a copy in memory, from the first frames of windows."""
        import torch

        rows = np.asarray(first, np.int64)[:, None] + every * np.arange(length)
        return torch.from_numpy(np.ascontiguousarray(self.frames[rows]))


def build_clips(
    source: ClipSource,
    want: Want,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    max_bad_frac: float = 0.2,
    report: Report | None = None,
    limits: Limits = LIMITS,
) -> ClipSet:
    """Return the clips of `source` at one size, from the cache when it is whole and true.

    Raises DataError with exit code 3 when more than `max_bad_frac` of the clips (or all) cannot be read, 5 when the disk
    has no room.
    """
    if not want.height:
        raise ConfigError("A cache of clips needs one size.", expected="height and width of at least 1")
    fingerprint = source.fingerprint()
    key = hashlib.sha256(f"clips|{SCHEMA}|{want}|{fingerprint}".encode()).hexdigest()[:16]
    found = cache.kept_or_built(
        cache_dir, f"{source.name}/{want.width}x{want.height}", key,
        lambda folder: _open(folder, source, want, fingerprint),
        lambda partial, folder: _Work(partial, source, want, limits).build(max_bad_frac, report, fingerprint, folder),
    )  # fmt: skip
    cache.refuse(found.bad, len(source), len(source), max_bad_frac, "clips")
    return found


@dataclass
class _Work(cache.Building):
    """A cache being built: clips are appended in order, and recorded in a journal when the disk has them."""

    folder: Path
    source: ClipSource
    want: Want
    limits: Limits
    done: int = 0
    clips: list[dict[str, Any]] = field(default_factory=list)
    """{"i": number in the source, and all of its ClipInfo}."""
    bad: list[tuple[int, str]] = field(default_factory=list)

    @property
    def frames_path(self) -> Path:
        return self.folder / "frames.u8"

    @property
    def frame_bytes(self) -> int:
        return 3 * self.want.height * self.want.width

    def run(self, max_bad_frac: float, report: Report | None) -> None:
        total = len(self.source)
        self._resume(total)
        have = sum(clip["frames"] for clip in self.clips) * self.frame_bytes
        with self.frames_path.open("ab") as frames, (self.folder / "journal.jsonl").open("ab") as journal:
            frames.truncate(have)
            frames.seek(0, os.SEEK_END)
            new: list[dict[str, Any]] = []
            waiting_bytes = 0
            for i, result in clips_in_order(self.source, self.want, self.done, self.limits):
                if isinstance(result, BadFile):
                    self.bad.append((i, result.reason))
                    new.append({"i": i, "bad": result.reason})
                    cache.refuse(self.named(), i + 1, total, max_bad_frac, "clips")
                else:
                    pixels, info = result
                    self._check_room(pixels.nbytes)
                    frames.write(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).data)
                    waiting_bytes += pixels.nbytes
                    new.append({"i": i, **vars(info)})
                    self.clips.append(new[-1])
                self.done = i + 1
                if waiting_bytes >= _SYNC_BYTES or len(new) >= _SYNC_CLIPS or self.done == total:
                    cache.to_disk(frames)
                    self._record(journal, new)
                    new, waiting_bytes = [], 0
                if report is not None:
                    report(self.done, total)
        cache.refuse(self.named(), total, total, max_bad_frac, "clips")

    def index(self) -> dict[str, Any]:
        rows = sum(clip["frames"] for clip in self.clips)
        frames = np.memmap(self.frames_path, np.uint8, "r", shape=(rows, self.frame_bytes))
        return {
            "schema": SCHEMA, "want": vars(self.want), "keys": [self.source.keys[clip["i"]] for clip in self.clips],
            "clips": self.clips, "spots": cache.spots(frames),
        }  # fmt: skip

    def _resume(self, total: int) -> None:
        """Take up what the journal says and the file of frames holds; entries behind the first odd one are dropped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        have = self.frames_path.stat().st_size if self.frames_path.exists() else 0
        journal = self.folder / "journal.jsonl"
        good_bytes = rows = 0
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else []:
            entry = _entry(line, self.done, total)
            if entry is None or (rows + int(entry.get("frames", 0))) * self.frame_bytes > have:
                break
            self.done += 1
            good_bytes += len(line)
            if "bad" in entry:
                self.bad.append((entry["i"], entry["bad"]))
            else:
                self.clips.append(entry)
                rows += entry["frames"]
        if journal.exists():
            os.truncate(journal, good_bytes)

    def _record(self, journal: BinaryIO, new: list[dict[str, Any]]) -> None:
        journal.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in new))
        cache.to_disk(journal)

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size + _SPARE_BYTES:
            raise DataError(
                f"the cache of clips needs {(size + _SPARE_BYTES) / 2**30:.2f} GB more, {free / 2**30:.2f} GB are free",
                why=f"decoded clips are kept in {self.folder.parent}",
                do="free some room, set SELFTAUGHT_CACHE to another disk, or take smaller frames",
                exit_code=EXIT_DISK,
            )


def clips_in_order(source: ClipSource, want: Want, start: int = 0, limits: Limits = LIMITS) -> Iterator[tuple[int, Any]]:
    """Yield (index, (frames, info) or BadFile) in order; a few clips are read ahead, each thread with its decoder."""
    mine = threading.local()
    decoders: list[Decoder] = []

    def one(i: int) -> Any:
        if not hasattr(mine, "decoder"):
            mine.decoder = Decoder(limits)
            decoders.append(mine.decoder)
        try:
            return source.read(i, want, mine.decoder)
        except BadFile as error:
            return error

    waiting: deque[tuple[int, Future[Any]]] = deque()
    with ThreadPoolExecutor(DECODERS) as pool:
        try:
            for i in range(start, len(source)):
                waiting.append((i, pool.submit(one, i)))
                if len(waiting) >= 2 * DECODERS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
            pool.shutdown()
            for decoder in decoders:
                decoder.close()


def _open(folder: Path, source: ClipSource, want: Want, fingerprint: str) -> ClipSet | None:
    """Return the cache in `folder`, or None when it is missing, torn, changed, or of other data."""
    try:
        index = json.loads((folder / "index.json").read_bytes())
        if index["schema"] != SCHEMA or index["fingerprint"] != fingerprint or index["want"] != vars(want):
            return None
        picked = [clip["i"] for clip in index["clips"]]
        infos = [ClipInfo(**{k: v for k, v in clip.items() if k != "i"}) for clip in index["clips"]]
        lengths = np.array([info.frames for info in infos], np.int64)
        whole = (folder / "frames.u8").stat().st_size == int(lengths.sum()) * 3 * want.height * want.width
        if not (whole and len(picked) and (lengths > 0).all() and picked == sorted(set(picked)) and picked[0] >= 0):
            return None
        # The keys are the source's own: a changed index must not name clips after others.
        if index["keys"] != [source.keys[i] for i in picked]:
            return None
        flat = np.memmap(folder / "frames.u8", np.uint8, "r", shape=(int(lengths.sum()), 3 * want.height * want.width))
        if cache.spots(flat) != index["spots"]:
            return None
        bad = [(str(key), str(reason)) for key, reason in index["bad"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None
    starts = np.concatenate([[0], np.cumsum(lengths)])
    frames = flat.reshape(-1, 3, want.height, want.width)
    return ClipSet(frames, starts, index["keys"], infos, np.array(picked, np.int64), bad, source.name, folder)


def _entry(line: bytes, done: int, total: int) -> dict[str, Any] | None:
    """Return one entry of a journal, or None when it is torn or changed."""
    try:
        entry = dict(json.loads(line))
        if not line.endswith(b"\n") or entry["i"] != done or done >= total:
            return None
        if isinstance(entry.get("bad"), str):
            return entry
        info = ClipInfo(**{k: v for k, v in entry.items() if k != "i"})
        good = isinstance(info.frames, int) and isinstance(info.height, int) and info.frames > 0 and info.height > 0
        return entry if good else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # a line that is none is as if it had not been written
