"""Which folders a training may take: a new one, an empty one, or one that holds the same run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selftaught.core import checkpoint
from selftaught.core.config import from_json, read_json, to_json
from selftaught.core.errors import ConfigError, RunError
from selftaught.data.sources import split_names
from selftaught.registry import load_class

BEFORE_START = {"needs", "lock.json", "log.txt", "plan.json"}
"""What a run folder may hold before its first start: a start that was refused, or a plan that was measured, leaves it there."""


def refuse_folder(out: Path, new: Mapping[str, Any]) -> None:
    """Raise RunError when `out` holds another run than `new` (the content of config.json) or no run, or cannot be written."""
    # os.path.exists, because Path.exists raises for names that are too long; making the folder then says so.
    if os.path.exists(out / "config.json"):
        refuse_other(out, read_json(out / "config.json"), new)
    elif os.path.exists(out) and not (out.is_dir() and all(before_start(name) for name in os.listdir(out))):
        raise RunError(
            f"{out} exists and is no run folder.", expected="a new or empty folder", do="Choose another --out."
        )
    there = next((p for p in (out, *Path(os.path.realpath(out)).parents) if os.path.exists(p)), out)
    if not os.access(there, os.W_OK):
        raise RunError(f"The run folder {out} cannot be written.", why=f"{there} is read-only", do="Choose another --out.")


def refuse_within(out: str | os.PathLike[str], data: Any) -> None:
    """Raise ConfigError when `out` lies in the folder `data` where it would be read as data the next time.

    Pictures of a run would be learned from, and masks beside pictures be taken for their truth. Names that begin with a dot
    are never read, nor is anything beside the folders of official splits.
    """
    if not isinstance(data, (str, os.PathLike)) or os.fspath(data).startswith("sample:"):
        return
    folder = os.path.expanduser(os.fspath(data).removeprefix("file://"))
    if not os.path.isdir(folder):
        return
    splits = split_names(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    for place in (os.path.realpath, os.path.abspath):  # as it is written too: links to folders inside of the data are followed
        root, inside = Path(place(folder)), Path(place(os.path.expanduser(out)))
        if not inside.is_relative_to(root):
            continue
        parts = inside.relative_to(root).parts
        if not any(part.startswith(".") for part in parts) and not (splits and parts and parts[0] not in splits.values()):
            raise ConfigError(f"{out} lies inside of the data {data}.", why="what is written there would be read as data the next time",
                              do="Choose an --out outside of that folder.")  # fmt: skip


def before_start(name: str) -> bool:
    """Whether a run folder may hold a file of that name before its first start."""
    return name in BEFORE_START or checkpoint.is_temporary(name)


def refuse_other(out: Path, saved: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise RunError when a folder holds a run with other settings than asked for."""
    if saved.get("method") == new["method"]:  # a run of an earlier version lacks the settings that came later
        config_class = load_class(new["method"]).Config
        saved = {**saved, "config": to_json(from_json(config_class, saved.get("config", {})))}
    for key in ("method", "data", "seed", "config", "needs"):
        if saved.get(key) != new[key]:
            old_text, new_text = difference(saved.get(key), new[key])
            raise RunError(f"{out} holds another run: its {key} is {old_text}, asked for is {new_text}.",
                           do="Choose another --out, or continue that run with `selftaught resume`.")  # fmt: skip


def check_pictures(job: Any, began: str | None, now: str, say: Callable[[str], None]) -> None:
    """Tell of a run that goes on with other pictures than it began with; raises RunError when they have no path to tell runs apart by."""
    if began in (None, now):  # None: a checkpoint of an earlier version
        return
    if job.to_json()["data"].startswith("<"):
        raise RunError(f"{job.out} holds a run that was trained on other pictures.", do="Choose another --out.")
    say("the pictures are no longer those that the last checkpoint was trained on: what is learned from here on differs")


def difference(old: Any, new: Any) -> tuple[str, str]:
    """The part in which two JSON values differ, as text."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        return ", ".join(f"{k}={old.get(k)}" for k in keys), ", ".join(f"{k}={new.get(k)}" for k in keys)
    return repr(old), repr(new)
