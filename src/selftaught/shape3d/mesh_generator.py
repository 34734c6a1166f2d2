"""From numbers to a solid object: a closed mesh around a point, a texture that wraps it, a background, and their picture.

The surface is a sphere of rings whose radius varies with the direction (star-shaped), so that it is closed and its outside faces outwards
whatever the numbers are: it can be neither a card nor a hollow mould. Lengths are in half heights of the picture at the object's distance.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from selftaught.core import draws
from selftaught.nets.renderer import Camera, Light, Rendering, Topology, render, rotation_from_angles, uv_sphere

COARSE, FINE, AXES = 0.35, 0.12, 0.2
"""Largest changes of the logarithm of the radius: smooth ones, small ones, and those along the three axes."""
HIDDEN = 0.06
"""Difference of colours at which an object counts as hidden before its background by 1 / e."""
START = (0.5, 0.66, 0.55)
"""Half axes before training."""


class Solids(NamedTuple):
    """Objects and what is behind them."""

    points: Tensor
    """(B, V, 3) in the object's frame: +Y up, +Z front."""
    texture: Tensor
    """(B, 3, h, w) in [0, 1]."""
    background: Tensor
    """(B, 3, S, S) in [0, 1]."""


class Views(NamedTuple):
    """From where objects are seen, and in what light."""

    angles: Tensor
    """(B, 3) azimuth, elevation, roll in radians."""
    shift: Tensor
    """(B, 2) of the object to the right and upwards."""
    light: Tensor
    """(B, 4): ambient, diffuse, and the direction's x and y where its z is 1."""


def exact(like: Tensor) -> Any:
    """Where places are computed half precision is not enough: the products of rotations would be rounded to a pixel."""
    return torch.autocast(like.device.type, enabled=False)


def mirrored_angles(angles: Tensor, flips: Tensor) -> Tensor:
    """Angles (B, 3) of the mirrored pictures of symmetric objects where `flips` (B,) says so: azimuth and roll change sign."""
    return torch.where(flips[:, None], angles * angles.new_tensor([-1.0, 1.0, -1.0]), angles)


def pose_vector(angles: Tensor) -> Tensor:
    """Angles (B, 3) as (B, 4): cosine and sine of the azimuth, elevation, roll."""
    return torch.stack([angles[:, 0].cos(), angles[:, 0].sin(), angles[:, 1], angles[:, 2]], 1)


class Enlarge(nn.Module):
    """Twice the size: nearest, a 3 x 3 convolution that goes on at the other side from left to right, group norm, leaky ReLU."""

    def __init__(self, channels: int, out: int, wraps: bool):
        super().__init__()
        self.wraps = wraps
        self.convolution = nn.Conv2d(channels, out, 3)
        self.norm = nn.GroupNorm(math.gcd(8, out), out)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return functional.leaky_relu(self.norm(self.convolution(padded(x, self.wraps))), 0.2)


def padded(x: Tensor, wraps: bool) -> Tensor:
    """One more pixel on all sides: of the other side to the left and right when it `wraps`, else the border's."""
    if wraps:
        return functional.pad(functional.pad(x, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1), mode="replicate")
    return functional.pad(x, (1, 1, 1, 1), mode="replicate")


