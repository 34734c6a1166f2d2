"""Training speed of simclr and dino against lightly's published example loops, and kNN after equal epochs.

    pip install "selftaught[bench]"
    python benchmarks/speed_training.py --data cifar10 [--rounds 5] [--steps 4] [--knn-pictures 4096] [--epochs 2]

Both sides train the same network, at the same batch size, on the same pictures. Ours is `selftaught.train` as a user
calls it, timed between its steps (choosing the plan and saving are left out: they happen once). Theirs is the loop of lightly's
examples (examples/pytorch/simclr.py, dino.py; SGD and Adam as there) with its transforms and a DataLoader with two workers,
timed from its third batch on. Its dataset holds the decoded pictures in memory: nothing is read from disk. Blur is off
at 32 px and the colour strength 0.5, as in lightly's own CIFAR-10 benchmark; both make it faster.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from measuring import alternating, ratio_row, write
from selftaught.core.config import override
from selftaught.data.sources import open_data
from selftaught.loading import load_method
from selftaught.measure.features import knn_accuracy
from selftaught.nets.backbones import build_backbone
from selftaught.nets.torchvision_ops import make_torchvision_importable
from selftaught.registry import load_class
from selftaught.train import train

SETTINGS = {
    "simclr": ["image_px=32", "view_px=0", "backbone=resnet18", "patch_px=4", "batch_size=256", "rotation=0"],
    "dino": ["image_px=64", "local_px=32", "local_crops=4", "backbone=vit-192x4", "batch_size=64", "prototypes=2048"],
}
WARM_UP = 2
"""First steps of either side that do not count: caches, worker processes and queues fill."""


def lightly() -> Any:
    """The peer, or an end that says what to install."""
    make_torchvision_importable()
    try:
        import lightly.loss
        import lightly.models.modules
        import lightly.models.utils
        import lightly.transforms
        import lightly.utils.scheduler
    except ImportError as error:
        raise SystemExit(f'this benchmark needs lightly ({error}): pip install "selftaught[bench]"') from error
    return lightly


class Pictures(Dataset[Any]):
    """Decoded pictures as PIL images through a transform, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, images: np.ndarray, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.fromarray(self.images[i]))


class Peer:
    """lightly's example loop of one method; `steps` runs through the data again and again."""

    def __init__(self, method: str, images: np.ndarray, epochs: int) -> None:
        torch.manual_seed(0)
        self.config = config_of(method)
        c: Any = self.config
        self.backbone = build_backbone(c.backbone, c.image_px, c.patch_px, c.stem)
        self.backbone.pool = c.pool
        self.images, self.epochs = images, epochs
        self.step, transform = getattr(self, method)(lightly())
        dataset = Pictures(images, transform)
        self.loader = DataLoader(dataset, c.batch_size, shuffle=True, drop_last=True, num_workers=2)

    def simclr(self, peer: Any) -> tuple[Callable[[Any, int], None], Any]:
        head = peer.models.modules.SimCLRProjectionHead(self.backbone.width, 512, 128)
        criterion = peer.loss.NTXentLoss()
        model = nn.ModuleList([self.backbone, head])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)

        def step(views: list[Tensor], epoch: int) -> None:
            z0, z1 = (head(self.backbone.pooled(view)) for view in views)
            criterion(z0, z1).backward()
            optimizer.step()
            optimizer.zero_grad()

        size = self.config.image_px
        return step, peer.transforms.SimCLRTransform(size, cj_strength=0.5, gaussian_blur=0.0, normalize=None)

    def dino(self, peer: Any) -> tuple[Callable[[Any, int], None], Any]:
        c: Any = self.config
        sizes = (self.backbone.width, c.head_width, c.bottleneck, c.prototypes)
        student_head = peer.models.modules.DINOProjectionHead(*sizes, freeze_last_layer=1)
        teacher, teacher_head = copy.deepcopy(self.backbone), peer.models.modules.DINOProjectionHead(*sizes)
        for module in (teacher, teacher_head):
            peer.models.utils.deactivate_requires_grad(module)
        criterion = peer.loss.DINOLoss(output_dim=c.prototypes, warmup_teacher_temp_epochs=5)
        optimizer = torch.optim.Adam([*self.backbone.parameters(), *student_head.parameters()], lr=0.001)

        def step(views: list[Tensor], epoch: int) -> None:
            momentum = peer.utils.scheduler.cosine_schedule(epoch, max(self.epochs, 2), 0.996, 1)
            peer.models.utils.update_momentum(self.backbone, teacher, m=momentum)
            peer.models.utils.update_momentum(student_head, teacher_head, m=momentum)
            with torch.no_grad():
                targets = [teacher_head(teacher.pooled(view)) for view in views[:2]]
            criterion(targets, [student_head(self.backbone.pooled(view)) for view in views], epoch=epoch).backward()
            student_head.cancel_last_layer_gradients(current_epoch=epoch)
            optimizer.step()
            optimizer.zero_grad()

        transform = peer.transforms.DINOTransform(
            global_crop_size=c.image_px, local_crop_size=c.local_px, n_local_views=c.local_crops, normalize=None
        )
        return step, transform

    def batches(self) -> Generator[tuple[Any, int], None, None]:
        epoch = 0
        while True:
            for views in self.loader:
                yield views, epoch
            epoch += 1

    def rate(self, steps: int) -> float:
        """Pictures per second over `steps` steps."""
        batches, begin = self.batches(), 0.0
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                begin = time.perf_counter()
            self.step(*next(batches))
        spent = time.perf_counter() - begin
        batches.close()  # ends its worker processes, which would otherwise decode ahead while the other side is timed
        return steps * self.config.batch_size / spent

    def learn(self) -> nn.Module:
        """Train for the number of epochs; returns the backbone that is kept."""
        for epoch in range(self.epochs):
            for views in self.loader:
                self.step(views, epoch)
        return self.backbone.eval()


