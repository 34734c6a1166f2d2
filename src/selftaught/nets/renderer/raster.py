"""Which face is seen at each pixel centre: a z-buffer for whole batches, in torch or, when it is installed, in numba.

For a face with corners p0, p1, p2 on the screen the barycentric weights are affine in the pixel,

    w_k(x, y) = w_k(x0, y0) + (x - x0) dw_k/dx + (y - y0) dw_k/dy,      inside: all w_k >= -1e-6,

and so is an order of depth z (the depth itself for an orthographic camera, -1 / depth in perspective). In each row of
pixel centres that a face reaches, the three inequalities give the first and the last pixel inside. Of all faces at a
pixel the one with the smallest key (z in 2^30 steps) * 2^24 + face is seen: nearest first, then the lower number. Both
engines do the same arithmetic, so that their answers are the same bits. No gradient passes here.
"""

from __future__ import annotations

import functools
import importlib.util
import math
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
_TINY = 1e-30
"""Instead of a slope of exactly 0 along a row: the bound is then before or behind all pixels."""
_AT_ONCE = 2**22
"""Most pairs of face and pixel of the boxes that are looked at at once, at most about 300 MB."""


class Raster(NamedTuple):
    """What is seen at each pixel."""

    face: Tensor
    """(B, H, W) int64, -1 where nothing is seen."""
    z: Tensor
    """(B, H, W), the order of depth in [0, 1], infinite where nothing is seen."""


class FaceSetup(NamedTuple):
    """The faces that have pixel centres in their boxes: N of all B * F."""

    place: Tensor
    """(N,) int64, the first pixel of the box, of B * H * W."""
    face: Tensor
    """(N,) int64."""
    wide: Tensor
    """(N,) int64, columns of the box."""
    high: Tensor
    """(N,) int64, rows of the box."""
    planes: Tensor
    """(12, N): w_0, w_1, w_2 and z at the first pixel centre; what each gains per row; 1 / what w_k gains per column (3), and
    what z gains per column."""


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


def rasterise(corners: Tensor, drawn: Tensor, height_px: int, width_px: int, engine: str = "auto") -> Raster:
    """Find the face that is seen at each pixel centre.

    corners: (3, 3, B, F), x and y in pixels and z in [0, 1] of the three corners; z is affine on the screen and grows away.
    drawn: (B, F) bool, the faces to be drawn; twice their areas must exceed AREA_MIN_PX2.
    """
    with torch.no_grad():
        batch = drawn.shape[0]
        setup = _set_up(corners, drawn, height_px, width_px)
        if choose_engine(engine, corners) == "numba":
            keys = _keys_numba(setup, batch * height_px * width_px, width_px)
        else:
            keys = _keys_torch(setup, batch * height_px * width_px, width_px)
        empty = keys == _EMPTY
        face = (keys & (2**_FACE_BITS - 1)).masked_fill_(empty, -1)
        found = (keys >> _FACE_BITS).to(corners.dtype).mul_(1 / _STEPS).masked_fill_(empty, torch.inf)
        shape = (batch, height_px, width_px)
        return Raster(face.reshape(shape), found.reshape(shape))


def signed_areas(corners: Tensor) -> Tensor:
    """Twice the signed area in px^2 (B, F) of corners (3, 3, B, F); above 0 for faces that turn their outside to the camera.

    y grows downwards on the screen, hence the order of the factors.
    """
    (ax, bx, cx), (ay, by, cy) = corners[0], corners[1]
    return (by - ay) * (cx - ax) - (bx - ax) * (cy - ay)


def _set_up(corners: Tensor, drawn: Tensor, height_px: int, width_px: int) -> FaceSetup:
    first, size = [], []
    some = drawn
    for (a, b, c), limit in ((corners[0], width_px), (corners[1], height_px)):
        # Clamped before the conversion to integers: what is far outside does not fit into one.
        low = (torch.minimum(torch.minimum(a, b), c) - 0.5).ceil().clamp(0, limit)
        high = (torch.maximum(torch.maximum(a, b), c) - 0.5).floor().clamp(-1, limit - 1)
        some = some & (high >= low)
        first.append(low)
        size.append(high - low + 1)
    picture, face = some.nonzero(as_tuple=True)
    at = picture * drawn.shape[1] + face
    x, y, z = corners.reshape(9, -1).index_select(1, at).reshape(3, 3, -1)
    x0, y0 = first[0].reshape(-1)[at], first[1].reshape(-1)[at]
    wide, high = size[0].reshape(-1)[at].long(), size[1].reshape(-1)[at].long()
    inverse = 1 / ((x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0]))
    px, py = x0 + 0.5, y0 + 0.5
    x, y = x - px, y - py  # from the first pixel centre, so that far ones lose no digits
    at_first = [(x[a] * y[b] - y[a] * x[b]) * inverse for a, b in ((1, 2), (2, 0))]
    per_column = [(y[a] - y[b]) * inverse for a, b in ((1, 2), (2, 0))]
    per_row = [(x[b] - x[a]) * inverse for a, b in ((1, 2), (2, 0))]
    # z as an affine function of the weights, so that it is exact at the corners.
    rise = z[0] - z[2], z[1] - z[2]
    climb = [rise[0] * part[0] + rise[1] * part[1] for part in (at_first, per_row, per_column)]
    at_first += [1 - at_first[0] - at_first[1], climb[0] + z[2]]
    per_row += [-per_row[0] - per_row[1], climb[1]]
    per_column.append(-per_column[0] - per_column[1])
    bounds = [1 / torch.where(gain == 0, _TINY, gain) for gain in per_column]
    planes = torch.stack([*at_first, *per_row, *bounds, climb[2]])
    place = (picture * height_px + y0.long()) * width_px + x0.long()
    return FaceSetup(place, face, wide, high, planes)


