"""Viewpoints without labels, compared with the truth up to what nobody can know: which side of the object was called its front.

Rotations (N, 3, 3) lead from the object's frame to the camera's. A prediction may use another frame of the object: R_i ~ P_i A with one
rotation A for all, which is found on one half of the pictures and held against the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from selftaught.core.rows import evenly
from selftaught.measure.score import Score, score_of

Array = np.ndarray
FEWEST_SCORED = 8
"""Fewest test pictures with known viewpoints that are scored."""
_CANDIDATES = 300
_GRID = np.deg2rad(np.arange(360.0))


def known_views(data: Any) -> list[Any] | None:
    """What is true of the views of an `EvalData`'s test pictures; None, and a note in it that says why, where that cannot be scored."""
    views: list[Any] | None = data.test.views()
    if views is not None and len(views) >= FEWEST_SCORED:
        return views
    known = "not known of all test pictures" if views is None else f"known of {len(views)} test pictures alone ({FEWEST_SCORED} are needed)"
    data.notes.append(f"viewpoints are {known}, so they could not be scored")
    return None


def geodesic_rad(first: Any, second: Any) -> Array:
    """Angles (...,) in [0, pi] of the rotations between two of (..., 3, 3): arctan2(|skew part|, (trace - 1) / 2)."""
    between = np.swapaxes(np.asarray(first, np.float64), -1, -2) @ np.asarray(second, np.float64)
    skew = between - np.swapaxes(between, -1, -2)
    sine = 0.5 * np.sqrt(skew[..., 0, 1] ** 2 + skew[..., 0, 2] ** 2 + skew[..., 1, 2] ** 2)
    return np.arctan2(sine, (np.trace(between, axis1=-2, axis2=-1) - 1) / 2)


def azimuth_of(rotations: Any) -> Array:
    """Azimuths (N,) in (-pi, pi] of Rz(roll) Rx(elevation) Ry(azimuth); the inverse of `nets.renderer.rotation_from_angles`."""
    r = np.asarray(rotations, np.float64)
    return np.arctan2(-r[..., 2, 0], r[..., 2, 2])


def angles_of(rotations: Any) -> Array:
    """Azimuth, elevation, roll (N, 3) of rotations (N, 3, 3)."""
    r = np.asarray(rotations, np.float64)
    return np.stack([azimuth_of(r), np.arcsin(np.clip(r[:, 2, 1], -1, 1)), np.arctan2(-r[:, 0, 1], r[:, 1, 1])], 1)


def angle_between(first: Any, second: Any) -> Array:
    """Absolute differences of angles, in [0, pi]."""
    return np.abs((np.asarray(first) - np.asarray(second) + np.pi) % (2 * np.pi) - np.pi)


def mean_rotation(rotations: Array) -> Array:
    """The rotation (3, 3) nearest to the mean of (N, 3, 3) in the least-squares sense (by SVD)."""
    u, _, vt = np.linalg.svd(rotations.mean(0))
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def common_frame(predicted: Any, true: Any) -> Array:
    """The rotation A (3, 3) with true_i ~ predicted_i A: of the candidates P_j^T R_j the one with the least median error, then the mean
    over those within twice that error. Raises ValueError for no pictures or other shapes.
    """
    predicted, true = _rotations(predicted, "predicted"), _rotations(true, "true")
    if len(predicted) != len(true) or not len(true):
        raise ValueError(
            f"expected as many predicted rotations as true ones, at least one, got {len(predicted)} and {len(true)}"
        )
    offsets = np.swapaxes(predicted, 1, 2) @ true
    picks = evenly(len(offsets), _CANDIDATES)
    errors = np.median(geodesic_rad(offsets[picks][:, None], offsets[None]), axis=1)
    best = offsets[picks[int(errors.argmin())]]
    near = geodesic_rad(best, offsets) <= 2 * errors.min() + 1e-6
    return mean_rotation(offsets[near])


@dataclass(frozen=True)
class AzimuthFrame:
    """How predicted azimuths are turned into true ones: true ~ sign * predicted + offset."""

    offset_rad: float
    sign: int
    """1, or -1 for a prediction that runs the other way round: mirrored, and so no solution in three dimensions."""

    def apply(self, azimuth_rad: Any) -> Array:
        """Predictions in the frame of the truth."""
        return self.sign * np.asarray(azimuth_rad, np.float64) + self.offset_rad


def azimuth_frame(predicted: Any, true: Any, mirrored: bool = False) -> AzimuthFrame:
    """The offset, on a grid of 1 degree, with the least median error; `mirrored` for predictions that run the other way round."""
    sign = -1 if mirrored else 1
    difference = np.asarray(true, np.float64) - sign * np.asarray(predicted, np.float64)
    median = np.median(angle_between(difference[None], _GRID[:, None]), axis=1)
    return AzimuthFrame(float(_GRID[int(median.argmin())]), sign)


def halves(count: int) -> tuple[Array, Array]:
    """Indices of the pictures that the frame is found on, and of those that are scored: every other one."""
    return np.arange(0, count, 2), np.arange(1, count, 2)


