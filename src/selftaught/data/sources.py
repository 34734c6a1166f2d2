"""Where pictures come from: folders, lists, tars, archives and arrays, all opened by `open_data`."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from selftaught.core.errors import DataError, suggest
from selftaught.data import readers
from selftaught.data.archives import NpzSource, TarSource
from selftaught.data.arrays import ArraySource
from selftaught.data.base import (
    OfficialSplits,
    Raw,
    Source,
    Subset,
    Truth,
    digest_of,
    printable,
    sampled,
    split_indices,
    unique_keys,
)
from selftaught.data.npy import holds_array
from selftaught.data.readers import SUFFIXES, BadFile

__all__ = [
    "ArraySource", "BadFile", "FolderSource", "ListSource", "NpzSource", "OfficialSplits", "Source", "Subset",
    "TarSource", "Truth", "open_data",
]  # fmt: skip

MASKS = "masks"
PARTS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
SPLITS = ("all", "train", "test")
MAX_LIST_BYTES = 256 * 2**20
_log = logging.getLogger(__name__)


class FolderSource(Source):
    """All pictures below a folder, in any layout; hidden files and folders are left out.

    Label: the folder, when every picture lies exactly one level down, two or more folders hold two or more pictures
    each, and there are no masks; with masks that folder is the group (`Truth.source_id`). A folder named `masks` is
    never taken as pictures: beside the pictures or beside their folder it gives the instance map of the same relative
    name, `.png`.
    """

    def __init__(self, root: str | os.PathLike[str], *, name: str = "") -> None:
        super().__init__()
        self.root = Path(root)
        self.name = name or self.root.resolve().name or "data"
        self._states: dict[str, str] = {}
        others: Counter[str] = Counter()
        masks: dict[str, str] = {}
        for relative, state in self._walk(self.root):
            suffix = PurePosixPath(relative).suffix.lower()
            if MASKS in PurePosixPath(relative).parts[:-1]:
                masks[relative] = state
            elif suffix in SUFFIXES:
                self._states[relative] = state
            else:
                others[suffix or "no suffix"] += 1
        if not self._states:
            raise _no_pictures(self.root, others, bool(masks))
        self._names = sorted(self._states)
        self.keys = unique_keys(self._names)
        self._masks = self._pair_masks(masks)
        self.has_masks = bool(self._masks)
        self._folder_counts = Counter(PurePosixPath(n).parent.as_posix() for n in self._names)
        classes = [folder for folder, count in self._folder_counts.items() if count >= 2]
        flat = all(folder != "." and "/" not in folder for folder in self._folder_counts)
        self._one_level = flat and len(classes) >= 2
        self.has_labels = self._one_level and not self.has_masks
        if others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
            self.notes.append(f"{self.name}: files that are no pictures: {kinds}")
        for note in self.notes:
            _log.info(note)

    def image(self, i: int) -> np.ndarray:
        return readers.decode(self.raw(i))

    def raw(self, i: int) -> Path:
        return self.root / self._names[i]

    def truth(self, i: int) -> Truth:
        name = self._names[i]
        mask = None
        if name in self._masks:
            mask = readers.decode_mask(self.root / self._masks[name], binary_255=True)
        folder = PurePosixPath(name).parent.as_posix() if self._one_level else None
        folder = None if folder is None else printable(folder)
        return Truth(mask=mask, label=folder) if self.has_labels else Truth(mask=mask, source_id=folder)

    def fingerprint(self) -> str:
        content = sampled([self.root / name for name in self._names])
        return digest_of("folder", [content, *(f"{name}|{self._states[name]}" for name in self._names)])

    def _walk(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield (relative name, size and time) of every file; links to folders are followed, each folder once."""
        seen: set[tuple[int, int]] = set()
        waiting = [""]
        while waiting:
            below = waiting.pop()
            try:
                here = os.stat(root / below)
                if (here.st_dev, here.st_ino) in seen:
                    self.notes.append(f"{printable(below)}: a link to a folder that is read already, left out")
                    continue
                seen.add((here.st_dev, here.st_ino))
                entries = sorted(os.scandir(root / below), key=lambda entry: entry.name)
            except OSError as error:
                if not below:
                    raise DataError(f"{root} cannot be read ({error.strerror})") from error
                self.notes.append(f"{printable(below)}: folder cannot be read ({error.strerror}), left out")
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                relative = f"{below}/{entry.name}" if below else entry.name
                try:
                    info = entry.stat()
                except OSError:  # a dangling link: kept as a name, so that reading it names the reason
                    yield relative, "missing"
                    continue
                if stat.S_ISDIR(info.st_mode):
                    waiting.append(relative)
                else:
                    yield relative, f"{info.st_size}|{info.st_mtime_ns}"

    def _pair_masks(self, masks: dict[str, str]) -> dict[str, str]:
        """Return {picture: mask}, both relative to the root."""
        claims: dict[str, str] = {}
        for name in self._names:
            parts = PurePosixPath(name).with_suffix(".png").parts
            for depth in range(len(parts)):
                beside = "/".join((*parts[:depth], MASKS, *parts[depth:]))
                sister = "/".join((*parts[:depth], MASKS, *parts[depth + 1 :])) if depth + 1 < len(parts) else beside
                found = beside if beside in masks else sister
                if found in masks:
                    claims[name] = found
                    break
        claimed = Counter(claims.values())  # a mask that two pictures could mean is given to neither
        pairs = {name: mask for name, mask in claims.items() if claimed[mask] == 1}
        if masks:
            self.notes.append(f"{self.name}: folder `masks` has {len(masks)} files, {len(pairs)} pictures have a mask")
        return pairs


