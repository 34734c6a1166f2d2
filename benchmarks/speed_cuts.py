"""TokenCut, LOST, Deep Spectral and the bilateral solver against the official formulas written densely, features to mask.

    python benchmarks/speed_cuts.py [--sides 30 60] [--graphs 2] [--rounds 3] [--cpu-time]

Side 30 is 900 patches (240 px at 8 px per patch), side 60 is 3,600 (480 px). The official side does what the published code
does: `scipy.linalg.eigh(D - A, D)` in float64 for TokenCut, `eigsh(D - A, sigma=0, M=D)` on the dense matrix for
Deep Spectral, the float32 affinity with its passes (its copy, the copy's zeros and the sum with its transpose) for LOST, and
for the solver sorted hashes, an assembled sparse matrix, `scipy.sparse.linalg.cg`, and its holes filled and largest
piece. Both sides get the same threads, take turns, and must give the same masks (LOST and TokenCut: every patch; Deep
Spectral: 99 % of the patches, the shift-invert solve itself is inexact; solver: 1e-3, and every pixel above 0.5).
Features lie in memory as a ViT gives them. LOST, which takes a millisecond or two, is measured over four different pictures: ours
in one call, the official one picture after the other, as published.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, cg, eigsh
from torch import Tensor

from cut_speed import official_whole, scene
from measuring import alternating, ratio_row, seconds, use_cpu_time, write
from selftaught.data.sources import open_data
from selftaught.nets.bilateral import BilateralGrid, refine
from selftaught.segmentation.lost import lost_masks
from selftaught.segmentation.spectral import spectral_masks
from selftaught.segmentation.tokencut import tokencut_masks

SAME_FRAC = 0.99
SOLVER_TOL = 1e-3
PICTURES = {"lost": 4}
"""Pictures that one timing goes through; one where it is not said."""


def official_lost(keys: Tensor, k: int = 100) -> NDArray[np.bool_]:
    """LOST's seed, expansion and component (h, w) of features (1, D, h, w): dense, in float32 as published."""
    side = keys.shape[-1]
    rows = keys[0].flatten(1).T
    affinity = rows @ rows.T
    others = affinity.clone()
    others.fill_diagonal_(0)
    others[others < 0] = 0
    _ = others + others.T  # computed and not used by the published code
    order = (others > 0).sum(1).argsort(stable=True)
    seed = int(order[0])
    friends = order[:k][affinity[seed, order[:k]] > 0]
    labels, _ = ndimage.label((affinity[friends].sum(0) > 0).reshape(side, side).numpy())
    return labels == labels.flat[seed]


def official_spectral(keys: Tensor) -> NDArray[np.bool_]:
    """Deep Spectral's eigenvector by shift-invert on dense matrices, and the smaller side of zero (h, w)."""
    side = keys.shape[-1]
    rows = torch.nn.functional.normalize(keys[0].flatten(1).T.double(), dim=-1).numpy()
    weight = rows @ rows.T
    weight = np.where(weight > 0, weight, 0)
    weight = weight / weight.max()
    degree = np.diag(weight.sum(1))
    try:
        _, vectors = eigsh(degree - weight, k=5, sigma=0, which="LM", M=degree, v0=np.ones(len(weight)))
    except RuntimeError:  # exactly singular, which the published code meets as well and moves the shift
        _, vectors = eigsh(degree - weight, k=5, sigma=-1e-4, which="LM", M=degree, v0=np.ones(len(weight)))
    mask = vectors[:, 1] > 0
    return (~mask if 0.5 < mask.mean() < 1.0 else mask).reshape(side, side)


