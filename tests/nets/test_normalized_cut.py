"""The second eigenvector against scipy's dense generalised solver, closed forms, and graphs without a unique cut."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError, NumericError
from selftaught.nets.normalized_cut import DENSE, FLOAT32, FLOAT64, second_eigenvector


def official(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues 2 and 3 and the second eigenvector, by the published call: dense, generalised, float64."""
    d = np.diag(weight.sum(1))
    values, vectors = scipy.linalg.eigh(d - weight, d, subset_by_index=[1, min(2, len(d) - 1)])
    return values, vectors[:, 0]


def weights(joined: Tensor, eps: float) -> np.ndarray:
    return np.where(joined.numpy(), 1.0, eps)


def blocks(*sizes: int) -> Tensor:
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return label[:, None] == label[None, :]


def random_graph(n: int, seed: int, parts: int = 4, noise: float = 0.8) -> Tensor:
    """Boolean graph of noisy directions around a few centres."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(parts, 32))[rng.integers(0, parts, n)] + noise * rng.normal(size=(n, 32))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    return torch.from_numpy(f @ f.T > 0.2)


def same_up_to_sign(a: np.ndarray, b: np.ndarray, tol: float) -> bool:
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return bool(min(np.abs(a - b).max(), np.abs(a + b).max()) <= tol)


@pytest.mark.parametrize("dense_patches", [0, 100])
def test_two_blocks_have_the_closed_form(dense_patches: int) -> None:
    found = second_eigenvector(blocks(4, 12)[None], 1e-5, dense_patches=dense_patches)
    x = found.x[0].double()
    tol = 1e-9 if dense_patches else 1e-6  # float32 products know 1 - mu to about 1e-7
    assert float(found.lambda2[0]) == pytest.approx(3.333242e-5, abs=tol)
    assert float(x[0] / x[-1]) == pytest.approx(-8.99976, rel=1e-4)
    assert float(x[:4].std()) < 1e-5 and float(x[4:].std()) < 1e-5
    assert float(found.gap[0]) == pytest.approx(1.0, abs=1e-4)
    assert not found.repeated[0]


@pytest.mark.parametrize(("n1", "n2", "eps"), [(3, 5, 1e-5), (7, 30, 1e-3), (40, 90, 0.01), (1, 9, 1e-5)])
def test_two_blocks_of_any_size(n1: int, n2: int, eps: float) -> None:
    found = second_eigenvector(blocks(n1, n2)[None], eps)
    d1, d2 = n1 + eps * n2, n2 + eps * n1
    assert float(found.lambda2[0]) == pytest.approx(eps * (n2 / d1 + n1 / d2), abs=1e-6)
    assert float(found.x[0, 0] / found.x[0, -1]) == pytest.approx(-(n2 * d2) / (n1 * d1), rel=1e-3)


@pytest.mark.parametrize("n", [2, 3, 5, 36, 100, 101, 144, 150])
def test_boolean_graphs_equal_the_dense_solver(n: int) -> None:
    graphs = torch.stack([random_graph(n, seed) for seed in range(4)])
    found = second_eigenvector(graphs, 1e-5)
    for graph, x, lambda2, residual in zip(graphs, found.x, found.lambda2, found.residual, strict=True):
        values, expected = official(weights(graph, 1e-5))
        assert float(lambda2) == pytest.approx(values[0], abs=2e-6)
        assert float(residual) <= 1e-4
        if len(values) == 1 or values[1] - values[0] > 1e-6:
            assert same_up_to_sign(x.numpy(), expected, 2e-3)
            mask, truth = x.numpy() > x.numpy().mean(), expected > expected.mean()
            assert (mask == truth).all() or (mask != truth).all()


@pytest.mark.parametrize("dense_patches", [0, 1000])
def test_weighted_graphs_equal_the_dense_solver(dense_patches: int) -> None:
    f = torch.randn(3, 120, 6, generator=torch.Generator().manual_seed(0))
    graphs = torch.bmm(f, f.mT).clamp_min(0)
    found = second_eigenvector(graphs, dense_patches=dense_patches)
    for graph, x, lambda2, gap in zip(graphs, found.x, found.lambda2, found.gap, strict=True):
        values, expected = official(graph.double().numpy())
        assert float(lambda2) == pytest.approx(values[0], abs=1e-6)
        assert float(gap) == pytest.approx(values[1] - values[0], rel=0.05, abs=1e-6)
        assert same_up_to_sign(x.numpy(), expected, 2e-3)
        assert float((graph.double().sum(1) * x.double() ** 2).sum()) == pytest.approx(1.0, abs=1e-5)


def test_eps_is_the_weight_of_a_missing_edge_for_boolean_and_float_alike() -> None:
    graph = random_graph(130, 3)
    boolean = second_eigenvector(graph[None], 0.01)
    zero_one = second_eigenvector(graph[None].float(), 0.01)
    explicit = second_eigenvector(torch.where(graph, 1.0, 0.01)[None])
    assert torch.equal(boolean.x, zero_one.x)
    assert same_up_to_sign(boolean.x[0].numpy(), explicit.x[0].numpy(), 1e-3)
    assert float(boolean.lambda2[0]) == pytest.approx(float(explicit.lambda2[0]), abs=1e-6)


def test_a_result_does_not_depend_on_the_batch() -> None:
    graphs = torch.stack([random_graph(144, seed, parts=2 + seed) for seed in range(5)])
    together = second_eigenvector(graphs, 1e-5)
    for index in range(5):
        alone = second_eigenvector(graphs[index : index + 1], 1e-5)
        assert same_up_to_sign(alone.x[0].numpy(), together.x[index].numpy(), 1e-4)
        assert int(alone.stage[0]) == int(together.stage[index])


def test_nearly_repeated_eigenvalues_go_to_float64_and_stay_exact() -> None:
    sizes = (60, 75, 90, 110)
    graph = blocks(*sizes)
    found = second_eigenvector(graph[None], 1e-5)
    values, expected = official(weights(graph, 1e-5))
    assert values[1] - values[0] < 2e-5, "the fixture is meant to be hard"
    assert int(found.stage[0]) in (FLOAT64, DENSE)
    assert float(found.lambda2[0]) == pytest.approx(values[0], abs=1e-9)
    assert same_up_to_sign(found.x[0].numpy(), expected, 1e-3)
    assert not found.repeated[0]


@pytest.mark.parametrize("dense_patches", [0, 1000])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_equal_blocks_are_reported_as_repeated(eps: float, dense_patches: int) -> None:
    found = second_eigenvector(blocks(40, 40, 40)[None], eps, dense_patches=dense_patches)
    assert found.repeated[0] and float(found.gap[0]) <= 1e-7
    assert float(found.lambda2[0]) == pytest.approx(3 * eps, abs=1e-6)
    assert torch.isfinite(found.x).all()


@pytest.mark.parametrize("dense_patches", [0, 1000])
def test_identical_patches_have_no_cut(dense_patches: int) -> None:
    found = second_eigenvector(torch.ones(1, 120, 120, dtype=torch.bool), 1e-5, dense_patches=dense_patches)
    assert found.repeated[0] and float(found.lambda2[0]) == pytest.approx(1.0, abs=1e-6)
    assert torch.isfinite(found.x).all()


@pytest.mark.parametrize("dense_patches", [0, 1000])
def test_a_disconnected_pair_is_cut_at_zero_cost(dense_patches: int) -> None:
    found = second_eigenvector(blocks(30, 100)[None], 0.0, dense_patches=dense_patches)
    side = found.x[0] > 0
    assert float(found.lambda2[0]) == pytest.approx(0.0, abs=1e-6) and not found.repeated[0]
    assert side[:30].all() != side[30:].all() and side[:30].any() != side[30:].any()


def test_an_anticorrelated_pair_keeps_its_large_eigenvalue() -> None:
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    found = second_eigenvector(swap)
    assert float(found.lambda2[0]) == pytest.approx(2.0)
    assert float(found.x[0, 0]) == pytest.approx(-float(found.x[0, 1]))
    assert torch.isinf(found.gap[0])


def test_settled_graphs_say_where() -> None:
    stages = second_eigenvector(torch.stack([random_graph(144, 1), blocks(40, 50, 54)]), 1e-5).stage.tolist()
    assert stages[0] == FLOAT32 and stages[1] in (FLOAT64, DENSE)
    assert second_eigenvector(random_graph(50, 1)[None], 1e-5).stage.tolist() == [DENSE]


def test_an_empty_batch_gives_an_empty_result() -> None:
    found = second_eigenvector(torch.zeros(0, 120, 120, dtype=torch.bool), 1e-5)
    assert found.x.shape == (0, 120) and found.lambda2.shape == (0,)


def test_refuses_what_has_no_cut() -> None:
    with pytest.raises(ConfigError, match="one patch"):
        second_eigenvector(torch.ones(1, 1, 1))
    with pytest.raises(ConfigError, match="shape"):
        second_eigenvector(torch.ones(3, 4))
    with pytest.raises(ConfigError, match="float64"):
        second_eigenvector(torch.ones(1, 3, 3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="eps"):
        second_eigenvector(torch.ones(1, 3, 3, dtype=torch.bool), -0.1)
    broken = torch.ones(2, 3, 3)
    broken[1, 0, 1] = torch.nan
    with pytest.raises(NumericError, match="graph 1"):
        second_eigenvector(broken)
    lonely = torch.ones(1, 3, 3)
    lonely[0, 2] = lonely[0, :, 2] = 0
    with pytest.raises(NumericError, match="no positive edge"):
        second_eigenvector(lonely)
