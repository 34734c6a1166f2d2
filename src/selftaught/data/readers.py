"""From the bytes of one picture file to pixels; every file that cannot be read is named with its reason.

The rules are the same for all sources: EXIF rotation is applied, alpha is laid over mid grey, 16-bit values are divided
by 257, colour spaces become RGB, and of several frames the first is taken. The limit on pixels is checked in the
header, before anything is decoded, and the first bytes choose the one decoder that ever sees a file.

Pillow opens every file and its header is checked, but for JPEGs of nothing but JFIF's head, tables and pixels, whose header
`data/jpeg.py` reads; the pixels of a common JPEG then come from there where simplejpeg is installed, and whatever that finds
wrong Pillow opens and decodes, or names. The decoded pixels are the same either way.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data import jpeg

Readable = bytes | bytearray | memoryview | str | os.PathLike[str]
Resized = tuple[np.ndarray, tuple[int, int]]
"""Pixels, and the (H, W) of the whole picture, upright."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 2**20
MAX_SCANS = 100
"""Passes of a JPEG. Encoders of progressive ones write about ten; each costs a walk over all pixels, however few its bytes."""
MID_GREY = 128
IGNORE_ID = 255
_MAGIC = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"P1": "PPM", b"P2": "PPM", b"P3": "PPM", b"P4": "PPM", b"P5": "PPM", b"P6": "PPM",
}  # fmt: skip
_HEAD_BYTES = 512
_AT_ONCE_BYTES = 8 * 2**20
"""Files up to this size are read in one piece, larger ones as their decoder asks for them."""
_TOGETHER_PIXELS = 2**18
"""Pictures above this size, after their reduction, are not kept until others can be stretched with them."""
_TORCH_PIXELS = 2**22
"""Pictures up to this size are stretched by torch, in half the time of Pillow; its rounding is at most two grey levels off."""
_BAND_PIXELS = 1 << 20
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_ORIENTATION_TAG = 0x0112
_TURN = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}
"""Makes pixels (H, W, 3) upright, by EXIF orientation."""

# Pictures above our own limit are refused with a reason; Pillow's warning would only repeat it on the terminal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Broken tags say nothing about the pixels; a file whose pixels are broken is named in the list of bad files.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadFile(DataError):
    """A picture or mask that cannot be used; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """Pickle by the reason alone, so that the error crosses process borders."""
        return type(self), (self.reason,)


@dataclass(frozen=True)
class Header:
    """What the head of a picture file says: format, Pillow mode, and size in pixels before rotation."""

    format: str
    mode: str
    height: int
    width: int


def decode(data: Readable, *, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None) -> np.ndarray:
    """Decode one picture (bytes of a file, or a path) to uint8 (H, W, 3) RGB.

    With `at_least_px` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, no side below `at_least_px` unless it was.
    Raises BadFile with the reason.
    """
    with _open_stream(data) as stream, _open_image(stream, max_pixels) as image:
        return np.require(_load_rgb(stream, image, at_least_px)[0], requirements=("C", "W"))


def decode_resized(data: Readable, px: int, *, max_pixels: int = MAX_PIXELS) -> Resized:
    """Decode and stretch one picture to uint8 (px, px, 3); also return the (H, W) of the whole picture, upright.

    Antialiased bilinear; JPEGs are decoded at a reduced size of at least 4/3 of `px`. Raises BadFile. In memory the
    channels mostly come first, so that a transposed view is in the order of the cache.
    """
    found = decode_resized_many([data], px, max_pixels=max_pixels)[0]
    if isinstance(found, BadFile):
        raise found
    return found


def decode_resized_many(
    many: Iterable[Readable | np.ndarray | BadFile], px: int, *, max_pixels: int = MAX_PIXELS
) -> list[Resized | BadFile]:
    """Do what `decode_resized` does with several pictures; a BadFile stands where one cannot be read.

    Pixels (H, W, 3) are only stretched, and a BadFile comes back. First all files are read, then all headers checked, then
    all pictures decoded, then all stretched: code that does one thing several times stays in the processor's cache.
    """
    out: list[Resized | BadFile] = []
    opened: list[BinaryIO | np.ndarray | BadFile] = []
    held = 0
    for data in many:
        one = data if isinstance(data, (BadFile, np.ndarray)) else _tried(_open_stream, data)
        opened.append(one)
        held += one.nbytes if isinstance(one, np.ndarray) else one.getbuffer().nbytes if isinstance(one, io.BytesIO) else 0
        if held > _AT_ONCE_BYTES:
            out += _resized_together(opened, px, max_pixels)
            opened, held = [], 0
    return out + _resized_together(opened, px, max_pixels)


def resize_array(image: np.ndarray, px: int) -> np.ndarray:
    """Stretch uint8 (H, W, 3) to (px, px, 3), antialiased bilinear, the same filter as `decode_resized`."""
    height, width = image.shape[:2]
    if (height, width) == (px, px):
        return np.array(image)
    if height * width > _TORCH_PIXELS or px > min(height, width):  # torch rounds enlarged pictures more coarsely
        return np.array(Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR))
    return _stretched(np.require(image, requirements=("C", "W"))[None], px)[0]


def read_header(data: Readable, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read format, mode and size without decoding; raises BadFile."""
    with _open_stream(data) as stream, _open_image(stream, max_pixels) as image:
        return Header(str(image.format), image.mode, image.height, image.width)


