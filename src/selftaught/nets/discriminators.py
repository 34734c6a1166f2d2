"""Discriminators: networks that tell real pictures from made ones, with the hinge losses that train both sides.

Spectral norm: Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial Networks", ICLR 2018. Projected
features: Sauer, Chitta, Mueller, Geiger, "Projected GANs Converge Faster", NeurIPS 2021. Hinge: Lim, Ye, "Geometric GAN", 2017.
What differs from the usual code: the power iteration moves in `advance`, called once after each step, and not in every forward pass: the
pieces of a batch then see one and the same network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selftaught.core.shard import whole

POWER_START = 15
"""Power iterations when a layer is made; one more follows after each step."""
LEAST_PX = 8
"""Heads of a projected discriminator halve their map until it is not larger than this."""


def hinge_real(logits: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) over real pictures."""
    return torch.relu(1 - logits.float()).mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """mean max(0, 1 + D(x)) over made pictures."""
    return torch.relu(1 + logits.float()).mean()


def fooled(logits: Tensor) -> Tensor:
    """-mean D(x): what the maker of pictures minimises."""
    return -logits.float().mean()


class SpectralConv2d(nn.Conv2d):
    """Convolution whose weight, as a (C_out, C_in k^2) matrix, is divided by an estimate of its largest singular value.

    sigma = u^T W v with unit vectors u, v that are kept as buffers and moved by `advance`.
    """

    u: Tensor
    v: Tensor

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0):
        super().__init__(channels, out, kernel, stride, padding)
        self.register_buffer("u", nn.functional.normalize(torch.randn(out), dim=0))
        self.register_buffer("v", nn.functional.normalize(torch.randn(channels * kernel * kernel), dim=0))
        self.advance(POWER_START)

    @torch.no_grad()
    def advance(self, iterations: int = 1) -> None:
        """Power iteration: v <- W^T u / |W^T u|, u <- W v / |W v|."""
        matrix = whole(self.weight).flatten(1)
        for _ in range(iterations):
            self.v.copy_(nn.functional.normalize(matrix.T @ self.u, dim=0))
            self.u.copy_(nn.functional.normalize(matrix @ self.v, dim=0))

    def sigma(self) -> Tensor:
        """The estimate of the largest singular value, with gradient to the weight."""
        with torch.autocast(self.weight.device.type, enabled=False):
            # Buffers move in place after the step: a graph that is still in use must keep the old ones.
            return self.u.clone() @ (self.weight.flatten(1) @ self.v.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.sigma(), self.bias)


def advance(module: nn.Module) -> None:
    """One power iteration of every spectral layer in a module."""
    for part in module.modules():
        if isinstance(part, SpectralConv2d):
            part.advance()


class PixelDiscriminator(nn.Module):
    """Four strided convolutions with spectral norm on pixels: (B, 3, S, S) in [0, 1] to logits (B, 1, S/16, S/16).

    Widths are `width` times 1, 2, 4, 4; every logit sees 46 pixels.
    """

    LEAST_PX = 16

    def __init__(self, width: int):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.layers = nn.ModuleList([SpectralConv2d(a, b, 4, 2, 1) for a, b in zip(widths, widths[1:], strict=False)])
        self.leave = SpectralConv2d(widths[-1], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        # The bf16 backward of a convolution with three input channels is many times slower than fp32 on CPUs.
        with torch.autocast(images.device.type, enabled=False):
            x = self.layers[0](2 * images.float() - 1)
        for layer in self.layers[1:]:
            x = layer(nn.functional.leaky_relu(x, 0.2))
        return self.leave(nn.functional.leaky_relu(x, 0.2))


class PatchDiscriminator(nn.Module):
    """Four convolutions on pixels that cannot tell where they are: (B, 3, S, S) in [0, 1] to logits (B, 1, h, w), each of 22 pixels.

    Layers 4x4 of stride 2, 3x3, 4x4 of stride 2, 3x3 with widths `width` times 1, 2, 4, 4, batch norm after all but the first, then 1x1.
    No layer pads, since a network that knows the distance to the border learns where things usually are, and takes what was moved for
    made by its place alone. The picture itself is mirrored outwards, so that its border is seen as well as its middle.
    """

    MARGIN, LEAST_PX = 4, 14

    def __init__(self, width: int):
        super().__init__()
        shapes = [(3, width, 4, 2), (width, 2 * width, 3, 1), (2 * width, 4 * width, 4, 2), (4 * width, 4 * width, 3, 1)]
        self.layers = nn.ModuleList([nn.Conv2d(a, b, kernel, stride) for a, b, kernel, stride in shapes])
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm2d(b) for _, b, _, _ in shapes[1:])])
        self.leave = nn.Conv2d(4 * width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.pad(2 * images.float() - 1, (self.MARGIN,) * 4, mode="reflect")
        # The bf16 backward of a convolution with three input channels is many times slower than fp32 on CPUs.
        with torch.autocast(images.device.type, enabled=False):
            x = self.layers[0](x)
        for i, layer in enumerate(self.layers):
            x = nn.functional.leaky_relu(self.norms[i](x if i == 0 else layer(x)), 0.2)
        return self.leave(x)


class PlaceDiscriminator(nn.Module):
    """Four convolutions on pixels: (B, 3, S, S) in [0, 1] to a logit for each place of 4 px, (B, 1, S/4, S/4); high is unchanged.

    It is to say where a picture was changed, not only whether, and learns so from each place of each picture. Layers 4x4 of stride 2,
    3x3, 4x4 of stride 2, 3x3 that pad with mirrored pixels, widths `width` times 1, 4/3, 2, 2, batch norm after all but the first, then
    1x1. It is also given, four times as strong, what differs from the mean of 5x5 pixels: seams are faint beside colours.
    """

    LEAST_PX = 16

    def __init__(self, width: int):
        super().__init__()
        shapes = [(6, width, 4), (width, width * 4 // 3, 3), (width * 4 // 3, 2 * width, 4), (2 * width, 2 * width, 3)]
        self.layers = nn.ModuleList([
            nn.Conv2d(a, b, kernel, 2 if kernel == 4 else 1, 1, padding_mode="reflect") for a, b, kernel in shapes
        ])  # fmt: skip
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm2d(b) for _, b, _ in shapes[1:])])
        self.leave = nn.Conv2d(2 * width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = 2 * images.float() - 1
        fine = 4 * (x - nn.functional.avg_pool2d(nn.functional.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1))
        x = torch.cat([x, fine], 1)
        # The bf16 backward of a convolution with few input channels is many times slower than fp32 on CPUs.
        with torch.autocast(images.device.type, enabled=False):
            x = self.layers[0](x)
        for i, layer in enumerate(self.layers):
            x = nn.functional.leaky_relu(self.norms[i](x if i == 0 else layer(x)), 0.2)
        return self.leave(x)


def unchanged(logits: Tensor, changed: Tensor | None) -> Tensor:
    """How far each place of logits (B, 1, h, w) is unchanged, in [0, 1], where (B, 1, S, S) in [0, 1] is changed, or nothing is.

    A place is changed as far as the most changed of its pixels.
    """
    if changed is None:
        return torch.ones_like(logits, dtype=torch.float32)
    return 1 - nn.functional.adaptive_max_pool2d(changed.float(), logits.shape[-2:])


def unchanged_loss(logits: Tensor, changed: Tensor | None) -> Tensor:
    """Mean cross-entropy of logits (B, 1, h, w), high where unchanged, to `unchanged`."""
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), unchanged(logits, changed))


