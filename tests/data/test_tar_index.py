"""The index of a tar agrees with the standard library's on every tar that was made with care."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from selftaught.core.errors import DataError
from selftaught.data.tar_index import Broken, Index, members, safe_name

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def made(style: str, draw: random.Random) -> bytes:
    """A tar of files, folders and harmless links with names of many lengths and letters."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=FORMATS[style]) as tar:
        for number in range(12):
            depth = [draw.choice("abc\u00e9\u4e2d") * draw.randrange(1, 60) for _ in range(draw.randrange(3))]
            name = "/".join([*depth, f"{number:04d}.jpg"])
            if style == "ustar":
                name = name.encode("ascii", "replace").decode().replace("?", "q")[-90:].lstrip("/")
            member = tarfile.TarInfo(draw.choice(("", "./")) + name)
            member.size = draw.choice((0, 1, 511, 512, 513, 3000))
            if style == "pax":
                member.pax_headers = {"SCHILY.xattr.user.note": "a=b\nc", "mtime": "1.5"}
            tar.addfile(member, io.BytesIO(draw.randbytes(member.size)))
            folder = tarfile.TarInfo(f"folder{number}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            link = tarfile.TarInfo(f"link{number}")
            link.type, link.linkname = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "x" * draw.choice((3, 150))
            if style == "ustar":
                link.linkname = "x"
            tar.addfile(link)
    return stream.getvalue()


def indexed(data: bytes, limit: int = 1000) -> list[tuple[str, int, int]]:
    return list(members(io.BytesIO(data), Index("a.tar"), limit))


@pytest.mark.parametrize("style", list(FORMATS))
@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_standard_library(style: str, seed: int) -> None:
    data = made(style, random.Random(f"{style}{seed}"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in tar if m.isreg()]
    assert len(expected) == 12
    assert indexed(data) == expected


def test_old_tars_and_large_numbers() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.size, member.mtime = 5, 2**40  # a number in base 256
        tar.addfile(member, io.BytesIO(b"12345"))
    data = bytearray(stream.getvalue())
    assert indexed(bytes(data)) == [("a.png", 512, 5)]
    data[257:265] = bytes(8)  # a header of before the standard
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert indexed(bytes(data)) == [("a.png", 512, 5)]
    data[0:1] = b"\xe9"
    data[148:156] = b" " * 8
    signed = sum(byte - 256 * (byte > 127) for byte in data[:512])
    data[148:156] = b"%06o\0 " % signed
    assert indexed(bytes(data))[0][0] == b"\xe9.png".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("style", list(FORMATS))
def test_every_cut_that_loses_a_byte_is_noticed(style: str) -> None:
    data = made(style, random.Random(1))
    whole = indexed(data)
    for length in range(100, len(data), 97):
        try:
            found = indexed(data[:length])
        except (Broken, DataError):
            continue
        assert whole[: len(found)] == found and all(at + size <= length for _, at, size in found)
        assert length % 512 == 0 or length >= len(data.rstrip(b"\0")), length


def test_a_broken_header_in_the_middle_does_not_end_the_index_quietly() -> None:
    data = bytearray(made("ustar", random.Random(2)))
    second = data.index(b"folder5")
    data[second + 20] ^= 1
    with pytest.raises(Broken, match="check sum"):
        indexed(bytes(data))


def test_names() -> None:
    assert safe_name("./a//b/./c.png", "t") == "a/b/c.png" and safe_name("a\\b.png", "t") == "a/b.png"
    assert safe_name("..a/b..png", "t") == "..a/b..png"
    for name in ("", ".", "/", "..", "a/..", "a\0b", "a\tb", "Z:x", "x" * 5000):
        with pytest.raises(DataError):
            safe_name(name, "t")
