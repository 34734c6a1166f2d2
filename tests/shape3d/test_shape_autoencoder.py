"""shape_autoencoder: its losses against their formulas, and that it finds objects and viewpoints again where a control does not."""

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
from selftaught.method import Progress, Reconstructs, SeesViewpoints
from selftaught.reconstruct import is_open
from selftaught.shape3d.mesh_generator import Views, pose_vector
from selftaught.shape3d.shape_autoencoder import (
    OVERLAP,
    Encoder,
    Found,
    ShapeAutoencoder,
    picture_error,
)
from selftaught.shape3d.shape_gan import Real, ShapeGAN
from selftaught.shape3d.solid_scores import mask_iou, proportions, untrained_of

TINY = ShapeAutoencoder.sizes["tiny"]


def generator(seed: int = 0) -> ShapeGAN:
    """A generator that was not trained, whose objects differ nevertheless."""
    torch.manual_seed(seed)
    found = ShapeGAN(ShapeGAN.sizes["tiny"], {"pose": None})
    with torch.no_grad():
        for name, value in found.average.module.named_parameters():
            if "paint" in name or "axes" in name:
                value.add_(0.3 * torch.randn_like(value))
    return found.eval().requires_grad_(False)


def method(made: ShapeGAN, **changes: Any) -> ShapeAutoencoder:
    torch.manual_seed(1)
    found = ShapeAutoencoder(dataclasses.replace(TINY, **changes), {"generator": made})
    azimuths = np.linspace(-0.8, 0.8, 300)  # as many as pictures, at most
    found.encoder.divide(azimuths)
    found.angles = np.stack([azimuths, np.zeros(300), np.zeros(300)], 1).astype(np.float32)
    return found


class Pictures:
    """Stands for an ImageSet."""

    def __init__(self, pictures: torch.Tensor):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: Any) -> torch.Tensor:
        return self.pictures[torch.as_tensor(np.asarray(rows))]


def test_hypotheses_divide_the_azimuths_that_occur() -> None:
    encoder = Encoder(16, 8, 5, 4)
    encoder.divide(np.linspace(-0.8, 0.8, 1001))
    most = float(np.quantile(np.abs(np.linspace(-0.8, 0.8, 1001)), 0.99)) + 0.05
    np.testing.assert_allclose(encoder.centres, np.array([-0.75, -0.25, 0.25, 0.75]) * most, atol=1e-5)
    assert float(encoder.reach) == pytest.approx(OVERLAP * most / 4)
    found = encoder(torch.rand(3, 3, 16, 16))
    assert found.angles.shape == (3, 4, 3) and found.codes.shape == (3, 5) and found.light.shape == (3, 4)
    assert float((found.angles[..., 0] - encoder.centres).abs().max()) < float(encoder.reach)
    best = found.best()
    for b in range(3):
        torch.testing.assert_close(best[b], found.angles[b, int(found.logits[b].argmax())])
    encoder.divide(np.linspace(-math.pi, math.pi, 1001))
    assert float(encoder.centres[-1] + math.pi / 4) == pytest.approx(math.pi, abs=1e-4), "the whole circle"


def test_recognition_is_the_formula() -> None:
    m = method(generator())
    random = torch.Generator().manual_seed(2)
    found = Found(*(torch.randn(2, *shape, generator=random) * 0.3 for shape in ((10,), (2, 3), (2,), (2,), (4,))))
    views = Views(torch.tensor([[0.6, 0.1, 0.0], [-0.7, 0.0, 0.1]]), torch.zeros(2, 2), torch.full((2, 4), 0.4))
    z = torch.randn(2, 10, generator=random)
    total, parts = m.recognition(found, z, views)
    pose = which = 0.0
    for b, k in enumerate((1, 0)):  # the right of two halves, then the left one
        pose += float((pose_vector(found.angles[b, k][None]) - pose_vector(views.angles[b][None])).square().sum()) / 2 / 2
        which -= float(found.logits[b].log_softmax(0)[k]) / 2
    codes = float((found.codes - z).square().mean())
    rest = float(found.shift.square().sum(1).mean() + 0.1 * (found.light - 0.4).square().sum(1).mean())
    assert parts["pose"] == pytest.approx(pose, rel=1e-5) and parts["which"] == pytest.approx(which, rel=1e-5)
    assert float(total) == pytest.approx(5 * pose + 0.2 * which + TINY.code_weight * codes + rest, rel=1e-5)


