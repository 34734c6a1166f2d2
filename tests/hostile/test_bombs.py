"""Pictures that would fill the memory or never end are refused from their first bytes, before anything is decoded."""

from __future__ import annotations

import gzip
import io
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image

from selftaught.data import readers
from selftaught.data.readers import BadFile, decode, decode_mask, decode_resized, read_header

CPU_S = 0.05


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *before: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(2**20), 9))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + pixels + chunk(b"IEND", b"")


def tiff(**tags: tuple[int, int]) -> bytes:
    """A little-endian TIFF of tags tNUMBER=(type, value); the pixels are missing."""
    names = sorted((int(name[1:]), kind, value) for name, (kind, value) in tags.items())
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in names)
    return b"II*\0" + struct.pack("<IH", 8, len(names)) + entries + bytes(4) + bytes(100)


def gif(width: int, height: int, *frames: tuple[int, int]) -> bytes:
    image = b"".join(b"," + struct.pack("<HHHHB", 0, 0, w, h, 0) + b"\2\2\x44\1\0" for w, h in frames)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + image + b";"


def webp(kind: bytes, body: bytes) -> bytes:
    inner = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def bmp(width: int, height: int, bits: int = 24, packing: int = 0) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head + bytes(200)


def jpeg_of_many_passes_that_is_not_progressive() -> bytes:
    """One colour after the other, and the first again and again."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (5, 100, 200)).save(stream, "JPEG")
    head = stream.getvalue().partition(b"\xff\xda")[0]
    return head + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\x55\x55" * 500 + b"\xff\xd9"


def jpeg_of_many_passes() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (5, 100, 200)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 500 + b"\xff\xd9"


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


SIZES = {"t256": (4, 60_000), "t257": (4, 60_000), "t258": (3, 16), "t259": (3, 1), "t262": (3, 2), "t273": (4, 100), "t277": (3, 4),
         "t278": (4, 60_000), "t279": (4, 100)}  # fmt: skip
SMALL = {**SIZES, "t256": (4, 10), "t257": (4, 10), "t258": (3, 8), "t277": (3, 1), "t262": (3, 1)}
NO_STRIPS = {name: value for name, value in SMALL.items() if name not in ("t273", "t278", "t279")}
BOMBS = {
    "png of 50,000 x 50,000": png(50_000, 50_000),
    "png of 50,000 x 50,000, one bit each": png(50_000, 50_000, depth=1, colour=0),
    "png of 2 to the power of 31": png(2**31 - 1, 2**31 - 1),
    "png of no height": png(100, 0),
    "tiff of 60,000 x 60,000 x 4 x 16 bit": tiff(**SIZES),
    "tiff of large tiles": tiff(**{**NO_STRIPS, "t322": (4, 40_000), "t323": (4, 40_000), "t324": (4, 100), "t325": (4, 100)}),
    "tiff of 65,535 samples": tiff(**{**SMALL, "t277": (3, 65_535)}),
    "tiff of a strip that is one of a million": tiff(**{**SMALL, "t257": (4, 1_000_000), "t278": (4, 1)}),
    "gif of 65,535 x 65,535": gif(65_535, 65_535, (1, 1)),
    "gif of a frame larger than it": gif(10, 10, (65_535, 65_535)),
    "webp of 16 million x 200": webp(b"VP8X", b"\0\0\0\0" + b"\xff\xff\xff" + b"\xc7\0\0"),
    "webp of 16,384 x 16,384": webp(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20)),
    "webp of 16,383 x 16,383": webp(b"VP8 ", b"\x30\1\0\x9d\1\x2a\xff\x3f\xff\x3f" + bytes(20)),
    "bmp of 2 to the power of 31": bmp(2**31 - 1, 2**31 - 1),
    "bmp upside down": bmp(60_000, -60_000),
    "bmp of run lengths": bmp(60_000, 60_000, 8, 1),
    "jpeg of 65,500 x 65,500": jpeg(65_500, 65_500),
    "jpeg of 500 passes": jpeg_of_many_passes(),
    "jpeg of 500 passes, not progressive": jpeg_of_many_passes_that_is_not_progressive(),
    "ppm of 100,000 x 100,000": b"P6 100000 100000 255\n" + bytes(100),
    "ppm of 4,000 digits": b"P6 " + b"9" * 4000 + b" 1 255\n",
}  # fmt: skip
UNKNOWN = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n" + b"%" * 1000,
    "eps with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 100) + bytes(100),
    "fits": b"SIMPLE  =                    T" + b" " * 50 + b"NAXIS   = 2".ljust(2800),
    "gzipped fits": gzip.compress(b"SIMPLE  =                    T" + bytes(10_000)),
    "gd": b"\xff\xfe" + struct.pack(">HH", 60_000, 60_000) + bytes(100),
    "gd2": b"gd2\0" + bytes(100),
    "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 300_000, 300_000, 8, 3) + bytes(100),
    "pdf": b"%PDF-1.7\n" + bytes(100),
    "icns": b"icns" + bytes(100),
    "ico": b"\0\0\1\0" + bytes(100),
    "tga": b"\0\0\2" + bytes(100),
    "dds": b"DDS |\0\0\0" + bytes(200),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "bdf font": b"STARTFONT 2.1\n" + bytes(100),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(100),
    "xpm": b"/* XPM */\n" + bytes(100),
    "ole": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "blp": b"BLP2" + bytes(100),
    "pcx": b"\n\5\1\10" + bytes(200),
    "portable float map": b"PF\n60000 60000\n-1.0\n",
    "dib": struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "avif": b"\0\0\0\x1cftypavif" + bytes(100),
}  # fmt: skip


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("it was decoded")


@pytest.mark.parametrize("name", list(BOMBS))
@pytest.mark.parametrize("read", [decode, read_header, decode_mask, lambda data: decode_resized(data, 32)])
def test_a_bomb_is_refused_before_decoding(name: str, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_load_pixels", never)
    seconds = []
    for _ in range(3):  # the first one of a format also imports its decoder
        start = time.process_time()
        with pytest.raises(BadFile) as caught:
            read(BOMBS[name])
        seconds.append(time.process_time() - start)
    assert min(seconds) < CPU_S, seconds
    assert caught.value.reason and len(caught.value.reason) < 200


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_other_formats_are_not_opened_at_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(BadFile, match="not a picture|HEIC|HTML"):
        decode(UNKNOWN[name])


def test_bombs_are_small_and_what_carries_them_is_harmless() -> None:
    assert max(map(len, BOMBS.values())) < 60_000
    assert decode(png(100, 100)).shape == (100, 100, 3)
    assert decode(gif(4, 4, (1, 1))).shape == (4, 4, 3)
    assert decode(jpeg(8, 8)).shape == (8, 8, 3)
    assert read_header(tiff(**{**SMALL, "t278": (4, 10)})).width == 10
    assert read_header(bmp(5, -3)).height == 3
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG", progressive=True)
    assert decode(stream.getvalue()).shape == (64, 64, 3)
    assert readers.MAX_SCANS >= 50, "encoders write ten passes, some write a few more"


def test_each_file_meets_the_one_decoder_of_its_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda stream, formats: asked.append(formats) or real(stream, formats=formats))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        stream = io.BytesIO()
        Image.new("RGB", (6, 6)).save(stream, kind)
        decode(stream.getvalue())
    assert asked == [(kind,) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    assert set(readers._MAGIC.values()) | {"WEBP"} == set(readers.FORMATS)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_of_a_thousand_to_one_take_no_time(kind: bytes) -> None:
    packed = zlib.compress(bytes(2**26), 9)
    before = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    start = time.process_time()
    try:
        assert decode(png(20, 20, *[chunk(kind, before + packed)] * 20)).shape == (20, 20, 3)
    except BadFile as error:
        assert error.reason
    assert time.process_time() - start < 1.0


def test_of_a_hundred_thousand_frames_only_the_first_is_read() -> None:
    many = gif(4, 4, *[(1, 1)] * 100_000)
    start = time.process_time()
    assert decode(many).shape == (4, 4, 3)
    assert time.process_time() - start < 0.5
