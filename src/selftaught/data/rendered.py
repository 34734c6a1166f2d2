"""Pictures of objects that a world rendered, with viewpoint, depth and normals as truth: the folders of `selftaught data make cars`."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from selftaught.core.errors import DataError
from selftaught.data.base import OfficialSplits, Truth, ViewTruth
from selftaught.data.npy import read_arrays
from selftaught.data.readers import BadFile
from selftaught.data.sources import FolderSource

KIND = "pictures of objects"
"""What world.json says of such a folder."""
_STEPS = 65535
_WANTED = ("key", "object", "rotation", "fov_rad", "test_key", "mask", "depth", "depth_range", "normals")


def pack_depth(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths (N, H, W), 0 outside of objects, as uint16 (0 outside, 1 nearest) and the nearest and farthest depth (2,)."""
    seen = depth > 0
    near, far = (float(depth[seen].min()), float(depth[seen].max())) if seen.any() else (1.0, 1.0)
    steps = np.rint((depth - near) / max(far - near, 1e-9) * (_STEPS - 1)) + 1
    return np.where(seen, steps.clip(1, _STEPS), 0).astype(np.uint16), np.array([near, far], np.float64)


def unpack_depth(packed: np.ndarray, depth_range: np.ndarray) -> np.ndarray:
    """The depths that `pack_depth` packed, float32."""
    near, far = depth_range
    return np.where(packed > 0, near + (packed.astype(np.float64) - 1) / (_STEPS - 1) * (far - near), 0).astype(
        np.float32
    )


def pack_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals (..., 3) as int8, 127 times."""
    return np.rint(normals * 127).astype(np.int8)


class RenderedSource(FolderSource):
    """One part of such a folder; `truth(i).view` holds what is known of the viewpoint and, for test pictures, of the shape."""

    def __init__(self, root: Path, truth: Path, part: str) -> None:
        super().__init__(root)
        self.folder = truth.parent
        """The folder that the world wrote."""
        self._truth, self._prefix = truth, part
        self.has_masks = part == "test"

    def truth(self, i: int) -> Truth:
        found = _read(str(self._truth), self._truth.stat().st_mtime_ns)
        key = f"{self._prefix}/{self.keys[i]}"
        if key not in found.row:
            raise BadFile(f"{self._truth.name} knows nothing of {key}")
        row, test = found.row[key], found.test_row.get(key)
        arrays = found.arrays
        view = ViewTruth(
            rotation=arrays["rotation"][row],
            fov_rad=float(arrays["fov_rad"]),
            depth=None if test is None else unpack_depth(arrays["depth"][test], arrays["depth_range"]),
            normals=None if test is None else arrays["normals"][test].astype(np.float32) / 127,
        )
        mask = None if test is None else (arrays["mask"][test] > 127).astype(np.uint8)
        return Truth(mask=mask, object_id=str(arrays["object"][row]), view=view)


class _Arrays:
    """The arrays of a truth.npz, and which row belongs to which key."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.row = {str(key): i for i, key in enumerate(arrays["key"])}
        self.test_row = {str(key): i for i, key in enumerate(arrays["test_key"])}


@functools.lru_cache(maxsize=4)
def _read(path: str, changed: int) -> _Arrays:
    arrays = read_arrays(Path(path), _WANTED)
    try:
        count, tests = len(arrays["key"]), len(arrays["test_key"])
        maps = [arrays["mask"], arrays["depth"], arrays["normals"][..., 0]]
        fine = arrays["rotation"].shape == (count, 3, 3) and arrays["object"].shape == arrays["key"].shape == (count,)
        fine = fine and arrays["depth_range"].shape == (2,) and arrays["normals"].shape[-1] == 3
        fine = fine and all(part.ndim == 3 and len(part) == tests and part.shape == maps[0].shape for part in maps)
        fine = fine and bool(np.isfinite(arrays["rotation"]).all() and np.isfinite(arrays["depth_range"]).all())
        fine = fine and 0 < float(arrays["fov_rad"]) < 3.2
        if not fine:
            raise ValueError("shapes or numbers that do not fit each other")
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise BadFile(f"{Path(path).name} is no truth of rendered pictures ({error!r})") from error
    return _Arrays(arrays)


def is_rendered(root: Path) -> bool:
    """Whether a folder was written by a world of objects."""
    told = root / "world.json"
    try:
        if not (told.is_file() and (root / "truth.npz").is_file() and told.stat().st_size < 2**20):
            return False
        content = json.loads(told.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def open_rendered(root: Path) -> OfficialSplits:
    """Both parts of such a folder; raises DataError when one of them has no pictures."""
    missing = [part for part in ("train", "test") if not (root / part).is_dir()]
    if missing:
        raise DataError(f"{root} has no {missing[0]} pictures.", do="make more than four pictures")
    parts = {part: RenderedSource(root / part, root / "truth.npz", part) for part in ("train", "test")}
    return OfficialSplits(root.resolve().name or "data", dict(parts))