class RandomProjections(nn.Module):
    """Fixed random 1x1 convolutions that mix the channels and the scales of a pyramid of features (Projected GAN, section 3.2).

    Level i (0 is the finest) is brought to width * 2^i channels. Then, from the coarsest: add what came from below, enlarge to
    the next finer level (the finest to twice its size when `enlarge`), mix to half the channels (the finest keeps its own).
    """

    def __init__(self, channels: Sequence[int], width: int, enlarge: bool = False):
        super().__init__()
        self.enlarge = enlarge
        wide = [width * 2**i for i in range(len(channels))]
        self.widths = [width, *(w // 2 for w in wide[1:])]
        for i, (c, w, out) in enumerate(zip(channels, wide, self.widths, strict=True)):
            for name, a, b in (("enter", c, w), ("mix", w, out)):
                self.register_buffer(f"{name}{i}", torch.randn(b, a, 1, 1) * (2 / a) ** 0.5)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, h_i, w_i) maps, finest first, to mixed maps in the same order."""
        found: list[Tensor] = []
        below: Tensor | None = None
        for i in reversed(range(len(maps))):
            x = nn.functional.conv2d(maps[i], getattr(self, f"enter{i}").to(maps[i].dtype))
            if below is not None:
                x = x + below
            size = maps[i - 1].shape[-2:] if i else [s * (2 if self.enlarge else 1) for s in x.shape[-2:]]
            if tuple(size) != tuple(x.shape[-2:]):
                x = nn.functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
            below = nn.functional.conv2d(x, getattr(self, f"mix{i}").to(x.dtype))
            found.append(below)
        return found[::-1]


class Head(nn.Module):
    """Strided convolutions with spectral norm, batch norm and leaky ReLU until the map is at most 8 px, then one to logits."""

    def __init__(self, channels: int, size_px: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        while size_px > LEAST_PX:
            layers += [SpectralConv2d(channels, width, 4, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            channels, size_px = width, size_px // 2
        self.layers = nn.Sequential(*layers)
        self.leave = SpectralConv2d(channels, 1, min(4, size_px))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.layers(x))


class ProjectedDiscriminator(nn.Module):
    """Random projections of frozen features, and a small head on each scale: maps to logits (B, n).

    Args:
        channels, sizes_px: channels and sides of the maps, finest first.
        width: channels of the finest projection, and of all heads.
    """

    def __init__(self, channels: Sequence[int], sizes_px: Sequence[int], width: int, enlarge: bool = False):
        super().__init__()
        self.projections = RandomProjections(channels, width, enlarge)
        after = [sizes_px[0] * (2 if enlarge else 1), *sizes_px[:-1]]
        self.heads = nn.ModuleList([Head(c, s, width) for c, s in zip(self.projections.widths, after, strict=True)])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        mixed = self.projections(maps)
        return torch.cat([head(x).flatten(1) for head, x in zip(self.heads, mixed, strict=True)], 1)
