"""Masks for clips: `selftaught segment RUN CLIPS` writes a mask per frame and the clip with its masks drawn in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught.apply import (
    Learned,
    PackedObjects,
    check_fractions,
    load_capable,
    none_readable,
    objects_in,
    print_skipped,
)
from selftaught.data.clip_cache import clips_in_order
from selftaught.data.clip_reader import WHOLE, have_av
from selftaught.data.clips import open_clips
from selftaught.data.readers import BadFile
from selftaught.report import exports
from selftaught.report.film_files import write_film
from selftaught.run_folder import refuse_within
from selftaught.segmentation.cut import overlay
from selftaught.segmentation.tokencut_video import check_median, smooth_in_time

AT_ONCE_PX = 24_000_000
"""Pixels of the frames that are seen together: a longer clip is taken in pieces."""
FPS = 8
"""Of the clips that are written when the file does not say its own."""


def segment_clips(
    run: str | Path,
    data: Any,
    out: str | Path,
    *,
    threshold: float = 0.5,
    min_area: float = 0.001,
    smooth: int | None = None,
    quiet: bool = False,
) -> Path:
    """Write `out`/masks/CLIP/000000.png per frame, `out`/objects.coco.json, and `out`/clips/CLIP.mp4 (.gif without PyAV) to look at.

    A method that sees whole clips (`segment_clip`) is asked for them; any other is asked frame by frame. A median over
    `smooth` frames (odd) takes away what flickers; when it is not given, over 3 for the latter and over none for the former.
    Clips that cannot be read are skipped, counted and named.
    """
    check_fractions(threshold=threshold, min_area=min_area)
    check_median(1 if smooth is None else smooth)
    folder = Path(out).expanduser()
    refuse_within(folder, data)
    learned = load_capable(run, "segment")
    source = open_clips(data)
    targets = exports.target_paths(folder / "masks", source.keys, "")
    films = exports.target_paths(folder / "clips", source.keys, ".mp4" if have_av() else ".gif")
    bad, pictures = [], []
    for i, found in clips_in_order(source, WHOLE):
        if isinstance(found, BadFile):
            bad.append((source.keys[i], str(found)))
            continue
        frames, info = found
        masks = clip_masks(learned, frames, smooth)
        height, width = frames.shape[1:3]
        for t, (image, soft) in enumerate(zip(frames, masks, strict=True)):
            exports.write_mask(targets[i] / f"{t:06d}.png", soft, (height, width))
            objects = objects_in(learned, [image], [soft], threshold, min_area)[0]
            pictures.append(exports.PictureObjects(f"{source.keys[i]}/{t:06d}", height, width, PackedObjects(objects)))
        write_film(films[i], drawn(frames, masks), round(info.fps) or FPS)
        if not quiet:
            print(f"segmenting: {i + 1} of {len(source)} clips, {len(frames)} frames", file=sys.stderr)
    if not pictures:
        raise none_readable(len(source), bad)
    if bad and not quiet:
        print_skipped(len(bad), len(source), bad)
    exports.write_coco(folder / "objects.coco.json", pictures)
    return folder


def clip_masks(learned: Learned, frames: np.ndarray, smooth: int | None = None) -> np.ndarray:
    """Masks (T, H, W) float32 in [0, 1] of the frames (T, H, W, 3) uint8 of one clip; `smooth` as for `segment_clips`."""
    method = learned.provider("segment")
    if not callable(getattr(method, "segment_clip", None)):
        return smooth_in_time(np.stack(learned.segment(list(frames))), 3 if smooth is None else smooth)
    found = []
    for rows in pieces(len(frames), frames.shape[1] * frames.shape[2]):
        part = torch.from_numpy(np.ascontiguousarray(frames[rows])).permute(0, 3, 1, 2).float() / 255
        found.append(method.segment_clip(part).float().cpu().numpy())
    return smooth_in_time(np.concatenate(found), smooth or 1)


def pieces(T: int, pixels: int) -> Iterator[slice]:
    """Cut T frames of so many pixels into even pieces of at most AT_ONCE_PX, of two frames at least where there are two."""
    count = max(1, min(-(-T * pixels // AT_ONCE_PX), T // 2))
    edges = np.linspace(0, T, count + 1).round().astype(int)
    yield from (slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True))


def drawn(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 with what lies outside of the masks darkened and the rim of the objects coloured."""
    out = np.empty_like(frames)
    for t, (image, mask) in enumerate(zip(frames, masks, strict=True)):
        shown = overlay(torch.from_numpy(image).permute(2, 0, 1).float() / 255, torch.from_numpy(mask))
        out[t] = (shown * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return out
