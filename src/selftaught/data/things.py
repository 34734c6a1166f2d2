"""The built-in sample `sample:things`: 96 px pictures of objects on photographs, with true masks for evaluation.

4,096 training and 1,024 test pictures, or fewer with `sample:things:N`. They are drawn from packaged cut-outs and
photographs on first use (seconds), kept in the cache folder, and are the same bytes each time: picture i does not
depend on N. No object and no photograph is in both splits. What the parts are and whose: assets/things/ATTRIBUTION.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from selftaught.core.errors import EXIT_DISK, DataError, suggest
from selftaught.data.base import OfficialSplits, Source, Truth, digest_of
from selftaught.data.cache import cache_root
from selftaught.data.compositing import ASSETS, SIDE, SPLITS, Recipe, compose, load_assets

NAMES = ("things",)
TRAIN_PICTURES = 4096
LEAST_TEST_PICTURES = 64
SEED = 0
_THREADS = 4
_log = logging.getLogger(__name__)


def open_sample(name: str, n: int | None, split: str) -> Source:
    """Open a built-in sample; `n` training pictures (None: 4,096) and max(64, n // 4) test pictures.

    `split` is all, train or test. Draws the pictures when the cache does not have them. Raises DataError for an unknown
    name or split, and when the cache folder cannot be written (exit code 5 when the disk is full).
    """
    if name not in NAMES:
        raise DataError(f"unknown sample '{name}'.{suggest(name, NAMES)}", expected=", ".join(NAMES))
    if split not in ("all", *SPLITS):
        raise DataError(f"unknown split '{split}'.{suggest(split, SPLITS)}", expected="all, train, test")
    n = TRAIN_PICTURES if n is None else n
    if n < 1:
        raise DataError(f"a sample of {n} pictures", expected="at least 1")
    counts = {"train": n, "test": max(LEAST_TEST_PICTURES, n // 4)}
    parts: dict[str, Source] = {p: ThingsSource(p, counts[p]) for p in SPLITS if split in ("all", p)}
    return OfficialSplits("things", parts) if split == "all" else parts[split]


class ThingsSource(Source):
    """One split of the sample, memory mapped; mask ids are 1 and 2, label and object are those of the larger object.

    `truth(i).source_id` names the background, `grounds` and `objects` the code points and photographs of the split.
    """

    has_masks = True
    has_labels = True

    def __init__(self, part: str, count: int) -> None:
        super().__init__()
        self.part = part
        self.name = f"things:{part}"
        self.keys = [f"{i:06d}" for i in range(count)]
        assets = load_assets()
        self.classes = assets.labels
        self.objects = [one.id for one in assets.objects[part]]
        self.grounds = [one.id for one in assets.grounds[part]]
        self._labels = [one.label for one in assets.objects[part]]
        store = _stored(part, count)
        self.images, self.masks, self.facts = store.images, store.masks, store.facts

    def image(self, i: int) -> np.ndarray:
        return np.array(self.images[i])

    def truth(self, i: int) -> Truth:
        thing, ground = (int(value) for value in self.facts[i])
        return Truth(np.array(self.masks[i]), self._labels[thing], self.objects[thing], self.grounds[ground])

    def fingerprint(self) -> str:
        return digest_of("things", [recipe_digest(), self.part, str(len(self))])


@lru_cache(maxsize=1)
def recipe_digest() -> str:
    """Hex digest of all that decides the pictures: packaged files, numbers of the recipe, seed."""
    state = hashlib.sha256(json.dumps({"seed": SEED, "side": SIDE, **asdict(Recipe())}, sort_keys=True).encode())
    for file in ("objects.zip", "backgrounds.zip"):
        state.update((ASSETS / file).read_bytes())
    return state.hexdigest()[:16]


@dataclass(frozen=True)
class _Store:
    """Arrays on disk: images uint8 (N, 96, 96, 3), masks uint8 (N, 96, 96), facts uint16 (N, 2) object and ground."""

    images: np.ndarray
    masks: np.ndarray
    facts: np.ndarray


_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "images": ("u1", (SIDE, SIDE, 3)),
    "masks": ("u1", (SIDE, SIDE)),
    "facts": ("<u2", (2,)),
}


def _open_store(folder: Path, count: int) -> _Store | None:
    """The first `count` pictures of a folder, None when it is not there or does not have the size it says."""
    try:
        held = int(json.loads((folder / "index.json").read_text(encoding="utf-8"))["count"])
        arrays = {}
        for name, (kind, shape) in _ARRAYS.items():
            size = held * int(np.prod(shape)) * np.dtype(kind).itemsize
            if held < count or (folder / f"{name}.raw").stat().st_size != size:
                return None
            whole = np.memmap(folder / f"{name}.raw", dtype=kind, mode="r", shape=(held, *shape))
            arrays[name] = whole[:count]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _Store(**arrays)


def _stored(part: str, count: int) -> _Store:
    """The pictures from the cache (also from a larger sample of the same recipe), drawn first when not there."""
    stem = f"things-{recipe_digest()}-{part}"
    root = cache_root()
    with _writing(root):
        sizes = sorted(
            int(p.name.rpartition("-")[2]) for p in root.glob(f"{stem}-*") if p.name.rpartition("-")[2].isdigit()
        )
        for size in [held for held in sizes if held >= count]:
            found = _open_store(root / f"{stem}-{size}", count)
            if found is not None:
                return found
        folder = root / f"{stem}-{count}"
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{stem}-", dir=root))
        try:
            _draw(work, part, count)
            _move(work, folder, count)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    found = _open_store(folder, count)
    if found is None:
        raise DataError(f"the sample in {folder} does not read back as it was written", do="check the disk, try again")
    return found


def _draw(folder: Path, part: str, count: int) -> None:
    """Draw `count` pictures into raw files of `folder`, fsynced, index last."""
    start = time.perf_counter()
    assets, recipe = load_assets(), Recipe()
    arrays = {name: np.empty((count, *shape), kind) for name, (kind, shape) in _ARRAYS.items()}

    def one(i: int) -> None:
        drawn = compose(assets, recipe, SEED, part, i)
        arrays["images"][i], arrays["masks"][i] = drawn.image, drawn.mask
        arrays["facts"][i] = drawn.object_index, drawn.ground_index

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(one, range(count), chunksize=16):
            pass
    files = {f"{name}.raw": array.tobytes() for name, array in arrays.items()}
    files["index.json"] = json.dumps({"count": count, "side": SIDE, "part": part}).encode()
    for name, data in files.items():
        with open(folder / name, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    _log.info("drew %d pictures of sample:things (%s) in %.1f s", count, part, time.perf_counter() - start)


def _move(work: Path, folder: Path, count: int) -> None:
    """Rename the finished folder to its place; another process that was first is as good."""
    if folder.exists() and _open_store(folder, count) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.chmod(work, 0o755)
        os.rename(work, folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DataError(
            f"the sample cannot be written into {root} ({error.strerror or error})",
            do="free some room" if full else "set SELFTAUGHT_CACHE to a folder that can be written",
            exit_code=EXIT_DISK if full else 2,
        ) from error
