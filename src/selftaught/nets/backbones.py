"""Backbones by name, behind one small interface: pictures in [0, 1] in, a pooled vector and a map of patch features out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError, suggest
from selftaught.nets.resnet import ResNet
from selftaught.nets.timm_vit import TimmViT, is_plain_vit
from selftaught.nets.vit import ViT

#: name -> (kind, sizes, one line of description)
BACKBONES: dict[str, tuple[str, dict[str, Any], str]] = {
    "vit-tiny-test": ("vit", dict(width=32, depth=2, heads=2), "for tests: learns nothing worth having"),
    "vit-128x4": ("vit", dict(width=128, depth=4, heads=4), "0.8 M parameters, CPU minutes"),
    "vit-192x4": ("vit", dict(width=192, depth=4, heads=6), "1.8 M parameters, CPU minutes"),
    "vit-192x6": ("vit", dict(width=192, depth=6, heads=6), "2.7 M parameters, CPU tens of minutes"),
    "vit-192x12": ("vit", dict(width=192, depth=12, heads=3), "ViT-Ti, 5.5 M parameters"),
    "vit-384x12": ("vit", dict(width=384, depth=12, heads=6), "ViT-S, 21 M parameters, GPU"),
    "vit-768x12": ("vit", dict(width=768, depth=12, heads=12), "ViT-B, 86 M parameters, GPU"),
    "vit-1024x24": ("vit", dict(width=1024, depth=24, heads=16), "ViT-L, 303 M parameters, GPU"),
    "resnet-tiny-test": ("resnet", dict(width=8, blocks=(1, 1, 1)), "for tests: learns nothing worth having"),
    "resnet10-32": ("resnet", dict(width=32, blocks=(1, 1, 1, 1)), "1.2 M parameters, CPU minutes"),
    "resnet11-32": ("resnet", dict(width=32, blocks=(1, 2, 2), stem_stride=2), "0.7 M parameters, CPU minutes, fast"),
    "resnet18-16": ("resnet", dict(width=16), "0.7 M parameters, CPU minutes"),
    "resnet18-32": ("resnet", dict(width=32), "2.8 M parameters, CPU minutes"),
    "resnet18": ("resnet", dict(width=64), "11 M parameters, the CIFAR tables' network, GPU"),
}

MARGIN = 2
"""Patches by which pictures are mirrored outwards before a ResNet's features are read."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A network with one interface for all rooms.

    `forward(images)` takes (B, 3, H, W) pictures in [0, 1] and returns `(pooled (B, D), tokens (B, E, h, w))`;
    `keys(images)` gives the (B, E, h, w) features that segment best. For a ViT D = E, tokens are those of the last block and keys its
    keys. For a ResNet, pooled is the mean of the last map; tokens are all maps of stride `patch_px` and coarser, brought to that stride
    and stacked, and in `keys` each of them has unit length at every place, so that none drowns the others.
    """

    mean: Tensor
    std: Tensor

    pool = "cls"
    """What the pooled vector is, of a ViT: cls (the class token) or mean (of the patch tokens); of a ResNet, whose last map is
    pooled: mean, or power (see `power_mean`)."""

    def __init__(self, net: nn.Module, width: int, token_width: int, patch_px: int, image_px: int):
        super().__init__()
        self.net, self.width, self.token_width = net, width, token_width
        self.patch_px, self.image_px = patch_px, image_px
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Shift and scale [0, 1] pictures by ImageNet's mean and deviation."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.normalise(images)
        if isinstance(self.net, (ViT, TimmViT)):
            out = self.net(x)
            return (out[:, 1:].mean(1) if self.pool == "mean" else out[:, 0]), self.as_map(out[:, 1:], images)
        if isinstance(self.net, ResNet):
            maps = self.net(x)
            return self.pool_map(maps[-1]), torch.cat(self.same_stride(maps), 1)
        tokens = self.net(x)
        return tokens.mean((2, 3)), tokens

    def pooled(self, images: Tensor) -> Tensor:
        """Only the (B, D) pooled vectors, for trainings that need no more."""
        if isinstance(self.net, ResNet):
            return self.pool_map(self.net(self.normalise(images))[-1])
        return self(images)[0]

    def pool_map(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D)."""
        return power_mean(x) if self.pool == "power" else x.mean((2, 3))

    def keys(self, images: Tensor) -> Tensor:
        """Return (B, E, h, w) patch features for segmentation."""
        x = self.normalise(images)
        if isinstance(self.net, (ViT, TimmViT)):
            return self.as_map(self.net(x, keys=True), images)
        if isinstance(self.net, ResNet):
            # Zero padding marks the rim of every picture, and a cut would find the rim: mirror the picture outwards, drop the margin.
            margin = MARGIN if min(x.shape[2:]) > MARGIN * self.patch_px else 0
            if margin:
                x = nn.functional.pad(x, (margin * self.patch_px,) * 4, mode="reflect")
            maps = [nn.functional.normalize(m, dim=1) for m in self.same_stride([m.float() for m in self.net(x)])]
            h, w = maps[0].shape[2:]
            return torch.cat(maps, 1)[:, :, margin : h - margin, margin : w - margin]
        return self.net(x)

    def levels(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """(B, E, h, w) maps after some blocks (of a ViT, without its final norm) or stages (of a ResNet), 0 the first, -1 the last."""
        x = self.normalise(images)
        if isinstance(self.net, (ViT, TimmViT)):
            return [self.as_map(tokens, images) for tokens in self.net.levels(x, blocks)]
        maps = self.net(x) if isinstance(self.net, ResNet) else [self.net(x)]
        return [maps[i] for i in blocks]

    def pyramid(self, images: Tensor, count: int = 4) -> list[Tensor]:
        """Up to `count` maps of different depth, finest first: the stages of a ResNet, blocks of a ViT spread over its depth."""
        if isinstance(self.net, (ViT, TimmViT)):
            depth = len(self.net.blocks if isinstance(self.net, ViT) else self.net.model.blocks)
            steps = min(count, depth)
            return self.levels(images, [(i + 1) * depth // steps - 1 for i in range(steps)])
        stages = len(self.net.strides) if isinstance(self.net, ResNet) else 1
        return self.levels(images, range(max(stages - count, 0), stages))

    def same_stride(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps of stride `patch_px` and coarser, all enlarged to that stride."""
        chosen = [m for m, stride in zip(maps, self.net.strides, strict=True) if stride >= self.patch_px]  # type: ignore[arg-type]
        size = chosen[0].shape[-2:]
        return [chosen[0]] + [
            nn.functional.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in chosen[1:]
        ]

    def as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Reshape (B, N, D) tokens of `images` to (B, D, h, w)."""
        h = images.shape[2] // self.patch_px
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], h, -1)


def power_mean(x: Tensor, power: float = 3.0) -> Tensor:
    """Generalised mean over places (GeM, Radenovic et al., TPAMI 2019, eq. 3): (mean x^p)^(1/p), (B, D, h, w) >= 0 to (B, D).

    Large values count more than in a mean, so that a small object is not drowned by what surrounds it.
    """
    return x.float().clamp(min=1e-4).pow(power).mean((2, 3)).pow(1 / power)


class TimmMaps(nn.Module):
    """A timm model cut down to its last map (B, D, h, w): convolutional maps as they are, tokens of unusual transformers reshaped."""

    def __init__(self, model: nn.Module, patch_px: int):
        super().__init__()
        self.model, self.patch_px = model, patch_px

    def forward(self, images: Tensor) -> Tensor:
        out = self.model.forward_features(images)  # type: ignore[operator]
        if out.ndim == 3:
            prefix = int(getattr(self.model, "num_prefix_tokens", 0))  # class and register tokens come first
            h = images.shape[2] // self.patch_px
            out = out[:, prefix:].transpose(1, 2).reshape(out.shape[0], out.shape[2], h, -1)
        return out


def build_backbone(name: str, image_px: int, patch_px: int, stem: str = "linear") -> Backbone:
    """Build a backbone from its name in `BACKBONES`, or `timm:MODEL` for any timm model (random weights).

    Args:
        image_px: side of the square pictures it will mostly see.
        patch_px: pixels per token (ViT), or stride of the finest map whose features are used (ResNet).
    """
    if name.startswith("timm:"):
        return build_timm(name[5:], image_px)
    if name not in BACKBONES:
        raise ConfigError(
            f"There is no backbone {name!r}.{suggest(name, BACKBONES)}",
            expected=", ".join(BACKBONES) + ", or timm:MODEL",
        )
    kind, sizes, _ = BACKBONES[name]
    if kind == "vit":
        vit = ViT(image_px=image_px, patch_px=patch_px, stem=stem, **sizes)
        return Backbone(vit, vit.width, vit.width, patch_px, image_px)
    # Small pictures keep their resolution in the stem; large ones lose it there, where it costs most.
    resnet = ResNet(**{"stem_stride": 1 if image_px <= 48 else 2, **sizes})
    if patch_px not in resnet.strides:
        raise ConfigError(f"{name} has no map of stride {patch_px}.", expected=f"patch_px one of {resnet.strides}")
    token_width = sum(w for w, stride in zip(resnet.widths, resnet.strides, strict=True) if stride >= patch_px)
    return Backbone(resnet, resnet.widths[-1], token_width, patch_px, image_px)


def build_timm(model: str, image_px: int) -> Backbone:
    """Wrap a timm model of any family, MODEL or MODEL.TAG, with random weights; nothing is downloaded.

    Plain vision transformers give class token and keys as our own do; see `nets/official.py` for published weights.
    """
    from selftaught.nets.torchvision_ops import make_torchvision_importable

    make_torchvision_importable()
    import timm

    if not timm.is_model(model):
        raise ConfigError(f"timm has no model {model!r}.{suggest(model, timm.list_models())}")
    name, _, tag = model.partition(".")
    tagged = timm.list_models(f"{name}.*", pretrained=True)
    if tag and model not in tagged:
        raise ConfigError(f"timm has no tag {tag!r} of {name}.{suggest(model, tagged)}", expected=", ".join(tagged) or name)
    net = create_timm(model, image_px)
    if is_plain_vit(net):
        patch_px = net.patch_embed.patch_size[0]
        if image_px % patch_px:
            near = max(round(image_px / patch_px), 1) * patch_px
            raise ConfigError(
                f"{model} has patches of {patch_px} px, and {image_px} px do not divide into them.", do=f"--set image_px={near}"
            )
        return with_pixels_of(net, Backbone(TimmViT(net), net.embed_dim, net.embed_dim, patch_px, image_px))
    with torch.no_grad():
        out = net.eval().forward_features(torch.zeros(1, 3, image_px, image_px))
    net.train()
    if out.ndim == 3:
        side = int((out.shape[1] - int(getattr(net, "num_prefix_tokens", 0))) ** 0.5)
        width = out.shape[2]
    else:
        side, width = out.shape[-1], out.shape[1]
    patch_px = image_px // side
    return with_pixels_of(net, Backbone(TimmMaps(net, patch_px), width, width, patch_px, image_px))


def create_timm(model: str, image_px: int) -> Any:
    """A timm model without classifier, for as free a choice of picture sizes as its family knows."""
    import timm

    choices: list[dict[str, Any]] = [dict(img_size=image_px, dynamic_img_size=True), dict(img_size=image_px)]
    for sizes in choices:
        try:
            return timm.create_model(model, pretrained=False, num_classes=0, **sizes)
        except TypeError:  # convolutional models take any size and know no img_size
            continue
    return timm.create_model(model, pretrained=False, num_classes=0)


def with_pixels_of(net: Any, backbone: Backbone) -> Backbone:
    """Give a backbone the mean and deviation of pixels that a timm model's published weights expect."""
    for name in ("mean", "std"):
        values = net.pretrained_cfg.get(name)
        if values is not None and len(values) == 3:
            getattr(backbone, name).copy_(torch.tensor(values).view(1, 3, 1, 1))
    return backbone
