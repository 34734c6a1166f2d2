"""Pretrained: a published network, frozen, as features for the methods that find objects.

Papers: Caron et al., DINO (ICCV 2021); Oquab et al., DINOv2 (TMLR 2024); Darcet et al., registers (ICLR 2024); He et al., MAE (CVPR 2022).
Differs: nothing is trained, and the weights come from a file that a person has (or, only when asked, from timm's hub); positions are
resized as timm does it, with antialiasing. Patch features are the keys of the last block, as LOST and TokenCut read them.
Cost: one pass per picture; at `small` (ViT-S, patches of 8 px, pictures of 96 px) about 3 G multiplications and additions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selftaught.core.errors import ConfigError
from selftaught.representation.encoder import EncoderConfig, EncoderMethod


@dataclass(frozen=True)
class PretrainedConfig(EncoderConfig):
    """Settings of a published network; `weights` must be given."""

    backbone: str = "timm:vit_small_patch8_224.dino"
    """Name of the network that the weights belong to, timm:MODEL.TAG; its patch size is its own."""
    steps: int = 0
    """Optimiser steps in all; nothing is trained."""
    whiten: bool = False
    """Whiten the embedding over the pictures at hand; off, so that scores compare with the published ones."""


class Pretrained(EncoderMethod):
    """Features of published weights; capability `embed`, no players."""

    name = "pretrained"
    Config = PretrainedConfig
    sizes = {
        "tiny": PretrainedConfig(image_px=32, backbone="vit-tiny-test", batch_size=16, weights="random"),
        "small": PretrainedConfig(image_px=96),
        "paper": PretrainedConfig(image_px=224),
    }
    config: PretrainedConfig

    def __init__(self, config: PretrainedConfig, needs: Mapping[str, Any] | None = None):
        if not config.weights:
            raise ConfigError(
                "pretrained needs to know which weights.",
                expected="--set weights=FILE.safetensors, or --set weights=timm to let timm fetch its own",
                do="docs/how-to/published-weights.md tells where the files come from.",
            )
        super().__init__(config, needs)
        self.requires_grad_(False)
