"""How the field scores its data sets: every convention by name, with the published codes' choices as presets.

The same masks give very different numbers under other conventions (max F of the two masks in tests/measure/test_field_protocol.py
is 0.42 in one code and 0.62 in another), so each is a field of `Protocol`, and all are printed with the scores. What the
presets say was read in the released code of each method; where a code says nothing the default of the class stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from selftaught.core.errors import ConfigError, suggest
from selftaught.measure.box_rules import FoundBoxes
from selftaught.measure.boxes import average_precision, box_iou
from selftaught.measure.masks import accuracy, f_curves, iou, max_of_mean, mean_of_max
from selftaught.measure.saliency import e_measure, mae, s_measure, sod_f_measure, weighted_f
from selftaught.measure.score import Score, score_of

SALIENCY = ("mae", "s_measure", "e_measure", "weighted_f")


@dataclass(frozen=True)
class Protocol:
    """Every convention of a score on the field's data sets."""

    shown: Literal["as_is", "nearest", "pad_zero", "pad_reflect"] = "as_is"
    """The picture that the method is given: as it is, resized (Lanczos) to the nearest multiple of `multiple_px`, or padded on the right
    and below to one (zeros, or mirrored; the answer is cut back)."""
    short_px: int = 0
    """Shorter side that the picture is resized to first, the aspect kept; 0 leaves its size."""
    multiple_px: int = 1
    """Sides become multiples of this."""
    eight_bit: bool = False
    """Round the answer to 8 bits, as a PNG holds it, before it is resized to the truth."""
    threshold: float = 0.5
    """A pixel is foreground when the answer is strictly above."""
    truth_cut: Literal["half", "nonzero", "above_128"] = "half"
    """Grey values of the true mask that are object: above 127.5, all but 0, or above 128."""
    empty_iou: Literal["one", "zero", "left_out"] = "one"
    """IoU of a picture without object in which none was found."""
    max_f: Literal["mean_then_max", "per_image", "per_image_b09"] = "mean_then_max"
    """F averaged over pictures before the best threshold is taken, or the best of each picture averaged; b09 squares beta^2 = 0.3 again."""
    levels: Literal[255, 256] = 255
    """Thresholds k / levels of that F."""
    stretch: bool = False
    """Stretch each answer to [0, 1] before that F, and count values at the threshold, as pysodmetrics does (256 levels)."""
    box_rule: Literal["largest", "refinement", "all"] = "largest"
    """The box of a mask, see measure/box_rules.py; of several the one with the highest score counts."""
    box_iou: float = 0.5
    """A box is right from this IoU with any true box on."""
    at_box_iou: Literal["right", "wrong"] = "right"
    """Whether a box with exactly that IoU is right (released codes) or wrong ("greater than" of the talk's slides)."""
    iou_eps: float = 0.0
    """Added to the union of two boxes; 1e-7 in LOST's evaluator, which makes an IoU of exactly 0.5 wrong."""
    voc_start: Literal["minus_one", "as_written"] = "minus_one"
    """VOC counts from 1 with ends included: take 1 from xmin and ymin, or take the numbers as they are written."""
    hard: Literal["kept", "left_out"] = "kept"
    """VOC objects that are difficult or truncated, and pictures with no others: all are truth, or none (`no_hard`)."""
    coco_rounded: bool = True
    """COCO corners are rounded to whole pixels."""
    crowds: Literal["left_out", "kept"] = "left_out"
    """COCO boxes of crowds."""

    def __post_init__(self) -> None:
        if self.short_px < 0 or self.multiple_px < 1 or not 0 <= self.threshold < 1 or not 0 < self.box_iou <= 1:
            raise ValueError("short_px must be at least 0, multiple_px at least 1, threshold in [0, 1), box_iou in (0, 1]")
        if self.levels not in (255, 256) or self.iou_eps < 0:
            raise ValueError("levels must be 255 or 256, iou_eps at least 0")

    def lines(self, kind: str) -> list[str]:
        """"name = value" of each convention that a set of masks or boxes depends on."""
        return [f"{f.name} = {getattr(self, f.name)}" for f in fields(self) if f.name not in _UNUSED[kind]]


_MASKS_ONLY = ("truth_cut", "empty_iou", "max_f", "levels", "stretch")
_BOXES_ONLY = ("box_rule", "box_iou", "at_box_iou", "iou_eps", "voc_start", "hard", "coco_rounded", "crowds")
_UNUSED = {"masks": _BOXES_ONLY, "boxes": _MASKS_ONLY}

