"""Viewpoints on a circle from what pictures look like: a graph of neighbours, its eigenvectors, small turns, a closed curve through all.

Shared words: `features` (N, D) float64 of N pictures, `angle` (N,) in radians. Nothing here sees a true viewpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch.nn import functional

Array = np.ndarray
PATH_SCALES = (1.0, 2.0, 3.0)
"""Factors on the small changes, which come out too small by an unknown one."""
_BINS = 72
_TORN = 3.0
"""What torn edges cost, in units of log p: enough against orders that follow another quality than the viewpoint (they tear a third of the
edges), little against the few edges that are wrong themselves."""
_SWEEPS = 2
_COMPARED = 48
"""Principal components by which pictures are first compared."""
_DENSE = 300
"""Up to so many pictures all eigenvectors are computed."""
_SHRINK = 0.02
"""Share of the mean variance that is added to the covariance of what the curve does not explain."""


def hog_features(images: Tensor, orientations: int = 9, cell_px: int = 8) -> Tensor:
    """Histograms of oriented gradients (B, D) of pictures (B, 3, S, S) in [0, 1] (Dalal and Triggs, CVPR 2005).

    The strongest channel's gradient at each pixel votes for its two nearest orientations of 0 to 180 degrees, in cells of `cell_px`;
    blocks of 2 x 2 cells are divided by their length, clipped at 0.2, and divided again.
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    gx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    gy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    size, strongest = (gx.square() + gy.square()).max(1, keepdim=True)
    gx, gy, size = gx.gather(1, strongest), gy.gather(1, strongest), (size + 1e-12).sqrt()
    place = (torch.atan2(gy, gx) / math.pi % 1.0) * orientations
    centres = torch.arange(orientations, device=images.device, dtype=images.dtype)[:, None, None] + 0.5
    apart = (place - centres).abs()
    share = (1 - torch.minimum(apart, orientations - apart)).clamp_min(0)
    cells = functional.avg_pool2d(share * size, cell_px)
    blocks = torch.cat(
        [cells[:, :, i : cells.shape[2] - 1 + i, j : cells.shape[3] - 1 + j] for i in (0, 1) for j in (0, 1)], 1
    )
    blocks = functional.normalize(blocks, dim=1, eps=1e-3).clamp_max(0.2)
    return functional.normalize(blocks, dim=1, eps=1e-3).flatten(1)


def turned(images: Tensor, angle_rad: float, radius: float = 0.9) -> Tensor:
    """Pictures (B, C, H, W) as if they were painted on an upright cylinder that is turned by a small azimuth.

    radius: in half widths of the picture. A point at x = r sin(t) moves to r sin(t + angle), to the right for angles above 0, as the
    front of an object does when its azimuth grows; what lies beside the cylinder stays.
    """
    side = images.shape[-1]
    x = (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5) * 2 / side - 1
    inside = x.abs() < radius
    at = (x / radius).clamp(-1, 1).asin()
    source = radius * (at - angle_rad).clamp(-math.pi / 2, math.pi / 2).sin()
    # Fades out towards the cylinder's rim, where a turn would tear the picture.
    share = (1 - (x / radius).square()).clamp_min(0)
    source = torch.where(inside, x + share * (source - x), x)
    y = (torch.arange(images.shape[-2], device=images.device, dtype=images.dtype) + 0.5) * 2 / images.shape[-2] - 1
    grid = torch.stack([source.expand(len(y), -1), y[:, None].expand(-1, side)], -1)
    return functional.grid_sample(
        images, grid.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False
    )


class Projection(NamedTuple):
    """Principal components of features: (f - mean) @ axes."""

    mean: Array
    axes: Array

    def __call__(self, features: Array) -> Array:
        return (features - self.mean) @ self.axes


def principal(features: Array, count: int) -> Projection:
    """The `count` directions in which features (N, D) vary most."""
    mean = features.mean(0)
    centred = features - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, : min(count, len(values))]
    # The sign of an eigenvector is arbitrary: the largest entry is made positive, so that repetitions agree.
    largest = axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]
    return Projection(mean, axes * np.where(largest < 0, -1.0, 1.0))


class Neighbours(NamedTuple):
    """A symmetric graph as edges, each in both directions."""

    first: Array
    second: Array
    weight: Array


