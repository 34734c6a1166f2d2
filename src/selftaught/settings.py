"""From what a user asks for to the settings of a job: config of a size, needs, device, and numbers that cannot work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught.core.errors import ConfigError, RunError, suggest
from selftaught.core.rows import evenly
from selftaught.core.shard import SHARDINGS
from selftaught.data.cache import ImageSet, build_cache
from selftaught.data.clip_reader import Want
from selftaught.data.clip_windows import WindowSet, open_windows
from selftaught.data.sources import BadFile, open_data
from selftaught.method import Method, Player, TrainConfig
from selftaught.registry import load_class

SMALL_PX = 48
"""Pictures whose shorter side has at most so many pixels are learned at 32 px at size `small`."""
MAX_LR = 1e6
"""Above it a single step could carry good weights past the largest float32."""


def base_config(method: str, size: str, data: Any) -> Any:
    """The config of a size; small pictures have a `small` of their own."""
    cls = load_class(method)
    if size not in cls.sizes:
        raise ConfigError(f"There is no size {size!r}.{suggest(size, cls.sizes)}", expected=", ".join(cls.sizes))
    if size == "small" and cls.small_px32 is not None and 0 < median_px(data) <= SMALL_PX:
        return cls.small_px32
    return cls.sizes[size]


def median_px(data: Any, count: int = 50) -> int:
    """Median of the shorter sides of some pictures spread over the data, in pixels; 0 when none of them can be read."""
    source = open_data(data, "train")
    sides = []
    for i in evenly(len(source), count):
        try:
            sides.append(min(source.size(int(i))))
        except BadFile:
            continue
    return int(np.median(sides)) if sides else 0


def open_items(cls: Any, data: Any, config: Any, split: str = "train", length: int = 0, **options: Any) -> ImageSet | WindowSet:
    """What a method trains on, at the size of its config: pictures, or windows of clips (of `length` frames, the config's by default).

    `options` go to the cache: `max_bad_frac`, `report`.
    """
    if cls.reads == "clips":
        want = Want(config.image_px, config.width_px, config.fps)
        return open_windows(data, split, want, length or config.window, config.every, **options)
    return build_cache(open_data(data, split), config.image_px, **options)


def parse_needs(need: Sequence[str], known: Any) -> dict[str, Path]:
    """Read "NAME=RUN" settings; RUN must be a finished run folder."""
    given: dict[str, Path] = {}
    for text in need:
        name, equals, run = text.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"--need {text!r} names nothing that is needed.{suggest(name, known)}",
                              expected=", ".join(f"{k}=RUN" for k in known) or "no needs")  # fmt: skip
        folder = Path(os.path.expanduser(run))
        if not os.path.exists(folder / "config.json"):
            raise RunError(f"{run} is no run folder.", expected=f"the run folder that learned {name}")
        given[name] = folder
    return given


def relative_to_run(path: Path, run: Path) -> str:
    """How config.json names a needed run: relative when it lies beside or below the run, so that both can be moved."""
    # Not Path.resolve, which raises for links that lead round.
    path, run = Path(os.path.realpath(path)), Path(os.path.realpath(run))
    return os.path.relpath(path, run) if path.is_relative_to(run.parent) else str(path)


def choose_sharding(sharding: str) -> str:
    """The name, when it is one."""
    if sharding not in SHARDINGS:
        raise ConfigError(f"There is no sharding {sharding!r}.{suggest(sharding, SHARDINGS)}", expected="ddp or fsdp")
    return sharding


def choose_device(device: str, method: type[Method]) -> str:
    """cpu, cuda, or for "auto" the better of the two that the method can compute on."""
    if device not in ("cpu", "cuda", "auto"):
        raise ConfigError(
            f"There is no device {device!r}.{suggest(device, ['cpu', 'cuda', 'auto'])}", expected="cpu, cuda or auto"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("This machine offers torch no GPU.", do="Give --device cpu, or install a torch with CUDA.")
    if device == "cuda" and method.cpu_only:
        raise ConfigError(f"{method.name} is trained on the CPU alone.", do="Leave --device away.")
    return "cuda" if device != "cpu" and torch.cuda.is_available() and not method.cpu_only else "cpu"


def check_numbers(config: TrainConfig, players: Mapping[str, Player]) -> None:
    """Raise ConfigError for settings that make no sense for any method, or with which finite gradients make weights that are not finite."""
    for name, value in vars(config).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(one) for one in numbers if isinstance(one, float)):
            raise ConfigError(f"{name} is {value}.", expected="finite numbers" if isinstance(value, tuple) else "a finite number")
    if config.max_skips < 0:
        raise ConfigError(f"max_skips is {config.max_skips}.", expected="0 or more")
    for name, player in players.items():
        if not 0 <= player.lr * (1 + player.weight_decay) <= MAX_LR:
            raise ConfigError(f"The learning rate of {name} is {player.lr:g}.", expected=f"0 to {MAX_LR:g}")
        # A negative norm would turn every gradient round, a negative decay would blow weights up, and both look like bad training only.
        for setting, most in (("clip_norm", math.inf), ("weight_decay", math.inf), ("warmup_frac", 1.0)):
            value = getattr(player, setting)
            if not 0 <= value <= most:
                raise ConfigError(f"{setting} of {name} is {value:g}.", expected="0 to 1" if most == 1 else "0 or more")
