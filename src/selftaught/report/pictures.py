"""Pictures for people: masks over photographs, contact sheets, and data URIs that keep to a size.

A picture is (H, W, 3) uint8. A soft mask is (H, W) float in [0, 1]. A true mask is (H, W): bool or float in [0, 1], or
integer instance ids with 0 for the background and 255 for pixels to ignore.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from selftaught.core.errors import DataError

Picture = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

# Orange and blue stay apart for the common kinds of colour blindness, and both stand out from fur, skin and leaves.
FOUND_RGB = (255, 149, 0)
TRUTH_RGB = (64, 196, 255)
_SMALLEST_PX = 24


def as_picture(picture: Array) -> Picture:
    """Return `picture` after checking that it is (H, W, 3) uint8 and not empty; raises DataError otherwise."""
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise DataError("This is not a picture.", expected="(H, W, 3) uint8", why=f"it is {array.shape} {array.dtype}")
    return array


def fit(picture: Array, longest_px: int) -> Picture:
    """Resize (H, W, 3) uint8 so that its longer side is `longest_px`, up or down, keeping proportions."""
    picture = as_picture(picture)
    height, width = picture.shape[:2]
    scale = longest_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def square(picture: Array, px: int) -> Picture:
    """Cut the middle square out of (H, W, 3) uint8 and resize it to (px, px, 3)."""
    picture = as_picture(picture)
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = np.ascontiguousarray(picture[top : top + side, left : left + side])
    return np.asarray(Image.fromarray(middle).resize((px, px), Image.Resampling.LANCZOS))


def overlay(picture: Array, mask: Array, *, truth: Array | None = None, longest_px: int = 360) -> Picture:
    """Draw what was found over (H, W, 3) uint8: outside dimmed, orange contour at 0.5, blue contour of the truth.

    `mask` and `truth` may have any size; they are stretched over the picture. The result has `longest_px` as its longer
    side. Raises DataError for arrays of another kind.
    """
    base = fit(picture, longest_px).astype(np.float32)
    height, width = base.shape[:2]
    soft = resize_mask(mask, (height, width))
    grey = base.mean(axis=2, keepdims=True)
    outside = 0.5 * (0.55 * base + 0.45 * grey) + 14.0
    canvas = soft[..., None] * base + (1.0 - soft[..., None]) * outside
    line_px = max(1.0, longest_px / 180)
    if truth is not None:
        canvas = _draw(canvas, _truth_edges(truth, (height, width)), TRUTH_RGB, line_px * 0.8)
    canvas = _draw(canvas, _edges(resize_mask(mask, (2 * height, 2 * width)) >= 0.5), FOUND_RGB, line_px)
    return canvas.round().clip(0, 255).astype(np.uint8)


def resize_mask(mask: Array, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize a soft mask (h, w) to `size` (H, W) bilinearly; NaN counts as 0, the result lies in [0, 1]."""
    array = np.nan_to_num(np.asarray(mask, dtype=np.float32))
    if array.ndim != 2 or array.size == 0:
        raise DataError("This is not a mask.", expected="(H, W) float in [0, 1]", why=f"its shape is {array.shape}")
    array = array.clip(0.0, 1.0)
    if array.shape == tuple(size):
        return array
    resized = Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0.0, 1.0)


def truth_ids(truth: Array) -> npt.NDArray[np.uint8]:
    """Return (H, W) instance ids of a true mask: bool and float become 0 and 1, ignored pixels (255) become 0."""
    array = np.asarray(truth)
    if array.ndim != 2 or array.size == 0:
        raise DataError("This is not a true mask.", expected="(H, W)", why=f"its shape is {array.shape}")
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        return (np.nan_to_num(array.astype(np.float32)) >= 0.5).astype(np.uint8)
    return np.where(array == 255, 0, array).astype(np.uint8)


