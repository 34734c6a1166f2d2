"""Loading: first epoch over JPEGs and second epoch from the cache, against torchvision's ImageFolder and a DataLoader.

    python benchmarks/speed_loading.py [--pictures 10000] [--px 96] [--size 256x256 500x375 512x512] [--rounds 3] [--pillow]

The pictures are those of sample:things, enlarged to --size (width x height; 500x375 is the most common size of ImageNet) and saved
as JPEG of quality 90 with photographic grain, so that their files have the size of photographs. --pillow measures what is left
without simplejpeg. Ours: `build_cache` into an empty folder, then batches of uint8 from it (an epoch is
one pass over all pictures in batches of 256). Theirs: ImageFolder, Resize to the same square, PILToTensor, DataLoader
with two workers and batches of 256. The files are read once before, so that both find them in the page cache. Beside the
wall time stands the processor time of all processes, which other programs on the machine disturb less. The last row is the mean
PSNR between both sides' pixels: the peer decodes at full size, ours at a reduced one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import DataLoader

from measuring import alternating, ratio_row, write
from selftaught.data import jpeg
from selftaught.data.cache import ImageSet, build_cache
from selftaught.data.sources import open_data
from selftaught.nets.torchvision_ops import make_torchvision_importable

BATCH = 256


def write_folder(folder: Path, count: int, size: tuple[int, int]) -> None:
    """`count` JPEGs in ten class folders, which ImageFolder wants."""
    source = open_data(f"sample:things:{min(count, 2048)}", "train")

    def one(i: int) -> None:
        rng = np.random.default_rng(i)
        picture = Image.fromarray(np.rot90(source.image(i % len(source)), i // len(source)))
        large = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = large + rng.normal(0, 6, large.shape[:2])[..., None]
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(folder / f"{i % 10}" / f"{i:06d}.jpg", quality=90)

    for label in range(10):
        (folder / f"{label}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(count)))


def epoch(images: ImageSet) -> None:
    """One pass over the cache in a shuffled order."""
    for part in np.array_split(np.random.default_rng(0).permutation(len(images)), -(-len(images) // BATCH)):
        images.batch(part)


def peer(folder: Path, px: int) -> Any:
    """ImageFolder and DataLoader, which decode in every epoch."""
    make_torchvision_importable()
    from torchvision import datasets, transforms

    steps = transforms.Compose([transforms.Resize((px, px)), transforms.PILToTensor()])
    return DataLoader(datasets.ImageFolder(str(folder), steps), BATCH, shuffle=True, num_workers=2)


class Timer:
    """Pictures per second of the wall clock; pictures per second of all processors together are kept by name."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.processor: dict[str, list[float]] = {}

    def rate(self, name: str, call: Callable[[], None]) -> float:
        begin, before = time.perf_counter(), sum(os.times()[:4])
        call()
        wall = time.perf_counter() - begin
        self.processor.setdefault(name, []).append(self.count / max(sum(os.times()[:4]) - before, 0.01))
        return self.count / wall


def quality(folder: Path, images: ImageSet, px: int, count: int = 200) -> float:
    """Mean PSNR in dB between ours and the peer's pixels (those of a full decode)."""
    found = []
    for i in range(min(count, len(images))):
        full = Image.open(folder / f"{images.keys[i]}.jpg").convert("RGB").resize((px, px), Image.Resampling.BILINEAR)
        error = np.asarray(full, np.float64).transpose(2, 0, 1) - images.images[i]
        found.append(10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9)))
    return float(np.mean(found))


def measure(folder: Path, cache: Path, size: tuple[int, int], px: int, rounds: int) -> list[dict[str, Any]]:
    count = sum(1 for path in folder.rglob("*.jpg") if path.read_bytes())
    loader = peer(folder, px)
    last: list[ImageSet] = []

    def first() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        images = build_cache(open_data(folder), px, cache_dir=cache)
        epoch(images)
        last[:] = [images]

    def second() -> None:
        epoch(build_cache(open_data(folder), px, cache_dir=cache))

    def theirs() -> None:
        total = sum(len(batch) for batch, _ in loader)
        assert total == count

    timer = Timer(count)
    calls = {"ours": first, "torchvision": theirs}
    found = alternating({name: lambda n=name, c=call: timer.rate(n, c) for name, call in calls.items()}, rounds)
    again = {"ours": [timer.rate("second", second) for _ in range(rounds)], "torchvision": found["torchvision"]}
    data = f"{count:,} JPEGs of {size[0]}{f'x{size[1]}' if size[1] != size[0] else ''} px to {px} px"
    decibel = quality(folder, last[0], px)
    size_kb = sum(path.stat().st_size for path in folder.rglob("*.jpg")) / count / 1024
    return [
        ratio_row("loading", data, "first epoch over ImageFolder", found, "torchvision", file_kb=size_kb),
        ratio_row("loading", data, "first epoch, processor time", timer.processor, "torchvision"),
        ratio_row("loading", data, "second epoch over ImageFolder", again, "torchvision"),
        {"method": "loading", "data": data, "score": "likeness to a full decode", "unit": "dB PSNR",
         "values": [decibel], "summary": False},
    ]  # fmt: skip


def measured(text: str) -> tuple[int, int]:
    """Width and height of 500x375."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--size", type=measured, nargs="+", default=[(256, 256), (500, 375), (512, 512)])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pillow", action="store_true", help="without simplejpeg; writes speed_loading_pillow.json")
    arguments = parser.parse_args()
    if arguments.pillow:
        jpeg.simplejpeg = lambda: None  # type: ignore[assignment]
    library = jpeg.simplejpeg()
    versions = {"pillow": PIL.__version__, "simplejpeg": library.__version__ if library else "none"}
    rows: list[dict[str, Any]] = []
    for size in arguments.size:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "pictures"
            write_folder(folder, arguments.pictures, size)
            rows += measure(folder, Path(work) / "cache", size, arguments.px, arguments.rounds)
        name = "speed_loading_pillow" if arguments.pillow else "speed_loading"
        write(name, rows, versions=versions, rounds=arguments.rounds, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
