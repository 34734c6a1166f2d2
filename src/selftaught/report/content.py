"""What a report is made from: plain arrays, numbers and words, with no reference to a method or a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Curve = tuple[Sequence[float], Sequence[Any]]
"""Steps and values of equal length; values are numbers, or words for the curve named `health`."""


class FoundObject(NamedTuple):
    """One picture with what was found in it."""

    picture: Array
    """(H, W, 3) uint8."""
    mask: Array
    """Soft mask (h, w) float in [0, 1]; any size, it is stretched over the picture."""
    truth: Array | None
    """True mask: bool, float in [0, 1], or instance ids (0 background, 255 ignore); None when there is none."""
    iou: float | None
    """Overlap of mask and truth in [0, 1]; None without truth."""
    confidence: float
    """How sure the machine is, in [0, 1]."""
    key: str
    """Name of the picture."""


class Neighbours(NamedTuple):
    """One picture and the pictures nearest to it."""

    query: Array
    found: Sequence[tuple[Array, float]]
    """(picture, similarity), nearest first."""


class Cluster(NamedTuple):
    """Pictures that the machine put together."""

    size: int
    pictures: Sequence[Array]
    purity: float | None = None
    """Share in [0, 1] of the most frequent true class; None without truth."""


class Health(NamedTuple):
    """How a stage's training went."""

    stage: str
    verdict: str
    reason: str = ""


class Comparison(NamedTuple):
    """Two ways to find objects beside each other."""

    columns: Mapping[str, Sequence[Array]]
    """Who found it -> one soft mask (h, w) in [0, 1] per picture shown."""
    composites: Sequence[Array]
    """(h, w, 3) uint8 per picture shown: its object moved a little over a filled background; any size, stretched to the picture's."""
    chosen: str
    """cut or move."""
    reason: str
    pictures: int
    """How many were measured."""
    criteria: Sequence[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]
    """(name, what it means, the cut's score, MOVE's score), scores as in `ReportContent`."""
    truth: Mapping[str, float]
    """cut and move -> mean overlap with the truth; empty without."""


SideBySide = Callable[[Sequence[FoundObject], Sequence[FoundObject]], Comparison]
"""Compares on the first; on all of the second it asks the truth, where there is one."""


class NextStep(NamedTuple):
    """A command to type and what it does."""

    command: str
    does: str


@dataclass(frozen=True)
class DataSummary:
    """What was found in the data."""

    counts: Mapping[str, Any]
    """Words -> number or text, shown in this order."""
    broken: Sequence[tuple[str, str]] = ()
    """(file, reason) of what could not be read."""


@dataclass(frozen=True)
class Cost:
    """What the run took."""

    seconds: Mapping[str, float]
    """Stage -> seconds."""
    peak_memory_gb: float | None = None
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContent:
    """Everything a report shows; a part that is empty is shown with the reason."""

    title: str
    learned: str
    """One paragraph in plain words."""
    objects: Sequence[FoundObject] = ()
    comparison: Comparison | None = None
    """Two ways to find objects, on the pictures `by_lot(len(objects))`; None when there was one way only."""
    neighbours: Sequence[Neighbours] = ()
    embedding_2d: Array | None = None
    """(N, 2) float, from plots.project_2d."""
    thumbnails: Sequence[Array] = ()
    """Pictures of the first points of `embedding_2d`; at most N."""
    clusters: Sequence[Cluster] = ()
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    """Stage -> name -> (steps, values); a curve named `health` with words as values shades the others."""
    health: Sequence[Health] = ()
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> {"value", "n", "ci95", "better", "baselines"} and optionally "unit", "note"."""
    data_summary: DataSummary | None = None
    cost: Cost | None = None
    how_to_go_on: Sequence[NextStep] = ()
    why_empty: Mapping[str, str] = field(default_factory=dict)
    """Section (objects, neighbours, map, clusters, curves, health, scores, data, cost, next) -> why it is empty."""


def by_lot(count: int, most: int = 12) -> list[int]:
    """At most `most` of `count` numbers, always the same ones, in order: what is shown and was not chosen."""
    return sorted(int(i) for i in np.random.default_rng(0).permutation(count)[:most])
