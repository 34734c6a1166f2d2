"""SelfMask: a noisy pseudo-mask of each picture from its features, then one small network trained on all of them.

Paper: Shin, Albanie, Xie, "Unsupervised Salient Object Detection with Spectral Cluster Voting", CVPRW 2022.
Stage 1 (`teacher=vote`): k-way spectral clusters for k = 2, 3, 4 on several feature maps (plus TokenCut's mask here) are
candidates; those that span the whole height or width are dropped; the one that overlaps most with the others wins. Stage 2:
queries attend to the tokens of an encoder, each gives a mask and a score; all learn the pseudo-mask (Dice), the scores learn to
rank (eq. 5).
Size `small` takes another teacher (`teacher=border`): what stands out from the picture's rim in learned features and in
colour (`border.py`); small backbones trained for minutes make graphs that are too noisy to cut.
Differs: one self-trained backbone instead of three pretrained ones; shallow convolutions on the pixels sharpen the
mask; in the later part of the training the moving average of the network itself corrects the pseudo-masks (as FOUND, CVPR 2023, does
with its own binarised masks). The official ranking loss reads as if it had the sign reversed; here a better mask means a higher score.
Cost: stage 1 reads every picture once; stage 2, with the encoder frozen at `small`, is a few minutes on two CPU cores at `small`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core import draws
from selftaught.core.config import refuse_outside
from selftaught.core.errors import ConfigError
from selftaught.core.launch import divisor, gather, mean_rows, rows_before
from selftaught.core.rows import evenly
from selftaught.data.augment import color_jitter, crop_resize, hflip, random_resized_crop_params
from selftaught.measure.mask_scores import segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import EMA, EvalData, Method, Parts, Picture, Player, Progress, Segments, TrainConfig
from selftaught.nets.bilateral import follow_edges
from selftaught.segmentation.border import border_contrast
from selftaught.segmentation.cut import centred, overlay
from selftaught.segmentation.tokencut import TokenCut, check_graph, tokencut_masks
from selftaught.segmentation.voting import pseudo_mask_file, spectral_candidates, vote

SETTLE_PICTURES = 1024
"""Training pictures on which the value that cuts the masks is found."""


@dataclass(frozen=True)
class SelfMaskConfig(TrainConfig):
    """Settings of SelfMask."""

    teacher: Literal["vote", "border", "run"] = "vote"
    """Where pseudo-masks come from: the vote over spectral clusters and TokenCut, contrast to the picture's rim, or the masks of a run
    that segments (need `masks`), e.g. MOVE."""
    taus: tuple[float, ...] = (0.0, 0.2)
    """TokenCut's thresholds on the cosine between centred patches, for its candidate masks."""
    queries: int = 8
    """Mask proposals per picture; the one with the highest score is the answer."""
    decoder_width: int = 64
    """Channels of pixel features and queries."""
    decoder_depth: int = 2
    """Layers in which queries attend to the tokens; each gives masks and a loss."""
    encoder_lr_frac: float = 0.2
    """Learning rate of the encoder, as a share of `lr`; 0 keeps it frozen."""
    crop_min: float = 0.6
    """Smallest share of a picture's area in a training crop."""
    jitter: float = 0.3
    """Strength of colour changes in training."""
    correct_from: float = 0.35
    """Share of the training after which the network's own average corrects the pseudo-masks."""
    correct_weight: float = 0.7
    """Largest weight of that correction against the pseudo-mask."""
    ema: float = 0.99
    """Momentum of the average."""
    refine: Literal["none", "bilateral"] = "none"
    """What the answers go through: nothing, or the bilateral solver, which follows the colours of the picture (10 ms a picture)."""

    def __post_init__(self) -> None:
        if self.queries < 1 or self.decoder_depth < 1 or self.decoder_width < 4 or self.decoder_width % 4:
            raise ValueError("queries and decoder_depth must be at least 1, decoder_width a multiple of 4")
        refuse_outside(self, "jitter correct_from correct_weight ema", 0, 1)
        refuse_outside(self, "crop_min", 1e-3, 1)
        refuse_outside(self, "encoder_lr_frac", 0)
        for tau in self.taus:
            check_graph(tau, 1e-5)


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum pt + 1) / (sum p + sum t + 1) over pixels: (B, Q, h, w) and (B, 1, h, w) in [0, 1] to (B, Q)."""
    p, t = probability.flatten(2), target.flatten(2)
    return 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)


def otsu(soft: Tensor, bins: int = 32) -> Tensor:
    """Threshold (B, 1, 1, 1) per mask of (B, 1, h, w) in [0, 1] that parts its values best in two (Otsu, 1979).

    Averages of noisy masks are too large at 0.5; where the two kinds of pixels part is found in the picture itself.
    """
    values = soft.flatten(1)
    # The pixels above level k / bins are those in the cells k, k + 1, ...
    cell = ((values * bins).ceil().long() - 1).clamp(0, bins - 1)
    empty = values.new_zeros(len(values), bins)
    counts, sums = (empty.scatter_add(1, cell, x).flip(1).cumsum(1).flip(1) for x in (torch.ones_like(values), values))
    share = counts[:, 1:] / values.shape[1]
    inside = sums[:, 1:] / counts[:, 1:].clamp(min=1)
    outside = (sums[:, :1] - sums[:, 1:]) / (values.shape[1] - counts[:, 1:]).clamp(min=1)
    between = share * (1 - share) * (inside - outside).square()
    return ((between.argmax(1) + 1) / bins).view(-1, 1, 1, 1)


def without_wisps(soft: Tensor, width_px: int) -> Tensor:
    """Grey opening of (B, H, W): what is narrower than `width_px` (odd) takes the value of its surroundings."""
    half = width_px // 2
    low = -nn.functional.max_pool2d(-soft[:, None], width_px, 1, half)
    return nn.functional.max_pool2d(low, width_px, 1, half)[:, 0]


def largest(soft: Tensor, share: float) -> Tensor:
    """1 where a value is among the `share` largest of the whole batch (of all processes), 0 elsewhere: (B, 1, h, w) to the same."""
    every, start = gather(soft), rows_before(len(soft))
    count = round(share * every.numel())
    out = torch.zeros_like(every).flatten()
    out[every.flatten().topk(count).indices] = 1.0
    return out.view_as(every)[start : start + len(soft)]


def ranking_loss(scores: Tensor, dice: Tensor) -> Tensor:
    """Pairwise hinge (SelfMask, eq. 5): mean over pairs (i better than j) of max(0, s_j - s_i); (B, Q) scores and Dice losses."""
    better = (dice[:, :, None] < dice[:, None, :]).float()
    hinge = torch.relu(scores[:, None, :] - scores[:, :, None])
    return (better * hinge).sum() / divisor(better.sum(), len(scores)).clamp(min=1)


class CrossAttention(nn.Module):
    """Multi-head attention of (B, Q, D) queries to (B, N, D) tokens (torch's own module cannot be exported to ONNX)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

        k, v = self.kv(tokens).chunk(2, -1)
        q, k, v = split(self.q(queries)), split(k), split(v)
        mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class QueryLayer(nn.Module):
    """Queries attend to the tokens, then to each other, then pass a perceptron; post-norm."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.cross, self.own = CrossAttention(width, heads), CrossAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(self, q: Tensor, tokens: Tensor) -> Tensor:
        q = self.norms[0](q + self.cross(q, tokens))
        q = self.norms[1](q + self.own(q, q))
        return self.norms[2](q + self.mlp(q))


def conv(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class MaskNet(nn.Module):
    """Encoder, pixel decoder with shallow skips, queries.

    (B, 3, S, S) in [0, 1] to per layer: mask logits (B, Q, S/2, S/2) and scores (B, Q).
    """

    def __init__(self, encoder: nn.Module, width: int, queries: int, depth: int, frozen: bool):
        super().__init__()
        self.encoder, self.frozen = encoder, frozen
        self.shallow_half, self.shallow_quarter = conv(3, 24, 2), conv(24, 48, 2)
        self.enter = nn.Conv2d(int(encoder.token_width), width, 1)  # type: ignore[arg-type]
        self.merge_quarter, self.merge_half = conv(width + 48, width), conv(width + 24, width)
        self.leave = nn.Conv2d(width, width, 1)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.layers = nn.ModuleList([QueryLayer(width) for _ in range(depth)])
        self.mask_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.score_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if self.frozen:  # batch statistics must not move either, and no gradient is computed for it
            self.encoder.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            _, tokens = self.encoder(images)
        # The bf16 backward of a convolution with three input channels is many times slower than fp32 on CPUs.
        with torch.autocast(images.device.type, enabled=False):
            half = self.shallow_half(images.float() - 0.5)
        quarter = self.shallow_quarter(half)
        x = self.enter(tokens)
        pixels = self.merge_quarter(torch.cat([resize(x, quarter.shape[-2:]), quarter], 1))
        pixels = self.leave(self.merge_half(torch.cat([resize(pixels, half.shape[-2:]), half], 1)))
        flat = x.flatten(2).transpose(1, 2)
        q = self.queries.expand(images.shape[0], -1, -1)
        masks, scores = [], []
        for layer in self.layers:
            q = layer(q, flat)
            masks.append(torch.einsum("bqc,bchw->bqhw", self.mask_head(q), pixels) / pixels.shape[1] ** 0.5 + self.bias)
            scores.append(self.score_head(q)[..., 0])
        return masks, scores


def moved(soft: Tensor, part: Tensor) -> Tensor:
    """Move the value `part` of soft masks in [0, 1] to 0.5: sigmoid(logit(soft) - logit(part))."""
    return (soft.logit(1e-6) - part.logit(1e-6)).sigmoid()


def resize(x: Tensor, size: Any) -> Tensor:
    """Bilinear resize of (B, C, h, w)."""
    return nn.functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def cut_along_edges(images: Tensor, masks: Tensor) -> Tensor:
    """Let the bilateral solver move masks (B, H, W) to the edges of the pictures (B, 3, H, W), then cut them in two; 0 and 1."""
    sigma_px = max(images.shape[-1] / 12, 2.0)
    soft = follow_edges(images, masks, sigma_space_px=sigma_px, sigma_luma=8.0, sigma_chroma=8.0)[:, None].clamp(0, 1)
    return (soft > otsu(soft)).to(masks.dtype)[:, 0]


def at_half_size(features: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S) in [0, 1] at half their size, and their border contrast (B, 1, S/2, S/2) in [0, 1]."""
    half = nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    return half, border_contrast(features.features(images), half)[:, None]


@torch.no_grad()
def teach(config: SelfMaskConfig, features: Any, images: Tensor) -> Tensor:
    """Pseudo-masks (B, h, w) of 0 and 1 from the learned features of (B, 3, S, S) pictures in [0, 1]."""
    if config.teacher == "border":
        half, soft = at_half_size(features, images)
        return cut_along_edges(half, (soft > otsu(soft)).float()[:, 0])
    keys = features.features(images)
    found = [spectral_candidates(keys)]
    for tau in config.taus:
        found.append(tokencut_masks(centred(keys), tau).masks[:, None].float())
    return vote(torch.cat(found, 1))[0]


class Teacher:
    """The pseudo-masks as answers, for comparison."""

    def __init__(self, config: SelfMaskConfig, features: Any):
        self.config, self.features = config, features

    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, H, W) of 0 and 1."""
        side = (self.features.image_px,) * 2
        square = nn.functional.interpolate(images, side, mode="bilinear", antialias=True).clamp(0, 1)
        return nn.functional.interpolate(teach(self.config, self.features, square)[:, None], images.shape[-2:])[:, 0]


class SelfMask(Method):
    """Pseudo-masks, then a query network that learns them; capability `segment`."""

    name = "selfmask"
    Config = SelfMaskConfig
    needs = {"features": "simclr", "masks": "move"}
    capabilities = ("segment",)
    sizes = {
        "tiny": SelfMaskConfig(image_px=32, batch_size=16, steps=20, decoder_width=16, decoder_depth=1, queries=3),
        "small": SelfMaskConfig(
            image_px=96, batch_size=64, steps=600, lr=2e-3, weight_decay=0.01, clip_norm=1.0, encoder_lr_frac=0.0,
            teacher="border", queries=4, decoder_width=32, refine="bilateral",
        ),
        "paper": SelfMaskConfig(
            image_px=224, batch_size=8, steps=15_800, lr=6e-6, weight_decay=0.01, queries=20, decoder_width=384,
            decoder_depth=6, encoder_lr_frac=1.0, crop_min=0.1, correct_weight=0.0,
        ),
    }  # fmt: skip
    small_px32 = SelfMaskConfig(
        image_px=32, batch_size=64, steps=600, lr=2e-3, weight_decay=0.01, clip_norm=1.0, encoder_lr_frac=0.0, teacher="border", queries=4,
        decoder_width=32, refine="bilateral",
    )
    config: SelfMaskConfig
    part: Tensor
    """The value in (0, 1) of the network's answer that is 0.5 in a mask."""

    def __init__(self, config: SelfMaskConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        features = self.given["features"]
        if not callable(getattr(features, "encoder", None)):
            raise ConfigError("selfmask needs learned features.", expected="a method with the capability `embed`")
        if features.image_px != config.image_px:
            raise ConfigError(
                f"selfmask works at {config.image_px} px, its features were learned at {features.image_px} px.",
                do=f"--set image_px={features.image_px}",
            )
        if config.teacher == "run" and "segment" not in self.given["masks"].capabilities:
            raise ConfigError(
                f"{self.given['masks'].name} does not segment.", expected="teacher=run needs a run with the capability `segment`",
                do="--need masks=RUN",
            )  # fmt: skip
        encoder = copy.deepcopy(features.encoder()).train().requires_grad_(config.encoder_lr_frac > 0)
        self.net = MaskNet(
            encoder, config.decoder_width, config.queries, config.decoder_depth, config.encoder_lr_frac == 0
        )
        self.average = EMA(self.net)
        self.register_buffer("part", torch.tensor(0.5))
        self.image_px = config.image_px
        self.pseudo: np.ndarray[Any, Any] | None = None

    @classmethod
    def needs_of(cls, config: Any) -> Mapping[str, str]:
        """A run that gives masks is needed with `teacher=run` only."""
        return {need: default for need, default in cls.needs.items() if need != "masks" or config.teacher == "run"}

    def begin(self, images: Any, run_dir: Path, say: Any) -> None:
        """Stage 1: vote the pseudo-masks of all pictures, once, into pseudo_masks.npy (N, h, w) uint8."""
        self.pseudo = pseudo_mask_file(run_dir / "pseudo_masks.npy", images, self.pseudo_masks, say)

    @torch.no_grad()
    def pseudo_masks(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, h, w) pseudo-masks: 0 and 1 on the patch grid (vote) or at half size (border), else the run's."""
        if self.config.teacher == "run":
            return self.given["masks"].segment(images).clamp(0, 1)
        return teach(self.config, self.given["features"], images)

    def players(self) -> dict[str, Player]:
        return {"network": self.main_player(self.net, lr_scales={"encoder.": self.config.encoder_lr_frac})}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Crop, flip and recolour pictures; crop and flip their targets alike: (B, 3, S, S) and (B, 1, S/2, S/2).

        The target is the pseudo-mask, or a mean of it and of what the network's average says about the uncropped picture.
        """
        c = self.config
        if self.pseudo is None:
            raise RuntimeError("begin() makes the pseudo-masks before training")
        pictures = images.float() / 255
        B, S = len(images), c.image_px
        target = resize(torch.from_numpy(self.pseudo[indices].astype(np.float32) / 255).to(images.device)[:, None], (S, S))
        boxes = random_resized_crop_params(B, S, S, (c.crop_min, 1.0), (0.75, 4 / 3))
        flips = draws.rand(B) < 0.5
        u = 1 + c.jitter * (2 * draws.rand(4, B, rows=1) - 1)
        order = draws.rand(B, 4).argsort(1)
        crops = hflip(crop_resize(pictures, boxes, S), flips)
        crops = color_jitter(crops, order, u[0], u[1], u[2], 0.3 * (u[3] - 1), draws.rand(B) < 0.8)
        return {"images": crops, "pictures": pictures, "target": target, "boxes": boxes, "flips": flips}

    def loss(self, batch: dict[str, Tensor], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        c = self.config
        target = batch["target"]
        weight = c.correct_weight * min(max((progress.frac - c.correct_from) / 0.2, 0.0), 1.0)
        if weight > 0:
            own = self.answer(self.average.module, batch["pictures"])[:, None]
            # Cut where the values part, but never to more than the pseudo-masks cover: masks would grow from step to step.
            corrected = largest(own, float(mean_rows((target > 0.5).float().mean(), len(target)))) * (own > otsu(own))
            target = (1 - weight) * target + weight * corrected
        target = crop_resize(target.expand(-1, 3, -1, -1), batch["boxes"], c.image_px // 2)
        target = hflip(target, batch["flips"])[:, :1]
        masks, scores = self.net(batch["images"])
        total = target.new_zeros(())
        for logits, score in zip(masks, scores, strict=True):
            logits = logits.float()
            dice = dice_loss(logits.sigmoid(), target)
            pixel = nn.functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits))
            total = total + dice.mean() + pixel + ranking_loss(score.float(), dice.detach())
        area = masks[-1].detach().float().sigmoid().mean()
        parts = {"dice": float(dice.detach().mean()), "area_frac": float(area), "correction": weight}
        return total / len(masks), parts

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the average; it follows closely at first, so that its random start is forgotten."""
        self.average.update(self.net, min(self.config.ema, (1 + progress.step) / (10 + progress.step)))

    @torch.no_grad()
    def settle(self, images: Any) -> None:
        """Move 0.5 to where the masks of training pictures cover as much as the pseudo-masks do: noisy targets make soft masks large."""
        if self.pseudo is None:
            raise RuntimeError("begin() makes the pseudo-masks before training")
        chosen = evenly(len(images), SETTLE_PICTURES)
        soft = []
        for rows in np.array_split(chosen, -(-len(chosen) // 64)):
            found = self.answer(self.average.module, images.batch(rows).to(self.part.device).float() / 255)
            soft.append(found[:, ::2, ::2].flatten().cpu().numpy())
        covered = float((self.pseudo[chosen] > 127).mean())
        self.part.fill_(float(np.clip(np.quantile(np.concatenate(soft), 1 - covered), 0.02, 0.98)))

    @torch.no_grad()
    def answer(self, net: nn.Module, images: Tensor) -> Tensor:
        """The best-ranked query's mask (B, S, S) in [0, 1] of (B, 3, S, S) pictures, in evaluation mode."""
        was_training = net.training
        net.eval()
        masks, scores = net(images)
        net.train(was_training)
        best = nn.functional.one_hot(scores[-1].argmax(1), scores[-1].shape[1]).to(masks[-1].dtype)
        chosen = (masks[-1] * best[:, :, None, None]).sum(1, keepdim=True).float()
        return resize(chosen, images.shape[-2:])[:, 0].sigmoid()

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to soft masks (B, H, W): at the network's square, then resized to the picture."""
        size = images.shape[-2:]
        square, net = self.squares(images), self.average.module
        mask = self.answer(net, square)
        if self.config.refine == "bilateral":
            mask = (mask + self.answer(net, square.flip(3)).flip(2)) / 2
            if self.config.teacher == "border":
                # The network knows what objects look like, the contrast what this picture's rim looks like: they err elsewhere.
                _, soft = at_half_size(self.given["features"], square)
                mask = (mask + resize(moved(soft, otsu(soft)), mask.shape[-2:])[:, 0]) / 2
            sigma_px, width_px = self.image_px / 12, 2 * round(self.image_px / 96) + 1
            soft = follow_edges(square, mask, sigma_space_px=sigma_px, sigma_luma=8.0, sigma_chroma=8.0).clamp(0, 1)
            # The solver blurs as well: where its values part becomes 0.5. It also leaves cracks, and wisps along edges of the
            # background; what is left parts once more, so that a grey background goes where the object is lighter still.
            whole = -without_wisps(-moved(soft, otsu(soft[:, None], 64)[:, 0]), width_px)
            opened = without_wisps(whole, width_px)
            mask = moved(opened, otsu(opened[:, None], 64)[:, 0])
        else:
            mask = moved(mask, self.part)
        return resize(mask[:, None], size)[:, 0] if tuple(size) != mask.shape[-2:] else mask

    @torch.no_grad()
    def segment_network(self, images: Tensor) -> Tensor:
        """What an exported network computes: (B, 3, S, S) in [0, 1] to soft masks (B, S, S), without the solver."""
        return moved(self.answer(self.average.module, self.squares(images)), self.part)

    def squares(self, images: Tensor) -> Tensor:
        """Pictures resized to the square that the network was trained on."""
        side = (self.image_px, self.image_px)
        if tuple(images.shape[-2:]) != side:
            images = nn.functional.interpolate(images, side, mode="bilinear", antialias=True)
        return images.clamp(0, 1)

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Mask scores; baselines: no learning, and on the untrained features TokenCut and the same teacher, or the given run."""
        untrained = self.given["features"].untrained(data.seed)
        others: dict[str, Segments] = {"untrained_cut": TokenCut(TokenCut.sizes["small"], {"features": untrained})}
        if self.config.teacher == "run":
            others["teacher"] = self.given["masks"]
        else:
            others["untrained_teacher"] = Teacher(self.config, untrained)
        return segmentation_scores(self, data, others)

    def show(self, images: Tensor) -> dict[str, Picture]:
        """Rows: picture, pseudo-mask, the network's mask."""
        images = images[:12]
        pseudo = nn.functional.interpolate(self.pseudo_masks(images)[:, None], images.shape[-2:])[:, 0]
        rows = [images]
        for masks in (pseudo, self.segment(images)):
            rows.append(torch.stack([overlay(x, m) for x, m in zip(images, masks, strict=True)]))
        sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
        return {"masks": (sheet.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()}
