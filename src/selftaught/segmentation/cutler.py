"""MaskCut, the first half of CutLER: the normalised cut again and again, each time without what was found before.

Wang, Girdhar, Yu, Misra, "Cut and Learn for Unsupervised Object Detection and Instance Segmentation" (CVPR 2023). The graph is
TokenCut's with tau = 0.15; the object is the side of the largest |x|, turned round when it holds three or more of the picture's
four corners; of it the connected piece with the largest x. The features of what was found are set to zero, the graph is built
anew, three times. An object is dropped when it overlaps the one before by more than half or covers a hundredth or less; later
ones give way to earlier ones. The second half, the detector with DropLoss and its self-training, is `cad` with this run as teacher.

What differs: the eigenvector comes from Lanczos (`nets/normalized_cut.py`); masks are sharpened by the bilateral solver
(`refine=bilateral`) and not by a dense CRF; each object has a score, 1 - lambda2 of its cut, since the published masks have none.

Cost: `rounds` times that of TokenCut. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from selftaught.method import TrainConfig
from selftaught.nets.components import component_of_seed
from selftaught.nets.normalized_cut import second_eigenvector
from selftaught.segmentation.cut import CutConfig, graph_slices, unit_rows
from selftaught.segmentation.many import ManyCut, PatchObjects, best_first, pair_ious
from selftaught.segmentation.tokencut import check_graph

_TIE = 1e-6
LEAST_SCORE = 1e-3
"""Score of an object whose cut is no cut at all (lambda2 = 1): it was found, and 0 would say that it was not."""


@dataclass(frozen=True)
class CutlerConfig(CutConfig):
    """Settings of MaskCut; the defaults are the paper's."""

    tau: float = 0.15
    """Patches are joined when the cosine of their features is above this, in [0, 0.99]; below 0 what was found would be joined again."""
    eps: float = 1e-5
    """Weight of the edge between two patches that are not joined, in (0, 1)."""
    rounds: int = 3
    """Most objects per picture."""
    corners: int = 3
    """A side that holds so many of the four corners is the background; 5 never turns."""
    same_iou: float = 0.5
    """An object that overlaps the one before by more is the same again, and is dropped."""
    min_area: float = 0.01
    """An object of this share of the patches, or less, is dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_graph(self.tau, self.eps)
        if self.tau < 0 or self.rounds < 1 or self.corners < 1:
            raise ValueError("tau must be at least 0, rounds and corners at least 1")
        if not (0 <= self.same_iou <= 1 and 0 <= self.min_area < 1):
            raise ValueError("same_iou must be in [0, 1], min_area in [0, 1)")


def maskcut(keys: Tensor, config: CutlerConfig) -> PatchObjects:
    """Several objects per picture from patch features (B, D, h, w), in the order in which they were found.

    Raises ConfigError for a wrong shape or fewer than two patches, NumericError for features that are NaN, infinite, or
    all zero at a patch.
    """
    c = config
    rows = unit_rows(keys)
    batch, n, _ = rows.shape
    grid = (batch, *keys.shape[-2:])
    free = torch.ones(batch, n, dtype=torch.bool, device=rows.device)
    before = torch.zeros(grid, dtype=torch.bool, device=rows.device)
    masks, scores = [], []
    for _ in range(c.rounds):
        left = free.any(1)
        x, lambda2 = _cut_of(rows * free[:, :, None], c)
        mask = object_side(x.view(grid), c.corners)
        share = mask.flatten(1).float().mean(1)
        same = pair_ious(torch.stack([before, mask], 1))[:, 0, 1] > c.same_iou
        good = left & ~same & (share > c.min_area)
        # What an earlier object holds stays with it; what is dropped is still taken out of the graph, as published.
        own = mask & free.view(grid) & good[:, None, None]
        masks.append(own)
        scores.append((1 - lambda2.float()).clamp(LEAST_SCORE, 1.0) * (good & own.flatten(1).any(1)))
        free = free & ~mask.flatten(1)
        before = mask
    return best_first(torch.stack(masks, 1), torch.stack(scores, 1), c.rounds)


def _cut_of(rows: Tensor, config: CutlerConfig) -> tuple[Tensor, Tensor]:
    """Second eigenvectors (B, N) and eigenvalues (B,) of TokenCut's graph of rows (B, N, D), of length 1 or 0."""
    vectors, lambda2 = [], []
    for part in graph_slices(*rows.shape[:2]):
        found = second_eigenvector(torch.bmm(rows[part], rows[part].mT).gt_(config.tau), config.eps)
        vectors.append(found.x)
        lambda2.append(found.lambda2)
    return torch.cat(vectors), torch.cat(lambda2)


def object_side(x: Tensor, corners: int = 3) -> Tensor:
    """Which patches of eigenvectors (B, h, w) are the object: (B, h, w) bool, the same for x and -x.

    The side above or below the mean that holds the first patch whose |x| is the largest (to a relative 1e-6); the other one when that
    holds `corners` or more of the picture's corners; of it the connected piece around its most extreme patch.
    """
    flat = x.flatten(1)
    size = flat.abs()
    peak = (size >= (1.0 - _TIE) * size.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
    centred = flat - flat.mean(1, keepdim=True)
    sign = torch.where(centred.gather(1, peak[:, None]) < 0, -1.0, 1.0)
    side = (centred * sign > 0).view_as(x)
    held = side[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(1)
    sign = torch.where((held >= corners)[:, None], -sign, sign)
    turned = centred * sign
    side = (turned > 0).view_as(x)
    top = turned.amax(1, keepdim=True)
    seed = (turned >= top - _TIE * top.abs()).to(torch.uint8).argmax(1)
    # An eigenvector of one value has no side at all; then its first patch is one, and too small to be kept.
    side = side | torch.zeros_like(side).flatten(1).scatter(1, seed[:, None], True).view_as(side)
    return component_of_seed(side, seed)


class Cutler(ManyCut):
    """MaskCut: several objects per picture by repeated normalised cuts."""

    name: ClassVar[str] = "cutler"
    Config: ClassVar[type[TrainConfig]] = CutlerConfig
    sizes: ClassVar[Mapping[str, TrainConfig]] = {
        "tiny": CutlerConfig(image_px=32),
        "small": CutlerConfig(centre=True),
        "paper": CutlerConfig(image_px=480, batch_size=4),
    }
    config: CutlerConfig

    def cut_many(self, keys: Tensor, images: Tensor) -> PatchObjects:
        """(B, D, h, w) patch features to objects."""
        return maskcut(keys, self.config)
