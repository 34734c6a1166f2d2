"""Global Motion Analysis of GLASS: masks, inpainted backgrounds, and the shifts of foreground and background from frame to frame.

Davtyan and Favaro, "Controllable Video Generation through Global and Local Motion Dynamics", ECCV 2022, section 3.1. All frames in
here are in [-1, 1]; a hole is marked by -1.1, a value that no pixel has.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.nets.phase_correlation import correlation_surface, neighbour_surfaces, robust_match
from selftaught.nets.video_blocks import Norm, ResBlock, SameBlock, UpBlock, from_px, shift_layer

HOLE = -1.1
"""Value of pixels that are to be filled in: outside of what pixels can be."""


class Layers(NamedTuple):
    """What GMA makes of a clip of T frames."""

    masks: Tensor
    """(B, T, 1, H, W) in [0, 1]: where the agent is."""
    foregrounds: Tensor
    """(B, T, 3, H, W): mask times frame."""
    backgrounds: Tensor
    """(B, T, 3, H, W): the frame with the agent's place filled in."""
    shifts: Tensor
    """(B, T - 1, 2): the agent's motion, in units of half the frame: the global action."""
    ground_shifts: Tensor
    """(B, T - 1, 2): the background's motion."""


class Agents(NamedTuple):
    """What LMA reads of a clip of T frames."""

    masks: Tensor
    """(B, T, 1, H, W)."""
    foregrounds: Tensor
    """(B, T, 3, H, W)."""
    shifts: Tensor
    """(B, T - 1, 2)."""
    moved: Tensor
    """(B, T - 1, 3, H, W): foregrounds 0 to T - 2 after their shifts."""


class MaskNet(nn.Module):
    """M: frames to foreground masks. `widths` are stem, blocks and the way up; two halvings, or one where pixels are folded."""

    def __init__(self, widths: tuple[int, int, int], blocks: int, fold: int, norm: Norm):
        super().__init__()
        stem, body, up = widths
        self.fold = fold
        self.stem = SameBlock(3 * fold**2, stem, norm=norm)
        downs = 2 if fold == 1 else 1
        self.body = nn.Sequential(
            *[ResBlock(stem if i == 0 else body, body, 2, norm) for i in range(downs)],
            *[ResBlock(body, body, norm=norm) for _ in range(blocks)],
        )
        self.up = nn.ModuleList()
        for i in range(downs):
            self.up.append(UpBlock(body if i == 0 else up, up, norm))
            # Where pixels are folded the last block is left out: it would cost as much as all before.
            self.up.append(ResBlock(up, up, norm=norm) if fold == 1 else nn.Identity())
        # A way round the halving where pixels are folded, as in a U-Net: with one doubling alone edges come late.
        self.sharpen = SameBlock(up + stem, up, norm=norm) if fold > 1 else None
        self.out = nn.Conv2d(up, fold**2, 3, padding=1)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, -1.5)  # an agent is small: beginning near the size prior saves the first hundred steps

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, 1, H, W)."""
        stem = self.stem(F.pixel_unshuffle(x, self.fold))
        y = self.body(stem)
        for up in self.up:
            y = up(y)
        if self.sharpen is not None:
            y = self.sharpen(torch.cat([y, stem], 1))
        return F.pixel_shuffle(self.out(y), self.fold)


class Inpainter(nn.Module):
    """I: frames whose holes are marked by `HOLE` to whole frames. `widths` at full (or folded), half and quarter size."""

    def __init__(self, widths: tuple[int, int, int], fold: int, norm: Norm):
        super().__init__()
        a, b, c = widths
        self.fold = fold
        self.encode = nn.Sequential(
            SameBlock(3 * fold**2, a, 2, norm), SameBlock(a, b, 2, norm), SameBlock(b, b, norm=norm),
            SameBlock(b, c, 1 if fold > 1 else 2, norm), SameBlock(c, c, norm=norm),
        )  # fmt: skip
        ups = [UpBlock(c, b, norm), UpBlock(b, b, norm), UpBlock(b, a, norm)][fold > 1 :]
        self.decode = nn.Sequential(SameBlock(c, c, norm=norm), *([SameBlock(c, b, norm=norm)] if fold > 1 else []), *ups)
        self.out = nn.Conv2d(a, 3 * fold**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, H, W) in [-1, 1]."""
        return torch.tanh(F.pixel_shuffle(self.out(self.decode(self.encode(F.pixel_unshuffle(x, self.fold)))), self.fold))


