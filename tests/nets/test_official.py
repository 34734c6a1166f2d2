"""Published weights: every official name and shape finds its place, features are timm's, and what does not fit is named.

The tensors are random, their names and shapes those of the official files. Where a person has the files as .safetensors,
`SELFTAUGHT_WEIGHTS=FOLDER pytest -m real_weights` runs the same checks on them; they are looked for under the names in `FILES`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.nets.backbones import build_backbone
from selftaught.nets.official import load_weights, match, read
from selftaught.nets.timm_vit import TimmViT

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, enter: int) -> Shapes:
    return {f"{name}.weight": (out, enter), f"{name}.bias": (out,)}


def norm(name: str, D: int) -> Shapes:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def block(name: str, D: int, scale: bool = False, gated: int = 0) -> Shapes:
    """One transformer block; `scale`: LayerScale; `gated`: hidden width of a SwiGLU instead of the usual perceptron."""
    shapes = norm(f"{name}.norm1", D) | linear(f"{name}.attn.qkv", 3 * D, D) | linear(f"{name}.attn.proj", D, D)
    shapes |= norm(f"{name}.norm2", D)
    if gated:
        shapes |= linear(f"{name}.mlp.w12", 2 * gated, D) | linear(f"{name}.mlp.w3", D, gated)
    else:
        shapes |= linear(f"{name}.mlp.fc1", 4 * D, D) | linear(f"{name}.mlp.fc2", D, 4 * D)
    return shapes | ({f"{name}.ls1.gamma": (D,), f"{name}.ls2.gamma": (D,)} if scale else {})


def vit(D: int, depth: int, patch: int, side: int, **kind: Any) -> Shapes:
    """A vision transformer with side x side patches and a class token that has a position of its own."""
    shapes: Shapes = {"cls_token": (1, 1, D), "pos_embed": (1, side * side + 1, D)}
    shapes |= {"patch_embed.proj.weight": (D, 3, patch, patch), "patch_embed.proj.bias": (D,)}
    for i in range(depth):
        shapes |= block(f"blocks.{i}", D, **kind)
    return shapes | norm("norm", D)


def dino(D: int, patch: int, depth: int = 12) -> Shapes:
    return vit(D, depth, patch, 224 // patch)


def dinov2(D: int, registers: int = 0, depth: int = 12, gated: int = 0) -> Shapes:
    shapes = vit(D, depth, 14, 37, scale=True, gated=gated) | {"mask_token": (1, D)}
    return shapes | ({"register_tokens": (1, registers, D)} if registers else {})


def mae(D: int = 768, depth: int = 12, patch: int = 16, decoder: int = 8) -> Shapes:
    side, E = 224 // patch, 512
    shapes = vit(D, depth, patch, side)
    if decoder:
        shapes |= {"mask_token": (1, 1, E), "decoder_pos_embed": (1, side * side + 1, E)} | linear("decoder_embed", E, D)
        for i in range(decoder):
            shapes |= block(f"decoder_blocks.{i}", E)
        shapes |= norm("decoder_norm", E) | linear("decoder_pred", 3 * patch * patch, E)
    return shapes


#: stem of the official file -> (names and shapes for a depth, its timm model, depth)
FILES: dict[str, tuple[Callable[[int], Shapes], str, int]] = {
    "dino_deitsmall8_pretrain": (lambda n: dino(384, 8, n), "vit_small_patch8_224.dino", 12),
    "dino_deitsmall16_pretrain": (lambda n: dino(384, 16, n), "vit_small_patch16_224.dino", 12),
    "dino_vitbase8_pretrain": (lambda n: dino(768, 8, n), "vit_base_patch8_224.dino", 12),
    "dino_vitbase16_pretrain": (lambda n: dino(768, 16, n), "vit_base_patch16_224.dino", 12),
    "dinov2_vits14_pretrain": (lambda n: dinov2(384, 0, n), "vit_small_patch14_dinov2.lvd142m", 12),
    "dinov2_vitb14_pretrain": (lambda n: dinov2(768, 0, n), "vit_base_patch14_dinov2.lvd142m", 12),
    "dinov2_vitl14_pretrain": (lambda n: dinov2(1024, 0, n), "vit_large_patch14_dinov2.lvd142m", 24),
    "dinov2_vitg14_pretrain": (lambda n: dinov2(1536, 0, n, 4096), "vit_giant_patch14_dinov2.lvd142m", 40),
    "dinov2_vits14_reg4_pretrain": (lambda n: dinov2(384, 4, n), "vit_small_patch14_reg4_dinov2.lvd142m", 12),
    "dinov2_vitb14_reg4_pretrain": (lambda n: dinov2(768, 4, n), "vit_base_patch14_reg4_dinov2.lvd142m", 12),
    "dinov2_vitl14_reg4_pretrain": (lambda n: dinov2(1024, 4, n), "vit_large_patch14_reg4_dinov2.lvd142m", 24),
    "dinov2_vitg14_reg4_pretrain": (lambda n: dinov2(1536, 4, n, 4096), "vit_giant_patch14_reg4_dinov2.lvd142m", 40),
    "mae_pretrain_vit_base": (lambda n: mae(depth=n, decoder=0), "vit_base_patch16_224.mae", 12),
    "mae_pretrain_vit_large": (lambda n: mae(1024, n, decoder=0), "vit_large_patch16_224.mae", 24),
    "mae_pretrain_vit_huge": (lambda n: mae(1280, n, 14, 0), "vit_huge_patch14_224.mae", 32),
    "mae_visualize_vit_base": (lambda n: mae(depth=n), "vit_base_patch16_224.mae", 12),
    "mae_visualize_vit_large": (lambda n: mae(1024, n), "vit_large_patch16_224.mae", 24),
}
LIGHT = [
    "dino_deitsmall8_pretrain", "dino_deitsmall16_pretrain", "dino_vitbase16_pretrain", "dinov2_vits14_pretrain",
    "dinov2_vits14_reg4_pretrain", "mae_pretrain_vit_base", "mae_visualize_vit_base",
]  # fmt: skip


def random_tensors(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Numbers of such sizes that every tensor matters for the features."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        fan = shape[-1] if len(shape) == 2 else math.prod(shape[1:]) if len(shape) == 4 else 0
        x = torch.randn(shape, generator=draw)
        centred = ".weight" in name and len(shape) == 1 or "gamma" in name
        tensors[name] = 1 + 0.2 * x if centred else x / math.sqrt(fan) if fan else 0.3 * x
    return tensors


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def meta_vit(model: str, px: int) -> Any:
    """The timm model inside the backbone that a user gets, without memory."""
    with torch.device("meta"):
        return build_backbone(f"timm:{model}", px, 8).net.model


def small_vit(model: str, px: int, depth: int = 2, **options: Any) -> Any:
    """A timm model of real width and few blocks, as `build_backbone` would make it."""
    return timm.create_model(model, num_classes=0, img_size=px, dynamic_img_size=True, depth=depth, **options).eval()


def normalised(px: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(7))


def checked_file(path: Path, stem: str, px: int, depth: int) -> None:
    """The names and shapes are the official ones, nothing is missing, and features are those that timm computes from the same file."""
    shapes, model, _ = FILES[stem]
    assert {name: tuple(t.shape) for name, t in read(path).items()} == shapes(depth)
    mine = small_vit(model, px, depth)
    said = load_weights(mine, str(path), f"timm:{model}")
    assert path.name in said and f"{len(mine.state_dict())} tensors" in said
    alone = path.with_name("encoder.safetensors")
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("decoder")}, alone)  # timm knows no decoder
    theirs = small_vit(model, px, depth, pretrained=True, pretrained_cfg_overlay={"file": str(alone)})
    alone.unlink()
    images = normalised(px)
    with torch.no_grad():
        expected, found = theirs.forward_features(images), TimmViT(mine)(images)
    first, prefix = expected[:, :1], mine.num_prefix_tokens
    assert expected.std() > 0.1 and (expected[0] - expected[1]).abs().max() > 1e-3, "pictures matter"
    torch.testing.assert_close(found, torch.cat([first, expected[:, prefix:]], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("px", ["native", "other"])
@pytest.mark.parametrize("stem", FILES)
def test_every_name_finds_its_place(stem: str, px: str) -> None:
    shapes, model, depth = FILES[stem]
    patch = int(model.split("patch")[1].split("_")[0])
    net = meta_vit(model, patch * (7 if px == "other" else 37 if "dinov2" in model else 224 // patch))
    assert len(net.blocks) == depth
    state, left = match(on_meta(shapes(depth)), net, "file", model)
    wanted = net.state_dict()
    assert state.keys() == wanted.keys() and all(state[k].shape == wanted[k].shape for k in wanted)
    assert set(left) == {n for n in shapes(depth) if n.startswith(("decoder", "mask_token"))}
    net.load_state_dict(state, strict=True, assign=True)


@pytest.mark.parametrize("px", ["native", "other"])
@pytest.mark.parametrize("stem", LIGHT)
def test_features_are_those_of_timm(stem: str, px: str, tmp_path: Path) -> None:
    shapes, model, _ = FILES[stem]
    path = tmp_path / f"{stem}.safetensors"
    save_file(random_tensors(shapes(2)), path)
    native = {"8_": 64, "16": 224, "14": 518}[model.split("patch")[1][:2]]
    checked_file(path, stem, {"8_": 64, "16": 96, "14": 98}[model.split("patch")[1][:2]] if px == "other" else native, 2)


@pytest.mark.real_weights
@pytest.mark.parametrize("stem", FILES)
def test_real_files_are_what_was_written_down(stem: str, tmp_path: Path) -> None:
    folder = os.environ.get("SELFTAUGHT_WEIGHTS", "")
    if not folder:
        pytest.skip("SELFTAUGHT_WEIGHTS names no folder with published weights")
    path = Path(folder) / f"{stem}.safetensors"
    if not path.exists():
        pytest.skip(f"{path.name} is not in SELFTAUGHT_WEIGHTS")
    here = tmp_path / path.name
    here.symlink_to(path.resolve())
    patch = FILES[stem][0](1)["patch_embed.proj.weight"][-1]
    for px in (12 * patch, 224 if patch != 14 else 518):
        checked_file(here, stem, px, FILES[stem][2])


def huggingface(tensors: dict[str, Tensor], depth: int, new: bool) -> dict[str, Tensor]:
    """The same numbers under the names of transformers: Dinov2 (`new`), or ViT and ViTMAE."""
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings", "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens", "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias", "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }  # fmt: skip
    out = {names[k]: v for k, v in tensors.items() if k in names}
    for i in range(depth):
        old, layer = f"blocks.{i}.", f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            q, k, v = tensors[f"{old}attn.qkv.{kind}"].chunk(3)
            out |= {f"{layer}attention.attention.{n}.{kind}": t.clone() for n, t in (("key", k), ("query", q), ("value", v))}
            parts = {"attn.proj": "attention.output.dense", "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
            if not new:
                parts |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
                parts |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
            out |= {f"{layer}{b}.{kind}": tensors[f"{old}{a}.{kind}"] for a, b in parts.items()}
        if new:
            out |= {f"{layer}layer_scale{n}.lambda1": tensors[f"{old}ls{n}.gamma"] for n in (1, 2)}
    return out


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("stem", "new", "prefix"),
    [("dino_deitsmall16_pretrain", False, ""), ("mae_pretrain_vit_base", False, "vit."), ("dinov2_vits14_reg4_pretrain", True, "")],
)
def test_the_names_of_transformers_are_understood(stem: str, new: bool, prefix: str) -> None:
    shapes, model, _ = FILES[stem]
    tensors = random_tensors(shapes(2))
    net = small_vit(model, 112)
    theirs = {prefix + k: v for k, v in huggingface(tensors, 2, new).items()}
    theirs |= {"pooler.dense.weight": torch.zeros(1)} if not prefix else {"decoder.mask_token": torch.zeros(1)}
    assert not set(theirs) & set(tensors)
    state, left = match(theirs, net, "file", model)
    assert same(state, match(tensors, net, "file", model)[0])
    assert set(left) <= {"pooler.dense.weight", "decoder.mask_token", "mask_token"} and left


@pytest.mark.parametrize("prefix", ["teacher.backbone.", "teacher.module.backbone.", "model.", "state_dict.module.", "backbone.", "a.b.c."])
def test_networks_are_found_below_any_prefix(prefix: str) -> None:
    net, tensors = small_vit("vit_small_patch16_224.dino", 64), random_tensors(dino(384, 16, 2))
    nested = {prefix + name: t for name, t in tensors.items()}
    if "teacher" in prefix:
        nested |= {f"student.module.backbone.{name}": t + 1 for name, t in tensors.items()}
        nested |= {"teacher.head.last_layer.weight_g": torch.ones(8, 1), "dino_loss.center": torch.zeros(1, 8)}
    state, left = match(nested, net, "file", "timm:x")
    assert same(state, match(tensors, net, "file", "timm:x")[0])
    assert len(left) == len(nested) - len(tensors) and not any(name.startswith(prefix) for name in left)


def test_other_spellings_of_the_same_block() -> None:
    net, tensors = small_vit("vit_small_patch14_dinov2.lvd142m", 70), random_tensors(dinov2(384, 0, 2))
    plain = match(tensors, net, "file", "timm:x")[0]
    chunked = {n.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for n, t in tensors.items()}
    gammas = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for n, t in tensors.items()}
    assert "blocks.1.1.norm1.weight" in chunked and "blocks.1.gamma_2" in gammas
    for spelled in (chunked, gammas):
        assert same(match(spelled, net, "file", "timm:x")[0], plain)
    biases = dict(tensors)
    q, _, v = biases.pop("blocks.1.attn.qkv.bias").chunk(3)
    biases |= {"blocks.1.attn.q_bias": q.clone(), "blocks.1.attn.v_bias": v.clone()}
    found = match(biases, net, "file", "timm:x")[0]["blocks.1.attn.qkv.bias"]
    assert torch.equal(found, torch.cat([q, torch.zeros(384), v])), "BEiT has no bias for keys"


@pytest.mark.parametrize("side", [5, 28, 40])
def test_positions_are_resized_as_timm_does(side: int) -> None:
    net, tensors = small_vit("vit_small_patch8_224.dino", 8 * side, 1), random_tensors(dino(384, 8, 1))
    found = match(tensors, net, "file", "timm:x")[0]["pos_embed"]
    table = tensors["pos_embed"]
    grid = table[:, 1:].double().view(1, 28, 28, 384).permute(0, 3, 1, 2)
    exact = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(found[:, 1:].double(), exact.reshape(1, side * side, 384), rtol=0, atol=1e-5)
    assert torch.equal(found[:, :1], table[:, :1]), "the class token's position is no place in the picture"
    official = timm.layers.resample_abs_pos_embed(table, [side, side], num_prefix_tokens=1)
    assert torch.equal(found, official) and (side != 28 or torch.equal(found, table))


@pytest.mark.parametrize("model", ["vit_small_patch8_224.dino", "vit_small_patch14_reg4_dinov2.lvd142m"])
def test_keys_are_a_slice_of_the_last_qkv(model: str) -> None:
    net = small_vit(model, 112, 3)
    load = random_tensors(dino(384, 8, 3) if "patch8" in model else dinov2(384, 4, 3))
    net.load_state_dict(match(load, net, "file", model)[0])
    kept: list[Tensor] = []
    net.blocks[-1].attn.qkv.register_forward_hook(lambda module, given, output: kept.append(output.detach()))
    images = normalised(112)[:, :, :56]
    with torch.no_grad():
        net.forward_features(images)
        keys = TimmViT(net)(images, keys=True)
    B, N, _ = kept[0].shape
    expected = kept[0].reshape(B, N, 3, 6, 64)[:, :, 1].flatten(2)[:, net.num_prefix_tokens :]
    assert torch.equal(keys, expected) and keys.shape[1] == (14 * 7 if "patch8" in model else 8 * 4)


def test_half_precision_files_and_heads_are_taken(tmp_path: Path) -> None:
    net, tensors = small_vit("vit_small_patch16_224.dino", 64), random_tensors(dino(384, 16, 2))
    save_file({k: v.half() for k, v in tensors.items()} | {"head.weight": torch.ones(2, 384)}, tmp_path / "x.safetensors")
    assert "1 left out: head.weight" in load_weights(net, str(tmp_path / "x.safetensors"), "timm:vit_small_patch16_224.dino")
    assert net.blocks[1].mlp.fc2.weight.dtype == torch.float32
    torch.testing.assert_close(net.blocks[1].mlp.fc2.weight.data, tensors["blocks.1.mlp.fc2.weight"], rtol=1e-3, atol=1e-4)


S16, S8, REG = "vit_small_patch16_224.dino", "vit_small_patch8_224.dino", "vit_small_patch14_reg4_dinov2.lvd142m"


@pytest.mark.parametrize(
    ("model", "shapes", "texts"),
    [
        (S8, dino(384, 16, 2), ["do not fit timm:" + S8, "why: 1 of another shape: patch_embed.proj.weight",
                                "is (384, 3, 16, 16) instead of (384, 3, 8, 8)", "timm:" + S16 + " is what"]),
        (S16, dino(768, 16, 2), ["cls_token is (1, 1, 768) instead of (1, 1, 384)", "expected: 30 tensors, e.g. cls_token (1, 1, 384)",
                                 "timm:vit_base_patch16_224.dino"]),
        (S16, mae(768, 2), ["timm:vit_base_patch16_224.mae"]),
        (REG, dinov2(384, 0, 2), ["1 missing: reg_token", "timm:vit_small_patch14_dinov2.lvd142m is what"]),
        ("vit_small_patch14_dinov2.lvd142m", dinov2(384, 4, 2), ["1 unknown: reg_token", "timm:" + REG + " is what"]),
        (S16, dino(384, 16, 1), ["12 missing: blocks.1.norm1.weight", "and 8 more"]),
        (S16, dino(384, 16, 3), ["12 unknown: blocks.2.norm1.weight"]),
        (S16, dino(384, 16, 2) | {"extra.weight": (3,)}, ["1 unknown: extra.weight"]),
        (S16, {k: s for k, s in dino(384, 16, 2).items() if k != "norm.bias"}, ["1 missing: norm.bias"]),
        (S16, dino(384, 16, 2) | {"pos_embed": (1, 151, 384)}, ["pos_embed is (1, 151, 384) instead of (1, 17, 384)"]),
        (S16, dino(384, 16, 2) | {"patch_embed.proj.weight": (384, 768)}, ["patch_embed.proj.weight is (384, 768)"]),
        (S16, {"conv1.weight": (64, 3, 7, 7), "fc.bias": (10,)}, ["no network that is known", "it holds conv1.weight, fc.bias"]),
        (S16, {}, ["no network that is known", "no tensors"]),
        (S16, {f"{a}.{n}": s for a in ("one", "two") for n, s in dino(384, 16, 2).items()}, ["several networks: one., two."]),
        (S16, {f"student.{n}": s for n, s in dino(384, 16, 1).items()} | {f"teacher.{n}": s for n, s in dino(384, 16, 1).items()},
         ["missing: blocks.1"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(model: str, shapes: Shapes, texts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        match(on_meta(shapes), small_vit(model, 70 if "patch14" in model else 64), "file", f"timm:{model}")
    for text in texts:
        assert text in str(error.value), str(error.value)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    good, torn, pickled, foreign = (tmp_path / n for n in ("dino.safetensors", "torn.safetensors", "p.safetensors", "d.pth"))
    save_file(random_tensors(dino(384, 16, 1)), good)
    torn.write_bytes(good.read_bytes()[:-100])
    pickled.write_bytes(b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01}q\x02s.")
    foreign.write_bytes(pickled.read_bytes())
    for path, texts in {
        tmp_path / "dinno.safetensors": ["There is no file of weights", "Did you mean 'dino.safetensors'"],
        tmp_path / "no" / "x.safetensors": ["There is no file of weights"],
        tmp_path: ["There is no file of weights"],
        torn: ["torn.safetensors cannot be read as safetensors", "why: "],
        pickled: ["p.safetensors cannot be read as safetensors"],
        foreign: ["d.pth is no .safetensors file", "can run programs", f"selftaught weights import {foreign}"],
    }.items():
        with pytest.raises(ConfigError) as error:
            read(path)
        for text in texts:
            assert text in str(error.value), str(error.value)


def test_weights_that_are_not_finite_change_nothing(tmp_path: Path) -> None:
    net, tensors = small_vit(S16, 64), random_tensors(dino(384, 16, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    tensors["blocks.1.mlp.fc1.bias"][3] = float("nan")
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="NaN or infinite weights: blocks.1.mlp.fc1.bias"):
        load_weights(net, str(tmp_path / "x.safetensors"), f"timm:{S16}")
    assert same(before, dict(net.state_dict()))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache of the hub; tests are offline."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_timms_own_file_is_taken_from_the_cache_alone(hub: Path) -> None:
    net, tensors = small_vit(S16, 64), random_tensors(dino(384, 16, 2))
    with pytest.raises(ConfigError, match="not in the local cache") as error:
        load_weights(net, "timm", f"timm:{S16}")
    assert f"timm/{S16} in the cache" in str(error.value) and "--set weights=FILE.safetensors" in str(error.value)
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = hub / f"models--timm--{S16}"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    save_file(tensors, folder / "snapshots" / commit / "model.safetensors")
    load_weights(net, "timm", f"timm:{S16}")
    assert torch.equal(net.cls_token.data, tensors["cls_token"])


@pytest.mark.parametrize("model", ["vit_small_patch8_224", "test_vit.nothing", "vit_huge_patch14_xp_224.untrained"])
def test_timms_own_file_needs_a_tag_that_has_one(model: str, hub: Path) -> None:
    with pytest.raises(ConfigError, match="publishes no weights under") as error:
        load_weights(torch.nn.Identity(), "timm", f"timm:{model}")
    assert "with labels" in str(error.value)
    assert model != "vit_small_patch8_224" or "timm:vit_small_patch8_224.dino" in str(error.value)


def test_a_residual_network_is_matched_by_the_same_rules() -> None:
    with torch.device("meta"):
        net = build_backbone("timm:resnet18", 64, 32).net.model
    shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}  # type: ignore[union-attr]
    nested = {f"module.{name}": shape for name, shape in shapes.items()} | {"module.fc.weight": (9, 512)}
    state, left = match(on_meta(nested), net, "file", "timm:resnet18")  # type: ignore[arg-type]
    assert state.keys() == shapes.keys() and left == ["fc.weight"]
    del nested["module.layer2.0.conv1.weight"]
    with pytest.raises(ConfigError, match="1 missing: layer2.0.conv1.weight"):
        match(on_meta(nested), net, "file", "timm:resnet18")  # type: ignore[arg-type]
