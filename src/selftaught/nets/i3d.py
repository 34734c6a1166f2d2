"""Inflated 3D Inception (I3D), whose Kinetics-400 logits the Frechet video distance compares.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, figure 3. Names of tensors are those of the usual PyTorch weights
(`Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b0.conv3d.weight`, ...). Padding is TensorFlow's "SAME".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIXED: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)), "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)), "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)), "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)), "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}  # fmt: skip
"""Input channels, and the channels of 1x1; 1x1 and 3x3; 1x1 and 3x3; pool and 1x1."""


def same_padding(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Pad (B, C, T, H, W) with zeros so that the output has ceil(size / stride), more at the end where it does not divide."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        need = max(k - s if size % s == 0 else k - size % s, 0)
        pads += [need // 2, need - need // 2]
    return F.pad(x, pads)


class Unit(nn.Module):
    """Convolution, batch norm and ReLU, padded as TensorFlow does."""

    def __init__(
        self, a: int, b: int, kernel: tuple[int, int, int] = (1, 1, 1), stride: tuple[int, int, int] = (1, 1, 1), last: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = nn.Conv3d(a, b, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(b, eps=0.001, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3d(same_padding(x, self.kernel, self.stride))
        return y if self.bn is None else F.relu(self.bn(y))


class Pool(nn.Module):
    """Maximum, padded as TensorFlow does."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(same_padding(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """An Inception block: four branches beside each other."""

    def __init__(self, a: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        w = widths
        self.b0 = Unit(a, w[0])
        self.b1a, self.b1b = Unit(a, w[1]), Unit(w[1], w[2], (3, 3, 3))
        self.b2a, self.b2b = Unit(a, w[3]), Unit(w[3], w[4], (3, 3, 3))
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(a, w[5])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class I3D(nn.Module):
    """Clips (B, T, 3, H, W) in [0, 1] to the mean logits (B, 400)."""

    def __init__(self, classes: int = 400, px: int = 224):
        super().__init__()
        self.px = px
        self.Conv3d_1a_7x7 = Unit(3, 64, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(64, 64), Unit(64, 192, (3, 3, 3))
        self.MaxPool3d_3a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        for name, (a, widths) in MIXED.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = Pool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
            self.add_module(name, Mixed(a, widths))
        self.logits = Unit(1024, classes, last=True)

    def forward(self, clips: Tensor) -> Tensor:
        if clips.ndim != 5 or clips.shape[1] < 9:
            raise ValueError(f"expected clips (B, T, 3, H, W) of at least 9 frames, got {tuple(clips.shape)}")
        B, T = clips.shape[:2]
        x = F.interpolate(clips.flatten(0, 1), size=(self.px, self.px), mode="bilinear", align_corners=False)
        x = (2 * x - 1).unflatten(0, (B, T)).transpose(1, 2)
        for name, part in self.named_children():
            if name == "logits":
                x = F.avg_pool3d(x, (2, x.shape[3], x.shape[4]), stride=1)
            x = part(x)
        return x.flatten(2).mean(2)
