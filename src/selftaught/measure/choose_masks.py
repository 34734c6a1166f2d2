"""Which of two ways to find objects is kept when nobody knows the truth: three measures of masks, and the rule that decides.

Nothing here reads truth, and the rule stood before any run was judged by it:

1. Who finds an object in fewer than half of the pictures is out.
2. The masks that are more *stable* win: those of a picture and of its mirrored and cropped copy should be the same (the check that
   consistency training rests on, e.g. Laine, Aila, "Temporal Ensembling", ICLR 2017), more than masks of two different pictures are.
3. Where the paired 95 % interval of that difference holds 0, those whose moved objects look more *real* win: a classifier two-sample
   test (Lopez-Paz, Oquab, ICLR 2017) between objects that were pasted where they were and objects that were moved, over the same
   filled background, so that what the inpainter leaves behind tells nothing.
4. Where that is undecided too, the first one is kept.

Stability comes first because the second measure can be won without an object: a piece of sky looks real wherever it is put.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from selftaught.measure.score import Score, difference_ci, score_of

Array = np.ndarray[Any, Any]
PICTURES = 256
"""Training pictures that are looked at, spread over all of them."""
CROP = 0.85
"""Side of the crop, as a share of the picture's."""
SHIFT = 0.125
"""How far objects are moved in both directions, as a share of the picture's side: MOVE's largest shift."""
SMALLEST, LARGEST = 0.02, 0.9
"""A mask that covers a smaller or a larger share of the picture is not of an object."""
LEAST_WITH_OBJECT = 0.5
"""Share of the pictures in which an object must be found."""
RIDGE = 1.0
"""Weight of the squared weights of the classifier, relative to the mean squared length of what it reads."""


class Pasted(Protocol):
    """What a scene holds, each (B, 3, S, S) in [0, 1]: the object pasted where it was, and moved, over the filled background."""

    unshifted: Tensor
    composite: Tensor


MakeScene = Callable[[Tensor, Tensor, Tensor], Pasted]
"""Pictures (B, 3, S, S) in [0, 1], masks (B, 1, S, S) of 0 and 1 and shifts (B, 2) in pixels to a scene."""


@dataclass(frozen=True)
class MaskCriteria:
    """What was measured of one way to find objects, per picture."""

    overlap: Array
    """(N, 2) IoU of the masks of a picture and of its crop, and IoU with the mask of another picture; 0 without an object."""
    told: Array
    """(N,) 1 where the classifier told the moved object from the one that was not moved (0.5 where nothing differs), or where there is no
    object."""
    found: Array
    """(N,) 1 where the mask is of the size of an object."""

    def scores(self) -> dict[str, Score]:
        """Name -> Score with its interval."""
        return {
            "stability": score_of(self.overlap, unit="IoU above chance", statistic=above_chance),
            "told_apart": score_of(self.told, better="lower", unit="share of pictures", note="0.5 is chance"),
            "with_object": score_of(self.found, unit="share of pictures"),
        }


def above_chance(overlap: Array) -> float:
    """(a - c) / (1 - c) of the means a and c of the columns of (N, 2): agreement above what unrelated masks have (as Cohen's kappa)."""
    same, other = overlap.mean(0)
    return float((same - other) / max(1 - other, 1e-9))


