"""Damage to bytes and JSON, drawn from a seeded generator: the same seed is the same damage."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from typing import Any

EDGES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\x7f\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
         b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\1\0", b"\xff" * 8, b"\0" * 16)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "..", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, [], [[]], {}, [1, 2], {"a": 1}, "1", "1e9",
)  # fmt: skip
TEXTS = (
    "[" * 100_000, "{\"a\":" * 3000, "9" * 5000, "1e9999", "Infinity", "-Infinity", "NaN", "null", "\x00", "\ufeff", "\\ud800",
    "\n", "}{", "\"", ",", "-", "0x10", "\u2028", "~nobody-of-that-name/x.png", "../" * 50, "\r",
)  # fmt: skip


def damage(data: bytes, draw: random.Random) -> bytes:
    """Change bytes in one to four ways: flip, set, edge values, cut, remove, repeat, move, grow."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        if not changed:
            break
        at = draw.randrange(len(changed)) if draw.random() < 0.6 else draw.randrange(min(len(changed), 64))
        size = min(draw.choice((1, 2, 4, 16, 100)), len(changed) - at)
        way = draw.randrange(8)
        if way == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            changed[at] = draw.randrange(256)
        elif way in (2, 3):
            edge = draw.choice(EDGES)
            changed[at : at + len(edge)] = edge
        elif way == 4:
            del changed[draw.choice((at, max(at, len(changed) - 8))) :]
        elif way == 5:
            del changed[at : at + size]
        elif way == 6:
            changed[at:at] = changed[at : at + size] * draw.choice((1, 2, 50))
        else:
            changed[at:at] = draw.randbytes(size)
    return bytes(changed)


def damage_text(data: bytes, draw: random.Random) -> bytes:
    """Change bytes, or put an odd text somewhere."""
    if draw.random() < 0.5:
        return damage(data, draw)
    at = draw.randrange(len(data) + 1)
    gone = draw.choice((0, 0, 1, 5))
    return data[:at] + draw.choice(TEXTS).encode("utf-8", "surrogatepass") + data[at + gone :]


def damage_value(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one to three of its parts replaced, removed, renamed or put elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 3))):
        holders = [holder for holder in _holders(value) if holder]
        if not holders:
            return draw.choice(VALUES)
        holder = draw.choice(holders)
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        way, old = draw.randrange(6), holder[key]
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[draw.choice(("step", "x", "", "\0", "../up", "state.json"))] = holder.pop(key)
        elif way == 2:
            holder[key] = [old]
        elif way == 3 and isinstance(old, (int, float)) and not isinstance(old, bool):
            holder[key] = draw.choice((-old, old + 1, old * 1000, old / 7, str(old)))
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def damage_json(data: bytes, draw: random.Random) -> bytes:
    """Change a JSON text by its values or by its letters."""
    if draw.random() < 0.6:
        text = json.dumps(damage_value(json.loads(data), draw)).encode()
        return text if draw.random() < 0.8 else damage_text(text, draw)
    return damage_text(data, draw)


def mend_png(data: bytes) -> bytes:
    """Give every chunk of a PNG the check sum that its content asks for."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + size]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out)


def mend_tar(data: bytes) -> bytes:
    """Give every block that looks like a tar header the sum that its content asks for."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


def _holders(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(inner for item in value.values() for inner in _holders(item))]
    if isinstance(value, list):
        return [value, *(inner for item in value for inner in _holders(item))]
    return []
