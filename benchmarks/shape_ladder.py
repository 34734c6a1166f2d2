"""The ladder on which learning solid objects is mended: each rung takes one thing away that was known, and must hold before the next.

    python benchmarks/shape_ladder.py [--world heads cars] [--rungs 1 2 3 4 5] [--scale 1.0] [--out FOLDER]

1. One object, its viewpoints, lights and background known: its mesh and texture are found from its pictures.
2. Many objects, one picture each, viewpoints and lights known: an encoder says the codes.
3. Viewpoints unknown: the encoder names several and each is tried.
4. Numbers to objects against a discriminator that is told the true viewpoints.
5. The same before cluttered backgrounds.
Each rung prints what it measured on objects or pictures it did not learn from (1: on other views), its bar, and whether it holds; --scale
multiplies the steps, --out keeps pictures of what was found. Truth is known to the rungs as said: they are diagnoses and no results.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selftaught.core.config import override
from selftaught.core.seeds import seed_all
from selftaught.measure.mesh import ellipsoid_like, surface_distance
from selftaught.measure.viewpoint import azimuth_of, azimuth_scores, circular_correlation
from selftaught.method import Progress
from selftaught.shape3d.mesh_generator import MeshGenerator, Solids, Views
from selftaught.shape3d.shape_autoencoder import Encoder, picture_error
from selftaught.shape3d.shape_gan import ShapeGAN, panel
from selftaught.shape3d.solid_scores import mask_iou, mean_surface
from selftaught.worlds.meshes import scenes
from shape3d import ROOM
from shape_cars import CARS

PX = 32
POINTS = 3000
"""Points by which surfaces are compared."""
TOLD = {"heads": (), "cars": CARS}
ROUGH = {"heads": 20.0, "cars": 5.0}
"""Weight of roughness in rungs 2 and 3; that of cars is scaled, and their surfaces have corners."""
CODES = (16, 32, 8)


class Seen(NamedTuple):
    """Pictures (N, 3, PX, PX) in [0, 1] and all that is true of them."""

    pictures: Tensor
    views: Views
    masks: np.ndarray
    solids: list[tuple[np.ndarray, np.ndarray]]


class Reading(NamedTuple):
    """One measured number and the bar it is held to."""

    name: str
    value: float
    bar: float
    higher: bool

    @property
    def holds(self) -> bool:
        return bool(self.value >= self.bar if self.higher else self.value <= self.bar)


def recipe_of(world: str, background: str = "plain") -> scenes.Recipe:
    recipe = dataclasses.replace(scenes.recipe_of(world, "small"), px=PX, background=background)
    return override(recipe, [ROOM]) if world == "heads" else recipe


def look(recipe: scenes.Recipe, count: int, seed: int, thing: int | None = None) -> Seen:
    """Pictures of drawn objects, or of the one that `thing` is the seed of."""
    every = [scenes.scene(recipe, seed, i) for i in range(count)]
    every = every if thing is None else [dataclasses.replace(one, object=thing) for one in every]
    parts = [scenes.draw(recipe, every[i : i + 64]) for i in range(0, count, 64)]
    pictures = torch.from_numpy(np.concatenate([part.images for part in parts])).permute(0, 3, 1, 2).float() / 255
    angles = torch.tensor([[one.azimuth_rad, one.elevation_rad, one.roll_rad] for one in every])
    light = torch.tensor([[one.ambient, one.diffuse, *one.light[:2]] for one in every])
    solids = [(s.points.astype(np.float64), s.faces) for s in (scenes.solid_of(recipe, one) for one in every[:40])]
    return Seen(pictures, Views(angles, torch.zeros(count, 2), light), np.concatenate([p.masks for p in parts]) > 127, solids)


def some(seen: Seen, rows: Tensor) -> tuple[Tensor, Views]:
    return seen.pictures[rows], Views(*(part[rows] for part in seen.views))


def mesh_generator(world: str) -> MeshGenerator:
    """A generator as shape_gan's; it knows the angle of view, its background is the plain one."""
    c = override(ShapeGAN.sizes["small"], TOLD[world])
    surface = (c.start, c.shared_lr_scale > 0, c.rough_scaled)
    maker = MeshGenerator(PX, c.rows, c.columns, CODES, c.width, True, c.fov_rad, *surface)
    maker.ground.fill_(float(torch.logit(torch.tensor(scenes._GREY))))
    return maker


def learn(parameters: list[dict[str, Any]], steps: int, loss: Callable[[float], Tensor]) -> None:
    """Adam with a rate that falls to a tenth; `loss` gets the share that is done."""
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    for step in range(steps):
        seed_all(0, 0, step)
        value = loss(step / steps)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for group in parameters for p in group["params"]], 5.0)
        for group in optimizer.param_groups:
            group["lr"] = group.get("rate", 2e-3) * (1 - 0.9 * step / steps)
        optimizer.step()