def azimuth_scores(predicted: Any, true: Any, seed: int = 0) -> dict[str, Score]:
    """Scores of azimuths (N,) in radians over a full or partial circle; the frame comes from one half, the numbers from the other.

    azimuth_median_deg: median error. acc30: share below 30 degrees. azimuth_mod180_deg: median error when front and back count as
    the same. mirrored_deg: median error if the predictions ran the other way round; lower than azimuth_median_deg means a
    mirrored solution.
    Baselines: the best constant, and the true azimuths shuffled.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.shape != true.shape or predicted.ndim != 1 or len(true) < 4 or not np.isfinite(predicted).all():
        raise ValueError(
            f"expected at least four finite azimuths and as many true ones, got {predicted.shape} and {true.shape}"
        )
    fit, test = halves(len(true))
    constant = angle_between(azimuth_frame(np.zeros(len(fit)), true[fit]).apply(np.zeros(len(test))), true[test])
    shuffled_all = np.random.RandomState(seed).permutation(true)
    shuffled = angle_between(azimuth_frame(shuffled_all[fit], true[fit]).apply(shuffled_all[test]), true[test])

    def errors(factor: int, mirrored: bool = False) -> Array:
        frame = azimuth_frame(factor * predicted[fit], factor * true[fit], mirrored)
        return np.rad2deg(angle_between(frame.apply(factor * predicted[test]), factor * true[test])) / factor

    own, other = errors(1), {"constant": np.rad2deg(constant), "shuffled": np.rad2deg(shuffled)}
    median = {"better": "lower", "unit": "degrees", "statistic": _median}
    return {
        "azimuth_median_deg": score_of(own, baselines=other, **median),  # type: ignore[arg-type]
        "acc30": score_of(own < 30, baselines={k: v < 30 for k, v in other.items()}, unit="share"),
        "azimuth_mod180_deg": score_of(errors(2), baselines={"chance": 45.0}, **median),  # type: ignore[arg-type]
        "mirrored_deg": score_of(
            errors(1, True), better="higher", unit="degrees", statistic=_median, note="should be high"
        ),
    }


def azimuth_correlation(predicted: Any, true: Any) -> Score:
    """Correlation of azimuths (N,), each measured from its own mean direction: below 0 for a mirrored solution."""
    rows = []
    for angles in (np.asarray(predicted, np.float64), np.asarray(true, np.float64)):
        middle = np.angle(np.exp(1j * angles).mean())
        rows.append((angles - middle + np.pi) % (2 * np.pi) - np.pi)
    both = np.stack(rows, 1)
    return score_of(both, unit="correlation", statistic=_correlation, baselines={"mirrored": -_correlation(both), "constant": 0.0})


def _correlation(rows: Array) -> float:
    spread = rows.std(0)
    return float(np.corrcoef(rows.T)[0, 1]) if spread.min() > 0 else 0.0


def circular_correlation(predicted: Any, true: Any) -> Score:
    """Correlation of azimuths (N,) all around the circle, where no direction is the middle: below 0 for a mirrored solution.

    Sum over all pairs of sin(p_i - p_j) sin(t_i - t_j), over the root of the sums of both squares (Fisher and Lee 1983); offsets do not
    matter.
    """
    both = np.stack([np.asarray(predicted, np.float64), np.asarray(true, np.float64)], 1)
    baselines = {"mirrored": -_circular(both), "constant": 0.0}
    return score_of(both, unit="correlation", statistic=_circular, baselines=baselines)


def _circular(rows: Array) -> float:
    """The sums over pairs from sums over pictures; 0 where one of the two does not vary."""
    (ca, cb), (sa, sb) = np.cos(rows).T, np.sin(rows).T
    top = (ca * cb).sum() * (sa * sb).sum() - (ca * sb).sum() * (sa * cb).sum()
    spread = [len(rows) ** 2 - np.cos(2 * x).sum() ** 2 - np.sin(2 * x).sum() ** 2 for x in rows.T]
    return float(4 * top / np.sqrt(spread[0] * spread[1])) if min(spread) > 1e-9 * len(rows) ** 2 else 0.0


def rotation_scores(predicted: Any, true: Any) -> dict[str, Score]:
    """Median geodesic error of rotations (N, 3, 3) on the second half after a common frame from the first; baseline: one for all."""
    predicted, true = _rotations(predicted, "predicted"), _rotations(true, "true")
    fit, test = halves(len(true))
    frame = common_frame(predicted[fit], true[fit])
    same = np.broadcast_to(np.eye(3), predicted.shape)
    still = common_frame(same[fit], true[fit])
    own = np.rad2deg(geodesic_rad(predicted[test] @ frame, true[test]))
    constant = np.rad2deg(geodesic_rad(still, true[test]))
    return {
        "rotation_median_deg": score_of(
            own, better="lower", unit="degrees", statistic=_median, baselines={"constant": constant}
        )
    }


def _median(values: Array) -> float:
    return float(np.median(values))


def _rotations(found: Any, name: str) -> Array:
    array = np.asarray(found, np.float64)
    if array.ndim != 3 or array.shape[1:] != (3, 3) or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite rotations (N, 3, 3), got {array.shape}")
    return array
