"""The choice of precision, attention and memory format: which plans are tried, and that the fastest is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from selftaught.core import tune
from selftaught.core.tune import Plan, candidates, choose
from selftaught.nets.vit import Attention


class Hybrid(nn.Module):
    """A convolution and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = Attention(8, 2)


class Clock:
    """A step that takes made times, by what the plan chooses; remembers the plans that it was run under."""

    def __init__(self, patch: pytest.MonkeyPatch, **factors: float) -> None:
        self.now, self.factors, self.tried = 0.0, factors, dict[Plan, int]()
        patch.setattr(tune.time, "perf_counter", lambda: self.now)

    def __call__(self, plan: Plan) -> None:
        self.tried[plan] = self.tried.get(plan, 0) + 1
        seconds = 1.0
        for word, chosen in (("bf16", plan.precision == "bf16"), ("plain", plan.attention == "plain"), ("last", plan.channels_last)):
            seconds *= self.factors.get(word, 1.0) if chosen else 1.0
        self.now += seconds


def words(plan: Plan) -> tuple[Any, ...]:
    return plan.precision, plan.attention, plan.channels_last


def test_every_combination_is_a_candidate_once() -> None:
    assert len({words(p) for p in candidates(Hybrid())}) == len(candidates(Hybrid())) == 8
    assert len(candidates(Attention(8, 2))) == len(candidates(nn.Conv2d(3, 8, 3))) == 4
    assert len(candidates(nn.Linear(3, 3))) == 2


@pytest.mark.parametrize("plain", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("last", [0.5, 1.5])
@pytest.mark.parametrize("bf16", [0.5, 0.95, 1.5])
def test_the_fastest_of_all_is_found_in_six_trials(plain: float, last: float, bf16: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch, plain=plain, last=last, bf16=bf16)
        module = Hybrid()
        plan = choose(module, clock)
    # bf16 is taken only where it wins by a tenth.
    assert words(plan) == ("bf16" if bf16 < 0.9 else "fp32", "plain" if plain < 1 else "fused", last < 1)
    assert len(clock.tried) == 6 and max(clock.tried.values()) <= 3
    assert module.attention.kernel == plan.attention
    assert module.patches.weight.is_contiguous(memory_format=torch.channels_last) == plan.channels_last


def test_plain_attention_is_tried_with_channels_last() -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch, plain=0.8, last=0.8)
        plan = choose(Hybrid(), clock)
    assert words(plan) == ("fp32", "plain", True)
    assert "fp32, plain attention, channels last 640 ms" in plan.reason
    assert not any(p.attention == "fused" and p.channels_last for p in clock.tried)


def test_a_hopeless_precision_is_given_up_after_one_plan() -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch, bf16=11.0, last=0.8)
        plan = choose(Hybrid(), clock)
    assert words(plan) == ("fp32", "fused", True) and "bf16 11000 ms" in plan.reason
    assert [n for p, n in clock.tried.items() if p.precision == "bf16"] == [2]
    assert sum(p.precision == "fp32" for p in clock.tried) == 3, "all plans in fp32 are tried as before"


def test_short_steps_are_measured_even_when_the_first_one_is_slow() -> None:
    """The first step of a plan also builds kernels: ten times a few milliseconds says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch, bf16=0.5)
        slow_first = iter([1.0, 1.0, 1.0, 20.0])
        first = clock.__call__

        def step(plan: Plan) -> None:
            before = clock.now
            first(plan)
            clock.now = before + (clock.now - before) * 0.02 * next(slow_first, 1.0)

        plan = choose(nn.Linear(2, 2), step)
    assert plan.precision == "bf16"