def official_solver(picture: NDArray[np.uint8], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The published bilateral solver: hashed vertices, assembled sparse blurs, cg with a Jacobi preconditioner."""
    yuv = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    image = np.tensordot(picture.astype(float), yuv, ([2], [1])) + np.array([0, 128.0, 128.0])
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    cells = np.dstack([x[..., None] / 16, y[..., None] / 16, image[..., :1] / 16, image[..., 1:] / 8]).astype(int)
    coordinates = cells.reshape(-1, 5)
    powers = 255.0 ** np.arange(5)
    _, first, index = np.unique(coordinates @ powers, return_index=True, return_inverse=True)
    index = index.ravel()
    unique, count, pixels = coordinates[first], len(first), len(coordinates)
    hashed = unique @ powers
    splat = sparse.csr_matrix((np.ones(pixels), (index, np.arange(pixels))))
    blur = sparse.identity(count, format="csr") * 10.0
    order = np.argsort(hashed)
    for axis in range(5):
        for offset in (-1, 1):
            wanted = hashed + offset * powers[axis]
            at = np.searchsorted(hashed[order], wanted).clip(max=count - 1)
            valid = np.flatnonzero(hashed[order][at] == wanted)
            blur = blur + sparse.csr_matrix((np.ones(len(valid)), (valid, order[at[valid]])), shape=(count, count))
    n, m = np.ones(count), splat @ np.ones(pixels)
    for _ in range(10):
        n = np.sqrt(n * m / (blur @ n))
    m = n * (blur @ n)
    dn = sparse.diags(n)
    c, t = np.full(pixels, 0.999), target.ravel()
    weight = splat @ c
    a = 256.0 * (sparse.diags(m) - dn @ blur @ dn) + sparse.diags(weight)
    right = splat @ (c * t)
    inverse = 1 / np.maximum(a.diagonal(), 1e-5)
    found, _ = cg(a, right, x0=right / weight, M=LinearOperator(a.shape, lambda v: inverse * np.ravel(v)), maxiter=25, rtol=1e-5)
    return (splat.T @ found).reshape(target.shape)


def official_refined(picture: NDArray[np.uint8], mask: NDArray[np.float64]) -> NDArray[np.float64]:
    """The solver's output and what the published code makes of it: holes filled, the largest piece, the check of the overlap."""
    soft = official_solver(picture, mask)
    labels, count = ndimage.label(ndimage.binary_fill_holes(soft > 0.5))
    sizes = [np.sum(labels == index) for index in range(count + 1)]
    found = labels == 1 + int(np.argmax(sizes[1:])) if count else np.ones_like(soft, bool)
    before = mask > 0.5
    return soft if np.logical_and(found, before).sum() > 0.5 * np.logical_or(found, before).sum() else mask


def pair(name: str, side: int, seed: int) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[Any, Any], bool]]:
    """Ours, theirs, and whether their answers agree."""
    keys = torch.cat([scene(side, seed + 100 * i) for i in range(PICTURES.get(name, 1))])
    if name == "bilateral solver":
        source = open_data("sample:things:64", "train")
        small = torch.from_numpy(source.image(seed)).permute(2, 0, 1)[None].float()
        large = torch.nn.functional.interpolate(small, (8 * side, 8 * side), mode="bicubic").clamp(0, 255)
        picture = large[0].permute(1, 2, 0).byte().numpy()
        mask = tokencut_masks(keys).masks[0].numpy().repeat(8, 0).repeat(8, 1).astype(float)
        close = lambda a, b: bool(np.abs(a - b).max() < SOLVER_TOL and ((a > 0.5) == (b > 0.5)).all())  # noqa: E731
        return lambda: refine(BilateralGrid(picture).solve(mask), mask)[0], lambda: official_refined(picture, mask), close
    same = lambda a, b: bool((a.masks.numpy() == b).mean() >= (SAME_FRAC if name == "spectral" else 1.0))  # noqa: E731
    ours, theirs = {
        "tokencut": (lambda: tokencut_masks(keys), lambda: official_whole(keys)),
        "lost": (lambda: lost_masks(keys), lambda: np.stack([official_lost(one) for one in keys.split(1)])),
        "spectral": (lambda: spectral_masks(keys), lambda: official_spectral(keys)),
    }[name]
    return ours, theirs, same


NAMES = ("tokencut", "lost", "spectral", "bilateral solver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[30, 60])
    parser.add_argument("--graphs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, for one thread on a machine that is busy")
    arguments = parser.parse_args()
    clock = use_cpu_time() if arguments.cpu_time else "wall clock"
    rows = []
    for name in arguments.names:
        for side in arguments.sides:
            rates: dict[str, list[float]] = {"ours": [], "official": []}
            for seed in range(arguments.graphs):
                ours, theirs, agree = pair(name, side, seed)
                assert agree(ours(), theirs()), f"{name}, side {side}, seed {seed}: the answers differ"
                calls = {"ours": lambda f=ours: 1 / seconds(f), "official": lambda f=theirs: 1 / seconds(f)}
                found = alternating(calls, arguments.rounds)
                count = PICTURES.get(name, 1)
                rates = {key: rates[key] + [count * value for value in values] for key, values in found.items()}
            what = f"{8 * side} px" if name == "bilateral solver" else f"{side * side:,} patches"
            rows.append(ratio_row(name, what, "speed over the official formulas, end to end", rates, "official"))
            versions = {"numpy": np.__version__, "scipy": scipy.__version__}
            write("speed_cuts", rows, versions=versions, rounds=arguments.rounds, graphs=arguments.graphs, clock=clock)


if __name__ == "__main__":
    main()
