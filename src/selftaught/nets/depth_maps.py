"""Depth maps: their points in space, their normals, and the grid of triangles between pixel centres.

Frames are those of `nets.renderer`: the camera looks down -Z, x to the right, y up; pixel centres at integer + 0.5.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from selftaught.nets.renderer.meshes import unit


def rays(height_px: int, width_px: int, fov_rad: float, like: Tensor) -> Tensor:
    """(3, H, W): the points at depth 1 that are seen at the pixel centres; `fov_rad` from the lower to the upper edge."""
    slope = math.tan(fov_rad / 2) * 2 / height_px
    x = (torch.arange(width_px, device=like.device, dtype=like.dtype) + 0.5 - width_px / 2) * slope
    y = (height_px / 2 - torch.arange(height_px, device=like.device, dtype=like.dtype) - 0.5) * slope
    grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]))
    return torch.cat([grid, -torch.ones_like(grid[:1])])


def unproject(depth: Tensor, fov_rad: float) -> Tensor:
    """Points (B, 3, H, W) in the camera's frame of depths (B, H, W) along the viewing axis."""
    return depth[:, None] * rays(depth.shape[1], depth.shape[2], fov_rad, depth)


def normals_of_depth(depth: Tensor, fov_rad: float) -> Tensor:
    """Unit normals (B, 3, H, W), turned to the camera: cross product of the differences between neighbours two pixels apart.

    At the border the one neighbour that is missing is replaced by the pixel itself. As in the evaluation of Wu, Rupprecht, Vedaldi
    (CVPR 2020).
    """
    points = unproject(depth, fov_rad)
    wide = torch.nn.functional.pad(points, (1, 1, 1, 1), mode="replicate")
    right = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]
    up = wide[:, :, :-2, 1:-1] - wide[:, :, 2:, 1:-1]
    return unit(torch.linalg.cross(right, up, dim=1), 1)


@lru_cache(maxsize=8)
def grid_faces(height: int, width: int) -> Tensor:
    """(2 (H - 1) (W - 1), 3) int64 faces between the points of an H x W grid, counterclockwise when seen by the camera."""
    i, j = torch.meshgrid(torch.arange(height - 1), torch.arange(width - 1), indexing="ij")
    a = (i * width + j).reshape(-1)
    b, c, d = a + 1, a + width, a + width + 1
    return torch.cat([torch.stack([a, c, b], 1), torch.stack([b, c, d], 1)])
