"""Random views of whole batches of images, for every method that learns from two or more views of a picture.

All random numbers are drawn on the CPU, in one fixed order and a number that depends on the batch size alone, so the
same seed gives the same views on every device and changing one probability leaves all other choices as they were.
The pixels are worked on by `selftaught.data.image_ops`, whose functions can be imported from here as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.core import draws
from selftaught.data.image_ops import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    SOLARIZE_THRESHOLD,
    blur_,
    check_kernel,
    check_rows,
    color_jitter,
    crop_resize,
    gaussian_blur,
    grayscale,
    grayscale_,
    hflip,
    jitter_,
    require,
    resample,
    solarize,
    solarize_,
    to_float,
)

__all__ = [
    "BRIGHTNESS",
    "CONTRAST",
    "HUE",
    "SATURATION",
    "SOLARIZE_THRESHOLD",
    "ViewConfig",
    "ViewParams",
    "apply_view",
    "augment",
    "color_jitter",
    "crop_resize",
    "dino_global",
    "dino_local",
    "draw_view",
    "gaussian_blur",
    "grayscale",
    "hflip",
    "multi_crop",
    "plain_view",
    "random_resized_crop_params",
    "simclr_view",
    "solarize",
]

_TRIES = 10


@dataclass(frozen=True)
class ViewConfig:
    """How one random view of an image is made; the operations run in the order of the fields."""

    out_px: int
    """Side of the square view in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the picture's area that the crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width divided by height of the crop."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    brightness: float = 0.0
    """Brightness is multiplied by a factor from 1-x to 1+x."""
    contrast: float = 0.0
    """Distance to the mean grey is multiplied by a factor from 1-x to 1+x."""
    saturation: float = 0.0
    """Distance to the pixel's grey is multiplied by a factor from 1-x to 1+x."""
    hue: float = 0.0
    """Hue is shifted by -x to x of the colour circle; at most 0.5."""
    jitter_prob: float = 0.8
    """Probability of brightness, contrast, saturation and hue changes, in an order drawn per sample."""
    gray_prob: float = 0.0
    """Probability that the view loses its colours."""
    blur_prob: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur in pixels of the view."""
    blur_kernel_px: int = 0
    """Odd width of the blur kernel; 0 takes 10 % of out_px, made odd (23 at 224, as in SimCLR)."""
    solarize_prob: float = 0.0
    """Probability that pixels of 128/255 and brighter are inverted."""

    def __post_init__(self) -> None:
        """Refuse values that no view can be made with (ValueError)."""
        require(self.out_px >= 1, f"out_px must be at least 1, not {self.out_px}")
        require(0 < self.scale[0] <= self.scale[1] <= 1, f"scale must be 0 < low <= high <= 1, not {self.scale}")
        require(0 < self.ratio[0] <= self.ratio[1], f"ratio must be 0 < low <= high, not {self.ratio}")
        require(0 < self.blur_sigma[0] <= self.blur_sigma[1], f"blur_sigma must be 0 < low <= high: {self.blur_sigma}")
        require(0 <= self.hue <= 0.5, f"hue must lie in [0, 0.5], not {self.hue}")
        for name in ("brightness", "contrast", "saturation"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("flip", "jitter_prob", "gray_prob", "blur_prob", "solarize_prob"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.blur_prob > 0:
            check_kernel(self.kernel_px, self.out_px, self.out_px)

    @property
    def kernel_px(self) -> int:
        """Width of the blur kernel in pixels, odd."""
        return self.blur_kernel_px or 2 * (self.out_px // 20) + 1

    @property
    def jitters(self) -> bool:
        """Whether any colour operation can change anything."""
        return self.jitter_prob > 0 and max(self.brightness, self.contrast, self.saturation, self.hue) > 0


@dataclass(frozen=True)
class ViewParams:
    """The random choices of one view of B images, all on the CPU; `apply_view` needs nothing else to be random."""

    boxes: Tensor
    """(B,4) float: top, left, height, width of the crop in pixels of the image; whole numbers."""
    flip: Tensor
    """(B,) bool."""
    jitter: Tensor
    """(B,) bool."""
    order: Tensor
    """(B,4) int64: the colour operations of each sample, first to last."""
    factors: Tensor
    """(B,4) float: brightness, contrast and saturation factor and hue shift."""
    gray: Tensor
    """(B,) bool."""
    blur: Tensor
    """(B,) bool."""
    sigma: Tensor
    """(B,) float: standard deviation of the blur in pixels of the view."""
    solarize: Tensor
    """(B,) bool."""


def simclr_view(
    out_px: int, strength: float = 0.5, blur: bool | None = None, scale: tuple[float, float] = (0.08, 1.0)
) -> ViewConfig:
    """Return SimCLR's view: crop, flip, jitter of the given strength (p .8), grey (p .2), blur (p .5).

    strength 1 is the paper's ImageNet setting, 0.5 its CIFAR setting; blur=None blurs above 48 px only.
    Source: Chen et al., A Simple Framework for Contrastive Learning, 2020, appendix A.
    """
    return ViewConfig(
        out_px=out_px,
        scale=scale,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        gray_prob=0.2,
        blur_prob=0.5 if _blurs(blur, out_px) else 0.0,
    )


def dino_global(
    out_px: int, second: bool = False, blur: bool | None = None, scale: tuple[float, float] = (0.4, 1.0)
) -> ViewConfig:
    """Return DINO's large crop; the first is always blurred, the second with p .1 and solarized with p .2.

    blur=None blurs above 48 px only. The paper resizes bicubically, this is bilinear.
    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, and its code's defaults.
    """
    return ViewConfig(
        out_px=out_px,
        scale=scale,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        gray_prob=0.2,
        blur_prob=(0.1 if second else 1.0) if _blurs(blur, out_px) else 0.0,
        solarize_prob=0.2 if second else 0.0,
    )


def dino_local(out_px: int, blur: bool | None = None, scale: tuple[float, float] = (0.05, 0.4)) -> ViewConfig:
    """Return DINO's small crop (blur p .5 above 48 px or when blur=True); source as `dino_global`."""
    return ViewConfig(
        out_px=out_px,
        scale=scale,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        gray_prob=0.2,
        blur_prob=0.5 if _blurs(blur, out_px) else 0.0,
    )


