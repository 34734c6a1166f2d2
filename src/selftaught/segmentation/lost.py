"""LOST: grow an object from the patch that resembles the fewest others.

Simeoni, Puy, Vo, Roburin, Gidaris, Bursuc, Perez, Marlet, Ponce, "Localizing Objects with Self-Supervised Transformers
and no Labels" (BMVC 2021). With A = F F^T of the raw features, the degree of a patch is how many others it has a
positive product with; the seed is the patch of lowest degree; of the k patches of lowest degree those with a positive
product with the seed help it; the object is where the sum of their rows of A is positive, the connected piece with the
seed.

What differs: as the published code (and not the equations, which make A binary) the rows are summed as they are. Ties
of degree go to the first patch in reading order; the published code leaves them to the sort. The premise is that
features of background patches are positively correlated: it holds for DINO keys, and fails for many others.

Cost: one N x N product of the features and no eigenvectors; about 0.1 s per picture of 60 x 60 patches on 2 cores.
Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.method import TrainConfig
from selftaught.nets.components import component_of_seed
from selftaught.segmentation.cut import CutConfig, CutMethod, graph_slices, key_rows


@dataclass(frozen=True)
class LostConfig(CutConfig):
    """Settings of LOST; the default k is the paper's."""

    k: int = 100
    """Patches of lowest degree that may help the seed; more than there are patches means all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError("k must be at least 1")


class LostResult(NamedTuple):
    """What LOST found in B pictures of h x w patches."""

    masks: Tensor
    """(B, h, w) bool, the object: the seed's connected piece of where `maps` is positive."""
    maps: Tensor
    """(B, h, w) float32, the sum of the helpers' rows of A, in units of the picture's largest feature squared."""
    degree: Tensor
    """(B, h, w) int64, with how many other patches each one has a positive product."""
    seed: Tensor
    """(B,) int64 patch of lowest degree, counted row by row."""


def lost_masks(keys: Tensor, k: int = 100) -> LostResult:
    """Find one object per picture from patch features (B, D, h, w), not normalised.

    Raises ConfigError for a wrong shape, fewer than two patches or k < 1; NumericError for features that are NaN,
    infinite, or all zero at a patch.
    """
    if k < 1:
        raise ConfigError(f"k is {k}.", expected="k >= 1")
    rows = key_rows(keys)
    batch, n, _ = rows.shape
    # One factor per picture changes no sign and no mask; it keeps products and their sums inside float32.
    rows = rows / rows.abs().amax((1, 2), keepdim=True)
    maps, degrees, seeds = [], [], []
    for part in graph_slices(batch, n):
        a = torch.bmm(rows[part], rows[part].mT)
        positive = a.clone().gt_(0)  # 0 and 1 in float32: summed exactly, and several times faster than booleans
        degree = (positive.sum(-1) - positive.diagonal(dim1=1, dim2=2)).long()
        lowest = degree.argsort(dim=1, stable=True)[:, :k]
        seed = lowest[:, 0]
        likes_seed = a.gather(1, seed[:, None, None].expand(-1, 1, n))[:, 0].gather(1, lowest) > 0
        helpers = torch.zeros_like(a[:, 0]).scatter_(1, lowest, likes_seed.float())
        helpers.scatter_(1, seed[:, None], 1.0)
        maps.append(torch.bmm(helpers[:, None], a)[:, 0])
        degrees.append(degree)
        seeds.append(seed)
    grid = (batch, *keys.shape[-2:])
    total, seed = torch.cat(maps), torch.cat(seeds)
    # Rounding may take the sum at the seed, whose terms are all positive, nowhere but to zero.
    inside = (total > 0).scatter(1, seed[:, None], True)
    masks = component_of_seed(inside.view(grid), seed)
    return LostResult(masks, total.view(grid), torch.cat(degrees).view(grid), seed)


class Lost(CutMethod):
    """Grows an object from the patch that resembles the fewest others."""

    name: ClassVar[str] = "lost"
    Config: ClassVar[type[TrainConfig]] = LostConfig
    sizes: ClassVar[Mapping[str, TrainConfig]] = {
        "tiny": LostConfig(image_px=32, k=8),
        "small": LostConfig(k=15),  # about the same share of the 144 patches as 100 of a full-size picture's
        "paper": LostConfig(image_px=480, batch_size=4),
    }
    config: LostConfig

    def cut(self, keys: Tensor, images: Tensor) -> Tensor:
        """(B, D, h, w) patch features to (B, h, w) boolean masks."""
        return lost_masks(keys, self.config.k).masks
