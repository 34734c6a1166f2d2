"""Heads: a sphere pushed into a face by smooth bumps that differ from person to person, and painted by a formula.

Shape and skin are symmetric between left and right, the light is not. Colours are functions of the place on the undeformed
sphere and are computed for each pixel, so that eyes and lips are sharp at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from selftaught.worlds.meshes.solids import Solid, paint

Array = np.ndarray
_SKINS = np.array(
    [
        [0.93, 0.76, 0.66],
        [0.86, 0.66, 0.53],
        [0.74, 0.52, 0.39],
        [0.58, 0.38, 0.27],
        [0.42, 0.27, 0.19],
        [0.95, 0.80, 0.72],
    ]
)
_HAIRS = np.array(
    [
        [0.10, 0.07, 0.06],
        [0.24, 0.15, 0.09],
        [0.42, 0.26, 0.14],
        [0.72, 0.55, 0.30],
        [0.55, 0.54, 0.53],
        [0.45, 0.18, 0.10],
    ]
)
_IRISES = np.array([[0.22, 0.13, 0.08], [0.28, 0.42, 0.55], [0.30, 0.40, 0.24]])
_LEVEL = 4
MIDDLE = np.array([0.0, -0.10, 0.40])
"""The origin of heads, behind the face's middle: what a picture cut out around a face turns about."""


@dataclass(frozen=True)
class Face:
    """What makes a person: lengths in units of half the head's height, colours (3,) in [0, 1]."""

    width: float
    depth: float
    jaw: float
    nose: tuple[float, float, float]
    """Height, width, and how far down the tip is."""
    brow: float
    socket: float
    cheek: float
    muzzle: float
    chin: float
    eyes: tuple[float, float, float]
    """Distance from the middle, height, size."""
    mouth: tuple[float, float, float]
    """Height, half width, thickness of the lips."""
    hairline: tuple[float, float]
    """Height over the forehead, and how far it comes down at the sides."""
    brow_shape: tuple[float, float]
    """Thickness, and how much the brows rise outwards."""
    skin: Array
    hair: Array
    iris: Array
    lips: Array


def face_of(random: np.random.RandomState) -> Face:
    """Draw a person."""
    u = random.uniform
    # Nearly one factor for all channels: skin has no other hues.
    skin = (_SKINS[random.randint(len(_SKINS))] * u(0.9, 1.1) + u(-0.012, 0.012, 3)).clip(0, 1)
    return Face(
        width=u(0.64, 0.76), depth=u(0.76, 0.86), jaw=u(0.12, 0.38), nose=(u(0.17, 0.29), u(0.75, 1.35), u(-0.24, -0.15)),
        brow=u(0.01, 0.06), socket=u(0.04, 0.09), cheek=u(0.0, 0.07), muzzle=u(0.02, 0.07), chin=u(0.02, 0.11),
        eyes=(u(0.19, 0.24), u(0.04, 0.09), u(0.85, 1.15)), mouth=(u(-0.43, -0.36), u(0.13, 0.19), u(0.03, 0.055)),
        hairline=(u(0.42, 0.62), u(0.0, 0.8)), brow_shape=(u(0.014, 0.03), u(-0.15, 0.2)), skin=skin, hair=paint(random, _HAIRS),
        iris=_IRISES[random.randint(3)], lips=(skin * [0.86, 0.55, 0.55] + [0.05, 0, 0]).clip(0, 1),
    )  # fmt: skip


def head(face: Face) -> Solid:
    """The shape of a person; `colours` are places on the undeformed head, for `paint_face`."""
    place, faces = _sphere()
    p = place * [face.width, 1.0, face.depth]
    flat = p.copy()
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    front = 1 / (1 + np.exp(-z / 0.06))
    rise = _nose(face, x, y)
    ex, ey, _ = face.eyes
    rise += face.brow * _bump(x - 0.17, 0.13, y - 0.17, 0.05)
    rise -= face.socket * _bump(x - ex, 0.095, y - ey, 0.075)
    rise += 0.45 * face.socket * _bump(x - ex, 0.05, y - ey, 0.04)
    rise += face.cheek * _bump(x - 0.31, 0.13, y + 0.13, 0.13)
    my, mw, thick = face.mouth
    rise += face.muzzle * _bump(x, 0.20, y - my, 0.13)
    rise += 0.022 * _bump(x, mw, y - my - thick * 0.6, 0.03) + 0.026 * _bump(x, mw * 0.9, y - my + thick * 0.7, 0.032)
    rise += face.chin * _bump(x, 0.15, y + 0.68, 0.11) - 0.02 * _bump(x, 0.15, y + 0.53, 0.05)
    p[:, 2] += front * rise
    narrow = _ramp((-0.15 - y) / 0.75)
    p[:, 0] *= 1 - face.jaw * narrow
    ear = _bump(y + 0.02, 0.17, z + 0.02, 0.10) * (x / face.width) ** 10
    p[:, 0] += np.sign(p[:, 0]) * 0.11 * ear
    # The lowest part of the sphere becomes the neck, which leaves the head below and behind the chin.
    neck = _ramp((-0.80 - y) / 0.12) * (1 - 0.9 * front * _ramp((z - 0.25) / 0.2))
    p[:, 1] -= 0.55 * neck
    p[:, 2] -= 0.12 * neck
    p -= MIDDLE
    return Solid(p.astype(np.float32), faces, flat.astype(np.float32), smooth=True)


