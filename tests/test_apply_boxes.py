"""`segment --boxes`: rules, detectors, methods that tell objects apart, and what the COCO file says."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selftaught import apply, cli
from selftaught.core.errors import ConfigError
from selftaught.measure.box_rules import FoundBoxes


class Bright:
    """Segments what is bright; may also detect, or tell objects apart."""

    def __init__(self) -> None:
        self.capabilities: tuple[str, ...] = ("segment",)

    def segment(self, images: Sequence[Any]) -> list[np.ndarray]:
        return [image[..., 0].astype(np.float32) / 255 for image in images]

    def detect(self, images: Sequence[Any]) -> list[FoundBoxes]:
        return [FoundBoxes(np.array([[1.25, 2, 5, 6], [0, 0, 2, 2]]), np.array([0.75, 0.25])) for _ in images]

    def objects(self, images: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for image in images:
            soft = np.zeros((3, *image.shape[:2]), np.float32)
            soft[0, 2:10, 2:10], soft[1, 6:14, 6:14], soft[2, 0, 0] = 0.9, 0.8, 1.0  # two overlap, one is a pixel
            found.append((soft, np.array([0.9, 0.5, 0.4])))
        return found

    def provider(self, capability: str) -> Any:
        return self


@pytest.fixture
def learned(loads: Callable[[Any], None]) -> Bright:
    """What `load` returns, whatever the run."""
    bright = Bright()
    loads(bright)
    return bright


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """b.png has two blocks, the first one compact and the second one long; empty.png has none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[2:12, 3:13], pixels[20:22, 5:50] = 255, 204
    Image.fromarray(pixels).save(folder / "b.png")
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(folder / "empty.png")
    return folder


def written(folder: Path, name: str = "boxes.coco.json") -> dict[str, list[tuple[list[float], float]]]:
    coco = json.loads((folder / name).read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    found: dict[str, list[tuple[list[float], float]]] = {name: [] for name in names.values()}
    for a in coco["annotations"]:
        found[names[a["image_id"]]].append((a["bbox"], a["score"]))
    return found


@pytest.mark.parametrize(
    ("rule", "boxes", "empty"),
    [
        ("largest", [([3, 2, 10, 10], 1.0)], []),
        ("refinement", [([3, 2, 9, 9], 1.0)], [([0, 0, 50, 30], 0.0)]),
        ("all", [([3, 2, 10, 10], 1.0), ([5, 20, 45, 2], 0.8)], []),
    ],
)
def test_each_rule_is_written_with_scores(
    learned: Bright, photos: Path, tmp_path: Path, rule: Any, boxes: Any, empty: Any
) -> None:
    out = apply.segment("run", photos, tmp_path / "found", boxes=rule, quiet=True)
    assert written(out) == {"b.png": boxes, "empty.png": empty}
    assert (out / "objects.coco.json").exists() and (out / "masks" / "b.png").exists()


def test_without_the_flag_no_boxes_are_written(learned: Bright, photos: Path, tmp_path: Path) -> None:
    out = apply.segment("run", photos, tmp_path / "found", quiet=True)
    assert not (out / "boxes.coco.json").exists()


def test_a_detector_gives_its_own_boxes(learned: Bright, photos: Path, tmp_path: Path) -> None:
    learned.capabilities = ("detect", "segment")
    every = written(apply.segment("run", photos, tmp_path / "all", boxes="all", quiet=True))
    assert every["b.png"] == [([1.25, 2, 3.75, 4], 0.75), ([0, 0, 2, 2], 0.25)]
    best = written(apply.segment("run", photos, tmp_path / "one", boxes="largest", quiet=True))
    assert best["empty.png"] == [([1.25, 2, 3.75, 4], 0.75)]


def test_objects_told_apart_keep_their_masks_and_scores(learned: Bright, photos: Path, tmp_path: Path) -> None:
    learned.capabilities = ("segment", "objects")
    found = written(apply.segment("run", photos, tmp_path / "found", quiet=True), "objects.coco.json")
    assert found["b.png"] == [([2, 2, 8, 8], 0.9), ([6, 6, 8, 8], 0.5)], "they overlap and stay two; the pixel is too small"


def test_the_file_is_read_by_the_field_s_library(learned: Bright, photos: Path, tmp_path: Path) -> None:
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    out = apply.segment("run", photos, tmp_path / "found", boxes="all", quiet=True)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = faster_coco_eval.COCO(str(out / "boxes.coco.json"))
        result = faster_coco_eval.COCOeval_faster(coco, coco.loadRes(list(coco.anns.values())), "bbox")
        result.params.useCats = 0
        result.run()
    assert result.stats[1] == pytest.approx(1.0)


def test_a_wrong_rule_is_refused(learned: Bright, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rule 'biggest'"):
        apply.segment("run", photos, tmp_path / "found", boxes="biggest")  # type: ignore[arg-type]
    assert not (tmp_path / "found").exists()


def test_the_flag_reaches_the_job_and_not_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    fake = types.ModuleType("selftaught.apply")
    fake.segment = lambda *rest, **more: seen.append(more)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "selftaught.apply", fake)
    (tmp_path / "config.json").write_text("{}")
    arguments = ["segment", str(tmp_path), str(tmp_path), "--out", "x"]
    cli.main([*arguments, "--boxes", "refinement"])
    assert seen == [{"threshold": 0.5, "min_area": 0.001, "boxes": "refinement"}]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--boxes", "all", "--engine", "ray"])
    assert stop.value.code == 2 and "Leave --engine away" in capsys.readouterr().err
