"""The networks of LAPO: what reads an action off three frames, and what draws the next frame from two and an action."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.nets.phase_correlation import correlation_surface
from selftaught.nets.video_blocks import Norm, ResBlock, UpBlock, norm_layer

Draw = Literal["layers", "direct"]


class InverseModel(nn.Module):
    """Frames before, now (also after the ground's motion) and next to a vector of the action: residual blocks and two linear layers.

    With a `reach_px` it also compares the frames now and next at every displacement, where they change: convolutions alone found no
    displacement in hundreds of steps, and without one there is nothing that the forward model could be told.
    """

    def __init__(self, widths: tuple[int, int, int], hidden: int, out: int, fold: int, norm: Norm, reach_px: int):
        super().__init__()
        a, b, c = widths
        self.fold, self.reach = fold, reach_px
        self.stem, self.norm = _embed(12 * fold**2, a, fold), norm_layer(norm, a)
        self.body = nn.Sequential(ResBlock(a, a, 2, norm), ResBlock(a, b, 2, norm), ResBlock(b, c, norm=norm))
        places = (2 * (reach_px // 2) + 1) ** 2 if reach_px else 0
        if reach_px:
            self.compared = nn.Conv2d(3, 8, 3, padding=1)
            self.surface = nn.LayerNorm(places)
        self.head = nn.Sequential(nn.Linear(2 * c + places, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, out))

    def forward(self, before: Tensor, now: Tensor, steady: Tensor, after: Tensor) -> Tensor:
        """Four times (N, 3, H, W) in [0, 1] to (N, out)."""
        x = F.pixel_unshuffle(torch.cat([before, now, steady, after], 1) - 0.5, self.fold)
        y = self.body(F.leaky_relu(self.norm(self.stem(x)), 0.2))
        with torch.autocast(x.device.type, enabled=False):
            y = y.float()
            features = [y.mean((2, 3)), y.amax((2, 3))]
            if self.reach:
                features.append(self.surface(self.matches(now, steady, after)))
            return self.head(torch.cat(features, 1))

    def matches(self, now: Tensor, steady: Tensor, after: Tensor) -> Tensor:
        """(N, places): how alike the frames now and next are at every displacement, at half the size, where the next is not the steady one."""
        now, steady, after = (F.avg_pool2d(x.float(), 2) for x in (now, steady, after))
        near = F.max_pool2d((5 * (after - steady).abs().amax(1, keepdim=True)).clamp(max=1), 3, 1, 1)
        a, b = (self.compared(x - x.mean((2, 3), keepdim=True)) * near for x in (now, after))
        size = (a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3)) + 1e-6).sqrt()
        return correlation_surface(a, b, self.reach // 2).flatten(1) / size[:, None]


class Drawn(NamedTuple):
    """The next frame (N, 3, H, W) in [0, 1], and where what moves was put, (N, 1, H, W) in [0, 1] (zeros where it is drawn directly)."""

    frame: Tensor
    mask: Tensor


class ForwardModel(nn.Module):
    """A U-Net that is told the action at its input and at its bottleneck, as LAPO's.

    `direct` draws every pixel. `layers` composes the next frame of three: the frame now after the ground's motion, the frame now after the
    action's own motion (a distribution over displacements that the action alone decides, as in CDNA), and newly drawn pixels.
    """

    def __init__(self, base: int, code: int, draw: Draw, reach_px: int, fold: int, norm: Norm):
        super().__init__()
        self.draw, self.reach, self.fold = draw, reach_px, fold
        cond, c = 8, base
        self.to_input, self.to_bottleneck = nn.Linear(code, cond), nn.Linear(code, 2 * c)
        self.embed = _embed((9 if draw == "layers" else 6) * fold**2 + cond, c, fold)
        self.stem = ResBlock(c, c, norm=norm)
        self.down1, self.down2 = ResBlock(c, 2 * c, 2, norm), ResBlock(2 * c, 2 * c, 2, norm)
        self.middle = ResBlock(4 * c, 2 * c, norm=norm)
        self.up2, self.mix2 = UpBlock(2 * c, 2 * c, norm), ResBlock(4 * c, c, norm=norm)
        self.up1, self.mix1 = UpBlock(c, c, norm), ResBlock(2 * c, c, norm=norm)
        self.out = _embed(c, (6 if draw == "layers" else 3) * fold**2, fold)
        if draw == "layers":
            side = 2 * reach_px + 1
            self.places = nn.Sequential(nn.Linear(code, 64), nn.LeakyReLU(0.2), nn.Linear(64, side**2))
            assert self.out.bias is not None
            nn.init.zeros_(self.out.bias)
            self.out.bias.data[: fold**2] = 1.0  # it begins with the ground in front

    def forward(self, before: Tensor, now: Tensor, steady: Tensor, code: Tensor) -> Drawn:
        """Frames (N, 3, H, W) in [0, 1] (`steady` is `now` after the ground's motion) and the action (N, code) to the next frame."""
        moved = self.moved(now, code) if self.draw == "layers" else None
        x = torch.cat([before, steady] if moved is None else [before, steady, moved], 1) - 0.5
        x = F.pixel_unshuffle(x, self.fold)
        told = self.to_input(code)[..., None, None].expand(-1, -1, *x.shape[2:])
        one = self.stem(self.embed(torch.cat([x, told.to(x.dtype)], 1)))
        two = self.down1(one)
        three = self.down2(two)
        told = self.to_bottleneck(code)[..., None, None].expand(-1, -1, *three.shape[2:])
        y = self.middle(torch.cat([three, told.to(three.dtype)], 1))
        y = self.mix2(torch.cat([self.up2(y, two.shape[2:]), two], 1))
        y = self.mix1(torch.cat([self.up1(y, one.shape[2:]), one], 1))
        y = F.pixel_shuffle(self.out(y), self.fold).float()
        if moved is None:
            return Drawn(torch.sigmoid(y), y.new_zeros(len(y), 1, *y.shape[2:]))
        m = y[:, :3].softmax(1)
        return Drawn(m[:, :1] * steady + m[:, 1:2] * moved + m[:, 2:] * torch.sigmoid(y[:, 3:]), m[:, 1:2])

    def displacements(self, code: Tensor) -> Tensor:
        """(N, 2R + 1, 2R + 1) shares that sum to 1: entry [R + dy, R + dx] is how much of what moves goes by (dx, dy) pixels."""
        side = 2 * self.reach + 1
        with torch.autocast(code.device.type, enabled=False):
            return self.places(code.float()).softmax(1).view(-1, side, side)

    def moved(self, frame: Tensor, code: Tensor) -> Tensor:
        """The frame under the action's displacements, out(p) = sum_d k(d) frame(p - d); beyond the border are the pixels at the border."""
        R, (H, W) = self.reach, frame.shape[2:]
        k = self.displacements(code)
        x = F.pad(frame.float(), (R, R, R, R), mode="replicate")
        size = (H + 2 * R, W + 2 * R)
        canvas = torch.roll(F.pad(k, (0, size[1] - k.shape[2], 0, size[0] - k.shape[1])), (-R, -R), (1, 2))
        product = torch.fft.rfft2(x) * torch.fft.rfft2(canvas)[:, None]
        return torch.fft.irfft2(product, s=size)[:, :, R : R + H, R : R + W].clamp(0, 1)


def _embed(a: int, b: int, fold: int) -> nn.Conv2d:
    """Convolution at the finest level; where pixels are folded one cell is a patch already, and 3x3 would cost more than all the rest."""
    return nn.Conv2d(a, b, 3, padding=1) if fold == 1 else nn.Conv2d(a, b, 1)
