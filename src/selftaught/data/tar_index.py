"""The members of an uncompressed tar, read header by header with rules of our own.

The standard library's tarfile is made for unpacking; until its later patch releases it follows links out of the folder
(CVE-2025-4517), never ends on negative sizes (CVE-2025-8194) and is slow on crafted headers (CVE-2024-6232). An index
needs only names, offsets and sizes, so whatever is unusual is refused here: nothing is followed, skipped or repaired.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from selftaught.core.errors import DataError

BLOCK = 512
MAX_EXTENDED_BYTES = 64 * 2**10
"""Size of one extended header (a long name, or pax records)."""
MAX_NAME_CHARS = 4096
MAX_DEPTH = 100
_PAX, _GLOBAL, _LONG_NAME, _LONG_LINK = (b"x", b"X"), b"g", b"L", b"K"
_FILES = (b"0", b"\0", b"7")
_HARD_LINK, _LINK, _FOLDER = b"1", b"2", b"5"
_DEVICES = (b"3", b"4", b"6")
_SPARSE = b"S"


class Broken(Exception):
    """A header that is not as the format says; the text says what is wrong."""


@dataclass
class _Extended:
    """What extended headers say about the member behind them."""

    name: str | None = None
    link: str | None = None
    size: int | None = None


@dataclass
class Index:
    """Checks the members of one tar against each other; `tar` names it in messages."""

    tar: str
    links_left_out: int = 0
    _names: set[str] = field(default_factory=set)
    _folders: set[str] = field(default_factory=set)
    _links: set[str] = field(default_factory=set)

    def admit(self, kind: bytes, name: str, link: str) -> bool:
        """Return whether a member is a file to read; raises DataError for members that a careful tar does not have."""
        name = safe_name(name, self.tar) if kind != _FOLDER or name.strip("./") else ""
        if kind in _DEVICES:
            raise self.refusal(f"a device or pipe named {name!r}", "only files and folders")
        if kind == _SPARSE:
            raise self.refusal(f"a sparse file named {name!r}", "files stored whole")
        if kind not in (*_FILES, _LINK, _HARD_LINK):
            if kind == _FOLDER and name:
                self._folders.add(name)
            return False
        # Two names that differ only in case or in composed letters are one file on many systems.
        plain = name if name.isascii() else unicodedata.normalize("NFC", name)
        if plain.casefold() in self._names:
            raise self.refusal(f"two members named {name!r}, up to upper and lower case", "every name once")
        self._names.add(plain.casefold())
        self._folders.add(posixpath.dirname(name))
        if kind in _FILES:
            return True
        self._check_link(kind, name, link)
        self._links.add(name)
        self.links_left_out += 1
        return False

    def finish(self) -> None:
        """Raise DataError when a path goes through a link, in whatever order the two came."""
        for folder in self._folders if self._links else ():
            parts = folder.split("/")
            if any("/".join(parts[: depth + 1]) in self._links for depth in range(len(parts))):
                raise self.refusal(f"a folder {folder!r} that goes through a link", "paths of plain folders")

    def _check_link(self, kind: bytes, name: str, link: str) -> None:
        target = link.replace("\\", "/")
        if kind == _LINK and not target.startswith("/"):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        outside = target.startswith("/") or ".." in target.split("/") or target[1:2] == ":" or not link
        if outside or "\0" in link:
            raise self.refusal(f"a link {name!r} to {link!r}", "links that stay inside")

    def refusal(self, what: str, expected: str) -> DataError:
        """Return the error for a tar that has something no careful tar has."""
        return DataError(
            f"{self.tar} has {what}", expected=expected, why="such a tar was not made with care", do="make it again"
        )


def members(stream: BinaryIO, index: Index, max_members: int) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size in bytes) of every file; raises DataError, or Broken for what is no whole tar."""
    end = stream.seek(0, 2)
    at, count, extended = 0, 0, _Extended()
    while True:
        stream.seek(at)
        header = stream.read(BLOCK)
        if at > end:
            raise Broken("it is cut off")
        if not header.strip(b"\0"):
            if at == 0:
                raise Broken("it begins with no header")
            if extended != _Extended():
                raise Broken("an extended header without its member")
            index.finish()
            return
        count += 1
        if count > max_members:
            raise DataError(f"{index.tar} has more than {max_members:,} members", do="split it into several tars")
        kind, name, link, size = _parse(header)
        at += BLOCK
        if kind in (*_PAX, _GLOBAL, _LONG_NAME, _LONG_LINK):
            if size > MAX_EXTENDED_BYTES:
                raise Broken(f"an extended header of {size:,} bytes")
            _extend(extended, kind, _exactly(stream, size))
            at += _rounded(size)
            continue
        name = name if extended.name is None else extended.name
        link = link if extended.link is None else extended.link
        size = size if extended.size is None else extended.size
        extended = _Extended()
        kind = _FOLDER if kind == b"\0" and name.endswith("/") else kind
        is_file = index.admit(kind, name, link)
        if kind not in (_LINK, _HARD_LINK, _FOLDER):  # those three have a size without having content
            if at + size > end:
                raise Broken(f"{name!r} is said to have {size:,} bytes, {max(end - at, 0):,} are left")
            if is_file:
                yield safe_name(name, index.tar), at, size
            at += _rounded(size)


