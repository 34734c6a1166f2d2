"""What MOVE makes of a picture and a mask: object moved, hole filled, pictures for the discriminator, losses on masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.core import draws


def draw_shift(B: int, reach_px: float) -> Tensor:
    """(B, 2) whole pixels down and to the right, uniform in [-reach_px, reach_px] before they are rounded."""
    return ((2 * draws.rand(B, 2) - 1) * reach_px).round().long()


def shift(x: Tensor, by: Tensor) -> Tensor:
    """Move each of (B, C, H, W) by its own (B, 2) pixels down and right; zeros come in, nothing wraps around."""
    H, W = x.shape[-2:]
    rows = torch.arange(H, device=x.device) - by[:, :1].to(x.device)
    columns = torch.arange(W, device=x.device) - by[:, 1:].to(x.device)
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]
    x = x.gather(2, rows.clamp(0, H - 1)[:, None, :, None].expand_as(x))
    x = x.gather(3, columns.clamp(0, W - 1)[:, None, None, :].expand_as(x))
    return x * inside[:, None].to(x.dtype)


def union(mask: Tensor, moved: Tensor) -> Tensor:
    """Soft union 1 - (1 - m)(1 - m_d): the place that the object left, and the place that it will cover."""
    return 1 - (1 - mask) * (1 - moved)


def holes(region: Tensor, patch_px: int) -> Tensor:
    """How much of each tile of patch_px is to be painted: the largest value of the region (B, 1, S, S) in it, at the size of the picture.

    Soft, as the hiding of tokens is: were a tile painted wherever a mask is a little above 0, a weak mask could make an object vanish.
    """
    return nn.functional.interpolate(nn.functional.max_pool2d(region, patch_px), scale_factor=patch_px, mode="nearest")


def like_rim(pictures: Tensor, canvas: Tensor, rim_frac: float = 0.125) -> Tensor:
    """Pictures (B, 3, S, S) whose rims have the mean and the deviation of each colour that the rims of `canvas` have; clipped to [0, 1].

    What was photographed together shares its light (Reinhard et al., "Color Transfer between Images", 2001); without this a
    discriminator sees that the colours of what was pasted are strange, whatever the mask. The deviation changes by a factor of 3 at most.
    """
    width = max(round(rim_frac * pictures.shape[-1]), 1)
    rim = torch.ones(pictures.shape[-2:], dtype=torch.bool, device=pictures.device)
    rim[width:-width, width:-width] = False
    (mean, std), (to, to_std) = ((x[:, :, rim].mean(2)[..., None, None], x[:, :, rim].std(2)[..., None, None]) for x in (pictures, canvas))
    return ((pictures - mean) * (to_std / std.clamp(min=0.02)).clamp(1 / 3, 3) + to).clamp(0, 1)


def ranked(logits: Tensor, shares: Tensor | float, rim_frac: float = 0.0, sharpness: float = 5.0) -> Tensor:
    """Masks (B, 1, S, S) that hold the largest of their logits (B, 1, S, S), up to a given share of the picture, soft at their rims.

    m = sigmoid(sharpness (z - z_k)), z the logits in units of their deviation, z_k the last of them that is inside. So masks can neither
    shrink nor grow nor become grey to look real: all that is left to learn is which places come first.

    Args:
        shares: (B,) or one number, the share of the picture, from 0 to 1.
        rim_frac: width of the rim, as a share of the side, in which no mask lies. What is pasted there has few seams.
    """
    H, W = logits.shape[-2:]
    width = round(rim_frac * W)
    inner = logits[:, :, width : H - width, width : W - width]
    z = (inner - inner.mean((1, 2, 3), keepdim=True)) / inner.std((1, 2, 3), keepdim=True).clamp(min=0.1)
    falling = z.detach().flatten(1).sort(1, descending=True)[0]
    if isinstance(shares, Tensor):
        last = (shares.to(z.device) * (H * W)).long().clamp(0, falling.shape[1] - 1)
        level = falling.gather(1, last[:, None])
    else:
        last_of_all = min(int(shares * H * W), falling.shape[1] - 1)
        level = falling[:, last_of_all : last_of_all + 1]
    mask = ((z - level[:, :, None, None]) * sharpness).sigmoid()
    return nn.functional.pad(mask, (width,) * 4)


class Chequers:
    """Stands in an inpainter's place and paints squares of 2 px, magenta and green, which nobody takes for a ground.

    Args:
        patch_px: what counts as one of its tiles.
    """

    def __init__(self, patch_px: int) -> None:
        self.patch_px = patch_px

    def inpaint(self, pictures: Tensor, region: Tensor, masked_encoder: bool = False) -> Tensor:
        """(B, 3, S, S) pictures to squares of their size, whatever the region (B, S, S)."""
        H, W = (torch.arange(side, device=pictures.device) // 2 for side in pictures.shape[-2:])
        odd = ((H[:, None] + W) % 2).to(pictures)
        return torch.stack([odd, 1 - odd, odd]).expand_as(pictures)


@dataclass
class Scene:
    """The pictures of one step, each (B, 3, S, S) in [0, 1]; masks are (B, 1, S, S)."""

    picture: Tensor
    """A real one."""
    unshifted: Tensor
    """A real one: the object pasted where it was, over the painted background."""
    composite: Tensor
    """A fake: the object moved, over the painted background. The segmenter makes it look real."""
    copied: Tensor
    """A fake: the object pasted a second time beside itself."""
    background: Tensor
    mask: Tensor
    """Of `picture`."""
    moved: Tensor
    """Of what was pasted."""

    def changed(self) -> dict[str, Tensor | None]:
        """Kind -> where it is not the picture that it is made of, (B, 1, S, S) in [0, 1]; None for what counts as real."""
        return {"picture": None, "unshifted": None, "composite": union(self.mask, self.moved), "copied": self.moved}


def make_scene(
    pictures: Tensor, mask: Tensor, by: Tensor, inpainter: Any, *, copy_real: bool = True, masked_encoder: bool = True,
    soft: bool = True, tiles: bool = True, onto: Tensor | None = None,
) -> Scene:  # fmt: skip
    """Cut, move, fill and paste (MOVE, section 3).

    x_d = shift(x), m_d = shift(m), u = 1 - (1 - m)(1 - m_d), b = what the inpainter paints for u,
    composite = x_d m_d + b (1 - m_d), unshifted = x m + b (1 - m), copied = x_d m_d + x (1 - m_d).
    With `onto` x_d and m_d are those of another picture, whose colours were brought to those of x.

    Args:
        pictures: (B, 3, S, S) in [0, 1].
        mask: (B, 1, S, S) in [0, 1].
        by: (B, 2) pixels.
        inpainter: has the capability `inpaint`, and `patch_px`, the side of its tiles.
        copy_real: b is painted * h + x (1 - h), real pixels outside of the hole h. Otherwise real
            pixels are auto-encoded everywhere (x_d after it was moved, so that the tiles lie on the canvas and do not tell the shift), and
            traces of the inpainter tell nothing.
        masked_encoder: the inpainter's encoder does not see what it is to fill.
        soft: gradients go through the inpainting as well; otherwise only through the pasting.
        onto: (B,) for each object the number of the picture that it is pasted onto, each once; None pastes it onto its own.
        tiles: h is the largest value of u in each tile; otherwise h is u itself. A mask that misses less than a tile of the object
            leaves nothing of it behind when whole tiles are painted, and looks as real as the whole object.
    """
    moved = shift(mask, by)
    if onto is None:
        shifted = shift(pictures, by)
    else:
        source, pictures, mask = pictures, pictures[onto], mask[onto]
        shifted = shift(like_rim(source, pictures), by)
    region = union(mask, moved)
    region = region if soft else (region.detach() > 0.5).to(region.dtype)
    painted = inpainter.inpaint(pictures, region[:, 0], masked_encoder=masked_encoder).to(pictures.dtype)
    if copy_real:
        hole = holes(region, int(inpainter.patch_px)) if tiles else region
        background = painted * hole + pictures * (1 - hole)
    else:
        with torch.no_grad():
            nothing = torch.zeros_like(pictures[:, 0])
            pictures, shifted = inpainter.inpaint(pictures, nothing), inpainter.inpaint(shifted, nothing)
        background = painted
    return Scene(
        pictures,
        pictures * mask + background * (1 - mask),
        shifted * moved + background * (1 - moved),
        shifted * moved + pictures * (1 - moved),
        background, mask, moved,
    )  # fmt: skip


def three_scales(mask: Tensor, patch_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mask (B, 1, S, S), the means of its tiles, and their maxima."""
    return mask, nn.functional.avg_pool2d(mask, patch_px), nn.functional.max_pool2d(mask, patch_px)


