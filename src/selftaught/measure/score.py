"""A score: a value with its unit, count, 95 % interval, direction and the baselines measured beside it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Statistic = Callable[[np.ndarray], float]
Better = Literal["higher", "lower"]
Interval = Literal["auto", "bootstrap", "wilson"]
_Z95 = 1.959963984540054
_CHUNK_NUMBERS = 4_000_000


@dataclass(frozen=True)
class Score:
    """One measured number: `value` in `unit` over `n` items, its 95 % interval, and the same measure of the baselines.

    `better` says which direction is good. `note` says what a reader must know (a clipped k, items left out).
    """

    value: float
    n: int
    ci95: tuple[float, float]
    better: Better = "higher"
    unit: str = ""
    baselines: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def beats(self, margin: float = 0.0) -> bool:
        """True when the value is better than every baseline by more than `margin` (False for a value that is not a
        number).
        """
        sign = 1.0 if self.better == "higher" else -1.0
        return math.isfinite(self.value) and all(
            sign * (self.value - other) > margin for other in self.baselines.values() if math.isfinite(other)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON; numbers that are not finite become None because JSON has no NaN."""
        plain = asdict(self)
        plain["value"] = _finite_or_none(self.value)
        plain["ci95"] = [_finite_or_none(bound) for bound in self.ci95]
        plain["baselines"] = {name: _finite_or_none(value) for name, value in self.baselines.items()}
        return plain


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _items(per_item: Any, what: str = "per_item") -> np.ndarray:
    """(n,) or (n, k) float64 of the items; rows with NaN (measure undefined there) are kept, infinities refused."""
    items = np.asarray(per_item)
    if items.ndim == 0:
        raise ValueError(f"{what}: expected one value (or one row) per item, got a single number")
    items = items.astype(np.float64)
    infinite = np.isinf(items.reshape(len(items), -1)).any(axis=1)
    if infinite.any():
        raise ValueError(f"{what}[{int(np.argmax(infinite))}]: expected finite numbers, got an infinite one")
    return items


def _defined(items: np.ndarray) -> np.ndarray:
    return ~np.isnan(items.reshape(len(items), -1)).any(axis=1)


def _mean(items: np.ndarray) -> float:
    return float(items.mean())


