"""Image operations on whole batches, with parameters of each sample's own: crop, flip, colours, blur, solarize.

The functions without a trailing underscore take uint8 or float images (B,3,H,W), check them, and return new float32
images in [0,1]. Those with one, and `resample`, are their kernels: float32 pixels, unchecked, changed in place.
All agree with `torchvision.transforms.v2.functional` on float images for the same parameters: crops to 1e-5, colours
and blur to 5e-6, the rest exactly. Unlike torchvision on uint8 images nothing is rounded in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (torchvision's, after ITU-R BT.601)."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0, 1, 2, 3
"""Numbers of the four colour operations in an `order`, as in torchvision's ColorJitter."""

SOLARIZE_THRESHOLD = 128 / 255
"""Pixels at or above this value are inverted by the solarize of BYOL and DINO."""

_RANGE_SLACK = 1e-3


def crop_resize(
    images: Tensor,
    boxes: Tensor,
    out_px: int | tuple[int, int],
    antialias: bool = True,
    flip: Tensor | None = None,
) -> Tensor:
    """Cut one box out of every image and resize it bilinearly, as torchvision's resized_crop does.

    images: (B,3,H,W). boxes: (B,4) top, left, height, width in pixels, inside the image, sides >= 1; fractions are
    allowed, then the pixels whose centre lies in the box are used. out_px: side, or (height, width), of the result.
    flip: (B,) bool, left-right flip afterwards at no cost. Returns float32 (B,3,out,out) in [0,1].
    Resampling is separable: two matrix products per sample with the weights of the (antialiased) triangle filter.
    Errors: ValueError for wrong shapes or a box outside the image.
    """
    pixels = to_float(images)
    check_rows(len(pixels), boxes=boxes)
    if flip is not None:
        check_rows(len(pixels), flip=flip)
    return resample(pixels, boxes, out_px, antialias, flip)


