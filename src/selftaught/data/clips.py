"""Where clips come from: video files, folders of frames, tars and arrays, all opened by `open_clips`.

A clip is a run of frames uint8 (T, H, W, 3). Pictures of one folder are the frames of one clip, in the order of the
numbers in their names; GIFs are clips. What is known beside the pixels (folders as classes) serves evaluation only.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from selftaught.core.errors import DataError
from selftaught.data import readers, tar_index
from selftaught.data.archives import remote, tar_members, tar_state
from selftaught.data.base import digest_of, printable, sampled, split_indices, unique_keys
from selftaught.data.clip_decoding import fit
from selftaught.data.clip_reader import MAX_CLIP_BYTES, MAX_SENT_BYTES, WHOLE, ClipInfo, Decoder, Place, Want, have_av
from selftaught.data.npy import read_arrays
from selftaught.data.readers import MAX_FILE_BYTES, BadFile
from selftaught.data.rendered import is_rendered
from selftaught.data.sources import PARTS, SPLITS, expand, shards, split_names

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
FRAME_SUFFIXES = tuple(suffix for suffix in readers.SUFFIXES if suffix != ".gif")
MAX_FRAMES_OF_FOLDER = 200_000
_LEFT_OUT = ("masks", "__MACOSX")


class ClipSource(ABC):
    """An ordered collection of clips with unique keys; `part` is all, train or test, `notes` are remarks for a person."""

    def __init__(self, name: str = "clips") -> None:
        self.name = name
        self.part = "all"
        self.keys: list[str] = []
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def read(self, i: int, want: Want, decoder: Decoder) -> tuple[np.ndarray, ClipInfo]:
        """Return clip `i` as uint8 (T, H, W, 3) and what is known of its file; raises BadFile."""

    def size(self, i: int, decoder: Decoder) -> tuple[int, int]:
        """Height and width of the frames of clip `i`, decoding no more than that takes; raises BadFile."""
        info = self.read(i, WHOLE, decoder)[1]
        return info.height, info.width

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hex digest of kind, relative names, sizes and times, and of a little of what the files hold."""

    def label(self, i: int) -> str | None:
        """Return the folder of clip `i` when every clip lies one level down and two folders or more hold several; for
        evaluation only."""
        return self._folders[i] if self._folders else None

    @functools.cached_property
    def _folders(self) -> list[str]:
        """The folder of every clip, none where folders are no classes; looked at once, since every clip asks."""
        folders = [PurePosixPath(key).parent.as_posix() for key in self.keys]
        flat = all(folder != "." and "/" not in folder for folder in folders)
        many = sum(count > 1 for count in Counter(folders).values()) > 1
        return folders if flat and many else []


class ClipSubset(ClipSource):
    """The clips of `source` at `indices`, in that order."""

    def __init__(self, source: ClipSource, indices: Sequence[int], part: str) -> None:
        super().__init__(f"{source.name}:{part}")
        self.source, self.part, self.notes = source, part, list(source.notes)
        self.indices = [int(i) for i in indices]
        self.keys = [source.keys[i] for i in self.indices]

    def read(self, i: int, want: Want, decoder: Decoder) -> tuple[np.ndarray, ClipInfo]:
        return self.source.read(self.indices[i], want, decoder)

    def size(self, i: int, decoder: Decoder) -> tuple[int, int]:
        return self.source.size(self.indices[i], decoder)

    def fingerprint(self) -> str:
        return digest_of("clip subset", [self.source.fingerprint(), *map(str, self.indices)])

    def label(self, i: int) -> str | None:
        return self.source.label(self.indices[i])


