"""Backbones by name, behind one small interface: pictures in [0, 1] in, a pooled vector and a map of patch features out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError, suggest
from selftaught.nets.resnet import ResNet
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
    "resnet-tiny-test": ("resnet", dict(width=8, blocks=(1, 1)), "for tests: learns nothing worth having"),
    "resnet10-32": ("resnet", dict(width=32, blocks=(1, 1, 1, 1)), "1.2 M parameters, CPU minutes"),
    "resnet18-16": ("resnet", dict(width=16), "0.7 M parameters, CPU minutes"),
    "resnet18-32": ("resnet", dict(width=32), "2.8 M parameters, CPU minutes"),
    "resnet18": ("resnet", dict(width=64), "11 M parameters, the CIFAR tables' network, GPU"),
}

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A network with one interface for all rooms.

    `forward(images)` takes (B, 3, H, W) pictures in [0, 1] and returns `(pooled (B, D), tokens (B, D, h, w))`;
    `keys(images)` gives the (B, D, h, w) features that segment best: the last block's keys of a ViT, the last map of a ResNet.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, width: int, patch_px: int, image_px: int):
        super().__init__()
        self.net, self.width, self.patch_px, self.image_px = net, width, patch_px, image_px
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Shift and scale [0, 1] pictures by ImageNet's mean and deviation."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.normalise(images)
        if isinstance(self.net, ViT):
            out = self.net(x)
            return out[:, 0], self.as_map(out[:, 1:], images)
        tokens = self.net(x)
        return tokens.mean((2, 3)), tokens

    def keys(self, images: Tensor) -> Tensor:
        """Return (B, D, h, w) patch features for segmentation."""
        x = self.normalise(images)
        if isinstance(self.net, ViT):
            return self.as_map(self.net(x, keys=True), images)
        return self.net(x)

    def as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Reshape (B, N, D) tokens of `images` to (B, D, h, w)."""
        h = images.shape[2] // self.patch_px
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], h, -1)


class TimmMaps(nn.Module):
    """A timm model cut down to its last map (B, D, h, w): convolutional maps as they are, transformer tokens reshaped."""

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
        patch_px: pixels per token (ViT), or stride of the last map (ResNet: 4 stages need at least 8).
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
        return Backbone(vit, vit.width, patch_px, image_px)
    steps = 2 ** (len(sizes.get("blocks", (2, 2, 2, 2))) - 1)
    # Small pictures keep their resolution in the stem; large ones lose it there, where it costs most, and keep a fine last map.
    strides = {steps // 2: (1, 1), steps: (1, 2) if image_px <= 48 else (2, 1), steps * 2: (2, 2)}
    if patch_px not in strides:
        raise ConfigError(
            f"{name} cannot make a map of stride {patch_px}.", expected=f"patch_px one of {sorted(strides)}"
        )
    stem_stride, last_stride = strides[patch_px]
    resnet = ResNet(stem_stride=stem_stride, last_stride=last_stride, **sizes)
    return Backbone(resnet, resnet.width, patch_px, image_px)


def build_timm(model: str, image_px: int) -> Backbone:
    """Wrap a timm model of any family; nothing is downloaded."""
    from selftaught.nets.torchvision_ops import make_torchvision_importable

    make_torchvision_importable()
    import timm

    if not timm.is_model(model):
        raise ConfigError(f"timm has no model {model!r}.{suggest(model, timm.list_models())}")
    options: dict[str, Any] = dict(pretrained=False, num_classes=0)
    try:
        net = timm.create_model(model, img_size=image_px, **options)
    except TypeError:  # convolutional models take any size and know no img_size
        net = timm.create_model(model, **options)
    with torch.no_grad():
        out = net.eval().forward_features(torch.zeros(1, 3, image_px, image_px))
    net.train()
    if out.ndim == 3:
        side = int((out.shape[1] - int(getattr(net, "num_prefix_tokens", 0))) ** 0.5)
        width = out.shape[2]
    else:
        side, width = out.shape[-1], out.shape[1]
    patch_px = image_px // side
    return Backbone(TimmMaps(net, patch_px), width, patch_px, image_px)
