"""How near each cut comes to what this machine can do at most: a floor of its time from operations and bytes.

    python benchmarks/roofline.py [--sides 30 60] [--rounds 5] [--cpu-time]

Measured peaks: matrix products of 2048 x 2048 in float32 and bf16, and copying (read and write) arrays of 8 MB and of 256 MB. Floor of
a cut: its matrix products at the peak of their precision, plus every byte that it must read or write once at the rate of
copying an array as large as its largest. A floor is of the way we compute, not of the task: without compiled loops LOST needs
three products of bf16 halves for exact signs, with them one. `share` is floor over time; `most` is how many times faster than the
official formula the floor would be, so where `most` is below the target, no better code reaches it on this machine.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from measuring import seconds, use_cpu_time, write
from selftaught.nets import compiled, positive_products
from speed_choices import heavy_calls
from speed_cuts import NAMES, PICTURES, pair

WIDTH = 384
SMALL_BYTES, LARGE_BYTES = 8 * 2**20, 256 * 2**20
PIXEL_BYTES = 126
"""Bilateral solver, per pixel: 3 picture, 12 + 12 colours out and in, 8 + 16 numbers of cells out and in twice, 4 + 16 cells of
pixels out and in twice, 1 + 1 table, 8 + 8 target, 8 output, 8 + 8 + 8 + 5 the check of the overlap."""


def peaks(rounds: int) -> dict[str, float]:
    """Best of some rounds: FLOP/s by precision, bytes per second of copies by size."""
    found: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        call, flops = heavy_calls(dtype)["products"]
        call()
        found[name] = flops / min(seconds(call) for _ in range(rounds))
    for name, size in (("small", SMALL_BYTES), ("large", LARGE_BYTES)):
        source = torch.zeros(size, dtype=torch.uint8)
        target = source.clone()
        found[name] = 2 * size / min(seconds(lambda a=source, b=target: b.copy_(a)) for _ in range(3 * rounds))
    return found


def work(name: str, side: int, call: Any) -> dict[str, float]:
    """Operations by precision, and bytes: all of them, and of the largest array."""
    n = side * side
    if name == "bilateral solver":
        return {"fp32": 0.0, "bf16": 0.0, "bytes": PIXEL_BYTES * 64.0 * n, "largest": 8 * 64.0 * n}
    features = 4.0 * n * WIDTH
    if name == "lost":
        bf16 = positive_products.tiles_bf16()
        one = bf16 and compiled.is_there()
        height = positive_products.block_rows(n)
        pairs = sum(min(height, n - top) * (n - top) for top in range(0, n, height))
        flops = 2.0 * pairs * WIDTH
        if one:  # features in twice, their halves out and in, products out and in
            return {"fp32": 0.0, "bf16": flops, "bytes": features * 3 + 4.0 * pairs, "largest": features}
        # Features in, rows out and in, unit rows out and in; the halves (h, l, h, h) out and in.
        moved = features * 5 + (2 * 8.0 * n * WIDTH if bf16 else 0)
        return {"fp32": 0.0 if bf16 else flops, "bf16": 3 * flops if bf16 else 0.0, "bytes": moved, "largest": 8.0 * n * WIDTH}
    with FlopCounterMode(display=False) as counter:
        call()
    flops = float(counter.get_total_flops())
    passes = round((flops - 2.0 * n * n * WIDTH) / (4.0 * n * n))  # products of the matrix with two vectors
    # The matrix: out, once or thrice in and out for its entries (0 or 1; clamped, its largest, divided), in for two degrees, in per pass.
    entries = 1 + 2 + 2 if name == "tokencut" else 1 + 2 + 1 + 2 + 2
    return {"fp32": flops, "bf16": 0.0, "bytes": features * 5 + 4.0 * n * n * (entries + passes), "largest": 4.0 * n * n}


def row(name: str, side: int, peak: dict[str, float], rounds: int) -> dict[str, Any]:
    """The share of the floor that a cut reaches, with what the floor is made of."""
    ours, theirs, agree = pair(name, side, 0)
    assert agree(ours(), theirs()), f"{name}, side {side}: the answers differ"
    count = PICTURES.get(name, 1)
    official = min(seconds(theirs) for _ in range(rounds if side < 40 else 1)) / count
    needed = work(name, side, ours)
    products = needed["fp32"] / peak["fp32"] + needed["bf16"] / peak["bf16"]
    memory = needed["bytes"] / peak["small" if needed["largest"] < 2 * SMALL_BYTES else "large"]
    spent = min(seconds(ours) for _ in range(3 * rounds)) / count
    floor = products + memory
    return {
        "method": name, "data": f"{8 * side} px" if name == "bilateral solver" else f"{side * side:,} patches",
        "score": "share of the roofline", "unit": "share", "values": [floor / spent], "summary": False,
        "baselines": {"ms": 1e3 * spent, "floor ms": 1e3 * floor, "of it products ms": 1e3 * products,
                      "memory ms": 1e3 * memory, "official ms": 1e3 * official, "most": official / floor},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[30, 60])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, for one thread on a machine that is busy")
    arguments = parser.parse_args()
    clock = use_cpu_time() if arguments.cpu_time else "wall clock"
    peak = peaks(arguments.rounds)
    words = {"fp32": "products in fp32, GFLOP/s", "bf16": "products in bf16, GFLOP/s"}
    words |= {"small": "copy of 8 MB, GB/s", "large": "copy of 256 MB, GB/s"}
    rows: list[dict[str, Any]] = [
        {"method": "machine", "data": "best of all rounds", "score": text, "values": [peak[key] / 1e9], "summary": False}
        for key, text in words.items()
    ]
    for name in arguments.names:
        for side in arguments.sides:
            rows.append(row(name, side, peak, arguments.rounds))
            write("roofline", rows, rounds=arguments.rounds, clock=clock)


if __name__ == "__main__":
    main()
