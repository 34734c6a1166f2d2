"""One object, one viewpoint, one light, one background: all a pure function of (recipe, seed, index).

`Scene` is all that is true of a picture, `draw` renders it. Frames and angles are those of `nets.renderer`: azimuth 0 sees the front,
growing azimuth turns the front to the right of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from selftaught.core.errors import ConfigError
from selftaught.core.seeds import step_seed
from selftaught.nets.renderer import Light, Topology, perspective_camera, render
from selftaught.worlds.grounds import ground_of
from selftaught.worlds.meshes.cars import car
from selftaught.worlds.meshes.chairs import chair
from selftaught.worlds.meshes.files import MeshFiles
from selftaught.worlds.meshes.heads import face_of, head, paint_face
from selftaught.worlds.meshes.solids import Solid

CATEGORIES = ("heads", "cars", "chairs", "meshes")
BACKGROUNDS = ("plain", "colour", "smooth", "cluttered")
TEST_EVERY = 5
_GREY = 0.55


@dataclass(frozen=True)
class Recipe:
    """All numbers of a world of objects; changing one makes other pictures."""

    category: str = "cars"
    """heads, cars, chairs, or meshes (those of `folder`)."""
    px: int = 64
    """Side of the pictures."""
    background: str = "plain"
    """plain (one grey for all), colour (one each), smooth (a blurred grid of 4 x 4 colours), or cluttered (one third each: smooth, drawn
    textures, photographs)."""
    azimuth_rad: float = math.pi
    """Azimuths are uniform between minus and plus this."""
    elevation_rad: tuple[float, float] = (0.05, 0.40)
    """Lowest and highest elevation; uniform."""
    roll_rad: float = 0.0
    """Rolls are uniform between minus and plus this."""
    fov_rad: float = math.pi / 6
    """Angle between the lower and the upper edge of the picture."""
    reach: float = 1.1
    """Half the picture's height, measured at the object's middle, in units of the object (which lies in the unit sphere; half a head)."""
    ambient: tuple[float, float] = (0.45, 0.60)
    """Least and most light from everywhere."""
    diffuse: tuple[float, float] = (0.40, 0.55)
    """Least and most light from one side."""
    light_spread: tuple[float, float, float] = (0.5, 0.3, 0.7)
    """Deviation of the light's direction to the side and in height, and its mean height, where the direction to the camera is 1."""
    folder: str = ""
    """Folder of mesh files of the category meshes."""
    views: int = 1
    """Pictures of each mesh file."""
    supersample: int = 3
    """Pictures are rendered so many times larger and averaged."""
    version: int = 1
    """Rises when the same numbers give other pixels."""


_HEADS = dict(
    category="heads", azimuth_rad=math.pi / 4, elevation_rad=(-math.radians(12), math.radians(12)), roll_rad=math.radians(5),
    fov_rad=math.radians(10), reach=0.66, supersample=2, ambient=(0.20, 0.45), diffuse=(0.50, 0.80), light_spread=(0.7, 0.4, 0.15),
)  # fmt: skip
_WORLDS: dict[str, dict[str, Any]] = {
    "heads": _HEADS, "cars": {"category": "cars"}, "chairs": {"category": "chairs", "reach": 1.2}, "meshes": {"category": "meshes"},
}  # fmt: skip
_PX = {"tiny": 32, "small": 64, "paper": 128}


def recipe_of(world: str, size: str) -> Recipe:
    """The recipe of a world at size tiny, small or paper."""
    return Recipe(**_WORLDS[world], px=_PX[size])


@dataclass(frozen=True)
class Scene:
    """All that is true of one picture."""

    part: str
    """train or test; no object is in both."""
    object: int
    """Seed of the object, or number of the mesh file."""
    azimuth_rad: float
    elevation_rad: float
    roll_rad: float
    light: tuple[float, float, float]
    """Direction towards the light in the camera's frame, not normalised."""
    ambient: float
    diffuse: float
    ground: tuple[str, int]
    """Kind of background and its seed."""


