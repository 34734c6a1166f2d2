"""The report of clips: layers, discovered actions as little films, parsed timelines, and rollouts beside the truth.

As the report of pictures it is one page without a script and without an address; films are GIFs inside of it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from selftaught.core.atomic import write_bytes
from selftaught.method import Parsed, Plays
from selftaught.nets.video_blocks import to_px
from selftaught.report import films, words
from selftaught.report.content import NextStep, ReportContent
from selftaught.report.html import stage_rows
from selftaught.report.pictures import data_uri

COLOURS = ("#0b63ce", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0e7490", "#a16207", "#4d7c0f", "#be185d", "#475569")
STARTS = 4
"""First frames that the films of actions begin at."""
TIMELINES = 6


@dataclass(frozen=True)
class ClipReport:
    """Everything that the page shows; clips (N, T, 3, H, W) in [0, 1] are kept out of training, `keys` name them."""

    title: str
    learned: str
    clips: Tensor
    keys: Sequence[str]
    content: ReportContent
    """Curves, health, scores and how to go on."""
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=list)


def write_clip_report(run: Path, model: Plays, report: ClipReport) -> Path:
    """Write `run`/report.html atomically and return its path."""
    path = Path(run) / "report.html"
    write_bytes(path, render(model, report))
    return path


@torch.no_grad()
def render(model: Plays, report: ClipReport) -> bytes:
    """The page as UTF-8."""
    clips = report.clips[: max(STARTS, TIMELINES)]
    parsed = model.parse(clips)
    first = clips[:STARTS, 0]
    usage = torch.bincount(model.parse(report.clips).actions.codes.flatten(), minlength=model.codes).float()
    usage = usage / usage.sum()
    played = model.play(clips[:, 0], parsed.actions).frames
    return page_of(
        "clips.html", report, clips=len(clips),
        layers=data_uri(films.layer_panel(model, clips[: films.SHOWN]), kind="png"),
        **{"global": [_film(n, f) for n, f in films.global_films(model, first, int(usage.argmax())).items()]},
        local=[
            {**_film(n, f), "share": f"{float(usage[k]):.0%} of all steps", "colour": COLOURS[k % len(COLOURS)]}
            for k, (n, f) in enumerate(films.local_films(model, first).items())
        ],
        timelines=[_timeline(key, clip, parsed, i) for i, (key, clip) in enumerate(zip(report.keys, clips[:TIMELINES], strict=False))],
        rollouts=[_film(key, torch.stack([clip, made])) for key, clip, made in zip(report.keys, clips, played, strict=False)],
        bits=f"told per step: 4 numbers for the motion of agent and background, and one of {model.codes} local actions",
    )  # fmt: skip


def page_of(template: str, report: Any, **values: Any) -> bytes:
    """UTF-8 of a template of this folder, filled with `values` and what every report has: title, facts, scores, training, next steps."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters["plain"] = words.plain
    text = environment.get_template(template).render(
        head=Markup(head_of(report.title)), title=report.title, learned=report.learned, facts=list(report.facts),
        scores=score_rows(report.content.scores), notes="; ".join(report.notes),
        stages=stage_rows(report.content), steps=[{"command": c, "does": d} for c, d in report.content.how_to_go_on], **values,
    )  # fmt: skip
    return text.encode("utf-8", "backslashreplace")


def next_steps(run: Path, slow: bool = False) -> list[NextStep]:
    """Commands that continue from here; `slow` where hardly anything moves from one frame to the next."""
    faster = NextStep(
        "selftaught train glass CLIPS --set every=3 --out runs/every-third",
        "frames hardly differ from one to the next here: take every third one, so that more happens between them",
    )
    return [
        *([faster] if slow else []),
        NextStep(f"selftaught evaluate {run} DATA --json scores.json", "score it on clips of a world, where the truth is known"),
        NextStep("selftaught learn CLIPS --out runs/mine --minutes 60", "learn from your own clips, or for longer: both help most"),
    ]


def _source(name: str) -> str:
    return resources.files("selftaught.report").joinpath(name).read_text(encoding="utf-8")


def head_of(title: str) -> str:
    """The head of the report of pictures, with its style, up to the end of that."""
    head, end, _ = _source("template.html").partition("</style>")
    return head.replace("{{ title | plain }}", str(Markup.escape(words.plain(title)))) + end


def _film(name: str, film: Tensor) -> dict[str, str]:
    return {"name": name, "src": "data:image/gif;base64," + base64.b64encode(films.gif(film)).decode()}


def _timeline(key: str, clip: Tensor, parsed: Parsed, row: int) -> dict[str, Any]:
    """A strip of frames and a box for each step between them."""
    H, W = clip.shape[2:]
    boxes = []
    for code, shift in zip(parsed.actions.codes[row].tolist(), to_px(parsed.actions.shifts[row], H, W).tolist(), strict=True):
        colour, title = COLOURS[code % len(COLOURS)], f"action {code + 1}, moves {shift[0]:+.1f} px right, {shift[1]:+.1f} px down"
        boxes.append({"code": code + 1, "arrow": _arrow(*shift), "colour": colour, "title": title})
    return {"name": key, "src": data_uri(films.sheet(clip[None], zoom=1), kind="png"), "boxes": boxes}


def _arrow(dx: float, dy: float) -> str:
    """The nearest of eight arrows, or a dot for less than a pixel."""
    if math.hypot(dx, dy) < 1:
        return "·"
    return "→↘↓↙←↖↑↗"[round(math.atan2(dy, dx) / (math.pi / 4)) % 8]


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of the table; a note that many rows share is said once."""
    rows, said = [_row(name, score) for name, score in scores.items()], set[str]()
    for row in rows:
        note = row["note"]
        row["note"] = "" if note in said else note
        said.add(note)
    return rows


def _row(name: str, score: Mapping[str, Any]) -> dict[str, str]:
    value, (low, high) = score.get("value"), (score.get("ci95") or (None, None))
    # A score of all clips together has no interval: both of its ends are the value.
    interval = "" if low is None or high is None or low == high else f"{words.number(low)} to {words.number(high)}"
    baselines = ", ".join(f"{k.replace('_', ' ')} {words.number(v)}" for k, v in (score.get("baselines") or {}).items())
    unit, note = str(score.get("unit") or ""), str(score.get("note") or "")
    return {"name": name, "value": words.number(value), "unit": unit, "interval": interval, "baselines": baselines, "note": note}
