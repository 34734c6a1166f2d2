"""The world `drawn-tennis`: a player, an opponent and a ball on a court seen from above and behind; drawn here, and all is known.

It stands in for the tennis of the talk, whose videos have gone from the web, and for Atari's: ale-py, which runs that, is GPL-2.0-only,
so this project does not depend on it. The player is the agent: it runs left, right, up, down, stays, or swings. The opponent and the ball
have a life of their own, as in the videos: the opponent runs where the ball will come down and returns what it reaches; a ball that
nobody returns lies for a moment, and the opponent serves again. Where a ball is sent is drawn beforehand (`Script.luck`), so a world that
is branched has one future per sequence of actions, and `changed` is the exact counterfactual. The player's shirt has a colour that
nothing else has (`PLAYER`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from selftaught.core.errors import ConfigError
from selftaught.core.seeds import step_seed
from selftaught.worlds.raster import Canvas
from selftaught.worlds.w_sprites import GLOBALS, STAY, TEST_EVERY, WAYS, Clip, part_of

SWING = 5
ACTIONS = (*GLOBALS, "swing")
PLAYER, OPPONENT = (252, 60, 132), (84, 96, 236)
"""Colours of the shirts."""
COURTS = ((62, 128, 86), (58, 104, 160), (178, 112, 74), (128, 96, 148), (108, 130, 64))
ABOUT = {"globals": list(GLOBALS), "locals": ["run", "swing"]}
_LUCK = 32
_SERVE_AFTER = 3


@dataclass(frozen=True)
class TennisRecipe:
    """All numbers of the world; changing one makes other clips."""

    height: int = 48
    """Height of the frames, in pixels; all else is in parts of it."""
    width: int = 64
    """Width of the frames, in pixels."""
    frames: int = 12
    """Frames of a clip."""
    step_px: int = 3
    """How far the player runs from one frame to the next; less at the border of its half."""
    chase_frac: float = 0.6
    """Share of the choices in which the player runs for the ball."""
    opponent: bool = True
    """Whether there is an opponent and a ball; without them nothing moves that is not the player's doing."""
    version: int = 1
    """Rises when the same numbers give other pixels."""


Recipe = TennisRecipe
SIZES = {
    "tiny": TennisRecipe(height=32, width=32, frames=8, step_px=2),
    "small": TennisRecipe(),
    "paper": TennisRecipe(height=96, width=256, frames=16, step_px=6),
}


class Rally(NamedTuple):
    """Where B games are; pixels are float64."""

    player: np.ndarray
    """(B, 2): the feet."""
    swing: np.ndarray
    """(B,) int64: 0 holds the racket, 1 to 3 swings it."""
    opponent: np.ndarray
    """(B, 2)."""
    came: np.ndarray
    """(B, 2): where the ball was hit."""
    goes: np.ndarray
    """(B, 2): where it comes down."""
    done: np.ndarray
    """(B,) share of the flight that is done; above 1 it lies where it came down."""
    speed: np.ndarray
    """(B,) share of the flight per step."""
    flights: np.ndarray
    """(B,) int64: how many there were."""
    to_player: np.ndarray
    """(B,) bool: whom it flies to."""


@dataclass(frozen=True)
class Script:
    """What happens in one clip of T frames; `moves` and `locals` of frame t name what led from t - 1 to t."""

    part: str
    identity: int
    ground: tuple[str, int]
    luck: np.ndarray
    """(32, 3) in [0, 1]: where and how fast each flight goes."""
    moves: np.ndarray
    """int64 (T,): 0 left, 1 right, 2 up, 3 down, 4 stay; a swing stays."""
    locals: np.ndarray
    """int64 (T,): 1 where the player swings."""
    rally: Rally
    """Of all T frames."""

    def __len__(self) -> int:
        return len(self.moves)

    def at(self, frame: int) -> Rally:
        """The game in a frame, as one of B = 1."""
        return Rally(*(x[frame : frame + 1] for x in self.rally))

    @property
    def actions(self) -> np.ndarray:
        """int64 (T,): `moves`, or 5 where the player swings."""
        return np.where(self.locals == 1, SWING, self.moves)


def checked(recipe: TennisRecipe) -> TennisRecipe:
    """Return the recipe; raises ConfigError for one that no clip can be made of."""
    r = recipe
    wrong = ""
    if not 24 <= r.height <= 4096 or not 24 <= r.width <= 4096:
        wrong = f"a picture of {r.width}x{r.height}"
    elif r.frames < 1 or not 1 <= r.step_px <= r.height / 6:
        wrong = "frames and step_px are at least 1, step_px at most a sixth of the height"
    elif not 0 <= r.chase_frac <= 1:
        wrong = f"chase_frac is {r.chase_frac}"
    if wrong:
        raise ConfigError(f"No clip can be made of this recipe: {wrong}.", do="`selftaught data make --help`")
    return recipe


