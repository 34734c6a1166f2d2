"""Programs that make data with known truth: `WORLDS` maps a name to what `selftaught data make` calls."""

from __future__ import annotations

WORLDS = {
    "w-sprites": "walking puppets drawn here: 9 local and 5 global actions on moving grounds",
    "flare": "the same with the avatars of the Debian package flare-game, when it is installed",
}
