"""Blocks of video networks: residual and modulated convolutions, a convolutional LSTM, and the warp that shifts a layer.

After the blocks of GLASS (Davtyan and Favaro, ECCV 2022), StyleGAN2's modulated convolution (Karras et al., CVPR 2020, section 2.2) and
ConvLSTM (Shi et al., NeurIPS 2015, eq. 3 without peepholes). Differs: the norm can be chosen, because batch statistics of few frames
drift; the LSTM starts from a learned vector and not from a learned map, so that a network is not tied to one size of the frames.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["group", "batch"]
SLOPE = 0.2
"""Of the leaky rectifiers."""


def norm_layer(kind: Norm, width: int) -> nn.Module:
    """Batch norm, or group norm with about 8 channels a group."""
    if kind == "batch":
        return nn.BatchNorm2d(width)
    groups = max(g for g in range(1, width + 1) if width % g == 0 and g <= max(width // 8, 1))
    return nn.GroupNorm(groups, width)


class SameBlock(nn.Module):
    """Convolution 3x3 without bias, mean over `down` x `down`, norm, leaky ReLU."""

    def __init__(self, a: int, b: int, down: int = 1, norm: Norm = "group"):
        super().__init__()
        self.conv, self.down, self.norm = nn.Conv2d(a, b, 3, padding=1, bias=False), down, norm_layer(norm, b)

    def forward(self, x: Tensor) -> Tensor:
        """(B, a, H, W) to (B, b, H / down, W / down)."""
        return F.leaky_relu(self.norm(_pooled_conv(x, self.conv, self.down)), SLOPE)


class ResBlock(nn.Module):
    """Two convolutions 3x3 with norms and a way round them; the mean over `down` x `down` comes after the first."""

    def __init__(self, a: int, b: int, down: int = 1, norm: Norm = "group"):
        super().__init__()
        self.down = down
        self.conv1, self.norm1 = nn.Conv2d(a, b, 3, padding=1), norm_layer(norm, b)
        self.conv2, self.norm2 = nn.Conv2d(b, b, 3, padding=1), norm_layer(norm, b)
        changes = a != b or down > 1
        self.skip = nn.Conv2d(a, b, 1) if changes else None
        self.skip_norm = norm_layer(norm, b) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, a, H, W) to (B, b, H / down, W / down)."""
        y = F.leaky_relu(self.norm1(_pooled_conv(x, self.conv1, self.down)), SLOPE)
        y = self.norm2(self.conv2(y))
        if self.skip is not None and self.skip_norm is not None:
            x = self.skip_norm(self.skip(_pool(x, self.down)))  # the mean and a 1x1 convolution commute; this order is cheaper
        return F.leaky_relu(x + y, SLOPE)


