"""MOVE: layers and sizes, losses of both players, gradients, gate, start from masks, kept features, and odd pictures."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.method import Progress
from selftaught.nets.backbones import BACKBONES
from selftaught.registry import load_class
from selftaught.segmentation.move import KINDS, Move, imitation_loss, mirrored, untouched
from selftaught.segmentation.move_nets import SegmenterHead, feature_file
from selftaught.segmentation.move_scene import Scene, make_scene
from selftaught.train import train

TINY: Any = Move.sizes["tiny"]
BEGIN, LATER = Progress(0, 100), Progress(60, 100)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(name: str) -> Any:
    torch.manual_seed(0)
    cls = load_class(name)
    return cls(cls.sizes["tiny"]).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def needs() -> dict[str, Any]:
    return {"features": learned("dino"), "inpainter": learned("mae")}


class Pictures:
    """The part of an ImageSet that training reads."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.images = np.random.default_rng(seed).integers(0, 255, (count, 3, 32, 32)).astype(np.uint8)
        self.images[:, :, 10:22, 8:20] //= 3

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return torch.from_numpy(self.images[np.asarray(indices)])


def made(needs: dict[str, Any], tmp_path: Path, count: int = 8, **changes: Any) -> tuple[Move, dict[str, Tensor]]:
    """A method that has begun, and one batch for it."""
    torch.manual_seed(0)
    method = Move(replace(TINY, **changes), needs).train()
    pictures = Pictures(count)
    method.begin(pictures, tmp_path, print)
    torch.manual_seed(1)
    return method, method.prepare(pictures.batch(np.arange(count)), np.arange(count))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_segmenter_of_the_paper_has_its_layers_and_parameters() -> None:
    head = SegmenterHead(384, 8, 128)
    convolutions = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [(384, 192, 3), (192, 128, 3), (128, 128, 3), (128, 128, 3), (128, 1, 1)]
    weights = sum(a * b * k * k + b for a, b, k in convolutions)
    assert count(head) == weights + 2 * (192 + 3 * 128) + 2 * 384 == 1_182_273
    with torch.no_grad():
        assert head.eval()(torch.zeros(1, 384, 28, 28), torch.zeros(1, 3, 224, 224)).shape == (1, 1, 224, 224)
    large = SegmenterHead(1024, 16, 128)
    widths = [m.out_channels for m in large.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [512, 256, 128, 128, 128, 1], "the variant on MAE's features"
    for patch, stride in ((12, 1), (8, 3), (4, 8)):
        with pytest.raises(ValueError, match="factors of two"):
            SegmenterHead(8, patch, 4, stride=stride)


def test_the_head_is_told_what_differs_from_the_rim() -> None:
    torch.manual_seed(0)
    maps, pictures = torch.randn(2, 12, 1, 1).expand(2, 12, 8, 8).clone(), torch.full((2, 3, 32, 32), 0.4)
    maps[0, :, 2:5, 3:6] *= -1
    pictures[0, :, 8:20, 12:24] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    head = SegmenterHead(12, 4, 4, rim=True).eval()
    contrasts = head.rims(maps, pictures, (8, 8))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:5, 3:6] = True
    assert contrasts.shape == (2, 2, 8, 8) and float(contrasts[0, :, inside].min()) > 0.9 and float(contrasts[0, :, ~inside].max()) < 0.1
    assert float(contrasts[1].abs().max()) == 0, "nothing differs"
    changed = SegmenterHead(12, 4, 4, rim=True).eval()
    changed.load_state_dict(head.state_dict())
    changed.rims = lambda maps, pictures, size: torch.zeros(2, 2, *size)  # type: ignore[method-assign]
    told, untold = head(maps, pictures), changed(maps, pictures)
    assert not torch.equal(told[0], untold[0]) and torch.equal(told[1], untold[1])


