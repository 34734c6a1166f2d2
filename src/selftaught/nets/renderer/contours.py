"""Antialiased contours with exact gradients: from each silhouette edge to the pairs of pixels that it separates.

Where a silhouette edge crosses the line between two neighbouring pixel centres, one of them (the owner) lies on the
object's side. With t in [0, 1] the distance of the crossing from the owner's centre, and D = owner's colour - the other's:

    t > 1/2:  the other pixel += (t - 1/2) D          t < 1/2:  the owner += (t - 1/2) D

which is the exact coverage for straight contours, continuous when the contour passes a pixel centre, and differentiable
in t. Where a pixel would be given away more than once, its shares are divided by their sum. Steep edges (|dy| >= |dx|) act
along rows, the others along columns. Schemes that start from pairs of pixels with different faces (Laine et al., "Modular
Primitives for High-Performance Differentiable Rendering", 2020) find the edge only when its thin face happens to be seen
at a pixel centre; starting from the edge misses none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftaught.nets.renderer.meshes import Topology
from selftaught.nets.renderer.raster import Raster

_BEHIND = 1e-3
"""How much nearer than its owner's surface an edge may be, in the picture's range of depth, beside what the slope explains."""
_STEPS = 2.0**30


class Crossings(NamedTuple):
    """Where silhouette edges cross lines between pixel centres: N of them."""

    edge: Tensor
    """(N,) int64, rows of the table of silhouette edges."""
    line: Tensor
    """(N,) int64, row or column of pixels."""
    before: Tensor
    """(N,) int64, the first pixel of the pair on that line."""
    u: Tensor
    """(N,) position on that line in pixels; differentiable."""
    z: Tensor
    """(N,) the edge's order of depth there."""


class Edges(NamedTuple):
    """Silhouette edges on the screen: M of them, with u along the scanned line and v across."""

    picture: Tensor
    steep: Tensor
    """(M,) bool: scanned along rows."""
    low_side: Tensor
    """(M,) bool: the object lies on the side of smaller u."""
    ua: Tensor
    ub: Tensor
    va: Tensor
    vb: Tensor
    za: Tensor
    zb: Tensor


def silhouettes(areas: Tensor, usable: Tensor, topology: Topology) -> Tensor:
    """Which edges (B, E) separate a face that turns its outside to the camera from one that does not, or from none.

    areas: (B, F) signed. usable: (B, F), the others count as none. Decided by the faces' signs and not by the side on which
    their third vertices lie: that fails for faces seen exactly from the side.
    """
    if not topology.edges.shape[0]:
        return areas.new_zeros(len(areas), 0, dtype=torch.bool)
    front = areas > 0
    first, second = topology.edge_faces.unbind(1)
    has_first = usable.index_select(1, first)
    has_second = usable.index_select(1, second.clamp_min(0)) & (second >= 0)
    differ = front.index_select(1, first) != front.index_select(1, second.clamp_min(0))
    return torch.where(has_first & has_second, differ ^ topology.same_turn, has_first | has_second)


def blend_contours(
    canvas: Tensor, xy: Tensor, z: Tensor, areas: Tensor, usable: Tensor, topology: Topology, raster: Raster, slopes: Tensor
) -> Tensor:
    """Return `canvas` (C, B, H, W) with the contours blended.

    xy: (B, V, 2) in pixels, carries the gradient; z: (B, V) order of depth; areas, usable: (B, F); slopes: (2, B, F), what z
    gains per pixel to the right and downwards on each face.
    """
    edges = _on_screen(xy, z, areas, usable, topology)
    channels, batch, height, width = canvas.shape
    lines = torch.where(edges.steep, height, width)
    pixels = torch.where(edges.steep, width, height)
    crossings = _cross(edges, lines, pixels)
    steep = edges.steep[crossings.edge]
    at, step = torch.where(steep, width, 1), torch.where(steep, 1, width)
    first = edges.picture[crossings.edge] * (height * width) + crossings.line * at + crossings.before * step
    low = edges.low_side[crossings.edge]
    owner, other = torch.where(low, first, first + step), torch.where(low, first + step, first)
    depth, face = raster.z.reshape(-1), raster.face.reshape(-1)
    seen = face[owner]
    slope = slopes.reshape(2, -1).index_select(1, edges.picture[crossings.edge] * areas.shape[1] + seen.clamp_min(0)).abs()
    rise = torch.where(steep, slope[0], slope[1])
    visible = (seen >= 0) & (crossings.z < depth[other]) & (crossings.z >= depth[owner] - rise - _BEHIND)
    kept = _nearest(visible, torch.where(steep, 0, len(face)) + first, crossings.z, 2 * len(face))
    owner, other = owner[kept], other[kept]
    centre = crossings.before[kept] + 0.5 + (~low[kept]).to(canvas.dtype)
    share = (crossings.u[kept] - centre).abs().clamp(0, 1) - 0.5
    flat = canvas.reshape(channels, -1)
    target = torch.where(share.detach() > 0, other, owner)
    # Where several contours meet in one pixel their shares may exceed it; then they divide it, and no colour overshoots.
    taken = share.new_zeros(flat.shape[1]).index_add(0, target, share.abs()).clamp_min(1)
    share = share / taken.index_select(0, target)
    change = share * (flat.index_select(1, owner) - flat.index_select(1, other))
    return flat.index_add(1, target, change).reshape(canvas.shape)


