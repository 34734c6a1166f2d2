"""Clips per second that GLASS trains at, against a plain implementation of the same network, in one run.

    python benchmarks/glass_speed.py

The plain one takes the same weights and gives the same losses (to 1e-4, which is checked before anything is timed), but one clip after the
other and within it one frame after the other, in fp32 and channels-first memory, as a first implementation would be. Ours takes whole
batches under the plan that was measured. The two are timed in turns, so that other work on the machine slows both; the processor time of
this process is counted and not the clock. Six kinds of steps are timed, and weighed by how often a training takes each. Also written: a
profile of a step by part.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import selftaught
from selftaught.control.glass import GLASS, GLASSConfig
from selftaught.control.glass_draw import local_loss, swapped
from selftaught.control.glass_gma import first_teacher
from selftaught.core.config import read_json, write_json
from selftaught.core.tune import Plan, choose
from selftaught.method import Progress

RESULTS = Path(__file__).resolve().parent / "results"
PHASES = {
    "warm-up": (Progress(60, 420), 0.2), "warm-up, looks gathered": (Progress(120, 420), 0.3),
    "all parts, frames shown": (Progress(261, 420), 0.25 / 3), "drawing alone, frames shown": (Progress(262, 420), 0.5 / 3),
    "all parts": (Progress(360, 420), 0.25 / 3), "drawing alone": (Progress(361, 420), 0.5 / 3),
}  # fmt: skip
"""Kinds of steps of size `small`, and the share of a training that each has."""


PLAIN = 2
"""Clips that the plain one is timed with: it takes one after the other, so that four times as many cost four times as much."""


def spent(work: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def one_by_one(work: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of batches of pictures that takes one picture after the other."""

    def each(*pictures: Tensor) -> Tensor:
        return torch.cat([work(*(p[i : i + 1] for p in pictures)) for i in range(len(pictures[0]))])

    return each


