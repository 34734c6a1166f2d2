"""Every kind of picture file, whole and broken, becomes RGB pixels or a BadFile with its reason."""

from __future__ import annotations

import copy
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data import jpeg
from selftaught.data.readers import (
    BadFile,
    decode,
    decode_mask,
    decode_resized,
    decode_resized_many,
    read_header,
    resize_array,
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(h: int = 24, w: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([x * 255 // max(w - 1, 1), y * 255 // max(h - 1, 1), (x + y) % 256], -1).astype(np.uint8)


def reason(data: bytes | Path, **options: int) -> str:
    with pytest.raises(BadFile) as caught:
        decode(data, **options)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_return_the_exact_pixels(kind: str) -> None:
    pixels = gradient()
    out = decode(encoded(Image.fromarray(pixels), kind))
    assert out.dtype == np.uint8 and out.flags.writeable
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_near(kind: str) -> None:
    pixels = np.full((16, 24, 3), (200, 120, 40), np.uint8)
    out = decode(encoded(Image.fromarray(pixels), kind, quality=95))
    assert out.shape == (16, 24, 3) and np.abs(out.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32] = 255  # only the top left quarter is white
    undo = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(undo[orientation])), kind, exif=exif)
    out = decode(data)
    assert out.shape == (32, 64, 3)
    assert out[8, 16].min() > 200 and out[24, 48].max() < 50 and out[8, 48].max() < 50 and out[24, 16].max() < 50
    assert decode_resized(data, 8)[1] == (32, 64)


def test_cmyk_and_grey_become_rgb() -> None:
    out = decode(encoded(Image.new("CMYK", (10, 6), (0, 255, 255, 0)), "JPEG", quality=95))
    assert out.shape == (6, 10, 3) and out[3, 5, 0] > 200 and out[3, 5, 1] < 60
    np.testing.assert_array_equal(decode(encoded(Image.new("L", (3, 2), 77), "PNG")), np.full((2, 3, 3), 77))
    np.testing.assert_array_equal(decode(encoded(Image.new("1", (3, 2), 1), "PNG")), np.full((2, 3, 3), 255))


def test_sixteen_bits_are_divided_by_257() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        out = decode(encoded(Image.fromarray(values), kind))
        np.testing.assert_array_equal(out[0, :, 0], [0, 1, 128, 255])


def test_float_and_int_tiff_are_scaled_by_their_range() -> None:
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    np.testing.assert_array_equal(decode(encoded(unit, "TIFF"))[0, :, 0], [0, 128, 255])
    wide = Image.fromarray(np.array([[-10, 0, 10]], np.int32))
    np.testing.assert_array_equal(decode(encoded(wide, "TIFF"))[0, :, 0], [0, 128, 255])
    broken = Image.fromarray(np.array([[np.nan, 0.5]], np.float32))
    assert "finite" in reason(encoded(broken, "TIFF"))


def test_alpha_is_laid_over_mid_grey() -> None:
    for mode, clear in (("RGBA", (255, 0, 0, 0)), ("LA", (255, 0))):
        out = decode(encoded(Image.new(mode, (4, 4), clear), "PNG"))
        np.testing.assert_array_equal(out, np.full((4, 4, 3), 128))
    half = decode(encoded(Image.new("RGBA", (2, 2), (255, 255, 255, 128)), "PNG"))
    assert abs(int(half[0, 0, 0]) - 192) <= 1


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30] + [0] * 762)
    np.testing.assert_array_equal(decode(encoded(image, "PNG"))[0, 0], [10, 200, 30])
    np.testing.assert_array_equal(decode(encoded(image, "PNG", transparency=1))[0, 0], [128, 128, 128])


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data)[4, 4, 0] > 240 and decode(data)[4, 4, 2] < 15


def test_one_pixel() -> None:
    np.testing.assert_array_equal(decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")), [[[1, 2, 3]]])
    assert decode_resized(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), 5)[0].shape == (5, 5, 3)


