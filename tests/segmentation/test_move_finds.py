"""MOVE finds objects by moving them alone, from no masks and with features that learned nothing; without a shift it does not.

The easiest world there is: discs of two colours with a dark rim on plaid whose phase is fixed, so that every piece of ground that is moved
is out of step, and the true ground in the inpainter's place. benchmarks/move_rungs.py climbs from there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.config import override
from selftaught.core.seeds import batch_indices, seed_all
from selftaught.measure.video import mask_iou
from selftaught.method import Progress
from selftaught.registry import load_class
from selftaught.segmentation.move import Move

SIDE, STEPS, TEST = 32, 130, 64
SETTINGS = [
    "init=none", "anchor_weight=0", "head_stride=1", "head_rim=false", "head_shallow=8", "head_least=16", "discriminator=patches",
    "disc_width=8", "jitter=0", "lr=4e-3", "disc_lr_frac=0.5", "gate=0.55", "hole=pixels", "binary_weight=1", "binary_ramp_frac=0.6",
    "least_area=0.06", "batch_size=16",
]  # fmt: skip


class Discs:
    """Pictures and their grounds (N, 3, S, S) uint8, and masks (N, S, S) bool."""

    def __init__(self, count: int) -> None:
        rng, places = np.random.default_rng(0), np.arange(SIDE) + 0.5
        wave = np.cos(2 * np.pi * places / 8)
        colours = rng.choice([-1, 1], (2, count, 3, 1, 1)) * rng.uniform(0.08, 0.2, (2, count, 3, 1, 1))
        grounds = rng.uniform(0.4, 0.6, (count, 3, 1, 1)) + colours[0] * wave + colours[1] * wave[:, None]
        radius, middle = rng.uniform(5.5, 7, (count, 1, 1)), rng.uniform(11.5, SIDE - 11.5, (2, count, 1, 1))
        away = np.hypot(places - middle[0], places[:, None] - middle[1])
        two = np.where(places > middle[0], np.array([0.95, 0.85, 0.2])[:, None, None, None], np.array([0.9, 0.2, 0.2])[:, None, None, None])
        discs = two.transpose(1, 0, 2, 3) * np.where(away < radius - 1.3, 1, 0.15)[:, None]
        self.masks = away < radius
        self.grounds, self.images = ((255 * x).astype(np.uint8) for x in (grounds, np.where(self.masks[:, None], discs, grounds)))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return torch.from_numpy(self.images[np.asarray(indices)])


class TrueGround(nn.Module):
    """An inpainter that knows what is behind the disc. The plaid is its own mirror image."""

    image_px, patch_px = SIDE, 4
    current: Tensor

    def inpaint(self, images: Tensor, masks: Tensor, masked_encoder: bool = False) -> Tensor:
        return self.current


def found(tmp_path: Path, *changes: str) -> tuple[float, float]:
    """IoU on pictures that were held out, before and after training."""
    discs, simclr, ground = Discs(512 + TEST), load_class("simclr"), TrueGround()
    seed_all(0, 0, 10**12)
    features = simclr(simclr.sizes["tiny"]).eval().requires_grad_(False)
    config = replace(override(Move.small_px32, [*SETTINGS, *changes]), steps=STEPS)
    method: Any = Move(config, {"features": features, "inpainter": ground}).train()
    method.begin(discs, tmp_path, lambda *_: None)
    players = method.players()
    optimizers = {name: player.build_optimizer() for name, player in players.items()}

    def score() -> float:
        test = np.arange(512, 512 + TEST)
        with torch.no_grad():
            masks = method.answer(discs.batch(test).float() / 255)[0].numpy()
        return float(mask_iou(masks, discs.masks[test]).mean())

    before = score()
    for step in range(STEPS):
        seed_all(0, 0, step)
        for number, (name, player) in enumerate(players.items()):
            indices = batch_indices(512, config.batch_size, 0, 2 * step + number)
            batch = method.prepare(discs.batch(indices), indices)
            ground.current = torch.from_numpy(discs.grounds[indices]).float() / 255
            optimizers[name].zero_grad()
            method.loss(batch, name, Progress(step, STEPS))[0].backward()
            for group in optimizers[name].param_groups:
                group["lr"] = player.lr_at(Progress(step, STEPS))
            optimizers[name].step()
        method.after_step(Progress(step, STEPS))
    return before, score()


def test_moving_finds_objects_and_a_shift_of_nothing_does_not(tmp_path: Path) -> None:
    before, after = found(tmp_path)
    _, still = found(tmp_path, "shift_frac=0", "gate=0")
    assert after > 0.5 and after > before + 0.3 and after > still + 0.3, (before, after, still)
