"""Numbers and scores in words: what a person reads beside a figure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (
        r"knn|nearest",
        "Nearest-neighbour accuracy",
        "The share of unseen pictures whose true class is guessed right by asking the most similar pictures seen "
        "before. It tells whether pictures of the same thing lie close together.",
    ),
    (
        r"probe|linear",
        "Linear-probe accuracy",
        "The share of unseen pictures whose true class the simplest possible classifier gets right from the features. "
        "Classes are used for this test only, never for learning.",
    ),
    (
        r"rank_?me|rank",
        "Directions in use",
        "How many independent directions the features use (RankMe). Near 1, all pictures look the same to the machine.",
    ),
    (
        r"^leak",
        "Do the edges of objects give them away?",
        "These pictures were put together by a program. A network that sees 7 x 7 pixels only, and is taught with true masks, "
        "finds objects this well: clearly above the baselines the edges of what was pasted would show.",
    ),
    (
        r"cor_?loc",
        "Objects located (CorLoc)",
        "The share of pictures in which a box around what was found overlaps a true box by at least half.",
    ),
    (
        r"iou|jaccard",
        "Overlap with the true object (IoU)",
        "The area that found and true mask share, divided by the area that either covers: 0 is apart, 1 is identical.",
    ),
    (
        r"(^|[^a-z])ap([^a-z]|$)|average_precision",
        "Average precision",
        "How well single objects are found, counting both the missed and the invented ones: 0 is none, 1 is perfect.",
    ),
    (
        r"weighted_f|wf\b",
        "Weighted F-measure",
        "How complete and how clean the masks are in one number, where errors near the object weigh less.",
    ),
    (
        r"max_?f",
        "F-measure at the best threshold",
        "How complete and how clean the masks are in one number, at the threshold that suits all pictures best.",
    ),
    (
        r"s_measure",
        "Structure measure",
        "How alike found and true mask are in shape and in their parts: 1 is identical.",
    ),
    (
        r"e_measure",
        "Alignment measure",
        "How well found and true mask agree pixel by pixel and as a whole: 1 is identical.",
    ),
    (
        r"(^|[^a-z])mae([^a-z]|$)",
        "Mean error of the mask",
        "The average difference between the soft mask and the true mask, per pixel: 0 is perfect.",
    ),
    (
        r"purity",
        "Purity of the groups",
        "The share of pictures that belong to the most frequent true class of their group.",
    ),
    (
        r"nmi|mutual",
        "Agreement of groups and classes",
        "How much knowing the group tells about the true class (normalised mutual information): 0 nothing, 1 all.",
    ),
    (
        r"alignment",
        "Alignment of views",
        "How close two views of the same picture lie: small is close.",
    ),
    (
        r"uniformity",
        "Evenness of the features",
        "How evenly pictures spread over the space of features: the more negative, the more even.",
    ),
    (
        r"psnr",
        "Fidelity of the filled picture (PSNR)",
        "How close a filled-in part comes to the original, in decibels.",
    ),
    (
        r"acc",
        "Pixels judged right",
        "The share of pixels that are rightly called object or background. "
        "A machine that calls everything background already scores high when objects are small.",
    ),
)

OF_THE_DATA = "This was measured on the data alone: it says nothing of the run, only how far its scores can be believed."
_MINUS = "\u2212"


def meaning(name: str) -> tuple[str, str]:
    """Return (heading, what it means) of a score; an unknown one keeps its own name and gets no explanation."""
    for pattern, heading, text in _MEANINGS:
        if re.search(pattern, name.lower()):
            return heading, text
    return plain(name).replace("_", " "), ""


def is_of_the_data(name: str) -> bool:
    """Whether a score is none of the run's but a check of the pictures."""
    return name.startswith("leak")


def number(value: float | None, places: int | None = None) -> str:
    """Return a figure for reading: 0.43, 12.5, 1,234; without `places` as many decimals as the size asks for."""
    if value is None or math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if places is None:
        size = abs(value)
        places = 2 if size < 10 else 1 if size < 100 else 0
        if 0 < size < 0.01:
            return f"{value:.2g}".replace("-", _MINUS)
    text = f"{value:,.{places}f}"
    # A value that rounds to zero has no sign.
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", _MINUS)


def places_for(half_width: float) -> int:
    """Return the number of decimals at which an interval of this half width still shows."""
    if not math.isfinite(half_width) or half_width <= 0:
        return 2
    if half_width >= 1:
        return 1 if half_width < 10 else 0
    return 2 if half_width >= 0.005 else min(4, -math.floor(math.log10(half_width)))


def with_interval(value: float, low: float, high: float) -> tuple[str, str, str]:
    """Return (figure, half width with sign, 'low to high') of a value with its 95 % interval, all to one precision."""
    half = (high - low) / 2
    places = places_for(half)
    return number(value, places), f"± {number(half, places)}", f"{number(low, places)} to {number(high, places)}"


def duration(seconds: float) -> str:
    """Return a time for reading: 0.4 s, 48 s, 3 min 20 s, 2 h 05 min."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(amount: int, one: str, many: str = "") -> str:
    """Return '1 picture' or '1,234 pictures'."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def against_baselines(
    value: float, interval: Sequence[float], better: str, baselines: Mapping[str, float]
) -> tuple[str, str]:
    """Compare a score with the best baseline; return (sentence, 'good' | 'unclear' | 'bad' | '')."""
    usable = {name: figure for name, figure in baselines.items() if math.isfinite(figure)}
    if not usable or not math.isfinite(value):
        return "", ""
    sign = -1.0 if better == "lower" else 1.0
    name = max(usable, key=lambda key: sign * usable[key])
    gap = sign * (value - usable[name])
    low, high = (float(bound) for bound in interval)
    places = places_for((high - low) / 2)
    best = f"the best baseline ({plain(name).replace('_', ' ')}, {number(usable[name], places)})"
    if low <= usable[name] <= high:
        return f"Not clearly different from {best}.", "unclear"
    if gap > 0:
        return f"Better by {number(gap, places)} than {best}.", "good"
    return f"Worse by {number(-gap, places)} than {best}.", "bad"


def plain(text: Any) -> str:
    """Return text that is safe to show: what cannot be seen, or would turn the line round, becomes an escape."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in shown)
