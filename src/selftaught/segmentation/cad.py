"""CAD: a class-agnostic detector trained on the boxes that another method found without labels.

The detector of LOST (Siméoni et al., BMVC 2021), TokenCut and MOVE ("+ CAD"): the boxes of the masks are taken for truth, one
per picture (`pseudo=largest`) or all of them (`pseudo=all`, MOVE Multi + CAD); what they get wrong at random is not learned.
Any run that segments, tells objects apart or detects can be the teacher (need `masks`); with a `cad` run as teacher this is
one round of self-training (`min_score`, FreeSOLO and CutLER), and `drop_loss` is CutLER's.
`detector=faster-rcnn` (size `paper`) is torchvision's Faster R-CNN set up as LOST's R50-C4, started from DINO's ResNet-50
with `weights=FILE`, and trained by SGD.
Differs: at `tiny` and `small` a one-stage head (`nets/dense_detector.py`) reads the frozen features that the masks were made
of. The learning rate falls by a cosine, not in steps; the Faster R-CNN sees the stretched squares of the loader and no
synchronised batch norm unless several processes train.
Cost: at `small` the frozen features once per step and a small head; Faster R-CNN needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.errors import ConfigError
from selftaught.data.augment import color_jitter, crop_resize, hflip, random_resized_crop_params
from selftaught.measure.box_rules import FoundBoxes
from selftaught.measure.box_scores import detect_all, detection_scores
from selftaught.measure.mask_scores import by_shape
from selftaught.measure.score import Score
from selftaught.method import Detections, EvalData, Method, Parts, Picture, Player, Progress, TrainConfig
from selftaught.nets.dense_detector import DenseHead, best_boxes, dense_loss, targets_of
from selftaught.nets.faster_rcnn import faster_rcnn, load_resnet50
from selftaught.segmentation.pseudo_boxes import giving, propose, pseudo_box_file

DROP_IOU = 0.01
"""CutLER's: places that overlap no pseudo-box by more are not told to be background."""
BOX_WEIGHT = 2.0
"""What the loss of the boxes counts beside that of the scores, as in Generalized Focal Loss."""
PROPOSALS = (6000, 1000)
"""Faster R-CNN: proposals before and after NMS in use, twice as many in training, as in LOST's configurations."""
VISIBLE_FRAC = 0.25
"""A pseudo-box of which a crop shows less is left out of that crop."""


