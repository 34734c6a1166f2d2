"""The solid objects of shape_gan: closed and facing outwards whatever the numbers, symmetric, and seen as their formulas say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selftaught.reconstruct import is_open
from selftaught.shape3d.mesh_generator import (
    MeshGenerator,
    Solids,
    Views,
    draw_lights,
    enlarged,
    mirrored_angles,
    moved,
    pose_vector,
    thinness,
)


def generator(symmetric: bool = True, seed: int = 0, shared: bool = False, scaled: bool = False) -> MeshGenerator:
    torch.manual_seed(seed)
    made = MeshGenerator(16, 8, 12, (4, 3, 2), 8, symmetric, math.radians(10), shared=shared, scaled=scaled)
    with torch.no_grad():
        for value in made.parameters():  # far from the smooth beginning
            value.add_(0.3 * torch.randn_like(value))
    return made


def objects(made: MeshGenerator, count: int = 3) -> Solids:
    return made(2 * torch.randn(count, 9, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_surfaces_are_closed_and_face_outwards(symmetric: bool, shared: bool) -> None:
    made = generator(symmetric, shared=shared)
    for points in objects(made, 6).points:
        assert not is_open(points.detach(), made.topology.faces)
        corners = (points - made.centre * torch.tensor([0.0 if symmetric else 1.0, 1.0, 1.0]))[made.topology.faces]
        outwards = torch.linalg.det(corners)  # six times the volume between a face and the centre
        assert float(outwards.detach().min()) > 0


@pytest.mark.parametrize("shared", [True, False])
def test_symmetric_objects_are_their_own_mirror_images(shared: bool) -> None:
    made = generator(shared=shared)
    solids = objects(made)
    grid = solids.points[:, :96].reshape(3, 8, 12, 3)
    mirrored = grid.flip(2).roll(1, 2) * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(mirrored, grid, atol=1e-5, rtol=0)
    torch.testing.assert_close(solids.texture.flip(3), solids.texture, atol=1e-6, rtol=0)
    other = objects(generator(symmetric=False))
    assert float((other.texture.flip(3) - other.texture).detach().abs().max()) > 0.05


def test_mirrored_views_give_mirrored_pictures() -> None:
    made = generator()
    solids = objects(made)
    angles = torch.tensor([[0.5, 0.1, 0.1], [-0.9, -0.2, 0.0], [0.0, 0.1, -0.2]])
    light = torch.tensor([0.4, 0.5, 0.6, 0.2]).expand(3, 4)
    shift = torch.tensor([[0.05, 0.02]]).expand(3, 2)
    one = made.render(solids, Views(angles, shift, light), 32)
    other_side = mirrored_angles(angles, torch.ones(3, dtype=torch.bool))
    far = Views(other_side, shift * torch.tensor([-1.0, 1.0]), light * torch.tensor([1, 1, -1.0, 1]))
    other = made.render(solids._replace(background=solids.background.flip(3)), far, 32)
    assert float((one.mask.flip(2) - other.mask).abs().mean()) < 0.01
    # The diagonals of the faces are not mirrored, so that colours differ a little.
    assert float((one.image.flip(3) - other.image).abs().mean()) < 0.03
    same = mirrored_angles(angles, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(same, angles)


def test_half_the_pictures_height_is_one() -> None:
    made = generator()
    views = Views(torch.zeros(1, 3), torch.tensor([[0.0, 0.5]]), torch.zeros(1, 4))
    seen = made.camera(views).screen(torch.tensor([[[0.0, 0.5, 0.0], [1.0, -0.5, 0.0]]]), 32, 32).xy[0]
    torch.testing.assert_close(seen, torch.tensor([[16.0, 0.0], [32.0, 16.0]]), atol=1e-3, rtol=0)


def test_roughness_and_leaving_are_the_loops_of_their_words() -> None:
    made = generator()
    points = objects(made).points.detach()
    neighbours: dict[int, set[int]] = {}
    for face in made.topology.faces.tolist():
        for a in face:
            neighbours.setdefault(a, set()).update(b for b in face if b != a)
    for k, own in enumerate(points):
        each = [float((own[i] - own[sorted(n)].mean(0)).square().sum()) for i, n in neighbours.items()]
        assert float(made.roughness(points)[k]) == pytest.approx(np.mean(each), rel=1e-4)
    views = Views(torch.tensor([[0.3, 0.1, 0.0]]).expand(3, 3), torch.tensor([[0.9, 0.0]]).expand(3, 2), torch.zeros(3, 4))
    seen = made.camera(views).screen(points, 2, 2).xy - 1
    wanted = [np.mean([max(abs(x) - 0.97, 0) + max(abs(y) - 0.97, 0) for x, y in one.tolist()]) for one in seen]
    assert min(wanted) > 0
    np.testing.assert_allclose(made.leaving(points, views), wanted, atol=1e-5)


def test_cards_are_thin_and_balls_are_not() -> None:
    ball = torch.nn.functional.normalize(torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(0)), dim=2)
    card = (ball * torch.tensor([1.0, 1.0, 0.0])).requires_grad_()
    assert float(thinness(ball, 0.3)) == 0
    short = thinness(card, 0.3)
    assert float(short) == pytest.approx(0.3, abs=1e-3)
    assert float(thinness(ball * torch.tensor([1.0, 1.0, 0.2]), 0.3)) == pytest.approx(0.1, abs=0.02)
    short.sum().backward()
    assert card.grad is not None and bool(card.grad.isfinite().all())


def test_pictures_are_moved_by_whole_pixels() -> None:
    pictures = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = moved(pictures, torch.tensor([[1, -2], [0, 3]]))
    for b, (dx, dy) in enumerate([(1, -2), (0, 3)]):
        for y in range(5):
            for x in range(5):
                torch.testing.assert_close(found[b, :, y, x], pictures[b, :, min(max(y - dy, 0), 4), min(max(x - dx, 0), 4)])


def test_lights_and_poses_have_their_ranges() -> None:
    torch.manual_seed(0)
    light = draw_lights(500, (0.2, 0.4), (0.5, 0.8), (0.7, 0.4, 0.15))
    assert 0.2 <= float(light[:, 0].min()) and float(light[:, 0].max()) <= 0.4
    assert 0.5 <= float(light[:, 1].min()) and float(light[:, 1].max()) <= 0.8
    np.testing.assert_allclose(light[:, 2:].mean(0), [0, 0.15], atol=0.1)
    np.testing.assert_allclose(light[:, 2:].std(0), [0.7, 0.4], atol=0.06)
    np.testing.assert_allclose(pose_vector(torch.tensor([[math.pi / 2, 0.1, 0.2]]))[0], [0, 1, 0.1, 0.2], atol=1e-6)


def test_sizes_that_do_not_fit_are_refused() -> None:
    for rows, columns, px in ((6, 8, 16), (8, 9, 16), (8, 8, 18), (4, 8, 16)):
        with pytest.raises(ValueError, match="multiples of 4"):
            MeshGenerator(px, rows, columns, (2, 2, 2), 8, True, 0.2)


def test_what_is_shared_is_the_same_for_all_and_colours_are_each_objects_own() -> None:
    made = generator(symmetric=False, shared=True)
    assert made.shared is not None
    before = objects(made)
    with torch.no_grad():
        made.shared.radius[0, 0, 2, 3] += 0.1  # vertex 27
        made.shared.texture[0, 1] += 0.5
    after = objects(made)
    grown = (after.points - made.centre).norm(dim=2) / (before.points - made.centre).norm(dim=2)
    wanted = torch.ones(3, grown.shape[1])
    wanted[:, 27] = math.exp(0.1)
    torch.testing.assert_close(grown, wanted, atol=1e-4, rtol=0)
    change = torch.logit(after.texture) - torch.logit(before.texture)
    torch.testing.assert_close(change, torch.tensor([0.0, 0.5, 0.0])[:, None, None].expand_as(change), atol=1e-3, rtol=0)
    codes = torch.randn(2, 7, generator=torch.Generator().manual_seed(2))
    own = made.shared(codes)
    assert own.shape == (2, 3, 16, 24) and float((own[0] - own[1]).detach().abs().mean()) > 0.05
    with torch.no_grad():  # a texture that changes evenly round the surface does so across its seam as well
        made.shared.texture.copy_((torch.arange(12) * math.pi / 6).cos().expand(1, 3, 8, 12))
        made.shared.parts.zero_()
    steps = torch.cat([made.shared(codes), made.shared(codes)[..., :1]], 3).diff(dim=3).detach().abs()
    assert float(steps[..., -1].max()) <= float(steps[..., :-1].max()) + 1e-6


def test_coarse_textures_are_enlarged_and_wrap_round() -> None:
    torch.manual_seed(0)
    fine, coarse = (MeshGenerator(16, 8, 12, (4, 3, 2), 8, True, math.radians(10), paint_levels=levels) for levels in (3, 1))
    z = torch.randn(2, 9)
    assert fine(z).texture.shape == coarse(z).texture.shape == (2, 3, 16, 24)
    steps = [made(z).texture.diff(dim=3).abs().amax() / made(z).texture.std() for made in (fine, coarse)]
    assert steps[1] < 0.7 * steps[0]  # neighbours differ less when there are fewer values
    x = torch.zeros(1, 1, 2, 4)
    x[..., 0] = 1.0
    large = enlarged(x, 2)[0, 0, 0]
    assert large.tolist() == [0.75, 0.75, 0.25, 0.0, 0.0, 0.0, 0.0, 0.25]  # the last column is next to the first


def test_scaled_roughness_does_not_press_long_objects_together() -> None:
    points = objects(generator()).points.detach()
    long = points * torch.tensor([1.0, 0.7, 3.0])
    plain, scaled = generator(), generator(scaled=True)
    of_size = [scaled.roughness(p) / p.std(1).mean(1).square() for p in (long, points)]
    torch.testing.assert_close(*of_size)
    assert float((plain.roughness(long) / plain.roughness(points)).min()) > 1.5
    stretch = torch.ones(3, requires_grad=True)
    at = points - points.mean(1, keepdim=True)
    for made, pressed in ((plain, True), (scaled, False)):
        # Longer at the cost of the other extents, so that their mean stays.
        extent = at.std(1).mean(0)
        (slope,) = torch.autograd.grad(made.roughness(at * stretch).mean(), stretch)
        along = slope[2] / extent[2] - slope[0] / extent[0]
        assert (abs(float(along)) > 1e-4) == pressed, (pressed, along)
