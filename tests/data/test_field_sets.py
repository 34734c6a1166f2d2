"""The field's data sets in their official layouts, made small here; what is missing or damaged is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from field_fixtures import SALIENCY_FOLDERS, save, write_coco, write_saliency, write_voc
from selftaught.core.errors import ConfigError, DataError
from selftaught.data.field_sets import FIELD_SETS, open_field_set

GREYS = {key: np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, np.ones((8, 8), np.uint8)) for key in ("b", "a", "c")}


@pytest.mark.parametrize("name", list(SALIENCY_FOLDERS))
@pytest.mark.parametrize("nested", [False, True])
def test_saliency_sets(tmp_path: Path, name: str, nested: bool) -> None:
    title = FIELD_SETS[name].title
    write_saliency(tmp_path / title if nested else tmp_path, name, GREYS)
    opened = open_field_set(name, tmp_path)
    assert opened.keys == ["a", "b", "c"] and opened.spec.kind == "masks"
    assert opened.image(0).shape == (16, 24, 3) and np.array_equal(opened.grey(1), GREYS["b"])
    assert f"3 pictures; {title} has {FIELD_SETS[name].pictures:,}" in opened.notes[-1]
    assert len(opened.first(2)) == 2 and "first 2 of 3" in opened.first(2).notes[-1]


def test_the_counts_are_the_official_ones() -> None:
    assert {name: spec.pictures for name, spec in FIELD_SETS.items()} == {
        "ecssd": 1000, "duts-te": 5019, "dut-omron": 5168, "voc07": 5011, "voc12": 11540, "coco20k": 19817,
    }  # fmt: skip


def test_pictures_without_a_mask_are_left_out_and_said(tmp_path: Path) -> None:
    write_saliency(tmp_path, "dut-omron", GREYS)
    (tmp_path / "pixelwiseGT-new-PNG" / "b.png").unlink()
    save(tmp_path / "pixelwiseGT-new-PNG" / "z.png", GREYS["a"])
    opened = open_field_set("dut-omron", tmp_path)
    assert opened.keys == ["a", "c"] and "2 pictures or masks have no partner" in opened.notes[0]
    for path in (tmp_path / "pixelwiseGT-new-PNG").iterdir():
        path.rename(path.with_name("x" + path.name))
    with pytest.raises(DataError, match="No picture of .* has a mask") as error:
        open_field_set("dut-omron", tmp_path)
    assert "e.g. a" in str(error.value) and "e.g. xa" in str(error.value)


def test_masks_of_one_bit_and_of_three_channels(tmp_path: Path) -> None:
    write_saliency(tmp_path, "ecssd", GREYS)
    folder = tmp_path / "ground_truth_mask"
    Image.fromarray(GREYS["a"] > 100).save(folder / "a.png")
    Image.fromarray(np.repeat(GREYS["b"][..., None], 3, 2)).save(folder / "b.png")
    opened = open_field_set("ecssd", tmp_path)
    assert set(np.unique(opened.grey(0))) == {0, 255} and np.array_equal(opened.grey(1), GREYS["b"])
    (folder / "c.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="c.png of ECSSD cannot be read"):
        opened.grey(2)


def test_voc(tmp_path: Path) -> None:
    objects = {"000012": [((2, 3, 20, 30), False, True)], "000005": [((1, 1, 60, 40), True, False), ((5, 5, 9, 9), False, False)]}
    write_voc(tmp_path, 2007, objects)
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        opened = open_field_set("voc07", root)
        assert opened.keys == ["000012", "000005"], "the order of the list, and nothing else that lies there"
        assert [b.numbers for b in opened.boxes[1]] == [(1, 1, 60, 40), (5, 5, 9, 9)], "parts are no objects"
        assert [b.hard for boxes in opened.boxes for b in boxes] == [True, True, False]
        assert opened.image(0).shape == (40, 60, 3)


def test_voc_as_it_must_not_be(tmp_path: Path) -> None:
    write_voc(tmp_path, 2012, {"2008_000001": [((2, 3, 20, 30), False, False)], "2008_000002": []})
    root = tmp_path / "VOCdevkit" / "VOC2012"
    with pytest.raises(DataError, match="not laid out as VOC 2007 trainval") as error:
        open_field_set("voc07", tmp_path)
    assert "JPEGImages is missing" not in str(error.value).splitlines()[0] or "found VOCdevkit" in str(error.value)
    xml = root / "Annotations" / "2008_000001.xml"
    good = xml.read_text()
    for text, part in (
        (good.replace("<xmax>20</xmax>", ""), "missing"),
        (good.replace("bndbox>", "box>"), "without bndbox"),
        (good[:-20], "no annotation of VOC"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + good, "without declarations"),
        (good + " " * 2**20, "small XML file"),
    ):
        xml.write_text(text)
        with pytest.raises(DataError, match="no annotation of VOC") as error:
            open_field_set("voc12", tmp_path)
        assert part in str(error.value)
    xml.write_text(good.replace("<xmax>20</xmax>", "<xmax>20.5</xmax>"))
    assert open_field_set("voc12", tmp_path).boxes[0][0].numbers[2] == 20.5
    xml.unlink()
    with pytest.raises(DataError, match=r"1 of 4 files .* missing, e.g. Annotations/2008_000001.xml"):
        open_field_set("voc12", tmp_path)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("\n\n")
    with pytest.raises(DataError, match="lists no pictures"):
        open_field_set("voc12", tmp_path)


def test_coco20k(tmp_path: Path) -> None:
    write_coco(tmp_path, {9: [((1.4, 2.6, 10.2, 20.0), 0), ((0.0, 0.0, 60.0, 40.0), 1)], 25: []})
    opened = open_field_set("coco20k", tmp_path)
    assert opened.keys == ["COCO_train2014_000000000009", "COCO_train2014_000000000025"]
    assert opened.boxes[0][0].numbers == (1.4, 2.6, 10.2, 20.0) and [b.crowd for b in opened.boxes[0]] == [False, True]
    assert opened.boxes[1] == []
    (tmp_path / "images").mkdir()
    (tmp_path / "train2014").rename(tmp_path / "images" / "train2014")
    (tmp_path / "coco_20k_filenames.txt").rename(tmp_path / "annotations" / "coco_20k_filenames.txt")
    assert len(open_field_set("coco20k", tmp_path)) == 2, "the other usual places"


def test_coco20k_as_it_must_not_be(tmp_path: Path) -> None:
    write_coco(tmp_path, {9: []})
    path = tmp_path / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    for damaged in ("{", "[]", json.dumps({**content, "annotations": [{"image_id": 9, "bbox": [1, 2]}]}), json.dumps({"images": []})):
        path.write_text(damaged)
        with pytest.raises(DataError, match="no file of COCO's instances"):
            open_field_set("coco20k", tmp_path)
    path.write_text(json.dumps({**content, "images": []}))
    with pytest.raises(DataError, match="does not have 1 of the listed pictures, e.g. 9"):
        open_field_set("coco20k", tmp_path)
    (tmp_path / "coco_20k_filenames.txt").write_text("dog.png\n")
    with pytest.raises(DataError, match="lists 'dog.png'"):
        open_field_set("coco20k", tmp_path)


@pytest.mark.parametrize("name", list(FIELD_SETS))
def test_a_missing_folder_says_what_was_expected(tmp_path: Path, name: str) -> None:
    spec = FIELD_SETS[name]
    with pytest.raises(DataError, match="There is no folder") as error:
        open_field_set(name, tmp_path / "nowhere")
    assert spec.needed[0].split("|")[0] in str(error.value)
    (tmp_path / "something").mkdir()
    with pytest.raises(DataError, match="not laid out as") as error:
        open_field_set(name, tmp_path)
    text = str(error.value)
    assert all(part.split("|")[0] in text for part in spec.needed) and "found something" in text


def test_a_wrong_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ecssd'"):
        open_field_set("ecsd", tmp_path)
