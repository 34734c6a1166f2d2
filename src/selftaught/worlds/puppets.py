"""Puppets that walk, cast and slash, drawn from a number: the figures of the world `w-sprites`.

A puppet is a few discs and capsules on joints (head, hair, torso, two arms, two legs, sword), each with a darker rim,
drawn at four times the size and box-filtered. Identity `i` is one of 7,776 looks (skin, hair, hair style, top, trousers)
with proportions of its own. All lengths here are in units of 1/64 of the sprite's side, x to the right, y downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from selftaught.core.seeds import step_seed

ACTIONS = ("walk", "cast", "slash")
FACINGS = ("front", "left", "right")
PHASES = 8
LOOKS = 6**5
SKINS = ((250, 217, 190), (233, 184, 148), (204, 146, 104), (165, 108, 71), (124, 78, 50), (92, 58, 42))
HAIRS = ((52, 44, 60), (112, 66, 32), (182, 112, 44), (236, 200, 92), (176, 60, 40), (196, 196, 206))
TOPS = ((204, 52, 52), (52, 112, 204), (60, 160, 84), (232, 184, 56), (144, 76, 176), (226, 226, 220))
BOTTOMS = ((58, 66, 110), (120, 92, 62), (84, 86, 90), (36, 106, 108), (150, 54, 84), (176, 160, 120))
SHOES, STEEL, GRIP, SPARK, EYES = (84, 54, 40), (214, 222, 232), (128, 84, 44), (255, 244, 150), (40, 32, 44)
_FINE = 4
_RIM = 1.4
_GROUND = 59.0
_SWORD = 9.5

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """What one puppet looks like; `tall` and `wide` scale its parts, `style` is one of six ways to wear hair."""

    skin: Colour
    hair: Colour
    style: int
    top: Colour
    bottom: Colour
    tall: float
    wide: float
    head: float
    """Radius of the head, in units."""


@lru_cache(maxsize=4096)
def look_of(identity: int) -> Look:
    """Return the look of an identity (any whole number from 0); neighbours differ in most parts."""
    code = (identity * 2909 + 17) % LOOKS
    digits = [code // 6**k % 6 for k in range(5)]
    random = np.random.RandomState(step_seed(identity, 0, 0) % 2**32)
    tall, wide, head = random.uniform(0.86, 0.98), random.uniform(0.85, 1.1), random.uniform(7.4, 8.6)
    skin, hair, style, top, bottom = digits
    return Look(SKINS[skin], HAIRS[hair], style, TOPS[top], BOTTOMS[bottom], tall, wide, head)


@lru_cache(maxsize=2048)
def puppet_tiles(identity: int, px: int) -> np.ndarray:
    """Return all pictures of one puppet: uint8 (9, 8, px, px, 4), colours already multiplied by alpha.

    First index: the local action, 3 * (walk, cast, slash) + (front, left, right); second: its phase. Read only.
    """
    look = look_of(identity)
    tiles = np.empty((len(ACTIONS) * len(FACINGS), PHASES, px, px, 4), np.uint8)
    for local in range(len(tiles)):
        for phase in range(PHASES):
            pen = _Pen(px)
            _draw(pen, look, ACTIONS[local // 3], FACINGS[local % 3], phase)
            tiles[local, phase] = pen.small()
    tiles.setflags(write=False)
    return tiles


class _Pen:
    """Draws on a transparent sheet of four times the size, without soft edges: the box filter makes them."""

    def __init__(self, px: int) -> None:
        self.scale = px * _FINE / 64
        self.image = Image.new("RGBA", (px * _FINE, px * _FINE))
        self.pen = ImageDraw.Draw(self.image)

    def disc(self, at: Point, radius: float, colour: Colour) -> None:
        (x, y), r = (at[0] * self.scale, at[1] * self.scale), radius * self.scale
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))

    def capsule(self, a: Point, b: Point, radius: float, colour: Colour) -> None:
        self.disc(a, radius, colour)
        self.disc(b, radius, colour)
        length = math.hypot(b[0] - a[0], b[1] - a[1]) or 1.0
        nx, ny = -(b[1] - a[1]) / length * radius, (b[0] - a[0]) / length * radius
        corners = [(a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny), (a[0] - nx, a[1] - ny)]
        self.pen.polygon([(x * self.scale, y * self.scale) for x, y in corners], fill=(*colour, 255))

    def limb(self, joints: list[Point], radius: float, colour: Colour, end: Colour) -> None:
        """A chain of capsules with one rim around all, and a hand or shoe of another colour at its end."""
        pairs = list(zip(joints, joints[1:], strict=False))
        for a, b in pairs:
            self.capsule(a, b, radius + _RIM, rim(colour))
        self.disc(joints[-1], radius + 0.5 + _RIM, rim(end))
        for a, b in pairs:
            self.capsule(a, b, radius, colour)
        self.disc(joints[-1], radius + 0.5, end)

    def half(self, at: Point, radius: float, start_deg: float, end_deg: float, colour: Colour) -> None:
        """A segment of a disc between two angles, clockwise from the right."""
        (x, y), r = (at[0] * self.scale, at[1] * self.scale), radius * self.scale
        self.pen.chord((x - r, y - r, x + r, y + r), start_deg, end_deg, fill=(*colour, 255))

    def small(self) -> np.ndarray:
        return np.asarray(self.image.reduce(_FINE).convert("RGBa"))


@lru_cache(maxsize=256)
def rim(colour: Colour) -> Colour:
    """Return the colour of a part's rim: darker, at least 24 of 255 away from black."""
    red, green, blue = (max(26, round(0.5 * part)) for part in colour)
    return red, green, blue