def test_every_hypothesis_is_rendered_and_compared() -> None:
    m = method(generator())
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    found = m.encoder(pictures * 2 - 1)
    errors, covers, hides, sure, points = m.reconstruction(found, pictures)
    assert bool((hides <= covers).all()) and float(hides.min()) >= 0
    assert covers.shape == errors.shape and 0 < float(covers.min()) <= float(covers.max()) < 1
    solids = m.maker(found.codes)
    for k in range(2):
        seen = m.maker.render(solids, Views(found.angles[:, k], found.shift, found.light)).image
        torch.testing.assert_close(errors[:, k], picture_error(seen, pictures), atol=1e-5, rtol=0)
    torch.testing.assert_close(sure, found.logits.softmax(1))
    torch.testing.assert_close(points, solids.points)
    assert float(picture_error(pictures, pictures).abs().max()) == 0
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert float(picture_error(grey, grey + 0.1)) == pytest.approx(0.3, rel=1e-5), "three sizes, no slopes"


def test_the_generator_goes_on_learning_but_not_its_background() -> None:
    made = generator()
    m = method(made)
    real = Real(torch.rand(4, 3, 16, 16), torch.zeros(4, 3), torch.zeros(4, 3))
    loss, parts = m.loss(real, "networks", Progress(15, 20))
    loss.backward()
    without = {name for name, p in m.named_parameters() if p.grad is None}
    assert without and all(name.startswith("maker.behind") for name in without)
    assert all(map(math.isfinite, parts.values())) and all(bool(p.grad.isfinite().all()) for p in m.parameters() if p.grad is not None)
    assert all(p.grad is None for p in made.parameters()), "the learned generator itself stays"
    groups = m.players()["networks"].build_optimizer().param_groups
    assert {group["lr_scale"] for group in groups} == {1.0, TINY.generator_lr_frac}
    faster = ShapeGAN(dataclasses.replace(ShapeGAN.sizes["tiny"], shared_lr_scale=5.0, start_lr_scale=10.0), {"pose": None})
    player = method(faster).players()["networks"]
    of = {id(p): g["lr_scale"] for g in player.build_optimizer().param_groups for p in g["params"]}
    scales = {name.split(".")[1]: of[id(p)] / TINY.generator_lr_frac for name, p in player.parameters if name.startswith("maker.")}
    assert scales["base"] == pytest.approx(10) and scales["shared"] == pytest.approx(5) and scales["paint"] == pytest.approx(1)
    first, last = (float(m.loss(real, "networks", Progress(step, 1000))[0].detach()) for step in (0, 999))
    assert last > first, "real pictures count more and more"


def test_untrained_baselines_know_what_training_was_told_before_its_first_step() -> None:
    made = generator()
    for maker in (made.maker, made.averaged):
        maker.ground.fill_(-0.6)
    other, m = untrained_of(made, 3), method(made)
    assert float(other.averaged.ground[0]) == pytest.approx(-0.6)
    assert not torch.equal(other.averaged.paint.leave.weight, made.averaged.paint.leave.weight)
    fresh = untrained_of(m, 3)
    torch.testing.assert_close(fresh.encoder.centres, m.encoder.centres)
    assert not torch.equal(fresh.encoder.code.weight, m.encoder.code.weight)


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(ConfigError, match="shape_gan"):
        ShapeAutoencoder(TINY, {"generator": torch.nn.Identity()})


@pytest.mark.parametrize(
    "setting", ["hypotheses=0", "width=0", "generator_lr_frac=-1", "made_frac=5", "real_weight=-1", "told_last_frac=nan"]
)
def test_settings_that_cannot_work_are_refused_by_name(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]} is"):
        override(TINY, [setting])


