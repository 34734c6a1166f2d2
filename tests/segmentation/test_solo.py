"""SOLO on coarse masks: pseudo-masks of every kind of teacher, masks that move with crops, the matrix NMS, a toy that is learned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cad import Bright, Colours, Pictures
from torch import Tensor

from selftaught import apply
from selftaught.core.errors import ConfigError
from selftaught.core.seeds import seed_all
from selftaught.data.augment import crop_resize, hflip
from selftaught.measure.box_scores import box_scores, detect_all
from selftaught.measure.boxes import mask_to_box
from selftaught.method import Objects, Progress
from selftaught.nets.solo_head import Answer
from selftaught.segmentation import solo
from selftaught.segmentation.freesolo import matrix_nms
from selftaught.segmentation.pseudo_objects import gives_masks, pieces, propose_masks, pseudo_object_file, unpacked
from selftaught.segmentation.solo import Solo, SoloConfig, best, first_places, masks_of, moved_masks, peaks
from selftaught.train import train

TINY: Any = Solo.sizes["tiny"]


class Coarse(Bright):
    """A teacher that tells one object apart: what is bright, cut to blocks of eight pixels."""

    def __init__(self, *capabilities: str) -> None:
        super().__init__(*(capabilities or ("objects",)))

    def objects(self, images: Tensor) -> Objects:
        small = torch.nn.functional.avg_pool2d((images.mean(1, keepdim=True) > 0.5).float(), 8)
        masks = torch.nn.functional.interpolate((small > 0.3).float(), scale_factor=8.0)
        return Objects(masks, 0.9 * masks.flatten(2).amax(2))


def fitted(pictures: Pictures, folder: Path, steps: int = 80, lr: float = 1e-2, shuffled: bool = False, **changes: Any) -> Solo:
    """A `solo` of size tiny trained by a plain loop."""
    seed_all(0, 0, 0)
    method = Solo(replace(TINY, width=16, **changes), {"masks": Coarse()})
    method.begin(pictures, folder, lambda text: None)
    assert method.pseudo is not None
    if shuffled:
        method.pseudo = np.roll(method.pseudo, 7, axis=0)
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    for step in range(steps):
        seed_all(0, 0, step)
        rows = np.random.default_rng(step).integers(0, len(pictures), 16)
        loss, _ = method.loss(method.prepare(pictures.batch(rows), rows), "network", Progress(step, steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return method.eval()


def truths_of(pictures: Pictures) -> Tensor:
    return torch.from_numpy(pictures.images.mean(1) > 127).float()


def mean_iou(masks: Tensor, truths: Tensor) -> float:
    cut = masks > 0.5
    both, either = (cut & (truths > 0.5)).flatten(1).sum(1), (cut | (truths > 0.5)).flatten(1).sum(1)
    return float((both / either.clamp(min=1)).mean())


def test_it_learns_masks_that_are_better_than_its_teacher_s_and_the_controls_do_not(tmp_path: Path) -> None:
    train_, test = Pictures(64), Pictures(40, seed=1)
    truths, images = truths_of(test), test.batch(np.arange(40)).float() / 255
    taught = mean_iou(Coarse().objects(images).masks[:, 0], truths)
    method = fitted(train_, tmp_path)
    learned = mean_iou(method.segment(images), truths)
    assert learned > taught + 0.05, (learned, taught)
    found = detect_all(method, list(test.images.transpose(0, 2, 3, 1)))
    assert box_scores(found, list(test.boxes), {})["corloc"].value > 0.7
    assert mean_iou(fitted(train_, tmp_path, lr=0.0, steps=1).segment(images), truths) < 0.2
    assert mean_iou(fitted(train_, tmp_path, shuffled=True).segment(images), truths) < learned - 0.3


def test_masks_of_every_kind_of_teacher() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 2:12, 3:13], images[0, :, 20:26, 20:28], images[0, :, 30:, :] = 1, 1, 1
    found = propose_masks(Bright(), images, 32, 4, 0.0, 0.0, 0.95)
    boxes = [mask_to_box(m.numpy()).tolist() for m in found.masks[0, :2]]
    assert sorted(boxes) == [[3, 2, 13, 12], [20, 20, 28, 26]], "the stripe is as wide as the picture"
    assert found.scores[0].tolist() == pytest.approx([0.9, 0.9, 0, 0]) and not found.masks[1].any()
    assert propose_masks(Bright(), images, 32, 4, 0.0, 0.0, 1.5).masks[0].any((1, 2)).sum() == 3
    assert propose_masks(Bright(), images, 32, 4, 0.0, 0.06, 0.95).masks[0].any((1, 2)).sum() == 1, "too small"
    assert not propose_masks(Bright(), images, 32, 4, 0.95, 0.0, 0.95).masks.any(), "too doubtful"
    several = propose_masks(Bright("objects"), images, 32, 2, 0.5, 0.0, 0.95)
    assert mask_to_box(several.masks[0, 0].numpy()).tolist() == [8, 8, 30, 30] and not several.masks[:, 1].any()
    with pytest.raises(ConfigError, match="gives no masks"):
        gives_masks(Bright("detect"))


def test_pieces_are_the_largest_with_their_means() -> None:
    soft = torch.zeros(1, 6, 6)
    soft[0, 0, :2], soft[0, 2:5, 2:5], soft[0, 5, 5] = 0.6, 0.8, 0.9
    soft[0, 3, 3] = 1.0
    masks, scores = pieces(soft, 2)
    assert masks[0].flatten(1).sum(1).tolist() == [9, 2] and scores[0].tolist() == pytest.approx([7.4 / 9, 0.6])


def test_the_file_of_pseudo_masks(tmp_path: Path) -> None:
    pictures, said = Pictures(5), list[str]()
    path = tmp_path / "pseudo_masks.npy"

    def make(images: Tensor) -> Tensor:
        return propose_masks(Bright(), images, 32, 3, 0.0, 0.0, 0.95).masks[:, :, :31, :31]

    made = pseudo_object_file(path, pictures, make, 3, 31, said.append, batch_size=2)
    masks = unpacked(made, 31)
    assert masks.shape == (5, 3, 31, 31) and "5 in 5 pictures, 0 of them without" in said[-1]
    np.testing.assert_array_equal(masks[:, 0], truths_of(pictures)[:, :31, :31].bool())

    def never(images: Tensor) -> Tensor:
        raise AssertionError("the file is there")

    assert np.array_equal(pseudo_object_file(path, pictures, never, 3, 31, said.append), made)
    whole = path.read_bytes()
    for damage in (b"", b"\x93NUMPY broken", whole[:-9]):
        path.write_bytes(damage)
        assert np.array_equal(pseudo_object_file(path, pictures, make, 3, 31, said.append), unpacked_again(whole, made))
        assert any("made again" in text for text in said)


def unpacked_again(whole: bytes, made: Any) -> Any:
    """What a file of these bytes holds: the map of a file that was damaged meanwhile cannot be asked."""
    return np.frombuffer(whole[-int(np.prod(made.shape)) :], np.uint8).reshape(made.shape)


def test_masks_move_with_their_pixels() -> None:
    pictures = Pictures(20, seed=3)
    images, generator = pictures.batch(np.arange(20)).float() / 255, torch.Generator().manual_seed(0)
    crops = torch.tensor([[0.0, 0, 32, 32], [2, 4, 28, 26], [4, 0, 20, 30]])[torch.randint(3, (20,), generator=generator)]
    flips = torch.rand(20, generator=generator) < 0.5
    moved = moved_masks(truths_of(pictures)[:, None].bool(), crops, flips)[:, 0]
    seen = hflip(crop_resize(images, crops, 32), flips).mean(1) > 0.5
    shown = moved.flatten(1).any(1)
    assert shown.sum() > 12 and float((moved == seen)[shown].float().mean()) > 0.97
    small = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    small[0, 0, :4, :4] = True
    assert not moved_masks(small, torch.tensor([[3.0, 3, 5, 5]]), flips[:1]).any(), "a sixteenth of it is seen"
    assert moved_masks(small, torch.tensor([[0.0, 0, 8.0001, 8.0001]]), torch.tensor([False])).equal(small), "rounding"


def test_answers_go_through_the_matrix_nms_of_freesolo() -> None:
    """Two places with one mask and a third elsewhere: the lesser double is lowered by exp(-2), then dropped where that is too low."""
    method = Solo(replace(TINY, grids=(4,), update_min=0.2, score_min=0.1), {"masks": Coarse()})
    scores = torch.full((1, 16), -9.0)
    scores[0, [0, 7, 10]] = torch.tensor([0.9, 0.8, 0.7]).logit()
    pixels, kernels = torch.zeros(1, 2, 8, 8), torch.zeros(1, 16, 2)
    pixels[0, 0], pixels[0, 1] = -20.0, -20.0
    pixels[0, 0, :4, :4], pixels[0, 1, 5:, 2:7] = 20, 20
    kernels[0, [0, 7], 0], kernels[0, 10, 1] = 1, 1
    method.net.forward = lambda images, features: Answer(scores, kernels, pixels, None)  # type: ignore[method-assign]
    soft, found = method.answer(torch.rand(1, 3, 32, 32))
    assert found[0].tolist() == pytest.approx([0.9, 0.7, 0, 0]), "0.8 exp(-2) = 0.11 is below 0.2"
    assert torch.equal(soft[0] > 0.5, torch.stack([pixels[0, 0], pixels[0, 1], *torch.zeros(2, 8, 8)]) > 0.5)
    method.config = replace(method.config, update_min=0.05)
    _, found = method.answer(torch.rand(1, 3, 32, 32))
    assert found[0].tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-2), 0], rel=1e-5)
    twice = torch.stack([pixels[0, 0] > 0, pixels[0, 0] > 0, pixels[0, 1] > 0])[None]
    lowered = matrix_nms(twice, torch.tensor([[0.9, 0.8, 0.7]]), method.config.sigma)[0]
    assert sorted(lowered.tolist(), reverse=True) == pytest.approx(found[0, :3].tolist(), rel=1e-5)
    method.config = replace(method.config, shown_min=0.8)
    assert torch.equal(method.segment(torch.rand(1, 3, 8, 8))[0] > 0.5, pixels[0, 0] > 0), "the best one is always shown"
    boxes = method.detect(torch.rand(1, 3, 16, 48)).boxes[0]
    assert boxes[0].tolist() == pytest.approx([0, 0, 24, 8], abs=1) and boxes[1].tolist() == pytest.approx([12, 10, 42, 16], abs=1.5)


def test_peaks_places_and_sorting() -> None:
    scores = torch.tensor([[0.5, 0.6, 0.1, 0.7, 0.2, 0.2, 0.3, 0.4, 0.9, 0.8]])
    assert peaks(scores, (3, 1)).tolist() == [pytest.approx([0.5, 0.6, 0, 0.7, 0, 0, 0, 0, 0.9, 0.8])]
    chosen, real = first_places(torch.tensor([[-1, 2, -1, 0], [-1, -1, 1, -1]]))
    assert chosen[0].tolist() == [1, 3] and chosen[1, 0] == 2 and real.tolist() == [[1, 1], [1, 0]]
    nothing, none = first_places(torch.full((2, 4), -1))
    assert nothing.shape == (2, 1) and not none.any()
    soft = torch.rand(1, 2, 3, 3)
    sorted_, cut, top = best(soft, soft > 0.5, torch.tensor([[0.2, 0.9]]), 3)
    assert torch.equal(sorted_[0, :2], soft[0].flip(0)) and not cut[0, 2].any() and top.tolist() == [pytest.approx([0.9, 0.2, 0])]
    answer = Answer(scores, torch.randn(1, 10, 4), torch.randn(1, 4, 3, 5), None)
    want = (answer.kernels[0, 6, :, None, None] * answer.pixels[0]).sum(0)
    torch.testing.assert_close(masks_of(answer, torch.tensor([[2, 6]]))[0, 1], want)


def test_loss_of_a_picture_does_not_depend_on_its_batch_and_nothing_taught_teaches_nothing(tmp_path: Path) -> None:
    method = fitted(Pictures(8), tmp_path, steps=2, embed_weight=0.5)
    batch = method.prepare(Pictures(8).batch([0, 1, 2]), np.array([0, 1, 2]))
    batch["masks"][2] = False

    def of(*rows: int) -> float:
        part = {k: [s[list(rows)] for s in v] if k == "same" else v[list(rows)] for k, v in batch.items()}
        total, parts = method.loss(part, "network", Progress(1, 2))
        assert {"objectness", "largest", "means", "pairs", "mask_iou", "embeddings"} == set(parts)
        return float(total.detach())

    assert of(0, 1, 2) == pytest.approx((of(0) + of(1)) / 3, rel=1e-5) and of(2) == 0
    features = Colours().features(batch["images"])
    target = torch.nn.functional.interpolate(batch["masks"][:, :1].float(), (8, 8)) > 0.5
    told = torch.nn.functional.normalize(features, dim=1)[0][:, target[0, 0]].sum(1)
    cosine = Solo.agreement(told.view(1, 1, -1).repeat(3, 2, 1) * 3, features, target, torch.tensor([[1]] * 3))
    assert float(cosine[0, 0]) == pytest.approx(1, abs=1e-5)


def test_answers_fit_pictures_of_any_size(tmp_path: Path) -> None:
    method = fitted(Pictures(8), tmp_path, steps=3, score_min=0.0)
    for size in ((32, 32), (48, 100), (7, 5)):
        images = torch.rand(2, 3, *size)
        masks, scores = method.objects(images)
        assert masks.shape == (2, 4, *size) and bool((scores[:, 1:] <= scores[:, :-1]).all()) and float(masks.max()) <= 1
        assert method.segment(images).shape == (2, *size)
        boxes = method.detect(images).boxes
        assert float(boxes[..., 2].max()) <= size[1] and float(boxes[..., 3].max()) <= size[0]
    assert method.show(torch.rand(3, 3, 32, 32))["objects"].shape == (128, 96, 3)


def test_many_pictures_are_answered_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, images = fitted(Pictures(8), tmp_path, steps=3, score_min=0.0), torch.rand(5, 3, 32, 32)
    whole, most = method.answer(images), [0]
    monkeypatch.setattr(solo, "AT_ONCE", 2 * method.config.candidates * 8 * 8)
    net = method.net.forward
    monkeypatch.setattr(method.net, "forward", lambda x, features: most.append(len(x)) or net(x, features))
    for a, b in zip(whole, method.answer(images), strict=True):
        torch.testing.assert_close(a, b)
    assert most == [0, 2, 2, 1]


def test_settings_that_do_not_fit_are_said() -> None:
    with pytest.raises(ConfigError, match="image_px=32"):
        Solo(replace(TINY, image_px=64), {"masks": Coarse()})
    bare = Coarse()
    bare.given = {}
    with pytest.raises(ConfigError, match="solo finds no features"):
        Solo(TINY, {"masks": bare})
    with pytest.raises(ConfigError, match="weights are for the ResNet"):
        Solo(replace(TINY, weights="x.safetensors"), {"masks": Coarse()}).start(print)
    wrongs: list[Any] = [{"grids": ()}, {"grids": (4, 2)}, {"max_masks": 0}, {"depth": -1}, {"score_min": 1.5}, {"sigma": -1.0}]
    for wrong in [*wrongs, {"jitter": 1.5}, {"crop_min": 0.0}, {"crop_min": 1.1}, {"width": 1}, {"pair_weight": -1.0}, {"max_width": 0.0}]:
        with pytest.raises(ValueError):
            replace(TINY, **wrong)


def test_the_published_network_has_the_published_shapes() -> None:
    """Built without memory: five levels, 3,872 places, towers of four convolutions of 512, kernels of 256."""
    teacher = Coarse()
    teacher.given = {}
    paper: SoloConfig = Solo.sizes["paper"]  # type: ignore[assignment]
    with torch.device("meta"):
        method = Solo(paper, {"masks": teacher})
        answer = method.net(torch.rand(1, 3, 256, 320), None)
    assert answer.scores.shape == (1, sum(g * g for g in (40, 36, 24, 16, 12))) == (1, 3872)
    assert answer.kernels.shape == (1, 3872, 256) and answer.pixels.shape == (1, 256, 64, 80)
    towers = {name: p.shape for name, p in method.net.head.named_parameters() if p.ndim == 4}
    assert towers["kernel_tower.0.0.weight"] == (512, 258, 3, 3) and towers["score_tower.0.0.weight"] == (512, 256, 3, 3)
    assert all(towers[f"{kind}_tower.{i}.0.weight"] == (512, 512, 3, 3) for kind in ("kernel", "score") for i in (1, 2, 3))
    body = sum(p.numel() for p in method.net.pyramid.backbone.body.parameters())
    assert abs(body - 42_394_816) < 2_000, "torchvision's ResNet-101 without its classifier; its norms are frozen"


def test_from_free_masks_to_self_training_end_to_end(tmp_path: Path) -> None:
    """Features, free masks, solo, solo on solo above 0.3, then masks and boxes of a folder of pictures."""
    from PIL import Image

    pictures, folder = Pictures(16), tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pictures.images):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{i}.png")
    features = train("simclr", folder, tmp_path / "features", "tiny", steps=2, set=["batch_size=8"], quiet=True)
    free = train("tokencut", folder, tmp_path / "free", "tiny", need=[f"features={features}"], quiet=True)
    settings = ["batch_size=8", "score_min=0", "update_min=0"]
    first = train("solo", folder, tmp_path / "one", "tiny", steps=4, set=settings, need=[f"masks={free}"], quiet=True)
    second = train("solo", folder, tmp_path / "two", "tiny", 2, set=[*settings, "min_score=0.001"], need=[f"masks={first}"], quiet=True)
    assert (first / "pictures" / "objects.png").exists() and (first / "pseudo_masks.npy").stat().st_size > 16 * 4 * 8
    out = apply.segment(second, folder, tmp_path / "found", boxes="all")
    assert len(list((out / "masks").glob("*.png"))) == 16
    assert (out / "boxes.coco.json").exists() and (out / "objects.coco.json").exists()
