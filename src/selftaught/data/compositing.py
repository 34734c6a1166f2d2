"""Draw one picture of the sample `things`: a cut-out object on a photograph, its pasted edge made hard to see.

`compose` is a pure function of (assets, recipe, seed, split, index). The rules follow what cut-and-paste data needs
(Dwibedi et al. 2017, Cut, Paste and Learn; Reinhard et al. 2001 for the colours): soft edges, colours moved to those of
the ground, texture of a photograph on the object, and one blur, noise and JPEG for the whole. Patches of other
photographs pasted beside the object did not lower what `measure.leak` finds, so there are none.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

ASSETS = Path(__file__).parent / "assets" / "things"
SIDE = 96
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Recipe:
    """All numbers of the drawing; ranges are uniform. Changing one makes another sample (another cache folder)."""

    version: int = 4
    classes: tuple[str, ...] = ("smiley", "clock", "hand", "building", "drink", "vehicle", "fruit", "animal_head")
    """Classes of objects that are drawn: those whose members look alike to a person."""
    train_grounds: int = 16
    """Photographs that training pictures lie on, spread over all there are: as in a collection from few places, the
    ground alone does not tell two pictures apart, the object does. The test pictures have all of theirs."""
    slope: float = 0.45
    """Largest relative change of light from one side of the picture to the other."""
    light: float = 0.1
    """Largest relative change of a background's brightness and colours."""
    two_objects: float = 0.1
    """Share of pictures with two objects."""
    area: tuple[float, float] = (0.12, 0.3)
    """Object area aimed at, as a share of the picture."""
    longest_px: tuple[int, int] = (38, 74)
    rotation_deg: float = 20.0
    recolour: tuple[float, float] = (0.85, 1.0)
    """How far the object's colour mean and deviation go towards the ground's."""
    rematch: tuple[float, float] = (0.0, 0.5)
    """How far the object's colours go towards having the ground's histogram, channel by channel."""
    hue_share: float = 0.6
    """Share of objects whose hues are turned by any angle."""
    texture: tuple[float, float] = (0.0, 0.3)
    """Strength of the photograph's fine structure on the object, relative to that of the ground."""
    same_texture: float = 0.7
    """Share of objects whose texture is another place of the ground's own photograph."""
    least_contrast: float = 26.0
    """Deviation in grey levels that an object keeps on a flat ground."""
    detail_px: int = 2
    """What is finer than a box of this radius counts as texture."""
    shadow_share: float = 0.4
    blur_px: tuple[float, float] = (0.5, 0.9)
    noise: tuple[float, float] = (1.0, 4.0)
    """Standard deviation of sensor noise in grey levels."""
    jpeg: tuple[int, int] = (70, 92)


@dataclass(frozen=True)
class Object:
    """A cut-out: RGB premultiplied by alpha (PIL mode RGBa), its identity and class."""

    id: str
    label: str
    name: str
    picture: Image.Image
    solidity: float
    """Share of the bounding square of the longest side that is covered."""


@dataclass(frozen=True)
class Ground:
    """A background photograph crop; `photo` is the photograph it was cut from."""

    id: str
    photo: str
    source: str
    picture: Image.Image


@dataclass(frozen=True)
class Assets:
    """Objects and grounds of both splits, and the names of the classes in a fixed order."""

    objects: dict[str, list[Object]]
    grounds: dict[str, list[Ground]]
    labels: list[str]


@dataclass(frozen=True)
class Drawn:
    """One picture: image uint8 (96, 96, 3), mask uint8 (96, 96) of ids, indices of object and ground in the split."""

    image: np.ndarray
    mask: np.ndarray
    object_index: int
    ground_index: int