#: name -> kind of truth -> protocol
PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "move": {
        "masks": Protocol("pad_reflect", 448, 8, eight_bit=True, truth_cut="half", empty_iou="zero", levels=256),
        "boxes": Protocol("pad_reflect", 448, 8, eight_bit=True),
    },
    "box-refinement": {"boxes": Protocol(box_rule="refinement")},
    "tokencut": {
        "masks": Protocol("nearest", multiple_px=16, truth_cut="nonzero", empty_iou="left_out"),
        "boxes": Protocol("pad_zero", multiple_px=16, iou_eps=1e-7),
    },
    "lost": {"boxes": Protocol("pad_zero", multiple_px=16, iou_eps=1e-7)},
    "selfmask": {
        "masks": Protocol("pad_zero", multiple_px=8, truth_cut="nonzero", empty_iou="zero", max_f="per_image_b09"),
    },
    "pysodmetrics": {"masks": Protocol(truth_cut="above_128", stretch=True)},
    "talk": {
        "masks": Protocol("pad_reflect", 448, 8, eight_bit=True, truth_cut="half", empty_iou="zero", levels=256),
        "boxes": Protocol("pad_reflect", 448, 8, eight_bit=True, at_box_iou="wrong"),
    },
}
STANDARD = "move"


def protocol_of(name: str, kind: str) -> Protocol:
    """A preset for a kind of truth; raises ConfigError when there is none."""
    if name not in PROTOCOLS:
        raise ConfigError(f"There is no protocol '{name}'.{suggest(name, PROTOCOLS)}", expected=", ".join(PROTOCOLS))
    if kind not in PROTOCOLS[name]:
        fits = ", ".join(n for n, kinds in PROTOCOLS.items() if kind in kinds)
        raise ConfigError(f"The protocol '{name}' is not for data sets with {kind}.", expected=fits)
    return PROTOCOLS[name][kind]


def shown_picture(image: np.ndarray, protocol: Protocol) -> tuple[np.ndarray, tuple[int, int]]:
    """The uint8 (h, w, 3) picture that a method is given, and the (height, width) of it that is not padding."""
    p = protocol
    height, width = image.shape[:2]
    if p.short_px:
        scale = p.short_px / min(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        image = _resized(image, height, width, Image.Resampling.BICUBIC)
    if p.shown == "as_is" or p.multiple_px == 1:
        return image, (height, width)
    step = p.multiple_px
    if p.shown == "nearest":
        height, width = (max(step, round(side / step) * step) for side in (height, width))
        return _resized(image, height, width, Image.Resampling.LANCZOS), (height, width)
    below, right = -height % step, -width % step
    if p.shown == "pad_zero":
        return np.pad(image, ((0, below), (0, right), (0, 0))), (height, width)
    # Mirroring needs as many pixels as are added; a picture of less repeats its rim.
    mode: Any = "reflect" if below < height and right < width else "edge"
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode=mode), (height, width)


def _resized(image: np.ndarray, height: int, width: int, how: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), how))


def fitted_mask(soft: np.ndarray, inside: tuple[int, int], size: tuple[int, int], protocol: Protocol) -> np.ndarray:
    """An answer (h, w) float in [0, 1] without its padding, resized bilinearly to the (H, W) of the truth; float32."""
    soft = np.clip(np.asarray(soft, dtype=np.float32)[: inside[0], : inside[1]], 0, 1)
    if protocol.eight_bit:
        grey = _resized((soft * 255).round().astype(np.uint8), *size, Image.Resampling.BILINEAR)
        return grey.astype(np.float32) / 255
    return np.clip(_resized(soft, *size, Image.Resampling.BILINEAR), 0, 1)


def fitted_boxes(found: FoundBoxes, inside: tuple[int, int], size: tuple[int, int]) -> FoundBoxes:
    """Boxes of a shown picture without its padding, in pixels of the picture as it was, clipped to it."""
    height, width = inside
    clipped = np.clip(found.boxes, 0, [width, height, width, height])
    scale = np.array([size[1] / width, size[0] / height] * 2)
    return FoundBoxes(clipped * scale, found.scores)


def foreground(grey: np.ndarray, protocol: Protocol) -> np.ndarray:
    """(H, W) bool: which grey values (0..255) of a true mask are object."""
    least = {"half": 128, "nonzero": 1, "above_128": 129}[protocol.truth_cut]
    return np.asarray(grey) >= least


def true_boxes(written: Sequence[Any], name: str, protocol: Protocol) -> np.ndarray:
    """(M, 4) (x0, y0, x1, y1) with exclusive ends of what `data.field_sets.WrittenBox` holds of one picture."""
    p = protocol
    boxes = []
    for one in written:
        a, b, c, d = one.numbers
        if (one.hard and p.hard == "left_out") or (one.crowd and p.crowds == "left_out"):
            continue
        if name == "coco20k":
            corners = [a, b, a + c, b + d]
            boxes.append([float(round(x)) for x in corners] if p.coco_rounded else corners)
        else:
            boxes.append([a - 1, b - 1, c, d] if p.voc_start == "minus_one" else [a, b, c, d])
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def is_right(box: np.ndarray | None, truths: np.ndarray, protocol: Protocol) -> float:
    """1 when a box is right by the convention, 0 when it is not or there is none, NaN when there is no true box."""
    p = protocol
    if len(truths) == 0:
        return float("nan")
    if box is None:
        return 0.0
    overlap = box_iou(box, truths)[0]
    if p.iou_eps:
        areas = np.prod(truths[:, 2:] - truths[:, :2], axis=1) + np.prod(box[2:] - box[:2])
        both = overlap * areas / (1 + overlap)  # from IoU = both / (areas - both)
        overlap = both / (areas - both + p.iou_eps)
    best = float(overlap.max())
    return float(best >= p.box_iou if p.at_box_iou == "right" else best > p.box_iou)


