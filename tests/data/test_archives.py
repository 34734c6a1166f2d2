"""Arrays, npz archives and tars: layouts, labels, masks, and what is refused."""

from __future__ import annotations

import builtins
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.core.errors import DataError
from selftaught.data import archives
from selftaught.data.readers import BadFile
from selftaught.data.sources import ArraySource, NpzSource, TarSource, open_data


def png(value: int = 50, size: tuple[int, int] = (12, 9), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, kind)
    return stream.getvalue()


def ids_png(ids: list[list[int]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.array(ids, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_silhouettes_of_0_and_255_are_objects_in_every_kind_of_data(tmp_path: Path) -> None:
    drawn = [[0, 255], [255, 255]]
    tar = TarSource(make_tar(tmp_path / "x.tar", {"a.jpg": png(size=(2, 2), kind="JPEG"), "a.png": ids_png(drawn)}))
    arrays = ArraySource(np.zeros((2, 2, 2, 3), np.uint8), masks=np.array([drawn, [[0, 0], [0, 0]]], np.uint8))
    for source in (tar, arrays):
        np.testing.assert_array_equal(source.truth(0).mask, [[0, 1], [1, 1]])
    with_ids = ArraySource(np.zeros((2, 2, 2, 3), np.uint8), masks=np.array([drawn, [[0, 1], [2, 0]]], np.uint8))
    np.testing.assert_array_equal(with_ids.truth(0).mask, drawn)  # beside masks with ids 255 is ignored


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 3, 6, 5), (4, 6, 5), (4, 6, 5, 1), (4, 1, 6, 5)])
def test_arrays_of_every_layout(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = ArraySource(pixels)
    assert len(source) == 4 and source.image(3).shape == (6, 5, 3) and source.keys == ["0", "1", "2", "3"]
    half = ArraySource((pixels / 255.0).astype(np.float32))
    np.testing.assert_array_equal(half.image(3), source.image(3))
    assert source.fingerprint() == ArraySource(pixels.copy()).fingerprint()
    assert source.fingerprint() != ArraySource(255 - pixels).fingerprint()


def test_tensors_labels_and_masks() -> None:
    import torch

    source = ArraySource(torch.zeros(2, 3, 4, 4, requires_grad=True), ["cat", "dog"], np.ones((2, 4, 4), bool))
    assert source.has_labels and source.has_masks
    truth = source.truth(1)
    assert truth.label == "dog" and truth.mask is not None and truth.mask.dtype == np.uint8


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4, 4, 3), np.int64), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8),
        np.full((1, 4, 4, 3), 200.0), np.full((1, 4, 4, 3), np.nan), np.zeros((2, 5, 4, 4), np.uint8),
        np.array([None, None]),
    ],
)  # fmt: skip
def test_arrays_that_are_no_pictures(bad: np.ndarray) -> None:
    with pytest.raises(DataError):
        ArraySource(bad)


def test_labels_and_masks_of_the_wrong_length() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    for labels, masks in ((["a"], None), (None, np.zeros((2, 3, 3), np.uint8)), (None, np.zeros((2, 4, 4), int))):
        with pytest.raises(DataError):
            ArraySource(pixels, labels, masks)