class ClipSplits(ClipSource):
    """Train and test parts one after the other; keys get the prefix `train/` or `test/`."""

    def __init__(self, name: str, parts: dict[str, ClipSource]) -> None:
        super().__init__(name)
        self.parts = parts
        for part, source in parts.items():
            source.part, source.name = part, f"{name}:{part}"
        self._at = [(source, i) for source in parts.values() for i in range(len(source))]
        self.keys = [f"{part}/{key}" for part, source in parts.items() for key in source.keys]
        self.notes = [note for source in parts.values() for note in source.notes]

    def read(self, i: int, want: Want, decoder: Decoder) -> tuple[np.ndarray, ClipInfo]:
        source, j = self._at[i]
        return source.read(j, want, decoder)

    def size(self, i: int, decoder: Decoder) -> tuple[int, int]:
        source, j = self._at[i]
        return source.size(j, decoder)

    def fingerprint(self) -> str:
        return digest_of("clip splits", [f"{part}={source.fingerprint()}" for part, source in self.parts.items()])

    def label(self, i: int) -> str | None:
        source, j = self._at[i]
        return source.label(j)


class FileClips(ClipSource):
    """Clips that lie in files or in parts of them: `found` is {relative name: places}, one of a video or array file, or
    several of the pictures of a folder, and `states` says what to compare to notice a change."""

    def __init__(self, name: str, found: dict[str, list[Place]], states: Iterable[str]) -> None:
        super().__init__(name)
        names = sorted(found, key=natural)
        self._places = [found[n] for n in names]
        self._states = list(states)
        self.keys = unique_keys(names)
        videos = sum(len(places) == 1 and _suffix(n) not in (".gif", ".npy") for n, places in found.items())
        if videos and not have_av():
            raise DataError(f"{name} holds {videos} video files.", do="pip install 'selftaught[video]' reads them")

    def read(self, i: int, want: Want, decoder: Decoder) -> tuple[np.ndarray, ClipInfo]:
        places = self._places[i]
        if len(places) > 1:
            return frames_of(_pictures(places), want)
        place = places[0]
        if place.path.endswith(".npy"):
            try:
                pixels = read_arrays(Path(place.path), ("clip",))["clip"]
                return frames_of(iter(pixels_of(pixels)), want)
            except BadFile:
                raise
            except DataError as error:
                raise BadFile(str(error.what)) from error
        if "://" in place.path:
            place = Place(data=_fetch(place))
        return decoder.read(place, want)

    def size(self, i: int, decoder: Decoder) -> tuple[int, int]:
        place = self._places[i][0]
        if len(self._places[i]) > 1:
            header = readers.read_header(_bytes_or_path(place))
            return header.height, header.width
        if place.path.endswith(".npy") or "://" in place.path:
            return super().size(i, decoder)
        info = decoder.read(place, WHOLE, [0])[1]
        return info.height, info.width

    def fingerprint(self) -> str:
        local = [places[0].path for places in self._places if places[0].size < 0]  # not parts of tars
        return digest_of("clip files", [sampled(local), *self._states])


class ArrayClips(ClipSource):
    """Clips in memory: (N, T, H, W, 3), (N, T, 3, H, W), or a list of clips of any length; uint8, or float in [0, 1]."""

    def __init__(self, clips: Sequence[Any], name: str = "array") -> None:
        super().__init__(name)
        self.clips = [pixels_of(np.asarray(clip)) for clip in clips]
        if not self.clips:
            raise DataError("There are no clips in the array.")
        self.keys = [f"{i:0{len(str(len(self.clips) - 1))}d}" for i in range(len(self.clips))]

    def read(self, i: int, want: Want, decoder: Decoder) -> tuple[np.ndarray, ClipInfo]:
        return frames_of(iter(self.clips[i]), want)

    def fingerprint(self) -> str:
        import hashlib

        state = hashlib.sha256()
        for clip in self.clips:
            state.update(repr(clip.shape).encode())
            state.update(np.ascontiguousarray(clip).data)
        return digest_of("clip array", [state.hexdigest()])


