"""Train GLASS at size `small` on w-sprites with several seeds, with its controls, and write benchmarks/results/glass.json.

    selftaught data make w-sprites runs/w-sprites --clips 3000 --seed 0
    python benchmarks/glass.py runs/w-sprites --runs runs/bench --seeds 0 1 2
    python benchmarks/glass.py runs/w-sprites --runs runs/bench --seeds 0 --controls --steps 400
    python benchmarks/glass.py runs/flare --runs runs/bench-flare --world flare --seeds 0     # glass_flare.json, without pictures

Test clips hold other figures and other grounds than those that are learned from. Trainings that were stopped continue; finished ones
are not repeated. Controls: `shuffled` (the frames of every training window in random order), `no size prior` (its weight 0), `no detach`
(the second stage moves the first), `no actions` (the dynamics are told nothing: what the actions are worth). Those of the layers alone ask
what masks come from; they train the first stage only, for a third of the steps, and only layers and shifts are scored: `layers alone`
(nothing else changed), `no teacher`, `neither teacher nor size prior`, `mixed` (each frame of a window is of another clip). The figures of
the talk (layers, global actions, local actions) are the pictures of the first seed's run.
"""

from __future__ import annotations

import argparse
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import selftaught
from seed_runs import one_run, rows_of
from selftaught.control.glass import GLASS
from selftaught.control.glass_scores import layer_scores, parse_all, shift_scores
from selftaught.control.glass_slow import figures
from selftaught.core.config import read_json, write_json
from selftaught.data.clip_windows import WindowSet
from selftaught.evaluate import open_clips_for
from selftaught.loading import load_method
from selftaught.nets.video_blocks import to_px
from selftaught.report.films import sheet
from selftaught.train import train

RESULTS = Path(__file__).resolve().parent / "results"
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "methods" / "glass"
MAIN = ("mask_iou", "global_direction", "ami_stay", "psnr_ar_8")
SHOWN = (
    *MAIN[:2], "global_shift_error_px", "ground_shift_error_px", "stay_recognised", "ami", *MAIN[2:3], "nmi", "nmi_stay",
    "homogeneity_stay", "completeness_stay", "delta_mse", "delta_acc", "code_perplexity", "dead_codes", "consistency", "effect_separation",
    *(f"psnr_{regime}_{h}" for regime in ("ar", "tf") for h in range(1, 9)), "difference_psnr_ar", "ssim_ar_8", "ssim_tf_8",
    "centre_error_ar_px", "centre_error_tf_px",
)  # fmt: skip
CONTROLS: dict[str, list[str]] = {
    "shuffled": [], "no size prior": ["w_size=0.0"], "no detach": ["detach=false"], "no actions": ["actions=none"],
}  # fmt: skip
LAYER_CONTROLS: dict[str, list[str]] = {
    "layers alone": [], "no teacher": ["teach_frac=0.0"], "neither teacher nor size prior": ["teach_frac=0.0", "w_size=0.0"], "mixed": [],
}  # fmt: skip


def shuffled(clips: Tensor, indices: Any) -> Tensor:
    """The frames of every window in random order: nothing lasts in them."""
    orders = [np.random.default_rng(int(i)).permutation(clips.shape[1]) for i in np.asarray(indices)]
    return torch.stack([clip[torch.from_numpy(order)] for clip, order in zip(clips, orders, strict=True)])


def mixed(clips: Tensor, indices: Any) -> Tensor:
    """Frame t of window b is that of window b + t of the batch: nothing moves in them."""
    B, T = clips.shape[:2]
    return clips[(torch.arange(B)[:, None] + torch.arange(T)) % B, torch.arange(T)]


CHANGES = {"shuffled": shuffled, "mixed": mixed}


