"""Inception-v3 as the Frechet inception distance uses it: up to the 2048 pooled features.

Szegedy et al., CVPR 2016; weights of the FID are those of a TensorFlow graph of 2015, which differs from torchvision's in three places:
means leave out the padding, the last block takes a maximum, and pictures are only brought to [-1, 1]. Names of tensors are
torchvision's, which the usual converted weights share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.nets.torchvision_ops import make_torchvision_importable


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _a(block: Any, x: Tensor) -> Tensor:
    double = block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x)))
    return torch.cat([block.branch1x1(x), block.branch5x5_2(block.branch5x5_1(x)), double, block.branch_pool(_mean(x))], 1)


def _c(block: Any, x: Tensor) -> Tensor:
    seven = block.branch7x7_3(block.branch7x7_2(block.branch7x7_1(x)))
    double = x
    for k in range(1, 6):
        double = getattr(block, f"branch7x7dbl_{k}")(double)
    return torch.cat([block.branch1x1(x), seven, double, block.branch_pool(_mean(x))], 1)


def _e(block: Any, x: Tensor, largest: bool) -> Tensor:
    three = block.branch3x3_1(x)
    double = block.branch3x3dbl_2(block.branch3x3dbl_1(x))
    pooled = F.max_pool2d(x, 3, 1, 1) if largest else _mean(x)
    return torch.cat([
        block.branch1x1(x), block.branch3x3_2a(three), block.branch3x3_2b(three), block.branch3x3dbl_3a(double),
        block.branch3x3dbl_3b(double), block.branch_pool(pooled),
    ], 1)  # fmt: skip


class FIDInception(nn.Module):
    """Frames (N, 3, H, W) in [0, 1] to (N, 2048)."""

    def __init__(self, px: int = 299):
        super().__init__()
        make_torchvision_importable()
        from torchvision.models import inception_v3

        whole = inception_v3(weights=None, aux_logits=False, init_weights=False)
        self.px = px
        for name, part in whole.named_children():
            if name not in ("AuxLogits", "avgpool", "dropout", "fc"):
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * F.interpolate(x, size=(self.px, self.px), mode="bilinear", align_corners=False) - 1
        for name, part in self.named_children():
            if name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
                x = _a(part, x)
            elif name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
                x = _c(part, x)
            elif name in ("Mixed_7b", "Mixed_7c"):
                x = _e(part, x, largest=name == "Mixed_7c")
            else:
                x = part(x)
        return x.mean((2, 3))
