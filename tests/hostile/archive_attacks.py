"""Archives made to do harm, built from nothing: each function writes one and returns its path."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Attack = Callable[[Path], Path]


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (9, 8, 7)).save(stream, "PNG")
    return stream.getvalue()


def header(
    name: bytes, size: int | bytes = 0, kind: bytes = b"0", link: bytes = b"", prefix: bytes = b"", magic: bytes = b"ustar\x0000"
) -> bytes:
    """One tar header whose sum is right, whatever else is wrong."""
    told = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    for at, value in ((0, name), (100, b"0000644\0"), (108, b"0000000\0" * 2), (124, told), (136, b"00000000000\0"),
                      (148, b" " * 8), (156, kind), (157, link), (257, magic), (345, prefix)):  # fmt: skip
        block[at : at + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    assert len(block) == 512
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes | None = None) -> bytes:
    data = png() if data is None else data
    return header(name, len(data)) + padded(data)


def pax(kind: bytes = b"x", **records: bytes) -> bytes:
    body = b""
    for key, value in records.items():
        record = b" %s=%s\n" % (key.replace("__", ".").encode(), value)
        length = len(record) + 1
        while length != len(str(length)) + len(record):
            length = len(str(length)) + len(record)
        body += b"%d%s" % (length, record)
    return header(b"pax", len(body), kind) + padded(body)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    return header(b"././@LongLink", len(name) + 1, kind, magic=b"ustar  \0") + padded(name + b"\0")


def tar(*blocks: bytes) -> Attack:
    """A tar with one good picture first, so that nothing but the attack is a reason to refuse it."""

    def write(folder: Path) -> Path:
        path = folder / "attack.tar"
        path.write_bytes(file(b"good.png") + b"".join(blocks) + bytes(1024))
        return path

    return write


def only(data: bytes, name: str) -> Attack:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def realpath_trick() -> bytes:
    """The shape of CVE-2025-4517: short links to long folders until a path is too long to be resolved, then out."""
    folder, blocks, at = b"d" * 247, b"", b""
    for step in b"abcdefghijklmnop":
        long, link = at + folder, at + bytes([step])
        blocks += long_name(long + b"/") + header(b"d/", 0, b"5") + long_name(link) + header(b"l", 0, b"2", folder[:99])
        at += bytes([step]) + b"/"
    blocks += long_name(at + b"l" * 254) + header(b"l", 0, b"2", b"../" * 16)
    blocks += header(b"escape", 0, b"2", at[:60] + b"l/../../../../../../../../etc")
    return blocks + header(b"flag", 0, b"1", b"escape/passwd") + file(b"escape/evil.png")


def npy(shape: tuple[int, ...], data: bytes = b"", descr: str = "|u1") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def npz(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Attack:
    def write(folder: Path) -> Path:
        path = folder / "attack.npz"
        with zipfile.ZipFile(path, "w", how) as archive:
            for name, data in members:
                archive.writestr(name, data)
        return path

    return write


def _central(name: bytes, sum_: int, packed: int, size: int, at: int, flags: int = 0) -> bytes:
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, 8, 0, 0, sum_, packed, size, len(name), 0, 0, 0, 0, 0, at) + name


def _local(name: bytes, sum_: int, packed: bytes, size: int, flags: int = 0) -> bytes:
    return struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, 8, 0, 0, sum_, len(packed), size, len(name), 0) + name + packed


def zip_by_hand(entries: list[tuple[bytes, int]], data: bytes, told: int | None = None, flags: int = 0) -> bytes:
    """A zip with one packed file and any number of entries that point to it; `told` is the size that they claim."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(data) + deflate.flush()
    size = len(data) if told is None else told
    first = _local(entries[0][0], zlib.crc32(data), packed, size, flags)
    list_ = b"".join(_central(name, zlib.crc32(data), len(packed), size, at, flags) for name, at in entries)
    count = min(len(entries), 0xFFFF)
    return first + list_ + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(list_), len(first), 0)