def _draw(pen: _Pen, look: Look, action: str, facing: str, phase: int) -> None:
    swing = math.sin(2 * math.pi * phase / PHASES) if action == "walk" else 0.0
    leg, arm = 16.0 * look.tall, 14.0 * look.tall
    hip = (32.0, _GROUND - 2.5 - leg + (0.0 if action != "walk" else -1.6 * abs(swing)))
    shoulder_y = hip[1] - 15.5 * look.tall
    head = (32.0, shoulder_y - 3.5 - look.head)
    side = {"front": 0, "left": -1, "right": 1}[facing]
    right, left = _arms(action, phase, swing, side, (32.0, shoulder_y + 2.5), arm, look)
    # Of the puppet's own hands the right one is nearer to the eye when it faces right, and it always holds the sword:
    # so left is no mirror image of right.
    far, near = (left, right) if side >= 0 else (right, left)
    sword = _sword(phase, side, right[-1]) if action == "slash" else None
    if side:
        pen.limb(far, 2.5, look.top, look.skin)
        if sword and side < 0:
            _draw_sword(pen, right[-1], sword)
    if look.style == 1:
        _long_hair(pen, look, head, side)
    _legs(pen, look, hip, leg, swing, side)
    width = (5.2 if side else 6.6) * look.wide
    top, low = (32.0, shoulder_y + width - 1.0), (32.0, hip[1] - 2.0)
    for radius, colour in ((width + _RIM, rim(look.top)), (width, look.top)):
        pen.capsule(top, low, radius, colour)
    pen.capsule((32.0 - width + 1.5, low[1] + 4.0), (32.0 + width - 1.5, low[1] + 4.0), 1.6, rim(look.bottom))
    _head(pen, look, head, side)
    if not side:
        pen.limb(far, 2.5, look.top, look.skin)
    if sword and side >= 0:
        _draw_sword(pen, right[-1], sword)
    pen.limb(near, 2.5, look.top, look.skin)
    if action == "cast" and phase in (4, 5, 6):
        _sparks(pen, right[-1], left[-1], side, phase)


def _arms(
    action: str, phase: int, swing: float, side: int, shoulder: Point, length: float, look: Look
) -> tuple[list[Point], list[Point]]:
    """Return the joints of the right and of the left arm, shoulder first."""
    rise = phase / (PHASES - 1)
    rise = rise * rise * (3 - 2 * rise)
    if action == "walk":
        angles = (-0.75 * swing, 0.75 * swing)
    elif action == "cast":
        angles = (0.2 + 1.9 * rise, 0.2 + 1.9 * rise)
    else:
        angles = (2.5 - math.radians(150) * rise, -0.35)
    out = []
    for hand, angle in zip((-1, 1), angles, strict=True):
        if side:
            start = (shoulder[0] + 0.5 * side, shoulder[1])
            bend = angle + (0.35 if action != "slash" else 0.1)
            turns = [(side * math.sin(angle), math.cos(angle)), (side * math.sin(bend), math.cos(bend))]
        else:
            start = (shoulder[0] + hand * (6.4 * look.wide), shoulder[1])
            if action == "walk":  # towards the eye: a swinging arm only gets shorter
                turns = [(0.22 * hand, 0.9), (0.1 * hand, 0.9 - 0.5 * max(0.0, angle))]
            else:
                turns = [(hand * math.sin(abs(angle)), math.cos(angle))] * 2
        elbow = (start[0] + turns[0][0] * length / 2, start[1] + turns[0][1] * length / 2)
        out.append([start, elbow, (elbow[0] + turns[1][0] * length / 2, elbow[1] + turns[1][1] * length / 2)])
    return out[0], out[1]


