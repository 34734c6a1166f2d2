"""Pictures of meshes: the whole way from points, faces and a camera to colours, mask, depth and normals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from selftaught.core.errors import ConfigError, NumericError
from selftaught.nets.renderer.cameras import Camera, Screen
from selftaught.nets.renderer.contours import blend_contours
from selftaught.nets.renderer.meshes import Topology, face_normals, unit, vertex_normals
from selftaught.nets.renderer.raster import AREA_MIN_PX2, FAR_PX, Raster, choose_engine, rasterise, signed_areas
from selftaught.nets.renderer.shading import Light, Seen, check_texture, mix, sample_texture, seen_pixels, weights

LARGEST = 1e9
"""Coordinates beyond this are refused: their products leave float32."""


class Rendering(NamedTuple):
    """Pictures of a batch, float, with gradients unless said otherwise."""

    image: Tensor
    """(B, C, H, W), the object over its background, with blended contours. In [0, 1] when the colours and the background are."""
    mask: Tensor
    """(B, H, W) in [0, 1], the share of each pixel that the object covers."""
    depth: Tensor
    """(B, H, W) distance along the viewing axis at pixel centres, in units of the object; 0 where nothing is seen. Not blended."""
    normals: Tensor | None
    """(B, 3, H, W) unit normals in the camera's frame, turned to the camera; 0 where nothing is seen. None if not asked for."""
    face: Tensor
    """(B, H, W) int64, the face seen at each pixel centre, -1 for none; no gradient."""


@dataclass(frozen=True)
class _Scene:
    """What is known once the points are on the screen."""

    topology: Topology
    camera: Camera
    screen: Screen
    order: Tensor
    """(B, V) order of depth in [0, 1], affine on the screen; no gradient."""
    areas: Tensor
    """(B, F) signed, px^2; no gradient."""
    usable: Tensor
    """(B, F) bool, faces in front of the camera and not absurdly large."""
    slopes: Tensor
    """(2, B, F), what the order of depth gains per pixel to the right and downwards; no gradient."""
    raster: Raster
    seen: Seen


