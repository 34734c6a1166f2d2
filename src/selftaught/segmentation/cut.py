"""What LOST, TokenCut and Deep Spectral share: patch features in, one object mask per picture out, no training.

A subclass gives `cut`, the rule from patch features to patch masks; here are the checks of the features, the walk
through a batch, the way back to pixels, the optional bilateral solver, and the pictures to look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError
from selftaught.measure.mask_scores import segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import EvalData, Method, Picture, TrainConfig
from selftaught.nets.bilateral import follow_edges, refine
from selftaught.nets.components import largest_component, patch_boxes_px

_GRAPH_BYTES = 256 * 2**20
"""Largest total of the affinity matrices that are in memory at once."""
TAME = (1e-12, 1e15)
"""Rows of lengths between these have squares, and sums of them, that float32 holds with all its digits."""
_OBJECT_RGB = (0.95, 0.25, 0.1)


@dataclass(frozen=True)
class CutConfig(TrainConfig):
    """What every cut has; nothing is trained, so `steps` is 0."""

    steps: int = 0
    """Optimiser steps in all; a cut has none."""
    batch_size: int = 32
    """Pictures per call of the features."""
    centre: bool = False
    """Take away what all patches of a picture share: features of small networks resemble each other everywhere."""
    max_patches: int = 8100
    """Most patches per picture; N patches need a matrix of 4 N^2 bytes (262 MB for 8,100)."""
    refine: Literal["none", "bilateral"] = "none"
    """What sharpens the patch mask: nothing, or the bilateral solver, which follows the colours of the picture."""
    sigma_space_px: float = 16.0
    """Cell side of the bilateral grid in pixels."""
    sigma_luma: float = 16.0
    """Cell side of the bilateral grid in grey levels of brightness."""
    sigma_chroma: float = 8.0
    """Cell side of the bilateral grid in grey levels of colour."""
    min_iou: float = 0.5
    """The solver's mask is kept only if its IoU with the patch mask is above this."""
    threads: int = 2
    """Threads of the bilateral solver."""

    def __post_init__(self) -> None:
        if self.max_patches < 2 or self.batch_size < 1 or self.threads < 1:
            raise ValueError("max_patches must be at least 2, batch_size and threads at least 1")
        if min(self.sigma_space_px, self.sigma_luma, self.sigma_chroma) <= 0:
            raise ValueError("sigma_space_px, sigma_luma and sigma_chroma must be positive")
        if not 0.0 <= self.min_iou <= 1.0:
            raise ValueError("min_iou must be in [0, 1]")


def centred(maps: Tensor) -> Tensor:
    """(B, D, h, w) patch features without what all patches of a picture share: it says nothing about which belong together.

    Patches of which nothing is left (all of them, in a blank picture) get one direction in common, since a cut needs some.
    """
    rest = maps - maps.mean((2, 3), keepdim=True)
    return torch.where((rest == 0).all(1, keepdim=True), torch.full_like(rest, 1e-6), rest)