def neighbour_graph(features: Array, k: int = 10) -> Neighbours:
    """Compare all pictures: edges to the k nearest, weight exp(-d^2 / (s_i s_j)) with s the distance to the k/2-th (Zelnik-Manor and
    Perona, 2004); an edge that neither end confirms by two common neighbours is dropped.
    """
    count = len(features)
    k = min(k, count - 1)
    square = (features**2).sum(1)
    near, far = np.empty((count, k), np.int64), np.empty((count, k))
    for rows in np.array_split(np.arange(count), max(1, count // 512)):
        distance = square[rows, None] + square[None] - 2 * features[rows] @ features.T
        distance[np.arange(len(rows)), rows] = np.inf
        picks = np.argpartition(distance, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(distance, picks, 1)
        order = values.argsort(1, kind="stable")
        near[rows], far[rows] = np.take_along_axis(picks, order, 1), np.take_along_axis(values, order, 1).clip(0)
    scale = np.sqrt(far[:, max(k // 2 - 1, 0)]).clip(1e-6)
    first, second = np.arange(count).repeat(k), near.reshape(-1)
    weight = np.exp(-far.reshape(-1) / (scale[first] * scale[second]))
    graph = scipy.sparse.csr_matrix((weight, (first, second)), (count, count))
    graph = graph.maximum(graph.T)
    links = scipy.sparse.csr_matrix((np.ones(len(first)), (first, second)), (count, count))
    links = links.maximum(links.T) + scipy.sparse.identity(count, format="csr")
    common = (links @ links).multiply(graph > 0).tocsr()
    kept = graph.multiply(common >= min(4, k)).tocoo()  # each end counts itself as common
    return Neighbours(kept.row.astype(np.int64), kept.col.astype(np.int64), kept.data)


def normalised(graph: Neighbours, values: Array, count: int) -> scipy.sparse.csr_matrix:
    """D^(-1/2) W D^(-1/2) with the graph's weights, times `values` of the edges."""
    degree = np.bincount(graph.first, graph.weight, count).clip(1e-9)
    scaled = graph.weight * values / np.sqrt(degree[graph.first] * degree[graph.second])
    return scipy.sparse.csr_matrix((scaled, (graph.first, graph.second)), (count, count))


def leading(matrix: scipy.sparse.csr_matrix, count: int) -> tuple[Array, Array]:
    """The largest eigenvalues of a symmetric or Hermitian matrix, falling, and their vectors (N, count)."""
    size = matrix.shape[0]
    if size <= _DENSE:
        values, vectors = np.linalg.eigh(matrix.toarray())
        return values[::-1][:count], vectors[:, ::-1][:, :count]
    start = np.random.RandomState(0).standard_normal(size).astype(matrix.dtype)
    values, vectors = scipy.sparse.linalg.eigsh(matrix, count, which="LA", v0=start, tol=1e-6, maxiter=20 * size)
    order = values.argsort()[::-1]
    return values[order], vectors[:, order]


def small_changes(features: Array, tangents: Array, graph: Neighbours) -> Array:
    """Azimuth differences of neighbours (E,), from how pictures would change if their object turned a little.

    tangents (N, D): derivative of the features by azimuth. The difference f_j - f_i is held against both tangents:
    (f_j - f_i) . (t_i / |t_i|^2 + t_j / |t_j|^2) / 2, which changes its sign with the direction of the edge.
    """
    length = (tangents**2).sum(1, keepdims=True)
    pull = tangents / (length + 1e-3 * length.mean() + 1e-12)
    i, j = graph.first, graph.second
    return ((features[j] - features[i]) * (pull[i] + pull[j])).sum(1) / 2


def integrate(graph: Neighbours, change: Array, count: int, scale: float) -> tuple[Array, float]:
    """Angles (N,) whose differences agree best with scale * change along the edges, and how well (the top eigenvalue, at most 1).

    Angular synchronisation (Singer 2011): the top eigenvector u of D^(-1/2) H D^(-1/2), H_ij = w_ij exp(i (phi_i - phi_j));
    all paths through the graph count at once.
    """
    matrix = normalised(graph, np.exp(-1j * np.clip(scale * change, -math.pi, math.pi)), count)
    values, vectors = leading(matrix, 1)
    return np.angle(vectors[:, 0]), float(values[0])


@dataclass
class Curve:
    """A closed curve m(phi) through the features with noise of covariance C: p(f) = mean over phi of N(f; m(phi), C)."""

    weights: Array
    """(1 + 2 K, D) of the basis 1, cos k phi, sin k phi."""
    whiten: Array
    """(D, D) with whiten whiten^T = C^-1."""
    log_scale: float
    """log sqrt(det C^-1), without the constant of the Gaussian."""

    def posterior(self, features: Array) -> tuple[Array, Array]:
        """Probability of each of the grid's angles (N, M), and log p (N,)."""
        middle = basis(GRID, (len(self.weights) - 1) // 2) @ self.weights @ self.whiten
        points = features @ self.whiten
        apart = (points**2).sum(1)[:, None] + (middle**2).sum(1)[None] - 2 * points @ middle.T
        log_p = self.log_scale - 0.5 * apart - math.log(len(GRID))
        top = log_p.max(1, keepdims=True)
        # What is as good as impossible becomes exactly 0: numbers near the smallest make products many times slower.
        share = np.where(log_p - top > -30, np.exp(np.maximum(log_p - top, -30)), 0)
        total = share.sum(1, keepdims=True)
        return share / total, (top + np.log(total))[:, 0]

    def angle(self, features: Array) -> tuple[Array, Array]:
        """The mean angle (N,), and how sure it is: the length in [0, 1] of the mean direction."""
        share, _ = self.posterior(features)
        mean = share @ np.exp(1j * GRID)
        return np.angle(mean), np.abs(mean)


GRID: Array = np.arange(_BINS) * 2 * math.pi / _BINS


def basis(angle: Array, harmonics: int) -> Array:
    """(N, 1 + 2 K): 1, cos phi, sin phi, cos 2 phi, ..."""
    parts = [np.ones_like(angle)]
    for k in range(1, harmonics + 1):
        parts += [np.cos(k * angle), np.sin(k * angle)]
    return np.stack(parts, 1)


def fit_curve(features: Array, share: Array, harmonics: int) -> Curve:
    """The curve and covariance (M-step) for probabilities (N, M) of the grid's angles; high harmonics are held back as k^4."""
    design = basis(GRID, harmonics)
    order = np.concatenate([[0], np.arange(1, harmonics + 1).repeat(2)])
    mass = share.sum(0)
    gram = design.T @ (mass[:, None] * design) + np.diag(1e-3 * order.astype(float) ** 4)
    weights = np.linalg.solve(gram, design.T @ (share.T @ features))
    middle = design @ weights
    crossed = (share.T @ features).T @ middle
    total = features.T @ features - crossed - crossed.T + middle.T @ (mass[:, None] * middle)
    covariance = total / len(features)
    size = len(covariance)
    covariance = (covariance + covariance.T) / 2 + (_SHRINK * np.trace(covariance) / size + 1e-9) * np.eye(size)
    values, vectors = np.linalg.eigh(covariance)
    return Curve(weights, vectors / np.sqrt(values), float(-0.5 * np.log(values).sum()))


def share_of(angle: Array, spread_rad: float = 0.25) -> Array:
    """Probabilities (N, M) of the grid's angles around given ones (von Mises)."""
    share = np.exp(np.maximum((np.cos(angle[:, None] - GRID[None]) - 1) / spread_rad**2, -30))
    return share / share.sum(1, keepdims=True)


def unfold(features: Array, twice: Array, white: bool) -> Array:
    """Angles phi (N,) from 2 phi: which half of the circle each picture belongs to, found for all of them at once.

    Once what depends on 2 phi is taken away, features are s w(phi0) with phi0 = 2 phi / 2, s = +-1 and w of odd harmonics, so that
    residual x (cos phi0, sin phi0) has a part whose sign is s. Its top principal component shows it. More odd harmonics would add
    components of the same size whose sign also changes along the circle. white: residuals in units of their own covariance,
    which is better where most of them are background, and worse elsewhere.
    """
    even = basis(twice, 3)
    rest = features - even @ np.linalg.lstsq(even, features, rcond=None)[0]
    if white:
        values, vectors = np.linalg.eigh(rest.T @ rest)
        rest = rest @ (vectors / np.sqrt(values.clip(0) + 0.01 * values.max() + 1e-12))
    half = (twice % (2 * math.pi)) / 2
    joined = np.concatenate([rest * np.cos(half)[:, None], rest * np.sin(half)[:, None]], 1)
    top = joined @ np.linalg.eigh(joined.T @ joined)[1][:, -1]
    return half + math.pi * (top < 0)


class Way(NamedTuple):
    """One way to lay the pictures on a circle."""

    name: str
    angle: Array
    curve: Curve
    level: float
    """Mean log p of the pictures under the curve, less `_TORN` times the share of torn edges: the label-free measure of a way."""
    torn: float
    """Share of the graph's weight between pictures that the way puts more than 60 degrees apart (once it is uniform)."""


def settle(name: str, features: Array, graph: Neighbours, angle: Array, plan: tuple[tuple[int, int], ...]) -> Way:
    """Follow the closed curve from angles (N,), by (harmonics, rounds) in turn from coarse to fine, and measure the result.

    A curve of many harmonics can explain the pictures in a wrong order as well, but tears neighbours apart; an order that tears
    few can be folded, but explains less. Together they tell the right way from others.
    """
    curve = fit_curve(features, share_of(angle), plan[0][0])
    for harmonics, rounds in plan:
        for _ in range(rounds):
            curve = fit_curve(features, curve.posterior(features)[0], harmonics)
    share, log_p = curve.posterior(features)
    found = np.angle(share @ np.exp(1j * GRID))
    uniform = np.empty(len(found))
    uniform[np.argsort(found, kind="stable")] = np.arange(len(found)) * 2 * math.pi / len(found)
    apart = np.abs((uniform[graph.second] - uniform[graph.first] + math.pi) % (2 * math.pi) - math.pi)
    torn = float((graph.weight * (apart > math.pi / 3)).sum() / graph.weight.sum())
    return Way(name, found, curve, float(log_p.mean()) - _TORN * torn, torn)


def ways(features: Array, graph: Neighbours, change: Array, harmonics: int, eigenvectors: int = 6) -> list[Way]:
    """Ways round the circle, the best first: pairs of eigenvectors of the graph and integrated paths, each as phi and as 2 phi."""
    count = len(features)
    _, vectors = leading(normalised(graph, np.ones(len(graph.first)), count), eigenvectors + 1)
    # By the first vector, which is the root of the degrees: what remains are functions of the place in the graph.
    vectors = vectors[:, 1:] / np.where(np.abs(vectors[:, :1]) > 1e-9, vectors[:, :1], 1e-9)
    starts = {
        f"eigenvectors {a + 1},{b + 1}": np.arctan2(vectors[:, b], vectors[:, a])
        for a, b in combinations(range(vectors.shape[1]), 2)
    }
    starts |= {f"paths x{scale:g}": integrate(graph, change, count, scale)[0] for scale in PATH_SCALES}
    plan = coarse_to_fine(harmonics)
    found = []
    for name, start in starts.items():
        found.append(settle(name, features, graph, start, plan))
        twice = found[-1].angle
        for white in (False, True):
            found.append(settle(f"{name} halved", features, graph, unfold(features, twice, white), plan))
    return sorted(found, key=lambda one: -one.level)


def coarse_to_fine(harmonics: int) -> tuple[tuple[int, int], ...]:
    """Three rounds each with 2, 4 and all harmonics."""
    return tuple((min(k, harmonics), 3) for k in (2, 4, harmonics))


def swap_arcs(way: Way, features: Array, graph: Neighbours, harmonics: int, parts: int) -> Way:
    """Turn arcs by half a circle as long as that makes a way better: mends front and back taken for each other over a range of angles.

    All arcs between `parts` places of the half circle are tried, the best is taken, and the curve is followed again.
    """
    for _ in range(_SWEEPS):
        cell = np.minimum((way.angle % math.pi / math.pi * parts).astype(int), parts - 1)
        best = way
        for start in range(parts):
            for length in range(1, parts // 2 + 1):
                inside = (cell - start) % parts < length
                tried = settle(
                    way.name,
                    features,
                    graph,
                    np.where(inside, way.angle + math.pi, way.angle),
                    ((min(4, harmonics), 2), (harmonics, 1)),
                )
                if tried.level > best.level + 0.02:
                    best = tried
        if best is way:
            break
        way = settle(
            f"{way.name} swapped".replace(" swapped swapped", " swapped"),
            features,
            graph,
            best.angle,
            ((harmonics, 3),),
        )
    return way


def seen_along(way: Way, dimensions: int = 12) -> Array:
    """(D, d) projection of features to what the curve of a way varies in, in units of what it does not explain."""
    middle = basis(GRID, (len(way.curve.weights) - 1) // 2) @ way.curve.weights @ way.curve.whiten
    axes = np.linalg.svd(middle - middle.mean(0), full_matrices=False)[2][:dimensions]
    return way.curve.whiten @ axes.T


def find_way(
    features: Array, tangents: Array, neighbours: int, harmonics: int, looks: int, rounds: int
) -> tuple[Way, list[Way]]:
    """The best way round the circle, chosen without truth, and all that were compared last.

    What a first, rough way says of the features (which of them change along the circle, and which do not, such as backgrounds)
    makes a better measure of likeness, and so a better graph: that is done `looks` times.
    """
    project = np.eye(features.shape[1])[:, :_COMPARED]
    found: list[Way] = []
    graph = neighbour_graph(features @ project, neighbours)
    for look in range(looks + 1):
        if look:
            project = seen_along(found[0])
            graph = neighbour_graph(features @ project, neighbours)
        change = small_changes(features @ project, tangents @ project, graph)
        found = ways(features, graph, change, harmonics)
    mended = [swap_arcs(one, features, graph, harmonics, 12) for one in found[:3]]
    mended = [settle(one.name, features, graph, one.angle, ((harmonics, rounds),)) for one in mended]
    best = max(mended, key=lambda one: one.level)
    return best, sorted([*mended, *found], key=lambda one: -one.level)
