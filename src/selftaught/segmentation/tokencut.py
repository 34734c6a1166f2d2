"""TokenCut: the object is one side of the normalised cut of the graph of patches.

Wang, Shen, Hu, Yuan, Crowley, Vaufreydaz, "Self-Supervised Transformers for Unsupervised Object Discovery using
Normalized Cut" (CVPR 2022). Patches with cos(f_i, f_j) > tau are joined with weight 1, all others with eps; the second
generalised eigenvector x of (D - A) x = lambda D x is split at its mean; the patch with the largest |x| is the seed
(|x| is larger on the side with the smaller volume), its side is the object, and of that side the piece with the seed.

What differs: the eigenvector comes from Lanczos in float32 with checked residual and gap (`nets/normalized_cut.py`)
instead of a dense solve in float64; the eigenvalue and whether it is repeated are returned, since the published method
names an object even where there is none: lambda2 near 1 says so. A patch exactly at the mean is background.

Cost: one N x N float32 matrix; about 0.1 s per picture of 60 x 60 patches on 2 cores, 0.5 ms for 12 x 12 in a batch.
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
from selftaught.nets.normalized_cut import second_eigenvector
from selftaught.segmentation.cut import CutConfig, CutMethod, graph_slices, unit_rows

_TIE = 1e-6


def check_graph(tau: float, eps: float, binary: bool = True) -> None:
    """Refuse a tau or eps for which the graph of patches is not defined, with a ConfigError."""
    if not -1.0 <= tau <= 0.99:
        raise ConfigError(f"tau is {tau}.", expected="-1 <= tau <= 0.99", why="a patch must stay joined with itself")
    if not 0.0 < eps < 1.0:
        raise ConfigError(f"eps is {eps}.", expected="0 < eps < 1", why="eps keeps the graph connected")
    if not binary and tau < 0.0:
        raise ConfigError(f"tau is {tau} and the weights are cosines.", expected="tau >= 0: weights are not negative")


@dataclass(frozen=True)
class TokenCutConfig(CutConfig):
    """Settings of TokenCut; the defaults are the paper's."""

    tau: float = 0.2
    """Patches are joined when the cosine of their features is above this, in [-1, 0.99]."""
    eps: float = 1e-5
    """Weight of the edge between two patches that are not joined, in (0, 1)."""
    binary: bool = True
    """Joined patches weigh 1; otherwise their cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_graph(self.tau, self.eps, self.binary)


class TokenCutResult(NamedTuple):
    """What TokenCut found in B pictures of h x w patches."""

    masks: Tensor
    """(B, h, w) bool, the object: the seed's connected piece of its side of the cut."""
    eigenvectors: Tensor
    """(B, h, w) float32 second eigenvectors, x^T D x = 1, positive on the object's side of their mean."""
    lambda2: Tensor
    """(B,) float64 eigenvalue: near 0 for a clear cut, near 1 for none."""
    seed: Tensor
    """(B,) int64 patch with the largest |x|, counted row by row."""
    repeated: Tensor
    """(B,) bool, True where the eigenvalue is repeated and the mask therefore arbitrary."""


def tokencut_masks(keys: Tensor, tau: float = 0.2, eps: float = 1e-5, *, binary: bool = True) -> TokenCutResult:
    """Find one object per picture from patch features (B, D, h, w).

    Raises ConfigError for a wrong shape, fewer than two patches, or tau and eps out of range; NumericError for features
    that are NaN, infinite, or all zero at a patch.
    """
    check_graph(tau, eps, binary)
    rows = unit_rows(keys)
    batch, n, _ = rows.shape
    vectors, lambda2, repeated = [], [], []
    for part in graph_slices(batch, n):
        cosine = torch.bmm(rows[part], rows[part].mT)
        if binary:
            found = second_eigenvector(cosine.gt_(tau), eps)  # in place: 0 or 1, still float32
        else:
            found = second_eigenvector(torch.where(cosine > tau, cosine, eps))
        vectors.append(found.x)
        lambda2.append(found.lambda2)
        repeated.append(found.repeated)
    x, side, seed = orient(torch.cat(vectors))
    grid = (batch, *keys.shape[-2:])
    masks = component_of_seed(side.view(grid), seed)
    return TokenCutResult(masks, x.view(grid), torch.cat(lambda2), seed, torch.cat(repeated))


def orient(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give eigenvectors (B, N) their sign: return x positive at the seed's side, that side (B, N) bool, the seeds (B,).

    The same for x and -x. Seed: the first patch whose |x| is the largest, to a relative 1e-6.
    """
    size = x.abs()
    seed = (size >= (1.0 - _TIE) * size.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
    centred = x - x.mean(1, keepdim=True)
    sign = torch.where(centred.gather(1, seed[:, None]) < 0, -1.0, 1.0)
    return x * sign, centred * sign > 0, seed


class TokenCut(CutMethod):
    """Normalised cut of the patch graph into object and background."""

    name: ClassVar[str] = "tokencut"
    Config: ClassVar[type[TrainConfig]] = TokenCutConfig
    sizes: ClassVar[Mapping[str, TrainConfig]] = {
        "tiny": TokenCutConfig(image_px=32),
        "small": TokenCutConfig(centre=True),
        "paper": TokenCutConfig(image_px=480, batch_size=4),
    }
    config: TokenCutConfig

    def cut(self, keys: Tensor, images: Tensor) -> Tensor:
        """(B, D, h, w) patch features to (B, h, w) boolean masks."""
        c = self.config
        return tokencut_masks(keys, c.tau, c.eps, binary=c.binary).masks
