"""Mesh files of a folder (OBJ, PLY, GLB, glTF, STL, OFF), read with trimesh and brought into the frame of the other objects."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.core.errors import DataError
from selftaught.worlds.meshes.solids import Solid

SUFFIXES = (".obj", ".ply", ".glb", ".gltf", ".stl", ".off")
MAX_FACES = 2_000_000
MAX_BYTES = 512 * 2**20
_GREY = 0.7


class MeshFiles:
    """The meshes below a folder that can be used, in the order of their names; `notes` says what was left out, and why.

    Raises DataError when trimesh is not installed, and when no file can be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if importlib.util.find_spec("trimesh") is None:
            raise DataError(
                "Mesh files are read with trimesh, which is not installed.", do='pip install "selftaught[meshes]"'
            )
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is no folder.", expected="a folder of " + ", ".join(SUFFIXES))
        found = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        self.paths: list[Path] = []
        self.notes: list[str] = []
        self._kept: tuple[int, Solid] | None = None
        for path in found:
            try:
                read_mesh(path)
            except DataError as error:
                self.notes.append(f"{path.relative_to(self.folder)}: {error.what}")
            else:
                self.paths.append(path)
        if not self.paths:
            why = "; ".join(self.notes[:5]) or f"no file ends in {', '.join(SUFFIXES)}"
            raise DataError(f"{self.folder} holds no mesh that can be used.", why=why)

    def __len__(self) -> int:
        return len(self.paths)

    def solid(self, number: int) -> Solid:
        """Mesh `number`; the last one read is kept."""
        if self._kept is None or self._kept[0] != number:
            self._kept = (number, read_mesh(self.paths[number]))
        return self._kept[1]


def read_mesh(path: Path) -> Solid:
    """Read one file: all its parts together, colours from textures, vertices or grey, in the middle of the unit sphere.

    Raises DataError for a file that is broken, empty or huge, and for vertices that are NaN or infinite. Faces without area are
    dropped. The file's own axes are taken as +Y up, +Z front.
    """
    import trimesh

    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"the file has {path.stat().st_size / 2**20:.0f} MB", expected=f"at most {MAX_BYTES // 2**20}")
    try:
        loaded: Any = trimesh.load(path, force="scene", process=False)
        parts = [part for part in loaded.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except Exception as error:  # trimesh's readers raise whatever they meet in a broken file
        raise DataError(f"it cannot be read ({type(error).__name__}: {str(error)[:120]})") from error
    if not parts:
        raise DataError("it has no faces")
    if sum(len(part.faces) for part in parts) > MAX_FACES:
        raise DataError(f"it has more than {MAX_FACES:,} faces", do="simplify it first")
    points, faces, colours, first = [], [], [], 0
    for part in parts:
        points.append(np.asarray(part.vertices, np.float64))
        faces.append(np.asarray(part.faces, np.int64) + first)
        colours.append(_colours(part))
        first += len(part.vertices)
    return _framed(np.concatenate(points), np.concatenate(faces), np.concatenate(colours))


def _framed(points: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> Solid:
    if faces.min() < 0 or faces.max() >= len(points):
        raise DataError("its faces name vertices that are not there")
    with np.errstate(all="ignore"):  # what is not finite is looked for below
        sides = points[faces] - points[np.roll(faces, 1, 1)]
        twice = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
        faces = faces[~(twice <= 1e-12 * (sides**2).sum(2).max(1))]
    if not len(faces):
        raise DataError("all of its faces have area 0")
    # What no face needs may lie anywhere, and would say where the middle and how large the object is.
    used, which = np.unique(faces, return_inverse=True)
    points, colours, faces = points[used], colours[used], which.reshape(faces.shape)
    if not np.isfinite(points).all():
        raise DataError(f"{int((~np.isfinite(points)).any(1).sum())} of its vertices are NaN or infinite")
    low, high = points.min(0), points.max(0)
    if not np.isfinite(high - low).all() or float((high - low).max()) < 1e-12:
        raise DataError("it has no size")
    points = (points - (low + high) / 2) / (high - low).max()
    corners = points[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    faces = faces[area > 1e-14]
    if not len(faces):
        raise DataError("all of its faces have area 0")
    points = points / np.linalg.norm(points[np.unique(faces)], axis=1).max()
    return Solid(points.astype(np.float32), faces, colours.astype(np.float32))


def _colours(part: Any) -> np.ndarray:
    """(V, 3) in [0, 1] of a part: of its texture, its vertices or its material; grey where it has none, or where its texture is missing."""
    import trimesh

    grey = np.full((len(part.vertices), 3), _GREY)
    try:
        visual = part.visual
        if visual.kind == "texture" and (visual.uv is None or getattr(visual.material, "image", True) is None):
            one = np.asarray(visual.material.main_color, np.float64)
            # What trimesh makes up for a material that says nothing, or whose file is missing.
            unset = (one == trimesh.visual.color.DEFAULT_COLOR).all()
            return grey if unset else np.broadcast_to(one[:3] / 255, grey.shape)
        visual = visual if visual.kind != "texture" else visual.to_color()
        rgba = np.asarray(visual.vertex_colors, np.float64)
    except Exception:  # a texture that is missing, broken, or of another kind than its coordinates
        return grey
    return rgba[:, :3] / 255 if rgba.shape == (len(part.vertices), 4) and part.visual.defined else grey