def million_entries(folder: Path) -> Path:
    entry, count = _central(b"x", 0, 0, 0, 0), 1_000_000
    tail = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entry) * count, 0)
    tail += struct.pack("<4sLQL", b"PK\6\7", 0, len(entry) * count, 1)
    tail += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = folder / "attack.npz"
    path.write_bytes(entry * count + tail)
    # A zip that begins with its list is still a zip; its first bytes must let it pass as one.
    path.write_bytes(b"PK\3\4" + path.read_bytes())
    return path


def object_array(folder: Path) -> Path:
    np.savez(folder / "attack.npz", images=np.array([print], dtype=object))
    return folder / "attack.npz"


END = bytes(1024)
ZEROS = bytes(64 * 2**20)
TARS: dict[str, Attack] = {
    "parent": tar(file(b"../evil.png")),
    "parent inside": tar(file(b"a/b/../../../evil.png")),
    "absolute": tar(file(b"/tmp/evil.png")),
    "absolute twice": tar(file(b"//tmp/evil.png")),
    "drive": tar(file(b"C:/evil.png")),
    "drive without a slash": tar(file(b"c:evil.png")),
    "network share": tar(file(b"\\\\server\\share\\evil.png")),
    "parent with backslashes": tar(file(b"a\\..\\..\\evil.png")),
    "parent in the prefix": tar(header(b"evil.png", len(png()), prefix=b"../..") + padded(png())),
    "parent in a long name": tar(long_name(b"../" * 60 + b"evil.png"), file(b"harmless.png")),
    "parent in pax": tar(pax(path=b"../evil.png"), file(b"harmless.png")),
    "every name by a global header": tar(pax(b"g", path=b"../evil.png"), file(b"harmless.png")),
    "folder outside": tar(header(b"../evil/", 0, b"5")),
    "line feed in a name": tar(file(b"a\nevil.png")),
    "escape sequence in a name": tar(file(b"a\x1b[2Jevil.png")),
    "no name": tar(file(b"")),
    "name of 5,000 letters": tar(long_name(b"n" * 5000), file(b"n")),
    "5,000 folders deep": tar(long_name(b"n/" * 2400 + b"x.png"), file(b"n")),
    "link to a file outside": tar(header(b"evil.png", 0, b"2", b"/etc/passwd")),
    "link to a folder outside": tar(header(b"evil", 0, b"2", b"a/../../..")),
    "link with a long target": tar(long_name(b"../" * 50 + b"etc/passwd", b"K"), header(b"evil.png", 0, b"2", b"x")),
    "link with a pax target": tar(pax(linkpath=b"/etc/passwd"), header(b"evil.png", 0, b"2", b"x")),
    "chain of links": tar(header(b"a", 0, b"2", b"b"), header(b"b", 0, b"2", b"c"), header(b"c", 0, b"2", b"..")),
    "file through a link": tar(header(b"d", 0, b"2", b"e"), file(b"d/evil.png")),
    "link behind its files": tar(file(b"d/evil.png"), header(b"d", 0, b"2", b"e")),
    "link through a link": tar(header(b"a", 0, b"2", b"b"), header(b"a/c", 0, b"2", b"x")),
    "hard link outside": tar(header(b"evil.png", 0, b"1", b"/etc/shadow")),
    "hard link to a parent": tar(header(b"evil.png", 0, b"1", b"../evil")),
    "path too long to be resolved": tar(realpath_trick()),
    "pipe": tar(header(b"evil.png", 0, b"6")),
    "character device": tar(header(b"evil.png", 0, b"3")),
    "block device": tar(header(b"evil.png", 0, b"4")),
    "one name twice": tar(file(b"x/evil.png"), file(b"x/evil.png")),
    "one name twice, told in two ways": tar(file(b"x/evil.png"), file(b"./x//evil.png")),
    "one name in two cases": tar(file(b"x/evil.png"), file(b"x/Evil.PNG")),
    "one name in two forms": tar(*(file(unicodedata.normalize(form, "\u00e9vil.png").encode()) for form in ("NFC", "NFD"))),
    "link in the place of a file": tar(file(b"evil.png"), header(b"evil.png", 0, b"2", b"good.png")),
    "sparse": tar(header(b"evil.png", 0, b"S", magic=b"ustar  \0")),
    "sparse by pax": tar(pax(GNU__sparse__size=b"999999999999"), file(b"evil.png")),
    "size beyond the end": tar(header(b"evil.png", 2**32) + png()),
    "size beyond the end by pax": tar(pax(size=b"999999999999"), file(b"evil.png")),
    "size that is no number": tar(pax(size=b"-512"), file(b"evil.png")),
    "size below zero": tar(header(b"evil.png", b"\xff" * 12)),
    "size of 2 to the power of 80": tar(header(b"evil.png", b"\x80" + b"\0" + b"\xff" * 10)),
    "offset that goes back for ever": tar(pax(), header(b"e", b"\xff" * 10 + b"\xfe\0", b"x")),
    "long name of 9 GB": tar(header(b"././@LongLink", 8**11 - 1, b"L", magic=b"ustar  \0")),
    "pax of a megabyte": tar(pax(path=b"n" * 2**20), file(b"evil.png")),
    "pax full of digits": tar(header(b"pax", 60_000, b"x") + padded(b"1" * 60_000), file(b"evil.png")),
    "pax record that is longer than its header": tar(header(b"pax", 20, b"x") + padded(b"99999 path=evil.png\n"), file(b"e")),
    "sum that is wrong": tar(header(b"evil.png")[:148] + b"000000\0 " + header(b"evil.png")[156:]),
    "nothing but a tar": only(file(b"inner.tar", file(b"../evil.png") + END) + END, "attack.tar"),
    "tar of a tar of a tar": only(file(b"a.tar", file(b"b.tar", file(b"c.png") + END) + END) + END, "attack.tar"),
    "packed a thousand to one": only(gzip.compress(file(b"evil.png", ZEROS)), "attack.tar"),
    "cut off": only(file(b"good.png")[:700], "attack.tar"),
}  # fmt: skip
ARRAYS: dict[str, Attack] = {
    "a thousand to one": npz(("images.npy", npy((64, 1024, 1024, 1), ZEROS))),
    "entries on top of each other": only(
        zip_by_hand([(b"images%d.npy" % i, 0) for i in range(30)], npy((1024, 1024), bytes(2**20))), "attack.npz"),
    "a million entries": million_entries,
    "array larger than its entry": npz(("images.npy", npy((10**9, 4, 4, 3), bytes(100)))),
    "array of 10 to the power of 15 bytes": only(npy((10**15,), bytes(100)), "attack.npy"),
    "array of a negative size": only(npy((-1, 4, 4, 3), bytes(100)), "attack.npy"),
    "entry larger than it says": only(zip_by_hand([(b"images.npy", 0)], npy((8, 4, 4, 3), bytes(384)), told=140), "attack.npz"),
    "entry smaller than it says": only(zip_by_hand([(b"images.npy", 0)], npy((8, 4, 4, 3), bytes(384)), told=10**6), "attack.npz"),
    "one name twice": only(zip_by_hand([(b"images.npy", 0)] * 2, npy((8, 4, 4, 3), bytes(384))), "attack.npz"),
    "one array under two names": npz(("images", npy((1, 4, 4, 3), bytes(48))), ("images.npy", npy((1, 4, 4, 3), bytes(48)))),
    "pickled objects": object_array,
    "records": npz(("images.npy", npy((1,), bytes(16), "|V16"))),
    "encrypted": only(zip_by_hand([(b"images.npy", 0)], npy((8, 4, 4, 3), bytes(384)), flags=1), "attack.npz"),
    "another packing": npz(("images.npy", npy((8, 4, 4, 3), bytes(384))), how=zipfile.ZIP_BZIP2),
    "name that points outside": npz(("../images.npy", npy((8, 4, 4, 3), bytes(384)))),
    "array nested in a zip": npz(("inner.npz", b"PK\3\4")),
    "header of a thousand brackets": only(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "attack.npy"),
}  # fmt: skip
OTHERS: dict[str, Attack] = {
    "zip": only(b"PK\3\4" + bytes(100), "attack.zip"),
    "tar.gz": only(gzip.compress(file(b"evil.png")), "attack.tar.gz"),
    "tar.bz2": only(bz2.compress(file(b"evil.png")), "attack.tar.bz2"),
}
