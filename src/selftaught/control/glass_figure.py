"""Cutting an agent out of a frame around its centre, and putting it back: drawing and codes see it in the middle, wherever it stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def corners(masks: Tensor, side: int) -> Tensor:
    """Corners (N, 2), as whole (x, y), of the squares around the centres of masks (N, 1, H, W); they may lie outside of the frame."""
    m = masks[:, 0].detach().float()
    H, W = m.shape[1:]
    weight = m.sum((1, 2)).clamp(min=1e-6)
    x = ((m.sum(1) * torch.arange(W, device=m.device)).sum(1) / weight).round().long().clamp(0, W - 1)
    y = ((m.sum(2) * torch.arange(H, device=m.device)).sum(1) / weight).round().long().clamp(0, H - 1)
    return torch.stack([x, y], 1) - side // 2


def cut(frames: Tensor, corner: Tensor, side: int) -> Tensor:
    """(N, C, H, W) to the squares (N, C, side, side) at corners (N, 2); what lies outside of a frame is empty."""
    return _Window.apply(frames, corner, (side, side))  # type: ignore[no-any-return, no-untyped-call]


def paste(squares: Tensor, corner: Tensor, frames: Tensor) -> Tensor:
    """Frames (N, C, H, W) with squares (N, C, side, side) in place of what is at their corners (N, 2)."""
    size = (frames.shape[2], frames.shape[3])
    inside, _ = _places(-corner, (squares.shape[2], squares.shape[3]), size)
    return torch.where(inside[:, None], _Window.apply(squares, -corner, size), frames)  # type: ignore[no-untyped-call]


class _Window(torch.autograd.Function):
    """`_window`, whose gradient is another window: reading is much faster than the adding that indexing has for a gradient."""

    @staticmethod
    def forward(ctx: Any, pictures: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(corner)
        ctx.size = (pictures.shape[2], pictures.shape[3])
        return _window(pictures, corner, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (corner,) = ctx.saved_tensors
        return _window(gradient, -corner, ctx.size), None, None


def _window(pictures: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) to the parts (N, C, h, w) of `size` whose first pixel is at corners (N, 2); zero outside of the pictures."""
    C, H, W = pictures.shape[1:]
    inside, at = _places(corner, (H, W), size)
    out = pictures.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, C, -1))
    return out.unflatten(2, size).masked_fill(~inside[:, None], 0)


def _places(corner: Tensor, of: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of windows of `size` at corners (N, 2): which pixels (N, h, w) lie in pictures of size `of`, and their places there, counted on."""
    (H, W), (h, w) = of, size
    y = (corner[:, 1:] + torch.arange(h, device=corner.device))[:, :, None]
    x = (corner[:, :1] + torch.arange(w, device=corner.device))[:, None]
    return (y >= 0) & (y < H) & (x >= 0) & (x < W), y.clamp(0, H - 1) * W + x.clamp(0, W - 1)
