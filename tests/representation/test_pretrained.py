"""Published weights as frozen features and as the start of a training: through the loop, the cuts, and the main job."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught import apply
from selftaught.core import checkpoint
from selftaught.core.config import read_json
from selftaught.core.errors import ConfigError
from selftaught.learn import learn
from selftaught.loading import load, load_method
from selftaught.measure import mask_scores
from selftaught.nets import backbones
from selftaught.report.exports import read_embeddings
from selftaught.representation.dino import DINO
from selftaught.representation.pretrained import Pretrained
from selftaught.train import Stopped, resume, train

JOB = sys.modules["selftaught.learn"]  # the package's attribute of that name is the function
MODEL = "vit_small_patch8_224.dino"
PX = 40


@pytest.fixture(scope="module", autouse=True)
def _two_blocks() -> Any:
    """Real width and names, but two blocks: what is tested does not depend on the depth."""
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **o: create(name, **o, **({"depth": 2} if "dino" in name else {})))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the official one of DINO ViT-S/8: timm's names, positions for 224 px; random numbers, position and class matter."""
    torch.manual_seed(11)
    tensors = dict(timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict())
    draw = torch.Generator().manual_seed(12)
    for name in ("cls_token", "pos_embed"):
        tensors[name] = torch.randn(tensors[name].shape, generator=draw)
    for name, tensor in tensors.items():
        if name.endswith("weight") and tensor.ndim > 1:
            tensors[name] = torch.randn(tensor.shape, generator=draw) / tensor[0].numel() ** 0.5
    path = tmp_path_factory.mktemp("weights") / "dino_vits8.safetensors"
    save_file({f"teacher.backbone.{k}": v.contiguous() for k, v in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty noisy pictures with a brighter block each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (20, PX, PX, 3)).astype(np.uint8)
    for image in images:
        y, x = rng.integers(2, PX // 2, 2)
        image[y : y + PX // 3, x : x + PX // 3] += rng.integers(60, 130, 3).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=images)
    return path


def settings(weights: Path) -> list[str]:
    return [f"backbone=timm:{MODEL}", f"weights={weights}", f"image_px={PX}", "batch_size=8"]


@pytest.fixture(scope="module")
def run(weights: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `pretrained`, of which the file of weights has gone since."""
    out = tmp_path_factory.mktemp("runs") / "features"
    copy = weights.with_name("gone.safetensors")
    copy.write_bytes(weights.read_bytes())
    train("pretrained", data, out, set=settings(copy), quiet=True)
    copy.unlink()
    return out


@pytest.fixture(scope="module")
def timms(weights: Path) -> Any:
    """timm's own model with the same weights, read by timm."""
    plain = weights.with_name("plain.safetensors")
    save_file({k.removeprefix("teacher.backbone."): v for k, v in load_file(weights).items()}, plain)
    return timm.create_model(
        MODEL, pretrained=True, pretrained_cfg_overlay={"file": str(plain)}, img_size=PX, num_classes=0
    ).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, PX, PX, generator=torch.Generator().manual_seed(3))


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def test_a_run_holds_its_weights_and_gives_what_timm_gives(run: Path, timms: Any) -> None:
    method = load_method(run)
    assert method.players() == {} and not any(p.requires_grad for p in method.parameters())
    kept: list[Tensor] = []
    handle = timms.blocks[-1].attn.qkv.register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        expected = timms.forward_features(normalised(pictures()))
        vectors, keys = method.embed(pictures()), method.features(pictures())  # type: ignore[operator]
    handle.remove()
    torch.testing.assert_close(vectors, expected[:, 0], rtol=1e-5, atol=1e-5)
    slices = kept[0].reshape(3, 26, 3, 384)[:, 1:, 1].transpose(1, 2).reshape(3, 384, 5, 5)
    torch.testing.assert_close(keys, slices, rtol=1e-5, atol=1e-5)
    assert (vectors[0] - vectors[1]).abs().max() > 0.01
    log = (run / "log.txt").read_text()
    assert "timm:vit_small_patch8_224.dino starts from gone.safetensors (sha256 " in log and "30 tensors" in log


def test_the_untrained_baseline_has_other_weights(run: Path) -> None:
    method = load_method(run)
    blank: Any = method.untrained(0)
    own, other = (m.state_dict()["backbone.net.model.blocks.0.attn.qkv.weight"] for m in (method, blank))
    assert not torch.allclose(own, other) and torch.equal(
        other, method.untrained(0).state_dict()["backbone.net.model.blocks.0.attn.qkv.weight"]
    )


def test_runs_go_on_without_the_file(run: Path, weights: Path, data: Path) -> None:
    before = (run / "config.json").read_bytes()
    resume(run, quiet=True)
    assert (run / "config.json").read_bytes() == before
    vectors = load(run).embed(np.zeros((2, 9, 30, 3), np.uint8))
    assert vectors.shape == (2, 384)


@pytest.mark.parametrize("cut", ["tokencut", "lost", "spectral"])
def test_cuts_read_them(cut: str, run: Path, data: Path, tmp_path: Path) -> None:
    out = train(cut, data, tmp_path / cut, need=[f"features={run}"], quiet=True)
    masks = load(out).segment(list(np.load(data)["images"][:3]))
    assert [m.shape for m in masks] == [(PX, PX)] * 3 and any(0 < m.mean() < 1 for m in masks)


def test_embeddings_and_the_network_are_exported(run: Path, data: Path, tmp_path: Path) -> None:
    onnx = ["onnx"] if all(importlib.util.find_spec(n) for n in ("onnx", "onnxruntime", "onnxscript")) else []
    written = apply.export(run, ["npz", *onnx], tmp_path, data=data, quiet=True)
    names, vectors = read_embeddings(tmp_path / "embeddings.npz")
    assert len(names) == 20 and vectors.shape == (20, 384)
    assert [p.name for p in written if p.suffix == ".onnx"] == (["features.onnx"] if onnx else [])


def test_the_main_job_takes_them(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are learned at the size of the features that are given (40 px; 32 at size tiny), also when the time is measured."""
    monkeypatch.setattr(apply, "_installed", lambda package: package == "pyarrow")
    leak = mask_scores.local_leak
    monkeypatch.setattr(mask_scores, "local_leak", lambda *sets: leak(*sets, steps=3))
    fit, measured = JOB.fit_minutes, list[str]()

    def watched(stage: Any, *rest: Any) -> Any:
        measured.append(stage.method)
        return replace(stage, config=replace(fit(stage, *rest, trial_s=0.0).config, steps=3))

    monkeypatch.setattr(JOB, "fit_minutes", watched)
    for _ in range(2):
        out = learn(data, tmp_path / "out", size="tiny", minutes=0.02, need=[f"features={run}"], quiet=True)
    assert measured == ["selfmask"], "nothing is to be measured of features that are there"
    assert not (out / "features").exists() and (out / "report.html").exists()
    config = read_json(out / "masks" / "config.json")
    assert config["config"]["image_px"] == PX and Path(out / "masks" / config["needs"]["features"]).resolve() == run.resolve()
    encoder = load_method(out / "masks").net.encoder  # type: ignore[union-attr]
    found = load_method(run).backbone.net.model.cls_token  # type: ignore[union-attr]
    moved = (encoder.net.model.cls_token - found).abs().max()  # size tiny trains the encoder along, slowly
    assert moved < 0.02 < found.std(), "the mask network starts from the published network"


def test_the_main_job_says_that_weights_must_be_given(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learns nothing by itself") as error:
        learn(data, tmp_path / "out", size="tiny", features="pretrained", quiet=True)
    assert "--need features=RUN" in str(error.value) and not (tmp_path / "out" / "learn.json").exists()


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_a_training_starts_from_them(name: str, weights: Path, data: Path, tmp_path: Path) -> None:
    size = settings(weights) + (["local_px=16"] if name == "dino" else [])
    out = train(name, data, tmp_path / "start", size="tiny", steps=0, set=size, quiet=True)
    published = load_file(weights)
    tensors = checkpoint.load(checkpoint.latest(out / "checkpoints"))[0]["model"]  # type: ignore[arg-type]
    places = ["backbone.net.model."] + (["teacher.module.backbone.net.model."] if name == "dino" else [])
    for place in places:
        for key in ("cls_token", "blocks.1.mlp.fc2.weight", "norm.bias"):
            assert torch.equal(tensors[place + key], published[f"teacher.backbone.{key}"]), place + key
    moved = train(name, data, tmp_path / "moved", size="tiny", steps=2, set=size, quiet=True)
    after = checkpoint.load(checkpoint.latest(moved / "checkpoints"))[0]["model"]  # type: ignore[arg-type]
    change = (after[places[0] + "blocks.1.mlp.fc2.weight"] - published["teacher.backbone.blocks.1.mlp.fc2.weight"]).abs()
    assert 0 < change.max() < 0.05, "it goes on from there"


def test_a_training_that_goes_on_does_not_start_again(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selftaught.train import Loop

    copy, log = tmp_path / "copy.safetensors", Loop.log
    copy.write_bytes(weights.read_bytes())
    straight = train("simclr", data, tmp_path / "straight", "tiny", 4, set=settings(copy), quiet=True)

    def stop(self: Any, logged: dict[str, float]) -> None:
        log(self, logged)
        if self.step == 2:
            import signal

            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Loop, "log", stop)
    with pytest.raises(Stopped):
        train("simclr", data, tmp_path / "halves", "tiny", 4, set=settings(copy), quiet=True)
    monkeypatch.setattr(Loop, "log", log)
    copy.unlink()
    resume(tmp_path / "halves", quiet=True)
    first, second = (
        checkpoint.load(checkpoint.latest(x / "checkpoints"))[0]["model"]  # type: ignore[arg-type]
        for x in (straight, tmp_path / "halves")
    )
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["weights="], "needs to know which weights"),
        (["weights=missing.safetensors"], "There is no file of weights"),
        (["backbone=vit-192x4"], "do not fit the backbone vit-192x4"),
        (["backbone=timm:vit_small_patch16_224.dino", "image_px=48"], "timm:vit_small_patch8_224.dino is what this file was made for"),
        (["image_px=42"], "--set image_px=40"),
    ],
)
def test_a_start_that_is_refused_leaves_the_folder_free(
    changes: list[str], text: str, weights: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        train("pretrained", data, tmp_path / "out", set=[*settings(weights), *changes], quiet=True)
    assert text in str(error.value)
    assert not (tmp_path / "out" / "config.json").exists()
    train("pretrained", data, tmp_path / "out", set=settings(weights), quiet=True)


def test_sizes_ask_for_weights_and_tests_need_none() -> None:
    for size in ("small", "paper"):
        with pytest.raises(ConfigError, match="published-weights.md"):
            Pretrained(Pretrained.sizes[size])
    method = Pretrained(Pretrained.sizes["tiny"])
    method.start(print)
    assert method.embed(torch.rand(2, 3, 32, 32)).shape == (2, 32)


def test_the_command_line_names_the_backbone(data: Path, weights: Path, tmp_path: Path) -> None:
    from selftaught import cli

    arguments = [f"--backbone=timm:{MODEL}", f"--set=weights={weights}", f"--set=image_px={PX}", "--quiet"]
    cli.main(["train", "pretrained", str(data), "--out", str(tmp_path / "run"), *arguments])
    assert read_json(tmp_path / "run" / "config.json")["config"]["backbone"] == f"timm:{MODEL}"


def test_small_crops_reach_a_network_of_timm(weights: Path) -> None:
    config = replace(DINO.sizes["tiny"], backbone=f"timm:{MODEL}", image_px=PX, weights=str(weights), stem="linear")
    method = DINO(config).train()  # type: ignore[arg-type]
    told: list[str] = []
    method.start(told.append)
    assert len(told) == 1 and sum(isinstance(m, backbones.Backbone) for m in method.modules()) == 2
    batch = method.prepare((pictures(4) * 255).to(torch.uint8), np.arange(4))
    assert {x.shape[-1] for x in batch} == {PX, 16}
    from selftaught.method import Progress

    loss, _ = method.loss(batch, "student", Progress(10, 20))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in method.backbone.parameters())
