"""A one-stage detector of one class on frozen patch features: a head, its targets, its loss, and its answers.

Every place of a fine grid says how far the four sides of its box are and how well that box will fit (FCOS: Tian et al., ICCV
2019; the score learns the IoU: Li et al., "Generalized Focal Loss", NeurIPS 2020; centre regions: Kong et al., "FoveaBox",
TIP 2020; boxes learn by GIoU: Rezatofighi et al., CVPR 2019). Boxes are (x0, y0, x1, y1) in pixels, exclusive ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CENTRE_FRAC = 0.5
"""Places in the middle half of a box (of both its sides) learn it; places in the rest of it learn nothing about their score."""
MAX_LOG = 6.0
"""Largest logarithm of a side's distance in strides: e^6 is 403 cells."""
PRIOR = 0.05
"""Score of every place before training, so that the many empty places do not drown the others at first."""


class Targets(NamedTuple):
    """What B pictures with N places learn."""

    positive: Tensor
    """(B, N) bool: the place lies in the middle of a box."""
    ignored: Tensor
    """(B, N) bool: in a box, but not in its middle."""
    boxes: Tensor
    """(B, N, 4) the box of each positive place: the smallest of those whose middle it lies in."""


class DenseHead(nn.Module):
    """(B, D, h, w) features and (B, 3, S, S) pictures to scores (B, N) and boxes (B, N, 4), N places of a grid of stride 4."""

    stride = 4

    def __init__(self, feature_width: int, width: int = 64, depth: int = 2):
        super().__init__()
        groups = max(g for g in (8, 4, 2, 1) if width % g == 0)

        def conv(channels: int, out: int, step: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, out, 3, step, 1), nn.GroupNorm(groups, out), nn.ReLU())

        self.first, self.second = conv(3, width, 2), conv(width, width, 2)
        self.enter = nn.Conv2d(feature_width, width, 1)
        self.merge = conv(2 * width, width)
        self.scores = nn.Sequential(*[conv(width, width) for _ in range(depth)], nn.Conv2d(width, 1, 3, 1, 1))
        self.sides = nn.Sequential(*[conv(width, width) for _ in range(depth)], nn.Conv2d(width, 4, 3, 1, 1))
        nn.init.constant_(self.scores[-1].bias, -float(torch.tensor(1 / PRIOR - 1).log()))  # type: ignore[arg-type]
        nn.init.constant_(self.sides[-1].bias, 1.0)  # type: ignore[arg-type]

    def forward(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores before the sigmoid, and boxes in pixels of `images`, not clipped."""
        # The bf16 backward of a convolution with three input channels is many times slower than fp32 on CPUs.
        with torch.autocast(images.device.type, enabled=False):
            half = self.first(images.float() - 0.5)
        fine = self.second(half)
        unit = nn.functional.normalize(features, dim=1) * features.shape[1] ** 0.5
        coarse = nn.functional.interpolate(self.enter(unit), fine.shape[-2:], mode="bilinear", align_corners=False)
        x = self.merge(torch.cat([coarse, fine], 1))
        scores = self.scores(x).float().flatten(1)
        away = self.sides(x).float().clamp(max=MAX_LOG).exp().flatten(2).transpose(1, 2) * self.stride
        at = self.places(x.shape[2], x.shape[3], x.device)
        return scores, torch.cat([at - away[..., :2], at + away[..., 2:]], -1)

    def places(self, height: int, width: int, device: Any = None) -> Tensor:
        """(N, 2) centres (x, y) in pixels of the cells of a grid, row by row."""
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        return (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * self.stride


def targets_of(places: Tensor, boxes: Tensor, stride: float, centre_frac: float = CENTRE_FRAC) -> Targets:
    """Which of (N, 2) places learn which of (B, K, 4) boxes; a box without area is none.

    The middle is at least one cell wide and high, so that small boxes are learned as well.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    real = (high > low).all(-1)
    centre, half = (low + high) / 2, ((high - low) / 2 * centre_frac).clamp(min=stride / 2)
    away = (places[None, :, None] - centre[:, None]).abs()
    middle = (away <= half[:, None]).all(-1) & real[:, None]
    inside = (away <= (high - low)[:, None] / 2).all(-1) & real[:, None]
    area = (high - low).prod(-1)
    cost = torch.where(middle, area[:, None], torch.inf)
    chosen = cost.argmin(-1)
    positive = middle.any(-1)
    return Targets(
        positive, inside.any(-1) & ~positive, boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    )


def pair_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes (..., 4) with boxes (..., 4), element by element; 0 where neither has an area."""
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1), (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    union = area_a + area_b - both
    iou = both / union.clamp(min=1e-6)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


def dense_loss(
    scores: Tensor, found: Tensor, boxes: Tensor, targets: Targets, drop_iou: float = -1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the scores and of the boxes, each a mean over pictures, and the mean IoU of the positive places.

    Per picture: sum over places of |y - s|^2 BCE(s, y), where y is the IoU of the place's box with its target and 0 at
    empty places, and sum over positive places of 1 - GIoU, both divided by the number of positive places. A picture
    without a box teaches nothing: that no box was proposed does not mean that there is no object.

    Args:
        scores: (B, N) before the sigmoid.
        found: (B, N, 4) boxes.
        boxes: (B, K, 4) pseudo-boxes.
        drop_iou: places whose box overlaps no pseudo-box by more than this add nothing to the loss of the scores
            (DropLoss, Wang et al., CVPR 2023: they may lie on objects that the pseudo-boxes miss); below 0 all count.
    """
    iou, giou = pair_iou(found, targets.boxes)
    positive = targets.positive.float()
    y = positive * iou.detach()
    counted = ~targets.ignored & targets.positive.any(1, keepdim=True)
    if drop_iou >= 0:
        nearest = pair_iou(found.detach()[:, :, None], boxes[:, None])[0].amax(-1)
        counted = counted & (targets.positive | (nearest > drop_iou))
    cross = nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")
    focal = (y - scores.sigmoid()).abs().square() * cross
    count = positive.sum(1).clamp(min=1)
    about_scores = ((focal * counted).sum(1) / count).mean()
    about_boxes = (((1 - giou) * positive).sum(1) / count).mean()
    return about_scores, about_boxes, (iou.detach() * positive).sum() / positive.sum().clamp(min=1)


def best_boxes(
    scores: Tensor, boxes: Tensor, side_px: float, count: int, score_min: float, iou_max: float, candidates: int = 200
) -> tuple[Tensor, Tensor]:
    """The answer of (B, N) scores in [0, 1] and (B, N, 4) boxes: clipped to the picture, above `score_min`, without the
    lesser of two that overlap by more than `iou_max`; boxes (B, count, 4) and scores (B, count), the best first, rest 0.
    """
    top, order = scores.sort(dim=1, descending=True, stable=True)
    top, order = top[:, :candidates], order[:, :candidates]
    clipped = boxes.gather(1, order[..., None].expand(-1, -1, 4)).clamp(0, side_px)
    keep = (top > score_min) & (clipped[..., 2:] > clipped[..., :2]).all(-1)
    overlap = pair_iou(clipped[:, :, None], clipped[:, None])[0] > iou_max
    later = torch.ones(top.shape[1], top.shape[1], dtype=torch.bool, device=top.device).triu(1)
    for i in range(top.shape[1]):
        keep = keep & ~(overlap[:, i] & keep[:, i, None] & later[i])
    # A stable sort by "kept or not" moves the kept ones to the front and leaves their order.
    front = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    kept = keep.gather(1, front).to(top.dtype)
    out = clipped.gather(1, front[..., None].expand(-1, -1, 4)) * kept[..., None]
    values = top.gather(1, front) * kept
    missing = count - values.shape[1]
    if missing > 0:
        out, values = nn.functional.pad(out, (0, 0, 0, missing)), nn.functional.pad(values, (0, missing))
    return out, values