def config_of(method: str) -> Any:
    """Our configuration: size small, with the network and sizes of this comparison."""
    return override(load_class(method).sizes["small"], SETTINGS[method])


class Ours:
    """`selftaught.train`, with the time of each step taken where the contract says that a step has ended."""

    def __init__(self, method: str, images: np.ndarray, folder: Path) -> None:
        self.method, self.images, self.folder, self.runs = method, images, folder, 0
        self.batch: int = config_of(method).batch_size

    def run(self, steps: int) -> tuple[Path, list[float]]:
        """Train in a fresh folder under the plan of the first run; returns the folder and when each step ended."""
        cls, ends = load_class(self.method), list[float]()
        original, out = cls.after_step, self.folder / f"{self.method}-{self.runs}"
        if self.runs:
            out.mkdir()
            shutil.copy(self.folder / f"{self.method}-0" / "plan.json", out)
        self.runs += 1

        def after_step(method: Any, progress: Any) -> None:
            original(method, progress)
            ends.append(time.perf_counter())

        cls.after_step = after_step
        try:
            train(self.method, self.images, out, steps=steps, set=SETTINGS[self.method], quiet=True)
        finally:
            cls.after_step = original
        return out, ends

    def rate(self, steps: int) -> float:
        """Pictures per second over `steps` steps."""
        _, ends = self.run(WARM_UP + steps)
        return steps * self.batch / (ends[-1] - ends[WARM_UP - 1])


def pictures(data: str, split: str, count: int, px: int) -> tuple[np.ndarray, list[str]]:
    """uint8 (N, px, px, 3) and labels of the first `count` pictures of a part."""
    source = open_data(data, split)
    count = min(count, len(source))
    return np.stack([source.resized(i, px)[0] for i in range(count)]), [source.truth(i).label or "" for i in range(count)]


@torch.no_grad()
def vectors(embed: Callable[[Tensor], Tensor], images: np.ndarray) -> np.ndarray:
    """(N, D) of uint8 (N, S, S, 3)."""
    parts = [torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255 for part in np.array_split(images, len(images) // 64 + 1)]
    return torch.cat([embed(part) for part in parts]).numpy()


def knn_row(method: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both for equal epochs, score both by the same kNN; the interval is of the difference, over test pictures."""
    px, name = config_of(method).image_px, arguments.name
    images, labels = pictures(arguments.data, "train", arguments.knn_pictures, px)
    test, truth = pictures(arguments.data, "test", arguments.knn_pictures, px)
    ours = Ours(method, images, folder)
    run, _ = ours.run(arguments.epochs * (len(images) // ours.batch))
    mine = load_method(run)
    theirs = Peer(method, images, arguments.epochs).learn()
    untrained = mine.untrained(0)
    embeds = {"ours": mine.embed, "lightly": theirs.pooled, "untrained": untrained.embed}
    right = {k: knn_accuracy(vectors(f, images), labels, vectors(f, test), truth) for k, f in embeds.items()}
    gap = right["ours"].astype(float) - right["lightly"]
    draws = np.random.default_rng(0).choice(gap, (2000, len(gap))).mean(1)
    accuracies = {k: float(v.mean()) for k, v in right.items()}
    return {
        "method": method, "data": f"{name}, {len(images):,} pictures, {arguments.epochs} epochs", "unit": "share right",
        "score": "knn20, ours minus lightly", "values": [float(gap.mean())], "n": len(gap),
        "ci95": [float(q) for q in np.quantile(draws, [0.025, 0.975])], "baselines": accuracies, "summary": False,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="labelled pictures with official parts, e.g. CIFAR-10")
    parser.add_argument("--name", default="CIFAR-10 (JPEG)", help="what the tables call the data")
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="timed steps per round")
    parser.add_argument("--pictures", type=int, default=4096, help="pictures that the speed is measured with")
    parser.add_argument("--knn-pictures", type=int, default=4096, help="0 leaves kNN out")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    versions, rows, plans = {"lightly": lightly().__version__}, [], {}
    with tempfile.TemporaryDirectory() as folder:
        for method in arguments.methods:
            images, _ = pictures(arguments.data, "train", arguments.pictures, config_of(method).image_px)
            ours, theirs = Ours(method, images, Path(folder)), Peer(method, images, 1)
            calls = {"ours": lambda o=ours: o.rate(arguments.steps), "lightly": lambda t=theirs: t.rate(arguments.steps)}
            c = config_of(method)
            data = f"{c.backbone}, {c.image_px} px, batch {c.batch_size}"
            rates = alternating(calls, arguments.rounds)
            rows.append(ratio_row(method, data, "training speed over lightly's example", rates, "lightly"))
            plans[method] = (Path(folder) / f"{method}-0" / "plan.json").read_text()
            if arguments.knn_pictures:
                knn = Path(folder) / "knn"
                knn.mkdir(exist_ok=True)
                rows.append(knn_row(method, arguments, knn))
            write("speed_training", rows, versions=versions, plans=plans, rounds=arguments.rounds, steps=arguments.steps)


if __name__ == "__main__":
    main()
