"""A step is taken back bit for bit, and the place where numbers go wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftaught.core.checkpoint import flatten_optimizer
from selftaught.core.trace import Trace
from selftaught.core.undo import Undo


class Net(nn.Module):
    """Buffers of several kinds below and at the top."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        self.register_buffer("queue", torch.rand(5, 2))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")), persistent=False)
        self.register_buffer("later", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in flatten_optimizer(optimizer)[0].items()}


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.rand(6, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_buffers_weights_and_moments_come_back(kind: Any, steps_before: int) -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = kind(net.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    undo = Undo(net, [optimizer])
    for _ in range(steps_before):
        undo.remember()
        step(net, optimizer)
    undo.remember()
    before = {k: v.clone() for k, v in [*net.named_parameters(), *net.named_buffers()]}
    old, queue = moments(optimizer), net.queue
    step(net, optimizer)
    net.queue = torch.zeros(7, 2)  # replaced, and of another size
    net.later = torch.ones(3)
    net.mask.zero_()
    undo.back()
    assert net.queue is queue and net.later is None
    after = dict([*net.named_parameters(), *net.named_buffers()])
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    now = moments(optimizer)
    assert old.keys() == now.keys() and all(torch.equal(v, now[k]) for k, v in old.items())
    step(net, optimizer)  # and it goes on
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_only_what_became_bad_is_named() -> None:
    net = Net()
    undo = Undo(net)
    undo.remember()
    assert undo.spoiled() is None, "a mask of minus infinity is as it was"
    net.body[1].running_var[2] = float("inf")
    assert undo.spoiled() == "buffer body.1.running_var"
    undo.back()
    assert undo.spoiled() is None
    net.later = torch.tensor([float("nan")])
    assert undo.spoiled() == "buffer later"


def run(loss: Any, net: nn.Module | None = None, backward: bool = True) -> list[str]:
    net = net or Net()
    with Trace(net) as trace:
        total = loss(net)
        if backward:
            total.backward()
    return trace.lines()


def test_a_finite_step_has_nothing_to_tell_though_it_masks() -> None:
    def loss(net: nn.Module) -> Tensor:
        scores = net(torch.rand(6, 3)).masked_fill(torch.eye(6, 2, dtype=torch.bool), float("-inf"))
        return scores.logsumexp(0).sum()

    assert run(loss) == []


def test_the_operation_the_line_and_the_module_are_named() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 2).log()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.log, self.leave = nn.Linear(3, 3), Log(), nn.Linear(3, 1)
            nn.init.zeros_(self.enter.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.log(self.enter(x).sigmoid()))

    first, module = run(lambda net: net(torch.rand(6, 3)).sum(), Whole())
    assert first.startswith("first NaN: log at test_undo_and_trace.py:") and first.endswith("in forward, inside log")
    assert module == "first module with an output that is not finite: log (Log); its input was finite, its weights were finite"


def test_weights_that_are_bad_are_named() -> None:
    net = Net()
    net.body[3].weight.data[0, 0] = float("nan")
    assert run(lambda net: net(torch.rand(6, 3)).sum(), net)[-1].endswith(
        "body.3 (Linear); its input was finite, its weight not finite"
    )


def test_the_backward_pass_names_the_forward_line() -> None:
    def loss(net: nn.Module) -> Tensor:
        return (net(torch.zeros(6, 3)) * 0).sum().sqrt()  # finite: 0; its slope is infinite, and 0 times that is NaN

    infinity, nan = sorted(run(loss))[1], sorted(run(loss))[0]
    assert infinity.startswith("first infinity: ") and "in the backward pass of test_undo_and_trace.py:" in infinity
    assert nan.startswith("first NaN: mul in the backward pass of test_undo_and_trace.py:") and nan.endswith("in loss")


def test_a_module_that_raises_leaves_no_hooks() -> None:
    net = Net()
    with pytest.raises(RuntimeError):
        run(lambda net: net(torch.rand(6, 5)), net)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert not torch.is_anomaly_enabled()
