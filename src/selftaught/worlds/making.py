"""Write a world to files: clips that any player shows, and beside them a file of what is true.

`DIR/train/000000.mp4` and `DIR/test/...`, `DIR/world.json` (recipe, seed, how many) and `DIR/truth.npz`. Without PyAV the
clips are lossless `.npy` arrays.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.core.atomic import replacing
from selftaught.core.config import from_json, override, read_json, to_json, write_json
from selftaught.core.errors import DataError, suggest
from selftaught.worlds import OBJECT_WORLDS, WORLDS
from selftaught.worlds.w_sprites import part_of

FPS = 8
MAX_CLIPS = 1_000_000


@dataclass(frozen=True)
class Made:
    """What is known of a folder that `make` wrote: `scripts` are the clips, in the order of `keys`."""

    recipe: Any
    """The `Recipe` of the world's module."""
    seed: int
    container: str
    keys: list[str]
    scripts: list[Any]
    """Each a `Script` of the world's module."""
    world: str = "w-sprites"


def module_of(world: str) -> Any:
    """The module of a world: Recipe, SIZES, checked, script, render, truth, ABOUT; raises DataError for one that does not exist."""
    if world not in WORLDS:
        known = [*WORLDS, *OBJECT_WORLDS]
        raise DataError(f"There is no world '{world}'.{suggest(world, known)}", expected="one of " + ", ".join(known))
    names = {"arm": "arm", "drawn-tennis": "tennis"}
    return importlib.import_module(f"selftaught.worlds.{names.get(world, 'w_sprites')}")


def recipe_of(world: str, size: str = "small", assignments: Iterable[str] = ()) -> Any:
    """Return the recipe of a world and size with `FIELD=VALUE` changes; raises DataError or ConfigError."""
    module = module_of(world)
    recipe = module.SIZES[size]
    if world == "flare":
        recipe = dataclasses.replace(recipe, sprites="flare")
    return module.checked(override(recipe, assignments))


def make(
    world: str,
    folder: str | Path,
    clips: int = 3000,
    seed: int = 0,
    size: str = "small",
    assignments: Iterable[str] = (),
    report: Callable[[int, int], None] | None = None,
) -> str:
    """Write `clips` clips of a world and their truth into an empty or new folder; every fifth is a test clip.

    Returns the kind of the files, mp4 or npy. The folder is finished when `world.json` is there. Raises DataError for a
    folder that holds something else, for a world that does not exist, and when the package with its figures is missing.
    """
    recipe, folder, module = recipe_of(world, size, assignments), Path(folder), module_of(world)
    if not 1 <= clips <= MAX_CLIPS:
        raise DataError(f"{clips} clips cannot be made.", expected=f"1 to {MAX_CLIPS:,}")
    if getattr(recipe, "sprites", "") == "flare":
        from selftaught.worlds.flare import find

        find()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not empty.", do="give the name of a new folder")
    container = "mp4" if importlib.util.find_spec("av") else "npy"
    masks = np.zeros((clips, recipe.frames, recipe.height, -(-recipe.width // 8)), np.uint8)
    scripts, extra = [], []
    for i in range(clips):
        one = module.script(recipe, seed, i)
        clip = module.render(recipe, one)
        with replacing(folder / f"{key_of(i)}.{container}", durable=False) as path:
            write_mp4(path, clip.frames) if container == "mp4" else np.save(path, clip.frames)
        masks[i] = np.packbits(clip.masks > 127, axis=-1)
        scripts.append(one)
        extra.append(clip.extra)
        if report is not None and ((i + 1) % 32 == 0 or i + 1 == clips):
            report(i + 1, clips)
    drawn = {name: np.stack([e[name] for e in extra]) for name in extra[0]}
    _write_truth(folder / "truth.npz", recipe, scripts, masks, {**module.truth(recipe, scripts), **drawn})
    told = {"world": world, "recipe": to_json(recipe), "seed": seed, "clips": clips, "container": container}
    write_json(folder / "world.json", {**told, **module.ABOUT})
    return container


def key_of(index: int) -> str:
    """Return the name of a clip without its suffix, e.g. train/000012."""
    return f"{part_of(index)}/{index:06d}"


def load(folder: str | Path) -> Made:
    """Return all that is true of a folder that `make` wrote, by making its scripts again; raises DataError.

    `render(recipe, script)` draws a clip without the loss of the video file, `changed` its counterfactuals.
    """
    folder = Path(folder)
    told = read_json(folder / "world.json")
    try:
        world = str(told.get("world", "w-sprites"))
        module = module_of(world)
        recipe = module.checked(from_json(module.Recipe, told["recipe"]))
        seed, clips, container = int(told["seed"]), int(told["clips"]), str(told["container"])
        if not 1 <= clips <= MAX_CLIPS:
            raise ValueError(f"{clips} clips")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'world.json'} is no description of a world ({error}).") from error
    if recipe.version != module.Recipe.version:
        raise DataError(
            f"{folder} was made by version {recipe.version} of the world, this one is {module.Recipe.version}.", do="make it again"
        )
    scripts = [module.script(recipe, seed, i) for i in range(clips)]
    return Made(recipe, seed, container, [key_of(i) for i in range(clips)], scripts, world)


def write_mp4(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write uint8 (T, H, W, 3) as lossless H.264 in 4:4:4: only the way to YUV and back rounds, by 2 of 255 at most.

    A lossy file would make the pixels depend on choices of the encoder, which are not the same every time.
    """
    import av

    with av.open(str(path), "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv444p", 1
        stream.options = {"qp": "0", "preset": "veryfast"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)


def _write_truth(path: Path, recipe: Any, scripts: list[Any], masks: np.ndarray, more: dict[str, np.ndarray]) -> None:
    """Write arrays that need nothing of this library to be read: numpy.load, and numpy.unpackbits for the masks."""
    arrays = {
        "key": np.array([key_of(i) for i in range(len(scripts))]),
        "identity": np.array([one.identity for one in scripts], np.int32),
        "ground": np.array([json.dumps(one.ground) for one in scripts]),
        "moves": np.stack([one.moves for one in scripts]).astype(np.uint8),
        "ground_shifts_px": np.zeros((len(scripts), recipe.frames - 1, 2), np.int16),  # unless the world's ground moves
        **more,
        "mask_bits": masks,
        "mask_width": np.array(recipe.width, np.int32),
    }
    with replacing(path) as temp:
        np.savez_compressed(temp, **arrays)  # type: ignore[arg-type]
