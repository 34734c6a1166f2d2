"""The world `arm`: a planar arm of two links, seen from above, whose gripper pushes round things over a table; all is known.

In place of the robot of BAIR (Ebert et al., 2017), which needs a download. Physics are quasi-static: what the gripper runs into moves
along the normal of the contact, pushes what it runs into itself, and stops at the edge of the table, where it also stops the gripper. A
clip is a pure function of (recipe, seed, index); `changed` does other actions, or puts another thing on the table, from the same first
frame, and that is the exact counterfactual. Actions are the five ways of the gripper, each held for some steps; every second choice goes
towards the nearest thing, else contacts are rare.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from selftaught.core.errors import ConfigError
from selftaught.core.seeds import step_seed
from selftaught.worlds.grounds import KINDS, ground_of
from selftaught.worlds.raster import Canvas
from selftaught.worlds.w_sprites import GLOBALS, STAY, TEST_EVERY, WAYS, Clip, part_of

COLOURS = ((214, 60, 56), (58, 128, 214), (66, 170, 92), (236, 186, 60), (150, 84, 190), (236, 236, 226))
"""Of things; the spare one that `changed` puts on the table is `SPARE`, which no other thing and no arm has."""
SPARE = (255, 0, 200)
ARMS = ((200, 204, 214), (238, 150, 60), (92, 104, 130), (226, 214, 170), (120, 176, 176))
AWAY = -1000.0
"""Both coordinates of a thing that is not there."""
ABOUT = {"globals": list(GLOBALS), "locals": ["free", "pushing"]}
_SUBSTEPS = 4
_ROUNDS = 4


@dataclass(frozen=True)
class ArmRecipe:
    """All numbers of the world; changing one makes other clips."""

    height: int = 48
    """Height of the frames, in pixels."""
    width: int = 64
    """Width of the frames, in pixels."""
    frames: int = 12
    """Frames of a clip."""
    step_px: int = 3
    """How far the gripper goes from one frame to the next; less where it is stopped."""
    things: int = 2
    """Things on the table, of different colours; one more can be put there."""
    thing_px: float = 5.0
    """Radius of a thing."""
    gripper_px: float = 3.5
    """Radius of the gripper."""
    seeking_frac: float = 0.5
    """Share of the choices that go towards the nearest thing."""
    ground: str = "mixed"
    """photo, texture, or mixed (one half each): what the table looks like."""
    version: int = 1
    """Rises when the same numbers give other pixels."""


Recipe = ArmRecipe
SIZES = {
    "tiny": ArmRecipe(height=32, width=32, frames=8, step_px=2, things=1, thing_px=3.5, gripper_px=2.5),
    "small": ArmRecipe(),
    "paper": ArmRecipe(height=96, width=128, frames=30, step_px=5, things=4, thing_px=9.0, gripper_px=6.0),
}


class Bodies(NamedTuple):
    """Where B worlds are; float64 pixels."""

    gripper: np.ndarray
    """(B, 2)."""
    things: np.ndarray
    """(B, K, 2); `AWAY` for those that are not there."""
    contacts: np.ndarray
    """(B, K) bool: pushed, by the gripper or by one another, in the last step."""


@dataclass(frozen=True)
class Script:
    """What happens in one clip of T frames; `moves` of frame t name what led from t - 1 to t, the first is 4 (stay)."""

    part: str
    identity: int
    ground: tuple[str, int]
    colours: np.ndarray
    """uint8 (K, 3): the last is the spare thing's."""
    moves: np.ndarray
    """int64 (T,)."""
    gripper: np.ndarray
    """(T, 2)."""
    things: np.ndarray
    """(T, K, 2)."""
    contacts: np.ndarray
    """bool (T, K)."""

    def __len__(self) -> int:
        return len(self.moves)

    def bodies(self, frame: int) -> Bodies:
        """Where everything is in a frame, as one of B = 1."""
        return Bodies(self.gripper[frame : frame + 1], self.things[frame : frame + 1], self.contacts[frame : frame + 1])


def checked(recipe: ArmRecipe) -> ArmRecipe:
    """Return the recipe; raises ConfigError for one that no clip can be made of."""
    r = recipe
    room = (min(r.height, r.width) - 2 * r.thing_px) / (2 * r.thing_px) if r.thing_px > 0 else 0.0
    wrong = ""
    if not 16 <= min(r.height, r.width) <= max(r.height, r.width) <= 4096:
        wrong = f"a picture of {r.width}x{r.height}"
    elif not (1 <= r.thing_px and 1 <= r.gripper_px <= min(r.height, r.width) / 6 and room >= 2):
        wrong = f"things of {r.thing_px} px and a gripper of {r.gripper_px} px in a picture of {r.width}x{r.height}"
    elif r.frames < 1 or not 1 <= r.step_px <= 2 * r.gripper_px or not 0 <= r.things <= len(COLOURS):
        wrong = f"frames and step_px are at least 1, step_px at most twice gripper_px, things at most {len(COLOURS)}"
    elif r.ground not in (*KINDS, "mixed") or not 0 <= r.seeking_frac <= 1:
        wrong = f"ground is '{r.ground}' and seeking_frac {r.seeking_frac}"
    if wrong:
        raise ConfigError(f"No clip can be made of this recipe: {wrong}.", do="`selftaught data make --help`")
    return recipe


