"""What the seen faces look like: perspective-correct attributes, textures and light; all differentiable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from selftaught.core.errors import ConfigError, NumericError
from selftaught.nets.renderer.meshes import unit

_LIGHT = ((3,), (), ())
_BEYOND = 0.01
"""How far outside of [0, 1] a weight may be computed; pixel centres lie inside of their faces."""


@dataclass(frozen=True)
class Light:
    """Lambert's law: colour times (ambient + diffuse * max(0, normal . direction)), for each picture of a batch.

    In [0, 1] as long as ambient + diffuse <= 1. There are no shadows and no highlights.
    """

    direction: Tensor
    """(B, 3) towards the light in the camera's frame, of any length: (0, 0, 1) shines from the camera."""
    ambient: Tensor
    """(B,), from 0 on."""
    diffuse: Tensor
    """(B,), from 0 on."""

    def shade(self, normals: Tensor, picture: Tensor) -> Tensor:
        """Factor (N,) for unit normals (3, N) in the camera's frame; picture: (N,) numbers in the batch."""
        direction = unit(self.direction).T.index_select(1, picture)
        facing = (normals * direction).sum(0).clamp_min(0)
        return self.ambient.index_select(0, picture) + self.diffuse.index_select(0, picture) * facing

    def for_batch(self, points: Tensor) -> Light:
        """The same light for each of points (B, V, 3), of their type and on their device; one light shines on all."""
        batch = len(points)
        parts = [part.to(points) for part in (self.direction, self.ambient, self.diffuse)]
        if any(part.shape[:1] not in ((1,), (batch,)) or part.shape[1:] != end for part, end in zip(parts, _LIGHT, strict=True)):
            shapes = [tuple(part.shape) for part in parts]
            raise ConfigError(
                f"The light's direction, ambient and diffuse have shapes {shapes}.", expected=f"(B, 3), (B,), (B,), B = 1 or {batch}"
            )
        return Light(*(part.expand(batch, *part.shape[1:]) for part in parts))


class Seen(NamedTuple):
    """The pixels at which something is seen, N of all, in the order of (picture, row, column)."""

    place: Tensor
    """(N,) int64 into B * H * W."""
    picture: Tensor
    """(N,) int64."""
    face: Tensor
    """(N,) int64."""
    centre: Tensor
    """(2, N) pixel centres, x and y."""


def seen_pixels(face: Tensor, like: Tensor) -> Seen:
    """List the pixels of a face map (B, H, W) that hold a face; centres have the type of `like`."""
    _, height, width = face.shape
    flat = face.reshape(-1)
    place = (flat >= 0).nonzero()[:, 0]
    picture = torch.div(place, height * width, rounding_mode="floor")
    rest = place - picture * (height * width)
    row = torch.div(rest, width, rounding_mode="floor")
    centre = torch.stack([rest - row * width, row]).to(like.dtype) + 0.5
    return Seen(place, picture, flat[place], centre)


def weights(corners: Tensor, inverse_depth: Tensor | None, centre: Tensor) -> Tensor:
    """Barycentric weights (3, N) of pixel centres (2, N) in faces with corners (2, 3, N) on the screen; their sum is 1.

    Where they cannot be told, in slivers of about the size of rounding errors, they are 1/3 each, without a gradient.

    inverse_depth (3, N): perspective-correct, w_k ~ a_k / depth_k with a_k the area opposite of corner k. None: affine.
    """
    (x0, x1, x2), (y0, y1, y2) = corners - centre[:, None]
    areas = torch.stack([x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0])
    if inverse_depth is not None:
        areas = areas * inverse_depth
    total = areas.sum(0)
    with torch.no_grad():  # of slivers rounding leaves nothing, not even the sign; a comparison with NaN is false
        share = areas / total
        sound = ((share > -_BEYOND) & (share < 1 + _BEYOND)).all(0)
    return torch.where(sound, areas / torch.where(sound, total, 1), 1 / 3)


def mix(found: Tensor, rows: Tensor) -> Tensor:
    """Attributes (D, N) from weights (3, N) and those of the corners (D, 3, N)."""
    return found[0] * rows[:, 0] + found[1] * rows[:, 1] + found[2] * rows[:, 2]


def sample_texture(texture: Tensor, uv: Tensor, seen: Seen, height_px: int, width_px: int) -> Tensor:
    """Colours (C, N) of textures (B, C, h, w) at uv (2, N), bilinear: u wraps around, v ends at the border.

    (0, 0) is the upper left corner of the texture and texel centres lie at (i + 0.5) / w, as in glTF.
    """
    batch, channels, _, wide = texture.shape
    # One more column on each side, so that the filter wraps as well.
    padded = torch.cat([texture[..., -1:], texture, texture[..., :1]], 3)
    u, v = uv
    u = ((u - u.detach().floor()) * wide + 1) / (wide + 2)
    grid = uv.new_zeros(batch * height_px * width_px, 2).index_copy(0, seen.place, torch.stack([u, v], 1) * 2 - 1)
    grid = grid.reshape(batch, height_px, width_px, 2)
    found = functional.grid_sample(padded, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.transpose(0, 1).reshape(channels, -1).index_select(1, seen.place)


def check_texture(texture: Tensor, uv: Tensor | None, batch: int, uv_count: int) -> Tensor:
    """The texture for a whole batch; raises ConfigError when texture and uv do not fit."""
    if uv is None:
        raise ConfigError("There is a texture but no uv.", expected="uv, (U, 2) or (B, U, 2)")
    if texture.dim() == 3:
        texture = texture[None]
    if texture.dim() != 4 or texture.shape[0] not in (1, batch) or 0 in texture.shape[1:]:
        raise ConfigError(
            f"The texture has shape {tuple(texture.shape)}.", expected=f"(C, h, w) or ({batch}, C, h, w), not empty"
        )
    if uv.dim() not in (2, 3) or uv.shape[-1] != 2 or (uv.dim() == 3 and uv.shape[0] not in (1, batch)):
        raise ConfigError(f"uv have shape {tuple(uv.shape)}.", expected=f"(U, 2) or ({batch}, U, 2)")
    if not bool(uv.detach().isfinite().all()):  # torch dies of them while it computes gradients
        raise NumericError("Texture coordinates are NaN or infinite.", do="look at what made them")
    if uv.shape[-2] <= uv_count:
        raise ConfigError(f"There are {uv.shape[-2]} uv.", expected=f"at least {uv_count + 1}, as the faces name them")
    return texture.expand(batch, -1, -1, -1)