def open_clips(data: Any, split: str = "all") -> ClipSource:
    """Open clips: a video file, a folder of videos or of folders of frames, tars of either, .npy, .npz, or arrays.

    `split` is all, train or test: folders or tars named train and test are taken as they are, else a fifth is kept for
    test by the hash of each key. Raises DataError when nothing is there, or something that cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}'", expected=", ".join(SPLITS))
    source = data if isinstance(data, ClipSource) else _open_whole(data)
    if isinstance(source, ClipSplits):
        return source if split == "all" else source.parts[split]
    if split in ("all", source.part):
        return source
    if source.part != "all":
        raise DataError(f"{source.name} is the {source.part} part and has no {split} clips")
    return ClipSubset(source, split_indices(source.keys, split), split)


def is_clips(data: Any) -> bool:
    """Whether a path holds videos, so that a command takes it as clips; a folder of pictures only is not taken so."""
    if not isinstance(data, (str, os.PathLike)) or "://" in os.fspath(data):
        return False
    path = Path(os.path.expanduser(data))
    videos = tuple(suffix for suffix in VIDEO_SUFFIXES if suffix != ".gif")
    if os.path.isfile(path):
        return _suffix(path.name) in videos or (path.suffix == ".tar" and _tar_holds(path, videos))
    if not os.path.isdir(path):
        return False
    for folder, folders, names in os.walk(path):  # what is left out as clips must not decide either
        folders[:] = [n for n in folders if not n.startswith(".") and n not in _LEFT_OUT]
        if any(_suffix(n) in videos and not n.startswith(".") for n in names):
            return True
        if {"world.json", "truth.npz"} <= set(names) and not is_rendered(Path(folder)):
            return True
    return any(_tar_holds(tar, videos) for tar in sorted(path.glob("*.tar")))


def _tar_holds(path: Path, suffixes: Sequence[str]) -> bool:
    return any(_suffix(name) in suffixes for name, _, _ in tar_members(str(path), tar_index.Index(str(path))))


def frames_of(frames: Iterator[np.ndarray], want: Want) -> tuple[np.ndarray, ClipInfo]:
    """Fit frames without times to the size asked for; their rate is not known, so `fps` is left alone."""
    out: list[np.ndarray] = []
    first = (0, 0)
    for frame in frames:
        first = first if out else (int(frame.shape[0]), int(frame.shape[1]))
        height, width = (want.height, want.width) if want.height else first
        out.append(fit(frame, height, width, want.fit == "crop"))
    if not out:
        raise BadFile("it holds no frames")
    return np.stack(out), ClipInfo(len(out), first[0], first[1])


def pixels_of(clip: np.ndarray) -> np.ndarray:
    """Return one clip as uint8 (T, H, W, 3) from (T, H, W), (T, H, W, 1 or 3) or (T, 1 or 3, H, W); raises BadFile."""
    if clip.ndim == 3:
        clip = clip[..., None]
    if clip.ndim != 4 or not clip.size:
        raise BadFile(f"an array of shape {clip.shape}, no clip (T, H, W, 3)")
    if clip.shape[-1] not in (1, 3):
        if clip.shape[1] not in (1, 3):
            raise BadFile(f"an array of shape {clip.shape}, no clip (T, H, W, 3)")
        clip = clip.transpose(0, 2, 3, 1)
    if clip.dtype.kind == "f":
        if not (np.isfinite(clip).all() and clip.min() >= 0 and clip.max() <= 1):
            raise BadFile("float pixels outside [0, 1]")
        clip = np.rint(clip * 255).astype(np.uint8)
    if clip.dtype != np.uint8:
        raise BadFile(f"pixels of type {clip.dtype}; uint8, or float in [0, 1]")
    return np.broadcast_to(clip, (*clip.shape[:3], 3))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key to sort by in which frame10 comes after frame9."""
    parts = re.split(r"(\d{1,18})", name)
    return [(1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part) for part in parts if part]


