"""Pictures packed in tar files (the WebDataset layout) and in npz archives; nothing is ever unpacked to disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from selftaught.core.errors import DataError
from selftaught.data import readers, tar_index
from selftaught.data.arrays import ArraySource
from selftaught.data.base import Raw, Source, Truth, digest_of, printable, unique_keys
from selftaught.data.npy import read_arrays
from selftaught.data.readers import MAX_FILE_BYTES, SUFFIXES, BadFile

MAX_MEMBERS = 2_000_000
MAX_JSON_BYTES = 16 * 2**20
_PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)
_TRUTHS = ("png", "json", "cls")
_LABELS_LOOKED_AT = 100
_ARRAYS = ("images", "x", "jpeg", "offset", "label", "labels", "y", "classes", "masks")

Place = tuple[int, int, int]
"""Number of the tar, offset and size in bytes."""


@dataclass
class _Sample:
    folder: str
    picture: Place
    truths: dict[str, Place] = field(default_factory=dict)


class TarSource(Source):
    """Uncompressed tars, read in place: local paths, or URLs that fsspec can open.

    Files of one sample share the key, the path up to the first dot of the file name: KEY.jpg (or another picture),
    KEY.png beside it = instance map, KEY.json = facts, KEY.cls = class. Label: the `label` or `category` text of the
    json, else the class, else the folder of the key when there are two or more, one level deep, and no masks; otherwise
    the folder is the group (`Truth.source_id`). Names and links that point outside (`..`, absolute), devices, names that
    are there twice (also in another case), too many members, sizes that lie and cut-off tars raise DataError; links
    that stay inside are left out.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], *, name: str = "") -> None:
        super().__init__()
        many = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self.paths = [os.fspath(path) for path in many]
        if not self.paths:
            raise DataError("no tar was given")
        self.name = name or PurePosixPath(self.paths[0].replace("\\", "/")).stem
        self._states = [tar_state(path) for path in self.paths]
        samples: dict[str, _Sample] = {}
        for number in range(len(self.paths)):
            samples.update(self._index(number, samples))
        if not samples:
            raise DataError(f"no pictures in {', '.join(self.paths)}", expected="members such as 000123.jpg")
        self._samples = list(samples.values())
        self.keys = list(samples)
        folders = {sample.folder for sample in self._samples}
        self.has_masks = any("png" in sample.truths for sample in self._samples)
        one_level = "" not in folders and not any("/" in folder for folder in folders)
        self._folder_is_label = len(folders) >= 2 and one_level and not self.has_masks
        self.has_labels = self._folder_is_label or self._told_labels()

    def image(self, i: int) -> np.ndarray:
        return readers.decode(self.raw(i))

    def raw(self, i: int) -> bytes:
        return self._read(self._samples[i].picture)

    def truth(self, i: int) -> Truth:
        sample = self._samples[i]
        facts = self._facts(sample)
        mask = readers.decode_mask(self._read(sample.truths["png"]), binary_255=True) if "png" in sample.truths else None
        label = _text(facts, "label", "category")
        if label is None and "cls" in sample.truths:
            label = self._read(sample.truths["cls"]).decode("utf-8", "replace").strip()
        if label is None and self._folder_is_label:
            label = sample.folder
        group = _text(facts, "source_id", "source", "group")
        if group is None and not self._folder_is_label and sample.folder:
            group = sample.folder
        return Truth(mask=mask, label=label, object_id=_text(facts, "object_id", "person"), source_id=group)

    def fingerprint(self) -> str:
        lines = [f"{PurePosixPath(p).name}|{state}" for p, state in zip(self.paths, self._states, strict=True)]
        lines += sorted(
            f"{key}|{s.picture}|{sorted(s.truths.items())}" for key, s in zip(self.keys, self._samples, strict=True)
        )
        return digest_of("tar", lines)

    def _index(self, number: int, taken: dict[str, _Sample]) -> dict[str, _Sample]:
        groups: dict[str, dict[str, Place]] = {}
        refused = 0
        index = tar_index.Index(self.paths[number])
        for member, offset, size in tar_members(self.paths[number], index):
            folder, _, file_name = member.rpartition("/")
            if file_name.startswith(".") or "__MACOSX" in folder:
                continue
            stem, _, extension = file_name.partition(".")
            key = printable(f"{folder}/{stem}" if folder else stem)
            extension = extension.lower()
            if extension.rpartition(".")[2] in _PICTURES + _TRUTHS:
                groups.setdefault(key, {})[extension] = (number, offset, size)
            else:
                refused += 1
        if refused:
            self.notes.append(f"{self.paths[number]}: {refused} members are neither pictures nor masks, json or cls")
        if index.links_left_out:
            self.notes.append(f"{self.paths[number]}: {index.links_left_out} links are left out")
        samples: dict[str, _Sample] = {}
        for key, files in groups.items():
            for name, sample in _samples_of(key, files):
                unique = name
                if unique in taken or unique in samples:
                    unique = f"{PurePosixPath(self.paths[number]).stem}-{number}/{name}"
                samples[unique] = sample
        return samples

    def _told_labels(self) -> bool:
        told = [s for s in self._samples if "json" in s.truths or "cls" in s.truths][:_LABELS_LOOKED_AT]
        for sample in told:
            try:
                if "cls" in sample.truths or _text(self._facts(sample), "label", "category") is not None:
                    return True
            except BadFile:
                continue
        return False

    def _facts(self, sample: _Sample) -> dict[str, Any]:
        if "json" not in sample.truths:
            return {}
        if sample.truths["json"][2] > MAX_JSON_BYTES:
            raise BadFile("json of more than 16 MB")
        try:
            facts = json.loads(self._read(sample.truths["json"]))
        except (ValueError, RecursionError) as error:
            raise BadFile(f"broken json ({error})") from error
        return facts if isinstance(facts, dict) else {}

    def _read(self, place: Place) -> bytes:
        number, offset, size = place
        if size > MAX_FILE_BYTES:
            raise BadFile(f"member of {size / 2**20:.0f} MB, the limit is {MAX_FILE_BYTES // 2**20} MB")
        path = self.paths[number]
        try:
            if "://" in path:
                system, inner = remote(path)
                data = bytes(system.cat_file(inner, start=offset, end=offset + size))
            else:
                with open(path, "rb") as stream:  # opened anew: safe across threads and forks, about 10 us
                    stream.seek(offset)
                    data = stream.read(size)
        except OSError as error:
            raise BadFile(f"{path} cannot be read ({error})") from error
        if len(data) != size:
            raise BadFile(f"truncated: {path} is shorter than when it was opened")
        return data


