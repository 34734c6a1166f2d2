"""What is asked of a training: settings are read, checked, and compared with the run that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from selftaught.core.config import read_json
from selftaught.core.errors import ConfigError, RunError, suggest
from selftaught.core.shard import SHARDINGS

if TYPE_CHECKING:
    from selftaught.train import Job

BEFORE_START = {"needs", "lock.json", "log.txt", "plan.json"}
"""What a run folder may hold before its first start: a start that was refused, or a plan that was measured, leaves it there."""


def parse_needs(need: Sequence[str], known: Any) -> dict[str, Path]:
    """Read "NAME=RUN" settings; RUN must be a finished run folder."""
    given: dict[str, Path] = {}
    for text in need:
        name, equals, run = text.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"--need {text!r} names nothing that is needed.{suggest(name, known)}",
                              expected=", ".join(f"{k}=RUN" for k in known) or "no needs")  # fmt: skip
        if not (Path(run) / "config.json").exists():
            raise RunError(f"{run} is no run folder.", expected=f"the run folder that learned {name}")
        given[name] = Path(run)
    return given


def relative_to_run(path: Path, run: Path) -> str:
    """How config.json names a needed run: relative when it lies beside or below the run, so that both can be moved."""
    path, run = path.resolve(), run.resolve()
    return os.path.relpath(path, run) if path.is_relative_to(run.parent) else str(path)


def refuse_other(saved: dict[str, Any], job: Job) -> None:
    """Raise RunError when a folder holds a run with other settings than asked for."""
    new = job.to_json()
    for key in ("method", "data", "seed", "config", "needs"):
        if saved.get(key) != new[key]:
            old_text, new_text = difference(saved.get(key), new[key])
            raise RunError(f"{job.out} holds another run: its {key} is {old_text}, asked for is {new_text}.",
                           do="Choose another --out, or continue that run with `selftaught resume`.")  # fmt: skip


def refuse_used(job: Job) -> None:
    """Raise RunError when the folder of a job holds another run, or something else."""
    existing, out = job.out / "config.json", job.out
    if existing.exists():
        refuse_other(read_json(existing), job)
    elif out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= BEFORE_START):
        raise RunError(
            f"{out} exists and is no run folder.", expected="a new or empty folder", do="Choose another --out."
        )


def difference(old: Any, new: Any) -> tuple[str, str]:
    """The part in which two JSON values differ, as text."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        return ", ".join(f"{k}={old.get(k)}" for k in keys), ", ".join(f"{k}={new.get(k)}" for k in keys)
    return repr(old), repr(new)


def choose_sharding(sharding: str) -> str:
    """The name, when it is one."""
    if sharding not in SHARDINGS:
        raise ConfigError(f"There is no sharding {sharding!r}.{suggest(sharding, SHARDINGS)}", expected="ddp or fsdp")
    return sharding


def choose_device(device: str) -> str:
    """cpu, cuda, or the better of the two for "auto"."""
    if device not in ("cpu", "cuda", "auto"):
        raise ConfigError(
            f"There is no device {device!r}.{suggest(device, ['cpu', 'cuda', 'auto'])}", expected="cpu, cuda or auto"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("This machine offers torch no GPU.", do="Leave --device away, or install a torch with CUDA.")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
