"""Programs that make data with known truth, for `selftaught data make`: `WORLDS` make clips, `OBJECT_WORLDS` pictures of solid objects."""

from __future__ import annotations

WORLDS = {
    "w-sprites": "walking puppets drawn here: 9 local and 5 global actions on moving grounds",
    "flare": "the same with the avatars of the Debian package flare-game, when it is installed",
    "arm": "an arm that pushes things over a table, with contacts, drawn here",
    "drawn-tennis": "a player, an opponent and a ball, drawn here; not Atari's game, whose emulator is GPL",
}

OBJECT_WORLDS = {
    "heads": "drawn heads, each seen once from within 45 degrees of the front",
    "cars": "drawn cars, each seen once from anywhere around",
    "chairs": "drawn chairs, each seen once from anywhere around",
    "meshes": "a folder of mesh files (--set folder=DIR), each seen once from anywhere around",
}
