"""The built-in sample: same bytes each time, splits that share nothing, true masks, and parts that may be shipped."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from selftaught.core.errors import DataError
from selftaught.data import things
from selftaught.data.compositing import ASSETS, SIDE, Recipe, compose, load_assets
from selftaught.data.sources import open_data
from selftaught.measure.leak import local_leak

DIGEST = """
import hashlib
from selftaught.data.compositing import Recipe, compose, load_assets
state = hashlib.sha256()
for split in ("train", "test"):
    for i in range(8):
        drawn = compose(load_assets(), Recipe(), 0, split, i)
        state.update(drawn.image.tobytes() + drawn.mask.tobytes())
print(state.hexdigest())
"""


@pytest.fixture(scope="module")
def sample() -> dict[str, things.ThingsSource]:
    parts = {split: things.open_sample("things", 512, split) for split in ("train", "test")}
    assert all(isinstance(part, things.ThingsSource) for part in parts.values())
    return parts  # type: ignore[return-value]


def test_a_fresh_process_draws_the_same_bytes() -> None:
    state = hashlib.sha256()
    for split in ("train", "test"):
        for i in range(8):
            drawn = compose(load_assets(), Recipe(), 0, split, i)
            state.update(drawn.image.tobytes() + drawn.mask.tobytes())
    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == state.hexdigest()


def test_a_picture_does_not_depend_on_how_many_there_are(sample: dict[str, things.ThingsSource]) -> None:
    for i in (0, 17, 255):
        drawn = compose(load_assets(), Recipe(), things.SEED, "train", i)
        np.testing.assert_array_equal(sample["train"].image(i), drawn.image)
        np.testing.assert_array_equal(sample["train"].truth(i).mask, drawn.mask)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one_and_the_same_source_by_name(
    sample: dict[str, things.ThingsSource],
) -> None:
    small = open_data("sample:things:64", "train")
    assert len(small) == 64 and small.part == "train"
    np.testing.assert_array_equal(small.image(63), sample["train"].image(63))
    assert small.fingerprint() != sample["train"].fingerprint()
    assert open_data("sample:things:64", "train").fingerprint() == small.fingerprint()


def test_counts_and_all_of_it() -> None:
    assert [len(things.open_sample("things", n, "test")) for n in (8, 64, 400)] == [64, 64, 100]
    whole = open_data("sample:things:8")
    assert len(whole) == 72 and whole.has_masks and whole.has_labels
    assert len(set(whole.keys)) == 72


def test_no_object_and_no_photograph_is_in_both_splits() -> None:
    assets = load_assets()
    for of in (assets.objects, assets.grounds):
        assert not {one.id for one in of["train"]} & {one.id for one in of["test"]}
    assert not {one.photo for one in assets.grounds["train"]} & {one.photo for one in assets.grounds["test"]}
    looks = {split: {one.picture.tobytes() for one in assets.objects[split]} for split in ("train", "test")}
    assert not looks["train"] & looks["test"]
    assert len(assets.grounds["train"]) == Recipe().train_grounds and len(assets.grounds["test"]) >= 50


def test_classes_have_enough_objects() -> None:
    assets = load_assets()
    assert set(assets.labels) == set(Recipe().classes) and len(assets.labels) == 8
    everyone = [one.id for part in assets.objects.values() for one in part]
    assert len(everyone) == len(set(everyone))
    for label in assets.labels:
        counts = {split: sum(one.label == label for one in assets.objects[split]) for split in ("train", "test")}
        assert counts["train"] >= 15 and counts["test"] >= 5, (label, counts)


def test_truth_belongs_to_the_split_and_fits_the_picture(sample: dict[str, things.ThingsSource]) -> None:
    assets = load_assets()
    for split, source in sample.items():
        labels = {one.id: one.label for one in assets.objects[split]}
        grounds = {one.id for one in assets.grounds[split]}
        for i in range(len(source)):
            image, truth = source.image(i), source.truth(i)
            assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8
            assert truth.mask is not None and truth.mask.shape == (SIDE, SIDE) and truth.mask.dtype == np.uint8
            assert truth.object_id in labels and truth.label == labels[truth.object_id]
            assert truth.source_id in grounds


def test_areas_number_of_objects_and_classes_are_as_told(sample: dict[str, things.ThingsSource]) -> None:
    masks = np.array(sample["train"].masks)
    areas = (masks > 0).mean((1, 2))
    assert 0.13 < areas.mean() < 0.25
    assert np.percentile(areas, 5) > 0.05 and np.percentile(areas, 95) < 0.45
    assert (areas > 0).all()
    two = (masks == 2).any((1, 2)).mean()
    assert 0.07 < two < 0.25
    assert masks.max() == 2
    labels = [sample["train"].truth(i).label for i in range(512)]
    assert len(set(labels)) == len(load_assets().labels)


def test_position_is_spread_so_that_the_middle_is_no_answer(sample: dict[str, things.ThingsSource]) -> None:
    masks = np.array(sample["train"].masks) > 0
    rows = (masks.sum(2) * np.arange(SIDE)).sum(1) / masks.sum((1, 2))
    columns = (masks.sum(1) * np.arange(SIDE)).sum(1) / masks.sum((1, 2))
    assert rows.std() > 7 and columns.std() > 7
    assert masks.mean(0).max() < 0.65


def test_the_shipped_files_are_small_and_attributed() -> None:
    files = [path for path in ASSETS.iterdir() if path.is_file()]
    text = (ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    for path in files:
        assert path.stat().st_size < 2_000_000, path.name
        assert path.name == "ATTRIBUTION.md" or f"`{path.name}`" in text
    for word in ("Microsoft", "MIT License", "CC0", "wesaturate", "Alexey Grigorev"):
        assert word in text
    for name, word in (("objects", "cut-outs"), ("backgrounds", "photograph crops")):
        with zipfile.ZipFile(ASSETS / f"{name}.zip") as archive:
            index = json.loads(archive.read("index.json"))
            assert f"{len(index)} {word}" in text
            assert {row["file"] for row in index} == set(archive.namelist()) - {"index.json"}
            sources = {row.get("source", "Fluent") for row in index}
            photos = {row["photo"].split("/")[1] for row in index if row.get("source") in ("skimage", "wesaturate")}
    assert all(f"`{source}`" in text for source in sources) and all(f"`{photo}`" in text for photo in photos)


def test_the_cache_is_used_again_and_a_broken_one_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(tmp_path))
    first = things.open_sample("things", 8, "train").image(7)
    (folder,) = tmp_path.iterdir()
    before = (folder / "images.raw").stat().st_mtime_ns
    things.open_sample("things", 8, "train")
    assert (folder / "images.raw").stat().st_mtime_ns == before
    (folder / "images.raw").write_bytes(b"short")
    np.testing.assert_array_equal(things.open_sample("things", 8, "train").image(7), first)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="Did you mean 'things'"):
        things.open_sample("thing", None, "train")
    with pytest.raises(DataError, match="unknown split"):
        things.open_sample("things", 8, "tset")
    with pytest.raises(DataError, match="at least 1"):
        things.open_sample("things", 0, "train")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="SELFTAUGHT_CACHE"):
        things.open_sample("things", 8, "train")


def test_drawing_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(tmp_path))
    start = time.process_time()
    things.open_sample("things", 64, "all")
    seconds = time.process_time() - start
    print(f"sample:things:64 (128 pictures): {seconds:.2f} s of processor time")
    assert seconds < 6


def test_classes_are_in_the_shape_and_not_in_the_whole_picture(sample: dict[str, things.ThingsSource]) -> None:
    """HOG of the true crop finds the class of new objects far above chance; raw pixels of the whole picture do not."""
    from PIL import Image
    from skimage.feature import hog

    from selftaught.measure.features import knn_predict

    features: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for split, source in sample.items():
        shapes, pixels, labels = [], [], []
        for i in range(len(source)):
            image, truth = source.image(i), source.truth(i)
            assert truth.mask is not None
            rows, columns = np.flatnonzero(truth.mask.any(1)), np.flatnonzero(truth.mask.any(0))
            crop = Image.fromarray(image).crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)).resize((64, 64))
            shapes.append(hog(np.asarray(crop.convert("L")), pixels_per_cell=(8, 8)))
            pixels.append(np.asarray(Image.fromarray(image).resize((16, 16))).ravel() / 255 - 0.5)
            labels.append(truth.label)
        features[split] = np.stack(shapes), np.stack(pixels), np.array(labels)
    train, test = features["train"], features["test"]
    right = {name: (knn_predict(train[k], train[2], test[k], k=10) == test[2]).mean() for k, name in enumerate("sp")}
    chance = 1 / len(load_assets().labels)
    print(f"HOG of the true crop {right['s']:.3f}, whole picture's pixels {right['p']:.3f}, chance {chance:.3f}")
    assert right["s"] > 3 * chance
    assert right["p"] < 2.5 * chance


def test_the_leak_measure_sees_a_plain_cue_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((96, 32, 32), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, 16, 2)
        mask[top : top + 14, left : left + 14] = 1
    noise = rng.integers(0, 256, (96, 3, 32, 32)).astype(np.uint8)
    smooth = np.where(masks[:, None] > 0, 128, noise).astype(np.uint8)
    found = local_leak(smooth[:64], masks[:64], smooth[64:], masks[64:], steps=60)
    nothing = local_leak(noise[:64], masks[:64], noise[64:], masks[64:], steps=60)
    assert found.value > 0.8 and found.n == 32
    assert nothing.value < nothing.baselines["whole picture"] + 0.1
    with pytest.raises(ValueError, match="as many masks"):
        local_leak(noise, masks[:5], noise, masks)


@pytest.mark.slow
def test_tiny_neighbourhoods_do_not_give_the_objects_away(sample: dict[str, things.ThingsSource]) -> None:
    train, test = ((part.images.transpose(0, 3, 1, 2), part.masks) for part in sample.values())
    score = local_leak(*train, *test, steps=300)
    print(f"leak {score.value:.3f} {score.ci95}, {score.baselines}")
    assert score.value < 0.35
