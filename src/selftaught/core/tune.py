"""Precision, attention kernel and memory format, chosen by measuring a training step on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import nn

from selftaught.core.launch import slowest
from selftaught.core.shard import is_sharded
from selftaught.nets.vit import Attention

M = TypeVar("M", bound=nn.Module)
HOPELESS = 8.0
"""bf16 that takes this many times as long as the best plan, and more than a second, is tried no further."""


@dataclass(frozen=True)
class Plan:
    """How a step is computed; frozen in the run folder, so that a resumed run computes the same numbers."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 or bf16 (autocast)."""
    attention: Literal["fused", "plain"] = "fused"
    """fused (one kernel) or plain (two matrix products)."""
    channels_last: bool = False
    """Whether convolution weights and pictures keep channels last in memory."""
    reason: str = "default"
    """Why this was chosen, for people."""

    def apply(self, module: nn.Module) -> None:
        """Set a module up for the plan."""
        for part in module.modules():
            if isinstance(part, Attention):
                part.kernel = self.attention
        if has_convolutions(module):
            module.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)  # type: ignore[call-overload]

    def autocast(self, device: str = "cpu") -> torch.autocast:
        """The context in which losses are computed."""
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")


def has_convolutions(module: nn.Module) -> bool:
    """Whether the memory format can matter, and be chosen: FSDP keeps parameters in their plain order."""
    return any(isinstance(m, nn.Conv2d) for m in module.modules()) and not any(map(is_sharded, module.parameters()))


def fast_memory(module: M) -> M:
    """Keep channels last in a network that is only read: several times faster on CPUs, the same numbers up to rounding."""
    if has_convolutions(module):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def candidates(module: nn.Module) -> list[Plan]:
    """All plans that differ for this module: two precisions, times two kernels and two memory formats where these matter."""
    plans = [Plan("fp32"), Plan("bf16")]
    if any(isinstance(m, Attention) for m in module.modules()):
        plans += [replace(p, attention="plain") for p in plans]
    if has_convolutions(module):
        plans += [replace(p, channels_last=True) for p in plans]
    return plans


def choose(module: nn.Module, step: Callable[[Plan], None], repeats: int = 2) -> Plan:
    """Measure a step under the plans and keep the fastest; bf16 must win by a tenth to be taken.

    Channels last is tried, in each precision, with the attention that was the faster one there: six trials at most, not eight. Where
    bf16 is hopelessly slow (processors that only emulate it take ten times as long), its other plans are left out.

    Args:
        module: what the step trains; set to each plan in turn.
        step: runs forward and backward once under a plan, changing nothing that lasts.
        repeats: timed calls per plan after one to warm up; the quickest counts.
    """
    seconds: dict[Plan, float] = {}
    hopeless: set[str] = set()
    for plan in candidates(module):
        if plan.precision in hopeless or (plan.channels_last and any(_attention_lost(plan, other, seconds) for other in seconds)):
            continue
        plan.apply(module)
        step(plan)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            step(plan)
            times.append(slowest(time.perf_counter() - begin))
            if seconds and times[-1] > 2 * min(seconds.values()):
                break
        seconds[plan] = min(times)
        # Not the step to warm up: on GPUs it also loads kernels, which may take seconds.
        if seconds[plan] > max(HOPELESS * min(seconds.values()), 1.0):
            hopeless |= {plan.precision} - {"fp32"}
    best_fp32 = min((p for p in seconds if p.precision == "fp32"), key=lambda p: seconds[p])
    best = min(seconds, key=lambda p: seconds[p])
    if best.precision == "bf16" and seconds[best] > 0.9 * seconds[best_fp32]:
        best = best_fp32
    table = ", ".join(f"{describe(p)} {1e3 * s:.0f} ms" for p, s in sorted(seconds.items(), key=lambda x: x[1]))
    best = replace(best, reason=f"fastest of the step times measured: {table}")
    best.apply(module)
    return best


def _attention_lost(plan: Plan, other: Plan, seconds: dict[Plan, float]) -> bool:
    """Whether the other attention kernel was faster than the plan's, in its precision and contiguous memory; fused wins a tie."""
    if other.channels_last or other.precision != plan.precision or other.attention == plan.attention:
        return False
    own = seconds[replace(plan, channels_last=False)]
    return seconds[other] < own or (seconds[other] == own and other.attention == "fused")


def describe(plan: Plan) -> str:
    """The plan in a few words, e.g. "bf16, plain attention, channels last"."""
    words: list[str] = [plan.precision]
    words += ["plain attention"] if plan.attention == "plain" else []
    words += ["channels last"] if plan.channels_last else []
    return ", ".join(words)
