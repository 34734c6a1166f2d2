"""SOLO taught by free masks, the second half of FreeSOLO: sharp masks, told apart and scored, learned from coarse ones.

Wang, Yu, De Mello, Kautz, Anandkumar, Shen, Alvarez, "FreeSOLO: Learning to Segment Objects without Annotations" (CVPR 2022), section
3.2 to 3.4, with the network of SOLOv2 (Wang et al., NeurIPS 2020). Masks of any run that tells objects apart or segments (need
`masks`, `freesolo` by default) are taken for coarse masks: the network's masks must agree with them on the axes of the picture, and
neighbouring pixels of one colour must be on one side. With a `solo` run as teacher and `min_score=0.3` this is the paper's round of
self-training. `embed_weight` adds its semantic branch: the place's embedding points to the features of its mask.
Differs: at `tiny` and `small` the head reads one map made of the frozen features that the free masks come from and of the pixels
(`nets/solo_head.py`), not a pyramid of a network that is trained too; losses are means over the objects of a picture, then over
pictures, not over all objects of a batch; a picture without a pseudo-mask teaches nothing; the learning rate falls by a cosine.
Size `paper` has the released ResNet-101 with FPN, grids, widths and weights of the losses; pictures are stretched squares of one size.
Cost: at `small` the frozen features once per step and a small head; `paper` needs GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.errors import ConfigError
from selftaught.data.augment import color_jitter, crop_resize, hflip, random_resized_crop_params
from selftaught.data.image_ops import resample
from selftaught.measure.box_scores import object_scores
from selftaught.measure.mask_scores import segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import Detections, EvalData, Method, Objects, Parts, Picture, Player, Progress, TrainConfig
from selftaught.nets.coarse_mask_loss import (
    boxes_of_masks,
    focal_loss,
    inside_boxes,
    pair_loss,
    places_of,
    projection_losses,
    same_colours,
)
from selftaught.nets.faster_rcnn import load_resnet
from selftaught.nets.solo_head import Answer, FeaturePyramid, ResNetPyramid, SoloHead
from selftaught.segmentation.cad import features_of
from selftaught.segmentation.cut import overlay
from selftaught.segmentation.freesolo import maskness, matrix_nms
from selftaught.segmentation.pseudo_objects import gives_masks, propose_masks, pseudo_object_file, unpacked

VISIBLE_FRAC = 0.25
"""A pseudo-mask of which a crop shows less is left out of that crop."""
STRIDE = 4
"""Pixels of the picture per pixel of a mask."""
AT_ONCE = 2**26
"""Values of candidate masks that are held at once, 256 MB for each of a few tensors: more pictures are answered in parts."""


@dataclass(frozen=True)
class SoloConfig(TrainConfig):
    """Settings of SOLO on coarse masks; the defaults are the released ones."""

    backbone: Literal["frozen", "resnet101-fpn"] = "frozen"
    """What the head reads: the frozen features of the need with a few convolutions on the pixels, or a ResNet-101 with FPN that learns."""
    weights: str = ""
    """ResNet-101: a .safetensors file in torchvision's names, e.g. DenseCL's; empty for random weights."""
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    """Places along a side, one grid per level."""
    smallest: tuple[float, ...] = (0.0, 0.06, 0.12, 0.24, 0.48)
    """Each grid learns objects of at least this size, the root of their box's area as a share of the picture's side."""
    largest: tuple[float, ...] = (0.12, 0.24, 0.48, 0.96, 1.0)
    """And of at most this size."""
    width: int = 512
    """Channels of the head's convolutions."""
    depth: int = 4
    """Convolutions before its answers."""
    mask_width: int = 128
    """Channels of the mask branch of the ResNet."""
    kernels: int = 256
    """Weights of a place's convolution, and channels of the pixels that it reads."""
    centre_frac: float = 0.2
    """Places in this share of a pseudo-mask's box around its centre learn it."""
    max_masks: int = 20
    """Most pseudo-masks per picture."""
    min_score: float = 0.0
    """Pseudo-masks with a lower score are left out; self-training takes 0.3."""
    min_area: float = 0.005
    """Pseudo-masks below this share of the picture are left out."""
    max_width: float = 0.95
    """Pseudo-masks whose box is at least so wide, as a share of the picture, are left out."""
    mean_weight: float = 0.1
    """Weight of the means along the axes; that of the largest values is 1."""
    pair_weight: float = 1.0
    """Weight of the pairs of neighbouring pixels of one colour."""
    pair_from: float = 0.0
    """Share of the training before which that weight is 0: pairs agree best in masks of the whole picture, so masks need a shape first."""
    pair_warmup_frac: float = 1 / 30
    """Share of the steps in which it then rises from 0."""
    embed_weight: float = 0.0
    """Weight of the semantic branch, 1 - cosine of a place's embedding and the features inside its mask; 0, as released, builds none."""
    crop_min: float = 0.5
    """Smallest share of a picture's area in a training crop."""
    jitter: float = 0.3
    """Strength of colour changes in training."""
    score_min: float = 0.1
    """Places with a lower objectness are not asked for a mask."""
    candidates: int = 500
    """Most masks that enter the matrix NMS."""
    sigma: float = 2.0
    """Matrix NMS lowers a score by exp(-sigma IoU^2)."""
    update_min: float = 0.05
    """Masks with a lower score after it are left out."""
    max_objects: int = 20
    """Most objects per picture."""
    shown_min: float = 0.3
    """`segment` shows the best object, and others with at least this score."""

    def __post_init__(self) -> None:
        counts = (self.width, self.mask_width, self.kernels, self.max_masks, self.candidates, self.max_objects, *self.grids)
        if not self.grids or min(counts) < 1 or self.width < 2 or self.depth < 0:
            raise ValueError("there must be a grid; grids, kernels and counts must be at least 1, width at least 2, depth at least 0")
        refuse_outside(self, "jitter smallest largest", 0, 1)
        refuse_outside(self, "crop_min", 1e-3, 1)
        refuse_outside(self, "max_width", 1e-3)
        refuse_outside(self, "mean_weight pair_weight embed_weight", 0)
        if not len(self.grids) == len(self.smallest) == len(self.largest):
            raise ValueError("grids, smallest and largest must have one number per grid")
        if any(low > high for low, high in zip(self.smallest, self.largest, strict=True)):
            raise ValueError(f"a grid would learn nothing: smallest {self.smallest} is above largest {self.largest}")
        shares = (self.min_score, self.min_area, self.score_min, self.update_min, self.shown_min, self.pair_from, self.pair_warmup_frac)
        if not all(0 <= share <= 1 for share in shares) or min(self.centre_frac, self.sigma) < 0:
            raise ValueError("scores, areas and shares must be in [0, 1], centre_frac and sigma at least 0")


