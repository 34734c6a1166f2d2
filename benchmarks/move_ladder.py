"""The ladder by which MOVE was made to learn: a few pictures with their true backgrounds, then an inpainter, then many pictures.

    python benchmarks/move_ladder.py train --features RUN --pictures 8 --steps 300 [--inpainter RUN] [--set name=value ...]
    python benchmarks/move_ladder.py judge --features RUN --pictures 512 --steps 300 [--inpainter RUN] [--set name=value ...]

`train` trains both players on the first pictures of sample:things and prints IoU, areas and how often the discriminator is right.
`judge` trains the discriminator alone, against fakes from the masks of contrast to the rim, and prints what it says of composites from the
true mask and from wrong ones: without a preference for the truth there, no segmenter can learn. Without --inpainter the true background is
taken (the picture composed again without its object). Truth is used for printing only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.core.config import override
from selftaught.core.seeds import batch_indices, seed_all
from selftaught.data import compositing
from selftaught.learn_objects import HELD
from selftaught.loading import load_method
from selftaught.method import Progress
from selftaught.nets.discriminators import advance
from selftaught.report.pictures import encode
from selftaught.segmentation.move import KINDS, Move


class Pictures:
    """The first pictures of a split of sample:things, with their backgrounds (N, 3, 96, 96) uint8 and masks (N, 96, 96) bool."""

    def __init__(self, part: str, count: int) -> None:
        assets, recipe, paste = compositing.load_assets(), compositing.Recipe(), compositing._paste
        images, grounds, masks = [], [], []
        for i in range(count):
            drawn = compositing.compose(assets, recipe, 0, part, i)
            try:  # the same random numbers are drawn, and nothing is pasted
                compositing._paste = lambda rng, r, canvas, *more: (paste(rng, r, canvas, *more), canvas)[1]
                grounds.append(compositing.compose(assets, recipe, 0, part, i).image)
            finally:
                compositing._paste = paste
            images.append(drawn.image)
            masks.append(drawn.mask > 0)
        self.images, self.grounds = (np.stack(x).transpose(0, 3, 1, 2) for x in (images, grounds))
        self.masks = np.stack(masks)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images[np.asarray(indices)]))


class TrueBackground(nn.Module):
    """An inpainter that knows what is behind the object."""

    current: Tensor

    def __init__(self, image_px: int = 96, patch_px: int = 8) -> None:
        super().__init__()
        self.image_px, self.patch_px = image_px, patch_px

    def inpaint(self, images: Tensor, masks: Tensor, masked_encoder: bool = False) -> Tensor:
        return self.current if bool(masks.any()) else images

    def show(self, pictures: Any, indices: Any, seen: Tensor) -> None:
        """Tell the backgrounds of a batch, mirrored where the pictures `seen` are."""
        grounds = torch.from_numpy(pictures.grounds[indices]).float() / 255
        mirrored = (seen - pictures.batch(indices).float() / 255).flatten(1).abs().amax(1) > 0
        self.current = torch.where(mirrored[:, None, None, None], grounds.flip(3), grounds)


def iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N, H, W) boolean masks to (N,)."""
    both, either = (found & truth).sum((1, 2)), (found | truth).sum((1, 2))
    return both / np.maximum(either, 1)


