"""Parsing by trying: for every transition the key whose picture comes nearest to the real one, with a price on changing keys.

Where it agrees with the amortised parse the model understands what it draws; the agreement needs no labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftaught.control.habits import Keys
from selftaught.control.stepping import pick
from selftaught.method import Act, Actions, Controls


class Synthesised(NamedTuple):
    """What trying found for clips of T frames."""

    keys: Tensor
    """(B, T - 1)."""
    errors: Tensor
    """(B, T - 1, V) mean absolute error of each key's picture where the clip changes most, in [0, 1]."""
    agreement: Tensor
    """(B,) share of transitions whose amortised parse is the same key."""


@torch.no_grad()
def by_synthesis(model: Controls, clips: Tensor, keys: Keys, switch: float = 0.0) -> Synthesised:
    """Parse clips (B, T, 3, H, W) by trying every key; `switch` is the price of a change of key, in units of the error.

    The background's motion is that of the amortised parse. Errors are weighted by how much each pixel changes.
    """
    parsed: Actions = model.parse(clips).actions
    B, T = clips.shape[:2]
    V = len(keys)
    rows = torch.arange(B).repeat_interleave(V)
    tried = torch.arange(V).repeat(B)
    errors = []
    for t in range(T - 1):
        state = pick(model.start(clips[:, max(t - 1, 0) : t + 1]), rows)
        act = keys.act(tried)
        frames = model.render(model.step(state, Act(act.codes, act.shifts, parsed.ground_shifts[rows, t])))
        real = clips[rows, t + 1]
        w = (clips[:, t + 1] - clips[:, t]).abs().mean(1, keepdim=True) + 1e-3
        w = (w / w.sum((2, 3), keepdim=True))[rows]
        errors.append((w * (frames - real).abs().mean(1, keepdim=True)).sum((1, 2, 3)).view(B, V))
    table = torch.stack(errors, 1)
    found = cheapest_path(table, switch)
    return Synthesised(found, table, (found == keys.of(parsed)).float().mean(1))


def cheapest_path(costs: Tensor, switch: float) -> Tensor:
    """(B, n) the sequence that minimises the sum of costs (B, n, V) plus `switch` for every change (Viterbi)."""
    B, n, V = costs.shape
    total, back = costs[:, 0], []
    for t in range(1, n):
        best, at = total.min(1, keepdim=True)
        stay = total <= best + switch
        back.append(torch.where(stay, torch.arange(V).expand(B, V), at.expand(B, V)))
        total = torch.where(stay, total, best + switch) + costs[:, t]
    path = [total.argmin(1)]
    for step in reversed(back):
        path.append(step.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], 1)