def _open_whole(data: Any) -> ClipSource:
    if isinstance(data, (str, os.PathLike)):
        return _open_path(os.fspath(data))
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        array = np.asarray(data.detach().cpu() if hasattr(data, "detach") else data)
        return ArrayClips(list(array) if array.ndim == 5 else [array])
    if isinstance(data, Sequence) and data and all(hasattr(item, "shape") for item in data):
        return ArrayClips(data)
    if isinstance(data, Sequence) and data and all(isinstance(item, (str, os.PathLike)) for item in data):
        texts = [os.fspath(item) for item in data]
        return _tars(texts) if all(t.endswith(".tar") for t in texts) else _files([Path(t) for t in texts])
    raise DataError(
        f"clips cannot be read from a {type(data).__name__}",
        expected="a path, a URL of a tar, a list of paths, or arrays (T, H, W, 3)",
    )


def _open_path(text: str) -> ClipSource:
    many = expand(text.removeprefix("file://"))
    if len(many) > 1 or "://" in many[0]:
        return _tars(many) if all(one.endswith(".tar") for one in many) else _files([Path(one) for one in many])
    path = Path(os.path.expanduser(many[0]))
    if os.path.isdir(path):
        return _open_folder(path)
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist", expected="a video, a folder of videos or of frames, .tar, .npy or .npz")
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return _tars([str(path)])
    if suffix == ".npz":
        arrays = read_arrays(path, ("clips", "x", "videos"))
        if not arrays or next(iter(arrays.values())).ndim not in (4, 5):
            raise DataError(f"{path} holds no clips.", expected="an array `clips` (N, T, H, W, 3)")
        return _named(_open_whole(next(iter(arrays.values()))), path.stem)
    if suffix == ".npy":
        array = read_arrays(path, ("clips",))["clips"]
        return _named(_open_whole(array), path.stem)
    if suffix in VIDEO_SUFFIXES:
        return _files([path])
    raise DataError(f"{path} is no video.", expected=" ".join(VIDEO_SUFFIXES) + ", a folder, .tar, .npy or .npz")


def _named(source: ClipSource, name: str) -> ClipSource:
    source.name = name
    return source


def _open_folder(root: Path) -> ClipSource:
    name = root.resolve().name or "clips"
    entries = {entry.name: entry for entry in os.scandir(root)}
    tars = sorted(n for n in entries if n.endswith(".tar"))
    train, test = (shards(tars, PARTS[part]) for part in ("train", "test"))
    if train and test:
        return ClipSplits(name, {"train": _tars([str(root / n) for n in train]), "test": _tars([str(root / n) for n in test])})
    named = split_names(n for n in entries if entries[n].is_dir())
    if named:
        return ClipSplits(name, {part: _walked(root / folder) for part, folder in named.items()})
    found = _walked(root, empty=bool(tars))
    return found if len(found) else _tars([str(root / n) for n in tars], name)


def _walked(root: Path, empty: bool = False) -> FileClips:
    """Find the clips below a folder; links to folders are not followed, hidden names are left out."""
    states: dict[str, str] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in _LEFT_OUT)
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith("."):
                states[Path(os.path.relpath(path, root)).as_posix()] = _state(path)
    return _grouped(root.resolve().name or "clips", {n: Place(str(root / n)) for n in states}, states, empty)


def _grouped(name: str, places: dict[str, Place], states: dict[str, str], empty: bool = False) -> FileClips:
    """Make clips of files: each video and .npy is one, and the pictures of a folder are one."""
    found: dict[str, list[Place]] = {}
    pictures: dict[str, list[str]] = defaultdict(list)
    others: Counter[str] = Counter()
    for file in places:
        suffix = _suffix(file)
        if suffix in VIDEO_SUFFIXES or suffix == ".npy":
            found[file] = [places[file]]
        elif suffix in FRAME_SUFFIXES:
            pictures[PurePosixPath(file).parent.as_posix()].append(file)
        else:
            others[suffix or "no suffix"] += 1
    single = 0
    for folder, files in pictures.items():
        if len(files) == 1:
            single += 1
        elif len(files) <= MAX_FRAMES_OF_FOLDER:
            found[name if folder == "." else folder] = [places[f] for f in sorted(files, key=natural)]
    if not found and not empty:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8)) or "nothing else"
        raise DataError(
            f"no clips in {name}", expected="files ending in " + " ".join(VIDEO_SUFFIXES) + ", or folders of frames",
            why=f"found: {single} folders with one picture, {kinds}",
        )  # fmt: skip
    source = FileClips(name, found, [f"{n}|{states[n]}" for n in sorted(states)])
    if others:
        source.notes.append(f"{name}: files that are no clips: " + ", ".join(f"{c} {s}" for s, c in others.most_common(5)))
    if single:
        source.notes.append(f"{name}: {single} folders hold one picture only, left out")
    return source