def safe_name(name: str, tar: str) -> str:
    """Return the relative name of a member with plain slashes; raises DataError for one that can point elsewhere."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    outside = name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0][1:2] == ":")
    odd = any(ord(letter) < 32 or ord(letter) == 127 for letter in name) or len(name) > MAX_NAME_CHARS
    if outside or odd or not 0 < len(parts) <= MAX_DEPTH:
        raise DataError(
            f"{tar} has a member named {name[:200]!r}",
            expected="names inside the archive, without '..', not absolute, of printable characters",
            why="such a name can point outside a folder; a tar that has one was not made with care",
        )
    return "/".join(parts)


def _parse(header: bytes) -> tuple[bytes, str, str, int]:
    """Return (type, name, link target, size) of one header block; raises Broken."""
    if len(header) < BLOCK:
        raise Broken("it is cut off inside a header")
    told = _number(header[148:156])
    unsigned = 256 + sum(header) - sum(header[148:156])
    if told != unsigned:
        # Some old writers summed signed bytes.
        signed = unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if told != signed:
            raise Broken("a header whose check sum is wrong")
    name = _text(header[:100])
    kind = header[156:157]
    if header[257:263] == b"ustar\0" and kind not in (_LONG_NAME, _LONG_LINK) and header[345]:
        name = _text(header[345:500]) + "/" + name
    return kind, name, _text(header[157:257]), _number(header[124:136])


def _number(data: bytes) -> int:
    """Read an octal or base-256 number that is not negative."""
    if data[0] & 0x80:
        if data[0] != 0x80:
            raise Broken("a header with a negative or endless number")
        return int.from_bytes(data[1:], "big")
    text = data.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise Broken("a header whose number is none")
    return int(text, 8)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise Broken("it is cut off inside an extended header")
    return data


def _extend(extended: _Extended, kind: bytes, data: bytes) -> None:
    if kind == _LONG_NAME:
        extended.name = _text(data)
    elif kind == _LONG_LINK:
        extended.link = _text(data)
    else:
        facts = _records(data)
        if kind == _GLOBAL and facts:
            raise Broken("a global header that renames every member")
        extended.name = facts.get(b"path", extended.name)
        extended.link = facts.get(b"linkpath", extended.link)
        if b"size" in facts:
            if not (facts[b"size"].isascii() and facts[b"size"].isdigit() and len(facts[b"size"]) < 20):
                raise Broken("a pax header whose size is no number")
            extended.size = int(facts[b"size"])


def _records(data: bytes) -> dict[bytes, str]:
    """Return path, linkpath and size of pax records "LENGTH KEY=VALUE\\n"; other keys say nothing about the place."""
    facts: dict[bytes, str] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 10)
        digits = data[at:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = data[space + 1 : at + length]
        if length < 5 or at + length > len(data) or not record.endswith(b"\n"):
            raise Broken("a pax header whose records do not fit")
        key, _, value = record[:-1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise Broken("a sparse file; files must be stored whole")
        if key in (b"path", b"linkpath", b"size"):
            facts[key] = value.decode("utf-8", "surrogateescape")
        at += length
    return facts
