"""SIDE and MAD against loops written from the formulas and against surfaces whose normals are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selftaught.measure.depth import at_size, depth_scores, eroded, mad_deg, side
from selftaught.nets.depth_maps import grid_faces, normals_of_depth, unproject
from selftaught.nets.renderer import Topology, icosphere, perspective_camera, render

FOV = math.radians(20)


def plane(px: int, slope_x: float, slope_y: float) -> np.ndarray:
    """Depths of the plane z = -5 + slope_x x + slope_y y."""
    line = ((np.arange(px) + 0.5) * 2 / px - 1) * math.tan(FOV / 2)
    return 5 / (1 + slope_x * line[None, :] - slope_y * line[:, None])


def test_normals_of_a_plane_are_its_own() -> None:
    depth = torch.from_numpy(plane(16, 0.3, -0.5))[None]
    found = normals_of_depth(depth, FOV)[0].permute(1, 2, 0).numpy()
    normal = np.array([-0.3, 0.5, 1.0]) / np.linalg.norm([0.3, 0.5, 1.0])
    np.testing.assert_allclose(found, np.broadcast_to(normal, found.shape), atol=1e-6)
    points = unproject(depth, FOV)[0].numpy()
    np.testing.assert_allclose(points[2], -5 + 0.3 * points[0] - 0.5 * points[1], atol=1e-6)


def test_depth_and_normals_of_a_rendered_sphere_fit_each_other() -> None:
    points, faces = icosphere(5)
    found = render(
        points[None], Topology(faces, len(points)), perspective_camera(fov_rad=FOV), 64, normals=True, antialias=False
    )
    assert found.normals is not None
    mine = normals_of_depth(found.depth, FOV)[0]
    inner = torch.from_numpy(eroded(eroded(found.depth.numpy() > 0)))[0] & (found.normals[0, 2] > 0.5)
    assert float((mine * found.normals[0]).sum(0)[inner].min()) > 0.995


def test_side_is_the_loop_and_forgives_scale() -> None:
    random = np.random.default_rng(0)
    predicted, true = random.uniform(1, 2, (2, 3, 9, 9))
    true[:, :2] = 0
    predicted[:, :, 8] = 0
    wanted = []
    for p, t in zip(predicted, true, strict=True):
        differences = []
        for i in range(9):
            for j in range(9):
                near = [(a, b) for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if 0 <= a < 9 and 0 <= b < 9]
                if all(p[a, b] > 0 for a, b in near) and all(t[a, b] > 0 for a, b in near):
                    differences.append(math.log(p[i, j]) - math.log(t[i, j]))
        mean = sum(differences) / len(differences)
        wanted.append(math.sqrt(sum(d * d for d in differences) / len(differences) - mean**2))
    np.testing.assert_allclose(side(predicted, true), wanted, rtol=1e-9)
    np.testing.assert_allclose(side(7 * predicted, true), wanted, rtol=1e-7)
    assert side(true, true).max() < 1e-7


def test_mad_of_two_planes_is_the_angle_between_them() -> None:
    flat, tilted = plane(16, 0, 0)[None], plane(16, math.tan(0.4), 0)[None]
    assert mad_deg(tilted, flat, FOV)[0] == pytest.approx(math.degrees(0.4), abs=1e-4)
    assert mad_deg(flat, flat, FOV)[0] == pytest.approx(0, abs=1e-4)


def test_a_hollow_mould_has_a_negative_correlation_and_nothing_common_is_left_out() -> None:
    line = np.linspace(-1, 1, 12)
    bump = 5 - 0.2 * np.exp(-3 * (line[None] ** 2 + line[:, None] ** 2))
    true = np.stack([bump, 5 + 1.5 * (bump - 5), bump])
    scores = depth_scores(10 - true, true, FOV)
    assert scores["depth_correlation"].value < -0.99
    good = depth_scores(true, true, FOV)
    assert (
        good["side"].value < 1e-6 < good["side"].baselines["mean_true_depth (oracle)"] < good["side"].baselines["plane"]
    )
    empty = true.copy()
    empty[1] = 0
    assert depth_scores(empty, true, FOV)["side"].n == 2


def test_smaller_depths_are_means_of_what_is_wholly_known() -> None:
    depth = np.arange(16.0).reshape(1, 4, 4) + 1
    depth[0, 0, 0] = 0
    np.testing.assert_allclose(at_size(depth, 2), [[[0, 5.5], [11.5, 13.5]]])
    assert at_size(depth, 3).shape == (1, 3, 3)


def test_faces_of_a_grid_look_at_the_camera() -> None:
    depth = torch.full((1, 4, 5), 2.0)
    points = unproject(depth, FOV).flatten(2).mT
    faces = grid_faces(4, 5)
    assert len(faces) == 2 * 3 * 4
    corners = points[0][faces]
    assert bool((torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] > 0).all())


def test_bad_depths_are_refused() -> None:
    for bad in (np.full((1, 4, 4), np.nan), np.full((1, 4, 4), -1.0), np.zeros((4, 4))):
        with pytest.raises(ValueError, match="finite depths"):
            depth_scores(bad, bad, FOV)
