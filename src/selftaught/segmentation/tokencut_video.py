"""TokenCut on clips: one normalised cut of the graph of all patches of all frames, joined by looks and by motion.

Wang, Shen, Yuan, Du, Li, Hu, Crowley, Vaufreydaz, "TokenCut: Segmenting Objects in Images and Videos with Self-supervised Transformer and
Normalized Cut" (2022). Patches are joined when alpha cos(looks) + (1 - alpha) alike(motion) > tau, whatever frames they lie in; the second
eigenvector of the graph is split at its mean, and the side of its largest |x| is the object in every frame at once. The bilateral solver
(`refine=bilateral`) then follows the edges of each frame.

What differs: the published code mixes by 0.5 whatever `alpha` says; here it counts. Its motion is a picture of the flow, seen by the same
network, and its flow comes from a network trained with labels (RAFT) or without (ARFlow); here the flow is TV-L1 and the motions
themselves are compared. Long clips are cut into graphs of `max_patches` patches, and features are centred within each.

Cost: an N x N float32 matrix for N = frames times patches, and 0.1 s of flow per frame of 96 x 96. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.method import TrainConfig
from selftaught.nets.normalized_cut import second_eigenvector
from selftaught.segmentation.cut import CutConfig, CutMethod, centred, unit_rows
from selftaught.segmentation.flow import optical_flow, same_motion
from selftaught.segmentation.tokencut import check_graph, orient, tokencut_masks


@dataclass(frozen=True)
class TokenCutVideoConfig(CutConfig):
    """Settings of TokenCut on clips."""

    tau: float = 0.3
    """Patches are joined when their likeness is above this, in [-1, 0.99]."""
    eps: float = 1e-5
    """Weight of the edge between two patches that are not joined, in (0, 1)."""
    alpha: float = 0.5
    """Share of looks in the likeness; 1 is looks alone, 0 motion alone."""
    flow_gap: int = 1
    """Frames between the two that motion is taken from."""
    motion_px: float = 0.7
    """Motions that differ by this many pixels (of the square that features are made from) count as rather unlike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_graph(self.tau, self.eps)
        if not 0.0 <= self.alpha <= 1.0 or self.flow_gap < 1 or self.motion_px <= 0:
            raise ValueError("alpha must be in [0, 1], flow_gap at least 1, motion_px positive")


class TokenCutVideo(CutMethod):
    """Normalised cut of the patches of a whole clip; pictures are cut one by one, by their looks. Also offers `segment_clip`."""

    name: ClassVar[str] = "tokencut_video"
    Config: ClassVar[type[TrainConfig]] = TokenCutVideoConfig
    sizes: ClassVar[Mapping[str, TrainConfig]] = {
        "tiny": TokenCutVideoConfig(image_px=32),
        "small": TokenCutVideoConfig(refine="bilateral", sigma_space_px=8.0, sigma_luma=8.0, min_iou=0.0),
        "paper": TokenCutVideoConfig(image_px=320, batch_size=4, max_patches=36_000, refine="bilateral"),
    }
    config: TokenCutVideoConfig

    def cut(self, keys: Tensor, images: Tensor) -> Tensor:
        """(B, D, h, w) patch features to (B, h, w) boolean masks, picture by picture."""
        return tokencut_masks(centred(keys), self.config.tau, self.config.eps).masks

    @torch.no_grad()
    def segment_clip(self, frames: Tensor) -> Tensor:
        """Masks (T, H, W) in [0, 1] of the frames (T, 3, H, W) in [0, 1] of one clip."""
        c = self.config
        keys, squares = (torch.cat(x) for x in zip(*self.keyed(frames), strict=True))
        flow = optical_flow(squares, c.flow_gap) if c.alpha < 1 else None
        coarse = self.cut_clip(keys, flow)
        masks = F.interpolate(coarse[:, None].float(), frames.shape[-2:], mode="nearest")[:, 0]
        return self._refined(frames, masks) if c.refine == "bilateral" else masks

    def cut_clip(self, keys: Tensor, flow: Tensor | None) -> Tensor:
        """Patch features (T, D, h, w) and the flow (T, 2, S, S) px, or None for looks alone, to boolean masks (T, h, w)."""
        T, _, h, w = keys.shape
        at_once = self.config.max_patches // (h * w)
        if at_once < 1:
            raise ConfigError(f"A frame has {h * w} patches, max_patches is {self.config.max_patches}.", do="Raise max_patches.")
        parts = np.array_split(np.arange(T), -(-T // at_once))
        return torch.cat([self._cut_part(keys[p], None if flow is None else flow[p]) for p in map(torch.from_numpy, parts)])

    def _cut_part(self, keys: Tensor, flow: Tensor | None) -> Tensor:
        T, D, h, w = keys.shape
        alike = keys.new_zeros(T * h * w, T * h * w, dtype=torch.float32)
        if self.config.alpha > 0:
            # One picture of all frames, so that features are centred over the clip.
            rows = unit_rows(centred(keys.transpose(0, 1).reshape(1, D, T * h, w)))[0]
            alike += self.config.alpha * (rows @ rows.T)
        if flow is not None:
            alike += (1 - self.config.alpha) * same_motion(flow, (h, w), self.config.motion_px)
        found = second_eigenvector(alike.gt_(self.config.tau)[None], self.config.eps)
        return orient(found.x)[1].view(T, h, w)


def check_median(frames: int) -> None:
    """Refuse a number of frames that has no middle, with a ConfigError."""
    if frames < 1 or frames % 2 == 0:
        raise ConfigError(f"A median over {frames} frames has no middle.", expected="an odd number of frames: 1, 3, 5")


def smooth_in_time(masks: np.ndarray, frames: int) -> np.ndarray:
    """Median over `frames` (odd) neighbouring frames of masks (T, H, W); the ends are repeated."""
    check_median(frames)
    half = frames // 2
    padded = np.concatenate([masks[:1].repeat(half, 0), masks, masks[-1:].repeat(half, 0)])
    return np.median(np.stack([padded[i : i + len(masks)] for i in range(frames)]), axis=0).astype(masks.dtype)
