"""A page that turns reconstructed objects: one HTML file that needs no server, no network and no other file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from selftaught.method import Shapes

TEMPLATE = Path(__file__).resolve().parent / "orbit.html"
MOST = 100
"""Objects on a page; each takes about 20 kB."""


class Shown(NamedTuple):
    """One object on the page."""

    key: str
    picture: Tensor
    """(3, S, S) in [0, 1], as the method saw it."""
    shape: Shapes
    """A batch of one."""


def orbit_page(objects: Sequence[Shown], distance: float, focal: float, closed: bool) -> str:
    """The page as HTML; objects must have one topology.

    distance: of the camera from the origin. focal: half heights of the picture per unit of x / depth. closed: insides are not drawn.
    """
    first = objects[0].shape
    told: dict[str, Any] = {
        "faces": _packed(first.faces.numpy().astype("<u4")), "uv": _packed(first.uv.numpy().astype("<f4")), "distance": distance,
        "focal": focal, "closed": closed, "objects": [_told(one) for one in objects[:MOST]],
    }  # fmt: skip
    # "<" could end the script that holds this.
    return TEMPLATE.read_text(encoding="utf-8").replace("OBJECTS", json.dumps(told).replace("<", "\\u003c"), 1)


def _told(one: Shown) -> dict[str, Any]:
    shape = one.shape
    found = {
        "key": one.key, "points": _packed(shape.points[0].numpy().astype("<f4")), "texture": _png(shape.texture[0]),
        "input": _png(one.picture), "image": _png(shape.image[0]),
    }  # fmt: skip
    if shape.background is not None:
        found["background"] = _png(shape.background[0])
    return found


def _packed(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _png(picture: Tensor) -> str:
    """(3, H, W) in [0, 1] as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray((picture.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
