"""SimCLR: two views of the same picture should look alike to the network, and unlike all other pictures.

Paper: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
Differs: AdamW instead of LARS (batches here are small), no blur at 48 px and below.
Option, off at every size (`rotation`): a third view is turned by 0, 90, 180 or 270 degrees and the network says by how much (E-SSL:
Dangovski et al., "Equivariant Contrastive Learning", ICLR 2022). Backgrounds often look alike from all sides and things do not, so the
network must look at things.
Cost: two encoder passes a picture, three with `rotation`; `small` takes about ten minutes on two CPU cores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.launch import gather, rows_before
from selftaught.data.augment import augment, simclr_view
from selftaught.method import Parts, Player, Progress
from selftaught.nets.timm_vit import TimmViT
from selftaught.nets.vit import ViT
from selftaught.representation.encoder import EncoderConfig, EncoderMethod, embedding_health, projector


@dataclass(frozen=True)
class SimCLRConfig(EncoderConfig):
    """Settings of SimCLR."""

    head_width: int = 512
    """Width of the projector's hidden layer."""
    head_out: int = 128
    """Width of the projector's output, in which pictures are compared."""
    temperature: float = 0.2
    """Softmax temperature; small values look harder at the nearest other pictures."""
    strength: float = 0.5
    """Strength of the colour changes between the two views."""
    rotation: float = 0.0
    """Weight of the loss of telling by how much a third view was turned; 0 leaves it out (the original SimCLR)."""
    view_px: int = 0
    """Side of the two views; 0 takes image_px. Smaller views train faster, and a ResNet reads larger pictures afterwards."""
    crop_min: float = 0.2
    """Smallest share of a picture's area that a view shows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(self, "head_width head_out", 1)
        refuse_outside(self, "rotation view_px", 0)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised-temperature cross-entropy (SimCLR, eq. 1).

    For the 2B normalised vectors z and the positive j(i) of i:
        L = 1/(2B) * sum_i -log( exp(z_i.z_j(i) / t) / sum_{k != i} exp(z_i.z_k / t) )

    Args:
        z1, z2: (B, D) projections of the two views; normalised here, in float32.
        temperature: t > 0.

    Returns:
        The scalar loss; log(2B - 1) when all vectors are alike. With several processes, the mean over the own pictures, told from
        those of all processes.
    """
    B = len(z1)
    z = torch.nn.functional.normalize(torch.cat([z1, z2]).float(), dim=1)
    every = gather(z.unflatten(0, (2, B)), dim=1).flatten(0, 1)
    n = len(every) // 2
    if n < 2:
        raise ValueError(f"NT-Xent needs at least two pictures in a batch, got {n}")
    own = rows_before(B) + torch.arange(B, device=z.device)
    own = torch.cat([own, own + n])
    logits = z @ every.T / temperature
    logits = logits.masked_fill(own[:, None] == torch.arange(2 * n, device=z.device), float("-inf"))
    return torch.nn.functional.cross_entropy(logits, (own + n) % (2 * n))


def turn(images: Tensor, quarters: Tensor) -> Tensor:
    """Turn each of (B, 3, S, S) pictures by its number of quarters (B,) counter-clockwise."""
    out = images.clone()
    for k in range(1, 4):
        out[quarters == k] = torch.rot90(images[quarters == k], k, (2, 3))
    return out


class SimCLR(EncoderMethod):
    """Encoder, projector, NT-Xent loss over two views."""

    name = "simclr"
    Config = SimCLRConfig
    sizes = {
        "tiny": SimCLRConfig(
            image_px=32, backbone="resnet-tiny-test", patch_px=4, batch_size=32, steps=20, head_width=32, head_out=16
        ),
        "small": SimCLRConfig(
            image_px=96, view_px=48, backbone="resnet10-32", patch_px=8, pool="power", batch_size=128, steps=1000, lr=3e-3,
            weight_decay=0.01, crop_min=0.5, temperature=0.1,
        ),
        "paper": SimCLRConfig(
            image_px=224, backbone="timm:resnet50", patch_px=32, batch_size=4096, accumulate=16, steps=31_250, lr=1e-3,
            weight_decay=0.01, head_width=2048, head_out=128, temperature=0.1, strength=1.0, crop_min=0.08,
        ),
    }  # fmt: skip
    small_px32 = SimCLRConfig(
        image_px=32, backbone="resnet11-32", patch_px=4, batch_size=128, steps=3000, lr=2e-3, weight_decay=0.01
    )
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        if config.batch_size // config.accumulate < 2 or config.temperature <= 0:
            raise ValueError("NT-Xent needs at least two pictures in each part of a batch and a temperature above 0")
        self.head = projector((self.backbone.width, config.head_width, config.head_out))
        self.turn_head = projector((self.backbone.width, config.head_width, 4)) if config.rotation > 0 else None
        c = config
        self.loss_uniform = math.log(2 * (c.batch_size // c.accumulate) - 1) + c.rotation * math.log(4)
        px = c.view_px or c.image_px
        if isinstance(self.backbone.net, (ViT, TimmViT)) and px % self.patch_px:
            raise ValueError(f"view_px must be a multiple of the patches' {self.patch_px} px, got {px}")
        self.view = simclr_view(px, strength=c.strength, scale=(c.crop_min, 1.0))
        self.turned_view = replace(self.view, scale=(max(c.crop_min, 0.4), 1.0))

    def players(self) -> dict[str, Player]:
        return {"encoder": self.main_player()}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Draw the two views, each (B, 3, view_px, view_px), and the turned one with its turns (B,) in quarters."""
        batch = {"views": torch.cat([augment(images, self.view), augment(images, self.view)])}
        if self.turn_head is not None:
            batch["turns"] = draws.randint(4, len(images)).to(images.device)
            batch["turned"] = turn(augment(images, self.turned_view), batch["turns"])
        return batch

    def loss(self, batch: dict[str, Tensor], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        pooled = self.backbone.pooled(batch["views"])
        z1, z2 = self.head(pooled).chunk(2)
        loss = nt_xent(z1, z2, self.config.temperature)
        with torch.no_grad():
            alike = torch.nn.functional.cosine_similarity(z1.float(), z2.float()).mean()
        parts = {"positive_cosine": float(alike), **embedding_health(pooled)}
        if self.turn_head is not None:
            scores = self.turn_head(self.backbone.pooled(batch["turned"])).float()
            turning = torch.nn.functional.cross_entropy(scores, batch["turns"])
            parts |= {"contrast": float(loss.detach()), "turning": float(turning.detach())}
            parts["turns_right"] = float((scores.argmax(1) == batch["turns"]).float().mean())
            loss = loss + self.config.rotation * turning
        return loss, parts