class ListSource(Source):
    """Picture files named one by one; keys are relative to the folder they share. A file given twice is taken once."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]], *, name: str = "list") -> None:
        super().__init__()
        given = [Path(os.path.abspath(path)) for path in paths]
        self.paths = list(dict.fromkeys(given))
        self.name = name
        if not self.paths:
            raise DataError("the list of pictures is empty", do="give at least one path")
        if not any(map(os.path.exists, self.paths)):  # Path.exists raises for names that are too long
            example = str(self.paths[0])[:300]
            raise DataError(f"none of the {len(self.paths)} listed pictures exists, for example {example}")
        if len(given) > len(self.paths):
            self.notes.append(f"{len(given) - len(self.paths)} paths were listed more than once and are taken once")
        base = os.path.commonpath([str(path.parent) for path in self.paths]) if _same_drive(self.paths) else ""
        self._names = [Path(os.path.relpath(path, base) if base else path).as_posix() for path in self.paths]
        self.keys = unique_keys(self._names)

    def image(self, i: int) -> np.ndarray:
        return readers.decode(self.paths[i])

    def raw(self, i: int) -> Raw | None:
        return self.paths[i]

    def fingerprint(self) -> str:
        states = [f"{n}|{_stat_text(p)}" for n, p in zip(self._names, self.paths, strict=True)]
        return digest_of("list", [sampled(self.paths), *states])


def open_data(data: Any, split: str = "all") -> Source:
    """Open pictures: a path, URL of a tar, list, array, Source, or "sample:NAME[:N]"; `split` is all, train or test.

    Where there are clips and no pictures, some frames of each clip are the pictures.

    Files or folders named train and test are official splits; otherwise about every fifth picture, chosen by the hash
    of its key, is test. Raises DataError when nothing is there.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}'.{suggest(split, SPLITS)}", expected=", ".join(SPLITS))
    if isinstance(data, str) and data.startswith("sample:"):
        return _open_sample(data, split)
    try:
        source = data if isinstance(data, Source) else _open_whole(data)
    except DataError as error:
        frames = _frames_of_clips(data, split)
        if frames is None:
            raise error
        return frames
    if isinstance(source, OfficialSplits):
        return source if split == "all" else source.parts[split]
    if split in ("all", source.part):
        return source
    if source.part != "all":
        raise DataError(f"{source.name} is the {source.part} part and has no {split} pictures")
    return Subset(source, split_indices(source.keys, split), part=split)


def _frames_of_clips(data: Any, split: str) -> Source | None:
    """Frames of clips as pictures, or None when the data hold no clips either.

    Only of local paths, of clips in memory, and of arrays that can be nothing else: a list of pictures of several sizes stays refused.
    """
    from selftaught.data.clip_frames import frames_as_pictures  # reads clips, which are named by what is in this module
    from selftaught.data.clips import ClipSource

    items = data if isinstance(data, (list, tuple)) else [data]
    local = isinstance(data, (str, os.PathLike)) and "://" not in os.fspath(data)
    if local and os.fspath(data).endswith(".npz"):  # pictures with something wrong are not clips
        local = holds_array(Path(data), "clips")
    arrays = bool(items) and all(len(getattr(item, "shape", ())) == (4 if items is data else 5) for item in items)
    if not (local or arrays or isinstance(data, ClipSource)):
        return None
    try:
        return frames_as_pictures(data, split)
    except (DataError, BadFile, OSError, ValueError, RuntimeError):  # the last three: names that no file can have
        return None