def made_pictures(made: ShapeGAN, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures of the generator with azimuths (N,), masks and points: 'real' ones whose truth is known."""
    torch.manual_seed(seed)
    angles = torch.stack([1.6 * torch.rand(count) - 0.8, torch.zeros(count), torch.zeros(count)], 1)
    solids = made.sample(count, seed)
    seen = made.maker.render(solids, made.draw_views(angles))
    return seen.image.clamp(0, 1), angles[:, 0], seen.mask, solids.points


@pytest.mark.slow
def test_it_finds_objects_again_and_with_learning_rate_0_it_does_not() -> None:
    made = generator()
    pictures = made_pictures(made, 300, 5)[0]
    images, azimuth, masks, points = made_pictures(made, 100, 6)
    found = {}
    for lr, steps in ((2e-3, 250), (0.0, 2)):
        m = method(made, lr=lr, width=16)
        optimizer = m.players()["networks"].build_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        for step in range(steps):
            rows = np.random.RandomState(step).randint(0, 300, 16)
            optimizer.zero_grad(set_to_none=True)
            batch = m.prepare((pictures[rows] * 255).byte(), rows)
            m.loss(batch, "networks", Progress(step, steps))[0].backward()
            optimizer.step()
        solids, views, seen = m.eval().explained(images)
        correlation = np.corrcoef(views.angles[:, 0].detach(), azimuth)[0, 1]
        iou = mask_iou((seen.mask > 0.5).numpy(), (masks > 0.5).numpy()).value
        width = np.corrcoef(proportions(solids.points.numpy())[:, 0], proportions(points.numpy())[:, 0])[0, 1]
        found[lr] = np.array([correlation, iou, width])
    assert (found[2e-3] > [0.45, 0.85, 0.6]).all(), found
    assert (found[0.0] < [0.35, 0.85, 0.4]).all(), found


def test_reconstructions_are_closed_and_seen_as_they_were_explained() -> None:
    m = method(generator()).eval()
    images = torch.rand(2, 3, 20, 24)
    shapes = m.reconstruct(images)
    assert isinstance(m, Reconstructs) and isinstance(m, SeesViewpoints)
    assert shapes.points.shape[1] == len(shapes.uv) and int(shapes.faces.max()) < len(shapes.uv)
    assert not is_open(shapes.points[0], shapes.faces) and shapes.background is not None
    torch.testing.assert_close(m.viewpoint(images), shapes.rotation)
    from selftaught.nets.renderer import Camera, Topology, render

    focal = 1 / (shapes.fov_rad / 2).tan()
    camera = Camera(shapes.rotation, shapes.position, focal)
    mask = render(shapes.points, Topology(shapes.faces, shapes.points.shape[1]), camera, 16, antialias=False).depth > 0
    assert bool((mask == (shapes.depth > 0)).all())


@pytest.mark.parametrize("fill", [0, 255])
def test_blank_pictures_give_finite_losses_and_gradients(fill: int) -> None:
    m = method(generator())
    batch = m.prepare(torch.full((4, 3, 16, 16), fill, dtype=torch.uint8), np.arange(4))
    loss, parts = m.loss(batch, "networks", Progress(10, 20))
    loss.backward()
    assert bool(torch.isfinite(loss)) and all(map(math.isfinite, parts.values()))
    assert all(bool(p.grad.isfinite().all()) for p in m.parameters() if p.grad is not None)


def test_estimated_azimuths_are_for_the_hypothesis_that_is_nearest() -> None:
    m = method(generator())
    centres = m.encoder.centres
    angles = torch.zeros(3, 3)
    angles[:, 0] = torch.stack([centres[0] + 0.1, centres[1] - 0.05, centres[1] + 2 * math.pi])
    tried = torch.zeros(3, 2, 3)
    tried[..., 0] = torch.tensor([0.2, -0.3])
    logits = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]])
    found = Found(torch.zeros(3, 1), tried, logits, torch.zeros(3, 2), torch.zeros(3, 4))
    pose, which = m.azimuth_error(found, angles)
    right = [0, 1, 1]
    wanted = [1 - math.cos(float(tried[b, k, 0] - angles[b, 0])) for b, k in enumerate(right)]
    assert float(pose) == pytest.approx(sum(wanted) / 3, abs=1e-5)
    each = [-math.log(math.exp(float(logits[b, k])) / float(logits[b].exp().sum())) for b, k in enumerate(right)]
    assert float(which) == pytest.approx(sum(each) / 3, abs=1e-5)


def test_estimates_count_as_much_as_they_are_told_to() -> None:
    real = Real(torch.rand(4, 3, 16, 16), torch.full((4, 3), 0.3), torch.zeros(4, 3))
    totals = []
    for weight in (0.0, 2.0):
        m = method(generator(), told_weight=weight)
        torch.manual_seed(0)
        totals.append(m.loss(real, "networks", Progress(0, 10)))
    assert "told" not in totals[0][1] and float((totals[1][0] - totals[0][0]).detach()) >= 2.0 * totals[1][1]["told"] - 1e-5


def test_covering_more_of_a_picture_counts_as_it_is_told_to() -> None:
    real = Real(torch.rand(4, 3, 16, 16), torch.zeros(4, 3), torch.zeros(4, 3))
    totals = []
    for weight in (0.0, 2.0):
        m = method(generator(), tight_weight=weight, hypotheses=1)
        torch.manual_seed(0)
        totals.append(m.loss(real, "networks", Progress(1, 2)))  # real pictures count fully
    difference = float((totals[1][0] - totals[0][0]).detach())
    assert difference == pytest.approx(2.0 * totals[1][1]["covers"], rel=1e-3) and difference > 0.05
    assert totals[0][1]["error"] == totals[1][1]["error"]


def test_estimates_count_less_and_less_if_so_told() -> None:
    real = Real(torch.rand(4, 3, 16, 16), torch.full((4, 3), 0.3), torch.zeros(4, 3))
    found = {}
    for last in (1.0, 0.25):
        for step in (0, 5, 10):
            m = method(generator(), told_weight=2.0, told_last_frac=last, made_frac=0.0)
            torch.manual_seed(0)
            found[last, step] = float(m.loss(real, "networks", Progress(step, 10))[0].detach())
    constant = found[1.0, 5] - found[0.25, 5]
    assert found[1.0, 0] - found[0.25, 0] == pytest.approx(0, abs=1e-5) and constant > 0.05
    assert found[1.0, 10] - found[0.25, 10] == pytest.approx(2 * constant, rel=1e-3)


def test_what_hides_before_its_background_counts_as_it_is_told_to() -> None:
    real = Real(torch.rand(4, 3, 16, 16), torch.zeros(4, 3), torch.zeros(4, 3))
    totals = []
    for weight in (0.0, 2.0):
        m = method(generator(), hidden_weight=weight, hypotheses=1)
        torch.manual_seed(0)
        totals.append(m.loss(real, "networks", Progress(1, 2)))
    difference = float((totals[1][0] - totals[0][0]).detach())
    assert difference == pytest.approx(2.0 * totals[1][1]["hidden"], rel=1e-3) and difference > 1e-4


def test_a_generator_can_be_told_the_viewpoints_that_an_encoder_found(tmp_path: Path) -> None:
    encoder = method(generator()).eval()
    told = ShapeGAN(dataclasses.replace(ShapeGAN.sizes["tiny"], symmetric=False), {"pose": encoder})  # no plane is looked for
    pictures = torch.randint(0, 255, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    told.begin(Pictures(pictures), tmp_path, lambda text: None)
    found = encoder.encoder(encoder.generator.reduced(pictures.float() / 255) * 2 - 1).best().detach().numpy()
    assert told.angles is not None
    np.testing.assert_allclose(told.angles, found, atol=1e-4)