class ShiftRegressor(nn.Module):
    """P of the paper: a convolutional network regresses the shift of a pair of frames; it says "no motion" when it is born."""

    def __init__(self, widths: tuple[int, ...], hidden: tuple[int, int], fold: int, norm: Norm):
        super().__init__()
        self.fold = fold
        a, b, c, d = widths
        self.convs = nn.Sequential(
            SameBlock(6 * fold**2, a, 2 if fold == 1 else 1, norm), SameBlock(a, b, 2, norm), SameBlock(b, b, norm=norm),
            SameBlock(b, c, 2, norm), SameBlock(c, d, norm=norm),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(d, hidden[0]), nn.LayerNorm(hidden[0]), nn.LeakyReLU(0.2),
            nn.Linear(hidden[0], hidden[1]), nn.LayerNorm(hidden[1]), nn.LeakyReLU(0.2), nn.Linear(hidden[1], 2),
        )  # fmt: skip
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.normal_(last.bias, std=1e-4)

    def forward(self, clip: Tensor) -> Tensor:
        """(B, T, 3, H, W) to (B, T - 1, 2) in units of half the frame."""
        B, T = clip.shape[:2]
        x = F.pixel_unshuffle(clip, self.fold)
        x = torch.cat([x[:, :-1], x[:, 1:]], 2).flatten(0, 1)
        return self.head(self.convs(x).mean((2, 3))).float().unflatten(0, (B, T - 1))


class ShiftCorrelator(nn.Module):
    """P for short trainings: learned features of two frames are compared at every displacement; the answer is the softmax mean.

    e(d) = sum_p |phi(a)(p) - phi(b)(p + d)|^2 / sum_p |phi(a)|^2 + |phi(b)|^2,   shift = sum_d softmax(-beta log(e + eps))(d) d.
    The logarithm makes the answer as sharp for faint pictures as for strong ones. Pixels are features too, so that it sees motion from the
    first step.
    """

    steps: Tensor

    def __init__(self, width: int, reach_px: int, whole: bool, eps: float = 1e-3):
        super().__init__()
        self.reach_px, self.whole, self.eps = reach_px, whole, eps
        self.features = nn.Conv2d(3, width, 5, padding=2)
        self.weight = nn.Parameter(torch.tensor([1.0, 0.3]))
        self.log_beta = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.arange(-reach_px, reach_px + 1, dtype=torch.float32), persistent=False)

    def phi(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C, H, W) features, zero where a layer is empty, of mean zero for whole frames."""
        own = torch.tanh(self.features(x)) * (x.abs().amax(1, keepdim=True) > 0)
        y = torch.cat([x * self.weight[0], own * self.weight[1]], 1).float()
        return y - y.mean((2, 3), keepdim=True) if self.whole else y

    def forward(self, clip: Tensor) -> Tensor:
        """(B, T, 3, H, W) to (B, T - 1, 2) in units of half the frame."""
        y = self.phi(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
        power = y.square().sum(2)
        energy = power.sum((2, 3))
        if self.whole:  # the correlation is cyclic: a margin is left out, so that no border meets the opposite one
            r = self.reach_px
            inside = F.pad(torch.ones_like(y[:1, 0, :1, r:-r, r:-r]), (r, r, r, r))
            other = correlation_surface(inside, power[:, 1:].flatten(0, 1)[:, None], r).unflatten(0, y[:, 1:].shape[:2])
            own = power[:, :-1, r:-r, r:-r].sum((2, 3))
            surface = correlation_surface((y[:, :-1] * inside).flatten(0, 1), y[:, 1:].flatten(0, 1), r).view_as(other)
        else:
            other, own, surface = energy[:, 1:, None, None], energy[:, :-1], neighbour_surfaces(y, self.reach_px)
        e = 1 - 2 * surface / ((own + 1e-6)[..., None, None] + other)
        p = torch.softmax(-self.log_beta.exp() * (e.clamp(min=0) + self.eps).log().flatten(2), 2).view_as(e)
        shift_px = torch.stack([(p.sum(2) * self.steps).sum(2), (p.sum(3) * self.steps).sum(2)], 2)
        return from_px(shift_px, *clip.shape[3:])


class GMA(nn.Module):
    """Masks, inpainting and shifts of clips."""

    def __init__(self, mask: MaskNet, inpainter: Inpainter, foreground_shift: nn.Module, background_shift: nn.Module):
        super().__init__()
        self.mask, self.inpainter = mask, inpainter
        self.foreground_shift, self.background_shift = foreground_shift, background_shift

    def masks(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, 1, H, W) in [0, 1]."""
        return torch.sigmoid(self.mask(frames).float())

    def inpaint(self, frames: Tensor, masks: Tensor) -> Tensor:
        """Fill in what masks (N, 1, H, W) take away from frames (N, 3, H, W)."""
        return frames * (1 - masks) + self.inpainter(frames * (1 - masks) + HOLE * masks).float() * masks

    def forward(self, clip: Tensor) -> Layers:
        """(B, T, 3, H, W) in [-1, 1] to its layers."""
        B, T = clip.shape[:2]
        frames = clip.flatten(0, 1)
        m = self.masks(frames)
        b = self.inpaint(frames, m).unflatten(0, (B, T))
        m = m.unflatten(0, (B, T))
        f = m * clip
        return Layers(m, f, b, self.foreground_shift(f), self.background_shift(b))

    def agents(self, clip: Tensor) -> Agents:
        """(B, T, 3, H, W) in [-1, 1] to what LMA reads, without backgrounds."""
        B, T = clip.shape[:2]
        m = self.masks(clip.flatten(0, 1)).unflatten(0, (B, T))
        f = m * clip
        shifts = self.foreground_shift(f)
        moved = shift_layer(f[:, :-1].flatten(0, 1), shifts.flatten(0, 1), "zeros").unflatten(0, (B, T - 1))
        return Agents(m, f, shifts, moved)


