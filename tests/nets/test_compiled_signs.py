"""Compiled loops against float64 and against the same steps without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_positive_products import CASES, exact, made

from selftaught.core.errors import NumericError
from selftaught.nets import compiled
from selftaught.nets import positive_products as pp
from selftaught.segmentation import lost

pytestmark = pytest.mark.skipif(not compiled.is_there(), reason="numba is not installed")


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pp, "_MANY_COMPILED", 2.0)
    rows = CASES[name]
    found = pp.counts_compiled(pp.unit_halves(rows.T.contiguous()))
    assert found is not None and (found == exact(rows).numpy()).all()


@pytest.mark.parametrize("width", [3, 16, 384, 2048])
@pytest.mark.parametrize("kind", ["noise", "one sign", "few large"])
def test_errors_stay_within_the_tolerance(width: int, kind: str) -> None:
    rows = made(200, width)
    rows = rows.abs() if kind == "one sign" else rows**7 if kind == "few large" else rows
    found = pp.unit_halves(rows.T.contiguous())
    half, length, error = found.half, torch.from_numpy(found.length), found.error
    assert (found.rows == rows.numpy()).all() and found.most == rows.abs().max()
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    assert torch.allclose(length, rows.double().norm(dim=1), rtol=1e-12)
    assert torch.equal(half, (rows * (1 / length[:, None]).float()).bfloat16())
    off = (half.double() @ half.double().T - unit @ unit.T).abs().max()
    assert off <= pp.half_tolerance(width, error) < 2.0**-6
    fast = (half @ half.T).double()
    near = pp._bits_of(pp.half_tolerance(width, error), bf16=True)
    sure = (half @ half.T).view(torch.int16).numpy().astype(np.int32) & 0x7FFF
    assert bool((((fast > 0) == (unit @ unit.T > 0)) | torch.from_numpy(sure <= near)).all())


def test_many_doubtful_products_are_left_to_three_of_bf16() -> None:
    rows = torch.randn(600, 2048, generator=torch.Generator().manual_seed(0))
    assert pp.counts_compiled(pp.unit_halves(rows.T.contiguous())) is None
    keys = rows.T.reshape(1, 2048, 20, 30)
    assert torch.equal(lost.lost_masks(keys).degree.flatten(), exact(rows))


@pytest.mark.parametrize("k", [1, 7, 100, 5000])
@pytest.mark.parametrize("shape", [(1, 384, 30, 30), (3, 24, 17, 26), (1, 5, 2, 400)])
def test_lost_gives_the_same_masks(k: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(k)
    monkeypatch.setattr(lost, "tiles_bf16", lambda: True)
    keys = torch.randn(shape, generator=generator) + 0.7 * torch.randn(1, shape[1], 1, 1, generator=generator)
    keys[:, :, : shape[2] // 2, : shape[3] // 3] += torch.randn(1, shape[1], 1, 1, generator=generator)
    monkeypatch.setattr(lost, "_COMPILED_PRODUCTS", 0)
    assert lost._compiled(keys, k) is not None
    found = lost.lost_masks(keys, k)
    monkeypatch.setattr(lost, "_COMPILED_PRODUCTS", 2**62)
    plain = lost.lost_masks(keys, k)
    for name in ("masks", "degree", "seed"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name
    assert [part.dtype for part in found] == [part.dtype for part in plain]
    torch.testing.assert_close(found.maps, plain.maps, rtol=1e-4, atol=float(plain.maps.abs().max()) * 1e-5)
    small = lost._compiled(keys[:, :, :2, :2].double(), k)
    assert small is None, "too few products"


def test_features_whose_patches_lie_together_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = made(30 * 20, 24).T.reshape(1, 24, 30, 20)
    together = keys.contiguous(memory_format=torch.channels_last)
    assert pp.unit_halves(together[0].flatten(1)).rows.ctypes.data == together.data_ptr()
    monkeypatch.setattr(lost, "_COMPILED_PRODUCTS", 0)
    monkeypatch.setattr(lost, "tiles_bf16", lambda: True)
    first, second = lost.lost_masks(keys), lost.lost_masks(together)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_odd_features_are_left_to_the_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, "_COMPILED_PRODUCTS", 0)
    monkeypatch.setattr(lost, "tiles_bf16", lambda: True)
    keys = made(12, 30).reshape(1, 12, 5, 6)
    for value in (torch.nan, torch.inf):
        bad = keys.clone()
        bad[0, 3, 2, 2] = value
        with pytest.raises(NumericError, match="NaN"):
            lost.lost_masks(bad)
    for size in (1e-30, 1e30):
        assert lost._compiled(keys * size, 5) is None
        assert torch.equal(lost.lost_masks(keys * size).masks, lost.lost_masks(keys).masks)
