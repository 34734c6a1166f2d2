"""Viewpoint: from a pile of pictures, one per object, to a network that says from where each object is seen.

After the talk "Towards Systems that Learn by Themselves" (P. Favaro), which names four steps and no paper: compare images globally,
estimate relative viewpoints, estimate small viewpoint changes, find the integrating path; then map one image to its viewpoint.
Here: a graph of nearest neighbours by oriented gradients and its Laplacian eigenmaps; small changes from pictures that are turned a
little as if painted on a cylinder; angular synchronisation over all paths (Singer 2011). Every way to lay the pictures on a circle that
these give is followed by a closed curve with Gaussian noise (a generative topographic map on a circle, Bishop et al. 1998); the one that
explains the pictures best and tears few neighbours apart tells which features matter, for a better graph, twice; arcs in which front
and back were taken for each other are swapped. The turned pictures say which way round azimuth grows. A small network learns the result.
Azimuth only; which side is called the front is arbitrary.
Cost at `small`: one to two minutes on one core for 2,000 pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selftaught.core import draws
from selftaught.core.rows import evenly
from selftaught.data.npy import kept_array
from selftaught.measure.score import Score
from selftaught.measure.viewpoint import azimuth_of, azimuth_scores, known_views
from selftaught.method import EvalData, Method, Parts, Picture, Player, Progress, TrainConfig
from selftaught.nets.renderer import rotation_from_angles
from selftaught.shape3d import circle

FEWEST = 24
"""Below so many pictures no circle is looked for."""


@dataclass(frozen=True)
class ViewpointConfig(TrainConfig):
    """Settings of viewpoint."""

    cell_px: int = 8
    """Side of the cells of the histograms of gradients."""
    most: int = 10_000
    """The circle is found on at most so many pictures, since all are compared with all; the others are laid on it."""
    components: int = 96
    """Principal components of the histograms that are kept."""
    neighbours: int = 10
    """Nearest neighbours of each picture in the graph."""
    turn_rad: float = 0.15
    """How far pictures are turned to see what a small change of viewpoint does."""
    harmonics: int = 6
    """Harmonics of the closed curve."""
    looks: int = 2
    """How often the graph is made anew with what was learned about which features tell the viewpoint."""
    rounds: int = 10
    """Last rounds of expectation maximisation of the curve."""
    net_px: int = 32
    """Side of the pictures that the network sees."""
    width: int = 32
    """Channels of the network's first layer."""
    shift_frac: float = 0.08
    """Pictures are shifted by up to this share of their side while the network learns."""
    jitter: float = 0.3
    """Strength of the change of colours while the network learns."""

    def __post_init__(self) -> None:
        if self.cell_px < 1 or self.image_px < 2 * self.cell_px:
            raise ValueError(f"pictures must be at least two cells wide, got {self.image_px} px and cells of {self.cell_px}")
        if self.most < FEWEST:
            raise ValueError(f"most must be at least {FEWEST}, got {self.most}: fewer pictures show no circle")
        if min(self.components, self.neighbours, self.harmonics) < 1 or min(self.looks, self.rounds) < 0 or self.net_px < 8:
            raise ValueError("components, neighbours and harmonics must be at least 1, looks and rounds at least 0, net_px at least 8")
        if not 0 < self.turn_rad < math.pi / 2 or min(self.shift_frac, self.jitter) < 0:
            raise ValueError("turn_rad must be above 0 and below pi / 2, shift_frac and jitter at least 0")


def network(width: int) -> nn.Sequential:
    """(B, 3, S, S) with S a multiple of 16 to (B, 2), cosine and sine times any length."""
    layers: list[nn.Module] = []
    channels = 3
    for k in range(4):
        out = width * 2 ** min(k, 2)
        layers += [
            nn.Conv2d(channels, out, 3, 1 if k == 0 else 2, 1, bias=False),
            nn.GroupNorm(8, out),
            nn.ReLU(inplace=True),
        ]
        channels = out
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * channels, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, 2),
    )


class Circle(NamedTuple):
    """The circle that was found: `place` says where on it pictures lie."""

    config: ViewpointConfig
    project: circle.Projection
    curve: circle.Curve
    sign: float
    """1 when azimuth grows with the curve's angle, else -1."""

    def place(self, images: Tensor) -> np.ndarray[Any, Any]:
        """Angles in radians and sureness in [0, 1], (N, 2) float32, of pictures (N, 3, S, S) uint8."""
        angle, sure = self.curve.angle(self.project(histograms(images, self.config, 0.0)))
        return np.stack([self.sign * angle, sure], 1).astype(np.float32)


