"""How LMA of GLASS learns to draw: the frames of a clip one after the other, and its losses on all of them together.

Davtyan and Favaro, "Controllable Video Generation through Global and Local Motion Dynamics", ECCV 2022, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.control.glass_figure import corners, cut, paste
from selftaught.control.glass_gma import Agents
from selftaught.control.glass_lma import Drawn, compared, lma_losses
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
    drawn, seen, own = unroll(model, before, states if other is None else None, agents.shifts, vectors, real)
    losses = lma_losses(compared(canvases[:, 1:], before[:, :-1], agents.moved, drawn, seen, (states[:, 1:], own), real))
    weights = {"global_motion": c.w_global_motion, "local_motion": c.w_local_motion, "state": c.w_state, "mask": c.w_mask}
    if lma.slow is None:
        losses["vq"], weights["vq"] = q.loss, c.w_vq
    if c.perceptual != "none":
        losses["perceptual"] = foreground_perceptual(model, drawn, agents.foregrounds[:, 1:])
        weights["perceptual"] = c.w_perceptual
    if lma.slow is not None and c.w_code and c.actions == "learned":
        losses["code"], weights["code"] = told_apart(model, canvases, states, drawn, q.codes.unflatten(0, (B, T - 1))), c.w_code
    parts = {f"local_{k}": float(v.detach()) for k, v in losses.items()}
    parts |= {"real_frames": float(real), "code_perplexity": lma.codes.perplexity()}
    parts["usage_frac"] = parts["code_perplexity"] / c.codes
    return weighted(losses, weights), parts


def unroll(
    model: Any, canvases: Tensor, states: Tensor | None, shifts: Tensor, codes: Tensor, real: int
) -> tuple[list[Drawn], Tensor, Tensor]:
    """Draw frames 1 to T - 1; returns them, what was shown before each (B, T - 1, 4, H, W), and the states of the drawn ones."""
    B, T = canvases.shape[:2]
    see = model.lma.see
    R = min(real, T - 1)
    if states is None:
        states = see(canvases[:, :R].flatten(0, 1)).unflatten(0, (B, R))
    drawn: list[Drawn] = []
    seen: list[Tensor] = []
    own: list[Tensor] = []
    memory: Any = None
    for t in range(T - 1):
        if t < R:
            seen.append(canvases[:, t])
            state = states[:, t]
        else:
            seen.append(drawn[-1].whole)
            own.append(see(seen[-1]))
            state = own[-1]
        one, memory = model.step(state, seen[-1], shifts[:, t], codes[:, t], memory)
        drawn.append(one)
    # What was drawn where the next real frame was shown, and last, nothing was drawn on: its states wait until here.
    late = torch.cat([*(d.whole for d in drawn[: R - 1]), drawn[-1].whole])
    first = see(late).split(B)
    return drawn, torch.stack(seen, 1), torch.stack([*first[:-1], *own, first[-1]], 1)


def told_apart(model: Any, canvases: Tensor, states: Tensor, drawn: list[Drawn], codes: Tensor) -> Tensor:
    """Whether codes (B, T - 1) are recognised in what was drawn, and any code in what it makes of the first canvas, unmoved."""
    lma, slow = model.lma, model.lma.slow
    assert slow is not None
    other = torch.randint(model.codes, codes[:, 0].shape, device=codes.device)
    still = canvases.new_zeros(len(other), 2)
    one, _ = model.step(states[:, 0], canvases[:, 0], still, lma.vectors(other), None)
    whole = torch.cat([torch.stack([d.whole for d in drawn], 1).flatten(0, 1), one.whole])
    return slow.recognised(whole, torch.cat([codes.flatten(), other]))  # type: ignore[no-any-return]


@torch.no_grad()
def swapped(model: Any, batch: Tensor, agents: Agents, real: int) -> Tensor | None:
    """Canvases (B, real, 4, H, W) of which a share holds the agent as it looks in another frame of its clip (B, T, 3, H, W)."""
    c, side = model.config, model.config.figure_px
    if not c.swap_frac:
        return None
    B, T, R = *batch.shape[:2], min(real, agents.masks.shape[1])
    here = torch.cat([agents.foregrounds, agents.masks], 2)[:, :R]
    others = batch[torch.arange(B)[:, None], torch.randint(T, (B, R))].flatten(0, 1)
    m = model.gma.masks(others)
    look = cut(torch.cat([m * others, m], 1), corners(m, side), side)
    own = here.flatten(0, 1)
    put = paste(look, corners(own[:, 3:], side), torch.zeros_like(own)).unflatten(0, (B, R))
    return torch.where((torch.rand(B, R) < c.swap_frac).to(batch.device)[..., None, None, None], put, here)


def foreground_perceptual(model: Any, drawn: list[Drawn], real: Tensor) -> Tensor:
    """Distance in features: at every scale (VGG, pyramid), or at full size (features)."""
    scales = [torch.cat(s) for s in zip(*(d.scales for d in drawn), strict=True)]
    target = real.transpose(0, 1).flatten(0, 1)
    corner = [d.corner for d in drawn if d.corner is not None]
    if corner:
        target = cut(target, torch.cat(corner), model.lma.side)
    used = scales[:1] if model.config.perceptual == "features" else scales
    total = real.new_zeros(())
    for x in used:
        size = (x.shape[2], x.shape[3])
        y = target if size == target.shape[2:] else F.interpolate(target, size=size, mode="bilinear", align_corners=False)
        total = total + model.perceptual(x, y) / len(used)
    return total