def area_loss(mask: Tensor, least: float, most: float, most_weight: float) -> Tensor:
    """mean over pictures of max(0, least - area), plus most_weight times that of max(0, area - most); area: share of the picture."""
    area = mask.float().mean((1, 2, 3))
    return torch.relu(least - area).mean() + most_weight * torch.relu(area - most).mean()


def binary_loss(mask: Tensor) -> Tensor:
    """mean of min(m, 1 - m): 0 when every pixel is 0 or 1, 0.5 when all are 0.5."""
    return torch.minimum(mask, 1 - mask).float().mean()


def recolour(pictures: Tensor, strength: float) -> Tensor:
    """Random brightness, saturation and contrast per picture (DiffAugment's "color", Zhao et al., NeurIPS 2020), differentiable.

    With strength 1, of pictures in [0, 1]: brightness + U(-0.25, 0.25), distance to the pixel's grey times U(0, 2), distance to the
    picture's mean times U(0.5, 1.5). It never moves anything: that would hide what the discriminator is to see.
    """
    if strength == 0:
        return pictures
    u = (2 * draws.rand(len(pictures), 3) - 1).to(pictures)[:, :, None, None, None] * strength
    pictures = pictures + 0.25 * u[:, 0]
    grey = pictures.mean(1, keepdim=True)
    pictures = (pictures - grey) * (1 + u[:, 1]) + grey
    mean = pictures.mean((1, 2, 3), keepdim=True)
    return (pictures - mean) * (1 + 0.5 * u[:, 2]) + mean


def separation(maps: Tensor, mask: Tensor) -> Tensor:
    """How much of the variance of patch features is between inside and outside of a soft mask: (B, E, h, w), (B, h, w) to (B,) in [0, 1].

    eta^2 = w (1 - w) |mean_in - mean_out|^2 / (mean |f - mean|^2), w the share inside; 0 where all patches are alike.
    """
    f, m = maps.float().flatten(2), mask.float().flatten(1)[:, None]
    w = m.mean(2)
    inside = (f * m).mean(2) / w.clamp(min=1e-6)
    outside = (f * (1 - m)).mean(2) / (1 - w).clamp(min=1e-6)
    total = (f - f.mean(2, keepdim=True)).square().mean(2).sum(1)
    # Rounding alone makes features of a flat picture differ.
    small = 1e-6 * f.square().mean(2).sum(1)
    between = (w * (1 - w))[:, 0] * (inside - outside).square().sum(1)
    return torch.where(total > small, between / total.clamp(min=1e-12), 0.0).clamp(0, 1)
