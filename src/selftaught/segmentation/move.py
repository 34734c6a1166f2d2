"""MOVE: an object is what can be cut out, moved a little and pasted over a filled background, and the picture still looks real.

Paper: Bielski, Favaro, "MOVE: Unsupervised Movable Object Segmentation and Detection", NeurIPS 2022.
A head on frozen self-supervised features predicts a soft mask; what is inside is shifted, the hole is filled by a masked autoencoder
whose tokens are hidden softly, so that gradients reach the mask; a discriminator tells the result from real pictures. Too large a mask
repeats background, too small a one leaves a piece of the object behind.
Differs: the published discriminator reads a network that was trained with the labels of ImageNet; ours reads the same self-supervised
features as the segmenter (`discriminator=imagenet` is the published one, and says so). Real pixels are kept outside of the hole and the
inpainter's encoder does not see what it is to fill (`copy_real`, `masked_encoder`; the paper's choices are options, and those of size
`paper`). `init=cut` starts from masks that contrast to the rim or TokenCut give. A score says whether there is an object.
Size `small` also judges place by place (`discriminator=places`), ranks places (`share_to`), and pastes onto others (`paste=others`).
Cost: two players; a step needs the inpainter once per player (three times with `copy_real=false`), the discriminator's features four times
for its own step and once, with gradient, for the segmenter's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core import draws, launch
from selftaught.core.errors import ConfigError
from selftaught.data.augment import crop_resize, random_resized_crop_params
from selftaught.measure.mask_scores import segmentation_scores
from selftaught.measure.score import Score
from selftaught.method import EMA, EvalData, Method, Parts, Picture, Player, Progress, Segments, TrainConfig
from selftaught.nets.bilateral import follow_edges
from selftaught.nets.discriminators import advance, fooled, hinge_fake, hinge_real, unchanged, unchanged_loss
from selftaught.segmentation.cut import centred, overlay
from selftaught.segmentation.move_nets import IMAGENET, Judge, SegmenterHead, feature_file, frozen_maps
from selftaught.segmentation.move_scene import (
    Chequers,
    Scene,
    area_loss,
    binary_loss,
    draw_shift,
    make_scene,
    ranked,
    recolour,
    separation,
    three_scales,
)
from selftaught.segmentation.selfmask import SelfMaskConfig, Teacher, dice_loss, moved, otsu, resize, teach
from selftaught.segmentation.tokencut import TokenCut, tokencut_masks
from selftaught.segmentation.voting import pseudo_mask_file

KINDS = ("picture", "unshifted", "composite", "copied")
"""What the discriminator sees: two real ones, two fakes."""
BORDER = SelfMaskConfig(teacher="border")


@dataclass(frozen=True)
class MoveConfig(TrainConfig):
    """Settings of MOVE."""

    layer: Literal["keys", "penultimate"] = "keys"
    """Which features the segmenter reads: the keys of the last block, or the output of the block before it (the paper's)."""
    head_reduce: int = 0
    """Channels to which the features are reduced first; 0 leaves them as they are."""
    head_least: int = 128
    """Smallest width of the segmenter's blocks."""
    head_shallow: int = 0
    """Channels of a convolution on the pixels that joins the segmenter's last block; 0 has none."""
    head_stride: int = 1
    """Pixels per value of the mask that the segmenter predicts; it is enlarged from there."""
    head_rim: bool = False
    """Tell the segmenter how much features and colours differ from those of the picture's own rim."""
    shift_frac: float = 0.125
    """Largest shift in each direction, as a share of the picture's side."""
    copy_real: bool = True
    """Keep real pixels outside of the hole; otherwise real pixels are auto-encoded too (three passes of the inpainter)."""
    hole: Literal["tiles", "pixels"] = "tiles"
    """With `copy_real`: paint whole tiles of the inpainter (the published code), or only where the masks are. Whole tiles also erase what
    a mask that is too small by less than a tile leaves behind, and nothing then speaks against such masks."""
    masked_encoder: bool = True
    """The inpainter's encoder does not see what it is to fill; otherwise only its decoder does not."""
    fill: Literal["inpainter", "chequered"] = "inpainter"
    """What holes show: what the inpainter paints, or squares of two colours that nobody takes for a ground; these need no inpainter."""
    soft_inpainting: bool = True
    """Let gradients through the inpainting reach the mask; otherwise they come through the pasting alone."""
    paste: Literal["own", "others"] = "own"
    """Onto which ground objects are pasted: that of their own picture, moved (the paper's), or that of another picture of the batch (of its
    piece, with `accumulate` or several processes), on which ground that comes along shows."""
    discriminator: Literal["features", "pixels", "patches", "places", "imagenet"] = "features"
    """What the discriminator reads: our own frozen features, pixels (`patches`: without knowing where in the picture they are, `places`:
    told of each place whether it was changed), or a network trained with the labels of ImageNet."""
    imagenet_weights: str = ""
    """File of weights for `discriminator=imagenet`, or `timm`; empty for random ones."""
    disc_width: int = 64
    """Channels of the discriminator's finest projection and of its heads, or of its first layer on pixels."""
    disc_px: int = 0
    """Side to which pictures are brought for the discriminator; 0 leaves them."""
    disc_enlarge: bool = False
    """Enlarge the finest projected map to twice its size, as Projected GAN does."""
    disc_lr_frac: float = 1.0
    """Learning rate of the discriminator, as a share of `lr`."""
    jitter: float = 1.0
    """Strength of random colours before the discriminator; 1 is DiffAugment's."""
    gate: float = 0.0
    """The segmenter does not learn while the discriminator is right less often than this (0.5 is chance); 0 always learns."""
    wait_frac: float = 0.0
    """Share of the training in which the segmenter waits and the discriminator alone learns."""
    adversarial_weight: float = 1.0
    """Weight of looking real."""
    least_area: float = 0.05
    """Share of the picture below which a mask is too small."""
    least_weight: float = 100.0
    """Weight of the loss on masks that are too small."""
    most_area: float = 1.0
    """Share of the picture above which a mask is too large."""
    most_weight: float = 0.0
    """Weight of the loss on masks that are too large, relative to that on too small ones."""
    share_from: float = 0.0
    """Smallest share of the picture that masks cover when `share_to` is above 0."""
    share_to: float = 0.0
    """Masks cover a share of the picture that is drawn at each step from `share_from` to this one, and the middle of the two in use: the
    places with the largest logits. 0 leaves their size to the segmenter."""
    rim_frac: float = 0.0
    """With `share_to`: width of the rim in which no mask lies, as a share of the side."""
    binary_weight: float = 12.5
    """Weight of the loss on values that are neither 0 nor 1."""
    binary_ramp_frac: float = 0.2
    """Share of the training in which that weight rises linearly from 0."""
    init: Literal["none", "cut", "tokencut"] = "none"
    """What the segmenter learns first: nothing, the masks of contrast to the rim (`cut`), or those of TokenCut."""
    init_frac: float = 0.2
    """Share of the training in which it learns those masks, while the discriminator learns already."""
    anchor_weight: float = 0.0
    """Weight of those masks after that; 0 forgets them."""
    crop_min: float = 0.9
    """Smallest share of a picture's area in a training crop; 1 does not crop, and lets features be kept."""
    cache_mb: int = 1024
    """Features of the training pictures are computed once and kept in a file when they need no more than this, and `crop_min` is 1."""
    ema: float = 0.0
    """Momentum of the average of the segmenter that gives the answers; 0 is the segmenter itself."""
    object_from: float = 0.0
    """Masks of pictures whose object score is lower than this are empty."""
    refine: Literal["none", "bilateral"] = "none"
    """What the answers go through: nothing, or the bilateral solver, which follows the colours of the picture."""

    def __post_init__(self) -> None:
        shares = (self.gate, self.least_area, self.most_area, self.binary_ramp_frac, self.init_frac, self.object_from, self.wait_frac)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("gate, least_area, most_area, binary_ramp_frac, init_frac, object_from and wait_frac must be from 0 to 1")
        if not (0 <= self.share_from < 1 and 0 <= self.share_to < 1 and 0 <= self.rim_frac < 0.5):
            raise ValueError("share_from and share_to must be at least 0 and below 1, rim_frac at least 0 and below 0.5")
        if not (0 < self.crop_min <= 1 and 0 <= self.shift_frac < 1 and 0 <= self.ema < 1):
            raise ValueError("crop_min must be above 0 and at most 1, shift_frac and ema at least 0 and below 1")
        if min(self.adversarial_weight, self.least_weight, self.most_weight, self.binary_weight, self.anchor_weight, self.jitter) < 0:
            raise ValueError("weights and jitter must be at least 0")
        if min(self.head_least, self.disc_width) < 1 or min(self.head_reduce, self.head_shallow, self.disc_px) < 0:
            raise ValueError("head_least and disc_width must be at least 1, head_reduce, head_shallow and disc_px at least 0")


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module without any being computed for its own parameters, in evaluation mode.

    A batch norm in training mode would take from a batch of fakes alone what all of them have in common: that they are fakes.
    """
    touched, modes = [p for p in module.parameters() if p.requires_grad], [(m, m.training) for m in module.modules()]
    module.eval()
    for p in touched:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for p in touched:
            p.requires_grad_(True)


def mirrored(x: Tensor, flips: Tensor) -> Tensor:
    """(B, C, H, W) left to right where `flips` (B,) says so."""
    return torch.where(flips[:, None, None, None], x.flip(3), x)


class Move(Method):
    """Segmenter against discriminator; capability `segment`."""

    name = "move"
    Config = MoveConfig
    needs = {"features": "simclr", "inpainter": "mae"}
    capabilities = ("segment",)
    alternate = True
    sizes = {
        "tiny": MoveConfig(
            image_px=32, batch_size=16, steps=20, lr=2e-3, head_reduce=8, head_least=8, head_rim=True, disc_width=8, crop_min=1.0,
            init="cut", ema=0.9, weight_decay=0.0,
        ),
        "small": MoveConfig(
            image_px=96, batch_size=32, steps=400, lr=5e-4, weight_decay=0.0, head_reduce=64, head_least=16, head_stride=4, head_rim=True,
            paste="others", discriminator="places", disc_width=24, disc_px=48, disc_lr_frac=2.0, jitter=0.0, wait_frac=0.4, crop_min=1.0,
            least_weight=0.0, binary_weight=0.0, share_from=0.2, share_to=0.3, rim_frac=0.08, ema=0.99, hole="pixels", refine="bilateral",
        ),
        "paper": MoveConfig(
            image_px=224, batch_size=32, steps=13_200, lr=2e-4, weight_decay=0.0, warmup_frac=0.0, layer="penultimate",
            copy_real=False, masked_encoder=False, disc_enlarge=True, binary_ramp_frac=0.19,
        ),
    }  # fmt: skip
    small_px32 = MoveConfig(
        image_px=32, batch_size=32, steps=1000, lr=1e-3, weight_decay=0.0, head_reduce=64, head_least=16, head_shallow=8, head_rim=True,
        disc_width=32, disc_lr_frac=2.0, jitter=0.1, crop_min=1.0, init="cut", anchor_weight=1.0, adversarial_weight=0.2,
        binary_weight=1.0, ema=0.99, hole="pixels",
    )  # fmt: skip
    config: MoveConfig
    right: Tensor
    """(4,) average share of each kind that the discriminator is right about."""
    right_sum: Tensor
    """(5,) sums of this step's shares times pictures, and the pictures."""

    def __init__(self, config: MoveConfig, needs: Mapping[str, Any] | None = None):
        super().__init__(config, needs)
        c, features = config, self.given["features"]
        if not callable(getattr(features, "encoder", None)):
            raise ConfigError("move needs learned features.", expected="a method with the capability `embed`")
        if c.fill == "inpainter" and not callable(getattr(self.given["inpainter"], "inpaint", None)):
            raise ConfigError("move needs an inpainter.", expected="a method with the capability `inpaint`, e.g. mae")
        for name, need in self.given.items():
            if need.image_px != c.image_px:
                raise ConfigError(f"move works at {c.image_px} px, its {name} was learned at {need.image_px} px.",
                                  do=f"--set image_px={need.image_px}, and needs of one size")  # fmt: skip
        if c.share_to and not 0 < c.share_from <= c.share_to < (1 - 2 * c.rim_frac) ** 2:
            raise ValueError("share_from must be above 0 and at most share_to, and share_to less than rim_frac leaves of the picture")
        if c.fill == "chequered" and not c.copy_real:
            raise ValueError("fill=chequered paints holes only: copy_real must be true")
        if c.anchor_weight and c.init == "none":
            raise ValueError("anchor_weight needs masks to hold to: init must be cut or tokencut")
        # A copy inside of the module, so that the segmenter can be exported as one network.
        self.encoder = copy.deepcopy(features.encoder()).eval().requires_grad_(False)
        width = self.encoder.token_width
        if c.layer == "penultimate":
            with torch.no_grad(), torch.device("cpu"):  # numbers are needed even where the weights are built without memory
                found = frozen_maps(self.encoder, torch.zeros(1, 3, c.image_px, c.image_px), c.layer).shape[1]
            if found != width:
                raise ConfigError(
                    f"layer=penultimate of these features has {found} channels, their last layer {width}.",
                    expected="a network whose layers are all of one width, such as a ViT", do="--set layer=keys",
                )
        self.net = SegmenterHead(width, features.patch_px, c.head_least, c.head_reduce, c.head_shallow, c.head_stride, c.head_rim)
        self.average = EMA(self.net)
        self.judge = Judge(c.discriminator, c.disc_width, c.disc_px or c.image_px, self.encoder, c.disc_enlarge)
        self.register_buffer("right", torch.full((4,), 0.5))
        self.register_buffer("right_sum", torch.zeros(5))
        self.image_px, self.patch_px = c.image_px, features.patch_px
        self.cached: np.ndarray[Any, Any] | None = None
        self.pseudo: np.ndarray[Any, Any] | None = None
        self.resting: list[Tensor] = []

    @classmethod
    def needs_of(cls, config: Any) -> Mapping[str, str]:
        return {need: default for need, default in cls.needs.items() if need != "inpainter" or config.fill == "inpainter"}

    @property
    def inpainter(self) -> Any:
        """What fills holes; a property, so that a learned one stays outside of the module tree."""
        return self.given["inpainter"].to(self.right.device) if self.config.fill == "inpainter" else Chequers(self.patch_px)

    def train(self, mode: bool = True) -> Move:
        """Set the mode of what is trained; frozen networks stay as they are."""
        super().train(mode)
        self.encoder.eval()
        if self.judge.labelled is not None:
            self.judge.labelled.eval()
        return self

    def start(self, say: Any) -> None:
        """Load what the labelled discriminator reads, and say what it is."""
        if self.judge.labelled is None:
            return
        if self.config.imagenet_weights:
            from selftaught.nets.official import load_weights

            say(load_weights(self.judge.labelled, self.config.imagenet_weights, f"timm:{IMAGENET}"))
        say("discriminator=imagenet reads a network trained with the labels of ImageNet: these masks are not learned without labels")

    def begin(self, images: Any, run_dir: Path, say: Any) -> None:
        """Compute once the frozen features of all pictures (features.npy) and the masks to start from (pseudo_masks.npy)."""
        if self.config.crop_min == 1:
            self.cached = feature_file(run_dir / "features.npy", images, self.maps, self.config.cache_mb, say)
        if self.config.init != "none":
            self.pseudo = pseudo_mask_file(run_dir / "pseudo_masks.npy", images, self.pseudo_masks, say)

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to the frozen features (B, E, h, w) that the segmenter reads."""
        return frozen_maps(self.encoder, images, self.config.layer)

    @torch.no_grad()
    def pseudo_masks(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to the masks (B, h, w) of 0 and 1 that `init` starts from."""
        if self.config.init == "cut":
            return teach(BORDER, self.given["features"], images)
        return tokencut_masks(centred(self.given["features"].features(images))).masks.float()

    def players(self) -> dict[str, Player]:
        c = self.config
        judge = self.main_player(self.judge, lr=c.disc_lr_frac * c.lr, betas=(0.0, 0.99), weight_decay=0.0, final_lr_frac=1.0)
        return {"discriminator": judge, "segmenter": self.main_player(self.net, final_lr_frac=1.0)}

    def prepare(self, images: Tensor, indices: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Crop and flip pictures, their features and the masks to start from alike."""
        c = self.config
        pictures = images.float() / 255
        B, S = len(images), c.image_px
        flips = (draws.rand(B) < 0.5).to(images.device)
        by = draw_shift(B, c.shift_frac * S)
        pseudo = None
        if self.pseudo is not None:
            pseudo = torch.from_numpy(self.pseudo[indices].astype(np.float32) / 255)[:, None].to(images.device)
        if c.crop_min < 1:
            boxes = random_resized_crop_params(B, S, S, (c.crop_min, 1.0), (0.75, 4 / 3))
            pictures = crop_resize(pictures, boxes, S)
            if pseudo is not None:
                pseudo = crop_resize(resize(pseudo, (S, S)).expand(-1, 3, -1, -1), boxes, S)[:, :1]
        batch = {"pictures": mirrored(pictures, flips), "shift": by}
        if c.share_to:
            batch["shares"] = c.share_from + (c.share_to - c.share_from) * draws.rand(B).to(images.device)
        if pseudo is not None:
            batch["pseudo"] = mirrored(resize(pseudo, (S, S)), flips)
        if self.cached is None:
            batch["maps"] = self.maps(batch["pictures"])
        else:  # features of the mirrored picture are taken to be the mirrored features
            kept = torch.from_numpy(np.ascontiguousarray(self.cached[indices])).to(images.device).float()
            batch["maps"] = mirrored(kept, flips)
        return batch

    def scene(self, pictures: Tensor, mask: Tensor, by: Tensor, exchange: bool = False) -> Scene:
        """What is made of pictures and masks under the config; with `exchange` each object is pasted where `paste` says."""
        c = self.config
        onto = torch.arange(len(mask), device=mask.device).roll(1) if exchange and c.paste == "others" else None
        return make_scene(
            pictures, mask, by, self.inpainter, copy_real=c.copy_real, masked_encoder=c.masked_encoder, soft=c.soft_inpainting,
            tiles=c.hole == "tiles", onto=onto,
        )  # fmt: skip

    def masks(self, logits: Tensor, shares: Tensor | None = None) -> Tensor:
        """(B, 1, S, S) logits to soft masks; with `share_to` those that cover given (B,) shares of the picture, or the middle share."""
        c = self.config
        if not c.share_to:
            return logits.sigmoid()
        return ranked(logits, (c.share_from + c.share_to) / 2 if shares is None else shares, c.rim_frac)

    def logits(self, *kinds: Tensor) -> Tensor:
        """What the discriminator says of kinds of pictures, each (B, 3, S, S) and under random colours of its own, one after the other."""
        return self.judge(torch.cat([recolour(pictures, self.config.jitter) for pictures in kinds]), self.encoder)

    def loss(self, batch: dict[str, Tensor], player: str, progress: Progress) -> tuple[Tensor, Parts]:
        if player == "discriminator":
            return self.discriminator_loss(batch)
        return self.segmenter_loss(batch, progress)

    def discriminator_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Parts]:
        """Mean over the two real kinds plus mean over the two fakes, of hinge losses or, place by place, of cross-entropies."""
        with torch.no_grad():
            mask = self.masks(self.net(batch["maps"], batch["pictures"]), batch.get("shares"))
            scene = self.scene(batch["pictures"], mask, batch["shift"], exchange=True)
        total, right = mask.new_zeros(()), []
        # All kinds in one batch: batch norms over one kind alone hide what its pictures have in common, and the loss stays at 2.
        said = self.logits(*(getattr(scene, kind) for kind in KINDS)).chunk(len(KINDS))
        changed = scene.changed()
        for i, (kind, logits) in enumerate(zip(KINDS, said, strict=True)):
            truth: Tensor | bool = i < 2
            if self.judge.kind == "places":
                total = total + 0.5 * unchanged_loss(logits, changed[kind])
                truth = unchanged(logits, changed[kind]) > 0.5
            else:
                total = total + 0.5 * (hinge_real(logits) if i < 2 else hinge_fake(logits))
            right.append(((logits > 0) == truth).float().mean())
        B = len(mask)
        self.right_sum += torch.stack([*right, right[0].new_ones(())]) * B
        return total, {f"right_{kind}": float(x) for kind, x in zip(KINDS, right, strict=True)}

    def segmenter_loss(self, batch: dict[str, Tensor], progress: Progress) -> tuple[Tensor, Parts]:
        """Look real, be neither empty nor grey; at first, and weakly later, be like the masks to start from."""
        c = self.config
        self.resting = []
        logits = self.net(batch["maps"], batch["pictures"])
        mask = self.masks(logits, batch.get("shares"))
        with torch.no_grad():
            parts = {"area_frac": float(mask.mean()), "unsure_frac": float(((mask > 0.1) & (mask < 0.9)).float().mean())}
        first = c.init != "none" and progress.frac < c.init_frac
        held = mask.new_zeros(())
        if c.init != "none" and (first or c.anchor_weight):
            held = imitation_loss(logits, batch["pseudo"])
            parts["imitation"] = float(held.detach())
        if first:
            return held, parts
        if progress.frac < c.wait_frac:
            self.resting = [p.detach().clone() for p in self.net.parameters()]
            return logits.sum() * 0.0, parts | {"open": 0.0}
        scene = self.scene(batch["pictures"], mask, batch["shift"], exchange=True)
        with untouched(self.judge):
            said = self.logits(scene.composite)
            fool = unchanged_loss(said, None) if self.judge.kind == "places" else fooled(said)
        begun = max(c.init_frac if c.init != "none" else 0.0, c.wait_frac)
        ramp = min((progress.frac - begun) / max(c.binary_ramp_frac, 1e-9), 1.0)
        scales = three_scales(scene.moved, int(self.inpainter.patch_px))
        area = sum((area_loss(m, c.least_area, c.most_area, c.most_weight) for m in scales), mask.new_zeros(()))
        binary = sum((binary_loss(m) for m in scales), mask.new_zeros(()))
        total = c.adversarial_weight * fool + c.least_weight * area + c.binary_weight * ramp * binary + c.anchor_weight * held
        open_ = float(self.right.mean()) >= c.gate
        # The optimiser's momentum moves weights without any gradient: what rests is put back after the step.
        self.resting = [] if open_ else [p.detach().clone() for p in self.net.parameters()]
        parts |= {"fooled": float(fool.detach()), "area": float(area.detach()), "binary": float(binary.detach()), "open": float(open_)}
        return total * (1.0 if open_ else 0.0), parts

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Put back a segmenter that rests; move the average, the spectral norms, and how often the discriminator is right."""
        for p, before in zip(self.net.parameters(), self.resting, strict=False):
            p.copy_(before)
        self.resting = []
        self.average.update(self.net, min(self.config.ema, (1 + progress.step) / (10 + progress.step)))
        advance(self.judge)
        sums = launch.all_reduce_sum(self.right_sum.clone())
        if float(sums[4]) > 0:
            self.right.lerp_(sums[:4] / sums[4], 0.05)
        self.right_sum.zero_()

    def squares(self, images: Tensor) -> Tensor:
        """Pictures resized to the square that the network was trained on."""
        side = (self.image_px, self.image_px)
        if tuple(images.shape[-2:]) != side:
            images = nn.functional.interpolate(images, side, mode="bilinear", antialias=True)
        return images.clamp(0, 1)

    def answer(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (B, S, S) in [0, 1] and object scores (B,) of (B, 3, S, S) pictures, by the average in evaluation mode."""
        net = self.average.module
        was_training = net.training
        net.eval()
        maps = self.maps(square)
        mask = self.masks(net(maps, square))[:, 0]
        net.train(was_training)
        coarse = nn.functional.adaptive_avg_pool2d(mask[:, None], (maps.shape[-2], maps.shape[-1]))[:, 0]
        sure = mask.flatten(1).amax(1) - mask.flatten(1).amin(1)
        return mask, separation(maps, coarse) * sure

    @torch.no_grad()
    def objectness(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to scores (B,) in [0, 1] that say whether there is an object.

        The share of the variance of the frozen features that the mask explains, times the difference between the mask's largest
        and smallest value: 0 for a flat picture or a flat mask.
        """
        return self.answer(self.squares(images))[1]

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to soft masks (B, H, W): at the network's square, then resized to the picture."""
        size, square = images.shape[-2:], self.squares(images)
        mask, score = self.answer(square)
        if self.config.refine == "bilateral":
            sigma_px = self.image_px / 12
            soft = follow_edges(square, mask, sigma_space_px=sigma_px, sigma_luma=8.0, sigma_chroma=8.0).clamp(0, 1)
            mask = moved(soft, otsu(soft[:, None], 64)[:, 0])  # the solver blurs as well: where its values part becomes 0.5
        mask = mask * (score >= self.config.object_from)[:, None, None].to(mask.dtype)
        return resize(mask[:, None], size)[:, 0] if tuple(size) != tuple(mask.shape[-2:]) else mask

    @torch.no_grad()
    def segment_network(self, images: Tensor) -> Tensor:
        """What an exported network computes: (B, 3, S, S) in [0, 1] to soft masks (B, S, S), without solver and score."""
        return self.answer(self.squares(images))[0]

    def evaluate(self, data: EvalData) -> dict[str, Score]:
        """Mask scores; baselines: no learning, TokenCut and contrast to the rim on the same and on the untrained features."""
        features = self.given["features"]
        others: dict[str, Segments] = {}
        for name, source in (("", features), ("untrained_", features.untrained(data.seed))):
            others[f"{name}cut"] = TokenCut(TokenCut.sizes["small"], {"features": source})
            others[f"{name}teacher"] = Teacher(BORDER, source)
        return segmentation_scores(self, data, others)

    @torch.no_grad()
    def show(self, images: Tensor) -> dict[str, Picture]:
        """Rows: picture, mask, filled background, the object moved, the object copied."""
        images = images[:12]
        mask = self.answer(images)[0]
        by = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])[torch.arange(len(images)) % 4]
        scene = self.scene(images, mask[:, None], by * round(self.config.shift_frac * self.image_px), exchange=True)
        masked = torch.stack([overlay(x, m) for x, m in zip(images, mask, strict=True)])
        rows = [images, masked, scene.background, scene.composite, scene.copied]
        sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
        return {"masks": (sheet.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()}


def imitation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus Dice to masks to start from: (B, 1, S, S) logits and targets in [0, 1]."""
    pixel = nn.functional.binary_cross_entropy_with_logits(logits, target)
    return pixel + dice_loss(logits.sigmoid(), target).mean()