def _keys_torch(setup: FaceSetup, pixels: int, width_px: int) -> Tensor:
    """(pixels,) int64 keys of the nearest faces."""
    keys = torch.full((pixels,), _EMPTY, dtype=torch.int64, device=setup.face.device)
    ends = (setup.wide * setup.high).cumsum(0)
    begin = 0
    while begin < len(ends):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(torch.searchsorted(ends, done + _AT_ONCE, right=True)))
        _add_faces(keys, FaceSetup(*(field[..., begin:end] for field in setup)), width_px)
        begin = end
    return keys


def _add_faces(keys: Tensor, setup: FaceSetup, width_px: int) -> None:
    """Lower `keys` to those of the faces in `setup` at the pixels inside of them."""
    owner, down = _expand(setup.high)
    planes = setup.planes.index_select(1, owner)
    y = down.to(planes.dtype)
    low, high = torch.zeros_like(y), (setup.wide - 1).to(y.dtype).index_select(0, owner)
    for k in range(3):
        per_column = planes[8 + k]
        bound = (_INSIDE - (planes[k] + y * planes[4 + k])) * per_column
        grows = per_column > 0
        low = torch.where(grows, torch.maximum(low, bound), low)
        high = torch.where(grows, high, torch.minimum(high, bound))
    low, high = low.ceil().clamp_max(width_px), high.floor()
    row, right = _expand((high - low + 1).clamp_min(0).long())
    right = right + low.long().index_select(0, row)
    now = planes[3] + y * planes[7]
    z = now.index_select(0, row) + right.to(y.dtype) * planes[11].index_select(0, row)
    steps = (z.clamp(0, 1) * _STEPS).long()
    start = setup.place.index_select(0, owner) + down * width_px
    face = setup.face.index_select(0, owner).index_select(0, row)
    keys.scatter_reduce_(0, start.index_select(0, row) + right, (steps << _FACE_BITS) | face, "amin")


def _expand(count: Tensor) -> tuple[Tensor, Tensor]:
    """For (N,) counts: each number 0..N-1 as often as its count says, and 0, 1, 2, ... within each."""
    owner = torch.repeat_interleave(count)
    start = count.cumsum(0) - count
    return owner, torch.arange(len(owner), device=count.device) - start.index_select(0, owner)


def _keys_numba(setup: FaceSetup, pixels: int, width_px: int) -> Tensor:
    """The same by loops."""
    keys = torch.full((pixels,), _EMPTY, dtype=torch.int64)
    planes = setup.planes.T.contiguous()
    _compiled()(*(part.numpy() for part in setup[:4]), planes.numpy(), keys.numpy(), width_px)
    return keys


@functools.cache
def _compiled() -> Any:
    """The loops over faces, rows and pixels, compiled once in each process (about two seconds)."""
    import numba

    # No fastmath: it would round otherwise than torch does.
    return numba.njit(nogil=True)(_loops)


def _loops(place: Any, face: Any, wide: Any, high: Any, planes: Any, keys: Any, width_px: int) -> None:
    for n in range(face.shape[0]):
        p = planes[n]
        kind = p.dtype.type
        zero, one, steps, edge = kind(0), kind(1), kind(_STEPS), kind(_INSIDE)
        for down in range(high[n]):
            y = kind(down)
            first, last = zero, kind(wide[n] - 1)
            for k in range(3):
                bound = (edge - (p[k] + y * p[4 + k])) * p[8 + k]
                if p[8 + k] > zero:
                    first = max(first, bound)
                else:
                    last = min(last, bound)
            if not first <= last:
                continue
            start = place[n] + down * width_px
            now = p[3] + y * p[7]
            for right in range(int(math.ceil(first)), int(math.floor(last)) + 1):
                z = min(max(now + kind(right) * p[11], zero), one)
                key = (int(z * steps) << _FACE_BITS) | face[n]
                keys[start + right] = min(keys[start + right], key)
