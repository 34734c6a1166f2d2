"""Parsing and playing: from clips to layers and actions, and from a first frame and actions to clips."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.control.lapo_nets import from_around
from selftaught.control.stepping import mask_centres, picture_distance
from selftaught.method import Act, Actions, ActionSpace, Parsed, Played
from selftaught.nets.video_blocks import shift_layer


def filled(model: Any, frames: Tensor, masks: Tensor) -> Tensor:
    """Backgrounds (N, 3, H, W) of frames in [-1, 1], filled in under grown masks (N, 1, H, W)."""
    grown = F.max_pool2d(masks, 3, 1, 1)
    if model.config.fill == "network":
        return model.gma.inpaint(frames, grown)
    # A soft edge of the mask still shows the agent, which would be painted into the hole.
    seen = (F.max_pool2d(masks, 5, 1, 2) < 0.5).float()
    return frames * (1 - grown) + from_around(frames, seen) * grown


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
    backgrounds = layers.backgrounds
    if model.config.fill != "network":
        backgrounds = filled(model, 2 * clips.flatten(0, 1) - 1, layers.masks.flatten(0, 1)).unflatten(0, (B, T))
    unit = (backgrounds.clamp(-1, 1) + 1) / 2
    return Parsed(masks, clips * layers.masks, unit, Actions(layers.shifts, layers.ground_shifts, codes))


@torch.no_grad()
def play(model: Any, first: Tensor, actions: Actions, real: Tensor | None = None) -> Played:
    """Frames after `first` (B, 3, H, W) in [0, 1].

    Autoregressive: the agent is drawn from the model's own drawing of it. Teacher-forced, with `real` (B, T, 3, H, W): from the real frame
    before. In both the background is that of the first frame, filled in under a grown mask and shifted by the sum of its shifts.
    """
    x = 2 * first - 1
    m = model.gma.masks(x)
    background = filled(model, x, m)
    shown = torch.cat([m * x, m], 1)
    if real is not None:
        T = real.shape[1]
        every = 2 * real.flatten(0, 1) - 1
        real_masks = model.gma.masks(every)
        reals = torch.cat([real_masks * every, real_masks], 1).unflatten(0, (len(real), T))
    vectors = model.lma.vectors(actions.codes)
    ground = actions.ground_shifts.cumsum(1)
    memory = None
    frames, masks = [first], [m[:, 0]]
    for t in range(actions.codes.shape[1]):
        canvas = shown if real is None else reals[:, t]
        state = model.lma.see(canvas)
        drawn, memory = model.step(state, canvas, actions.shifts[:, t], vectors[:, t], memory)
        shown = drawn.whole
        moved = shift_layer(background, ground[:, t], "border", "nearest")
        frame = shown[:, :3] + (1 - shown[:, 3:]) * moved
        frames.append(((frame + 1) / 2).clamp(0, 1))
        masks.append(shown[:, 3])
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
        # A convolution takes its kernel by how a picture lies in memory; the same picture is the same state, bit for bit.
        clips = (frames[:, None] if frames.ndim == 4 else frames).contiguous()
        x = 2 * clips - 1
        memory = None
        actions = parse(model, clips).actions if clips.shape[1] > 1 else None
        for t in range(clips.shape[1]):
            m = model.gma.masks(x[:, t])
            shown = torch.cat([m * x[:, t], m], 1)
            state = model.lma.see(shown)
            if actions is not None and t < clips.shape[1] - 1:
                vector = model.lma.vectors(actions.codes[:, t])
                _, memory = model.step(state, shown, actions.shifts[:, t], vector, memory)
        memory = memory or model.lma.begin(state, shown)
        background = filled(model, x[:, -1], m)
        return GLASSState(shown, background, torch.zeros(len(x), 2), memory, clips[:, -1])

    @torch.no_grad()
    def step(self, state: GLASSState, act: Act) -> GLASSState:
        model = self.model
        vector = model.lma.vectors(act.codes)
        drawn, memory = model.step(model.lma.see(state.shown), state.shown, act.shifts, vector, state.memory)
        ground = state.ground + act.ground
        shown = drawn.whole
        frame = shown[:, :3] + (1 - shown[:, 3:]) * shift_layer(state.background, ground, "border", "nearest")
        return GLASSState(shown, state.background, ground, memory, ((frame + 1) / 2).clamp(0, 1))

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
