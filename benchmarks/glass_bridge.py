"""GLASS on real clips of a robot arm with true actions: what its codes and motions say of the arm; writes glass_bridge.json.

    python benchmarks/glass_bridge.py bridge_mini --runs runs/bridge

The folder holds train.tar and test.tar of episodes (`ep07/view0/03.jpg`, `ep07/episode.json` with an action per step): 42 and 9 clips of
ten frames from three cameras. Training sees frames only. Then, for each camera, a linear map from the parsed shift and code of a
transition to the true change of the hand's position is fitted on the training episodes and scored on the others: the share of variance that
it explains, below 0 where it knows less than the mean. Beside it the same with transitions of other moments, and what the size of the
difference of two frames explains.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import selftaught
from selftaught.core.config import write_json
from selftaught.loading import load_method
from selftaught.measure.score import bootstrap_ci
from selftaught.train import train

RESULTS = Path(__file__).resolve().parent / "results"
VIEWS, STEPS, RIDGE = 3, 10, 1.0
SETTINGS = ["image_px=64", "width_px=64", f"window={STEPS}"]


def episodes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames (E, VIEWS, STEPS, H, W, 3) uint8 and changes of the hand's position (E, STEPS - 1, 3) of one tar."""
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    names = sorted({name.split("/")[0] for name in files})
    clips = [
        [[np.asarray(Image.open(io.BytesIO(files[f"{e}/view{v}/{t:02d}.jpg"]))) for t in range(STEPS)] for v in range(VIEWS)] for e in names
    ]
    told = [json.loads(files[f"{e}/episode.json"])["action"] for e in names]
    return np.array(clips), np.array(told)[:, :-1, :3]


def read(method: Any, clips: np.ndarray) -> np.ndarray:
    """(E, VIEWS, STEPS - 1, F) what the model parses: shift, and which code."""
    E = len(clips)
    frames = torch.from_numpy(clips).flatten(0, 1).permute(0, 1, 4, 2, 3).float() / 255
    with torch.no_grad():
        actions = method.parse(frames).actions
    codes = torch.nn.functional.one_hot(actions.codes, method.config.codes).float()
    return torch.cat([20 * actions.shifts, codes], 2).unflatten(0, (E, VIEWS)).double().numpy()


def changes(clips: np.ndarray) -> np.ndarray:
    """(E, VIEWS, STEPS - 1, 1) mean absolute differences of neighbouring frames, scaled."""
    return np.abs(np.diff(clips.astype(float), axis=2)).mean((3, 4, 5))[..., None] / 5


def explained(fit: np.ndarray, told: np.ndarray, held: np.ndarray, truth: np.ndarray, other: bool = False) -> tuple[float, np.ndarray]:
    """Share of variance of `truth` (E, T, 3), over all cameras; and squared errors with their scale (E, 2) per episode."""
    rows = np.zeros((len(truth), 2))
    for v in range(VIEWS):
        x, y = fit[:, v].reshape(-1, fit.shape[-1]), told.reshape(-1, 3)
        if other:
            y = y[np.random.default_rng(0).permutation(len(y))]
        middle, mean = x.mean(0), y.mean(0)
        map_ = np.linalg.solve((x - middle).T @ (x - middle) + RIDGE * np.eye(x.shape[1]), (x - middle).T @ (y - mean))
        guess = (held[:, v] - middle) @ map_ + mean
        rows[:, 0] += ((guess - truth) ** 2).sum((1, 2))
        rows[:, 1] += ((mean - truth) ** 2).sum((1, 2))
    return float(1 - rows[:, 0].sum() / rows[:, 1].sum()), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/bridge"))
    a = parser.parse_args()
    a.runs.mkdir(parents=True, exist_ok=True)
    (clips, told), (held, truth) = (episodes(a.data / f"{part}.tar") for part in ("train", "test"))
    np.savez(a.runs / "clips.npz", clips=clips.reshape(-1, *clips.shape[2:]))
    run = train("glass", str(a.runs / "clips.npz"), a.runs / "glass", size="small", set=SETTINGS)
    method = load_method(run)
    seen, unseen = read(method, clips), read(method, held)
    value, rows = explained(seen, told, unseen, truth)
    interval = bootstrap_ci(rows, statistic=lambda r: 1 - r[:, 0].sum() / r[:, 1].sum())
    beside = {
        "other moments": explained(seen, told, unseen, truth, other=True)[0],
        "size of the difference": explained(changes(clips), told, changes(held), truth)[0],
        "on the training episodes": explained(seen, told, seen, told)[0],
    }
    used = unseen[..., 2:].reshape(-1, method.config.codes).mean(0)
    note = f"{len(truth)} test episodes from {VIEWS} cameras; codes used {int((used > 0.02).sum())} of {len(used)}"
    row = {
        "method": "glass", "data": f"bridge_mini, {method.config.steps} steps", "score": "hand_motion_explained",
        "unit": "share of variance",
        "values": [float(value)], "ci95": [float(x) for x in interval], "baselines": beside, "note": note, "summary": False,
    }  # fmt: skip
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__}, "rows": [row],
    }  # fmt: skip
    write_json(RESULTS / "glass_bridge.json", result)
    print(f"{row['score']}: {value:.3f} {row['ci95']}; {beside}; {note}")


if __name__ == "__main__":
    main()
