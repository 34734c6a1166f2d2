"""Test clips with what is known about them, for evaluation only; training is given a WindowSet and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.data.clip_cache import build_clips
from selftaught.data.clip_reader import Want
from selftaught.data.clip_windows import WindowSet, first_windows
from selftaught.data.clips import open_clips
from selftaught.data.npy import read_arrays

FRAMES = 12
"""Frames of a test clip: a context frame, eight steps ahead, and some more for what is counted over transitions."""


@dataclass(frozen=True)
class ClipTruth:
    """What is true of N clips of T frames, in the pixels of the frames that were read; entry t of the actions led from frame t to t + 1."""

    moves: np.ndarray
    """(N, T - 1) global action: 0 left, 1 right, 2 up, 3 down, 4 stay."""
    locals: np.ndarray
    """(N, T - 1) local action of the frame that was led to."""
    shifts_px: np.ndarray
    """(N, T - 1, 2) motion of the agent as (x, y)."""
    ground_shifts_px: np.ndarray
    """(N, T - 1, 2) motion of the background."""
    masks: np.ndarray
    """(N, T, H, W) float32 in [0, 1]: where the agent is."""

    STAY = 4

    @property
    def stays(self) -> np.ndarray:
        """(N, T - 1) bool: transitions in which the agent does not move."""
        return np.asarray(self.moves == self.STAY)


@dataclass
class ClipTest:
    """Test clips, one window of each, and their truth where a world wrote it."""

    windows: WindowSet
    truth: ClipTruth | None
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def batch(self, indices: Any) -> Any:
        """Clips (B, T, 3, H, W) float32 in [0, 1]."""
        return self.windows.batch(indices).float() / 255


def open_clip_test(data: Any, want: Want, every: int, seed: int = 0, limit: int | None = None, frames: int = FRAMES) -> ClipTest:
    """Open the first `frames` frames (or as many as the longest clip has) of each test clip, and the truth of a world's folder."""
    clips = build_clips(open_clips(data, "test"), want, max_bad_frac=1.0)
    windows = first_windows(clips, frames, every)
    if limit is not None and limit < len(windows):
        windows = windows.first(limit)
    notes = [f"{len(clips.bad)} test clips cannot be read, e.g. {clips.bad[0][0]}: {clips.bad[0][1]}"] if clips.bad else []
    return ClipTest(windows, read_truth(data, windows), seed, notes)


def read_truth(data: Any, windows: WindowSet) -> ClipTruth | None:
    """The truth of windows of clips that `selftaught data make` wrote, or None for other clips, also beside a truth.npz of another kind."""
    if not isinstance(data, (str, os.PathLike)) or not os.path.isfile(truth := Path(os.path.expanduser(data)) / "truth.npz"):
        return None
    names = ("key", "moves", "locals", "shifts_px", "ground_shifts_px", "mask_bits", "mask_width")
    arrays = read_arrays(truth, names)
    if set(names) - set(arrays):
        return None
    rows = {str(key).rsplit("/", 1)[-1]: i for i, key in enumerate(arrays["key"].tolist())}
    found = [rows.get(key.rsplit("@", 1)[0].rsplit("/", 1)[-1]) for key in windows.keys]
    if any(row is None for row in found):
        return None
    at = np.array(found, np.int64)
    first = windows.windows[:, 0] - windows.clips.starts[windows.windows[:, 1]]
    frames = first[:, None] + windows.every * np.arange(windows.length)
    H, W = windows.clips.frames.shape[2:]
    width = int(arrays["mask_width"])
    bits = np.unpackbits(arrays["mask_bits"][at[:, None], frames], axis=-1, count=width)
    scale = np.array([W / width, H / bits.shape[2]])
    moved = {name: _between(arrays[name][at], frames) * scale for name in ("shifts_px", "ground_shifts_px")}
    moves = arrays["moves"][at[:, None], frames[:, 1:]].astype(np.int64)
    return ClipTruth(moves, arrays["locals"][at[:, None], frames[:, 1:]].astype(np.int64), masks=_resized(bits, H, W), **moved)


def _between(steps: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(N, T - 1, 2) motion between chosen frames (N, T), from that between all frames (N, L - 1, 2)."""
    start = np.zeros((len(steps), 1, 2))
    places = np.concatenate([start, steps.astype(np.float64).cumsum(1)], 1)
    return np.asarray(np.diff(places[np.arange(len(steps))[:, None], frames], axis=1))


def _resized(bits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks (N, T, h, w) in {0, 1} at another size, by area."""
    import torch

    masks = torch.from_numpy(bits.astype(np.float32))
    if masks.shape[2:] == (height, width):
        return np.asarray(masks.numpy())
    return np.asarray(torch.nn.functional.interpolate(masks, size=(height, width), mode="area").numpy())
