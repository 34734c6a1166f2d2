"""A small Vision Transformer (Dosovitskiy et al., ICLR 2021) that suits 32 to 96 px pictures on a CPU.

What differs from the original, and why: positions are a fixed 2-D sine-cosine table computed for whatever grid comes in (MAE's table; no
interpolation of a learned one is needed for small crops), and the patch projection may be a stack of strided 3x3 convolutions (Xiao et
al. 2021, "Early convolutions help transformers see better"), which learns much faster in short trainings.

Letters: B batch, N tokens (without the class token), D width, h, w rows and columns of the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn


@lru_cache(maxsize=64)
def sincos_positions(height: int, width: int, dim: int, grid: int) -> Tensor:
    """Return the (height*width, dim) float32 table of 2-D sine-cosine positions (He et al., MAE, CVPR 2022).

    Half of the channels code the row, half the column, with frequencies 10000^(-2i/(dim/2)). Positions are scaled so that any grid
    spans the coordinates of the `grid` x `grid` one that the network was built for: a crop of a picture covers the whole range.
    """
    if dim % 4:
        raise ValueError(f"positions need a width divisible by 4, got {dim}")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows = (torch.arange(height, dtype=torch.float64) + 0.5) * grid / height - 0.5
    columns = (torch.arange(width, dtype=torch.float64) + 0.5) * grid / width - 0.5
    by_row = torch.cat([(rows[:, None] * omega).sin(), (rows[:, None] * omega).cos()], 1)
    by_column = torch.cat([(columns[:, None] * omega).sin(), (columns[:, None] * omega).cos()], 1)
    table = torch.cat([by_row[:, None].expand(-1, width, -1), by_column[None].expand(height, -1, -1)], 2)
    return table.reshape(height * width, dim).float()


class Attention(nn.Module):
    """Multi-head self-attention; `kernel` picks the implementation ("fused" or "plain"), the numbers are the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.kernel = "fused"
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """Return queries, keys and values as one (3, B, heads, N, head_dim) tensor."""
        B, N, D = x.shape
        return self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Attend; tokens where `seen` (B, N) is False are seen by none."""
        B, N, D = x.shape
        q, k, v = self.split(x)
        mask = None if seen is None else seen[:, None, None, :]
        if self.kernel == "plain":
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            out = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1) @ v
        else:
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron with GELU; residual around both."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


class LinearPatches(nn.Module):
    """Patch projection as one matrix product (the same numbers as a strided convolution, without its slow bf16 backward)."""

    def __init__(self, patch_px: int, width: int):
        super().__init__()
        self.patch_px = patch_px
        self.proj = nn.Linear(3 * patch_px * patch_px, width)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(patchify(images, self.patch_px))


class ConvPatches(nn.Module):
    """Convolutional patch projection: per factor of two one strided 3x3 convolution and one at the new size, widths doubling to D."""

    def __init__(self, patch_px: int, width: int):
        super().__init__()
        steps = patch_px.bit_length() - 1
        if 2**steps != patch_px or steps < 1:
            raise ValueError(f"a convolutional stem needs a patch size that is a power of two, got {patch_px}")
        layers: list[nn.Module] = []
        channels = 3
        for i in range(steps):
            out = max(width // 2 ** (steps - i), 16)
            for stride, enter in ((2, channels), (1, out)):
                layers += [nn.Conv2d(enter, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.first = nn.Sequential(*layers[:3])
        self.rest = nn.Sequential(*layers[3:], nn.Conv2d(channels, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        # The bf16 backward of a convolution with three input channels is many times slower than fp32 on CPUs.
        with torch.autocast(images.device.type, enabled=False):
            x = self.first(images.float())
        return self.rest(x).flatten(2).transpose(1, 2)


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """Cut (B, 3, H, W) into (B, N, 3*patch_px^2) patches, row by row; each patch keeps (channel, row, column) order."""
    B, C, H, W = images.shape
    p = patch_px
    if H % p or W % p:
        raise ValueError(f"pictures of {H}x{W} px do not divide into patches of {p} px")
    x = images.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(B, (H // p) * (W // p), C * p * p)


def unpatchify(patches: Tensor, patch_px: int, height: int) -> Tensor:
    """Invert `patchify`: (B, N, 3*patch_px^2) to (B, 3, H, W), with `height` = H in pixels."""
    B, N, _ = patches.shape
    p, h = patch_px, height // patch_px
    w = N // h
    return patches.reshape(B, h, w, 3, p, p).permute(0, 3, 1, 4, 2, 5).reshape(B, 3, h * p, w * p)


class ViT(nn.Module):
    """Vision Transformer that gives a class token, patch tokens, and the keys of its last block.

    Args:
        image_px: side of the square pictures that positions are scaled to.
        patch_px: side of a patch.
        width, depth, heads: size of the transformer.
        stem: "linear" or "conv".
    """

    def __init__(self, image_px: int, patch_px: int, width: int, depth: int, heads: int, stem: str = "linear"):
        super().__init__()
        if image_px % patch_px:
            raise ValueError(f"image_px {image_px} is not a multiple of patch_px {patch_px}")
        if stem not in ("linear", "conv"):
            raise ValueError(f"stem must be 'linear' or 'conv', got {stem!r}")
        self.image_px, self.patch_px, self.width = image_px, patch_px, width
        self.patches: nn.Module = LinearPatches(patch_px, width) if stem == "linear" else ConvPatches(patch_px, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.cls, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """Project (B, 3, H, W) normalised pictures to (B, N, D) patch tokens with positions added."""
        h, w = images.shape[2] // self.patch_px, images.shape[3] // self.patch_px
        table = sincos_positions(h, w, self.width, self.image_px // self.patch_px)
        return self.patches(images) + table.to(images.device)

    def forward(
        self, images: Tensor, keep: Tensor | None = None, keys: bool = False, seen: Tensor | None = None
    ) -> Tensor:
        """Encode (B, 3, H, W) normalised pictures.

        Args:
            keep: optional (B, K) indices of the patches that are encoded (MAE); all when None.
            seen: optional (B, N) booleans: the patches that others may attend to. Those get the same numbers as with `keep`, though each
                picture may have another count of them; what comes out for the rest means nothing.
            keys: return the (B, N, D) keys of the last block instead (LOST, TokenCut: the features that segment best).

        Returns:
            (B, 1+N, D): class token, then patch tokens, after the final norm.
        """
        x = self.embed(images)
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, self.width))
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        if seen is not None:
            seen = torch.cat([seen.new_ones(len(seen), 1), seen], 1)
        for block in self.blocks[:-1]:
            x = block(x, seen)
        last = self.blocks[-1]
        if keys:
            k = last.attention.split(last.norm1(x))[1]  # type: ignore[operator, union-attr]
            return k.transpose(1, 2).flatten(2)[:, 1:]
        return self.norm(last(x, seen))

    def levels(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """(B, N, D) patch tokens after each of the blocks (0 is the first, negative ones count from the end), without the final norm."""
        wanted = [i % len(self.blocks) for i in blocks]
        x = self.embed(images)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        found = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            found[i] = x[:, 1:]
        return [found[i] for i in wanted]


def init_transformer(module: nn.Module) -> None:
    """Initialise as ViT and MAE do: Xavier-uniform linear weights, zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
