"""The bilateral solver against recorded values, an assembled matrix, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg
from scipy import ndimage

from selftaught.core.errors import ConfigError, NumericError
from selftaught.nets import bilateral, compiled
from selftaught.nets.bilateral import BilateralGrid, bilateral_solve, largest_filled, refine

if compiled.is_there():
    from selftaught.nets import bilateral_loops


def square() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture with a coloured square, the square, and a wrong guess of it."""
    row, col = np.mgrid[:16, :16]
    inside = (row >= 4) & (row <= 11) & (col >= 5) & (col <= 12)
    picture = np.stack(
        [np.where(inside, 200, 40 + 2 * row), np.where(inside, 60, 80 + col), np.where(inside, 50, 120)], -1
    )
    guess = (row >= 3) & (row <= 9) & (col >= 5) & (col <= 11)
    return picture.astype(np.float64), inside, guess.astype(np.float64)


def noisy(seed: int = 0, height: int = 30, width: int = 41) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.random((height, width))


def assembled(picture: np.ndarray, target: np.ndarray, sigmas: tuple[float, float, float]) -> tuple[np.ndarray, int]:
    """The published procedure with slow loops, sparse matrices and scipy's conjugate gradients."""
    height, width = picture.shape[:2]
    r, g, b = np.moveaxis(picture.astype(np.float64), -1, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    u = -0.168736 * r - 0.331264 * g + 0.5 * b + 128
    v = 0.5 * r - 0.418688 * g - 0.081312 * b + 128
    cells: dict[tuple[int, ...], int] = {}
    of_pixel = []
    for i in range(height):
        for j in range(width):
            raw = (j / sigmas[0], i / sigmas[0], luma[i, j] / sigmas[1], u[i, j] / sigmas[2], v[i, j] / sigmas[2])
            of_pixel.append(cells.setdefault(tuple(int(np.floor(x)) for x in raw), len(cells)))
    size = len(cells)
    splat = sp.csr_matrix((np.ones(height * width), (of_pixel, np.arange(height * width))), (size, height * width))
    blur = sp.lil_matrix((size, size))
    for cell, index in cells.items():
        blur[index, index] = 10.0
        for axis in range(5):
            for step in (-1, 1):
                other = cells.get((*cell[:axis], cell[axis] + step, *cell[axis + 1 :]))
                if other is not None:
                    blur[index, other] = 1.0
    blur = blur.tocsr()
    n, m = np.ones(size), splat @ np.ones(height * width)
    for _ in range(10):
        n = np.sqrt(n * m / (blur @ n))
    m = n * (blur @ n)
    confidence = np.full(height * width, 0.999)
    matrix = 256 * (sp.diags(m) - sp.diags(n) @ blur @ sp.diags(n)) + sp.diags(splat @ confidence)
    right = splat @ (confidence * target.ravel())
    inverse = sp.diags(1 / np.maximum(matrix.diagonal(), 1e-5))
    start = right / (splat @ confidence)
    solved, _ = scipy.sparse.linalg.cg(matrix, right, x0=start, M=inverse, maxiter=25, rtol=1e-5)
    return (splat.T @ solved).reshape(height, width), size


def test_recorded_values_with_small_cells() -> None:
    picture, inside, guess = square()
    grid = BilateralGrid(picture, 4, 16, 8)
    out = grid.solve(guess)
    assert grid.size == 37
    assert out.mean() == pytest.approx(0.191337, abs=1e-6)
    assert out.min() == pytest.approx(0.017244, abs=1e-6)
    assert out.max() == pytest.approx(0.666052, abs=1e-6)
    assert out[8, 8] == pytest.approx(0.651341, abs=1e-6)
    assert out[11, 12] == pytest.approx(0.638128, abs=1e-6)
    assert out[0, 0] == pytest.approx(0.049873, abs=1e-6)
    assert out[3, 6] == pytest.approx(0.071267, abs=1e-6)
    assert ((out > 0.5) == inside).all()


def test_recorded_values_with_large_cells() -> None:
    picture, _, guess = square()
    grid = BilateralGrid(picture, 8, 16, 8)
    out = grid.solve(guess)
    assert grid.size == 19
    assert out[8, 8] == pytest.approx(0.650260, abs=1e-6)
    assert out[11, 12] == pytest.approx(0.650260, abs=1e-6)
    assert out[0, 0] == pytest.approx(0.044370, abs=1e-6)


@pytest.mark.parametrize("sigmas", [(4.0, 16.0, 8.0), (8.0, 32.0, 32.0), (16.0, 16.0, 8.0), (100.0, 300.0, 300.0)])
def test_equals_the_assembled_matrix(sigmas: tuple[float, float, float]) -> None:
    picture, target = noisy(height=18, width=23)
    expected, size = assembled(picture, target, sigmas)
    grid = BilateralGrid(picture, *sigmas)
    assert grid.size == size
    np.testing.assert_allclose(grid.solve(target), expected, atol=1e-12)


def test_the_matrix_equals_the_formula() -> None:
    picture, _, _ = square()
    grid = BilateralGrid(picture, 4, 16, 8)
    unit = np.eye(grid.size)
    blur = np.stack([grid.blur(column) for column in unit], 1)
    n, m = grid._n, grid._m
    weight = np.linspace(0.5, 2.0, grid.size)
    matrix = 256 * (np.diag(m) - n[:, None] * blur * n[None, :]) + np.diag(weight)
    np.testing.assert_allclose(grid.matrix(weight, 256.0).toarray(), matrix, atol=1e-11)
    assert (blur == blur.T).all()


def test_a_constant_target_comes_back() -> None:
    picture, _ = noisy()
    for value in (0.0, 0.37, 1.0):
        out = BilateralGrid(picture, 8, 16, 8).solve(np.full(picture.shape[:2], value))
        np.testing.assert_allclose(out, value, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_converged_output_stays_in_the_range_of_the_target(seed: int) -> None:
    picture, target = noisy(seed)
    grid = BilateralGrid(picture, 8, 32, 32)
    out = grid.solve(target, max_iter=500, tol=1e-12)
    assert target.min() - 1e-6 <= out.min() and out.max() <= target.max() + 1e-6


def test_no_smoothness_gives_the_mean_of_each_cell() -> None:
    picture, inside, guess = square()
    out = BilateralGrid(picture, 100, 300, 300).solve(guess, lam=0.0)
    np.testing.assert_allclose(out, guess.mean(), atol=1e-12)


def test_pixels_without_confidence_are_filled_by_their_colour() -> None:
    picture, inside, _ = square()
    confidence = np.zeros((16, 16))
    confidence[8, 8], confidence[0, 0] = 0.999, 0.999
    out = BilateralGrid(picture, 4, 16, 8).solve(inside.astype(float), confidence, max_iter=500, tol=1e-12)
    assert np.isfinite(out).all()
    assert out[inside].min() > out[~inside].max()


def test_a_grid_serves_several_targets() -> None:
    picture, target = noisy()
    grid = BilateralGrid(picture)
    first = grid.solve(target)
    grid.solve(1 - target)
    assert (grid.solve(target) == first).all()


def test_a_list_of_pictures_of_any_size_on_threads_equals_one_by_one() -> None:
    pairs = [noisy(seed, 20 + 3 * seed, 31 - 2 * seed) for seed in range(5)]
    together = bilateral_solve([p for p, _ in pairs], [t for _, t in pairs], threads=2)
    for (picture, target), out in zip(pairs, together, strict=True):
        assert (out == BilateralGrid(picture).solve(target)).all()
    assert bilateral_solve([], []) == []


def test_one_pixel() -> None:
    assert BilateralGrid(np.zeros((1, 1, 3))).solve(np.ones((1, 1))) == pytest.approx(1.0)


def test_refinement_is_accepted_only_when_it_agrees_with_the_mask() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:4, 1:4] = True
    near = mask * 0.9
    soft, accepted = refine(near, mask)
    assert accepted and (soft == near).all()
    far = np.zeros((6, 6))
    far[4:, 4:] = 0.9
    soft, accepted = refine(far, mask)
    assert not accepted and (soft == mask).all()
    assert refine(np.full((6, 6), 0.1), mask)[1] is False
    assert refine(np.zeros((6, 6)), np.zeros((6, 6)))[1] is True


def test_largest_filled() -> None:
    mask = np.zeros((7, 9), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    mask[0, 8] = True
    expected = np.zeros_like(mask)
    expected[1:6, 1:6] = True
    assert (largest_filled(mask) == expected).all()
    assert not largest_filled(np.zeros((3, 3), bool)).any()


def test_refuses_bad_input() -> None:
    picture, target = noisy()
    grid = BilateralGrid(picture)
    with pytest.raises(ConfigError, match="shape"):
        BilateralGrid(picture[..., 0])
    with pytest.raises(ConfigError, match="positive"):
        BilateralGrid(picture, 0)
    with pytest.raises(ConfigError, match="0..255"):
        BilateralGrid(picture.astype(float) * 100)
    with pytest.raises(NumericError, match="picture"):
        BilateralGrid(np.full((4, 4, 3), np.nan))
    with pytest.raises(ConfigError, match="target"):
        grid.solve(target[1:])
    with pytest.raises(NumericError, match="target"):
        grid.solve(np.where(target > 0.5, np.nan, target))
    for confidence in (-1.0, 0.0):
        with pytest.raises(ConfigError, match="confidence"):
            grid.solve(target, confidence)
    with pytest.raises(ConfigError, match="as many"):
        bilateral_solve([picture], [])
    with pytest.raises(ConfigError, match="as many"):
        bilateral_solve([picture], [target], [])


@pytest.mark.parametrize("sigmas", [(16.0, 16.0, 8.0), (4.0, 2.0, 3.0), (7.5, 300.0, 12.3)])
def test_the_table_of_cells_equals_sorting(sigmas: tuple[float, float, float]) -> None:
    for picture in (noisy(1)[0], square()[0], noisy(2)[0][:, :, ::-1], noisy(3, 1, 50)[0]):
        packed, strides, total = bilateral._pack(picture, *sigmas)
        assert packed.min() > 0 and packed.max() < total
        (cells, blur), (expected, matrix) = (f(packed, strides, total) for f in (bilateral._by_table, bilateral._by_sorting))
        assert (cells == expected).all() and (blur != matrix).nnz == 0 and (blur != blur.T).nnz == 0


def test_many_colours_are_sorted() -> None:
    picture, target = noisy()
    assert bilateral._pack(picture, 1, 0.5, 0.5)[2] > bilateral._TABLE_CELLS
    grid = BilateralGrid(picture, 1, 0.5, 0.5)
    np.testing.assert_allclose(grid.solve(target), assembled(picture, target, (1, 0.5, 0.5))[0], atol=1e-12)
    with pytest.raises(ConfigError, match="too many cells"):
        BilateralGrid(picture, 1e-6, 1e-5, 1e-5)
    for sigma in (1e-3, 1e-6, 1e-9):  # cells of one colour, however small, are as many as there are tiles
        assert BilateralGrid(np.full((20, 30, 3), 200, np.uint8), 10, sigma, sigma).size == 6


def test_cells_do_not_depend_on_the_strips_in_which_colours_are_converted() -> None:
    picture, _ = noisy(5, 64, 90)
    whole = bilateral._pack(picture, 16, 16, 8)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bilateral, "_STRIP_PIXELS", 100)
        assert (bilateral._pack(picture, 16, 16, 8)[0] == whole).all()
    planar = np.ascontiguousarray(picture.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert (bilateral._pack(planar, 16, 16, 8)[0] == whole).all()
    assert (bilateral._pack(picture.astype(np.float32), 16, 16, 8)[0] == whole).all()


@pytest.mark.parametrize("seed", range(20))
def test_largest_filled_equals_scipy(seed: int) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) < 0.35 + 0.03 * seed
    filled, count = ndimage.label(ndimage.binary_fill_holes(mask))
    assert count and (largest_filled(mask) == (filled == 1 + np.argmax(np.bincount(filled.ravel())[1:]))).all()


@pytest.mark.skipif(not compiled.is_there(), reason="numba is not installed")
@pytest.mark.parametrize("sigmas", [(4.0, 16.0, 8.0), (8.0, 32.0, 32.0), (16.0, 16.0, 8.0), (100.0, 300.0, 300.0)])
@pytest.mark.parametrize("seed", range(3))
def test_compiled_loops_agree_with_numpy(sigmas: tuple[float, float, float], seed: int) -> None:
    picture, target = noisy(seed, 48 + seed, 57)
    grids = [BilateralGrid(picture, *sigmas, engine=engine) for engine in ("numba", "numpy")]
    assert [grid._compiled for grid in grids] == [True, False] and grids[0].size == grids[1].size
    confidence = target.clip(0.1, 0.6)
    # Where confidences vary, 25 steps enlarge a change of 1e-15 in the input to 1e-7 in either engine: there, to the end.
    converged = {"confidence": confidence, "max_iter": 500, "tol": 1e-14}
    for settings in ({}, converged, {"lam": 0.0}, {"max_iter": 200, "tol": 1e-9}, {"max_iter": 0}):
        fast, plain = (grid.solve(target, **settings) for grid in grids)
        np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-11)
    plain = np.sort(grids[1].matrix(np.ones(grids[1].size), 3.0).diagonal())
    np.testing.assert_allclose(np.sort(grids[0].matrix(np.ones(grids[0].size), 3.0).diagonal()), plain, rtol=1e-12)
    assert grids[0].blur(np.ones(grids[0].size)).sum() == grids[1].blur(np.ones(grids[1].size)).sum()
    assert (bilateral_loops.empty_table(1) == -1).all(), "the table is left as it was found"


@pytest.mark.skipif(not compiled.is_there(), reason="numba is not installed")
@pytest.mark.parametrize("seed", range(30))
def test_compiled_refinement_is_that_of_scipy(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.random((17 + seed, 23)), seed % 3 * 0.7)
    soft = (soft - soft.mean()) / soft.std() * 0.2 + 0.35 + 0.01 * seed
    mask = rng.random(soft.shape) < 0.5 if seed % 2 else soft > 0.45
    kept = np.empty(soft.shape, bool)
    bilateral_loops.largest_filled(soft, 0.5, kept)
    assert (kept == largest_filled(soft > 0.5)).all()
    fast = refine(soft, mask)
    monkeypatch.setattr(compiled, "is_there", lambda: False)
    plain = refine(soft, mask)
    assert fast[1] == plain[1] and (fast[0] == plain[0]).all()


def test_the_engine_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, target = noisy()
    with pytest.raises(ConfigError, match="engine"):
        BilateralGrid(picture, engine="rust")
    monkeypatch.setattr(compiled, "is_there", lambda: False)
    assert not BilateralGrid(picture)._compiled
    with pytest.raises(ConfigError, match="not installed"):
        BilateralGrid(picture, engine="numba")
