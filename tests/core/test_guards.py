"""Guards name what went wrong, stay silent over healthy runs, and let one process in."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from selftaught.core import guards
from selftaught.core.errors import ConfigError, RunError
from selftaught.core.guards import Collapse, NotFinite, RunLock, SignalFlag, check_step, finite, not_finite


@pytest.fixture
def model() -> Any:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model(torch.rand(4, 3)).sum().backward()
    return model


def test_finite_numbers_pass(model: Any) -> None:
    assert finite(torch.tensor(1.0), model.named_parameters()) is None
    assert finite(1.0, []) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_offender_is_named(model: Any, value: float) -> None:
    assert finite(torch.tensor(value), model.named_parameters()) == "loss"
    model[1].weight.grad[0, 1] = value
    assert finite(1.0, model.named_parameters()) == "gradient of 1.weight"
    model[0].bias.grad[0] = value
    assert finite(1.0, model.named_parameters()) == "gradient of 0.bias"
    model[1].bias.data[0] = value
    assert finite(torch.tensor(value), model.named_parameters()) == "1.bias"


def test_large_numbers_and_integers_pass_until_their_norm_overflows(model: Any) -> None:
    model[0].weight.grad.fill_(1e18)
    model[1].weight.data.fill_(-1e18)
    assert finite(1.0, [*model.named_parameters(), ("count", torch.tensor(3))]) is None
    model[1].weight.data.fill_(3e38)  # each is finite, but one step more need not be
    assert finite(1.0, model.named_parameters()) == "norm of the weights"
    model[0].weight.grad.fill_(1e20)  # clipping by an infinite norm makes zeros of all gradients, Adam's squares infinities
    assert finite(1.0, model.named_parameters()) == "norm of the gradients"
    model[0].bias.grad[0] = math.nan
    assert finite(1.0, model.named_parameters()) == "gradient of 0.bias"


def test_not_finite_takes_any_magnitude_and_type() -> None:
    named = [("huge", torch.full((4,), 3e38)), ("count", torch.tensor(3)), ("half", torch.ones(2, dtype=torch.bfloat16))]
    assert not_finite(named) is None and not_finite([]) is None
    assert not_finite([*named, ("bad", torch.tensor([0.0, math.inf])), ("later", torch.tensor(math.nan))]) == "bad"


def test_one_offender_stops_the_step_and_says_whose_it_is() -> None:
    check_step(None, 1.0, "student")
    with pytest.raises(NotFinite, match="gradient of w of student is not finite") as caught:
        check_step("gradient of w", 1.0, "student")
    assert (caught.value.offender, caught.value.player, caught.value.mine) == ("gradient of w", "student", True)


def _run(collapse: Collapse, losses: np.ndarray, **parts: float | np.ndarray) -> list[str]:
    verdicts = []
    for i, loss in enumerate(losses):
        extra = {name: float(value[i] if isinstance(value, np.ndarray) else value) for name, value in parts.items()}
        verdicts.append(collapse.update(i, {"loss": float(loss), **extra})[0])
    return verdicts


T = np.arange(400)
LN_K = math.log(1024)
HEALTHY = {
    "contrastive": (6.2 * np.exp(-T / 80) + 1.5, 0.15),
    "regression": (1.0 / (1 + T / 10), 0.01),
    "cosine_below_zero": (-0.9 * (1 - np.exp(-T / 60)), 0.03),
    "self_distillation_from_uniform": (LN_K - 3 * (1 - np.exp(-T / 150)), 0.2),
    "plateau_then_fall": (np.where(T < 100, 2.3, 0.4 + 1.9 * np.exp(-(T - 100) / 60)), 0.05),
}


@pytest.mark.parametrize("name", sorted(HEALTHY))
@pytest.mark.parametrize("seed", range(5))
def test_healthy_runs_raise_no_alarm(name: str, seed: int) -> None:
    clean, noise = HEALTHY[name]
    draw = np.random.default_rng(seed)
    losses = clean + noise * draw.standard_normal(len(T))
    losses[draw.integers(0, 400, 3)] += 5 * noise  # the odd hard batch
    verdicts = _run(
        Collapse(400, loss_uniform=LN_K),
        losses,
        std_z=(0.2 + 0.7 * (1 - np.exp(-T / 50))) / math.sqrt(128) * (1 + 0.1 * draw.standard_normal(400)),
        dim=128,
        entropy_frac=np.clip(0.999 - 0.7 * T / 400, 0, 1),
        usage_frac=0.5,
        rank_frac=0.5,
    )
    assert verdicts[:19] == ["starting"] * 19
    assert set(verdicts[19:]) <= {"learning", "slow"}
    assert "learning" in verdicts


def test_a_steep_fall_is_learning_and_a_flat_loss_is_slow() -> None:
    draw = np.random.default_rng(0)
    assert set(_run(Collapse(100), np.linspace(5, 1, 100))[19:]) == {"learning"}
    assert set(_run(Collapse(100), np.full(100, 2.0))[19:]) == {"slow"}
    flat = _run(Collapse(300), 2 + 0.1 * draw.standard_normal(300))[19:]
    assert flat.count("slow") > 0.95 * len(flat)
    around_zero = _run(Collapse(300), 0.1 * draw.standard_normal(300))[19:]
    assert "diverging" not in around_zero


def test_embeddings_on_one_point_are_a_collapse() -> None:
    limit = 0.1 / math.sqrt(64)
    losses = np.linspace(2, 1, 40)
    assert _run(Collapse(40), losses, std_z=0.9 * limit, dim=64)[19:] == ["collapsing"] * 21
    assert "collapsing" not in _run(Collapse(40), losses, std_z=1.1 * limit, dim=64)
    assert "collapsing" not in _run(Collapse(40), losses, std_z=0.9 * limit)
    one_odd = np.full(40, 1.0)
    one_odd[30] = 0.0
    assert "collapsing" not in _run(Collapse(40), losses, std_z=one_odd, dim=64)


def test_a_collapse_in_the_middle_is_seen_soon() -> None:
    spread = np.where(np.arange(100) < 70, 1 / 8, 1e-4)
    verdicts = _run(Collapse(100), np.linspace(2, 1, 100), std_z=spread, dim=64)
    assert set(verdicts[19:70]) == {"learning"}
    assert set(verdicts[76:]) == {"collapsing"}


def test_a_one_hot_teacher_is_a_collapse() -> None:
    losses = np.linspace(2, 1, 40)
    assert _run(Collapse(40), losses, entropy_frac=0.049)[-1] == "collapsing"
    assert _run(Collapse(40), losses, entropy_frac=0.051)[-1] == "learning"


def test_a_uniform_teacher_is_a_collapse_after_a_tenth() -> None:
    losses = np.full(100, LN_K * 1.005)
    verdicts = _run(Collapse(300, loss_uniform=LN_K), losses, entropy_frac=0.999)
    assert verdicts[19:30] == ["slow"] * 11
    assert verdicts[30:] == ["collapsing"] * 70
    assert _run(Collapse(100), losses, entropy_frac=0.999, loss_uniform=LN_K)[-1] == "collapsing"
    assert "collapsing" not in _run(Collapse(100, LN_K), losses, entropy_frac=0.99)
    assert "collapsing" not in _run(Collapse(100, LN_K), losses * 0.98, entropy_frac=0.999)
    assert "collapsing" not in _run(Collapse(100, LN_K), losses)


def test_alike_views_with_the_loss_of_a_blind_guess_are_a_collapse() -> None:
    losses = 3.4 + 0.05 * np.random.default_rng(0).standard_normal(60)
    assert set(_run(Collapse(60, 3.4), losses, positive_cosine=0.9)[19:]) == {"collapsing"}
    assert "collapsing" not in _run(Collapse(60, 3.4), losses, positive_cosine=0.7), "a slow start is none"
    assert "collapsing" not in _run(Collapse(60, 3.4), losses - 0.3, positive_cosine=0.9), "different pictures differ"
    assert "collapsing" not in _run(Collapse(60), losses, positive_cosine=0.9), "nothing is known of the loss"


def test_a_loss_far_above_knowing_nothing_diverges() -> None:
    falling = np.linspace(7000, 4000, 100)
    verdicts = _run(Collapse(100, 3.4), falling)
    assert set(verdicts[19:]) == {"diverging"}
    assert "diverging" not in _run(Collapse(100, 3.4), np.linspace(10, 4, 100))


def test_a_rising_loss_diverges() -> None:
    draw = np.random.default_rng(0)
    jump = np.concatenate([np.full(60, 2.0), np.full(20, 3.1)]) + 0.05 * draw.standard_normal(80)
    assert "diverging" not in _run(Collapse(80), jump[:60])
    assert _run(Collapse(80), jump)[65] == "diverging"
    small = np.concatenate([np.full(60, 2.0), np.full(20, 2.9)]) + 0.05 * draw.standard_normal(80)
    assert "diverging" not in _run(Collapse(80), small)
    growth = np.exp(0.02 * T[:200])
    assert _run(Collapse(200), growth)[-1] == "diverging"
    negative = np.concatenate([np.full(60, -0.9), np.full(20, -0.3)])
    assert _run(Collapse(80), negative)[-1] == "diverging"


def test_numbers_that_are_none_diverge_at_once() -> None:
    verdict, reason = Collapse(10).update(0, {"loss": math.nan})
    assert verdict == "diverging" and "loss is nan" in reason
    verdict, reason = Collapse(10).update(0, {"loss": 1.0, "std_z": math.inf})
    assert verdict == "diverging" and "std_z" in reason
    with pytest.raises(ConfigError):
        Collapse(10).update(0, {})


def test_every_alarm_gives_advice() -> None:
    for parts in ({"std_z": 0.0, "dim": 4.0}, {"entropy_frac": 0.0}, {"entropy_frac": 1.0, "loss_uniform": 2.0}):
        collapse = Collapse(20)
        for step in range(30):
            verdict, reason = collapse.update(step, {"loss": 2.0, **parts})
        assert verdict == "collapsing"
        assert any(word in reason for word in ("Check", "Raise", "Lower"))


def test_few_codes_are_mentioned_without_alarm() -> None:
    collapse = Collapse(40)
    for step in range(40):
        verdict, reason = collapse.update(step, {"loss": 2 - step / 40, "usage_frac": 0.1, "rank_frac": 0.05})
    assert verdict == "learning"
    assert "10% of the prototypes" in reason and "5% of the dimensions" in reason


def test_a_resumed_judge_gives_the_same_verdicts() -> None:
    losses = 3 * np.exp(-T / 60) + 0.1 * np.random.default_rng(0).standard_normal(400)
    straight = Collapse(400)
    expected = [straight.update(i, {"loss": float(loss), "std_z": 1.0}) for i, loss in enumerate(losses)]
    first = Collapse(400)
    for i in range(150):
        first.update(i, {"loss": float(losses[i]), "std_z": 1.0})
    second = Collapse(400)
    second.restore(json.loads(json.dumps(first.to_json())))
    for i in range(150, 400):
        assert second.update(i, {"loss": float(losses[i]), "std_z": 1.0}) == expected[i]


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("number", "code", "second"), [(signal.SIGINT, 130, KeyboardInterrupt), (signal.SIGTERM, 143, SystemExit)]
)
def test_the_first_signal_asks_and_the_second_stops(
    number: signal.Signals, code: int, second: type[BaseException]
) -> None:
    with pytest.raises(second):
        with SignalFlag() as flag:
            assert flag.requested == 0
            os.kill(os.getpid(), number)
            assert flag.requested == code
            os.kill(os.getpid(), number)
            pytest.fail("the second signal was ignored")


@pytest.mark.usefixtures("handlers")
def test_another_second_signal_stops_as_well() -> None:
    with pytest.raises(SystemExit) as caught:
        with SignalFlag() as flag:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143 and flag.requested == 130


@pytest.mark.usefixtures("handlers")
def test_a_forked_worker_dies_of_sigterm_and_survives_ctrl_c() -> None:
    with SignalFlag() as flag:
        for number, ends in ((signal.SIGTERM, True), (signal.SIGINT, False)):
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), number)
                os._exit(7)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) == ends
            assert ends or os.WEXITSTATUS(status) == 7
    assert flag.requested == 0


def test_a_thread_may_use_the_flag() -> None:
    seen: list[int] = []

    def work() -> None:
        with SignalFlag() as flag:
            seen.append(flag.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


HOLD = """
import sys
from selftaught.core.guards import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def _holder(run: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(guards.__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    child = _holder(tmp_path)
    with pytest.raises(RunError, match=f"in use by process {child.pid} on this machine") as caught:
        with RunLock(tmp_path):
            pytest.fail("two processes in one run")
    assert caught.value.exit_code == 6
    assert str(tmp_path / "lock.json") in str(caught.value)
    assert child.poll() is None
    child.communicate("\n")
    assert not (tmp_path / "lock.json").exists()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    child = _holder(tmp_path)
    child.kill()
    # Not waited for yet: a zombie is as dead as any.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with RunLock(tmp_path):
        pass
    child.communicate()
    assert os.listdir(tmp_path) == []


def _write_lock(run: Path, **changes: object) -> None:
    with RunLock(run):
        owner = json.loads((run / "lock.json").read_text())
    (run / "lock.json").write_text(json.dumps({**owner, **changes}))


def test_a_living_process_that_only_has_the_same_number_is_no_owner(tmp_path: Path) -> None:
    if not guards._birth(os.getpid()):
        pytest.skip("this system does not tell when a process began")
    _write_lock(tmp_path, birth="another-boot:1")
    with RunLock(tmp_path):
        pass


def test_the_same_process_is_refused_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(RunError, match="in use"):
            with RunLock(tmp_path):
                pytest.fail("locked twice")
        assert (tmp_path / "lock.json").exists()


def test_another_host_is_refused_with_advice(tmp_path: Path) -> None:
    _write_lock(tmp_path, host=f"not-{socket.gethostname()}", pid=2**22 + 1)
    with pytest.raises(RunError, match=r"on the machine not-.*(?s:.)*delete .*lock\.json"):
        with RunLock(tmp_path):
            pytest.fail("a foreign lock was broken")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "host": "y"}', "null"])
def test_a_torn_lock_is_taken_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(content)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_a_lock_that_was_taken_away_is_not_removed(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "lock.json").write_text("somebody else's")
    assert (tmp_path / "lock.json").read_text() == "somebody else's"


def test_process_alive() -> None:
    assert guards.process_alive(os.getpid())
    assert guards.process_alive(1)
    assert not guards.process_alive(0)
    assert not guards.process_alive(10**12)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not guards.process_alive(child.pid)


def test_a_new_phase_is_judged_anew() -> None:
    """Where a method's loss becomes another one, its jump is no divergence; without a phase it is."""
    def verdicts(second: float) -> set[str]:
        collapse = Collapse()
        losses = [1.0 - 0.01 * s for s in range(30)] + [50.0 - 0.01 * s for s in range(30)]
        return {collapse.update(s, {"loss": x, "phase": second if s >= 30 else 0.0})[0] for s, x in enumerate(losses)}

    assert verdicts(1.0) == {"starting", "learning"} and "diverging" in verdicts(0.0)


def test_one_code_for_everything_raises_the_alarm() -> None:
    collapse, healthy = Collapse(), Collapse()
    for step in range(30):
        verdict, reason = collapse.update(step, {"loss": 1.0 - 0.01 * step, "code_perplexity": 1.02})
        fine, _ = healthy.update(step, {"loss": 1.0 - 0.01 * step, "code_perplexity": 4.0})
    assert verdict == "collapsing" and "One code" in reason and fine == "learning"
