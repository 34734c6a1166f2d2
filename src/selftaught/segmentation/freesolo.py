"""The free masks of FreeSOLO: every patch asks which others resemble it, and the clearest answers are the objects.

Wang, Yu, De Mello, Kautz, Anandkumar, Shen, Alvarez, "FreeSOLO: Learning to Segment Objects without Annotations" (CVPR 2022),
section 3.1. Queries are the patch features at scales 1, 1/2 and 1/4; the cosine of a query with every patch, stretched to
[0, 1], is a soft mask, cut at 0.5; its score ("maskness") is its mean where it is above. Matrix NMS (Wang et al., "SOLOv2",
NeurIPS 2020) lowers the scores of masks that resemble better ones; the best 20 stay, without those whose centre lies in the
top fifth of the picture, which are as wide as the picture, or whose maskness is below 0.7.
The network that is trained on them (section 3.2), and its round of self-training on its own answers above 0.3, are `solo` with this run as
teacher, then with that `solo` as teacher; `cad` does the same with boxes alone.

What differs: any patch features instead of DenseCL's ResNet; at most `max_masks` masks, the clearest, enter the NMS, whose
cost is quadratic. The rules about the top and the width can be switched off:
they fit landscapes.

Cost: N queries times N patches, one product, and an NMS over `max_masks`. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.method import TrainConfig
from selftaught.segmentation.cut import CutConfig, unit_rows
from selftaught.segmentation.many import ManyCut, PatchObjects, best_first, pair_ious


@dataclass(frozen=True)
class FreeSoloConfig(CutConfig):
    """Settings of FreeSOLO's free masks; the defaults are those of the released code."""

    scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Scales of the map of features whose places are the queries."""
    cut_at: float = 0.5
    """A patch belongs to a mask when its stretched cosine is above."""
    min_score: float = 0.7
    """Masks with a lower maskness are left out."""
    sigma: float = 2.0
    """Matrix NMS lowers a score by exp(-sigma IoU^2)."""
    max_objects: int = 20
    """Most objects per picture."""
    max_masks: int = 500
    """Most masks that enter the NMS, those with the highest maskness."""
    top_frac: float = 0.2
    """Masks whose centre lies in this share of the picture at its top are left out; 0 leaves out none."""
    max_width: float = 0.95
    """Masks whose box is at least so wide, as a share of the picture, are left out; 2 leaves out none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > 1:
            raise ValueError("scales must be in (0, 1], at least one")
        if not (0 <= self.cut_at < 1 and 0 <= self.min_score <= 1 and 0 <= self.top_frac < 1 and self.max_width > 0):
            raise ValueError("cut_at and top_frac must be in [0, 1), min_score in [0, 1], max_width positive")
        if self.sigma < 0 or min(self.max_objects, self.max_masks) < 1:
            raise ValueError("sigma must be at least 0, max_objects and max_masks at least 1")


def query_maps(keys: Tensor, scales: tuple[float, ...] = (1.0, 0.5, 0.25)) -> Tensor:
    """Soft masks (B, Q, h, w) in [0, 1] of patch features (B, D, h, w): stretched cosines of each query with all patches.

    A query that resembles all patches alike gives a mask of zeros.
    """
    rows = unit_rows(keys)
    batch, _, width = rows.shape
    unit = rows.mT.reshape(batch, width, *keys.shape[-2:])
    queries = []
    for scale in scales:
        size = [max(1, round(side * scale)) for side in keys.shape[-2:]]
        small = unit if scale == 1 else F.interpolate(unit, size, mode="bilinear", align_corners=False)
        queries.append(F.normalize(small, dim=1).flatten(2).mT)
    cosine = torch.cat(queries, 1) @ rows.mT
    low, high = cosine.amin(2, keepdim=True), cosine.amax(2, keepdim=True)
    # Below this the differences are rounding, and stretching would make a mask of it.
    spread = high - low
    soft = torch.where(spread > 1e-5, (cosine - low) / spread.clamp(min=1e-5), torch.zeros_like(cosine))
    return soft.view(batch, -1, *keys.shape[-2:])


