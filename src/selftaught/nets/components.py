"""Connected components of patch masks, for whole batches, and the boxes around them in pixels.

Patches touch by edges (4 neighbours), as in the published LOST and TokenCut; pieces of different pictures never join.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from selftaught.core.errors import ConfigError

_CROSS = np.zeros((3, 3, 3), dtype=bool)
_CROSS[1] = ndimage.generate_binary_structure(2, 1)


def connected_components(masks: Tensor) -> Tensor:
    """Number the pieces of boolean masks (B, h, w): (B, h, w) int64, 0 outside, 1, 2, ... over the whole batch."""
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ConfigError(f"The masks are {masks.dtype} of shape {tuple(masks.shape)}.", expected="bool (B, h, w)")
    labels, _ = ndimage.label(masks.cpu().numpy(), structure=_CROSS)
    return torch.from_numpy(labels.astype(np.int64)).to(masks.device)


def component_of_seed(masks: Tensor, seeds: Tensor) -> Tensor:
    """Keep in each mask (B, h, w) the piece that holds the patch number seeds (B,), counted row by row.

    Raises ConfigError when a seed lies outside of its mask.
    """
    labels = connected_components(masks)
    wanted = labels.flatten(1).gather(1, seeds[:, None])
    if bool((wanted == 0).any()):
        first = int((wanted[:, 0] == 0).nonzero()[0])
        raise ConfigError(f"The seed of picture {first} lies outside of its mask.", expected="a patch of the mask")
    return labels == wanted[:, :, None]


def largest_component(masks: Tensor) -> Tensor:
    """Keep the largest piece of each mask (B, h, w), the first of equal ones; an empty mask stays empty."""
    labels = connected_components(masks)
    sizes = torch.bincount(labels.flatten())
    sizes[0] = 0
    size_here = sizes[labels]
    most = size_here.flatten(1).amax(1)[:, None, None]
    hit = masks & (size_here == most)
    first = torch.where(hit, labels, len(sizes)).flatten(1).amin(1)
    return labels == torch.where(first < len(sizes), first, -1)[:, None, None]


def patch_boxes_px(masks: Tensor, patch_px: int, width_px: int, height_px: int) -> Tensor:
    """Boxes (B, 4) int64 (x0, y0, x1, y1), exclusive ends, around patch masks (B, h, w); four zeros for an empty mask.

    The first patch starts at pixel 0. `width_px` and `height_px` are the picture's size before padding to a multiple of
    the patch; no box reaches beyond.
    """
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ConfigError(f"The masks are {masks.dtype} of shape {tuple(masks.shape)}.", expected="bool (B, h, w)")
    if min(patch_px, width_px, height_px) < 1:
        raise ConfigError("Patch and picture need a positive size.", expected="patch_px, width_px, height_px >= 1")
    x0, x1 = _extent(masks.any(1))
    y0, y1 = _extent(masks.any(2))
    ends = torch.tensor([width_px, height_px, width_px, height_px], device=masks.device)
    return torch.minimum(torch.stack([x0, y0, x1, y1], 1) * patch_px, ends)


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """First and one-past-last true place of each row of (B, n); 0 and 0 when there is none."""
    n = line.shape[1]
    flags = line.to(torch.int64)
    some = line.any(1)
    return flags.argmax(1), torch.where(some, n - flags.flip(1).argmax(1), 0)