def test_npz_of_pixels_and_of_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, labels=np.array([0, 1, 0]), classes=np.array(["cat", "dog"]))
    source = open_data(tmp_path / "a.npz")
    assert isinstance(source, NpzSource) and [source.truth(i).label for i in range(3)] == ["cat", "dog", "cat"]
    np.testing.assert_array_equal(source.image(2), pixels[2])
    files = [png(10), b"", png(30)]
    offset = np.cumsum([0] + [len(f) for f in files])
    np.savez(tmp_path / "b.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offset=offset, label=np.arange(3))
    packed = open_data(tmp_path / "b.npz")
    assert packed.image(2)[0, 0, 0] == 30 and packed.truth(2).label == "2"
    with pytest.raises(BadFile, match="empty"):
        packed.image(1)


def test_npz_that_must_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.array([{"code": "object"}], dtype=object))
    with pytest.raises(DataError, match="no Python objects"):
        open_data(path)
    np.savez(path, y=np.zeros(3))
    with pytest.raises(DataError, match="expected"):
        open_data(path)
    np.savez(path, jpeg=np.zeros(5, np.uint8), offset=np.array([0, 3, 99]))
    with pytest.raises(DataError, match="offset"):
        open_data(path)
    np.savez(path, x=np.zeros((2, 4, 4, 3), np.uint8), label=np.array([0, 5]), classes=np.array(["a"]))
    with pytest.raises(DataError, match="classes"):
        open_data(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be read"):
        open_data(path)


# tars


def test_a_tar_with_masks_and_facts(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "train.tar",
        {
            "./000001.jpg": png(10, (2, 1), "JPEG"), "000001.png": ids_png([[0, 2]]),
            "000001.json": json.dumps({"source": "farm", "person": "p1"}).encode(),
            "000002.jpg": png(20, (2, 1), "JPEG"), "readme.md": b"text", ".hidden.jpg": b"", "000002.JSON": b"{broken",
        },
    )  # fmt: skip
    source = open_data(path)
    assert isinstance(source, TarSource) and source.keys == ["000001", "000002"] and source.name == "train"
    assert source.has_masks and not source.has_labels and "1 members" in source.notes[0]
    truth = source.truth(0)
    np.testing.assert_array_equal(truth.mask, [[0, 2]])
    assert (truth.label, truth.source_id, truth.object_id) == (None, "farm", "p1")
    with pytest.raises(BadFile, match="json"):
        source.truth(1)
    assert abs(int(source.image(1)[0, 0, 0]) - 20) <= 2


def test_tar_labels_come_from_json_or_from_class_folders(tmp_path: Path) -> None:
    folders = make_tar(tmp_path / "a.tar", {"cat/0.png": png(), "dog/0.png": png()})
    assert [TarSource(folders).truth(i).label for i in range(2)] == ["cat", "dog"]
    told = make_tar(tmp_path / "b.tar", {"0.png": png(), "0.json": b'{"category": "cow"}', "1.png": png()})
    assert TarSource(told).has_labels and TarSource(told).truth(0).label == "cow"
    single = make_tar(tmp_path / "c.tar", {"cat/0.png": png(), "cat/1.png": png()})
    assert not TarSource(single).has_labels
    deep = make_tar(tmp_path / "d.tar", {"ep0/view0/0.png": png(), "ep1/view0/0.png": png()})
    assert not TarSource(deep).has_labels and TarSource(deep).truth(1).source_id == "ep1/view0"
    video = make_tar(tmp_path / "e.tar", {"v0/0.jpg": png(), "v0/0.png": ids_png([[1]]), "v1/0.jpg": png()})
    assert TarSource(video).truth(0).label is None and TarSource(video).truth(0).source_id == "v0"


def test_dots_in_names(tmp_path: Path) -> None:
    parts = {"1.jpg": png(), "1.seg1.png": png(), "photo.v1.jpg": png(), "photo.v2.jpg": png()}
    source = TarSource(make_tar(tmp_path / "a.tar", parts))
    assert source.keys == ["1", "photo.v1", "photo.v2"] and not source.has_masks


def test_several_tars_and_patterns(tmp_path: Path) -> None:
    for shard in range(3):
        make_tar(tmp_path / f"train-{shard:03d}.tar", {"0.png": png(shard), f"{shard}x.png": png(shard)})
    make_tar(tmp_path / "test-000.tar", {"0.png": png(9)})
    assert len(open_data(tmp_path, "train")) == 6 and len(open_data(tmp_path, "test")) == 1
    braces = open_data(str(tmp_path / "train-{000..002}.tar"))
    star = open_data(str(tmp_path / "train-*.tar"))
    assert len(set(braces.keys)) == 6 and braces.keys == star.keys and braces.image(4)[0, 0, 0] == 2
    assert braces.fingerprint() == star.fingerprint()


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png", "..\\a.png", "C:/a.png"])
def test_names_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    path = make_tar(tmp_path / "a.tar", {"good.png": png(), name: png()})
    with pytest.raises(DataError, match="member named"):
        TarSource(path)


def test_links_that_stay_inside_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind, name, target in ((tarfile.SYMTYPE, "x/b.png", "../a.png"), (tarfile.LNKTYPE, "c.png", "a.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        member = tarfile.TarInfo("a.png")
        member.size = len(png())
        tar.addfile(member, io.BytesIO(png()))
    source = TarSource(path)
    assert source.keys == ["a"] and "2 links are left out" in source.notes[0]


def test_tar_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{i}.png": png() for i in range(5)})
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10)
    with pytest.raises(BadFile, match="member of"):
        TarSource(path).image(0)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 4)
    with pytest.raises(DataError, match="more than 4 members"):
        TarSource(path)


def test_broken_tars(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "a.tar", {f"{i}.png": png() for i in range(5)}).read_bytes()
    for name, data in (("cut", whole[:1800]), ("gz", b"\x1f\x8b" + bytes(600)), ("text", b"hello" * 300), ("0", b"")):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        with pytest.raises(DataError):
            TarSource(path)
    with pytest.raises(DataError, match="no pictures"):
        TarSource(make_tar(tmp_path / "none.tar", {"a.txt": b"x"}))
    with pytest.raises(DataError, match="cannot be opened"):
        TarSource(tmp_path / "gone.tar")


def test_a_tar_that_shrinks_after_opening_is_a_bad_file(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"0.png": png(), "1.png": png()})
    source = TarSource(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadFile, match="truncated"):
        source.image(1)


def test_a_url_is_read_in_place(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/shelf/a.tar", make_tar(tmp_path / "a.tar", {"0.png": png(7), "1.png": png(8)}).read_bytes())
    source = open_data("memory://shelf/a.tar")
    assert source.keys == ["0", "1"] and source.image(1)[0, 0, 0] == 8 and source.name == "a"
    with pytest.raises(DataError, match="cannot be opened"):
        open_data("memory://shelf/gone.tar")
    with pytest.raises(DataError, match="not a tar"):
        open_data("memory://shelf/a.zip")
    assert open_data(f"file://{tmp_path / 'a.tar'}").keys == ["0", "1"]


def test_a_url_without_fsspec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "fsspec":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"selftaught\[cloud\]"):
        open_data("s3://bucket/a.tar")