@lru_cache(maxsize=1)
def load_assets() -> Assets:
    """Read and decode those packaged cut-outs and backgrounds that the recipe takes (about a second, 10 MB)."""
    recipe = Recipe()
    objects: dict[str, list[Object]] = {split: [] for split in SPLITS}
    grounds: dict[str, list[Ground]] = {split: [] for split in SPLITS}
    labels: list[str] = []
    with zipfile.ZipFile(ASSETS / "objects.zip") as archive:
        for row in json.loads(archive.read("index.json")):
            if row["label"] not in recipe.classes:
                continue
            picture = Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGBA").convert("RGBa")
            solid = float((np.asarray(picture.getchannel("a")) > 127).sum()) / max(picture.size) ** 2
            objects[row["split"]].append(Object(row["id"], row["label"], row["name"], picture, solid))
            labels += [] if row["label"] in labels else [row["label"]]
    with zipfile.ZipFile(ASSETS / "backgrounds.zip") as archive:
        for row in json.loads(archive.read("index.json")):
            picture = Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB")
            grounds[row["split"]].append(Ground(row["id"], row["photo"], row["source"], picture))
    step = max(1, len(grounds["train"]) // recipe.train_grounds)
    grounds["train"] = grounds["train"][::step][: recipe.train_grounds]
    return Assets(objects, grounds, labels)


def compose(assets: Assets, recipe: Recipe, seed: int, split: str, index: int) -> Drawn:
    """Draw picture `index` of `split` ("train" or "test"); same arguments, same bytes."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    objects, grounds = assets.objects[split], assets.grounds[split]
    ground_index = int(rng.integers(len(grounds)))
    ground = grounds[ground_index]
    jitter = _jitter(rng, recipe.light)
    canvas = _crop(rng, ground.picture) * jitter[0] + jitter[1]
    canvas = canvas * _slope(rng, recipe.slope)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    drawn: list[int] = []
    for number in range(1 + int(rng.random() < recipe.two_objects)):
        object_index = _pick(rng, objects, assets.labels)
        rgb, alpha = _place(rng, recipe, objects[object_index], shrink=1.0 if number == 0 else 0.75, taken=mask)
        other = ground if rng.random() < recipe.same_texture else grounds[int(rng.integers(len(grounds)))]
        texture = _fine(_crop(rng, other.picture), recipe.detail_px)
        canvas = _paste(rng, recipe, canvas, rgb, alpha, texture)
        mask[alpha > 0.5] = number + 1
        drawn.append(object_index)
    sizes = [int((mask == k + 1).sum()) for k in range(len(drawn))]
    largest = int(np.argmax(sizes))
    return Drawn(_camera(rng, recipe, canvas), mask, drawn[largest], ground_index)


def _pick(rng: np.random.Generator, objects: list[Object], labels: list[str]) -> int:
    """Index of an object: first the class, uniformly, then one of its objects."""
    label = labels[int(rng.integers(len(labels)))]
    members = [i for i, one in enumerate(objects) if one.label == label]
    return members[int(rng.integers(len(members)))]


def _jitter(rng: np.random.Generator, light: float) -> tuple[np.ndarray, np.ndarray]:
    gain = rng.uniform(1 - light, 1 + light, 3) * rng.uniform(1 - light, 1 + light)
    return gain.astype(np.float32), (80 * light * rng.uniform(-1, 1, 3)).astype(np.float32)


def _slope(rng: np.random.Generator, slope: float) -> np.ndarray:
    """(96, 96, 3) float32 factors: light from one side, of a colour of its own, so that colour alone finds less."""
    angle, strength = rng.uniform(0, 2 * math.pi), slope * rng.uniform(0.3, 1.0)
    along = np.linspace(-1, 1, SIDE)
    ramp = math.cos(angle) * along[None, :] + math.sin(angle) * along[:, None]
    return (1 + strength * ramp[..., None] * rng.uniform(0.7, 1.3, 3)).astype(np.float32)


def _crop(rng: np.random.Generator, picture: Image.Image) -> np.ndarray:
    """A random square of a ground, turned and mirrored, as float32 (96, 96, 3) in 0..255."""
    side = min(picture.size) * rng.uniform(0.7, 1.0)
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    out = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    turned = np.rot90(np.asarray(out), int(rng.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if rng.random() < 0.5 else turned).astype(np.float32)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


def _blur(values: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(_bytes(values)).filter(ImageFilter.GaussianBlur(radius))).astype(np.float32)


def _fine(values: np.ndarray, radius: int) -> np.ndarray:
    """The part of a picture that is finer than a box of `radius`: differences in grey levels, (96, 96, 3) float32."""
    return values - np.asarray(Image.fromarray(_bytes(values)).filter(ImageFilter.BoxBlur(radius)))


def _roughness(values: np.ndarray) -> float:
    """Mean step between neighbours in grey levels, on every second row: how much fine structure there is."""
    rows = values[::2]
    return float(np.abs(rows[:, 1:] - rows[:, :-1]).mean())


def _place(
    rng: np.random.Generator, recipe: Recipe, thing: Object, shrink: float, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, turn, mirror and place a cut-out: plain RGB (96, 96, 3) in 0..255 and alpha (96, 96) in 0..1."""
    longest = math.sqrt(rng.uniform(*recipe.area) / thing.solidity) * SIDE * shrink
    longest = min(max(longest, recipe.longest_px[0] * shrink), recipe.longest_px[1])
    scale = longest / max(thing.picture.size)
    angle = math.radians(rng.uniform(-recipe.rotation_deg, recipe.rotation_deg))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    half = [0.42 * scale * side for side in thing.picture.size]
    best, least = (SIDE / 2, SIDE / 2), math.inf
    for _ in range(1 if not taken.any() else 8):
        x, y = (rng.uniform(min(h, SIDE / 2), max(SIDE - h, SIDE / 2)) for h in half)
        top, left = max(0, int(y - half[1])), max(0, int(x - half[0]))
        covered = float((taken[top : int(y + half[1]) + 1, left : int(x + half[0]) + 1] > 0).sum())
        if covered < least:
            best, least = (x, y), covered
    # From a picture pixel back to the cut-out: move the centre to 0, turn, scale, mirror, move to the cut-out's centre.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    a, b, d, e = mirror * cos, mirror * sin, -sin, cos
    c = thing.picture.width / 2 - a * best[0] - b * best[1]
    f = thing.picture.height / 2 - d * best[0] - e * best[1]
    placed = thing.picture.transform((SIDE, SIDE), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)
    array = np.asarray(placed).astype(np.float32)
    alpha = array[..., 3] / 255
    return np.clip(array[..., :3] / np.maximum(alpha, 1 / 255)[..., None], 0, 255), alpha


def _paste(
    rng: np.random.Generator,
    recipe: Recipe,
    canvas: np.ndarray,
    rgb: np.ndarray,
    alpha: np.ndarray,
    texture: np.ndarray,
) -> np.ndarray:
    """Recolour the object towards the canvas, give it the texture, darken its shadow and blend it in."""
    if rng.random() < recipe.hue_share:
        rgb = rgb @ _hue_turn(rng.uniform(0, 2 * math.pi))
    values = rgb[::2, ::2][alpha[::2, ::2] > 0.5]
    strength = np.float32(rng.uniform(*recipe.recolour))
    ground = canvas[::3, ::3].reshape(-1, 3)
    mean, deviation = values.mean(0), values.std(0) + 1
    goal_mean = mean + strength * (ground.mean(0) - mean)
    goal_deviation = deviation + strength * (np.maximum(ground.std(0), recipe.least_contrast) - deviation)
    factor = goal_deviation / deviation
    match = np.float32(rng.uniform(*recipe.rematch))
    gain = rng.uniform(*recipe.texture) * _roughness(canvas) / (_roughness(texture) + 0.5)
    rgb = rgb * factor + (goal_mean - mean * factor)
    rgb = rgb + match * (_with_histogram(rgb, alpha, ground, recipe.least_contrast) - rgb)
    rgb = rgb + np.float32(min(gain, 2.5)) * texture
    if rng.random() < recipe.shadow_share:
        canvas = canvas * (1 - _shadow(rng, alpha))
    return canvas + alpha[..., None] * (rgb - canvas)


def _with_histogram(rgb: np.ndarray, alpha: np.ndarray, ground: np.ndarray, least_contrast: float) -> np.ndarray:
    """The object with the ground's quantiles in every channel, stretched about the median where the ground is too flat."""
    out = np.empty_like(rgb)
    levels = np.linspace(0, 1, 65)
    for channel in range(3):
        own = np.quantile(rgb[..., channel][alpha > 0.5], levels)
        goal = np.quantile(ground[:, channel], levels)
        stretch = max(1.0, least_contrast / (float(ground[:, channel].std()) + 1e-3))
        goal = goal[32] + stretch * (goal - goal[32])
        out[..., channel] = np.interp(rgb[..., channel], np.maximum.accumulate(own + 1e-3 * levels), goal)
    return out


def _hue_turn(angle: float) -> np.ndarray:
    """(3, 3) float32 turn of RGB rows about the grey axis (Rodrigues)."""
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    third = (1 - cos) / 3
    return np.array(
        [
            [cos + third, third + sin, third - sin],
            [third - sin, cos + third, third + sin],
            [third + sin, third - sin, cos + third],
        ],
        np.float32,
    )


def _shadow(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """(96, 96, 1) share of light that a soft shadow beside the object takes away."""
    soft = _blur(alpha * 255, rng.uniform(1.5, 4.0)) / 255
    moved = np.roll(soft, (int(rng.integers(0, 4)), int(rng.integers(-3, 4))), axis=(0, 1))
    return (moved * np.float32(rng.uniform(0.15, 0.45)))[..., None]


def _camera(rng: np.random.Generator, recipe: Recipe, canvas: np.ndarray) -> np.ndarray:
    """One blur, one sensor noise, one JPEG for object and ground alike: uint8 (96, 96, 3)."""
    canvas = _blur(canvas, rng.uniform(*recipe.blur_px))
    canvas = canvas + rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(*recipe.noise))
    buffer = io.BytesIO()
    Image.fromarray(_bytes(canvas)).save(buffer, "JPEG", quality=int(rng.integers(*recipe.jpeg)), subsampling=0)
    return np.asarray(Image.open(buffer).convert("RGB"))
