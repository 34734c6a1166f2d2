"""The report on data: counts, broken files, duplicates, leaks between train and test, and truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data.check import check, difference_hash, near_groups


def scene(seed: int, h: int = 96, w: int = 128) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_a_folder_with_everything(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "train" / f"{i}.png", scene(i))
    save(tmp_path / "train" / "copy.bmp", scene(0))
    save(tmp_path / "train" / "pressed.jpg", scene(1), quality=60)
    save(tmp_path / "test" / "leak.png", scene(2))
    save(tmp_path / "test" / "small.png", scene(9, 10, 20))
    (tmp_path / "test" / "empty.png").write_bytes(b"")
    (tmp_path / "test" / "page.jpg").write_bytes(b"<html></html>")
    (tmp_path / "test" / "named.jpg").write_bytes((tmp_path / "train" / "5.png").read_bytes())
    told: list[tuple[int, int]] = []
    found = check(tmp_path, report=lambda done, total: told.append((done, total)))
    assert (found.total, found.official, found.parts) == (13, True, {"train": 8, "test": 5})
    reasons = dict(found.bad)
    assert reasons["test/empty"] == "empty file" and "HTML" in reasons["test/page"]
    assert found.usable == 11 and found.bad_frac == 2 / 13
    assert ["train/0", "train/copy"] in [sorted(group) for group in found.exact]
    assert ["train/1", "train/pressed"] in [sorted(group) for group in found.near]
    shared = [sorted(group) for group in found.shared]
    assert ["test/leak", "train/2"] in shared and any("test/named" in group for group in shared)
    assert any(line.startswith("test/named") for line in found.wrong_suffix)
    assert found.formats["JPEG"] == 1 and found.formats["BMP"] == 1
    assert found.smallest == (10, 20) and found.sizes["<= 32 px"] == 1 and told[-1] == (13, 13)
    text = "\n".join(found.lines())
    assert "13 pictures" in text and "test/empty: empty file" in text and "in train and in test" in text
    assert json.loads(json.dumps(found.to_json()))["total"] == 13


def test_groups_that_the_split_cuts_are_counted(tmp_path: Path) -> None:
    for part, video in (("a", "cow"), ("a", "bus"), ("b", "bus")):
        for i in range(12):
            name = f"{part}{i}.png"
            save(tmp_path / "cut" / video / name, scene(i))
            save(tmp_path / "cut" / "masks" / video / name, np.ones((4, 4), np.uint8))
            save(tmp_path / "whole" / ("test" if video == "cow" else "train") / video / name, scene(i))
    found = check(tmp_path / "cut")
    assert (found.groups, found.cut_groups) == (2, 2) and "2 groups, 2 of them in train and in test" in "\n".join(found.lines())
    assert any("whole groups" in note for note in found.notes)
    assert check(tmp_path / "whole").cut_groups == 0


def test_clean_arrays_have_nothing_to_report() -> None:
    found = check(np.stack([scene(i) for i in range(10)]))
    assert not found.bad and not found.exact and not found.near and not found.shared and found.formats == {"array": 10}
    assert "none" in next(line for line in found.lines() if line.startswith("truth"))
    assert sum(found.parts.values()) == 10 and not found.official


def test_plain_pictures_of_other_colours_are_no_duplicates() -> None:
    flat = np.stack([np.full((16, 16, 3), value, np.uint8) for value in range(0, 250, 25)])
    found = check(flat)
    assert not found.exact and not found.near
    assert check(np.concatenate([flat, flat[:1]])).exact == [["00", "10"]]


def test_difference_hash_survives_light_and_size_but_not_mirroring() -> None:
    picture = scene(3)
    bright = np.clip(picture.astype(int) * 0.9 + 20, 0, 255).astype(np.uint8)
    small = np.asarray(Image.fromarray(picture).resize((64, 48)))
    mine = difference_hash(picture)
    assert mine.shape == (64,) and (mine != difference_hash(bright)).sum() <= 3
    assert (mine != difference_hash(small)).sum() <= 3 and (mine != difference_hash(picture[:, ::-1])).sum() > 10


def test_near_groups_agree_with_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2, (12, 64)).astype(bool)
    hashes = seeds[rng.integers(0, 12, 60)]
    for row in hashes:
        row[rng.integers(0, 64, rng.integers(0, 3))] ^= True
    small = np.zeros((60, 16, 16, 3), np.uint8)
    parent = list(range(60))
    for a in range(60):
        for b in range(a + 1, 60):
            if (hashes[a] != hashes[b]).sum() <= 3:
                old, new = max(parent[a], parent[b]), min(parent[a], parent[b])
                parent = [new if p == old else p for p in parent]
    want = sorted([i for i in range(60) if parent[i] == p] for p in set(parent) if parent.count(p) > 1)
    assert sorted(near_groups(range(60), hashes, small)) == want


def test_truth_is_counted_and_broken_truth_named(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", scene(i, 4, 6))
    save(tmp_path / "masks" / "0.png", np.array([[0, 1, 2, 255, 0, 0]] * 4, np.uint8))
    (tmp_path / "masks" / "1.png").write_bytes(b"")
    found = check(tmp_path)
    assert (found.masks, found.objects) == (1, 2) and found.bad_truths == [("images/1", "empty file")]
    assert "1 masks with 2 objects" in "\n".join(found.lines())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check(tmp_path)


def test_real_data(shared_data: Callable[[str], Path]) -> None:
    found = check(shared_data("feral_cats"))
    assert (found.total, found.usable, found.masks, found.objects) == (665, 665, 665, 2652)
    assert found.parts == {"train": 536, "test": 129} and not found.shared
