"""shape_gan: numbers become solid objects whose pictures, from whichever side, pass for real ones.

Papers: Szabo, Favaro, "Unsupervised 3D Shape Learning from Image Collections in the Wild", 2018 (arXiv 1811.10519); Szabo, Meishvili,
Favaro, "Unsupervised Generative 3D Shape Learning from Natural Images", 2019 (arXiv 1910.00287).
z = (shape, texture, background) -> mesh, texture, background -> picture from a random viewpoint in a random light -> a discriminator that
tells it from real pictures. Nothing but pictures is given; each object is seen once.
Differs: written from the abstracts, with small networks of our own. The discriminator is told the viewpoint: that of the renderer for made
pictures, an estimate of unsup3d (learned without labels) for real ones; without that, texture alone can show the mirrored object. Made
viewpoints are drawn from those estimates. The surface is star-shaped and closed, mirror-symmetric if `symmetric`; penalties on its area in
the picture, on leaving the frame, on roughness and on being thin. The discriminator also reads viewpoint and codes off made pictures, and
the generator helps it (InfoGAN), so that neither is ignored.
Cost at `small`: 0.1 to 0.25 s per step of 16 pictures of 32 px on one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.rows import evenly
from selftaught.data.npy import kept_array
from selftaught.measure.score import Score
from selftaught.measure.viewpoint import angles_of
from selftaught.method import EMA, EvalData, Method, Parts, Picture, Player, Progress, TrainConfig
from selftaught.nets.renderer import rotation_from_angles
from selftaught.shape3d.mesh_generator import (
    START,
    MeshGenerator,
    Solids,
    Views,
    draw_lights,
    hidden,
    mirrored_angles,
    moved,
    pose_vector,
    thinness,
)
from selftaught.shape3d.solid_scores import generator_scores

PLANE_RAD, PLANE_SURE = 0.05, 0.5
"""Planes of symmetry nearer to azimuth 0 are left where they are, and those that pictures agree less on."""


@dataclass(frozen=True)
class ShapeGANConfig(TrainConfig):
    """Settings of shape_gan."""

    px: int = 32
    """Side of the pictures that are made and judged; real ones are brought to it. `image_px` is what the viewpoint estimate sees."""
    rows: int = 16
    """Rings of vertices between the poles, a multiple of 4; the texture has twice as many rows."""
    columns: int = 24
    """Vertices on each ring, a multiple of 4; the texture has twice as many columns."""
    shape_code: int = 16
    """Numbers that decide the shape."""
    texture_code: int = 32
    """Further numbers that decide the texture."""
    background_code: int = 8
    """Numbers that decide the background."""
    width: int = 32
    """Channels of the generator's last maps; earlier ones have more."""
    critic_width: int = 32
    """Channels of the discriminator's first layer."""
    symmetric: bool = True
    """Whether shapes and textures are the same on the left and on the right."""
    fov_rad: float = math.radians(10)
    """Angle of view from the lower to the upper edge that pictures are thought to be taken with."""
    pose_conditioning: bool = True
    """Whether the discriminator is told the viewpoint; without that mirrored solutions are found."""
    pose_noise_rad: float = math.radians(2)
    """Deviation that is added to the viewpoints of made pictures."""
    all_sides: bool = False
    """Whether objects are seen from all around: the discriminator is then told the viewpoint in more detail."""
    azimuth_error_rad: float = 0.0
    """Deviation of the azimuths that made pictures are seen from around those that the discriminator is told, as large as the errors of
    the estimates."""
    even_azimuths: bool = False
    """Whether the estimated azimuths are moved, in their order, until they cover the whole circle evenly: only for pictures that were taken
    from every side equally often, which is an assumption about them."""
    elevation: tuple[float, float] = (0.0, 0.0)
    """Least and most that the camera of made pictures stands higher than estimates say, in radians: for estimates of the azimuth alone."""
    start: tuple[float, float, float] = START
    """Half axes of the ellipsoid that objects are at first: to the side, upwards and to the front, in half heights of the picture."""
    start_lr_scale: float = 1.0
    """Learning rate of those half axes, as a multiple of the generator's."""
    paint_lr_scale: float = 1.0
    """The same for the decoder of textures: below 1 what objects share, and colours of whole parts, come first."""
    background_lr_scale: float = 1.0
    """The same for the networks of the background: where it learns too well, it shows what belongs to objects."""
    shift: float = 0.02
    """Deviation of the object's place in made pictures, in half heights."""
    ambient: tuple[float, float] = (0.20, 0.45)
    """Least and most light from everywhere in made pictures."""
    diffuse: tuple[float, float] = (0.50, 0.80)
    """Least and most light from one side."""
    light_spread: tuple[float, float, float] = (0.7, 0.4, 0.15)
    """Deviation of the light's direction to the side and in height, and its mean height, where the direction to the camera is 1."""
    critic_lr_frac: float = 1.33
    """Learning rate of the discriminator, as a share of `lr`."""
    jitter_px: int = 2
    """Largest shift of all pictures before the discriminator sees them: it keeps it from learning few pictures by heart, and slows it."""
    r1: float = 2.0
    """Weight of half the squared gradient of the discriminator at real pictures (Mescheder et al. 2018)."""
    r1_every: int = 4
    """The gradient penalty is computed every so many steps, and counts so many times."""
    pose_weight: float = 2.0
    """Weight of reading the viewpoint off made pictures, for the generator; 5 for the discriminator."""
    real_pose_weight: float = 0.0
    """Weight of reading the estimated azimuth off real pictures, for the discriminator: the generator then has to show what real pictures
    of a viewpoint show, not only what can be told apart."""
    code_weight: float = 0.5
    """Weight of reading the codes of shape and texture off made pictures."""
    rough_weight: float = 5.0
    """Weight of the roughness of the surface."""
    rough_scaled: bool = False
    """Whether the extents of an object are made equal before its roughness is measured: otherwise it presses long objects together."""
    shared_lr_scale: float = 0.0
    """Learning rate of a shape and a texture that all objects share, as a multiple of the generator's; with 0 there are none."""
    paint_levels: int = 3
    """Doublings of the texture's decoder, from a quarter of `rows` on, at most 3; with fewer the texture is coarser, and enlarged."""
    area: tuple[float, float] = (0.15, 0.55)
    """Share of the picture that objects cover at least and at most."""
    area_weight: float = 20.0
    """Weight of covering less or more."""
    frame_weight: float = 20.0
    """Weight of points outside of the frame."""
    thin_least: float = 0.3
    """Least deviation of the points along their shortest axis, as a share of that along the longest: a card has 0."""
    thin_weight: float = 20.0
    """Weight of being thinner."""
    hidden_weight: float = 0.0
    """Weight of the share of the picture where objects cannot be told from what is behind them: what is painted in the background's colour
    does not show, so that without this surfaces may reach beyond the object that is seen."""
    ema: float = 0.998
    """Momentum of the average of the generator, which makes what is shown and scored."""

    def __post_init__(self) -> None:
        if self.px < 8 or self.px & (self.px - 1):
            raise ValueError(f"px is {self.px}; it must be a power of two from 8 on")
        if self.even_azimuths and not self.all_sides:
            raise ValueError("even_azimuths is for objects seen from all around; set all_sides as well")
        refuse_outside(self, "shape_code background_code critic_width r1_every", 1)
        refuse_outside(self, "width", 2)
        refuse_outside(self, "texture_code pose_noise_rad azimuth_error_rad shift ambient diffuse", 0)
        refuse_outside(self, "start_lr_scale paint_lr_scale background_lr_scale shared_lr_scale critic_lr_frac jitter_px", 0)
        refuse_outside(self, "paint_levels", 1, 3)
        refuse_outside(self, "r1 pose_weight real_pose_weight code_weight rough_weight", 0)
        refuse_outside(self, "area_weight frame_weight thin_weight hidden_weight", 0)
        refuse_outside(self, "area thin_least ema", 0, 1)
        refuse_outside(self, "start", 1e-3, 1e3)
        refuse_outside(self, "fov_rad", 1e-3, 3)
        refuse_outside(self, "elevation", -1.5, 1.5)
        for name in ("area", "elevation", "ambient", "diffuse"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise ValueError(f"{name} is {getattr(self, name)}; the first number must not be above the second")


class Real(NamedTuple):
    """A batch of real pictures, and viewpoints for as many made ones."""

    pictures: Tensor
    """(B, 3, px, px) in [0, 1]."""
    angles: Tensor
    """(B, 3) estimated viewpoints of these pictures."""
    others: Tensor
    """(B, 3) viewpoints for made pictures."""


class Critic(nn.Module):
    """Realism of pictures of known viewpoint, and what can be read off them: viewpoint and codes."""

    def __init__(self, px: int, width: int, codes: int, all_sides: bool = False):
        super().__init__()
        self.all_sides = all_sides
        layers: list[nn.Module] = []
        channels = 3
        for k in range(int(math.log2(px)) - 2):
            out = width * 2 ** min(k, 2)
            layers += [nn.Conv2d(channels, out, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = out
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.realism = nn.Sequential(nn.Linear(16 * channels, 128), nn.LeakyReLU(0.2))
        self.logit = nn.Linear(128, 1)
        self.pose = nn.Linear(8 if all_sides else 5, 128, bias=False)
        # Apart from realism: the penalty on its gradient would flatten what is read off as well.
        self.reader = nn.Sequential(nn.Linear(16 * channels, 96), nn.LeakyReLU(0.2), nn.Linear(96, 4 + codes))

    def judge(self, seen: Tensor, angles: Tensor | None) -> Tensor:
        """Logits (B,) from features of the trunk; `angles` (B, 3) or None for a discriminator that is not told."""
        x = self.realism(seen)
        logits: Tensor = self.logit(x).float()[:, 0]
        if angles is not None:
            a = angles[:, 0]
            told = [1.4 * a.sin(), (2 * a).sin(), a.cos(), 4 * angles[:, 1], 4 * angles[:, 2]]
            if self.all_sides:  # whether the object lies across the picture is even in the azimuth and the same from behind
                told += [(2 * a).cos(), (3 * a).sin(), (3 * a).cos()]
            logits = logits + (x * self.pose(torch.stack(told, 1))).float().sum(1) / math.sqrt(x.shape[1])
        return logits

    def read(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4) viewpoints as in `pose_vector` and (B, D) codes."""
        found = self.reader(seen).float()
        direction = found[:, :2] / (found[:, :2].square().sum(1, keepdim=True) + 1e-6).sqrt()
        return torch.cat([direction, found[:, 2:4]], 1), found[:, 4:]


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Gradients pass through a module, its own parameters get none."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def mirror_plane(azimuth: np.ndarray[Any, Any], mirrored: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Azimuth in (-pi/2, pi/2] from which symmetric objects look like their mirror images, and how surely, from 0 to 1.

    azimuth (N,) of pictures and mirrored (N,) of their mirror images, in a frame whose front is anywhere: if the plane lies at o, a picture
    at o + a becomes one at o - a, so that their sum is 2 o for all. Front and back cannot be told apart.
    """
    both = np.exp(1j * (azimuth + mirrored)).mean()
    return float(np.angle(both)) / 2, float(np.abs(both))


def evened(azimuth: np.ndarray[Any, Any], symmetric: bool) -> np.ndarray[Any, Any]:
    """Azimuths (N,) in radians to (N,) in the same order round the circle, from 0, but as far from one to the next everywhere.

    Those of `symmetric` objects together with those of the mirror images, so that the plane of symmetry stays where it is.
    """
    every = np.concatenate([azimuth, -azimuth]) if symmetric else azimuth
    even = (np.argsort(np.argsort(every, kind="stable"), kind="stable") + 0.5) / len(every) * 2 * math.pi - math.pi
    away = 0.0 if symmetric else np.angle(np.exp(1j * (even - every)).mean())
    found: np.ndarray[Any, Any] = (even[: len(azimuth)] - away + math.pi) % (2 * math.pi) - math.pi
    return found


def estimated_angles(
    path: Path, images: Any, viewpoint: Any, say: Any, symmetric: bool = False, even: bool = False
) -> np.ndarray[Any, Any]:
    """Azimuth, elevation, roll (N, 3) float32 of all pictures as `viewpoint` estimates them, kept in a file; then made `even`.

    Those of `symmetric` objects are measured from their plane of symmetry, unless the pictures and their mirror images show none.
    """

    def seen(mirrored: bool) -> np.ndarray[Any, Any]:
        parts = np.array_split(np.arange(len(images)), -(-len(images) // 64))
        pictures = (images.batch(rows).float() / 255 for rows in parts)
        return angles_of(np.concatenate([viewpoint(x.flip(3) if mirrored else x).double().numpy() for x in pictures]))

    def make() -> np.ndarray[Any, Any]:
        found = seen(False)
        if symmetric:
            plane, sure = mirror_plane(found[:, 0], seen(True)[:, 0])
            used = sure > PLANE_SURE and abs(plane) > PLANE_RAD
            say(f"the plane of symmetry lies at {math.degrees(plane):.1f} degrees of azimuth ({sure:.2f} sure)" + ", now at 0" * used)
            found[:, 0] = (found[:, 0] - plane * used + math.pi) % (2 * math.pi) - math.pi
        spread = ", ".join(f"{x:.0f}" for x in np.rad2deg(found.std(0)))
        say(f"viewpoints were estimated; deviations of azimuth, elevation, roll: {spread} degrees")
        return found

    angles = kept_array(path, (len(images), 3), make, say)
    if even:
        angles[:, 0] = evened(angles[:, 0], symmetric)
    return angles


def border_colour(images: Any) -> np.ndarray[Any, Any]:
    """(3,) mean colour in [0, 1] of the borders of pictures, of at most 256 of them."""
    rows = evenly(len(images), 256)
    some = images.batch(rows).float() / 255
    rim = torch.cat([some[:, :, 0], some[:, :, -1], some[..., 0], some[..., -1]], 2)
    found: np.ndarray[Any, Any] = rim.mean((0, 2)).numpy()
    return found


class ShapeGAN(Method):
    """Generator of solid objects against a discriminator of their pictures; capability `viewpoint`."""

    name = "shape_gan"
    Config = ShapeGANConfig
    needs = {"pose": "unsup3d"}
    cpu_only = True
    capabilities = ("viewpoint",)
    sizes = {
        "tiny": ShapeGANConfig(
            image_px=16, px=16, rows=8, columns=8, shape_code=4, texture_code=4, background_code=2, width=8, critic_width=8, batch_size=8,
            steps=20, lr=1e-3, weight_decay=0.0, ema=0.9,
        ),
        "small": ShapeGANConfig(image_px=64, batch_size=16, steps=1500, lr=3e-4, weight_decay=0.0, warmup_frac=0.01, clip_norm=5.0),
        "paper": ShapeGANConfig(
            image_px=128, px=128, rows=48, columns=96, shape_code=64, texture_code=128, background_code=64, width=64, critic_width=64,
            batch_size=32, steps=300_000, lr=2e-4, weight_decay=0.0, warmup_frac=0.0, ema=0.999,
        ),
    }  # fmt: skip
    config: ShapeGANConfig

    def __init__(self, config: ShapeGANConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        self.image_px = c.image_px
        codes = (c.shape_code, c.texture_code, c.background_code)
        surface = (c.start, c.shared_lr_scale > 0, c.rough_scaled, c.paint_levels)
        self.maker = MeshGenerator(c.px, c.rows, c.columns, codes, c.width, c.symmetric, c.fov_rad, *surface)
        self.average = EMA(self.maker)
        self.critic = Critic(c.px, c.critic_width, c.shape_code + c.texture_code, c.all_sides)
        self.angles: np.ndarray[Any, Any] | None = None

    @property
    def averaged(self) -> MeshGenerator:
        """The average generator."""
        maker = self.average.module
        assert isinstance(maker, MeshGenerator)
        return maker

    def begin(self, images: Any, run_dir: Path, say: Any) -> None:
        """Find, once, the viewpoints of all pictures (poses.npy) and the mean colour of their borders (border.npy) for the backgrounds."""
        c = self.config
        self.angles = estimated_angles(run_dir / "poses.npy", images, self.given["pose"].viewpoint, say, c.symmetric, c.even_azimuths)
        rim = torch.from_numpy(kept_array(run_dir / "border.npy", (3,), lambda: border_colour(images), say))
        for maker in (self.maker, self.averaged):
            maker.ground.copy_(torch.logit(rim.clamp(0.02, 0.98)))

    def players(self) -> dict[str, Player]:
        c = self.config
        scales = {"base": c.start_lr_scale, "behind": c.background_lr_scale, "paint": c.paint_lr_scale, "shared": c.shared_lr_scale}
        return {
            "critic": self.main_player(self.critic, lr=c.lr * c.critic_lr_frac, betas=(0.0, 0.95), final_lr_frac=0.1),
            "maker": self.main_player(self.maker, betas=(0.0, 0.95), final_lr_frac=0.1, lr_scales=scales),
        }

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> Real:
        """Pictures and estimates, half of them mirrored, and as many viewpoints drawn from the estimates of all."""
        c = self.config
        if self.angles is None:
            raise RuntimeError("begin() estimates the viewpoints before training")
        B = len(images)
        pictures = self.reduced(images.float() / 255)
        flips = (draws.rand(B, 2) < 0.5) & torch.tensor(c.symmetric)
        pictures = torch.where(flips[:, :1, None, None], pictures.flip(3), pictures)
        known = torch.from_numpy(self.angles)
        angles = mirrored_angles(known[torch.from_numpy(indices)], flips[:, 0])
        others = mirrored_angles(known[draws.randint(len(known), B)], flips[:, 1])
        return Real(pictures, angles, others + c.pose_noise_rad * draws.randn(B, 3))

    def reduced(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] at the side that is judged."""
        side = (self.config.px, self.config.px)
        if tuple(images.shape[-2:]) == side:
            return images
        if images.shape[-1] == images.shape[-2] and images.shape[-1] % side[0] == 0:
            # Plain means: contours then are as wide as those of the renderer, which are shares of pixels. Wider ones of real
            # pictures are imitated by a rim of the background's colour, that is by surfaces that are too large.
            return functional.avg_pool2d(images, images.shape[-1] // side[0])
        return functional.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)

    def draw_views(self, angles: Tensor) -> Views:
        """The rest of what a view needs: place and light; and what the discriminator is not told of the viewpoint."""
        c = self.config
        if c.azimuth_error_rad or any(c.elevation):
            away = draws.randn(len(angles)) * c.azimuth_error_rad
            above = c.elevation[0] + (c.elevation[1] - c.elevation[0]) * draws.rand(len(angles))
            angles = angles + torch.stack([away, above, torch.zeros_like(away)], 1)
        shift = c.shift * draws.randn(len(angles), 2)
        return Views(angles, shift, draw_lights(len(angles), c.ambient, c.diffuse, c.light_spread))

    def make(self, maker: Any, views: Views) -> tuple[Tensor, Solids, Any]:
        """Codes (B, D), objects and pictures."""
        z = draws.randn(len(views.angles), sum(self.maker.codes))
        solids = maker(z)
        return z, solids, self.maker.render(solids, views)

    def disturbed(self, pictures: Tensor) -> Tensor:
        """What the critic sees, real or made: shifted by up to `jitter_px`, colours by up to 0.1, from [-1, 1]."""
        B, most = len(pictures), self.config.jitter_px
        steps = draws.randint(2 * most + 1, B, 2) - most
        return moved(pictures, steps) * 2 - 1 + 0.2 * (2 * draws.rand(B, 3, 1, 1) - 1)

    def loss(self, batch: Real, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        return self.critic_loss(batch, progress) if player == "critic" else self.maker_loss(batch)

    def critic_loss(self, batch: Real, progress: Progress) -> tuple[Tensor, Parts]:
        """Logistic loss with R1, and reading viewpoint and codes off made pictures."""
        c = self.config
        with torch.no_grad():
            views = self.draw_views(batch.others)
            z, _, seen = self.make(self.maker, views)
        told = (batch.angles, batch.others) if c.pose_conditioning else (None, None)
        reals = self.disturbed(batch.pictures).requires_grad_()
        penalised = progress.step % c.r1_every == 0
        with torch.autocast(reals.device.type, enabled=torch.is_autocast_enabled(reals.device.type) and not penalised):
            seen_real = self.critic.trunk(reals)
            real = self.critic.judge(seen_real, told[0])
        features = self.critic.trunk(self.disturbed(seen.image))
        made = self.critic.judge(features, told[1])
        total = functional.softplus(made).mean() + functional.softplus(-real).mean()
        pose, codes = self.reading(features, z, views.angles)
        total = total + 5 * pose + c.code_weight * codes
        parts = {"real": float((real.detach() > 0).float().mean()), "made": float((made.detach() < 0).float().mean())}
        if c.real_pose_weight:
            known = (self.critic.read(seen_real)[0][:, :2] - pose_vector(batch.angles)[:, :2]).square().sum(1).mean() / 2
            total = total + c.real_pose_weight * known
            parts["real_pose"] = float(known.detach())
        if penalised:
            (slope,) = torch.autograd.grad(real.sum(), reals, create_graph=True)
            penalty = slope.square().sum((1, 2, 3)).mean()
            total = total + c.r1 / 2 * c.r1_every * penalty
        return total, parts | {"pose": float(pose.detach()), "codes": float(codes.detach())}

    def maker_loss(self, batch: Real) -> tuple[Tensor, Parts]:
        """Looking real, telling viewpoint and codes, and keeping to sensible surfaces."""
        c = self.config
        views = self.draw_views(batch.others)
        z, solids, seen = self.make(self.maker, views)
        with held(self.critic):
            features = self.critic.trunk(self.disturbed(seen.image))
            made = self.critic.judge(features, batch.others if c.pose_conditioning else None)
            pose, codes = self.reading(features, z, views.angles)
        covered = seen.mask.mean((1, 2))
        beyond = (c.area[0] - covered).clamp_min(0) + (covered - c.area[1]).clamp_min(0)
        terms = {
            "realism": (1.0, functional.softplus(-made).mean()), "pose": (c.pose_weight, pose), "codes": (c.code_weight, codes),
            "rough": (c.rough_weight, self.maker.roughness(solids.points).mean()), "area": (c.area_weight, beyond.mean()),
            "frame": (c.frame_weight, self.maker.leaving(solids.points, views).mean()),
            "thin": (c.thin_weight, thinness(solids.points, c.thin_least).mean()),
            "hidden": (c.hidden_weight, hidden(seen, solids.background).mean()),
        }  # fmt: skip
        total = torch.stack([weight * term for weight, term in terms.values()]).sum()
        return total, {name: float(term.detach()) for name, (_, term) in terms.items()} | {"covers": float(covered.detach().mean())}

    def reading(self, features: Tensor, z: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of viewpoint (1 - cosine for the azimuth) and codes read off made pictures."""
        pose, codes = self.critic.read(features)
        wanted = z[:, : codes.shape[1]]
        return (pose - pose_vector(angles)).square().sum(1).mean() / 2, (codes - wanted).square().mean()

    def after_step(self, progress: Progress) -> None:
        self.average.update(self.maker, min(self.config.ema, (1 + progress.step) / (10 + progress.step)))

    @torch.no_grad()
    def viewpoint(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to rotations (B, 3, 3), as the discriminator, which learned them from made pictures, reads them off."""
        pose, _ = self.critic.read(self.critic.trunk(self.reduced(images) * 2 - 1))
        return rotation_from_angles(torch.atan2(pose[:, 1], pose[:, 0]), pose[:, 2], pose[:, 3])

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Solids:
        """Objects from the average generator."""
        z = torch.randn(count, sum(self.maker.codes), generator=torch.Generator().manual_seed(seed))
        found: Solids = self.averaged(z)
        return found

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Viewpoints read off real pictures, and made shapes against true ones; see `solid_scores`."""
        return generator_scores(self, data)

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Columns are made objects. Rows: from the front, grey surface, texture, background, and at azimuths from -75 to 75 degrees."""
        return {"solids": panel(self.averaged, self.sample(12))}


@torch.no_grad()
def panel(maker: MeshGenerator, solids: Solids, views: Views | None = None, first: tuple[Tensor, ...] = ()) -> Picture:
    """Rows: pictures (B, 3, px, px) that are given; objects seen as `views` say, or from the front; then in grey, their texture, their
    background, the objects turned before it, and turned in grey.
    """
    count, side = len(solids.points), 2 * maker.px
    light = torch.tensor([0.4, 0.55, 0.2, 0.3]).expand(count, 4)

    def seen(azimuth: float, solid: Solids) -> Tensor:
        angles = torch.tensor([azimuth, 0.1, 0.0]).expand(count, 3)
        return maker.render(solid, Views(angles, torch.zeros(count, 2), light), side).image

    grey = solids._replace(texture=torch.full_like(solids.texture, 0.8), background=torch.ones_like(solids.background))
    own = [seen(0.0, solids), seen(0.0, grey)]
    if views is not None:
        own = [maker.render(solids, views, side).image, maker.render(grey, views._replace(light=light), side).image]
    flat = [functional.interpolate(x, (side, side), mode="bilinear") for x in (solids.texture, solids.background)]
    turned = [seen(azimuth, solids) for azimuth in (-1.3, -0.65, 0.0, 0.65, 1.3)]
    given = [functional.interpolate(x, (side, side), mode="nearest") for x in first]
    rows = [*given, *own, *flat, *turned, seen(1.0, grey)]
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1).clamp(0, 1)
    found: Picture = (sheet.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return found