def half(recipe: TennisRecipe, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest (x, y) of the feet in the player's half, or the opponent's."""
    H, W = recipe.height, recipe.width
    rows = (0.68, 0.96) if own else (0.24, 0.40)
    return np.array([0.10 * W, rows[0] * H]), np.array([0.90 * W, rows[1] * H])


def advance(recipe: TennisRecipe, game: Rally, actions: np.ndarray, luck: np.ndarray) -> Rally:
    """One step of B games: `actions` (B,) of `ACTIONS`, `luck` (B, 32, 3)."""
    H = recipe.height
    ways = np.minimum(actions, STAY)
    player = np.clip(game.player + recipe.step_px * WAYS[ways], *half(recipe, True))
    swing = np.where(actions == SWING, game.swing % 3 + 1, 0)
    low, high = half(recipe, False)
    aim = np.where(game.to_player[:, None], (low + high) / 2, np.clip(game.goes, low, high))
    opponent = game.opponent + np.clip(aim - game.opponent, -0.7 * recipe.step_px, 0.7 * recipe.step_px)
    done = game.done + game.speed
    arrived = (done >= 1) & (game.done < 1)
    near = np.linalg.norm(np.where(game.to_player[:, None], player, opponent) - game.goes, axis=1) <= 0.2 * H
    returned = arrived & near & (~game.to_player | (swing > 0))
    served = done >= 1 + _SERVE_AFTER * game.speed
    new = returned | served
    hitter = np.where((game.to_player & ~served)[:, None], player, opponent)
    to_player = np.where(served, True, np.where(returned, ~game.to_player, game.to_player))
    flights = game.flights + new
    drawn = luck[np.arange(len(luck)), flights % _LUCK]
    target = np.stack([_within(*half(recipe, own), drawn[:, :2]) for own in (False, True)])
    goes = target[to_player.astype(int), np.arange(len(luck))]
    speed = 1 / (5 + np.floor(3 * drawn[:, 2]))
    pick = new[:, None]
    return Rally(
        player, swing, opponent, np.where(pick, hitter, game.came), np.where(pick, goes, game.goes), np.where(new, 0.0, done),
        np.where(new, speed, game.speed), flights, to_player,
    )  # fmt: skip


def _within(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    return low + (high - low) * share


def ball_of(recipe: TennisRecipe, game: Rally) -> tuple[np.ndarray, np.ndarray]:
    """Where the ball's shadow is (B, 2), and how high it flies (B,), in pixels."""
    share = np.minimum(game.done, 1)
    high = 0.6 * recipe.height * share * (1 - share) + 0.06 * recipe.height * (1 - share)
    return game.came + (game.goes - game.came) * share[:, None], high


def script(recipe: TennisRecipe, seed: int, index: int) -> Script:
    """Return what happens in clip `index`; it does not depend on how many clips there are."""
    random = np.random.RandomState(step_seed(seed, 3, index) % 2**32)
    part = part_of(index)
    courts = [i for i in range(len(COURTS) * TEST_EVERY) if part_of(i) == part]
    court = courts[random.randint(len(courts))]
    luck = random.uniform(size=(_LUCK, 3))
    player, opponent = random.uniform(*half(recipe, True)), random.uniform(*half(recipe, False))
    first = random.uniform(size=3)
    goes = _within(*half(recipe, True), first[:2])
    game = Rally(
        player[None], np.zeros(1, np.int64), opponent[None], opponent[None], goes[None], np.array([0.6 * first[2]]), np.array([1 / 6]),
        np.zeros(1, np.int64), np.ones(1, bool),
    )  # fmt: skip
    actions, seen = [STAY], [game]
    way, held = STAY, 0
    for _ in range(recipe.frames - 1):
        left = (1 - game.done[0]) / game.speed[0]
        if bool(game.to_player[0]) and 0 < left <= 2 and random.uniform() < 0.8:
            act, held = SWING, 0
        else:
            if held == 0:
                chase = random.uniform() < recipe.chase_frac
                way, held = _chase(recipe, game) if chase else int(random.randint(len(WAYS))), int(random.randint(2, 5))
            act, held = way, held - 1
        game = advance(recipe, game, np.array([act]), luck[None])
        actions.append(act)
        seen.append(game)
    return _script(part, court, luck, np.array(actions, np.int64), seen)


def _chase(recipe: TennisRecipe, game: Rally) -> int:
    away = game.goes[0] - game.player[0] if bool(game.to_player[0]) else np.mean(half(recipe, True), 0) - game.player[0]
    if np.abs(away).max() < recipe.step_px:
        return STAY
    axis = int(abs(away[1]) > abs(away[0]))
    return 2 * axis + int(away[axis] > 0)


def _script(part: str, court: int, luck: np.ndarray, actions: np.ndarray, seen: list[Rally]) -> Script:
    rally = Rally(*(np.concatenate(x) for x in zip(*seen, strict=True)))
    return Script(part, court, ("court", court), luck, np.minimum(actions, STAY), (actions == SWING).astype(np.int64), rally)


def changed(recipe: TennisRecipe, old: Script, *, actions: np.ndarray, court: int | None = None) -> Script:
    """The same game from the same first frame under other actions (T,), whose first leads to nothing, or on another court."""
    new = np.array(actions, np.int64)
    if new.ndim != 1 or len(new) < 1 or new.min() < 0 or new.max() > SWING:
        raise ConfigError("Actions are whole numbers, one per frame.", expected=f"0 to {SWING}")
    new[0] = old.actions[0]
    seen = [old.at(0)]
    for act in new[1:]:
        seen.append(advance(recipe, seen[-1], np.array([act]), old.luck[None]))
    return _script(old.part, old.identity if court is None else court, old.luck, new, seen)


def court_of(recipe: TennisRecipe, number: int) -> np.ndarray:
    """A court, uint8 (H, W, 3): one of five grounds in one of five shades, with stripes of mown grass, lines and a net."""
    H, W = recipe.height, recipe.width
    colour = np.array(COURTS[number // TEST_EVERY % len(COURTS)], np.float32) * (0.8 + 0.09 * (number % TEST_EVERY))
    rows = np.arange(H)[:, None]
    stripes = 1 + 0.05 * np.where((rows * 8 // H) % 2 == 0, 1, -1)
    ground = np.broadcast_to(colour * stripes[..., None], (H, W, 3)).astype(np.float32)
    canvas = Canvas(ground, 1)
    left, right, top, bottom, net = 0.06 * W, 0.94 * W, 0.20 * H, 0.975 * H, 0.5 * H
    thin = 0.006 * H
    across = [((left, y), (right, y)) for y in (top, 0.3 * H, 0.8 * H, bottom)]
    along = [((left, top), (left, bottom)), ((right, top), (right, bottom)), ((W / 2, 0.3 * H), (W / 2, 0.8 * H))]
    for a, b in [*across, *along]:
        canvas.capsule(np.array([a]), np.array([b]), thin, tuple(0.35 * colour + 150))
    canvas.capsule(np.array([(left, net)]), np.array([(right, net)]), 0.015 * H, (38, 42, 46))
    canvas.capsule(np.array([(left, net - 0.03 * H)]), np.array([(right, net - 0.03 * H)]), thin, (236, 236, 236))
    return canvas.frames()[0]


def _figure(canvas: Canvas, H: int, feet: np.ndarray, swing: np.ndarray, shirt: tuple[int, int, int], agent: bool) -> None:
    """Legs, shirt, head and a racket that goes from the right over the head to the left while it is swung."""
    up = np.array([0.0, -H], np.float64)
    for side in (-0.025, 0.025):
        canvas.capsule(feet + np.array([side * H, 0]), feet + 0.06 * up + np.array([side * H, 0]), 0.02 * H, (245, 245, 240), agent)
    canvas.capsule(feet + 0.08 * up, feet + 0.14 * up, 0.042 * H, shirt, agent)
    canvas.disc(feet + 0.215 * up, 0.035 * H, (226, 180, 140), agent)
    angle = np.array([-0.35, 0.5, 1.6, 2.7])[swing]
    hand = feet + 0.13 * up + np.stack([0.05 * H * np.cos(angle), 0 * angle], 1)
    tip = hand + 0.1 * H * np.stack([np.cos(angle), -np.sin(angle)], 1)
    canvas.capsule(hand, tip, 0.008 * H, (40, 36, 34), agent)
    canvas.disc(tip, 0.034 * H, (250, 220, 90), agent)


def draw(recipe: TennisRecipe, one: Script, game: Rally) -> Canvas:
    """Pictures of N moments of a script's game; the mask is the player's."""
    H = recipe.height
    canvas = Canvas(court_of(recipe, one.ground[1]), len(game.player))
    shadow, high = ball_of(recipe, game)
    if recipe.opponent:
        far = ~game.to_player & (game.done > 1 - game.speed)
        _figure(canvas, H, game.opponent, np.where(far, 2, 0), OPPONENT, False)
        canvas.disc(shadow, 0.018 * H, (30, 34, 34))
    _figure(canvas, H, game.player, game.swing, PLAYER, True)
    if recipe.opponent:
        ball = canvas.disc(shadow - np.stack([0 * high, high], 1), 0.024 * H, (238, 250, 120))
        canvas.mask = canvas.mask * (1 - ball)
    return canvas


def render(recipe: TennisRecipe, one: Script) -> Clip:
    """Draw a script."""
    canvas = draw(recipe, one, one.rally)
    return Clip(canvas.frames(), canvas.masks())


def truth(recipe: TennisRecipe, scripts: list[Script]) -> dict[str, Any]:
    """Arrays of `truth.npz` beside those that every world has."""
    player = np.stack([one.rally.player for one in scripts])
    balls = [ball_of(recipe, one.rally) for one in scripts]
    return {
        "locals": np.stack([one.locals for one in scripts]).astype(np.uint8), "player_px": player.astype(np.float32),
        "shifts_px": np.diff(player, axis=1).astype(np.float32), "swing": np.stack([one.rally.swing for one in scripts]).astype(np.uint8),
        "opponent_px": np.stack([one.rally.opponent for one in scripts]).astype(np.float32),
        "ball_px": np.stack([np.concatenate([at, high[:, None]], 1) for at, high in balls]).astype(np.float32),
    }  # fmt: skip
