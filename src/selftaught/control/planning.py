"""From a start to a goal: sequences of actions found by trying them in the model.

CEM: Rubinstein, "The Cross-Entropy Method", 1999: sequences are drawn, the best are kept, the distribution moves to them. Keys (or codes)
have a table of probabilities per step, free shifts (where a model has them) a Gaussian per step within the model's box, both moved alone.
Beam search keeps the best states of every step. Both are written on `Controls` alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from selftaught.control.habits import Habits, Keys
from selftaught.control.stepping import acts_of, joined, pick
from selftaught.core.errors import ConfigError
from selftaught.method import Act, Actions, Controls, Played

Objective = Literal["sum", "best", "last"]
MOST_KNOWN = 1024
"""States that are kept from round to round; those of a plan of the default budget are about 600, of 0.1 MB at 48 x 64 pixels."""


@dataclass(frozen=True)
class Budget:
    """What a plan may cost."""

    sequences: int = 64
    """Sequences tried in each round (CEM), or states kept after each step (beam)."""
    horizon: int = 8
    """Steps of a plan at most."""
    rounds: int = 4
    """Rounds of CEM."""
    elites: int = 8
    """Sequences that the distribution moves to."""
    smooth: float = 0.3
    """Share of the old distribution that is kept."""
    floor: float = 0.02
    """Least probability of every code."""
    objective: Objective = "sum"
    """What is made small: the sum of the distances to the goal over all steps, the least of them, or the last."""
    switch: float = 0.0
    """Price of a change of action, in units of the distance at the start."""

    def __post_init__(self) -> None:
        if min(self.sequences, self.horizon, self.rounds, self.elites) < 1 or self.elites > self.sequences:
            raise ConfigError(
                f"A plan of {self.sequences} sequences, horizon {self.horizon}, {self.rounds} rounds, {self.elites} elites.",
                expected="all at least 1, and not more elites than sequences",
            )
        if (
            max(self.sequences, self.horizon, self.rounds) > 10_000
            or not 0 <= self.smooth < 1
            or self.objective not in ("sum", "best", "last")
        ):
            raise ConfigError(
                "The budget of a plan is out of bounds.", expected="at most 10000 of each, smooth in [0, 1)"
            )


class Plan(NamedTuple):
    """What was found."""

    actions: Actions
    """(1, n): cut after the step that comes nearest to the goal; n may be 0 where the start is nearest."""
    played: Played
    """(1, n + 1): what the model expects of them."""
    distances: Tensor
    """(n + 1,) to the goal, the start first."""
    evaluations: int
    """Steps of all sequences that were tried; those that are equal are computed once, and the ends of hopeless ones not at all."""
    seconds: float


class Reached:
    """States and their distances by the acts that led there: what is good is drawn again, and the rounds of a plan begin alike."""

    def __init__(self) -> None:
        self.known: dict[bytes, tuple[Any, Tensor]] = {}

    def step(self, model: Controls, nodes: Any, names: list[bytes], act: Act, goal: Any) -> tuple[Any, list[bytes], Tensor]:
        """The states (n) after n acts from as many nodes, their names, and their distances (n,)."""
        told = torch.cat([act.codes[:, None].double(), act.shifts.double(), act.ground.double()], 1).numpy()
        names = [name + row.tobytes() for name, row in zip(names, told, strict=True)]
        new = [i for i, name in enumerate(names) if name not in self.known]
        made: dict[bytes, tuple[Any, Tensor]] = {}
        if new:
            after = model.step(pick(nodes, torch.tensor(new)), Act(*(x[new] for x in act)))
            away = model.distance(after, goal)
            made = {names[i]: (pick(after, slice(k, k + 1)), away[k : k + 1]) for k, i in enumerate(new)}
        found = [made[name] if name in made else self.known[name] for name in names]
        if len(self.known) + len(made) <= MOST_KNOWN:
            self.known |= made
        return joined([state for state, _ in found]), names, torch.cat([away for _, away in found])


@torch.no_grad()
def onward(
    model: Controls, nodes: Any, rows: Tensor, actions: Actions, goal: Any, reached: Reached | None = None
) -> tuple[Any, Tensor, Tensor]:
    """Sequences (N, n) from the states nodes[rows]; where states and actions are equal they are computed once.

    Returns the states after them, again as nodes and rows (N,) of those, and the distances (N, n) to the goal. With `reached`, for
    sequences from the start of a plan, states that an earlier round computed are taken from there.
    """
    N, found = len(rows), []
    names = [bytes(str(i), "ascii") for i in range(int(rows.max()) + 1)]
    for t in range(actions.codes.shape[1]):
        act = acts_of(actions, t)
        led = torch.cat([torch.stack([rows, act.codes], 1).double(), act.shifts.double(), act.ground.double()], 1)
        _, which = torch.unique(led, dim=0, return_inverse=True)
        first = torch.full((int(which.max()) + 1,), N).scatter_reduce(0, which, torch.arange(N), "amin")
        before, act = rows[first], Act(*(x[first] for x in act))
        if reached is None:
            nodes = model.step(pick(nodes, before), act)
            away = model.distance(nodes, goal)
        else:
            nodes, names, away = reached.step(model, pick(nodes, before), [names[i] for i in before.tolist()], act, goal)
        rows = which
        found.append(away[rows])
    return nodes, rows, torch.stack(found, 1)


def tried(model: Controls, state: Any, actions: Actions, goal: Any) -> Tensor:
    """(N, H) distances to the goal after each step of N sequences from one state."""
    return onward(model, state, torch.zeros(len(actions.codes), dtype=torch.int64), actions, goal)[2]


def costs(
    model: Controls, state: Any, actions: Actions, goal: Any, start: Tensor, budget: Budget, reached: Reached | None = None
) -> Tensor:
    """(N,) what sequences cost; infinite for those that were given up, which cost more than each of the `elites` cheapest.

    A sum of distances only grows. So all go half of the way, the twice `elites` cheapest by then to the end, and of the others each as
    long as what it cost so far is less than the last of the elites.
    """
    b, (N, H) = budget, actions.codes.shape
    if b.objective != "sum" or N <= 2 * b.elites or H < 2:
        return cost_of(tried(model, state, actions, goal), actions, start, b)
    half, far = H // 2, torch.full((N,), float("inf"))
    nodes, rows, done = onward(model, state, torch.zeros(N, dtype=torch.int64), part(actions, slice(None), 0, half), goal, reached)
    dear = cost_of(torch.zeros(N, H), actions, start, b)  # changes of action are known beforehand
    order = (done.sum(1) / H + dear).argsort(stable=True)
    lead, left = order[: 2 * b.elites], order[2 * b.elites :]
    _, _, rest = onward(model, nodes, rows[lead], part(actions, lead, half, H), goal)
    far[lead] = cost_of(torch.cat([done[lead], rest], 1), part(actions, lead, 0, H), start, b)
    least = far[lead].sort().values[b.elites - 1] * (1 + 1e-5)  # sums in another order differ in their last digits
    rows, done = rows[left], done[left]
    for t in range(half, H):
        keep = ~(done.sum(1) / H + dear[left] > least)
        left, rows, done = left[keep], rows[keep], done[keep]
        if not len(left):
            return far
        nodes, rows, more = onward(model, nodes, rows, part(actions, left, t, t + 1), goal)
        done = torch.cat([done, more], 1)
    far[left] = cost_of(done, part(actions, left, 0, H), start, b)
    return far


def part(actions: Actions, rows: Any, begin: int, end: int) -> Actions:
    """Steps `begin` to `end` of some sequences."""
    return Actions(*(x[rows, begin:end] for x in actions))


def cost_of(distances: Tensor, actions: Actions, start: Tensor, budget: Budget) -> Tensor:
    """(N,) what a sequence costs, from its distances (N, H)."""
    total = {"sum": distances.mean(1), "best": distances.min(1).values, "last": distances[:, -1]}[budget.objective]
    changes = (actions.codes[:, 1:] != actions.codes[:, :-1]).float().sum(1)
    return total + budget.switch * start * changes


def plan_cem(
    model: Controls, state: Any, goal: Any, budget: Budget | None = None, seed: int = 0, shift_std: Tensor | None = None,
    keys: Keys | None = None,
) -> Plan:
    """Plan by the cross-entropy method, over keys where they are given; else over codes, and shifts where the model has them.

    `shift_std` (2,) is where the Gaussians of the shifts begin, a third of the box when not given.
    """
    b = budget or Budget()
    begin = time.monotonic()
    space, draw = model.action_space(), torch.Generator().manual_seed(seed)
    mixed = keys is None and space.shift_low is not None
    keys = keys or Keys.of_space(space)
    table = torch.full((b.horizon, len(keys)), 1 / len(keys))
    low, high = (torch.tensor(x or (0.0, 0.0)) for x in (space.shift_low, space.shift_high))
    mean = torch.zeros(b.horizon, 2)
    std = ((high - low) / 6 if shift_std is None else shift_std).expand(b.horizon, 2).clone()
    start = model.distance(state, goal)[0]
    best, least, reached = None, float("inf"), Reached()
    for _ in range(b.rounds):
        drawn = torch.multinomial(table, b.sequences, replacement=True, generator=draw).T.contiguous()
        drawn[0] = table.argmax(1)  # what the distribution believes in is always tried
        actions = keys.actions(drawn)
        if mixed:
            shifts = mean + std * torch.randn(b.sequences, b.horizon, 2, generator=draw)
            shifts[0] = mean
            shifts = torch.minimum(torch.maximum(shifts, low), high)
            actions = actions._replace(shifts=shifts)
        cost = costs(model, state, actions, goal, start, b, None if mixed else reached)  # shifts are never drawn twice
        order = cost.argsort(stable=True)[: b.elites]
        if float(cost[order[0]]) < least:
            least, best = float(cost[order[0]]), Actions(*(x[order[:1]] for x in actions))
        often = torch.nn.functional.one_hot(drawn[order], len(keys)).float().mean(0)
        table = (1 - b.smooth) * often + b.smooth * table
        table = table.clamp(min=b.floor)
        table = table / table.sum(1, keepdim=True)
        if mixed:
            mean = (1 - b.smooth) * shifts[order].mean(0) + b.smooth * mean
            std = (1 - b.smooth) * shifts[order].std(0, unbiased=False) + b.smooth * std
    if best is None:
        raise ConfigError("No sequence has a finite distance to the goal.", why="the model's pictures are not finite")
    return finished(model, state, goal, best, b.rounds * b.sequences * b.horizon, begin)


@torch.no_grad()
def plan_beam(model: Controls, state: Any, goal: Any, keys: Keys, budget: Budget | None = None) -> Plan:
    """Plan by beam search over keys: after each step the `sequences` nearest states are kept, without those that look the same."""
    b = budget or Budget()
    begin, V = time.monotonic(), len(keys)
    beam, paths, tries = state, torch.zeros(1, 0, dtype=torch.int64), 0
    best, least = torch.zeros(1, 0, dtype=torch.int64), float(model.distance(state, goal)[0])
    for _ in range(b.horizon):
        rows, chosen = torch.arange(len(paths)).repeat_interleave(V), torch.arange(V).repeat(len(paths))
        beam = model.step(pick(beam, rows), keys.act(chosen))
        paths = torch.cat([paths[rows], chosen[:, None]], 1)
        tries += len(paths)
        away = model.distance(beam, goal)
        kept = unlike(away, model.render(beam), b.sequences)
        beam, paths = pick(beam, kept), paths[kept]
        if float(away[kept[0]]) < least:
            least, best = float(away[kept[0]]), paths[:1]
    return finished(model, state, goal, keys.actions(best), tries, begin)


def unlike(away: Tensor, frames: Tensor, count: int, least: float = 1e-3) -> Tensor:
    """Rows of the `count` nearest states, the nearest first, without those whose picture is that of a nearer one."""
    order = away.argsort(stable=True)[: 4 * count]
    small = torch.nn.functional.adaptive_avg_pool2d(frames[order], 8).flatten(1)
    kept: list[int] = []
    for i in range(len(order)):
        if not kept or float((small[kept] - small[i]).abs().mean(1).min()) >= least:
            kept.append(i)
        if len(kept) == count:
            break
    return order[kept]


@torch.no_grad()
def finished(model: Controls, state: Any, goal: Any, actions: Actions, tries: int, begin: float) -> Plan:
    """A plan cut after its best step, played once more alone."""
    states = [state]
    for t in range(actions.codes.shape[1]):
        states.append(model.step(states[-1], acts_of(actions, t)))
    distances = torch.cat([model.distance(x, goal)[:1] for x in states])
    n = int(distances.argmin())
    frames, masks = (torch.stack([see(x) for x in states[: n + 1]], 1) for see in (model.render, model.masks))
    actions = Actions(*(x[:, :n] for x in actions))
    return Plan(actions, Played(frames, masks), distances[: n + 1], tries, time.monotonic() - begin)


def first_acts(plan: Plan, count: int) -> list[Act]:
    """The first `count` steps of a plan."""
    return [acts_of(plan.actions, t) for t in range(min(count, plan.actions.codes.shape[1]))]


def plan(
    model: Controls,
    state: Any,
    goal: Any,
    habits: Habits,
    how: Literal["cem", "mixed", "beam"] = "cem",
    budget: Budget | None = None,
    seed: int = 0,
) -> Plan:
    """Plan by one of the ways: `cem` and `beam` choose keys, what tends to be done; `mixed` any code and any shift within the model's box,
    with Gaussians that begin as wide as the shifts of the habits.
    """
    if how == "beam":
        return plan_beam(model, state, goal, habits.keys, budget)
    if how not in ("cem", "mixed"):
        raise ConfigError(f"There is no planner '{how}'.", expected="cem, mixed or beam")
    if how == "cem":
        return plan_cem(model, state, goal, budget, seed, keys=habits.keys)
    return plan_cem(model, state, goal, budget, seed, habits.keys.shifts.std(0, unbiased=False).clamp(min=1e-3))
