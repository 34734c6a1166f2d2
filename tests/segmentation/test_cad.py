"""CAD: pseudo-boxes of every kind of teacher, boxes that move with crops, a toy that is learned, and its negative controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.seeds import seed_all
from selftaught.data.augment import crop_resize, hflip
from selftaught.measure.box_rules import FoundBoxes
from selftaught.measure.box_scores import box_scores, detect_all
from selftaught.measure.boxes import mask_to_box
from selftaught.method import Detections, Objects, Progress
from selftaught.segmentation import cad
from selftaught.segmentation.cad import Cad, draw_box, features_of, moved_boxes
from selftaught.segmentation.pseudo_boxes import giving, propose, pseudo_box_file

TINY: Any = Cad.sizes["tiny"]


class Colours(nn.Module):
    """Frozen features: the mean colour of each patch of 4 px, and how it differs from the picture's."""

    image_px, patch_px, token_width = 32, 4, 6
    capabilities, given, name = ("embed",), {}, "colours"  # type: ignore[var-annotated]

    def encoder(self) -> nn.Module:
        return self

    def features(self, images: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(images, 4)
        return torch.cat([x, x - x.mean((2, 3), keepdim=True)], 1)


class Bright:
    """A teacher that segments what is bright; may detect or tell objects apart instead."""

    name = "bright"

    def __init__(self, *capabilities: str) -> None:
        self.capabilities = capabilities or ("segment",)
        self.given = {"features": Colours()}

    def segment(self, images: Tensor) -> Tensor:
        return (images.mean(1) > 0.5).float() * 0.9

    def detect(self, images: Tensor) -> Detections:
        boxes = torch.tensor([[2.0, 4, 20, 16], [8, 8, 30, 30], [0, 0, 0, 0]])
        return Detections(boxes.expand(len(images), 3, 4), torch.tensor([0.4, 0.8, 0.0]).expand(len(images), 3))

    def objects(self, images: Tensor) -> Objects:
        masks = torch.zeros(len(images), 3, 32, 32)
        masks[:, 0, 4:16, 2:20], masks[:, 1, 8:30, 8:30] = 0.9, 0.9
        return Objects(masks, torch.tensor([0.4, 0.8, 0.0]).expand(len(images), 3))


class Pictures:
    """The part of an ImageSet that training reads: one bright rectangle on dark noise each, with its box."""

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = rng.integers(20, 80, (count, 3, 32, 32)).astype(np.uint8)
        self.boxes = np.zeros((count, 1, 4))
        for i in range(count):
            h, w = rng.integers(8, 18, 2)
            y, x = rng.integers(1, 31 - h), rng.integers(1, 31 - w)
            self.boxes[i, 0] = [x, y, x + w, y + h]
            self.images[i, :, y : y + h, x : x + w] = rng.integers(180, 240, (3, h, w))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return torch.from_numpy(self.images[np.asarray(indices)])


def fitted(pictures: Pictures, folder: Path, steps: int = 80, lr: float = 5e-3, shuffled: bool = False, **changes: Any) -> Cad:
    """A `cad` of size tiny trained by a plain loop."""
    seed_all(0, 0, 0)
    method = Cad(replace(TINY, **changes), {"masks": Bright()})
    method.begin(pictures, folder, lambda text: None)
    assert method.boxes is not None
    if shuffled:
        method.boxes = np.roll(method.boxes, 7, axis=0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    for step in range(steps):
        seed_all(0, 0, step)
        rows = np.random.default_rng(step).integers(0, len(pictures), 16)
        loss, _ = method.loss(method.prepare(pictures.batch(rows), rows), "detector", Progress(step, steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return method.eval()


def corloc(method: Cad, pictures: Pictures) -> float:
    found = detect_all(method, list(pictures.images.transpose(0, 2, 3, 1)))
    return box_scores(found, list(pictures.boxes), {})["corloc"].value


def test_it_learns_and_the_controls_do_not(tmp_path: Path) -> None:
    train, test = Pictures(64), Pictures(40, seed=1)
    learned = corloc(fitted(train, tmp_path), test)
    assert learned > 0.85
    assert corloc(fitted(train, tmp_path, lr=0.0, steps=1), test) < 0.4
    assert corloc(fitted(train, tmp_path, shuffled=True), test) < learned - 0.3


@pytest.mark.parametrize(
    ("capability", "rule", "boxes"),
    [
        ("detect", "all", [[2, 4, 20, 16], [8, 8, 30, 30]]),
        ("detect", "largest", [[8, 8, 30, 30]]),
        ("objects", "all", [[2, 4, 20, 16], [8, 8, 30, 30]]),
        ("objects", "refinement", [[8, 8, 30, 30]]),
    ],
)
def test_teachers_that_know_several_objects(capability: str, rule: Any, boxes: Any) -> None:
    teacher = Bright(capability, "segment")
    assert giving(teacher) == capability
    (found,) = propose(teacher, torch.zeros(1, 3, 32, 32), rule, 0.0, 0.0)
    assert found.boxes.tolist() == boxes
    (sure,) = propose(teacher, torch.zeros(1, 3, 32, 32), rule, 0.0, 0.5)
    assert sure.boxes.tolist() == [[8, 8, 30, 30]]


def test_single_and_multi_pseudo_boxes_of_a_mask() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 2:12, 3:13], images[0, :, 20:26, 20:28] = 1, 1
    single, every = (propose(Bright(), images, rule, 0.0, 0.0) for rule in ("largest", "all"))  # type: ignore[arg-type]
    assert single[0].boxes.tolist() == [[3, 2, 13, 12]] and single[0].scores == pytest.approx([0.9])
    assert every[0].boxes.tolist() == [[3, 2, 13, 12], [20, 20, 28, 26]]
    assert len(single[1].boxes) == len(every[1].boxes) == 0
    assert len(propose(Bright(), images, "all", 0.06, 0.0)[0].boxes) == 1


def test_boxes_move_with_their_pixels() -> None:
    pictures = Pictures(20, seed=3)
    images = pictures.batch(np.arange(20)).float() / 255
    generator = torch.Generator().manual_seed(0)
    crops = torch.tensor([[0.0, 0, 32, 32], [2, 4, 28, 26], [4, 0, 20, 30]])[torch.randint(3, (20,), generator=generator)]
    flips = torch.rand(20, generator=generator) < 0.5
    moved = moved_boxes(torch.from_numpy(pictures.boxes / 32).float(), crops, flips, 32, 64)
    pixels = hflip(crop_resize(images, crops, 64), flips)
    for i in range(20):
        seen = mask_to_box((pixels[i].mean(0) > 0.5).numpy())
        if moved[i].any():
            np.testing.assert_allclose(moved[i, 0].numpy(), seen, atol=2.5)
    gone = moved_boxes(torch.tensor([[[0.0, 0.0, 0.5, 0.5]]]), torch.tensor([[15.0, 15, 17, 17]]), flips[:1], 32, 32)
    assert not gone.any(), "less than a quarter of it is seen"
    assert not moved_boxes(torch.zeros(1, 2, 4), crops[:1], flips[:1], 32, 32).any(), "no box stays no box"


def test_the_file_of_pseudo_boxes(tmp_path: Path) -> None:
    pictures, said = Pictures(5), list[str]()
    path = tmp_path / "pseudo_boxes.npy"

    def make(images: Tensor) -> list[FoundBoxes]:
        return propose(Bright(), images, "largest", 0.0, 0.0)

    made = pseudo_box_file(path, pictures, make, 2, said.append, batch_size=2)
    np.testing.assert_allclose(made[:, 0, :4] * 32, pictures.boxes[:, 0], atol=1e-5)
    assert not made[:, 1].any() and made.dtype == np.float32 and "5 in 5 pictures, 0 of them without" in said[-1]

    def never(images: Tensor) -> list[FoundBoxes]:
        raise AssertionError("the file is there")

    assert np.array_equal(pseudo_box_file(path, pictures, never, 2, said.append), made)
    for damage in (b"", b"\x93NUMPY broken", path.read_bytes()[:-9]):
        path.write_bytes(damage)
        assert np.array_equal(pseudo_box_file(path, pictures, make, 2, said.append), made)
        assert any("made again" in text for text in said)


def test_answers_fit_pictures_of_any_size(tmp_path: Path) -> None:
    method = fitted(Pictures(8), tmp_path, steps=3)
    for size in ((32, 32), (48, 100), (7, 5)):
        boxes, scores = method.detect(torch.rand(2, 3, *size))
        assert boxes.shape == (2, 5, 4) and scores.shape == (2, 5)
        assert float(boxes.min()) >= 0 and float(boxes[..., 2].max()) <= size[1] and float(boxes[..., 3].max()) <= size[0]
        assert bool((scores[:, 1:] <= scores[:, :-1]).all())
    assert method.show(torch.rand(3, 3, 32, 32))["boxes"].shape == (64, 96, 3)


def test_pictures_whose_side_is_no_multiple_of_the_stride_are_learned(tmp_path: Path) -> None:
    class Odd(Colours):
        image_px = 34

    teacher = Bright()
    teacher.given = {"features": Odd()}
    pictures = Pictures(4)
    pictures.images = np.pad(pictures.images, ((0, 0), (0, 0), (0, 2), (0, 2)))
    method = Cad(replace(TINY, image_px=34), {"masks": teacher})  # as for patches of 14 px: half of their multiples are no multiples of 4
    method.begin(pictures, tmp_path, lambda text: None)
    loss, parts = method.loss(method.prepare(pictures.batch(range(4)), np.arange(4)), "detector", Progress(0, 2))
    assert bool(loss.isfinite()) and parts["boxes"] > 0
    assert method.detect(torch.rand(2, 3, 34, 34)).boxes.shape == (2, 5, 4)


def test_settings_that_do_not_fit_are_said() -> None:
    class Deaf(Bright):
        def __init__(self) -> None:
            super().__init__("embed")

    with pytest.raises(ConfigError, match="finds no objects"):
        Cad(TINY, {"masks": Deaf()})
    with pytest.raises(ConfigError, match="image_px=32"):
        Cad(replace(TINY, image_px=64), {"masks": Bright()})
    bare = Bright()
    bare.given = {}
    with pytest.raises(ConfigError, match="finds no features"):
        Cad(TINY, {"masks": bare})
    with pytest.raises(ConfigError, match="for the Faster R-CNN"):
        Cad(replace(TINY, weights="x.safetensors"), {"masks": Bright()}).start(print)
    sides = ({"rcnn_min_px": (0,)}, {"rcnn_min_px": ()})
    for wrong in ({"nms_iou": 0.0}, {"score_min": 1.0}, {"max_boxes": 0}, *sides, {"jitter": 1.5}, {"crop_min": 2.0}):
        with pytest.raises(ValueError):
            replace(TINY, **wrong)


def test_a_cad_can_teach_a_cad(tmp_path: Path) -> None:
    first = fitted(Pictures(8), tmp_path, steps=3)
    second = Cad(replace(TINY, min_score=0.01, drop_loss=True), {"masks": first})
    assert features_of(first) is features_of(second) and giving(first) == "detect"
    second.begin(Pictures(8), tmp_path / "..", lambda text: None)
    batch = second.prepare(Pictures(8).batch([0, 1]), np.array([0, 1]))
    assert bool(torch.isfinite(second.loss(batch, "detector", Progress(0, 1))[0]))


def test_faster_rcnn_learns_pseudo_boxes_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of the published network, its pictures and proposals made small: it needs no features."""
    monkeypatch.setattr(cad, "PROPOSALS", (8, 4))
    teacher = Bright()
    teacher.given = {}
    paper: Any = Cad.sizes["paper"]
    method = Cad(replace(paper, image_px=32, rcnn_min_px=(64,), rcnn_max_px=64, detections=3), {"masks": teacher})
    method.start(lambda text: None)
    method.begin(Pictures(3), tmp_path, lambda text: None)
    (player,) = method.players().values()
    optimizer = player.build_optimizer()
    before = method.net.backbone.layer3[0].conv1.weight.detach().clone()  # type: ignore[union-attr, index]
    batch = method.prepare(Pictures(3).batch([0, 1]), np.array([0, 1]))
    sizes = [boxes[:, 2:] - boxes[:, :2] for boxes in (batch["boxes"][:, 0].numpy(), Pictures(3).boxes[:2, 0])]
    np.testing.assert_allclose(*sizes, atol=1e-4)  # at size `paper` pictures are flipped and nothing else
    loss, parts = method.train().loss(batch, "detector", Progress(0, 1))
    loss.backward()
    optimizer.step()
    assert set(parts) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    after = method.net.backbone.layer3[0].conv1.weight  # type: ignore[union-attr, index]
    assert player.optimizer == "sgd" and not torch.equal(before, after) and bool(torch.isfinite(after).all())
    boxes, scores = method.detect(torch.rand(2, 3, 20, 50))
    assert boxes.shape == (2, 3, 4) and scores.shape == (2, 3) and float(boxes[..., 2].max()) <= 50
    nothing, none = method.loss({"images": batch["images"], "boxes": torch.zeros(2, 8, 4)}, "detector", Progress(0, 1))
    assert float(nothing.detach()) == 0 and none == {} and nothing.requires_grad


def test_a_box_is_drawn_inside_the_picture() -> None:
    picture = torch.zeros(3, 8, 8)
    draw_box(picture, (-3, 2, 20, 9), (1.0, 0.5, 0.0))
    assert picture[0].sum() == 8 * 2 + 2 * 4
    draw_box(picture, (3, 3, 3, 3), (0.0, 1.0, 0.0))
    assert picture[1, 3, 3] == 1