class Moved(NamedTuple):
    """The layers of frames 0 to T - 2 after their shifts: what GMA says frames 1 to T - 1 look like; (B, T - 1, C, H, W)."""

    masks: Tensor
    foregrounds: Tensor
    backgrounds: Tensor
    frames: Tensor


def move(layers: Layers, mask_twice: bool) -> Moved:
    """Shift each frame's layers and put them together: x~ = m~ f~ + (1 - m~) b~, where f~ was masked already.

    With `mask_twice` false x~ = f~ + (1 - m~) b~, the usual rule for layers that are multiplied by alpha.
    """
    B, T = layers.masks.shape[:2]
    both = torch.cat([layers.masks, layers.foregrounds], 2)[:, :-1].flatten(0, 1)
    both = shift_layer(both, layers.shifts.flatten(0, 1), "zeros").unflatten(0, (B, T - 1))
    m, f = both[:, :, :1], both[:, :, 1:]
    b = shift_layer(layers.backgrounds[:, :-1].flatten(0, 1), layers.ground_shifts.flatten(0, 1), "border").unflatten(0, (B, T - 1))
    return Moved(m, f, b, (m * f if mask_twice else f) + (1 - m) * b)


def gma_losses(clip: Tensor, layers: Layers, moved: Moved, size: float) -> dict[str, Tensor]:
    """The losses of GMA without weights and without the perceptual one (GLASS, section 3.1; formulas from the released code).

    frame      = mean w |x_{t+1} - x~_{t+1}|, w = sum_c |x_{t+1} - x_t| + |x~_{t+1} - x~_t| + 0.001 without gradient, x~_0 = x_0
    foreground = mean (f_{t+1} - f~_{t+1})^2
    background = mean |b_{t+1} - b~_{t+1}|
    binary     = mean min(m, 1 - m)
    size       = mean_t |mean_pixels(m_t) - size|
    """
    after, before = clip[:, 1:], clip[:, :-1]
    guess_before = torch.cat([clip[:, :1], moved.frames[:, :-1]], 1)
    w = ((after - before).abs().sum(2, keepdim=True) + (moved.frames - guess_before).abs().sum(2, keepdim=True) + 0.001).detach()
    m = layers.masks
    return {
        "frame": (w * (after - moved.frames).abs()).mean(),
        "foreground": (layers.foregrounds[:, 1:] - moved.foregrounds).square().mean(),
        "background": (layers.backgrounds[:, 1:] - moved.backgrounds).abs().mean(),
        "binary": torch.minimum(m, 1 - m).mean(),
        "size": (m.mean((2, 3, 4)) - size).abs().mean(),
    }


@torch.no_grad()
def first_teacher(clip: Tensor, reach_px: int, threshold: float = 0.09) -> tuple[Tensor, Tensor]:
    """What a clip says without any network: the background's motion, and where something else moves.

    Args:
        clip: (B, T, 3, H, W) in [-1, 1], T of at least 3.
        reach_px: largest displacement that is looked for.
        threshold: largest difference of a channel (of 2) above which a pixel counts as moving.

    Returns:
        Shifts (B, T - 1, 2) of what fills most of the frame, and (B, T - 2, 1, H, W) in {0, 1} for the frames between first and last:
        pixels that differ from the shifted frame before and from that after, so that only the place where the agent is now is left;
        closed by 5x5, because the inside of an even surface does not change when it moves, and opened by 3x3, which takes specks away.
    """
    B, T, _, H, W = clip.shape
    a, b = clip[:, :-1].flatten(0, 1), clip[:, 1:].flatten(0, 1)
    d = from_px(robust_match(a, b, reach_px), H, W)
    forward = (b - shift_layer(a, d, "border")).abs().amax(1, keepdim=True).unflatten(0, (B, T - 1))[:, :-1]
    backward = (a - shift_layer(b, -d, "border")).abs().amax(1, keepdim=True).unflatten(0, (B, T - 1))[:, 1:]
    moving = (torch.minimum(forward, backward).flatten(0, 1) > threshold).float()
    moving = -F.max_pool2d(-F.max_pool2d(moving, 5, 1, 2), 5, 1, 2)
    moving = F.max_pool2d(-F.max_pool2d(-moving, 3, 1, 1), 3, 1, 1)
    return d.unflatten(0, (B, T - 1)), moving.unflatten(0, (B, T - 2))
