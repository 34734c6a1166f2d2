"""Motion of the ground between two frames, as a matrix, and frames brought onto each other by it: no weights.

Robust Gauss-Newton (after Odobez and Bouthemy, "Robust Multiresolution Estimation of Parametric Motion Models", 1995) from the best
whole-pixel shift: what moves otherwise than most of the frame is weighed down by the Geman-McClure function, whose scale is the median
of what is left.
A motion is a matrix M (2, 3) in pixels about the centre of the frame: the point (x, y) of frame a is seen at M (x, y, 1) in frame b.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.nets.phase_correlation import robust_match

Motion = Literal["none", "translation", "similarity", "affine"]
WORK_PX = 40
"""Frames are made smaller while their shorter side stays this long: on still smaller ones a thing that moves draws the ground along."""
REACH_PX = 8
"""Largest shift in each direction that the first guess looks for, in pixels of those frames."""
CAPS = (0.06, 0.015)
"""Largest difference of a pixel that counts, in [0, 1], in two first guesses: a low one finds smooth grounds behind a sharp thing that
moves, a high one sharp grounds that move by half a pixel. The one that explains more is kept."""
STEPS = 3
"""Gauss-Newton steps, first on the shift alone, then on the whole motion."""
LEAST_SCALE = 0.01
"""Smallest scale of the robust weights, in [0, 1]: below it differences are noise."""


def identity(B: int, like: Tensor) -> Tensor:
    """(B, 2, 3) of no motion."""
    return torch.eye(2, 3, dtype=like.dtype, device=like.device).expand(B, 2, 3).clone()


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The motion (..., 2, 3) from a to c, of those from a to b and from b to c."""
    return torch.cat([then[..., :2] @ first[..., :2], then[..., :2] @ first[..., 2:] + then[..., 2:]], -1)


def inverse(motion: Tensor) -> Tensor:
    """The motion (..., 2, 3) from b to a, of that from a to b."""
    linear = torch.linalg.inv(motion[..., :2])
    return torch.cat([linear, -linear @ motion[..., 2:]], -1)


