"""The world `w-sprites`: one figure walks over a moving ground, casts and slashes; everything that happens is known.

After the Walking Sprites of Davtyan and Favaro (GLASS, ECCV 2022), with figures and grounds of our own. A clip is a pure
function of (recipe, seed, index). `Script` is all that happens in it, `render` draws it: change its identity, its ground
or its actions and draw again, and that is the exact counterfactual. Different from the original: whole-pixel steps at
every size, alpha edges, ground windows that are cut and not resized, so that every shift is exact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selftaught.core.errors import ConfigError
from selftaught.core.seeds import step_seed
from selftaught.worlds.grounds import KINDS, ground_of

GLOBALS = ("left", "right", "up", "down", "stay")
LOCALS = tuple(f"{action} {facing}" for action in ("walk", "cast", "slash") for facing in ("front", "left", "right"))
ABOUT = {"globals": list(GLOBALS), "locals": list(LOCALS)}
STAY = 4
WAYS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)], np.int64)
WALKS = (1, 2, 0, 0)
"""The way of walking that belongs to left, right, up, down."""
TEST_EVERY = 5


@dataclass(frozen=True)
class Recipe:
    """All numbers of the world; changing one makes other clips."""

    height: int = 48
    """Height of the frames, in pixels."""
    width: int = 64
    """Width of the frames, in pixels."""
    sprite_px: int = 32
    """Side of the square that a figure is drawn in."""
    frames: int = 12
    """Frames of a clip."""
    step_px: int = 4
    """How far a figure walks from one frame to the next; less at the border."""
    inertia: float = 0.9
    """Probability that a way is kept, when the border allows it."""
    ground: str = "mixed"
    """photo, texture, or mixed (one half each)."""
    margin_px: int = 12
    """How far the window can slide over the ground."""
    camera: bool = True
    """Whether the ground moves: by one pixel per frame, a way kept with probability 0.95."""
    correlated: bool = True
    """Whether the figure walks when it moves and casts or slashes when it stays, as in the original; else any local
    action goes with any motion."""
    distractor: bool = False
    """Whether a second figure with a life of its own walks behind the first; it is not in the masks."""
    identities: int = 160
    """Figures; of every five one is kept for the test clips."""
    sprites: str = "puppets"
    """Who draws the figures: puppets (drawn here) or flare (the Debian package flare-game)."""
    version: int = 1
    """Rises when the same numbers give other pixels."""


SIZES = {
    "tiny": Recipe(height=32, width=32, sprite_px=20, frames=8, step_px=3, margin_px=8, identities=20),
    "small": Recipe(),
    "paper": Recipe(height=96, width=128, sprite_px=64, frames=90, step_px=7, margin_px=25, identities=1296),
}


@dataclass(frozen=True)
class Script:
    """What happens in one clip of T frames; `moves` and `locals` of frame t name what led from t - 1 to t.

    `moves`, `locals`, `phases` int64 (T,), `positions` (T, 2) the (x, y) of the figure's square in pixels, `windows`
    (T, 2) the (x, y) of the window on the ground. The first move is 4 (stay): nothing led to it.
    """

    part: str
    identity: int
    ground: tuple[str, int]
    moves: np.ndarray
    locals: np.ndarray
    phases: np.ndarray
    positions: np.ndarray
    windows: np.ndarray
    other: Script | None = None
    """The figure behind, with distractor."""

    def __len__(self) -> int:
        return len(self.moves)

    @property
    def shifts_px(self) -> np.ndarray:
        """Motion of the figure, int64 (T - 1, 2) as (x, y)."""
        return np.diff(self.positions, axis=0)

    @property
    def ground_shifts_px(self) -> np.ndarray:
        """Motion of what is seen of the ground, int64 (T - 1, 2): the opposite of the window's."""
        return -np.diff(self.windows, axis=0)

    def shifts(self, recipe: Recipe) -> np.ndarray:
        """Motion of the figure in units where the picture is 2 wide and 2 high, float64 (T - 1, 2)."""
        return 2.0 * self.shifts_px / np.array([recipe.width, recipe.height])


@dataclass(frozen=True)
class Clip:
    """`frames` uint8 (T, H, W, 3) and the alpha of the figure, `masks` uint8 (T, H, W), 255 where it covers all."""

    frames: np.ndarray
    masks: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """What else is true of its pixels, for `truth.npz`."""


