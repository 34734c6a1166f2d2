"""What the command looks at before any work: names, paths and words that exist, each with a suggestion when they do not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from selftaught.core.errors import ConfigError, DataError, RunError, suggest


def check_method(name: str) -> None:
    from selftaught.registry import find

    find(name)


def check_features(name: str) -> None:
    """Raise ConfigError when a method exists but does not learn features."""
    from selftaught.registry import find, room_methods

    find(name)
    if name not in room_methods("representation"):
        raise ConfigError(
            f"'{name}' does not learn features.", expected="one of " + ", ".join(room_methods("representation"))
        )


def check_data(data: str) -> None:
    """Raise DataError with a suggestion when a local path does not exist; everything else is the reader's job."""
    if "://" in data or data.startswith("sample:") or any(letter in data for letter in "*?[{"):
        return
    # Not Path.expanduser and Path.exists, which raise for users that do not exist and for names that are too long.
    path = Path(os.path.expanduser(data))
    if not os.path.exists(path):
        raise DataError(
            f"There is no file or folder '{data}'.{near(path)}",
            expected="a folder of pictures, a .txt list, a .tar, a .npz, or sample:things",
        )


def check_run(run: str) -> None:
    """Raise RunError with a suggestion when a path is not the folder of a run."""
    path = Path(os.path.expanduser(run))
    if not os.path.isdir(path):
        raise RunError(f"There is no run '{run}'.{near(path)}", expected="the folder that was given as --out")
    if not any((path / name).is_file() for name in ("config.json", "learn.json")):
        raise RunError(f"'{run}' is not a run: it has no config.json.", expected="the folder that was given as --out")


def near(path: Path) -> str:
    """" Did you mean ...?" with the nearest name beside `path`, or the nearest name of its first missing parent."""
    while not os.path.isdir(path.parent):
        path = path.parent
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    hint = suggest(path.name, names)
    return hint.replace("'", f"'{path.parent}{os.sep}", 1) if hint and str(path.parent) != "." else hint


def check_field_words(
    data: str | None, dataset: str | None, root: str | None, protocol: str, set_fields: Sequence[str]
) -> None:
    """Raise ConfigError for flags of the field's data sets that do not go together."""
    if dataset is None and (root is not None or protocol or set_fields):
        raise ConfigError(
            "--root, --protocol and --set are for the field's data sets.", do="Name one of them: --dataset ecssd --root DIR"
        )
    if dataset is not None and root is None:
        raise ConfigError(f"Where is {dataset}?", expected="--root DIR, the folder of its official archives, unpacked")
    if dataset is not None and data is not None:
        raise ConfigError("DATA and --dataset name two things to score on.", do="Give one of them.")


def as_clips(data: str, boxes: str | None, engine: str, workers: int | None, smooth: int | None) -> bool:
    """Whether `segment` takes data as clips, or must, to smooth them; raises ConfigError for options that do not go together."""
    from selftaught.data.clips import is_clips

    found = smooth is not None or is_clips(data)
    if found and (boxes is not None or engine != "local" or workers is not None):
        why = "--smooth takes the data as clips" if smooth is not None else "there are videos in the data"
        raise ConfigError("--boxes, --engine and --workers are for pictures.", why=why, do="Leave them away for clips.")
    if boxes is not None and engine != "local":
        raise ConfigError("--boxes writes one file on this machine.", do="Leave --engine away: objects have boxes there too.")
    return found