def _open_whole(data: Any) -> Source:
    if isinstance(data, os.PathLike):
        return _open_path(os.fspath(data))
    if isinstance(data, str):
        return _open_path(data)
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        return ArraySource(data)
    if isinstance(data, Iterable) and not isinstance(data, (bytes, dict)):
        return _open_list(list(data))
    raise DataError(
        f"pictures cannot be read from a {type(data).__name__}",
        expected="a path, a URL of a tar, a list of paths, an array (N, H, W, 3), or 'sample:things'",
    )


def _open_list(items: list[Any]) -> Source:
    if items and all(isinstance(item, (str, os.PathLike)) for item in items):
        texts = [os.fspath(item) for item in items]
        tars = [text.endswith(".tar") for text in texts]
        if all(tars):
            return TarSource(texts)
        if any(tars) or any("://" in text for text in texts):
            raise DataError("a list mixes tars or URLs with pictures", expected="all tars, or all picture files")
        return ListSource(texts)
    if items and all(hasattr(item, "shape") for item in items):
        if len({tuple(item.shape) for item in items}) > 1:
            raise DataError(
                "the pictures of the list have different shapes", do="write them to files, or make them equal"
            )
        return ArraySource(np.stack([np.asarray(item) for item in items]))
    raise DataError("the list of pictures is empty or mixed", expected="paths, or arrays of one shape (H, W, 3)")


def _open_path(text: str) -> Source:
    if text.startswith("file://"):
        text = text[len("file://") :]
    many = expand(text)
    if len(many) > 1 or "://" in text:
        if not all(one.endswith(".tar") for one in many):
            raise DataError(
                f"{text} is not a tar", expected="a URL or pattern of .tar files; download other data first"
            )
        return TarSource(many, name=PurePosixPath(many[0]).stem)
    path = _at_home(many[0])
    if os.path.isdir(path):
        return _open_folder(path)
    if not os.path.exists(path):
        raise _missing(path)
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return TarSource([path])
    if suffix in (".npz", ".npy"):
        return NpzSource(path)
    if suffix == ".txt":
        return _open_list_file(path)
    if suffix in SUFFIXES:
        return ListSource([path], name=path.stem)
    raise DataError(
        f"{path} is no collection of pictures",
        expected="a folder, .tar, .npz, .npy, a .txt list of paths, or a picture (" + " ".join(SUFFIXES) + ")",
        do="unpack it first" if suffix in (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar") else "",
    )


def _open_folder(root: Path) -> Source:
    from selftaught.data.rendered import is_rendered, open_rendered

    if is_rendered(root):
        return open_rendered(root)
    name = root.resolve().name or "data"
    try:
        entries = {entry.name: entry for entry in os.scandir(root)}
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror})") from error
    tars = sorted(n for n in entries if n.endswith(".tar"))
    train, test = (shards(tars, PARTS[part]) for part in ("train", "test"))
    if train and test:
        parts: dict[str, Source] = {"train": TarSource([root / n for n in train])}
        return _splits(name, {**parts, "test": TarSource([root / n for n in test])}, entries, {*train, *test})
    for ending, kind in ((".npz", NpzSource), ("", FolderSource)):
        named = split_names(entries, ending)
        if named and (ending or all(entries[n].is_dir() for n in named.values())):
            return _splits(name, {part: kind(root / file) for part, file in named.items()}, entries, {*named.values()})
    npz = sorted(n for n in entries if n.endswith(".npz"))
    loose = _holds_pictures(entries)
    if tars and not loose:
        return TarSource([root / n for n in tars], name=name)
    if len(npz) == 1 and not loose:
        return NpzSource(root / npz[0], name=name)
    return FolderSource(root)


def _splits(name: str, parts: dict[str, Source], entries: dict[str, os.DirEntry[str]], taken: set[str]) -> OfficialSplits:
    """Official parts, with a note of what lies beside them and is left out."""
    found = OfficialSplits(name, parts)
    left = sorted(n for n in entries if n not in taken and n != MASKS and _holds_pictures({n: entries[n]}))
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        found.notes.append(f"{name}: beside {' and '.join(sorted(taken)[:2])}, and left out: {', '.join(map(printable, left[:5]))}{more}")
    return found


def _holds_pictures(entries: dict[str, os.DirEntry[str]]) -> bool:
    """Whether a folder holds pictures, or folders that may."""
    return any(PurePosixPath(n).suffix.lower() in SUFFIXES or entries[n].is_dir() for n in entries if n[0] != ".")