def checked(recipe: Recipe) -> Recipe:
    """Return the recipe; raises ConfigError for one that no clip can be made of."""
    wrong = ""
    if not 8 <= recipe.sprite_px <= min(recipe.height, recipe.width) or max(recipe.height, recipe.width) > 4096:
        wrong = f"a figure of {recipe.sprite_px} px in a picture of {recipe.width}x{recipe.height}"
    elif recipe.frames < 1 or recipe.step_px < 1 or recipe.margin_px < 0 or recipe.identities < TEST_EVERY:
        wrong = "frames and step_px are at least 1, margin_px 0, identities 5"
    elif recipe.ground not in (*KINDS, "mixed") or recipe.sprites not in ("puppets", "flare"):
        wrong = f"ground is '{recipe.ground}' and sprites '{recipe.sprites}'"
    elif not 0 <= recipe.inertia <= 1:
        wrong = f"inertia is {recipe.inertia}"
    if wrong:
        raise ConfigError(f"No clip can be made of this recipe: {wrong}.", do="`selftaught data make --help`")
    return recipe


def part_of(index: int) -> str:
    """Return "test" for every fifth clip or identity, else "train"; no figure and no photograph is in both."""
    return "test" if index % TEST_EVERY == TEST_EVERY - 1 else "train"


def script(recipe: Recipe, seed: int, index: int, identity: int | None = None) -> Script:
    """Return what happens in clip `index`; it does not depend on how many clips there are."""
    random = np.random.RandomState(step_seed(seed, 0, index) % 2**32)
    part = part_of(index)
    cast = [i for i in range(recipe.identities) if part_of(i) == part]
    drawn = cast[random.randint(len(cast))]
    kind = KINDS[random.randint(2)]
    ground = (kind if recipe.ground == "mixed" else recipe.ground, int(random.randint(2**31 - 1)))
    room = room_of(recipe)
    start = np.array([random.randint(room[0] + 1), random.randint(room[1] + 1)])
    moves = _draw_moves(random, recipe, start)
    locals_ = _draw_locals(random, recipe, moves)
    windows = _draw_windows(random, recipe)
    first_phase = int(random.randint(8)) if locals_[0] < 3 else 0
    other = None
    if recipe.distractor:
        other = script(dataclasses.replace(recipe, distractor=False), seed ^ 0x5EED, index)
    identity = drawn if identity is None else identity
    return _act(recipe, Script(part, identity, ground, moves, locals_, np.array([first_phase]), start[None], windows, other))


def changed(
    recipe: Recipe,
    old: Script,
    *,
    identity: int | None = None,
    ground: tuple[str, int] | None = None,
    moves: np.ndarray | None = None,
    locals: np.ndarray | None = None,
) -> Script:
    """Return the same clip with another figure, ground or other actions from the same first frame: the counterfactual.

    The first entries of `moves` and `locals` lead to nothing and are kept from the old script. For a transfer give the
    actions of another clip.
    """
    new = dataclasses.replace(
        old,
        identity=old.identity if identity is None else identity,
        ground=old.ground if ground is None else ground,
        moves=_with_first(old.moves, moves, len(GLOBALS)),
        locals=_with_first(old.locals, locals, len(LOCALS)),
    )
    if len(new.moves) != len(new.locals) or len(new.moves) > len(old.windows):
        raise ConfigError("The actions have other lengths than the clip.", expected=f"at most {len(old)} of each")
    return _act(recipe, dataclasses.replace(new, windows=old.windows[: len(new.moves)]))


def render(recipe: Recipe, one: Script) -> Clip:
    """Draw a script: frame = figure + (1 - alpha) * ground, in whole numbers."""
    kind, number = one.ground
    m = recipe.margin_px
    ground = ground_of(kind, number, one.part, recipe.height + m, recipe.width + m)
    windows = np.lib.stride_tricks.sliding_window_view(ground, (recipe.height, recipe.width), axis=(0, 1))  # type: ignore[call-overload]
    frames = np.ascontiguousarray(windows[one.windows[:, 1], one.windows[:, 0]].transpose(0, 2, 3, 1))
    if one.other is not None:
        _paste(recipe, one.other, frames)
    return Clip(frames, _paste(recipe, one, frames))


