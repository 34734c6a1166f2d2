"""What all models that can be stepped share: actions of clips as steps, states picked by rows, rollouts, distances of pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.core.errors import RunError
from selftaught.method import Act, Actions, Controls, Played


def controls_of(model: Any) -> Controls:
    """The stepping face of a learned method, or the model itself where it has one; raises RunError for methods that have none."""
    found = model.controls() if hasattr(model, "controls") else model
    if not isinstance(found, Controls):
        raise RunError(
            f"{getattr(model, 'name', type(model).__name__)} cannot be stepped.", expected="a run of glass or lapo"
        )
    return found


def pick(state: Any, rows: Tensor | slice) -> Any:
    """The states of some rows, in their order; rows may come more than once. Those of a slice are views."""
    if isinstance(state, Tensor):
        return state[rows]
    if isinstance(state, tuple):
        parts = [pick(x, rows) for x in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    raise TypeError(f"a state is made of tensors and tuples, not of {type(state).__name__}")


def joined(states: list[Any]) -> Any:
    """States of one model, one behind the other."""
    if isinstance(states[0], Tensor):
        return torch.cat(states)
    parts = [joined(list(x)) for x in zip(*states, strict=True)]
    return type(states[0])(*parts) if hasattr(states[0], "_fields") else tuple(parts)


def acts_of(actions: Actions, t: int) -> Act:
    """Step `t` of the actions of clips."""
    return Act(actions.codes[:, t], actions.shifts[:, t], actions.ground_shifts[:, t])


def as_actions(acts: list[Act]) -> Actions:
    """Steps as the actions of clips."""
    codes, shifts, ground = (torch.stack(x, 1) for x in zip(*acts, strict=True))
    return Actions(shifts, ground, codes)


def code_actions(codes: Tensor) -> Actions:
    """Codes (B, n) as actions without any shift."""
    zero = torch.zeros(*codes.shape, 2)
    return Actions(zero, zero, codes)


@torch.no_grad()
def rollout(model: Controls, state: Any, actions: Actions) -> Played:
    """The state's picture and those after each of n actions: (B, n + 1, ...)."""
    frames, masks = [model.render(state)], [model.masks(state)]
    for t in range(actions.codes.shape[1]):
        state = model.step(state, acts_of(actions, t))
        frames.append(model.render(state))
        masks.append(model.masks(state))
    return Played(torch.stack(frames, 1), torch.stack(masks, 1))


def picture_distance(frames: Tensor, goal: Tensor) -> Tensor:
    """(B,) mean absolute difference of (B, 3, H, W) to a goal (1 or B, 3, H, W) at full, 1/2, 1/4 and 1/8 of the size, summed.

    Means over patches keep a distance between things that do not overlap any more.
    """
    difference = frames - goal
    total = difference.abs().mean((1, 2, 3))
    for _ in range(3):
        if min(difference.shape[2:]) < 2:
            break
        difference = F.avg_pool2d(difference, 2, ceil_mode=True)
        total = total + difference.abs().mean((1, 2, 3))
    return total


def same_ground(frame: Tensor, goal: Tensor, reach_px: int = 12) -> Tensor:
    """A goal (1, 3, H, W) after the shift that brings most of its pixels onto `frame`: a plan is for the agent, not for the camera."""
    from selftaught.nets.phase_correlation import robust_match
    from selftaught.nets.video_blocks import from_px, shift_layer

    H, W = frame.shape[2:]
    shift = robust_match(goal, frame, min(reach_px, min(H, W) // 3))
    return shift_layer(goal, from_px(shift, H, W), "border", "nearest")


def mask_centres(masks: Tensor) -> Tensor:
    """Centres (B, 2) as (x, y) of soft masks (B, H, W), in units of half the frame from its middle; the middle where there is none."""
    H, W = masks.shape[1:]
    x, y = ((torch.arange(n) * 2 + 1) / n - 1 for n in (W, H))
    total = masks.sum((1, 2)) + 1e-6
    return torch.stack([(masks.sum(1) * x).sum(1), (masks.sum(2) * y).sum(1)], 1) / total[:, None]
