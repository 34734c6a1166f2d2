"""Chairs: a seat, a back of a slab or of slats, four legs, some with arms."""

from __future__ import annotations

import math

import numpy as np

from selftaught.worlds.meshes.solids import Builder, Solid, paint

_WOODS = np.array(
    [
        [0.48, 0.30, 0.16],
        [0.66, 0.48, 0.30],
        [0.30, 0.18, 0.11],
        [0.80, 0.72, 0.60],
        [0.14, 0.13, 0.13],
        [0.82, 0.82, 0.80],
    ]
)
_CLOTHS = np.array(
    [
        [0.60, 0.14, 0.14],
        [0.16, 0.28, 0.52],
        [0.22, 0.42, 0.26],
        [0.74, 0.62, 0.30],
        [0.35, 0.35, 0.38],
        [0.58, 0.36, 0.50],
    ]
)
_SLATS = 5


def chair(random: np.random.RandomState) -> Solid:
    """One chair; always the same number of faces: what it does not have is there at size zero."""
    u = random.uniform
    wood = paint(random, _WOODS)
    seat = paint(random, _CLOTHS) if random.randint(2) else wood
    width, depth, height, thick = u(0.36, 0.48), u(0.36, 0.48), u(0.60, 0.80), u(0.05, 0.10)
    tall, tilt = u(0.62, 0.95), u(0.05, 0.20)
    build = Builder()
    build.box([-width, height - thick, -depth], [width, height, depth], seat)
    _back(build, random, wood, seat, (width, depth, height), (tall, tilt))
    leg, splay = u(0.030, 0.055), u(0.0, 0.07)
    for x in (-1, 1):
        for z in (-1, 1):
            top = np.array([x * (width - leg), height - thick, z * (depth - leg)])
            build.bar(top * [1, 0, 1] + [x * splay, 0, z * splay], top, leg, wood * 0.9)
    armed = bool(random.randint(2))
    arm = height + u(0.20, 0.30) if armed else height
    size = leg * 0.9 if armed else 0.0
    for x in (-1, 1):
        side = x * (width - leg)
        build.bar([side, height, depth * 0.7], [side, arm, depth * 0.7], size, wood)
        build.bar([side, arm, depth * 0.8], [side, arm, -depth * (1.0 if armed else -0.8)], size, wood)
    return build.solid()


def _back(
    build: Builder, random: np.random.RandomState, wood: np.ndarray, seat: np.ndarray,
    seats: tuple[float, float, float], shape: tuple[float, float],
) -> None:  # fmt: skip
    """A tilted slab, or two posts with slats between them."""
    (width, depth, height), (tall, tilt) = seats, shape
    slab = bool(random.randint(2))
    thick = random.uniform(0.025, 0.05)
    lean = -math.tan(tilt) * tall
    base, top = np.array([0.0, height, -depth + thick]), np.array([0.0, height + tall, -depth + thick + lean])
    across = np.array([width, 0, 0])
    out = np.array([0, 0, thick])
    low, high = (base + [0, 0.10 * tall, 0.1 * lean], top) if slab else (base, base)
    ends = np.array([low - across, low + across, high + across, high - across])
    front, behind = ends + out * slab, ends - out * slab
    rims = [np.stack([behind[k], behind[(k + 1) % 4], front[(k + 1) % 4], front[k]]) for k in range(4)]
    build.add(np.stack([front, behind[::-1], *rims]), seat)
    for x in (-1, 1):
        build.bar(base + x * across * 0.92, top + x * across * 0.92, 0.04, wood)
    for part in np.linspace(0.3, 1.0, _SLATS):
        at = base + part * (top - base)
        build.bar(at - across * 0.9, at + across * 0.9, 0.0 if slab else 0.035, wood)
