"""Gradients of the renderer: silhouettes, all inputs against finite differences, and 500 odd meshes without a NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

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
from selftaught.nets.renderer.shading import mix, weights


def rotations(count: int, seed: int) -> Tensor:
    made = torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turned = torch.linalg.qr(made)[0]
    return turned * torch.linalg.det(turned)[:, None, None]


def moved_camera(rotation: Tensor, seed: int, size_px: int) -> Camera:
    """Orthographic cameras whose middle is shifted by up to half a pixel, so that nothing is symmetric to the grid."""
    count = len(rotation)
    shift = (torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5) * 2 / size_px
    position = torch.cat([shift, torch.full((count, 1), -5.0, dtype=torch.float64)], 1)
    return Camera(rotation, position, torch.ones(count, dtype=torch.float64), perspective=False)


def lumpy(level: int, seed: int) -> tuple[Tensor, Topology, Tensor]:
    points, faces = icosphere(level)
    made = torch.Generator().manual_seed(seed)
    points = (points * (0.7 + 0.3 * torch.rand(len(points), 1, generator=made))).double()
    return points, Topology(faces, len(points)), torch.rand(len(points), 3, generator=made).double()


@pytest.mark.parametrize("size_px", [32, 64, 128])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_area_of_a_silhouette_has_99_to_102_percent_of_its_gradient(level: int, size_px: int) -> None:
    # The area of a scaled object is scale^2 times that at scale 1, so d area / d scale = 2 area / scale.
    points, faces = icosphere(level)
    count = 768 // size_px  # a smaller picture has fewer crossings to average over
    scale = torch.full((count, 1, 1), 0.6, dtype=torch.float64, requires_grad=True)
    camera = moved_camera(rotations(count, level), size_px, size_px)
    mask = render(points.double() * scale, Topology(faces, len(points)), camera, size_px).mask
    (found,) = torch.autograd.grad(mask.sum(), scale)
    ratio = found.flatten() * 0.6 / (2 * mask.detach().sum((1, 2)))
    assert 0.99 <= float(ratio.mean()) <= 1.02


def test_faces_seen_exactly_from_the_side_keep_the_silhouette() -> None:
    points, faces = icosphere(3)
    scale = torch.tensor(0.6, requires_grad=True)
    mask = render(points[None] * scale, Topology(faces, len(points)), orthographic_camera(scale=1.0), 64).mask.sum()
    (found,) = torch.autograd.grad(mask, scale)
    assert 0.98 <= float(found) * 0.6 / (2 * float(mask.detach())) <= 1.02
    # A cube seen along an axis: four of its faces are lines.
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    cube = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    scale = torch.tensor(0.61, requires_grad=True)
    mask = render(corners[None] * scale, Topology(cube, 8), orthographic_camera(scale=1.0), 64).mask.sum()
    (found,) = torch.autograd.grad(mask, scale)
    assert math.isclose(float(mask.detach()), (0.61 * 64) ** 2, rel_tol=2e-3)
    assert math.isclose(float(found), 4 * 40 * 32, rel_tol=1e-5), "40 crossings of each side, 32 px per unit"


def test_area_and_centre_of_a_disk_follow_radius_and_shift() -> None:
    points, faces = icosphere(5)
    topology = Topology(faces, len(points))
    radius = torch.linspace(18, 24, 13, dtype=torch.float64).requires_grad_()
    shift = torch.linspace(-0.5, 0.5, 13, dtype=torch.float64).requires_grad_()
    placed = points.double() * radius[:, None, None] / 32
    placed = placed + torch.stack([shift / 32, shift * 0.3 / 32, shift * 0], 1)[:, None]
    mask = render(placed, topology, orthographic_camera(scale=1.0), 64).mask
    area = mask.sum((1, 2))
    true = math.pi * radius.detach() ** 2
    assert float((area / true - 1).abs().max()) < 2e-3 and float((area / true).mean() - 1) < 1e-3
    (grown,) = torch.autograd.grad(area.sum(), radius, retain_graph=True)
    assert abs(float((grown / (2 * math.pi * radius)).mean()) - 1) < 0.01
    centre = (mask * (torch.arange(64) + 0.5)).sum((1, 2)) / area
    assert float((centre - 32 - shift).abs().max()) < 0.01
    (followed,) = torch.autograd.grad(centre.sum(), shift)
    assert abs(float(followed.mean()) - 1) < 0.02


@pytest.mark.parametrize("what", ["points", "colours", "background", "texture", "uv", "light", "camera"])
def test_directional_finite_differences(what: str) -> None:
    made = torch.Generator().manual_seed(7)
    points, faces, uv, uv_faces = uv_sphere(9, 14)
    points = (points * (0.7 + 0.3 * torch.rand(len(points), 1, generator=made))).double()
    topology = Topology(faces, len(points), uv_faces)
    camera = perspective_camera(torch.tensor([0.5], dtype=torch.float64), 0.3, 0.1)
    inputs = {
        "points": points, "colours": torch.rand(len(points), 3, generator=made).double(),
        "background": torch.rand(1, 3, 40, 40, generator=made).double(), "camera": camera.position,
        "texture": torch.rand(3, 8, 12, generator=made).double(), "uv": uv.double() * 0.98 + 0.01,
        "light": torch.tensor([[0.3, 0.5, 1.0]], dtype=torch.float64),
    }  # fmt: skip
    target = torch.rand(1, 3, 40, 40, generator=made).double()
    half = torch.tensor([0.5], dtype=torch.float64)

    def loss(value: Tensor) -> Tensor:
        given = {**inputs, what: value}
        seen_by = Camera(camera.rotation, given["camera"], camera.focal)
        got = render(
            given["points"][None], topology, seen_by, 40, colours=given["colours"], background=given["background"],
            texture=given["texture"], uv=given["uv"], light=Light(given["light"], half, half), normals=True,
        )  # fmt: skip
        assert got.normals is not None
        return ((got.image - target) ** 2).sum() + got.mask.sum() + 0.01 * got.depth.square().sum() + got.normals[:, 0].sum()

    value = inputs[what].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(value), value)
    direction = torch.randn(value.shape, generator=made, dtype=torch.float64)
    # Small enough that no pixel changes its face: with the same faces the picture is smooth.
    step = 1e-6
    with torch.no_grad():
        slope = (loss(value + step * direction) - loss(value - step * direction)) / (2 * step)
    assert math.isclose(float((gradient * direction).sum()), float(slope), rel_tol=1e-2), what


def test_interpolation_passes_gradcheck() -> None:
    made = torch.Generator().manual_seed(1)
    inside = torch.rand(3, 6, generator=made, dtype=torch.float64) + 0.2
    corners = torch.rand(2, 3, 6, generator=made, dtype=torch.float64) * 4
    centre = (corners * (inside / inside.sum(0))).sum(1)
    inverse = torch.rand(3, 6, generator=made, dtype=torch.float64) + 0.5
    rows = torch.rand(4, 3, 6, generator=made, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in (corners, inverse, rows)]
    assert torch.autograd.gradcheck(lambda c, i, r: mix(weights(c, i, centre), r), leaves)


def test_hidden_contours_have_no_gradient() -> None:
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    points = torch.cat([torch.cat([0.7 * square, torch.full((4, 1), 0.5)], 1), torch.cat([0.31 * square, torch.zeros(4, 1)], 1)])
    colours = torch.cat([torch.full((4, 3), 0.2), torch.full((4, 3), 0.9)])
    for behind in (True, False):
        placed = points.clone()
        placed[4:, 2] = 0.0 if behind else 1.0
        placed.requires_grad_()
        image = render(placed[None], Topology(faces, 8), orthographic_camera(scale=1.0), 32, colours=colours).image
        (gradient,) = torch.autograd.grad(image.square().sum(), placed)
        assert bool((gradient[:4].abs().sum() > 1).all())
        assert bool((gradient[4:] == 0).all()) == behind


def test_a_shape_is_found_from_its_masks() -> None:
    points, faces = icosphere(2)
    topology, camera = Topology(faces, len(points)), perspective_camera(torch.tensor([0.0, 0.8, 1.6, 2.4]), 0.5)
    true = torch.tensor([0.9, 0.5, 0.7])
    with torch.no_grad():
        target = render((points * true).expand(4, -1, -1), topology, camera, 32).mask
    axes = torch.full((3,), 0.6, requires_grad=True)
    optimiser = torch.optim.Adam([axes], lr=0.03)
    for _ in range(40):
        optimiser.zero_grad()
        loss = (render((points * axes).expand(4, -1, -1), topology, camera, 32).mask - target).square().mean()
        loss.backward()
        optimiser.step()
    assert float((axes.detach() - true).abs().max()) < 0.02


def odd_mesh(seed: int) -> tuple[Tensor, Tensor]:
    """Points (V, 3) and faces (F, 3) with something wrong: flat or doubled faces, behind or far away, tiny, empty, slivers."""
    made = torch.Generator().manual_seed(seed)
    kind = seed % 10
    if kind == 0:
        return torch.zeros(seed % 3 * 4, 3), torch.zeros(0, 3, dtype=torch.long)
    vertices = int(torch.randint(3, 60, (1,), generator=made))
    points = torch.randn(vertices, 3, generator=made)
    faces = torch.randint(0, vertices, (int(torch.randint(1, 120, (1,), generator=made)), 3), generator=made)
    if kind == 1:
        points = points[torch.randint(0, vertices, (vertices,), generator=made)]  # coinciding points
    elif kind == 2:
        points[:, seed // 10 % 3] = 0.25  # flat: seen from the side along two axes
    elif kind == 3:
        points = points * 10.0 ** (seed // 10 % 18 - 9)  # from invisible to enormous
    elif kind == 4:
        points[:, 2] += 4.8  # around the camera
    elif kind == 5:
        points = (points * 4).round() / 4  # on the grid, with ties
    elif kind == 6:
        points[:, 0] = points[:, 1] + 1e-6 * points[:, 0]  # slivers
    elif kind == 7:
        faces = faces[:1].repeat(50, 1)  # the same face many times
    elif kind == 8:
        points = points * torch.tensor([1e-8, 1.0, 1e4])
    return points, faces


@pytest.mark.parametrize("part", range(5))
def test_500_odd_meshes_give_no_nan(part: int) -> None:
    for seed in range(part * 100, part * 100 + 100):
        points, faces = odd_mesh(seed)
        made = torch.Generator().manual_seed(seed)
        colours = torch.rand(len(points), 3, generator=made)
        leaves = [points.requires_grad_(), colours.requires_grad_()]
        camera = (perspective_camera if seed % 4 < 3 else orthographic_camera)(0.0 if seed % 2 else 0.3, 0.0)
        light = Light(torch.tensor([[0.0, 1, 1]]), torch.tensor([0.4]), torch.tensor([0.6]))
        got = render(
            points[None], Topology(faces, len(points)), camera, 16, colours=colours, light=light, normals=True,
            flat=seed % 3 == 0, cull=seed % 5 == 0, supersample=1 + (seed % 7 == 0), engine="torch",
        )  # fmt: skip
        assert got.normals is not None
        assert bool(got.image.isfinite().all() and got.depth.isfinite().all() and got.normals.isfinite().all()), seed
        assert bool((got.mask >= -1e-4).all() and (got.mask <= 1 + 1e-4).all()), seed
        loss = got.image.square().sum() + got.mask.sum() + got.depth.sum() * 1e-3 + got.normals.sum()
        for gradient in torch.autograd.grad(loss, leaves):
            assert bool(gradient.isfinite().all()), seed


def test_a_mesh_of_many_large_faces_fits_into_memory() -> None:
    # 1,500 faces that each cover the picture: 6 million pairs of face and pixel.
    made = torch.Generator().manual_seed(0)
    corners = torch.tensor([[-9.0, -9, 0], [9, -9, 0], [0, 9, 0]]).repeat(1500, 1)
    corners[:, 2] += torch.rand(1500, generator=made).repeat_interleave(3)
    topology = Topology(torch.arange(4500).reshape(1500, 3), 4500)
    got = render(corners[None].requires_grad_(), topology, orthographic_camera(), 64, engine="torch")
    nearest = int(corners.detach()[::3, 2].argmax())
    assert bool((got.face == nearest).all())
