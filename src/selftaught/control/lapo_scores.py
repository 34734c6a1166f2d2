"""What a LAPO run is measured by on test clips; truth is read here and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.control.glass_scores import action_scores, code_scores, parse_all, prediction_scores, told
from selftaught.data.clip_truth import ClipTest, ClipTruth
from selftaught.measure import actions as act
from selftaught.measure.score import Score, bootstrap_ci


def lapo_scores(model: Any, data: ClipTest) -> dict[str, Score]:
    """All scores of a model on test clips; those that need truth only where it is known."""
    found = parse_all(model, data)
    scores = prediction_scores(model, data, found)
    scores |= code_scores(model, data, found)
    if data.truth is not None:
        scores |= action_scores(model, data.truth, found, data.seed)
        scores |= move_scores(data.truth, found["codes"], model.config.codes, data.seed)
    # Masks are no mask of the agent in the first frame, so its place is not scored.
    return {
        name: told(score)
        for name, score in scores.items()
        if np.isfinite(score.value) and not name.startswith("centre_error")
    }


def move_scores(truth: ClipTruth, codes: np.ndarray, K: int, seed: int) -> dict[str, Score]:
    """Codes against true motion: AMI, and the share of transitions whose way a table of the other half of the clips tells from the code."""
    g = act.grouping(truth.moves, codes, seed)
    N = len(codes)
    half = np.arange(N) % 2
    right = np.zeros(codes.shape)
    usual = np.zeros(codes.shape)
    for k in (0, 1) if N > 1 else ():
        other, mine = half != k, half == k
        count = np.zeros((K, truth.moves.max() + 1))
        np.add.at(count, (codes[other].ravel(), truth.moves[other].ravel()), 1)
        right[mine] = count.argmax(1)[codes[mine]] == truth.moves[mine]
        usual[mine] = truth.moves[mine] == count.sum(0).argmax()
    nan = (float("nan"), float("nan"))
    return {
        "ami_move": Score(g.ami, N, nan, "higher", "AMI", {"shuffled": g.permuted_ami}, "codes against left, right, up, down, stay"),
        "move_decoded": Score(
            float(right.mean()), N, bootstrap_ci(right.mean(1)), "higher", "share right", {"most_frequent": float(usual.mean())},
            "the way of the code's majority on the other half of the clips",
        ),
    }  # fmt: skip