def bounds(recipe: ArmRecipe, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest (x, y) of the centre of what has a radius and stays on the table."""
    return np.array([radius, radius]), np.array([recipe.width - radius, recipe.height - radius])


def advance(recipe: ArmRecipe, bodies: Bodies, ways: np.ndarray) -> Bodies:
    """One step of B worlds: `ways` (B,) are 0 left, 1 right, 2 up, 3 down, 4 stay."""
    gripper, things = bodies.gripper.copy(), bodies.things.copy()
    before = things.copy()
    low, high = bounds(recipe, recipe.gripper_px)
    for _ in range(_SUBSTEPS):
        gripper = np.clip(gripper + WAYS[ways] * (recipe.step_px / _SUBSTEPS), low, high)
        for _ in range(_ROUNDS):
            things = _pushed(recipe, gripper, things)
        # What cannot give way any more stops the gripper; near an edge that may put it a tenth of a pixel off the table (version 1).
        for k in range(things.shape[1]):
            normal, depth = _overlap(gripper, things[:, k], recipe.gripper_px + recipe.thing_px)
            gripper = gripper - normal * depth
    return Bodies(gripper, things, np.abs(things - before).max(2) > 1e-9)


def _overlap(a: np.ndarray, b: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (B, 2) from a to b, and by how much (B, 1) two discs whose radii sum to `reach` lie in one another."""
    way = b - a
    away = np.linalg.norm(way, axis=1, keepdims=True)
    normal = np.where(away > 1e-9, way / np.maximum(away, 1e-9), np.array([0.0, 1.0]))
    return normal, np.maximum(reach - away, 0)


def _pushed(recipe: ArmRecipe, gripper: np.ndarray, things: np.ndarray) -> np.ndarray:
    low, high = bounds(recipe, recipe.thing_px)
    K, there = things.shape[1], things[:, :, 0] > AWAY / 2
    for k in range(K):
        normal, depth = _overlap(gripper, things[:, k], recipe.gripper_px + recipe.thing_px)
        things[:, k] += normal * depth
    for i in range(K):
        for j in range(i + 1, K):
            normal, depth = _overlap(things[:, i], things[:, j], 2 * recipe.thing_px)
            depth = depth * (there[:, i] & there[:, j])[:, None] / 2
            things[:, i] -= normal * depth
            things[:, j] += normal * depth
    return np.where(there[..., None], np.clip(things, low, high), things)


def script(recipe: ArmRecipe, seed: int, index: int) -> Script:
    """Return what happens in clip `index`; it does not depend on how many clips there are."""
    random = np.random.RandomState(step_seed(seed, 2, index) % 2**32)
    part, K = part_of(index), recipe.things
    looks = [i for i in range(len(ARMS) * TEST_EVERY) if part_of(i) == part]
    identity = looks[random.randint(len(looks))]
    kind = KINDS[random.randint(2)]
    ground = (kind if recipe.ground == "mixed" else recipe.ground, int(random.randint(2**31 - 1)))
    colours = np.array([*(COLOURS[i] for i in random.permutation(len(COLOURS))[:K]), SPARE], np.uint8)
    gripper = random.uniform(*bounds(recipe, recipe.gripper_px))
    things = np.full((K + 1, 2), AWAY)
    for k in range(K):
        for _ in range(200):  # a table that is too full has things in one another, which the first step moves apart
            things[k] = random.uniform(*bounds(recipe, recipe.thing_px))
            others = np.linalg.norm(things[:k] - things[k], axis=1)
            free = np.linalg.norm(gripper - things[k]) > recipe.gripper_px + recipe.thing_px + 1
            if free and (others > 2 * recipe.thing_px + 1).all():
                break
    bodies = Bodies(gripper[None], things[None], np.zeros((1, K + 1), bool))
    moves, way, held = [STAY], STAY, 0
    seen = [bodies]
    for _ in range(recipe.frames - 1):
        if held == 0:
            way, held = _choice(random, recipe, bodies), int(random.randint(2, 6))
        held -= 1
        bodies = advance(recipe, bodies, np.array([way]))
        moves.append(way)
        seen.append(bodies)
    return Script(part, identity, ground, colours, np.array(moves, np.int64), *(np.concatenate(x) for x in zip(*seen, strict=True)))


def _choice(random: np.random.RandomState, recipe: ArmRecipe, bodies: Bodies) -> int:
    if recipe.things and random.uniform() < recipe.seeking_frac:
        away = bodies.things[0, : recipe.things] - bodies.gripper[0]
        to = away[np.linalg.norm(away, axis=1).argmin()]
        axis = int(abs(to[1]) > abs(to[0]))
        return 2 * axis + int(to[axis] > 0)
    return int(random.randint(len(WAYS)))


def changed(
    recipe: ArmRecipe, old: Script, *, moves: np.ndarray | None = None, spare: np.ndarray | None = None, frame: int = 0
) -> Script:
    """The clip from frame `frame` of an old script on, with other actions, and with the spare thing at (x, y): the counterfactual.

    The first entry of `moves` leads to nothing and is taken as 4 (stay). Raises ConfigError for actions that are not there and for places
    off the table, or in the gripper.
    """
    new = np.array(old.moves[frame:] if moves is None else moves, np.int64)
    if new.ndim != 1 or len(new) < 1 or new.min() < 0 or new.max() >= len(WAYS):
        raise ConfigError("Actions are whole numbers, one per frame.", expected=f"0 to {len(WAYS) - 1}")
    new[0] = STAY
    things = old.things[frame].copy()
    if spare is not None:
        low, high = bounds(recipe, recipe.thing_px)
        place = np.asarray(spare, np.float64)
        on_table = place.shape == (2,) and bool(((place >= low) & (place <= high)).all())
        if not on_table or np.linalg.norm(place - old.gripper[frame]) < recipe.gripper_px + recipe.thing_px:
            raise ConfigError("The thing must lie on the table, beside the gripper.", expected=f"(x, y) from {low} to {high}")
        things[-1] = place
    bodies = Bodies(old.gripper[frame][None], things[None], np.zeros((1, len(things)), bool))
    seen = [bodies]
    for way in new[1:]:
        bodies = advance(recipe, bodies, np.array([way]))
        seen.append(bodies)
    return dataclasses.replace(old, moves=new, **{k: np.concatenate([getattr(b, k) for b in seen]) for k in Bodies._fields})


def elbow(recipe: ArmRecipe, gripper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shoulder and elbow (N, 2) of the arm whose gripper is at (N, 2): two links as long as each other, the elbow to the right."""
    shoulder = np.broadcast_to(np.array([recipe.width / 2, -2.0]), gripper.shape)
    link = 0.53 * np.hypot(recipe.width / 2, recipe.height + 2)
    way = gripper - shoulder
    away = np.linalg.norm(way, axis=1, keepdims=True)
    out = np.sqrt(np.maximum(link**2 - (away / 2) ** 2, 0))
    across = np.stack([way[:, 1], -way[:, 0]], 1) / np.maximum(away, 1e-9)
    return shoulder, shoulder + way / 2 + across * out


def draw(recipe: ArmRecipe, one: Script, bodies: Bodies) -> tuple[Canvas, np.ndarray]:
    """Pictures of N moments of a script's table, and where each thing is seen (N, K, H, W) in [0, 1]."""
    ground = ground_of(*one.ground, one.part, recipe.height, recipe.width)
    canvas = Canvas(ground, len(bodies.gripper))
    seen = []
    for k in range(bodies.things.shape[1]):
        colour = one.colours[k].astype(np.float32)
        seen.append(canvas.disc(bodies.things[:, k], recipe.thing_px, tuple(0.55 * colour)))
        canvas.disc(bodies.things[:, k], recipe.thing_px - 1.2, tuple(colour))
    metal = np.array(ARMS[one.identity // TEST_EVERY % len(ARMS)], np.float32) * (1 - 0.08 * (one.identity % TEST_EVERY))
    shoulder, bend = elbow(recipe, bodies.gripper)
    size = recipe.gripper_px
    for a, b, radius in ((shoulder, bend, 0.8 * size), (bend, bodies.gripper, 0.6 * size)):
        canvas.capsule(a, b, radius, tuple(0.5 * metal), agent=True)
        canvas.capsule(a, b, radius - 1, tuple(metal))
    canvas.disc(bend, 0.8 * size, tuple(0.6 * metal), agent=True)
    canvas.disc(bodies.gripper, size, (38, 40, 48), agent=True)
    canvas.disc(bodies.gripper, size - 1.4, (250, 214, 60))
    return canvas, np.stack(seen, 1) * (1 - canvas.mask[:, None])


def render(recipe: ArmRecipe, one: Script) -> Clip:
    """Draw a script."""
    canvas, seen = draw(recipe, one, Bodies(one.gripper, one.things, one.contacts))
    return Clip(canvas.frames(), canvas.masks(), {"thing_bits": np.packbits(seen[:, : recipe.things] > 0.5, axis=-1)})


def truth(recipe: ArmRecipe, scripts: list[Script]) -> dict[str, Any]:
    """Arrays of `truth.npz` beside those that every world has."""
    gripper = np.stack([one.gripper for one in scripts])
    contacts = np.stack([one.contacts for one in scripts])[:, :, : recipe.things]
    return {
        "locals": contacts.any(2).astype(np.uint8), "contacts": contacts, "gripper_px": gripper.astype(np.float32),
        "things_px": np.stack([one.things for one in scripts])[:, :, : recipe.things].astype(np.float32),
        "shifts_px": np.diff(gripper, axis=1).astype(np.float32), "colours": np.stack([one.colours for one in scripts]),
    }  # fmt: skip
