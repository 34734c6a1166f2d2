"""What a report gathers: pictures that fit in memory, groups of pictures whose class is not known of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selftaught.data.evalset import open_eval
from selftaught.report.collect import KEPT_PX, clusters, found_objects, nearest


class Left:
    """Takes the left half of every picture for the object."""

    def embed(self, images: Sequence[Any]) -> Any:
        return np.zeros((len(images), 2))

    def segment(self, images: Sequence[Any]) -> list[Any]:
        return [np.repeat((np.arange(x.shape[1]) < x.shape[1] // 2)[None] * np.float32(0.75), x.shape[0], 0) for x in images]


def test_large_pictures_are_scored_as_they_are_and_kept_small(tmp_path: Path) -> None:
    """Kept as they were, 300 photographs with their masks filled the memory of the machine when everything was learned."""
    rng = np.random.default_rng(0)
    for i in range(12):
        size = (40, 30) if i % 2 else (2400, 1500)
        for folder, shade in (("images", rng.integers(0, 255, (3, 4, 3), np.uint8)), ("masks", np.uint8([[255, 0, 0, 0]] * 3))):
            (tmp_path / folder).mkdir(exist_ok=True)
            kind = Image.Resampling.NEAREST if folder == "masks" else Image.Resampling.BILINEAR
            Image.fromarray(shade).resize(size, kind).save(tmp_path / folder / f"{i:02d}.png")
    test = open_eval(str(tmp_path), "test", 32, cache_dir=tmp_path / "cache")
    found = found_objects(Left(), test)
    assert len(found) == len(test) > 0 and {max(test.sizes[i]) for i in range(len(test))} >= {2400}
    for one in found:
        assert one.picture.shape[:2] == one.mask.shape == one.truth.shape and max(one.mask.shape) <= KEPT_PX
        assert one.iou is not None and abs(one.iou - 0.5) < 1e-6, "a quarter of the picture, of the half that was found, at its own size"
        assert abs(float(one.mask[:, : one.mask.shape[1] // 4].mean()) - 0.75) < 0.01 and one.confidence == 0.75
        assert abs(float((one.truth == 1).mean()) - 0.25) < 0.01


def test_pictures_of_no_known_class_are_no_class() -> None:
    embedding, pictures = np.random.default_rng(0).normal(size=(9, 4)), [np.zeros((8, 8, 3), np.uint8)] * 9
    assert clusters(embedding, pictures, np.array([""] * 7 + ["cat", "dog"]))[0].purity == 0.5
    assert clusters(embedding, pictures, np.array([""] * 9))[0].purity is None
    assert len(nearest(embedding, pictures)[0].found) == 8, "as many as the page has columns"
