"""Plots of a run: learning curves with health, the map of the collection, strips of clusters.

Curves are drawn by matplotlib on the Agg canvas, which opens no window, as small SVG texts that take their colours from
the page. Maps and strips are pictures (H, W, 3) uint8.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from selftaught.core.errors import DataError, RunError
from selftaught.report.pictures import Picture, contact_sheet, square

Array = npt.NDArray[Any]
MAX_POINTS = 1500
HEALTH = "health"
_DRAWN_POINTS = 300
_DOT_PX = 7
# Colours that stand for a role while matplotlib draws; the page's own take their place.
_ROLES = {
    "#010203": "var(--quiet)",
    "#040506": "var(--accent)",
    "#070809": "var(--rule)",
    "#0a0b0c": "var(--bad)",
    "#0d0e0f": "var(--unclear)",
}
_TEXT, _LINE, _RULE, _BAD, _UNCLEAR = _ROLES
SHADES = {"collapsing": _BAD, "diverging": _BAD, "slow": _UNCLEAR}


def read_curves(path: Path) -> dict[str, tuple[list[float], list[Any]]]:
    """Read a metrics.jsonl into name -> (steps, values); words under `health` or `verdict` become the curve `health`.

    Nested groups are joined by a slash. A last line that was cut short is passed over; a broken line before it raises
    RunError. A file that does not exist gives no curves.
    """
    if not path.exists():
        return {}
    curves: dict[str, tuple[list[float], list[Any]]] = {}
    lines = path.read_bytes().split(b"\n")
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = float(row.pop("step", index))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if index == len(lines) - 1:
                break
            raise RunError(f"{path}, line {index + 1}, is corrupt.", expected="a JSON object with a step") from error
        for name, value in _flat(row):
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return curves


def _flat(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, str) and name in (HEALTH, "verdict"):
            pairs.append((HEALTH, value))
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            # JSON has no NaN: a null in the metrics is a figure that was not finite.
            pairs.append((prefix + name, math.nan if value is None else float(value)))
    return pairs


def curve_svg(
    steps: Sequence[float], values: Sequence[float], *, mark: str, alt: str, health: tuple[Any, Any] | None = None
) -> str:
    """Draw one curve as inline SVG: raw values thin, running mean bold, unhealthy stretches shaded.

    `mark` makes the ids unique in a page; `alt` is read aloud instead. Raises DataError when lengths differ.
    """
    if len(steps) != len(values):
        raise DataError(f"A curve has {len(steps)} steps and {len(values)} values.")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = np.argsort(np.asarray(steps, dtype=np.float64), kind="stable")
    x, y = np.asarray(steps, dtype=np.float64)[order], np.asarray(values, dtype=np.float64)[order]
    x, y = _thin(x, y)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": mark, "font.size": 9.5}):
        figure = Figure(figsize=(4.6, 2.1), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if health is not None:
            _shade(axes, health)
        single = np.isfinite(y).sum() == 1
        axes.plot(x, y, color=_LINE, linewidth=0.8, alpha=0.35, marker="o" if single else None)
        axes.plot(x, _running_mean(y), color=_LINE, linewidth=1.8, solid_capstyle="round")
        _plain_axes(axes)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), mark, alt)


def _plain_axes(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT, length=0, pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_color(_TEXT)
    axes.set_xlabel("step", color=_TEXT)
    axes.margins(x=0.02, y=0.12)


def _shade(axes: Any, health: tuple[Any, Any]) -> None:
    steps, verdicts = list(health[0]), list(health[1])
    ends = [*steps[1:], steps[-1] if steps else 0.0]
    for start, end, verdict in zip(steps, ends, verdicts, strict=False):
        if verdict in SHADES and end > start:
            axes.axvspan(start, end, color=SHADES[verdict], alpha=0.18, linewidth=0)


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    """Average long curves over equal groups, so that a page stays small however long the run was."""
    if len(x) <= _DRAWN_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), _DRAWN_POINTS)
    return np.array([x[group].mean() for group in groups]), np.array([y[group].mean() for group in groups])


def _running_mean(y: Array) -> Array:
    """Smooth with a bell of weights that is cut off and rescaled at the ends and over what is not finite."""
    sigma = len(y) / 60
    if sigma < 0.3:
        return y
    good = np.isfinite(y)
    offsets = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    bell = np.exp(-0.5 * (offsets / sigma) ** 2)
    half = len(offsets) // 2
    total = np.convolve(np.where(good, y, 0.0), bell)[half : half + len(y)]
    weight = np.convolve(good.astype(float), bell)[half : half + len(y)]
    mean: Array = np.where(good, total / np.maximum(weight, 1e-12), np.nan)
    return mean


def _inline(svg: str, mark: str, alt: str) -> str:
    """Turn matplotlib's file into a part of a page: no header, no addresses, own ids, the page's fonts and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{mark}-", svg)
    svg = re.sub(r"(font: )([\d.]+px)[^;\"]*", r"\1\2 inherit", svg)
    svg = re.sub(r"font: ([\d.]+px) inherit", r"font-size: \1", svg)
    for colour, role in _ROLES.items():
        svg = svg.replace(colour, role)
    head = re.match(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", svg)
    if head is None:
        raise RunError("matplotlib wrote an SVG without a view box.", do="install a supported matplotlib")
    return f'<svg {head.group(1)} role="img" aria-label="{escape(alt)}">{svg[head.end() :]}'


def project_2d(
    embedding: Array, method: str = "pca", *, seed: int = 0, max_points: int = MAX_POINTS
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Bring (N, D) features to two dimensions; return ((M, 2), index (M,) of the rows kept), M = min(N, max_points).

    `method` is "pca" or "tsne" (van der Maaten and Hinton, 2008, started from PCA). The result depends on the input and
    `seed` only. Rows that are not finite are left out. Raises DataError for another method or shape.
    """
    embedding = np.asarray(embedding, dtype=np.float64)
    if embedding.ndim != 2 or method not in ("pca", "tsne"):
        raise DataError(f"Cannot map {embedding.shape} by {method!r}.", expected="(N, D) features; 'pca' or 'tsne'")
    index = np.flatnonzero(np.isfinite(embedding).all(axis=1))
    if len(index) > max_points:
        index = np.sort(np.random.default_rng(seed).choice(index, max_points, replace=False))
    rows = embedding[index]
    if len(rows) == 0:
        return np.zeros((0, 2)), index
    centred = rows - rows.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    # The sign of a singular vector is arbitrary; a rule for it keeps the map the same on every machine.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    scores = left * singular * np.where(signs == 0, 1.0, signs)
    points = np.zeros((len(rows), 2))
    points[:, : min(2, scores.shape[1])] = scores[:, :2]
    if method == "pca" or len(rows) < 5 or np.ptp(points) == 0:
        return points, index
    from sklearn.manifold import TSNE

    start = points / max(float(points[:, 0].std()), 1e-12) * 1e-4
    perplexity = min(30.0, (len(rows) - 1) / 3)
    mapper = TSNE(2, perplexity=perplexity, init=start, random_state=seed, n_jobs=1)
    return mapper.fit_transform(scores[:, :50]).astype(np.float64), index


def map_picture(
    points: Array,
    thumbnails: Sequence[Array],
    *,
    size_px: tuple[int, int] = (760, 1120),
    thumb_px: int = 56,
    dark: bool = False,
) -> Picture:
    """Draw thumbnails at their points (N, 2) in a picture of `size_px` (H, W); where one would hide another, a dot.

    `thumbnails` belong to the first points. Raises DataError when there are more thumbnails than points.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(thumbnails) > len(points) or not np.isfinite(points).all():
        raise DataError(
            f"Cannot draw {len(thumbnails)} thumbnails at points {points.shape}.", expected="(N, 2), finite"
        )
    height, width = size_px
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[:] = (28, 30, 34) if dark else (246, 246, 244)
    if len(points) == 0:
        return canvas
    dot = (110, 114, 122) if dark else (168, 170, 174)
    disc = _disc()
    room = thumb_px // 2 + 6
    low, high = np.percentile(points, 1, axis=0), np.percentile(points, 99, axis=0)
    span = np.where(high - low > 0, high - low, 1.0)
    unit = np.where(high - low > 0, ((points - low) / span).clip(0.0, 1.0), 0.5)
    centre = np.stack([room + unit[:, 0] * (width - 2 * room), room + (1 - unit[:, 1]) * (height - 2 * room)], axis=1)
    placed: list[Array] = []
    shown: list[int] = []
    for index in range(len(thumbnails)):
        apart = np.abs(np.array(placed) - centre[index]).max(axis=1) if placed else np.array([np.inf])
        if apart.min() >= thumb_px + 2:
            placed.append(centre[index])
            shown.append(index)
    image = Image.fromarray(canvas)
    for x, y in centre[np.setdiff1d(np.arange(len(points)), shown)].round().astype(int).tolist():
        image.paste(dot, (x - _DOT_PX // 2, y - _DOT_PX // 2), disc)
    canvas = np.array(image)
    for index in shown:
        x, y = (centre[index] - thumb_px / 2).round().astype(int)
        canvas[y : y + thumb_px, x : x + thumb_px] = square(thumbnails[index], thumb_px)
    return canvas


def _disc() -> Image.Image:
    """A round dot's coverage, smooth at the rim."""
    y, x = np.mgrid[:_DOT_PX, :_DOT_PX] - (_DOT_PX - 1) / 2
    return Image.fromarray((255 * (_DOT_PX / 2 - np.hypot(y, x)).clip(0.0, 1.0)).astype(np.uint8))


def cluster_strip(
    pictures: Sequence[Array],
    *,
    columns: int = 4,
    cell_px: int = 96,
    background: tuple[int, int, int] = (128, 128, 128),
) -> Picture:
    """Lay a cluster's pictures side by side without gaps, `columns` to a row; an incomplete last row is left out."""
    whole = len(pictures) - len(pictures) % columns if len(pictures) >= columns else len(pictures)
    return contact_sheet(pictures[:whole], columns=columns, cell_px=cell_px, gap_px=0, background=background)
