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


def feature_contrast(maps: Tensor) -> Tensor:
    """Mean cosine distance of each patch to the most similar half of the outermost patches: (B, D, h, w) to (B, h, w)."""
    B, _, h, w = maps.shape
    rim = torch.zeros(h, w, dtype=torch.bool, device=maps.device)
    rim[[0, -1]], rim[:, [0, -1]] = True, True
    rows = unit_rows(maps)
    distance = 1 - rows @ rows[:, rim.flatten()].transpose(1, 2)
    # The nearest is left out: a patch of the rim is nearest to itself.
    count = max(int(NEAREST * distance.shape[2]), 2)
    return distance.topk(count, dim=2, largest=False).values[..., 1:].mean(2).view(B, h, w)


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