class MaskRow(NamedTuple):
    """What is kept of one picture: its scores and its curve of F; the masks are let go."""

    iou: float
    accuracy: float
    curve: np.ndarray
    saliency: tuple[float, ...]


def _saliency_of(row: MaskRow, i: int) -> float:
    return row.saliency[i]


@dataclass
class MaskTally:
    """Scores of a set of masks, picture by picture, so that no set has to fit into memory."""

    protocol: Protocol
    rows: list[MaskRow] = field(default_factory=list)

    def add(self, soft: np.ndarray, grey: np.ndarray) -> None:
        """One answer (H, W) in [0, 1] at the size of its true mask, grey values 0..255."""
        p, truth = self.protocol, foreground(grey, self.protocol)
        pair = ([soft], [truth])
        value = float(iou(*pair, threshold=p.threshold)[0])
        if not truth.any() and not (soft > p.threshold).any():
            value = {"one": 1.0, "zero": 0.0, "left_out": float("nan")}[p.empty_iou]
        beta2 = 0.09 if p.max_f == "per_image_b09" else 0.3
        curve = sod_f_measure(*pair, beta2=beta2)[1][0] if p.stretch else f_curves(*pair, beta2, p.levels)[0]
        extra = tuple(float(measure(*pair)[0]) for measure in (mae, s_measure, e_measure, weighted_f))
        self.rows.append(MaskRow(value, float(accuracy(*pair, threshold=p.threshold)[0]), curve, extra))

    def scores(self, baselines: dict[str, MaskTally] | None = None) -> dict[str, Score]:
        """Means over pictures; a set without pictures has none."""
        others = baselines or {}
        if not self.rows:
            return {}
        statistic = max_of_mean if self.protocol.max_f == "mean_then_max" else mean_of_max

        def score(read: Callable[[MaskRow], Any], unit: str, **more: Any) -> Score:
            beside = {name: np.array([read(row) for row in tally.rows]) for name, tally in others.items()}
            return score_of([read(row) for row in self.rows], unit=unit, baselines=beside, **more)

        found = {
            "accuracy": score(lambda row: row.accuracy, "share of pixels"),
            "iou": score(lambda row: row.iou, "IoU"),
            "max_f": score(lambda row: row.curve, "F", statistic=statistic, note=f"convention {self.protocol.max_f}"),
        }
        for i, name in enumerate(SALIENCY):
            better: Any = "lower" if name == "mae" else "higher"
            found[name] = score(partial(_saliency_of, i=i), "pysodmetrics", better=better)
        return found


@dataclass
class BoxTally:
    """CorLoc and class-agnostic AP of a set of boxes."""

    protocol: Protocol
    found: list[FoundBoxes] = field(default_factory=list)
    truths: list[np.ndarray] = field(default_factory=list)

    def add(self, found: FoundBoxes, truths: np.ndarray) -> None:
        """Boxes of one picture, and its (M, 4) true boxes."""
        self.found.append(found)
        self.truths.append(truths)

    def located(self) -> np.ndarray:
        """(N,) 1 where the box with the highest score is right, NaN where there is no true box."""
        return np.array([is_right(one.best, truth, self.protocol) for one, truth in zip(self.found, self.truths, strict=True)])

    def precision(self) -> dict[str, float]:
        """AP, AP50, AP75 and AR of all boxes, as the COCO code computes them."""
        return average_precision([one.boxes for one in self.found], [one.scores for one in self.found], self.truths)

    def scores(self, baselines: dict[str, BoxTally] | None = None) -> dict[str, Score]:
        """CorLoc with its interval, AP without; a set without true boxes has none."""
        others = baselines or {}
        located = self.located()
        if not np.isfinite(located).any():
            return {}
        beside = {name: tally.located() for name, tally in others.items()}
        found = {"corloc": score_of(located, unit="share of pictures", baselines=beside)}
        own, theirs = self.precision(), {name: tally.precision() for name, tally in others.items()}
        for name, key in (("ap50", "AP50"), ("ap", "AP"), ("ar100", "AR")):
            found[name] = Score(
                own[key], len(self.found), (own[key], own[key]), "higher", key, {n: x[key] for n, x in theirs.items()},
                "class-agnostic; no interval",
            )  # fmt: skip
        return found


