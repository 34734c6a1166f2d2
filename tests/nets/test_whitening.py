"""Whitened embeddings: no correlations are left, few pictures are no trouble, and it is done when the training is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selftaught.core import checkpoint
from selftaught.loading import load_method
from selftaught.nets.whitening import WHITEN_FLOOR, Whitening
from selftaught.train import resume, train


def correlated(count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=draw) @ torch.randn(6, 6, generator=draw) + 3


def test_the_covariance_becomes_the_identity_where_there_is_signal() -> None:
    x = correlated(4000)
    whitening = Whitening(6)
    torch.testing.assert_close(whitening(x), x)
    whitening.fit(x)
    z = whitening(x)
    values = torch.linalg.eigvalsh(x.T.double().cov())
    expected = values / (values + WHITEN_FLOOR * values[-1])
    torch.testing.assert_close(z.T.double().cov(), expected.diag(), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(6), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rows", [torch.ones(5, 6), torch.ones(1, 6)])
def test_nothing_to_learn_changes_nothing(rows: torch.Tensor) -> None:
    whitening = Whitening(6)
    whitening.fit(rows)
    assert torch.equal(whitening.matrix, torch.eye(6)) and torch.equal(whitening.mean, torch.zeros(6))


def test_fewer_pictures_than_dimensions_stay_finite() -> None:
    whitening = Whitening(6)
    whitening.fit(correlated(3))
    assert torch.isfinite(whitening(correlated(50))).all()


def test_it_is_fixed_at_the_end_and_again_after_more_training(tmp_path: Path) -> None:
    train("simclr", "sample:things:64", tmp_path / "run", size="tiny", steps=3, quiet=True)
    first = load_method(tmp_path / "run")
    assert not torch.equal(first.whitening.matrix, torch.eye(first.backbone.width))
    _, state = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    assert state["settled"]
    resume(tmp_path / "run", steps=5, quiet=True)
    second = load_method(tmp_path / "run")
    assert not torch.equal(first.whitening.matrix, second.whitening.matrix)
    train("simclr", "sample:things:64", tmp_path / "other", size="tiny", steps=3, quiet=True)
    again = load_method(tmp_path / "other")
    assert np.array_equal(first.whitening.matrix, again.whitening.matrix), "the same run gives the same bits"