def key_rows(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn patch features (B, D, h, w) into rows (B, h*w, D) float32, refusing what no affinity is defined for.

    Returns the rows, the rows scaled to length 1, and their lengths (B, h*w, 1). Raises ConfigError for a wrong shape,
    NumericError for NaN, infinity, or a patch whose features are all zero.
    """
    if keys.dim() != 4 or keys.shape[1] == 0 or not keys.is_floating_point():
        raise ConfigError(f"The features are {keys.dtype} of shape {tuple(keys.shape)}.", expected="float (B, D, h, w)")
    if keys.shape[2] * keys.shape[3] < 2:
        raise ConfigError(
            f"The features have {keys.shape[2]} x {keys.shape[3]} patches, and one patch cannot be cut.",
            expected="at least two patches",
            do="Give larger pictures, or features with smaller patches.",
        )
    rows = keys.detach().flatten(2).transpose(1, 2).float().contiguous()
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    if bool(((length > TAME[0]) & (length < TAME[1])).all()):
        return rows, rows / length, length
    largest = rows.abs().amax(-1, keepdim=True)  # NaN where any feature is
    finite = torch.isfinite(largest).flatten(1).all(1)
    if not bool(finite.all()):
        raise NumericError(f"The features of picture {int((~finite).nonzero()[0])} hold NaN or infinite values.")
    zero = (largest == 0).flatten(1).any(1)
    if bool(zero.any()):
        raise NumericError(
            f"A patch of picture {int(zero.nonzero()[0])} has features that are all zero.",
            why="such a patch resembles nothing, not even itself",
        )
    unit = rows / largest
    relative = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    return rows, unit / relative, relative * largest


def unit_rows(keys: Tensor) -> Tensor:
    """The rows of `key_rows`, each scaled to length 1, whatever its length was."""
    return key_rows(keys)[1]


def graph_slices(batch: int, patches: int) -> Iterator[slice]:
    """Cut a batch so that the affinity matrices (4 N^2 bytes each) of a part fit the memory set aside for them."""
    at_once = max(1, _GRAPH_BYTES // (4 * patches * patches))
    for start in range(0, batch, at_once):
        yield slice(start, min(start + at_once, batch))


class CutMethod(Method):
    """A rule from patch features to one object per picture; subclasses give `cut`."""

    needs: ClassVar[Mapping[str, str]] = {"features": "simclr"}
    capabilities: ClassVar[tuple[str, ...]] = ("segment",)
    config: CutConfig

    def __init__(self, config: TrainConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        # A cut has `features` too (those it was given), but sees no picture size of its own.
        if not callable(getattr(self.features, "features", None)) or not hasattr(self.features, "image_px"):
            raise ConfigError(f"{self.name} needs patch features.", expected="a method with the capability `embed`")

    @property
    def features(self) -> Any:
        """The learned features; a property, so that they stay outside of the module tree."""
        return self.given["features"]

    def cut(self, keys: Tensor, images: Tensor) -> Tensor:
        """(B, D, h, w) patch features and the (B, 3, S, S) pictures they are of to (B, h, w) boolean masks."""
        raise NotImplementedError

    @torch.no_grad()
    def patch_masks(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to boolean masks (B, h, w) on the grid of the features' patches."""
        return torch.cat([self.cut(keys, part) for keys, part in self.keyed(images)])

    def keyed(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Patch features (b, D, h, w) and the resized pictures that they are of, part by part of (B, 3, H, W) in [0, 1]."""
        _check_images(images)
        side = int(self.features.image_px)
        for part in images.split(self.config.batch_size):
            if part.shape[-2:] != (side, side):
                part = F.interpolate(part, (side, side), mode="bilinear", antialias=True).clamp(0.0, 1.0)
            keys = self.features.features(part)
            patches = keys.shape[-2] * keys.shape[-1]
            if patches > self.config.max_patches:
                raise ConfigError(
                    f"A picture has {patches} patches, max_patches is {self.config.max_patches}.",
                    why=f"the graph needs {4 * patches * patches / 2**20:.0f} MB",
                    do="Raise max_patches, or use features of smaller pictures.",
                )
            yield centred(keys) if self.config.centre else keys, part

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to masks (B, H, W) in [0, 1]: 0 or 1, or soft where the bilateral solver is used."""
        coarse = self.patch_masks(images)
        masks = F.interpolate(coarse[:, None].float(), images.shape[-2:], mode="nearest")[:, 0]
        return self._refined(images, masks) if self.config.refine == "bilateral" else masks

    def boxes(self, images: Tensor) -> Tensor:
        """(B, 4) float boxes (x0, y0, x1, y1) in pixels of (B, 3, H, W) pictures around each object's largest piece."""
        masks = self.patch_masks(images)
        height, width = masks.shape[1:]
        scale = torch.tensor([images.shape[-1] / width, images.shape[-2] / height] * 2, device=masks.device)
        return patch_boxes_px(largest_component(masks), 1, width, height) * scale

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Mask scores against no learning and against the same cut on the untrained features."""
        same = type(self)(self.config, {**self.given, "features": self.features.untrained(data.seed)})
        return segmentation_scores(self, data, {"untrained_cut": same})

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Draw the pictures (at most eight) above the same with the object's rim and everything else dimmed."""
        shown = images[:8].detach().cpu()
        masks = self.segment(images[:8]).cpu()
        rows = [
            torch.cat(list(shown), dim=2),
            torch.cat([overlay(*pair) for pair in zip(shown, masks, strict=True)], 2),
        ]
        sheet = torch.cat(rows, dim=1).mul(255).round().clamp(0, 255).to(torch.uint8)
        return {"objects": sheet.permute(1, 2, 0).contiguous().numpy()}

    def _refined(self, images: Tensor, masks: Tensor) -> Tensor:
        c = self.config
        solved = follow_edges(
            images,
            masks,
            sigma_space_px=c.sigma_space_px,
            sigma_luma=c.sigma_luma,
            sigma_chroma=c.sigma_chroma,
            threads=c.threads,
        )
        pairs = zip(solved.cpu().numpy().astype(np.float64), masks.cpu().numpy().astype(np.float64), strict=True)
        kept = [refine(soft, mask, c.min_iou)[0] for soft, mask in pairs]
        return torch.from_numpy(np.stack(kept)).to(masks)


def overlay(image: Tensor, mask: Tensor) -> Tensor:
    """(3, H, W) picture in [0, 1] with what lies outside the mask (H, W) darkened and the object's rim coloured."""
    inside = mask > 0.5
    padded = F.pad(inside.float()[None, None], (1, 1, 1, 1), mode="replicate")
    rim = inside & (-F.max_pool2d(-padded, 3, stride=1)[0, 0] < 0.5)
    dimmed = image * (0.35 + 0.65 * mask.clamp(0.0, 1.0))
    return torch.where(rim, image.new_tensor(_OBJECT_RGB)[:, None, None], dimmed)


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.shape[0] == 0:
        raise ConfigError(
            f"The pictures are {images.dtype} of shape {tuple(images.shape)}.",
            expected="float (B, 3, H, W) in [0, 1], at least one",
        )
