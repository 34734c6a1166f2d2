"""Faster R-CNN from torchvision's parts: shapes, what is frozen, weights in DINO's names, and the NMS it may lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from selftaught.core.errors import ConfigError
from selftaught.nets.faster_rcnn import add_missing_nms, faster_rcnn, load_resnet50
from selftaught.nets.torchvision_ops import make_torchvision_importable

make_torchvision_importable()


@pytest.fixture(scope="module")
def detector() -> Any:
    torch.manual_seed(0)
    return faster_rcnn((64,), 64, 0.01, 0.4, 5, (8, 4))


def test_it_is_a_resnet50_c4_of_one_class(detector: Any) -> None:
    count = sum(p.numel() for p in detector.backbone.parameters()) + sum(
        p.numel() for p in detector.roi_heads.box_head.stage.parameters()
    )
    assert count == 25_557_032 - 2048 * 1000 - 1000, "a ResNet-50 without its classifier"
    assert detector.roi_heads.box_predictor.cls_score.out_features == 2
    assert detector.rpn.head.cls_logits.out_channels == 15
    trained = {n.split(".")[0] for n, p in detector.backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3"}


def test_a_step_and_an_answer(detector: Any) -> None:
    torch.manual_seed(0)
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    target = {"boxes": torch.tensor([[8.0, 8, 40, 48]]), "labels": torch.ones(1, dtype=torch.int64)}
    losses = detector.train()(images, [target, target])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    total = sum(losses.values())
    total.backward()
    grads = [p.grad for p in detector.parameters() if p.requires_grad]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)
    detector.zero_grad(set_to_none=True)
    (answer,) = detector.eval()([images[0]])
    assert answer["boxes"].shape[1] == 4 and len(answer["boxes"]) == len(answer["scores"]) <= 5


def test_the_missing_nms_is_put_in_once() -> None:
    from torchvision.ops import boxes

    add_missing_nms()
    assert not add_missing_nms(), "from then on there is one"
    corners = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [10, 10, 12, 12]])
    assert boxes.nms(corners, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]
    kept = boxes.batched_nms(corners, torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0, 1, 0]), 0.5)
    assert kept.tolist() == [1, 0, 2]


def test_weights_in_torchvision_s_names(detector: Any, tmp_path: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(1)
    net = resnet50(weights=None)
    state = {f"module.{k}": v.contiguous() for k, v in net.state_dict().items() if not k.startswith("fc.")}
    save_file(state, tmp_path / "dino_resnet50.safetensors")
    assert "dino_resnet50" in load_resnet50(detector, str(tmp_path / "dino_resnet50.safetensors"))
    assert torch.equal(detector.backbone.layer3[0].conv1.weight, net.layer3[0].conv1.weight)
    assert torch.equal(detector.roi_heads.box_head.stage[2].conv3.weight, net.layer4[2].conv3.weight)
    del state["module.layer2.0.conv1.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match="layer2.0.conv1.weight"):
        load_resnet50(detector, str(tmp_path / "cut.safetensors"))
    assert "random" in load_resnet50(detector, "")