@dataclass(frozen=True)
class CadConfig(TrainConfig):
    """Settings of the class-agnostic detector."""

    detector: Literal["dense", "faster-rcnn"] = "dense"
    """A small head on the frozen features of the need, or torchvision's Faster R-CNN on the pixels."""
    pseudo: Literal["largest", "refinement", "all"] = "largest"
    """Which boxes of a mask are learned: of its largest piece, the largest box, or all (Multi); see measure/box_rules.py."""
    max_boxes: int = 8
    """Most pseudo-boxes per picture, the first ones."""
    min_area: float = 0.005
    """Pieces below this share of the picture give no pseudo-box under `all`."""
    min_score: float = 0.0
    """Pseudo-boxes with a lower score are left out; self-training takes 0.3 (FreeSOLO) or 0.7 (CutLER)."""
    drop_loss: bool = False
    """Places that overlap no pseudo-box are not told to be background: they may show objects that it missed (dense only)."""
    width: int = 64
    """Channels of the dense head."""
    depth: int = 2
    """Convolutions before its answers."""
    crop_min: float = 0.5
    """Smallest share of a picture's area in a training crop."""
    jitter: float = 0.3
    """Strength of colour changes in training."""
    score_min: float = 0.01
    """Detections need a higher score."""
    nms_iou: float = 0.4
    """Of two detections that overlap by more, the one with the lower score goes."""
    detections: int = 20
    """Most detections per picture."""
    weights: str = ""
    """Faster R-CNN: a .safetensors file of a ResNet-50 in torchvision's names, e.g. DINO's; empty for random weights."""
    rcnn_min_px: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Faster R-CNN: sides that a picture is enlarged to, one at random in training, the last in use."""
    rcnn_max_px: int = 1333
    """Faster R-CNN: largest side."""

    def __post_init__(self) -> None:
        if min(self.max_boxes, self.width, self.detections, self.rcnn_max_px, *(self.rcnn_min_px or (0,))) < 1 or self.depth < 0:
            raise ValueError("max_boxes, width, detections and the sides must be at least 1, depth at least 0")
        if not (0 <= self.score_min < 1 and 0 < self.nms_iou <= 1 and 0 <= self.min_score <= 1 and 0 <= self.min_area <= 1):
            raise ValueError("score_min must be in [0, 1), nms_iou in (0, 1], min_score and min_area in [0, 1]")
        refuse_outside(self, "jitter", 0, 1)  # above 1 colours would be turned into their opposites
        refuse_outside(self, "crop_min", 1e-3, 1)


def moved_boxes(boxes: Tensor, crops: Tensor, flips: Tensor, side_px: float, out_px: float) -> Tensor:
    """Boxes (B, K, 4), shares of pictures of `side_px`, in pixels of the crops (B, 4: top, left, height, width), flipped or not.

    They are clipped to the crop; one of which it shows less than `VISIBLE_FRAC` becomes zeros.
    """
    low = torch.stack([crops[:, 1], crops[:, 0]], -1).to(boxes)
    size = torch.stack([crops[:, 3], crops[:, 2]], -1).to(boxes)
    corners = ((boxes.unflatten(-1, (2, 2)) * side_px - low[:, None, None]) / size[:, None, None] * out_px).flatten(2)
    mirrored = torch.stack([out_px - corners[..., 2], corners[..., 1], out_px - corners[..., 0], corners[..., 3]], -1)
    corners = torch.where(flips[:, None, None], mirrored, corners)
    clipped = corners.clamp(0, out_px)
    area, shown = ((c[..., 2:] - c[..., :2]).prod(-1) for c in (corners, clipped))
    return clipped * ((shown >= VISIBLE_FRAC * area) & (area > 0))[..., None]


def features_of(need: Any, asking: str = "cad", otherwise: str = "--set detector=faster-rcnn learns from pixels.") -> Any:
    """The learned features that a run was made with: its own, or those of what it needed; raises ConfigError when there are none."""
    waiting = [need]
    while waiting:
        found = waiting.pop(0)
        if "embed" in found.capabilities:
            return found
        waiting += list(found.given.values())
    raise ConfigError(f"{asking} finds no features in {need.name} nor in what it needs.", do=otherwise)


class Cad(Method):
    """Pseudo-boxes, then a detector that learns them; capability `detect`."""

    name = "cad"
    Config = CadConfig
    needs = {"masks": "selfmask"}
    capabilities = ("detect",)
    sizes = {
        "tiny": CadConfig(image_px=32, batch_size=16, steps=20, width=16, depth=1, detections=5),
        "small": CadConfig(image_px=96, batch_size=32, steps=1200, lr=2e-3, weight_decay=0.01, clip_norm=1.0),
        "paper": CadConfig(
            image_px=640, batch_size=16, steps=24_000, lr=0.02, weight_decay=1e-4, warmup_frac=100 / 24_000,
            detector="faster-rcnn", crop_min=1.0, jitter=0.0, detections=100,
        ),
    }  # fmt: skip
    small_px32 = CadConfig(image_px=32, batch_size=32, steps=1200, lr=2e-3, weight_decay=0.01, clip_norm=1.0)
    config: CadConfig

    def __init__(self, config: CadConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        giving(self.given["masks"])
        self.image_px = c.image_px
        self.boxes: np.ndarray[Any, Any] | None = None
        self.net: nn.Module
        if c.detector == "faster-rcnn":
            self.net = faster_rcnn(c.rcnn_min_px, c.rcnn_max_px, c.score_min, c.nms_iou, c.detections, PROPOSALS)
            return
        features = features_of(self.given["masks"])
        if features.image_px != c.image_px:
            raise ConfigError(
                f"cad works at {c.image_px} px, the features of its masks were learned at {features.image_px} px.",
                do=f"--set image_px={features.image_px}",
            )
        self.net = DenseHead(int(features.encoder().token_width), c.width, c.depth)

    def start(self, say: Any) -> None:
        """Take over the weights of a published ResNet-50."""
        if self.config.detector == "faster-rcnn":
            say(load_resnet50(self.net, self.config.weights))
        elif self.config.weights:
            raise ConfigError("weights are for the Faster R-CNN.", do="--set detector=faster-rcnn, or leave weights away.")

    def begin(self, images: Any, run_dir: Any, say: Any) -> None:
        """Propose the pseudo-boxes of all pictures, once, into pseudo_boxes.npy (N, K, 5) float32."""
        path = run_dir / "pseudo_boxes.npy"
        self.boxes = pseudo_box_file(path, images, self.pseudo_boxes, self.config.max_boxes, say)

    def pseudo_boxes(self, images: Tensor) -> list[FoundBoxes]:
        """(B, 3, S, S) in [0, 1] to the boxes that are learned, in pixels."""
        c = self.config
        return propose(self.given["masks"], images, c.pseudo, c.min_area, c.min_score)

    def players(self) -> dict[str, Player]:
        if self.config.detector == "faster-rcnn":
            return {"detector": self.main_player(self.net, optimizer="sgd", momentum=0.9)}
        return {"detector": self.main_player(self.net)}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Crop, flip and recolour pictures, (B, 3, S, S), and move their boxes along, (B, K, 4) in pixels."""
        c = self.config
        if self.boxes is None:
            raise RuntimeError("begin() makes the pseudo-boxes before training")
        B, S = len(images), c.image_px
        boxes = torch.from_numpy(self.boxes[indices][..., :4])
        crops = random_resized_crop_params(B, S, S, (c.crop_min, 1.0), (0.75, 4 / 3) if c.crop_min < 1 else (1.0, 1.0))
        flips = draws.rand(B) < 0.5
        u = 1 + c.jitter * (2 * draws.rand(4, B, rows=1) - 1)
        order = draws.rand(B, 4).argsort(1)
        pixels = hflip(crop_resize(images.float() / 255, crops, S), flips)
        pixels = color_jitter(pixels, order, u[0], u[1], u[2], 0.3 * (u[3] - 1), draws.rand(B) < 0.8)
        return {"images": pixels, "boxes": moved_boxes(boxes, crops, flips, S, S).to(images.device)}

    def loss(self, batch: dict[str, Tensor], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        images, boxes = batch["images"], batch["boxes"]
        if self.config.detector == "faster-rcnn":
            return self.rcnn_loss(images, boxes)
        scores, found = self.net(self.features(images), images)
        height, width = (-(-side // DenseHead.stride) for side in images.shape[-2:])  # two convolutions that round up
        places = self.net.places(height, width, images.device)  # type: ignore[operator]
        targets = targets_of(places, boxes, DenseHead.stride)
        drop = DROP_IOU if self.config.drop_loss else -1.0
        about_scores, about_boxes, iou = dense_loss(scores, found, boxes, targets, drop)
        parts = {"scores": float(about_scores.detach()), "boxes": float(about_boxes.detach()), "box_iou": float(iou)}
        return about_scores + BOX_WEIGHT * about_boxes, parts

    def rcnn_loss(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Parts]:
        """The four losses of Faster R-CNN, summed; pictures without a pseudo-box are left out, as detectors' loaders do."""
        real = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        rows = [i for i in range(len(images)) if bool(real[i].any())]
        if not rows:
            return sum(p.sum() for p in self.net.parameters() if p.requires_grad) * 0.0, {}  # type: ignore[return-value]
        targets = [
            {"boxes": boxes[i][real[i]], "labels": torch.ones(int(real[i].sum()), dtype=torch.int64, device=images.device)}
            for i in rows
        ]
        # Sides of boxes are differences of large numbers, which bf16 does not hold.
        with torch.autocast(images.device.type, enabled=False):
            losses = self.net([images[i].float() for i in rows], targets)
        return sum(losses.values()), {name: float(value.detach()) for name, value in losses.items()}  # type: ignore[return-value]

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, D, h, w), frozen."""
        with torch.no_grad():
            found: Tensor = features_of(self.given["masks"]).features(images)
        return found

    @torch.no_grad()
    def detect(self, images: Tensor) -> Detections:
        """(B, 3, H, W) in [0, 1] to boxes in pixels of these pictures: found in the square, then stretched with it."""
        c, (height, width) = self.config, images.shape[-2:]
        side = (c.image_px, c.image_px)
        square = images
        if tuple(images.shape[-2:]) != side:
            square = nn.functional.interpolate(images, side, mode="bilinear", antialias=True)
        square = square.clamp(0, 1)
        was_training = self.net.training
        self.net.eval()
        if c.detector == "faster-rcnn":
            boxes, scores = self.rcnn_boxes(square)
        else:
            logits, found = self.net(self.features(square), square)
            boxes, scores = best_boxes(logits.sigmoid(), found, c.image_px, c.detections, c.score_min, c.nms_iou)
        self.net.train(was_training)
        scale = boxes.new_tensor([width, height, width, height]) / c.image_px
        return Detections(boxes * scale, scores)

    def rcnn_boxes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Answers of Faster R-CNN, filled up with zeros: (B, K, 4) and (B, K)."""
        K = self.config.detections
        boxes, scores = images.new_zeros(len(images), K, 4), images.new_zeros(len(images), K)
        for i, found in enumerate(self.net(list(images))):
            amount = min(K, len(found["boxes"]))
            boxes[i, :amount], scores[i, :amount] = found["boxes"][:amount], found["scores"][:amount]
        return boxes, scores

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """CorLoc of the best box, AP of all; baselines: no learning, the boxes it was taught, and the untrained detector."""
        untrained: Any = self.untrained(data.seed)

        def taught(pictures: Sequence[np.ndarray[Any, Any]]) -> list[FoundBoxes]:
            return by_shape(pictures, self.teach)

        return detection_scores(self, data, {"pseudo_boxes": taught, "untrained": lambda p: detect_all(untrained, p)})

    def teach(self, images: Tensor) -> list[FoundBoxes]:
        """The pseudo-boxes of pictures (B, 3, H, W) of any size, made at the square that was trained on."""
        height, width = images.shape[-2:]
        square = nn.functional.interpolate(images, (self.image_px, self.image_px), mode="bilinear", antialias=True)
        scale = np.array([width, height, width, height]) / self.image_px
        return [FoundBoxes(one.boxes * scale, one.scores) for one in self.pseudo_boxes(square.clamp(0, 1))]

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Rows: pictures with the boxes that were taught (orange), and with the best box (green) and others above 0.3 (blue)."""
        images = images[:12].cpu()
        taught, found = self.teach(images), self.detect(images)
        rows = []
        for i, picture in enumerate(images):
            above, below = picture.clone(), picture.clone()
            for box in taught[i].boxes:
                draw_box(above, box, (1.0, 0.5, 0.0))
            for k in range(found.scores.shape[1] - 1, -1, -1):
                if float(found.scores[i, k]) > (0.3 if k else 0.0):
                    draw_box(below, found.boxes[i, k], (0.2, 0.5, 1.0) if k else (0.1, 1.0, 0.2))
            rows.append(torch.cat([above, below], 1))
        sheet = torch.cat(rows, 2).permute(1, 2, 0)
        return {"boxes": (sheet * 255).round().clamp(0, 255).to(torch.uint8).numpy()}


def draw_box(picture: Tensor, box: Any, rgb: tuple[float, float, float]) -> None:
    """Draw the rim of a box, one pixel wide, into a picture (3, H, W) in [0, 1]."""
    height, width = picture.shape[1:]
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    x1, y1 = min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
    colour = torch.tensor(rgb)[:, None]
    for y in (y0, y1 - 1):
        picture[:, y, x0:x1] = colour
    for x in (x0, x1 - 1):
        picture[:, y0:y1, x] = colour
