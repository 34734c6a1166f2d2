"""The report of solid objects: pictures with their reconstruction, surface, depth, normals, texture, background and other views; scores.

One page without a script and without an address. It is made of pictures and numbers alone and knows no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from selftaught.core.atomic import write_bytes
from selftaught.report.clip_page import page_of
from selftaught.report.content import Array, ReportContent
from selftaught.report.pictures import data_uri


class FoundSolid(NamedTuple):
    """What was made of one picture; all pictures are (H, W, 3) uint8."""

    key: str
    parts: Sequence[tuple[str, Array]]
    """(what it shows, picture), the given picture first."""
    views: Sequence[tuple[str, Array]]
    """(from where, picture) of the object turned."""


@dataclass(frozen=True)
class SolidReport:
    """Everything that the page shows."""

    title: str
    learned: str
    solids: Sequence[FoundSolid]
    content: ReportContent
    """Curves, health, scores and how to go on."""
    panels: Sequence[tuple[str, Array]] = ()
    """(name, picture) of what the method draws itself."""
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=list)


def write_solid_report(run: Path, report: SolidReport) -> Path:
    """Write `run`/report.html atomically and return its path."""
    path = Path(run) / "report.html"
    write_bytes(path, render(report))
    return path


def render(report: SolidReport) -> bytes:
    """The page as UTF-8."""

    def shown(pictures: Sequence[tuple[str, Array]]) -> list[dict[str, Any]]:
        return [{"name": name, "src": data_uri(picture, kind="png")} for name, picture in pictures]

    return page_of(
        "solids.html", report, panels=shown(report.panels),
        solids=[{"key": one.key, "parts": shown(one.parts), "views": shown(one.views)} for one in report.solids],
    )  # fmt: skip
