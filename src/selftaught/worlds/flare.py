"""Figures of the game Flare: read from the Debian package `flare-game` at run time, never shipped (CC-BY-SA 3.0).

The avatars are layers (boots, trousers, shirt, hands, head, weapon) with a text file each that gives every frame's
rectangle: 8 directions of run, swing and cast. One choice per layer is an identity.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.core.seeds import step_seed
from selftaught.data import readers

FOLDER = "/usr/share/games/flare/mods/fantasycore"
ANIMATIONS = ("run", "cast", "swing")
DIRECTIONS = (6, 0, 4)
"""Towards the eye, to the left, to the right, as the package counts them."""
MAX_TEXT_BYTES = 2**20
_PARTS = {
    "feet": ("boots", "sandals", "default_feet"), "legs": ("pants", "greaves", "skirt", "default_legs"),
    "chest": ("shirt", "cuirass", "chest", "vest", "default_chest"), "hands": ("gloves", "gauntlets", "sleeves", "default_hands"),
    "head": ("head_", "hood", "coif", "helm"), "weapon": ("sword", "club", "mace", "axe", "staff", "wand", "rod"),
}  # fmt: skip
_CANVAS = 160
_SIDE = 64
"""The square that is cut around a figure of about 50 px; long weapons reach out of it."""

Frames = dict[tuple[str, int, int], tuple[int, ...]]


def find() -> Path:
    """Return the folder of the package's data, $SELFTAUGHT_FLARE first; raises DataError that says what to install."""
    told = os.environ.get("SELFTAUGHT_FLARE")
    folder = Path(told) if told else Path(FOLDER)
    if not (folder / "animations" / "avatar" / "male").is_dir():
        raise DataError(
            f"The figures of flare are not in {folder}.",
            expected="the data of the Debian package flare-game",
            do="apt install flare-game, or set SELFTAUGHT_FLARE to the folder mods/fantasycore; or make w-sprites",
        )
    return folder


@lru_cache(maxsize=512)
def flare_tiles(identity: int, px: int) -> np.ndarray:
    """Return all pictures of one figure: uint8 (9, 8, px, px, 4), colours multiplied by alpha; raises DataError."""
    return _tiles(find(), identity, px)


def _tiles(root: Path, identity: int, px: int) -> np.ndarray:
    random = np.random.RandomState(step_seed(identity, 0, 0) % 2**32)
    sex = ("male", "female")[random.randint(2)]
    layers = [_layer(root, sex, names[random.randint(len(names))]) for names in _choices(root, sex).values()]
    tiles = np.zeros((9, 8, px, px, 4), np.uint8)
    for local in range(9):
        name, direction = ANIMATIONS[local // 3], DIRECTIONS[local % 3]
        count = 1 + max((k[1] for k in layers[0][1] if k[0] == name and k[2] == direction), default=-1)
        if count < 1:
            raise DataError(f"The figures in {root} have no '{name}'.", expected="the package flare-game 1.14 or near")
        for phase in range(8):
            tiles[local, phase] = _compose(layers, (name, phase * count // 8, direction), px)
    tiles.setflags(write=False)
    return tiles


def _choices(root: Path, sex: str) -> dict[str, list[str]]:
    """Return {part of the body: names of its layers}, in the order of painting."""
    names = sorted(path.stem for path in (root / "animations" / "avatar" / sex).glob("*.txt"))
    found = {part: [n for n in names if any(word in n for word in words)] for part, words in _PARTS.items()}
    empty = [part for part, some in found.items() if not some]
    if empty:
        raise DataError(f"{root} has no layer for {', '.join(empty)}.", expected="the package flare-game 1.14 or near")
    return found


@lru_cache(maxsize=256)
def _layer(root: Path, sex: str, name: str) -> tuple[Image.Image, Frames]:
    """Return the sheet of a layer and {(animation, frame, direction): x, y, width, height, and the offset of the feet}."""
    path = root / "animations" / "avatar" / sex / f"{name}.txt"
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DataError(f"{path} is too large for a list of frames.")
    frames: Frames = {}
    sheet, current = "", ""
    try:
        for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()):
            key, _, value = line.partition("=")
            if key == "image":
                sheet = value
            elif line.startswith("["):
                current = line[1:-1]
            elif key == "frame":
                index, direction, *box = map(int, value.split(","))
                frames[current, index, direction] = tuple(box[:6])
        inside = (root / sheet).resolve().is_relative_to(root.resolve())
        if not sheet or not inside or any(len(box) != 6 for box in frames.values()):
            raise ValueError("it names no picture of the package")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no list of frames ({error}).") from error
    readers.read_header(root / sheet)  # refuses what is no picture, or too large
    with Image.open(root / sheet, formats=("PNG",)) as image:
        return image.convert("RGBA"), frames


def _compose(layers: list[tuple[Image.Image, Frames]], key: tuple[str, int, int], px: int) -> np.ndarray:
    """Paint the layers one over the other with the feet at one place, and shrink to (px, px, 4)."""
    canvas = Image.new("RGBA", (_CANVAS, _CANVAS))
    for sheet, frames in layers:
        if key in frames:
            x, y, width, height, left, top = frames[key]
            part = sheet.crop((x, y, x + width, y + height))
            canvas.alpha_composite(_inside(part, _CANVAS // 2 - left, _CANVAS * 3 // 4 - top))
    left, low = (_CANVAS - _SIDE) // 2, _CANVAS * 3 // 4 + 8
    box = (left, low - _SIDE, left + _SIDE, low)
    return np.asarray(canvas.convert("RGBa").resize((px, px), Image.Resampling.BOX, box=box))


def _inside(part: Image.Image, left: int, top: int) -> Image.Image:
    """Lay a part on an empty canvas; what lies outside is cut off."""
    sheet = Image.new("RGBA", (_CANVAS, _CANVAS))
    sheet.paste(part, (left, top))
    return sheet