@dataclass(frozen=True)
class Drawn:
    """Pictures of N scenes with their truth, H = W = px of the recipe."""

    images: np.ndarray
    """uint8 (N, H, W, 3)."""
    masks: np.ndarray
    """uint8 (N, H, W): 255 where the object covers the whole pixel."""
    depth: np.ndarray
    """float32 (N, H, W), along the viewing axis at pixel centres in units of the object, 0 outside."""
    normals: np.ndarray
    """float32 (N, H, W, 3), in the camera's frame, turned to the camera, 0 outside."""
    rotations: np.ndarray
    """float32 (N, 3, 3), from the object's frame to the camera's."""


def checked(recipe: Recipe) -> Recipe:
    """Return the recipe; raises ConfigError for one that no picture can be made of."""
    wrong = ""
    low, high = recipe.elevation_rad
    if recipe.category not in CATEGORIES or recipe.background not in BACKGROUNDS:
        wrong = f"category is '{recipe.category}', background is '{recipe.background}'"
    elif not 8 <= recipe.px <= 2048 or not 1 <= recipe.supersample <= 8 or recipe.views < 1:
        wrong = f"px is {recipe.px}, supersample {recipe.supersample}, views {recipe.views}"
    elif not (
        0 <= recipe.azimuth_rad <= math.pi + 1e-6
        and -1.6 <= low <= high <= 1.6
        and 0 <= recipe.roll_rad <= math.pi + 1e-6
    ):
        wrong = f"angles are {recipe.azimuth_rad}, {recipe.elevation_rad}, {recipe.roll_rad}"
    elif not (0.01 <= recipe.fov_rad <= 2.5 and 0.2 <= recipe.reach <= 20):
        wrong = f"fov_rad is {recipe.fov_rad}, reach is {recipe.reach}"
    elif recipe.reach / math.tan(recipe.fov_rad / 2) <= 1.5:
        wrong = f"with fov_rad {recipe.fov_rad} and reach {recipe.reach} the camera stands inside of the object"
    elif not all(0 <= a <= b for a, b in (recipe.ambient, recipe.diffuse)):
        wrong = f"ambient is {recipe.ambient}, diffuse is {recipe.diffuse}"
    elif (recipe.category == "meshes") != bool(recipe.folder):
        wrong = "the world meshes, and no other, needs a folder of mesh files: --set folder=DIR"
    if wrong:
        raise ConfigError(f"No picture can be made of this recipe: {wrong}.", do="`selftaught data make --help`")
    return recipe


def part_of(index: int) -> str:
    """Return "test" for every fifth object, else "train"."""
    return "test" if index % TEST_EVERY == TEST_EVERY - 1 else "train"


