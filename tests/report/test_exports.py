"""Exports: COCO run lengths, boxes, YOLO labels, masks, embeddings and ONNX."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from selftaught.core.errors import DataError, RunError
from selftaught.report import exports, onnx_export
from selftaught.report.exports import ObjectMask, PictureObjects


def masks() -> list[npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    blobs = [rng.random((h, w)) < p for h, w, p in ((1, 1, 0.5), (7, 5, 0.5), (64, 48, 0.02), (33, 129, 0.97))]
    big = np.zeros((600, 800), dtype=bool)
    big[100:500, 200:640] = True
    return [*blobs, np.zeros((6, 4), dtype=bool), np.ones((6, 4), dtype=bool), big, big[::-1, ::-1].copy()]


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_there_and_back(compressed: bool) -> None:
    for mask in masks():
        rle = json.loads(json.dumps(exports.rle_encode(mask, compressed=compressed)))
        np.testing.assert_array_equal(exports.rle_decode(rle), mask)


def test_run_lengths_by_hand() -> None:
    mask = np.array([[0, 1], [1, 1], [0, 1]])
    assert exports.rle_encode(mask, compressed=False) == {"size": [3, 2], "counts": [1, 1, 1, 3]}
    assert exports.rle_encode(np.ones((2, 2)), compressed=False)["counts"] == [0, 4]
    assert exports.rle_compress([6, 1, 40, 4, 5, 4, 5, 4, 21]) == "61X13mN000`0"


def test_run_lengths_equal_the_field_library() -> None:
    mask_api = pytest.importorskip("faster_coco_eval.core.mask")
    for mask in masks():
        theirs = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        ours = exports.rle_encode(mask)
        counts = theirs["counts"].decode() if isinstance(theirs["counts"], bytes) else theirs["counts"]
        assert ours == {"size": [int(side) for side in theirs["size"]], "counts": counts}
        np.testing.assert_array_equal(mask_api.decode(ours), mask)
        np.testing.assert_array_equal(exports.rle_decode(theirs), mask)
        assert tuple(np.asarray(mask_api.toBbox(ours)).astype(int)) == exports.box_of(mask)
        assert int(mask_api.area(ours)) == mask.sum()


def test_broken_run_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="cut short"):
        exports.rle_expand("X")
    with pytest.raises(DataError, match="do not fit"):
        exports.rle_decode({"size": [2, 2], "counts": [1, 1]})


def test_objects_of_a_soft_mask() -> None:
    soft = np.zeros((40, 40))
    soft[2:12, 2:12] = 0.9
    soft[20:24, 20:24] = 0.6
    soft[39, 39] = 1.0
    found = exports.objects_of(soft, min_area_frac=0.002)
    assert [int(item.mask.sum()) for item in found] == [100, 16]
    assert found[0].score == pytest.approx(0.9) and found[1].score == pytest.approx(0.6)
    assert exports.objects_of(np.full((5, 5), np.nan)) == []


@pytest.fixture
def found() -> list[PictureObjects]:
    first, second = np.zeros((30, 40), dtype=bool), np.zeros((30, 40), dtype=bool)
    first[5:15, 10:30] = True
    second[0:30, 35:40] = True
    return [
        PictureObjects("a/one.jpg", 30, 40, [ObjectMask(first, 0.8), ObjectMask(second, 0.4)]),
        PictureObjects("a/one.png", 30, 40, [ObjectMask(np.zeros((30, 40), dtype=bool), 0.1)]),
        PictureObjects("../../evil.jpg", 10, 10),
    ]


def test_coco_file(found: list[PictureObjects], tmp_path: Path) -> None:
    path = exports.write_coco(tmp_path / "deep" / "objects.coco.json", found)
    content = json.loads(path.read_text())
    assert [image["file_name"] for image in content["images"]] == ["a/one.jpg", "a/one.png", "../../evil.jpg"]
    assert [item["bbox"] for item in content["annotations"]] == [[10, 5, 20, 10], [35, 0, 5, 30]]
    assert [item["area"] for item in content["annotations"]] == [200, 150]
    assert len({item["id"] for item in content["annotations"]}) == 2
    np.testing.assert_array_equal(
        exports.rle_decode(content["annotations"][0]["segmentation"]), found[0].objects[0].mask
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["objects.coco.json"]
    with pytest.raises(DataError, match="wrong size"):
        exports.write_coco(path, [PictureObjects("x", 3, 3, [ObjectMask(np.ones((2, 2)), 1.0)])])
    assert json.loads(path.read_text()) == content


def test_coco_file_loads_in_the_field_library(found: list[PictureObjects], tmp_path: Path) -> None:
    library = pytest.importorskip("faster_coco_eval")
    coco = library.COCO(str(exports.write_coco(tmp_path / "objects.json", found)))
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    np.testing.assert_array_equal(coco.annToMask(annotations[0]), found[0].objects[0].mask)


def test_yolo_labels(found: list[PictureObjects], tmp_path: Path) -> None:
    folder = exports.write_yolo(tmp_path / "yolo", found, category="thing")
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files["classes.txt"] == "thing\n"
    assert set(files) == {"classes.txt", "labels/a/one.txt", "labels/a/one-2.txt", "labels/__/__/evil.txt"}
    rows = [[float(figure) for figure in line.split()] for line in files["labels/a/one.txt"].splitlines()]
    assert rows[0] == pytest.approx([0, 0.5, 1 / 3, 0.5, 1 / 3], abs=1e-6)
    assert all(0.0 <= figure <= 1.0 for row in rows for figure in row)
    assert files["labels/a/one-2.txt"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    names = ["/etc/passwd", "..", "a/../../b", "C:\\x\\y.png", "", "A.jpg", "a.jpg", "z" * 400, "n\0ul\n", "\udcff.png"]
    targets = exports.target_paths(tmp_path, names, ".png")
    assert len({str(target).casefold() for target in targets}) == len(names)
    for target in targets:
        assert target.resolve().is_relative_to(tmp_path.resolve())
        exports.write_mask(target, np.ones((2, 2)))


def test_masks_are_8_bit_at_the_input_size(tmp_path: Path) -> None:
    soft = np.linspace(0, 1, 12).reshape(3, 4)
    plain = np.asarray(Image.open(exports.write_mask(tmp_path / "a.png", soft)))
    np.testing.assert_array_equal(plain, np.round(soft.astype(np.float32) * 255).astype(np.uint8))
    stretched = Image.open(exports.write_mask(tmp_path / "b.png", soft, (30, 50)))
    assert stretched.size == (50, 30) and stretched.mode == "L"


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_there_and_back(suffix: str, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    features = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    keys = ["a/b", "ü 猫", "<x>", "'", "c"]
    path = exports.write_embeddings(tmp_path / f"features{suffix}", keys, features)
    names, back = exports.read_embeddings(path)
    assert names == keys
    np.testing.assert_array_equal(back, features)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    empty = exports.write_embeddings(tmp_path / f"empty{suffix}", [], np.zeros((0, 7)))
    assert exports.read_embeddings(empty)[1].shape == (0, 7)


def test_embedding_files_have_the_documented_keys(tmp_path: Path) -> None:
    with np.load(exports.write_embeddings(tmp_path / "f.npz", ["a"], np.ones((1, 2))), allow_pickle=False) as file:
        assert sorted(file.files) == ["embedding", "path"]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(exports.write_embeddings(tmp_path / "f.parquet", ["\udcff"], np.ones((1, 2))))
    assert table.column_names == ["path", "embedding"] and table["path"].to_pylist() == ["\\udcff"]


def test_embeddings_refuse_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="2 names"):
        exports.write_embeddings(tmp_path / "f.npz", ["a", "b"], np.ones((1, 2)))
    with pytest.raises(DataError, match="csv"):
        exports.write_embeddings(tmp_path / "f.csv", ["a"], np.ones((1, 2)))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(RunError, match=r"selftaught\[export\]"):
        exports.write_embeddings(tmp_path / "f.parquet", ["a"], np.ones((1, 2)))


class Attention(nn.Module):
    """A patch embedding, one block of self-attention by the fused kernel, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 24))
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 72)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm(tokens)).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.dropout(mixed)
        return tokens.mean(dim=1), tokens


