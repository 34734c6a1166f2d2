"""Write pictures of objects to files, and beside them what is true.

`DIR/train/000000.png` and `DIR/test/...`, `DIR/world.json` (recipe, seed, how many) and `DIR/truth.npz`: viewpoint and light of every
picture, and mask, depth and normals of the test pictures. `data.rendered` reads it for evaluation; training sees the pictures alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selftaught.core.atomic import replacing
from selftaught.core.config import from_json, override, read_json, to_json, write_json
from selftaught.core.errors import DataError
from selftaught.data.evalset import EvalSet
from selftaught.data.rendered import KIND, RenderedSource, pack_depth, pack_normals
from selftaught.worlds.meshes.files import MeshFiles
from selftaught.worlds.meshes.scenes import Recipe, Scene, checked, draw, recipe_of, scene, solid_of
from selftaught.worlds.meshes.solids import Solid

MAX_PICTURES = 1_000_000
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Made:
    """What is known of a folder that `make` wrote: `scenes` are the pictures, in the order of `keys`."""

    recipe: Recipe
    seed: int
    keys: list[str]
    scenes: list[Scene]


def make(
    world: str,
    folder: str | Path,
    pictures: int = 3000,
    seed: int = 0,
    size: str = "small",
    assignments: Iterable[str] = (),
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Write pictures of a world and their truth into an empty or new folder; every fifth object is for test.

    Returns how many were written: of a folder of mesh files no more than there are files, times `views`. The folder is finished when
    `world.json` is there. Raises DataError for a folder that holds something else, ConfigError for a recipe that makes no sense.
    """
    recipe, folder = checked(override(recipe_of(world, size), assignments)), Path(folder)
    if not 1 <= pictures <= MAX_PICTURES:
        raise DataError(f"{pictures} pictures cannot be made.", expected=f"1 to {MAX_PICTURES:,}")
    files = MeshFiles(recipe.folder) if recipe.category == "meshes" else None
    if files is not None:
        pictures = min(pictures, len(files) * recipe.views)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not empty.", do="give the name of a new folder")
    scenes = [scene(recipe, seed, i) for i in range(pictures)]
    tests: list[dict[str, np.ndarray]] = []
    for start in range(0, pictures, _BATCH):
        some = scenes[start : start + _BATCH]
        drawn = draw(recipe, some, files)
        for k, one in enumerate(some):
            with replacing(folder / f"{key_of(one, start + k)}.png", durable=False) as path:
                Image.fromarray(drawn.images[k]).save(path, "PNG")
        kept = [k for k, one in enumerate(some) if one.part == "test"]
        tests.append({"masks": drawn.masks[kept], "depth": drawn.depth[kept], "normals": pack_normals(drawn.normals[kept])})
        if report is not None:
            report(min(start + _BATCH, pictures), pictures)
    _write_truth(folder / "truth.npz", recipe, scenes, tests, files)
    told = {"kind": KIND, "world": world, "recipe": to_json(recipe), "seed": seed, "pictures": pictures}
    write_json(folder / "world.json", {**told, "notes": files.notes if files is not None else []})
    return pictures


def key_of(one: Scene, index: int) -> str:
    """Return the name of a picture without its suffix, e.g. train/000012."""
    return f"{one.part}/{index:06d}"


def load(folder: str | Path) -> Made:
    """Return all that is true of a folder that `make` wrote, by making its scenes again; raises DataError.

    `scenes.draw(recipe, [scene])` renders a picture again, `dataclasses.replace(scene, azimuth_rad=...)` from elsewhere, and
    `scenes.solid_of(recipe, scene)` is its object.
    """
    folder = Path(folder)
    told = read_json(folder / "world.json")
    try:
        recipe = checked(from_json(Recipe, told["recipe"]))
        seed, pictures = int(told["seed"]), int(told["pictures"])
        if told["kind"] != KIND or not 1 <= pictures <= MAX_PICTURES:
            raise ValueError(f"{pictures} pictures of {told['kind']}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'world.json'} is no description of a world of objects ({error}).") from error
    if recipe.version != Recipe.version:
        raise DataError(
            f"{folder} was made by version {recipe.version} of the world, this one is {Recipe.version}.",
            do="make it again",
        )
    scenes = [scene(recipe, seed, i) for i in range(pictures)]
    return Made(recipe, seed, [key_of(one, i) for i, one in enumerate(scenes)], scenes)


def solids_of(test: EvalSet, rows: Iterable[int]) -> list[Solid] | None:
    """The true objects in pictures `rows` of a set, or None when it is no folder that `make` wrote; for evaluation only.

    Pictures tell the name of their object, `world.json` what kind of object it is.
    """
    source: Any = test.source
    while not isinstance(source, RenderedSource):
        source = getattr(source, "source", None)
        if source is None:
            return None
    made = load(source.folder)
    if made.recipe.category == "meshes":
        return None
    one = made.scenes[0]
    return [solid_of(made.recipe, dataclasses.replace(one, object=int(test.truth(i).object_id or 0))) for i in rows]


def _write_truth(path: Path, recipe: Recipe, scenes: list[Scene], tests: list[dict[str, np.ndarray]], files: MeshFiles | None) -> None:
    """Write arrays that need nothing of this library to be read: numpy.load."""
    from selftaught.nets.renderer import rotation_from_angles

    angles = np.array([[one.azimuth_rad, one.elevation_rad, one.roll_rad] for one in scenes])
    joined = {name: np.concatenate([part[name] for part in tests]) for name in tests[0]}
    depth, depth_range = pack_depth(joined["depth"])
    names = [str(files.paths[one.object].relative_to(files.folder)) if files else str(one.object) for one in scenes]
    import torch

    arrays = {
        "key": np.array([key_of(one, i) for i, one in enumerate(scenes)]),
        "object": np.array(names),
        "azimuth_rad": angles[:, 0], "elevation_rad": angles[:, 1], "roll_rad": angles[:, 2],
        "rotation": rotation_from_angles(*torch.from_numpy(angles).unbind(1)).numpy().astype(np.float32),
        "light": np.array([[*one.light, one.ambient, one.diffuse] for one in scenes], np.float32),
        "ground": np.array([f"{kind}:{number}" for kind, number in (one.ground for one in scenes)]),
        "fov_rad": np.array(recipe.fov_rad),
        "test_key": np.array([key_of(one, i) for i, one in enumerate(scenes) if one.part == "test"], np.str_),
        "mask": joined["masks"], "depth": depth, "depth_range": depth_range, "normals": joined["normals"],
    }  # fmt: skip
    with replacing(path) as temp:
        np.savez_compressed(temp, **arrays)  # type: ignore[arg-type]
