"""Cutting an agent out of a frame around its centre, and putting it back: drawing and codes see it in the middle, wherever it stands."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    N, device = len(frames), frames.device
    half = side // 2
    steps = torch.arange(side, device=device)
    sheet = F.pad(frames, (half, half, half, half))
    rows, columns = (corner[:, 1:] + half + steps)[:, :, None], (corner[:, :1] + half + steps)[:, None]
    return sheet[torch.arange(N, device=device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def paste(squares: Tensor, corner: Tensor, frames: Tensor) -> Tensor:
    """Frames (N, C, H, W) with squares (N, C, side, side) in place of what is at their corners (N, 2)."""
    N, _, H, W = frames.shape
    side, device = squares.shape[2], frames.device
    y = torch.arange(H, device=device) - corner[:, 1:]
    x = torch.arange(W, device=device) - corner[:, :1]
    inside = ((y >= 0) & (y < side))[:, None, :, None] & ((x >= 0) & (x < side))[:, None, None]
    rows, columns = y.clamp(0, side - 1)[:, :, None], x.clamp(0, side - 1)[:, None]
    spread = squares[torch.arange(N, device=device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
    return torch.where(inside, spread, frames)