def decode_mask(data: Readable, *, max_pixels: int = MAX_PIXELS, binary_255: bool = False) -> np.ndarray:
    """Decode an instance map to uint8 (H, W): 0 = background, 1..254 = objects, 255 = ignore.

    Palette files give their indices. With `binary_255` a map that holds nothing but 0 and 255 is taken as a drawn
    silhouette: 255 becomes object 1. Raises BadFile for colours, more than 255 ids and whatever `decode` refuses.
    """
    with _open_stream(data) as stream, _open_image(stream, max_pixels) as image:
        _load_pixels(image)
        values = np.asarray(image)
    if values.ndim == 3:
        grey = values[..., 0]
        if image.mode not in ("LA", "PA") and not (values[..., :3] == grey[..., None]).all():
            raise BadFile("a mask in colours; its values must be ids (8-bit grey or palette)")
        values = grey
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype != np.uint8:
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > IGNORE_ID:
            raise BadFile("a mask with ids outside 0..255")
        values = values.astype(np.uint8)
    if binary_255 and np.isin(values, (0, IGNORE_ID)).all():
        return (values > 0).astype(np.uint8)
    return np.array(values)


def _tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or the BadFile that it raises."""
    try:
        return call(*arguments)
    except BadFile as error:
        return error


def _resized_together(opened: Sequence[BinaryIO | np.ndarray | BadFile], px: int, max_pixels: int) -> list[Any]:
    """Step by step for all; streams are closed, and pixels of one size are stretched in one call."""
    ready = (BadFile, np.ndarray)
    found: list[Any] = [one if isinstance(one, ready) else _tried(_checked, one, max_pixels) for one in opened]
    turns = [1 if type(one) is Header else _orientation(one) if getattr(one, "format", "") == "JPEG" else None for one in found]
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, (stream, image, turn) in enumerate(zip(opened, found, turns, strict=True)):
        found[place] = image = _tried(_loaded, stream, image, -(-4 * px // 3), max_pixels, turn)
        if isinstance(image, BadFile):
            continue
        pixels, size = image
        alone = px >= min(pixels.shape[:2]) or pixels.shape[0] * pixels.shape[1] > _TOGETHER_PIXELS
        if alone:
            found[place] = resize_array(pixels, px), size
        else:
            alike.setdefault(pixels.shape, []).append(place)
    for places in alike.values():
        stretched = _stretched(np.stack([found[place][0] for place in places]), px)
        for place, pixels in zip(places, stretched, strict=True):
            found[place] = pixels, found[place][1]
    return found


def _checked(stream: BinaryIO, max_pixels: int) -> Image.Image | Header:
    """The header of a plain JPEG within the limits, or any other picture opened by Pillow; raises BadFile."""
    if isinstance(stream, io.BytesIO):
        data = stream.getvalue()  # shares the bytes; a view would keep an error from closing the stream
        plain = jpeg.plain_header(data)
        if plain is not None and plain[0] * plain[1] <= max_pixels and jpeg.scans(data) <= MAX_SCANS:
            return Header("JPEG", plain[2], plain[0], plain[1])
    return _open_image(stream, max_pixels)


def _loaded(
    stream: BinaryIO | np.ndarray | BadFile, image: Any, at_least_px: int, max_pixels: int, orientation: int | None
) -> Resized:
    """Pixels, and the size of the whole picture, of one entry; raises BadFile."""
    if isinstance(stream, np.ndarray):
        return stream, (int(stream.shape[0]), int(stream.shape[1]))
    if isinstance(stream, BadFile):
        raise stream
    with stream:
        if isinstance(image, BadFile):
            raise image
        if isinstance(image, Header):
            height, width = image.height, image.width
            pixels = jpeg.pixels(stream, image.mode, height, width, jpeg.reduction(height, width, at_least_px))
            if pixels is not None:
                return pixels, (height, width)
            image = _open_image(stream, max_pixels)
        with image:
            return _load_rgb(stream, image, at_least_px, orientation)


def _stretched(pixels: np.ndarray, px: int) -> np.ndarray:
    """(B, H, W, 3) in memory of its own to (B, px, px, 3), with the channels first in memory."""
    import torch

    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(planes, (px, px), mode="bilinear", antialias=True)
    return out.contiguous().permute(0, 2, 3, 1).numpy()


def _load_rgb(
    stream: BinaryIO, image: Image.Image, at_least_px: int | None, orientation: int | None = None
) -> Resized:
    """Upright pixels (H, W, 3) of an opened picture, perhaps read-only, and the size that the whole of it has.

    orientation: where it is known already; Pillow turns a TIFF itself when it decodes it, and only then says so.
    """
    width, height = image.size
    reduced = 1
    if at_least_px is not None and image.format in ("JPEG", "MPO"):
        reduced = jpeg.reduction(height, width, at_least_px)
    pixels = jpeg.pixels(stream, image.mode, height, width, reduced) if image.format == "JPEG" else None
    if pixels is None:
        pixels = _load_pillow(image, reduced)
    orientation = _orientation(image) if orientation is None else orientation
    if orientation in _TURN:
        pixels = _TURN[orientation](pixels)
    if orientation >= 5:
        width, height = height, width
    return pixels, (height, width) if reduced > 1 else (int(pixels.shape[0]), int(pixels.shape[1]))


def _load_pillow(image: Image.Image, reduced: int) -> np.ndarray:
    """Pixels (H, W, 3) of an opened picture, at 1/`reduced` of its size."""
    if reduced > 1:
        image.draft(image.mode, (image.width // reduced, image.height // reduced))
    _load_pixels(image)
    try:
        return np.asarray(_to_rgb(image))
    except BadFile:
        raise
    except Exception as error:  # whatever a plugin raises on a hostile file must stay one bad file
        raise BadFile(f"colour mode {image.mode} cannot become RGB ({error})") from error


def _open_stream(data: Readable) -> BinaryIO:
    if isinstance(data, (bytes, bytearray, memoryview)):
        if len(data) == 0:
            raise BadFile("empty file")
        return io.BytesIO(data)
    path = os.fspath(data)
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):  # opening a pipe or a device could block for ever
            raise BadFile("a folder, not a file" if stat.S_ISDIR(info.st_mode) else "not a regular file")
        if info.st_size == 0:
            raise BadFile("empty file")
        if info.st_size > MAX_FILE_BYTES:
            raise BadFile(f"file of {info.st_size / 2**20:.0f} MB, the limit is {MAX_FILE_BYTES // 2**20} MB")
        if info.st_size > _AT_ONCE_BYTES:
            return open(path, "rb")
        with open(path, "rb", buffering=0) as file:
            return io.BytesIO(file.read(info.st_size))
    except ValueError as error:
        raise BadFile("a name that no file can have") from error
    except FileNotFoundError as error:
        raise BadFile("dangling link" if os.path.islink(path) else "the file does not exist") from error
    except PermissionError as error:
        raise BadFile("no permission to read it") from error
    except OSError as error:
        raise BadFile(f"cannot be opened ({error.strerror or error})") from error


def _open_image(stream: BinaryIO, max_pixels: int) -> Image.Image:
    try:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
    except OSError as error:
        raise BadFile(f"cannot be read ({error.strerror or error})") from error
    kind = _format_of(head)
    if kind is None:
        raise BadFile(_what_else(head))
    try:
        image = Image.open(stream, formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFile(f"more than {max_pixels / 1e6:.0f} million pixels") from error
    except Exception as error:  # whatever a plugin raises on a hostile file must stay one bad file
        raise BadFile(f"truncated or broken header ({type(error).__name__})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadFile(f"{width}x{height}, more than {max_pixels / 1e6:g} million pixels")
    if width <= 0 or height <= 0:
        raise BadFile(f"{width}x{height}, no pixels")
    _refuse_hidden_work(image, stream, max_pixels)
    return image


def _format_of(head: bytes) -> str | None:
    """Return the one format of FORMATS that begins like this."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _refuse_hidden_work(image: Image.Image, stream: BinaryIO, max_pixels: int) -> None:
    """Raise BadFile where a small picture would cost the memory or the time of a huge one."""
    if image.format in ("JPEG", "MPO"):
        at = stream.tell()
        stream.seek(0)
        scans = jpeg.scans(stream.read())  # not only progressive files may have many passes
        stream.seek(at)
        if scans > MAX_SCANS:
            raise BadFile(f"a JPEG of {scans} passes, the limit is {MAX_SCANS}")
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        try:
            tile = [int(tags.get(tag, 1)) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadFile("broken TIFF file (its tiles have no size)") from error
        if tile[0] * tile[1] > max_pixels:
            raise BadFile(f"tiles of {tile[0]}x{tile[1]}, more than {max_pixels / 1e6:g} million pixels")
        covered = sum((right - left) * (below - top) for _, (left, top, right, below), *_ in image.tile)  # type: ignore[attr-defined]
        if covered < image.width * image.height:  # the rest would be made up
            raise BadFile(f"truncated TIFF file (it has {covered} of {image.width * image.height} pixels)")


def _load_pixels(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # whatever a plugin raises on a hostile file must stay one bad file
        text = str(error)
        cut = isinstance(error, EOFError) or any(s in text for s in ("truncated", "premature", "unpack", "not enough"))
        raise BadFile(f"truncated {image.format} file" if cut else f"broken {image.format} file ({text})") from error


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels: keep them as they are
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_wide_to_uint8(np.asarray(image))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (MID_GREY, MID_GREY, MID_GREY, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB") if mode != "RGB" else image


def _wide_to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit or float grey (H, W) to uint8 by the range that its type and values say.

    Works in bands of rows: as float64 a whole picture would take eight times the memory of its result.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max hand NaN on
        raise BadFile("holds values that are not finite")
    shift, times, over = 0.0, 1.0, 1.0
    if values.dtype.itemsize == 2 and low >= 0:
        over = 257.0
    elif values.dtype.kind == "f" and low >= 0 and high <= 1:
        times = 255.0
    elif low >= 0 and high <= 255:
        pass
    elif low >= 0 and high <= 65535:
        over = 257.0
    else:
        shift, times = low, (255.0 / (high - low) if high > low else 0.0)
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // values.shape[1])
    for top in range(0, len(values), rows):
        band = values[top : top + rows].astype(np.float64)
        out[top : top + rows] = np.rint((band - shift) * times / over)
    return out


def _what_else(head: bytes) -> str:
    """Say what a file is that no allowed format recognises."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, not a picture"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG or XML text, not a pixel picture"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture (run git lfs pull)"
    if head[4:8] == b"ftyp":
        kind = head[8:12].decode("latin-1")
        return f"a {kind.strip()} file (HEIC, AVIF or video); convert it to JPEG or PNG"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")):
        return "truncated or broken header"
    return "not a picture of a known format (" + ", ".join(FORMATS) + ")"
