"""LOST: grow an object from the patch that resembles the fewest others.

Simeoni, Puy, Vo, Roburin, Gidaris, Bursuc, Perez, Marlet, Ponce, "Localizing Objects with Self-Supervised Transformers
and no Labels" (BMVC 2021). With A = F F^T of the raw features, the degree of a patch is how many others it has a
positive product with; the seed is the patch of lowest degree; of the k patches of lowest degree those with a positive
product with the seed help it; the object is where the sum of their rows of A is positive, the connected piece with the
seed.

What differs: as the published code (and not the equations, which make A binary) the rows are summed as they are. Ties
of degree go to the first patch in reading order; the published code leaves them to the sort. The premise is that
features of background patches are positively correlated: it holds for DINO keys, and fails for many others.

Cost: the signs of one N x N product of the features, which are never all in memory at once, and no eigenvectors; some
hundredths of a second per picture of 60 x 60 patches on one core. Signs are those of float64 (`nets/positive_products.py`).
Where numba is installed and the processor multiplies bf16 in tiles, compiled loops do the rest of the work: the same masks,
several times as fast. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.method import TrainConfig
from selftaught.nets import compiled
from selftaught.nets.components import component_of_seed
from selftaught.nets.positive_products import (
    counts_compiled,
    positive_counts,
    positive_products,
    tiles_bf16,
    tolerance,
    unit_halves,
)
from selftaught.segmentation.cut import TAME, CutConfig, CutMethod, key_rows

_COMPILED_PRODUCTS = 2**19
"""Products of a batch from which on compiled loops are used: for fewer, loading them would take longer than they save."""


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
    found = _compiled(keys, k)
    if found is not None:
        return found
    rows, unit, length = key_rows(keys)
    parts = [_grow(*picture, k) for picture in zip(rows, unit, length[..., 0], strict=True)]
    inside, total, degree, seed = (torch.stack(part) for part in zip(*parts, strict=True))
    grid = (len(keys), *keys.shape[-2:])
    masks = component_of_seed(inside.view(grid), seed)
    return LostResult(masks, total.view(grid), degree.view(grid), seed)


def _grow(rows: Tensor, unit: Tensor, length: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One picture: where the sum of the helpers' rows of A is positive, this sum, the degrees (all (N,)), the seed.

    The helpers' rows of A add up to one product: F times the sum of their rows of F.
    """
    degree = positive_counts(rows, unit)
    lowest = degree.argsort(stable=True)[:k]
    picked = unit[lowest]
    helps = positive_products(rows[lowest], rows[lowest[0]].double(), picked @ picked[0], picked.new_ones(()))
    helps[0] = True
    helpers = lowest[helps]
    # One factor per picture changes no sign; it keeps products and their sums inside float32.
    most = torch.stack(rows.aminmax()).abs().amax()
    size = length / most
    together = (rows[helpers] / most).double().sum(0)
    share = unit @ together.float()
    inside = positive_products(rows, together, share, size[helpers].sum())
    # Rounding may take the sum at the seed, whose terms are all positive, nowhere but to zero.
    inside[lowest[0]] = True
    return inside, share * size, degree, lowest[0]


def _compiled(keys: Tensor, k: int) -> LostResult | None:
    """`lost_masks` by compiled loops; None where it has to be done without, and where the features are to be refused."""
    if keys.device.type != "cpu" or keys.dim() != 4 or not keys.is_floating_point() or 0 in keys.shape:
        return None
    batch, _, height, width = keys.shape
    n = height * width
    if batch * n * n < _COMPILED_PRODUCTS or not (tiles_bf16() and compiled.is_there()):
        return None
    from selftaught.nets import sign_loops

    masks, maps = torch.zeros(batch, height, width, dtype=torch.bool), torch.empty(batch, height, width)
    degree, seed = torch.empty(batch, n, dtype=torch.int64), torch.empty(batch, dtype=torch.int64)
    tol = tolerance(keys.shape[1], bf16=False)
    for b, picture in enumerate(keys.detach()):
        made = unit_halves(picture.flatten(1).float())
        if not ((made.length > TAME[0]) & (made.length < TAME[1])).all():
            return None
        counts = counts_compiled(made)
        if counts is None:
            rows = torch.from_numpy(made.rows)
            counts = positive_counts(rows, torch.nn.functional.normalize(rows, dim=1)).int().numpy()
        picked = sign_loops.lowest(counts, k)
        sign_loops.grow(made.rows, made.length, tol, picked, made.most, maps[b].numpy(), masks[b].numpy())
        degree[b], seed[b] = torch.from_numpy(counts), int(picked[0])
    return LostResult(masks, maps, degree.view(batch, height, width), seed)


class Lost(CutMethod):
    """Grows an object from the patch that resembles the fewest others."""

    name: ClassVar[str] = "lost"
    Config: ClassVar[type[TrainConfig]] = LostConfig
    sizes: ClassVar[Mapping[str, TrainConfig]] = {
        "tiny": LostConfig(image_px=32, k=8),
        "small": LostConfig(k=15, centre=True),  # about the same share of the 144 patches as 100 of a full-size picture's
        "paper": LostConfig(image_px=480, batch_size=4),
    }
    config: LostConfig

    def cut(self, keys: Tensor, images: Tensor) -> Tensor:
        """(B, D, h, w) patch features to (B, h, w) boolean masks."""
        return lost_masks(keys, self.config.k).masks