class Decoder(nn.Module):
    """Codes (B, D) to maps (B, out, 2^k h, 2^k w): linear layers to h x w, then k doublings."""

    def __init__(self, code: int, size: tuple[int, int], widths: tuple[int, ...], out: int, wraps: bool):
        super().__init__()
        self.size = size
        self.enter = nn.Sequential(nn.Linear(code, 128), nn.LeakyReLU(0.2), nn.Linear(128, widths[0] * size[0] * size[1]))
        self.blocks = nn.ModuleList([Enlarge(a, b, wraps) for a, b in zip(widths, widths[1:], strict=False)])
        self.leave = nn.Conv2d(widths[-1], out, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = functional.leaky_relu(self.enter(codes).reshape(len(codes), -1, *self.size), 0.2)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.leave(x).float()
        return found


class Shared(nn.Module):
    """What all objects have in common, learned directly, and colours of their own for a few parts of the surface.

    Decoders need many steps for a shape with corners, and their norms hide what is the same everywhere, such as a car's paint.
    """

    def __init__(self, rows: int, columns: int, codes: int, parts: int = 4):
        super().__init__()
        self.radius = nn.Parameter(torch.zeros(1, 1, rows, columns))
        """Logarithm of the radius."""
        self.texture = nn.Parameter(torch.zeros(1, 3, rows, columns))
        """Logits of colours."""
        self.parts = nn.Parameter(0.3 * torch.randn(parts, rows, columns))
        """Where each of an object's own colours is."""
        self.colours = nn.Linear(codes, 3 * parts)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, D) to logits of textures (B, 3, 2 rows, 2 columns)."""
        own = torch.einsum("bck,khw->bchw", self.colours(codes).reshape(len(codes), 3, -1), self.parts)
        return enlarged(self.texture + own, 2)


def enlarged(x: Tensor, times: int) -> Tensor:
    """Maps (B, C, h, w) that wrap round, `times` as large, smoothly."""
    if times == 1:
        return x
    found = functional.interpolate(padded(x, True), scale_factor=float(times), mode="bilinear", align_corners=False)
    return found[..., times:-times, times:-times].float()


class MeshGenerator(nn.Module):
    """z to a mesh of 2 * rows * columns faces, a texture of 2 rows x 2 columns, and a background; and how they look."""

    ground: Tensor
    """(3,) logits of the background's mean colour."""

    def __init__(
        self, px: int, rows: int, columns: int, codes: tuple[int, int, int], width: int, symmetric: bool, fov_rad: float,
        start: tuple[float, float, float] = START, shared: bool = False, scaled: bool = False, paint_levels: int = 3,
    ):  # fmt: skip
        super().__init__()
        if rows % 4 or columns % 4 or min(rows, columns) < 8 or px % 4:
            raise ValueError(f"{rows} rows, {columns} columns and {px} px must be multiples of 4, rows and columns from 8 on")
        self.px, self.rows, self.columns, self.codes = px, rows, columns, codes
        self.symmetric, self.fov_rad, self.scaled = symmetric, fov_rad, scaled
        with torch.device("cpu"):  # also where the rest is built without numbers
            self.directions, faces, self.uv, uv_faces = uv_sphere(rows, columns)
            self.topology = Topology(faces, len(self.directions), uv_faces)
            self.neighbours = torch.cat([self.topology.edges, self.topology.edges.flip(1)]).T
            self.valence = torch.bincount(self.neighbours[0], minlength=len(self.directions)).float()
        self.register_buffer("ground", torch.zeros(3))
        small, w = (rows // 4, columns // 4), width
        self.coarse = Decoder(codes[0], small, (2 * w, w), 1, True)
        self.fine = Decoder(codes[0], small, (2 * w, w, w), 1, True)
        self.axes = nn.Linear(codes[0], 3)
        self.paint = Decoder(codes[0] + codes[1], small, (2 * w, w + w // 2, w, w // 2)[: paint_levels + 1], 3, True)
        self.behind = Decoder(codes[2], (4, 4), (w, w // 2), 3, False)
        self.base = nn.Parameter(torch.tensor(start).log())
        self.centre = nn.Parameter(torch.zeros(3))
        self.shared = Shared(rows, columns, codes[0] + codes[1]) if shared else None
        with torch.no_grad():
            for name, value in self.named_parameters():  # starts near an ellipsoid before a plain background
                if name.startswith(("coarse.leave", "fine.leave", "axes", "behind.leave")):
                    value.mul_(0.1)

    def forward(self, z: Tensor) -> Solids:
        """(B, D) codes of shape, texture and background, one after the other, to objects."""
        shape, texture, behind = z.split(list(self.codes), 1)
        return Solids(self.mesh(shape), self.painted(torch.cat([shape, texture], 1)), self.backdrop(behind))

    def mesh(self, shape: Tensor) -> Tensor:
        """Codes (B, D) to points (B, V, 3)."""
        coarse = functional.interpolate(self.coarse(shape), (self.rows, self.columns), mode="bicubic", align_corners=False)
        radius = COARSE * coarse.tanh() + FINE * self.fine(shape).tanh()
        if self.shared is not None:
            radius = radius + self.shared.radius
        if self.symmetric:  # column 0 is the back, and its own mirror image
            radius = (radius + radius.flip(3).roll(1, 3)) / 2
        poles = torch.stack([radius[:, 0, 0].mean(1), radius[:, 0, -1].mean(1)], 1)
        grown = torch.cat([radius.flatten(1), poles], 1).exp()
        half = (self.base + AXES * self.axes(shape).float().tanh()).exp()
        centre = self.centre * self.centre.new_tensor([0.0, 1.0, 1.0]) if self.symmetric else self.centre
        return self.directions.to(grown) * grown[..., None] * half[:, None] + centre

    def painted(self, codes: Tensor) -> Tensor:
        """Codes (B, D) to textures (B, 3, 2 rows, 2 columns)."""
        found = self.paint(codes)
        found = enlarged(found, 2 * self.rows // found.shape[2])
        if self.shared is not None:
            found = found + self.shared(codes)
        return ((found + found.flip(3)) / 2 if self.symmetric else found).sigmoid()

    def backdrop(self, codes: Tensor) -> Tensor:
        """Codes (B, D) to backgrounds (B, 3, S, S)."""
        found = self.behind(codes) + self.ground[:, None, None]
        return functional.interpolate(found, (self.px, self.px), mode="bilinear", align_corners=False).sigmoid()

    def camera(self, views: Views) -> Camera:
        """Cameras at the distance where half the picture's height is 1."""
        focal = views.angles.new_full((len(views.angles),), 1 / math.tan(self.fov_rad / 2))
        away = -focal[:1].expand(len(focal))
        position = torch.stack([views.shift[:, 0], views.shift[:, 1], away], 1)
        return Camera(rotation_from_angles(*views.angles.unbind(1)), position, focal)

    def render(self, solids: Solids, views: Views, px: int | None = None, normals: bool = False) -> Rendering:
        """Pictures of objects over their backgrounds; contours are blended, backs are not drawn."""
        side = px or self.px
        ground = solids.background
        if side != ground.shape[-1]:
            ground = functional.interpolate(ground, (side, side), mode="bilinear", align_corners=False)
        direction = torch.cat([views.light[:, 2:], torch.ones_like(views.light[:, :1])], 1)
        light = Light(direction, views.light[:, 0], views.light[:, 1])
        with exact(solids.points):
            return render(
                solids.points, self.topology, self.camera(views), side, texture=solids.texture, uv=self.uv, light=light,
                background=ground, cull=True, normals=normals,
            )  # fmt: skip

    def roughness(self, points: Tensor) -> Tensor:
        """(B,): mean squared distance of the points from the mean of their neighbours.

        If `scaled`, after the three extents of each object were made equal to their mean: long objects are not pressed together then.
        """
        first, second = self.neighbours
        if self.scaled:
            extent = points.std(1, keepdim=True).clamp_min(1e-4)
            points = points * (extent.mean(2, keepdim=True) / extent)
        total = torch.zeros_like(points).index_add(1, first, points.index_select(1, second))
        return (points - total / self.valence[:, None]).square().sum(2).mean(1)

    def leaving(self, points: Tensor, views: Views, most: float = 0.97) -> Tensor:
        """(B,): mean over the points of how far they are outside of the middle `most` of the frame, in half heights."""
        with exact(points):
            seen = self.camera(views).screen(points, 2, 2).xy - 1
        return (seen.abs() - most).clamp_min(0).sum(2).mean(1)


def hidden(seen: Rendering, background: Tensor) -> Tensor:
    """(B,): share of the picture where an object is, but has the colour of its background (B, 3, S, S).

    The gradient moves contours alone: objects should become smaller there, and not be painted in colours that real ones do not have.
    """
    with torch.no_grad():
        away = (seen.image - background).abs().mean(1) / seen.mask.clamp_min(0.05)
        alike = (-away / HIDDEN).exp()
    return (seen.mask * alike).mean((1, 2))


def thinness(points: Tensor, least: float) -> Tensor:
    """(B,): how much the smallest over the largest deviation of points (B, V, 3) along their axes falls short of `least`."""
    centred = points - points.mean(1, keepdim=True)
    with exact(points):
        values = torch.linalg.eigvalsh(centred.mT @ centred / points.shape[1])
    ratio = (values[:, 0].clamp_min(1e-9) / values[:, 2].clamp_min(1e-9)).sqrt()
    return (least - ratio).clamp_min(0)


def draw_lights(count: int, ambient: tuple[float, float], diffuse: tuple[float, float], spread: tuple[float, float, float]) -> Tensor:
    """(B, 4) lights: ambient and diffuse uniform in their ranges, directions normal around (0, `spread[2]`, 1)."""
    strength = draws.rand(count, 2)
    side = draws.randn(count, 2)
    return torch.stack([
        ambient[0] + (ambient[1] - ambient[0]) * strength[:, 0], diffuse[0] + (diffuse[1] - diffuse[0]) * strength[:, 1],
        spread[0] * side[:, 0], spread[2] + spread[1] * side[:, 1],
    ], 1)  # fmt: skip


def moved(pictures: Tensor, steps: Tensor) -> Tensor:
    """(B, C, S, S) shifted by whole pixels `steps` (B, 2) int64 to the right and downwards; the border goes on."""
    line = torch.arange(pictures.shape[-1])
    last = len(line) - 1
    column = (line - steps[:, :1]).clamp(0, last)[:, None, None].expand(-1, pictures.shape[1], len(line), -1)
    row = (line - steps[:, 1:]).clamp(0, last)[:, None, :, None].expand(-1, pictures.shape[1], -1, len(line))
    return pictures.gather(3, column).gather(2, row)
