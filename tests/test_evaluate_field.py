"""`evaluate RUN --dataset NAME --root DIR`: from the official folders to scores with their conventions printed."""

from __future__ import annotations

import json
import typing
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from field_fixtures import write_coco, write_saliency, write_voc
from selftaught import cli, evaluate
from selftaught.core.errors import ConfigError, DataError, RunError
from selftaught.data.field_sets import FIELD_SETS
from selftaught.evaluate import evaluate_field
from selftaught.measure.field_protocol import PROTOCOLS, Protocol
from selftaught.method import Detections, Objects


class Bright:
    """A learned method that finds what is bright; it may detect, or tell objects apart."""

    name, image_px, config = "bright", 32, SimpleNamespace(image_px=32)

    def __init__(self, *capabilities: str) -> None:
        self.capabilities = capabilities
        self.sizes: list[tuple[int, ...]] = []

    def segment(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        return images.mean(1)

    def detect(self, images: Tensor) -> Detections:
        boxes = torch.tensor([[9.0, 9, 29, 29], [0, 0, 60, 40]]).expand(len(images), 2, 4)
        return Detections(boxes, torch.tensor([0.9, 0.2]).expand(len(images), 2))

    def objects(self, images: Tensor) -> Objects:
        masks = torch.stack([images.mean(1), torch.zeros_like(images[:, 0])], 1)
        return Objects(masks, torch.tensor([0.7, 0.9]).expand(len(images), 2))


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Bright:
    bright = Bright("segment")
    monkeypatch.setattr(evaluate, "load_method", lambda run: bright)
    monkeypatch.setattr(evaluate, "part_of", lambda run: run)
    return bright


def grey_edge() -> dict[str, np.ndarray]:
    """A square of 255 with a rim of 60, one pixel wide: 100 or 144 pixels."""
    grey = np.zeros((40, 60), np.uint8)
    grey[9:21, 9:21], grey[10:20, 10:20] = 60, 255
    return {"0001": grey, "0002": np.roll(grey, 20, 1)}


def test_masks_with_the_convention_of_each_code(method: Bright, tmp_path: Path) -> None:
    bright = {k: np.where(g > 127, 255, 0).astype(np.uint8) for k, g in grey_edge().items()}
    write_saliency(tmp_path, "duts-te", grey_edge(), bright)
    plain = ["shown=as_is", "short_px=0"]
    moved = evaluate_field("run", "duts-te", tmp_path, protocol="move", set=plain)
    assert moved.scores["iou"].value == pytest.approx(1.0, abs=0.02)
    cut = evaluate_field("run", "duts-te", tmp_path, protocol="tokencut", set=plain)
    assert cut.scores["iou"].value == pytest.approx(100 / 144, abs=0.02)
    assert set(cut.scores) == {"accuracy", "iou", "max_f", "mae", "s_measure", "e_measure", "weighted_f"}
    assert set(cut.scores["iou"].baselines) == {"whole_image", "centre_box"}
    assert cut.scores["iou"].baselines["whole_image"] == pytest.approx(144 / 2400)
    text = "\n".join(cut.lines())
    assert "DUTS-TE: 2 pictures, conventions of tokencut, changed" in text and "truth_cut = nonzero" in text
    assert "has 5,019" in text and "squares of 32 px" in text


def test_the_picture_is_shown_as_the_protocol_says(method: Bright, tmp_path: Path) -> None:
    write_saliency(tmp_path, "ecssd", grey_edge())
    for protocol, size in (("move", (448, 672)), ("tokencut", (32, 64)), ("selfmask", (40, 64)), ("pysodmetrics", (40, 60))):
        method.sizes.clear()
        evaluate_field("run", "ecssd", tmp_path, protocol=protocol, limit=1)
        assert method.sizes == [size], protocol


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_leaves_nothing_is_refused(limit: int, method: Bright, tmp_path: Path) -> None:
    for job in (lambda: evaluate.evaluate("run", limit=limit), lambda: evaluate_field("run", "ecssd", tmp_path, limit=limit)):
        with pytest.raises(ConfigError, match="limit is"):
            job()


def test_boxes_of_voc(method: Bright, tmp_path: Path) -> None:
    write_voc(tmp_path, 2007, {
        "000005": [((11, 11, 30, 30), False, False)],
        "000007": [((11, 11, 30, 30), False, False), ((41, 2, 60, 40), False, True)],
        "000009": [],
    })  # fmt: skip
    found = evaluate_field("run", "voc07", tmp_path, set=["shown=as_is", "short_px=0"])
    assert found.scores["corloc"].value == 1.0 and found.scores["corloc"].n == 2
    assert "  voc_start = minus_one" in found.lines() and not any("truth_cut" in line for line in found.lines())
    easy = evaluate_field("run", "voc07", tmp_path, set=["hard=left_out", "shown=as_is", "short_px=0"])
    assert easy.scores["corloc"].value == 0.5, "the largest piece of the second picture is the truncated one"


@pytest.mark.parametrize("capability", ["detect", "objects"])
def test_boxes_of_coco_from_detectors_and_objects(method: Bright, tmp_path: Path, capability: str) -> None:
    method.capabilities = (capability, "segment")
    write_coco(tmp_path, {9: [((10.2, 9.8, 20.0, 20.0), 0)], 25: [((0.0, 0.0, 60.0, 40.0), 1)]})
    found = evaluate_field("run", "coco20k", tmp_path, set=["shown=as_is", "short_px=0"], json=tmp_path / "scores.json")
    assert found.scores["corloc"].value == 1.0 and found.scores["corloc"].n == 1, "a picture with a crowd only has no truth"
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["conventions"]["crowds"] == "left_out" and written["scores"]["corloc"]["value"] == 1.0
    assert written["protocol"] == "move, changed" and any("19,817" in note for note in written["notes"])


def test_what_cannot_be_scored_is_said(method: Bright, tmp_path: Path) -> None:
    write_saliency(tmp_path, "ecssd", grey_edge())
    method.capabilities = ("detect",)
    with pytest.raises(RunError, match="cannot segment: it holds bright"):
        evaluate_field("run", "ecssd", tmp_path)
    with pytest.raises(DataError, match="not laid out as DUTS-TE"):
        evaluate_field("run", "duts-te", tmp_path)
    with pytest.raises(ConfigError, match="no protocol"):
        evaluate_field("run", "ecssd", tmp_path, protocol="mvoe")


def test_the_names_are_the_same_everywhere() -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "field-data-sets.md").read_text()
    for name in [*FIELD_SETS, *PROTOCOLS, *(f.name for f in fields(Protocol))]:
        assert f"`{name}`" in page, name
    for name, spec in FIELD_SETS.items():
        assert f"| `{name}` | {spec.kind} | {spec.pictures:,} |" in page
    hints = typing.get_type_hints(cli.evaluate)
    assert set(typing.get_args(typing.get_args(hints["dataset"])[0])) == set(FIELD_SETS)
    assert all(name in (cli.evaluate.__doc__ or "") for name in PROTOCOLS)


def test_the_command(method: Bright, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_saliency(tmp_path / "data", "ecssd", grey_edge())
    (tmp_path / "config.json").write_text("{}")
    run: list[str] = ["evaluate", str(tmp_path)]
    cli.main([*run, "--dataset", "ecssd", "--root", str(tmp_path / "data"), "--protocol", "selfmask", "--set", "threshold=0.4"])
    out = capsys.readouterr().out
    assert "max_f = per_image_b09" in out and "threshold = 0.4" in out and "weighted_f" in out

    def refused(*args: Any) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main([*run, *args])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "--root DIR" in refused("--dataset", "ecssd")
    assert "two things" in refused("sample:things", "--dataset", "ecssd", "--root", "x")
    assert "--dataset" in refused("--protocol", "move")
    assert "There is no folder" in refused("--dataset", "ecssd", "--root", str(tmp_path / "none"))