@torch.no_grad()
def score(method: Move, pictures: Any, most: int = 128) -> float:
    rows = np.array_split(np.arange(min(most, len(pictures))), -(-min(most, len(pictures)) // 64))
    found = np.concatenate([method.answer(pictures.batch(r).float() / 255)[0].numpy() > 0.5 for r in rows])
    return float(iou(found, pictures.masks[: len(found)]).mean())


def build(args: argparse.Namespace, pictures: Pictures, folder: Path) -> Move:
    inpainter = load_method(args.inpainter) if args.inpainter else TrueBackground()
    seed_all(args.seed, 0, 10**12)
    config = replace(override(replace(Move.sizes["small"], init="cut", **HELD), args.set), steps=args.steps)
    method = Move(config, {"features": load_method(args.features), "inpainter": inpainter}).train()
    method.begin(pictures, folder, print)
    return method


def batch_of(method: Move, pictures: Any, indices: np.ndarray) -> dict[str, Tensor]:
    batch = method.prepare(pictures.batch(indices), indices)
    if isinstance(method.inpainter, TrueBackground):
        method.inpainter.show(pictures, indices, batch["pictures"])
    return batch


def play(method: Move, pictures: Any, steps: int, seed: int, say: Callable[[int, dict[str, float]], None], bf16: bool = False) -> None:
    """Train both players; `say` gets the number of steps done and the mean numbers since then, twenty times."""
    players = method.players()
    optimizers = {name: player.build_optimizer() for name, player in players.items()}
    seen: dict[str, list[float]] = {}
    for step in range(steps):
        seed_all(seed, 0, step)
        progress = Progress(step, steps)
        for number, (name, player) in enumerate(players.items()):
            batch = batch_of(method, pictures, batch_indices(len(pictures), method.config.batch_size, seed, 2 * step + number))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss, parts = method.loss(batch, name, progress)
            optimizers[name].zero_grad()
            loss.backward()
            for group in optimizers[name].param_groups:
                group["lr"] = player.lr_at(progress) * group["lr_scale"]
            optimizers[name].step()
            for key, value in parts.items():
                seen.setdefault(key, []).append(value)
        method.after_step(progress)
        if (step + 1) % max(steps // 20, 1) == 0:
            say(step + 1, {key: float(np.mean(values)) for key, values in seen.items()})
            seen = {}


def train(args: argparse.Namespace, pictures: Pictures, method: Move) -> None:
    test = Pictures("test", 64)

    def say(step: int, numbers: dict[str, float]) -> None:
        told = " ".join(f"{key} {value:.2f}" for key, value in numbers.items())
        quality = f"iou {score(method, pictures):.3f}, test {score(method, test):.3f}"
        print(f"{step}: cpu {time.process_time():.0f} s, {quality}, {told}", flush=True)

    play(method, pictures, args.steps, args.seed, say, args.bf16)
    if isinstance(method.inpainter, TrueBackground):
        method.inpainter.show(pictures, np.arange(min(12, len(pictures))), pictures.batch(np.arange(min(12, len(pictures)))).float() / 255)
    Path(args.picture).write_bytes(encode(method.show(pictures.batch(np.arange(min(12, len(pictures)))).float() / 255)["masks"], "png"))


def judge(args: argparse.Namespace, pictures: Pictures, method: Move) -> None:
    assert method.pseudo is not None, "judge needs init=cut"
    noisy = nn.functional.interpolate(torch.from_numpy(method.pseudo[:, None] / np.float32(255)), (96, 96), mode="bilinear")
    truth = torch.from_numpy(pictures.masks[:, None]).float()
    print(f"IoU of the noisy masks {iou(noisy[:, 0].numpy() > 0.5, pictures.masks).mean():.3f}")
    optimizer = method.players()["discriminator"].build_optimizer()
    held, seen = len(pictures) * 3 // 4, []

    def scene(indices: np.ndarray, masks: Tensor, by: Tensor) -> Any:
        images = pictures.batch(indices).float() / 255
        if isinstance(method.inpainter, TrueBackground):
            method.inpainter.show(pictures, indices, images)
        with torch.no_grad():
            return method.scene(images, masks, by)

    for step in range(args.steps):
        seed_all(args.seed, 0, step)
        indices = batch_indices(held, method.config.batch_size, args.seed, step)
        made = scene(indices, noisy[indices], torch.randint(-12, 13, (len(indices), 2)))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            said = method.logits(*(getattr(made, kind) for kind in KINDS)).float().chunk(len(KINDS))
        loss = 0.5 * sum(torch.relu(1 - x).mean() for x in said[:2]) + 0.5 * sum(torch.relu(1 + x).mean() for x in said[2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance(method.judge)
        seen.append([float(loss.detach()), *(float((x > 0).float().mean()) for x in said)])
        if (step + 1) % max(args.steps // 10, 1) == 0:
            print(f"{step + 1}: loss, shares of logits above 0:", np.round(np.mean(seen, 0), 2), flush=True)
            seen = []
    method.config = replace(method.config, jitter=0.0)
    method.judge.eval()  # batch norms over composites of one kind would take away what they have in common
    grown, shrunk = (nn.functional.max_pool2d(x, 7, 1, 3) for x in (truth, 1 - truth))
    centre = (truth.sum(2)[:, 0] * torch.arange(96)).sum(1) / truth.sum((1, 2, 3))
    half = truth * (torch.arange(96) < centre[:, None, None, None])
    masks = {"truth": truth, "noisy": noisy, "grown by 3 px": grown, "shrunk by 3 px": 1 - shrunk, "left half": half,
             "elsewhere": torch.roll(truth, (48, 48), (2, 3))}  # fmt: skip
    for name, rows in (("training pictures", np.arange(held)), ("held out", np.arange(held, len(pictures)))):
        rows, by = rows[:128], torch.full((min(len(rows), 128), 2), 8)
        with torch.no_grad():
            said_of = {k: method.logits(scene(rows, m[rows], by).composite).float().flatten(1).mean(1) for k, m in masks.items()}
        print(name, {k: f"{float(v.mean()):.2f}, truth is preferred in {float((said_of['truth'] > v).float().mean()):.2f}"
                     for k, v in said_of.items()})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "judge"])
    parser.add_argument("--features", required=True)
    parser.add_argument("--inpainter")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--picture", default="move_ladder.png")
    args = parser.parse_args()
    pictures = Pictures("train", args.pictures)
    with tempfile.TemporaryDirectory() as folder:
        {"train": train, "judge": judge}[args.what](args, pictures, build(args, pictures, Path(folder)))


if __name__ == "__main__":
    main()
