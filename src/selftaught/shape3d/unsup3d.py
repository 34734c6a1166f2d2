"""unsup3d: one picture becomes depth, albedo, light and viewpoint, because faces are nearly the same when mirrored.

Paper: Wu, Rupprecht, Vedaldi, "Unsupervised Learning of Probably Symmetric Deformable 3D Objects from Images in the Wild", CVPR 2020.
A picture is explained as a depth map and colours in a canonical view, lit and then seen from another viewpoint. It is explained a
second time from the mirrored depth and colours: both fit only when the canonical view is the symmetric one. Confidence maps say where
the symmetry (or the model) does not hold.
Differs: our renderer carries the canonical picture into the view (the mesh's vertices know their place in it, gradients are
exact); depth is
predicted at `depth_px` and enlarged, sigma has a floor, depths are held smooth: without these the depths of short trainings at 32 px are
noise; no perceptual loss, since the paper's needs features learned with labels; one optimiser for all networks.
Cost at `small`: less than a tenth of a second per step of 16 pictures on one core, two to three minutes in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selftaught.core import draws
from selftaught.measure.depth import at_size, depth_scores
from selftaught.measure.score import Score
from selftaught.measure.viewpoint import azimuth_of, azimuth_scores, known_views, rotation_scores
from selftaught.method import EvalData, Method, Parts, Picture, Player, Progress, Shapes, TrainConfig
from selftaught.nets.depth_maps import grid_faces, normals_of_depth, rays
from selftaught.nets.renderer import Camera, Topology, render, rotation_from_angles


@dataclass(frozen=True)
class Unsup3DConfig(TrainConfig):
    """Settings of unsup3d."""

    width: int = 16
    """Channels of the first layer of the networks; doubles with every halving of the picture."""
    regressor_width: int = 16
    """The same for the networks of viewpoint and light."""
    code: int = 96
    """Width of the code between encoder and decoder."""
    convolutions: int = 1
    """Convolutions at every size of a decoder."""
    depth_px: int = 16
    """Side at which depth and confidence are predicted, and of the mesh that is seen from elsewhere in training; shapes are
    enlarged smoothly."""
    confidence: bool = True
    """Whether confidence maps are predicted; without them every pixel counts alike."""
    sigma_min: float = 0.1
    """Least deviation that the confidence maps can claim, in units of colour in [-1, 1]."""
    flip_weight: float = 0.5
    """Weight of the reconstruction from mirrored depth and albedo; 0 gives the symmetry up."""
    smooth_weight: float = 0.8
    """Weight, at the end, of the mean difference of neighbouring depths as a share of the range of depths; it rises from a twentieth of
    that, because depth that is held flat from the start keeps the viewpoint from being learned."""
    shift_weight: float = 2.0
    """Weight of the mean squared shift, as a share of the largest: at first a turned face is explained by a shifted one as well, and a
    training that begins with shifts never comes to turns."""
    fov_rad: float = math.radians(10)
    """Angle of view from the lower to the upper edge that pictures are thought to be taken with."""
    depth_range: tuple[float, float] = (0.9, 1.1)
    """Nearest and farthest depth; objects turn about depth 1."""
    border_depth: float = 1.05
    """Depth of the leftmost and rightmost columns: the rim lies behind the middle, which decides between a face and its hollow mould."""
    turn_rad: float = math.radians(60)
    """Largest azimuth, elevation and roll."""
    shift: float = 0.1
    """Largest shift of the object, in units of its distance."""
    flips: bool = True
    """Whether pictures are mirrored at random."""
    crop_frac: float = 1.0
    """Share of the pictures' side that is looked at, around the middle: objects must fill what is seen. Networks see `crop_frac` times
    `image_px` pixels, a power of two."""

    def __post_init__(self) -> None:
        near, far = self.depth_range
        if min(self.width, self.regressor_width) < 4 or self.code < 1 or self.convolutions < 0:
            raise ValueError("width and regressor_width must be at least 4, code at least 1, convolutions at least 0")
        if self.depth_px < 4 or self.depth_px & (self.depth_px - 1):
            raise ValueError(f"depth_px must be a power of two, from 4 on, got {self.depth_px}")
        if not (0 < self.fov_rad < math.pi and 0 < near < far and self.border_depth > 0):
            raise ValueError("fov_rad must be between 0 and pi, depth_range two rising depths above 0, border_depth above 0")
        if self.sigma_min <= 0 or min(self.turn_rad, self.shift) < 0:
            raise ValueError("sigma_min must be above 0, turn_rad and shift at least 0")


class Explanation(NamedTuple):
    """What one picture was explained by; S is the side that the method works at."""

    depth: Tensor
    """(B, S, S) canonical depth; 1 is the distance of the axis of rotation."""
    albedo: Tensor
    """(B, 3, S, S) in [0, 1], colours without light."""
    shading: Tensor
    """(B, 1, S, S), from 0 on."""
    rotation: Tensor
    """(B, 3, 3), from the canonical frame to the camera's."""
    shift: Tensor
    """(B, 3) of the object in the camera's frame."""
    image: Tensor
    """(B, 3, S, S) in [0, 1], the picture explained."""
    view_depth: Tensor
    """(B, S, S) depth in the picture's own view; 0 where the object does not reach."""


