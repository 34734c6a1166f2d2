"""How much of a sample's masks can be read off tiny neighbourhoods: the check of made pictures.

A picture with a pasted object can give the object away by its edge, its sharpness or its shading, and a method that
finds only that has learned nothing about objects. Here a network that sees 7 x 7 pixels is trained on the true masks;
what it reaches on other pictures is what such cues are worth.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.measure.baselines import centre_box, whole_image
from selftaught.measure.score import Score, score_of

WIDTH = 32
BATCH = 24
CROP_PX = 40
LEARNING_RATE = 3e-3
THRESHOLDS = 64
_CHUNK = 32


def local_leak(images: Any, masks: Any, test_images: Any, test_masks: Any, *, steps: int = 400, seed: int = 0) -> Score:
    """Mean IoU over test pictures of three 3x3 convolutions trained on the true masks (7 x 7 pixels seen).

    images uint8 (N, 3, S, S), masks (N, S, S) with 0 for background; the same for test. Cross entropy, Adam. One
    threshold for all test pictures, the best of 64, chosen on them: an upper bound for this network. Pictures without
    an object are left out. Baselines: whole picture, centred box. ValueError when images and masks differ in number.
    """
    import torch

    if len(images) != len(masks) or len(test_images) != len(test_masks):
        raise ValueError("local_leak: expected as many masks as images")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = _network()
        _train(net, np.asarray(images), np.asarray(masks) > 0, steps, seed)
    truth = np.asarray(test_masks) > 0
    chance = _probabilities(net, np.asarray(test_images))
    per_threshold = np.stack([_ious(chance > t, truth) for t in np.linspace(0, 1, THRESHOLDS, endpoint=False)])
    best = per_threshold[int(np.nanargmax(np.nanmean(per_threshold, axis=1)))]
    side = truth.shape[1:]
    beside = {
        "whole picture": _ious(np.broadcast_to(whole_image(*side) > 0, truth.shape), truth),
        "centred box": _ious(np.broadcast_to(centre_box(*side) > 0, truth.shape), truth),
    }
    return score_of(best, better="lower", unit="IoU", baselines=beside, note="network of 7 x 7 pixels, true masks")


def _network() -> Any:
    """Three convolutions without padding: logits of the inner pixels."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, 1, 3)
    )  # fmt: skip


def _ready(images: np.ndarray) -> Any:
    """float32 (B, 3, H, W) about zero; each picture keeps its own brightness, which is a cue too."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).float().div_(127.5).sub_(1)


def _train(net: Any, images: np.ndarray, masks: np.ndarray, steps: int, seed: int) -> None:
    """Adam with a falling rate on random squares of the training pictures."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    crop = min(CROP_PX, images.shape[2], images.shape[3])
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        rows = rng.integers(0, len(images), BATCH)
        top = int(rng.integers(0, images.shape[2] - crop + 1))
        left = int(rng.integers(0, images.shape[3] - crop + 1))
        logits = net(_ready(images[rows, :, top : top + crop, left : left + crop]))[:, 0]
        goal = masks[rows, top + 3 : top + crop - 3, left + 3 : left + crop - 3]
        loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(np.ascontiguousarray(goal)).float())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def _probabilities(net: Any, images: np.ndarray) -> np.ndarray:
    """(N, S, S) float32 of the object's probability; borders see a mirrored picture."""
    import torch
    from torch.nn.functional import pad

    out = np.empty((len(images), *images.shape[2:]), np.float32)
    with torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            batch = pad(_ready(images[start : start + _CHUNK]), (3, 3, 3, 3), mode="reflect")
            out[start : start + _CHUNK] = torch.sigmoid(net(batch))[:, 0].numpy()
    return out


def _ious(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,) IoU of boolean masks; NaN where the truth is empty."""
    inside = (predicted & truth).sum((1, 2))
    either = (predicted | truth).sum((1, 2))
    return np.where(truth.any((1, 2)), inside / np.maximum(either, 1), np.nan)
