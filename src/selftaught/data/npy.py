"""Plain arrays from .npy and .npz files under rules of our own: no Python objects, no bombs, no sizes that lie.

What a file says about its sizes is held against what is there before any memory is taken.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from selftaught.core.atomic import replacing
from selftaught.core.errors import DataError

MAX_RATIO = 200
"""Unpacked bytes per byte of the file. Noise-free drawings reach about 120; 1,000 is nothing but zeros."""
FREE_BYTES = 16 * 2**20
"""Below this size nothing is a bomb, whatever the ratio."""
MAX_DIRECTORY_BYTES = 4 * 2**20
"""Size of a zip's list of members; some 40,000 of them."""
_CHUNK = 1 << 20
_KINDS = "biufUS"


def read_arrays(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays of an npz that are named in `wanted`; a lone npy becomes the first of them. Raises DataError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(6)
            stream.seek(0)
            if head == b"\x93NUMPY":
                return {wanted[0]: _array(stream, size)}
            if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                raise ValueError("neither npz nor npy")
            return _unzip(stream, size, wanted)
    except Exception as error:  # whatever zipfile, zlib or numpy raise on a hostile file must stay one refusal
        raise DataError(
            f"{path} cannot be read ({error or type(error).__name__})",
            expected="a whole npz of plain arrays (no Python objects)",
        ) from error


def holds_array(path: Path, name: str) -> bool:
    """True when `path` is an npz with an array called `name`; False for anything else, whatever is wrong with it."""
    try:
        with path.open("rb") as stream, _zip(stream) as archive:
            return f"{name}.npy" in archive.namelist()
    except Exception:  # as above; whoever reads the file afterwards says what is wrong
        return False


def _zip(stream: BinaryIO) -> zipfile.ZipFile:
    """Open a zip whose list of members is not too long to be read."""
    record = zipfile._EndRecData(stream)  # type: ignore[attr-defined]  # what ZipFile itself will go by
    if record is None or record[5] > MAX_DIRECTORY_BYTES:
        raise ValueError("too many members" if record else "it is cut off")
    return zipfile.ZipFile(stream)


def _unzip(stream: BinaryIO, size: int, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    with _zip(stream) as archive:
        infos = archive.infolist()
        twice = [name for name, count in Counter(info.filename for info in infos).items() if count > 1]
        if twice:
            raise ValueError(f"two members named {twice[0]!r}")
        total = sum(info.file_size for info in infos)
        if total > FREE_BYTES and total > MAX_RATIO * size:
            raise ValueError(f"{total:,} bytes are packed in {size:,}, more than {MAX_RATIO} to 1")
        arrays = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name not in wanted:
                continue
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename!r} is encrypted, or packed in a way that npz files are not")
            if name in arrays:
                raise ValueError(f"two arrays named {name!r}")
            with archive.open(info) as member:
                arrays[name] = _array(member, info.file_size)  # type: ignore[arg-type]
                member.read(1)  # reading to the end checks the check sum
        return arrays


def _array(stream: BinaryIO, size: int) -> np.ndarray:
    """Read one array from a stream of `size` bytes; raises whatever numpy raises for a header that is none."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, by_column, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy version {version}, known are 1.0 and 2.0")
    if dtype.kind not in _KINDS or dtype.fields is not None or dtype.subdtype is not None:
        raise ValueError(f"an array of {dtype}: no Python objects and no records")
    if any(side < 0 for side in shape) or len(shape) > 32:
        raise ValueError(f"an array of shape {shape}")
    count = math.prod(shape) * dtype.itemsize
    if count != size - stream.tell():
        raise ValueError(f"an array of shape {shape} has {count:,} bytes, the file {size - stream.tell():,}")
    if count > _memory_bytes():
        raise ValueError(f"an array of {count:,} bytes does not fit into the memory of this machine")
    flat = np.empty(count, np.uint8)
    view, done = flat.data, 0
    while done < count:
        got = stream.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not got:
            raise ValueError("it is cut off")
        done += got
    if dtype.kind == "U":
        letters = flat.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if ((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters < 0xE000))).any():
            raise ValueError("an array of text with letters that do not exist")
    values = flat.view(dtype) if dtype.itemsize else np.zeros(math.prod(shape), dtype)
    return values.reshape(shape, order="F" if by_column else "C")


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 2**40


def read_kept(
    path: Path, shape: tuple[int, ...], dtype: Any, say: Callable[[str], None], mapped: bool = False
) -> np.ndarray[Any, Any] | None:
    """What a run kept in a file: an array of `dtype` and `shape`, where -1 is any size. None, and a word, where it does not fit.

    `mapped`: read from the disk as it is needed; otherwise numbers that are not finite do not fit either.
    """
    if not path.exists():
        return None
    try:
        kept = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile):  # damaged, or another kind of file
        kept = None
    if isinstance(kept, np.ndarray) and kept.dtype == dtype and kept.ndim == len(shape):
        fits = all(wanted in (-1, size) for wanted, size in zip(shape, kept.shape, strict=True))
        if fits and (mapped or bool(np.isfinite(kept).all())):
            return kept
    say(f"{path.name} does not fit the pictures; it is made again")
    return None


def kept_array(
    path: Path, shape: tuple[int, ...], make: Callable[[], np.ndarray[Any, Any]], say: Callable[[str], None]
) -> np.ndarray[Any, Any]:
    """A float32 array from a file when it is there and fits; made, and kept there, otherwise."""
    kept = read_kept(path, shape, np.float32, say)
    if kept is not None:
        return kept
    found = make().astype(np.float32)
    with replacing(path) as temp:
        np.save(temp, found)
    return found
