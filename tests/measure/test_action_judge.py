"""The judge reads true actions, and nothing where it was taught nonsense; a look that leaks is found and measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.measure.action_judge import look_share, taught


def moving_squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips uint8 (count, 5, 3, 24, 32) of a square of any colour on any grey that goes right, left, down or stays: actions 0 to 3."""
    rng = np.random.default_rng(seed)
    clips, actions = np.empty((count, 5, 24, 32, 3), np.uint8), rng.integers(0, 4, (count, 4))
    clips[:] = rng.integers(0, 256, (count, 1, 1, 1, 1))
    for clip, done in zip(clips, actions, strict=True):
        colour, at = rng.integers(0, 256, 3), rng.integers(6, 14, 2)
        for t in range(5):
            if t:
                at = at + np.array([(0, 3), (0, -3), (3, 0), (0, 0)])[done[t - 1]]
            y, x = np.clip(at, 0, (18, 26))
            clip[t, y : y + 6, x : x + 6] = colour
    return torch.from_numpy(clips).permute(0, 1, 4, 2, 3), torch.from_numpy(actions)


def test_a_judge_reads_what_it_never_saw_and_learns_nothing_from_nonsense() -> None:
    clips, actions = moving_squares(200, 0)
    test, true = moving_squares(40, 1)
    judge = taught(clips, actions, 4, steps=90)
    told = float((judge.read(test.float() / 255) == true.numpy()).mean())
    assert told > 0.75, told
    still = test[:, :1].expand(-1, 5, -1, -1, -1).float() / 255
    assert (judge.read(still) == 3).mean() > 0.75, "where nothing is done it reads that nothing is done"
    shuffled = actions.flatten()[torch.randperm(actions.numel(), generator=torch.Generator().manual_seed(0))].view_as(actions)
    fooled = taught(clips, shuffled, 4, steps=90)
    assert float((fooled.read(test.float() / 255) == true.numpy()).mean()) < 0.45


def test_a_judge_is_the_same_for_the_same_seed_and_leaves_the_random_numbers_alone() -> None:
    clips, actions = moving_squares(8, 0)
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    one, two = (taught(clips, actions, 4, steps=2, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.rand(3), want)
    with pytest.raises(ValueError, match="between each two"):
        taught(clips, actions[:, 1:], 4)


def test_a_planted_look_is_found() -> None:
    draw = torch.Generator().manual_seed(0)
    truth, source, stranger, noise = (torch.rand(3, 2, 3, 24, 32, generator=draw) for _ in range(4))
    made = truth + 0.3 * (source - truth)
    assert look_share(made, truth, source) == pytest.approx(0.3, abs=1e-6)
    assert look_share(truth, truth, source) == pytest.approx(0.0, abs=1e-12)
    gap = look_share(made, truth, source) - look_share(made, truth, stranger)
    assert (gap > 0.1).all(), "the look that was planted, more than one that was not"
    honest = truth + 0.1 * (noise - 0.5)
    assert (np.abs(look_share(honest, truth, source) - look_share(honest, truth, stranger)) < 0.05).all()
    assert np.isnan(look_share(made, truth, truth)).all()
