"""Shapes held against true ones: Chamfer distance of surfaces, and a test for shapes that are flat cards.

Points are (V, 3), faces (F, 3); both surfaces are brought into the unit cube first, each by its own box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from selftaught.measure.score import Score, score_of

Array = np.ndarray
SAMPLES = 10_000
THICK_WITHIN = 0.25
"""How far the thickness may be from the true one, as a share of it."""


def in_unit_cube(points: Any, faces: Any) -> Array:
    """Points moved and scaled so that the surface's box is centred and its longest side is 1; ValueError without a surface."""
    points, faces = np.asarray(points, np.float64), np.asarray(faces, np.int64)
    if points.ndim != 2 or points.shape[1:] != (3,) or faces.ndim != 2 or faces.shape[1:] != (3,) or not len(faces):
        raise ValueError(
            f"expected points (V, 3) and at least one of faces (F, 3), got {points.shape} and {faces.shape}"
        )
    used = points[np.unique(faces)]
    if not np.isfinite(used).all():
        raise ValueError(f"{int((~np.isfinite(used)).any(1).sum())} points of the surface are NaN or infinite")
    low, high = used.min(0), used.max(0)
    if (high - low).max() <= 0:
        raise ValueError("the surface has no size")
    return (points - (low + high) / 2) / (high - low).max()


def sample_surface(points: Any, faces: Any, count: int = SAMPLES, seed: int = 0) -> Array:
    """`count` points (count, 3), uniform over the area; ValueError when all faces have area 0."""
    corners = np.asarray(points, np.float64)[np.asarray(faces, np.int64)]
    edges = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(*edges), axis=1)
    if not area.sum() > 0:
        raise ValueError("all faces have area 0")
    random = np.random.RandomState(seed)
    pick = np.searchsorted(area.cumsum() / area.sum(), random.rand(count), side="right").clip(0, len(area) - 1)
    u, v = random.rand(2, count)
    over = u + v > 1
    u, v = np.where(over, 1 - u, u)[:, None], np.where(over, 1 - v, v)[:, None]
    return corners[pick, 0] + u * edges[0][pick] + v * edges[1][pick]


