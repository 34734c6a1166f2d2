"""The networks of LAPO: what reads an action off three frames, and what draws the next frame from two and an action."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.nets.phase_correlation import correlation_surface
from selftaught.nets.video_blocks import Norm, ResBlock, UpBlock, norm_layer, shift_layer

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
        self.head = nn.Sequential(
            nn.Linear(2 * c + places, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, out)
        )

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
        """(N, places): how alike frames now and next are at every displacement, at half the size, where the next is not the steady one."""
        now, steady, after = (F.avg_pool2d(x.float(), 2) for x in (now, steady, after))
        near = F.max_pool2d((5 * (after - steady).abs().amax(1, keepdim=True)).clamp(max=1), 3, 1, 1)
        a, b = (self.compared(x - x.mean((2, 3), keepdim=True)) * near for x in (now, after))
        size = (a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3)) + 1e-6).sqrt()
        return correlation_surface(a, b, self.reach // 2).flatten(1) / size[:, None]


class UNet(nn.Module):
    """Two halvings and back, told a vector at its input and at its bottleneck where it has one; pixels are folded at both ends."""

    def __init__(self, a: int, base: int, b: int, code: int, fold: int, norm: Norm):
        super().__init__()
        self.fold, c, cond = fold, base, 8 if code else 0
        if code:
            self.to_input, self.to_bottleneck = nn.Linear(code, cond), nn.Linear(code, 2 * c)
        self.embed, self.stem = _embed(a * fold**2 + cond, c, fold), ResBlock(c, c, norm=norm)
        self.down1, self.down2 = ResBlock(c, 2 * c, 2, norm), ResBlock(2 * c, 2 * c, 2, norm)
        self.middle = ResBlock((4 if code else 2) * c, 2 * c, norm=norm)
        self.up2, self.mix2 = UpBlock(2 * c, 2 * c, norm), ResBlock(4 * c, c, norm=norm)
        self.up1, self.mix1 = UpBlock(c, c, norm), ResBlock(2 * c, c, norm=norm)
        self.out = _embed(c, b * fold**2, fold)

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        """(N, a, H, W) and (N, code) to (N, b, H, W)."""
        one = self.stem(self.embedded(x, code))
        two = self.down1(one)
        y = self.down2(two)
        if code is not None:
            y = torch.cat([y, _tile(self.to_bottleneck(code), y)], 1)
        y = self.middle(y)
        y = self.mix2(torch.cat([self.up2(y, two.shape[2:]), two], 1))
        y = self.mix1(torch.cat([self.up1(y, one.shape[2:]), one], 1))
        return F.pixel_shuffle(self.out(y), self.fold).float()

    def embedded(self, x: Tensor, code: Tensor | None) -> Tensor:
        """The embedding of folded pixels with the code beside them; without either being laid out, where it is a 1x1 convolution."""
        if self.fold == 1:
            return torch.as_tensor(self.embed(x if code is None else torch.cat([x, _tile(self.to_input(code), x)], 1)))
        # A 1x1 convolution of folded pixels is a convolution whose window and stride are the fold, one of a constant is a bias.
        weight, pixels = self.embed.weight, x.shape[1] * self.fold**2
        y = F.conv2d(x, weight[:, :pixels].view(-1, x.shape[1], self.fold, self.fold), self.embed.bias, self.fold)
        return y if code is None else y + F.linear(self.to_input(code), weight[:, pixels:, 0, 0])[..., None, None]

    def begin_with(self, *biases: float) -> None:
        """Biases of the first channels of the answer; all others begin at 0."""
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        for i, bias in enumerate(biases):
            self.out.bias.data[i * self.fold**2 : (i + 1) * self.fold**2] = bias


class Drawn(NamedTuple):
    """The next frame (N, 3, H, W) in [0, 1], and where what acts is in it (N, 1, H, W) in [0, 1] (zeros where it is drawn directly)."""

    frame: Tensor
    mask: Tensor


def grown(x: Tensor, reach: int) -> Tensor:
    """The largest value within `reach` pixels of each, of (N, C, H, W) that are at least 0: F.max_pool2d(x, 2 reach + 1, 1, reach)."""
    if x.requires_grad:
        return F.max_pool2d(x, 2 * reach + 1, 1, reach)  # where values are equal, the first gets the gradient
    for dim in (3, 2):
        x, width = F.pad(x, (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)), 1
        while width < 2 * reach + 1:
            step = min(width, 2 * reach + 1 - width)
            rest = x.shape[dim] - step
            x, width = torch.maximum(x.narrow(dim, 0, rest), x.narrow(dim, step, rest)), width + step
    return x


def from_around(x: Tensor, seen: Tensor) -> Tensor:
    """Pictures (N, C, H, W) of which `seen` (N, 1, H, W) in [0, 1] is known, the rest filled from around it: pull and push (Gortler et al.,
    "The Lumigraph", 1996). Halves know the mean of what is known; what is unknown takes the value of its half, and so on.
    """
    if max(x.shape[2:]) == 1:
        return x
    share = F.avg_pool2d(seen, 2, ceil_mode=True)
    mean = F.avg_pool2d(x * seen, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = from_around(mean, (4 * share).clamp(max=1))
    return torch.lerp(F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False), x, seen)


class ForwardModel(nn.Module):
    """The next frame from those before it and the action, which it is told at its input and at its bottleneck, as LAPO's.

    `direct` draws every pixel. `layers` first says what it is that acts, from the frame alone and where it was said to be before; takes it
    out and fills the hole from around it; puts it where the action's own motion says (a distribution over displacements that the action
    alone decides, as in CDNA); and draws anew what else changes, through a gate, with x~ and a~ after the ground's motion:
    y = k * (a x) + (1 - k * a) ((1 - a~) x~ + a~ fill),   next = (1 - g) y + g new.
    What is put somewhere is taken away where it was, so that nothing is left behind when frames follow one another.
    """

    def __init__(self, base: int, code: int, draw: Draw, reach_px: int, fold: int, norm: Norm):
        super().__init__()
        self.draw, self.reach = draw, reach_px
        if draw == "direct":
            self.net = UNet(6, base, 3, code, fold, norm)
            return
        side = 2 * reach_px + 1
        self.places = nn.Sequential(nn.Linear(code, 64), nn.LeakyReLU(0.2), nn.Linear(64, side**2))
        self.actor, self.net = UNet(4, max(8, 2 * base // 3), 1, 0, fold, norm), UNet(7, base, 4, code, fold, norm)
        self.actor.begin_with(-1.0)
        self.net.begin_with(-2.0)

    def forward(self, before: Tensor, now: Tensor, mask: Tensor, ground: Tensor, code: Tensor) -> Drawn:
        """One step.

        Args:
            before, now: (N, 3, H, W) in [0, 1].
            mask: (N, 1, H, W) where what acts was drawn in `now`; zeros where that is not known.
            ground: (N, 2) the ground's motion, in units of half the frame.
            code: (N, code) the action.
        """
        if self.draw == "direct":
            steady = shift_layer(now, ground, "border", "nearest")
            y = torch.sigmoid(self.net(torch.cat([before, steady], 1) - 0.5, code))
            return Drawn(y, y.new_zeros(len(y), 1, *y.shape[2:]))
        a = torch.sigmoid(self.actor(torch.cat([now - 0.5, mask], 1)))
        # A network that learned to fill holes in some hundred steps left a shade wherever the agent had stood.
        hole = grown(a, 1)
        steady = torch.cat([now, hole, from_around(now, 1 - hole)], 1)
        if torch.is_grad_enabled() or bool(ground.any()):  # what is planned is done on a ground that stays
            steady = shift_layer(steady, ground, "border", "nearest")
        moved = self.moved(torch.cat([a * now, a], 1), code)
        put, hole = moved[:, 3:], steady[:, 3:4]
        y = torch.addcmul(moved[:, :3], 1 - put, torch.lerp(steady[:, :3], steady[:, 4:], hole))
        # Of the frame before only the surroundings of what acts: how the ground moves is no sign of what it does.
        near = grown(a, 4)
        drawn = self.net(torch.cat([y - 0.5, put, near * (before - 0.5)], 1), code)
        g = torch.sigmoid(drawn[:, :1])
        return Drawn(torch.lerp(y, torch.sigmoid(drawn[:, 1:]), g).clamp(0, 1), put)

    def displacements(self, code: Tensor) -> Tensor:
        """(N, 2R + 1, 2R + 1) shares that sum to 1: entry [R + dy, R + dx] is how much of what acts goes by (dx, dy) pixels."""
        side = 2 * self.reach + 1
        with torch.autocast(code.device.type, enabled=False):
            return self.places(code.float()).softmax(1).view(-1, side, side)

    def moved(self, layer: Tensor, code: Tensor) -> Tensor:
        """A layer (N, C, H, W) in [0, 1] under the action's displacements, out(p) = sum_d k(d) layer(p - d); nothing comes from outside."""
        R, (H, W) = self.reach, layer.shape[2:]
        k = self.displacements(code)
        size = (H + R, W + R)  # what goes round comes back outside of the frame
        x = F.pad(layer.float(), (0, R, 0, R))
        canvas = torch.roll(F.pad(k, (0, size[1] - k.shape[2], 0, size[0] - k.shape[1])), (-R, -R), (1, 2))
        product = torch.fft.rfft2(x) * torch.fft.rfft2(canvas)[:, None]
        return torch.fft.irfft2(product, s=size)[:, :, :H, :W].clamp(0, 1)


def _tile(vector: Tensor, like: Tensor) -> Tensor:
    return vector[..., None, None].expand(-1, -1, *like.shape[2:]).to(like.dtype)


def _embed(a: int, b: int, fold: int) -> nn.Conv2d:
    """Convolution at the finest level; where pixels are folded one cell is a patch already, and 3x3 would cost more than all the rest."""
    return nn.Conv2d(a, b, 3, padding=1) if fold == 1 else nn.Conv2d(a, b, 1)