def _files(paths: list[Path]) -> ClipSource:
    paths = list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    base = os.path.commonpath([str(path.parent) for path in paths])
    names = {Path(os.path.relpath(path, base)).as_posix(): path for path in paths}
    name = paths[0].stem if len(paths) == 1 else "list"
    if not any(os.path.exists(path) for path in paths):
        raise DataError(f"none of the {len(paths)} listed clips exists, for example {paths[0]}")
    return FileClips(name, {n: [Place(str(p))] for n, p in names.items()}, [f"{n}|{_state(p)}" for n, p in names.items()])


def _tars(paths: Sequence[str], name: str = "") -> FileClips:
    places: dict[str, Place] = {}
    states: dict[str, str] = {}
    for number, path in enumerate(paths):
        index = tar_index.Index(path)
        states[f"{number}:{PurePosixPath(path).name}"] = tar_state(path)
        for member, offset, size in tar_members(path, index):
            if member.rpartition("/")[2].startswith(".") or set(PurePosixPath(member).parts) & set(_LEFT_OUT):
                continue
            unique = printable(member) if member not in places else f"{PurePosixPath(path).stem}-{number}/{member}"
            places[unique] = Place(path, offset, size)
    source = _grouped(name or PurePosixPath(paths[0]).stem, places, {n: f"{p.offset}|{p.size}" for n, p in places.items()})
    source._states += [f"{n}|{state}" for n, state in states.items()]
    return source


def _pictures(places: Sequence[Place]) -> Iterator[np.ndarray]:
    for number, place in enumerate(places):
        try:
            yield readers.decode(_bytes_or_path(place))
        except BadFile as error:
            raise BadFile(f"frame {number}: {error.reason}") from error


def _bytes_or_path(place: Place) -> bytes | Path:
    if place.size < 0:
        return Path(place.path)
    if place.size > MAX_FILE_BYTES:
        raise BadFile(f"a frame of {place.size / 2**20:.0f} MB, the limit is {MAX_FILE_BYTES // 2**20} MB")
    return _fetch(place)


def _fetch(place: Place) -> bytes:
    """Read a part of a file, or of what a URL names."""
    if place.size > min(MAX_SENT_BYTES, MAX_CLIP_BYTES):
        raise BadFile(f"member of {place.size / 2**20:.0f} MB, the limit is {MAX_SENT_BYTES // 2**20} MB")
    try:
        if "://" in place.path:
            system, inner = remote(place.path)
            data = bytes(system.cat_file(inner, start=place.offset, end=place.offset + place.size))
        else:
            with open(place.path, "rb") as stream:
                stream.seek(place.offset)
                data = stream.read(place.size)
    except OSError as error:
        raise BadFile(f"{place.path} cannot be read ({error})") from error
    if len(data) != place.size:
        raise BadFile("truncated: the tar is shorter than when it was opened")
    return data


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _state(path: str | os.PathLike[str]) -> str:
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return "missing"
    return f"{info.st_size}|{info.st_mtime_ns}" if stat.S_ISREG(info.st_mode) else "no file"


__all__ = ["ArrayClips", "ClipInfo", "ClipSource", "ClipSplits", "ClipSubset", "FileClips", "WHOLE", "Want", "is_clips", "open_clips"]
