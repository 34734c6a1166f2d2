"""Discs and capsules with soft edges, drawn over pictures of N moments at once: what the worlds `arm` and `drawn-tennis` are drawn with.

Coordinates are pixels, (x, y), and pixel i reaches from i to i + 1. Coverage is the signed distance to the edge, cut to one pixel.
"""

from __future__ import annotations

import numpy as np


class Canvas:
    """Pictures (N, H, W, 3) that shapes are laid over; `mask` gathers the coverage of those that belong to the agent."""

    def __init__(self, ground: np.ndarray, count: int) -> None:
        H, W = ground.shape[:2]
        self.pixels = np.repeat(ground[None].astype(np.float32), count, 0)
        self.mask = np.zeros((count, H, W), np.float32)
        self._x, self._y = np.arange(W, dtype=np.float32) + 0.5, np.arange(H, dtype=np.float32)[:, None] + 0.5

    def disc(self, centres: np.ndarray, radius: float, colour: np.ndarray | tuple[int, ...], agent: bool = False) -> np.ndarray:
        """Discs around (N, 2); `colour` is (3,) or (N, 3) of 0 to 255. Returns the coverage (N, H, W) in [0, 1]."""
        return self.capsule(centres, centres, radius, colour, agent)

    def capsule(
        self, a: np.ndarray, b: np.ndarray, radius: float, colour: np.ndarray | tuple[int, ...], agent: bool = False
    ) -> np.ndarray:
        """All that is within `radius` of the lines from (N, 2) to (N, 2)."""
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        way = (b - a)[:, :, None, None]
        dx, dy = self._x - a[:, 0, None, None], self._y - a[:, 1, None, None]
        along = np.clip((dx * way[:, 0] + dy * way[:, 1]) / np.maximum((way**2).sum(1), 1e-9), 0, 1)
        away = np.hypot(dx - along * way[:, 0], dy - along * way[:, 1])
        cover = np.clip(radius + 0.5 - away, 0, 1)
        self.lay(cover, colour)
        if agent:
            self.mask = 1 - (1 - self.mask) * (1 - cover)
        return cover

    def lay(self, cover: np.ndarray, colour: np.ndarray | tuple[int, ...]) -> None:
        """Lay a colour over the pictures where `cover` (N, H, W) in [0, 1] says."""
        c = np.broadcast_to(np.asarray(colour, np.float32), (len(cover), 3))[:, None, None]
        self.pixels += cover[..., None] * (c - self.pixels)

    def frames(self) -> np.ndarray:
        """The pictures so far, uint8 (N, H, W, 3)."""
        return np.clip(np.rint(self.pixels), 0, 255).astype(np.uint8)

    def masks(self) -> np.ndarray:
        """Where the agent is, uint8 (N, H, W), 255 where it covers all."""
        return np.rint(255 * self.mask).astype(np.uint8)
