"""Cars: a lofted body with bonnet, cabin and boot, windows, lamps, bumpers and four wheels; front and back differ."""

from __future__ import annotations

import numpy as np

from selftaught.worlds.meshes.solids import Builder, Solid, paint

_PAINTS = np.array(
    [[0.75, 0.10, 0.10], [0.12, 0.25, 0.62], [0.85, 0.85, 0.86], [0.22, 0.23, 0.25], [0.55, 0.57, 0.60], [0.10, 0.42, 0.25],
     [0.90, 0.70, 0.12], [0.85, 0.42, 0.10], [0.35, 0.60, 0.75], [0.45, 0.25, 0.42], [0.70, 0.62, 0.48]]
)  # fmt: skip
_GLASS = np.array([0.16, 0.20, 0.24])
_DARK = np.array([0.10, 0.10, 0.11])


def car(random: np.random.RandomState) -> Solid:
    """One car; always the same number of faces."""
    u = random.uniform
    length, width, low = u(0.78, 0.98), u(0.32, 0.40), u(0.10, 0.15)
    belt = low + u(0.20, 0.27)
    roof = belt + u(0.16, 0.26)
    bonnet, boot = u(0.50, 0.68), u(0.0, 0.16)  # lengths in front of and behind the cabin: front and back must differ
    rake_front, rake_back = u(0.18, 0.34), u(0.02, 0.14)
    drop, lift = u(0.06, 0.12), u(0.0, 0.03)  # the bonnet lies lower than the belt, the boot about level
    tumble = u(0.68, 0.84)  # how much narrower the roof is
    body = paint(random, _PAINTS)
    build = Builder()
    front, back = length - bonnet, -length + boot
    z = np.array(
        [
            -length,
            -length + 0.05,
            back,
            back + rake_back,
            (front + back) / 2,
            front - rake_front,
            front,
            length - 0.06,
            length,
        ]
    )
    top = np.array(
        [
            belt - 0.05 + lift,
            belt + lift,
            belt + lift + 0.01,
            roof,
            roof + 0.01,
            roof - 0.01,
            belt - drop / 3,
            belt - drop,
            belt - drop - 0.05,
        ]
    )
    cabin = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0])
    wide = width * np.array([0.86, 0.96, 1, 1, 1, 1, 1, 0.95, 0.82])
    side = np.minimum(belt, top)
    edge = np.where(cabin == 1, tumble, 0.93) * wide
    bottom = low + np.array([0.08, 0.02, 0, 0, 0, 0, 0, 0.02, 0.08])
    # Half a cross-section: below the middle, sill, belt, roof's edge, above the middle.
    half = np.stack([
        np.stack([0 * z, bottom, z], 1), np.stack([wide * 0.94, bottom, z], 1), np.stack([wide, side - 0.02, z], 1),
        np.stack([edge, top - 0.015, z], 1), np.stack([0 * z, top, z], 1),
    ], 1)  # fmt: skip
    mirrored = half[:, ::-1][:, 1:-1] * np.array([-1, 1, 1])
    rings = np.concatenate([half, mirrored], 1)
    build.loft(rings, _body_colours(body))
    for ring, out in ((rings[0], -1), (rings[-1], 1)):
        middle = np.broadcast_to(ring.mean(0), ring.shape)
        after = np.roll(ring, -1, 0)
        build.add(np.stack([middle, after, ring, ring] if out < 0 else [middle, ring, after, after], 1), body)
    _trim(build, random, length, width, low, belt - drop, belt + lift)
    _wheels(build, random, length, width, low)
    return build.solid()


def _body_colours(body: np.ndarray) -> np.ndarray:
    """(8, 8, 3): windows between belt and roof of the cabin, the windscreen and the rear window; the rest is painted."""
    colours = np.broadcast_to(body, (8, 8, 3)).copy()
    # Around the ring from below the middle: sill, belt, roof's edge, above the middle, and down again on the other side.
    sides, tops = (2, 5), (3, 4)
    for station in (3, 4):
        colours[station, list(sides)] = _GLASS
    for station in (2, 5):
        colours[station, list(sides)] = 0.5 * (_GLASS + body)
        colours[station, list(tops)] = _GLASS
    return colours


def _trim(
    build: Builder, random: np.random.RandomState, length: float, width: float, low: float, nose: float, tail: float
) -> None:
    """Lamps, grille, bumpers and number plates; headlamps are white, tail lamps red."""
    lamp_w, lamp_h = random.uniform(0.07, 0.11), random.uniform(0.04, 0.065)
    for sign in (-1, 1):
        x = sorted((sign * (width * 0.86 - lamp_w), sign * width * 0.86))
        build.box(
            [x[0], nose - 0.06 - lamp_h, length - 0.05],
            [x[1], nose - 0.06, length + 0.012],
            np.array([0.97, 0.96, 0.86]),
        )
        build.box(
            [x[0], tail - 0.06 - lamp_h * 1.3, -length - 0.012],
            [x[1], tail - 0.06, -length + 0.05],
            np.array([0.72, 0.04, 0.05]),
        )
    grille = random.uniform(0.25, 0.55) * width
    build.box([-grille, low + 0.09, length - 0.03], [grille, nose - 0.07, length + 0.010], _DARK)
    for z, tint in ((length, 0.16), (-length, 0.20)):
        build.box([-width * 0.92, low + 0.01, z - 0.03], [width * 0.92, low + 0.08, z + 0.03], np.full(3, tint))
    plate = random.uniform(0.10, 0.14)
    build.box([-plate, low + 0.11, -length - 0.014], [plate, low + 0.17, -length + 0.02], np.array([0.93, 0.92, 0.85]))


def _wheels(build: Builder, random: np.random.RandomState, length: float, width: float, low: float) -> None:
    """Four tyres with lighter hubs."""
    radius, tyre = random.uniform(0.125, 0.165), 0.10
    hub = np.full(3, random.uniform(0.45, 0.8))
    for z in (-length + random.uniform(0.24, 0.34), length - random.uniform(0.22, 0.30)):
        for sign in (-1, 1):
            inner, outer = sign * (width - tyre), sign * (width + 0.012)
            build.bar([inner, radius, z], [outer, radius, z], radius, np.array([0.06, 0.06, 0.065]), 14)
            build.bar([outer, radius, z], [outer + sign * 0.008, radius, z], 0.58 * radius, hub, 10)
