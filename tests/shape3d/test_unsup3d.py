"""unsup3d: its formulas against loops, its geometry against known surfaces, and that it learns viewpoints where a control does not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from selftaught.data.sources import open_data
from selftaught.evaluate import evaluate
from selftaught.measure.viewpoint import azimuth_of
from selftaught.method import Progress, Reconstructs, SeesViewpoints
from selftaught.nets.renderer import Light, rotation_from_angles
from selftaught.shape3d.unsup3d import Unsup3D, laplace_nll
from selftaught.train import train
from selftaught.worlds.meshes import writing

TINY = Unsup3D.sizes["tiny"]


def method(**changes: object) -> Unsup3D:
    torch.manual_seed(0)
    return Unsup3D(dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth_px": 24}, {"depth_px": 2}, {"fov_rad": 0.0}, {"fov_rad": 3.3}, {"depth_range": (0.9, 0.9)}, {"depth_range": (-1.0, 1.0)},
        {"border_depth": 0.0}, {"sigma_min": 0.0}, {"code": 0}, {"width": 2}, {"shift": -0.1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(TINY, **wrong)  # type: ignore[arg-type]


def test_the_likelihood_is_the_loop_of_the_formula() -> None:
    random = torch.Generator().manual_seed(0)
    error = torch.randn(2, 3, 4, 5, generator=random)
    sigma, mask = (
        0.2 + torch.rand(2, 1, 4, 5, generator=random),
        (torch.rand(2, 1, 4, 5, generator=random) > 0.3).float(),
    )
    total, count = 0.0, 0
    for b in range(2):
        for i in range(4):
            for j in range(5):
                if mask[b, 0, i, j]:
                    size = sum(abs(float(error[b, c, i, j])) for c in range(3)) / 3
                    total += math.sqrt(2) * size / float(sigma[b, 0, i, j]) + math.log(float(sigma[b, 0, i, j]))
                    count += 1
    assert float(laplace_nll(error, sigma, mask)) == pytest.approx(total / count, rel=1e-5)
    assert float(laplace_nll(error, None, torch.zeros_like(mask))) == 0, "nothing is seen: no division by zero"


def test_the_canonical_view_itself_is_seen_unchanged() -> None:
    m = method(depth_px=16)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    depth = 1 + 0.03 * torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(2))
    still = torch.eye(3).expand(2, 3, 3)
    seen, reach, view_depth = m.see(image, depth, still, torch.zeros(2, 3))
    inside = reach.bool()
    assert bool(inside[:, :, 1:-1, 1:-1].all())
    torch.testing.assert_close(
        seen[inside.expand(-1, 3, -1, -1)], image[inside.expand(-1, 3, -1, -1)], atol=2e-3, rtol=0
    )
    torch.testing.assert_close(view_depth[inside[:, 0]], depth[inside[:, 0]], atol=1e-5, rtol=0)


def test_a_plane_at_the_axis_turns_as_the_formula_says() -> None:
    """A point (x, 0) of the plane at depth 1, turned by a about the upright axis, is seen at x cos a / (1 + x sin a) in slopes."""
    m = method(depth_px=16, image_px=16)
    angle, half = 0.5, math.tan(TINY.fov_rad / 2)
    line = (torch.arange(16) + 0.5) / 8 - 1
    ramp = (line / 2 + 0.5).expand(1, 3, 16, 16)  # colours say where in the canonical view one is
    turn = rotation_from_angles(*(torch.tensor([a]) for a in (angle, 0.0, 0.0)))
    seen, reach, _ = m.see(ramp.contiguous(), torch.ones(1, 16, 16), turn, torch.zeros(1, 3))
    place = seen[0, 0, 8] * 2 - 1
    slope = place * half
    predicted = slope * math.cos(angle) / (1 + slope * math.sin(angle)) / half
    inside = reach[0, 0, 8].bool() & (place.abs() < 0.9)
    assert int(inside.sum()) > 10
    torch.testing.assert_close(predicted[inside], line[inside], atol=5e-3, rtol=0)


def test_mirrored_shapes_seen_from_mirrored_viewpoints_are_mirrored_pictures() -> None:
    m = method(depth_px=16)
    random = torch.Generator().manual_seed(3)
    image, depth = torch.rand(1, 3, 16, 16, generator=random), 1 + 0.03 * torch.rand(1, 16, 16, generator=random)
    angles = torch.tensor([[0.3, 0.1, 0.05]])
    one = rotation_from_angles(*angles.unbind(1))
    other = rotation_from_angles(*(angles * torch.tensor([-1.0, 1.0, -1.0])).unbind(1))
    seen, reach, _ = m.see(image, depth, one, torch.tensor([[0.01, 0.02, 0.0]]))
    mirrored, reach_too, _ = m.see(image.flip(3), depth.flip(2), other, torch.tensor([[-0.01, 0.02, 0.0]]))
    both = (reach * reach_too.flip(3)).bool().expand(-1, 3, -1, -1)
    # The diagonals of the mesh are not mirrored, so that the surfaces differ a little between vertices.
    assert float((seen - mirrored.flip(3)).abs()[both].mean()) < 0.02 and float(both.float().mean()) > 0.5


def test_a_shift_costs_its_share_of_the_largest_squared() -> None:
    m = method(shift_weight=3.0)
    free = method(shift_weight=0.0)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    depth, albedo, still = torch.ones(2, 8, 8), pictures / 2 + 0.5, torch.eye(3).expand(2, 3, 3)
    shift = torch.tensor([[0.05, 0.0, 0.0], [0.03, -0.04, 0.0]])
    dear, parts = m.explain(pictures, depth, albedo, (still, shift), torch.zeros(2, 4), None, 0.0)
    cheap, _ = free.explain(pictures, depth, albedo, (still, shift), torch.zeros(2, 4), None, 0.0)
    assert parts["shift"] == pytest.approx(0.25)
    assert float(dear - cheap) == pytest.approx(0.75, rel=1e-4)


def test_shading_is_lamberts_law() -> None:
    m = method()
    light = torch.tensor([[0.2, -0.4, 0.5, -1.0]])
    normals = torch.nn.functional.normalize(torch.tensor([0.3, -0.2, 1.0]), dim=0)[None, :, None, None].expand(
        1, 3, 8, 8
    )
    ours = m.shade(normals, light)
    theirs = Light(torch.tensor([[0.5, -1.0, 1.0]]), torch.tensor([0.6]), torch.tensor([0.3]))
    wanted = theirs.shade(normals[0, :, 0, :1], torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(ours, wanted.expand(1, 1, 16, 16))


def test_gradients_of_shape_and_viewpoint_agree_with_differences() -> None:
    m = method(depth_px=8, flip_weight=0.5).double()
    random = torch.Generator().manual_seed(4)
    line = torch.arange(16, dtype=torch.float64)
    smooth = (0.5 + 0.4 * torch.sin(line / 4)[None, :] * torch.cos(line / 5)[:, None]).expand(1, 3, 16, 16)
    pictures = smooth * 2 - 1
    depth = (1 + 0.03 * torch.rand(1, 8, 8, generator=random, dtype=torch.float64)).requires_grad_()
    angles = torch.tensor([[0.2, 0.05, 0.02]], dtype=torch.float64, requires_grad=True)
    light = torch.tensor([[0.3, 0.1, 0.2, -0.1]], dtype=torch.float64, requires_grad=True)
    albedo = (0.8 * smooth.clone() + 0.05).requires_grad_()
    shift = torch.zeros(1, 3, dtype=torch.float64)

    def loss(*parts: torch.Tensor) -> torch.Tensor:
        d, a, w, lights = parts
        return m.explain(pictures, d, a, (rotation_from_angles(*w.unbind(1)), shift), lights, None, 0.1)[0]

    given = (depth, albedo, angles, light)
    gradients = torch.autograd.grad(loss(*given), given)
    for k, (value, gradient) in enumerate(zip(given, gradients, strict=True)):
        direction = torch.randn(value.shape, generator=random, dtype=torch.float64)
        step = 1e-6 * direction
        moved = [tuple(v + sign * step if i == k else v for i, v in enumerate(given)) for sign in (1, -1)]
        difference = float((loss(*moved[0]) - loss(*moved[1])).detach()) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=0.02, abs=1e-5), f"argument {k}"


def test_paper_size_has_the_papers_networks() -> None:
    """Layers of the paper's supplement (tables of the architecture): 4 halvings of 64 px, widths 64 to 512, codes of 256."""
    with torch.device("meta"):
        m = Unsup3D(Unsup3D.sizes["paper"])
    widths = [part.out_channels for part in m.depth_net if isinstance(part, torch.nn.Conv2d)]
    assert widths[:5] == [64, 128, 256, 512, 256] and widths[-1] == 1
    regressor = [part.out_channels for part in m.view_net if isinstance(part, torch.nn.Conv2d)]
    assert regressor == [32, 64, 128, 256, 256, 5]
    assert m.config.depth_px == m.config.image_px == 64 and m.config.flip_weight == 0.5