def _paste(recipe: Recipe, one: Script, frames: np.ndarray) -> np.ndarray:
    """Lay the figure over the frames, in place; return its alpha in the picture."""
    tiles = tiles_of(recipe.sprites, one.identity, recipe.sprite_px)[one.locals, one.phases]
    masks = np.zeros(frames.shape[:3], np.uint8)
    px = recipe.sprite_px
    clear = 255 - tiles[..., 3:].astype(np.uint16)
    for t, (x, y) in enumerate(one.positions.tolist()):
        under = frames[t, y : y + px, x : x + px]
        under[:] = tiles[t, ..., :3] + ((under * clear[t] + 127) // 255).astype(np.uint8)
        masks[t, y : y + px, x : x + px] = tiles[t, ..., 3]
    return masks


def truth(recipe: Recipe, scripts: list[Script]) -> dict[str, Any]:
    """Arrays of `truth.npz` beside those that every world has."""
    return {
        "locals": np.stack([one.locals for one in scripts]).astype(np.uint8),
        "phases": np.stack([one.phases for one in scripts]).astype(np.uint8),
        "positions": np.stack([one.positions for one in scripts]).astype(np.int16),
        "windows": np.stack([one.windows for one in scripts]).astype(np.int16),
        "shifts_px": np.stack([one.shifts_px for one in scripts]).astype(np.int16),
        "ground_shifts_px": np.stack([one.ground_shifts_px for one in scripts]).astype(np.int16),
    }


def tiles_of(sprites: str, identity: int, px: int) -> np.ndarray:
    """Return the pictures of one figure, uint8 (9, 8, px, px, 4) multiplied by alpha."""
    if sprites == "flare":
        from selftaught.worlds.flare import flare_tiles

        return flare_tiles(identity, px)
    from selftaught.worlds.puppets import puppet_tiles

    return puppet_tiles(identity, px)


def room_of(recipe: Recipe) -> np.ndarray:
    """The largest (x, y) of a figure's square."""
    return np.array([recipe.width - recipe.sprite_px, recipe.height - recipe.sprite_px])


def _act(recipe: Recipe, one: Script) -> Script:
    """Carry out the actions from the first frame: positions, and phases that start anew with every other action."""
    room = room_of(recipe)
    positions, phases = [one.positions[0]], [int(one.phases[0])]
    for t in range(1, len(one.moves)):
        positions.append(np.clip(positions[-1] + recipe.step_px * WAYS[one.moves[t]], 0, room))
        phases.append((phases[-1] + 1) % 8 if one.locals[t] == one.locals[t - 1] else 0)
    return dataclasses.replace(one, positions=np.stack(positions), phases=np.array(phases, np.int64))


def _draw_moves(random: np.random.RandomState, recipe: Recipe, start: np.ndarray) -> np.ndarray:
    room, at = room_of(recipe), start
    way, moves = int(random.randint(len(WAYS))), [STAY]
    for _ in range(recipe.frames - 1):
        free = [k for k in range(len(WAYS)) if k == STAY or ((at + WAYS[k] >= 0) & (at + WAYS[k] <= room)).all()]
        if way not in free:
            way = free[random.randint(len(free))]
        elif len(free) > 1 and random.uniform() >= recipe.inertia:
            rest = [k for k in free if k != way]
            way = rest[random.randint(len(rest))]
        moves.append(way)
        at = np.clip(at + recipe.step_px * WAYS[way], 0, room)
    return np.array(moves, np.int64)


def _draw_locals(random: np.random.RandomState, recipe: Recipe, moves: np.ndarray) -> np.ndarray:
    """Walking belongs to motion; in a stay an action is held for 4 to 8 frames, then another one drawn."""
    out: list[int] = []
    held, current = 0, -1
    for t, move in enumerate(moves.tolist()):
        # What the figure does in the first frame is what it goes on with.
        move = int(moves[1]) if t == 0 and len(moves) > 1 else move
        if recipe.correlated and move != STAY:
            out.append(WALKS[move])
            held, current = 0, -1
            continue
        if held == 0:
            choice = [k for k in range(3 if recipe.correlated else 0, len(LOCALS)) if k != current]
            current, held = choice[random.randint(len(choice))], int(random.randint(4, 9))
        held -= 1
        out.append(current)
    return np.array(out, np.int64)


def _draw_windows(random: np.random.RandomState, recipe: Recipe) -> np.ndarray:
    room = recipe.margin_px
    at = np.array([random.randint(room + 1), random.randint(room + 1)])
    way, out = int(random.randint(4)), [at]
    for _ in range(recipe.frames - 1):
        if recipe.camera and room:
            step = at + WAYS[way]
            if random.uniform() >= 0.95 or (step < 0).any() or (step > room).any():
                free = [k for k in range(4) if ((at + WAYS[k] >= 0) & (at + WAYS[k] <= room)).all()]
                way = free[random.randint(len(free))]
            at = at + WAYS[way]
        out.append(at)
    return np.stack(out).astype(np.int64)


def _with_first(old: np.ndarray, new: np.ndarray | None, count: int) -> np.ndarray:
    if new is None:
        return old
    values = np.array(new, np.int64)
    if values.ndim != 1 or len(values) < 1 or values.min() < 0 or values.max() >= count:
        raise ConfigError("Actions are whole numbers, one per frame.", expected=f"0 to {count - 1}")
    values[0] = old[0]
    return values
