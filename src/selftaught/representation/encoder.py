"""What all representation methods share: a backbone that embeds pictures, how it is measured, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.config import refuse_outside
from selftaught.core.errors import ConfigError
from selftaught.core.launch import deviation
from selftaught.core.rows import evenly
from selftaught.measure.representation import representation_scores
from selftaught.measure.score import Score
from selftaught.method import EvalData, Method, Picture, TrainConfig
from selftaught.nets.backbones import Backbone, build_backbone
from selftaught.nets.official import RANDOM, load_weights
from selftaught.nets.whitening import Whitening


@dataclass(frozen=True)
class EncoderConfig(TrainConfig):
    """Settings of the backbone, on top of those of every training."""

    backbone: str = "vit-192x4"
    """Name of the network: see `nets/backbones.py`, or timm:MODEL."""
    patch_px: int = 8
    """Pixels per patch (ViT), or stride of the finest map that is used (ResNet)."""
    stem: str = "linear"
    """How a ViT cuts its patches: linear or conv."""
    pool: Literal["cls", "mean", "power"] = "cls"
    """What is made of a whole picture: the class token of a ViT, the mean over places, or (ResNet) their power mean."""
    whiten: bool = True
    """Make the embedding's dimensions uncorrelated and equally wide over the training pictures, once the training is done."""
    weights: str = ""
    """Published weights that a timm backbone starts from: a .safetensors file, or `timm` to let timm take its own from the hub or its cache
    (nothing else is ever downloaded); empty or `random` for random ones."""

    def __post_init__(self) -> None:
        refuse_outside(self, "image_px patch_px", 1)


SETTLE_PICTURES = 4096
"""Training pictures from which the statistics of the embedding are taken."""


class EncoderMethod(Method):
    """A method whose result is a backbone: capability `embed`."""

    capabilities: ClassVar[tuple[str, ...]] = ("embed",)
    config: EncoderConfig

    def __init__(self, config: EncoderConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        self.backbone = build_backbone(config.backbone, config.image_px, config.patch_px, config.stem)
        self.backbone.pool = config.pool
        self.image_px, self.patch_px = config.image_px, self.backbone.patch_px
        self.whitening = Whitening(self.backbone.width) if config.whiten else None

    def start(self, say: Any) -> None:
        """Copy published weights into the backbone, and into every average of it."""
        c = self.config
        if c.weights in RANDOM:
            return
        if not c.backbone.startswith("timm:"):
            raise ConfigError(
                f"Published weights do not fit the backbone {c.backbone}.",
                expected="a network of timm, e.g. timm:vit_small_patch8_224.dino",
                do="--set backbone=timm:MODEL.TAG; docs/how-to/published-weights.md lists those that are tested.",
            )
        told = [load_weights(m.net.model, c.weights, c.backbone) for m in self.modules() if isinstance(m, Backbone)]  # type: ignore[arg-type]
        say(told[0])

    def encoder(self) -> nn.Module:
        """The backbone that is used after training (a teacher, where there is one)."""
        return self.backbone

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D): the pooled vector as the training sees it."""
        return self.encoder().pooled(images).float()  # type: ignore[operator]

    def whitened(self, pooled: Tensor) -> Tensor:
        """(B, D) pooled vectors to (B, D) embeddings."""
        return pooled if self.whitening is None else self.whitening(pooled)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D): the pooled vector, whitened."""
        return self.whitened(self.pooled(images))

    @torch.no_grad()
    def settle(self, images: Any) -> None:
        """Take the whitening's statistics from training pictures spread evenly over the set."""
        if self.whitening is None:
            return
        chosen = evenly(len(images), SETTLE_PICTURES)
        device = self.whitening.mean.device
        parts = [self.pooled(images.batch(rows).to(device).float() / 255) for rows in np.array_split(chosen, -(-len(chosen) // 256))]
        self.settle_on(torch.cat(parts))

    def settle_on(self, pooled: Tensor) -> None:
        """Take the whitening's statistics from (N, D) pooled vectors."""
        if self.whitening is not None:
            self.whitening.fit(pooled)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D, h, w) patch features, the keys of the last block of a ViT."""
        return self.encoder().keys(images).float()  # type: ignore[operator]

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Weighted kNN (both conventions), linear probe and RankMe, against raw pixels, HOG and the untrained net."""
        return representation_scores(self, self.untrained(data.seed), data)  # type: ignore[arg-type]

    @torch.no_grad()
    def show(self, images: Tensor) -> dict[str, Picture]:
        """Each picture beside its patch features, their three main directions drawn as red, green and blue."""
        features = self.features(images)
        B, D, h, w = features.shape
        flat = features.permute(0, 2, 3, 1).reshape(-1, D)
        flat = flat - flat.mean(0)
        _, _, directions = torch.pca_lowrank(flat, q=3, center=False, niter=4)
        colours = (flat @ directions).view(B, h, w, 3)
        low, high = colours.flatten(1, 2).quantile(0.02, 1), colours.flatten(1, 2).quantile(0.98, 1)
        colours = ((colours - low[:, None, None]) / (high - low + 1e-6)[:, None, None]).clamp(0, 1)
        maps = nn.functional.interpolate(colours.permute(0, 3, 1, 2), size=images.shape[2:], mode="nearest")
        rows = torch.cat([torch.cat(list(images[:12]), 2), torch.cat(list(maps[:12]), 2)], 1)
        return {"features": (rows.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()}


def embedding_health(z: Tensor) -> dict[str, float]:
    """Collapse meters of (B, D) embeddings: `std_z`, the mean over dimensions of the deviation of the L2-normalised vectors
    (healthy about 1/sqrt(D), collapsed 0), and `dim` = D to compare it with."""
    z = nn.functional.normalize(z.detach().float(), dim=-1)
    return {"std_z": float(deviation(z).mean()), "dim": float(z.shape[-1])}


def projector(sizes: tuple[int, ...], norm: bool = True) -> nn.Sequential:
    """Multi-layer perceptron with batch norm and ReLU between layers, and batch norm without ReLU at the end (SimCLR, MoCo v3)."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(nn.Linear(a, b, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(b))
        if i < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def as_numpy(images: Tensor) -> np.ndarray[Any, Any]:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8."""
    return (images.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
