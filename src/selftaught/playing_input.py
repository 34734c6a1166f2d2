"""What the verbs of a model that can be controlled are given: clips, frames of clips, and actions in text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, DataError
from selftaught.data import readers
from selftaught.data.clip_decoding import fit
from selftaught.data.clip_reader import Decoder, Want
from selftaught.data.clips import open_clips, pixels_of

SHIPPED = "sample:w-sprites"
"""The small model that comes along, where a run is asked for; with /NUMBER behind it a clip of its world."""
WORLD_SEED = 20_000
"""Of the clips of `sample:w-sprites/NUMBER`: others than any training's that is described here."""
_AT = re.compile(r"(.*)@(\d{1,6})", re.DOTALL)
_TIMES = re.compile(r"\s*(\d{1,6})\s*(?:\*\s*(\d{1,6}))?\s*")


def shipped_folder() -> Path:
    """The run folder of the small model that comes with the package."""
    return Path(__file__).resolve().parent / "web" / "model"


def keys_of(keys: str | Sequence[int], most: int) -> list[int]:
    """Actions from numbers or text: "0*4,2" is 0 0 0 0 2; raises ConfigError for anything else, none at all, or more than `most`."""
    expected = f'1 to {most} whole numbers from 0, as in "0*4,2"'
    if isinstance(keys, str):
        out: list[int] = []
        for part in keys.split(","):
            found = _TIMES.fullmatch(part)
            if found is None:
                raise ConfigError(f"'{keys[:80]}' is no list of actions.", expected=expected)
            times = int(found[2] or 1)
            if times < 1 or len(out) + times > most:
                raise ConfigError(f"'{keys[:80]}' is too many actions, or none.", expected=expected)
            out += [int(found[1])] * times
    else:
        out = [int(k) for k in keys]
    if not 1 <= len(out) <= most or min(out) < 0:
        raise ConfigError(f"{len(out)} actions, the least {min(out, default=0)}.", expected=expected)
    return out


def read_frames_of(data: Any, want: Want, every: int = 1) -> Tensor:
    """A clip (1, T, 3, H, W) in [0, 1] at the size of `want`, from frame N on where `@N` stands behind a path.

    Raises DataError for what is not there or cannot be read.
    """
    if isinstance(data, (str, os.PathLike)):
        return _from_path(os.fspath(data), want, every)
    if isinstance(data, Tensor):
        if (
            data.ndim not in (3, 4, 5)
            or data.shape[-3] != 3
            or not data.is_floating_point()
            or not bool(((data >= 0) & (data <= 1)).all())
        ):
            raise DataError(f"Got a {tuple(data.shape)} {data.dtype} tensor.", expected="(T, 3, H, W) float in [0, 1]")
        clip = data.reshape(-1, *data.shape[-3:])
        if clip.shape[-2:] != (want.height, want.width):
            clip = torch.nn.functional.interpolate(
                clip, (want.height, want.width), mode="bilinear", antialias=True, align_corners=False
            )
        return clip.clamp(0, 1)[None]
    array = np.asarray(data)
    if array.ndim == 3:
        array = array[None]
    return _tensor(np.stack([fit(frame, want.height, want.width, False) for frame in pixels_of(array)]))


def _from_path(text: str, want: Want, every: int) -> Tensor:
    found = None if os.path.exists(text) else _AT.fullmatch(text)
    path, at = (found[1], int(found[2])) if found else (text, 0)
    if path.startswith(SHIPPED):
        clip = sample_clip(path, want)
    elif Path(path).suffix.lower() in readers.SUFFIXES and Path(path).suffix.lower() != ".gif":
        if not os.path.isfile(path):
            raise DataError(f"There is no picture '{path}'.")
        clip = fit(readers.decode(Path(path)), want.height, want.width, False)[None]
    else:
        source = open_clips(path)
        if not len(source):
            raise DataError(f"'{path}' holds no clip.")
        with Decoder() as decoder:
            clip = source.read(0, want, decoder)[0][::every]
    if at >= len(clip):
        raise DataError(f"'{path}' has no frame {at}.", expected=f"0 to {len(clip) - 1}")
    return _tensor(clip[at:])


def sample_clip(name: str, want: Want) -> np.ndarray:
    """Clip NUMBER of "sample:w-sprites/NUMBER" (0 when none is named), drawn at 64x48 and brought to size: uint8 (T, H, W, 3)."""
    from selftaught.worlds.w_sprites import SIZES, render, script

    number = name[len(SHIPPED) :].lstrip("/") or "0"
    if not (number.isascii() and number.isdecimal() and len(number) < 7):
        raise DataError(f"'{name}' names no clip.", expected=f"{SHIPPED}/NUMBER")
    recipe = SIZES["small"]
    # Every fifth clip is a test clip: its figure and its ground are held out of trainings.
    frames = render(recipe, script(recipe, WORLD_SEED, 5 * int(number) + 4)).frames
    return np.stack([fit(frame, want.height, want.width, False) for frame in frames])


def _tensor(clip: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float()[None] / 255