def plain_view(out_px: int, scale: tuple[float, float] = (0.4, 1.0)) -> ViewConfig:
    """Return a view that is only cropped and flipped, as for masked autoencoders."""
    return ViewConfig(out_px=out_px, scale=scale, jitter_prob=0.0)


def augment(images: Tensor, view: ViewConfig, generator: torch.Generator | None = None) -> Tensor:
    """Return one random view of every image.

    images: (B,3,H,W) uint8, or float in [0,1]. Returns float32 (B,3,out_px,out_px) in [0,1].
    generator: a CPU generator; None draws from torch's global one.
    Errors: ValueError for another shape, type or range.
    """
    pixels = to_float(images)
    batch, _, height, width = pixels.shape
    return _apply(pixels, view, draw_view(batch, height, width, view, generator))


def multi_crop(images: Tensor, views: Sequence[ViewConfig], generator: torch.Generator | None = None) -> list[Tensor]:
    """Return one batch of random views per config, as `augment` would one after the other (DINO, SwAV).

    Several crops of one size may share a ViewConfig by repeating it. Errors as `augment`.
    """
    pixels = to_float(images)
    batch, _, height, width = pixels.shape
    return [_apply(pixels, view, draw_view(batch, height, width, view, generator)) for view in views]


def apply_view(images: Tensor, view: ViewConfig, params: ViewParams) -> Tensor:
    """Make the view that `params` describes: shapes, ranges and errors as `augment`, nothing random."""
    pixels = to_float(images)
    check_rows(len(pixels), boxes=params.boxes, flip=params.flip, order=params.order, sigma=params.sigma)
    return _apply(pixels, view, params)


def draw_view(
    batch: int, height: int, width: int, view: ViewConfig, generator: torch.Generator | None = None
) -> ViewParams:
    """Draw the random choices of one view of `batch` images of height x width pixels (two draws of uniforms)."""
    boxes = random_resized_crop_params(batch, height, width, view.scale, view.ratio, generator)
    u = draws.rand(14, batch, rows=1, generator=generator)
    spread = torch.tensor([view.brightness, view.contrast, view.saturation, view.hue])
    low = torch.tensor([1.0, 1.0, 1.0, 0.0]) - spread
    low[:HUE].clamp_(min=0.0)
    high = torch.tensor([1.0, 1.0, 1.0, 0.0]) + spread
    return ViewParams(
        boxes=boxes,
        flip=u[0] < view.flip,
        jitter=u[1] < (view.jitter_prob if view.jitters else 0.0),
        order=u[2:6].t().argsort(dim=1),
        factors=low + (high - low) * u[6:10].t(),
        gray=u[10] < view.gray_prob,
        blur=u[11] < view.blur_prob,
        sigma=view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * u[12],
        solarize=u[13] < view.solarize_prob,
    )


def random_resized_crop_params(
    batch: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw crops as torchvision's RandomResizedCrop does: ten tries of area and shape, else the centre.

    scale: share of the area, uniform. ratio: width / height, log-uniform. Sides are rounded to whole pixels.
    Returns (batch,4) float: top, left, height, width in pixels, whole numbers inside the image.
    Errors: ValueError for an image without pixels.
    """
    require(height >= 1 and width >= 1, f"the image must have pixels, not {height} x {width}")
    u = draws.rand(2 * _TRIES + 2, batch, rows=1, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:_TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = (low + (high - low) * u[_TRIES : 2 * _TRIES]).exp()
    w = (area * shape).sqrt().round()
    h = (area / shape).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    # argmax of booleans as integers is the first try that fits
    first = fits.int().argmax(dim=0, keepdim=True)
    fallback = ~fits.any(dim=0)
    whole_h, whole_w = _fallback_size(height, width, ratio)
    w = w.gather(0, first)[0].masked_fill(fallback, whole_w)
    h = h.gather(0, first)[0].masked_fill(fallback, whole_h)
    top = torch.minimum((u[-2] * (height - h + 1)).floor(), height - h)
    left = torch.minimum((u[-1] * (width - w + 1)).floor(), width - w)
    top = top.masked_fill(fallback, (height - whole_h) // 2)
    left = left.masked_fill(fallback, (width - whole_w) // 2)
    return torch.stack([top, left, h, w], dim=1).float()


def _apply(pixels: Tensor, view: ViewConfig, params: ViewParams) -> Tensor:
    out = resample(pixels, params.boxes, view.out_px, True, params.flip)
    jitter_(out, params.order, params.factors, params.jitter)
    grayscale_(out, params.gray)
    blur_(out, params.sigma, view.kernel_px, params.blur)
    solarize_(out, SOLARIZE_THRESHOLD, params.solarize)
    return out.clamp_(0.0, 1.0)


def _fallback_size(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    if width / height < min(ratio):
        return round(width / min(ratio)), width
    if width / height > max(ratio):
        return height, round(height * max(ratio))
    return height, width


def _blurs(blur: bool | None, out_px: int) -> bool:
    return out_px > 48 if blur is None else blur
