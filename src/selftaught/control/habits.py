"""What tends to be done: the keys of a model, how often one follows another, and the futures that this gives.

A key is a code with a shift. Models whose codes are all have one key per code; for models with shifts the shifts of parsed clips are
sorted into a few. Counts are smoothed, so that nothing is impossible: p(k | j) = (n_jk + V p(k)) / (n_j + V), p(k) = (n_k + 1) / (n + V).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.control.stepping import pick, rollout
from selftaught.core.errors import ConfigError, RunError
from selftaught.method import Act, Actions, ActionSpace, Controls, Played

MAX_KEYS = 24
RARE = 0.004
"""A key that was done in a smaller share of all transitions is left out where codes and shifts are combined."""


@dataclass(frozen=True)
class Keys:
    """V actions that a person or a planner can choose from."""

    codes: Tensor
    """(V,) int64."""
    shifts: Tensor
    """(V, 2) in units of half the frame."""

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def of_space(cls, space: ActionSpace) -> Keys:
        """One key per code, without shift: what can be said of a model whose actions were never looked at."""
        return cls(torch.arange(space.codes), torch.zeros(space.codes, 2))

    @classmethod
    def fit(cls, space: ActionSpace, actions: Actions, ways: int = 5, seed: int = 0) -> Keys:
        """The keys of parsed actions: every code, or the usual pairs of a code and one of `ways` shifts (k-means), the most usual first."""
        if space.shift_low is None:
            return cls.of_space(space)
        from selftaught.measure.actions import k_means_codes

        shifts, codes = actions.shifts.reshape(-1, 2), actions.codes.reshape(-1)
        labels = torch.from_numpy(k_means_codes(shifts.numpy(), ways, seed).astype(np.int64))
        means = torch.stack([shifts[labels == w].mean(0) for w in range(int(labels.max()) + 1)])
        pairs, counts = torch.unique(codes * len(means) + labels, return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        usual = counts[order] >= RARE * len(codes)
        chosen = pairs[order[usual] if bool(usual.any()) else order][:MAX_KEYS]  # of very many codes each is rare
        return cls(chosen // len(means), means[chosen % len(means)])

    def of(self, actions: Actions) -> Tensor:
        """(B, n) the nearest key of each action: the one with its code and the nearest shift, else the one with the nearest shift."""
        other = (actions.codes[..., None] != self.codes).float() * 100
        away = (actions.shifts[..., None, :] - self.shifts).norm(dim=-1)
        return (other + away).argmin(-1)

    def actions(self, keys: Tensor, ground: Tensor | None = None) -> Actions:
        """Keys (B, n) as actions; the background stays unless its motion (B, n, 2) is given."""
        if keys.numel() and not 0 <= int(keys.min()) <= int(keys.max()) < len(self):
            raise ConfigError(f"There are {len(self)} actions, numbered from 0.", expected=f"0 to {len(self) - 1}")
        return Actions(self.shifts[keys], torch.zeros(*keys.shape, 2) if ground is None else ground, self.codes[keys])

    def act(self, keys: Tensor) -> Act:
        """Keys (B,) as one step."""
        return Act(self.codes[keys], self.shifts[keys], torch.zeros(len(keys), 2))


@dataclass(frozen=True)
class Habits:
    """Keys, and how often they are done: what a model of actions needs to say what comes next."""

    keys: Keys
    unigram: Tensor
    """(V,) sums to 1."""
    bigram: Tensor
    """(V, V): row j is what follows key j."""

    @classmethod
    def fit(cls, keys: Keys, done: Tensor) -> Habits:
        """From parsed keys (B, n) of clips."""
        V = len(keys)
        unigram = (torch.bincount(done.flatten(), minlength=V).float() + 1) / (done.numel() + V)
        pairs = torch.bincount((done[:, :-1] * V + done[:, 1:]).flatten(), minlength=V * V).view(V, V).float()
        return cls(keys, unigram, (pairs + V * unigram) / (pairs.sum(1, keepdim=True) + V))

    @classmethod
    def unknown(cls, space: ActionSpace) -> Habits:
        """Every code alike."""
        keys = Keys.of_space(space)
        even = torch.full((len(keys),), 1 / len(keys))
        return cls(keys, even, even.expand(len(keys), -1).clone())

    def surprise(self, done: Tensor) -> dict[str, float]:
        """Mean negative log-likelihood in nats of each key (B, n) given the one before: by bigram, by unigram, and by knowing nothing."""
        before, after = done[:, :-1], done[:, 1:]
        return {
            "bigram": float(-self.bigram[before, after].log().mean()), "unigram": float(-self.unigram[after].log().mean()),
            "uniform": float(np.log(len(self.keys))),
        }  # fmt: skip

    def sample(self, last: Tensor | None, steps: int, count: int, seed: int) -> Tensor:
        """(count, steps) keys: each drawn after the one before, the first after `last` (a scalar key), or by how usual it is."""
        draw = torch.Generator().manual_seed(seed)
        out: list[Tensor] = []
        for _ in range(steps):
            p = self.bigram[out[-1]] if out else (self.unigram if last is None else self.bigram[last]).expand(count, -1)
            out.append(torch.multinomial(p, 1, generator=draw)[:, 0])
        return torch.stack(out, 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "codes": self.keys.codes.tolist(), "shifts": self.keys.shifts.tolist(), "unigram": self.unigram.tolist(),
            "bigram": self.bigram.tolist(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any], space: ActionSpace) -> Habits:
        """Read what `to_json` wrote; raises RunError for anything else."""
        try:
            codes = torch.tensor(values["codes"], dtype=torch.int64)
            shifts, unigram, bigram = (
                torch.tensor(values[k], dtype=torch.float32) for k in ("shifts", "unigram", "bigram")
            )
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise RunError(
                "The habits of this run are damaged.", why=str(error), do="Remove habits.json; it is made again."
            ) from error
        V = len(codes) if codes.ndim == 1 else -1
        fits = V > 0 and shifts.shape == (V, 2) and unigram.shape == (V,) and bigram.shape == (V, V)
        numbers = fits and bool(torch.isfinite(shifts).all()) and bool((unigram > 0).all()) and bool((bigram > 0).all())
        if not numbers or int(codes.min()) < 0 or int(codes.max()) >= space.codes:
            raise RunError("The habits of this run do not fit its model.", do="Remove habits.json; it is made again.")
        return cls(Keys(codes, shifts), unigram, bigram)


def futures(
    model: Controls, state: Any, habits: Habits, steps: int, count: int, seed: int = 0, last: Tensor | None = None
) -> Played:
    """`count` futures (count, steps + 1, ...) of one state under actions that are drawn by habit: what may come, without being told."""
    keys = habits.sample(last, steps, count, seed)
    return rollout(model, pick(state, torch.zeros(count, dtype=torch.int64)), habits.keys.actions(keys))


def diversity(frames: Tensor) -> float:
    """Mean absolute difference between the last frames of each two futures (count, T, 3, H, W)."""
    last = frames[:, -1].flatten(1)
    n = len(last)
    if n < 2:
        return 0.0
    return float(torch.cdist(last, last, p=1).sum() / (n * (n - 1) * last.shape[1]))