def _legs(pen: _Pen, look: Look, hip: Point, length: float, swing: float, side: int) -> None:
    for hand in (-1, 1):  # the far leg first
        step = swing * hand
        if side:
            angle = 0.62 * step
            knee = (hip[0] + side * math.sin(angle) * length / 2, hip[1] + math.cos(angle) * length / 2)
            back = angle - (0.55 * max(0.0, -step) if swing else 0.0)
            foot = (knee[0] + side * math.sin(back) * length / 2, knee[1] + math.cos(back) * length / 2)
            shade = look.bottom if hand * side > 0 else rim(look.bottom)
            pen.limb([hip, knee, foot], 2.9, shade, SHOES)
            pen.disc((foot[0] + side * 1.6, foot[1] + 0.4), 2.6, SHOES)
        else:
            x = hip[0] + hand * 3.4 * look.wide
            lift = 5.5 * max(0.0, step)
            pen.limb([(x, hip[1]), (x, hip[1] + length / 2 - lift / 2), (x, hip[1] + length - lift)], 2.9, look.bottom, SHOES)


def _head(pen: _Pen, look: Look, at: Point, side: int) -> None:
    r = look.head
    bald = look.style == 4
    pen.disc(at, r + _RIM, rim(look.skin if bald else look.hair))
    pen.disc(at, r, look.skin)
    hair = look.hair
    if not bald:
        tilt = -25 * side
        pen.half(at, r + 0.6, 185 + tilt, 355 + tilt, hair)
    if look.style == 2:
        for k in (-1, 0, 1):
            pen.capsule((at[0] + 4.5 * k, at[1] - r + 2), (at[0] + 6.0 * k - 2 * side, at[1] - r - 1.4), 1.7, hair)
    elif look.style == 3:
        knot = (at[0] - side * r * 0.75, at[1] - r * 0.8)
        pen.disc(knot, 3.2 + _RIM, rim(hair))
        pen.disc(knot, 3.2, hair)
    elif look.style == 4:
        pen.half((at[0] + 1.5 * side, at[1] + 1.0), r - 0.6, 15, 165, hair)
    elif look.style == 5:
        brim = at[1] - r * 0.35
        ends = (at[0], at[0] + side * (r + 3.5)) if side else (at[0] - r - 1.5, at[0] + r + 1.5)
        pen.capsule((ends[0], brim), (ends[1], brim), 1.5, rim(look.top))
        pen.half((at[0], brim), r + 0.4, 180, 360, look.top)
    for x in (4.8 * side,) if side else (-3.1, 3.1):
        pen.disc((at[0] + x, at[1] + 1.4), 1.45, EYES)


def _long_hair(pen: _Pen, look: Look, head: Point, side: int) -> None:
    r = look.head
    a, b = (head[0] - 2.5 * side, head[1] + 1.0), (head[0] - 4.0 * side, head[1] + r + 5.0)
    for more, colour in ((_RIM, rim(look.hair)), (0.0, look.hair)):
        pen.capsule(a, b, (r - 0.4 if not side else r - 2.0) + more, colour)


def _sword(phase: int, side: int, hand: Point) -> Point:
    """Return the tip of the sword; it runs ahead of the arm by a third of a turn at first and by less in the end."""
    rise = phase / (PHASES - 1)
    rise = rise * rise * (3 - 2 * rise)
    angle = 3.5 - math.radians(150) * rise
    way = side or -1
    return hand[0] + way * math.sin(angle) * _SWORD, hand[1] + math.cos(angle) * _SWORD


def _draw_sword(pen: _Pen, hand: Point, tip: Point) -> None:
    dx, dy = (tip[0] - hand[0]) / _SWORD, (tip[1] - hand[1]) / _SWORD
    pen.capsule((hand[0] - 2 * dx, hand[1] - 2 * dy), tip, 1.5 + 0.9, rim(STEEL))
    pen.capsule(hand, tip, 1.5, STEEL)
    guard = (hand[0] + 3.0 * dx, hand[1] + 3.0 * dy)
    pen.capsule((guard[0] - 3.0 * dy, guard[1] + 3.0 * dx), (guard[0] + 3.0 * dy, guard[1] - 3.0 * dx), 1.3, GRIP)


def _sparks(pen: _Pen, right: Point, left: Point, side: int, phase: int) -> None:
    size = {4: 2.6, 5: 4.2, 6: 3.2}[phase]
    middle = ((right[0] + left[0]) / 2 + 2.5 * side, (right[1] + left[1]) / 2 - 1.0)
    for at in (middle,) if side else (right, left):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            pen.capsule(at, (at[0] + dx * size, at[1] + dy * size), 1.2, SPARK)
        pen.disc(at, size * 0.6, (255, 255, 226))
