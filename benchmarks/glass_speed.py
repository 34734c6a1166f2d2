"""Clips per second that GLASS trains at, against a plain implementation of the same network, in one run.

    python benchmarks/glass_speed.py

The plain one takes the same weights and gives the same loss, but one clip after the other, in fp32 and channels-first memory, as a first
implementation would be. Ours takes whole batches under the plan that was measured. The two are timed in turns, so that other work on
the machine slows both; the processor time of this process is counted and not the clock. Also written: a profile of one step by part.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import selftaught
from selftaught.control.glass import GLASS
from selftaught.control.glass_gma import first_teacher, move
from selftaught.core.config import write_json
from selftaught.core.tune import Plan, choose
from selftaught.method import Progress

RESULTS = Path(__file__).resolve().parent / "results"
PHASES = {"warm-up": Progress(100, 2000), "all parts": Progress(1500, 2000)}


def spent(work: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def plain_step(model: GLASS, batch: Tensor, progress: Progress) -> None:
    """Forward and backward, clip by clip."""
    for clip in batch:
        (model.loss(clip[None], "model", progress)[0] / len(batch)).backward()  # type: ignore[no-untyped-call]


def our_step(model: GLASS, batch: Tensor, progress: Progress, plan: Plan) -> None:
    """Forward and backward of a whole batch."""
    with plan.autocast():
        loss = model.loss(batch, "model", progress)[0]
    loss.backward()  # type: ignore[no-untyped-call]


def build(size: str) -> GLASS:
    torch.manual_seed(0)
    return GLASS(GLASS.sizes[size]).train()


def parts_of(model: GLASS, batch: Tensor) -> dict[str, float]:
    """Processor seconds of the parts of a step, forward and backward."""
    clip = batch[:, : model.frames_at(1.0)]
    frames = clip.flatten(0, 1)
    layers = model.gma(clip)
    moved = move(layers, False)
    with torch.no_grad():
        fixed, fixed_moved = type(layers)(*(x.detach() for x in layers)), type(moved)(*(x.detach() for x in moved))
    c = model.config
    work: dict[str, Callable[[], object]] = {
        "first teacher": lambda: first_teacher(clip, c.ground_reach_px, c.teach_threshold),
        "masks": lambda: model.gma.masks(frames).sum().backward(),  # type: ignore[no-untyped-call]
        "inpainting": lambda: model.gma.inpaint(frames, torch.rand_like(frames[:, :1])).sum().backward(),  # type: ignore[no-untyped-call]
        "one shift network": lambda: model.gma.foreground_shift(frames[1:], frames[:-1]).sum().backward(),  # type: ignore[no-untyped-call]
        "states of all frames": lambda: model.lma.state(frames).sum().backward(),  # type: ignore[no-untyped-call]
        "LMA in all": lambda: model.local_loss(fixed, fixed_moved, 1, 1.0)[0].backward(),  # type: ignore[no-untyped-call]
    }
    found = {}
    for name, one in work.items():
        one()
        found[name] = min(spent(one) for _ in range(3))
        model.zero_grad(set_to_none=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    ours, plain = build(a.size), build(a.size)
    c = ours.config
    batch = torch.rand(c.batch_size, c.window, 3, c.image_px, c.width_px) * 2 - 1
    plan = choose(ours, lambda p: our_step(ours, batch, PHASES["all parts"], p))
    rows = []
    for name, progress in PHASES.items():
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(a.repeats + 1):  # the first of each warms up
            seconds["ours"].append(spent(lambda p=progress: our_step(ours, batch, p, plan)))  # type: ignore[misc]
            seconds["plain"].append(spent(lambda p=progress: plain_step(plain, batch, p)))  # type: ignore[misc]
            ours.zero_grad(set_to_none=True)
            plain.zero_grad(set_to_none=True)
        rates = {k: [c.batch_size / s for s in v[1:]] for k, v in seconds.items()}
        rows.append({
            "method": "glass", "data": f"{name}, random frames", "score": "clips per processor second in training", "unit": "clips/s",
            "values": [float(np.median(rates["ours"]))], "ci95": [min(rates["ours"]), max(rates["ours"])],
            "baselines": {"plain": float(np.median(rates["plain"]))}, "summary": False,
        })  # fmt: skip
        print(rows[-1], flush=True)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work", "plan": asdict(plan),
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__}, "rows": rows,
        "seconds_of_parts": parts_of(ours, batch),
    }  # fmt: skip
    print(result["plan"], result["seconds_of_parts"])
    write_json(RESULTS / "glass_speed.json", result)


if __name__ == "__main__":
    main()