def hflip(images: Tensor, flags: Tensor) -> Tensor:
    """Flip left-right the images whose flag (B,) is true."""
    pixels = to_float(images)
    check_rows(len(pixels), flags=flags)
    return torch.where(flags.to(pixels.device).bool().view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def color_jitter(
    images: Tensor,
    order: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    flags: Tensor | None = None,
) -> Tensor:
    """Change brightness, contrast, saturation and hue with torchvision's formulas, in an order of each sample's own.

    images: (B,3,H,W). order: (B,4) or (4,) permutations of BRIGHTNESS, CONTRAST, SATURATION, HUE, first to last.
    brightness, contrast, saturation: (B,) factors >= 0, 1 changes nothing. hue: (B,) shift in [-0.5, 0.5] of the
    colour circle. flags: (B,) bool, which samples change; None changes all. Returns float32 (B,3,H,W) in [0,1].
    Errors: ValueError for wrong shapes, an order that is no permutation, or factors out of range.
    """
    pixels = to_float(images, copy=True)
    batch = len(pixels)
    order = order.expand(batch, 4) if order.ndim == 1 else order
    flags = torch.ones(batch, dtype=torch.bool) if flags is None else flags
    check_rows(batch, order=order, flags=flags)
    check_rows(batch, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    factors = torch.stack([part.detach().float().cpu() for part in (brightness, contrast, saturation, hue)], dim=1)
    order = order.cpu()
    require(torch.equal(order.sort(dim=1).values, torch.arange(4).expand(batch, 4)), "order must permute 0, 1, 2, 3")
    require(bool((factors[:, :HUE] >= 0).all()), "brightness, contrast and saturation factors must not be negative")
    require(bool((factors[:, HUE].abs() <= 0.5).all()), "hue must lie in [-0.5, 0.5]")
    return jitter_(pixels, order, factors, flags.cpu())


def grayscale(images: Tensor, flags: Tensor) -> Tensor:
    """Replace the colours of the images whose flag (B,) is true by their grey value, in three equal channels."""
    pixels = to_float(images, copy=True)
    check_rows(len(pixels), flags=flags)
    return grayscale_(pixels, flags)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_px: int, flags: Tensor | None = None) -> Tensor:
    """Blur every image with its own standard deviation, as torchvision's gaussian_blur (borders reflected).

    sigma: (B,) > 0 in pixels. kernel_px: odd width of the kernel, of half width below H and W. flags: (B,) bool,
    which samples are blurred; None blurs all. Errors: ValueError.
    """
    pixels = to_float(images, copy=True)
    check_rows(len(pixels), sigma=sigma)
    check_kernel(kernel_px, pixels.shape[2], pixels.shape[3])
    require(bool((sigma > 0).all()), "sigma must be positive")
    flags = torch.ones(len(pixels), dtype=torch.bool) if flags is None else flags
    check_rows(len(pixels), flags=flags)
    return blur_(pixels, sigma, kernel_px, flags)


def solarize(images: Tensor, threshold: float, flags: Tensor) -> Tensor:
    """Invert the pixel values at or above `threshold` (in [0,1]) in the images whose flag (B,) is true."""
    pixels = to_float(images, copy=True)
    check_rows(len(pixels), flags=flags)
    require(0 <= threshold <= 1, f"threshold must lie in [0, 1], not {threshold}")
    return solarize_(pixels, threshold, flags)


def resample(
    pixels: Tensor, boxes: Tensor, out_px: int | tuple[int, int], antialias: bool, flip: Tensor | None
) -> Tensor:
    batch, _, height, width = pixels.shape
    out_h, out_w = (out_px, out_px) if isinstance(out_px, int) else out_px
    require(out_h >= 1 and out_w >= 1, f"out_px must be at least 1, not {out_px}")
    require(boxes.shape == (batch, 4), f"boxes must have shape ({batch}, 4), not {tuple(boxes.shape)}")
    top, left, h, w = boxes.to(pixels.device, torch.float32).unbind(dim=1)
    inside = (top >= 0) & (left >= 0) & (h >= 1) & (w >= 1) & (top + h <= height) & (left + w <= width)
    require(bool(inside.all()), f"boxes must have sides of at least 1 px and lie inside {height} x {width}")
    rows = _resize_weights(top, h, height, out_h, antialias)
    columns = _resize_weights(left, w, width, out_w, antialias)
    if flip is not None:
        columns = torch.where(flip.to(columns.device).bool().view(-1, 1, 1), columns.flip(1), columns)
    return _separable(pixels, rows, columns)


def _separable(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ pixels @ columns^T per sample and channel: (B,C,H,W), (B,h,H), (B,w,W) -> (B,C,h,w)."""
    batch, channels, height, width = pixels.shape
    wide = torch.bmm(pixels.reshape(batch, channels * height, width), columns.transpose(1, 2))
    wide = wide.view(batch * channels, height, columns.shape[1])
    # repeating the small weights is faster than a broadcast product, which copies them as well
    return torch.bmm(rows.repeat_interleave(channels, 0), wide).view(batch, channels, rows.shape[1], columns.shape[1])


def _resize_weights(start: Tensor, length: Tensor, pixels: int, out: int, antialias: bool) -> Tensor:
    """Return (B,out,pixels) weights that resample [start, start+length) to `out` points, rows summing to 1."""
    scale = (length / out).view(-1, 1, 1)
    reach = scale.clamp(min=1.0) if antialias else torch.ones_like(scale)
    # positions relative to the crop, so that far crops lose no precision and sums equal torch's own
    source = (torch.arange(pixels, device=start.device) - start.view(-1, 1) + 0.5).unsqueeze(1)
    centre = (torch.arange(out, device=start.device) + 0.5).view(1, -1, 1) * scale
    weights = ((source - centre) / reach).abs_().neg_().add_(1.0).clamp_(min=0.0)
    weights.mul_((source >= 0) & (source < length.view(-1, 1, 1)))
    return weights.div_(weights.sum(dim=2, keepdim=True).clamp_(min=1e-12))


def jitter_(pixels: Tensor, order: Tensor, factors: Tensor, flags: Tensor) -> Tensor:
    """Jitter in place the samples whose flag is true; order (B,4), factors (B,4) and flags (B,) are on the CPU."""
    chosen = flags.nonzero()[:, 0]
    if len(chosen) == 0:
        return pixels
    # Sorted by the place of hue, the samples that share a place are one slice: no masks, each sample pays hue once.
    place = (order[chosen] == HUE).int().argmax(dim=1)
    chosen = chosen[place.argsort(stable=True)]
    ends = torch.bincount(place, minlength=4).cumsum(0).tolist()
    order, factors = order[chosen], factors[chosen]
    rows = chosen.to(pixels.device)
    part = pixels[rows]
    for slot in range(4):
        begin, end = (ends[slot - 1] if slot else 0), ends[slot]
        shift_hue_(part[begin:end], factors[begin:end, HUE])
        for piece in (slice(0, begin), slice(end, len(part))):
            kind = order[piece, slot]
            blend_(part[piece], kind, factors[piece].gather(1, kind.unsqueeze(1))[:, 0])
    return pixels.index_copy_(0, rows, part)


def blend_(pixels: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Blend in place with black (BRIGHTNESS), the mean grey (CONTRAST) or the pixel's grey (SATURATION)."""
    if len(pixels) == 0:
        return pixels
    kind, factor = kind.to(pixels.device), factor.to(pixels.device)
    grey = _grey(pixels)
    mean = grey.mean(dim=(1, 2, 3))
    constant = torch.where(kind == CONTRAST, (1 - factor) * mean, 0.0).view(-1, 1, 1, 1)
    share = torch.where(kind == SATURATION, 1 - factor, 0.0).view(-1, 1, 1, 1)
    return pixels.mul_(factor.view(-1, 1, 1, 1)).add_(grey.mul_(share).add_(constant)).clamp_(0.0, 1.0)


def shift_hue_(pixels: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue in place by `shift` (n,) of the colour circle, keeping the largest and smallest channel.

    The same function as torchvision's way through HSV, without its cases: with the channels mapped to [0,1] by
    their minimum and chroma, the hue's distance from red is 1 - red + green + blue sixths of the circle, towards
    green where green >= blue, else towards blue; and each channel is a trapezoid of the rotated hue.
    """
    if not bool(shift.any()):
        return pixels
    red, green, blue = pixels.unbind(dim=1)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(least)
    # where chroma is 0 the numerator is 0 too, and any hue gives the same grey
    turn = green.sub(red).add_(blue).sub_(least).div_(chroma.clamp(min=1e-30)).add_(1.0)
    turn.copysign_(green - blue).mul_(1 / 6)
    turn.add_((shift.to(pixels.device) + 1.0).view(-1, 1, 1)).frac_().mul_(6.0)
    torch.sub(turn, 3.0, out=red).abs_().sub_(1.0)
    torch.sub(turn, 2.0, out=green).abs_().neg_().add_(2.0)
    torch.sub(turn, 4.0, out=blue).abs_().neg_().add_(2.0)
    return pixels.clamp_(0.0, 1.0).mul_(chroma.unsqueeze(1)).add_(least.unsqueeze(1))


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(dim=1)
    return red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).unsqueeze(1)


def grayscale_(pixels: Tensor, flags: Tensor) -> Tensor:
    rows = flags.nonzero()[:, 0].to(pixels.device)
    if len(rows):
        pixels[rows] = _grey(pixels[rows]).expand(-1, 3, -1, -1)
    return pixels


def blur_(pixels: Tensor, sigma: Tensor, kernel_px: int, flags: Tensor) -> Tensor:
    rows = flags.nonzero()[:, 0].to(pixels.device)
    if len(rows) == 0 or kernel_px == 1:
        return pixels
    part = pixels[rows]
    height, width = part.shape[2:]
    offset = torch.arange(kernel_px, device=part.device) - kernel_px // 2
    sigma = sigma.to(part.device, torch.float32)[rows]
    kernel = torch.softmax(-0.5 * (offset / sigma.unsqueeze(1)).square(), dim=1)
    across = _band_matrix(kernel, offset, width)
    down = across if height == width else _band_matrix(kernel, offset, height)
    return pixels.index_copy_(0, rows, _separable(part, down, across))


def _band_matrix(kernel: Tensor, offset: Tensor, size: int) -> Tensor:
    """Return (n,size,size) matrices that convolve a line of `size` pixels, reflected at its ends, with kernel (n,k)."""
    index = (torch.arange(size, device=kernel.device).unsqueeze(1) + offset).abs()
    index = torch.where(index > size - 1, 2 * (size - 1) - index, index)
    matrix = kernel.new_zeros(len(kernel), size, size)
    wide = (len(kernel), size, kernel.shape[1])
    return matrix.scatter_add_(2, index.expand(wide), kernel.unsqueeze(1).expand(wide))


def solarize_(pixels: Tensor, threshold: float, flags: Tensor) -> Tensor:
    rows = flags.nonzero()[:, 0].to(pixels.device)
    if len(rows):
        part = pixels[rows]
        pixels[rows] = torch.where(part >= threshold, 1.0 - part, part)
    return pixels


def to_float(images: Tensor, copy: bool = False) -> Tensor:
    """Check a batch of images and return it as float32 in [0,1]; copy=True never returns the input's memory."""
    require(isinstance(images, Tensor), f"images must be a torch tensor, not {type(images).__name__}")
    shape = tuple(images.shape)
    require(images.ndim == 4, f"images must have shape (B, 3, H, W), not {shape}")
    hint = "; move channels first" if images.shape[-1] == 3 else ""
    require(images.shape[1] == 3, f"images must have 3 channels, not shape {shape}{hint}")
    require(min(images.shape[2:]) >= 1, f"images must have pixels, not shape {shape}")
    if images.dtype == torch.uint8:
        return images.float().div_(255.0)
    require(images.is_floating_point(), f"images must be uint8 or float, not {images.dtype}")
    if images.numel():
        low, high = (float(end) for end in images.aminmax())
        require(
            low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK,
            f"float images must lie in [0, 1], not [{low:.4g}, {high:.4g}]; divide 8-bit values by 255",
        )
    return images.to(torch.float32, copy=copy)


def check_rows(batch: int, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        require(
            tensor.ndim >= 1 and len(tensor) == batch,
            f"{name} must have one row for each of the {batch} images, not shape {tuple(tensor.shape)}",
        )


def check_kernel(kernel_px: int, height: int, width: int) -> None:
    require(kernel_px >= 1 and kernel_px % 2 == 1, f"the blur kernel must be odd and positive, not {kernel_px}")
    require(kernel_px // 2 < min(height, width), f"a blur kernel of {kernel_px} px is too wide for {height} x {width}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
