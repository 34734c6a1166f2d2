"""The cache: right pixels in order, reused, rebuilt when torn, continued when interrupted, refused when too broken."""

from __future__ import annotations

import errno
import json
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data import cache
from selftaught.data.base import Source, Truth
from selftaught.data.cache import build_cache, cache_root
from selftaught.data.readers import BadFile
from selftaught.data.sources import ArraySource, FolderSource, open_data


class Counting(Source):
    """Pictures made of their own number; some broken; `stop_at` plays a kill."""

    def __init__(self, n: int, broken: tuple[int, ...] = (), stop_at: int | None = None) -> None:
        super().__init__()
        self.keys = [f"{i:05d}" for i in range(n)]
        self.broken, self.stop_at, self.decoded = broken, stop_at, 0

    def image(self, i: int) -> np.ndarray:
        if i == self.stop_at:
            raise KeyboardInterrupt
        self.decoded += 1
        if i in self.broken:
            raise BadFile("empty file")
        return np.full((6, 8, 3), i % 251, np.uint8)

    def truth(self, i: int) -> Truth:
        raise AssertionError("training looked at the truth")

    def fingerprint(self) -> str:
        return f"counting-{len(self)}-{self.broken}"


def folder_of(root: Path, n: int = 6, broken: int = 0) -> Path:
    root.mkdir()
    for i in range(n):
        path = root / f"{i:03d}.png"
        if i < broken:
            path.write_bytes(b"")
        else:
            Image.new("RGB", (10 + i, 20), (i * 10, 0, 0)).save(path)
    return root


def test_pixels_keys_sizes_and_batch(tmp_path: Path) -> None:
    images = build_cache(FolderSource(folder_of(tmp_path / "in")), 8, cache_dir=tmp_path / "cache")
    assert images.images.shape == (6, 3, 8, 8) and images.images.dtype == np.uint8 and images.image_px == 8
    assert isinstance(images.images, np.memmap) and images.keys == [f"{i:03d}" for i in range(6)]
    np.testing.assert_array_equal(images.sizes, [[20, 10 + i] for i in range(6)])
    np.testing.assert_array_equal(images.images[:, 0, 4, 4], [i * 10 for i in range(6)])
    batch = images.batch(np.array([5, 0, 5]))
    assert tuple(batch.shape) == (3, 3, 8, 8) and str(batch.dtype) == "torch.uint8"
    assert batch[:, 0, 0, 0].tolist() == [50, 0, 50]
    batch[:] = 1  # a batch is a copy: the cache stays as it is
    assert images.images[5, 0, 0, 0] == 50


def test_reused_without_decoding_and_without_truth(tmp_path: Path) -> None:
    first = Counting(40)
    one = build_cache(first, 4, cache_dir=tmp_path)
    second = Counting(40)
    two = build_cache(second, 4, cache_dir=tmp_path)
    assert first.decoded == 40 and second.decoded == 0
    np.testing.assert_array_equal(one.images, two.images)
    assert build_cache(Counting(40), 5, cache_dir=tmp_path).images.shape == (40, 3, 5, 5)


