"""What a person should look at of a GLASS run: the talk's three panels, parsed timelines, and rollouts beside the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.control.glass_play import Actions
from selftaught.method import Picture
from selftaught.nets.video_blocks import from_px

SHOWN = 6
"""Clips in a picture."""
FILM = 8
"""Steps of a film of one action."""


@torch.no_grad()
def panels(model: Any, clips: Tensor) -> dict[str, Picture]:
    """Pictures of clips (B, T, 3, H, W) in [0, 1]: layers; global actions; local actions; rollouts."""
    clips = clips[:SHOWN]
    return {
        "layers": layer_panel(model, clips), "global_actions": global_panel(model, clips), "local_actions": local_panel(model, clips),
        "rollouts": rollout_panel(model, clips),
    }  # fmt: skip


def layer_panel(model: Any, clips: Tensor) -> Picture:
    """For each clip: its first frame, the mask, the foreground on grey, the background filled in."""
    parsed = model.parse(clips)
    m = parsed.masks[:, 0, None]
    columns = [clips[:, 0], m.expand(-1, 3, -1, -1), clips[:, 0] * m + 0.5 * (1 - m), parsed.backgrounds[:, 0]]
    return sheet(torch.stack(columns, 1))


def global_films(model: Any, first: Tensor, step_px: float = 0.0) -> dict[str, Tensor]:
    """Films (B, T, 3, H, W) of moving left, right, up, down and not at all from the same first frames, under the code that follows most.

    Without `step_px` a step is a twelfth of the frame's height.
    """
    H, W = first.shape[2:]
    step = step_px or H / 12
    ways = {"left": (-step, 0.0), "right": (step, 0.0), "up": (0.0, -step), "down": (0.0, step), "stay": (0.0, 0.0)}
    B = len(first)
    films = {}
    for name, way in ways.items():
        shifts = from_px(torch.tensor(way), H, W).expand(B, FILM, 2)
        codes = usual_codes(model, B)
        films[name] = model.play(first, Actions(shifts, torch.zeros(B, FILM, 2), codes)).frames
    return films


def local_films(model: Any, first: Tensor) -> dict[str, Tensor]:
    """Films (B, T, 3, H, W) of every code, held, from the same first frames, without any motion."""
    B = len(first)
    zero = torch.zeros(B, FILM, 2)
    codes = range(model.config.codes)
    return {f"code {k}": model.play(first, Actions(zero, zero, torch.full((B, FILM), k))).frames for k in codes}


def usual_codes(model: Any, batch: int) -> Tensor:
    """(B, FILM) of the code that was used most in training."""
    return torch.full((batch, FILM), int(model.lma.quantiser.usage.argmax()))


def global_panel(model: Any, clips: Tensor) -> Picture:
    """Rows: left, right, up, down, stay; columns: the frames of the film, every other one, for two clips."""
    films = global_films(model, clips[:2, 0])
    return sheet(torch.stack([film[i, ::2] for i in range(len(clips[:2])) for film in films.values()]))


def local_panel(model: Any, clips: Tensor) -> Picture:
    """Rows: each code; columns: the frames of the film, every other one, for two clips."""
    films = local_films(model, clips[:2, 0])
    return sheet(torch.stack([film[i, ::2] for i in range(len(clips[:2])) for film in films.values()]))


def rollout_panel(model: Any, clips: Tensor) -> Picture:
    """For each clip the true frames, and below what the model makes of the first one and the parsed actions."""
    played = model.play(clips[:, 0], model.parse(clips).actions).frames
    return sheet(torch.stack([clips, played], 1).flatten(0, 1))


def sheet(frames: Tensor, gap: int = 2, zoom: int = 2) -> Picture:
    """(rows, columns, 3, H, W) in [0, 1] to one picture on white."""
    R, C, _, H, W = frames.shape
    out = np.full((R * (H + gap) - gap, C * (W + gap) - gap, 3), 255, np.uint8)
    pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    for r in range(R):
        for c in range(C):
            out[r * (H + gap) : r * (H + gap) + H, c * (W + gap) : c * (W + gap) + W] = pixels[r, c]
    return out.repeat(zoom, 0).repeat(zoom, 1)
