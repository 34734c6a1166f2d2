"""Captures: what a step that went wrong was computed from, kept so that it can be computed again.

RUN/captures/step-000123/ (of the other ranks: RUN/captures/rank-1/step-000123/) is a folder like a checkpoint: written
to a temporary sibling, renamed, with the size and sha256 of every file in its manifest. It holds the weights before the step, the
pictures of the whole batch as uint8, and in state.json the job, seed, step, rank, plan and what was not finite. Nothing in it
is pickled. `selftaught replay` reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftaught.core import checkpoint
from selftaught.core.config import read_json
from selftaught.core.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
KEEP = 3
"""The newest captures of a rank that are kept."""
MOST_BYTES = 2 * 2**30
"""Largest capture that is written."""


def folder_of(run: Path, rank: int, world: int) -> Path:
    """The folder in which a rank keeps its captures."""
    return run / "captures" / f"rank-{rank}" if world > 1 and rank > 0 else run / "captures"


def write(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any]
) -> tuple[Path | None, str]:
    """Write `folder`/step-000123; return (path, ""), or (None, why not): a full disk must not end a run that goes on.

    Args:
        tensors: `model` (state dict before the step), `batch` (`pixels` uint8 (B, 3, S, S), `indices` int64 (B,)), and
            `optim.NAME` of the players that move before the one that went wrong.
        info: JSON values that go into state.json.
    """
    size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    if size > MOST_BYTES:
        return None, f"it would take {size / 1e9:.1f} GB, more than {MOST_BYTES / 1e9:.1f} GB"
    try:
        state = {"capture": SCHEMA, **info}
        return checkpoint.save(folder, step, {k: v for k, v in tensors.items() if v}, state, keep=KEEP), ""
    except RunError as error:
        return None, error.what


def read(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a capture into (tensors, info); raises RunError for a folder that is none, or is damaged."""
    path = Path(path)
    if not (path / checkpoint.MANIFEST).is_file() or read_json(path / checkpoint.STATE).get("capture") != SCHEMA:
        raise RunError(f"{path} is no capture.", expected="a folder such as RUN/captures/step-000123")
    return checkpoint.load(path)


def run_of(path: str | os.PathLike[str]) -> Path:
    """The run folder that a capture lies in."""
    path = Path(path).resolve()
    return next((p for p in path.parents if (p / "config.json").is_file()), path.parent.parent)
