"""Two ways to objects inside of the main job, and which of them is kept.

    RUN/masks/         the cut's: SelfMask learns from what stands out from the rim (size small) or from a vote (paper)
    RUN/inpainter/     MAE, with the settings that filling holes asks for
    RUN/move/          MOVE, started from the cut
    RUN/masks_move/    SelfMask learns from MOVE's masks
    RUN/objects.json   what was measured of both without any truth, and which one is kept

The rule, and where it comes from, is in `measure/choose_masks.py`. `loading.objects_part` reads the choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught.core.config import read_json, write_json
from selftaught.core.errors import ConfigError, suggest
from selftaught.core.rows import evenly
from selftaught.data.cache import ImageSet
from selftaught.loading import OBJECT_PARTS, load_method, to_square
from selftaught.measure.choose_masks import PICTURES, choose, measure_masks
from selftaught.measure.mask_scores import segment_all
from selftaught.measure.masks import iou
from selftaught.report.content import Comparison, FoundObject, SideBySide
from selftaught.report.pictures import resize_mask
from selftaught.settings import base_config

SCHEMA = 1
RULES = ("auto", "cut", "move")
MOVE_MINUTES = 30.0
"""From so many minutes on `auto` tries MOVE as well: below, what its inpainter takes is missed more by the features."""
SHARES = {
    "cut": {"features": 0.48, "masks": 0.30},
    "move": {"features": 0.28, "masks": 0.10, "inpainter": 0.20, "move": 0.14, "masks_move": 0.06},
}
"""How `minutes` is divided, in the order of the trainings; the rest is for reading, voting, comparing, scoring and the report."""
STAGE_METHODS = {"masks": "selfmask", "inpainter": "mae", "move": "move", "masks_move": "selfmask"}
NEEDS: dict[str, tuple[str, ...]] = {
    "features": (), "masks": ("features",), "inpainter": (), "move": ("features", "inpainter"), "masks_move": ("features", "masks"),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "masks": {},
    "inpainter": {"mask_frac": 0.5, "norm_pixels": False, "block_prob": 1.0, "seen_weight": 0.3},
    "move": {"init": "cut"},
    "masks_move": {"teacher": "run"},
}
"""What differs from the settings of the size; those of the inpainter are the ones on MOVE's page."""
HELD: dict[str, Any] = {
    "anchor_weight": 1.0, "adversarial_weight": 0.2, "least_weight": 100.0, "binary_weight": 1.0, "paste": "own",
    "discriminator": "features", "disc_width": 32, "jitter": 0.1, "share_from": 0.0, "share_to": 0.0, "rim_frac": 0.0, "wait_frac": 0.0,
    "lr": 1e-3, "head_stride": 2, "head_shallow": 8, "refine": "none",
}
"""What else differs for MOVE where its size pastes objects onto other pictures: masks are held to the cut that they start from. On
photographs whose grounds are alike, such as sky, masks left the objects otherwise."""
CRITERIA = (
    ("stability", "Stability", "How alike the masks of a picture and of its mirrored and cropped copy are, above what masks of two "
     "different pictures have in common: 1 is the same, 0 is chance."),
    ("told_apart", "Moved objects that were recognised", "In how many pictures a small classifier tells the object that was moved from "
     "the one that was put back where it was. A half is chance, and means that moved objects look real. Lower is better."),
    ("with_object", "Pictures with an object", "Where the mask covers between 2 and 90 % of the picture."),
)  # fmt: skip


def objects_of(objects: str, minutes: float | None, size: str, out: Path) -> str:
    """cut or move: what was asked for; for auto what the folder holds already, or what the time allows for."""
    if objects not in RULES:
        raise ConfigError(f"There is no rule {objects!r} for objects.{suggest(objects, RULES)}", expected=", ".join(RULES))
    if objects != "auto":
        return objects
    if os.path.exists(out / "learn.json"):
        before = read_json(out / "learn.json").get("asked")
        found = before.get("objects", "cut") if isinstance(before, dict) else "cut"
        return "move" if found == "move" else "cut"
    return "move" if (size == "paper" if minutes is None else minutes >= MOVE_MINUTES) else "cut"


def first_config(name: str, image_px: int, size: str, data: Any) -> Any:
    """The config of a training after the features, before `minutes` is fitted: at the size of the features."""
    base = base_config(STAGE_METHODS[name], size, data)
    held = HELD if getattr(base, "paste", "own") == "others" else {}
    return replace(base, image_px=image_px, **SETTINGS[name], **held)


