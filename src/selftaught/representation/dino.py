"""DINO: a student matches the sharpened, centred answer of its own moving average over small and large crops of a picture.

Paper: Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
Options: Sinkhorn-Knopp instead of centring (SwAV, 2020; DINOv2, 2024), KoLeo spreading of the class tokens (DINOv2, section 4), and a
convolutional stem that learns faster in minutes. Differs: schedules are shares of the training, because ours are short.
Cost: two large and several small crops a picture; the small ones cost a quarter or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.config import refuse_outside
from selftaught.core.launch import all_reduce_max, all_reduce_sum, gather, mean_rows, rows_before
from selftaught.data.augment import augment, dino_global, dino_local
from selftaught.method import EMA, Parts, Player, Progress
from selftaught.nets.timm_vit import TimmViT
from selftaught.nets.vit import ViT
from selftaught.representation.encoder import EncoderConfig, EncoderMethod, embedding_health


@dataclass(frozen=True)
class DINOConfig(EncoderConfig):
    """Settings of DINO."""

    prototypes: int = 1024
    """Number of output classes K that the pictures sort themselves into."""
    head_width: int = 512
    """Width of the head's hidden layers."""
    bottleneck: int = 64
    """Width in which the head's output is L2-normalised, before the prototypes."""
    head_norm: bool = True
    """Batch norm in the head (an option of the official code): tells pictures apart from the first step, which short trainings need."""
    local_crops: int = 4
    """Small crops per picture, seen by the student only."""
    local_px: int = 48
    """Side of the small crops."""
    global_min: float = 0.4
    """Smallest share of the area in a large crop (and the largest in a small one)."""
    local_min: float = 0.1
    """Smallest share of the area in a small crop."""
    student_temperature: float = 0.1
    """Softmax temperature of the student."""
    teacher_temperature: float = 0.04
    """Softmax temperature of the teacher; must be below the student's."""
    targets: str = "centre"
    """How the teacher avoids collapse: centre (moving mean) or sinkhorn (balanced batch)."""
    centre_momentum: float = 0.9
    """Momentum of the centre."""
    ema_start: float = 0.99
    """Momentum of the teacher at the start; rises along a cosine to 1."""
    freeze_last_frac: float = 0.03
    """Share of the training in which the prototypes stay fixed."""
    koleo: float = 0.0
    """Weight of the KoLeo loss on the class tokens of the large crops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(self, "head_width bottleneck", 1)
        refuse_outside(self, "local_crops koleo", 0)
        refuse_outside(self, "centre_momentum ema_start freeze_last_frac", 0, 1)


def dino_loss(teacher: Tensor, student: list[Tensor], student_temperature: float) -> Tensor:
    """Mean cross-entropy between teacher and student over all pairs of different crops (DINO, eq. 3).

    for t in range(2): for v in range(V): if v != t: L += mean_b -sum_k teacher[t][b, k] * log_softmax(student[v][b] / tau)[k]
    divided by the number of pairs.

    Args:
        teacher: (2, B, K) probabilities of the large crops, without gradient.
        student: V tensors (B, K) of scores; the first two belong to the same large crops.
    """
    total, pairs = student[0].new_zeros((), dtype=torch.float32), 0
    for v, scores in enumerate(student):
        log_p = torch.log_softmax(scores.float() / student_temperature, -1)
        for t in range(len(teacher)):
            if v != t:
                total = total - (teacher[t] * log_p).sum(-1).mean()
                pairs += 1
    return total / pairs


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Balanced assignment of B rows to K columns (Sinkhorn-Knopp, SwAV 2020): (B, K) scores to (B, K) rows that sum to 1.

    With several processes the rows of all of them are balanced together, and each keeps its own.
    """
    q = ((scores.float() - all_reduce_max(scores.max())) / temperature).exp().T
    q = q / all_reduce_sum(q.sum())
    K, B = len(q), int(all_reduce_sum(torch.tensor(len(scores))))
    for _ in range(iterations):
        q = q / (all_reduce_sum(q.sum(1, keepdim=True)).clamp(min=1e-12) * K)
        q = q / (q.sum(0, keepdim=True).clamp(min=1e-12) * B)
    return (q * B).T