def find_circle(images: Tensor, config: ViewpointConfig, say: Callable[[str], None]) -> Circle | None:
    """The four steps, without the network, on pictures (N, 3, S, S) uint8; None, said aloud, where there is nothing to find."""
    c = config
    if len(images) < FEWEST:
        say(f"{len(images)} pictures are too few to find viewpoints; {FEWEST} are needed")
        return None
    raw = histograms(images, c, 0.0)
    if float(raw.std(0).max()) < 1e-4:
        say("all pictures look the same; there are no viewpoints to find")
        return None
    project = circle.principal(raw, min(c.components, len(raw) // 4))
    features = project(raw)
    ahead, back = (project(histograms(images, c, sign * c.turn_rad)) for sign in (1, -1))
    tangents = (ahead - back) / (2 * c.turn_rad)
    best, others = circle.find_way(features, tangents, c.neighbours, c.harmonics, c.looks, c.rounds)
    say(
        "ways round the circle, by how well a curve explains the pictures: "
        + ", ".join(f"{x.name} {x.level:.2f}" for x in others[:4])
    )
    turn = np.angle(np.exp(1j * (best.curve.angle(ahead)[0] - best.curve.angle(back)[0])))
    sure = best.curve.angle(features)[1]
    sign = 1.0 if float((np.sin(turn) * sure).sum()) >= 0 else -1.0
    agreeing = float((np.sign(turn) == sign).mean())
    way = "with" if sign > 0 else "against"
    say(f"azimuth grows {way} the curve, say {agreeing:.0%} of the turned pictures; mean sureness {sure.mean():.2f}")
    return Circle(c, project, best.curve, sign)


@torch.no_grad()
def histograms(images: Tensor, config: ViewpointConfig, turn_rad: float) -> np.ndarray[Any, Any]:
    """Features (N, D) float64 of uint8 pictures (N, 3, S, S), turned by a small azimuth first."""
    found = []
    for part in images.split(256):
        pictures = part.float() / 255
        if turn_rad:
            pictures = circle.turned(pictures, turn_rad)
        found.append(circle.hog_features(pictures, cell_px=config.cell_px).double().numpy())
    return np.concatenate(found)


def angular_loss(found: Tensor, angle: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of sqrt(1 - r cos(difference) + 0.01): like |difference| far away, so that wrong targets pull no harder.

    r = l / sqrt(l^2 + 0.01) of answers of length l: without it the few answers near 0, whose direction any change turns, would pull
    harder than all others together. found (B, 2), angle (B,) in radians, weight (B,) from 0 on.
    """
    found = found.float()
    direction = found / (found.square().sum(1, keepdim=True) + 0.01).sqrt()
    cosine = direction[:, 0] * angle.cos() + direction[:, 1] * angle.sin()
    each = (1 - cosine + 0.01).clamp_min(1e-6).sqrt()
    return (each * weight).sum() / weight.sum().clamp_min(1e-3)


class Viewpoint(Method):
    """A network that says the azimuth of the object in a picture, taught by the order of all pictures; capability `viewpoint`."""

    name = "viewpoint"
    Config = ViewpointConfig
    capabilities = ("viewpoint",)
    sizes = {
        "tiny": ViewpointConfig(
            image_px=32, batch_size=16, steps=20, components=16, neighbours=6, harmonics=2, looks=1, rounds=5, net_px=16, width=8,
        ),
        "small": ViewpointConfig(image_px=64, batch_size=64, steps=500, lr=3e-3, weight_decay=0.05, warmup_frac=0.05),
        "paper": ViewpointConfig(
            image_px=128, cell_px=16, components=128, batch_size=256, steps=20_000, net_px=128, width=64, lr=1e-3, weight_decay=0.05,
        ),
    }  # fmt: skip
    config: ViewpointConfig

    def __init__(self, config: ViewpointConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        self.image_px = config.image_px
        self.net = network(config.width)
        self.targets: np.ndarray[Any, Any] | None = None

    def begin(self, images: Any, run_dir: Path, say: Callable[[str], None]) -> None:
        """Lay the pictures on a circle, once, into viewpoints.npy (N, 2) float32: angles in radians, and how sure they are."""

        def make() -> np.ndarray[Any, Any]:
            if len(images) > self.config.most:
                say(f"the circle is found on {self.config.most} of {len(images)} pictures, evenly spread; the others are laid on it")
            found = find_circle(images.batch(evenly(len(images), self.config.most)), self.config, say)
            if found is None:
                return np.zeros((len(images), 2), np.float32)
            parts = np.array_split(np.arange(len(images)), -(-len(images) // 256))
            return np.concatenate([found.place(images.batch(rows)) for rows in parts])

        self.targets = kept_array(run_dir / "viewpoints.npy", (len(images), 2), make, say)

    def players(self) -> dict[str, Player]:
        return {"network": self.main_player(betas=(0.9, 0.99))}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Shifted, recoloured pictures (B, 3, s, s), their angles (B,) and how sure these are (B,)."""
        c = self.config
        if self.targets is None:
            raise RuntimeError("begin() finds the viewpoints before training")
        B = len(images)
        pictures = self.reduced(images.float() / 255)
        moved = torch.zeros(B, 2, 3)
        zoom = 1 + c.shift_frac * (2 * draws.rand(B) - 1)
        moved[:, 0, 0], moved[:, 1, 1] = zoom, zoom
        moved[:, :, 2] = 2 * c.shift_frac * (2 * draws.rand(B, 2) - 1)
        grid = functional.affine_grid(moved.to(images.device), list(pictures.shape), align_corners=False)
        pictures = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        mix = (torch.eye(3) + c.jitter * draws.randn(B, 3, 3)).to(images.device)
        pictures = torch.einsum("bij,bjhw->bihw", mix, pictures - 0.5) + 0.5 + c.jitter * (draws.rand(B, 3, 1, 1).to(images.device) - 0.5)
        target = torch.from_numpy(self.targets[indices]).to(images.device)
        return pictures, target[:, 0], target[:, 1]

    def loss(self, batch: tuple[Tensor, Tensor, Tensor], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        pictures, angle, sure = batch
        found = self.net(pictures * 2 - 1).float()
        loss = angular_loss(found, angle, sure)
        error = (torch.atan2(found[:, 1], found[:, 0]) - angle).detach()
        error = torch.atan2(error.sin(), error.cos()).abs()
        return loss, {"error_deg": math.degrees(float(error.mean())), "sureness": float(sure.mean())}

    def reduced(self, pictures: Tensor) -> Tensor:
        """Pictures at the side that the network sees."""
        side = (self.config.net_px, self.config.net_px)
        if tuple(pictures.shape[-2:]) == side:
            return pictures
        return functional.interpolate(pictures, side, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)

    @torch.no_grad()
    def azimuth(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to azimuths (B,) in radians, in a frame of its own."""
        found = self.net(self.reduced(images) * 2 - 1).float()
        return torch.atan2(found[:, 1], found[:, 0])

    @torch.no_grad()
    def viewpoint(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to rotations (B, 3, 3) from the object's frame to the camera's: azimuths, without elevation and roll."""
        azimuth = self.azimuth(images)
        return rotation_from_angles(azimuth, torch.zeros_like(azimuth), torch.zeros_like(azimuth))

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Errors of azimuths; baselines: the best constant, shuffled answers, the untrained network."""
        views = known_views(data)
        if views is None:
            return {}
        true = azimuth_of(np.stack([view.rotation for view in views]))
        own, fresh = (
            azimuth_scores(self.answers(method, data.test), true) for method in (self, self.untrained(data.seed))
        )
        for name in ("azimuth_median_deg", "acc30"):
            own[name].baselines["untrained"] = fresh[name].value
        return own

    @staticmethod
    def answers(method: Any, test: Any) -> np.ndarray[Any, Any]:
        """Azimuths (N,) of all pictures of an EvalSet."""
        parts = np.array_split(np.arange(len(test)), -(-len(test) // 64))
        return np.concatenate([method.azimuth(test.images.batch(rows).float() / 255).numpy() for rows in parts])

    def show(self, images: Tensor) -> dict[str, Picture]:
        """The pictures in the order of their azimuths, each over a dial that shows it."""
        images = images[:24]
        azimuth = self.azimuth(images)
        order = azimuth.argsort()
        side = images.shape[-1]
        line = (torch.arange(side) + 0.5) * 2 / side - 1
        x, y = line[None, :], -line[:, None]
        ring = ((x.square() + y.square()).sqrt() - 0.8).abs() < 0.05
        columns = []
        for i in order:
            a = float(azimuth[i])
            # Seen from above: the front points to the viewer, who is below, at azimuth 0.
            along, across = x * math.sin(a) - y * math.cos(a), x * math.cos(a) + y * math.sin(a)
            hand = (along > 0) & (along < 0.8) & (across.abs() < 0.06)
            dial = torch.where(ring | hand, 0.1, 1.0).expand(3, -1, -1)
            columns.append(torch.cat([images[i], dial], 1))
        sheet = (torch.cat(columns, 2).permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return {"viewpoints": sheet}