def contact_sheet(
    pictures: Sequence[Array],
    *,
    columns: int,
    cell_px: int = 96,
    gap_px: int = 4,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """Lay the middle squares of pictures out in rows of `columns` cells of `cell_px`, with gaps between.

    Raises DataError when there is no picture.
    """
    if not pictures or columns < 1:
        raise DataError("A contact sheet needs at least one picture and one column.")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    step = cell_px + gap_px
    sheet = np.empty((rows * step - gap_px, columns * step - gap_px, 3), dtype=np.uint8)
    sheet[:] = background
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * step, (index % columns) * step
        sheet[top : top + cell_px, left : left + cell_px] = square(picture, cell_px)
    return sheet


def encode(picture: Array, kind: str = "jpeg", quality: int = 82) -> bytes:
    """Return the bytes of a JPEG or PNG of (H, W, 3) uint8; `quality` (1 to 95) is for JPEG."""
    buffer = io.BytesIO()
    image = Image.fromarray(as_picture(picture))
    if kind == "png":
        image.save(buffer, "PNG")  # `optimize` takes nine times as long and saves three bytes of a hundred
    elif kind == "jpeg":
        # Without `optimize`: Pillow's buffer for it is too small for noise, which then fails to encode.
        image.save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 75 else 2)
    else:
        raise DataError(f"Unknown kind of picture {kind!r}.", expected="'jpeg' or 'png'")
    return buffer.getvalue()


def data_uri(picture: Array, *, kind: str = "jpeg", quality: int = 82, max_bytes: int | None = None) -> str:
    """Return a `data:` URI of (H, W, 3) uint8 of at most `max_bytes` characters.

    To fit, JPEG quality is lowered to 40 first, then the picture is reduced step by step; at 24 px it is returned as
    it is.
    """
    data = encode(picture, kind, quality)
    while max_bytes is not None and _uri_length(data, kind) > max_bytes:
        if kind == "jpeg" and quality > 40:
            quality = max(40, quality - 14)
        elif max(np.shape(picture)[:2]) <= _SMALLEST_PX:
            break
        else:
            picture = fit(picture, max(_SMALLEST_PX, int(0.8 * max(np.shape(picture)[:2]))))
        data = encode(picture, kind, quality)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _uri_length(data: bytes, kind: str) -> int:
    return len(f"data:image/{kind};base64,") + 4 * ((len(data) + 2) // 3)


def _edges(ids: Array) -> npt.NDArray[np.bool_]:
    """Pixels of a region that touch another id, the picture's border included."""
    padded = np.pad(ids.astype(np.uint8), 1)
    middle = padded[1:-1, 1:-1]
    differs = np.zeros(middle.shape, dtype=bool)
    for other in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        differs |= middle != other
    return differs & (middle > 0)


def _truth_edges(truth: Array, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    doubled = (2 * size[1], 2 * size[0])
    ids = Image.fromarray(truth_ids(truth)).resize(doubled, Image.Resampling.NEAREST)
    return _edges(np.asarray(ids))


def _draw(canvas: Array, edges: Array, colour: tuple[int, int, int], line_px: float) -> Array:
    """Paint edges given at twice the canvas' size: a smooth line with a thin dark rim, readable on any background."""
    if not edges.any():
        return canvas
    # Distances are in half pixels of the canvas, and a soft step of one pixel is the smoothing.
    distance = ndimage.distance_transform_edt(~edges)
    line = _halve((line_px - distance + 1.0).clip(0.0, 1.0))[..., None]
    rim = _halve((line_px + 2.0 - distance + 1.0).clip(0.0, 1.0))[..., None]
    canvas = canvas * (1.0 - 0.55 * rim)
    painted: Array = canvas * (1.0 - line) + np.asarray(colour, dtype=np.float32) * line
    return painted


def _halve(array: Array) -> Array:
    height, width = array.shape[0] // 2, array.shape[1] // 2
    halved: Array = array.reshape(height, 2, width, 2).mean(axis=(1, 3))
    return halved
