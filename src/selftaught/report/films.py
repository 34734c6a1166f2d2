"""What a person should look at of a model that plays: layers, a film of every action, parsed timelines, rollouts beside the truth.

It knows the capability `play` and no method.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from selftaught.method import Actions, Picture, Plays
from selftaught.nets.video_blocks import from_px

SHOWN = 6
"""Clips in a picture."""
FILM = 8
"""Steps of a film of one action."""


@torch.no_grad()
def panels(model: Plays, clips: Tensor) -> dict[str, Picture]:
    """Pictures of clips (B, T, 3, H, W) in [0, 1]: layers; global actions; local actions; rollouts.

    In the action panels the rows are actions and the columns the frames of the film, every other one, for two clips.
    """
    clips = clips[:SHOWN]
    first = clips[:2, 0]
    grids = {"global_actions": global_films(model, first, usual_code(model, clips)), "local_actions": local_films(model, first)}
    rows = {
        name: torch.stack([film[i, ::2] for i in range(len(first)) for film in films.values()]) for name, films in grids.items()
    }
    return {"layers": layer_panel(model, clips), **{n: sheet(r) for n, r in rows.items()}, "rollouts": rollout_panel(model, clips)}


def layer_panel(model: Plays, clips: Tensor) -> Picture:
    """For each clip: its first frame, the mask, the foreground on grey, the background filled in."""
    parsed = model.parse(clips)
    m = parsed.masks[:, 0, None]
    columns = [clips[:, 0], m.expand(-1, 3, -1, -1), clips[:, 0] * m + 0.5 * (1 - m), parsed.backgrounds[:, 0]]
    return sheet(torch.stack(columns, 1))


def usual_code(model: Plays, clips: Tensor) -> int:
    """The local action that is parsed most often in some clips."""
    return int(torch.bincount(model.parse(clips).actions.codes.flatten(), minlength=model.codes).argmax())


def global_films(model: Plays, first: Tensor, code: int) -> dict[str, Tensor]:
    """Films (B, T, 3, H, W) of moving left, right, up, down (a twelfth of the height a step) and not at all, from first frames."""
    B, _, H, W = first.shape
    step = H / 12
    ways = {"left": (-step, 0.0), "right": (step, 0.0), "up": (0.0, -step), "down": (0.0, step), "stay": (0.0, 0.0)}
    codes, still = torch.full((B, FILM), code), torch.zeros(B, FILM, 2)
    return {
        name: model.play(first, Actions(from_px(torch.tensor(way), H, W).expand(B, FILM, 2), still, codes)).frames
        for name, way in ways.items()
    }


def local_films(model: Plays, first: Tensor) -> dict[str, Tensor]:
    """Films (B, T, 3, H, W) of every code, held, from first frames, without any motion."""
    still = torch.zeros(len(first), FILM, 2)
    return {
        f"action {k + 1}": model.play(first, Actions(still, still, torch.full((len(first), FILM), k))).frames for k in range(model.codes)
    }


def code_panel(model: Plays, clips: Tensor) -> Picture:
    """What every code does, held, from two first frames: rows are actions, columns every other frame of the film."""
    first = clips[:2, 0]
    films = local_films(model, first)
    return sheet(torch.stack([film[i, ::2] for i in range(len(first)) for film in films.values()]))


def rollout_panel(model: Plays, clips: Tensor) -> Picture:
    """For each clip the true frames, and below what the model makes of the first one and the parsed actions."""
    played = model.play(clips[:, 0], model.parse(clips).actions).frames
    return sheet(torch.stack([clips, played], 1).flatten(0, 1))


def gif(films: Tensor, zoom: int = 2, seconds: float = 0.2) -> bytes:
    """Films (B, T, 3, H, W) in [0, 1], side by side, as one animated GIF that repeats."""
    from PIL import Image

    frames = [Image.fromarray(sheet(films[None, :, t], zoom=zoom)) for t in range(films.shape[1])]
    out = io.BytesIO()
    # One table of colours for the whole film: colours that are chosen for every frame anew flicker.
    palette = Image.fromarray(np.concatenate([np.asarray(f) for f in frames])).quantize(255)
    small = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    small[0].save(out, "GIF", save_all=True, append_images=small[1:], duration=int(1000 * seconds), loop=0)
    return out.getvalue()


def sheet(frames: Tensor, gap: int = 2, zoom: int = 2) -> Picture:
    """(rows, columns, 3, H, W) in [0, 1] to one picture on white."""
    R, C, _, H, W = frames.shape
    out = np.full((R * (H + gap) - gap, C * (W + gap) - gap, 3), 255, np.uint8)
    pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    for r in range(R):
        for c in range(C):
            out[r * (H + gap) : r * (H + gap) + H, c * (W + gap) : c * (W + gap) + W] = pixels[r, c]
    return out.repeat(zoom, 0).repeat(zoom, 1)
