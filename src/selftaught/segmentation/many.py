"""What MaskCut and FreeSOLO's free masks share: patch features in, several object masks per picture with scores out, no training."""

from __future__ import annotations

import colorsys
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.measure.box_scores import object_scores
from selftaught.measure.mask_scores import segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import EvalData, Objects, Picture
from selftaught.segmentation.cut import CutMethod, overlay


class PatchObjects(NamedTuple):
    """Objects of B pictures on a grid of h x w patches, the best first."""

    masks: Tensor
    """(B, K, h, w) bool; all False beyond what was found."""
    scores: Tensor
    """(B, K) float32 in [0, 1]; 0 beyond what was found."""


class ManyCut(CutMethod):
    """A rule from patch features to several objects per picture; subclasses give `cut_many`."""

    capabilities: ClassVar[tuple[str, ...]] = ("segment", "objects")

    def cut_many(self, keys: Tensor, images: Tensor) -> PatchObjects:
        """(B, D, h, w) patch features and the (B, 3, S, S) pictures they are of to objects."""
        raise NotImplementedError

    def cut(self, keys: Tensor, images: Tensor) -> Tensor:
        """The patches of all objects whose score is above 0.5: (B, h, w) bool."""
        found = self.cut_many(keys, images)
        return (found.masks & (found.scores > 0.5)[:, :, None, None]).any(1)

    @torch.no_grad()
    def objects(self, images: Tensor) -> Objects:
        """(B, 3, H, W) in [0, 1] to a mask for each object at the pictures' size, 0 or 1, or soft where the solver is used."""
        found = [self.cut_many(keys, part) for keys, part in self.keyed(images)]
        coarse, scores = torch.cat([f.masks for f in found]), torch.cat([f.scores for f in found])
        masks = F.interpolate(coarse.float(), images.shape[-2:], mode="nearest")
        if self.config.refine == "bilateral":
            for k in range(masks.shape[1]):
                rows = (scores[:, k] > 0).nonzero()[:, 0]
                if len(rows):
                    masks[rows, k] = self._refined(images[rows], masks[rows, k])
        return Objects(masks, scores)

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, H, W) in [0, 1]: at every pixel the highest score of the objects that cover it."""
        found = self.objects(images)
        return (found.masks * found.scores[:, :, None, None]).amax(1)

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Scores of all objects together as one mask, and of each by itself; baselines as of every cut."""
        same = type(self)(self.config, {**self.given, "features": self.features.untrained(data.seed)})
        scores = segmentation_scores(self, data, {"untrained_cut": same})
        return scores | (object_scores(self, data, {"untrained_cut": same}) if scores else {})

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Draw the pictures (at most eight) above the same with each object tinted in a colour of its own."""
        images = images[:8].detach().cpu()
        found = self.objects(images)
        columns = []
        for picture, masks, scores in zip(images, found.masks.cpu(), found.scores.cpu(), strict=True):
            drawn = overlay(picture, masks.amax(0))
            for k in reversed(range(len(masks))):  # the best one is drawn last, on top
                if scores[k] > 0:
                    tint = torch.tensor(colorsys.hsv_to_rgb(k * 0.382 % 1, 0.9, 1.0))[:, None, None]
                    inside = masks[k] > 0.5
                    drawn = torch.where(inside, 0.5 * picture + 0.5 * tint, drawn)
            columns.append(torch.cat([picture, drawn], 1))
        sheet = torch.cat(columns, 2).mul(255).round().clamp(0, 255).to(torch.uint8)
        return {"objects": sheet.permute(1, 2, 0).contiguous().numpy()}


def pair_ious(masks: Tensor) -> Tensor:
    """(B, K, h, w) bool to (B, K, K) IoU of every two, in [0, 1]; 0 for two empty ones."""
    flat = masks.flatten(2).float()
    both = flat @ flat.mT
    area = flat.sum(-1)
    return both / (area[:, :, None] + area[:, None, :] - both).clamp(min=1.0)


def best_first(masks: Tensor, scores: Tensor, count: int) -> PatchObjects:
    """Sort (B, M, h, w) masks by falling (B, M) scores (the first of equal ones first), keep `count`, empty those without a score."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    top = scores.gather(1, order)
    index: Any = order[:, :, None, None].expand(-1, -1, *masks.shape[2:])
    kept = masks.gather(1, index) & (top > 0)[:, :, None, None]
    missing = count - order.shape[1]
    if missing > 0:
        kept, top = F.pad(kept, (0, 0, 0, 0, 0, missing)), F.pad(top, (0, missing))
    return PatchObjects(kept, top)


