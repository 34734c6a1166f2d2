"""The report: one self-contained page, readable offline, on a phone, in light and dark.

The page holds no script and no address; a content security policy forbids loading anything. Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from selftaught.core.atomic import write_bytes
from selftaught.core.errors import RunError
from selftaught.report import words
from selftaught.report.comparison import comparison_part
from selftaught.report.content import (
    Cluster,
    Cost,
    DataSummary,
    FoundObject,
    Health,
    Neighbours,
    NextStep,
    ReportContent,
    by_lot,
)
from selftaught.report.pictures import Array, data_uri, fit, overlay, square
from selftaught.report.plots import HEALTH, SHADES, cluster_strip, curve_svg, map_picture

__all__ = [
    "Cluster",
    "Cost",
    "DataSummary",
    "FoundObject",
    "Health",
    "Neighbours",
    "NextStep",
    "ReportContent",
    "render",
    "write_report",
]

MAX_BYTES = 5_000_000
_SIDE, _RANDOM = 4, 12
_ROWS, _PER_ROW, _CLUSTERS, _CURVES, _BROKEN = 12, 8, 24, 12, 50
# (scale of picture sizes, JPEG quality): the first that keeps the page under its limit is taken.
_GRADES = ((1.0, 84), (0.85, 78), (0.7, 72), (0.5, 66), (0.35, 55))
_EMPTY = {
    "objects": "No objects to show: this run has not finished a stage that finds objects.",
    "neighbours": "No neighbours to show: this run has not finished learning features.",
    "map": "No map to show: this run has not finished learning features, or there are too few pictures.",
    "clusters": "No groups to show: this run has not finished learning features, or there are too few pictures.",
    "curves": "No curves to show: no stage has logged a step yet.",
    "health": "No stage has reported on its health yet.",
    "scores": "No truth found, so nothing was scored.",
    "data": "No summary of the data was recorded.",
    "cost": "No costs were recorded.",
    "next": "No further commands were recorded.",
}
_GOOD = frozenset({"learning", "done", "good", "healthy", "finished"})
_BAD = frozenset({"collapsing", "collapsed", "diverging", "diverged", "failed"})


def write_report(run_dir: Path, content: ReportContent) -> Path:
    """Write `run_dir`/report.html, at most 5 MB, atomically; return its path.

    Raises RunError when the page cannot be written or cannot be kept under its limit, DataError for unfit arrays.
    """
    path = Path(run_dir) / "report.html"
    write_bytes(path, render(content))
    return path


def render(content: ReportContent) -> bytes:
    """Return the page as UTF-8 of less than 5 MB; pictures are made smaller, grade by grade, until it fits."""
    page = b""
    for scale, quality in _GRADES:
        page = _page(content, scale, quality)
        if len(page) < MAX_BYTES:
            return page
    raise RunError(
        "The report does not fit.",
        expected=f"less than {MAX_BYTES / 1e6:.0f} MB",
        why=f"it has {len(page) / 1e6:.1f} MB with the smallest pictures",
        do="give fewer scores, curves or words",
    )


def _page(content: ReportContent, scale: float, quality: int) -> bytes:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = words.plain
    source = resources.files("selftaught.report").joinpath("template.html").read_text(encoding="utf-8")
    text = environment.from_string(source).render(
        title=content.title,
        learned=content.learned,
        facts=_facts(content),
        objects=_objects(content, scale, quality),
        comparison=comparison_part(content, scale, quality),
        neighbours=_neighbours(content.neighbours, scale, quality),
        map=_map(content, quality),
        clusters=_clusters(content.clusters, scale, quality),
        stages=stage_rows(content),
        scores=[_score(name, score) for name, score in content.scores.items()],
        data=_data(content.data_summary),
        cost=_cost(content.cost),
        steps=[{"command": command, "does": does} for command, does in content.how_to_go_on],
        empty={**_EMPTY, **content.why_empty},
    )
    # A file name may hold halves of characters, which UTF-8 cannot.
    return text.encode("utf-8", "backslashreplace")


def _facts(content: ReportContent) -> list[tuple[str, str]]:
    """Three or four figures that open the page."""
    facts = []
    if content.data_summary is not None:
        for name, amount in list(content.data_summary.counts.items())[:1]:
            facts.append((_amount(amount), str(name)))
    if content.objects:
        facts.append((f"{len(content.objects):,}", "pictures searched for objects"))
    if content.clusters:
        facts.append((f"{len(content.clusters):,}", "groups of alike pictures"))
    if content.cost is not None and content.cost.seconds:
        facts.append((words.duration(math.fsum(content.cost.seconds.values())), "of computing"))
    return facts


def _objects(content: ReportContent, scale: float, quality: int) -> dict[str, Any]:
    found = list(content.objects)
    by_truth = any(_known(item[3]) for item in found)
    what = "overlap with the truth" if by_truth else "confidence"

    def rank(item: FoundObject) -> float:
        figure = item[3] if by_truth else item[4]
        return figure if figure is not None and math.isfinite(figure) else -1.0

    ordered = sorted(found, key=rank, reverse=True)
    groups: list[tuple[str, str, list[FoundObject]]]
    if len(found) <= _RANDOM:
        groups = [("All", f"Every picture that was searched, ordered by {what}.", ordered)]
    else:
        ranked = [item for item in ordered if rank(item) >= 0]
        side = min(_SIDE, len(ranked) // 3)
        middle = (len(ranked) - side) // 2
        best, worst = ("Best", "Worst") if by_truth else ("Most sure", "Least sure")
        groups = [
            (best, f"The highest {what}.", ranked[:side]),
            ("Median", f"The middle of all, ordered by {what}.", ranked[middle : middle + side]),
            (worst, f"The lowest {what}.", ranked[len(ranked) - side :]),
            ("Random, not chosen", f"Drawn by lot from all {len(found):,}.", [found[index] for index in by_lot(len(found), _RANDOM)]),
        ]
    return {
        "any": bool(found),
        "by_truth": by_truth,
        "has_truth": any(item[2] is not None for item in found),
        "groups": [
            {"name": name, "about": about, "tiles": [_tile(item, scale, quality) for item in items]}
            for name, about, items in groups
            if items
        ],
    }


def _known(figure: float | None) -> bool:
    return figure is not None and math.isfinite(figure)


def _tile(item: FoundObject, scale: float, quality: int) -> dict[str, str]:
    picture, mask, truth, iou, confidence, key = item
    drawn = overlay(picture, mask, truth=truth, longest_px=round(360 * scale))
    name = _short(key)
    if iou is not None and math.isfinite(iou):
        figure, said = f"overlap {words.number(iou, 2)}", f"overlap with the truth {words.number(iou, 2)}"
    else:
        figure = said = f"confidence {words.number(confidence, 2)}"
    share = float(np.mean(np.nan_to_num(np.asarray(mask, dtype=np.float32)) >= 0.5))
    alt = f"{name}: what was found covers {share:.0%} of the picture, {said}"
    return {
        "src": data_uri(drawn, quality=quality),
        "alt": alt,
        "name": name,
        "full": words.plain(key),
        "figure": figure,
    }


def _neighbours(rows: Sequence[Neighbours], scale: float, quality: int) -> dict[str, Any]:
    shown = []
    for number, (query, found) in enumerate(rows[:_ROWS], start=1):
        near = [
            {
                "src": _thumb(picture, scale, quality),
                "alt": f"Neighbour {rank} of picture {number}, similarity {words.number(similarity, 2)}",
                "figure": words.number(similarity, 2),
            }
            for rank, (picture, similarity) in enumerate(found[:_PER_ROW], start=1)
        ]
        shown.append(
            {"src": _thumb(query, scale, quality), "alt": f"Picture {number}, the one asked for", "near": near}
        )
    return {"rows": shown, "left_out": max(0, len(rows) - _ROWS)}


def _thumb(picture: Array, scale: float, quality: int) -> str:
    return data_uri(square(picture, round(160 * scale)), quality=quality)


def _map(content: ReportContent, quality: int) -> dict[str, Any] | None:
    points = content.embedding_2d
    if points is None or len(points) == 0:
        return None
    count = words.count(len(points), "picture")
    alt = f"Map of {count}: each lies where the machine puts it, alike pictures near each other."
    return {
        "light": data_uri(map_picture(points, content.thumbnails), quality=quality - 6, max_bytes=900_000),
        "dark": data_uri(map_picture(points, content.thumbnails, dark=True), quality=quality - 6, max_bytes=900_000),
        "alt": alt,
        "count": count,
        "has_thumbnails": bool(len(content.thumbnails)),
    }


def _clusters(clusters: Sequence[Cluster], scale: float, quality: int) -> dict[str, Any]:
    ordered = sorted(clusters, key=lambda cluster: -int(cluster[0]))
    shown = []
    for number, cluster in enumerate(ordered[:_CLUSTERS], start=1):
        size, pictures = int(cluster[0]), list(cluster[1])
        purity = cluster[2] if len(cluster) > 2 else None
        strip = cluster_strip(pictures[:_PER_ROW], cell_px=round(120 * scale)) if pictures else None
        shown.append(
            {
                "name": f"Group {number}",
                "size": words.count(size, "picture"),
                "purity": None if purity is None else f"{purity:.0%} of one class",
                "src": None if strip is None else data_uri(fit(strip, max(strip.shape[:2])), quality=quality),
                "alt": f"Examples from group {number} of {words.count(size, 'picture')}",
            }
        )
    return {"cards": shown, "left_out": max(0, len(ordered) - _CLUSTERS)}


def stage_rows(content: ReportContent) -> list[dict[str, Any]]:
    """One entry per stage, in the order of health and then of curves: verdict, reason and drawn curves."""
    health = {str(stage): (str(verdict), str(reason)) for stage, verdict, reason in content.health}
    names = list(dict.fromkeys([*health, *map(str, content.curves)]))
    stages = []
    for place, name in enumerate(names):
        verdict, reason = health.get(name, ("", ""))
        curves = dict(content.curves.get(name, {}))
        spans = curves.pop(HEALTH, None)
        plots = []
        for index, (label, (steps, values)) in enumerate(list(curves.items())[:_CURVES]):
            numbers = np.asarray(values, dtype=np.float64)
            finite = numbers[np.isfinite(numbers)]
            if len(finite) == 0:
                plots.append({"label": label, "svg": None, "last": "no finite value", "lost": 0})
                continue
            first, last = words.number(float(finite[0])), words.number(float(finite[-1]))
            alt = f"{words.plain(label)} over {words.count(len(numbers), 'logged step')}: from {first} to {last}"
            svg = curve_svg(steps, numbers.tolist(), mark=f"c{place}-{index}", alt=alt, health=spans)
            lost = len(numbers) - len(finite)
            plots.append({"label": label, "svg": Markup(svg), "last": f"{first} → {last}", "lost": lost})
        stages.append(
            {
                "name": name,
                "verdict": verdict,
                "mood": _mood(verdict),
                "reason": reason,
                "plots": plots,
                "shaded": spans is not None and any(word in SHADES for word in spans[1]),
                "left_out": max(0, len(curves) - _CURVES),
            }
        )
    return stages


def _mood(verdict: str) -> str:
    word = verdict.lower()
    return "good" if word in _GOOD else "bad" if word in _BAD else "unclear" if word else ""


def _score(name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    heading, meaning = words.meaning(name)
    value = _figure(score.get("value"))
    low, high = (_figure(bound) for bound in score.get("ci95") or (value, value))
    better = str(score.get("better", "higher"))
    baselines = {str(key): _figure(figure) for key, figure in (score.get("baselines") or {}).items()}
    figure, half, interval = words.with_interval(value, low, high)
    of_data = words.is_of_the_data(name)
    sentence, mood = (words.OF_THE_DATA, "") if of_data else words.against_baselines(value, (low, high), better, baselines)
    every = [figure for figure in (value, low, high, *baselines.values()) if math.isfinite(figure)] or [0.0]
    start = min(0.0, *every) if min(every) < 0 else 0.0
    end = 1.0 if 0.0 <= min(every) and max(every) <= 1.0 else (max(every) * 1.05 if max(every) > 0 else 0.0)
    span = (end - start) or 1.0

    def at(figure: float) -> float:
        return round(100 * (figure - start) / span, 2) if math.isfinite(figure) else 0.0

    places = words.places_for((high - low) / 2)
    own = "measured" if of_data else "this run"
    bars = [{"label": own, "figure": figure, "at": at(value), "from": at(low), "to": at(high), "own": True}]
    for label, reached in sorted(baselines.items(), key=lambda pair: pair[1], reverse=better != "lower"):
        shown = words.number(reached, places)
        bars.append({"label": label.replace("_", " "), "figure": shown, "at": at(reached), "from": None, "to": None, "own": False})
    return {
        "name": name,
        "heading": heading,
        "meaning": meaning,
        "figure": figure,
        "half": half if high > low else "",
        "interval": interval if high > low else "",
        "unit": "" if score.get("unit") in (None, "", "fraction", "share", "1") else str(score["unit"]),
        "n": f"{int(score.get('n') or 0):,}",
        "better": "Lower is better." if better == "lower" else "Higher is better.",
        "note": str(score.get("note") or ""),
        "sentence": sentence or "No baseline was measured beside it.",
        "mood": mood,
        "bars": bars,
        "scale": (_amount(start), _amount(end)),
    }


def _figure(value: Any) -> float:
    return math.nan if value is None else float(value)


def _data(summary: DataSummary | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {
        "counts": [(str(name), _amount(amount)) for name, amount in summary.counts.items()],
        "broken": [(words.plain(key), str(reason)) for key, reason in summary.broken[:_BROKEN]],
        "broken_count": words.count(len(summary.broken), "file"),
        "left_out": max(0, len(summary.broken) - _BROKEN),
    }


def _cost(cost: Cost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    total = math.fsum(cost.seconds.values())
    return {
        "stages": [
            {"name": name, "time": words.duration(spent), "width": round(100 * spent / total, 1) if total > 0 else 0}
            for name, spent in cost.seconds.items()
        ],
        "total": words.duration(total),
        "memory": "" if cost.peak_memory_gb is None else f"{words.number(cost.peak_memory_gb, 1)} GB",
        "machine": cost.machine,
        "versions": ", ".join(f"{name} {version}" for name, version in cost.versions.items()),
    }


def _amount(amount: Any) -> str:
    if isinstance(amount, bool) or not isinstance(amount, (int, float, np.integer, np.floating)):
        return str(amount)
    return f"{int(amount):,}" if float(amount).is_integer() else words.number(float(amount))


def _short(key: str, longest: int = 60) -> str:
    """The file's own name; its folders are in the title of the caption."""
    shown = words.plain(key).rstrip("/").rsplit("/", 1)[-1]
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