def keep_better(out: Path, images: ImageSet, quiet: bool) -> None:
    """Measure both ways on training pictures, decide, write objects.json and say so; what was decided stays decided."""
    if not (out / "objects.json").exists():
        move = load_method(out / "move")
        indices = evenly(len(images), PICTURES)
        pictures = images.batch(indices).float() / 255
        measured = {
            name: measure_masks(load_method(out / part), move.given["features"], scene_of(move), pictures)
            for name, part in OBJECT_PARTS.items()
        }
        choice = choose(measured)
        write_json(out / "objects.json", {
            "schema": SCHEMA, "chosen": choice.name, "part": OBJECT_PARTS[choice.name], "reason": choice.reason,
            "pictures": len(pictures), "data": "training pictures, no truth",
            "criteria": {name: {k: s.to_json() for k, s in m.scores().items()} for name, m in measured.items()},
            "move_minus_cut": {k: {"value": d, "ci95": list(ci)} for k, (d, ci) in choice.differences.items()},
        })  # fmt: skip
    if not quiet:
        print(in_one_line(read_json(out / "objects.json")))


def scene_of(move: Any) -> Callable[..., Any]:
    """MOVE's way to move an object over a filled background, without gradients."""

    @torch.no_grad()
    def scene(pictures: torch.Tensor, masks: torch.Tensor, by: torch.Tensor) -> Any:
        return move.scene(pictures, masks, by)

    return scene


def in_one_line(found: dict[str, Any]) -> str:
    """What was kept, the figures of that against those of the other, and why."""
    kept = found["chosen"]
    mine, other = (found["criteria"][name] for name in (kept, "move" if kept == "cut" else "cut"))
    figures = ", ".join(
        f"{text} {mine[key]['value']:{form}} against {other[key]['value']:{form}}"
        for key, text, form in (
            ("stability", "stability", ".3f"), ("told_apart", "moved objects told apart", ".0%"), ("with_object", "with an object", ".0%"),
        )
    )  # fmt: skip
    return f"objects: {kept} ({figures}): {found['reason']}"


def side_by_side(out: Path) -> SideBySide:
    """What the report asks for: given what was found in held-out pictures, the same by all ways, and objects that were moved."""
    found = read_json(out / "objects.json")

    @torch.no_grad()
    def compare(shown: Sequence[FoundObject], everything: Sequence[FoundObject]) -> Comparison:
        move: Any = load_method(out / "move")
        nets: dict[str, Any] = {name: load_method(out / part) for name, part in OBJECT_PARTS.items()}
        squares = torch.stack([to_square(torch.from_numpy(f.picture).permute(2, 0, 1).float() / 255, move.config.image_px) for f in shown])
        pictures = [f.picture for f in shown]
        by_net = {name: segment_all(net, pictures) for name, net in nets.items()}
        columns = {
            "the cut": list(nets["cut"].pseudo_masks(squares).numpy()), "MOVE": segment_all(move, pictures),
            "learned from the cut": by_net["cut"], "learned from MOVE": by_net["move"],
        }  # fmt: skip
        return Comparison(
            columns, composites(move, squares, by_net[found["chosen"]]), found["chosen"], found["reason"], found["pictures"],
            [(title, meaning, *(found["criteria"][name][key] for name in OBJECT_PARTS)) for key, title, meaning in CRITERIA],
            truth_of(nets, everything),
        )  # fmt: skip

    return compare


def composites(move: Any, squares: torch.Tensor, masks: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Objects of (N, 3, S, S) pictures moved by MOVE's largest shift over the filled background: N (S, S, 3) uint8.

    `masks` may have any size; each is cut at 0.5.
    """
    px = squares.shape[-1]
    cut = torch.stack([torch.from_numpy(resize_mask(m, (px, px)) > 0.5) for m in masks]).float()[:, None]
    by = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])[torch.arange(len(squares)) % 4] * round(move.config.shift_frac * px)
    made = scene_of(move)(squares, cut, by).composite
    return list((made.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def truth_of(nets: dict[str, Any], everything: Sequence[FoundObject]) -> dict[str, float]:
    """Mean overlap with the truth of both networks, on held-out pictures that have one; for the reader, after the choice."""
    known = [f for f in everything if f.truth is not None]
    if not known:
        return {}
    truths = [np.asarray(f.truth) for f in known]
    return {name: float(np.nanmean(iou(segment_all(net, [f.picture for f in known]), truths))) for name, net in nets.items()}