class UpBlock(nn.Module):
    """Bilinear doubling before (or, `late`, after) a convolution 3x3 without bias; norm, leaky ReLU."""

    def __init__(self, a: int, b: int, norm: Norm = "group", late: bool = False):
        super().__init__()
        self.conv, self.norm, self.late = nn.Conv2d(a, b, 3, padding=1, bias=False), norm_layer(norm, b), late

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, a, H, W) to (B, b, 2H, 2W), or to another size (H, W)."""
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        x = self.conv(x) if self.late else self.conv(_resize(x, size))
        return F.leaky_relu(self.norm(_resize(x, size) if self.late else x), SLOPE)


class ModConv(nn.Module):
    """Convolution 3x3 whose input channels are scaled by a style, weights demodulated (StyleGAN2, eq. 1 and 3); norm, leaky ReLU.

    w'_oik = s_i w_oik,   w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + eps). Computed as a scale on the input and one on the output, which
    is the same and needs no weights per sample.
    """

    def __init__(self, a: int, b: int, style: int, down: int = 1, norm: Norm = "group"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(b, a, 3, 3) / (9 * a) ** 0.5)
        self.scale, self.down, self.norm = nn.Linear(style, a), down, norm_layer(norm, b)
        nn.init.ones_(self.scale.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(B, a, H, W) and (B, style) to (B, b, H / down, W / down)."""
        s = self.scale(style).float()
        s = s * (s.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        w = self.weight * (self.weight.square().mean((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        demodulate = (s.square() @ w.square().sum((2, 3)).T + 1e-8).rsqrt()
        y = F.conv2d(x * s[..., None, None], w, padding=1) * demodulate[..., None, None]
        return F.leaky_relu(self.norm(_pool(y, self.down)), SLOPE)


class ConvLSTM(nn.Module):
    """Convolutional LSTM: the four gates are one convolution 3x3 of [input, hidden]; the state starts as a learned vector."""

    def __init__(self, a: int, hidden: int):
        super().__init__()
        self.gates = nn.Conv2d(a + hidden, 4 * hidden, 3, padding=1)
        self.first = nn.Parameter(torch.zeros(2, hidden, 1, 1))

    def start(self, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Hidden and cell state (B, hidden, H, W) before the first input."""
        h, c = self.first.expand(2, *self.first.shape[1:2], height, width)[:, None].expand(-1, batch, -1, -1, -1)
        return h, c

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One step: (B, a, H, W) and the state to the new (hidden, cell); the hidden state is the output."""
        h, c = state
        i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)  # + 1: a young network remembers
        return torch.sigmoid(o) * torch.tanh(c), c


def shift_layer(x: Tensor, shift: Tensor, padding: Literal["zeros", "border"], mode: str = "bilinear") -> Tensor:
    """Move the content of a layer: a positive shift moves it to the right and down.

    Args:
        x: (B, C, H, W).
        shift: (B, 2) as (x, y) in units where the frame is 2 wide and 2 high: pixels = shift * (W / 2, H / 2).
        padding: what comes in from outside: zeros, or the pixels at the border.

    The sampling grid is that of affine_grid for the inverse transform, align_corners=False: out(p) = x(p - shift).
    """
    B, _, H, W = x.shape
    columns = (torch.arange(W, device=x.device, dtype=torch.float32) * 2 + 1) / W - 1
    rows = (torch.arange(H, device=x.device, dtype=torch.float32) * 2 + 1) / H - 1
    shift = shift.float()
    gx = (columns[None] - shift[:, :1])[:, None].expand(B, H, W)
    gy = (rows[None] - shift[:, 1:])[:, :, None].expand(B, H, W)
    # On CPUs grid_sample's backward writes outside of its memory where the grid is not finite; the sum keeps such a shift visible.
    grid = torch.nan_to_num(torch.stack([gx, gy], -1), 0.0, 2.0, -2.0).clamp(-8, 8)
    out = F.grid_sample(x.float(), grid, mode=mode, padding_mode=padding, align_corners=False)
    return out + 0 * shift.sum(1)[:, None, None, None]


def to_px(shift: Tensor, height: int, width: int) -> Tensor:
    """Shifts (..., 2) in units of half the frame to pixels (x, y)."""
    return shift * shift.new_tensor([width / 2, height / 2])


def from_px(shift_px: Tensor, height: int, width: int) -> Tensor:
    """Shifts (..., 2) in pixels (x, y) to units of half the frame."""
    return shift_px / shift_px.new_tensor([width / 2, height / 2])


def _pooled_conv(x: Tensor, conv: nn.Conv2d, down: int) -> Tensor:
    """_pool(conv(x), down) of a 3x3 convolution; without gradients, as one of 4x4 and stride 2, which is less than half the work."""
    if down != 2 or torch.is_grad_enabled() or x.shape[2] % 2 or x.shape[3] % 2:
        return _pool(conv(x), down)
    weight = F.avg_pool2d(F.pad(conv.weight, (1, 1, 1, 1)), 2, 1)
    return F.conv2d(x, weight, conv.bias, 2, 1)


def _pool(x: Tensor, down: int) -> Tensor:
    return F.avg_pool2d(x, down) if down > 1 else x


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