def convolutions() -> nn.Module:
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), up, nn.Conv2d(8, 1, 1), nn.Sigmoid())


@pytest.mark.parametrize("make", [convolutions, Attention])
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_computes_what_torch_computes(make: type[nn.Module], batch: int, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    module = make().train()
    said: list[str] = []
    path = tmp_path / "net.onnx"
    difference = exports.export_onnx(module, torch.rand(batch, 3, 32, 32), path, say=said.append)
    assert difference <= 1e-4 and len(said) == 1 and "exporter" in said[0]
    assert module.training
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        expected = module.eval()(images)
    outputs = session.run(None, {"input": images.numpy()})
    for reference, output in zip(expected if isinstance(expected, tuple) else [expected], outputs, strict=True):
        np.testing.assert_allclose(output, reference.numpy(), atol=1e-4)


def test_onnx_falls_back_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    real = onnx_export._export

    def broken(network: nn.Module, inputs: tuple[torch.Tensor, ...], temp: Path, dynamo: bool) -> None:
        if dynamo:
            raise ValueError("not today")
        real(network, inputs, temp, dynamo)

    monkeypatch.setattr(onnx_export, "_export", broken)
    said: list[str] = []
    exports.export_onnx(convolutions(), torch.rand(2, 3, 16, 16), tmp_path / "net.onnx", say=said.append)
    assert "TorchScript" in said[0]


def test_onnx_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    real = onnx_export._export

    def other(network: nn.Module, inputs: tuple[torch.Tensor, ...], temp: Path, dynamo: bool) -> None:
        real(nn.Sequential(network, nn.Hardtanh(-0.1, 0.1)), inputs, temp, dynamo)

    monkeypatch.setattr(onnx_export, "_export", other)
    with pytest.raises(RunError, match="largest difference"):
        exports.export_onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnx_names_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RunError, match=r"selftaught\[export\]"):
        exports.export_onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "net.onnx")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    from selftaught.core.atomic import replacing

    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(ValueError), replacing(path) as temp:
        temp.write_bytes(b"new")
        raise ValueError("stopped")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