def maskness(soft: Tensor, cut_at: float = 0.5) -> tuple[Tensor, Tensor]:
    """Masks (B, Q, h, w) bool where soft ones are above `cut_at`, and their scores (B, Q): the mean of the soft mask inside.

    A mask of one patch or none has score 0.
    """
    masks = soft > cut_at
    area = masks.flatten(2).sum(2)
    score = (soft * masks).flatten(2).sum(2) / area.clamp(min=1)
    return masks, torch.where(area > 1, score, torch.zeros_like(score))


def matrix_nms(masks: Tensor, scores: Tensor, sigma: float = 2.0) -> Tensor:
    """Lower the falling scores (B, M) of masks (B, M, h, w) that resemble better ones (SOLOv2, section 3.3).

    s_j <- s_j min over i < j of exp(-sigma IoU_ij^2) / exp(-sigma max over k < i of IoU_ki^2).
    """
    iou = pair_ious(masks).triu(1)
    covered = iou.amax(1)
    factor = torch.exp(-sigma * (iou.square() - covered.square()[:, :, None]))
    later = torch.ones_like(iou[0], dtype=torch.bool).triu(1)
    return scores * torch.where(later, factor, torch.ones_like(factor)).amin(1).clamp(max=1.0)


def free_masks(keys: Tensor, config: FreeSoloConfig) -> PatchObjects:
    """Several objects per picture from patch features (B, D, h, w), by falling score after the NMS.

    Raises ConfigError for a wrong shape or fewer than two patches, NumericError for features that are NaN, infinite, or
    all zero at a patch.
    """
    c = config
    found = []
    for one in keys.split(1):  # queries times patches times features: one picture at a time fits into any memory
        masks, clear = maskness(query_maps(one, c.scales), c.cut_at)
        top = best_first(masks, clear, min(c.max_masks, clear.shape[1]))
        lowered = matrix_nms(top.masks, top.scores, c.sigma)
        # The released code takes the best 20 before it applies the rules, so that fewer may remain.
        rank = lowered.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        good = (rank < c.max_objects) & (top.scores >= c.min_score) & allowed(top.masks, c.top_frac, c.max_width)
        found.append(best_first(top.masks, lowered * good, c.max_objects))
    return PatchObjects(torch.cat([f.masks for f in found]), torch.cat([f.scores for f in found]))


def allowed(masks: Tensor, top_frac: float, max_width: float) -> Tensor:
    """(B, M) bool: whose mean row of (B, M, h, w) masks lies below the top share, and whose box is narrower than the limit."""
    height, width = masks.shape[-2:]
    area = masks.flatten(2).sum(2).clamp(min=1)
    rows = torch.arange(height, device=masks.device) + 0.5
    centre = (masks.sum(3) * rows).sum(2) / area / height
    line = masks.any(2)
    at = torch.arange(width, device=masks.device)
    last = torch.where(line, at, -1).amax(2)
    first = torch.where(line, at, width).amin(2)
    return (centre >= top_frac) & ((last - first + 1) < max_width * width)


class FreeSolo(ManyCut):
    """Free masks of FreeSOLO: patch features as queries, maskness, matrix NMS."""

    name: ClassVar[str] = "freesolo"
    Config: ClassVar[type[TrainConfig]] = FreeSoloConfig
    sizes: ClassVar[Mapping[str, TrainConfig]] = {
        "tiny": FreeSoloConfig(image_px=32),
        "small": FreeSoloConfig(),
        "paper": FreeSoloConfig(image_px=480, batch_size=4),
    }
    config: FreeSoloConfig

    def cut_many(self, keys: Tensor, images: Tensor) -> PatchObjects:
        """(B, D, h, w) patch features to objects."""
        return free_masks(keys, self.config)
