"""Border contrast: what differs from the picture's rim, in learned features and in colour, is taken for the object.

Photographers rarely let an object fill the rim of a picture (the boundary prior of Wei, Wen, Zhu, Sun, "Geodesic Saliency Using
Background Priors", ECCV 2012). Theirs compares colours; here every patch is compared with the patches of the rim by its
learned features as well, and only what stands out in both counts: colour follows the contour, features know what belongs together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.measure.baselines import colour_saliency
from selftaught.segmentation.cut import unit_rows

NEAREST = 0.5
"""Share of the rim's patches, the most similar ones, that a patch is compared with; rims show more than one thing."""


def outermost(h: int, w: int) -> Tensor:
    """(h * w,) true for the places at the rim of an (h, w) map."""
    rim = torch.zeros(h, w, dtype=torch.bool)
    rim[[0, -1]], rim[:, [0, -1]] = True, True
    return rim.flatten()


def nearest_half(distance: Tensor) -> Tensor:
    """Mean of the smaller half of the distances to the rim: (B, N, R) to (B, N).

    The nearest is left out: a patch of the rim is nearest to itself.
    """
    count = max(int(NEAREST * distance.shape[2]), 2)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or distance.requires_grad or distance.device.type != "cpu" or distance.dtype == torch.bfloat16:
        return distance.topk(count, dim=2, largest=False).values[..., 1:].mean(2)
    near = torch.from_numpy(np.partition(distance.numpy(), count - 1, axis=2)[..., :count])  # much faster than topk on CPUs
    return (near.sum(2) - near.amin(2)) / (count - 1)


def feature_contrast(maps: Tensor) -> Tensor:
    """Mean cosine distance of each patch to the most similar half of the outermost patches: (B, D, h, w) to (B, h, w)."""
    B, _, h, w = maps.shape
    rows = unit_rows(maps)
    rim = outermost(h, w).to(maps.device)
    return nearest_half(1 - rows @ rows[:, rim].transpose(1, 2)).view(B, h, w)


def colour_contrast(pictures: Tensor) -> Tensor:
    """Mean distance of the colour of each pixel to the most similar half of the outermost ones: (B, 3, h, w) to (B, h, w)."""
    B, _, h, w = pictures.shape
    rows = pictures.flatten(2).transpose(1, 2)
    rim = outermost(h, w).to(pictures.device)
    return nearest_half(torch.cdist(rows, rows[:, rim], compute_mode="donot_use_mm_for_euclid_dist")).view(B, h, w)


def stretched(soft: Tensor) -> Tensor:
    """Scale each of (B, H, W) maps so that its smallest value is 0 and its 95th percentile 1; a map of one value becomes 0."""
    low = soft.flatten(1).amin(1)
    high = soft.flatten(1).quantile(0.95, dim=1)
    return ((soft - low[:, None, None]) / (high - low).clamp(min=1e-6)[:, None, None]).clamp(min=0.0)


def border_contrast(maps: Tensor, images: Tensor) -> Tensor:
    """Geometric mean of feature and colour contrast, stretched.

    Args:
        maps: (B, D, h, w) patch features of
        images: (B, 3, S, S) pictures in [0, 1].

    Returns:
        (B, S, S) in [0, 1].
    """
    features = nn.functional.interpolate(feature_contrast(maps)[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    pixels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    colours = torch.from_numpy(np.stack([colour_saliency(picture) for picture in pixels])).to(features)
    both = (stretched(features) * stretched(colours)).sqrt()
    return both.clamp(max=1.0)
