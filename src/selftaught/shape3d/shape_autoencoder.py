"""shape_autoencoder: a picture becomes the codes, the viewpoint and the light from which a generator of solid objects makes it again.

Paper: Szabo, Favaro, "Unsupervised 3D Shape Learning from Image Collections in the Wild", 2018 (arXiv 1811.10519), whose generator is
paired with an encoder; several viewpoints at once as in Kulkarni, Gupta, Tulsiani, "Canonical Surface Mapping via Geometric Cycle
Consistency", ICCV 2019, and Monnier et al., "Share With Thy Neighbors", ECCV 2022.
An encoder reads codes, light, place and K viewpoints with probabilities off a picture. On made pictures it must find what they were made
of; real pictures must come out again: each of the K viewpoints is rendered, and errors count by their probabilities. The generator of
shape_gan goes on learning, slowly, so that it comes to hold what real pictures need; its background is left as it was.
Differs: written from the abstract; no learned features in the error; the surface's roughness is all that is held against the shape.
Cost at `small`: about 0.2 s per step of 16 pictures on one core, on top of shape_gan.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.errors import ConfigError
from selftaught.measure.score import Score
from selftaught.method import EvalData, Method, Parts, Picture, Player, Progress, Shapes, TrainConfig
from selftaught.nets.renderer import Rendering
from selftaught.shape3d.mesh_generator import MeshGenerator, Solids, Views, hidden, mirrored_angles, pose_vector
from selftaught.shape3d.shape_gan import Real, estimated_angles, panel
from selftaught.shape3d.solid_scores import autoencoder_scores

TILT_RAD = 0.5
"""Largest elevation and roll that the encoder can say."""
OVERLAP = 1.3
"""How far a hypothesis reaches beyond its part of the azimuths, as a factor."""


@dataclass(frozen=True)
class ShapeAutoencoderConfig(TrainConfig):
    """Settings of shape_autoencoder."""

    hypotheses: int = 4
    """Viewpoints that are tried for each picture, each in its part of the azimuths that were estimated."""
    width: int = 32
    """Channels of the encoder's first layer."""
    generator_lr_frac: float = 0.3
    """Learning rate of the generator, as a share of `lr`; of its start and what is shared, times the factors that shape_gan had."""
    made_frac: float = 0.15
    """Share of the training after which real pictures count fully; before that their weight rises from 0."""
    real_weight: float = 10.0
    """Weight of the error of real pictures."""
    code_weight: float = 0.3
    """Weight of finding the codes of made pictures."""
    prior_weight: float = 0.01
    """Weight of the mean squared code of real pictures."""
    tight_weight: float = 0.0
    """Weight of the share of real pictures that objects cover: presses out what is painted like the background, which costs no error."""
    hidden_weight: float = 0.0
    """Weight of the share of real pictures where objects cannot be told from what is behind them, as in shape_gan."""
    rough_weight: float = 20.0
    """Weight of the roughness of the surface."""
    told_weight: float = 0.0
    """Weight of finding the estimated azimuths of real pictures; with 0 estimates say alone from where made pictures are seen."""
    told_last_frac: float = 1.0
    """What is left of `told_weight` at the end, as a share; it falls evenly. Below 1 pictures correct the estimates."""
    spread_weight: float = 0.02
    """Weight of the hypotheses being used alike, over a batch of real pictures."""

    def __post_init__(self) -> None:
        refuse_outside(self, "hypotheses width", 1)
        refuse_outside(self, "generator_lr_frac real_weight code_weight prior_weight tight_weight hidden_weight rough_weight", 0)
        refuse_outside(self, "told_weight told_last_frac spread_weight", 0)
        refuse_outside(self, "made_frac", 0, 1)


class Found(NamedTuple):
    """What the encoder says of pictures; K hypotheses."""

    codes: Tensor
    """(B, D) of shape, texture and background."""
    angles: Tensor
    """(B, K, 3)."""
    logits: Tensor
    """(B, K) of the hypotheses."""
    shift: Tensor
    """(B, 2)."""
    light: Tensor
    """(B, 4) as in `Views`."""

    def best(self) -> Tensor:
        """(B, 3) angles of the likeliest hypothesis."""
        which = self.logits.argmax(1)
        return self.angles[torch.arange(len(which)), which]


