"""Local actions of GLASS for short trainings: what of an agent's look lasts for some frames and changes within a clip.

In the hundreds of steps of size `small` nothing shapes codes through the drawing: the shift explains most of a frame, so codes are
ignored, so they get no gradient. Here they come first. The agent is cut out around its centre and described by the directions of its
edges. Of these numbers a linear map keeps those that change little from one frame to the next and much over the clip: slow feature
analysis (Wiskott and Sejnowski, Neural Computation 2002) in closed form, where the slowest things of all, who the agent is, are taken out
because they never change within a clip. k-means sorts what is left into codes. Nothing but clips is used. Differs from the paper, whose
codes are learned with the drawing, by gradient: `coding=learned`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.control.glass_figure import corners, cut
from selftaught.core.launch import all_reduce_sum, gather
from selftaught.nets.quantiser import k_means

BINS, CELL = 8, 4
"""Directions of edges (half a circle), and the side of the squares that they are summed over, in pixels."""
RECENT = 2048
"""Looks that are remembered for k-means."""
LAST_CLIPS = 600
"""About how many clips count: those before were seen through masks that were still worse."""


def figures(foregrounds: Tensor, masks: Tensor, side: int) -> Tensor:
    """Cut agents out around the centre of their masks, to whole pixels; (N, 3, H, W) and (N, 1, H, W) to (N, 4, side, side).

    What lies outside of the frame is empty, and so is what the mask gives less than one half.
    """
    return solid(cut(torch.cat([foregrounds, masks], 1).float(), corners(masks, side), side))


def solid(squares: Tensor) -> Tensor:
    """(N, 4, S, S) of foregrounds and masks, without what the mask gives less than one half, and all of what it gives more."""
    mask = (squares[:, 3:] > 0.5).float()
    return torch.cat([squares[:, :3] * mask, mask], 1)


def looks(figure: Tensor) -> Tensor:
    """(N, 4, S, S) figures to (N, D): sums of edges by direction over squares, and the mask at half the size.

    Of every pixel the strongest channel's gradient counts, in both ways alike and up to a limit, because colours say who an agent is and
    not what it does. Sums overlap by a pixel, so that a figure that is cut one pixel aside looks nearly the same.
    """
    with torch.autocast(figure.device.type, enabled=False):
        x, mask = figure[:, :3].float(), figure[:, 3:].float()
        g = F.pad(x, (1, 1, 1, 1))
        gx, gy = _of_the_strongest(g[:, :, 1:-1, 2:] - g[:, :, 1:-1, :-2], g[:, :, 2:, 1:-1] - g[:, :, :-2, 1:-1])
        gx = torch.where((gx == 0) & (gy == 0), 1e-6, gx)  # an angle of nothing has no gradient
        strength = (gx.square() + gy.square()).sqrt()
        strength = strength / (strength + 0.3)
        turn = torch.atan2(gy, gx).remainder(math.pi) / math.pi * BINS
        # An edge counts for the two directions next to it, the closer one more; half a circle on is the first direction again.
        away = (turn - torch.arange(BINS, device=turn.device)[:, None, None]).abs()
        edges = strength * (1 - torch.minimum(away, BINS - away)).clamp(min=0)
        add = _overlapping(x.shape[-1], x.device)
        sums = add @ edges @ add.T
        return torch.cat([sums.flatten(1), 2 * F.avg_pool2d(mask, 2).flatten(1)], 1)


def _of_the_strongest(gx: Tensor, gy: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (N, 3, H, W) in both ways to those (N, 1, H, W) of the channel where they are strongest, the first of equal ones."""
    strength = (gx.square() + gy.square()).detach()
    x, y, most = gx[:, :1], gy[:, :1], strength[:, :1]
    for k in (1, 2):
        more = strength[:, k : k + 1] > most
        x, y = torch.where(more, gx[:, k : k + 1], x), torch.where(more, gy[:, k : k + 1], y)
        most = torch.maximum(most, strength[:, k : k + 1])
    return x, y


