"""The renderer's pictures against a naive scan-line renderer, ray casting, closed forms, and its own invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError
from selftaught.nets.renderer import (
    Camera,
    Light,
    Topology,
    icosphere,
    orthographic_camera,
    perspective_camera,
    render,
    uv_sphere,
)
from selftaught.nets.renderer.raster import numba_is_there

needs_numba = pytest.mark.skipif(not numba_is_there(), reason="numba is not installed")


def lumpy(level: int, seed: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Points (B, V, 3), faces, colours (B, V, 3) of bumpy spheres of about unit size."""
    points, faces = icosphere(level)
    made = torch.Generator().manual_seed(seed)
    bumps = 0.7 + 0.3 * torch.rand(batch, len(points), 1, generator=made)
    return points * bumps, faces, torch.rand(batch, len(points), 3, generator=made)


def naive(
    points: NDArray[np.float64], faces: NDArray[np.int64], camera: Camera, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Face (S, S), depth (S, S) and weights (S, S, 3) by loops over faces and pixels, in float64 from the camera's formulas."""
    rotation, position = camera.rotation[0].double().numpy(), camera.position[0].double().numpy()
    focal = float(camera.focal[0])
    seen = points @ rotation.T + position
    depth = -seen[:, 2]
    scale = focal / depth if camera.perspective else np.full_like(depth, focal)
    x, y = (scale * seen[:, 0] + 1) * side / 2, (1 - scale * seen[:, 1]) * side / 2
    face, nearest, weight = np.full((side, side), -1), np.full((side, side), np.inf), np.zeros((side, side, 3))
    for number, (a, b, c) in enumerate(faces):
        area = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])
        if depth[[a, b, c]].min() <= camera.near or abs(area) < 1e-9:
            continue
        for row in range(side):
            for column in range(side):
                if not (min(x[[a, b, c]]) <= column + 0.5 <= max(x[[a, b, c]]) and min(y[[a, b, c]]) <= row + 0.5 <= max(y[[a, b, c]])):
                    continue
                corner = [(x[k] - column - 0.5, y[k] - row - 0.5) for k in (a, b, c)]
                part = np.array([corner[i][0] * corner[j][1] - corner[i][1] * corner[j][0] for i, j in ((1, 2), (2, 0), (0, 1))]) / area
                if part.min() < 0:
                    continue
                if camera.perspective:
                    part = part / depth[[a, b, c]]
                    part = part / part.sum()
                here = float(part @ depth[[a, b, c]])
                if here < nearest[row, column]:
                    face[row, column], nearest[row, column], weight[row, column] = number, here, part
    return face, nearest, weight


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
def test_equals_a_naive_renderer(kind: str) -> None:
    points, faces, colours = lumpy(1, 3)
    maker = perspective_camera if kind == "perspective" else orthographic_camera
    camera = maker(torch.tensor([0.7]), 0.3, 0.2)
    side = 20
    face, depth, weight = naive(points[0].double().numpy(), faces.numpy(), camera, side)
    got = render(points, Topology(faces, len(points[0])), camera, side, colours=colours, antialias=False)
    assert np.array_equal(got.face[0].numpy(), face)
    hit = face >= 0
    assert 0.2 < hit.mean() < 0.9
    assert np.array_equal(got.mask[0].numpy(), hit)
    np.testing.assert_allclose(got.depth[0].numpy()[hit], depth[hit], rtol=1e-5)
    wanted = (weight[..., None] * colours[0].numpy()[faces.numpy()[face]]).sum(2)
    np.testing.assert_allclose(got.image[0].permute(1, 2, 0).numpy()[hit], wanted[hit], atol=2e-5)
    assert bool((got.image[0].permute(1, 2, 0)[torch.from_numpy(~hit)] == 0).all())


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
def test_equals_ray_casting(kind: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("embreex", reason="ray casting without embreex takes minutes")
    points, faces, _ = lumpy(3, 5)
    camera = perspective_camera(1.1, -0.4) if kind == "perspective" else orthographic_camera(1.1, -0.4)
    side = 64
    got = render(points, Topology(faces, len(points[0])), camera, side, antialias=False)
    row, column = np.divmod(np.arange(side * side), side)
    x, y = (column + 0.5) * 2 / side - 1, 1 - (row + 0.5) * 2 / side
    focal = float(camera.focal[0])
    ones = np.ones_like(x)
    if kind == "perspective":
        origins, towards = np.zeros((len(x), 3)), np.stack([x / focal, y / focal, -ones], 1)
    else:
        origins, towards = np.stack([x / focal, y / focal, 0 * ones], 1), np.stack([0 * ones, 0 * ones, -ones], 1)
    mesh = trimesh.Trimesh(camera.view(points)[0].numpy(), faces.numpy(), process=False)
    places, rays, _ = mesh.ray.intersects_location(origins, towards, multiple_hits=False)
    depth = np.zeros(side * side)
    depth[rays] = -places[:, 2]
    found = got.depth[0].numpy().reshape(-1)
    assert ((found > 0) == (depth > 0)).mean() >= 0.999
    both = (found > 0) & (depth > 0)
    assert (np.abs(found - depth)[both] < 1e-3).mean() >= 0.999


def test_a_sphere_has_the_depth_and_the_normals_of_the_formula() -> None:
    points, faces = icosphere(5)
    got = render(0.8 * points[None], Topology(faces, len(points)), orthographic_camera(scale=1.0, distance=5.0), 64, normals=True)
    y, x = (torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
    x, y = (x + 0.5) / 32 - 1, 1 - (y + 0.5) / 32
    z = (0.64 - x * x - y * y).clamp_min(0).sqrt()
    inner = x * x + y * y < 0.6
    assert float((got.depth[0] - (5 - z))[inner].abs().max()) < 3e-3
    assert got.normals is not None
    true = torch.stack([x, y, z]) / 0.8
    assert float((got.normals[0] * true).sum(0)[inner].min()) > 0.9995
    assert torch.allclose(got.normals[0].square().sum(0), (got.face[0] >= 0).float(), atol=1e-5)


def test_perspective_texture_on_a_slanted_plane_is_the_closed_form() -> None:
    # The plane z = x slants away; a point of it at the screen's x has u = (x + 1) / 2 in the object.
    points = torch.tensor([[-1.0, -1, -1], [1, -1, 1], [1, 1, 1], [-1, 1, -1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uv = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    camera = perspective_camera(distance=4.0, fov_rad=math.radians(60))
    ramp = ((torch.arange(256) + 0.5) / 256).expand(1, 8, 256)
    got = render(points[None], Topology(faces, 4), camera, 48, texture=ramp, uv=uv, antialias=False)
    screen = ((torch.arange(48) + 0.5) / 24 - 1) * math.tan(math.radians(30))
    x = 4 * screen / (1 + screen)  # x = s * depth with depth = 4 - x
    wanted = ((x + 1) / 2).expand(48, 48)
    hit = (got.face[0] >= 0) & (wanted > 0.01) & (wanted < 0.99)
    assert int(hit.sum()) > 300
    assert float((got.image[0, 0] - wanted)[hit].abs().max()) < 1e-3
    affine = (screen - screen[hit.any(0)].min()) / (screen[hit.any(0)].max() - screen[hit.any(0)].min())
    assert float((affine - wanted[24])[hit.any(0)].abs().max()) > 0.1, "without perspective it would be far off"


def test_uv_sphere_shows_the_middle_of_its_texture_in_front_and_wraps_at_the_back() -> None:
    points, faces, uv, uv_faces = uv_sphere(15, 24)
    topology = Topology(faces, len(points), uv_faces)
    x = (torch.arange(32) + 0.5) / 32
    texture = torch.stack([x.expand(16, 32), ((torch.arange(16) + 0.5) / 16)[:, None].expand(16, 32)])
    front = render(points[None], topology, orthographic_camera(), 65, texture=texture, uv=uv).image[0]
    assert torch.allclose(front[:, 32, 32], torch.tensor([0.5, 0.5]), atol=0.02)
    assert front[0, 32, 20] < 0.45 and front[0, 32, 44] > 0.55, "u runs to the right"
    assert front[1, 20, 32] < 0.45 and front[1, 44, 32] > 0.55, "v runs downwards"
    wave = (2 * math.pi * x).cos().expand(1, 16, 32)
    back = render(points[None], topology, orthographic_camera(math.pi), 65, texture=wave, uv=uv).image[0, 0, 32]
    assert float((back[20:45] - back[20:45].flip(0)).abs().max()) < 1e-3 and float(back[31:34].min()) > 0.97


def test_hidden_contours_change_nothing_and_visible_ones_do() -> None:
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    front = torch.cat([0.7 * square, torch.full((4, 1), 0.5)], 1)
    behind = torch.cat([0.31 * square, torch.zeros(4, 1)], 1)
    colours = torch.cat([torch.full((4, 3), 0.2), torch.full((4, 3), 0.9)])
    topology, camera = Topology(faces, 8), orthographic_camera(scale=1.0)
    one = render(torch.cat([front, behind])[None], topology, camera, 32, colours=colours).image
    moved = render(torch.cat([front, behind + 0.1])[None], topology, camera, 32, colours=colours).image
    assert torch.equal(one, moved)
    nearer = render(torch.cat([front, behind + torch.tensor([0.0, 0, 1])])[None], topology, camera, 32, colours=colours).image
    assert not torch.equal(one, nearer)
    # 0.31 of half a side of 16 px: 4.96 px; the blended edge carries what is missing to 5 px.
    assert math.isclose(float(((nearer - 0.2) / 0.7)[0, 0, 8:24, 8:24].sum()), (2 * 4.96) ** 2, rel_tol=2e-3)


@pytest.mark.parametrize("angle", [0.9, -0.9])
def test_a_card_seen_at_a_slant_has_blended_edges_on_both_sides(angle: float) -> None:
    points = torch.tensor([[-0.8, -0.81, 0], [0.8, -0.81, 0], [0.8, 0.81, 0], [-0.8, 0.81, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    for turned in (faces, faces.flip(1)):
        got = render(points[None], Topology(turned, 4), orthographic_camera(angle, scale=1.0), 32).mask[0]
        assert math.isclose(float(got.sum()), 1.62 * 1.6 * math.cos(angle) * 256, rel_tol=2e-3)


@needs_numba
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_numba_gives_the_same_bits(kind: torch.dtype) -> None:
    for level, side in ((0, 33), (2, 48), (3, 64), (4, 32)):
        points, faces, colours = lumpy(level, level, batch=3)
        camera = perspective_camera(torch.tensor([0.0, 1.0, 2.5]), 0.2)
        topology = Topology(faces, points.shape[1])
        ours, theirs = (
            render(points.to(kind), topology, camera, side, colours=colours, engine=engine) for engine in ("torch", "numba")
        )
        assert torch.equal(ours.face, theirs.face) and torch.equal(ours.image, theirs.image)


def test_the_order_of_faces_and_the_rest_of_the_batch_do_not_matter() -> None:
    points, faces, colours = lumpy(2, 1, batch=3)
    camera = perspective_camera(torch.tensor([0.1, 2.0, 4.0]), 0.3)
    whole = render(points, Topology(faces, points.shape[1]), camera, 40, colours=colours)
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))
    again = render(points, Topology(faces[order], points.shape[1]), camera, 40, colours=colours)
    assert torch.allclose(whole.image, again.image, atol=1e-5)
    for index in range(3):
        one = Camera(camera.rotation[index : index + 1], camera.position[index : index + 1], camera.focal[index : index + 1])
        alone = render(points[index : index + 1], Topology(faces, points.shape[1]), one, 40, colours=colours[index])
        assert torch.equal(alone.image[0], whole.image[index])


def test_a_face_wound_the_other_way_round_leaves_no_seam() -> None:
    points, faces, _ = lumpy(2, 4)
    mixed = faces.clone()
    mixed[::3] = mixed[::3].flip(1)
    camera = perspective_camera(0.4, 0.2)
    right, wrong = (render(points, Topology(f, len(points[0])), camera, 48).mask for f in (faces, mixed))
    assert torch.allclose(right, wrong, atol=1e-5)


def test_culling_changes_nothing_on_a_closed_mesh() -> None:
    points, faces, colours = lumpy(2, 2)
    topology, camera = Topology(faces, len(points[0])), perspective_camera(0.4, 0.2)
    one, two = (render(points, topology, camera, 48, colours=colours, cull=cull).image for cull in (False, True))
    assert torch.allclose(one, two, atol=1e-6)


def test_light_shades_by_lambert_and_backgrounds_stay_where_nothing_is() -> None:
    points, faces = icosphere(4)
    light = Light(torch.tensor([[0.0, 0, 3.0]]), torch.tensor([0.3]), torch.tensor([0.6]))
    back = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    topology, camera = Topology(faces, len(points)), orthographic_camera(scale=0.5)
    got = render(points[None], topology, camera, 64, background=back, light=light, normals=True)
    assert got.normals is not None
    inside = got.mask[0] == 1
    wanted = 0.3 + 0.6 * got.normals[0, 2]
    assert float((got.image[0, 0] - wanted)[inside & (got.face[0] >= 0)].abs().max()) < 1e-5
    outside = got.mask[0] == 0
    assert torch.equal(got.image[0][:, outside], back[0][:, outside])
    steps = render(points[None], topology, camera, 64, light=light, flat=True).image[0, 0]
    assert 0 < float((steps - wanted)[inside].abs().max()) < 0.2


def test_supersampling_averages_the_larger_picture() -> None:
    points, faces, colours = lumpy(2, 6)
    topology, camera = Topology(faces, len(points[0])), perspective_camera(0.4)
    small = render(points, topology, camera, 24, colours=colours, supersample=2, normals=True)
    large = render(points, topology, camera, 48, colours=colours)
    assert torch.allclose(small.image, torch.nn.functional.avg_pool2d(large.image, 2))
    assert small.mask.shape == small.depth.shape == small.face.shape == (1, 24, 24) and small.normals is not None
    assert bool(((small.depth > 3) | (small.depth == 0)).all())
    back = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    behind = render(points, topology, camera, 24, background=back, supersample=2)
    assert torch.allclose(behind.image[:, :, 0], back[:, :, 0])


def slivers(count: int, px: int) -> Tensor:
    """(count, 3, 3) triangles along lines through pixel centres, with areas of 1e-6 to 1e-3 px^2, for an orthographic camera of scale 1."""
    made = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, px, (count, 1, 2), generator=made) + 0.5 for _ in range(2))
    length = (b - a).norm(dim=2, keepdim=True).clamp_min(1)
    across = torch.stack([-(b - a)[..., 1], (b - a)[..., 0]], -1) / length
    width = 10 ** (3 * torch.rand(count, 1, 1, generator=made) - 6) / length
    c = a + torch.rand(count, 1, 1, generator=made) * (b - a) + across * width * torch.randn(count, 1, 1, generator=made).sign()
    x, y = torch.cat([a - across * width * torch.rand(count, 1, 1, generator=made), b, c], 1).unbind(-1)
    return torch.stack([x * 2 / px - 1, 1 - y * 2 / px, 0.1 * torch.rand(count, 3, generator=made)], -1)


@pytest.mark.parametrize("perspective", [False, True])
def test_slivers_of_the_size_of_rounding_errors_keep_colours_and_gradients_finite(perspective: bool) -> None:
    points = slivers(2000, 64)
    camera = orthographic_camera(scale=1.0, distance=5.0)
    if perspective:
        camera = Camera(camera.rotation, camera.position, torch.tensor([5.0]))
        points = points * torch.tensor([1.0, 1.0, 0.0])
    points.requires_grad_(True)
    found = render(points, Topology(torch.tensor([[0, 1, 2]]), 3), camera, 64, colours=torch.eye(3), antialias=False)
    assert int((found.face >= 0).sum()) > 500, "some are seen"
    assert float(found.image.detach().min()) >= -0.011 and float(found.image.detach().max()) <= 1.011
    (found.image.sum() + found.depth.sum()).backward()
    assert points.grad is not None and bool(points.grad.isfinite().all())


def test_what_does_not_fit_is_refused() -> None:
    points, faces = icosphere(0)
    topology, camera = Topology(faces, 12), perspective_camera()
    for wrong in (math.nan, math.inf, 1e30):
        bad = points[None].repeat(2, 1, 1)
        bad[1, 7, 2] = wrong
        with pytest.raises(NumericError, match="(?s)vertex 7 of mesh 1"):
            render(bad, topology, camera, 16)
    with pytest.raises(NumericError, match="camera"):
        render(points[None], topology, perspective_camera(math.nan), 16)
    calls = [
        lambda: render(points, topology, camera, 16),
        lambda: render(points[None, :5], topology, camera, 16),
        lambda: render(points[None], topology, camera, 0),
        lambda: render(points[None], topology, perspective_camera(torch.zeros(3)), 16),
        lambda: render(points[None], topology, camera, 16, colours=torch.zeros(5, 3)),
        lambda: render(points[None], topology, camera, 16, texture=torch.zeros(3, 4, 4)),
        lambda: render(points[None], topology, camera, 16, texture=torch.zeros(3, 4, 4), uv=torch.zeros(5, 2)),
        lambda: render(points[None], topology, camera, 16, background=torch.zeros(1, 3, 5, 5)),
        lambda: render(points[None], topology, camera, 16, background=torch.zeros(1, 3, 8, 8)),
        lambda: render(points[None], topology, camera, 16, light=Light(torch.zeros(2, 3), torch.zeros(1), torch.zeros(1))),
        lambda: render(points[None], topology, camera, 16, engine="opengl"),
        lambda: Topology(faces, 11),
        lambda: Topology(faces.float(), 12),
        lambda: perspective_camera(torch.zeros(3), torch.zeros(2)),
        lambda: icosphere(9),
    ]
    for call in calls:
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(ConfigError, match="no meshes"):
        render(points[None][:0], topology, camera, 8)
    with pytest.raises(NumericError, match="Texture coordinates"):  # torch would die of them
        render(points[None], topology, camera, 8, texture=torch.ones(3, 4, 4), uv=torch.full((12, 2), torch.nan))
