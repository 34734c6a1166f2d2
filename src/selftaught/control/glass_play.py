"""Parsing and playing: from clips to layers and actions, and from a first frame and actions to clips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.method import Actions, Parsed, Played
from selftaught.nets.video_blocks import shift_layer


@torch.no_grad()
def parse(model: Any, clips: Tensor) -> Parsed:
    """Layers and actions of clips (B, T, 3, H, W) in [0, 1], T of at least 2."""
    layers = model.gma(2 * clips - 1)
    B, T = layers.masks.shape[:2]
    moved = shift_layer(layers.foregrounds[:, :-1].flatten(0, 1), layers.shifts.flatten(0, 1), "zeros")
    after = layers.foregrounds[:, 1:].flatten(0, 1)
    found = model.lma.code(moved, after, layers.masks[:, 1:].flatten(0, 1))
    codes = found.codes.unflatten(0, (B, T - 1))
    masks = layers.masks[:, :, 0]
    unit = (layers.backgrounds.clamp(-1, 1) + 1) / 2
    return Parsed(masks, clips * layers.masks, unit, Actions(layers.shifts, layers.ground_shifts, codes))


@torch.no_grad()
def play(model: Any, first: Tensor, actions: Actions, real: Tensor | None = None) -> Played:
    """Frames after `first` (B, 3, H, W) in [0, 1].

    Autoregressive: the agent is drawn from the model's own drawing of it. Teacher-forced, with `real` (B, T, 3, H, W): from the real frame
    before. In both the background is that of the first frame, filled in under a grown mask and shifted by the sum of its shifts.
    """
    x = 2 * first - 1
    m = model.gma.masks(x)
    background = model.gma.inpaint(x, F.max_pool2d(m, 3, 1, 1))
    shown, mask = m * x, m
    if real is not None:
        T = real.shape[1]
        every = 2 * real.flatten(0, 1) - 1
        real_masks = model.gma.masks(every)
        reals = torch.cat([real_masks * every, real_masks], 1).unflatten(0, (len(real), T))
    vectors = model.lma.codes.look_up(actions.codes)
    ground = actions.ground_shifts.cumsum(1)
    memory = None
    frames, masks = [first], [m[:, 0]]
    for t in range(actions.codes.shape[1]):
        canvas = torch.cat([shown, mask], 1) if real is None else reals[:, t]
        state = model.lma.state(canvas[:, :3])
        memory = memory or model.lma.dynamics.start(len(x), (state.shape[2], state.shape[3]))
        drawn, memory = model.step(state, canvas, actions.shifts[:, t], vectors[:, t], memory)
        shown, mask = drawn.scales[0], drawn.mask
        moved = shift_layer(background, ground[:, t], "border", "nearest")
        frame = shown + (1 - drawn.mask) * moved
        frames.append(((frame + 1) / 2).clamp(0, 1))
        masks.append(drawn.mask[:, 0])
    return Played(torch.stack(frames, 1), torch.stack(masks, 1))
