"""Meshes and cameras of the renderer: edges against a slow loop, spheres, normals, rotations and projections by hand."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from selftaught.nets.renderer import (
    Topology,
    face_normals,
    icosphere,
    orthographic_camera,
    perspective_camera,
    rotation_from_angles,
    uv_sphere,
    vertex_normals,
)


@pytest.mark.parametrize("level", range(5))
def test_icosphere(level: int) -> None:
    points, faces = icosphere(level)
    assert (len(points), len(faces)) == (10 * 4**level + 2, 20 * 4**level)
    assert torch.allclose(points.norm(dim=1), torch.ones(len(points)), atol=1e-6)
    topology = Topology(faces, len(points))
    assert len(topology.edges) == 30 * 4**level and bool((topology.edge_faces >= 0).all()) and not bool(topology.same_turn.any())
    normals = face_normals(points[None], topology)[0]
    assert bool(((normals * points[faces].mean(1)).sum(1) > 0).all()), "outside is outside"
    assert 9.5 < float(normals.norm(dim=1).sum() / 2) < 4 * math.pi + 1e-3
    assert torch.allclose(vertex_normals(points[None], topology)[0], points, atol=0.03)


@pytest.mark.parametrize("rows, columns", [(1, 3), (2, 5), (15, 24)])
def test_uv_sphere(rows: int, columns: int) -> None:
    points, faces, uv, uv_faces = uv_sphere(rows, columns)
    assert (len(points), len(faces)) == (rows * columns + 2, 2 * rows * columns)
    topology = Topology(faces, len(points), uv_faces)
    assert bool((topology.edge_faces >= 0).all()) and not bool(topology.same_turn.any())
    normals = face_normals(points[None], topology)[0]
    assert bool(((normals * points[faces].mean(1)).sum(1) > 0).all())
    assert float(uv.min()) >= 0 and float(uv.max()) <= 1
    theta, u = uv[:, 1] * math.pi, (uv[:, 0] - 0.5) * 2 * math.pi
    from_uv = torch.stack([theta.sin() * u.sin(), theta.cos(), theta.sin() * u.cos()], 1)
    assert torch.allclose(from_uv[uv_faces], points[faces], atol=1e-5), "each corner's uv is its place on the sphere"
    assert float((uv[uv_faces].amax(1) - uv[uv_faces].amin(1))[:, 0].max()) < 1.5 / columns, "no face crosses the seam"


def slow_edges(faces: list[list[int]]) -> dict[tuple[int, int], list[tuple[int, int, bool]]]:
    found = defaultdict(list)
    for number, (a, b, c) in enumerate(faces):
        for first, second, apex in ((b, c, a), (c, a, b), (a, b, c)):
            if first != second:
                found[min(first, second), max(first, second)].append((number, apex, first < second))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_edges_of_any_mesh_equal_a_slow_loop(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    faces = torch.randint(0, 8, (20, 3), generator=made)
    topology = Topology(faces, 8)
    rows = zip(topology.edges.tolist(), topology.edge_faces.tolist(), topology.apexes.tolist(), topology.same_turn.tolist(), strict=True)
    got = sorted((tuple(edge), tuple(zip(owners, apexes, strict=True)), same) for edge, owners, apexes, same in rows)
    wanted = []
    for edge, users in slow_edges(faces.tolist()).items():
        if len(users) == 2:
            wanted.append((edge, tuple(user[:2] for user in users), users[0][2] == users[1][2]))
        else:
            wanted += [(edge, ((number, apex), (-1, apex)), False) for number, apex, _ in users]
    # Which of an edge's two faces is named first does not matter.
    flat = lambda found: sorted((edge, tuple(sorted(pair)), same) for edge, pair, same in found)  # noqa: E731
    assert flat(got) == flat(wanted)


def test_normals_are_finite_where_faces_have_no_area() -> None:
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 0], [0, 1e-15, 0]]], requires_grad=True)
    topology = Topology(torch.tensor([[0, 1, 2], [0, 0, 1], [0, 3, 1], [0, 1, 4]]), 5)
    normals = vertex_normals(points, topology)
    (gradient,) = torch.autograd.grad(normals.sum(), points)
    assert bool(normals.isfinite().all() and gradient.isfinite().all())


def test_rotation_is_roll_after_elevation_after_azimuth() -> None:
    def about(axis: int, angle: Tensor) -> Tensor:
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = torch.eye(3)
        turn[i, i], turn[j, j], turn[i, j], turn[j, i] = angle.cos(), angle.cos(), -angle.sin(), angle.sin()
        return turn

    angles = torch.tensor([0.4, -0.3, 1.2])
    wanted = about(2, angles[2]) @ about(0, angles[1]) @ about(1, angles[0])
    assert torch.allclose(rotation_from_angles(*(angle[None] for angle in angles))[0], wanted, atol=1e-6)


def test_where_points_appear() -> None:
    points = torch.tensor([[[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]])  # front, top, left
    middle = orthographic_camera(scale=0.5).screen(points, 100, 200)
    assert torch.allclose(middle.xy[0], torch.tensor([[100.0, 50], [100, 25], [125, 50]]))
    assert torch.allclose(middle.depth[0], torch.tensor([4.0, 5, 5]))
    turned = orthographic_camera(math.pi / 4).screen(points, 100, 100)
    assert float(turned.xy[0, 0, 0]) > 60, "azimuth turns the front to the right"
    above = orthographic_camera(0.0, math.pi / 4).screen(points, 100, 100)
    assert float(above.depth[0, 1]) < 5 - 0.7, "elevation turns the top towards the camera"
    rolled = orthographic_camera(0.0, 0.0, math.pi / 4).screen(points, 100, 100)
    assert float(rolled.xy[0, 2, 1]) < 30, "roll turns the picture counterclockwise"
    seen = perspective_camera(distance=2.0, fov_rad=math.pi / 2).screen(points, 100, 100)
    assert torch.allclose(seen.xy[0], torch.tensor([[50.0, 50], [50, 25], [75, 50]]), atol=1e-4)
    behind = perspective_camera(distance=0.5).screen(points, 100, 100)
    assert behind.seen[0].tolist() == [False, True, True] and bool(behind.xy.isfinite().all())


def test_the_unit_sphere_fills_four_fifths_at_the_default_distance() -> None:
    points, _ = icosphere(5)
    for camera in (perspective_camera(), perspective_camera(fov_rad=1.2), orthographic_camera()):
        xy = camera.screen(points[None], 100, 100).xy
        assert math.isclose(float(xy.max()), 90, abs_tol=0.1) and math.isclose(float(xy.min()), 10, abs_tol=0.1)
