"""Counts of positive products against float64, on rows made to have products at and around zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selftaught.nets import positive_products as pp


def exact(rows: Tensor) -> Tensor:
    return (rows.double() @ rows.double().T > 0).sum(1) - 1


def made(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def nearly_orthogonal(n: int, width: int, size: float) -> Tensor:
    """Rows whose product with row 0 is about `size` of their lengths, of either sign."""
    rows = made(n, width)
    first = rows[0].double() / rows[0].double().norm()
    rest = rows[1:].double()
    rest = rest - (rest @ first)[:, None] * first
    rest = rest / rest.norm(dim=1, keepdim=True) + size * made(n - 1, 1, 1).double() * first
    return torch.cat([rows[:1], rest.float()])


CASES = {
    "noise": made(300, 384),
    "one block and a bit": made(pp._BLOCK_ROWS + 1, 24),
    "several blocks": made(900, 64),
    "within the error of bf16": nearly_orthogonal(400, 384, 1e-3),
    "within the error of two bf16": nearly_orthogonal(400, 384, 1e-6),
    "products of exactly zero": torch.eye(8).repeat(30, 1) * made(240, 1).abs(),
    "opposite rows": torch.cat([made(50, 16), -made(50, 16)]),
    "two rows": torch.tensor([[1.0, 0.0], [-1.0, 1e-3]]),
    "of all sizes": made(200, 48) * torch.logspace(-12, 12, 200)[:, None],
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_float64(name: str, bf16: bool) -> None:
    rows = CASES[name]
    unit = torch.nn.functional.normalize(rows.double(), dim=1).float()
    assert torch.equal(pp._counts_in_blocks(rows, unit, bf16=bf16), exact(rows))


@pytest.mark.parametrize("name", CASES)
def test_other_devices_count_the_same(name: str) -> None:
    rows = CASES[name]
    unit = torch.nn.functional.normalize(rows.double(), dim=1).float()
    assert torch.equal(pp._counts_at_once(rows, unit), exact(rows))
    assert torch.equal(pp.positive_counts(rows, unit), exact(rows))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("width", [16, 384, 2048])
def test_errors_stay_within_the_tolerance(bf16: bool, width: int) -> None:
    unit = torch.nn.functional.normalize(made(200, width).double(), dim=1)
    left, right = pp._halves(unit.float()) if bf16 else (unit.float(), unit.float())
    error = (left.double() @ right.double().T - unit @ unit.T).abs().max()
    assert error <= pp.tolerance(width, bf16) and pp.tolerance(width, bf16) < 1e-3
    fast = (left @ right.T).double()
    signs = (fast > 0) == (unit @ unit.T > 0)
    assert bool((signs | (fast.abs() <= pp.tolerance(width, bf16))).all())


def test_signs_of_single_products() -> None:
    rows = nearly_orthogonal(300, 64, 1e-7)
    unit = torch.nn.functional.normalize(rows.double(), dim=1).float()
    found = pp.positive_products(rows, rows[0].double(), unit @ unit[0], torch.ones(()))
    assert torch.equal(found, rows.double() @ rows[0].double() > 0)
