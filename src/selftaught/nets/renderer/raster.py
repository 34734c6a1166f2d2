"""Which face is seen at each pixel centre: a z-buffer for whole batches, in torch or, when it is installed, in numba.

For a face with corners p0, p1, p2 on the screen the barycentric weights are affine in the pixel,

    w_k(x, y) = w_k(x0, y0) + (x - x0) dw_k/dx + (y - y0) dw_k/dy,      inside: all w_k >= -1e-6,

and so is an order of depth z (the depth itself for an orthographic camera, -1 / depth in perspective). Candidates are
the pixel centres in the box around each face. Of all faces at a pixel the one with the smallest key
(z in 2^30 steps) * 2^24 + face is seen: nearest first, then the lower number. Both engines do the same arithmetic, so that
their answers are the same bits. No gradient passes here.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught.core.errors import ConfigError

ENGINES = ("auto", "torch", "numba")
AREA_MIN_PX2 = 1e-6
"""Faces whose parallelogram is smaller on the screen are nobody's: their weights would be rounding errors."""
FAR_PX = 1e6
"""Faces that reach farther out of the picture are left out: float32 could not place their edges."""
_FACE_BITS = 24
_STEPS = 2.0**30
_EMPTY = 2**62
_INSIDE = -1e-6
_CANDIDATES = 2**22
"""Most pairs of face and pixel that are looked at at once, about 300 MB."""


class Raster(NamedTuple):
    """What is seen at each pixel."""

    face: Tensor
    """(B, H, W) int64, -1 where nothing is seen."""
    z: Tensor
    """(B, H, W), the order of depth in [0, 1], infinite where nothing is seen."""


class FaceSetup(NamedTuple):
    """The faces that have candidate pixels: N of all B * F."""

    picture: Tensor
    """(N,) int64, the number in the batch."""
    face: Tensor
    """(N,) int64."""
    box: Tensor
    """(N, 4) int64: first column and row, columns, rows."""
    planes: Tensor
    """(N, 9): w_0, w_1 and z at the first pixel centre of the box, and what each gains per column and per row."""


def numba_is_there() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def choose_engine(engine: str, like: Tensor) -> str:
    """torch or numba; `auto` takes numba for tensors of the CPU when it is installed. Raises ConfigError otherwise."""
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine {engine!r}.", expected=", ".join(ENGINES))
    if engine == "numba" and not numba_is_there():
        raise ConfigError("The engine numba is not installed.", do='pip install "selftaught[fast]", or engine="torch"')
    if engine == "numba" and like.device.type != "cpu":
        raise ConfigError(f"The engine numba cannot work on {like.device}.", expected="the CPU", do='engine="torch"')
    if engine == "auto":
        return "numba" if like.device.type == "cpu" and numba_is_there() else "torch"
    return engine


def rasterise(corners: Tensor, z: Tensor, usable: Tensor, height_px: int, width_px: int, engine: str = "auto") -> Raster:
    """Find the face that is seen at each pixel centre.

    corners: (B, F, 3, 2), faces on the screen in pixels. z: (B, F, 3) in [0, 1], affine on the screen, growing away.
    usable: (B, F) bool, faces to be drawn. Twice the area of a face must exceed AREA_MIN_PX2.
    """
    with torch.no_grad():
        setup = _set_up(corners, z, usable, height_px, width_px)
        if choose_engine(engine, corners) == "numba":
            keys = _keys_numba(setup, len(corners), height_px, width_px)
        else:
            keys = _keys_torch(setup, len(corners), height_px, width_px)
        empty = keys == _EMPTY
        face = (keys & (2**_FACE_BITS - 1)).masked_fill_(empty, -1)
        found = (keys >> _FACE_BITS).to(corners.dtype).mul_(1 / _STEPS).masked_fill_(empty, torch.inf)
        shape = (len(corners), height_px, width_px)
        return Raster(face.reshape(shape), found.reshape(shape))


def signed_areas(corners: Tensor) -> Tensor:
    """Twice the signed area in px^2 (B, F) of corners (B, F, 3, 2); above 0 for faces that turn their outside to the camera.

    y grows downwards on the screen, hence the order of the factors.
    """
    (ax, ay), (bx, by), (cx, cy) = (corner.unbind(-1) for corner in corners.unbind(2))
    return (by - ay) * (cx - ax) - (bx - ax) * (cy - ay)


