"""Second eigenvector of the normalised cut, for many pictures at once, without a dense eigen-decomposition.

For a symmetric affinity A (N x N, non-negative) with degrees d_i = sum_j A_ij and D = diag(d), the relaxed cut of Shi &
Malik ("Normalized cuts and image segmentation", PAMI 2000) is the eigenvector of the second smallest lambda of

    (D - A) x = lambda D x.

With r = d^-1/2 the matrix S = diag(r) A diag(r) has eigenvalues mu = 1 - lambda and eigenvectors y = D^1/2 x, and its
largest pair is known: mu = 1, u = D^1/2 1 / |D^1/2 1|. So x comes from the *largest* pair of S on the complement of u,
which Lanczos finds in 10 to 40 products with A; the dense call costs O(N^3).

Three stages, each only for the pictures that the one before could not settle: Lanczos in float32, Lanczos in float64,
dense float64. The Krylov blocks are two vectors wide: both are read in one pass over A, and only so does a *repeated*
eigenvalue show itself (a single vector sees one copy), in which case every cut from this graph is arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError

RESIDUAL_TOL = 1e-4
"""Lanczos stops when |S y - mu y| <= RESIDUAL_TOL |mu|, and not before the vector is told apart from the next one."""
ANGLE_TOL = 1e-3
"""Largest accepted |S y - mu y| / gap, a bound of the angle in radians between y and the true eigenvector."""
REPEATED_TOL = 1e-7
"""Eigenvalues nearer than this count as one; features in float32 cannot tell them apart."""
FLOAT32_GAP = 1e-3
"""Below this gap float32 products (noise about 3e-7) cannot reach ANGLE_TOL, so float64 takes over."""
DENSE_PATCHES = 100
"""Graphs of at most so many patches are solved densely: exact, and as fast there.

Measured on 2 cores, ms per graph, dense against Lanczos in a batch of 64: 0.6 and 0.5 for 144 patches, 1.1 and 0.55
for 196, 2.3 and 0.7 for 256 (a single graph: 5 to 10 ms of Lanczos, mostly launching). The rule looks at N only, so
that a picture's mask does not depend on the size of the batch it came in.
"""
BLOCK = 2
"""Vectors per Krylov block."""

FLOAT32, FLOAT64, DENSE = 0, 1, 2


class SecondEigenvector(NamedTuple):
    """What the cut of each of B graphs gave."""

    x: Tensor
    """(B, N) float32, second generalised eigenvector, x^T D x = 1, sign arbitrary."""
    lambda2: Tensor
    """(B,) float64 in [0, 2], second smallest eigenvalue; near 0 for two well separated parts, near 1 for none."""
    residual: Tensor
    """(B,) float64, |S y - mu y| for the unit vector y = D^1/2 x."""
    gap: Tensor
    """(B,) float64, lambda3 - lambda2; infinite when N = 2."""
    repeated: Tensor
    """(B,) bool, True when the eigenvalue is repeated: any vector of a plane would do, so the cut is arbitrary."""
    stage: Tensor
    """(B,) int64, what settled it: 0 Lanczos in float32, 1 Lanczos in float64, 2 dense in float64."""


class _Ritz(NamedTuple):
    """Largest two Ritz values of B operators, the vector of the first, and whether they may be trusted."""

    values: Tensor
    vector: Tensor
    residual: Tensor
    settled: Tensor


def second_eigenvector(
    affinity: Tensor, eps: float = 0.0, *, max_steps: int = 40, dense_patches: int = DENSE_PATCHES
) -> SecondEigenvector:
    """Solve (D - A) x = lambda D x for the second smallest lambda of each graph of a batch.

    affinity: (B, N, N) symmetric and non-negative, float32 or bool. eps: floor of the weights; an edge weighs
    eps + (1 - eps) * affinity, which for a boolean (or 0/1) affinity is 1 where True and eps elsewhere.
    max_steps: Krylov blocks in float32; three times as many in float64. A picture's result does not depend on the
    rest of its batch (up to the rounding of batched products). Raises ConfigError for a wrong shape, dtype or eps or
    N < 2, and NumericError for affinities that are not finite and for patches without any positive edge.
    """
    _check(affinity, eps)
    batch, n, _ = affinity.shape
    weight = affinity.float()
    _check_degree(_degree(weight, eps))
    out = _empty(batch, n, affinity.device)
    todo = torch.arange(batch, device=affinity.device)
    if n > dense_patches:
        todo = _lanczos_stage(out, todo, weight, eps, max_steps)
        left = []
        for index in todo:  # one at a time: a float64 copy of A is the largest thing in memory
            left.append(_lanczos_stage(out, index[None], weight[index][None].double(), eps, 3 * max_steps))
        todo = torch.cat(left) if left else todo
    for index in todo.tolist():
        _dense_stage(out, index, weight[index], eps)
    return out


def _check(affinity: Tensor, eps: float) -> None:
    if affinity.dim() != 3 or affinity.shape[1] != affinity.shape[2]:
        raise ConfigError(f"The affinity has shape {tuple(affinity.shape)}.", expected="(B, N, N)")
    if affinity.shape[1] < 2:
        raise ConfigError(
            "A graph of one patch cannot be cut.",
            expected="at least two patches",
            do="Give larger pictures, or features with smaller patches.",
        )
    if affinity.dtype not in (torch.bool, torch.float32):
        raise ConfigError(f"The affinity is {affinity.dtype}.", expected="torch.float32 or torch.bool")
    if not 0.0 <= eps < 1.0:
        raise ConfigError(f"eps is {eps}.", expected="0 <= eps < 1")


def _degree(weight: Tensor, eps: float) -> Tensor:
    """(B, N) degrees in the precision of `weight` (exact for 0/1 weights)."""
    return weight.sum(-1) * (1.0 - eps) + eps * weight.shape[-1]


def _check_degree(degree: Tensor) -> None:
    """Refuse what no cut is defined for; a NaN anywhere in A shows in its row's degree."""
    bad = ~torch.isfinite(degree).all(-1)
    if bool(bad.any()):
        raise NumericError(f"The affinity of graph {int(bad.nonzero()[0])} holds NaN or infinite values.")
    bad = (degree <= 0).any(-1)
    if bool(bad.any()):
        raise NumericError(
            f"A patch of graph {int(bad.nonzero()[0])} has no positive edge.",
            expected="non-negative affinities with a positive sum per patch",
            do="Keep self-edges, or use eps > 0.",
        )


