"""Look over data before learning from it: what is there, what is broken, what is twice, and which truth was found."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selftaught.data.base import OfficialSplits, Source, parts_of
from selftaught.data.cache import decoded_in_order
from selftaught.data.readers import BadFile, read_header
from selftaught.data.sources import open_data

THUMB_PX = 64
NEAR_BITS = 3
NEAR_GREY = 6.0
SIDES_PX = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_FORMAT_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_BANDS = 4
_BUCKET = 64


@dataclass
class Report:
    """What `check` found; all lists name pictures by their key.

    `sizes` counts pictures by longest side (px, upper bound), `parts` by split (`official` says who made it).
    Duplicates are groups of two or more keys; `shared` lists the groups that lie in train and in test. `groups` are those of
    the truth (a video, a place), `cut_groups` of them lie in both parts.
    """

    name: str
    total: int = 0
    usable: int = 0
    official: bool = False
    parts: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    wrong_suffix: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)
    bad: list[tuple[str, str]] = field(default_factory=list)
    exact: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    shared: list[list[str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    masks: int = 0
    objects: int = 0
    groups: int = 0
    cut_groups: int = 0
    bad_truths: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bad_frac(self) -> float:
        """Share of pictures that cannot be read, in [0, 1]."""
        return len(self.bad) / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**asdict(self), "bad_frac": self.bad_frac}

    def lines(self) -> list[str]:
        """Return the report as lines for a terminal; long lists are cut after ten."""
        out = [f"{self.name}: {self.total:,} pictures, {self.usable:,} can be used"]
        how = "official" if self.official else "by the hash of each key, 80 to 20"
        out.append(f"splits: {counts_text(self.parts)} ({how})")
        out.append(f"formats: {counts_text(self.formats)}; colour: {counts_text(self.modes)}")
        if self.usable:
            ends = f"{_size(self.smallest)} to {_size(self.largest)}"
            out.append(f"sizes: {ends}; longest side {counts_text(self.sizes)}")
        out += listed(f"broken: {len(self.bad)} ({self.bad_frac:.1%})", [f"{k}: {r}" for k, r in self.bad])
        out += listed("suffix does not fit the content (read all the same)", self.wrong_suffix)
        out += listed(f"the same picture more than once: {len(self.exact)} groups", map(", ".join, self.exact))
        out += listed(f"almost the same: {len(self.near)} groups", map(", ".join, self.near))
        out += listed(f"in train and in test: {len(self.shared)} groups", map(", ".join, self.shared))
        out.append("truth (for evaluation only): " + self._truth_line())
        out += listed(f"truth that cannot be used: {len(self.bad_truths)}", [f"{k}: {r}" for k, r in self.bad_truths])
        return out + [f"note: {note}" for note in self.notes]

    def _truth_line(self) -> str:
        found = []
        if self.labels:
            few = Counter(self.labels).most_common(5)
            more = ", ..." if len(self.labels) > len(few) else ""
            found.append(f"{len(self.labels)} classes ({', '.join(f'{k} {n}' for k, n in few)}{more})")
        if self.masks:
            found.append(f"{self.masks:,} masks with {self.objects:,} objects")
        if self.groups:
            found.append(f"{self.groups:,} groups" + (f", {self.cut_groups:,} of them in train and in test" if self.cut_groups else ""))
        return "; ".join(found) or "none"


def check(data: Any, report: Callable[[int, int], None] | None = None) -> Report:
    """Read every picture of `data` once and return what was found; `report(done, total)` is called on the way.

    Exact duplicates have equal pixels at 64 px and equal sizes. Near duplicates differ in at most 3 of the 64 bits of a
    difference hash and by less than 6 grey levels on average at 16 px. Raises DataError when nothing is there.
    """
    source = open_data(data)
    found = Report(name=source.name, total=len(source), notes=list(source.notes))
    found.official = isinstance(source, OfficialSplits)
    side = parts_of(source)
    found.parts = dict(Counter(side))
    seen: dict[str, list[int]] = defaultdict(list)
    small = np.zeros((len(source), 16, 16, 3), np.uint8)
    hashes = np.zeros((len(source), 64), np.bool_)
    sizes: list[tuple[int, int]] = []
    for i, result in decoded_in_order(source, THUMB_PX):
        if isinstance(result, BadFile):
            found.bad.append((source.keys[i], result.reason))
        else:
            pixels, size = result
            sizes.append(size)
            seen[hashlib.sha256(pixels.tobytes() + repr(size).encode()).hexdigest()].append(i)
            small[i] = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BOX))
            hashes[i] = difference_hash(pixels)
        if report is not None and ((i + 1) % 32 == 0 or i + 1 == len(source)):
            report(i + 1, len(source))
    _look_at_files(source, found)
    _count_sizes(sizes, found)
    exact = [group for group in seen.values() if len(group) > 1]
    firsts = [group[0] for group in seen.values()]
    near = near_groups(firsts, hashes, small)
    found.exact = [[source.keys[i] for i in group] for group in exact]
    found.near = [[source.keys[i] for i in group] for group in near]
    found.shared = [[source.keys[i] for i in group] for group in exact + near if len({side[i] for i in group}) > 1]
    _look_at_truth(source, side, found)
    return found


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Return 64 booleans: whether each of 8 x 8 grey cells is darker than its right neighbour (N. Krawetz, 2013)."""
    grey = Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(grey).astype(np.int16)
    return (cells[:, 1:] > cells[:, :-1]).reshape(64)


