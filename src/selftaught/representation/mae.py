"""MAE: hide most patches of a picture and paint them from the few that are left.

Paper: He, Chen, Xie, Li, Dollar, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
Differs: sizes for CPUs, the token of a hidden patch is also mixed softly so that other methods can inpaint with soft masks (MOVE,
Bielski and Favaro, NeurIPS 2022), patches without contrast are not blown up (variance floor 1e-4),
and two more outputs per patch predict its mean and deviation, so that normalised pixels can be turned back into a picture.
Cost: the encoder sees a quarter of the patches; the cheapest training per picture of the room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.launch import divisor
from selftaught.data.augment import augment, plain_view
from selftaught.measure.score import Score, score_of
from selftaught.method import EvalData, Parts, Picture, Player, Progress
from selftaught.nets.discriminators import PixelDiscriminator, advance, fooled, hinge_fake, hinge_real
from selftaught.nets.vit import Block, ViT, init_transformer, patchify, sincos_positions, unpatchify
from selftaught.representation.encoder import EncoderConfig, EncoderMethod, as_numpy

VARIANCE_FLOOR = 1e-4
"""Added to the variance of a patch, so that noise in flat patches is not blown up to full contrast."""

CRITIC_LR = 2e-4
"""Highest learning rate of the critic."""


@dataclass(frozen=True)
class MAEConfig(EncoderConfig):
    """Settings of the masked autoencoder."""

    mask_frac: float = 0.75
    """Share of the patches that the encoder does not see."""
    decoder_width: int = 96
    """Width of the decoder."""
    decoder_depth: int = 2
    """Blocks of the decoder."""
    decoder_heads: int = 4
    """Attention heads of the decoder."""
    norm_pixels: bool = True
    """Paint patches normalised by their own mean and deviation (better features) rather than raw pixels (better pictures)."""
    crop_min: float = 0.4
    """Smallest share of a picture's area that a training crop shows."""
    block_prob: float = 0.0
    """Share of the pictures in which the hidden patches include a whole block of the size of an object, as inpainting needs; what else is
    hidden, up to `mask_frac`, is drawn freely as in the others."""
    block_min: float = 0.1
    """Smallest share of the patches in such a block."""
    block_max: float = 0.4
    """Largest share of the patches in such a block, at most `mask_frac`."""
    seen_weight: float = 0.0
    """Weight in the loss of patches that the encoder saw, against 1 of hidden ones; with 0 what is painted there means nothing, and neither
    pictures can be auto-encoded nor patches be hidden by half."""
    critic_weight: float = 0.0
    """Weight of a discriminator on pixels that the painted patches must fool; 0 has none. About 0.002 makes inpainting sharper."""
    critic_from: float = 0.7
    """Share of the training after which that discriminator takes part: adversarial fine-tuning of what paints already."""
    critic_width: int = 32
    """Channels of its first layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside(self, "decoder_width decoder_heads critic_width", 1)
        refuse_outside(self, "decoder_depth seen_weight critic_weight", 0)
        refuse_outside(self, "block_prob critic_from", 0, 1)


def random_keep(B: int, N: int, mask_frac: float) -> tuple[Tensor, Tensor]:
    """Choose the patches that stay: `keep` (B, K) indices with K = floor((1 - mask_frac) N), at least 1, and `hidden` (B, N) 0/1."""
    order = draws.rand(B, N).argsort(1)
    keep = order[:, : max(int(N * (1 - mask_frac) + 1e-6), 1)]  # 10 * (1 - 0.8) is 1.9999999999999996
    hidden = torch.ones(B, N).scatter_(1, keep, 0.0)
    return keep, hidden


def block_keep(B: int, h: int, w: int, config: MAEConfig) -> tuple[Tensor, Tensor]:
    """As `random_keep`, but in a share of the pictures a rectangle is hidden first (object-sized holes, as inpainting has them).

    Its area is uniform in [block_min, block_max] of the patches, the logarithm of its aspect ratio uniform in log [1/2, 2], its
    place uniform among those at which it lies inside of the picture; `config.mask_frac` of the patches are hidden in all.
    """
    u = draws.rand(B, 5)
    area = (config.block_min + (config.block_max - config.block_min) * u[:, 0]) * h * w
    ratio = 2.0 ** (2 * u[:, 1] - 1)
    height = (area * ratio).sqrt().clamp(1, h)
    width = (area / height).clamp(1, w)
    top, left = u[:, 2] * (h - height), u[:, 3] * (w - width)
    rows, columns = torch.arange(h) + 0.5, torch.arange(w) + 0.5
    inside_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    block = inside_rows[:, :, None] & inside_columns[:, None, :] & (u[:, 4] < config.block_prob)[:, None, None]
    N = h * w
    order = (draws.rand(B, N) + block.flatten(1).float()).argsort(1)
    keep = order[:, : max(int(N * (1 - config.mask_frac) + 1e-6), 1)]
    return keep, torch.ones(B, N).scatter_(1, keep, 0.0)


def patch_statistics(patches: Tensor) -> Tensor:
    """Mean and deviation (unbiased) over the 3 p^2 numbers of each patch: (B, N, 3 p^2) to (B, N, 2)."""
    return torch.stack([patches.mean(-1), patches.std(-1)], -1)


def mae_loss(painted: Tensor, patches: Tensor, hidden: Tensor, norm_pixels: bool, floor: float = VARIANCE_FLOOR) -> Tensor:
    """Mean squared error over the hidden patches only (MAE, section 3).

    L = sum_i hidden_i * mean((painted_i - target_i)^2) / sum_i hidden_i, target_i = (patch_i - mean_i) / sqrt(var_i + floor).

    Args:
        painted, patches: (B, N, 3 p^2); patches in [0, 1].
        hidden: (B, N), 1 where a patch was not seen.
        norm_pixels: normalise targets by their own mean and unbiased variance.
        floor: added to the variance, so that noise in flat patches is not blown up to full contrast.
    """
    target = patches
    if norm_pixels:
        mean, std = patch_statistics(patches)[..., None].unbind(2)
        target = (patches - mean) / (std.square() + floor).sqrt()
    error = (painted.float() - target).square().mean(-1)
    return (error * hidden).sum() / divisor(hidden.sum(), len(hidden)).clamp(min=1)


class Decoder(nn.Module):
    """Light transformer that turns encoded and mask tokens into pixels of every patch."""

    def __init__(self, width_in: int, width: int, depth: int, heads: int, patch_px: int, grid: int):
        super().__init__()
        self.grid, self.width = grid, width
        self.enter = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.leave = nn.Linear(width, 3 * patch_px * patch_px + 2)
        self.apply(init_transformer)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, cls: Tensor, tokens: Tensor, seen: Tensor, height: int) -> Tensor:
        """Paint all patches: (B, N, 3 p^2 + 2), pixels, then the patch's mean and deviation.

        Args:
            cls: (B, 1, D_in) class token.
            tokens: (B, N, D_in) encoded patches; whatever stands where `seen` is 0 is ignored.
            seen: (B, N) in [0, 1]: the decoder's input is seen * token + (1 - seen) * mask token, so masks may be soft.
            height: rows of the grid.
        """
        x = self.enter(torch.cat([cls, tokens], 1))
        cls, x = x[:, :1], x[:, 1:]
        weight = seen[..., None].to(x.dtype)
        x = weight * x + (1 - weight) * self.mask_token
        x = x + sincos_positions(height, x.shape[1] // height, self.width, self.grid).to(x.device)
        x = torch.cat([cls, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.leave(self.norm(x))[:, 1:]


class MAE(EncoderMethod):
    """Masked autoencoder: capability `embed` from the encoder, `inpaint` from both halves."""

    name = "mae"
    Config = MAEConfig
    capabilities: ClassVar[tuple[str, ...]] = ("embed", "inpaint")
    sizes = {
        "tiny": MAEConfig(
            image_px=32, backbone="vit-tiny-test", patch_px=8, pool="mean", batch_size=32, steps=20, decoder_width=32, decoder_depth=1
        ),
        "small": MAEConfig(image_px=96, backbone="vit-192x4", patch_px=8, pool="mean", batch_size=128, steps=2000, lr=1.5e-3),
        "paper": MAEConfig(
            image_px=224, backbone="vit-768x12", patch_px=16, pool="mean", batch_size=4096, accumulate=64, steps=250_000, lr=2.4e-3,
            warmup_frac=0.05, decoder_width=512, decoder_depth=8, decoder_heads=16, crop_min=0.2,
        ),
    }  # fmt: skip
    small_px32 = MAEConfig(image_px=32, backbone="vit-192x4", patch_px=4, pool="mean", batch_size=256, steps=1200, lr=1.5e-3)
    config: MAEConfig

    def __init__(self, config: MAEConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        if not isinstance(self.backbone.net, ViT) or c.stem != "linear":
            raise ValueError(
                "mae needs a ViT backbone with the linear stem: a convolution would look into hidden patches"
            )
        if c.batch_size // c.accumulate < 2:
            raise ValueError("mae needs at least two pictures in each part of a batch: it keeps statistics over them")
        if not 0 < c.mask_frac <= 1:
            raise ValueError(f"mask_frac must be in (0, 1], got {c.mask_frac}: only hidden patches are learned")
        if not 0 < c.block_min <= c.block_max <= c.mask_frac and c.block_prob:
            raise ValueError("block_min and block_max must be in (0, mask_frac], block_min the smaller one")
        grid = c.image_px // c.patch_px
        self.decoder = Decoder(self.backbone.width, c.decoder_width, c.decoder_depth, c.decoder_heads, c.patch_px, grid)
        self.critic = PixelDiscriminator(c.critic_width) if c.critic_weight else None
        self.view = plain_view(c.image_px, scale=(c.crop_min, 1.0))

    @property
    def vit(self) -> ViT:
        """The encoder."""
        return self.backbone.net  # type: ignore[return-value]

    def players(self) -> dict[str, Player]:
        if self.critic is None:
            return {"autoencoder": self.main_player()}
        mine = [(n, p) for n, p in self.named_parameters() if p.requires_grad and not n.startswith("critic.")]
        critic = self.main_player(self.critic, lr=min(self.config.lr, CRITIC_LR), weight_decay=0.0, betas=(0.0, 0.99))
        return {"critic": critic, "autoencoder": replace(self.main_player(), parameters=mine)}

    def after_step(self, progress: Progress) -> None:
        """Move the estimates of the critic's spectral norms."""
        if self.critic is not None:
            advance(self.critic)

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> Tensor:
        """One crop per picture, (B, 3, S, S) in [0, 1]."""
        return augment(images, self.view)

    def paint(self, images: Tensor, keep: Tensor) -> Tensor:
        """Encode the patches `keep` (B, K) of (B, 3, S, S) pictures and paint all N patches: (B, N, 3 p^2 + 2)."""
        B, N = len(images), (self.image_px // self.patch_px) ** 2
        encoded = self.vit(self.backbone.normalise(images), keep=keep)
        place = keep[..., None].expand(-1, -1, encoded.shape[2])
        tokens = encoded.new_zeros(B, N, encoded.shape[2]).scatter(1, place, encoded[:, 1:])
        seen = torch.zeros(B, N, device=images.device).scatter(1, keep, 1.0)
        return self.decoder(encoded[:, :1], tokens, seen, self.image_px // self.patch_px)

    def choose(self, B: int, N: int) -> tuple[Tensor, Tensor]:
        """Which patches stay (B, K), and (B, N) 1 where one is hidden."""
        c = self.config
        side = c.image_px // c.patch_px
        return block_keep(B, side, side, c) if c.block_prob else random_keep(B, N, c.mask_frac)

    def loss(self, batch: Tensor, player: str, progress: Progress) -> tuple[Tensor, Parts]:
        patches = patchify(batch, self.patch_px)
        keep, hidden = (x.to(batch.device) for x in self.choose(len(batch), patches.shape[1]))
        judged = self.critic is not None and progress.frac >= self.config.critic_from
        if player == "critic":
            return self.critic_loss(batch, keep, hidden, judged)
        painted = self.paint(batch, keep)
        weights = hidden + self.config.seen_weight * (1 - hidden)
        pixels = mae_loss(painted[..., :-2], patches, weights, self.config.norm_pixels)
        statistics = mae_loss(painted[..., -2:], patch_statistics(patches), weights, norm_pixels=False)
        total, parts = pixels + statistics, {"pixels": float(pixels.detach()), "statistics": float(statistics.detach())}
        if judged:
            away = unpatchify(hidden[..., None].expand_as(patches), self.patch_px, self.image_px)
            fool = fooled(self.critic(batch * (1 - away) + self.picture(painted) * away))  # type: ignore[misc]
            total, parts["fooled"] = total + self.config.critic_weight * fool, float(fool.detach())
        return total, parts

    def critic_loss(self, batch: Tensor, keep: Tensor, hidden: Tensor, judged: bool) -> tuple[Tensor, Parts]:
        """Hinge loss of the critic on pictures and on the same with their hidden patches painted; 0 before its time."""
        assert self.critic is not None
        if not judged:
            return sum((p.sum() * 0.0 for p in self.critic.parameters()), batch.new_zeros(())), {"right_frac": 0.5}
        with torch.no_grad():
            patches = patchify(batch, self.patch_px)
            away = unpatchify(hidden[..., None].expand_as(patches), self.patch_px, self.image_px)
            made = batch * (1 - away) + self.picture(self.paint(batch, keep)) * away
        real, fake = self.critic(batch), self.critic(made)
        right = 0.5 * (float((real > 0).float().mean()) + float((fake < 0).float().mean()))
        return hinge_real(real) + hinge_fake(fake), {"right_frac": right}

    def inpaint(self, images: Tensor, masks: Tensor, masked_encoder: bool = False) -> Tensor:
        """Fill what soft masks take away (MOVE, section 3.1): masking happens at the decoder's input, so gradients reach the mask.

        Args:
            images: (B, 3, S, S) in [0, 1].
            masks: (B, S, S) in [0, 1], 1 = fill; pooled to patches by their maximum.
            masked_encoder: keep the encoder from patches that are filled by more than half, as in training, so that nothing of what is
                taken away leaks into what is painted; the gradient still goes through the decoder's input alone.

        Returns:
            (B, 3, S, S) painted pictures in [0, 1].
        """
        side = self.image_px // self.patch_px
        hidden = nn.functional.max_pool2d(masks[:, None], self.patch_px).flatten(1)
        seen = (hidden <= 0.5).detach() if masked_encoder else None
        encoded = self.vit(self.backbone.normalise(images), seen=seen)
        return self.picture(self.decoder(encoded[:, :1], encoded[:, 1:], 1 - hidden, side))

    def picture(self, painted: Tensor) -> Tensor:
        """Turn the decoder's (B, N, 3 p^2 + 2) output into (B, 3, S, S) pictures in [0, 1]."""
        painted = painted.float()
        pixels = painted[..., :-2]
        if self.config.norm_pixels:
            pixels = pixels * (painted[..., -1:].clamp(min=0).square() + VARIANCE_FLOOR).sqrt() + painted[..., -2:-1]
        return unpatchify(pixels, self.patch_px, self.image_px).clamp(0, 1)

    @torch.no_grad()
    def show(self, images: Tensor) -> dict[str, Picture]:
        """Rows: picture, what the encoder saw, what it painted."""
        images = images[:12]
        patches = patchify(images, self.patch_px)
        keep, hidden = self.choose(len(images), patches.shape[1])
        painted = self.picture(self.paint(images, keep))
        away = unpatchify(hidden[..., None].expand_as(patches), self.patch_px, self.image_px)
        rows = [images, images * (1 - away) + 0.5 * away, images * (1 - away) + painted * away]
        painting = np.concatenate([np.concatenate(list(as_numpy(row)), 1) for row in rows], 0)
        return {**super().show(images), "painted": painting}

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """The scores of the room, and how well half-object-sized square holes are filled against filling with the mean colour."""
        return {**super().evaluate(data), "inpaint_mse": inpainting_score(self, data)}


@torch.no_grad()
def inpainting_score(method: MAE, data: EvalData) -> Score:
    """Mean squared error (in [0, 1] squared) inside a centred hole of half the side; baseline: the mean colour of the rest."""
    images = data.test.images.batch(np.arange(min(len(data.test), 512))).float() / 255
    S = method.image_px
    masks = torch.zeros(len(images), S, S)
    masks[:, S // 4 : 3 * S // 4, S // 4 : 3 * S // 4] = 1
    hole = masks[:, None]
    flat = (images * (1 - hole)).sum((2, 3)) / (1 - hole).sum((2, 3))
    filled = torch.cat([method.inpaint(a, m) for a, m in zip(images.split(128), masks.split(128), strict=True)])

    def error(x: Tensor) -> np.ndarray[Any, Any]:
        return (((x - images).square() * hole).sum((1, 2, 3)) / (3 * hole.sum((1, 2, 3)))).numpy()

    baseline = float(error(flat[:, :, None, None].expand_as(images)).mean())
    return score_of(error(filled), better="lower", unit="[0,1]^2", baselines={"mean colour of the rest": baseline})