def test_too_many_pixels_are_refused_from_the_header() -> None:
    assert "more than" in reason(encoded(Image.new("L", (100, 100)), "PNG"), max_pixels=9_999)
    assert decode(encoded(Image.new("L", (100, 100)), "PNG"), max_pixels=10_000).shape == (100, 100, 3)
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head
    bomb += struct.pack(">I", zlib.crc32(b"IHDR" + head)) + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert "more than 64 million pixels" in reason(bomb)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_cut_files_are_named(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    why = reason(data[: int(len(data) * share)])
    assert why.startswith("truncated") or why.startswith("broken"), why
    if kind in ("JPEG", "PNG"):
        assert why.startswith("truncated")


def test_what_is_not_a_picture_says_what_it_is(tmp_path: Path) -> None:
    assert reason(b"") == "empty file"
    assert "HTML" in reason(b"\n<!DOCTYPE html><html><body>404</body></html>")
    assert "SVG" in reason(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    assert "LFS" in reason(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "heic" in reason(b"\0\0\0\x18ftypheic" + bytes(64))
    assert "not a picture" in reason(b"just some text")
    page = tmp_path / "a.jpg"
    page.write_bytes(b"<html></html>")
    assert "HTML" in reason(page)


def test_random_bytes_and_flipped_bits_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    whole = [
        encoded(Image.fromarray(gradient()), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
    ]
    for trial in range(350):
        data = bytearray(whole[trial % len(whole)])
        for at in rng.integers(0, len(data), 1 + trial % 5):
            data[at] = int(rng.integers(0, 256))
        try:
            out = decode(bytes(data), max_pixels=1_000_000)
        except BadFile as error:
            assert error.reason
        else:
            assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3


def test_paths_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    assert "does not exist" in reason(tmp_path / "gone.png")
    assert "folder" in reason(tmp_path)
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "nowhere.png")
    assert reason(link) == "dangling link"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        assert "regular" in reason(tmp_path / "pipe.png")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users on this system")
def test_no_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(Image.new("L", (2, 2)), "PNG"))
    path.chmod(0)
    me = os.geteuid()
    if me == 0:  # root may read everything, so play another user
        os.seteuid(65534)
    try:
        why = reason(path)
    finally:
        os.seteuid(me)
    assert "permission" in why


@pytest.mark.parametrize("side", [256, 384, 1000])
def test_a_reduced_decode_cannot_be_told_from_a_full_one(side: int) -> None:
    """Within two grey levels (42 dB) on smooth parts, hard coloured edges and grain; photographs come nearer (48 dB)."""
    rng = np.random.default_rng(side)
    y, x = np.mgrid[:side, :side] / side
    scene = np.stack([200 * x, 255 * (np.hypot(x - 0.5, y - 0.4) < 0.3), 128 + 100 * np.sin(20 * y)], 2)
    data = encoded(Image.fromarray((scene + rng.normal(0, 6, (side, side, 1))).clip(0, 255).astype(np.uint8)), "JPEG", quality=90)
    full = resize_array(decode(data), 96).astype(float)
    error = decode_resized(data, 96)[0] - full
    assert 10 * np.log10(255**2 / (error**2).mean()) > 42
    assert np.abs(error).max() > 0, "nothing was reduced"


@pytest.mark.skipif(jpeg.simplejpeg() is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 40}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("turned", [1, 6])
def test_simplejpeg_and_pillow_give_the_same_pixels(
    mode: str, options: dict[str, object], turned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = turned
    many = []
    for h, w in ((64, 64), (65, 131), (257, 190), (375, 500), (1030, 700)):
        scene = np.clip(gradient(h, w) + rng.normal(0, 8, (h, w, 1)), 0, 255).astype(np.uint8)
        many.append(encoded(Image.fromarray(scene).convert(mode), "JPEG", exif=exif, **options))
    used = []
    library = jpeg.simplejpeg()
    monkeypatch.setattr(library, "decode_jpeg", lambda *a, f=library.decode_jpeg, **k: used.append(1) or f(*a, **k))
    fast = [decode(data) for data in many], [decode_resized(data, px) for data in many for px in (16, 96)]
    assert len(used) == (0 if mode == "CMYK" else 15), "every common JPEG goes this way"
    monkeypatch.setattr(jpeg, "simplejpeg", lambda: None)
    plain = [decode(data) for data in many], [decode_resized(data, px) for data in many for px in (16, 96)]
    for ours, theirs in zip(fast[0], plain[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for (ours, size), (theirs, other) in zip(fast[1], plain[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert size == other


@pytest.mark.skipif(jpeg.simplejpeg() is None, reason="simplejpeg is not installed")
def test_headers_of_plain_jpegs_are_read_as_pillow_reads_them() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for mode, options, plain in (
        ("RGB", {}, True), ("L", {}, True), ("RGB", {"progressive": True}, True), ("RGB", {"comment": b"a word"}, True),
        ("CMYK", {}, False), ("RGB", {"exif": turned}, False), ("RGB", {"icc_profile": b"x" * 200}, False),
    ):  # fmt: skip
        data = encoded(Image.fromarray(gradient(70, 90)).convert(mode), "JPEG", **options)
        head = read_header(data)
        assert jpeg.plain_header(data) == ((head.height, head.width, head.mode) if plain else None)
    for data in (b"", b"\xff\xd8\xff\xe0", bytes(100), encoded(Image.fromarray(gradient(70, 90)), "PNG")):
        assert jpeg.plain_header(data) is None
    for data in (b"", b"\xff", b"\xff\xda", b"\x00\xff\xda", b"\xff\xda\xff\xda\xff", b"\x01\xff\xda\xda\xff\xff\xda"):
        assert jpeg.scans(data) == data.count(b"\xff\xda")


@pytest.mark.skipif(jpeg.simplejpeg() is None, reason="simplejpeg is not installed")
def test_a_damaged_jpeg_is_the_same_to_both_ways_of_reading_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(gradient(80, 96)), "JPEG")
    scan = whole.index(b"\xff\xda")

    def damaged() -> bytes:
        data = bytearray(whole)
        for at in rng.integers(2, scan + 12, rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        return bytes(data[: rng.integers(scan, len(data))] if rng.random() < 0.2 else data)

    many, fast, slow = [damaged() for _ in range(400)], [], []
    for found in (fast, slow):
        for one in decode_resized_many(many, 24):
            found.append(one.reason if isinstance(one, BadFile) else (one[0].tobytes(), one[1]))
        monkeypatch.setattr(jpeg, "plain_header", lambda data: None)
    assert sum(isinstance(one, tuple) for one in fast) > 20 < sum(isinstance(one, str) for one in fast)
    assert fast == slow


@pytest.mark.parametrize("h, w", [(1, 1), (1, 40), (7, 5), (31, 333), (96, 96), (128, 128), (500, 375), (2100, 2100)])
@pytest.mark.parametrize("px", [1, 5, 32, 96, 224])
def test_stretching_rounds_nearly_as_pillow(h: int, w: int, px: int) -> None:
    pixels = np.random.default_rng(h * w).integers(0, 256, (h, w, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((px, px), Image.Resampling.BILINEAR))
    for given in (pixels, np.asfortranarray(pixels), pixels[::-1][::-1]):
        out = resize_array(given, px)
        assert out.shape == (px, px, 3) and out.flags.writeable
        error = np.abs(out.astype(int) - expected)
        assert error.max() <= 2 and error.mean() < 0.2, "noise is the worst case"


def test_several_pictures_at_once_are_those_one_by_one(tmp_path: Path) -> None:
    sizes = [(64, 64), (300, 300), (300, 300), (70, 200), (16, 16), (700, 900), (64, 64)]
    many: list[object] = [encoded(Image.fromarray(gradient(*size)), "JPEG" if n % 3 else "PNG") for n, size in enumerate(sizes)]
    many[4:4] = [b"", many[1][:3000], gradient(50, 80), BadFile("gone"), tmp_path / "nothing.jpg"]  # type: ignore[index]
    found = decode_resized_many(many, 16)  # type: ignore[arg-type]
    assert len(found) == len(many)
    for data, one in zip(many, found, strict=True):
        if isinstance(data, np.ndarray):
            assert (one[0] == resize_array(data, 16)).all() and one[1] == data.shape[:2]
        elif isinstance(one, BadFile):
            with pytest.raises(BadFile, match=re.escape(one.reason)):
                raise data if isinstance(data, BadFile) else decode_resized_error(data)
        else:
            alone = decode_resized(data, 16)  # type: ignore[arg-type]
            assert (one[0] == alone[0]).all() and one[1] == alone[1]
    assert [place for place, one in enumerate(found) if isinstance(one, BadFile)] == [4, 5, 7, 8]


def decode_resized_error(data: object) -> BadFile:
    with pytest.raises(BadFile) as caught:
        decode_resized(data, 16)  # type: ignore[arg-type]
    return caught.value


def test_draft_keeps_enough_pixels_and_the_true_size() -> None:
    data = encoded(Image.fromarray(gradient(512, 1024)), "JPEG", quality=95)
    small = decode(data, at_least_px=100)
    assert 100 <= min(small.shape[:2]) < 512
    resized, size = decode_resized(data, 64)
    assert resized.shape == (64, 64, 3) and size == (512, 1024)
    exact = np.asarray(Image.fromarray(decode(data)).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(resized.astype(int) - exact).mean() < 2.0


def test_header_and_bad_file_travel() -> None:
    header = read_header(encoded(Image.new("L", (5, 3)), "PNG"))
    assert (header.format, header.mode, header.height, header.width) == ("PNG", "L", 3, 5)
    again = copy.copy(BadFile("empty file"))  # goes through __reduce__, as across processes
    assert again.reason == "empty file" and again.exit_code == 2


def test_masks_keep_their_ids() -> None:
    ids = np.array([[0, 1, 2], [254, 255, 7]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(ids), "PNG")), ids)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(list(ids.reshape(-1)))
    palette.putpalette([i // 3 for i in range(768)])
    np.testing.assert_array_equal(decode_mask(encoded(palette, "PNG")), ids)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(ids.astype(np.uint16)), "PNG")), ids)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(np.stack([ids] * 3, -1)), "PNG")), ids)
    np.testing.assert_array_equal(decode_mask(encoded(Image.new("1", (2, 1), 1), "PNG")), [[1, 1]])


def test_masks_drawn_black_and_white_become_object_one_only_when_asked() -> None:
    drawn = encoded(Image.fromarray(np.array([[0, 255]], np.uint8)), "PNG")
    np.testing.assert_array_equal(decode_mask(drawn), [[0, 255]])
    np.testing.assert_array_equal(decode_mask(drawn, binary_255=True), [[0, 1]])


def test_masks_that_are_no_masks_are_refused() -> None:
    with pytest.raises(BadFile, match="colours"):
        decode_mask(encoded(Image.fromarray(gradient()), "PNG"))
    with pytest.raises(BadFile, match="255"):
        decode_mask(encoded(Image.fromarray(np.array([[0, 300]], np.uint16)), "PNG"))
