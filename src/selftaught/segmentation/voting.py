"""Candidate masks by spectral clustering, and the vote that picks one per picture (SelfMask, CVPRW 2022, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core.atomic import replacing
from selftaught.data.npy import read_kept
from selftaught.segmentation.cut import centred, unit_rows


@torch.no_grad()
def spectral_candidates(maps: Tensor, clusters: tuple[int, ...] = (2, 3, 4)) -> Tensor:
    """Cluster the patches of each picture into 2, 3 and 4 groups; every group is a candidate.

    Affinity A = cosine, stretched to [0, 1] per picture; the k eigenvectors of (D - A, D) with the smallest eigenvalues are grouped by
    k-means.

    Args:
        maps: (B, D, h, w) patch features.

    Returns:
        (B, sum(clusters), h, w) masks of 0 and 1.
    """
    B, _, h, w = maps.shape
    rows = unit_rows(centred(maps))
    affinity = rows @ rows.transpose(1, 2)
    low, high = affinity.amin((1, 2), keepdim=True), affinity.amax((1, 2), keepdim=True)
    affinity = (affinity - low) / (high - low).clamp(min=1e-6)
    root = affinity.sum(-1).clamp(min=1e-6).rsqrt()
    symmetric = root[:, :, None] * affinity * root[:, None, :]
    _, vectors = torch.linalg.eigh(symmetric)
    found = []
    for k in clusters:
        points = vectors[..., -k:] * root[..., None]
        # The first of them is constant: scaled without being centred it is so large that distances drown in rounding.
        points = points - points.mean(1, keepdim=True)
        groups = kmeans(points / points.std(1, keepdim=True).clamp(min=1e-6), k)
        found.append(torch.nn.functional.one_hot(groups, k).transpose(1, 2))
    return torch.cat(found, 1).view(B, -1, h, w).float()


def kmeans(points: Tensor, k: int, iterations: int = 15) -> Tensor:
    """Lloyd's k-means of B sets at once, (B, N, D) to (B, N) group numbers; starts from the farthest points, so it is deterministic."""
    B = len(points)
    distance = (points - points.mean(1, keepdim=True)).square().sum(-1)
    chosen = []
    for _ in range(k):
        far = distance.argmax(1)
        chosen.append(points[torch.arange(B), far])
        distance = torch.minimum(distance, (points - chosen[-1][:, None]).square().sum(-1))
    centres = torch.stack(chosen, 1)
    groups = torch.cdist(points, centres).argmin(-1)
    for _ in range(iterations):
        member = torch.nn.functional.one_hot(groups, k).to(points.dtype)
        counts = member.sum(1)[..., None]
        means = member.transpose(1, 2) @ points / counts.clamp(min=1)
        centres = torch.where(counts > 0, means, centres)
        groups = torch.cdist(points, centres).argmin(-1)
    return groups


def vote(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the candidate that overlaps most with all others, after dropping those that span the full height or width.

    Args:
        candidates: (B, M, h, w) masks of 0 and 1.

    Returns:
        The winners (B, h, w), and their agreement (B,): mean IoU with the other candidates that were not dropped.
    """
    B, M, h, w = candidates.shape
    rows, columns = candidates.amax(3), candidates.amax(2)
    spans = ((rows[..., 0] > 0) & (rows[..., -1] > 0)) | ((columns[..., 0] > 0) & (columns[..., -1] > 0))
    dropped = spans | (candidates.sum((2, 3)) == 0)
    dropped = dropped & ~dropped.all(1, keepdim=True)
    flat = candidates.flatten(2)
    both = flat @ flat.transpose(1, 2)
    area = flat.sum(-1)
    iou = both / (area[:, :, None] + area[:, None, :] - both).clamp(min=1)
    kept = (~dropped).float()
    total = (iou * kept[:, None, :]).sum(-1).masked_fill(dropped, -1.0)
    best = total.argmax(1)
    index = torch.arange(B)
    agreement = (total[index, best] - 1) / (kept.sum(1) - 1).clamp(min=1)
    return candidates[index, best], agreement


def pseudo_mask_file(
    path: Path, images: Any, make: Callable[[Tensor], Tensor], say: Callable[[str], None], batch_size: int = 64
) -> np.ndarray[Any, Any]:
    """The pseudo-masks of all cached pictures, from `path` when it is there and fits, made and written otherwise.

    `make` turns (B, 3, S, S) pictures in [0, 1] into (B, h, w) masks in [0, 1]. Returns (N, h, w) uint8, 0 to 255, read from the disk
    as they are needed.
    """
    kept = read_kept(path, (len(images), -1, -1), np.uint8, say, mapped=True)
    if kept is not None:
        return kept
    with replacing(path) as temp, open(temp, "wb") as file:
        for start in range(0, len(images), batch_size):
            batch = images.batch(np.arange(start, min(start + batch_size, len(images)))).float() / 255
            masks = (make(batch) * 255).round().to(torch.uint8).cpu().numpy()
            if not start:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), *masks.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            file.write(masks.tobytes())
            if (start // batch_size) % 16 == 15:
                say(f"pseudo-masks of {start + len(batch)} of {len(images)} pictures")
    made: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return made