def koleo_loss(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko spreading (DINOv2, section 4): -mean_i log min_{j != i} |x_i - x_j| of L2-normalised (B, D) vectors.

    The nearest other vector is looked for in all processes.
    """
    x = nn.functional.normalize(x.float(), dim=-1)
    every, start = gather(x), rows_before(len(x))
    with torch.no_grad():
        likeness = x @ every.T
        likeness[:, start : start + len(x)].fill_diagonal_(-2.0)
        nearest = likeness.argmax(1)
    return -((x - every[nearest]).square().sum(1) + eps).sqrt().log().mean()


class Head(nn.Module):
    """Three-layer perceptron, L2 normalisation, then cosine scores against K prototypes of unit length."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, norm: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((width, hidden), (hidden, hidden)):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(nn.init.trunc_normal_(torch.empty(prototypes, bottleneck), std=0.02))

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """(B, D) to (B, K) cosine scores; `frozen` keeps gradients from the prototypes."""
        z = nn.functional.normalize(self.mlp(x).float(), dim=-1)
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        return z @ nn.functional.normalize(prototypes.float(), dim=-1).T


class DINO(EncoderMethod):
    """Student and teacher with multi-crop; the teacher's backbone is what is kept."""

    name = "dino"
    Config = DINOConfig
    sizes = {
        "tiny": DINOConfig(
            image_px=32, backbone="vit-tiny-test", patch_px=8, batch_size=16, steps=20, local_px=16, local_crops=2,
            prototypes=64, head_width=32, bottleneck=16, stem="conv",
        ),
        "small": DINOConfig(
            image_px=96, backbone="vit-192x4", patch_px=8, stem="conv", pool="mean", batch_size=64, steps=800, local_px=48, local_crops=4,
            lr=1e-3, weight_decay=0.04, clip_norm=3.0,
        ),
        "paper": DINOConfig(
            image_px=224, backbone="vit-384x12", patch_px=16, batch_size=1024, accumulate=16, steps=125_000, local_px=96,
            local_crops=8, prototypes=65_536, head_width=2048, bottleneck=256, head_norm=False, lr=2e-3, weight_decay=0.04, clip_norm=3.0,
            local_min=0.05, ema_start=0.996, freeze_last_frac=0.01,
        ),
    }  # fmt: skip
    # At 32 px small crops hold nothing that can be told, and a small convolutional network sees further in minutes than a ViT.
    small_px32 = DINOConfig(
        image_px=32, backbone="resnet11-32", patch_px=4, pool="mean", batch_size=128, steps=2400, local_crops=0, global_min=0.2,
        prototypes=1024, targets="sinkhorn", ema_start=0.97, lr=3e-3, weight_decay=0.01, clip_norm=3.0,
    )  # fmt: skip
    config: DINOConfig
    centre: Tensor
    score_sum: Tensor
    score_count: Tensor

    def __init__(self, config: DINOConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        if not 0 < c.teacher_temperature < c.student_temperature:
            raise ValueError("the teacher's temperature must be below the student's and above 0, or all pictures become alike")
        if c.prototypes < 2:
            raise ValueError(f"there must be at least 2 prototypes, got {c.prototypes}")
        if c.local_crops > 0 and isinstance(self.backbone.net, (ViT, TimmViT)) and c.local_px % self.patch_px:
            raise ValueError(f"local_px must be a multiple of the patches' {self.patch_px} px, got {c.local_px}")
        if c.targets not in ("centre", "sinkhorn"):
            raise ValueError(f"targets must be 'centre' or 'sinkhorn', got {c.targets!r}")
        self.head = Head(self.backbone.width, c.head_width, c.bottleneck, c.prototypes, c.head_norm)
        self.teacher = EMA(nn.ModuleDict({"backbone": self.backbone, "head": self.head}))
        self.register_buffer("centre", torch.zeros(c.prototypes))
        self.register_buffer("score_sum", torch.zeros(c.prototypes))
        self.register_buffer("score_count", torch.zeros(()))
        self.big = [dino_global(c.image_px, second=second, scale=(c.global_min, 1.0)) for second in (False, True)]
        self.small = dino_local(c.local_px, scale=(c.local_min, c.global_min))

    def encoder(self) -> nn.Module:
        return self.teacher.module["backbone"]  # type: ignore[index, return-value]

    def players(self) -> dict[str, Player]:
        return {"student": self.main_player(betas=(0.9, 0.999), final_lr_frac=0.01)}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> list[Tensor]:
        """Two large crops (B, 3, S, S), then the small ones."""
        big = [augment(images, view) for view in self.big]
        return big + [augment(images, self.small) for _ in range(self.config.local_crops)]

    @torch.no_grad()
    def target(self, big: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities (2, B, K) of the stacked large crops (2B, 3, S, S), and its scores (2B, K)."""
        pooled = self.encoder().pooled(big)  # type: ignore[operator]
        scores = self.teacher.module["head"](pooled)  # type: ignore[index, operator]
        c = self.config
        if c.targets == "sinkhorn":
            halves = [sinkhorn(s, c.teacher_temperature) for s in scores.chunk(2)]
            return torch.stack(halves), scores
        return torch.softmax((scores - self.centre) / c.teacher_temperature, -1).unflatten(0, (2, -1)), scores

    def loss(self, batch: list[Tensor], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c = self.config
        big = torch.cat(batch[:2])
        teacher, scores = self.target(big)
        self.score_sum += scores.sum(0)
        self.score_count += len(scores)
        frozen = progress.frac < c.freeze_last_frac
        pooled = self.backbone.pooled(big)
        outputs = list(self.head(pooled, frozen).chunk(2))
        if len(batch) > 2:
            small = self.backbone.pooled(torch.cat(batch[2:]))
            outputs += self.head(small, frozen).chunk(len(batch) - 2)
        loss = dino_loss(teacher, outputs, c.student_temperature)
        parts = self.meters(teacher, pooled)
        if c.koleo:
            spread = torch.stack([koleo_loss(half) for half in pooled.chunk(2)]).sum()
            parts["koleo"] = float(spread.detach())
            loss = loss + c.koleo * spread
        return loss, parts

    @torch.no_grad()
    def meters(self, teacher: Tensor, pooled: Tensor) -> Parts:
        """Collapse meters: `entropy_frac` of single answers (0 = one-hot), `usage_frac` of the mean answer (0 = one class), both / ln K."""
        log_k = math.log(self.config.prototypes)
        single = -(teacher * teacher.clamp(min=1e-12).log()).sum(-1).mean()
        mean = mean_rows(teacher.mean((0, 1)), teacher.shape[1])
        usage = -(mean * mean.clamp(min=1e-12).log()).sum()
        return {
            "entropy_frac": float(single) / log_k,
            "usage_frac": float(usage) / log_k,
            "loss_uniform": log_k,
            **embedding_health(pooled),
        }

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the teacher (momentum rises along a cosine to 1) and the centre."""
        c = self.config
        momentum = 1 - (1 - c.ema_start) * (math.cos(math.pi * progress.frac) + 1) / 2
        self.teacher.update(nn.ModuleDict({"backbone": self.backbone, "head": self.head}), momentum)
        self.centre.lerp_(all_reduce_sum(self.score_sum) / all_reduce_sum(self.score_count), 1 - c.centre_momentum)
        self.score_sum.zero_()
        self.score_count.zero_()
