"""What would happen if: the same beginning under other actions; and the actions of one clip done by what another picture shows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught.control.stepping import pick, rollout
from selftaught.core.errors import ConfigError
from selftaught.method import Actions, Controls, Played


class WhatIf(NamedTuple):
    """Two futures of the same beginning."""

    factual: Played
    other: Played
    difference: Tensor
    """(B, T) mean absolute difference of the frames, in [0, 1]; exactly 0 while the actions are the same."""


def counterfactual(model: Controls, state: Any, factual: Actions, other: Actions) -> WhatIf:
    """Roll out from one state under the actions that were done and under others (B, n each); both by the same computation."""
    if factual.codes.shape != other.codes.shape:
        raise ConfigError(
            f"The actions are {tuple(factual.codes.shape)} and {tuple(other.codes.shape)}.",
            expected="as many actions in both futures",
        )
    one, two = rollout(model, state, factual), rollout(model, state, other)
    return WhatIf(one, two, (one.frames - two.frames).abs().mean((2, 3, 4)))


def changed_codes(actions: Actions, at: int, codes: Tensor, shifts: Tensor | None = None) -> Actions:
    """The same actions with other codes (B, m), and shifts (B, m, 2) where given, from step `at` on."""
    end = at + codes.shape[1]
    if not 0 <= at <= end <= actions.codes.shape[1]:
        raise ConfigError(
            f"Steps {at} to {end - 1} of {actions.codes.shape[1]}.", expected="steps within the clip, counted from 0"
        )
    new, moved = actions.codes.clone(), actions.shifts.clone()
    new[:, at:end] = codes
    if shifts is not None:
        moved[:, at:end] = shifts
    return Actions(moved, actions.ground_shifts, new)


def transfer(model: Controls, source: Tensor, target: Tensor, camera: bool = False) -> tuple[Actions, Played]:
    """The actions of source clips (1 or B, T, 3, H, W) done from target pictures (B, 3, H, W) or clips; `camera` takes its motion along.

    Returns the actions, and B films of T frames.
    """
    parsed = model.parse(source).actions
    if not camera:
        parsed = Actions(parsed.shifts, torch.zeros_like(parsed.ground_shifts), parsed.codes)
    if len(source) == 1 and len(target) > 1:
        parsed = Actions(*(pick(x, torch.zeros(len(target), dtype=torch.int64)) for x in parsed))
    if len(parsed.codes) != len(target):
        raise ConfigError(
            f"{len(source)} source clips and {len(target)} targets.", expected="one source, or as many as targets"
        )
    return parsed, rollout(model, model.start(target), parsed)
