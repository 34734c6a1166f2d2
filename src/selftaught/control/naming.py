"""Names for actions from a few labelled transitions: which true action does a code (and a shift) stand for, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.method import Act, Actions


@dataclass(frozen=True)
class Names:
    """A map between discovered actions and L labels, counted on a few transitions.

    score(label | code, shift) = log p(code | label) - |shift - mean_label|^2 / (2 s^2), with a little more than was counted for every code.
    """

    log_codes: Tensor
    """(L, K) log p(code | label); rows of labels that were never seen are minus infinity."""
    shifts: Tensor
    """(L, 2) mean shifts."""
    spread: float
    """s: typical distance of a shift to its label's mean."""

    @classmethod
    def fit(
        cls, actions: Actions, labels: Tensor, codes: int, count: int | None = None, vectors: Tensor | None = None
    ) -> Names:
        """From n transitions with labels (n,); `count` is the number L of labels.

        With the codes' `vectors` (K, D) a label is lent to codes beside the labelled one, because a few labels do not reach every code:
        a count of code j counts exp(-|v_k - v_j|^2 / (2 h^2)) for code k, where h is the typical distance to the nearest other code.
        """
        found, k = actions.shifts.reshape(-1, 2), actions.codes.reshape(-1)
        if len(k) != labels.numel() or not len(k):
            raise ConfigError(
                f"{len(k)} transitions and {labels.numel()} labels.",
                expected="one label for each of at least one transition",
            )
        labels = labels.reshape(-1)
        L = int(count or labels.max() + 1)
        table = torch.zeros(L, codes).index_put_((labels, k), torch.ones(len(k)), accumulate=True)
        seen = table.sum(1, keepdim=True)
        if vectors is not None:
            apart = torch.cdist(vectors.float(), vectors.float())
            h = float((apart + torch.eye(codes) * 1e9).amin(1).median().clamp(min=1e-6))
            table = table @ torch.exp(-apart.square() / (2 * h * h))
        means = torch.zeros(L, 2).index_add_(0, labels, found) / seen.clamp(min=1)
        spread = float((found - means[labels]).square().sum(1).mean().sqrt().clamp(min=0.02))
        floor = 0.1 if vectors is None else 1e-4
        smooth = ((table + floor) / (table.sum(1, keepdim=True) + floor * codes)).log()
        return cls(torch.where(seen > 0, smooth, torch.tensor(float("-inf"))), means, spread)

    def label(self, actions: Actions) -> Tensor:
        """The likeliest label of each action, in the shape of its codes."""
        away = (actions.shifts[..., None, :] - self.shifts).square().sum(-1)
        return (self.log_codes.T[actions.codes] - away / (2 * self.spread**2)).argmax(-1)

    def act(self, labels: Tensor) -> Act:
        """What to do for labels (B,): the code that most stands for each rather than for others, and its mean shift."""
        p = self.log_codes.exp()
        share = p * p / p.sum(0, keepdim=True)  # often under this label, and seldom under others
        return Act(share.argmax(1)[labels], self.shifts[labels], torch.zeros(len(labels), 2))

    def known(self) -> list[int]:
        """Labels that were seen."""
        return torch.nonzero(torch.isfinite(self.log_codes).all(1)).flatten().tolist()


def few(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Indices of `count` transitions of labels (N,): one of every label first, as a person who labels would take them."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    chosen = order[draw.permutation(first)][:count]
    rest = order[~np.isin(order, chosen)]
    return np.concatenate([chosen, rest[: count - len(chosen)]])
