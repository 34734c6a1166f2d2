"""The report of solid objects: written by `evaluate` from held-out pictures, with all that was found in each; words are escaped."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from selftaught.core.config import read_json
from selftaught.data.sources import open_data
from selftaught.evaluate import evaluate, open_for
from selftaught.loading import load_method
from selftaught.report.content import ReportContent
from selftaught.report.solid_page import SolidReport, render
from selftaught.solid_report import CLOSED_DEG, PX, found_solid, nearness
from selftaught.train import train
from selftaught.worlds.meshes import writing
from test_reconstruct import ball

HOSTILE = "</p><script>alert(1)</script>"


def pictures_in(page: str) -> list[np.ndarray[Any, Any]]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def test_what_is_shown_of_a_ball_is_a_ball() -> None:
    found = found_solid("k", torch.zeros(3, 8, 8), ball()._replace(background=torch.ones(1, 3, 4, 4)))
    parts = dict(found.parts)
    assert list(parts) == ["input", "reconstruction", "surface", "depth", "normals", "texture", "background"]
    middle = PX // 2
    np.testing.assert_allclose(parts["normals"][middle, middle], [128, 128, 255], atol=14)  # towards the camera
    assert parts["normals"][middle, middle + 15, 0] > 150 > 100 > parts["normals"][middle, middle - 15, 0]
    depth = parts["depth"][..., 0].astype(int)
    assert depth[middle, middle] >= 250 and depth[0, 0] == 0 and 40 < depth[middle, middle + 18] < depth[middle, middle + 9] < 250
    assert [name for name, _ in found.views] == [f"{a:+d} degrees" if a else "the front" for a in CLOSED_DEG]
    views = dict(found.views)
    left, right = (views[name].astype(int) for name in ("-90 degrees", "+90 degrees"))
    red = [(view[middle, middle, 0] - view[middle, middle, 2]) for view in (left, right)]
    assert red[0] * red[1] < 0 and min(map(abs, red)) > 60, "one half of the ball is red, the other blue"


def test_depth_without_an_object_is_dark() -> None:
    assert not nearness(torch.zeros(4, 4)).any()


def test_words_from_outside_are_escaped_and_empty_scores_are_said() -> None:
    one = found_solid(HOSTILE, torch.rand(3, 8, 8), ball())
    content = ReportContent(title="", learned="", scores={HOSTILE: {"value": 0.5, "n": 3, "ci95": [0.4, 0.6], "baselines": {HOSTILE: 0.1}}})
    report = SolidReport(HOSTILE, HOSTILE, [one], content, [(HOSTILE, np.zeros((4, 4, 3), np.uint8))], [(HOSTILE, HOSTILE)], [HOSTILE])
    page = render(report).decode()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 7
    assert "http" not in page.replace("http-equiv", "").replace("https://www.w3.org", "") and len(pictures_in(page)) == 6 + 7 + 1
    assert "nothing was scored" not in page
    assert "nothing was scored" in render(SolidReport("t", "l", [], ReportContent(title="", learned=""))).decode()


def test_evaluate_writes_the_page_of_held_out_pictures(tmp_path: Path) -> None:
    writing.make("heads", tmp_path / "heads", 40, 0, "tiny")
    run = train("unsup3d", tmp_path / "heads", tmp_path / "run", size="tiny", steps=2, quiet=True)
    assert not (run / "report.html").exists()
    evaluate(run)
    page = (run / "report.html").read_text()
    test = open_data(tmp_path / "heads", "test")
    assert sum(page.count(f"<bdi>{key}</bdi>") for key in test.keys) == len(test) == 8
    px = load_method(run).config.image_px
    first = open_for(str(tmp_path / "heads"), px, None, 0).test.images.batch([0])[0].permute(1, 2, 0).numpy()
    shown = pictures_in(page)
    assert any(one.shape == first.shape and (one == first).all() for one in shown), "the given picture itself is there"
    for name in read_json(run / "scores.json")["scores"]:
        assert f"<td>{name}" in page
    assert "selftaught reconstruct" in page and "<svg" in page

    sees = train("viewpoint", tmp_path / "heads", tmp_path / "sees", size="tiny", steps=1, quiet=True)
    evaluate(sees)
    page = (sees / "report.html").read_text()
    assert "selftaught reconstruct" not in page and 'id="solids"' not in page and 'id="panels"' in page
