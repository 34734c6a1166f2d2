"""What `selftaught data` does: look over pictures or clips, and make the clips or pictures of a world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.core.errors import ConfigError

COUNT = 3000
"""Clips or pictures that are made when no number is given."""


def refuse_words(
    action: str, source: str, folder: str | None, checks: Mapping[str, bool], makes: Mapping[str, bool]
) -> None:
    """Raise ConfigError for words of `data` that do not go together; `checks` and `makes` say which flags of each action were given."""
    if action == "make" and folder is None:
        raise ConfigError("`selftaught data make` needs a folder to write to.", expected=f"data make {source} DIR")
    if action == "check" and folder is not None:
        raise ConfigError("`selftaught data check` looks at one source.", do=f"Leave '{folder}' away.")
    ignored = [name for name, given in (makes if action == "check" else checks).items() if given]
    if ignored:
        other = "make" if action == "check" else "check"
        raise ConfigError(f"{', '.join(ignored)} is for `selftaught data {other}`.", do="Leave it away.")


def check(source: str, kind: str = "auto", json: str | None = None) -> list[str]:
    """Look over pictures or clips and return the report as lines; `kind` auto takes what has videos in it as clips."""
    from selftaught.data.clips import is_clips

    report: Any
    if kind == "clips" or (kind == "auto" and is_clips(source)):
        from selftaught.data.clip_check import check_clips

        report = check_clips(source)
    else:
        from selftaught.data.check import check as check_pictures

        report = check_pictures(source)
    if json is not None:
        from selftaught.core.config import write_json

        write_json(Path(json), report.to_json())
    return list(report.lines())


def make(
    world: str, folder: str, clips: int | None, pictures: int | None, seed: int, size: str, fields: Sequence[str]
) -> list[str]:
    """Write the clips or pictures of a world (3,000 when no number is given) and return what was written as lines."""
    from selftaught.worlds import OBJECT_WORLDS, making

    objects = world in OBJECT_WORLDS
    if (clips if objects else pictures) is not None:
        what = ("pictures", "--pictures") if objects else ("clips", "--clips")
        raise ConfigError(f"The world {world} makes {what[0]}.", expected=f"{what[1]} N")
    if objects:
        from selftaught.worlds.meshes import writing

        wrote = writing.make(world, folder, COUNT if pictures is None else pictures, seed, size, fields)
        return [f"wrote {wrote:,} pictures, truth.npz and world.json to {folder}", f"next: selftaught data check {folder}"]
    clips = COUNT if clips is None else clips
    kinds = {"mp4": "mp4 (H.264)", "npy": "npy arrays, because PyAV is not installed"}
    container = making.make(world, folder, clips, seed, size, fields)
    return [
        f"wrote {clips:,} clips as {kinds[container]}, truth.npz and world.json to {folder}",
        f"next: selftaught data check {folder}",
    ]
