"""How LMA of GLASS learns to draw: the frames of a clip one after the other, and its losses on all of them together.

Davtyan and Favaro, "Controllable Video Generation through Global and Local Motion Dynamics", ECCV 2022, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.control.glass_figure import corners, cut, paste
from selftaught.control.glass_gma import Agents
from selftaught.control.glass_lma import Drawn, LocalLoss, compared, lma_losses
from selftaught.core import draws
from selftaught.method import Parts


def weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of losses times their weights."""
    return torch.stack([weights[k] * v for k, v in losses.items()]).sum()


def local_loss(model: Any, agents: Agents, real: int, temperature: float, other: Tensor | None = None) -> tuple[Tensor, Parts]:
    """LMA's losses, weighted; the first `real` frames are shown, or `other` ones (B, real, 4, H, W), then the network's own."""
    c, lma = model.config, model.lma
    B, T = agents.masks.shape[:2]
    canvases = torch.cat([agents.foregrounds, agents.masks], 2)
    states = lma.see(canvases.flatten(0, 1)).unflatten(0, (B, T))
    q = lma.code(
        agents.moved.flatten(0, 1), agents.foregrounds[:, 1:].flatten(0, 1), agents.masks[:, 1:].flatten(0, 1),
        states[:, 1:].flatten(0, 1), temperature, learn=model.training,
    )  # fmt: skip
    before = canvases if other is None else torch.cat([other, canvases[:, other.shape[1] :]], 1)
    vectors = q.vectors.unflatten(0, (B, T - 1))
    told = lma.slow is not None and c.w_code and c.actions == "learned"
    probe = Probe(states[:, 0], canvases[:, 0], draws.randint(c.codes, B).to(canvases.device)) if told else None
    drawn, seen, own, tried = unroll(model, before, states if other is None else None, agents.shifts, vectors, real, probe)
    both = compared(canvases[:, 1:], before[:, :-1], agents.moved, drawn, seen, (states[:, 1:], own), real)
    losses = lma_losses(both)
    weights = {"global_motion": c.w_global_motion, "local_motion": c.w_local_motion, "state": c.w_state, "mask": c.w_mask}
    if lma.slow is None:
        losses["vq"], weights["vq"] = q.loss, c.w_vq
    if c.perceptual != "none":
        losses["perceptual"] = foreground_perceptual(model, both)
        weights["perceptual"] = c.w_perceptual
    if probe is not None:
        whole, codes = torch.cat([*(d.whole for d in drawn), tried]), q.codes.unflatten(0, (B, T - 1)).T.flatten()
        losses["code"], weights["code"] = lma.slow.recognised(whole, torch.cat([codes, probe.codes])), c.w_code
    parts = {f"local_{k}": float(v.detach()) for k, v in losses.items()}
    parts |= {"real_frames": float(real), "code_perplexity": lma.codes.perplexity()}
    parts["usage_frac"] = parts["code_perplexity"] / c.codes
    return weighted(losses, weights), parts


class Probe(NamedTuple):
    """What is drawn beside the clip: any code on its first canvas, unmoved. It asks whether that code is recognised."""

    state: Tensor
    canvas: Tensor
    codes: Tensor


def unroll(
    model: Any, canvases: Tensor, states: Tensor | None, shifts: Tensor, codes: Tensor, real: int, probe: Probe | None = None
) -> tuple[list[Drawn], Tensor, Tensor, Tensor]:
    """Draw frames 1 to T - 1; returns them, what was shown before each (B, T - 1, 4, H, W), the states of the drawn ones, and what
    the probe made (B, 4, H, W; nothing without one).
    """
    B, T = canvases.shape[:2]
    see = model.lma.see
    R = min(real, T - 1)
    if states is None:
        states = see(canvases[:, :R].flatten(0, 1)).unflatten(0, (B, R))
    drawn: list[Drawn] = []
    seen: list[Tensor] = []
    own: list[Tensor] = []
    memory: Any = None
    tried = canvases[:0, 0]
    for t in range(T - 1):
        if t < R:
            seen.append(canvases[:, t])
            state = states[:, t]
        else:
            seen.append(drawn[-1].whole)
            own.append(see(seen[-1]))
            state = own[-1]
        if t == 0 and probe is not None:  # drawn with the first frame: a step costs little more for twice as many
            vectors = torch.cat([codes[:, 0], model.lma.vectors(probe.codes)])
            moves = torch.cat([shifts[:, 0], torch.zeros_like(shifts[:, 0])])
            one, memory = model.step(torch.cat([state, probe.state]), torch.cat([seen[0], probe.canvas]), moves, vectors, None)
            tried, one, memory = one.whole[B:], one.first(B), memory.first(B)
        else:
            one, memory = model.step(state, seen[-1], shifts[:, t], codes[:, t], memory)
        drawn.append(one)
    # What was drawn where the next real frame was shown, and last, nothing was drawn on: its states wait until here.
    late = torch.cat([*(d.whole for d in drawn[: R - 1]), drawn[-1].whole])
    first = see(late).split(B)
    return drawn, torch.stack(seen, 1), torch.stack([*first[:-1], *own, first[-1]], 1), tried


@torch.no_grad()
def swapped(model: Any, batch: Tensor, agents: Agents, real: int) -> Tensor | None:
    """Canvases (B, real, 4, H, W) of which a share holds the agent as it looks in another frame of its clip (B, T, 3, H, W)."""
    c, side = model.config, model.config.figure_px
    if not c.swap_frac:
        return None
    B, T, R = *batch.shape[:2], min(real, agents.masks.shape[1])
    here = torch.cat([agents.foregrounds, agents.masks], 2)[:, :R]
    others = batch[torch.arange(B)[:, None], draws.randint(T, B, R)].flatten(0, 1)
    m = model.gma.masks(others)
    look = cut(torch.cat([m * others, m], 1), corners(m, side), side)
    own = here.flatten(0, 1)
    put = paste(look, corners(own[:, 3:], side), torch.zeros_like(own)).unflatten(0, (B, R))
    return torch.where((draws.rand(B, R) < c.swap_frac).to(batch.device)[..., None, None, None], put, here)


def foreground_perceptual(model: Any, both: LocalLoss) -> Tensor:
    """Distance in features: at every scale (VGG, pyramid), or at full size (features)."""
    target = both.real.flatten(0, 1)
    used = both.drawn[:1] if model.config.perceptual == "features" else both.drawn
    total = target.new_zeros(())
    for x in used:
        size = (x.shape[3], x.shape[4])
        y = target if size == target.shape[2:] else F.interpolate(target, size=size, mode="bilinear", align_corners=False)
        total = total + model.perceptual(x.flatten(0, 1), y) / len(used)
    return total