def mirrored_crop(images: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a corner of `CROP` of the side out of each of (N, C, S, S), a different one from picture to picture, mirrored and enlarged.

    Returns the views (N, C, S, S) and the (N, 2) rows and columns at which the crops begin.
    """
    N, _, S, _ = images.shape
    side = round(CROP * S)
    corner = torch.arange(N) % 4
    begin = torch.stack([corner // 2, corner % 2], 1) * (S - side)
    cut = torch.stack([x[:, r : r + side, c : c + side] for x, (r, c) in zip(images, begin.tolist(), strict=True)])
    views = torch.nn.functional.interpolate(cut.flip(3), (S, S), mode="bilinear", antialias=True)
    return views.clamp(0, 1), begin


def overlaps(masks: Tensor, seen: Tensor, begin: Tensor, found: Tensor) -> Array:
    """IoU (N, 2) inside of the crops: of masks (N, S, S) with those of the views (N, S, S), and of another picture's with the latter."""
    side = round(CROP * masks.shape[-1])
    back = torch.nn.functional.interpolate(seen[:, None], (side, side), mode="bilinear", antialias=True)[:, 0].flip(2) > 0.5
    rows = []
    others = masks.roll(max(len(masks) // 2, 1), 0)  # not the next picture, which may show the same thing
    for mask, other, view, (r, c) in zip(masks, others, back, begin.tolist(), strict=True):
        parts = [m[r : r + side, c : c + side] > 0.5 for m in (mask, other)]
        rows.append([float((m & view).sum()) / max(float((m | view).sum()), 1.0) for m in parts])
    return np.array(rows) * found.numpy()[:, None]


def described(features: Any, images: Tensor) -> Tensor:
    """Mean, deviation and largest value over the patches of the learned features: (B, 3, S, S) to (B, 3 D)."""
    places = features.features(images).flatten(2).float()
    return torch.cat([places.mean(2), places.std(2, correction=0), places.amax(2)], 1)


def told_apart(differences: Tensor) -> Array:
    """Whether a linear rule that was learned on one half of the pictures is right about those of the other: (N, E) to (N,) 0, 0.5 or 1.

    `differences` are features of a fake minus those of the real picture beside it; the rule w is right where w . d > 0. Ridge
    regression of d to 1, in closed form, columns scaled by their root mean square in the half that it learns from.
    """
    N = len(differences)
    halves, right = (torch.arange(0, N, 2), torch.arange(1, N, 2)), torch.zeros(N)
    for learn, ask in (halves, halves[::-1]):
        scale = differences[learn].square().mean(0).sqrt().clamp(min=1e-6)
        x = differences[learn] / scale / differences.shape[1] ** 0.5
        w = x.T @ torch.linalg.solve(x @ x.T + RIDGE * torch.eye(len(x)), torch.ones(len(x)))
        said = (differences[ask] / scale) @ w
        right[ask] = (said > 0).float() + 0.5 * (said == 0).float()
    return right.numpy()


@torch.no_grad()
def measure_masks(method: Any, features: Any, scene: MakeScene, images: Tensor, batch_size: int = 32) -> MaskCriteria:
    """Judge the masks of (N, 3, S, S) pictures in [0, 1] that a method with the capability `segment` gives, N at least 4.

    Args:
        method: what is judged.
        features: learned features, for the classifier that tells moved objects; with `features`.
        scene: moves objects over filled backgrounds; the same one for all that are compared.
    """
    S = images.shape[-1]
    views, begin = mirrored_crop(images)

    def segment(x: Tensor) -> Tensor:
        return torch.cat([method.segment(part).float() for part in x.split(batch_size)])

    masks = segment(images)
    area = (masks > 0.5).float().mean((1, 2))
    found = ((area >= SMALLEST) & (area <= LARGEST)).float()
    by = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])[torch.arange(len(images)) % 4] * round(SHIFT * S)
    rows = []
    for x, m, d in zip(images.split(batch_size), masks.split(batch_size), by.split(batch_size), strict=True):
        made = scene(x, (m > 0.5).float()[:, None], d)
        rows.append(described(features, made.composite.clamp(0, 1)) - described(features, made.unshifted.clamp(0, 1)))
    told = np.where(found.numpy() > 0, told_apart(torch.cat(rows)), 1.0)
    return MaskCriteria(overlaps(masks, segment(views), begin, found), told, found.numpy())


@dataclass(frozen=True)
class Choice:
    """Which of two was kept, and why."""

    name: str
    reason: str
    differences: Mapping[str, tuple[float, tuple[float, float]]]
    """Criterion -> the second one's minus the first one's, and the paired 95 % interval."""


def choose(measured: Mapping[str, MaskCriteria]) -> Choice:
    """Decide between two ways to find objects by the rule at the top of this file; of the same pictures, the first is the default."""
    (first, a), (second, b) = measured.items()
    differences = {
        "stability": difference_ci(b.overlap, a.overlap, statistic=above_chance),
        "told_apart": difference_ci(b.told, a.told),
    }
    enough = {name: float(m.found.mean()) >= LEAST_WITH_OBJECT for name, m in measured.items()}
    if not all(enough.values()):
        name = second if enough[second] else first
        reason = "the other finds no object in most pictures" if any(enough.values()) else "neither finds objects in most pictures"
        return Choice(name, reason, differences)
    for criterion, sign, word in (("stability", 1.0, "more stable"), ("told_apart", -1.0, "as stable, its moved objects look more real")):
        low, high = sorted(sign * x for x in differences[criterion][1])
        if low > 0 or high < 0:
            return Choice(second if low > 0 else first, word, differences)
    return Choice(first, "no difference, so the simpler one", differences)
