"""Triangle meshes: who is whose neighbour, normals, and two spheres to start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError

MAX_FACES = 2**24
"""Faces are numbered in the lower 24 bits of the z-buffer's keys."""
_GOLDEN = (1 + math.sqrt(5)) / 2


class Topology:
    """The faces that all meshes of a batch share, and their edges; made once, it belongs to no gradient.

    faces: (F, 3) integers below `vertices`, counterclockwise when seen from outside. uv_faces: the same for texture
    coordinates that have seams, (F, 3) into their own list. Any mesh is taken: open, not manifold, wound either way,
    with faces that name a vertex twice. Raises ConfigError when an index is out of range.
    """

    def __init__(self, faces: Tensor, vertices: int, uv_faces: Tensor | None = None) -> None:
        for name, found in (("faces", faces), ("uv_faces", uv_faces)):
            if found is not None and (found.dim() != 2 or found.shape[1] != 3 or found.is_floating_point()):
                raise ConfigError(f"{name} are {found.dtype} {tuple(found.shape)}.", expected="integers (F, 3)")
        if len(faces) >= MAX_FACES:
            raise ConfigError(f"The mesh has {len(faces):,} faces.", expected=f"fewer than {MAX_FACES:,}")
        if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= vertices):
            raise ConfigError(
                f"The faces name vertices {int(faces.min())} to {int(faces.max())}.",
                expected=f"0 to {vertices - 1}, for a mesh of {vertices} vertices",
            )
        if uv_faces is not None and (uv_faces.shape != faces.shape or (len(faces) and int(uv_faces.min()) < 0)):
            raise ConfigError(f"uv_faces have shape {tuple(uv_faces.shape)}.", expected=f"{tuple(faces.shape)}, from 0 on")
        self.vertices = vertices
        self.faces = faces.long()
        self.uv_faces = None if uv_faces is None else uv_faces.long()
        self.edges, self.edge_faces, self.apexes, self.same_turn = _edges(self.faces, vertices)

    def to(self, device: torch.device | str) -> Topology:
        """The same topology on another device."""
        moved = Topology.__new__(Topology)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device) if isinstance(value, Tensor) else value)
        return moved


def _edges(faces: Tensor, vertices: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each edge once: ends (E, 2), faces (E, 2) with -1 for none, their third vertices (E, 2), same_turn (E,) bool.

    same_turn: both faces pass the edge in the same direction, which means that one of them is wound the other way round. An
    edge of three or more faces becomes one border edge of each.
    """
    count = len(faces)
    first, second, apex = faces[:, [1, 2, 0]].T.reshape(-1), faces[:, [2, 0, 1]].T.reshape(-1), faces.T.reshape(-1)
    owner = torch.arange(count, device=faces.device).repeat(3)
    whole = first != second
    first, second, apex, owner = first[whole], second[whole], apex[whole], owner[whole]
    low, high, upwards = torch.minimum(first, second), torch.maximum(first, second), first < second
    name, order = torch.sort(low * max(vertices, 1) + high, stable=True)
    low, high, apex, owner, upwards = low[order], high[order], apex[order], owner[order], upwards[order]
    sizes = torch.unique_consecutive(name, return_counts=True)[1]
    group = sizes.repeat_interleave(sizes)
    start = torch.cumsum(sizes, 0) - sizes
    pair = start[sizes == 2]
    alone = (group != 2).nonzero()[:, 0]
    none = torch.full_like(alone, -1)
    edges = torch.cat([torch.stack([low[pair], high[pair]], 1), torch.stack([low[alone], high[alone]], 1)])
    edge_faces = torch.cat([torch.stack([owner[pair], owner[pair + 1]], 1), torch.stack([owner[alone], none], 1)])
    apexes = torch.cat([torch.stack([apex[pair], apex[pair + 1]], 1), torch.stack([apex[alone], apex[alone]], 1)])
    same = torch.cat([upwards[pair] == upwards[pair + 1], torch.zeros_like(alone, dtype=torch.bool)])
    return edges, edge_faces, apexes, same


def face_normals(points: Tensor, topology: Topology) -> Tensor:
    """Normals (B, F, 3) of faces as long as twice their area, outwards for counterclockwise faces; points (B, V, 3)."""
    a, b, c = (points.index_select(1, corner) for corner in topology.faces.unbind(1))
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(points: Tensor, topology: Topology) -> Tensor:
    """Unit normals (B, V, 3): the sum of the faces around, by area; zero where a vertex has only faces of area 0."""
    normals = face_normals(points, topology)
    total = torch.zeros_like(points)
    for corner in topology.faces.unbind(1):
        total = total.index_add(1, corner, normals)
    return unit(total)


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors along `dim` at length 1, tiny ones at (nearly) zero; the gradient is finite everywhere."""
    # Divided by the largest part first: the squares of small or large vectors leave float32.
    scale = vectors.detach().abs().amax(dim, keepdim=True)
    scaled = vectors / torch.where(scale > 1e-18, scale, 1)
    return scaled / (scaled.square().sum(dim, keepdim=True) + 1e-12).sqrt()


def icosphere(level: int) -> tuple[Tensor, Tensor]:
    """Unit sphere from an icosahedron whose faces are divided into four `level` times: points (V, 3), faces (F, 3).

    F = 20 * 4^level: 80, 320, 1,280 and 5,120 for levels 1 to 4; V = F / 2 + 2.
    """
    if not 0 <= level <= 8:
        raise ConfigError(f"An icosphere of level {level}.", expected="0 to 8; level 8 has 1,310,720 faces")
    g = _GOLDEN
    points = torch.tensor(
        [[-1, g, 0], [1, g, 0], [-1, -g, 0], [1, -g, 0], [0, -1, g], [0, 1, g],
         [0, -1, -g], [0, 1, -g], [g, 0, -1], [g, 0, 1], [-g, 0, -1], [-g, 0, 1]], dtype=torch.float64,
    )  # fmt: skip
    faces = torch.tensor(
        [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4], [11, 10, 2], [10, 7, 6],
         [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8], [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10],
         [8, 6, 7], [9, 8, 1]],
    )  # fmt: skip
    points = torch.nn.functional.normalize(points, dim=1)
    for _ in range(level):
        sides = torch.stack([faces, faces.roll(-1, 1)], 2).sort(2).values.reshape(-1, 2)
        unique, which = torch.unique(sides, dim=0, return_inverse=True)
        middle = which.reshape(-1, 3) + len(points)
        points = torch.cat([points, torch.nn.functional.normalize(points[unique].sum(1), dim=1)])
        (a, b, c), (ab, bc, ca) = faces.unbind(1), middle.unbind(1)
        parts = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = torch.cat([torch.stack(part, 1) for part in parts])
    return points.float(), faces