def encoder(px: int, width: int, code: int) -> list[nn.Module]:
    """Convolutions of stride 2 from (B, 3, px, px) down to 4 x 4, then to (B, code, 1, 1)."""
    levels = int(math.log2(px)) - 2
    layers: list[nn.Module] = []
    channels = 3
    for k in range(levels):
        out = width * 2 ** min(k, 3)
        layers.append(nn.Conv2d(channels, out, 4, 2, 1, bias=False))
        if k < levels - 1:
            layers.append(nn.GroupNorm(out // 4, out))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        channels = out
    return [*layers, nn.Conv2d(channels, code, 4, 1, 0, bias=False), nn.ReLU(inplace=True)]


def decoder(px: int, width: int, code: int, out: int, convolutions: int) -> list[nn.Module]:
    """From (B, code, 1, 1) to maps (B, out, px, px): 4 x 4 first, then twice the size with `convolutions` at every level."""
    levels = int(math.log2(px)) - 2
    channels = width * 2 ** min(max(levels - 1, 0), 3)
    layers: list[nn.Module] = [nn.ConvTranspose2d(code, channels, 4, 1, 0, bias=False), nn.ReLU(inplace=True)]
    for k in reversed(range(levels)):
        small = width * 2 ** min(max(k - 1, 0), 3)
        layers += [nn.Upsample(scale_factor=2, mode="nearest")]
        for _ in range(convolutions):
            layers += [
                nn.Conv2d(channels, small, 3, 1, 1, bias=False),
                nn.GroupNorm(small // 4, small),
                nn.ReLU(inplace=True),
            ]
            channels = small
    return [*layers, nn.Conv2d(channels, out, 5, 1, 2, bias=False)]


class Regressor(nn.Sequential):
    """(B, 3, S, S) to (B, out) in (-1, 1)."""

    def __init__(self, px: int, width: int, out: int):
        hidden = 8 * width
        last = nn.Conv2d(hidden, out, 1, bias=False)
        super().__init__(*encoder(px, width, hidden), last, nn.Tanh(), nn.Flatten())


def laplace_nll(error: Tensor, sigma: Tensor | None, mask: Tensor) -> Tensor:
    """Mean over the mask of sqrt(2) |e| / sigma + log sigma, the paper's likelihood without its constant; |e| is the mean over channels.

    error (B, 3, H, W) in units of [-1, 1], sigma (B, 1, H, W) or None for 1, mask (B, 1, H, W).
    """
    size = error.abs().mean(1, keepdim=True) * math.sqrt(2)
    each = size if sigma is None else size / sigma + sigma.log()
    return (each * mask).sum() / mask.sum().clamp_min(1)


class Unsup3D(Method):
    """Depth, albedo, light, viewpoint and confidence of one picture; capabilities `reconstruct` and `viewpoint`."""

    name = "unsup3d"
    Config = Unsup3DConfig
    capabilities = ("reconstruct", "viewpoint")
    sizes = {
        "tiny": Unsup3DConfig(image_px=16, width=8, regressor_width=8, code=16, depth_px=8, batch_size=16, steps=20, lr=1e-3,
            weight_decay=0.0),
        "small": Unsup3DConfig(
            image_px=32, batch_size=16, steps=1600, lr=1e-3, weight_decay=0.0, clip_norm=5.0, warmup_frac=0.02,
        ),
        "paper": Unsup3DConfig(
            image_px=64, width=64, regressor_width=32, code=256, convolutions=2, depth_px=64, batch_size=64, steps=75_000, lr=1e-4,
            weight_decay=5e-4, warmup_frac=0.0, sigma_min=0.01, smooth_weight=0.0, border_depth=1.04,
        ),
    }  # fmt: skip
    config: Unsup3DConfig

    def __init__(self, config: Unsup3DConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        self.image_px = c.image_px
        px = self.px = round(c.image_px * c.crop_frac)
        if not 0 < c.crop_frac <= 1 or px < 8 or px & (px - 1) or (c.image_px - px) % 2:
            raise ValueError(f"crop_frac {c.crop_frac} of {c.image_px} px is {px} px; networks need a power of two, from 8 on")
        self.depth_net = nn.Sequential(
            *encoder(px, c.width, c.code), *decoder(c.depth_px, c.width, c.code, 1, c.convolutions)
        )
        self.albedo_net = nn.Sequential(*encoder(px, c.width, c.code), *decoder(px, c.width, c.code, 3, c.convolutions))
        self.view_net = Regressor(px, c.regressor_width, 5)
        self.light_net = Regressor(px, c.regressor_width, 4)
        if c.confidence:
            self.confidence_net = nn.Sequential(
                *encoder(px, c.width, c.code), *decoder(c.depth_px, c.width, c.code, 2, c.convolutions)
            )
        self.meshes: dict[int, Topology] = {}

    def players(self) -> dict[str, Player]:
        return {"networks": self.main_player(betas=(0.9, 0.999))}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> Tensor:
        """Pictures in [-1, 1], half of them mirrored."""
        pictures = self.middle(images).float() / 127.5 - 1
        if not self.config.flips:
            return pictures
        mirrored = draws.rand(len(images)).to(images.device) < 0.5
        return torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)

    def canonical_depth(self, pictures: Tensor) -> Tensor:
        """(B, depth_px, depth_px): mean removed, squashed into the range, rim pushed back."""
        c = self.config
        raw = self.depth_net(pictures).float()[:, 0]
        raw = raw - raw.mean((1, 2), keepdim=True)
        near, far = c.depth_range
        depth = (near + far) / 2 + (far - near) / 2 * raw.tanh()
        rim = torch.zeros_like(depth[:1])
        columns = max(1, c.depth_px // 32)
        rim[..., :columns] = rim[..., -columns:] = 1
        return depth * (1 - rim) + c.border_depth * rim

    def see(self, image: Tensor, depth: Tensor, rotation: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A canonical picture (B, C, S, S) with depths (B, d, d) from another viewpoint: picture, where it reaches (B, 1, S,
        S), depth (B, S, S).

        The mesh joins the d x d depths; what its vertices carry is where they are in the canonical picture.
        """
        c = self.config
        batch, px, side = len(image), image.shape[-1], depth.shape[-1]
        points = depth[:, None] * rays(side, side, c.fov_rad, depth)
        points = points.flatten(2).mT + points.new_tensor([0.0, 0.0, 1.0])  # the axis of rotation is the origin
        line = (torch.arange(side, dtype=depth.dtype, device=depth.device) + 0.5) * 2 / side - 1
        place = torch.stack([line.repeat(side), line.repeat_interleave(side)], 1)
        position = shift + shift.new_tensor([0.0, 0.0, -1.0])
        focal = points.new_full((batch,), 1 / math.tan(c.fov_rad / 2))
        found = render(
            points, self.topology(side, depth), Camera(rotation, position, focal), px, colours=place, antialias=False
        )
        seen = functional.grid_sample(
            image, found.image.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
        )
        return seen, (found.face >= 0)[:, None].to(image), found.depth

    def topology(self, side: int, like: Tensor) -> Topology:
        """The mesh between side x side depths; made once."""
        if side not in self.meshes:
            self.meshes[side] = Topology(grid_faces(side, side), side * side)
        if self.meshes[side].faces.device != like.device:
            self.meshes[side] = self.meshes[side].to(like.device)
        return self.meshes[side]

    def pose(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation (B, 3, 3) and shift (B, 3)."""
        c = self.config
        found = self.view_net(pictures).float()
        rotation = rotation_from_angles(*(found[:, :3] * c.turn_rad).unbind(1))
        return rotation, functional.pad(found[:, 3:] * c.shift, (0, 1))

    def shade(self, normals: Tensor, light: Tensor) -> Tensor:
        """Shading (B, 1, S, S) = ambient + diffuse max(0, n . l), l = (lx, ly, 1) of unit length; normals (B, 3, d, d), light
        (B, 4) in (-1, 1)."""
        ambient, diffuse = light[:, 0] / 2 + 0.5, light[:, 1] / 2 + 0.5
        direction = functional.normalize(torch.cat([light[:, 2:], torch.ones_like(light[:, :1])], 1), dim=1)
        facing = (normals * direction[..., None, None]).sum(1, keepdim=True)
        facing = functional.interpolate(facing, (self.px,) * 2, mode="bilinear", align_corners=False).clamp_min(0)
        return ambient[:, None, None, None] + diffuse[:, None, None, None] * facing

    def loss(self, batch: Tensor, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c = self.config
        depth = self.canonical_depth(batch)
        albedo = self.albedo_net(batch).float().tanh() / 2 + 0.5
        rotation, shift = self.pose(batch)
        light = self.light_net(batch).float()
        sigma = None
        if c.confidence:
            sigma = functional.softplus(self.confidence_net(batch).float()) + c.sigma_min
            sigma = functional.interpolate(sigma, batch.shape[-2:], mode="bilinear", align_corners=False)
        if not bool(torch.isfinite(depth).all() & torch.isfinite(rotation).all() & torch.isfinite(shift).all()):
            return depth.sum() + rotation.sum() + shift.sum(), {}  # not finite: the loop undoes the step, the renderer would refuse it
        with torch.autocast(batch.device.type, enabled=False):
            smooth = c.smooth_weight * max(progress.frac, 0.05)
            return self.explain(batch.float(), depth, albedo, (rotation, shift), light, sigma, smooth)

    def explain(
        self,
        pictures: Tensor,
        depth: Tensor,
        albedo: Tensor,
        pose: tuple[Tensor, Tensor],
        light: Tensor,
        sigma: Tensor | None,
        smooth_weight: float,
    ) -> tuple[Tensor, Parts]:
        """The loss of an explanation, from the canonical view and from its mirror image."""
        c = self.config
        both = c.flip_weight > 0
        depths = torch.cat([depth, depth.flip(2)]) if both else depth
        albedos = torch.cat([albedo, albedo.flip(3)]) if both else albedo
        times = 2 if both else 1
        normals = normals_of_depth(depth, c.fov_rad)
        if both:
            normals = torch.cat([normals, normals.flip(3) * normals.new_tensor([-1.0, 1.0, 1.0])[:, None, None]])
        lit = albedos * self.shade(normals, light.repeat(times, 1))
        seen, reach, _ = self.see(lit, depths, pose[0].repeat(times, 1, 1), pose[1].repeat(times, 1))
        errors = (seen * 2 - 1 - pictures.repeat(times, 1, 1, 1)).chunk(times)
        masks = reach.chunk(times)
        mask = masks[0] * masks[-1]
        own = laplace_nll(errors[0], None if sigma is None else sigma[:, :1], mask)
        smooth = (depth.diff(dim=1).abs().mean() + depth.diff(dim=2).abs().mean()) / (
            c.depth_range[1] - c.depth_range[0]
        )
        shifted = (pose[1][:, :2] / c.shift).square().sum(1).mean() if c.shift else pose[1].sum()
        total = own + smooth_weight * smooth + c.shift_weight * shifted
        parts = {"own": float(own.detach()), "smooth": float(smooth.detach()), "reach": float(mask.mean())}
        parts["shift"] = float(shifted.detach())
        if both:
            mirrored = laplace_nll(errors[1], None if sigma is None else sigma[:, 1:], mask)
            total = total + c.flip_weight * mirrored
            parts["mirrored"] = float(mirrored.detach())
        parts["l1"] = float((errors[0].detach().abs() * mask).sum() / mask.sum().clamp_min(1) / 6)
        return total, parts

    @torch.no_grad()
    def explained(self, images: Tensor) -> Explanation:
        """(B, 3, H, W) in [0, 1] to what explains them; pictures are resized to the side that the method works at."""
        pictures = self.squares(images) * 2 - 1
        depth = self.canonical_depth(pictures)[:, None]
        depth = functional.interpolate(depth, pictures.shape[-2:], mode="bicubic", align_corners=False)[:, 0]
        albedo = self.albedo_net(pictures).float().tanh() / 2 + 0.5
        rotation, shift = self.pose(pictures)
        shading = self.shade(normals_of_depth(depth, self.config.fov_rad), self.light_net(pictures).float())
        seen, reach, view_depth = self.see(albedo * shading, depth, rotation, shift)
        return Explanation(depth, albedo, shading, rotation, shift, (seen * reach).clamp(0, 1), view_depth)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Shapes:
        """(B, 3, H, W) in [0, 1] to open surfaces (one depth per pixel of the canonical view) with their albedo as texture."""
        found = self.explained(images)
        px = self.px
        points = found.depth[:, None] * rays(px, px, self.config.fov_rad, found.depth)
        points = points.flatten(2).mT + points.new_tensor([0.0, 0.0, 1.0])
        line = (torch.arange(px) + 0.5) / px
        uv = torch.stack([line.repeat(px), line.repeat_interleave(px)], 1)
        position = found.shift + found.shift.new_tensor([0.0, 0.0, -1.0])
        fov = torch.full((len(points),), self.config.fov_rad)
        return Shapes(
            points, grid_faces(px, px), uv, found.albedo, found.rotation, position, fov, found.view_depth, found.image
        )

    @torch.no_grad()
    def viewpoint(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to rotations (B, 3, 3) from the canonical frame to the camera's."""
        return self.pose(self.squares(images) * 2 - 1)[0]

    def squares(self, images: Tensor) -> Tensor:
        """Pictures resized to the square that the networks were trained on, and cut out of it as they were."""
        side = (self.image_px, self.image_px)
        if tuple(images.shape[-2:]) != side:
            images = functional.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)
        return self.middle(images).clamp(0, 1)

    def middle(self, images: Tensor) -> Tensor:
        """(..., S, S) to the middle that is looked at."""
        rim = (self.image_px - self.px) // 2
        return images[..., rim : rim + self.px, rim : rim + self.px]

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """SIDE and MAD in the picture's view, errors of azimuth and rotation; baselines: plane, mean true depth, constant, untrained."""
        views = known_views(data)
        if views is None:
            return {}
        found, fresh = (self.answers(method, data.test) for method in (self, self.untrained(data.seed)))
        rotations = np.stack([view.rotation for view in views])
        scores = azimuth_scores(azimuth_of(found[0]), azimuth_of(rotations)) | rotation_scores(found[0], rotations)
        rivals = {
            "azimuth_median_deg": azimuth_scores(azimuth_of(fresh[0]), azimuth_of(rotations))[
                "azimuth_median_deg"
            ].value
        }
        depths = [view.depth for view in views if view.depth is not None]
        if len(depths) == len(views):
            true = self.middle(torch.from_numpy(at_size(np.stack(depths), self.image_px))).numpy()
            scores |= depth_scores(found[1], true, self.config.fov_rad)
            other = depth_scores(fresh[1], true, self.config.fov_rad)
            rivals |= {name: other[name].value for name in ("side", "mad_deg")}
        for name, value in rivals.items():
            scores[name].baselines["untrained"] = value
        return scores

    @staticmethod
    def answers(method: Any, test: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Rotations (N, 3, 3) and depths (N, S, S) of all pictures of an EvalSet."""
        rotations, depths = [], []
        for rows in np.array_split(np.arange(len(test)), -(-len(test) // 64)):
            found = method.explained(test.images.batch(rows).float() / 255)
            rotations.append(found.rotation.numpy())
            depths.append(found.view_depth.numpy())
        return np.concatenate(rotations), np.concatenate(depths)

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Rows: picture, explanation, albedo, shading, normals of the canonical view, and the object from three azimuths."""
        images = self.squares(images[:12])
        found = self.explained(images)
        normals = normals_of_depth(found.depth, self.config.fov_rad) / 2 + 0.5
        rows = [images, found.image, found.albedo, found.shading.expand(-1, 3, -1, -1).clamp(0, 1), normals]
        for turn in (-0.6, 0.0, 0.6):
            angle = torch.full((len(images),), turn)
            rotation = rotation_from_angles(angle, torch.zeros_like(angle), torch.zeros_like(angle))
            seen, reach, _ = self.see(found.albedo * found.shading, found.depth, rotation, torch.zeros(len(images), 3))
            rows.append(seen * reach + (1 - reach))
        sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1).clamp(0, 1)
        sheet = sheet.repeat_interleave(3, 1).repeat_interleave(3, 2)
        return {"shapes": (sheet.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()}