def tar_shards(data: Any) -> list[str]:
    """Return the tars that `data` stands for, as `open_data` would read them, without opening any; [] for other data.

    Official splits (train.tar and test.tar in one folder) are other data: their keys depend on the part.
    """
    if isinstance(data, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in data):
        many = [os.fspath(item) for item in data]
    elif isinstance(data, (str, os.PathLike)):
        many = expand(os.fspath(data).removeprefix("file://"))
    else:
        return []
    if len(many) == 1 and "://" not in many[0]:
        path = _at_home(many[0])
        if os.path.isdir(path):
            entries = {entry.name: entry for entry in os.scandir(path)}
            names = sorted(n for n in entries if n.endswith(".tar"))
            split = all(shards(names, PARTS[part]) for part in ("train", "test"))
            other = split or _holds_pictures(entries) or any(n.endswith(".npz") for n in entries)
            return [] if other else [str(path / n) for n in names]
        many = [str(path)]
    return many if all(one.endswith(".tar") for one in many) else []


def _open_list_file(path: Path) -> Source:
    """Open a text file of one path per line, relative to the file's folder; empty lines and # lines are left out."""
    try:
        size = path.stat().st_size
        if size > MAX_LIST_BYTES or not path.is_file():  # a device would never end
            raise DataError(f"{path} is no list of paths", expected=f"a file of at most {MAX_LIST_BYTES // 2**20} MB")
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]  # Windows begins them with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of paths ({error})") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DataError(f"{path} lists no pictures", expected="one path per line")
    return ListSource([path.parent / _at_home(name) for name in names], name=path.stem)


def _at_home(text: str) -> Path:
    """Expand a leading ~; the home of a user who does not exist stays as it was written."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _open_sample(text: str, split: str) -> Source:
    _, name, *rest = text.split(":")
    count = None
    if rest:
        if len(rest) > 1 or not rest[0].isdigit() or int(rest[0]) < 1:
            raise DataError(f"'{text}' is no sample", expected="sample:NAME or sample:NAME:N with N at least 1")
        count = int(rest[0])
    from selftaught.data.things import open_sample

    return open_sample(name, count, split)


def split_names(names: Iterable[str], ending: str = "") -> dict[str, str]:
    """Which of the names in a folder are its train and its test part, in capitals or not; empty unless both are there."""
    lower = {name.lower(): name for name in sorted(names)}  # where both are there, `train` comes after `Train` and is taken
    found = {part: next((lower[w + ending] for w in words if w + ending in lower), "") for part, words in PARTS.items()}
    return found if all(found.values()) else {}


def shards(tars: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the tars of one part: `train.tar`, or numbered ones such as `train-000012.tar`."""
    for name in names:
        found = [tar for tar in tars if re.fullmatch(rf"{name}([-_.]?\d+)*\.tar", tar, re.IGNORECASE)]
        if found:
            return found
    return []


def expand(text: str) -> list[str]:
    """Expand one {000..012} range, and * in local paths that do not exist as written."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if span:
        first, last = span.groups()
        if int(last) - int(first) > 1_000_000:
            raise DataError(f"{text} stands for too many files")
        numbers = range(int(first), int(last) + 1)
        return [f"{text[: span.start()]}{n:0{len(first)}d}{text[span.end() :]}" for n in numbers] or [text]
    if "://" not in text and any(c in text for c in "*?[") and not os.path.exists(text):
        return sorted(glob.glob(os.path.expanduser(text))) or [text]
    return [text]


def _missing(path: Path) -> DataError:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        near = suggest(path.name, [entry.name for entry in os.scandir(folder)]) if folder == path.parent else ""
    except OSError:
        near = ""
    gone = "" if folder == path.parent else f"; the folder that exists is {folder}"
    return DataError(
        f"{path} does not exist{gone}.{near}", do="give a folder, .tar, .npz, .txt list, or 'sample:things'"
    )


def _no_pictures(root: Path, others: Counter[str], masks: bool) -> DataError:
    found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8)) or "no files"
    if masks:
        found += ", and a folder `masks`, which is never taken as pictures"
    return DataError(f"no pictures in {root}", expected="files ending in " + " ".join(SUFFIXES), why=f"found: {found}")


def _same_drive(paths: Sequence[Path]) -> bool:
    return len({path.drive for path in paths}) == 1


def _stat_text(path: Path) -> str:
    try:
        info = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return "missing"
    return f"{info.st_size}|{info.st_mtime_ns}"
