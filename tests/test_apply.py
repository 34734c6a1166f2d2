"""Using a run on pictures: files written, names kept, broken files skipped, what a run cannot do is said."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught import apply
from selftaught.core.errors import ConfigError, DataError, RunError
from selftaught.report.exports import ObjectMask, read_embeddings, rle_decode


class Mean(torch.nn.Module):
    """A trained method that offers `embed`."""

    image_px = 8

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(3, 2)

    def players(self) -> dict[str, Any]:
        return {"encoder": self.mix}

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.mix(images.mean((2, 3)))


class Bright:
    """Embeds a picture as its mean colour and segments what is bright."""

    def __init__(self, capabilities: tuple[str, ...] = ("embed", "segment")) -> None:
        self.capabilities = capabilities
        self.batches: list[int] = []

    def embed(self, images: Sequence[Any]) -> np.ndarray:
        self.batches.append(len(images))
        return np.stack([image.mean((0, 1)) for image in images]).astype(np.float32)

    def segment(self, images: Sequence[Any]) -> list[np.ndarray]:
        return [image[..., 0].astype(np.float32) / 255 for image in images]

    def provider(self, capability: str) -> Any:
        return Mean() if capability == "embed" else types.SimpleNamespace(players=dict, parameters=lambda: iter(()))


@pytest.fixture
def learned(loads: Callable[[Any], None]) -> Bright:
    """What `load` returns, whatever the run."""
    bright = Bright()
    loads(bright)
    return bright


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of different sizes with a bright block each, in folders, and one broken file."""
    folder = tmp_path / "photos"
    for number, name in enumerate(["a.png", "b.png", "deep/a.png", "deep/er/c.bmp", "z.png"]):
        pixels = np.zeros((20 + number, 30 + number, 3), np.uint8)
        pixels[4:12, 5 : 15 + number] = 255
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


def test_segment_writes_masks_at_the_size_of_the_input(
    learned: Bright, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = apply.segment("run", photos, tmp_path / "found", batch=2)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    masks = {"masks/a.png", "masks/b.png", "masks/deep/a.png", "masks/deep/er/c.png", "masks/z.png"}
    assert names == masks | {"objects.coco.json"}
    with Image.open(out / "masks/deep/er/c.png") as mask:
        assert mask.mode == "L"
        pixels = np.asarray(mask)
    assert pixels.shape == (23, 33)
    assert pixels[4:12, 5:18].min() == 255 and pixels.sum() == 255 * 8 * 13
    coco = json.loads((out / "objects.coco.json").read_text())
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in coco["images"]}
    assert sizes["deep/er/c.bmp"] == (23, 33) and len(sizes) == 5
    by_name = {image["file_name"]: image["id"] for image in coco["images"]}
    (found,) = [a for a in coco["annotations"] if a["image_id"] == by_name["deep/er/c.bmp"]]
    assert found["bbox"] == [5, 4, 13, 8] and found["area"] == 104 and found["score"] == 1.0
    assert rle_decode(found["segmentation"]).sum() == 104
    err = capsys.readouterr().err
    assert "skipped 1 of 6" in err and "broken" in err


@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
def test_embed_writes_path_and_embedding(learned: Bright, photos: Path, tmp_path: Path, name: str) -> None:
    out = apply.embed("run", photos, tmp_path / name, batch=2, quiet=True)
    paths, vectors = read_embeddings(out)
    assert sorted(paths) == ["a.png", "b.png", "deep/a.png", "deep/er/c.bmp", "z.png"]
    assert vectors.shape == (5, 3)
    assert vectors[paths.index("a.png"), 0] == pytest.approx(255 * 80 / 600, rel=1e-5)
    assert learned.batches == [2, 2, 1]


def test_large_pictures_make_small_batches(
    learned: Bright, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "BATCH_PX", 700)
    apply.embed("run", photos, tmp_path / "x.npz", quiet=True)
    assert max(learned.batches) <= 2 and sum(learned.batches) == 5


def test_arrays_have_names_as_well(learned: Bright, tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    paths, vectors = read_embeddings(apply.embed("run", images, tmp_path / "x.npz", quiet=True))
    assert len(set(paths)) == 3 and vectors.shape == (3, 3)


def test_the_file_is_looked_at_before_the_work(learned: Bright, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no known suffix"):
        apply.embed("run", photos, tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="threshold is 50"):
        apply.segment("run", photos, tmp_path / "found", threshold=50)
    assert not learned.batches and not (tmp_path / "found").exists()


def test_only_broken_pictures_are_an_error(learned: Bright, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        (folder / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match="None of the 2 pictures can be read") as error:
        apply.embed("run", folder, tmp_path / "x.npz", quiet=True)
    assert error.value.exit_code == 3


def test_what_was_not_learned_is_said(learned: Bright, photos: Path, tmp_path: Path) -> None:
    learned.capabilities = ("embed",)
    with pytest.raises(RunError, match="has not learned to segment"):
        apply.segment("run", photos, tmp_path / "found")
    with pytest.raises(RunError, match="cannot write 'coco'"):
        apply.export("run", ["coco"], tmp_path / "e", data=photos)
    with pytest.raises(ConfigError, match="no format 'svg'"):
        apply.export("run", ["svg"], tmp_path / "e", data=photos)
    written = apply.export("run", ["npz", "parquet"], tmp_path / "e", data=photos, quiet=True)
    assert [path.name for path in written] == ["embeddings.npz", "embeddings.parquet"]


def test_export_writes_everything_in_one_pass(learned: Bright, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"data": str(photos)}))
    written = apply.export(run, quiet=True)
    names = ["features.onnx", "masks", "objects.coco.json", "yolo", "embeddings.npz", "embeddings.parquet"]
    assert [path.relative_to(run / "export").as_posix() for path in written] == names
    assert all(path.exists() for path in written)
    assert learned.batches == [5]
    assert len(list((run / "export" / "yolo" / "labels").rglob("*.txt"))) == 5


def test_export_needs_pictures_when_the_run_knows_none(learned: Bright, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"data": None}))
    with pytest.raises(RunError, match="did not learn from files"):
        apply.export(tmp_path, ["npz"])


def test_packed_objects_are_the_objects() -> None:
    generator = np.random.default_rng(0)
    objects = [ObjectMask(generator.random((7, 9)) > 0.5, 0.25 * i) for i in range(3)]
    packed = apply.PackedObjects(objects)
    assert len(packed) == 3
    for found, original in zip(packed, objects, strict=True):
        assert np.array_equal(found.mask, original.mask) and found.score == original.score
    assert [found.score for found in packed[1:]] == [0.25, 0.5]
