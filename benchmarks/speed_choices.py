"""What each automatic choice gives: attention kernel, autocast, memory format, fused optimiser; and what this machine can do at most.

    python benchmarks/speed_choices.py [--rounds 3] [--methods simclr dino mae]

One training step (prepare, loss, backward, optimiser) of each method at size small (simclr and dino at the sizes of speed_training.py)
under every plan of `core/tune.py`, all plans taking turns; the first is the plain one: float32, fused attention,
contiguous memory, fused AdamW. Then the roofline: the largest rate of matrix products in float32 and bf16 (2048 x 2048), of the
3x3 convolutions of a ResNet, and of copying 256 MB; and the share of it that the best plan's step reaches, counting
the multiplications of matrix products and convolutions with torch's FlopCounterMode.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from measuring import alternating, ratio, seconds, write
from selftaught.core.config import override
from selftaught.core.seeds import seed_all
from selftaught.core.tune import Plan, candidates, describe
from selftaught.data.sources import open_data
from selftaught.method import Progress
from selftaught.registry import load_class

SETTINGS = {
    "simclr": ["image_px=32", "view_px=0", "backbone=resnet18", "patch_px=4", "batch_size=128", "rotation=0"],
    "dino": ["image_px=64", "local_px=32", "local_crops=4", "backbone=vit-192x4", "batch_size=64", "prototypes=2048"],
    "mae": [],
}
SIDE = 2048
COPY_BYTES = 256 * 2**20


class Step:
    """One training step of a method on made noise pictures; weights move, which changes no time."""

    def __init__(self, method: str) -> None:
        cls = load_class(method)
        seed_all(0, 0, 0)
        config = override(cls.sizes["small"], SETTINGS[method])
        self.method = cls(config).train()
        self.player_name, self.player = next(iter(self.method.players().items()))
        self.batch = config.batch_size
        source, px = open_data("sample:things:256", "train"), config.image_px
        pictures = [source.resized(i % len(source), px)[0] for i in range(self.batch)]
        self.pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """The player's own, or the same without the fused kernel."""
        made = self.player.build_optimizer()
        for group in made.param_groups:
            if "fused" in group:
                group["fused"] = fused
                group["foreach"] = None if fused else True
        return made

    def __call__(self, plan: Plan, optimizer: torch.optim.Optimizer) -> None:
        seed_all(0, 0, 1)
        batch = self.method.prepare(self.pixels, np.arange(self.batch))
        with plan.autocast():
            loss, _ = self.method.loss(batch, self.player_name, Progress(10, 100))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.method.after_step(Progress(10, 100))


def choices(method: str, rounds: int) -> tuple[list[dict[str, Any]], float, str]:
    """A row per plan with its gain over the plain one; the seconds and the words of the fastest."""
    step = Step(method)
    calls: dict[str, Callable[[], float]] = {}

    def timed(plan: Plan, optimizer: torch.optim.Optimizer) -> float:
        plan.apply(step.method)
        step(plan, optimizer)  # the first call after a change pays for it
        return 1 / seconds(lambda: step(plan, optimizer))

    fused = step.optimizer(True)
    for plan in candidates(step.method):
        calls[describe(plan)] = lambda p=plan: timed(p, fused)
    calls["fp32, optimiser not fused"] = lambda: timed(Plan("fp32"), step.optimizer(False))
    found = alternating(calls, rounds)
    rows = []
    for name, rates in found.items():
        mean, interval = ratio(rates, found["fp32"])
        rows.append(
            {"method": method, "data": f"one step, batch {step.batch}", "score": f"{name}: gain over fp32", "unit": "times",
             "values": [mean], "ci95": interval, "baselines": {"ms": 1000 / float(np.mean(rates))}, "summary": False}
        )  # fmt: skip
    best = max(found, key=lambda name: np.mean(found[name]))
    with FlopCounterMode(display=False) as counter:
        Plan("fp32", "plain").apply(step.method)  # the counter sees matrix products, not the fused kernel on a CPU
        step(Plan("fp32"), fused)
    gflops = counter.get_total_flops() * float(np.max(found[best])) / 1e9
    return rows, gflops, best


@torch.no_grad()
def heavy_calls(dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], int]]:
    """A matrix product and a 3x3 convolution, each with its number of operations."""
    a, b = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)
    weight = torch.randn(128, 128, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(32, 128, 32, 32).to(dtype).to(memory_format=torch.channels_last)
    return {
        "products": (lambda: a @ b, 2 * SIDE**3),
        "convolution": (lambda: torch.nn.functional.conv2d(x, weight, padding=1), 2 * 32 * 32 * 32 * 128 * 128 * 9),
    }


def roofline(rounds: int) -> dict[str, float]:
    """Best of some rounds: GFLOP/s of products and convolutions by precision, GB/s of a copy (read and write)."""
    found: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for what, (call, flops) in heavy_calls(dtype).items():
            call()
            found[f"{name} {what}, GFLOP/s"] = flops / min(seconds(call) for _ in range(3 * rounds)) / 1e9
    source = torch.empty(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    found["memory copy, GB/s"] = 2 * COPY_BYTES / min(seconds(lambda: target.copy_(source)) for _ in range(3 * rounds)) / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    peaks = roofline(arguments.rounds)
    rows: list[dict[str, Any]] = [
        {"method": "machine", "data": "best of all rounds", "score": name, "values": [value], "summary": False}
        for name, value in peaks.items()
    ]
    for method in arguments.methods:
        found, gflops, best = choices(method, arguments.rounds)
        peak = peaks[f"{'bf16' if 'bf16' in best else 'fp32'} products, GFLOP/s"]
        rows += found
        rows.append(
            {"method": method, "data": f"one step, {best}", "score": "share of the peak of products", "unit": "share",
             "values": [gflops / peak], "baselines": {"GFLOP/s of the step": gflops, "GFLOP/s of the peak": peak},
             "summary": False}
        )  # fmt: skip
        write("speed_choices", rows, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
