"""What other frames of a clip say of a frame: its ground behind the object, and where it shows something that is not ground."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.nets.registration import Motion, compose, identity, inverse, register, warped


class Others(NamedTuple):
    """K other frames brought onto each of N frames of a clip; P = N K pairs, those of a frame one behind the other."""

    pictures: Tensor
    """(N, K, 3, S, S) in [0, 1]."""
    seen: Tensor
    """(N, K, 1, S, S) of 0 and 1: where the other frame shows this place."""
    motions: Tensor
    """(P, 2, 3) from the frame to the other, as in `nets.registration`."""
    rows: Tensor
    """(N, K) which frames they are."""

    def brought(self, maps: Tensor) -> Tensor:
        """Maps (N, C, S, S) of all frames to (N, K, C, S, S), those of the others brought onto each frame."""
        moved = warped(maps[self.rows.flatten()], self.motions)[0]
        return moved.unflatten(0, (len(self.rows), -1))


def neighbours(T: int, gap: int, count: int) -> Tensor:
    """For each of T frames the `count` closest ones at multiples of `gap`, or as many as there are: (T, K) int64, later ones first.

    A clip of fewer frames than gap + 1 has others all the same as long as it has two: its gap becomes smaller.
    """
    gap = max(1, min(gap, T - 1))
    steps = [s for n in range(1, T // gap + 1) for s in (n * gap, -n * gap)]
    near = [[t + s for s in steps if 0 <= t + s < T] for t in range(T)]
    K = min(count, *(len(row) for row in near)) if T > 1 else 0
    return torch.tensor([row[:K] for row in near], dtype=torch.int64).view(T, K)


def paths(frames: Tensor, model: Motion) -> Tensor:
    """Motion (..., T, 2, 3) from the first frame to each, of clips (..., T, 3, S, S) in [0, 1]: that of neighbours, one after the other."""
    clips = frames.flatten(0, -5) if frames.dim() > 4 else frames[None]
    B, T = clips.shape[:2]
    found = [identity(B, clips)]
    if T > 1:
        steps = register(clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1), model).view(B, T - 1, 2, 3)
        for t in range(T - 1):
            found.append(compose(found[-1], steps[:, t]))
    return torch.stack(found, 1).view(*frames.shape[:-3], 2, 3)


@torch.no_grad()
def others_of(clips: Tensor, gap: int, count: int, model: Motion) -> Others:
    """The others of all frames of B clips (B, T, 3, S, S) in [0, 1]; frame t of clip b is number b T + t."""
    B, T = clips.shape[:2]
    near = neighbours(T, gap, count).to(clips.device)
    way = paths(clips, model)
    motions = compose(inverse(way)[:, :, None], way[:, near]).flatten(0, 2)
    rows = (torch.arange(B, device=clips.device)[:, None, None] * T + near).flatten(0, 1)
    pictures, seen = warped(clips.flatten(0, 1)[rows.flatten()], motions)
    N, K = rows.shape
    return Others(pictures.view(N, K, *clips.shape[2:]), seen.view(N, K, 1, *clips.shape[3:]), motions, rows)


def unlike(frames: Tensor, others: Tensor, noise: float) -> Tensor:
    """How much each pixel differs from other frames: (N, 3, S, S) and (N, K, 3, S, S) to (N, K, 1, S, S) in [0, 1].

    Largest difference of a channel in units of 2 `noise`: 0.5 is the noise itself, 1 twice that and above.
    """
    return ((others - frames[:, None]).abs().amax(2, keepdim=True) / (2 * noise)).clamp(max=1)


def cues_of(differences: Tensor, seen: Tensor) -> Tensor:
    """Least and mean difference to the others that show a place, (N, K, 1, S, S) twice to (N, 2, S, S); 0 where none does.

    The least is high where the object is in this frame alone; the mean also where it is in another one.
    """
    if differences.shape[1] == 0:
        return differences.new_zeros(len(differences), 2, *differences.shape[3:])
    count = seen.sum(1)
    least = torch.where(seen > 0, differences, 1.0).amin(1) * (count > 0)
    return torch.cat([least, (differences * seen).sum(1) / count.clamp(min=1)], 1)


def difference_masks(cues: Tensor) -> Tensor:
    """No learning: (N, 2, S, S) cues to (N, S, S) of 0 and 1, what no other frame shows; closed by 5x5, opened by 3x3."""
    m = (cues[:, :1] > 0.5).float()
    m = -F.max_pool2d(-F.max_pool2d(m, 5, 1, 2), 5, 1, 2)
    return F.max_pool2d(-F.max_pool2d(-m, 3, 1, 1), 3, 1, 1)[:, 0]


def shows_ground(seen: Tensor, masks: Tensor) -> Tensor:
    """How far the others show ground at a place: 1 where their masks are 0.5 or less, 0 where they are 1 or nothing is seen."""
    return seen * (2 * (1 - masks)).clamp(max=1)


def unexplained(differences: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """What the ground of other frames does not explain, and whether there is any to compare with: each (N, 1, S, S) in [0, 1].

    e = min_k max(d_k, 1 - g_k) and c = max_k g_k, for differences d and `shows_ground` g, both (N, K, 1, S, S), K of at least 1.
    """
    return torch.maximum(differences, 1 - ground).amin(1), ground.amax(1)


def prediction_loss(mask: Tensor, error: Tensor, known: Tensor, area_price: float) -> Tensor:
    """mean c e (1 - m) + price (1 - c e) m: what the ground does not explain is object, and what it does explain need not be."""
    there = known * error
    return (there * (1 - mask) + area_price * (1 - there) * mask).mean()


def ground_behind(pictures: Tensor, mask: Tensor, others: Tensor, ground: Tensor) -> Tensor:
    """The ground (N, 3, S, S) of frames (N, 3, S, S): from the others where one shows it, else from the pixels around the object.

    b = sum_k g_k x_k / sum_k g_k where max_k g_k is 1, faded into `fill_around` of what is known where it is less.
    """
    total, sure = ground.sum(1), ground.amax(1)
    mean = (ground * others).sum(1) / total.clamp(min=1e-3)
    shown = (1 - sure) * (1 - mask)
    known = sure + shown
    around = fill_around((sure * mean + shown * pictures) / known.clamp(min=1e-3), known)
    return sure * mean + (1 - sure) * around


def fill_around(pictures: Tensor, known: Tensor) -> Tensor:
    """Pictures (N, C, S, S) with what is not known (N, 1, S, S) filled in by means of ever larger squares around it.

    f = k x + (1 - k) up(f of the half size), where the half size has the mean of x weighted by k, and k = min(1, 4 mean k).
    """
    H, W = pictures.shape[-2:]
    if min(H, W) < 2:
        total = known.sum((2, 3), keepdim=True)
        mean = (pictures * known).sum((2, 3), keepdim=True) / total.clamp(min=1e-6)
        return torch.where(total > 1e-6, mean, pictures.mean((2, 3), keepdim=True)).expand_as(pictures)
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    half = F.avg_pool2d(pictures * known, 2, ceil_mode=True) / share.clamp(min=1e-6)
    far = fill_around(half, (4 * share).clamp(max=1))
    far = F.interpolate(far, (H, W), mode="bilinear", align_corners=False)
    return known * pictures + (1 - known) * far