def scene(recipe: Recipe, seed: int, index: int) -> Scene:
    """Return what is to be seen in picture `index`; it does not depend on how many pictures there are."""
    # The world's streams are apart from those of training (7 is no rank of it).
    random = np.random.RandomState(step_seed(seed, 7, index) % 2**32)
    u = random.uniform
    thing = index // recipe.views if recipe.category == "meshes" else int(random.randint(2**31 - 1))
    azimuth, elevation = float(u(-recipe.azimuth_rad, recipe.azimuth_rad)), float(u(*recipe.elevation_rad))
    roll = float(u(-recipe.roll_rad, recipe.roll_rad))
    side, high, mean = recipe.light_spread
    light = (float(side * random.randn()), float(mean + high * random.randn()), 1.0)
    strengths = float(u(*recipe.ambient)), float(u(*recipe.diffuse))
    kinds = ("smooth", "texture", "photo")
    kind = kinds[random.randint(3)] if recipe.background == "cluttered" else recipe.background
    part = part_of(index // recipe.views)
    ground = (kind, int(random.randint(2**31 - 1)))
    return Scene(part, thing, azimuth, elevation, roll, light, *strengths, ground)


def solid_of(recipe: Recipe, one: Scene, files: MeshFiles | None = None) -> Solid:
    """The object of a scene; `files` are those of the recipe's folder."""
    random = np.random.RandomState(one.object)
    if recipe.category == "heads":
        return head(face_of(random))
    if recipe.category == "meshes":
        return (files or MeshFiles(recipe.folder)).solid(one.object)
    return (car if recipe.category == "cars" else chair)(random)


def background_of(recipe: Recipe, one: Scene) -> np.ndarray:
    """The background of a scene, float32 (px, px, 3) in [0, 1]."""
    kind, number = one.ground
    px, random = recipe.px, np.random.RandomState(number)
    if kind == "plain":
        return np.full((px, px, 3), _GREY, np.float32)
    if kind == "colour":
        return np.broadcast_to(random.uniform(0.15, 0.9, 3).astype(np.float32), (px, px, 3)).copy()
    if kind == "smooth":
        grid = torch.from_numpy(random.uniform(0, 1, (1, 3, 4, 4)).astype(np.float32))
        large = functional.interpolate(grid, (px, px), mode="bicubic", align_corners=False)
        return large[0].permute(1, 2, 0).clamp(0, 1).numpy()
    return ground_of(kind, number, one.part, px, px).astype(np.float32) / 255


@torch.no_grad()
def draw(recipe: Recipe, scenes: Sequence[Scene], files: MeshFiles | None = None) -> Drawn:
    """Render scenes."""
    solids = [solid_of(recipe, one, files) for one in scenes]
    if recipe.category == "meshes":  # each has a topology of its own
        parts = [_draw(recipe, [one], [solid]) for one, solid in zip(scenes, solids, strict=True)]
        return Drawn(*(np.concatenate([getattr(part, name) for part in parts]) for name in Drawn.__dataclass_fields__))
    return _draw(recipe, scenes, solids)


def _draw(recipe: Recipe, scenes: Sequence[Scene], solids: Sequence[Solid]) -> Drawn:
    points = torch.from_numpy(np.stack([solid.points for solid in solids]))
    colours = torch.from_numpy(np.stack([solid.colours for solid in solids]))
    topology = Topology(torch.from_numpy(solids[0].faces), points.shape[1])
    angles = torch.tensor([[one.azimuth_rad, one.elevation_rad, one.roll_rad] for one in scenes], dtype=torch.float64)
    distance = recipe.reach / math.tan(recipe.fov_rad / 2)
    camera = perspective_camera(*angles.unbind(1), distance=distance, fov_rad=recipe.fov_rad).to(points)
    flat, k = not solids[0].smooth, recipe.supersample
    found = render(points, topology, camera, recipe.px * k, colours=colours, normals=True, flat=flat, antialias=False)
    light = Light(
        torch.tensor([one.light for one in scenes]),
        torch.tensor([one.ambient for one in scenes]),
        torch.tensor([one.diffuse for one in scenes]),
    )
    assert found.normals is not None
    albedo = found.image
    if recipe.category == "heads":  # what was interpolated are places on the head
        faces = [face_of(np.random.RandomState(one.object)) for one in scenes]
        painted = [
            paint_face(face, place.permute(1, 2, 0).numpy()) for face, place in zip(faces, found.image, strict=True)
        ]
        albedo = torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2).float()
    directions = functional.normalize(light.direction, dim=1)
    facing = torch.einsum("nchw,nc->nhw", found.normals, directions).clamp_min(0)
    shading = light.ambient[:, None, None] + light.diffuse[:, None, None] * facing
    covered = (found.face >= 0).float()[:, None]
    sharp = torch.cat([(albedo * shading[:, None]).clamp(0, 1) * covered, covered], 1)
    small = functional.avg_pool2d(sharp, k)
    ground = torch.from_numpy(np.stack([background_of(recipe, one) for one in scenes])).permute(0, 3, 1, 2)
    image = small[:, :3] + (1 - small[:, 3:]) * ground
    true = render(points, topology, camera, recipe.px, normals=True, flat=flat, antialias=False)
    assert true.normals is not None
    return Drawn(
        (image * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy(),
        (small[:, 3] * 255).round().to(torch.uint8).numpy(),
        true.depth.numpy(), true.normals.permute(0, 2, 3, 1).numpy(), camera.rotation.numpy(),
    )  # fmt: skip
