"""Frames of clips as pictures, so that what learns from pictures can learn from videos."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from selftaught.data.base import OfficialSplits, Source, digest_of
from selftaught.data.clip_reader import ClipInfo, Decoder, Want
from selftaught.data.clips import ClipSource, ClipSplits, open_clips
from selftaught.data.readers import BadFile, Resized

PER_CLIP = 4
"""Frames that are taken of a clip: neighbours are almost the same picture."""


class FrameSource(Source):
    """`per_clip` frames of every clip, spread evenly over it; keys are CLIP@0, CLIP@1, ... Clips are decoded when they are asked for."""

    def __init__(self, clips: ClipSource, per_clip: int = PER_CLIP) -> None:
        super().__init__()
        self.clips, self.per_clip = clips, per_clip
        self.name, self.part, self.notes = clips.name, clips.part, list(clips.notes)
        self.keys = [f"{key}@{k}" for key in clips.keys for k in range(per_clip)]
        self._lock = threading.RLock()
        self._decoder = Decoder()
        self._memo: tuple[tuple[int, Want], tuple[np.ndarray, ClipInfo]] | None = None

    def image(self, i: int) -> np.ndarray:
        return self._frame(i, Want())[0]

    def size(self, i: int) -> tuple[int, int]:
        with self._lock:
            return self.clips.size(i // self.per_clip, self._decoder)

    def resized(self, i: int, px: int) -> tuple[np.ndarray, tuple[int, int]]:
        frame, info = self._frame(i, Want(px, px))
        return frame, (info.height, info.width)

    def resized_many(self, indices: Sequence[int], px: int) -> list[Resized | BadFile]:
        found: list[Resized | BadFile] = []
        with self._lock:  # for all of them: clips of another thread in between would let each be decoded for every frame
            for i in indices:
                try:
                    found.append(self.resized(i, px))
                except BadFile as error:
                    found.append(error)
        return found

    def fingerprint(self) -> str:
        return digest_of("frames of clips at their size", [str(self.per_clip), self.clips.fingerprint()])

    def _frame(self, i: int, want: Want) -> tuple[np.ndarray, ClipInfo]:
        clip, k = divmod(i, self.per_clip)
        with self._lock:  # the frames of a clip are asked for one after the other: the last clip is kept
            if self._memo is None or self._memo[0] != (clip, want):
                self._memo = ((clip, want), self.clips.read(clip, want, self._decoder))
            frames, info = self._memo[1]
        return np.ascontiguousarray(frames[(2 * k + 1) * len(frames) // (2 * self.per_clip)]), info

    def __del__(self) -> None:
        decoder = getattr(self, "_decoder", None)
        if decoder is not None:
            decoder.close()


def frames_as_pictures(data: Any, split: str = "all", per_clip: int = PER_CLIP) -> Source:
    """Open clips as pictures; a clip's frames are all in one part. Raises DataError as `open_clips` does."""
    clips = open_clips(data, split)
    if isinstance(clips, ClipSplits):
        return OfficialSplits(clips.name, {part: FrameSource(source, per_clip) for part, source in clips.parts.items()})
    return FrameSource(clips, per_clip)
