"""From a start to a goal: sequences of actions found by trying them in the model.

CEM: Rubinstein, "The Cross-Entropy Method", 1999: sequences are drawn, the best are kept, the distribution moves to them. Codes have a
table of probabilities per step, shifts (where a model has them) a Gaussian per step within the model's box, both moved independently.
Beam search keeps the best states of every step. Both are written on `Controls` alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from selftaught.control.habits import Habits, Keys
from selftaught.control.stepping import acts_of, pick, rollout
from selftaught.core.errors import ConfigError
from selftaught.method import Act, Actions, Controls, Played

Objective = Literal["sum", "best", "last"]


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
    """Steps of the model that were tried."""
    seconds: float


@torch.no_grad()
def tried(model: Controls, state: Any, actions: Actions, goal: Any) -> Tensor:
    """(N, H) distances to the goal after each step of N sequences from one state; equal beginnings are computed once."""
    N, H = actions.codes.shape
    rows, many = torch.zeros(N, dtype=torch.int64), state
    plain, count = not bool(actions.shifts.any()), model.action_space().codes
    found = []
    for t in range(H):
        which = torch.arange(N)
        if plain:
            _, which = torch.unique(rows * count + actions.codes[:, t], return_inverse=True)
        first = torch.full((int(which.max()) + 1,), N).scatter_reduce(0, which, torch.arange(N), "amin")
        act = acts_of(actions, t)
        many = model.step(pick(many, rows[first]), Act(*(x[first] for x in act)))
        found.append(model.distance(many, goal)[which])
        rows = which
    return torch.stack(found, 1)


def cost_of(distances: Tensor, actions: Actions, start: Tensor, budget: Budget) -> Tensor:
    """(N,) what a sequence costs, from its distances (N, H)."""
    total = {"sum": distances.mean(1), "best": distances.min(1).values, "last": distances[:, -1]}[budget.objective]
    changes = (actions.codes[:, 1:] != actions.codes[:, :-1]).float().sum(1)
    return total + budget.switch * start * changes


def plan_cem(
    model: Controls, state: Any, goal: Any, budget: Budget | None = None, seed: int = 0, shift_std: Tensor | None = None
) -> Plan:
    """Plan by the cross-entropy method; `shift_std` (2,) is where the Gaussians of the shifts begin, a third of the box when not given."""
    b = budget or Budget()
    begin = time.monotonic()
    space, draw = model.action_space(), torch.Generator().manual_seed(seed)
    table = torch.full((b.horizon, space.codes), 1 / space.codes)
    low, high = (torch.tensor(x or (0.0, 0.0)) for x in (space.shift_low, space.shift_high))
    mean = torch.zeros(b.horizon, 2)
    std = ((high - low) / 6 if shift_std is None else shift_std).expand(b.horizon, 2).clone()
    start = model.distance(state, goal)[0]
    best, least, zero = None, float("inf"), torch.zeros(b.sequences, b.horizon, 2)
    for _ in range(b.rounds):
        codes = torch.multinomial(table, b.sequences, replacement=True, generator=draw).T.contiguous()
        codes[0] = table.argmax(1)  # what the distribution believes in is always tried
        shifts = zero
        if space.shift_low is not None:
            shifts = mean + std * torch.randn(b.sequences, b.horizon, 2, generator=draw)
            shifts[0] = mean
            shifts = torch.minimum(torch.maximum(shifts, low), high)
        actions = Actions(shifts, zero, codes)
        cost = cost_of(tried(model, state, actions, goal), actions, start, b)
        order = cost.argsort(stable=True)[: b.elites]
        if float(cost[order[0]]) < least:
            least, best = float(cost[order[0]]), Actions(*(x[order[:1]] for x in actions))
        often = torch.nn.functional.one_hot(codes[order], space.codes).float().mean(0)
        table = (1 - b.smooth) * often + b.smooth * table
        table = table.clamp(min=b.floor)
        table = table / table.sum(1, keepdim=True)
        if space.shift_low is not None:
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


def finished(model: Controls, state: Any, goal: Any, actions: Actions, tries: int, begin: float) -> Plan:
    """A plan cut after its best step, played once more alone."""
    distances = model.distance(state, goal)[:1]
    if actions.codes.shape[1]:
        distances = torch.cat([distances, tried(model, state, actions, goal)[0]])
    n = int(distances.argmin())
    actions = Actions(*(x[:, :n] for x in actions))
    return Plan(actions, rollout(model, state, actions), distances[: n + 1], tries, time.monotonic() - begin)


def first_acts(plan: Plan, count: int) -> list[Act]:
    """The first `count` steps of a plan."""
    return [acts_of(plan.actions, t) for t in range(min(count, plan.actions.codes.shape[1]))]


def plan(
    model: Controls,
    state: Any,
    goal: Any,
    habits: Habits,
    how: Literal["cem", "beam"] = "cem",
    budget: Budget | None = None,
    seed: int = 0,
) -> Plan:
    """Plan by one of the two ways; the Gaussians of CEM begin as wide as the shifts of the habits."""
    if how == "beam":
        return plan_beam(model, state, goal, habits.keys, budget)
    if how != "cem":
        raise ConfigError(f"There is no planner '{how}'.", expected="cem or beam")
    spread = habits.keys.shifts.std(0, unbiased=False) if model.action_space().shift_low is not None else None
    return plan_cem(model, state, goal, budget, seed, None if spread is None else spread.clamp(min=1e-3))
