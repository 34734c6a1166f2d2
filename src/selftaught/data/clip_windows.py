"""Windows of clips as what a method trains on: the same face as an `ImageSet`, but an item is T frames."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from selftaught.core.config import digest
from selftaught.data.cache import spots
from selftaught.data.clip_cache import ClipSet, Report, build_clips
from selftaught.data.clip_reader import Want
from selftaught.data.clips import open_clips


class WindowSet:
    """All cuts of T frames, `every`-th frames each, that begin `step` frames apart; item i is uint8 (T, 3, H, W).

    `keys` name the clip and the first frame in it, `sizes` (M, 2) the height and width of the file, `bad` the clips that could not be read.
    """

    def __init__(self, clips: ClipSet, length: int, every: int = 1, step: int = 1) -> None:
        self.clips, self.length, self.every = clips, length, every
        self.windows = clips.windows(length, every, step)
        first = self.windows[:, 0] - clips.starts[self.windows[:, 1]]
        self.keys = [f"{clips.keys[c]}@{f}" for f, c in zip(first.tolist(), self.windows[:, 1].tolist(), strict=True)]
        infos = [clips.infos[c] for c in self.windows[:, 1]]
        self.sizes = np.array([(info.height, info.width) for info in infos], np.int64).reshape(-1, 2)
        self.bad, self.name = clips.bad, clips.name
        self.image_px = int(clips.frames.shape[2])

    def __len__(self) -> int:
        return len(self.windows)

    def mark(self) -> str:
        """What tells these windows from others, wherever they lie: a digest of their names and of a few frames."""
        return digest([self.keys, spots(self.clips.frames)])

    def batch(self, indices: Sequence[int] | np.ndarray) -> Any:
        """Return uint8 (B, T, 3, H, W), a copy in memory."""
        return self.clips.batch(self.windows[np.asarray(indices, np.int64), 0], self.length, self.every)

    def whole(self) -> WindowSet:
        """The first window of each clip."""
        return self._only(np.unique(self.windows[:, 1], return_index=True)[1])

    def first(self, count: int) -> WindowSet:
        """`count` windows, spread evenly over all."""
        return self._only(np.unique(np.linspace(0, len(self) - 1, max(1, count)).astype(np.int64)))

    def _only(self, rows: np.ndarray) -> WindowSet:
        found = copy.copy(self)
        found.windows, found.keys, found.sizes = self.windows[rows], [self.keys[i] for i in rows], self.sizes[rows]
        return found


def open_windows(
    data: Any, split: str, want: Want, length: int, every: int = 1, *, max_bad_frac: float = 0.2, report: Report | None = None
) -> WindowSet:
    """Open clips, bring them to one size and cut them; raises DataError when none is long enough."""
    return WindowSet(build_clips(open_clips(data, split), want, max_bad_frac=max_bad_frac, report=report), length, every)


def first_windows(clips: ClipSet, frames: int, every: int = 1) -> WindowSet:
    """The first window of each clip, of `frames` frames, or of as many as the longest clip has; shorter clips are left out."""
    longest = int((clips.lengths.max() - 1) // every + 1)
    return WindowSet(clips, max(2, min(frames, longest)), every).whole()