def near_groups(rows: Sequence[int], hashes: np.ndarray, small: np.ndarray) -> list[list[int]]:
    """Return groups of `rows` that look almost the same, each sorted, from hashes (N, 64) and thumbs (N, 16, 16, 3).

    Two hashes that differ in at most 3 bits agree in one of four bands of 16, so only rows that share a band are
    compared; of a band shared by more than 64 rows (plain grounds) each row is compared with its next 8 only.
    """
    packed = np.packbits(hashes, axis=1).reshape(len(hashes), _BANDS, -1)
    pairs: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for row in rows:
            buckets[packed[row, band].tobytes()].append(row)
        for bucket in buckets.values():
            if len(bucket) <= _BUCKET:
                pairs.update(combinations(bucket, 2))
            else:
                pairs.update((a, b) for k, a in enumerate(bucket) for b in bucket[k + 1 : k + 9])
    parent = {row: row for row in rows}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for a, b in pairs:
        if int((hashes[a] != hashes[b]).sum()) <= NEAR_BITS:
            gap = np.abs(small[a].astype(np.int16) - small[b].astype(np.int16)).mean()
            if gap < NEAR_GREY:
                parent[max(root(a), root(b))] = min(root(a), root(b))
    groups: dict[int, list[int]] = defaultdict(list)
    for row in sorted(rows):
        groups[root(row)].append(row)
    return [group for group in groups.values() if len(group) > 1]


def _look_at_files(source: Source, found: Report) -> None:
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    for i in range(len(source)):
        try:
            raw = source.raw(i)
            if raw is None:
                formats["array"] += 1
                continue
            header = read_header(raw)
        except BadFile:
            continue
        formats[header.format] += 1
        modes[header.mode] += 1
        if isinstance(raw, Path) and raw.suffix.lower() not in _FORMAT_SUFFIXES.get(header.format, ()):
            found.wrong_suffix.append(f"{source.keys[i]} ({raw.suffix} holds {header.format})")
    found.formats, found.modes = dict(formats.most_common()), dict(modes.most_common())


def _count_sizes(sizes: list[tuple[int, int]], found: Report) -> None:
    found.usable = len(sizes)
    if not sizes:
        return
    found.smallest = min(sizes, key=lambda size: size[0] * size[1])
    found.largest = max(sizes, key=lambda size: size[0] * size[1])
    longest = np.array([max(size) for size in sizes])
    at = np.searchsorted(SIDES_PX, longest)
    names = [f"<= {px} px" for px in SIDES_PX] + [f"> {SIDES_PX[-1]} px"]
    found.sizes = {name: int((at == k).sum()) for k, name in enumerate(names) if (at == k).any()}


def _look_at_truth(source: Source, side: Sequence[str], found: Report) -> None:
    labels: Counter[str] = Counter()
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for i in range(len(source)):
        try:
            truth = source.truth(i)
        except BadFile as error:
            found.bad_truths.append((source.keys[i], error.reason))
            continue
        if truth.label is not None:
            labels[truth.label] += 1
        if truth.source_id is not None:
            groups[truth.source_id].add(side[i])
        if truth.mask is not None:
            found.masks += 1
            found.objects += int(np.setdiff1d(truth.mask, (0, 255)).size)
    found.labels, found.groups = dict(labels.most_common()), len(groups)
    found.cut_groups = sum(len(parts) > 1 for parts in groups.values())
    if found.cut_groups:
        found.notes.append("where a group is a video or a place, and no class, its pictures in test are not new to who learned from those "
                           "in train: put whole groups into folders train/ and test/")  # fmt: skip


def counts_text(counts: dict[str, int]) -> str:
    """Return how often each name was met, as one line."""
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items()) or "none"


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def listed(title: str, items: Iterable[str]) -> list[str]:
    """Return a title and its items as lines, cut after ten; nothing without items."""
    many = list(items)
    if not many:
        return []
    return [title, *(f"  {item}" for item in many[:10]), *([f"  and {len(many) - 10} more"] if len(many) > 10 else [])]
