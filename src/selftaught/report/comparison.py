"""The part of the page that shows two ways to find objects beside each other, and which one was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from selftaught.report import words
from selftaught.report.content import FoundObject, ReportContent, by_lot
from selftaught.report.pictures import Array, data_uri, fit, overlay

NAMES = {"cut": "the cut", "move": "MOVE"}
ABOUT = (
    "Two rules gave the machine something to start from: the cut takes what stands out in a picture, and MOVE, which starts from the cut, "
    "takes what can be moved a little while the picture still looks real. A network learned from the masks of each. Which network is kept "
    "was decided on {count} of the pictures that were learned from, by a rule that was fixed before, without any truth."
)
RULE = (
    "Stability decides first; where both are equally stable, how seldom moved objects are recognised; where that says nothing either, "
    "the cut is kept. ± is half of the 95 % interval of one figure; the rule compares the two on the same pictures, which is sharper."
)


def comparison_part(content: ReportContent, scale: float, quality: int) -> dict[str, Any] | None:
    """What the template needs of `content.comparison`; None when there is none."""
    found = content.comparison
    if found is None:
        return None
    shown = [content.objects[i] for i in by_lot(len(content.objects))]
    rows = [{"name": name, "meaning": meaning, "cut": figure(a), "move": figure(b)} for name, meaning, a, b in found.criteria]
    if found.truth:
        held = sum(item.truth is not None for item in content.objects)
        rows.append({
            "name": "Overlap with the truth", **{name: (words.number(value, 3), "") for name, value in found.truth.items()},
            "meaning": f"On {words.count(held, 'picture')} that were kept out, for you to judge the choice by: it was not used.",
        })  # fmt: skip
    heads = ["picture", *found.columns, "object moved"]
    return {
        "about": ABOUT.format(count=f"{found.pictures:,}"),
        "criteria": rows,
        "verdict": f"Kept: the network that learned from {NAMES[found.chosen]} ({found.reason}).",
        "rule": RULE,
        "whose": f", cut out by the network that learned from {NAMES[found.chosen]}",
        "heads": heads,
        "rows": [tiles(item, i, content, scale, quality) for i, item in enumerate(shown)],
    }  # fmt: skip


def figure(score: Mapping[str, Any]) -> tuple[str, str]:
    """A score, and half of its interval."""
    low, high = score["ci95"]
    return words.number(score["value"], 3), words.number((high - low) / 2, 3)


def tiles(item: FoundObject, row: int, content: ReportContent, scale: float, quality: int) -> list[dict[str, str]]:
    """One row: the picture, its masks, and the picture with its object moved."""
    found, px = content.comparison, round(200 * scale)
    assert found is not None
    masked = {head: overlay(item.picture, masks[row], truth=item.truth, longest_px=px) for head, masks in found.columns.items()}
    drawn = {"picture": fit(item.picture, px), **masked, "object moved": fit(as_large(found.composites[row], item.picture), px)}
    name = words.plain(item.key)
    return [{"src": data_uri(x, quality=quality), "alt": f"{name}: {head}", "head": head} for head, x in drawn.items()]


def as_large(small: Array, picture: Array) -> Array:
    """Stretch (h, w, 3) uint8 to the size of a picture (H, W, 3)."""
    return np.asarray(Image.fromarray(small).resize((picture.shape[1], picture.shape[0]), Image.Resampling.BICUBIC))
