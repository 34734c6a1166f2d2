"""The report of a run that sees solid objects or viewpoints: made by `selftaught evaluate`, from the pictures that it scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core.rows import evenly
from selftaught.method import EvalData, Method, Shapes
from selftaught.nets.renderer import Camera, Light, Topology, render
from selftaught.reconstruct import is_open, one_of, turned
from selftaught.report.collect import verdict
from selftaught.report.content import NextStep, ReportContent
from selftaught.report.plots import read_curves
from selftaught.report.solid_page import FoundSolid, SolidReport, write_solid_report

Picture = np.ndarray[Any, Any]
SHOWN, PX = 8, 96
"""Pictures on the page, and the side of what is rendered for it."""
OPEN_DEG, CLOSED_DEG = (-45, -30, -15, 0, 15, 30, 45), (-135, -90, -45, 0, 45, 90, 180)


def report_solids(run: Path, method: Method, opened: EvalData, scored: Mapping[str, Any]) -> Path:
    """Write `run`/report.html: reconstructions of test pictures where the method makes any, its own panels, scores and curves.

    scored: what `selftaught evaluate` writes into scores.json.
    """
    test = opened.test
    rows = evenly(len(test), SHOWN)
    images = test.images.batch(rows).float() / 255
    solids: list[FoundSolid] = []
    if "reconstruct" in method.capabilities:
        shapes: Shapes = method.reconstruct(images)  # type: ignore[operator]
        solids = [found_solid(test.keys[int(i)], images[k], one_of(shapes, k)) for k, i in enumerate(rows)]
    curves = {method.name: {k: v for k, v in read_curves(run / "metrics.jsonl").items() if not k.endswith("lr")}}
    content = ReportContent(
        title="", learned="", curves=curves, health=[verdict(title, curve) for title, curve in curves.items() if curve],
        scores=scored["scores"], how_to_go_on=next_steps(run, bool(solids)),
    )  # fmt: skip
    facts = [(f"{len(test):,}", "pictures kept out"), (method.name, "method"), (f"{method.config.steps:,}", "steps of training")]
    report = SolidReport(
        f"What {method.name} makes of {scored['data']}", in_words(bool(solids)), solids, content,
        list(method.show(images).items()), facts, scored["notes"],
    )  # fmt: skip
    return write_solid_report(run, report)


def in_words(solid: bool) -> str:
    """One paragraph for people who know nothing of the method."""
    made = "from where each object is seen" + ", and its solid shape with its colours" * solid
    return f"The machine looked at single pictures of objects of one kind, without any label. It learned to tell {made}."


def next_steps(run: Path, solid: bool) -> list[NextStep]:
    """Commands that continue from here."""
    made = NextStep(f"selftaught reconstruct {run} PICTURES --out shapes", "textured GLB files, turntables, and a page that turns them")
    scored = NextStep(f"selftaught evaluate {run} DATA", "score it on other pictures; this page is written anew")
    return [made, scored] if solid else [scored]


def found_solid(key: str, picture: Tensor, shape: Shapes) -> FoundSolid:
    """Pictures of one object, `shape` being a batch of one and `picture` (3, S, S) in [0, 1] what it was found in."""
    focal = 1 / (shape.fov_rad / 2).tan()
    topology, camera = Topology(shape.faces, shape.points.shape[1]), Camera(shape.rotation, shape.position, focal)
    light = Light(torch.tensor([[0.2, 0.4, 1.0]]), torch.tensor([0.4]), torch.tensor([0.55]))
    grey = torch.full_like(shape.texture, 0.85)
    seen = render(
        shape.points, topology, camera, PX, texture=grey, uv=shape.uv, light=light, background=torch.ones(1), normals=True
    )  # fmt: skip
    assert seen.normals is not None
    there = seen.mask[0] > 0.5
    parts = [
        ("input", drawn(picture)), ("reconstruction", drawn(shape.image[0])), ("surface", drawn(seen.image[0])),
        ("depth", drawn(nearness(seen.depth[0]).expand(3, -1, -1))),
        ("normals", drawn(torch.where(there, (seen.normals[0] + 1) / 2, 1.0))), ("texture", drawn(shape.texture[0])),
    ]  # fmt: skip
    if shape.background is not None:
        parts.append(("background", drawn(shape.background[0])))
    degrees = OPEN_DEG if is_open(shape.points[0], shape.faces) else CLOSED_DEG
    views = turned(shape, torch.tensor([math.radians(a) for a in degrees]), PX)
    return FoundSolid(key, parts, [(f"{a:+d} degrees" if a else "the front", view) for a, view in zip(degrees, views, strict=True)])


def nearness(depth: Tensor) -> Tensor:
    """Depth (S, S), 0 where nothing is, in [0, 1]: the nearest is white, the farthest dark grey, nothing black."""
    there = depth > 0
    if not there.any():
        return torch.zeros_like(depth)
    near, far = depth[there].min(), depth[there].max()
    return torch.where(there, 0.2 + 0.8 * (far - depth) / (far - near).clamp_min(1e-9), torch.zeros_like(depth))


def drawn(picture: Tensor) -> Picture:
    """(3, H, W) in [0, 1] to (H, W, 3) uint8."""
    found: Picture = (picture.detach().float().permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return found
