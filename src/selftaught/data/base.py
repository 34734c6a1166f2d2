"""What a source of pictures is, and the parts that one can be cut into.

`Source.image(i)` gives pixels and is all that training may use; `Source.truth(i)` gives what is known about a picture
and is for evaluation only.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from selftaught.core.errors import DataError
from selftaught.data import readers

Raw = bytes | Path
SAMPLED_FILES, SAMPLED_BYTES = 64, 4096


@dataclass(frozen=True)
class ViewTruth:
    """What is known about the solid object in a picture, in the frames of `nets.renderer`."""

    rotation: np.ndarray
    """float32 (3, 3), from the object's frame to the camera's."""
    fov_rad: float
    """Angle between the lower and the upper edge of the picture."""
    depth: np.ndarray | None = None
    """float32 (H, W), along the viewing axis at pixel centres, in units of the object; 0 outside of it."""
    normals: np.ndarray | None = None
    """float32 (H, W, 3), unit, in the camera's frame, turned to the camera; 0 outside of the object."""


@dataclass(frozen=True)
class Truth:
    """What is known about one picture: `mask` uint8 (H, W) of ids (0 background, 255 ignore), class, object, group, viewpoint."""

    mask: np.ndarray | None = None
    label: str | None = None
    object_id: str | None = None
    source_id: str | None = None
    view: ViewTruth | None = None


class Source(ABC):
    """An ordered collection of pictures with unique keys.

    `part` is "all", "train" or "test"; `notes` are remarks for a person (what was left out, and why).
    """

    name: str = "data"
    part: str = "all"
    keys: list[str]
    has_masks: bool = False
    has_labels: bool = False

    def __init__(self) -> None:
        self.keys = []
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def image(self, i: int) -> np.ndarray:
        """Return picture `i` as uint8 (H, W, 3); raises BadFile."""

    def truth(self, i: int) -> Truth:
        """Return what is known about picture `i`, for evaluation only; raises BadFile when its files are broken."""
        return Truth()

    def raw(self, i: int) -> Raw | None:
        """Return the file of picture `i` (bytes or path), None when the source holds pixels; raises BadFile."""
        return None

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of picture `i` as its file says, decoding no more than that takes; raises BadFile."""
        raw = self.raw(i)
        if raw is None:
            height, width = self.image(i).shape[:2]
            return int(height), int(width)
        header = readers.read_header(raw)
        return header.height, header.width

    def resized(self, i: int, px: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return picture `i` stretched to uint8 (px, px, 3) and its original (H, W); raises BadFile."""
        found = self.resized_many([i], px)[0]
        if isinstance(found, readers.BadFile):
            raise found
        return found

    def resized_many(self, indices: Sequence[int], px: int) -> list[readers.Resized | readers.BadFile]:
        """Return what `resized` does, for several pictures and faster; a BadFile stands where it would be raised."""
        return readers.decode_resized_many((self._given(i) for i in indices), px)

    def _given(self, i: int) -> Raw | np.ndarray | readers.BadFile:
        """The file of a picture, its pixels where there is no file, or why it has neither."""
        try:
            raw = self.raw(i)
            return self.image(i) if raw is None else raw
        except readers.BadFile as error:
            return error

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hex digest of kind, relative names, sizes and times, and for files of a little of their content (`sampled`)."""


class Subset(Source):
    """The pictures of `source` at `indices`, in that order."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, *, part: str | None = None) -> None:
        super().__init__()
        self.source = source
        self.indices = [int(i) for i in indices]
        self.keys = [source.keys[i] for i in self.indices]
        self.part = source.part if part is None else part
        self.name = source.name if part is None or part == "all" else f"{source.name}:{part}"
        self.has_masks, self.has_labels = source.has_masks, source.has_labels
        self.notes = list(source.notes)

    def image(self, i: int) -> np.ndarray:
        return self.source.image(self.indices[i])

    def truth(self, i: int) -> Truth:
        return self.source.truth(self.indices[i])

    def raw(self, i: int) -> Raw | None:
        return self.source.raw(self.indices[i])

    def size(self, i: int) -> tuple[int, int]:
        return self.source.size(self.indices[i])

    def resized_many(self, indices: Sequence[int], px: int) -> list[readers.Resized | readers.BadFile]:
        return self.source.resized_many([self.indices[i] for i in indices], px)

    def fingerprint(self) -> str:
        return digest_of("subset", [self.source.fingerprint(), *map(str, self.indices)])