def _set_up(corners: Tensor, z: Tensor, usable: Tensor, height_px: int, width_px: int) -> FaceSetup:
    low, high = corners.amin(2), corners.amax(2)
    limit = corners.new_tensor([width_px - 1, height_px - 1])
    # Clamped before the conversion: what is far outside does not fit into an integer.
    first = torch.minimum((low - 0.5).ceil().clamp_min(0), limit + 1)
    last = torch.minimum((high - 0.5).floor().clamp_min(-1), limit)
    some = usable & (last >= first).all(-1)
    picture, face = some.nonzero(as_tuple=True)
    box = torch.cat([first, last - first + 1], -1)[picture, face]
    corners, z = corners[picture, face], z[picture, face]
    x, y = corners[..., 0].T, corners[..., 1].T  # (3, N)
    ex0, ey0, ex1, ey1 = x[1] - x[0], y[1] - y[0], x[2] - x[0], y[2] - y[0]
    inverse = 1 / (ex0 * ey1 - ey0 * ex1)
    px, py = box[:, 0] + 0.5, box[:, 1] + 0.5
    planes = corners.new_empty(len(face), 9)
    for k, (a, b) in enumerate(((1, 2), (2, 0))):
        dx, dy = (y[a] - y[b]) * inverse, (x[b] - x[a]) * inverse
        planes[:, k] = ((x[a] - px) * (y[b] - py) - (y[a] - py) * (x[b] - px)) * inverse
        planes[:, 3 + k], planes[:, 6 + k] = dx, dy
    # z as an affine function of the weights, so that it is exact at the corners.
    z0, z1 = z[:, 0] - z[:, 2], z[:, 1] - z[:, 2]
    for start in (0, 3, 6):
        planes[:, start + 2] = z0 * planes[:, start] + z1 * planes[:, start + 1]
    planes[:, 2] += z[:, 2]
    return FaceSetup(picture, face, box.long(), planes)


def _keys_torch(setup: FaceSetup, batch: int, height_px: int, width_px: int) -> Tensor:
    """(B * H * W,) int64 keys of the nearest faces."""
    keys = torch.full((batch * height_px * width_px,), _EMPTY, dtype=torch.int64, device=setup.face.device)
    sizes = setup.box[:, 2] * setup.box[:, 3]
    ends = sizes.cumsum(0)
    begin = 0
    while begin < len(sizes):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(torch.searchsorted(ends, done + _CANDIDATES, right=True)))
        part = slice(begin, end)
        _add_candidates(keys, FaceSetup(*(field[part] for field in setup)), sizes[part], height_px, width_px)
        begin = end
    return keys


def _add_candidates(keys: Tensor, setup: FaceSetup, sizes: Tensor, height_px: int, width_px: int) -> None:
    """Lower `keys` to those of the faces in `setup` at the pixels inside of them."""
    start = sizes.cumsum(0) - sizes
    owner = torch.repeat_interleave(sizes)
    kind = setup.planes.dtype
    pixel = torch.arange(len(owner), device=keys.device) - start[owner]
    wide = setup.box[:, 2][owner]
    down = torch.div(pixel, wide, rounding_mode="floor")
    right = pixel - down * wide
    x, y = right.to(kind), down.to(kind)
    planes = setup.planes[owner]
    w0 = planes[:, 0] + x * planes[:, 3] + y * planes[:, 6]
    w1 = planes[:, 1] + x * planes[:, 4] + y * planes[:, 7]
    inside = (torch.minimum(torch.minimum(w0, w1), 1 - w0 - w1) >= _INSIDE).nonzero()[:, 0]
    planes, owner = planes[inside], owner[inside]
    z = planes[:, 2] + x[inside] * planes[:, 5] + y[inside] * planes[:, 8]
    steps = (z.clamp(0, 1) * _STEPS).long()
    box = setup.box[owner]
    place = (setup.picture[owner] * height_px + box[:, 1] + down[inside]) * width_px + box[:, 0] + right[inside]
    keys.scatter_reduce_(0, place, (steps << _FACE_BITS) | setup.face[owner], "amin")


def _keys_numba(setup: FaceSetup, batch: int, height_px: int, width_px: int) -> Tensor:
    """The same by loops."""
    keys = torch.full((batch * height_px * width_px,), _EMPTY, dtype=torch.int64)
    parts = [part.contiguous().numpy() for part in setup]
    _compiled()(*parts, keys.numpy(), height_px, width_px)
    return keys


@functools.cache
def _compiled() -> Any:
    """The loops over faces and their boxes, compiled once in each process (about two seconds)."""
    import numba

    # No fastmath: it would round otherwise than torch does.
    return numba.njit(cache=False, nogil=True)(_loops)


def _loops(
    picture: Any, face: Any, box: Any, planes: Any, keys: Any, height_px: int, width_px: int
) -> None:  # pragma: no cover - numba compiles it
    for n in range(face.shape[0]):
        p = planes[n]
        one, steps = p.dtype.type(1), p.dtype.type(_STEPS)
        for down in range(box[n, 3]):
            y = p.dtype.type(down)
            row = (picture[n] * height_px + box[n, 1] + down) * width_px + box[n, 0]
            for right in range(box[n, 2]):
                x = p.dtype.type(right)
                w0 = p[0] + x * p[3] + y * p[6]
                w1 = p[1] + x * p[4] + y * p[7]
                if w0 >= _INSIDE and w1 >= _INSIDE and one - w0 - w1 >= _INSIDE:
                    z = min(max(p[2] + x * p[5] + y * p[8], p.dtype.type(0)), one)
                    key = (int(z * steps) << _FACE_BITS) | face[n]
                    if key < keys[row + right]:
                        keys[row + right] = key