def _on_screen(xy: Tensor, z: Tensor, areas: Tensor, usable: Tensor, topology: Topology) -> Edges:
    """The silhouette edges with their ends gathered, and the side of the object."""
    found = silhouettes(areas, usable, topology)
    picture, edge = found.nonzero(as_tuple=True)
    vertices = xy.shape[1]
    flat, flat_z = xy.reshape(-1, 2), z.reshape(-1)
    base = picture * vertices
    a, b = (base + end for end in topology.edges.T.index_select(1, edge))
    faces = topology.edge_faces.T.index_select(1, edge)
    at = picture * areas.shape[1] + faces.clamp_min(0)
    sizes = torch.where(usable.reshape(-1)[at] & (faces >= 0), areas.reshape(-1)[at].abs(), -1)
    # At a fold both faces lie on the same side; the larger one says which with less rounding.
    first, second = topology.apexes.T.index_select(1, edge)
    apex = base + torch.where(sizes[1] > sizes[0], second, first)
    pa, pb = flat.index_select(0, a), flat.index_select(0, b)
    with torch.no_grad():
        along, inwards = pb - pa, flat[apex] - pa
        steep = along[:, 1].abs() >= along[:, 0].abs()
        side = along[:, 0] * inwards[:, 1] - along[:, 1] * inwards[:, 0]
        # To the left of an edge that runs down the screen (dy > 0) the side is positive; above one that runs right negative.
        low = torch.where(steep, side * along[:, 1] > 0, side * along[:, 0] < 0)
    (xa, ya), (xb, yb) = pa.unbind(1), pb.unbind(1)
    ua, ub = torch.where(steep, xa, ya), torch.where(steep, xb, yb)
    va, vb = torch.where(steep, ya, xa), torch.where(steep, yb, xb)
    return Edges(picture, steep, low, ua, ub, va, vb, flat_z[a], flat_z[b])


def _cross(edges: Edges, lines: Tensor, pixels: Tensor) -> Crossings:
    """Where edges cross the lines through pixel centres; a span is half open, so that a shared vertex counts once."""
    with torch.no_grad():
        low, high = torch.minimum(edges.va, edges.vb), torch.maximum(edges.va, edges.vb)
        first = torch.minimum((low - 0.5).ceil().clamp_min(0), lines.to(low.dtype)).long()
        end = torch.minimum((high - 0.5).ceil().clamp_min(0), lines.to(low.dtype)).long()
        count = (end - first).clamp_min(0)
        edge = torch.repeat_interleave(count)
        line = torch.arange(len(edge), device=low.device) - (count.cumsum(0) - count)[edge] + first[edge]
    ua, va = edges.ua.index_select(0, edge), edges.va.index_select(0, edge)
    ub, vb = edges.ub.index_select(0, edge), edges.vb.index_select(0, edge)
    part = (line + 0.5 - va) / (vb - va)
    u = ua + part * (ub - ua)
    before = (u.detach() - 0.5).floor()
    inside = ((before >= 0) & (before < pixels[edge] - 1)).nonzero()[:, 0]
    edge, part = edge[inside], part.detach()[inside]
    z = edges.za[edge] + part * (edges.zb[edge] - edges.za[edge])
    return Crossings(edge, line[inside], before[inside].long(), u.index_select(0, inside), z)


def _nearest(visible: Tensor, pair: Tensor, z: Tensor, pairs: int) -> Tensor:
    """Of the visible crossings the nearest of each pair of pixels: their numbers."""
    candidates = visible.nonzero()[:, 0]
    pair = pair[candidates]
    key = ((z[candidates].clamp(0, 1) * _STEPS).long() << 32) | torch.arange(len(candidates), device=z.device)
    best = torch.full((pairs,), 2**63 - 1, dtype=torch.int64, device=z.device).scatter_reduce_(0, pair, key, "amin")
    return candidates[best[pair] == key]
