"""Faster R-CNN of one class as LOST's detector is set up (R50-C4), from torchvision's parts, and a NMS where it has none.

Published setting (read in LOST's released configurations): ResNet-50 up to its fourth stage as backbone, the fifth as head
with one more norm after it, anchors of five sizes and three shapes, score at least 0.01, NMS 0.4, 6,000 and 1,000 proposals
before and after NMS in tests; stem and second stage frozen.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.measure.box_rules import non_maximum
from selftaught.nets.official import RANDOM, few, read
from selftaught.nets.torchvision_ops import make_torchvision_importable

FROZEN = ("conv1", "bn1", "layer1")
"""Parts of the ResNet that are not trained."""


class LastStage(nn.Module):
    """ResNet's last stage on pooled regions, a norm, and their mean: (R, 1024, 14, 14) to (R, 2048)."""

    def __init__(self, stage: nn.Module, width: int):
        super().__init__()
        self.stage, self.norm = stage, nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stage(x)).mean((2, 3))


def faster_rcnn(
    min_px: tuple[int, ...], max_px: int, score_min: float, iou_max: float, count: int, proposals: tuple[int, int]
) -> nn.Module:
    """torchvision's FasterRCNN with random weights; `proposals` before and after NMS."""
    make_torchvision_importable()
    add_missing_nms()
    from torchvision.models import resnet50
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    net = resnet50(weights=None)
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    body: Any = nn.Sequential(OrderedDict((name, getattr(net, name)) for name in parts))
    body.out_channels = 1024
    for name in FROZEN:
        getattr(body, name).requires_grad_(False)
    before, after = proposals
    return FasterRCNN(
        body, min_size=min_px, max_size=max_px,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=2 * before, rpn_post_nms_top_n_train=2 * after,
        rpn_pre_nms_top_n_test=before, rpn_post_nms_top_n_test=after,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        box_head=LastStage(net.layer4, 2048), box_predictor=FastRCNNPredictor(2048, 2),
        box_score_thresh=score_min, box_nms_thresh=iou_max, box_detections_per_img=count,
    )  # fmt: skip


def load_resnet50(detector: Any, weights: str) -> str:
    """`load_resnet` into a Faster R-CNN of `faster_rcnn`."""
    wanted = {f"{name}.{key}": t for name, part in detector.backbone.named_children() for key, t in part.state_dict().items()}
    wanted |= {f"layer4.{key}": t for key, t in detector.roi_heads.box_head.stage.state_dict().items()}
    return load_resnet(wanted, weights, "ResNet-50")


def load_resnet(wanted: Mapping[str, Tensor], weights: str, name: str) -> str:
    """Copy a ResNet's weights in torchvision's names (DINO publishes them so) into tensors of these names; one sentence for the log.

    Raises ConfigError when a tensor is missing or has another shape; the classifier `fc` is left out.
    """
    from pathlib import Path

    if weights in RANDOM:
        return f"the {name} starts from random weights"
    tensors = {key.removeprefix("module."): t for key, t in read(Path(weights).expanduser()).items()}
    wrong = [key for key, t in wanted.items() if key not in tensors or tensors[key].shape != t.shape]
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise ConfigError(f"{weights} is no {name} of torchvision's names: {few(wrong)} missing or of another shape.")
    with torch.no_grad():
        for key, t in wanted.items():
            if key in tensors:
                t.copy_(tensors[key])
    return f"the {name} starts from {Path(weights).name}"


def add_missing_nms() -> bool:
    """Give torchvision a NMS in numpy when its compiled operators do not load; True when that was needed.

    Its RoI pooling has a stand-in of its own, which it would compile for minutes at the first call: that is left out. Both are
    slower and give the same boxes.
    """
    from torchvision.ops import boxes

    try:
        boxes.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    except (RuntimeError, NotImplementedError):

        def nms(corners: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
            kept = non_maximum(corners.detach().cpu().numpy(), scores.detach().cpu().numpy(), iou_threshold)
            return torch.from_numpy(np.asarray(kept)).to(corners.device)

        boxes.nms = nms
        # The package's attribute of that name is the function.
        module = importlib.import_module("torchvision.ops.roi_align")
        module._roi_align = getattr(module._roi_align, "__wrapped__", module._roi_align)  # type: ignore[attr-defined]
        return True
    return False