def _resampled(items: list[np.ndarray], statistic: Statistic | None, n_boot: int, seed: int) -> np.ndarray:
    """(len(items), n_boot) statistic of resamples; every array of the list is resampled with the same indices."""
    n = len(items[0])
    rng = np.random.default_rng(seed)
    values = np.empty((len(items), n_boot))
    chunk = max(1, _CHUNK_NUMBERS // n)
    for start in range(0, n_boot, chunk):
        stop = min(start + chunk, n_boot)
        picks = rng.integers(0, n, size=(stop - start, n))
        for row, array in enumerate(items):
            if statistic is None:
                values[row, start:stop] = array[picks].mean(axis=1)
            else:
                values[row, start:stop] = [statistic(array[pick]) for pick in picks]
    return values


def bootstrap_ci(
    per_item: Any, n_boot: int = 1000, seed: int = 0, statistic: Statistic | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over items (Efron 1979), a pure function of its arguments.

    `per_item` is (n,), or (n, k) with a `statistic` that maps resampled rows to one number; without it the mean is
    taken. Rows with NaN are left out; with no row left both bounds are NaN. Note that the interval has no width when
    all items are equal: for shares use `wilson_ci`.
    """
    items = _items(per_item)
    items = items[_defined(items)]
    if len(items) == 0:
        return (math.nan, math.nan)
    low, high = np.percentile(_resampled([items], statistic, n_boot, seed)[0], [2.5, 97.5])
    return (float(low), float(high))


def wilson_ci(k: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share, k successes out of n (Wilson 1927); (NaN, NaN) for n = 0, ValueError for k
    outside 0..n.
    """
    if n == 0:
        return (math.nan, math.nan)
    if not 0 <= k <= n:
        raise ValueError(f"wilson_ci: expected 0 <= k <= n, got k={k}, n={n}")
    share, z2 = k / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def jackknife_ci(rows: Any, statistic: Statistic, groups: int = 10) -> tuple[float, float]:
    """95 % interval from a delete-a-group jackknife: `groups` + 1 evaluations of an expensive statistic of (n, d) rows.

    By Student's t of `groups` - 1 degrees: a spread that was found from ten numbers is itself uncertain.

    Group g holds the rows g, g + groups, ...; used where resampling with repeats would bias the statistic (ranks).
    """
    from scipy.special import stdtrit

    array = np.asarray(rows)
    groups = min(groups, len(array))
    if groups < 2:
        return (math.nan, math.nan)
    member = np.arange(len(array)) % groups
    left_out = np.array([statistic(array[member != group]) for group in range(groups)])
    spread = math.sqrt((groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum()))
    value, reach = statistic(array), float(stdtrit(groups - 1, 0.975)) * spread
    return (value - reach, value + reach)


def difference_ci(
    a: Any, b: Any, n_boot: int = 1000, seed: int = 0, statistic: Statistic | None = None
) -> tuple[float, tuple[float, float]]:
    """Difference of a measure between two systems on the same items, a minus b, with its paired bootstrap 95 %
    interval.

    `a` and `b` have the same shape (n,) or (n, k), item i of both is the same picture; items undefined (NaN) in either
    are left out of both. ValueError when the shapes differ.
    """
    first, second = _items(a, "a"), _items(b, "b")
    if first.shape != second.shape:
        raise ValueError(
            f"difference_ci: expected the same shape for the same items, got {first.shape} and {second.shape}"
        )
    keep = _defined(first) & _defined(second)
    first, second = first[keep], second[keep]
    if len(first) == 0:
        return math.nan, (math.nan, math.nan)
    measure = statistic or _mean
    values = _resampled([first, second], statistic, n_boot, seed)
    low, high = np.percentile(values[0] - values[1], [2.5, 97.5])
    return measure(first) - measure(second), (float(low), float(high))


def score_of(
    per_item: Any,
    *,
    better: Better = "higher",
    unit: str = "",
    baselines: Mapping[str, Any] | None = None,
    note: str = "",
    statistic: Statistic | None = None,
    interval: Interval = "auto",
    n_boot: int = 1000,
    seed: int = 0,
) -> Score:
    """Score of the items: their mean, or `statistic` of them, with a 95 % interval over items.

    per_item: (n,) numbers or booleans, or (n, k) rows for a `statistic`. NaN marks an item for which the measure is not
    defined (a picture without truth): it is left out, `n` counts the others and the note says how many were left out.
    baselines: name -> a number, a Score, or per-item values that get the same statistic.
    interval: "auto" takes Wilson's for the mean of zeros and ones (it keeps a width at 0 % and 100 %), else the seeded
    bootstrap.
    """
    items = _items(per_item)
    kept = items[_defined(items)]
    if len(kept) < len(items):
        note = "; ".join(part for part in (note, f"{len(items) - len(kept)} items without truth left out") if part)
    beside = {name: _baseline_value(name, value, statistic) for name, value in (baselines or {}).items()}
    if len(kept) == 0:
        return Score(math.nan, 0, (math.nan, math.nan), better, unit, beside, note)
    shares = statistic is None and kept.ndim == 1 and bool(np.isin(kept, (0.0, 1.0)).all())
    if interval == "wilson" and not shares:
        raise ValueError("score_of: Wilson's interval is for the mean of zeros and ones, got other values")
    if interval == "wilson" or (interval == "auto" and shares):
        ci95 = wilson_ci(float(kept.sum()), len(kept))
    else:
        ci95 = bootstrap_ci(kept, n_boot=n_boot, seed=seed, statistic=statistic)
    return Score(float((statistic or _mean)(kept)), len(kept), ci95, better, unit, beside, note)


def _baseline_value(name: str, value: Any, statistic: Statistic | None) -> float:
    if isinstance(value, Score):
        return value.value
    if np.ndim(value) == 0:
        return float(value)
    items = _items(value, f"baseline {name}")
    items = items[_defined(items)]
    return float((statistic or _mean)(items)) if len(items) else math.nan


def print_scores(scores: dict[str, Score]) -> None:
    """Print a table of scores beside their baselines."""
    from rich.console import Console
    from rich.table import Table

    if not scores:
        print("nothing to score: the data hold no truth, or too little, for this method; RUN/scores.json says what was missing")
        return
    table = Table("score", "value", "95 %", "n", "better", "baselines", box=None, pad_edge=False)
    for name, score in scores.items():
        low, high = score.ci95
        baselines = ", ".join(f"{key} {value:.3f}" for key, value in score.baselines.items())
        table.add_row(
            name, f"{score.value:.3f}", f"{low:.3f} to {high:.3f}", str(score.n), score.better, baselines or "-"
        )
    # Without a terminal rich assumes 80 columns and would fold every line of the table.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