def render(
    points: Tensor,
    topology: Topology,
    camera: Camera,
    size_px: int | tuple[int, int],
    *,
    colours: Tensor | None = None,
    texture: Tensor | None = None,
    uv: Tensor | None = None,
    background: Tensor | None = None,
    light: Light | None = None,
    flat: bool = False,
    normals: bool = False,
    cull: bool = False,
    antialias: bool = True,
    supersample: int = 1,
    engine: str = "auto",
) -> Rendering:
    """Render meshes of one topology, one picture each.

    points: (B, V, 3) float32 or float64. size_px: side, or (height, width). colours: (V, C) or (B, V, C) per vertex, white if
    there is neither colours nor texture. texture: (C, h, w) or (B, C, h, w) with uv: (U, 2) or (B, U, 2) in [0, 1],
    multiplied with the colours if both are given. background: (B, C, H, W) or anything that broadcasts to it, 0 if none.
    light: none leaves the colours as they are. flat: the face's own normal instead of the vertices'. normals: whether to return
    them. cull: leave out faces seen from behind, which halves the work for closed meshes. supersample: render
    so many times larger and average. engine: auto, torch or numba.

    Gradients reach points, colours, texture, uv, background, camera and light. Raises NumericError for points
    that are NaN, infinite or beyond 1e9, ConfigError for shapes that do not fit.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    camera = _check(points, topology, camera, height, width, supersample)
    engine = choose_engine(engine, points)
    scene = _look(points, topology, camera, height * supersample, width * supersample, cull, engine)
    attributes, split = _vertex_attributes(points, colours, topology, camera, (light is not None or normals) and not flat)
    corners, found, depth = _interpolate(scene, attributes)
    tint, smooth = found[:split], found[split:]
    colour = tint
    if texture is not None:
        uv_faces = topology.faces if topology.uv_faces is None else topology.uv_faces
        texture = check_texture(texture.to(points), uv, len(points), int(uv_faces.max()) if len(uv_faces) else -1)
        assert uv is not None
        at = _interpolate_uv(scene, corners, uv.to(points), uv_faces)
        sampled = sample_texture(texture, at, scene.seen, *scene.raster.face.shape[1:])
        colour = sampled if colours is None else sampled * tint
    normal = _normals(scene, points, smooth, flat) if light is not None or normals else None
    if light is not None and normal is not None:
        colour = colour * light.for_batch(points).shade(normal, scene.seen.picture)
    canvas = _compose(scene, colour, background, supersample)
    if antialias:
        view = scene.screen.xy, scene.order, scene.areas, scene.usable
        canvas = blend_contours(canvas, *view, topology, scene.raster, scene.slopes)
    return _finish(scene, canvas, depth, normal if normals else None, supersample)


def _check(points: Tensor, topology: Topology, camera: Camera, height: int, width: int, supersample: int) -> Camera:
    """The camera for the whole batch, once everything fits."""
    if points.dim() != 3 or points.shape[2] != 3 or points.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"The points are {points.dtype} {tuple(points.shape)}.", expected="float32 or float64 (B, V, 3)")
    if points.shape[1] != topology.vertices:
        raise ConfigError(f"There are {points.shape[1]} points.", expected=f"{topology.vertices}, as in the topology")
    if min(height, width, supersample) < 1:
        raise ConfigError("The picture is empty.", expected="size_px and supersample from 1 on")
    # A comparison with NaN is false.
    fine = (points.detach().abs() <= LARGEST).all(2)
    if not bool(fine.all()):
        picture, vertex = (~fine).nonzero()[0].tolist()
        raise NumericError(
            f"{int((~fine).sum())} points are NaN, infinite or beyond {LARGEST:g}.",
            why=f"the first is vertex {vertex} of mesh {picture}: {points[picture, vertex].tolist()}",
            do="look at what made the points; a training that diverged gives such values",
        )
    batch = len(points)
    if not batch:
        raise ConfigError("There are no meshes.", expected="points (B, V, 3) with B from 1 on")
    if len(camera.rotation) not in (1, batch):
        raise ConfigError(f"There are {len(camera.rotation)} cameras.", expected=f"1 or {batch}, one for each mesh")
    camera = camera.to(points)
    if not all(bool(part.detach().isfinite().all()) for part in (camera.rotation, camera.position, camera.focal)):
        raise NumericError("The camera holds NaN or infinite values.")
    return camera


def _look(
    points: Tensor, topology: Topology, camera: Camera, height: int, width: int, cull: bool, engine: str
) -> _Scene:
    """Project, find the order of depth, and rasterise."""
    screen = camera.screen(points, height, width)
    with torch.no_grad():
        batch = len(points)
        faces = topology.faces
        order = -1 / screen.depth.clamp_min(camera.near) if camera.perspective else screen.depth
        low = order.amin(1, keepdim=True) if order.shape[1] else order.sum(1, keepdim=True)
        span = (order.amax(1, keepdim=True) if order.shape[1] else low) - low
        # Off 0 and 1, so that nothing is clamped on the way through the z-buffer.
        order = 0.01 + 0.98 * (order - low) / torch.where(span > 0, span, torch.ones_like(span))
        corners = torch.cat([screen.xy.permute(2, 0, 1), order[None]]).reshape(3 * batch, -1)
        corners = corners.index_select(1, faces.T.reshape(-1)).reshape(3, batch, 3, len(faces)).transpose(1, 2)
        placed = screen.seen & (screen.xy.abs().amax(-1) <= FAR_PX)
        usable = placed[:, faces[:, 0]] & placed[:, faces[:, 1]] & placed[:, faces[:, 2]]
        areas = signed_areas(corners)
        drawn = usable & ((areas if cull else areas.abs()) > AREA_MIN_PX2)
        raster = rasterise(corners, drawn, height, width, engine)
        slopes = _slopes(corners, areas)
    return _Scene(topology, camera, screen, order, areas, usable, slopes, raster, seen_pixels(raster.face, points))


def _slopes(corners: Tensor, areas: Tensor) -> Tensor:
    """(2, B, F): dz/dx and dz/dy of the plane through each face with corners (3, 3, B, F)."""
    (x1, y1, z1), (x2, y2, z2) = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    over = torch.where(areas.abs() > AREA_MIN_PX2, -1 / areas, 0)
    return torch.stack([(z1 * y2 - z2 * y1) * over, (z2 * x1 - z1 * x2) * over])


def _vertex_attributes(
    points: Tensor, colours: Tensor | None, topology: Topology, camera: Camera, smooth: bool
) -> tuple[Tensor, int]:
    """(B, V, C [+ 3]) colours and, if `smooth`, normals in the camera's frame; and C."""
    batch, count, _ = points.shape
    if colours is None:
        colours = points.new_ones(1, count, 3)
    colours = colours.to(points)
    if colours.dim() not in (2, 3) or colours.shape[-2] != count or (colours.dim() == 3 and len(colours) not in (1, batch)):
        raise ConfigError(
            f"The colours have shape {tuple(colours.shape)}.", expected=f"({count}, C) or ({batch}, {count}, C)"
        )
    colours = colours.expand(batch, -1, -1)
    if not smooth:
        return colours, colours.shape[2]
    normals = vertex_normals(points, topology) @ camera.rotation.mT
    return torch.cat([colours, normals], 2), colours.shape[2]


