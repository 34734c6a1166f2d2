"""shape_gan: its losses against their formulas, who learns from which, and that it learns heads where a control does not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selftaught.core.config import override
from selftaught.core.errors import ConfigError
from selftaught.data.evalset import open_eval
from selftaught.method import EvalData, Progress, SeesViewpoints
from selftaught.nets.renderer import Rendering, Topology, perspective_camera, render, rotation_from_angles, uv_sphere
from selftaught.shape3d.mesh_generator import HIDDEN, hidden
from selftaught.shape3d.shape_gan import Real, ShapeGAN, estimated_angles, evened, mirror_plane
from selftaught.worlds.meshes import writing

TINY = ShapeGAN.sizes["tiny"]


class Told:
    """Stands for unsup3d: says viewpoints that it is given, in the order of the pictures, then those of their mirror images."""

    def __init__(self, rotations: np.ndarray[Any, Any]):
        given, mirror = torch.from_numpy(rotations).float(), torch.tensor([-1.0, 1.0, 1.0])
        self.rotations, self.next = torch.cat([given, mirror[:, None] * given * mirror]), 0

    def viewpoint(self, images: torch.Tensor) -> torch.Tensor:
        self.next += len(images)
        return self.rotations[self.next - len(images) : self.next]


class Pictures:
    """Stands for an ImageSet."""

    def __init__(self, pictures: np.ndarray[Any, Any]):
        self.pictures = torch.from_numpy(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: Any) -> torch.Tensor:
        return self.pictures[torch.as_tensor(np.asarray(rows))]


def method(seed: int = 0, **changes: Any) -> ShapeGAN:
    torch.manual_seed(seed)
    return ShapeGAN(dataclasses.replace(TINY, **changes), {"pose": None})


def batch(count: int = 4, seed: int = 1) -> Real:
    made = torch.Generator().manual_seed(seed)
    return Real(*(torch.rand(count, *shape, generator=made) - low for shape, low in (((3, 16, 16), 0.0), ((3,), 0.5), ((3,), 0.5))))


def test_the_logit_is_the_projection_of_the_formula() -> None:
    critic = method().critic.double()
    seen = critic.trunk(torch.rand(2, 3, 16, 16, dtype=torch.float64))
    angles = torch.tensor([[0.3, 0.1, -0.2], [-1.0, 0.0, 0.1]], dtype=torch.float64)
    features = critic.realism(seen)
    for i, (a, e, r) in enumerate(angles.tolist()):
        told = [1.4 * math.sin(a), math.sin(2 * a), math.cos(a), 4 * e, 4 * r]
        wanted = float(critic.logit(features)[i, 0].detach())
        for k in range(128):
            wanted += float(features[i, k]) * sum(float(critic.pose.weight[k, j]) * told[j] for j in range(5)) / math.sqrt(128)
        assert float(critic.judge(seen, angles)[i]) == pytest.approx(wanted, rel=1e-5)  # judged in float32
    torch.testing.assert_close(critic.judge(seen, None), critic.logit(features)[:, 0].float())


def test_the_penalty_is_half_the_squared_gradient_at_real_pictures() -> None:
    real = batch()
    losses = []
    for r1, step in ((0.0, 0), (3.0, 0), (3.0, 1)):
        torch.manual_seed(5)
        m = method(r1=r1)
        torch.manual_seed(6)
        losses.append(float(m.loss(real, "critic", Progress(step, 10))[0].detach()))
    assert losses[2] == pytest.approx(losses[0], rel=1e-6), "only every fourth step"
    torch.manual_seed(6)
    m.make(m.maker, m.draw_views(real.others))  # the same draws as before
    reals = m.disturbed(real.pictures).requires_grad_()
    slope = torch.autograd.grad(m.critic.judge(m.critic.trunk(reals), real.angles).sum(), reals)[0]
    wanted = 3.0 / 2 * 4 * float(slope.square().sum()) / len(slope)
    assert losses[1] - losses[0] == pytest.approx(wanted, rel=1e-3)


def test_each_side_learns_from_its_own_loss_alone() -> None:
    m = method()
    for player, own, other in (("critic", m.critic, m.maker), ("maker", m.maker, m.critic)):
        m.zero_grad(set_to_none=True)
        loss, parts = m.loss(batch(), player, Progress(0, 10))
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in own.parameters()), player
        assert all(p.grad is None for p in other.parameters()), player
        assert all(p.requires_grad for p in other.parameters()) and all(map(math.isfinite, parts.values()))


def test_hinges_act_where_they_should() -> None:
    m = method(area=(0.9, 0.95), frame_weight=0.0)
    _, parts = m.loss(batch(), "maker", Progress(0, 10))
    assert parts["area"] == pytest.approx(0.9 - parts["covers"], abs=1e-5)
    m = method(area=(0.01, 0.05))
    _, parts = m.loss(batch(), "maker", Progress(0, 10))
    assert parts["area"] == pytest.approx(parts["covers"] - 0.05, abs=1e-5)
    m = method(thin_least=1.0)
    with torch.no_grad():
        m.maker.base[2] = -4
    assert m.loss(batch(), "maker", Progress(0, 10))[1]["thin"] > 0.9


def test_what_hides_before_its_background_is_pressed_out() -> None:
    nothing, mask = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1.0], [0.5, 0.0]]])
    seen = Rendering(torch.full((1, 3, 2, 2), 0.5), mask, nothing, None, nothing)
    ground = torch.full((1, 3, 2, 2), 0.5)
    ground[..., 0, 1], ground[..., 1, 0] = 0.2, 0.3  # the object shows here, all of it and one half
    assert float(hidden(seen, ground)) == pytest.approx((1 + math.exp(-0.3 / HIDDEN) + 0.5 * math.exp(-0.4 / HIDDEN)) / 4, rel=1e-5)
    # A ball whose upper half is painted like the background shrinks there; one that shows everywhere stays nearly as it is.
    points, faces, uv, uv_faces = uv_sphere(16, 24)
    sizes = []
    for colours in ((0.5, 0.0), (1.0, 0.0)):
        texture = torch.tensor(colours).repeat_interleave(8).reshape(1, 1, 16, 1).expand(1, 3, 16, 16)
        height = torch.nn.Parameter(torch.tensor([0.5, 0.5]))  # of the upper half and of the lower
        for _ in range(10):
            grown = points * torch.where(points[:, 1:2] > 0, height[0], height[1])
            camera = perspective_camera(torch.zeros(1), distance=5.0)
            topology = Topology(faces, len(points), uv_faces)
            made = render(grown[None], topology, camera, 32, texture=texture, uv=uv, background=torch.full((1,), 0.5))
            (slope,) = torch.autograd.grad(hidden(made, torch.full((1, 3, 32, 32), 0.5)), height)
            height = torch.nn.Parameter(height.detach() - 1.2 * slope)
        sizes.append(height.detach())
    assert sizes[0][0] < 0.35 and float(sizes[0][1]) > 0.45 and float(sizes[1].min()) > 0.45


def test_real_pictures_are_made_smaller_by_plain_means() -> None:
    pictures = torch.rand(2, 3, 32, 32)
    wanted = pictures.reshape(2, 3, 16, 2, 16, 2).mean((3, 5))
    torch.testing.assert_close(method().reduced(pictures), wanted)
    assert method().reduced(wanted) is wanted and method().reduced(torch.rand(1, 3, 20, 24)).shape == (1, 3, 16, 16)


def test_both_sides_are_shifted_as_far_as_is_set() -> None:
    dot = torch.zeros(64, 3, 16, 16)
    dot[:, :, 8, 8] = 1.0

    def reached(jitter_px: int) -> set[tuple[int, int]]:
        seen = method(jitter_px=jitter_px).disturbed(dot).sum(1)
        return {(int(x.argmax()) // 16 - 8, int(x.argmax()) % 16 - 8) for x in seen}

    assert reached(0) == {(0, 0)}
    assert reached(1) == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_textures_learn_at_their_own_rate() -> None:
    rates = method(paint_lr_scale=0.25).players()["maker"].lr_scales
    assert rates["paint"] == 0.25


def test_estimates_are_kept_and_made_anew_when_they_do_not_fit(tmp_path: Path) -> None:
    angles = torch.tensor([[0.3, 0.1, -0.2], [-1.2, -0.1, 0.05], [2.5, 0.2, 0.0]])
    told = Told(rotation_from_angles(*angles.unbind(1)).numpy())
    images = Pictures(np.zeros((3, 3, 16, 16), np.uint8))
    said: list[str] = []
    found = estimated_angles(tmp_path / "poses.npy", images, told.viewpoint, said.append)
    np.testing.assert_allclose(found, angles, atol=1e-5)
    again = estimated_angles(tmp_path / "poses.npy", images, None, said.append)
    assert len(said) == 1 and (again == found).all()
    np.save(tmp_path / "poses.npy", found[:2])
    told.next = 0
    estimated_angles(tmp_path / "poses.npy", images, told.viewpoint, said.append)
    assert "does not fit" in said[1]


class Turning:
    """Stands for a viewpoint method whose front lies anywhere: the brighter half of a picture tells the side, its brightness the angle."""

    def __init__(self, front: float):
        self.front = front

    def viewpoint(self, images: torch.Tensor) -> torch.Tensor:
        left, right = images[..., :8].mean((1, 2, 3)), images[..., 8:].mean((1, 2, 3))
        azimuth = 4 * (left - right) + self.front
        return rotation_from_angles(azimuth, azimuth * 0, azimuth * 0)


def test_azimuths_of_symmetric_objects_are_measured_from_their_plane(tmp_path: Path) -> None:
    pictures = np.zeros((50, 3, 16, 16), np.uint8)
    pictures[..., :8] = np.linspace(0, 190, 50).astype(np.uint8)[:, None, None, None]
    wanted = 4 * pictures[:, 0, 0, 0].astype(np.float64) / 255
    for front in (0.02, 0.9, 2.9):
        said: list[str] = []
        found = estimated_angles(tmp_path / f"{front}.npy", Pictures(pictures), Turning(front).viewpoint, said.append, True)
        # Front and back may be taken for each other; planes that lie nearly at 0 stay.
        left = front if front < 0.05 else math.pi if front > math.pi / 2 else 0.0
        away = found[:, 0] - wanted - left
        assert np.abs(np.sin(away / 2)).max() < 1e-3, front
        assert "plane of symmetry" in said[0]
    plain = estimated_angles(tmp_path / "as_they_are.npy", Pictures(pictures), Turning(0.9).viewpoint, said.append)
    assert np.abs(np.sin((plain[:, 0] - wanted - 0.9) / 2)).max() < 1e-3
    assert mirror_plane(np.array([0.5, 1.0, 2.5]), np.array([0.5, 2.0, 2.6]))[1] < 0.5, "no plane"


def test_azimuths_are_made_even_in_their_order(tmp_path: Path) -> None:
    true = np.random.default_rng(0).permutation(np.linspace(-math.pi, math.pi, 400, endpoint=False))
    squeezed = true + 0.35 * np.sin(2 * true)  # turns 1.7 times as fast at the front, as estimates do
    for symmetric, front in ((True, 0.0), (False, 0.0), (False, 1.3)):
        away = evened(squeezed + front, symmetric) - true - front
        assert np.abs(np.sin(away / 2)).max() < 0.01, (symmetric, front)
    # Pictures from one side alone are even together with their mirror images, and stay at their side.
    side = evened(np.abs(squeezed), True)
    assert side.min() >= 0 and np.abs(side - np.abs(true)).max() < 0.02

    pictures = np.zeros((50, 3, 16, 16), np.uint8)
    pictures[..., :8] = np.linspace(0, 190, 50).astype(np.uint8)[:, None, None, None]
    given = (tmp_path / "poses.npy", Pictures(pictures), Turning(0.0).viewpoint, print)
    as_found, even = (estimated_angles(*given, even=even)[:, 0] for even in (False, True))
    np.testing.assert_allclose(even, evened(as_found, False), atol=1e-6)
    with pytest.raises(ValueError, match="all_sides"):
        method(even_azimuths=True)


def test_what_is_not_told_of_the_viewpoint_is_drawn(tmp_path: Path) -> None:
    told = torch.zeros(400, 3)
    assert torch.equal(method().draw_views(told).angles, told)
    torch.manual_seed(0)
    seen = method(elevation=(0.1, 0.4), azimuth_error_rad=0.07).draw_views(told).angles
    assert 0.1 <= float(seen[:, 1].min()) < 0.12 and 0.38 < float(seen[:, 1].max()) <= 0.4
    assert float(seen[:, 0].std()) == pytest.approx(0.07, rel=0.15) and not bool(seen[:, 2].any())


def test_from_all_sides_lengthwise_and_across_are_told_apart() -> None:
    for all_sides in (False, True):
        critic = method(all_sides=all_sides).critic
        seen = critic.trunk(torch.rand(1, 3, 16, 16)).expand(4, -1)
        around = torch.zeros(4, 3)
        around[:, 0] = torch.arange(4) * math.pi / 2
        with torch.no_grad():
            logits = critic.judge(seen, around)
        even = float((logits * torch.tensor([1.0, -1.0, 1.0, -1.0])).sum().abs())
        assert (even > 1e-3) == all_sides


def test_estimates_of_real_pictures_teach_the_reader_alone() -> None:
    real, losses = batch(), []
    for weight in (0.0, 3.0):
        m = method(real_pose_weight=weight, r1=0.0)
        torch.manual_seed(6)
        losses.append((m.loss(real, "critic", Progress(0, 10)), m))
    (plain, _), (told, parts) = losses[0][0], losses[1][0]
    assert float((told - plain).detach()) == pytest.approx(3.0 * parts["real_pose"], rel=1e-3)
    m = losses[1][1]
    torch.manual_seed(6)
    m.make(m.maker, m.draw_views(real.others))  # the same draws as before
    found = m.critic.read(m.critic.trunk(m.disturbed(real.pictures)))[0]
    wanted = (1 - torch.cos(torch.atan2(found[:, 1], found[:, 0]) - real.angles[:, 0])).mean()
    assert parts["real_pose"] == pytest.approx(float(wanted.detach()), rel=1e-3)


def test_objects_start_as_the_ellipsoid_that_is_set() -> None:
    m = method(start=(0.2, 0.3, 0.4), start_lr_scale=10.0, background_lr_scale=0.1)
    torch.testing.assert_close(m.maker.base.exp(), torch.tensor([0.2, 0.3, 0.4]))
    groups = m.players()["maker"].build_optimizer().param_groups
    fast = [p for group in groups if group["lr_scale"] == 10.0 for p in group["params"]]
    assert len(fast) == 1 and fast[0] is m.maker.base
    slow = sum(p.numel() for group in groups if group["lr_scale"] == 0.1 for p in group["params"])
    assert slow == sum(p.numel() for p in m.maker.behind.parameters())


@pytest.mark.parametrize("setting", ["paint_levels=4", "jitter_px=-1", 
    "px=12", "shape_code=0", "background_code=0", "texture_code=-1", "width=1", "critic_width=0", "r1_every=0", "fov_rad=0", "fov_rad=4",
    "start=(0,1,1)", "start=(nan,1,1)", "elevation=(0.4,0.0)", "elevation=(nan,0.3)", "area=(0.6,0.2)", "area=(-3,-2)", "ambient=(nan,0.2)",
    "diffuse=(0.9,0.2)", "shared_lr_scale=-1", "start_lr_scale=-1", "pose_weight=-1", "rough_weight=-5", "ema=1.5", "ema=-0.5", "shift=-1",
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]} is"):
        override(TINY, [setting])


def test_flips_mirror_estimates_with_their_pictures(tmp_path: Path) -> None:
    m = method()
    pictures = np.zeros((64, 3, 16, 16), np.uint8)
    pictures[..., :8] = 255
    turned = torch.full((64,), 0.5)
    m.given["pose"] = Told(rotation_from_angles(turned, turned * 0, turned * 0).numpy())
    m.begin(Pictures(pictures), tmp_path, print)
    found = m.prepare(torch.from_numpy(pictures), np.arange(64))
    left = found.pictures[:, 0, 0, 0] > 0.5
    assert 16 < int(left.sum()) < 48
    torch.testing.assert_close(found.angles[:, 0], torch.where(left, 0.5, -0.5))
    torch.testing.assert_close(m.maker.ground, torch.logit(torch.full((3,), 0.5)), atol=0.02, rtol=0)


def test_the_average_follows_and_makes_what_is_shown() -> None:
    m = method(ema=0.5).eval()
    before = m.sample(2).points
    with torch.no_grad():
        m.maker.base += 1
    for _ in range(20):
        m.after_step(Progress(10, 20))
    assert float(m.sample(2).points.abs().mean()) > 2 * float(before.abs().mean())
    assert isinstance(m, SeesViewpoints) and m.viewpoint(torch.rand(2, 3, 20, 20)).shape == (2, 3, 3)
    assert m.show(torch.zeros(1, 3, 16, 16))["solids"].shape == (10 * 32, 12 * 32, 3)


def trained(m: ShapeGAN, images: Pictures, folder: Path, steps: int) -> ShapeGAN:
    """The loop of the library, in short."""
    m.begin(images, folder, print)
    players = m.players()
    optimizers = {name: player.build_optimizer() for name, player in players.items()}
    random = np.random.RandomState(0)
    for step in range(steps):
        rows = random.randint(0, len(images), m.config.batch_size)
        for name, player in players.items():
            optimizers[name].zero_grad(set_to_none=True)
            m.loss(m.prepare(images.batch(rows), rows), name, Progress(step, steps))[0].backward()
            optimizers[name].param_groups[0]["lr"] = player.lr_at(Progress(step, steps))
            optimizers[name].step()
        m.after_step(Progress(step, steps))
    return m.eval()


LEARNS: dict[str, Any] = dict(px=32, image_px=32, width=12, critic_width=16, columns=16, texture_code=8)


@pytest.mark.slow
def test_it_learns_heads_and_with_learning_rate_0_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selftaught.shape3d.solid_scores.SHAPES", 12)
    writing.make("heads", tmp_path / "heads", 250, 0, "tiny", ["reach=1.45"])
    train, test = (open_eval(tmp_path / "heads", part, 32, cache_dir=tmp_path / "cache") for part in ("train", "test"))
    images = Pictures(train.images.batch(np.arange(len(train))).numpy())
    views = train.views()
    assert views is not None
    scores = {}
    for lr, steps in ((2e-3, 160), (0.0, 1)):
        m = method(lr=lr, **LEARNS)
        m.given["pose"] = Told(np.stack([view.rotation for view in views]))
        (tmp_path / str(lr)).mkdir()
        scores[lr] = trained(m, images, tmp_path / str(lr), steps).evaluate(EvalData(None, test))
    learned, still = scores[2e-3], scores[0.0]
    bar = 0.75 * learned["chamfer"].baselines["ellipsoid"]  # which has the true box; size `small` gets below a third of it
    assert learned["chamfer"].value < bar < still["chamfer"].value
    assert learned["azimuth_correlation"].value > 0.7 > still["azimuth_correlation"].value
    assert learned["thick_enough"].value > 0.5 > still["thick_enough"].value
    assert learned["thickness_error"].value < 0.85 * still["thickness_error"].value
    assert learned["relief"].value > 0.75 > still["relief"].value  # an ellipsoid that nothing was learned for has 0.65
    assert learned["area_error"].value < min(0.2, still["area_error"].value)
