"""Border contrast: the formula in slow loops, what stands out is found, and pictures without contrast are no trouble."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from selftaught.measure.baselines import colour_saliency
from selftaught.segmentation.border import (
    NEAREST,
    border_contrast,
    colour_contrast,
    feature_contrast,
    nearest_half,
    stretched,
)


def test_feature_contrast_is_the_slow_loop() -> None:
    maps = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    found = feature_contrast(maps)
    rim = [(y, x) for y in range(4) for x in range(6) if y in (0, 3) or x in (0, 5)]
    for b in range(2):
        for y in range(4):
            for x in range(6):
                away = sorted(
                    1 - float(nn.functional.cosine_similarity(maps[b, :, y, x], maps[b, :, j, i], dim=0)) for j, i in rim
                )
                nearest = away[1 : int(NEAREST * len(rim))]
                assert float(found[b, y, x]) == pytest.approx(sum(nearest) / len(nearest), abs=1e-5)


@pytest.mark.parametrize("R", [2, 3, 28, 92])
def test_the_nearest_half_is_the_same_with_and_without_gradient(R: int) -> None:
    distance = torch.rand(3, 50, R, generator=torch.Generator().manual_seed(R))
    torch.testing.assert_close(nearest_half(distance), nearest_half(distance.clone().requires_grad_()).detach())
    assert nearest_half(distance.bfloat16()).dtype == torch.bfloat16


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A square of another colour on noise, features that know it, and its mask."""
    rng = np.random.default_rng(0)
    picture = rng.uniform(0.3, 0.5, (3, 32, 32)).astype(np.float32)
    mask = np.zeros((32, 32), bool)
    mask[10:22, 8:20] = True
    picture[0, mask] += 0.4
    image = torch.from_numpy(picture)[None]
    maps = torch.cat([nn.functional.avg_pool2d(image, 4), torch.ones(1, 1, 8, 8)], 1)
    return image, maps, torch.from_numpy(mask)


def test_what_stands_out_in_both_is_found() -> None:
    image, maps, mask = scene()
    soft = border_contrast(maps, image)[0]
    assert soft.shape == (32, 32) and 0 <= float(soft.min()) and float(soft.max()) <= 1
    found = soft > 0.5
    assert float((found & mask).sum() / (found | mask).sum()) > 0.8


def test_colour_alone_or_features_alone_are_not_enough() -> None:
    image, maps, mask = scene()
    assert float(border_contrast(torch.ones_like(maps), image).max()) == 0, "the features see one thing everywhere"
    assert float(border_contrast(maps, torch.full_like(image, 0.5)).max()) == 0, "a picture of one colour"


def test_it_is_the_geometric_mean_of_both() -> None:
    image, maps, _ = scene()
    features = nn.functional.interpolate(feature_contrast(maps)[:, None], (32, 32), mode="bilinear")[:, 0]
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    colour = torch.from_numpy(colour_saliency(pixels))[None]
    expected = (stretched(features) * stretched(colour)).sqrt().clamp(max=1)
    torch.testing.assert_close(border_contrast(maps, image), expected)


def test_colours_are_compared_with_the_nearer_half_of_the_rim() -> None:
    picture = torch.zeros(1, 3, 6, 6)
    picture[:, 0, :, 3:] = 0.8  # two colours, both at the rim
    picture[:, :, 2, 1] = torch.tensor([0.0, 0.3, 0.4])
    contrast = colour_contrast(picture)[0]
    assert contrast.shape == (6, 6) and float(contrast[2, 1]) == pytest.approx(0.5)
    contrast[2, 1] = 0
    assert float(contrast.max()) == 0
