"""Objects put together from simple solids whose faces each have one colour."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Solid:
    """One object: +Y up, +Z its front, +X its left, origin in its middle.

    `points` float32 (V, 3), `faces` int64 (F, 3), counterclockwise from outside, `colours` float32 (V, 3) in [0, 1].
    `smooth`: whether faces share vertices and are shaded across them.
    """

    points: Array
    faces: Array
    colours: Array
    smooth: bool = False


@dataclass
class Builder:
    """Collects quadrilaterals; what stays away (an arm of a chair that has none) keeps its faces at size zero."""

    corners: list[Array] = field(default_factory=list)
    tints: list[Array] = field(default_factory=list)

    def add(self, corners: Array, colour: Array) -> None:
        """Add quadrilaterals (Q, 4, 3) of one colour (3,) or one each (Q, 3)."""
        self.corners.append(corners)
        self.tints.append(np.broadcast_to(np.asarray(colour, np.float64), (len(corners), 3)))

    def box(self, low: Any, high: Any, colour: Array, taper: float = 1.0) -> None:
        """Add a box between two corners; its top is `taper` times as wide and deep."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        middle, half = (low + high) / 2, (high - low) / 2
        self.add(middle + half * _BOX * np.where(_BOX[..., 1:2] > 0, [taper, 1, taper], 1), colour)

    def bar(self, start: Any, end: Any, radius: float, colour: Array, sides: int = 8) -> None:
        """Add a closed cylinder from `start` to `end`."""
        start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
        long = float(np.linalg.norm(end - start))
        axis = (end - start) / long if long > 0 else np.array([0.0, 1.0, 0.0])
        across = np.cross(axis, [0.0, 1.0, 0.0] if abs(axis[1]) < 0.9 else [1.0, 0.0, 0.0])
        across /= np.linalg.norm(across)
        turn = 2 * math.pi * np.arange(sides) / sides
        ring = radius * (np.cos(turn)[:, None] * across + np.sin(turn)[:, None] * np.cross(axis, across))
        self.loft(np.stack([start + ring, end + ring]), np.broadcast_to(colour, (1, sides, 3)))
        for centre, side in ((start, ring[::-1]), (end, ring)):
            a, b = centre + side, centre + np.roll(side, -1, 0)
            self.add(np.stack([np.broadcast_to(centre, a.shape), a, b, b], 1), colour)

    def loft(self, rings: Array, colours: Array) -> None:
        """Add the skin between rings (S, R, 3); colours (S - 1, R, 3), one for each quadrilateral."""
        right = np.roll(rings, -1, 1)
        quads = np.stack([right[:-1], right[1:], rings[1:], rings[:-1]], 2)
        self.corners.append(quads.reshape(-1, 4, 3))
        self.tints.append(np.asarray(colours, np.float64).reshape(-1, 3))

    def solid(self) -> Solid:
        """Everything that was added, in the middle of its own box and within the unit sphere."""
        points = np.concatenate(self.corners).reshape(-1, 3)
        points = points - (points.min(0) + points.max(0)) / 2
        points = points / np.linalg.norm(points, axis=1).max()
        first = 4 * np.arange(len(points) // 4)
        faces = np.stack([first[:, None] + [0, 1, 2], first[:, None] + [0, 2, 3]], 1).reshape(-1, 3)
        colours = np.concatenate(self.tints).repeat(4, 0)
        return Solid(points.astype(np.float32), faces, colours.clip(0, 1).astype(np.float32))


def _box() -> Array:
    """(6, 4, 3) corners of the box [-1, 1]^3."""
    quads = []
    for axis in range(3):
        for sign in (1, -1):
            u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
            out = sign * np.eye(3)[axis]
            quads.append([out - u - v, out + sign * (u - v), out + u + v, out - sign * (u - v)])
    return np.array(quads)


_BOX = _box()


def paint(random: np.random.RandomState, kinds: Array) -> Array:
    """One of the colours (K, 3) in [0, 1], a little changed."""
    return (kinds[random.randint(len(kinds))] + random.uniform(-0.06, 0.06, 3)).clip(0, 1)