class Encoder(nn.Module):
    """Pictures (B, 3, px, px) in [-1, 1] to `Found`."""

    centres: Tensor
    """(K,) middles of the parts of the azimuths, in radians."""
    reach: Tensor
    """(1,) how far a hypothesis reaches to either side."""

    def __init__(self, px: int, width: int, codes: int, hypotheses: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for k in range(int(math.log2(px)) - 2):
            out = width * 2 ** min(k, 2)
            layers += [nn.Conv2d(channels, out, 4, 2, 1), nn.GroupNorm(math.gcd(8, out), out), nn.LeakyReLU(0.2)]
            channels = out
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels, 256), nn.LeakyReLU(0.2))
        self.code = nn.Linear(256, codes)
        self.rest = nn.Sequential(nn.Linear(16 * channels, 128), nn.LeakyReLU(0.2), nn.Linear(128, 4 * hypotheses + 6))
        self.register_buffer("centres", torch.zeros(hypotheses))
        self.register_buffer("reach", torch.ones(1))

    def divide(self, azimuth: np.ndarray[Any, Any]) -> None:
        """Divide the range of azimuths (N,) that occur (all but the outermost hundredth) evenly between the hypotheses."""
        K = len(self.centres)
        most = min(float(np.quantile(np.abs(azimuth), 0.99)) + 0.05, math.pi)
        self.centres.copy_(most * ((2 * torch.arange(K) + 1) / K - 1))
        self.reach.fill_(OVERLAP * most / K)

    def forward(self, pictures: Tensor) -> Found:
        maps = self.trunk[:-2](pictures)
        rest = self.rest(maps).float()
        K = len(self.centres)
        raw = rest[:, : 3 * K].reshape(-1, K, 3).tanh()
        azimuth = self.centres + self.reach * raw[..., 0]
        angles = torch.stack([azimuth, TILT_RAD * raw[..., 1], TILT_RAD * raw[..., 2]], 2)
        shift, light = 0.3 * rest[:, 4 * K : 4 * K + 2].tanh(), rest[:, 4 * K + 2 :]
        strength, side = light[:, :2].sigmoid(), 2 * light[:, 2:].tanh()
        return Found(self.code(self.trunk[-2:](maps)).float(), angles, rest[:, 3 * K : 4 * K], shift, torch.cat([strength, side], 1))


def picture_error(first: Tensor, second: Tensor) -> Tensor:
    """(B,): mean absolute difference of pictures (B, 3, S, S) at full, half and quarter size, and of their slopes."""
    d = first - second
    total = d.abs().mean((1, 2, 3))
    for _ in range(2):
        total = total + d.diff(dim=2).abs().mean((1, 2, 3)) + d.diff(dim=3).abs().mean((1, 2, 3))
        d = functional.avg_pool2d(d, 2)
        total = total + d.abs().mean((1, 2, 3))
    return total


