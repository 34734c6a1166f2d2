"""Every method by name: merges the plain dictionaries of the rooms, without importing torch."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

ROOMS = ("representation", "segmentation", "control", "shape3d")


class Entry(NamedTuple):
    """Where a method's class lives (``package.module:Class``) and one line that says what it is."""

    path: str
    summary: str


def room_methods(room: str) -> dict[str, Entry]:
    """The registry of one room, in the order in which the room lists it."""
    return dict(importlib.import_module(f"selftaught.{room}").METHODS)


def methods() -> dict[str, Entry]:
    """All methods of all rooms by name; raises RuntimeError when two rooms use the same name."""
    merged: dict[str, Entry] = {}
    for room in ROOMS:
        for name, entry in room_methods(room).items():
            if name in merged:
                raise RuntimeError(f"the method name {name!r} is registered by two rooms")
            merged[name] = entry
    return merged


def room_of(name: str) -> str:
    """The room of a method, for example ``representation`` for ``simclr``."""
    return find(name).path.split(".")[1]


def find(name: str) -> Entry:
    """The entry of a method; raises ConfigError with a suggestion when there is none of that name."""
    known = methods()
    if name not in known:
        from selftaught.core.errors import ConfigError, suggest

        raise ConfigError(
            f"There is no method {name!r}.{suggest(name, known)}",
            expected="one of " + ", ".join(known),
            do="`selftaught methods` lists them with one line each.",
        )
    return known[name]


def load_class(name: str) -> Any:
    """The class of a method, imported now (this is where torch is imported)."""
    module, _, attribute = find(name).path.partition(":")
    return getattr(importlib.import_module(module), attribute)
