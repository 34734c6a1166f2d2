"""Parsing and playing: from clips to layers and actions, and from a first frame and actions to clips."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.control.stepping import mask_centres, picture_distance
from selftaught.method import Act, Actions, ActionSpace, Parsed, Played
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


class GLASSState(NamedTuple):
    """Everything that GLASS goes on from; pictures in [-1, 1], except `frame` in [0, 1]."""

    shown: Tensor
    """(B, 4, H, W): the agent as it was drawn last, and its mask."""
    background: Tensor
    """(B, 3, H, W): that of the first frame, filled in."""
    ground: Tensor
    """(B, 2): how far it has moved since, in units of half the frame."""
    memory: Any
    frame: Tensor


class GLASSControls:
    """A trained GLASS that is stepped; see `selftaught.method.Controls`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def parse(self, clips: Tensor) -> Parsed:
        return parse(self.model, clips)

    @torch.no_grad()
    def start(self, frames: Tensor) -> GLASSState:
        """Of a clip the memory is that after its parsed actions; the agent is cut out of the last real frame."""
        model = self.model
        clips = frames[:, None] if frames.ndim == 4 else frames
        x = 2 * clips - 1
        memory = None
        actions = parse(model, clips).actions if clips.shape[1] > 1 else None
        for t in range(clips.shape[1]):
            m = model.gma.masks(x[:, t])
            shown = torch.cat([m * x[:, t], m], 1)
            state = model.lma.state(shown[:, :3])
            memory = memory or model.lma.dynamics.start(len(x), (state.shape[2], state.shape[3]))
            if actions is not None and t < clips.shape[1] - 1:
                vector = model.lma.codes.look_up(actions.codes[:, t])
                _, memory = model.step(state, shown, actions.shifts[:, t], vector, memory)
        background = model.gma.inpaint(x[:, -1], F.max_pool2d(m, 3, 1, 1))
        return GLASSState(shown, background, torch.zeros(len(x), 2), memory, clips[:, -1])

    @torch.no_grad()
    def step(self, state: GLASSState, act: Act) -> GLASSState:
        model = self.model
        vector = model.lma.codes.look_up(act.codes)
        drawn, memory = model.step(model.lma.state(state.shown[:, :3]), state.shown, act.shifts, vector, state.memory)
        ground = state.ground + act.ground
        frame = drawn.scales[0] + (1 - drawn.mask) * shift_layer(state.background, ground, "border", "nearest")
        return GLASSState(torch.cat([drawn.scales[0], drawn.mask], 1), state.background, ground, memory, ((frame + 1) / 2).clamp(0, 1))

    def render(self, state: GLASSState) -> Tensor:
        return state.frame

    def masks(self, state: GLASSState) -> Tensor:
        return state.shown[:, 3]

    def action_space(self) -> ActionSpace:
        c = self.model.config
        x, y = 2 * c.reach_px / c.width_px, 2 * c.reach_px / c.image_px
        return ActionSpace(self.model.codes, (-x, -y), (x, y))

    def distance(self, state: GLASSState, goal: GLASSState) -> Tensor:
        """Distance of the agents' centres in units of half the frame, and of their pictures where they stand."""
        return (mask_centres(state.shown[:, 3]) - mask_centres(goal.shown[:, 3])).norm(dim=1) + picture_distance(state.shown, goal.shown)