class ShapeAutoencoder(Method):
    """Encoder to solid objects on top of a learned generator; capabilities `reconstruct` and `viewpoint`."""

    name = "shape_autoencoder"
    Config = ShapeAutoencoderConfig
    needs = {"generator": "shape_gan"}
    cpu_only = True
    capabilities = ("reconstruct", "viewpoint")
    sizes = {
        "tiny": ShapeAutoencoderConfig(image_px=16, batch_size=8, steps=20, lr=1e-3, weight_decay=0.0, hypotheses=2, width=8),
        "small": ShapeAutoencoderConfig(image_px=64, batch_size=16, steps=1500, lr=1e-3, weight_decay=0.0, warmup_frac=0.02, clip_norm=5.0),
        "paper": ShapeAutoencoderConfig(image_px=128, batch_size=32, steps=100_000, lr=3e-4, weight_decay=0.0, hypotheses=6, width=64),
    }  # fmt: skip
    config: ShapeAutoencoderConfig

    def __init__(self, config: ShapeAutoencoderConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c, learned = config, self.given["generator"]
        if not isinstance(getattr(learned, "maker", None), MeshGenerator):
            raise ConfigError("shape_autoencoder needs a generator of solid objects.", expected="a run of shape_gan")
        self.image_px = c.image_px
        # A copy, since it goes on learning.
        self.maker: MeshGenerator = copy.deepcopy(learned.averaged).requires_grad_(True)
        self.maker.behind.requires_grad_(False)
        self.encoder = Encoder(self.maker.px, c.width, sum(self.maker.codes), c.hypotheses)
        self.angles: np.ndarray[Any, Any] | None = None

    @property
    def generator(self) -> Any:
        """The learned generator; a property, so that it stays outside of the module tree."""
        return self.given["generator"]

    def begin(self, images: Any, run_dir: Path, say: Any) -> None:
        """Estimate the viewpoints of all pictures once (poses.npy): made pictures are seen from those, hypotheses divide their azimuths."""
        pose = self.generator.given["pose"]
        even = self.generator.config.even_azimuths
        self.angles = estimated_angles(run_dir / "poses.npy", images, pose.viewpoint, say, self.maker.symmetric, even)
        self.encoder.divide(self.angles[:, 0])

    def players(self) -> dict[str, Player]:
        frac, c = self.config.generator_lr_frac, self.generator.config
        # What all objects share learns faster, as it did in shape_gan.
        scales = {"maker.base": frac * c.start_lr_scale, "maker.shared": frac * max(c.shared_lr_scale, 1.0), "maker.": frac}
        return {"networks": self.main_player(betas=(0.9, 0.99), lr_scales=scales)}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> Real:
        """Pictures, half of them mirrored, and as many viewpoints drawn from the estimates of all."""
        if self.angles is None:
            raise RuntimeError("begin() estimates the viewpoints before training")
        B = len(images)
        pictures = self.generator.reduced(images.float() / 255)
        flips = (draws.rand(B, 2) < 0.5) & torch.tensor(self.maker.symmetric)
        pictures = torch.where(flips[:, :1, None, None], pictures.flip(3), pictures)
        known = torch.from_numpy(self.angles)
        angles = mirrored_angles(known[torch.from_numpy(indices)], flips[:, 0])
        others = mirrored_angles(known[draws.randint(len(known), B)], flips[:, 1])
        return Real(pictures, angles, others + self.generator.config.pose_noise_rad * draws.randn(B, 3))

    def loss(self, batch: Real, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c = self.config
        views = self.generator.draw_views(batch.others)
        z = draws.randn(len(batch.others), sum(self.maker.codes))
        with torch.no_grad():
            made = self.maker.render(self.maker(z), views).image
        found = self.encoder(torch.cat([made, batch.pictures]) * 2 - 1)
        if not all(bool(part.isfinite().all()) for part in found):
            return torch.stack([part.sum() for part in found]).sum(), {}  # the loop undoes the step, the renderer would refuse it
        first, second = (Found(*(part[rows] for part in found)) for rows in (slice(0, len(z)), slice(len(z), None)))
        total, parts = self.recognition(first, z, views)
        errors, covers, hides, sure, points = self.reconstruction(second, batch.pictures)
        share = min(progress.frac / max(c.made_frac, 1e-9), 1.0)
        if c.told_weight:
            pose, which = self.azimuth_error(second, batch.angles)
            total = total + c.told_weight * (1 - (1 - c.told_last_frac) * progress.frac) * (pose + 0.2 * which)
            parts["told"] = float(pose.detach())
        rough = self.maker.roughness(points).mean()
        prior = second.codes.square().mean()
        used = (sure.mean(0) - 1 / sure.shape[1]).abs().mean()
        parts["error"] = float(errors.detach().amin(1).mean())
        errors = c.real_weight * errors + c.tight_weight * covers + c.hidden_weight * hides
        total = total + share * ((sure * errors).sum(1).mean() + c.spread_weight * used)
        total = total + c.rough_weight * rough + c.prior_weight * prior
        parts |= {"covers": float(covers.detach().mean()), "hidden": float(hides.detach().mean())}
        parts |= {"rough": float(rough.detach()), "prior": float(prior.detach())}
        return total, parts | {"sure": float(sure.detach().amax(1).mean())}

    def recognition(self, found: Found, z: Tensor, views: Views) -> tuple[Tensor, Parts]:
        """Made pictures: codes, the hypothesis nearest to the viewpoint, its error, place and light."""
        nearest = self.nearest(views.angles)
        chosen = found.angles[torch.arange(len(z)), nearest]
        pose = (pose_vector(chosen) - pose_vector(views.angles)).square().sum(1).mean() / 2
        which = functional.cross_entropy(found.logits, nearest)
        codes = (found.codes - z).square().mean()
        rest = (found.shift - views.shift).square().sum(1).mean() + 0.1 * (found.light - views.light).square().sum(1).mean()
        parts = {"pose": float(pose.detach()), "which": float(which.detach()), "codes": float(codes.detach())}
        return 5 * pose + 0.2 * which + self.config.code_weight * codes + rest, parts

    @torch.no_grad()
    def nearest(self, angles: Tensor) -> Tensor:
        """(B,) which hypothesis is for angles (B, 3)."""
        away = angles[:, :1] - self.encoder.centres
        return torch.atan2(away.sin(), away.cos()).abs().argmin(1)

    def azimuth_error(self, found: Found, angles: Tensor) -> tuple[Tensor, Tensor]:
        """1 - cosine of the right hypothesis and the azimuth of angles (B, 3), and the cross-entropy of which is right."""
        nearest = self.nearest(angles)
        chosen = found.angles[torch.arange(len(angles)), nearest, 0]
        return (1 - (chosen - angles[:, 0]).cos()).mean(), functional.cross_entropy(found.logits, nearest)

    def reconstruction(self, found: Found, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Real pictures: errors of the hypotheses, what they cover and hide, and their probabilities, all (B, K); points (B, V, 3)."""
        K = found.logits.shape[1]
        solids = self.maker(found.codes)
        many = Solids(*(part.repeat_interleave(K, 0) for part in solids))
        views = Views(found.angles.flatten(0, 1), found.shift.repeat_interleave(K, 0), found.light.repeat_interleave(K, 0))
        seen = self.maker.render(many, views)
        errors = picture_error(seen.image, pictures.repeat_interleave(K, 0)).reshape(-1, K)
        covers, hides = seen.mask.mean((1, 2)), hidden(seen, many.background)
        return errors, covers.reshape(-1, K), hides.reshape(-1, K), found.logits.softmax(1), solids.points

    @torch.no_grad()
    def explained(self, images: Tensor) -> tuple[Solids, Views, Rendering]:
        """(B, 3, H, W) in [0, 1] to objects, views and pictures of the likeliest hypothesis."""
        found = self.encoder(self.generator.reduced(images) * 2 - 1)
        solids, views = self.maker(found.codes), Views(found.best(), found.shift, found.light)
        return solids, views, self.maker.render(solids, views)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Shapes:
        """(B, 3, H, W) in [0, 1] to closed surfaces with texture; vertices at the texture's seam are there twice."""
        solids, views, seen = self.explained(images)
        topology, camera = self.maker.topology, self.maker.camera(views)
        assert topology.uv_faces is not None
        vertex = torch.zeros(len(self.maker.uv), dtype=torch.long)
        vertex[topology.uv_faces.reshape(-1)] = topology.faces.reshape(-1)
        fov = torch.full((len(images),), self.maker.fov_rad)
        return Shapes(
            solids.points[:, vertex], topology.uv_faces, self.maker.uv, solids.texture, camera.rotation, camera.position, fov,
            seen.depth, seen.image.clamp(0, 1), solids.background,
        )  # fmt: skip

    @torch.no_grad()
    def viewpoint(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to rotations (B, 3, 3) from the object's frame to the camera's."""
        found = self.encoder(self.generator.reduced(images) * 2 - 1)
        return self.maker.camera(Views(found.best(), found.shift, found.light)).rotation

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Viewpoints, masks, surfaces and proportions of held-out pictures; see `solid_scores`."""
        return autoencoder_scores(self, data)

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Columns are pictures. Rows: input, reconstruction, grey surface, texture, background, and the object at other azimuths."""
        images = images[:12]
        solids, views, _ = self.explained(images)
        return {"reconstructions": panel(self.maker, solids, views, (self.generator.reduced(images),))}
