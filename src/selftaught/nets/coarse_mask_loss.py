"""Losses with which sharp masks are learned from coarse ones: FreeSOLO's (Wang et al., CVPR 2022, section 3.2) out of BoxInst's.

A coarse mask says roughly where an object is and how large, and its rim is wrong. So not the masks are compared but what remains of
them on each axis (their largest values and their means), and where the rim runs is left to the colours: neighbouring
pixels of nearly one colour belong to one side (Tian, Shen, Wang, Chen, "BoxInst", CVPR 2021). Beside them: the focal
loss of the objectness (Lin et al., ICCV 2017), and which place of a grid learns which mask (SOLO: Wang et al., ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.measure.baselines import rgb_to_lab

DILATION = 2
"""Steps of the mask's grid between two pixels that are compared."""
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""(down, right) in units of `DILATION`: half of the eight neighbours, so that every pair comes once."""
SAME_COLOUR = 0.3
"""Pairs count when exp(-0.5 |difference in L*a*b*|) is at least this: a difference of at most 2.4."""


def axis_dice(p: Tensor, t: Tensor) -> Tensor:
    """1 - 2 sum pt / (sum p^2 + sum t^2) over the last axis (SOLO's Dice): (..., n) to (...); 0 for two empty ones."""
    return 1 - (2 * (p * t).sum(-1) + 1e-3) / (p.square().sum(-1) + t.square().sum(-1) + 1e-3)


def projection_losses(soft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Dice of the largest values, and of the means, along both axes: (..., h, w) in [0, 1] each to (...) and (...)."""
    largest = axis_dice(soft.amax(-1), target.amax(-1)) + axis_dice(soft.amax(-2), target.amax(-2))
    means = axis_dice(soft.mean(-1), target.mean(-1)) + axis_dice(soft.mean(-2), target.mean(-2))
    return largest, means


def pair_of(x: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """The pixels of (..., h, w) that have a neighbour so many steps down and to the right (left, below 0), and these neighbours."""
    height, width = x.shape[-2:]
    down, right = down * DILATION, right * DILATION
    left, end = max(-right, 0), max(right, 0)
    upper = x[..., : max(height - down, 0), left : max(width - end, 0)]
    lower = x[..., down:, end : width - left if left else None]
    return upper, lower[..., : upper.shape[-1]]


def same_colours(images: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """For each of `NEIGHBOURS`, (B, 1, h', w') bool: pairs of one colour in (B, 3, H, W) pictures in [0, 1], averaged to `size`."""
    small = nn.functional.interpolate(images, size, mode="area").clamp(0, 1)
    rows = small.permute(0, 2, 3, 1).flatten(0, 1)
    lab = torch.from_numpy(np.ascontiguousarray(rgb_to_lab(rows.cpu().numpy()))).to(images.device)
    lab = lab.view(len(images), *size, 3).permute(0, 3, 1, 2)
    found = []
    for down, right in NEIGHBOURS:
        a, b = pair_of(lab, down, right)
        found.append(torch.exp(-0.5 * torch.linalg.vector_norm(a - b, dim=1, keepdim=True)) >= SAME_COLOUR)
    return found


def pair_loss(logits: Tensor, same: Sequence[Tensor], inside: Tensor) -> Tensor:
    """Mean of -log P(both on one side) over the pairs of one colour of which a pixel at least is inside: (B, P, h, w) to (B, P).

    P = m_a m_b + (1 - m_a)(1 - m_b) with m = sigmoid(logits); `inside` (B, P, h, w) bool is the box of the coarse mask.
    """
    yes, no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    total, count = logits.new_zeros(logits.shape[:2]), logits.new_zeros(logits.shape[:2])
    for (down, right), one in zip(NEIGHBOURS, same, strict=True):
        (a, b), (c, d), (e, f) = (pair_of(x, down, right) for x in (yes, no, inside))
        counted = (one & (e | f)).to(logits.dtype)
        total = total - (torch.logaddexp(a + b, c + d) * counted).sum((-2, -1))
        count = count + counted.sum((-2, -1))
    return total / count.clamp(min=1)


def focal_loss(logits: Tensor, truth: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """-a (1 - p)^gamma log p where `truth` is 1 and -(1 - a) p^gamma log(1 - p) where it is 0, element by element."""
    cross = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    p = logits.sigmoid()
    wrong = p + truth - 2 * p * truth
    return (alpha * truth + (1 - alpha) * (1 - truth)) * wrong.pow(gamma) * cross


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Boxes (..., 4) float (x0, y0, x1, y1), exclusive ends, around masks (..., h, w) bool; zeros for an empty one."""

    def span(line: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(line.shape[-1], device=line.device)
        first, last = torch.where(line, at, line.shape[-1]).amin(-1), torch.where(line, at, -1).amax(-1)
        return first * (last >= 0), last + 1

    (x0, x1), (y0, y1) = span(masks.any(-2)), span(masks.any(-1))
    return torch.stack([x0, y0, x1, y1], -1).float()


def inside_boxes(boxes: Tensor, size: Any) -> Tensor:
    """(..., h, w) bool: the pixels of boxes (..., 4)."""
    rows = torch.arange(size[0], device=boxes.device)[:, None]
    columns = torch.arange(size[1], device=boxes.device)
    x0, y0, x1, y1 = (v[..., None, None] for v in boxes.unbind(-1))
    return (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)


def places_of(
    masks: Tensor, grids: Sequence[int], smallest: Sequence[float], largest: Sequence[float], sigma: float
) -> Tensor:
    """Which place learns which mask: (B, K, h, w) bool to (B, G) int64, the mask's number, -1 for none.

    A mask is learned by the cells around its centre of mass, `sigma` of its box's sides wide and at most three by three, of the grids in
    whose range the root of its box's area lies (shares of the picture's side, both ends included). Of several masks at one
    place the first is learned: pseudo-masks come the best first, and a doubtful one must not replace a clear one.
    """
    height, width = masks.shape[-2:]
    boxes = boxes_of_masks(masks)
    size = (boxes[..., 2:] - boxes[..., :2]) / boxes.new_tensor([width, height])
    area = masks.flatten(2).sum(2).clamp(min=1)
    rows, columns = (torch.arange(n, device=masks.device) + 0.5 for n in (height, width))
    centre = torch.stack([(masks.sum(2) * columns).sum(2) / width, (masks.sum(3) * rows).sum(2) / height], -1) / area[..., None]
    extent = size.prod(-1).sqrt()
    numbers = torch.arange(masks.shape[1], device=masks.device)[None, None]
    chosen = []
    for grid, low, high in zip(grids, smallest, largest, strict=True):
        cell = (centre * grid).floor().clamp(0, grid - 1)
        start = torch.maximum(((centre - sigma / 2 * size) * grid).floor(), cell - 1).clamp(min=0)
        end = torch.minimum(((centre + sigma / 2 * size) * grid).floor(), cell + 1).clamp(max=grid - 1)
        at = torch.arange(grid, device=masks.device)[None, :, None]
        x, y = ((at >= start[:, None, :, i]) & (at <= end[:, None, :, i]) for i in (0, 1))
        takes = (extent > 0) & (extent >= low) & (extent <= high)
        held = (y[:, :, None] & x[:, None] & takes[:, None, None]).flatten(1, 2)
        chosen.append(torch.where(held, numbers, masks.shape[1]).amin(-1))
    found = torch.cat(chosen, 1)
    return torch.where(found < masks.shape[1], found, -1)