def warped(b: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Bring frame b onto frame a: b(M p) for all pixels p of a, and where that lies in b.

    (B, C, H, W) and (B, 2, 3) to (B, C, H, W), bilinear and repeated beyond the border, and (B, 1, H, W) of 0 and 1.
    """
    H, W = b.shape[-2:]
    x, y = _places(H, W, b)
    p = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    q = (motion.to(b.dtype) @ p).view(-1, 2, H, W)
    grid = torch.stack([2 * q[:, 0] / W, 2 * q[:, 1] / H], -1)
    inside = (q[:, 0].abs() <= (W - 1) / 2 + 1e-3) & (q[:, 1].abs() <= (H - 1) / 2 + 1e-3)
    return F.grid_sample(b, grid, "bilinear", "border", align_corners=False), inside[:, None].to(b.dtype)


@torch.no_grad()
def register(a: Tensor, b: Tensor, model: Motion = "affine") -> Tensor:
    """Motion (B, 2, 3) of most of the frame from a to b, both (B, C, H, W) in [0, 1]; none where a frame is flat.

    Shifts of up to a sixth of the shorter side are found; turns and changes of size must be small.
    """
    motion = identity(len(a), a)
    if model == "none":
        return motion
    factor = 1
    while min(a.shape[-2:]) // (2 * factor) >= WORK_PX:
        factor *= 2
    one, two = (F.avg_pool2d(x, factor) if factor > 1 else x for x in (a, b))
    reach = min(REACH_PX, (min(one.shape[-2:]) - 1) // 6)
    motion, worth = _fitted(one, two, reach, CAPS[0], model)
    other, better = _fitted(one, two, reach, CAPS[1], model)
    motion = torch.where((better < worth)[:, None, None], other, motion)
    motion[:, :, 2] *= factor
    # A fit that went astray is worse than none.
    wild = ~torch.isfinite(motion).all((1, 2)) | ((motion[:, :, :2] - torch.eye(2).to(motion)).abs().amax((1, 2)) > 0.5)
    return torch.where(wild[:, None, None], identity(len(a), a), motion)


def _fitted(a: Tensor, b: Tensor, reach_px: int, cap: float, model: Motion) -> tuple[Tensor, Tensor]:
    """A motion (B, 2, 3) from the best whole-pixel shift under a cap, and its cost (B,): the mean of min(|b(M p) - a(p)|, mean of CAPS)."""
    motion = identity(len(a), a)
    motion[:, :, 2] = robust_match(a, b, reach_px, cap, stride=2)
    # A turn that is fitted before the shift is right goes astray.
    for kind in ("translation", model):
        for _ in range(STEPS):
            motion = _step(a, b, motion, kind)
    there, inside = warped(b, motion)
    apart = (there - a).abs().mean(1, keepdim=True).clamp(max=sum(CAPS) / 2)
    return motion, (apart * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)


def _places(H: int, W: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres about the frame's centre: x and y, each (H, W)."""
    x = torch.arange(W, dtype=like.dtype, device=like.device) - (W - 1) / 2
    y = torch.arange(H, dtype=like.dtype, device=like.device) - (H - 1) / 2
    return x.expand(H, W), y[:, None].expand(H, W)


def _step(a: Tensor, b: Tensor, motion: Tensor, kind: str) -> Tensor:
    """One step of weighted least squares on sum_p w(p) |b(M p) - a(p)|^2."""
    H, W = a.shape[-2:]
    there, inside = warped(b, motion)
    rest = there - a
    size = rest.abs().mean(1, keepdim=True)
    # 1.4826 times the median is the standard deviation of what follows most of the frame.
    scale = (1.4826 * size.flatten(1).median(1).values).clamp(min=LEAST_SCALE)[:, None, None, None]
    weight = inside / (1 + (size / scale).square()).square()
    gx = F.pad((there[..., 2:] - there[..., :-2]) / 2, (1, 1))
    gy = F.pad((there[..., 2:, :] - there[..., :-2, :]) / 2, (0, 0, 1, 1))
    x, y = _places(H, W, a)
    x, y = 2 * x / W, 2 * y / H  # so that all unknowns are in pixels
    rows = {
        "translation": [gx, gy],
        "similarity": [gx, gy, gx * x + gy * y * (H / W), gy * x - gx * y * (H / W)],
        "affine": [gx, gy, gx * x, gx * y, gy * x, gy * y],
    }[kind]
    J = torch.stack(rows, -1).flatten(1, 3)
    Jw = J * weight.expand_as(rest).flatten(1)[..., None]
    normal = J.transpose(1, 2) @ Jw
    damping = 1e-4 * normal.diagonal(dim1=1, dim2=2).sum(1) + 1e-6
    normal = normal + damping[:, None, None] * torch.eye(len(rows)).to(normal)
    d = torch.linalg.solve(normal, -(Jw.transpose(1, 2) @ rest.flatten(1)[..., None]))[..., 0]
    return compose(_delta(d, kind, 2 / W, 2 / H, H / W), motion)


def _delta(d: Tensor, kind: str, u: float, v: float, ratio: float) -> Tensor:
    """The small motion (B, 2, 3) with the unknowns d (B, n)."""
    move = identity(len(d), d)
    move[:, :, 2] += d[:, :2]
    if kind == "similarity":
        grow, turn = d[:, 2] * u, d[:, 3] * u
        move[:, 0, 0] += grow
        move[:, 1, 1] += grow
        move[:, 1, 0] += turn
        move[:, 0, 1] -= turn
    elif kind == "affine":
        move[:, 0, 0] += d[:, 2] * u
        move[:, 0, 1] += d[:, 3] * v
        move[:, 1, 0] += d[:, 4] * u
        move[:, 1, 1] += d[:, 5] * v
    return move
