"""Settings of representation methods that cannot work, or would make nonsense, are refused by name before anything is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from selftaught.core.config import override
from selftaught.core.errors import ConfigError
from selftaught.registry import load_class
from selftaught.representation.simclr import SimCLR


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("simclr", "head_out", 0), ("simclr", "rotation", -1.0), ("simclr", "view_px", -8), ("simclr", "patch_px", 0),
        ("dino", "ema_start", 2.0), ("dino", "centre_momentum", -1.0), ("dino", "freeze_last_frac", 2.0), ("dino", "local_crops", -1),
        ("dino", "koleo", -0.1), ("dino", "bottleneck", 0), ("mae", "seen_weight", -1.0), ("mae", "block_prob", 2.0),
        ("mae", "critic_weight", -0.1), ("mae", "decoder_heads", 0), ("mae", "patch_px", -1), ("pretrained", "image_px", 0),
    ],
)  # fmt: skip
def test_numbers_out_of_their_range_are_named(method: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is "):
        override(load_class(method).sizes["tiny"], [f"{name}={value}"])


def test_views_that_do_not_divide_into_patches_are_refused() -> None:
    config: Any = replace(SimCLR.sizes["tiny"], backbone="vit-tiny-test", patch_px=8)
    SimCLR(replace(config, view_px=24))
    with pytest.raises(ValueError, match="view_px must be a multiple"):
        SimCLR(replace(config, view_px=20))