class SoloNet(nn.Module):
    """Pyramid and head: pictures (B, 3, S, S), and frozen features (B, D, h, w) where it reads them, to an `Answer`."""

    def __init__(self, config: SoloConfig, feature_width: int, embed_width: int):
        super().__init__()
        c = config
        self.pyramid: Any = (
            FeaturePyramid(feature_width, c.width, len(c.grids), c.kernels)
            if c.backbone == "frozen" else ResNetPyramid(c.mask_width, c.kernels)
        )  # fmt: skip
        self.head = SoloHead(self.pyramid.channels, c.grids, c.width, c.depth, c.kernels, embed_width)

    def forward(self, images: Tensor, features: Tensor | None) -> Answer:
        answer: Answer = self.head(*(self.pyramid(images) if features is None else self.pyramid(images, features)))
        return answer


class Solo(Method):
    """Coarse masks, then a network that learns sharp ones; capabilities `segment`, `objects`, `detect`."""

    name = "solo"
    Config = SoloConfig
    needs = {"masks": "freesolo"}
    capabilities = ("segment", "objects", "detect")
    sizes = {
        "tiny": SoloConfig(
            image_px=32, batch_size=16, steps=20, grids=(4,), smallest=(0.0,), largest=(1.0,), width=8, depth=1, kernels=8,
            max_masks=4, candidates=16, max_objects=4,
        ),
        "small": SoloConfig(
            image_px=96, batch_size=32, steps=600, lr=2e-3, weight_decay=0.01, clip_norm=1.0, grids=(12, 6), smallest=(0.0, 0.3),
            largest=(0.5, 1.0), width=64, depth=2, kernels=64, mean_weight=1.0, pair_from=0.4, pair_warmup_frac=0.3, candidates=100,
        ),
        "paper": SoloConfig(
            image_px=800, batch_size=16, steps=30_000, lr=0.001, weight_decay=1e-4, warmup_frac=1 / 30, backbone="resnet101-fpn",
            crop_min=1.0, jitter=0.0,
        ),
    }  # fmt: skip
    small_px32 = SoloConfig(
        image_px=32, batch_size=32, steps=600, lr=2e-3, weight_decay=0.01, clip_norm=1.0, grids=(8, 4), smallest=(0.0, 0.3),
        largest=(0.5, 1.0), width=64, depth=2, kernels=64, mean_weight=1.0, pair_from=0.4, pair_warmup_frac=0.3, candidates=80,
    )  # fmt: skip
    config: SoloConfig

    def __init__(self, config: SoloConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c = config
        gives_masks(self.given["masks"])
        self.image_px = c.image_px
        self.pseudo: np.ndarray[Any, Any] | None = None
        self.side = -(-c.image_px // STRIDE)
        feature_width = 0
        if c.backbone == "frozen" or c.embed_weight > 0:
            features = features_of(self.given["masks"], "solo", "--set backbone=resnet101-fpn learns from pixels.")
            if features.image_px != c.image_px:
                raise ConfigError(
                    f"The features see pictures of {features.image_px} px, solo {c.image_px} px.",
                    do=f"--set image_px={features.image_px}",
                )
            feature_width = int(features.encoder().token_width)
        self.net = SoloNet(c, feature_width, feature_width if c.embed_weight > 0 else 0)

    def start(self, say: Any) -> None:
        """Take over the weights of a published ResNet-101."""
        if self.config.backbone != "frozen":
            say(load_resnet(self.net.pyramid.backbone.body.state_dict(), self.config.weights, "ResNet-101"))
        elif self.config.weights:
            raise ConfigError("weights are for the ResNet.", do="--set backbone=resnet101-fpn, or leave weights away.")

    def begin(self, images: Any, run_dir: Any, say: Any) -> None:
        """Propose the pseudo-masks of all pictures, once, into pseudo_masks.npy (bits, see `pseudo_object_file`)."""
        path, c = run_dir / "pseudo_masks.npy", self.config
        self.pseudo = pseudo_object_file(path, images, self.pseudo_masks, c.max_masks, self.side, say)

    def pseudo_masks(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to the masks that are learned, (B, K, S/4, S/4) bool, the best first."""
        c = self.config
        return propose_masks(self.given["masks"], images, self.side, c.max_masks, c.min_score, c.min_area, c.max_width).masks

    def players(self) -> dict[str, Player]:
        if self.config.backbone == "frozen":
            return {"network": self.main_player(self.net)}
        return {"network": self.main_player(self.net, optimizer="sgd", momentum=0.9)}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Crop, flip and recolour pictures, (B, 3, S, S), and crop and flip their masks alike, (B, K, S/4, S/4) bool."""
        c = self.config
        if self.pseudo is None:
            raise RuntimeError("begin() makes the pseudo-masks before training")
        B, S, side = len(images), c.image_px, self.side
        masks = unpacked(self.pseudo[indices], side).to(images.device)
        crops = random_resized_crop_params(B, S, S, (c.crop_min, 1.0), (0.75, 4 / 3) if c.crop_min < 1 else (1.0, 1.0))
        flips = draws.rand(B) < 0.5
        u = 1 + c.jitter * (2 * draws.rand(4, B, rows=1) - 1)
        order = draws.rand(B, 4).argsort(1)
        pixels = hflip(crop_resize(images.float() / 255, crops, S), flips)
        # Colours are compared before they are changed: jitter makes differences larger or smaller.
        same = same_colours(pixels, (side, side))
        pixels = color_jitter(pixels, order, u[0], u[1], u[2], 0.3 * (u[3] - 1), draws.rand(B) < 0.8)
        return {"images": pixels, "masks": moved_masks(masks, crops * (side / S), flips), "same": same}

    def loss(self, batch: dict[str, Any], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c, images, masks = self.config, batch["images"], batch["masks"]
        features = self.features(images)
        answer = self.net(images, features if c.backbone == "frozen" else None)
        places = places_of(masks, c.grids, c.smallest, c.largest, c.centre_frac)
        truth = (places >= 0).float()
        count = truth.sum(1)
        # A picture without a pseudo-mask teaches nothing: that none was proposed does not mean that there is no object.
        some = (count > 0).float()
        objectness = (focal_loss(answer.scores, truth).sum(1) / count.clamp(min=1) * some).mean()
        chosen, valid = first_places(places)
        target = masks.gather(1, places.gather(1, chosen).clamp(min=0)[:, :, None, None].expand(-1, -1, *masks.shape[2:]))
        logits = masks_of(answer, chosen)
        soft = logits.sigmoid()
        largest, means = projection_losses(soft, target.float())
        pairs = pair_loss(logits, batch["same"], inside_boxes(boxes_of_masks(target), target.shape[2:]))
        weight = c.pair_weight * min(max((progress.frac - c.pair_from) / max(c.pair_warmup_frac, 1e-9), 0.0), 1.0)

        def mean(values: Tensor) -> Tensor:
            return ((values * valid).sum(1) / count.clamp(min=1)).mean()

        total = objectness + mean(largest) + c.mean_weight * mean(means) + weight * mean(pairs)
        parts = {"objectness": objectness, "largest": mean(largest), "means": mean(means), "pairs": mean(pairs)}
        if answer.embeddings is not None and features is not None:
            looks = 1 - self.agreement(answer.embeddings, features, target, chosen)
            total = total + c.embed_weight * mean(looks)
            parts["embeddings"] = mean(looks)
        cut = soft.detach() > 0.5
        both, either = ((cut & target).flatten(2).sum(2), (cut | target).flatten(2).sum(2))
        parts["mask_iou"] = mean(both / either.clamp(min=1)) / some.mean().clamp(min=1e-6)
        return total, {name: float(value.detach()) for name, value in parts.items()}

    @staticmethod
    def agreement(embeddings: Tensor, features: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
        """(B, P): cosine of what the chosen places say of their object's looks and of the mean feature inside their pseudo-mask."""
        told = embeddings.float().gather(1, chosen[:, :, None].expand(-1, -1, embeddings.shape[2]))
        inside = nn.functional.interpolate(target.float(), features.shape[-2:], mode="area")
        unit = nn.functional.normalize(features.float(), dim=1)
        return nn.functional.cosine_similarity(told, torch.einsum("bphw,bdhw->bpd", inside, unit), dim=2)

    def features(self, images: Tensor) -> Tensor | None:
        """(B, 3, S, S) in [0, 1] to (B, D, h, w), frozen; None where none are read."""
        if self.config.backbone != "frozen" and self.config.embed_weight == 0:
            return None
        with torch.no_grad():
            found: Tensor = features_of(self.given["masks"]).features(images)
        return found

    @torch.no_grad()
    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Soft masks (B, K, S/4, S/4) and scores (B, K) of pictures (B, 3, H, W), resized to the square, the best first."""
        c = self.config
        side = (c.image_px, c.image_px)
        at_once = max(1, AT_ONCE // (c.candidates * self.side**2))
        if len(images) > at_once:
            parts = [self.answer(part) for part in images.split(at_once)]
            return torch.cat([soft for soft, _ in parts]), torch.cat([scores for _, scores in parts])
        if tuple(images.shape[-2:]) != side:
            images = nn.functional.interpolate(images, side, mode="bilinear", antialias=True)
        was_training, square = self.net.training, images.clamp(0, 1)
        self.net.eval()
        found: Answer = self.net(square, self.features(square) if c.backbone == "frozen" else None)
        self.net.train(was_training)
        chance = peaks(found.scores.sigmoid(), c.grids)
        chance, chosen = (chance * (chance >= c.score_min)).topk(min(c.candidates, chance.shape[1]), dim=1)
        soft = masks_of(found, chosen).sigmoid()
        masks, clear = maskness(soft)
        soft, masks, scores = best(soft, masks, chance * clear, soft.shape[1])
        lowered = matrix_nms(masks, scores, c.sigma)
        soft, _, scores = best(soft, masks, lowered * (lowered >= c.update_min), c.max_objects)
        return soft * (scores > 0)[:, :, None, None], scores

    def objects(self, images: Tensor) -> Objects:
        """(B, 3, H, W) in [0, 1] to soft masks at the pictures' size, the best first."""
        soft, scores = self.answer(images)
        return Objects(nn.functional.interpolate(soft, images.shape[-2:], mode="bilinear", align_corners=False), scores)

    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, H, W): the soft mask of the best object and of the others that are shown, joined."""
        soft, scores = self.answer(images)
        shown = scores >= self.config.shown_min
        shown[:, 0] = True
        joined = (soft * shown[:, :, None, None]).amax(1, keepdim=True)
        return nn.functional.interpolate(joined, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

    def detect(self, images: Tensor) -> Detections:
        """(B, 3, H, W) in [0, 1] to the boxes of the objects' masks, in pixels of these pictures."""
        soft, scores = self.answer(images)
        (height, width), S = images.shape[-2:], self.config.image_px
        masks = nn.functional.interpolate(soft, (S, S), mode="bilinear", align_corners=False) > 0.5
        boxes = boxes_of_masks(masks) * (soft.new_tensor([width, height, width, height]) / S)
        return Detections(boxes, scores)

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Scores of the objects together as one mask, and of each by itself; baselines: no learning, the teacher, the untrained network."""
        others: dict[str, Any] = {"teacher": self.given["masks"], "untrained": self.untrained(data.seed)}
        scores = segmentation_scores(self, data, {k: v for k, v in others.items() if "segment" in v.capabilities})
        apart = {k: v for k, v in others.items() if "objects" in v.capabilities}
        return scores | (object_scores(self, data, apart) if scores else {})

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Rows: pictures, the same with all pseudo-masks, with the best object, and with all that `segment` shows."""
        images = images[:12]
        size = images.shape[-2:]
        square = nn.functional.interpolate(images, (self.image_px, self.image_px), mode="bilinear", antialias=True).clamp(0, 1)
        taught = self.pseudo_masks(square).any(1, keepdim=True).float()
        rows = [images.cpu()]
        for masks in (nn.functional.interpolate(taught, size)[:, 0], self.objects(images).masks[:, 0], self.segment(images)):
            rows.append(torch.stack([overlay(x, m) for x, m in zip(images.cpu(), masks.cpu(), strict=True)]))
        sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1).permute(1, 2, 0)
        return {"objects": (sheet * 255).round().clamp(0, 255).to(torch.uint8).contiguous().numpy()}


def moved_masks(masks: Tensor, crops: Tensor, flips: Tensor) -> Tensor:
    """Masks (B, K, h, w) bool as crops (B, 4: top, left, height, width in pixels of the masks) show them, flipped or not.

    One of which a crop shows less than `VISIBLE_FRAC` becomes empty.
    """
    height, width = masks.shape[-2:]
    top, left, tall, wide = crops.to(masks.device).unbind(1)
    crops = torch.stack([top, left, torch.minimum(tall, height - top), torch.minimum(wide, width - left)], 1)
    cut = resample(masks.float(), crops, (height, width), True, flips) > 0.5
    share = cut.flatten(2).sum(2) * (tall * wide / (height * width))[:, None]
    return cut & (share >= VISIBLE_FRAC * masks.flatten(2).sum(2))[:, :, None, None]


def first_places(places: Tensor) -> tuple[Tensor, Tensor]:
    """The places (B, P) int64 of (B, G) that learn a mask, in order, and which are real, (B, P) float; P is the most of any picture."""
    learns = places >= 0
    most = max(int(learns.sum(1).amax()), 1)
    chosen = (~learns).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return chosen, learns.gather(1, chosen).float()


def masks_of(answer: Answer, chosen: Tensor) -> Tensor:
    """Mask logits (B, P, h, w) of the chosen places (B, P)."""
    kernels = answer.kernels.gather(1, chosen[:, :, None].expand(-1, -1, answer.kernels.shape[2]))
    return torch.einsum("bpe,behw->bphw", kernels, answer.pixels).float()


def peaks(scores: Tensor, grids: tuple[int, ...]) -> Tensor:
    """Scores (B, G) that are the largest of the 2x2 places up and left of them, the others 0 (SOLOv2's NMS of points)."""
    kept = []
    for level, grid in zip(scores.split([g * g for g in grids], 1), grids, strict=True):
        square = level.unflatten(1, (grid, grid))[:, None]
        largest = nn.functional.max_pool2d(nn.functional.pad(square, (1, 0, 1, 0)), 2, 1)
        kept.append((square * (square == largest)).flatten(1))
    return torch.cat(kept, 1)


def best(soft: Tensor, masks: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort (B, M, h, w) soft and cut masks by falling (B, M) scores, keep `count`; a picture with fewer has empty ones with score 0."""
    top, order = scores.sort(dim=1, descending=True, stable=True)
    index = order[:, :count, None, None].expand(-1, -1, *soft.shape[2:])
    missing = (0, max(count - order.shape[1], 0))
    room = (0, 0, 0, 0, *missing)
    pad = nn.functional.pad
    return pad(soft.gather(1, index), room), pad(masks.gather(1, index), room), pad(top[:, :count], missing)
