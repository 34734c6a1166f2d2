"""SOLOv2's head for one class, and the two pyramids of maps that it reads: frozen patch features with pixels, or a ResNet-101 with FPN.

Wang, Zhang, Kong, Li, Shen, "SOLOv2: Dynamic and Fast Instance Segmentation" (NeurIPS 2020). A picture is a grid of S x S places; each
says whether an object's centre lies there (objectness), and gives a 1x1 convolution (kernel) that makes the object's mask out of
features of all pixels. One head serves all grids, coarse grids for large objects.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PRIOR = 0.01
"""Objectness of every place before training, so that the many empty places do not drown the others at first."""


class Answer(NamedTuple):
    """What the head says of B pictures with G places, those of all grids one after the other, each row by row."""

    scores: Tensor
    """(B, G) objectness before the sigmoid."""
    kernels: Tensor
    """(B, G, E) weights of each place's convolution."""
    pixels: Tensor
    """(B, E, h, w) what the convolutions read; a mask is sigmoid(kernel . pixels)."""
    embeddings: Tensor | None
    """(B, G, F) what each place's object looks like, where that is learned."""


def resized(x: Tensor, size: Any) -> Tensor:
    """Bilinear resize of (B, C, h, w)."""
    return nn.functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def with_coordinates(x: Tensor) -> Tensor:
    """(B, C, h, w) with two more channels, x and y from -1 to 1: without them equal objects at two places get equal kernels."""
    height, width = x.shape[-2:]
    rows, columns = torch.linspace(-1, 1, height, device=x.device), torch.linspace(-1, 1, width, device=x.device)
    y, x_ = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([x, torch.stack([x_, y]).to(x.dtype).expand(len(x), -1, -1, -1)], 1)


def block(channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, group norm, ReLU."""
    groups = max(g for g in (32, 8, 4, 2, 1) if out % g == 0 and out // g >= min(4, out))
    return nn.Sequential(
        nn.Conv2d(channels, out, size, stride, size // 2, bias=False), nn.GroupNorm(groups, out), nn.ReLU()
    )


class SoloHead(nn.Module):
    """Maps of every grid's level (B, C, h, w) and pixel features (B, E, h, w) to an `Answer`."""

    def __init__(self, channels: int, grids: tuple[int, ...], width: int, depth: int, kernels: int, embed_width: int = 0):
        super().__init__()
        self.grids = grids

        def tower(start: int) -> nn.Sequential:
            return nn.Sequential(*[block(width if i else start, width) for i in range(depth)])

        out = width if depth else channels
        self.kernel_tower, self.score_tower = tower(channels + 2), tower(channels)
        self.kernels = nn.Conv2d(out if depth else channels + 2, kernels, 3, 1, 1)
        self.scores = nn.Conv2d(out, 1, 3, 1, 1)
        self.embed = nn.Conv2d(out, embed_width, 3, 1, 1) if embed_width else None
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.constant_(self.scores.bias, -math.log(1 / PRIOR - 1))  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor], pixels: Tensor) -> Answer:
        scores, kernels, embeddings = [], [], []
        for level, grid in zip(levels, self.grids, strict=True):
            # Coordinates are those of the level, as published; the resize to the grid comes after.
            both = resized(with_coordinates(level), (grid, grid))
            looks = self.score_tower(both[:, :-2])
            kernels.append(self.kernels(self.kernel_tower(both)).flatten(2))
            scores.append(self.scores(looks).flatten(1))
            if self.embed is not None:
                embeddings.append(self.embed(looks).flatten(2))
        told = torch.cat(embeddings, 2).mT if embeddings else None
        return Answer(torch.cat(scores, 1).float(), torch.cat(kernels, 2).mT, pixels, told)


class FeaturePyramid(nn.Module):
    """Frozen features (B, D, h, w) and pictures (B, 3, S, S) to one map of stride 4 for all grids, and pixel features of stride 4."""

    def __init__(self, feature_width: int, width: int, levels: int, kernels: int):
        super().__init__()
        self.levels, self.channels = levels, width
        self.first, self.second = block(3, width // 2, 3, 2), block(width // 2, width, 3, 2)
        self.enter = nn.Conv2d(feature_width, width, 1)
        self.merge = block(2 * width, width)
        self.mask = nn.Sequential(block(width + 2, width), block(width, kernels, 1))

    def forward(self, images: Tensor, features: Tensor) -> tuple[list[Tensor], Tensor]:
        # The bf16 backward of a convolution with three input channels is many times slower than fp32 on CPUs.
        with torch.autocast(images.device.type, enabled=False):
            half = self.first(images.float() - 0.5)
        fine = self.second(half)
        unit = nn.functional.normalize(features, dim=1) * features.shape[1] ** 0.5
        x = self.merge(torch.cat([resized(self.enter(unit), fine.shape[-2:]), fine], 1))
        return [x] * self.levels, self.mask(with_coordinates(x))


class ResNetPyramid(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] to SOLOv2's five levels (B, 256, h, w) of strides 8, 8, 16, 32, 32, and pixel features of stride 4.

    torchvision's ResNet-101 with FPN, random weights, statistics of its batch norms frozen as in the released configuration.
    """

    channels = 256

    def __init__(self, mask_width: int, kernels: int):
        super().__init__()
        from selftaught.nets.torchvision_ops import make_torchvision_importable

        make_torchvision_importable()
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        self.backbone = resnet_fpn_backbone(backbone_name="resnet101", weights=None, trainable_layers=5)
        # From each of the strides 4, 8, 16 and 32 to stride 4: a convolution before every doubling; the coarsest knows where it is.
        self.mask = nn.ModuleList()
        for level in range(4):
            start = self.channels + 2 * (level == 3)
            self.mask.append(nn.ModuleList([block(mask_width if i else start, mask_width) for i in range(max(level, 1))]))
        self.leave = block(mask_width, kernels, 1)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        mean, std = images.new_tensor([0.485, 0.456, 0.406]), images.new_tensor([0.229, 0.224, 0.225])
        p2, p3, p4, p5, p6 = self.backbone((images - mean[:, None, None]) / std[:, None, None]).values()
        total = torch.zeros((), device=images.device)
        for level, (x, convolutions) in enumerate(zip((p2, p3, p4, with_coordinates(p5)), self.mask, strict=True)):
            for convolution in convolutions:  # type: ignore[attr-defined]
                x = convolution(x)
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) if level else x
            total = total + resized(x, p2.shape[-2:])
        return [resized(p2, p3.shape[-2:]), p3, p4, p5, resized(p6, p5.shape[-2:])], self.leave(total)