def uv_sphere(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit sphere of rings: points (V, 3), faces (F, 3), uv (U, 2), uv_faces (F, 3); F = 2 * rows * columns.

    `rows` rings of `columns` vertices between two poles. u runs once around from the back (u = 0.5 is the front, +Z) and
    v from the top pole (0) to the bottom (1); the seam at the back has its own column of uv.
    """
    if rows < 1 or columns < 3:
        raise ConfigError(f"A sphere of {rows} rows and {columns} columns.", expected="at least 1 and 3")
    theta = math.pi * torch.arange(1, rows + 1) / (rows + 1)
    around = 2 * math.pi * torch.arange(columns) / columns - math.pi
    ring = torch.stack([around.sin(), torch.zeros(columns), around.cos()], 1)
    points = theta.sin()[:, None, None] * ring + theta.cos()[:, None, None] * torch.tensor([0.0, 1.0, 0.0])
    points = torch.cat([points.reshape(-1, 3), torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])])
    i, j = torch.meshgrid(torch.arange(rows - 1), torch.arange(columns), indexing="ij")
    j0 = torch.arange(columns)

    def quads(width: int) -> tuple[Tensor, ...]:
        here, right = i * width + j, i * width + (j + 1) % width
        return here.reshape(-1), right.reshape(-1), (here + width).reshape(-1), (right + width).reshape(-1)

    def ring_faces(width: int, top: Tensor, bottom: Tensor) -> Tensor:
        a, b, c, d = quads(width)
        last = (rows - 1) * width
        caps = [torch.stack([top, j0, (j0 + 1) % width], 1), torch.stack([bottom, last + (j0 + 1) % width, last + j0], 1)]
        return torch.cat([caps[0], torch.stack([a, c, b], 1), torch.stack([b, c, d], 1), caps[1]])

    north = torch.full_like(j0, rows * columns)
    faces = ring_faces(columns, north, north + 1)
    width = columns + 1
    pole = rows * width + j0
    uv_faces = ring_faces(width, pole, pole + columns)
    u, v = torch.arange(width) / columns, theta / math.pi
    grid = torch.stack([u.repeat(rows), v.repeat_interleave(width)], 1)
    middle = (j0 + 0.5) / columns
    poles = torch.cat([torch.stack([middle, torch.zeros(columns)], 1), torch.stack([middle, torch.ones(columns)], 1)])
    # A pole and the column next to it: faces of the caps start at the pole, so each has its own uv there.
    return points, faces, torch.cat([grid, poles]), uv_faces
