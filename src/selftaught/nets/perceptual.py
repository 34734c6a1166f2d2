"""Distances between pictures in features: of an encoder that taught itself, of VGG19 with weights that are given, or of a fixed pyramid.

GLASS and CADDY compare VGG19 features of five depths (Johnson, Alahi, Fei-Fei, ECCV 2016); GLASS's publisher notes that a
self-supervised network does as well, and that is preferred here, because VGG's weights were learned from labels. The pyramid has no
weights: mean absolute differences of a Laplacian pyramid (Burt and Adelson, 1983) and of Sobel gradients at three scales.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.core.errors import ConfigError
from selftaught.nets.official import read

VGG19_SLICES = (2, 7, 12, 21, 30)
"""Ends of the five parts of torchvision's `vgg19().features`: behind relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1."""


class PyramidDistance(nn.Module):
    """Laplacian and Sobel differences at three scales; frames in [-1, 1]."""

    kernel: Tensor

    def __init__(self, levels: int = 3):
        super().__init__()
        self.levels = levels
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
        self.register_buffer("kernel", torch.stack([sobel, sobel.T])[:, None], persistent=False)

    def forward(self, a: Tensor, target: Tensor) -> Tensor:
        """Scalar distance of (N, 3, H, W) to targets, which get no gradient."""
        d = (a - target.detach()).float()  # both pyramids are linear: that of the difference is the difference
        total = d.new_zeros(())
        for level in range(self.levels):
            edges = F.conv2d(d.flatten(0, 1)[:, None], self.kernel, padding=1)
            last = level + 1 == self.levels or min(d.shape[2:]) < 4
            small = d if last else F.avg_pool2d(d, 2)
            band = d if last else d - F.interpolate(small, size=d.shape[2:], mode="bilinear", align_corners=False)
            total = total + band.abs().mean() + edges.abs().mean()
            if last:
                break
            d = small
        return total


class FeatureDistance(nn.Module):
    """Mean absolute difference of an encoder's feature maps; frames in [-1, 1].

    The encoder is frozen and stays outside of the module tree. Each target's features are brought to a root mean square of 1, so that the
    weight of the loss does not depend on the encoder.
    """

    def __init__(self, encoder: Any):
        super().__init__()
        self._encoder = [encoder]

    def forward(self, a: Tensor, target: Tensor) -> Tensor:
        """Scalar distance of (N, 3, H, W) to targets, which get no gradient."""
        encoder = self._encoder[0]
        px = (encoder.image_px, encoder.image_px)
        with torch.no_grad():
            real = encoder.features(_unit(target.detach(), px))
            length = real.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6
        return ((encoder.features(_unit(a, px)) - real).abs() / length).mean()


class VGGDistance(nn.Module):
    """Sum over five slices of VGG19 of the mean absolute difference of features, frames as they are in [-1, 1], as in the released GLASS.

    `weights` is a local file of torchvision's vgg19, as .safetensors (`selftaught weights` converts a .pth); nothing is downloaded.
    The network is frozen and stays outside of the module tree, so that it is not saved with every run.
    """

    def __init__(self, weights: str | os.PathLike[str], width_factor: float = 1.0):
        super().__init__()
        self._slices = [vgg19_slices(weights, width_factor)]

    def forward(self, a: Tensor, target: Tensor) -> Tensor:
        """Scalar distance of (N, 3, H, W) to targets, which get no gradient."""
        total, b = a.new_zeros(()), target.detach()
        for part in self._slices[0]:
            a, b = part(a), part(b)
            total = total + (a - b).abs().mean()
        return total


def vgg19_slices(weights: str | os.PathLike[str], width_factor: float = 1.0) -> nn.ModuleList:
    """The five parts of VGG19's convolutions with weights of a local file; raises ConfigError when they do not fit."""
    channels = [int(c * width_factor) for c in (64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512)]
    pools = {1, 3, 7, 11}
    layers: list[nn.Module] = []
    before = 3
    for i, c in enumerate(channels):
        layers += [nn.Conv2d(before, c, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in pools else []
        before = c
    net = nn.Sequential(*layers)
    tensors = read(Path(weights).expanduser())
    found = {k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features.")} or dict(tensors)
    own = {k: found[k] for k in net.state_dict() if k in found}
    wrong = [k for k, v in net.state_dict().items() if k not in own or own[k].shape != v.shape]
    if wrong:
        raise ConfigError(f"{os.fspath(weights)} holds no VGG19.", expected="the weights of torchvision.models.vgg19",
                          why=f"{len(wrong)} tensors are missing or have other shapes, e.g. features.{wrong[0]}")  # fmt: skip
    net.load_state_dict({k: v.float() for k, v in own.items()})
    net.eval().requires_grad_(False)
    starts = (0, *VGG19_SLICES[:-1])
    return nn.ModuleList([net[a:b] for a, b in zip(starts, VGG19_SLICES, strict=True)])


def _unit(x: Tensor, px: tuple[int, int]) -> Tensor:
    """Frames in [-1, 1] to [0, 1] at the encoder's size."""
    y = (x.float() + 1) / 2
    return y if y.shape[2:] == px else F.interpolate(y, size=px, mode="bilinear", align_corners=False, antialias=False)