def control_run(name: str, data: str, runs: Path, steps: int | None, limit: int | None) -> dict[str, Any]:
    """One control with seed 0. Training windows may be changed for it, test clips are not."""
    run, layers = runs / f"glass-{name.replace(' ', '-')}", name in LAYER_CONTROLS
    settings = [*LAYER_CONTROLS[name], "warm_frac=1.0"] if layers else CONTROLS[name]
    steps = (steps or GLASS.sizes["small"].steps) // 3 if layers else steps
    batch, change = WindowSet.batch, CHANGES.get(name)
    if change is not None:
        WindowSet.batch = lambda self, indices: change(batch(self, indices), indices)  # type: ignore[method-assign]
    try:
        train("glass", data, run, size="small", seed=0, steps=steps, set=settings)
    finally:
        WindowSet.batch = batch  # type: ignore[method-assign]
    return scored_layers(data, run, limit) if layers else one_run("glass", data, run, 0, settings, steps, limit)


def scored_layers(data: str, run: Path, limit: int | None) -> dict[str, Any]:
    """Scores of masks and shifts alone, kept in the run folder."""
    path = run / "scores.json"
    if not path.exists():
        model = load_method(run)
        test = open_clips_for(data, model, limit, 0)
        assert test.truth is not None
        found = parse_all(model, test)
        scores = layer_scores(test, test.truth, found) | shift_scores(test, test.truth, found)
        write_json(path, {"scores": {k: {"value": score.value} for k, score in scores.items()}})
    return dict(read_json(path))


@torch.no_grad()
def sorted_figures(run: Path, data: str, clips: int = 60, shown: int = 16) -> Any:
    """A picture of what codes stand for: each row has agents of test clips, cut out where they do not move, that got one code."""
    model = load_method(run)
    test = open_clips_for(data, model, clips, 0)
    frames = test.batch(np.arange(len(test.windows)))
    parsed = model.parse(frames)
    still = to_px(parsed.actions.shifts, *frames.shape[-2:]).norm(dim=-1) < 1
    foregrounds, masks = parsed.foregrounds[:, 1:].flatten(0, 1), parsed.masks[:, 1:, None].flatten(0, 1)
    cut = figures(foregrounds, masks, model.config.figure_px)
    cut = cut[:, :3] + 0.5 * (1 - cut[:, 3:])
    codes = parsed.actions.codes.masked_fill(~still, -1).flatten()
    rows = torch.ones(model.config.codes, shown, *cut.shape[1:])
    for k in range(len(rows)):
        mine = torch.nonzero(codes == k).flatten()
        mine = mine[torch.linspace(0, len(mine) - 1, min(shown, len(mine))).long()]
        rows[k, : len(mine)] = cut[mine]
    return sheet(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="other than the size's own")
    parser.add_argument("--limit", type=int, help="test clips that are scored")
    parser.add_argument("--controls", nargs="*", choices=[*CONTROLS, *LAYER_CONTROLS], help="which; all when none is named")
    parser.add_argument("--world", default="w-sprites", help="name of the world that the data are of")
    a = parser.parse_args()
    runs = [one_run("glass", a.data, a.runs / f"glass-{seed}", seed, [], a.steps, a.limit) for seed in a.seeds]
    names = [] if a.controls is None else a.controls or [*CONTROLS, *LAYER_CONTROLS]
    controls = {name: control_run(name, a.data, a.runs, a.steps, a.limit) for name in names}
    first = a.world == "w-sprites"
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
        "seconds": sum(run["seconds"] for run in runs), "seeds": a.seeds,
        "rows": rows_of("glass", SHOWN, MAIN if first else (), runs, controls, a.world),
    }  # fmt: skip
    write_json(RESULTS / ("glass.json" if first else f"glass_{a.world}.json"), result)
    if first:  # pictures of other worlds are of figures that are not ours to ship
        FIGURES.mkdir(parents=True, exist_ok=True)
        for picture in sorted((a.runs / f"glass-{a.seeds[0]}" / "pictures").glob("*.png")):
            shutil.copy(picture, FIGURES / picture.name)
        rollouts = Image.open(FIGURES / "rollouts.png")
        rollouts.crop((0, 0, rollouts.width, rollouts.height * 2 // 3)).save(FIGURES / "rollouts.png", optimize=True)  # four clips of six
        Image.fromarray(sorted_figures(a.runs / f"glass-{a.seeds[0]}", a.data)).save(FIGURES / "codes.png")
    for row in result["rows"]:
        print(f"{row['score']}: {', '.join(f'{v:.3f}' for v in row['values'])}; {row['baselines']}", flush=True)


if __name__ == "__main__":
    main()
