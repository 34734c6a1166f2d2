"""timm's networks as backbones: class token, tokens and keys, free sizes, pixels, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from selftaught.core.errors import ConfigError
from selftaught.nets.backbones import build_backbone
from selftaught.nets.timm_vit import TimmViT, is_plain_vit


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _the_same_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("model", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_tokens_are_those_of_timm(model: str, images: torch.Tensor) -> None:
    backbone = build_backbone(f"timm:{model}", 32, 8).eval()
    net: Any = backbone.net.model
    assert isinstance(backbone.net, TimmViT) and backbone.width == net.embed_dim
    side = 32 // backbone.patch_px
    with torch.no_grad():
        out = net.forward_features(backbone.normalise(images))
        pooled, tokens = backbone(images)
        backbone.pool = "mean"
        averaged = backbone.pooled(images)
        keys = backbone.keys(images)
    patches = out[:, net.num_prefix_tokens :]
    assert torch.equal(pooled, out[:, 0] if net.has_class_token else patches.mean(1))
    assert torch.equal(tokens, patches.transpose(1, 2).reshape(2, -1, side, side))
    torch.testing.assert_close(averaged, tokens.mean((2, 3)))
    assert keys.shape == tokens.shape and not torch.allclose(keys, tokens)


def test_kinds_that_are_no_plain_vit_keep_their_last_map() -> None:
    for model in ("test_resnet", "eva02_tiny_patch14_224"):
        backbone = build_backbone(f"timm:{model}", 56, 8).eval()
        assert not isinstance(backbone.net, TimmViT)
        with torch.no_grad():
            pooled, tokens = backbone(torch.rand(1, 3, 56, 56))
        assert pooled.shape == (1, backbone.width) and tokens.shape[:2] == (1, backbone.token_width)
    assert not is_plain_vit(timm.create_model("vit_small_patch16_18x2_224", depth=1, num_classes=0)), "parallel blocks"


def test_crops_of_other_sizes_and_shapes_are_seen() -> None:
    backbone = build_backbone("timm:test_vit", 64, 8).eval()
    p = backbone.patch_px
    with torch.no_grad():
        for h, w in ((64, 64), (2 * p, 2 * p), (3 * p, 5 * p)):
            assert backbone(torch.rand(1, 3, h, w))[1].shape[2:] == (h // p, w // p)
            assert backbone.keys(torch.rand(1, 3, h, w)).shape[2:] == (h // p, w // p)


def test_pixels_are_scaled_as_the_weights_expect() -> None:
    assert build_backbone("timm:vit_tiny_patch16_224.augreg_in21k", 32, 8).mean.flatten().tolist() == [0.5] * 3
    for name in ("timm:vit_small_patch16_224.dino", "vit-tiny-test"):
        backbone = build_backbone(name, 32, 8)
        torch.testing.assert_close(backbone.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
        torch.testing.assert_close(backbone.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize(
    ("name", "px", "texts"),
    [
        ("timm:vit_small_patch14_dinov2.lvd142m", 96, ["patches of 14 px", "--set image_px=98"]),
        ("timm:vit_small_patch8_224.dinoo", 32, ["no tag 'dinoo'", "Did you mean 'vit_small_patch8_224.dino'"]),
        ("timm:vit_smal_patch8_224", 32, ["timm has no model", "Did you mean"]),
    ],
)
def test_what_cannot_be_built_is_named(name: str, px: int, texts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build_backbone(name, px, 8)
    for text in texts:
        assert text in str(error.value), str(error.value)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    create = timm.create_model

    def watched(name: str, **options: Any) -> Any:
        asked.append(options)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", watched)
    for name in ("test_vit", "test_resnet"):
        build_backbone(f"timm:{name}", 64, 8)
    assert asked and all(options["pretrained"] is False for options in asked)
