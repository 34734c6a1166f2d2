"""timm's vision transformers behind the interface of our own `ViT`: class token, patch tokens, and the keys of the last block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class TimmViT(nn.Module):
    """A plain timm `VisionTransformer` (DINO, DINOv2 with and without registers, MAE, and others of that form)."""

    model: Any

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, keys: bool = False) -> Tensor:
        """Encode (B, 3, H, W) normalised pictures; H and W may differ from the size that the model was built for.

        Args:
            keys: return the (B, N, D) keys of the last block instead: the output of its `qkv` layer, which LOST and TokenCut read.

        Returns:
            (B, 1+N, D) after the final norm: class token (the mean patch where the model has none), then patch tokens; register tokens
            are left out.
        """
        m = self.model
        prefix = m.num_prefix_tokens
        if keys:
            x = m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(images))))
            for block in m.blocks[:-1]:
                x = block(x)
            last = m.blocks[-1]
            return last.attn.qkv(last.norm1(x)).chunk(3, -1)[1][:, prefix:]
        x = m.forward_features(images)
        patches = x[:, prefix:]
        return torch.cat([x[:, :1] if m.has_class_token else patches.mean(1, keepdim=True), patches], 1)

    def levels(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """(B, N, D) patch tokens after each of the blocks (0 the first, -1 the last), without the final norm."""
        m = self.model
        wanted = [i % len(m.blocks) for i in blocks]
        x = m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(images))))
        found = {}
        for i, block in enumerate(m.blocks[: max(wanted) + 1]):
            x = block(x)
            found[i] = x[:, m.num_prefix_tokens :]
        return [found[i] for i in wanted]


def is_plain_vit(model: nn.Module) -> bool:
    """Whether `TimmViT` can wrap a timm model: pre-norm blocks, one `qkv` layer each, tokens in reading order."""
    from timm.models.vision_transformer import Block, VisionTransformer

    return isinstance(model, VisionTransformer) and all(
        type(block) is Block and isinstance(getattr(block.attn, "qkv", None), nn.Linear) for block in model.blocks
    )