class OfficialSplits(Source):
    """Train and test parts one after the other; keys get the prefix `train/` or `test/`."""

    def __init__(self, name: str, parts: dict[str, Source]) -> None:
        super().__init__()
        self.name = name
        self.parts = parts
        for part, source in parts.items():
            source.part, source.name = part, f"{name}:{part}"
        self._at = [(source, i) for source in parts.values() for i in range(len(source))]
        self.keys = [f"{part}/{key}" for part, source in parts.items() for key in source.keys]
        self.has_masks = any(source.has_masks for source in parts.values())
        self.has_labels = any(source.has_labels for source in parts.values())
        self.notes = [note for source in parts.values() for note in source.notes]

    def image(self, i: int) -> np.ndarray:
        source, j = self._at[i]
        return source.image(j)

    def truth(self, i: int) -> Truth:
        source, j = self._at[i]
        return source.truth(j)

    def raw(self, i: int) -> Raw | None:
        source, j = self._at[i]
        return source.raw(j)

    def size(self, i: int) -> tuple[int, int]:
        source, j = self._at[i]
        return source.size(j)

    def fingerprint(self) -> str:
        return digest_of("splits", [f"{part}={source.fingerprint()}" for part, source in self.parts.items()])


def unique_keys(names: Sequence[str]) -> list[str]:
    """Drop the suffix of each relative name; where two would become the same, those keep their suffix."""
    names = [printable(name) for name in names]
    stems = [name.removesuffix(PurePosixPath(name).suffix) for name in names]
    count, full = Counter(stems), set(names)
    return [name if count[stem] > 1 or stem in full else stem for name, stem in zip(names, stems, strict=True)]


def printable(name: str) -> str:
    """Return a file name as text that every terminal and file can take; bytes that are not UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def digest_of(kind: str, lines: Iterable[str]) -> str:
    """Return a sha256 hex digest of a kind and lines of text; names that are not UTF-8 are kept apart."""
    state = hashlib.sha256(kind.encode())
    for line in lines:
        state.update(b"\0" + line.encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def sampled(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Return a digest of the beginning, middle and end (4 KiB each) of at most 64 files, spread evenly over `paths`.

    It is for fingerprints: names, sizes and times stay the same when a data set is made anew by tools that keep times, in formats whose
    sizes do not depend on what is in them. A single file that is changed so among more than 64 is not noticed.
    """
    state = hashlib.sha256()
    for k in sorted({round(k) for k in np.linspace(0, len(paths) - 1, min(len(paths), SAMPLED_FILES))}):
        state.update(b"\0file")
        try:
            if not os.path.isfile(paths[k]):  # a pipe would never end
                continue
            with open(paths[k], "rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                for place in (0, size // 2, max(size - SAMPLED_BYTES, 0)):
                    stream.seek(place)
                    state.update(stream.read(SAMPLED_BYTES))
        except (OSError, ValueError):  # reading it later names the reason
            continue
    return state.hexdigest()


def parts_of(source: Any) -> list[str]:
    """train or test for each picture or clip of a source: as its official splits say, else by the hash of each key."""
    parts = getattr(source, "parts", None)
    if parts is not None:
        return [part for part, one in parts.items() for _ in range(len(one))]
    if source.part != "all":
        return [source.part] * len(source)
    in_train = set(split_indices(source.keys, "train"))
    return ["train" if i in in_train else "test" for i in range(len(source))]


def split_indices(keys: Sequence[str], split: str) -> list[int]:
    """Return the indices of "train" (80 %) or "test" (20 %) by the sha256 of each key, so that adding files moves none.

    Both parts have at least one picture when there are two or more; raises DataError for a test part of one picture.
    """
    if split == "all":
        return list(range(len(keys)))
    ranks = [int(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12], 16) for key in keys]
    in_test = {i for i, rank in enumerate(ranks) if rank < 16**12 // 5}
    if len(keys) == 1:
        in_test = set()
    elif not in_test:
        in_test = {min(range(len(keys)), key=ranks.__getitem__)}
    elif len(in_test) == len(keys):
        in_test.discard(max(range(len(keys)), key=ranks.__getitem__))
    if split == "test" and not in_test:
        raise DataError("one picture cannot be split into train and test", do="give more pictures, or split 'all'")
    return [i for i in range(len(keys)) if (i in in_test) == (split == "test")]