def chamfer(first: Any, second: Any) -> float:
    """Chamfer-L1 of point sets (N, 3), (M, 3): half the sum of the two mean distances to the nearest point of the other
    (Mescheder et al. 2019; papers report ten times this).
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    there = cKDTree(second).query(first)[0].mean()
    back = cKDTree(first).query(second)[0].mean()
    return float((there + back) / 2)


def surface_distance(
    points: Any, faces: Any, true_points: Any, true_faces: Any, count: int = SAMPLES, seed: int = 0
) -> float:
    """Chamfer-L1 of two surfaces, each in its own unit cube."""
    clouds = [
        sample_surface(in_unit_cube(p, f), f, count, seed + i)
        for i, (p, f) in enumerate(((points, faces), (true_points, true_faces)))
    ]
    return chamfer(*clouds)


def thickness(points: Any) -> float:
    """Smallest over largest standard deviation of points (V, 3) along their principal axes: 1 for a sphere, 0 for a flat card."""
    values = np.linalg.eigvalsh(np.cov(np.asarray(points, np.float64).T))
    return float(np.sqrt(max(values[0], 0) / values[-1])) if values[-1] > 0 else 0.0


def inside_silhouettes(points: Any, faces: Any, steps: int = 24, px: int = 64) -> Array:
    """Points (N, 3) of a grid of `steps`^3 over the surface's box that lie inside its silhouettes from 21 directions all around.

    That is the solid as far as outlines tell it (the visual hull, Laurentini 1994): faces inside of an object, which no picture
    shows, and how much area lies where do not count. In the surface's unit cube; fewer than 4 for cards.
    """
    import torch

    from selftaught.nets.renderer import Topology, icosphere, orthographic_camera, render

    cube = torch.from_numpy(in_unit_cube(points, faces)).float()
    axes = icosphere(1)[0].double()
    # One of each two opposite directions: their silhouettes are mirror images.
    axes = axes[[k for k, axis in enumerate(axes.round(decimals=6).tolist()) if axis > [-x for x in axis]]].float()
    azimuth, elevation = torch.atan2(axes[:, 0], axes[:, 2]), axes[:, 1].clamp(-1, 1).asin()
    camera = orthographic_camera(azimuth, elevation, torch.zeros_like(azimuth), scale=1.1)
    many = cube.expand(len(axes), -1, -1)
    mask = render(many, Topology(torch.as_tensor(faces), len(cube)), camera, px, antialias=False).face >= 0
    line = (torch.arange(steps) + 0.5) / steps - 0.5
    size = 2 * cube[torch.as_tensor(np.unique(faces))].abs().amax(0)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3) * size
    place = camera.screen(grid.expand(len(axes), -1, -1), px, px).xy.long().clamp(0, px - 1)
    inside = mask[torch.arange(len(axes))[:, None], place[..., 1], place[..., 0]].all(0)
    found: Array = grid[inside].double().numpy()
    return found


def solid_thickness(points: Any, faces: Any) -> float:
    """`thickness` of the solid inside the silhouettes of a surface; 0 for a card that has none."""
    inside = inside_silhouettes(points, faces)
    return thickness(inside) if len(inside) > 3 else 0.0


def thickness_error(found: float, true: float) -> float:
    """How far a thickness is from the true one, as a share of it."""
    return abs(found / max(true, 1e-9) - 1)


def relief_correlation(first: tuple[Array, Array], second: tuple[Array, Array], px: int = 48) -> float:
    """Correlation of the depths of two surfaces (points, faces) seen from the front, each in its own unit cube, where both are seen.

    1 for the same face, below 0 for its hollow mould; 0 when one of them is flat, NaN when fewer than three pixels see both.
    """
    import torch

    from selftaught.nets.renderer import Topology, orthographic_camera, render

    depths = []
    for points, faces in (first, second):
        cube = torch.from_numpy(in_unit_cube(points, faces))[None]
        found = render(cube, Topology(torch.as_tensor(faces), cube.shape[1]), orthographic_camera(scale=1.9), px, antialias=False)
        depths.append(found.depth[0].numpy())
    both = (depths[0] > 0) & (depths[1] > 0)
    if both.sum() < 3:
        return float("nan")
    a, b = (depth[both] - depth[both].mean() for depth in depths)
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / size) if size > 1e-9 else 0.0


def ellipsoid_like(points: Any, faces: Any, level: int = 3) -> tuple[Array, Array]:
    """The baseline of shapes: an ellipsoid with the box of a surface, as points and faces."""
    from selftaught.nets.renderer import icosphere

    low, high = (
        np.asarray(points, np.float64)[np.unique(faces)].min(0),
        np.asarray(points, np.float64)[np.unique(faces)].max(0),
    )
    sphere, triangles = icosphere(level)
    return (low + high) / 2 + (high - low) / 2 * sphere.double().numpy(), triangles.numpy()


def shape_scores(
    shapes: list[tuple[Array, Array]],
    truths: list[tuple[Array, Array]],
    mean_truth: tuple[Array, Array] | None = None,
    count: int = SAMPLES,
) -> dict[str, Score]:
    """Chamfer distance and thickness of shapes, each (points, faces), against true ones.

    Baselines of `chamfer`: an ellipsoid with the true box, a sphere, and the mean of the true shapes where there is one.
    `thickness_error` is |predicted / true - 1| of `solid_thickness`; its baselines are a flat card and a sphere. `thick_enough` is the
    share for which that is below 0.25: billboards fail. `relief` is the correlation of depths seen from the front: hollow moulds are
    below 0, and a sphere, which trainings start near, is far above.
    """
    if len(shapes) != len(truths) or not truths:
        raise ValueError(f"expected as many shapes as true ones, at least one, got {len(shapes)} and {len(truths)}")
    sphere = ellipsoid_like(np.array([[-1.0, -1, -1], [1, 1, 1]]), np.array([[0, 1, 0]]))
    rivals: dict[str, list[float]] = {"ellipsoid": [], "sphere": []}
    if mean_truth is not None:
        rivals["mean_shape (oracle)"] = []
    own, thick, relief, round_thick, round_relief = [], [], [], [], []
    known: dict[int, float] = {}

    def thickest(surface: tuple[Array, Array]) -> float:
        if id(surface[0]) not in known:  # a mean shape is held against many
            known[id(surface[0])] = solid_thickness(*surface)
        return known[id(surface[0])]

    for shape, truth in zip(shapes, truths, strict=True):
        own.append(surface_distance(*shape, *truth, count))
        rivals["ellipsoid"].append(surface_distance(*ellipsoid_like(*truth), *truth, count))
        rivals["sphere"].append(surface_distance(*sphere, *truth, count))
        if mean_truth is not None:
            rivals["mean_shape (oracle)"].append(surface_distance(*mean_truth, *truth, count))
        thick.append(thickness_error(thickest(shape), thickest(truth)))
        relief.append(relief_correlation(shape, truth))
        round_thick.append(thickness_error(thickest(sphere), thickest(truth)))
        round_relief.append(relief_correlation(sphere, truth))
    enough = float((np.array(round_thick) < THICK_WITHIN).mean())
    return {
        "chamfer": score_of(own, better="lower", unit="of the longest side", baselines=rivals),
        "thickness_error": score_of(thick, better="lower", unit="share", baselines={"flat card": 1.0, "sphere": round_thick}),
        "thick_enough": score_of(np.array(thick) < THICK_WITHIN, unit="share", baselines={"flat card": 0.0, "sphere": enough}),
        "relief": score_of(relief, unit="correlation", baselines={"flat card": 0.0, "sphere": round_relief}),
    }