class NpzSource(Source):
    """One npz archive: `images` or `x` (pixels), or `jpeg` + `offset` (files one after the other), never pickles.

    Optional `label` or `labels` or `y` (N,), `classes` (names that whole-number labels point into), `masks` (N, H, W).
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str = "") -> None:
        super().__init__()
        self.path = Path(path)
        self.name = name or self.path.stem
        arrays = read_arrays(self.path, _ARRAYS)
        labels = _named_labels(arrays, str(self.path))
        self._files: np.ndarray | None = None
        self._pixels: ArraySource | None = None
        pixels = arrays.get("images", arrays.get("x"))
        if pixels is not None:
            self._pixels = ArraySource(pixels, labels, arrays.get("masks"))
            n, self.has_masks = len(self._pixels), self._pixels.has_masks
        elif "jpeg" in arrays and "offset" in arrays:
            self._files, self._offset = arrays["jpeg"], _checked_offsets(arrays["jpeg"], arrays["offset"], self.path)
            n = len(self._offset) - 1
        else:
            raise DataError(
                f"{self.path} holds {', '.join(sorted(arrays)) or 'nothing'}",
                expected="arrays named `images` or `x`, or `jpeg` and `offset`",
            )
        if labels is not None and len(labels) != n:
            raise DataError(f"{self.path}: {len(labels)} labels for {n} pictures")
        self._labels = labels
        self.has_labels = labels is not None
        self.keys = [f"{i:0{len(str(n - 1))}d}" for i in range(n)]

    def image(self, i: int) -> np.ndarray:
        if self._pixels is not None:
            return self._pixels.image(i)
        return readers.decode(self._file(i))

    def raw(self, i: int) -> Raw | None:
        return None if self._pixels is not None else self._file(i)

    def truth(self, i: int) -> Truth:
        if self._pixels is not None:
            return self._pixels.truth(i)
        return Truth(label=None if self._labels is None else self._labels[i])

    def fingerprint(self) -> str:
        info = self.path.stat()
        return digest_of("npz", [self.path.name, str(len(self)), str(info.st_size), str(info.st_mtime_ns)])

    def _file(self, i: int) -> bytes:
        assert self._files is not None
        return self._files[self._offset[i] : self._offset[i + 1]].tobytes()


def tar_members(path: str, index: tar_index.Index) -> Iterator[tuple[str, int, int]]:
    """Yield (relative name, offset, size) of the regular files of a tar, each name checked."""
    with opened(path) as stream:
        try:
            yield from tar_index.members(stream, index, MAX_MEMBERS)
        except (tar_index.Broken, OSError) as error:
            raise DataError(
                f"{path} is not a whole tar: {error}",
                expected="an uncompressed tar",
                do="download or make it again; unpack a .tar.gz first (gunzip), so that pictures can be read in place",
            ) from error


def _samples_of(key: str, files: dict[str, Place]) -> Iterator[tuple[str, _Sample]]:
    folder = key.rpartition("/")[0]
    plain = [extension for extension in files if extension in _PICTURES]
    plain.sort(key=lambda extension: (extension == "png", _PICTURES.index(extension)))
    if plain:
        truths = {e: place for e, place in files.items() if e in _TRUTHS and e != plain[0]}
        yield key, _Sample(folder, files[plain[0]], truths)
        return
    dotted = [extension for extension in files if extension.rpartition(".")[2] in _PICTURES]
    names = unique_keys(
        [f"{key}.{extension}" for extension in dotted]
    )  # names such as photo.v1.jpg are no sample parts
    for name, extension in zip(names, dotted, strict=True):
        yield name, _Sample(folder, files[extension])


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    try:
        stream: Any = None
        if "://" in path:
            system, inner = remote(path)
            stream = system.open(inner, "rb")
        else:
            stream = open(path, "rb")
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror or error})") from error
    with stream:
        yield stream


def remote(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise DataError(f"{url} needs fsspec", do="pip install 'selftaught[cloud]'") from error
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be opened ({error})", do="pip install 'selftaught[cloud]'") from error


def tar_state(path: str) -> str:
    """Return size and time of a tar as text, for the fingerprint."""
    if "://" in path:
        system, inner = remote(path)
        try:
            info = system.info(inner)
        except OSError as error:
            raise DataError(f"{path} cannot be opened ({error})") from error
        return "|".join(str(info.get(name, "")) for name in ("size", "ETag", "etag", "LastModified", "mtime"))
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror})") from error
    return f"{state.st_size}|{state.st_mtime_ns}"


def _text(facts: dict[str, Any], *names: str) -> str | None:
    for name in names:
        value = facts.get(name)
        if isinstance(value, str) and value:
            return value.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair could not be written
    return None


def _named_labels(arrays: dict[str, np.ndarray], where: str) -> list[str] | None:
    labels = arrays.get("label", arrays.get("labels", arrays.get("y")))
    if labels is None:
        return None
    labels, classes = labels.reshape(-1), arrays.get("classes")
    if classes is None or labels.dtype.kind not in "iu":
        return [str(label) for label in labels.tolist()]
    if classes.ndim != 1:
        raise DataError(f"{where}: `classes` has shape {classes.shape}", expected="(K,) names")
    if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
        raise DataError(f"{where}: labels reach {labels.max()}, but there are {len(classes)} classes")
    return [str(classes[label]) for label in labels]


def _checked_offsets(files: np.ndarray, offsets: np.ndarray, path: Path) -> np.ndarray:
    ok = files.dtype == np.uint8 and files.ndim == 1 and offsets.ndim == 1 and offsets.dtype.kind in "iu"
    if not ok or len(offsets) < 2:
        raise DataError(f"{path}: `jpeg` must be uint8 (bytes,) and `offset` whole numbers (N+1,)")
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(files) or (np.diff(offsets) < 0).any():
        raise DataError(f"{path}: `offset` does not fit the {len(files)} bytes of `jpeg`")
    return offsets
