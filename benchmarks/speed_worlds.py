"""Speed of the world w-sprites at 48x64 on one core: frames per second, and what drawing a figure costs once.

    OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/speed_worlds.py [--clips 200] [--rounds 3]

The processor's time counts. `frames drawn` is script, ground and pasting of clips whose figures are drawn already; `with
all figures` adds the drawing of 160 figures, divided over a set of 3,000 clips of 12 frames.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import measuring
from selftaught.worlds import making, puppets
from selftaught.worlds.w_sprites import SIZES, render, script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    clock = measuring.use_cpu_time()
    recipe = dataclasses.replace(SIZES["small"], identities=20)
    figures = [1000 * measuring.seconds(lambda i=i: puppets.puppet_tiles(i, recipe.sprite_px)) for i in range(recipe.identities)]
    figure_ms = sum(figures) / len(figures)
    for index in range(8):
        render(recipe, script(recipe, 0, index))  # the photographs are read
    drawn, whole, written = [], [], []
    with TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            indices = range(1000 * (turn + 1), 1000 * (turn + 1) + args.clips)
            seconds = measuring.seconds(lambda indices=indices: [render(recipe, script(recipe, 0, i)) for i in indices])
            drawn.append(args.clips * recipe.frames / seconds)
            per_frame = 1 / drawn[-1] + SIZES["small"].identities * figure_ms / 1000 / (3000 * recipe.frames)
            whole.append(1 / per_frame)
            frames = render(recipe, script(recipe, 0, indices[0])).frames
            path = Path(folder) / "clip.mp4"
            written.append(20 * recipe.frames / measuring.seconds(lambda f=frames, p=path: [making.write_mp4(p, f) for _ in range(20)]))
    common = {"method": "w-sprites", "data": "48x64", "unit": "frames/s", "summary": False}
    rows = [
        {**common, "score": "frames drawn", "values": drawn}, {**common, "score": "with all figures", "values": whole},
        {**common, "score": "H.264 written", "values": written},
        {**common, "score": "drawing one figure", "unit": "ms", "values": [figure_ms]},
    ]  # fmt: skip
    measuring.write("speed_worlds", rows, clock=clock)


if __name__ == "__main__":
    main()