def _empty(batch: int, n: int, device: torch.device) -> SecondEigenvector:
    lambda2, residual, gap = torch.full((3, batch), torch.nan, dtype=torch.float64, device=device)
    return SecondEigenvector(
        torch.full((batch, n), torch.nan, device=device),
        lambda2,
        residual,
        gap,
        torch.zeros(batch, dtype=torch.bool, device=device),
        torch.full((batch,), DENSE, device=device),
    )


def _lanczos_stage(out: SecondEigenvector, todo: Tensor, weight: Tensor, eps: float, max_steps: int) -> Tensor:
    """Settle what can be settled in the precision of `weight` (graphs `todo`), return the indices of the rest."""
    exact = weight.dtype == torch.float64
    root = _degree(weight, eps).sqrt()
    trivial = root / root.norm(dim=-1, keepdim=True)
    r = root.reciprocal()[:, None]

    def apply(rows: Tensor) -> Tensor:
        """S times each of the rows (B, m, N); rows on the left, since S is symmetric and BLAS is fastest so."""
        scaled = rows * r
        product = torch.bmm(scaled, weight)
        if eps:
            product = product.mul_(1.0 - eps).add_(scaled.sum(-1, keepdim=True), alpha=eps)
        return product.mul_(r)

    steps = min(max_steps, (weight.shape[-1] - 1) // BLOCK)
    ritz = _lanczos(apply, trivial, steps, exact=exact)
    gap = ritz.values[:, 0] - ritz.values[:, 1]
    where = todo[ritz.settled]
    out.x[where] = (ritz.vector / root)[ritz.settled].float()
    out.lambda2[where] = (1.0 - ritz.values[ritz.settled, 0]).clamp(0.0, 2.0)
    out.residual[where] = ritz.residual[ritz.settled]
    out.gap[where] = gap[ritz.settled]
    out.repeated[where] = gap[ritz.settled] <= REPEATED_TOL
    out.stage[where] = FLOAT64 if exact else FLOAT32
    return todo[~ritz.settled]


def _lanczos(apply: Callable[[Tensor], Tensor], trivial: Tensor, steps: int, exact: bool) -> _Ritz:
    """Block Lanczos with full re-orthogonalisation on the complement of the unit vectors `trivial` (B, N).

    The projected matrix T = V S V^T is kept whole, so V may be continued with random vectors when a Krylov space is
    exhausted. `exact` marks float64, which may declare an eigenvalue repeated; float32 leaves that to it.
    """
    batch, n = trivial.shape
    basis = trivial.new_empty(batch, 1 + steps * BLOCK, n)
    basis[:, 0] = trivial
    t = trivial.new_zeros(batch, steps * BLOCK, steps * BLOCK)
    noise = torch.Generator().manual_seed(0)
    block = torch.zeros(batch, BLOCK, n, dtype=trivial.dtype, device=trivial.device)
    block, _ = _orthonormal_rows(block, basis[:, :1], noise)
    best = _Ritz(
        torch.zeros(batch, 2, dtype=torch.float64, device=trivial.device),
        torch.zeros(batch, n, dtype=torch.float64, device=trivial.device),
        torch.full((batch,), torch.inf, dtype=torch.float64, device=trivial.device),
        torch.zeros(batch, dtype=torch.bool, device=trivial.device),
    )
    given_up = torch.zeros_like(best.settled)
    for step in range(steps):
        low, high = step * BLOCK, (step + 1) * BLOCK
        basis[:, 1 + low : 1 + high] = block
        known = basis[:, : 1 + high]
        image = apply(block)
        inner = torch.bmm(image, known.mT)
        t[:, low:high, :high] = inner[:, :, 1:]  # eigh reads the lower triangle only
        image = image.baddbmm_(inner, known, alpha=-1.0)
        block, coupling = _orthonormal_rows(image, known, noise)
        if step % 2 == 0 and step != steps - 1 or step < 3:
            continue
        values, vectors = torch.linalg.eigh(t[:, :high, :high].double())
        top, pair = values[:, -2:].flip(-1), vectors[:, :, -2:].flip(-1)
        errors = torch.bmm(coupling.double(), pair[:, low:high]).norm(dim=1)
        settled, hopeless = _verdict(top, errors, exact)
        fresh = settled & ~best.settled & ~given_up
        if bool(fresh.any()):
            best.values[fresh] = top[fresh]
            vector = torch.bmm(pair[fresh, :, :1].mT.to(basis.dtype), basis[fresh, 1 : 1 + high])[:, 0]
            best.vector[fresh] = (vector / vector.norm(dim=-1, keepdim=True)).double()
            best.residual[fresh] = errors[fresh, 0]
            best.settled[fresh] = True
        given_up |= hopeless & ~best.settled
        if bool((best.settled | given_up).all()):
            break
    return best


def _verdict(top: Tensor, errors: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """Say for Ritz values and residuals (B, 2) which graphs are settled, and which will never be in this precision."""
    gap = top[:, 0] - top[:, 1]
    near = errors[:, 0] <= RESIDUAL_TOL * top[:, 0].abs()
    apart = errors[:, 0] <= ANGLE_TOL * (gap - errors[:, 1])
    if not exact:
        small = (errors.sum(1) < 0.1 * FLOAT32_GAP) & (gap < FLOAT32_GAP)
        return near & apart & ~small, small
    repeated = (errors.sum(1) < 0.1 * REPEATED_TOL) & (gap <= REPEATED_TOL)
    return (near & apart) | repeated, torch.zeros_like(near)


def _orthonormal_rows(rows: Tensor, known: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (B, m, N), orthogonal to `known` (B, k, N), that span `rows` where these are not zero.

    Also returns the coupling (B, m, m) = new rows . rows^T. Rows that vanish are replaced by random ones.
    """
    floor = 1e-7 if rows.dtype == torch.float32 else 1e-14
    rows = rows - torch.bmm(torch.bmm(rows, known.mT), known)
    made: list[Tensor] = []
    for index in range(rows.shape[1]):
        row = _minus(rows[:, index], made, known=None)
        norm = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        if bool((norm <= floor).any()):
            fresh = torch.randn(rows.shape[-1], generator=noise, dtype=torch.float64).to(rows)
            row = torch.where(norm <= floor, fresh / fresh.norm(), row / norm.clamp_min(floor))
            row = _minus(_minus(row, made, known), made, known)
            norm = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        made.append(_minus(row / norm, made, known=None))
        made[-1] = made[-1] / torch.linalg.vector_norm(made[-1], dim=-1, keepdim=True)
    new = torch.stack(made, 1)
    return new, torch.bmm(new, rows.mT)


def _minus(row: Tensor, made: list[Tensor], known: Tensor | None) -> Tensor:
    """Remove from row (B, N) its parts along the unit rows `made` (each (B, N)) and `known` (B, k, N)."""
    for other in made:
        row = row - (row * other).sum(-1, keepdim=True) * other
    if known is not None:
        row = row - torch.bmm(torch.bmm(row[:, None], known.mT), known)[:, 0]
    return row


def _dense_stage(out: SecondEigenvector, index: int, affinity: Tensor, eps: float) -> None:
    """Settle one graph with LAPACK in float64."""
    weight = eps + (1.0 - eps) * affinity.cpu().numpy().astype(np.float64)
    root = np.sqrt(weight.sum(1))
    n = len(root)
    u = root / np.linalg.norm(root)
    # Three times, not once: the trivial eigenvalue 1 moves to -2, below everything that a graph can have.
    s = weight / root[:, None] / root[None, :] - 3.0 * np.outer(u, u)
    values, vectors = scipy.linalg.eigh(s, subset_by_index=[n - 2, n - 1], driver="evr", overwrite_a=True)
    y = vectors[:, 1]
    y = y - u * (u @ y)
    y /= np.linalg.norm(y)
    mu = float(values[1])
    scaled = y / root
    gap = float(values[1] - values[0]) if n > 2 else np.inf
    out.x[index] = torch.from_numpy(scaled).to(out.x)
    out.lambda2[index] = min(max(1.0 - mu, 0.0), 2.0)
    out.residual[index] = float(np.linalg.norm(weight @ scaled / root - mu * y))
    out.gap[index] = gap
    out.repeated[index] = gap <= REPEATED_TOL
    out.stage[index] = DENSE
