"""Moving grounds of `w-sprites`: a photograph or a drawn texture, larger than the picture, that a window slides over."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from selftaught.core.seeds import step_seed

KINDS = ("photo", "texture")


@lru_cache(maxsize=64)
def ground_of(kind: str, number: int, part: str, height: int, width: int) -> np.ndarray:
    """Return one ground, uint8 (height, width, 3), read only.

    `kind` is photo or texture. Photographs are those of the built-in sample; those of "train" and "test" differ. `number`
    chooses the photograph, the crop and its mirror image, or the drawing.
    """
    random = np.random.RandomState(step_seed(number, KINDS.index(kind), 0) % 2**32)
    picture = _photo(random, part, height, width) if kind == "photo" else _texture(random, height, width)
    picture.setflags(write=False)
    return picture


def _photo(random: np.random.RandomState, part: str, height: int, width: int) -> np.ndarray:
    from selftaught.data.compositing import load_assets

    photos = load_assets().grounds[part]
    photo = photos[random.randint(len(photos))].picture
    fit = min(photo.width / width, photo.height / height) * random.uniform(0.6, 1.0)
    box_width, box_height = fit * width, fit * height
    left, top = random.uniform(0, photo.width - box_width), random.uniform(0, photo.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    small = np.array(photo.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return np.ascontiguousarray(small[:, ::-1]) if random.randint(2) else small


def _texture(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Six slow cosines per channel, then ten soft discs."""
    y, x = np.arange(height, dtype=np.float32) / height, np.arange(width, dtype=np.float32) / height
    waves = random.uniform(-5, 5, (3, 6, 2)).astype(np.float32)
    phases = random.uniform(0, 2 * np.pi, (3, 6)).astype(np.float32)
    # cos(a + b) over a grid is a product of small arrays: no cosine per pixel.
    a = waves[..., :1] * 2 * y + phases[..., None]
    b = waves[..., 1:] * 2 * x
    field = np.einsum("cky,ckx->cyx", np.cos(a), np.cos(b)) - np.einsum("cky,ckx->cyx", np.sin(a), np.sin(b))
    base = random.uniform(70, 185, 3).astype(np.float32)
    field = 8 * field + 12 * field[:1]  # most of the waves are shared by the channels: no neon
    canvas = np.clip(base[:, None, None] + field, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(canvas))
    stain, cover = Image.new("RGB", image.size), Image.new("L", image.size)
    pens = ImageDraw.Draw(stain), ImageDraw.Draw(cover)
    for _ in range(10):
        cx, cy, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(0.04, 0.16) * height
        box = (cx - radius, cy - radius, cx + radius, cy + radius)
        wider = (box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3)  # else the soft rim would be black
        pens[0].ellipse(wider, fill=tuple(int(part) for part in random.randint(50, 215, 3)))
        pens[1].ellipse(wider, fill=0)
        pens[1].ellipse(box, fill=int(random.randint(110, 200)))
    return np.array(Image.composite(stain, image, cover.filter(ImageFilter.BoxBlur(1))))
