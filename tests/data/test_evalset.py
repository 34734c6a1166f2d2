"""Truth stays aligned with the pictures that could be read, and is never touched by the training path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.base import Source, Truth
from selftaught.data.evalset import EvalSet, open_eval
from selftaught.data.readers import BadFile
from selftaught.data.sources import ArraySource


class Odd(Source):
    """Seven pictures of which two are broken; one mask is broken, one has the wrong size, one is missing."""

    has_masks = has_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.keys = list("abcdefg")

    def image(self, i: int) -> np.ndarray:
        if i in (0, 3):
            raise BadFile("empty file")
        return np.full((4, 6, 3), i, np.uint8)

    def truth(self, i: int) -> Truth:
        if i == 1:
            raise BadFile("truncated PNG file")
        masks = {2: np.full((4, 6), 2, np.uint8), 4: np.zeros((9, 9), np.uint8), 6: np.eye(4, 6, dtype=np.uint8)}
        return Truth(masks.get(i), f"class{i}", source_id=f"group{i % 2}")

    def fingerprint(self) -> str:
        return "odd"


def odd(tmp_path: Path) -> EvalSet:
    return open_eval(Odd(), "all", 8, cache_dir=tmp_path, max_bad_frac=0.5)


def test_truth_is_aligned_with_the_pictures_left(tmp_path: Path) -> None:
    found = odd(tmp_path)
    labels = found.labels()
    assert found.keys == ["b", "c", "e", "f", "g"] and len(found) == 5
    assert labels is not None and labels.tolist() == ["", "class2", "class4", "class5", "class6"]
    assert found.source_ids().tolist() == ["", "group0", "group0", "group1", "group0"]
    assert found.object_ids().tolist() == [""] * 5
    assert found.image(4)[0, 0, 0] == 6


def test_unusable_masks_are_none_and_named(tmp_path: Path) -> None:
    found = odd(tmp_path)
    kept = [found.mask(i) is not None for i in range(5)]
    assert kept == [False, True, False, False, True]
    assert found.bad_truths == [("b", "truncated PNG file"), ("e", "the mask is 9x9, the picture 6x4")]
    found.labels()
    assert len(found.bad_truths) == 2


def test_masks_at_is_nearest_and_unknown_is_ignore(tmp_path: Path) -> None:
    maps = odd(tmp_path).masks_at(12)
    assert maps.shape == (5, 12, 12) and maps.dtype == np.uint8
    assert (maps[[0, 2, 3]] == 255).all() and (maps[1] == 2).all()
    want = np.asarray(Image.fromarray(np.eye(4, 6, dtype=np.uint8)).resize((12, 12), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(maps[4], want)


def test_data_without_truth_says_none(tmp_path: Path) -> None:
    found = open_eval(np.zeros((4, 5, 5, 3), np.uint8), "all", 5, cache_dir=tmp_path)
    assert found.labels() is None and found.mask(0) is None and (found.masks_at(3) == 255).all()


def test_limit_takes_the_same_fair_part_each_time(tmp_path: Path) -> None:
    pixels = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    source = ArraySource(pixels, [str(i // 20) for i in range(200)])
    one = open_eval(source, "all", 2, 50, cache_dir=tmp_path)
    two = open_eval(source, "all", 2, 50, cache_dir=tmp_path)
    labels = one.labels()
    assert one.keys == two.keys and len(one) == 50 and one.keys == sorted(one.keys)
    assert labels is not None and len(set(labels)) >= 8
    np.testing.assert_array_equal(one.images.images[:, 0, 0, 0], [int(key) for key in one.keys])
    assert set(open_eval(source, "all", 2, 20, cache_dir=tmp_path).keys) < set(one.keys)


@pytest.mark.parametrize("name", ["coco_small", "davis16"])
def test_real_masks_fit_their_pictures(shared_data: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    found = open_eval(shared_data(name), "test", 32, 20, cache_dir=tmp_path)
    maps = found.masks_at(32)
    assert len(found) == 20 and maps.shape == (20, 32, 32) and not found.bad_truths
    assert ((maps > 0) & (maps < 255)).any() and found.labels() is None
