"""Pseudo-masks of several objects per picture: what `solo` is trained on, from whatever an already learned run says of each picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core.atomic import replacing
from selftaught.core.errors import ConfigError
from selftaught.data.npy import read_kept
from selftaught.nets.components import connected_components
from selftaught.segmentation.freesolo import allowed
from selftaught.segmentation.many import PatchObjects, best_first

GIVES = ("objects", "segment")
"""Capabilities that masks of objects can be made of; the first that a run has is asked."""


def gives_masks(need: Any) -> str:
    """The capability of a run that its pseudo-masks come from; raises ConfigError when it has none of them."""
    for capability in GIVES:
        if capability in need.capabilities:
            return capability
    raise ConfigError(
        f"{getattr(need, 'name', 'The run')} gives no masks.", expected="a run that can segment or tell objects apart",
        do="`cad` learns from boxes.",
    )  # fmt: skip


@torch.no_grad()
def propose_masks(
    need: Any, images: Tensor, side: int, count: int, min_score: float, min_area: float, max_width: float
) -> PatchObjects:
    """The `count` best masks (B, count, side, side) of (B, 3, S, S) pictures in [0, 1], by falling score.

    A run that tells objects apart gives each, cut at 0.5 after the resize; one that only segments gives the connected pieces of
    its mask, with its mean inside as score. Left out are masks below `min_score`, smaller than `min_area` of the picture, or
    `max_width` of it wide.
    """
    if gives_masks(need) == "objects":
        masks, scores = need.objects(images)
    else:
        masks, scores = pieces(need.segment(images), count)
    masks = torch.nn.functional.interpolate(masks.float(), (side, side), mode="area") > 0.5
    area = masks.flatten(2).sum(2)
    good = (scores >= min_score) & (area >= max(1.0, min_area * side * side)) & allowed(masks, 0.0, max_width)
    return best_first(masks, scores * good, count)


def pieces(soft: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest connected pieces of masks (B, H, W) in [0, 1] above 0.5, (B, count, H, W) bool, and their means (B, count)."""
    masks = torch.zeros(len(soft), count, *soft.shape[1:], dtype=torch.bool, device=soft.device)
    scores = soft.new_zeros(len(soft), count)
    for i, one in enumerate(soft):
        numbered = connected_components((one > 0.5)[None])[0]
        sizes = torch.bincount(numbered.flatten())[1:]
        for k, piece in enumerate(sizes.argsort(descending=True, stable=True)[:count]):
            masks[i, k] = numbered == piece + 1
            scores[i, k] = one[masks[i, k]].mean()
    return masks, scores


def pseudo_object_file(
    path: Path, images: Any, make: Callable[[Tensor], Tensor], count: int, side: int, say: Callable[[str], None],
    batch_size: int = 32,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """The pseudo-masks of all cached pictures, from `path` when it is there and fits, made and written otherwise.

    `make` turns (B, 3, S, S) pictures in [0, 1] into (B, count, side, side) bool. Returns (N, count, bytes) uint8, the
    bits of each mask row by row, read from the disk as they are needed; `unpacked` gives masks again.
    """
    shape = (len(images), count, -(-side * side // 8))
    kept = read_kept(path, shape, np.uint8, say, mapped=True)
    if kept is not None:
        return kept
    found = np.zeros(len(images), np.int64)
    with replacing(path) as temp, open(temp, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        for start in range(0, len(images), batch_size):
            masks = make(images.batch(np.arange(start, min(start + batch_size, len(images)))).float() / 255).cpu()
            found[start : start + len(masks)] = masks.flatten(2).any(2).sum(1).numpy()
            file.write(np.packbits(masks.flatten(2).numpy(), axis=-1).tobytes())
            if (start // batch_size) % 32 == 31:
                say(f"pseudo-masks of {start + len(masks)} of {len(images)} pictures")
    say(f"pseudo-masks: {found.sum()} in {len(images)} pictures, {(found == 0).sum()} of them without any")
    made: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return made


def unpacked(rows: np.ndarray[Any, Any], side: int) -> Tensor:
    """Masks (B, K, side, side) bool of rows (B, K, bytes) of such a file."""
    bits = np.unpackbits(np.ascontiguousarray(rows), axis=-1, count=side * side)
    return torch.from_numpy(bits.astype(bool)).unflatten(2, (side, side))
