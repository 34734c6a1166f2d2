"""Drawn pictures for MOVE's rungs: one object with parts on a ground, from grounds on which whatever moves shows to plain textures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIDE = 32
MARGIN = 4
"""Pixels that each object keeps from the border: moved by no more than that it is still whole."""
FINER = 3
"""Objects are drawn this many times finer and averaged, so that their rims are soft."""
KINDS = ("disc", "house", "cross", "arrow")
COLOURS = np.array(
    [[[0.90, 0.20, 0.15], [0.98, 0.85, 0.20]], [[0.65, 0.30, 0.10], [0.95, 0.92, 0.85]],
     [[0.10, 0.35, 0.90], [0.55, 0.90, 0.95]], [[0.10, 0.60, 0.20], [0.85, 0.30, 0.80]]]
)  # fmt: skip
"""Two colours of each kind."""


def shape(kind: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the kind is, and where its second colour is; x and y are in units of the object's radius, y points down."""
    if kind == "disc":
        return np.hypot(x, y) < 1, x > 0
    if kind == "house":
        roof = (y > -1) & (y < 0) & (np.abs(x) < 0.95 * (y + 1))
        return roof | ((y >= 0) & (y < 0.9) & (np.abs(x) < 0.75)), y >= 0
    if kind == "cross":
        return ((np.abs(x) < 0.36) & (np.abs(y) < 1)) | ((np.abs(y) < 0.36) & (np.abs(x) < 1)), np.abs(x) < 0.36
    head = (x > 0) & (x < 1) & (np.abs(y) < 1.0 * (1 - x))
    return head | ((x > -1) & (x <= 0) & (np.abs(y) < 0.42)), x > 0


def smooth(rng: np.random.Generator) -> np.ndarray:
    """(3, S, S) colours that change smoothly and strongly with the place: waves of at most two periods, each of a colour of its own."""
    along = np.arange(SIDE) / SIDE
    out = np.full((3, SIDE, SIDE), 0.5)
    for _ in range(5):
        down, right = rng.uniform(-1.6, 1.6, 2)
        wave = np.cos(2 * math.pi * (down * along[:, None] + right * along[None] + rng.uniform()))
        out += rng.normal(0, 0.16, 3)[:, None, None] * wave
    return out


def plaid(rng: np.random.Generator, any_phase: bool = False) -> np.ndarray:
    """(3, S, S) waves of 8 px across and down, of random colours; of one phase in all pictures, or of any phase."""
    phases = rng.uniform(0, 8, (2, 1)) if any_phase else np.full((2, 1), 0.5)
    waves = np.cos(2 * math.pi * (np.arange(SIDE) + phases) / 8)
    across, down = rng.choice([-1, 1], (2, 3)) * rng.uniform(0.06, 0.2, (2, 3))
    middle = rng.uniform(0.4, 0.6, 3)
    return middle[:, None, None] + across[:, None, None] * waves[0][None, None] + down[:, None, None] * waves[1][None, :, None]


def texture(rng: np.random.Generator) -> np.ndarray:
    """(3, S, S) noise around one random colour, which looks the same at each place: two octaves that wrap around, in two colours."""
    frequencies = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None]) * SIDE
    out = rng.uniform(0.25, 0.75, 3)[:, None, None] * np.ones((3, SIDE, SIDE))
    for centre in (3.0, 7.0):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * np.exp(-((frequencies - centre) ** 2) / 2)).real
        out += rng.normal(0, 0.12, 3)[:, None, None] * (noise / noise.std())
    return out


GROUNDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "plaid": plaid,
    "plaid of any phase": lambda rng: plaid(rng, any_phase=True),
    "smooth": smooth,
    "plaid and texture": lambda rng: 0.5 * plaid(rng) + 0.5 * texture(rng),
    "texture": texture,
}


def draw(rng: np.random.Generator, ground: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture (3, S, S), its ground, and its object's share of each pixel (S, S); all in [0, 1]."""
    behind = GROUNDS[ground](rng).clip(0, 1)
    kind = int(rng.integers(len(KINDS)))
    radius = SIDE * rng.uniform(0.17, 0.21)
    middle = rng.uniform(radius + MARGIN, SIDE - radius - MARGIN, 2)
    angle = rng.uniform(-0.35, 0.35) + (kind == 3) * rng.integers(4) * math.pi / 2
    fine = (np.arange(SIDE * FINER) + 0.5) / FINER
    x, y = fine[None] - middle[0], fine[:, None] - middle[1]
    x, y = (math.cos(angle) * x + math.sin(angle) * y) / radius, (math.cos(angle) * y - math.sin(angle) * x) / radius
    inside, second = shape(KINDS[kind], x, y)
    core, _ = shape(KINDS[kind], 1.22 * x, 1.22 * y)
    two = np.clip(COLOURS[kind] + rng.normal(0, 0.05, (2, 3)), 0, 1)
    paint = np.where(second[None], two[1][:, None, None], two[0][:, None, None]) * np.where(core, 1.0, 0.15)[None]
    share, paint = (np.asarray(a, float).reshape(-1, SIDE, FINER, SIDE, FINER).mean((2, 4)) for a in (inside[None], paint * inside))
    return behind * (1 - share) + paint, behind, share[0]


class Pictures:
    """Pictures and their grounds (N, 3, S, S) uint8, and masks (N, S, S) bool; the same seed draws the same ones."""

    def __init__(self, count: int, seed: int, ground: str = "plaid") -> None:
        drawn = [draw(np.random.default_rng([seed, i]), ground) for i in range(count)]
        self.images, self.grounds = (np.stack([(255 * d[k]).round().clip(0, 255).astype(np.uint8) for d in drawn]) for k in (0, 1))
        self.masks = np.stack([d[2] > 0.5 for d in drawn])

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images[np.asarray(indices)]))
