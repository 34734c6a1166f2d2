"""What a discriminator of moved objects can learn when nothing holds it back: alone, over true grounds, against wrong masks; writes
benchmarks/results/move_judge.json.

    python benchmarks/move_judge.py --work FOLDER [--steps 500] [--seed 0]

Pictures of sample:things, halved to 48 px. Real: the pictures. Fakes: true masks made wrong in four ways, cut out and moved over the true
ground. A network without spectral norm, told of each picture whether it is a fake and of each place of 4 px whether it was changed, is
trained with the logistic loss, and is then asked whether it finds the true object, moved, more real than the same with a wrong mask: on
pictures that it learned from, on others with the same photographs as grounds, and on the test pictures, of other objects and photographs.
It is trained twice more, with spectral norm on every layer, and not told of places. Truth makes the fakes: this measures what can be
seen, and is no step of a method. `move_ladder.py judge` asks the same of MOVE's own discriminators.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measuring import write
from move_ladder import Pictures
from selftaught.core.seeds import seed_all
from selftaught.measure.score import wilson_ci
from selftaught.segmentation.move_scene import shift, union

SIDE = 48
LEARNED, HELD = 1536, 256
"""Pictures of the training split that are learned from, and those after them that are not."""
BATCH = 16
TRAINED = ("half", "shrunk", "grown", "elsewhere")
VARIANTS = {"free": (False, True), "with spectral norm": (True, True), "not told of places": (False, False)}
"""Name -> whether it has spectral norm, and whether it is told of each place if it was changed."""
ASKED = ("half", "left half", "shrunk", "grown", "elsewhere", "blob")
"""A half on a random side; 2 px less or more all around (4 px of 96); the same shape half a picture away; a random fifth of the picture."""


class Reduced:
    """Pictures, grounds (N, 3, 48, 48) and masks (N, 1, 48, 48) in [0, 1], kept in a file."""

    def __init__(self, part: str, count: int, work: Path) -> None:
        path = work / f"{part} {count}.npz"
        if not path.exists():
            whole = Pictures(part, count)
            small = [reduced(x) for x in (whole.images, whole.grounds, whole.masks[:, None])]
            np.savez(path, **dict(zip(("pictures", "grounds", "masks"), small, strict=True)))
        with np.load(path) as kept:
            self.pictures, self.grounds, self.masks = (torch.from_numpy(kept[name]) for name in ("pictures", "grounds", "masks"))


def reduced(values: np.ndarray) -> np.ndarray:
    """(N, C, 96, 96) uint8 or bool to (N, C, 48, 48) float32 in [0, 1]."""
    top = 255 if values.dtype == np.uint8 else 1
    parts = (torch.from_numpy(x).float() / top for x in np.array_split(values, -(-len(values) // 256)))
    return torch.cat([F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True) for x in parts]).numpy()


def blobs(count: int) -> Tensor:
    """(count, 1, 48, 48) soft blobs that cover a fifth of the picture, at random places."""
    noise = torch.randn(count, 1, 5, 5)
    field = F.interpolate(noise, (SIDE, SIDE), mode="bicubic", align_corners=True)
    level = field.flatten(1).quantile(0.8, dim=1)[:, None, None, None]
    return ((field - level) * 10).sigmoid()


def made_wrong(masks: Tensor, how: str) -> Tensor:
    """True masks (B, 1, 48, 48) made wrong in one of the ways of ASKED."""
    if how in ("half", "left half"):
        angle = torch.rand(len(masks), 1, 1) * 2 * math.pi if how == "half" else torch.zeros(len(masks), 1, 1)
        along = torch.arange(SIDE).float()
        area = masks.sum((1, 2, 3)).clamp(min=1e-3)
        down = (masks.sum(3)[:, 0] * along).sum(1) / area
        right = (masks.sum(2)[:, 0] * along).sum(1) / area
        side = (along[:, None] - down[:, None, None]) * angle.sin() + (along - right[:, None, None]) * angle.cos()
        return masks * (side < 0)[:, None]
    if how == "shrunk":
        return 1 - F.max_pool2d(1 - masks, 5, 1, 2)
    if how == "grown":
        return F.max_pool2d(masks, 5, 1, 2)
    if how == "elsewhere":
        return torch.roll(masks, (SIDE // 2, SIDE // 2), (2, 3))
    return blobs(len(masks))


def composite(pictures: Tensor, grounds: Tensor, masks: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """What the masks cover, moved over the true ground, and where that changed the picture."""
    moved = shift(masks, by)
    region = union(masks, moved)
    behind = grounds * region + pictures * (1 - region)
    return shift(pictures, by) * moved + behind * (1 - moved), region


class FreeJudge(nn.Module):
    """(B, 3, 48, 48) in [0, 1] to a logit per picture (B,) and one per place of 4 px (B, 1, 12, 12); high is real.

    Convolutions that pad with mirrored pixels, batch norms. It is also given, four times as strong, what differs from the mean of
    5x5 pixels: seams are faint beside colours.
    """

    def __init__(self, spectral: bool) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.spectral_norm if spectral else lambda layer: layer

        def layer(channels: int, out: int, kernel: int, norm: bool = True) -> list[nn.Module]:
            convolution = normed(nn.Conv2d(channels, out, kernel, kernel - 2 if kernel == 4 else 1, 1, padding_mode="reflect"))
            return [convolution, nn.BatchNorm2d(out) if norm else nn.Identity(), nn.LeakyReLU(0.2)]

        self.near = nn.Sequential(*layer(6, 24, 4, False), *layer(24, 32, 3), *layer(32, 48, 4), *layer(48, 48, 3))
        self.place = normed(nn.Conv2d(48, 1, 1))
        self.far = nn.Sequential(*layer(48, 64, 4), *layer(64, 64, 3))
        self.leave = normed(nn.Linear(128, 1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = 2 * pictures - 1
        fine = 4 * (x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1))
        near = self.near(torch.cat([x, fine], 1))
        far = self.far(near)
        return self.leave(torch.cat([far.mean((2, 3)), far.amax((2, 3))], 1))[:, 0], self.place(near)


def train(judge: FreeJudge, data: Reduced, steps: int, places: bool, seed: int) -> None:
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.0, 0.99))
    seen: list[list[float]] = []
    for step in range(steps):
        seed_all(seed, 0, step)
        rows = torch.randint(0, LEARNED, (BATCH,))
        masks = torch.cat([made_wrong(data.masks[r], how) for r, how in zip(rows.chunk(len(TRAINED)), TRAINED, strict=True)])
        by = torch.randint(-SIDE // 8, SIDE // 8 + 1, (BATCH, 2))
        by += 2 * (by.abs().amax(1, keepdim=True) < 2)  # what hardly moves cannot be seen
        made, region = composite(data.pictures[rows], data.grounds[rows], masks, by)
        flips = (torch.rand(2 * BATCH) < 0.5)[:, None, None, None]
        both, changed = torch.cat([data.pictures[rows], made]), torch.cat([torch.zeros_like(region), region])
        both, changed = (torch.where(flips, x.flip(3), x) for x in (both, changed))
        said, said_there = judge(both)
        real, fake = said[:BATCH], said[BATCH:]
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        seen.append([float(loss.detach()), float(right)])
        if places:
            there = F.adaptive_max_pool2d(changed, said_there.shape[-2:])
            loss = loss + F.binary_cross_entropy_with_logits(-said_there, there)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % max(steps // 10, 1) == 0:
            print(f"{step + 1}: loss {np.mean(seen, 0)[0]:.2f}, right about {np.mean(seen, 0)[1]:.2f} of the pictures", flush=True)
            seen = []


@torch.no_grad()
def ask(judge: FreeJudge, data: Reduced, rows: Tensor, seed: int) -> dict[str, Tensor]:
    """Name -> (B,) whether the true object, moved, looks more real than the same with such a mask."""
    judge.eval()
    seed_all(seed, 1, 0)
    by = torch.tensor([[4, 4], [4, -4], [-4, 4], [-4, -4]])[torch.arange(len(rows)) % 4]
    pictures, grounds, masks = data.pictures[rows], data.grounds[rows], data.masks[rows]
    truth = judge(composite(pictures, grounds, masks, by)[0])[0]
    said = {how: judge(composite(pictures, grounds, made_wrong(masks, how), by)[0])[0] for how in ASKED}
    said["the picture itself"] = judge(pictures)[0]
    return {how: truth > there for how, there in said.items()}


def told(found: dict[str, dict[tuple[str, str], Tensor]]) -> None:
    """Write what was found as far as it is known: the first variant's shares, the others' beside them."""
    first, *others = found.values()
    rows = []
    for (part, how), wins in first.items():
        beside = {name: float(other[part, how].float().mean()) for name, other in zip(list(found)[1:], others, strict=True)}
        rows.append({
            "method": "judge", "data": f"sample:things, 48 px, {part}", "score": f"true mask preferred to: {how}", "unit": "share",
            "values": [float(wins.float().mean())], "ci95": list(wilson_ci(int(wins.sum()), len(wins))), "n": len(wins),
            "baselines": {"chance": 0.5, **beside}, "summary": False,
        })  # fmt: skip
    write("move_judge", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    data, test = Reduced("train", LEARNED + HELD, a.work), Reduced("test", HELD, a.work)
    found: dict[str, dict[tuple[str, str], Tensor]] = {}
    for name, (spectral, places) in VARIANTS.items():
        seed_all(a.seed, 0, 10**12)
        judge = FreeJudge(spectral).train()
        train(judge, data, a.steps, places, a.seed)
        asked = (("learned from", data, 0), ("held out", data, LEARNED), ("test split", test, 0))
        found[name] = {
            (part, how): wins
            for part, source, first in asked for how, wins in ask(judge, source, torch.arange(first, first + HELD), a.seed).items()
        }  # fmt: skip
        told(found)


if __name__ == "__main__":
    main()
