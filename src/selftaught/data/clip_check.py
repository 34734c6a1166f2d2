"""Look over clips before learning from them: lengths, sizes, rates, what is broken, what is there twice."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from selftaught.data.base import parts_of
from selftaught.data.check import counts_text, listed
from selftaught.data.clip_cache import clips_in_order
from selftaught.data.clip_reader import LIMITS, ClipInfo, Limits, Want
from selftaught.data.clips import ClipSplits, open_clips
from selftaught.data.readers import BadFile

THUMB = Want(36, 48)
LENGTHS = (1, 8, 16, 32, 64, 128, 256, 1024, 4096)
STILL_GREY = 0.5


@dataclass
class ClipReport:
    """What `check_clips` found; all lists name clips by their key.

    `lengths` counts clips by frames (upper bound), `rates` by whole frames per second. `still` are clips in which next to
    nothing moves, `twice` groups of clips with equal pixels at 48x36, `shared` those of them in train and in test.
    """

    name: str
    total: int = 0
    usable: int = 0
    frames: int = 0
    official: bool = False
    parts: dict[str, int] = field(default_factory=dict)
    codecs: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    rates: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    shortest: int = 0
    longest: int = 0
    variable: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    still: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    twice: list[list[str]] = field(default_factory=list)
    shared: list[list[str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def bad_frac(self) -> float:
        """Share of clips that cannot be read, in [0, 1]."""
        return len(self.bad) / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**asdict(self), "bad_frac": self.bad_frac}

    def lines(self) -> list[str]:
        """Return the report as lines for a terminal; long lists are cut after ten."""
        out = [f"{self.name}: {self.total:,} clips, {self.usable:,} can be used, {self.frames:,} frames"]
        out.append(f"splits: {counts_text(self.parts)} ({'official' if self.official else 'by the hash of each key, 80 to 20'})")
        if self.usable:
            out.append(f"coded as: {counts_text(self.codecs)}; sizes: {counts_text(self.sizes)}")
            out.append(f"frames: {self.shortest:,} to {self.longest:,}; {counts_text(self.lengths)}")
            out.append(f"frames per second: {counts_text(self.rates)}")
        out += listed(f"broken: {len(self.bad)} ({self.bad_frac:.1%})", [f"{k}: {r}" for k, r in self.bad])
        out += listed(f"rates that vary (give fps to even them out): {len(self.variable)}", self.variable)
        out += listed(f"rotated by the camera (set upright): {len(self.rotated)}", self.rotated)
        out += listed(f"next to nothing moves: {len(self.still)}", self.still)
        out += listed(f"the same clip more than once: {len(self.twice)} groups", map(", ".join, self.twice))
        out += listed(f"in train and in test: {len(self.shared)} groups", map(", ".join, self.shared))
        classes = f"{len(self.labels)} classes ({counts_text(self.labels)})"
        out.append("truth (for evaluation only): " + (classes if self.labels else "none"))
        return out + [f"note: {note}" for note in self.notes]


def check_clips(data: Any, report: Callable[[int, int], None] | None = None, limits: Limits = LIMITS) -> ClipReport:
    """Read every clip of `data` once and return what was found; raises DataError when nothing is there."""
    source = open_clips(data)
    found = ClipReport(source.name, len(source), official=isinstance(source, ClipSplits), notes=list(source.notes))
    side = parts_of(source)
    found.parts = dict(Counter(side))
    seen: dict[str, list[int]] = defaultdict(list)
    infos: list[ClipInfo] = []
    for i, result in clips_in_order(source, THUMB, limits=limits):
        if isinstance(result, BadFile):
            found.bad.append((source.keys[i], result.reason))
        else:
            frames, info = result
            infos.append(info)
            key = source.keys[i]
            seen[hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()].append(i)
            found.variable += [key] if info.variable else []
            found.rotated += [f"{key} ({info.rotation} degrees)"] if info.rotation else []
            found.still += [key] if _motion(frames) < STILL_GREY else []
        if report is not None:
            report(i + 1, len(source))
    _count(infos, found)
    twice = [group for group in seen.values() if len(group) > 1]
    found.twice = [[source.keys[i] for i in group] for group in twice]
    found.shared = [[source.keys[i] for i in group] for group in twice if len({side[i] for i in group}) > 1]
    labels = [source.label(i) for i in range(len(source))]
    found.labels = dict(Counter(label for label in labels if label is not None).most_common())
    return found


def _motion(frames: np.ndarray) -> float:
    """Return the largest mean change from the first frame to another, in grey levels, looking at up to 16 frames."""
    some = frames[np.unique(np.linspace(0, len(frames) - 1, 16).astype(int))].astype(np.int16)
    return float(np.abs(some - some[:1]).mean((1, 2, 3)).max())


def _count(infos: list[ClipInfo], found: ClipReport) -> None:
    found.usable = len(infos)
    if not infos:
        return
    lengths = np.array([info.frames for info in infos])
    found.frames, found.shortest, found.longest = int(lengths.sum()), int(lengths.min()), int(lengths.max())
    at = np.searchsorted(LENGTHS, lengths)
    names = [f"<= {n}" for n in LENGTHS] + [f"> {LENGTHS[-1]}"]
    found.lengths = {name: int((at == k).sum()) for k, name in enumerate(names) if (at == k).any()}
    found.codecs = dict(Counter(info.codec or "pictures or arrays" for info in infos).most_common())
    found.sizes = dict(Counter(f"{info.width}x{info.height}" for info in infos).most_common(8))
    found.rates = dict(Counter(f"{info.fps:.3g}" if info.fps else "not known" for info in infos).most_common(8))
