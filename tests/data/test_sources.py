"""Folders and lists: keys, labels, masks, splits, and what is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data.base import sampled, split_indices, unique_keys
from selftaught.data.readers import BadFile
from selftaught.data.sources import (
    FolderSource,
    ListSource,
    OfficialSplits,
    Source,
    Subset,
    open_data,
)


def draw(path: Path, value: int = 50, size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def draw_mask(path: Path, ids: list[list[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(ids, np.uint8)).save(path)
    return path


def png(value: int = 50, size: tuple[int, int] = (12, 9), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, kind)
    return stream.getvalue()


# folders


def test_a_nested_folder_with_odd_names(tmp_path: Path) -> None:
    long = "n" * 200 + ".png"
    names = ["a.png", "deep/er/b c.jpg", "деревня/猫 ü.webp", long, ".hidden.png", ".cache/x.png", "__MACOSX/y.png"]
    for name in names:
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    source = FolderSource(tmp_path)
    assert source.keys == sorted(["a", "deep/er/b c", "n" * 200, "деревня/猫 ü"]) and source.name == tmp_path.name
    assert all(source.image(i).shape == (9, 12, 3) for i in range(4))
    assert not source.has_labels and not source.has_masks and source.truth(0).label is None
    assert any(".txt" in note for note in source.notes)


def test_same_name_with_other_suffixes_gives_unique_keys(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png", "c.png", "c.png.bmp"):
        draw(tmp_path / name)
    assert FolderSource(tmp_path).keys == ["a.jpg", "a.png", "b", "c", "c.png.bmp"]
    assert unique_keys(["a.jpg", "a.png", "b.png"]) == ["a.jpg", "a.png", "b"]
    assert unique_keys(["a.jpg", "a.jpg.png"]) == ["a", "a.jpg.png"]


def test_wrong_suffix_dangling_link_and_pipe_do_not_stop_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "good.png")
    (tmp_path / "named_wrong.jpg").write_bytes(png())
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    source = FolderSource(tmp_path)
    assert source.keys == ["good", "link", "named_wrong"]
    assert source.image(2).shape == (9, 12, 3)
    with pytest.raises(BadFile, match="dangling link"):
        source.image(1)


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="the file system takes UTF-8 names only")
def test_names_that_are_not_utf8_stay_readable_and_printable(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"), "wb") as stream:
        stream.write(png(33))
    source = FolderSource(tmp_path)
    assert source.keys == ["caf\\xe9"] and source.image(0)[0, 0, 0] == 33
    source.keys[0].encode("ascii")
    assert len(source.fingerprint()) == 64


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    draw(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")
    assert FolderSource(tmp_path / "in").keys == ["a", "other/b"]


def test_class_folders_are_labels_only_when_they_look_like_classes(tmp_path: Path) -> None:
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        draw(tmp_path / "one" / name)
    source = open_data(tmp_path / "one")
    assert source.has_labels and [source.truth(i).label for i in range(4)] == ["cat", "cat", "dog", "dog"]
    draw(tmp_path / "one" / "loose.png")
    assert not open_data(tmp_path / "one").has_labels
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        draw(tmp_path / "two" / name)
    assert not open_data(tmp_path / "two").has_labels


@pytest.mark.parametrize("layout", ["beside", "sister"])
def test_masks_folder_gives_truth_and_no_pictures(tmp_path: Path, layout: str) -> None:
    base = "" if layout == "beside" else "images/"
    for name in ("a", "b"):
        draw(tmp_path / f"{base}{name}.jpg", size=(2, 1))
    draw_mask(tmp_path / "masks" / "a.png", [[0, 255]])
    source = FolderSource(tmp_path)
    assert source.keys == [f"{base}a", f"{base}b"] and source.has_masks
    np.testing.assert_array_equal(source.truth(0).mask, [[0, 1]])
    assert source.truth(1).mask is None


def test_masks_with_video_folders_name_the_group_and_no_class(tmp_path: Path) -> None:
    for video in ("cow", "bus"):
        for frame in ("0", "1"):
            draw(tmp_path / video / f"{frame}.jpg", size=(2, 1))
            draw_mask(tmp_path / "masks" / video / f"{frame}.png", [[0, 3]])
    truth = FolderSource(tmp_path).truth(0)
    assert truth.label is None and truth.source_id == "bus" and truth.mask is not None and truth.mask.max() == 3


def test_a_mask_that_two_pictures_could_mean_is_given_to_neither(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "y/a.jpg"):
        draw(tmp_path / name)
    draw_mask(tmp_path / "masks" / "a.png", [[1]])
    assert not FolderSource(tmp_path).has_masks


def test_an_empty_folder_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "letter.doc").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path)
    assert ".webp" in str(caught.value) and "1 .doc" in str(caught.value) and caught.value.exit_code == 2


def test_a_missing_path_suggests_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="Did you mean 'photos'"):
        open_data(tmp_path / "fotos")
    with pytest.raises(DataError, match="the folder that exists is"):
        open_data(tmp_path / "no" / "such" / "place")


def test_a_folder_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png")
    first = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == first
    os.utime(path, (1, 1))
    second = FolderSource(tmp_path).fingerprint()
    draw(tmp_path / "b.png")
    assert len({first, second, FolderSource(tmp_path).fingerprint()}) == 3


def test_a_fingerprint_notices_data_made_anew_with_the_old_sizes_and_times(tmp_path: Path) -> None:
    paths = [tmp_path / "data" / f"{i}.ppm" for i in range(3)]
    for value in (10, 20):
        for path in paths:
            draw(path)
            path.write_bytes(png(value, (40, 40), "PPM"))
            os.utime(path, ns=(10**18, 10**18))
        found = (FolderSource(tmp_path / "data").fingerprint(), ListSource(paths).fingerprint())
        if value == 10:
            first = found
    assert first[0] != found[0] and first[1] != found[1]
    assert sampled([]) == sampled([]) and sampled([tmp_path / "none"]) != sampled([])
    os.mkfifo(tmp_path / "pipe")
    sampled([tmp_path / "pipe", tmp_path, "\0"])  # ends


def test_at_most_64_files_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    for i in range(200):
        (tmp_path / f"{i:03d}").write_bytes(b"x" * 20_000)
    real = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: read.append(int(Path(path).name)) or real(path))
    sampled([tmp_path / f"{i:03d}" for i in range(200)])
    assert len(read) == 64 and read[0] == 0 and read[-1] == 199


# splits


def test_train_and_test_folders_are_official(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "val/a.png"):
        draw(tmp_path / name)
    whole = open_data(tmp_path)
    assert isinstance(whole, OfficialSplits) and whole.keys == ["train/a", "train/b", "test/a"]
    assert open_data(tmp_path, "train").keys == ["a", "b"] and open_data(tmp_path, "test").keys == ["a"]
    assert open_data(whole, "test").keys == ["a"]
    assert whole.image(2).shape == (9, 12, 3)


def test_what_lies_beside_official_splits_is_named(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "test/b.jpg"):
        draw(tmp_path / name)
    assert open_data(tmp_path).notes == []
    for name in ("loose.jpg", "val/c.jpg"):
        draw(tmp_path / name)
    source = open_data(tmp_path)
    assert source.keys == ["train/a", "test/b"] and source.notes[-1].endswith("left out: loose.jpg, val")


def test_official_splits_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("Train/a.png", "Train/b.png", "VAL/a.png"):
        draw(tmp_path / name)
    assert open_data(tmp_path).keys == ["train/a", "train/b", "test/a"]
    draw(tmp_path / "train" / "c.png")
    assert open_data(tmp_path).keys == ["train/c", "test/a"], "where both are there, the usual spelling is taken"


def test_hash_splits_are_disjoint_stable_and_about_a_fifth() -> None:
    keys = [f"pictures/{i}" for i in range(5000)]
    train, test = split_indices(keys, "train"), split_indices(keys, "test")
    assert sorted(train + test) == list(range(5000)) and 0.18 < len(test) / 5000 < 0.22
    more = split_indices([*keys, "new"], "test")
    assert [i for i in more if i < 5000] == test


@pytest.mark.parametrize("n", range(2, 12))
def test_both_parts_of_small_data_have_pictures(n: int) -> None:
    keys = [f"{i}" for i in range(n)]
    assert split_indices(keys, "train") and split_indices(keys, "test")


def test_one_picture_can_be_learned_from_but_not_split() -> None:
    one = np.zeros((1, 4, 4, 3), np.uint8)
    assert len(open_data(one, "train")) == 1
    with pytest.raises(DataError, match="cannot be split"):
        open_data(one, "test")


def test_a_split_is_not_split_again() -> None:
    train = open_data(np.zeros((50, 4, 4, 3), np.uint8), "train")
    assert isinstance(train, Subset) and open_data(train, "train") is train and open_data(train) is train
    with pytest.raises(DataError, match="train part"):
        open_data(train, "test")
    with pytest.raises(DataError, match="Did you mean 'test'"):
        open_data(train, "tset")


# lists


def test_list_and_list_file(tmp_path: Path) -> None:
    a, b = draw(tmp_path / "p q" / "a.png", 10), draw(tmp_path / "b.jpg", 20)
    source = open_data([b, str(a), b])
    assert source.keys == ["b", "p q/a"] and source.image(1)[0, 0, 0] == 10 and "once" in source.notes[0]
    (tmp_path / "list.txt").write_text("# chosen\n\np q/a.png\n./b.jpg\n", encoding="utf-8")
    assert open_data(tmp_path / "list.txt").keys == ["p q/a", "b"]
    (tmp_path / "marked.txt").write_text("p q/a.png\n", encoding="utf-8-sig")
    assert open_data(tmp_path / "marked.txt").keys == ["a"] and not open_data(tmp_path / "marked.txt").notes
    assert open_data(a).keys == ["a"]


def test_lists_that_hold_nothing(tmp_path: Path) -> None:
    for data in ([], [tmp_path / "gone.png"], [1, 2], 3, {"a": 1}, b"bytes"):
        with pytest.raises(DataError):
            open_data(data)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="lists no pictures"):
        open_data(tmp_path / "empty.txt")
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack"):
        open_data(tmp_path / "x.zip")


# samples and real data


def test_sample_names_that_are_no_samples() -> None:
    for text in ("sample:things:0", "sample:things:x", "sample:things:1:2"):
        with pytest.raises(DataError, match="expected: sample:NAME"):
            open_data(text)


def part_of(source: Source) -> list[str | None]:
    return [source.truth(i).label for i in range(3)]


def test_real_packs(shared_data: Callable[[str], Path]) -> None:
    cats = open_data(shared_data("feral_cats"), "train")
    assert len(cats) == 536 and cats.has_masks and not cats.has_labels and cats.image(0).shape == (256, 256, 3)
    mask = cats.truth(0).mask
    assert mask is not None and mask.shape == (256, 256) and mask.max() >= 1
    assert len(open_data(shared_data("feral_cats"))) == 536 + 129
    cifar = open_data(shared_data("cifar10"), "test")
    assert len(cifar) == 10_000 and cifar.image(0).shape == (32, 32, 3)
    assert set(part_of(cifar)) <= {
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    }
    video = open_data(shared_data("davis16"), "test").truth(0)
    assert video.label is None and video.source_id == "car-roundabout" and video.mask is not None
    clothes = open_data(shared_data("clothing"), "test")
    assert clothes.has_labels and len({clothes.truth(i).label for i in range(len(clothes))}) == 10


def test_frames_are_the_pictures_where_there_are_only_videos(shared_data: Callable[[str], Path]) -> None:
    source = open_data(shared_data("weizmann_actions"), "test")
    assert len(source) % 4 == 0 and source.keys[0].endswith("@0") and source.image(0).shape[2] == 3


def test_list_source_keeps_missing_files_as_bad(tmp_path: Path) -> None:
    source = ListSource([draw(tmp_path / "a.png"), tmp_path / "gone.png"])
    with pytest.raises(BadFile, match="does not exist"):
        source.image(1)
