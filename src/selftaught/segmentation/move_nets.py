"""The two networks of MOVE: the segmenter's head on frozen features, which a file keeps, and the discriminator on features or pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.atomic import replacing
from selftaught.data.npy import read_kept
from selftaught.nets.discriminators import (
    PatchDiscriminator,
    PixelDiscriminator,
    PlaceDiscriminator,
    ProjectedDiscriminator,
)
from selftaught.segmentation.border import colour_contrast, feature_contrast

IMAGENET = "tf_efficientnet_lite0"
"""The network that the published discriminator reads its features from; learned with the labels of ImageNet."""
ON_PIXELS: dict[str, type[PixelDiscriminator] | type[PatchDiscriminator] | type[PlaceDiscriminator]] = {
    "pixels": PixelDiscriminator, "patches": PatchDiscriminator, "places": PlaceDiscriminator
}  # fmt: skip


def block(channels: int, out: int, bias: bool = True) -> nn.Sequential:
    """3x3 convolution, batch norm, leaky ReLU (0.01)."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, 1, 1, bias=bias), nn.BatchNorm2d(out), nn.LeakyReLU(0.01))


class SegmenterHead(nn.Module):
    """Patch features to one mask at the size of the picture.

    LayerNorm over channels; per factor of two of the patch size: nearest enlargement, `block`; one more `block`; a 1x1 convolution.
    Widths are max(least, E / 2^(i+1)). For E = 384 and patches of 8 px that is 192, 128, 128, 128 (MOVE's layers).

    Args:
        width: channels E of the features.
        patch_px: side of a patch, a power of two.
        least: smallest width.
        reduce: channels to which a 1x1 convolution brings the features first; 0 leaves them.
        shallow: channels of a convolution on the pixels whose output joins the last block; 0 has none.
        stride: pixels per value of the mask that is predicted, a power of two; it is then enlarged bilinearly.
        rim: join to the last block how much features and colours differ from those of the picture's own rim. Small networks do not learn
            such comparisons within a picture by themselves, and without them know pictures by heart.
        cues: channels at the size of the picture that are given at each call and join the features and the last block, each averaged.
    """

    def __init__(
        self, width: int, patch_px: int, least: int, reduce: int = 0, shallow: int = 0, stride: int = 1, rim: bool = False, cues: int = 0
    ):
        super().__init__()
        steps = max(patch_px // max(stride, 1), 1).bit_length() - 1
        if stride < 1 or stride * 2**steps != patch_px:
            raise ValueError(
                f"the segmenter enlarges by factors of two: patches of {patch_px} px do not become a mask of stride {stride}"
            )
        self.stride, self.patch_px, self.rim = stride, patch_px, rim
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.enter = nn.Conv2d(width, reduce, 1) if reduce else nn.Identity()
        channels = (reduce or width) + cues
        widths = [max(least, int(channels * 0.5 ** (i + 1))) for i in range(steps + 1)]
        self.up = nn.ModuleList([block(a, b) for a, b in zip([channels, *widths][: len(widths) - 1], widths[:-1], strict=True)])
        self.shallow = block(3, shallow) if shallow else None
        self.last = block(([channels, *widths])[-2] + shallow + 2 * rim + cues, widths[-1])
        self.leave = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, maps: Tensor, pictures: Tensor, cues: Tensor | None = None) -> Tensor:
        """(B, E, h, w) features of (B, 3, S, S) pictures in [0, 1], and cues (B, C, S, S), to mask logits (B, 1, S, S) in float32."""
        x = self.enter(self.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        if cues is not None:
            x = torch.cat([x, nn.functional.adaptive_avg_pool2d(cues, x.shape[-2:]).to(x.dtype)], 1)
        for layer in self.up:
            x = layer(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
        if self.shallow is not None:
            # The bf16 backward of a convolution with three input channels is many times slower than fp32 on CPUs.
            with torch.autocast(pictures.device.type, enabled=False):
                near = self.shallow(nn.functional.avg_pool2d(pictures.float(), self.stride) - 0.5)
            x = torch.cat([x, near.to(x.dtype)], 1)
        if self.rim:
            x = torch.cat([x, self.rims(maps, pictures, x.shape[-2:]).to(x.dtype)], 1)
        if cues is not None:
            x = torch.cat([x, nn.functional.avg_pool2d(cues, self.stride).to(x.dtype)], 1)
        logits = self.leave(self.last(x)).float()
        if self.stride > 1:
            logits = nn.functional.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)
        return logits

    @torch.no_grad()
    def rims(self, maps: Tensor, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        """Contrasts of features and of colours (at half a patch) to the rim, (B, 2, *size), each from 0 to 1 in every picture."""
        with torch.autocast(pictures.device.type, enabled=False):
            coarse = nn.functional.avg_pool2d(pictures.float(), max(self.patch_px // 2, 1))
            both = []
            for contrast in (feature_contrast(maps.float()), colour_contrast(coarse)):
                low, high = contrast.amin((1, 2), keepdim=True), contrast.amax((1, 2), keepdim=True)
                both.append(((contrast - low) / (high - low).clamp(min=1e-6))[:, None])
            return torch.cat([nn.functional.interpolate(c, tuple(size), mode="bilinear", align_corners=False) for c in both], 1)


def frozen_maps(encoder: Any, pictures: Tensor, layer: str) -> Tensor:
    """Patch features (B, E, h, w) of (B, 3, S, S) pictures: the keys that segment best, or the block before the last one."""
    return (encoder.keys(pictures) if layer == "keys" else encoder.levels(pictures, [-2])[0]).float()


def feature_file(
    path: Path, images: Any, make: Any, limit_mb: int, say: Any, batch_size: int = 64
) -> np.ndarray[Any, Any] | None:
    """Features (N, E, h, w) float16 of all cached pictures as a memory map, from `path` when it is there and fits, made otherwise.

    `make` turns (B, 3, S, S) pictures in [0, 1] into (B, E, h, w). Returns None when they need more than `limit_mb`.
    """
    kept = read_kept(path, (len(images), -1, -1, -1), np.float16, say, mapped=True)
    if kept is not None:
        return kept
    N = len(images)

    def batch(start: int) -> np.ndarray[Any, Any]:
        pictures = images.batch(np.arange(start, min(start + batch_size, N))).float() / 255
        return make(pictures).clamp(-6e4, 6e4).numpy().astype(np.float16)

    first = batch(0)
    if N * first[0].nbytes > limit_mb * 2**20:
        say(f"features of {N} pictures need more than {limit_mb} MB and are computed at each step")
        return None
    with replacing(path) as temp, open(temp, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (N, *first.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, N, batch_size):
            file.write((batch(start) if start else first).tobytes())
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Judge(nn.Module):
    """A discriminator: (B, 3, S, S) pictures in [0, 1] to logits, on pixels or on a pyramid of frozen features.

    The frozen network is given at each call and lies outside of the module, except for the labelled one, which nobody else has.
    """

    def __init__(self, kind: str, width: int, px: int, encoder: Any, enlarge: bool = False):
        super().__init__()
        self.kind, self.px = kind, px
        self.labelled = labelled_network() if kind == "imagenet" else None
        if kind in ON_PIXELS and px < ON_PIXELS[kind].LEAST_PX:
            raise ValueError(f"discriminator={kind} needs pictures of {ON_PIXELS[kind].LEAST_PX} px, got {px}")
        if kind in ON_PIXELS:
            self.net: nn.Module = ON_PIXELS[kind](width)
            return
        with torch.no_grad(), torch.device("cpu"):  # numbers are needed even where the weights are built without memory
            maps = self.maps(torch.zeros(1, 3, px, px), encoder)
        channels, sizes = [m.shape[1] for m in maps], [min(m.shape[-2:]) for m in maps]
        self.net = ProjectedDiscriminator(channels, sizes, width, enlarge)

    def maps(self, pictures: Tensor, encoder: Any) -> list[Tensor]:
        """The pyramid of frozen features, finest first."""
        if self.labelled is None:
            return encoder.pyramid(pictures)
        return list(self.labelled(encoder.normalise(pictures)))[-4:]

    def forward(self, pictures: Tensor, encoder: Any) -> Tensor:
        if pictures.shape[-1] != self.px:
            pictures = nn.functional.interpolate(pictures, (self.px, self.px), mode="bilinear", antialias=True)
        return self.net(pictures if self.kind in ON_PIXELS else self.maps(pictures, encoder))


def labelled_network() -> nn.Module:
    """EfficientNet-lite0 as a frozen pyramid, with random weights until published ones are loaded."""
    from selftaught.nets.torchvision_ops import make_torchvision_importable

    make_torchvision_importable()
    import timm

    return timm.create_model(IMAGENET, pretrained=False, features_only=True).eval().requires_grad_(False)