@functools.cache
def _overlapping(side: int, device: torch.device) -> Tensor:
    """(side / CELL, side): the mean over cells of means over three neighbours, beyond the border of nothing."""
    near = F.avg_pool1d(torch.eye(side, device=device)[None], 3, 1, 1)[0]
    return F.avg_pool1d(near.T[None], CELL)[0].T


def slow_map(near: Tensor, far: Tensor, between: Tensor, count: int, who: float, ridge: float) -> Tensor:
    """The (D, count) map that makes change over the clip largest against change between neighbours.

    max_a a' far a / a' (near + who * between + ridge * mean eigenvalue) a, with covariances (D, D) of differences of frames that are near,
    of frames that are far apart, and of means of clips; the leading generalised eigenvectors, each scaled by the square root of what its
    quotient has above 1: a direction that changes no more over the clip than at once is noise.
    """
    D = len(near)
    quick = (near + who * between).double()
    one = torch.eye(D, dtype=torch.float64, device=quick.device)
    quick = quick + ridge * quick.trace() / D * one
    factor, failed = torch.linalg.cholesky_ex(quick)
    if int(failed):  # hardly anything changed in any clip: what is left of `between` is rounding, and may be negative
        factor = torch.linalg.cholesky(quick + (1e-6 - 2 * torch.linalg.eigvalsh(quick)[0].clamp(max=0)) * one)
    inverse = torch.linalg.inv(factor)
    values, vectors = torch.linalg.eigh(inverse @ far.double() @ inverse.T)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    return (inverse.T @ vectors * (values - 1).clamp(min=1e-6).sqrt()).float()