def paint_face(face: Face, place: Array) -> Array:
    """Colours (..., 3) in [0, 1] at places (..., 3) on the undeformed head."""
    x, y, z = np.abs(place[..., 0]), place[..., 1], place[..., 2]
    front = _step(z, 0.05, 0.05)
    colour = np.broadcast_to(face.skin, place.shape).astype(place.dtype)
    ex, ey, size = face.eyes
    _lay(colour, face.skin * [1.0, 0.78, 0.76], 0.5 * _bump(x - 0.32, 0.13, y + 0.16, 0.10) * front)
    _lay(colour, face.skin * 0.55, 0.5 * front * _bump(x - ex, 0.13 * size, y - ey - 0.01, 0.075))
    my, mw, thick = face.mouth
    droop = 0.06 * (x / mw) ** 2 * thick
    lips = _step(1 - (x / mw) ** 2 - ((y - my) / (thick * 1.25)) ** 2, 0.0, 0.25)
    _lay(colour, face.lips, front * lips)
    _lay(colour, face.lips * 0.35, front * _step(mw * 0.95 - x, 0, 0.02) * np.exp(-(((y - my + droop) / 0.010) ** 2)))
    _lay(colour, face.skin * 0.4, 0.8 * front * _bump(x - 0.045 * face.nose[1], 0.022, y - face.nose[2] + 0.035, 0.016))
    white = _step(1 - ((x - ex) / (0.092 * size)) ** 2 - ((y - ey) / (0.045 * size)) ** 2, 0.0, 0.3)
    _lay(colour, np.array([0.93, 0.92, 0.90]), front * white)
    ring = np.hypot(x - ex, y - ey)
    _lay(colour, face.iris, front * white * _step(0.042 * size - ring, 0, 0.008))
    _lay(colour, np.full(3, 0.03), front * white * _step(0.019 * size - ring, 0, 0.006))
    lash = np.exp(-(((y - ey - 0.045 * size * (1 - ((x - ex) / (0.10 * size)) ** 2)) / 0.011) ** 2)) * _step(
        0.10 * size - np.abs(x - ex), 0, 0.02
    )
    _lay(colour, face.hair * 0.35, front * lash)
    width, slope = face.brow_shape
    brow = np.exp(-(((y - ey - 0.125 - slope * (x - ex) + 1.2 * (x - ex) ** 2) / width) ** 2)) * _step(
        0.115 - np.abs(x - ex - 0.005), 0, 0.03
    )
    _lay(colour, face.hair * 0.75, 0.9 * front * brow)
    high, side = face.hairline
    line = high - side * np.clip(x - 0.30, 0, None) - 3.0 * np.clip(0.10 - z, 0, None)
    _lay(colour, face.hair, _step(y - line, 0.0, 0.02) * _step(y, -0.55, 0.05))
    return colour.clip(0, 1)


def _nose(face: Face, x: Array, y: Array) -> Array:
    """A ridge from between the eyes that grows down to the tip, and two wings beside it."""
    high, wide, tip = face.nose
    along = _ramp((0.14 - y) / (0.14 - tip))
    below = 1 / (1 + np.exp(-(y - tip + 0.045) / 0.018))
    sigma = wide * (0.045 + 0.035 * along)
    ridge = high * (0.18 + 0.82 * along**1.3) * np.exp(-0.5 * (x / sigma) ** 2) * below * _ramp((0.26 - y) / 0.14)
    return ridge + 0.35 * high * _bump(x - 0.075 * wide, 0.035, y - tip - 0.005, 0.045)


def _bump(a: Array, wide: float, b: Array, high: float) -> Array:
    return np.exp(-0.5 * ((a / wide) ** 2 + (b / high) ** 2))


def _ramp(t: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _step(value: Array, at: float, soft: float) -> Array:
    return _ramp((value - at) / soft * 0.5 + 0.5)


def _lay(colour: Array, over: Array, share: Array) -> None:
    colour += share[..., None] * (over.astype(colour.dtype) - colour)


@lru_cache(maxsize=1)
def _sphere() -> tuple[Array, Array]:
    """Points of the unit sphere (V, 3), denser in front, and faces (F, 3)."""
    from selftaught.nets.renderer import icosphere

    points, faces = icosphere(_LEVEL)
    p = points.double().numpy() + [0.0, 0.0, 0.35]
    return p / np.linalg.norm(p, axis=1, keepdims=True), faces.numpy()
