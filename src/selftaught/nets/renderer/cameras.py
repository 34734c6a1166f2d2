"""Cameras: from angles and a distance to a rotation, and from points of an object to pixels and depths."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError

FOV_RAD = math.radians(30)
FILL_FRAC = 0.8
"""Share of the picture's height that the unit sphere fills at the default distance or scale."""


class Screen(NamedTuple):
    """Points as a camera sees them."""

    xy: Tensor
    """(B, V, 2), pixels from the upper left corner."""
    depth: Tensor
    """(B, V), distance along the viewing axis in units of the object; negative behind the camera."""
    seen: Tensor
    """(B, V) bool: farther than `near`, so that `xy` means something."""


@dataclass(frozen=True)
class Camera:
    """Cameras of a batch of B pictures. `rotation`, `position` and `focal` may carry gradients."""

    rotation: Tensor
    """(B, 3, 3), from the object's frame to the camera's."""
    position: Tensor
    """(B, 3), the object's origin in the camera's frame; (0, 0, -distance) puts it in the middle of the picture."""
    focal: Tensor
    """(B,), half heights of the picture per unit of x / depth (perspective) or per unit of x (orthographic)."""
    perspective: bool = True
    near: float = 0.05
    """Faces with a vertex nearer than this, or behind the camera, are not rendered."""

    def __post_init__(self) -> None:
        batch = self.rotation.shape[0] if self.rotation.dim() else 0
        shapes = tuple(self.rotation.shape), tuple(self.position.shape), tuple(self.focal.shape)
        if shapes != ((batch, 3, 3), (batch, 3), (batch,)):
            raise ConfigError(
                f"A camera's rotation, position and focal have shapes {shapes}.", expected="(B, 3, 3), (B, 3), (B,)"
            )
        if self.near <= 0:
            raise ConfigError(f"near is {self.near}.", expected="a distance above 0")

    def to(self, like: Tensor) -> Camera:
        """The same camera with the type and device of `like`."""
        moved = [part.to(like) for part in (self.rotation, self.position, self.focal)]
        return replace(self, rotation=moved[0], position=moved[1], focal=moved[2])

    def view(self, points: Tensor) -> Tensor:
        """Points (B, V, 3) of the object in the camera's frame."""
        return points @ self.rotation.mT + self.position[:, None]

    def screen(self, points: Tensor, height_px: int, width_px: int) -> Screen:
        """Project points (B, V, 3) of the object; the picture's height is the unit of `focal`, pixels are square."""
        seen_from = self.view(points)
        depth = -seen_from[..., 2]
        scale = self.focal[:, None] * (height_px / 2)
        if self.perspective:
            scale = scale / depth.clamp_min(self.near)
        x = width_px / 2 + scale * seen_from[..., 0]
        y = height_px / 2 - scale * seen_from[..., 1]
        return Screen(torch.stack([x, y], -1), depth, depth.detach() > self.near)


def rotation_from_angles(azimuth_rad: Tensor, elevation_rad: Tensor, roll_rad: Tensor) -> Tensor:
    """Rz(roll) Rx(elevation) Ry(azimuth), (B, 3, 3), from three (B,): from the object's frame to the camera's.

    Growing azimuth turns the object's front to the right of the picture, growing elevation its top towards the camera,
    growing roll turns the picture counterclockwise.
    """
    sa, ca = azimuth_rad.sin(), azimuth_rad.cos()
    se, ce = elevation_rad.sin(), elevation_rad.cos()
    sr, cr = roll_rad.sin(), roll_rad.cos()
    rows = [
        torch.stack([cr * ca - sr * se * sa, -sr * ce, cr * sa + sr * se * ca], -1),
        torch.stack([sr * ca + cr * se * sa, cr * ce, sr * sa - cr * se * ca], -1),
        torch.stack([-ce * sa, se, ce * ca], -1),
    ]
    return torch.stack(rows, -2)


def perspective_camera(
    azimuth_rad: Tensor | float = 0.0,
    elevation_rad: Tensor | float = 0.0,
    roll_rad: Tensor | float = 0.0,
    *,
    distance: Tensor | float | None = None,
    fov_rad: Tensor | float = FOV_RAD,
    near: float = 0.05,
) -> Camera:
    """Cameras that look at the object's origin; each argument is a number or (B,).

    fov_rad: the whole angle from the lower to the upper edge. Without a distance the unit sphere fills FILL_FRAC of the
    height.
    """
    azimuth, elevation, roll, fov = _together(azimuth_rad, elevation_rad, roll_rad, fov_rad)
    half = (fov / 2).tan()
    if distance is None:
        away = (1 + (FILL_FRAC * half) ** -2).sqrt()  # tan(asin(1 / away)) = FILL_FRAC * half
    else:
        away = torch.as_tensor(distance).to(azimuth).expand(len(azimuth))
    position = torch.stack([torch.zeros_like(away), torch.zeros_like(away), -away], -1)
    return Camera(rotation_from_angles(azimuth, elevation, roll), position, 1 / half, True, near)


def orthographic_camera(
    azimuth_rad: Tensor | float = 0.0,
    elevation_rad: Tensor | float = 0.0,
    roll_rad: Tensor | float = 0.0,
    *,
    scale: Tensor | float = FILL_FRAC,
    distance: float = 5.0,
    near: float = 0.05,
) -> Camera:
    """Cameras without perspective; `scale` is in half heights of the picture per unit, `distance` only moves the depth."""
    azimuth, elevation, roll, focal = _together(azimuth_rad, elevation_rad, roll_rad, scale)
    position = azimuth.new_tensor([0.0, 0.0, -distance]).expand(len(azimuth), 3)
    return Camera(rotation_from_angles(azimuth, elevation, roll), position, focal, False, near)


def _together(*values: Tensor | float) -> list[Tensor]:
    """Numbers and (B,) as (B,) of one type."""
    tensors = [torch.as_tensor(value) for value in values]
    kind = torch.float64 if any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in values) else torch.float32
    try:
        joined = torch.broadcast_tensors(*(tensor.to(kind) for tensor in tensors))
    except RuntimeError:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ConfigError(f"A camera's angles have shapes {shapes}.", expected="numbers, or (B,) of one B") from None
    return [tensor.reshape(-1) if tensor.dim() == 0 else tensor for tensor in joined]
