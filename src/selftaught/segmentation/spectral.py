"""Deep Spectral Methods, single object: the sign of the second eigenvector of a soft patch graph.

Melas-Kyriazi, Rupprecht, Laina, Vedaldi, "Deep Spectral Methods: A Surprisingly Strong Baseline for Unsupervised
Semantic Segmentation and Localization" (CVPR 2022). W = max(F F^T, 0) / max of L2-normalised features, plus optionally
`color` times the graph of nearest neighbours in colour and position; (D - W) x = lambda D x; the object is x > 0,
turned round when that covers more than half of the picture.

What differs: the eigenvector comes from Lanczos on the normalised affinity (`nets/normalized_cut.py`); the published
code factorises a singular dense matrix, which is slower than a dense solve. The published masks are sharpened by a
dense CRF, here by the bilateral solver (`refine=bilateral`). Neighbours in colour are found on the grid of patches.

Cost: one N x N float32 matrix and 10 to 40 products with it; about 0.2 s per picture of 60 x 60 patches on 2 cores.
Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.method import TrainConfig
from selftaught.nets.components import largest_component
from selftaught.nets.normalized_cut import second_eigenvector
from selftaught.segmentation.cut import CutConfig, CutMethod, graph_slices, unit_rows

_NEIGHBOURS = ((20, 2.0), (10, 0.1))
"""Colour graph: so many nearest neighbours in (r, g, b, w x, w y), all in [0, 1], for each weight w of the position."""


@dataclass(frozen=True)
class SpectralConfig(CutConfig):
    """Settings of Deep Spectral Methods; the defaults are those of the authors' instructions."""

    color: float = 0.0
    """Weight of the colour graph beside the features; 0 leaves it out, the paper's other value is 10."""
    keep: Literal["all", "largest"] = "all"
    """The whole object side of the cut, or its largest connected piece."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.color < 0:
            raise ValueError("color must not be negative")


class SpectralResult(NamedTuple):
    """What the cut found in B pictures of h x w patches."""

    masks: Tensor
    """(B, h, w) bool, the object."""
    eigenvectors: Tensor
    """(B, h, w) float32 second eigenvectors, x^T D x = 1, positive on the object."""
    lambda2: Tensor
    """(B,) float64 eigenvalue: near 0 for a clear cut, near 1 for none."""
    repeated: Tensor
    """(B,) bool, True where the eigenvalue is repeated and the mask therefore arbitrary."""


def spectral_masks(
    keys: Tensor, images: Tensor | None = None, *, color: float = 0.0, keep: str = "all"
) -> SpectralResult:
    """Find one object per picture from patch features (B, D, h, w); `images` (B, 3, S, S) in [0, 1] if color > 0.

    Raises ConfigError for a wrong shape or setting, fewer than two patches or missing pictures; NumericError for
    features that are NaN, infinite, or all zero at a patch.
    """
    if color < 0 or keep not in ("all", "largest"):
        raise ConfigError(f"color is {color}, keep is {keep!r}.", expected="color >= 0, keep 'all' or 'largest'")
    if color > 0 and (images is None or images.dim() != 4 or images.shape[:2] != (keys.shape[0], 3)):
        raise ConfigError("The colour graph needs the pictures.", expected="images (B, 3, S, S), one per feature map")
    rows = unit_rows(keys)
    batch, n, _ = rows.shape
    vectors, lambda2, repeated = [], [], []
    for part in graph_slices(batch, n):
        w = torch.bmm(rows[part], rows[part].mT).clamp_min_(0.0)
        w /= w.amax((1, 2), keepdim=True)
        if color > 0 and images is not None:
            small = F.interpolate(images[part].float(), keys.shape[-2:], mode="bilinear", antialias=True)
            for graph, picture in zip(w, small, strict=True):
                graph += color * color_affinity(picture).to(graph)
        found = second_eigenvector(w)
        vectors.append(found.x)
        lambda2.append(found.lambda2)
        repeated.append(found.repeated)
    x, side = smaller_side(torch.cat(vectors))
    grid = (batch, *keys.shape[-2:])
    masks = side.view(grid)
    masks = largest_component(masks) if keep == "largest" else masks
    return SpectralResult(masks, x.view(grid), torch.cat(lambda2), torch.cat(repeated))


def smaller_side(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give eigenvectors (B, N) their sign: return x and the object x > 0 (B, N), at most half of the patches.

    Where exactly half are positive the sign is arbitrary in the published rule; here the side of the largest |x| wins,
    so that x and -x give the same.
    """
    positive = (x > 0).float().mean(1)
    negative = (x < 0).float().mean(1)
    peak = x.gather(1, x.abs().argmax(1, keepdim=True))[:, 0]
    turn = (positive > 0.5) | ((negative <= 0.5) & (peak < 0))
    x = torch.where(turn[:, None], -x, x)
    return x, x > 0


def color_affinity(picture: Tensor) -> Tensor:
    """(N, N) float32 symmetric graph of the patches of a (3, h, w) picture in [0, 1] near in colour and position.

    Each patch gives weight 1 to the edges with its 20 and its 10 nearest neighbours (itself among them), for the two
    weights of the position; edges found from both ends or by both rules add up.
    """
    _, height, width = picture.shape
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    rgb = picture.detach().cpu().double().flatten(1).T.numpy()
    n = height * width
    graph = np.zeros((n, n), np.float32)
    for count, weight in _NEIGHBOURS:
        points = np.column_stack([rgb, weight * x.ravel(), weight * y.ravel()])
        _, near = cKDTree(points).query(points, k=np.arange(1, min(count, n) + 1))
        here = np.repeat(np.arange(n), near.shape[1])
        np.add.at(graph, (here, near.ravel()), 1.0)
        np.add.at(graph, (near.ravel(), here), 1.0)
    return torch.from_numpy(graph)


class Spectral(CutMethod):
    """Sign of the second eigenvector of the soft patch graph."""

    name: ClassVar[str] = "spectral"
    Config: ClassVar[type[TrainConfig]] = SpectralConfig
    sizes: ClassVar[Mapping[str, TrainConfig]] = {
        "tiny": SpectralConfig(image_px=32),
        "small": SpectralConfig(),
        "paper": SpectralConfig(image_px=480, batch_size=4),
    }
    config: SpectralConfig

    def cut(self, keys: Tensor, images: Tensor) -> Tensor:
        """(B, D, h, w) patch features and (B, 3, S, S) pictures to (B, h, w) boolean masks."""
        return spectral_masks(keys, images, color=self.config.color, keep=self.config.keep).masks