def test_answers_have_their_ranges_and_the_rim_lies_behind() -> None:
    m = method().eval()
    images = torch.rand(3, 3, 20, 24)
    found = m.explained(images)
    near, far = TINY.depth_range
    assert near - 0.02 < float(found.depth.min()) and float(found.depth.max()) < far + 0.02
    assert float(found.depth[..., 0].min()) > 1.0 and float(found.albedo.min()) >= 0 and float(found.albedo.max()) <= 1
    shapes = m.reconstruct(images)
    assert isinstance(m, Reconstructs) and isinstance(m, SeesViewpoints)
    assert shapes.points.shape == (3, 256, 3) and int(shapes.faces.max()) == 255
    torch.testing.assert_close(m.viewpoint(images), shapes.rotation)
    torch.testing.assert_close(shapes.rotation @ shapes.rotation.mT, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fill", [0, 255])
def test_blank_pictures_give_finite_losses_and_gradients(fill: int) -> None:
    m = method()
    batch = m.prepare(torch.full((4, 3, 16, 16), fill, dtype=torch.uint8), np.arange(4))
    loss, parts = m.loss(batch, "networks", Progress(0, 1))
    loss.backward()
    assert bool(torch.isfinite(loss)) and all(math.isfinite(v) for v in parts.values())
    assert all(bool(torch.isfinite(p.grad).all()) for p in m.parameters() if p.grad is not None)


LEARNS = [
    "image_px=32", "width=16", "regressor_width=16", "code=96", "depth_px=16", "batch_size=16", "warmup_frac=0.02", "clip_norm=5.0",
    "smooth_weight=0.4",
]  # fmt: skip


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "heads"
    writing.make("heads", folder, 400, 0, "tiny")
    return folder


@pytest.mark.slow
def test_it_learns_viewpoints_and_with_learning_rate_0_it_does_not(heads: Path, tmp_path: Path) -> None:
    run = train("unsup3d", heads, tmp_path / "run", size="tiny", steps=200, set=[*LEARNS, "lr=0.001"], quiet=True)
    scores = evaluate(run)
    still = train("unsup3d", heads, tmp_path / "still", size="tiny", steps=2, set=[*LEARNS, "lr=0.0"], quiet=True)
    control = evaluate(still)
    bar = 0.8 * scores["mad_deg"].baselines["plane"]
    assert scores["mad_deg"].value < bar < control["mad_deg"].value
    # The rim that lies behind makes the untrained answer a little like a face already (0.34).
    assert scores["depth_correlation"].value > 0.6 > control["depth_correlation"].value, "a face, not its hollow mould"
    bar = 0.6 * scores["azimuth_median_deg"].baselines["constant"]
    assert scores["azimuth_median_deg"].value < bar < control["azimuth_median_deg"].value
    from selftaught.loading import load_method

    learned = load_method(run)
    images = (
        torch.from_numpy(np.stack([open_data(heads, "test").image(i) for i in range(40)])).permute(0, 3, 1, 2).float()
        / 255
    )
    both = [azimuth_of(learned.viewpoint(x).numpy()) for x in (images, images.flip(3))]  # type: ignore[operator]
    assert np.corrcoef(both[0], both[1])[0, 1] < -0.7, "a mirrored picture is seen from the mirrored side"
    truths = [open_data(heads, "test").truth(i).view for i in range(40)]
    true = azimuth_of(np.stack([view.rotation for view in truths if view is not None]))
    assert np.corrcoef(both[0], true)[0, 1] > 0.5