class SlowCodes(nn.Module):
    """K local actions of what lasts. `remember` gathers statistics of clips, `start` makes the codes of them, once; then they are fixed.

    The codes' vectors, which the drawing is told, are learned with it.
    """

    near: Tensor
    far: Tensor
    means: Tensor
    total: Tensor
    clips: Tensor
    basis: Tensor
    middle: Tensor
    spread: Tensor
    centres: Tensor
    sigma2: Tensor
    recent: Tensor
    filled: Tensor
    started: Tensor
    usage: Tensor

    def __init__(self, codes: int, width: int, side: int, slow: int, apart: int, who: float, ridge: float):
        super().__init__()
        D = BINS * (side // CELL) ** 2 + (side // 2) ** 2
        if not 2 <= codes <= RECENT:
            raise ValueError(f"there must be at least 2 codes, and at most {RECENT}, got {codes}")
        if slow > D:
            raise ValueError(f"slow_dims must be at most the {D} numbers of a look at {side} px, got {slow}")
        self.side, self.apart, self.who, self.ridge = side, apart, who, ridge
        self.codebook = nn.Parameter(torch.randn(codes, width))
        for name in ("near", "far", "means"):
            self.register_buffer(name, torch.zeros(D, D))
        self.register_buffer("total", torch.zeros(D))
        self.register_buffer("clips", torch.zeros(()))
        self.register_buffer("basis", torch.zeros(D, slow))
        self.register_buffer("middle", torch.zeros(slow))
        self.register_buffer("spread", torch.ones(slow))
        self.register_buffer("centres", torch.zeros(codes, slow))
        self.register_buffer("sigma2", torch.ones(()))
        self.register_buffer("recent", torch.zeros(RECENT, D))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))
        self.register_buffer("usage", torch.full((codes,), 1 / codes))

    @torch.no_grad()
    def seen(self, foregrounds: Tensor, masks: Tensor) -> Tensor:
        """Looks (N, D) of agents: foregrounds (N, 3, H, W) in [-1, 1], masks (N, 1, H, W)."""
        return looks(figures(foregrounds, masks, self.side))

    @torch.no_grad()
    def remember(self, clips: Tensor) -> None:
        """Take looks (B, T, D) of clips of more than `apart` frames into the statistics; those of the newest clips count most."""
        B, T = clips.shape[:2]
        x = clips.float()
        near = (x[:, 1:] - x[:, :-1]).flatten(0, 1)
        far = torch.cat([(x[:, k:] - x[:, :-k]).flatten(0, 1) for k in range(self.apart, T)])
        middle = x.mean(1)
        whole = all_reduce_sum(torch.tensor(float(B), device=clips.device))
        keep = max(0.0, 1 - float(whole) / LAST_CLIPS)
        with torch.autocast(x.device.type, enabled=False):  # rounded products would be no covariances
            sums = (near.T @ near * (B / len(near)), far.T @ far * (B / len(far)), middle.T @ middle, middle.sum(0))
        for kept, new in zip((self.near, self.far, self.means, self.total), sums, strict=True):
            kept.mul_(keep).add_(all_reduce_sum(new))
        self.clips.mul_(keep).add_(whole)
        # Every fourth frame: neighbours look alike.
        new = gather(x[:, ::4].flatten(0, 1))[:RECENT]
        self.recent.copy_(torch.cat([new, self.recent])[:RECENT])
        self.filled.copy_((self.filled + len(new)).clamp(max=RECENT))

    @torch.no_grad()
    def start(self) -> None:
        """Find what lasts and sort it into codes; nothing when that was done, or nothing was remembered."""
        if int(self.started) or int(self.filled) < len(self.codebook):
            return
        mean = self.total / self.clips
        between = self.means / self.clips - mean[:, None] * mean
        basis = slow_map(self.near / self.clips, self.far / self.clips, between, self.basis.shape[1], self.who, self.ridge)
        self.basis.copy_(basis)
        x = self.recent[: int(self.filled)]
        low, middle, high = (x @ basis).quantile(x.new_tensor([0.16, 0.5, 0.84]), 0)
        self.middle.copy_(middle)
        self.spread.copy_(((high - low) / 2).clamp(min=1e-6))
        vectors = self.slow(x)
        # The best of some: k-means ends where it began.
        tries = [k_means(vectors, len(self.codebook)) for _ in range(16)]
        errors = [float(torch.cdist(vectors, t).amin(1).square().sum()) for t in tries]
        self.centres.copy_(tries[errors.index(min(errors))])
        self.sigma2.fill_(min(errors) / len(vectors))
        self.started.fill_(1)

    def slow(self, seen: Tensor) -> Tensor:
        """Looks (N, D) to what lasts (N, slow), each number within two standard deviations of the median.

        Where a mask is torn a look is far away from all others; without limits each such look got a code for itself.
        """
        with torch.autocast(seen.device.type, enabled=False):  # the same codes in training as afterwards
            return torch.tanh((seen.float() @ self.basis - self.middle) / (2 * self.spread)) * 2 * self.spread

    def forward(self, seen: Tensor) -> Tensor:
        """Looks (N, D) to codes (N,); all 0 before the start."""
        with torch.autocast(seen.device.type, enabled=False):
            return torch.cdist(self.slow(seen), self.centres).argmin(1)

    def recognised(self, canvases: Tensor, codes: Tensor) -> Tensor:
        """How badly the codes (N,) are told in canvases (N, 4, H, W), with gradients: -log softmax_k(-|s - c_k|^2 / sigma^2) at the code.

        s is what lasts of the drawn agent's look, c_k the codes' centres, sigma^2 the mean square distance of the remembered looks to
        their own centre. Nothing is learned here: the drawing cannot agree with the codes on another meaning.
        """
        side = self.side
        square = cut(canvases, corners(canvases[:, 3:], side), side).float()
        # No gradient to the mask: it spread and led the square away from the agent, because that was the easier way to be recognised.
        with torch.autocast(square.device.type, enabled=False):
            far = torch.cdist(self.slow(looks(solid(square))), self.centres).square()
            return F.cross_entropy(-far / self.sigma2.clamp(min=1e-6), codes)

    def look_up(self, codes: Tensor) -> Tensor:
        """Vectors (..., width) of codes (...); zeros before the start, when codes mean nothing."""
        return self.codebook[codes] * self.started

    @torch.no_grad()
    def count(self, codes: Tensor) -> None:
        """Count codes over all processes: an average over about 30 steps."""
        counts = all_reduce_sum(torch.bincount(codes, minlength=len(self.usage)).float())
        self.usage.lerp_(counts / counts.sum(), 0.03)

    def perplexity(self) -> float:
        """exp of the entropy of how often the codes are used."""
        return float(torch.exp(-(self.usage * self.usage.clamp(min=1e-9).log()).sum()))