def pair_by_pair(work: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of clips that takes two frames after the other two."""

    def each(clip: Tensor) -> Tensor:
        return torch.cat([work(clip[:, t : t + 2]) for t in range(clip.shape[1] - 1)], 1)

    return each


def make_plain(model: GLASS) -> GLASS:
    """The same model, whose networks see one frame (or pair of frames) after the other."""
    model.gma.masks = one_by_one(model.gma.masks)  # type: ignore[method-assign]
    model.gma.inpaint = one_by_one(model.gma.inpaint)  # type: ignore[method-assign]
    model.lma.see = one_by_one(model.lma.see)  # type: ignore[method-assign]
    for shift in (model.gma.foreground_shift, model.gma.background_shift):
        shift.forward = pair_by_pair(shift.forward)  # type: ignore[method-assign]
    return model


def plain_step(model: GLASS, batch: Tensor, progress: Progress) -> float:
    """Forward and backward, clip by clip; the loss."""
    total = 0.0
    for clip in batch:
        loss = model.loss(clip[None], "model", progress)[0] / len(batch)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def same_losses(size: str, batch: Tensor) -> float:
    """Largest difference of the losses of both, in fp32, over the kinds of steps; without the two parts that draw numbers."""
    quiet = replace(GLASS.sizes[size], swap_frac=0.0, w_code=0.0)
    ours, plain = build(quiet), make_plain(build(quiet))
    worst = 0.0
    for progress, _ in PHASES.values():
        with torch.no_grad():
            loss = float(ours.loss(batch, "model", progress)[0])
        worst = max(worst, abs(loss - plain_step(plain, batch, progress)))
    if worst > 1e-4:
        raise SystemExit(f"the losses of both differ by {worst}")
    return worst


def our_step(model: GLASS, batch: Tensor, progress: Progress, plan: Plan) -> None:
    """Forward and backward of a whole batch."""
    with plan.autocast():
        loss = model.loss(batch, "model", progress)[0]
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def build(config: GLASSConfig) -> GLASS:
    """A model whose codes and first guess stand, of random looks."""
    torch.manual_seed(0)
    model = GLASS(config).train()
    for _ in range(2):
        model.gather_looks(torch.rand(config.batch_size, config.window, 3, config.image_px, config.width_px) * 2 - 1)
    model.after_step(Progress(419, 420))
    return model


def parts_of(model: GLASS, batch: Tensor, plan: Plan) -> dict[str, float]:
    """Processor seconds of the parts of a step under the plan, forward and backward."""
    clip = batch[:, : model.frames_at(1.0)]
    frames = clip.flatten(0, 1)
    with torch.no_grad():
        agents = model.gma.agents(clip)
        canvases = torch.cat([agents.foregrounds, agents.masks], 2).flatten(0, 1)
    c = model.config
    work: dict[str, Callable[[], object]] = {
        "first teacher": lambda: first_teacher(clip, c.ground_reach_px, c.teach_threshold),
        "masks": lambda: model.gma.masks(frames).sum().backward(),  # type: ignore[no-untyped-call]
        "inpainting": lambda: model.gma.inpaint(frames, torch.rand_like(frames[:, :1])).sum().backward(),  # type: ignore[no-untyped-call]
        "one shift network": lambda: model.gma.foreground_shift(clip).sum().backward(),
        "states of all frames": lambda: model.lma.see(canvases).sum().backward(),  # type: ignore[no-untyped-call]
        "LMA in all": lambda: local_loss(model, agents, 1, 1.0, swapped(model, batch, agents, 1))[0].backward(),  # type: ignore[no-untyped-call]
        "looks gathered": lambda: model.gather_looks(batch, agents.masks, 0),
    }
    found = {}
    for name, one in work.items():
        with plan.autocast():
            one()
            found[name] = min(spent(one) for _ in range(3))
        model.zero_grad(set_to_none=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    c = GLASS.sizes[a.size]
    batch = torch.rand(c.batch_size, c.window, 3, c.image_px, c.width_px) * 2 - 1
    worst = same_losses(a.size, batch[:PLAIN])
    print(f"losses differ by {worst:.1e} at most", flush=True)
    ours, plain = build(c), make_plain(build(c))
    plan = choose(ours, lambda p: our_step(ours, batch, PHASES["warm-up"][0], p), repeats=4)  # the step that a training measures
    plan.apply(ours)
    rows = []
    of_all = {"ours": 0.0, "plain": 0.0}
    for name, (progress, share) in PHASES.items():
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(a.repeats + 1):  # the first of each warms up
            seconds["ours"].append(spent(lambda p=progress: our_step(ours, batch, p, plan)))  # type: ignore[misc]
            few = spent(lambda p=progress: plain_step(plain, batch[:PLAIN], p))  # type: ignore[misc]
            seconds["plain"].append(few * c.batch_size / PLAIN)
            ours.zero_grad(set_to_none=True)
            plain.zero_grad(set_to_none=True)
        for k, v in seconds.items():
            of_all[k] += share * float(np.median(v[1:]))
        rates = {k: [c.batch_size / s for s in v[1:]] for k, v in seconds.items()}
        rows.append({
            "method": "glass", "data": f"{name}, random frames", "score": "clips per processor second in training", "unit": "clips/s",
            "values": [float(np.median(rates["ours"]))], "ci95": [min(rates["ours"]), max(rates["ours"])],
            "baselines": {"plain": float(np.median(rates["plain"]))}, "summary": False,
        })  # fmt: skip
        print(rows[-1], flush=True)
    rates = {k: c.batch_size / s for k, s in of_all.items()}
    rows.append({
        "method": "glass", "data": "a whole training", "score": "clips per processor second in training", "unit": "clips/s",
        "values": [rates["ours"]], "baselines": {"plain": rates["plain"]}, "summary": True,
        "note": f"{rates['ours'] / rates['plain']:.1f} times; steps weighed by their number",
    })  # fmt: skip
    print(rows[-1], flush=True)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work", "plan": asdict(plan),
        "losses_differ": worst, "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__}, "rows": rows,
        "seconds_of_parts": parts_of(ours, batch, plan),
    }  # fmt: skip
    path = RESULTS / "glass_speed.json"
    before = read_json(path).get("seconds_of_parts_before") if path.exists() else None
    result |= {"seconds_of_parts_before": before} if before else {}  # of the form that indexed, and drew frame by frame; it is gone
    print(result["plan"], result["seconds_of_parts"])
    write_json(path, result)


if __name__ == "__main__":
    main()
