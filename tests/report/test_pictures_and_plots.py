"""Overlays, contact sheets, data URIs, curves and maps."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.core.errors import DataError, RunError
from selftaught.report import pictures, plots


def test_overlay_keeps_the_object_dims_the_rest_and_draws_the_contour() -> None:
    grey = np.full((80, 120, 3), 180, dtype=np.uint8)
    mask = np.zeros((80, 120))
    mask[20:60, 30:90] = 1
    drawn = pictures.overlay(grey, mask, longest_px=120)
    assert drawn.shape == (80, 120, 3) and drawn.dtype == np.uint8
    assert (drawn[40, 60] == 180).all()
    assert drawn[4, 4].max() < 130
    edge = drawn[20, 50].astype(int)
    assert edge[0] > edge[2] + 60


def test_overlay_with_truth_and_other_sizes() -> None:
    picture = np.zeros((50, 30, 3), dtype=np.uint8)
    truth = np.zeros((100, 60), dtype=np.uint8)
    truth[20:80, 10:50] = 3
    truth[0:5] = 255
    drawn = pictures.overlay(picture, np.zeros((10, 6)), truth=truth, longest_px=200)
    assert drawn.shape == (200, 120, 3)
    assert drawn[40, 60, 2] > 150 and drawn[2, 60, 2] < 60
    nothing = pictures.overlay(picture, np.full((10, 6), math.nan), longest_px=40)
    assert nothing.max() < 60


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (700, 2, 3)])
def test_overlay_of_extreme_shapes(shape: tuple[int, int, int]) -> None:
    drawn = pictures.overlay(np.zeros(shape, dtype=np.uint8), np.ones(shape[:2]), longest_px=64)
    assert max(drawn.shape[:2]) == 64


def test_unfit_arrays_are_refused() -> None:
    with pytest.raises(DataError, match="not a picture"):
        pictures.fit(np.zeros((4, 4, 3)), 8)
    with pytest.raises(DataError, match="not a mask"):
        pictures.resize_mask(np.zeros((4, 4, 1)), (8, 8))
    with pytest.raises(DataError):
        pictures.contact_sheet([], columns=3)


def test_contact_sheet_places_cells() -> None:
    colours = [np.full((10, 14, 3), value, dtype=np.uint8) for value in (10, 60, 110, 160, 210)]
    sheet = pictures.contact_sheet(colours, columns=3, cell_px=8, gap_px=2)
    assert sheet.shape == (18, 28, 3)
    assert [int(sheet[4, 4, 0]), int(sheet[4, 24, 0]), int(sheet[14, 14, 0])] == [10, 110, 210]
    assert (sheet[4, 8] == 255).all() and (sheet[14, 24] == 255).all()


def test_data_uri_keeps_to_its_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    for kind in ("jpeg", "png"):
        uri = pictures.data_uri(noise, kind=kind, max_bytes=12_000)
        assert len(uri) <= 12_000
        head, data = uri.split(",")
        assert head == f"data:image/{kind};base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()


def test_read_curves(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 0, "loss": 2.0, "health": "starting", "parts": {"a": 1.0}},
        {"step": 5, "loss": None, "health": "slow", "flag": True},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10, "lo')
    curves = plots.read_curves(path)
    assert curves["loss"][0] == [0.0, 5.0] and curves["loss"][1][0] == 2.0 and math.isnan(curves["loss"][1][1])
    assert curves["health"] == ([0.0, 5.0], ["starting", "slow"])
    assert curves["parts/a"] == ([0.0], [1.0]) and "flag" not in curves
    assert plots.read_curves(tmp_path / "none.jsonl") == {}
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2"):
        plots.read_curves(path)


def test_curve_is_inline_svg_in_the_colours_of_the_page() -> None:
    steps = list(range(5000))
    svg = plots.curve_svg(
        steps, [math.sin(s / 500) for s in steps], mark="m1", alt='a "b" <c>', health=([0, 9], ["slow", "x"])
    )
    assert svg.startswith("<svg viewBox=") and svg.rstrip().endswith("</svg>")
    assert "a &quot;b&quot; &lt;c&gt;" in svg
    assert "http" not in svg and "xmlns" not in svg and "#0" not in svg
    assert "var(--accent)" in svg and "var(--unclear)" in svg
    assert len(svg) < 60_000
    with pytest.raises(DataError):
        plots.curve_svg([1, 2], [1.0], mark="m", alt="")


def test_running_mean_keeps_a_constant_and_gaps() -> None:
    values = np.full(400, 3.0)
    values[100] = np.nan
    mean = plots._running_mean(values)
    assert np.isnan(mean[100]) and np.allclose(np.delete(mean, 100), 3.0)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projection_is_deterministic_and_separates(method: str) -> None:
    rng = np.random.default_rng(1)
    data = np.concatenate([rng.normal(0, 1, (40, 8)), rng.normal(12, 1, (40, 8))])
    data[7] = np.nan
    points, index = plots.project_2d(data, method, seed=3)
    again, _ = plots.project_2d(data, method, seed=3)
    assert points.shape == (79, 2) and 7 not in index
    np.testing.assert_array_equal(points, again)
    first, second = points[index < 40], points[index >= 40]
    gap = np.linalg.norm(first.mean(0) - second.mean(0))
    assert gap > 1.5 * max(first.std(), second.std())


def test_projection_of_few_and_many() -> None:
    assert plots.project_2d(np.zeros((0, 5)))[0].shape == (0, 2)
    assert plots.project_2d(np.ones((1, 5)), "tsne")[0].shape == (1, 2)
    assert plots.project_2d(np.ones((30, 1)), "tsne")[0].shape == (30, 2)
    points, index = plots.project_2d(np.random.default_rng(0).normal(size=(2000, 4)), max_points=100)
    assert len(points) == 100 and (np.diff(index) > 0).all()
    with pytest.raises(DataError, match="umap"):
        plots.project_2d(np.zeros((5, 2)), "umap")


def test_map_draws_thumbnails_at_their_points() -> None:
    red = np.zeros((20, 30, 3), dtype=np.uint8)
    red[..., 0] = 255
    points = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    drawn = plots.map_picture(points, [red, red], size_px=(200, 300), thumb_px=40)
    assert drawn.shape == (200, 300, 3)
    assert (drawn[200 - 26, 26] == (255, 0, 0)).all() and (drawn[26, 300 - 26] == (255, 0, 0)).all()
    assert drawn[100, 150].mean() < 200
    assert (drawn[:, :, 1] < 50).sum() == 2 * 40 * 40
    same = plots.map_picture(np.zeros((3, 2)), [red], dark=True)
    assert (same[760 // 2, 1120 // 2] == (255, 0, 0)).all()
    with pytest.raises(DataError):
        plots.map_picture(points[:1], [red, red])


def test_cluster_strip_has_full_rows() -> None:
    cell = np.zeros((9, 9, 3), dtype=np.uint8)
    assert plots.cluster_strip([cell] * 7, columns=4, cell_px=10).shape == (10, 40, 3)
    assert plots.cluster_strip([cell] * 8, columns=4, cell_px=10).shape == (20, 40, 3)
    assert plots.cluster_strip([cell] * 2, columns=4, cell_px=10).shape == (10, 20, 3)