@pytest.mark.parametrize(
    ("patch", "reduce", "shallow", "stride"), [(4, 0, 0, 1), (8, 6, 0, 2), (8, 0, 5, 4), (1, 0, 3, 1), (2, 4, 2, 2), (8, 0, 5, 1)]
)
def test_masks_have_the_size_of_the_picture_whatever_the_head(patch: int, reduce: int, shallow: int, stride: int) -> None:
    head = SegmenterHead(12, patch, 4, reduce, shallow, stride)
    assert head(torch.rand(2, 12, 32 // patch, 32 // patch), torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("size", ["small", "small_px32"])
def test_the_small_sizes_fit_their_needs(size: str) -> None:
    def built(name: str, frozen: dict[str, Any]) -> Any:
        cls = load_class(name)
        config = cls.sizes["small"] if size == "small" else cls.small_px32
        return cls(config, frozen).eval().requires_grad_(False)

    method = built("move", {need: built(name, {}) for need, name in Move.needs.items()})
    images = torch.rand(1, 3, method.image_px, method.image_px, generator=generator(0))
    assert method.segment(images).shape == (1, method.image_px, method.image_px)


@pytest.mark.slow
def test_the_paper_size_builds_and_takes_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of the published shapes: DINO ViT-S/8, MAE ViT-L/16 with a decoder of 8 x 512; of its 24 equal layers two compute."""
    torch.manual_seed(0)
    simclr, mae = load_class("simclr"), load_class("mae")
    features = simclr(replace(simclr.sizes["tiny"], image_px=224, backbone="timm:vit_small_patch8_224.dino", patch_px=8))
    large = replace(mae.sizes["paper"], backbone="vit-1024x24", norm_pixels=False)
    with torch.device("meta"):
        assert count(mae(large).vit) == pytest.approx(303e6, rel=0.01)
    kind, sizes, words = BACKBONES[large.backbone]
    monkeypatch.setitem(BACKBONES, large.backbone, (kind, {**sizes, "depth": 2}, words))
    inpainter = mae(large)
    assert inpainter.decoder.width == 512
    frozen = {"features": features.eval().requires_grad_(False), "inpainter": inpainter.eval().requires_grad_(False)}
    method = Move(replace(Move.sizes["paper"], batch_size=2), frozen).train()
    assert count(method.net) == 1_182_273 and method.encoder.token_width == 384
    batch = method.prepare(torch.randint(0, 255, (2, 3, 224, 224), generator=generator(0), dtype=torch.uint8), np.arange(2))
    for player, group in method.players().items():
        loss, _ = method.loss(batch, player, Progress(5000, 13_200))
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for _, p in group.parameters)
        method.zero_grad()


def test_the_discriminators_loss_is_the_hinge_over_four_kinds(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, jitter=0.0)
    loss, parts = method.loss(batch, "discriminator", BEGIN)
    with torch.no_grad():
        mask = method.net(batch["maps"], batch["pictures"]).sigmoid()
        scene = make_scene(batch["pictures"], mask, batch["shift"], needs["inpainter"])
        together = method.judge(torch.cat([getattr(scene, kind) for kind in KINDS]), method.encoder)
        said = dict(zip(KINDS, together.view(4, 8, -1).numpy(), strict=True))
    expected = 0.5 * sum(np.maximum(0, 1 - said[k]).mean() for k in KINDS[:2])
    expected += 0.5 * sum(np.maximum(0, 1 + said[k]).mean() for k in KINDS[2:])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    for kind in KINDS:
        right = (said[kind] > 0).mean() if kind in KINDS[:2] else (said[kind] <= 0).mean()
        assert parts[f"right_{kind}"] == pytest.approx(right, abs=1e-6)


def test_the_segmenters_loss_is_the_sum_of_its_terms(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, jitter=0.0, init="none", anchor_weight=0.0, binary_ramp_frac=0.8, least_area=0.6)
    loss, parts = method.loss(batch, "segmenter", LATER)
    with torch.no_grad():
        mask = method.net(batch["maps"], batch["pictures"]).sigmoid()
        scene = make_scene(batch["pictures"], mask, batch["shift"], needs["inpainter"])
        fool = -float(method.judge.eval()(scene.composite, method.encoder).mean())
        method.judge.train()
    m = scene.moved.numpy()
    tiles = m.reshape(8, 1, 4, 8, 4, 8)
    three = [m, tiles.mean((3, 5)), tiles.max((3, 5))]
    area = sum(np.maximum(0.6 - x.reshape(8, -1).mean(1), 0).mean() for x in three)
    binary = sum(np.minimum(x, 1 - x).mean() for x in three)
    assert parts["fooled"] == pytest.approx(fool, rel=1e-4) and area > 0
    assert float(loss.detach()) == pytest.approx(fool + 100 * area + 12.5 * 0.75 * binary, rel=1e-4), "the ramp is at 0.6 / 0.8"


def test_binarisation_ramps_up(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, jitter=0.0, init="none", adversarial_weight=0.0, least_weight=0.0, binary_ramp_frac=0.5)
    found = [float(method.loss(batch, "segmenter", Progress(step, 100))[0].detach()) for step in (0, 25, 50, 75)]
    assert found[0] == 0 and found[1] == pytest.approx(found[2] / 2, rel=1e-4) and found[2] == pytest.approx(found[3], rel=1e-4)


@pytest.mark.parametrize("player", ["discriminator", "segmenter"])
def test_gradients_reach_the_player_and_nothing_that_is_frozen(player: str, needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, init="none")
    loss, _ = method.loss(batch, player, LATER)
    loss.backward()  # type: ignore[no-untyped-call]
    mine = dict(method.players()[player].parameters)
    assert mine and all(p.grad is not None for p in mine.values())
    assert sum(float(p.grad.abs().sum()) for p in mine.values() if p.grad is not None) > 0
    others = [p for p in method.parameters() if not any(p is q for q in mine.values())]
    assert all(p.grad is None for p in others), "neither the other player, nor the average, nor the encoder"
    assert all(p.grad is None for need in needs.values() for p in need.parameters())
    assert all(p.requires_grad for _, p in method.players()["discriminator"].parameters), "only for the pass"


def test_pieces_of_a_batch_are_the_batch_in_double_precision(needs: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    method, batch = made(needs, tmp_path, jitter=0.0, init="none")
    inpainter = copy.deepcopy(needs["inpainter"]).double()
    method.double().eval().given = {**needs, "inpainter": inpainter}
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    found = []
    for pieces in ([slice(0, 8)], [slice(0, 3), slice(3, 4), slice(4, 8)]):
        method.zero_grad()
        for piece in pieces:
            part = {k: v[piece] for k, v in batch.items()}
            for player in ("discriminator", "segmenter"):
                loss, _ = method.loss(part, player, LATER)
                (loss * len(part["pictures"]) / 8).backward()
        found.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-12


def test_an_exception_gives_the_discriminator_back() -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    with pytest.raises(KeyError), untouched(layer):
        assert not layer[0].weight.requires_grad and not layer.training and not layer[0].training
        raise KeyError
    assert layer[0].weight.requires_grad and layer.training and layer[0].training and not layer[1].training


def test_the_discriminator_sees_what_all_fakes_of_a_batch_have_in_common(needs: dict[str, Any], tmp_path: Path) -> None:
    """Fakes that are all darker by the same: a batch norm over them alone would take that away, and nothing could be learned."""
    torch.manual_seed(0)
    method, batch = made(needs, tmp_path, jitter=0.0, discriminator="pixels")
    method.judge.net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 1))
    bright = batch["pictures"] * 0.5 + 0.4
    scene = Scene(bright, bright, bright - 0.4, bright - 0.4, bright, bright[:, :1], bright[:, :1])
    method.scene = lambda *_, **__: scene  # type: ignore[method-assign]
    optimizer = method.players()["discriminator"].build_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 3e-2
    for _ in range(60):
        loss, parts = method.loss(batch, "discriminator", BEGIN)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert parts["right_picture"] > 0.9 and parts["right_composite"] > 0.9
    with torch.no_grad(), untouched(method.judge):
        assert float(method.logits(scene.composite).mean()) < 0 < float(method.logits(scene.picture).mean()), "each kind alone, too"


OPTIONS: list[dict[str, Any]] = [
    {"copy_real": False}, {"hole": "pixels"}, {"masked_encoder": False}, {"soft_inpainting": False}, {"discriminator": "pixels"},
    {"discriminator": "patches"}, {"discriminator": "imagenet", "disc_px": 64}, {"layer": "penultimate"}, {"init": "none"},
    {"init": "tokencut"}, {"init": "cut"}, {"fill": "chequered"},
    {"anchor_weight": 0.5}, {"crop_min": 0.9}, {"cache_mb": 0}, {"disc_px": 16}, {"disc_enlarge": True}, {"head_shallow": 4},
    {"paste": "others"}, {"discriminator": "places"}, {"wait_frac": 0.3}, {"share_from": 0.1, "share_to": 0.3, "rim_frac": 0.1},
    {"head_stride": 2}, {"most_area": 0.3, "most_weight": 1.0}, {"gate": 0.5}, {"head_reduce": 0}, {"refine": "bilateral"}, {"ema": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_builds_and_takes_a_step(changes: dict[str, Any], needs: dict[str, Any], tmp_path: Path) -> None:
    method, _ = made(needs, tmp_path, **changes)
    pictures = Pictures(8)
    optimizers = {name: player.build_optimizer() for name, player in method.players().items()}
    before = {name: p.clone() for name, p in method.named_parameters()}
    for step in range(40, 42):
        for name, optimizer in optimizers.items():
            batch = method.prepare(pictures.batch(np.arange(8)), np.arange(8))
            loss, parts = method.loss(batch, name, Progress(step, 100))
            assert all(np.isfinite(v) for v in parts.values())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        method.after_step(Progress(step, 100))
    moved = {name.split(".")[0] for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"net", "judge", "average"}
    masks = method.eval().segment(pictures.batch([0, 1]).float() / 255)
    assert masks.shape == (2, 32, 32) and float(masks.min()) >= 0 and float(masks.max()) <= 1


def test_the_labelled_discriminator_says_what_it_is(needs: dict[str, Any]) -> None:
    said: list[str] = []
    Move(replace(TINY, discriminator="imagenet", disc_px=64), needs).start(said.append)
    assert "labels of ImageNet" in said[-1]
    said.clear()
    Move(TINY, needs).start(said.append)
    assert not said


def test_the_gate_stops_the_segmenter_while_the_discriminator_knows_nothing(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, init="none", gate=0.6)
    for right, is_open in ((0.5, 0.0), (0.7, 1.0)):
        method.right.fill_(right)
        method.zero_grad()
        loss, parts = method.loss(batch, "segmenter", LATER)
        loss.backward()  # type: ignore[no-untyped-call]
        moved = sum(float(p.grad.abs().sum()) for p in method.net.parameters() if p.grad is not None)
        assert parts["open"] == is_open and (moved > 0) == bool(is_open)


def test_a_resting_segmenter_is_not_moved_by_momentum(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, init="none", gate=0.6)
    optimizer = torch.optim.AdamW(method.net.parameters(), 1e-2)
    weights: list[Tensor] = []
    for right in (0.7, 0.5, 0.5, 0.7):
        method.right.fill_(right)
        before = torch.cat([p.detach().flatten().clone() for p in method.net.parameters()])
        loss, _ = method.loss(batch, "segmenter", LATER)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(LATER)
        after = torch.cat([p.detach().flatten() for p in method.net.parameters()])
        assert torch.equal(before, after) == (right < 0.6)
        weights.append(after)
    assert not torch.equal(weights[0], weights[3])


@pytest.mark.parametrize("wrong", [{"crop_min": 0.0}, {"gate": 1.5}, {"shift_frac": -0.1}, {"least_area": 2.0}, {"ema": 1.0},
                                   {"most_weight": -1.0}, {"disc_width": 0}], ids=str)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[-1]):
        replace(TINY, **wrong)


def test_features_and_discriminators_that_do_not_fit_are_refused(needs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="discriminator=pixels needs pictures of 16 px, got 12"):
        Move(replace(TINY, discriminator="pixels", disc_px=12), needs)
    convolutional = {**needs, "features": learned("simclr")}
    with pytest.raises(ConfigError, match="layer=penultimate"):
        Move(replace(TINY, layer="penultimate"), convolutional)


def test_how_often_the_discriminator_is_right_is_averaged(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path)
    _, parts = method.loss(batch, "discriminator", BEGIN)
    shares = torch.tensor([parts[f"right_{kind}"] for kind in KINDS])
    method.after_step(BEGIN)
    torch.testing.assert_close(method.right, 0.95 * 0.5 + 0.05 * shares)
    assert float(method.right_sum.abs().sum()) == 0
    before = method.right.clone()
    method.after_step(BEGIN)
    assert torch.equal(method.right, before), "a step without discriminator says nothing"


def test_it_starts_from_masks_and_learns_them(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, init="cut")
    batch["pseudo"] = torch.zeros(8, 1, 32, 32)
    batch["pseudo"][..., 8:24, 8:24] = 1
    optimizer = torch.optim.AdamW(method.net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss, parts = method.loss(batch, "segmenter", BEGIN)
        assert set(parts) == {"area_frac", "unsure_frac", "imitation"}
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]
    assert "fooled" in method.loss(batch, "segmenter", LATER)[1], "later it is on its own"


def test_imitation_is_cross_entropy_and_dice() -> None:
    logits = torch.randn(2, 1, 4, 4, generator=generator(0), dtype=torch.float64)
    target = (torch.rand(2, 1, 4, 4, generator=generator(1)) > 0.5).double()
    p, t = 1 / (1 + np.exp(-logits.numpy())), target.numpy()
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = np.mean([1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, t, strict=True)])
    assert float(imitation_loss(logits, target)) == pytest.approx(entropy + dice, rel=1e-9)


def test_features_are_kept_in_a_file_and_used(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path)
    assert method.cached is not None and method.cached.dtype == np.float16 and (tmp_path / "features.npy").exists()
    torch.manual_seed(1)
    flips = torch.rand(8) < 0.5
    pictures = Pictures(8).batch(np.arange(8)).float() / 255
    assert torch.equal(batch["pictures"], mirrored(pictures, flips)) and 0 < int(flips.sum()) < 8
    torch.testing.assert_close(batch["maps"], mirrored(method.maps(pictures), flips), rtol=1e-3, atol=1e-2)
    other, fresh = made(needs, tmp_path / "none", cache_mb=0)
    assert other.cached is None and not (tmp_path / "none" / "features.npy").exists()
    torch.testing.assert_close(fresh["maps"], other.maps(fresh["pictures"]))


def test_the_feature_file_is_made_once_and_again_when_it_does_not_fit(tmp_path: Path) -> None:
    path, said, calls = tmp_path / "features.npy", list[str](), list[int]()

    def make(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return batch[:, :2, ::8, ::8]

    first = feature_file(path, Pictures(10), make, 100, said.append, batch_size=4)
    assert first is not None and first.shape == (10, 2, 4, 4) and calls == [4, 4, 2]
    expected = Pictures(10).images[:, :2, ::8, ::8].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(np.asarray(first), expected.astype(np.float16))
    again = feature_file(path, Pictures(10), make, 100, said.append)
    assert again is not None and np.array_equal(again, first) and len(calls) == 3 and not said
    for damage in (lambda: None, lambda: path.write_bytes(path.read_bytes()[:90]), lambda: path.write_bytes(b"")):
        damage()
        assert feature_file(path, Pictures(6), make, 100, said.append) is not None
    assert len(said) == 3 and all("does not fit" in line for line in said)
    assert [p.name for p in tmp_path.iterdir()] == ["features.npy"]


def test_both_players_see_pictures_of_their_own(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[int]]] = []
    loss, prepare = Move.loss, Move.prepare
    indices: list[list[int]] = []

    def prepared(self: Move, images: Tensor, rows: Any) -> Any:
        indices.append([int(i) for i in rows])
        return prepare(self, images, rows)

    def watched(self: Move, batch: Any, player: str, progress: Progress) -> Any:
        seen.append((player, indices[-1]))
        return loss(self, batch, player, progress)

    monkeypatch.setattr(Move, "prepare", prepared)
    monkeypatch.setattr(Move, "loss", watched)
    train("move", runs.data, tmp_path / "run", "tiny", steps=2, set=["batch_size=8"], need=runs.needs("move"), quiet=True)
    assert [player for player, _ in seen] == ["discriminator", "segmenter"] * 2
    assert len({i for _, rows in seen for i in rows}) == 32, "four batches of 8 of the 40 pictures, none of them twice"
    for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        assert line["loss"] == pytest.approx(line["discriminator/loss"] + line["segmenter/loss"], rel=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (20, 20), (20, 200), (200, 20), (1, 9), (33, 47)])
def test_masks_have_the_size_of_the_picture(size: tuple[int, int], needs: dict[str, Any]) -> None:
    method = Move(TINY, needs).eval()
    images = torch.rand(2, 3, *size, generator=generator(0))
    masks, scores = method.segment(images), method.objectness(images)
    assert masks.shape == (2, *size) and scores.shape == (2,)
    assert float(masks.min()) >= 0 and float(masks.max()) <= 1 and bool(((scores >= 0) & (scores <= 1)).all())


def test_flat_and_grey_pictures_have_no_object_and_may_have_an_empty_mask(needs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    method = Move(replace(TINY, object_from=0.02), needs).eval()
    flat = torch.stack([torch.full((3, 32, 32), level) for level in (0.0, 0.5, 1.0)])
    scored = method.objectness(flat)
    assert bool((method.segment(flat)[scored < 0.02] == 0).all())
    grey = torch.rand(2, 1, 32, 32, generator=generator(1)).expand(-1, 3, -1, -1)
    assert torch.isfinite(method.segment(grey)).all() and torch.isfinite(method.objectness(grey)).all()


def test_training_on_pictures_without_object_stays_finite(needs: dict[str, Any], tmp_path: Path) -> None:
    method, _ = made(needs, tmp_path, init="none")
    for level in (0, 128, 255):
        batch = method.prepare(torch.full((8, 3, 32, 32), level, dtype=torch.uint8), np.arange(8))
        for player in method.players():
            loss, _ = method.loss(batch, player, LATER)
            loss.backward()  # type: ignore[no-untyped-call]
            assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_the_exported_network_is_the_answer(needs: dict[str, Any]) -> None:
    method = Move(TINY, needs).eval()
    images = torch.rand(2, 3, 32, 32, generator=generator(2))
    assert torch.equal(method.segment_network(images), method.segment(images))


def test_needs_that_do_not_fit_are_refused(needs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs learned features"):
        Move(TINY, {**needs, "features": nn.Identity()})
    with pytest.raises(ConfigError, match="needs an inpainter"):
        Move(TINY, {**needs, "inpainter": needs["features"]})
    other = copy.copy(needs["inpainter"])
    object.__setattr__(other, "image_px", 48)
    with pytest.raises(ConfigError, match="its inpainter was learned at 48 px"):
        Move(TINY, {**needs, "inpainter": other})
    with pytest.raises(ValueError, match="anchor_weight needs masks"):
        Move(replace(TINY, init="none", anchor_weight=1.0), needs)


def test_what_is_shown(needs: dict[str, Any]) -> None:
    shown = Move(TINY, needs).eval().show(torch.rand(3, 3, 32, 32, generator=generator(3)))
    assert shown["masks"].shape == (5 * 32, 3 * 32, 3) and shown["masks"].dtype == np.uint8