def _interpolate(scene: _Scene, attributes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (3, N), attributes (D, N) and depth (N,) at the pixels that are seen."""
    batch, count, _ = attributes.shape
    # One table by columns: gathering from it, and adding its gradient up, is twice as fast as by rows.
    table = torch.cat([scene.screen.xy, scene.screen.depth[..., None], attributes], 2)
    table = table.permute(2, 0, 1).reshape(table.shape[2], batch * count)
    seen = scene.seen
    vertices = (scene.topology.faces.T.index_select(1, seen.face) + seen.picture * count).reshape(-1)
    rows = table.index_select(1, vertices).reshape(len(table), 3, -1)
    inverse = 1 / rows[2] if scene.camera.perspective else None
    found = weights(rows[:2], inverse, seen.centre)
    mixed = mix(found, rows[2:])
    return found, mixed[1:], mixed[0]


def _interpolate_uv(scene: _Scene, found: Tensor, uv: Tensor, uv_faces: Tensor) -> Tensor:
    """uv (2, N) at the pixels that are seen."""
    count = uv.shape[-2]
    which = uv_faces.T.index_select(1, scene.seen.face)
    if uv.dim() == 3 and len(uv) > 1:
        which = which + scene.seen.picture * count
    return mix(found, uv.reshape(-1, 2).T.index_select(1, which.reshape(-1)).reshape(2, 3, -1))


def _normals(scene: _Scene, points: Tensor, smooth: Tensor, flat: bool) -> Tensor:
    """Unit normals (3, N) at the pixels that are seen, those of faces seen from behind turned round."""
    place = scene.seen.picture * len(scene.topology.faces) + scene.seen.face
    if flat:
        faces = face_normals(points, scene.topology) @ scene.camera.rotation.mT
        smooth = faces.reshape(-1, 3).index_select(0, place).T
    turned = scene.areas.reshape(-1)[place] < 0
    return unit(torch.where(turned, -smooth, smooth), 0)


def _compose(scene: _Scene, colour: Tensor, background: Tensor | None, times: int) -> Tensor:
    """Colours (C, N) over the background, with the mask as last channel: (C + 1, B, H, W)."""
    batch, height, width = scene.raster.face.shape
    channels = len(colour)
    if background is None:
        behind = colour.new_zeros(channels, batch, height, width)
    else:
        behind = _fit_background(background.to(colour), (batch, channels, height, width), times)
    canvas = torch.cat([behind, behind.new_zeros(1, batch, height, width)]).reshape(channels + 1, -1)
    opaque = torch.cat([colour, torch.ones_like(colour[:1])])
    return canvas.index_copy(1, scene.seen.place, opaque).reshape(channels + 1, batch, height, width)


def _fit_background(background: Tensor, shape: tuple[int, int, int, int], times: int) -> Tensor:
    """(C, B, H, W) of the size that is rendered, `times` as large as what is returned and given."""
    if times > 1 and background.dim() >= 2:
        for axis in (-1, -2):
            if background.shape[axis] > 1:
                background = background.repeat_interleave(times, axis)
    try:
        return background.expand(shape).transpose(0, 1)
    except RuntimeError:
        wanted = (*shape[:2], shape[2] // times, shape[3] // times)
        raise ConfigError(
            f"The background has shape {tuple(background.shape)}.", expected=f"one that broadcasts to {wanted}"
        ) from None


def _finish(scene: _Scene, canvas: Tensor, depth: Tensor, normal: Tensor | None, times: int) -> Rendering:
    """From the canvas (C + 1, B, H, W) and the lists of seen pixels to the pictures that are returned."""
    batch, height, width = scene.raster.face.shape
    listed = depth[None] if normal is None else torch.cat([depth[None], normal])
    layers = listed.new_zeros(len(listed), batch * height * width).index_copy(1, scene.seen.place, listed)
    layers = layers.reshape(len(listed), batch, height, width).transpose(0, 1)
    picture = canvas.transpose(0, 1)
    face = scene.raster.face
    if times > 1:
        picture = functional.avg_pool2d(picture, times)
        share = functional.avg_pool2d((face >= 0).to(layers)[:, None], times)
        layers = functional.avg_pool2d(layers, times) / share.clamp_min(1e-6)
        face = face[:, times // 2 :: times, times // 2 :: times]
    image, mask = picture[:, :-1], picture[:, -1]
    turned = None
    if normal is not None:
        turned = unit(layers[:, 1:], 1) if times > 1 else layers[:, 1:]
    return Rendering(image, mask, layers[:, 0], turned, face)