def test_order_is_that_of_the_source_and_progress_ends_at_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    images = build_cache(Counting(200), 4, cache_dir=tmp_path, report=lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(images.images[:, 1, 2, 2], np.arange(200) % 251)
    assert told[0] == (0, 200) and told[-1] == (200, 200) and told == sorted(told)


def test_bad_files_are_skipped_counted_and_named(tmp_path: Path) -> None:
    images = build_cache(Counting(20, broken=(0, 7, 19)), 4, cache_dir=tmp_path)
    assert len(images) == 17 and [key for key, _ in images.bad] == ["00000", "00007", "00019"]
    assert images.bad[0][1] == "empty file"
    np.testing.assert_array_equal(images.source_index, [i for i in range(20) if i not in (0, 7, 19)])
    np.testing.assert_array_equal(images.images[:, 0, 0, 0], images.source_index)


def test_too_many_bad_files_are_refused_with_the_first_ten(tmp_path: Path) -> None:
    source = FolderSource(folder_of(tmp_path / "in", n=30, broken=12))
    with pytest.raises(DataError) as caught:
        build_cache(source, 4, cache_dir=tmp_path / "cache")
    assert caught.value.exit_code == 3
    assert "000: empty file" in str(caught.value) and "of 30" in str(caught.value)
    kept = build_cache(source, 4, cache_dir=tmp_path / "cache", max_bad_frac=0.5)
    assert len(kept) == 18
    with pytest.raises(DataError) as again:  # a cache made with a wider limit does not slip past a narrow one
        build_cache(source, 4, cache_dir=tmp_path / "cache", max_bad_frac=0.2)
    assert again.value.exit_code == 3 and "009: empty file" in str(again.value) and "and 2 more" in str(again.value)


def test_all_broken_is_refused_whatever_the_limit(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        build_cache(Counting(3, broken=(0, 1, 2)), 4, cache_dir=tmp_path, max_bad_frac=1.0)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("tear", ["cut", "empty_index", "half_index", "no_images", "zero_pages", "other"])
def test_torn_caches_are_rebuilt(tmp_path: Path, tear: str) -> None:
    whole = build_cache(Counting(50), 4, cache_dir=tmp_path)
    want, folder = np.array(whole.images), whole.folder
    del whole
    pixels, index = folder / "images.u8", folder / "index.json"
    if tear == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif tear == "empty_index":
        index.write_bytes(b"")
    elif tear == "half_index":
        index.write_bytes(index.read_bytes()[:100])
    elif tear == "no_images":
        pixels.unlink()
    elif tear == "zero_pages":
        pixels.write_bytes(bytes(len(pixels.read_bytes())))
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "fingerprint": "of something else"}))
    source = Counting(50)
    again = build_cache(source, 4, cache_dir=tmp_path)
    assert source.decoded == 50
    np.testing.assert_array_equal(again.images, want)


def test_an_interrupted_cache_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_cache(Counting(1500, broken=(3, 900), stop_at=1400), 4, cache_dir=tmp_path / "a")
    assert not list((tmp_path / "a").glob("data-*"))
    (partial,) = (tmp_path / "a").glob(".partial-*")
    with (partial / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"done": 15')  # a line that a crash cut
    source = Counting(1500, broken=(3, 900))
    told: list[int] = []
    continued = build_cache(source, 4, cache_dir=tmp_path / "a", report=lambda done, _: told.append(done))
    assert told[0] == 1024 and source.decoded == 1500 - 1024
    straight = build_cache(Counting(1500, broken=(3, 900)), 4, cache_dir=tmp_path / "b")
    np.testing.assert_array_equal(continued.images, straight.images)
    assert continued.keys == straight.keys and continued.bad == straight.bad
    assert not list((tmp_path / "a").glob(".partial-*"))


def test_two_builders_at_once_decode_once(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    sources = [Counting(600), Counting(600)]
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda source: build_cache(source, 4, cache_dir=tmp_path), sources)
    assert sorted(source.decoded for source in sources) == [0, 600]
    np.testing.assert_array_equal(one.images, two.images)


def test_a_changed_file_gives_a_new_cache(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in")
    first = build_cache(FolderSource(root), 4, cache_dir=tmp_path / "cache")
    Image.new("RGB", (99, 20), "white").save(root / "000.png")
    second = build_cache(FolderSource(root), 4, cache_dir=tmp_path / "cache")
    assert first.folder != second.folder and second.images[0].min() == 255


def test_no_room_on_disk_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(10, 10, 0))
    source = Counting(10)
    with pytest.raises(DataError) as caught:
        build_cache(source, 4, cache_dir=tmp_path)
    assert caught.value.exit_code == 5 and source.decoded == 0 and "SELFTAUGHT_CACHE" in str(caught.value)


def test_a_disk_that_fills_up_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "to_disk", full)
    with pytest.raises(DataError) as caught:
        build_cache(Counting(10), 4, cache_dir=tmp_path)
    assert caught.value.exit_code == 5 and not list(tmp_path.glob(".partial-*"))


def test_a_cache_folder_that_cannot_be_made_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="SELFTAUGHT_CACHE"):
        build_cache(Counting(2), 4, cache_dir=tmp_path / "file" / "cache")


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("SELFTAUGHT_CACHE")
    assert cache_root() == Path.home() / ".cache" / "selftaught"


def test_arrays_of_both_layouts_give_the_same_cache_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    last = build_cache(ArraySource(pixels), 8, cache_dir=tmp_path)
    first = build_cache(ArraySource(pixels.transpose(0, 3, 1, 2)), 8, cache_dir=tmp_path)
    np.testing.assert_array_equal(last.images, pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(first.images, last.images)
    with pytest.raises(DataError, match="image_px"):
        build_cache(open_data(pixels), 0, cache_dir=tmp_path)
