"""LPIPS, FID and FVD with the networks that they are named after, from local files of weights; nothing is downloaded.

LPIPS: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. FID: Heusel et al., NeurIPS
2017. FVD: Unterthiner et al., 2018. A file that is missing or of another network is refused with its name and with the stand-in that
needs none; a stand-in never has one of these names. `selftaught weights` converts a .pth to the .safetensors that is read here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.measure.frechet import frechet_distance
from selftaught.nets.i3d import I3D
from selftaught.nets.inception import FIDInception
from selftaught.nets.official import read

VARIABLES = {
    "lpips_backbone": "SELFTAUGHT_LPIPS_BACKBONE", "lpips_heads": "SELFTAUGHT_LPIPS_HEADS", "inception": "SELFTAUGHT_FID_INCEPTION",
    "i3d": "SELFTAUGHT_FVD_I3D",
}  # fmt: skip
STAND_INS = {"lpips_backbone": "nets.perceptual.FeatureDistance", "lpips_heads": "nets.perceptual.FeatureDistance",
             "inception": "measure.frechet on embeddings of your own run (kid, frechet_distance)",
             "i3d": "measure.frechet.motion_frechet"}  # fmt: skip
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
_VGG16_TAPS = (3, 8, 15, 22, 29)
_ALEX_TAPS = (1, 4, 7, 9, 11)


def find_weights(kind: str, path: str | os.PathLike[str] | None) -> dict[str, Tensor]:
    """Tensors of a file of weights: the path given, or that in an environment variable; raises ConfigError with the stand-in's name."""
    told = os.fspath(path) if path is not None else os.environ.get(VARIABLES[kind], "")
    if not told:
        raise ConfigError(
            f"Weights are missing: {kind}.", expected=f"a local .safetensors file, given as a path or by {VARIABLES[kind]}",
            do=f"Without weights use {STAND_INS[kind]}, under its own name.",
        )  # fmt: skip
    return read(Path(told).expanduser())


def take(net: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load weights, all keys and shapes checked first; keys that the network has no place for are left out."""
    own = net.state_dict()
    wrong = [k for k, v in own.items() if not k.endswith("num_batches_tracked") and (k not in tensors or tensors[k].shape != v.shape)]
    if wrong:
        raise ConfigError(f"The file holds no {what}.", why=f"{len(wrong)} tensors are missing or have other shapes, e.g. {wrong[0]}")
    net.load_state_dict({k: tensors[k].to(v.dtype) if k in tensors else v for k, v in own.items()})
    net.eval().requires_grad_(False)


class LPIPS(nn.Module):
    """Learned perceptual distance: weighted differences of unit-length features at five depths of AlexNet or VGG16."""

    shift: Tensor
    scale: Tensor

    def __init__(
        self, net: str = "alex", backbone: str | os.PathLike[str] | None = None, heads: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__()
        if net not in ("alex", "vgg"):
            raise ConfigError(f"LPIPS has no network {net!r}.", expected="alex or vgg")
        widths = (64, 192, 384, 256, 256) if net == "alex" else (64, 128, 256, 512, 512)
        self.features = _alex() if net == "alex" else _vgg16()
        self.taps = _ALEX_TAPS if net == "alex" else _VGG16_TAPS
        tensors = find_weights("lpips_backbone", backbone)
        prefix = "features."
        take(self.features, {k.removeprefix(prefix): v for k, v in tensors.items()}, f"torchvision {net} network")
        self.heads = nn.ModuleList([nn.Conv2d(w, 1, 1, bias=False) for w in widths])
        tensors = find_weights("lpips_heads", heads)
        heads_found = {f"{k[3]}.weight": v for k, v in tensors.items() if k.startswith("lin") and k.endswith("model.1.weight")}
        take(self.heads, heads_found, "LPIPS heads")
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, 3, H, W) twice in [0, 1] to (N,) distances."""
        a, b = ((2 * x - 1 - self.shift) / self.scale for x in (a, b))
        total = a.new_zeros(len(a))
        for i, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if i in self.taps:
                gap = (_unit(a) - _unit(b)).square()
                total = total + self.heads[self.taps.index(i)](gap).mean((1, 2, 3))
            if i == self.taps[-1]:
                break
        return total


@torch.no_grad()
def fid(real: Any, made: Any, weights: str | os.PathLike[str] | None = None, batch: int = 32) -> float:
    """Frechet distance of Inception's 2048 pooled features of frames (N, 3, H, W) in [0, 1], resized to 299 x 299."""
    real, made = _pictures(real), _pictures(made)
    net = FIDInception()
    take(net, find_weights("inception", weights), "Inception network of the FID")
    return frechet_distance(_features(net, real, batch), _features(net, made, batch))


@torch.no_grad()
def fvd(real: Any, made: Any, weights: str | os.PathLike[str] | None = None, batch: int = 4) -> float:
    """Frechet distance of I3D's 400 logits of clips (N, T, 3, H, W) in [0, 1], T of at least 9, resized to 224 x 224."""
    real, made = _pictures(real), _pictures(made)
    if min(real.shape[1], made.shape[1]) < 9:
        raise ValueError("expected clips of at least 9 frames")
    net = I3D()
    take(net, find_weights("i3d", weights), "I3D network of Kinetics-400")
    return frechet_distance(_features(net, real, batch), _features(net, made, batch))


def _pictures(values: Any) -> Tensor:
    x = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("expected values in [0, 1]")
    return x


def _features(net: nn.Module, x: Tensor, batch: int) -> np.ndarray:
    return np.asarray(torch.cat([net(part) for part in x.split(batch)]).numpy())


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _alex() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _vgg16() -> nn.Sequential:
    """The convolutions of torchvision's VGG16."""
    layers: list[nn.Module] = []
    before = 3
    for width in _VGG16:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers)