def groups(maker: MeshGenerator, *others: torch.nn.Module) -> list[dict[str, Any]]:
    """All parameters; the half axes of the start, and what objects share, learn faster."""
    named = list(maker.named_parameters())
    fast = [p for n, p in named if n.startswith(("base", "shared"))]
    rest = [p for n, p in named if not n.startswith(("base", "shared"))] + [p for module in others for p in module.parameters()]
    return [{"params": rest, "rate": 2e-3}, {"params": fast, "rate": 1e-2}]


def distances(maker: MeshGenerator, points: Tensor, truths: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Mean Chamfer distance of points (N, V, 3) to true surfaces, and that of ellipsoids with the true boxes."""
    faces = maker.topology.faces.numpy()
    own = [surface_distance(p, faces, *t, POINTS) for p, t in zip(points.detach().double().numpy(), truths, strict=True)]
    return float(np.mean(own)), float(np.mean([surface_distance(*ellipsoid_like(*t), *t, POINTS) for t in truths]))


def surface_reading(maker: MeshGenerator, points: Tensor, truths: list[tuple[np.ndarray, np.ndarray]]) -> Reading:
    own, ellipsoid = distances(maker, points, truths)
    return Reading("Chamfer distance (bar: 0.65 of the ellipsoid's)", own, 0.65 * ellipsoid, False)


def mask_reading(found: Tensor, true: np.ndarray, bar: float) -> Reading:
    return Reading("IoU of masks", mask_iou((found > 0.5).numpy(), true).value, bar, True)


def one_object(world: str, scale: float) -> tuple[list[Reading], np.ndarray]:
    recipe = recipe_of(world)
    known, others = look(recipe, 96, 0, thing=5), look(recipe, 32, 1, thing=5)
    maker = mesh_generator(world)
    z = torch.zeros(1, sum(CODES))

    def loss(frac: float) -> Tensor:
        pictures, views = some(known, torch.randint(96, (16,)))
        solids = maker(z)
        seen = maker.render(Solids(*(part.expand(16, *part.shape[1:]) for part in solids)), views)
        return picture_error(seen.image, pictures).mean() + maker.roughness(solids.points).mean()

    learn(groups(maker), round(300 * scale), loss)
    with torch.no_grad():
        solids = maker(z.expand(32, -1))
        seen = maker.render(solids, others.views)
        sheet = panel(maker, Solids(*(part[:12] for part in solids)), some(others, torch.arange(12))[1], (others.pictures[:12],))
    return [mask_reading(seen.mask, others.masks, 0.9), surface_reading(maker, solids.points[:1], known.solids[:1])], sheet


def many_objects(world: str, scale: float, hypotheses: int = 0) -> tuple[list[Reading], np.ndarray]:
    """Rung 2, or rung 3 with `hypotheses` viewpoints."""
    recipe = recipe_of(world)
    known, held = look(recipe, 1500, 0), look(recipe, 200, 1)
    maker, encoder = mesh_generator(world), Encoder(PX, 32, sum(CODES), max(hypotheses, 1))
    encoder.divide(known.views.angles[:, 0].numpy())
    flips = torch.tensor([-1.0, 1.0, -1.0])

    def loss(frac: float) -> Tensor:
        pictures, views = some(known, torch.randint(1500, (16,)))
        mirrored = torch.rand(16) < 0.5  # the objects are symmetric; the light is mirrored as well
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
        light = torch.where(mirrored[:, None], views.light * torch.tensor([1.0, 1.0, -1.0, 1.0]), views.light)
        angles = torch.where(mirrored[:, None], views.angles * flips, views.angles)
        found = encoder(pictures * 2 - 1)
        solids = maker(found.codes)
        rest = ROUGH[world] * maker.roughness(solids.points).mean() + 0.01 * found.codes.square().mean()
        if not hypotheses:
            return picture_error(maker.render(solids, Views(angles, views.shift, light)).image, pictures).mean() + rest
        K = hypotheses
        many = Solids(*(part.repeat_interleave(K, 0) for part in solids))
        tried = Views(found.angles.flatten(0, 1), found.shift.repeat_interleave(K, 0), found.light.repeat_interleave(K, 0))
        errors = picture_error(maker.render(many, tried).image, pictures.repeat_interleave(K, 0)).reshape(-1, K)
        sure = found.logits.softmax(1)
        return (sure * errors).sum(1).mean() + 0.1 * (sure.mean(0) - 1 / K).abs().mean() + rest

    learn(groups(maker, encoder), round(700 * scale), loss)
    with torch.no_grad():
        found = encoder(held.pictures * 2 - 1)
        views = Views(found.best(), found.shift, found.light) if hypotheses else held.views
        solids = maker(found.codes)
        seen = maker.render(solids, views)
        first = Views(*(part[:12] for part in views))
        sheet = panel(maker, Solids(*(part[:12] for part in solids)), first, (held.pictures[:12],))
    readings = [mask_reading(seen.mask, held.masks, 0.8 if not hypotheses else 0.7)]
    if hypotheses:
        return readings + pose_readings(views.angles[:, 0].numpy(), held), sheet
    return [*readings, surface_reading(maker, solids.points[:40], held.solids)], sheet


def pose_readings(azimuth: np.ndarray, held: Seen) -> list[Reading]:
    true = held.views.angles[:, 0].numpy()
    error = azimuth_scores(azimuth, true)["azimuth_median_deg"]
    return [
        Reading("correlation of azimuths", circular_correlation(azimuth, true).value, 0.9, True),
        Reading("median error of azimuths (bar: half the constant's)", error.value, error.baselines["constant"] / 2, False),
    ]


class Anything:
    """Stands for a learned viewpoint, whose answers are replaced."""

    def viewpoint(self, images: Tensor) -> Tensor:
        return torch.eye(3).expand(len(images), 3, 3)


class Pictures:
    """Stands for an ImageSet."""

    def __init__(self, seen: Seen):
        self.pictures = (seen.pictures * 255).round().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: Any) -> Tensor:
        return self.pictures[torch.as_tensor(np.asarray(rows))]


def against_critic(world: str, scale: float, background: str = "plain") -> tuple[list[Reading], np.ndarray]:
    recipe = recipe_of(world, background)
    known, held = look(recipe, 2000, 0), look(recipe, 200, 1)
    config = override(ShapeGAN.sizes["small"], TOLD[world])
    config = dataclasses.replace(config, image_px=PX, lr=6e-4, elevation=(0.0, 0.0), azimuth_error_rad=0.0, ema=0.99)
    method, images, steps = ShapeGAN(config, {"pose": Anything()}), Pictures(known), round(700 * scale)
    with tempfile.TemporaryDirectory() as folder:
        method.begin(images, Path(folder), lambda text: None)
    method.angles = known.views.angles.numpy()
    players = method.players()
    optimizers = {name: player.build_optimizer() for name, player in players.items()}
    for step in range(steps):
        progress = Progress(step, steps)
        for k, (name, player) in enumerate(players.items()):
            seed_all(k, 0, step)
            rows = np.random.RandomState(2 * step + k).randint(0, len(images), config.batch_size)
            loss, _ = method.loss(method.prepare(images.batch(rows), rows), name, progress)
            optimizers[name].zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in player.parameters], 5.0)
            for group in optimizers[name].param_groups:
                group["lr"] = player.lr_at(progress) * group["lr_scale"]
            optimizers[name].step()
        method.after_step(progress)
    method.eval()
    azimuth = azimuth_of(method.viewpoint(held.pictures).numpy())
    mean = method.sample(40).points.mean(0, keepdim=True)
    truth = mean_surface(held.solids)
    return [*pose_readings(azimuth, held), surface_reading(method.maker, mean, [truth])], method.show(held.pictures)["solids"]


RUNGS: dict[int, tuple[str, Callable[[str, float], tuple[list[Reading], np.ndarray]]]] = {
    1: ("one object, all known", one_object),
    2: ("many objects, viewpoints known", many_objects),
    3: ("viewpoints unknown, four hypotheses", lambda world, scale: many_objects(world, scale, 4)),
    4: ("discriminator that is told true viewpoints", against_critic),
    5: ("the same before clutter", lambda world, scale: against_critic(world, scale, "cluttered")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", nargs="+", default=["heads", "cars"], choices=list(TOLD))
    parser.add_argument("--rungs", nargs="+", type=int, default=list(RUNGS), choices=list(RUNGS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for world in arguments.world:
        for rung in arguments.rungs:
            what, climb = RUNGS[rung]
            seed_all(0, 0, 0)
            begin = time.process_time()
            readings, sheet = climb(world, arguments.scale)
            holds = all(reading.holds for reading in readings)
            print(f"{world} {rung}. {what}: {'holds' if holds else 'BREAKS'} ({time.process_time() - begin:.0f} s)", flush=True)
            for one in readings:
                print(f"    {one.name}: {one.value:.3g}, {'at least' if one.higher else 'at most'} {one.bar:.3g}"
                      f"{'' if one.holds else '  <- fails'}", flush=True)  # fmt: skip
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                Image.fromarray(sheet).save(arguments.out / f"{world}-{rung}.png")


if __name__ == "__main__":
    main()
