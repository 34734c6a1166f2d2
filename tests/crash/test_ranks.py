"""Many processes: the same training with any number of them, and what happens to the others when one is lost.

The processes run rank_program.py. In double precision the numbers of one and of two processes agree to many digits over a whole
training; in single precision a training amplifies the rounding of a sum in another order, as it does on any two machines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forked import Program
from selftaught.core.config import read_json
from selftaught.loading import load_method
from trained_runs import differing, needs_at_tiny, newest

PROGRAM = str(Path(__file__).with_name("rank_program.py"))
METHODS = ("simclr", "dino", "mae", "selfmask", "cad", "move")
NEEDS = {"features": "simclr", "inpainter": "mae", "masks": "lost"}
STEPS, STOPS = 10, (3, 7)
END_S = 30.0
Start = Callable[..., "list[Program]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3)).astype(np.uint8))
    return path


def finished(processes: list[Program], timeout: float = 3000) -> list[tuple[int, str]]:
    """Exit code and all output of each process."""
    return [(process.wait(timeout), process.communicate(timeout)) for process in processes]


def command(method: str, data: Path, out: Path, *more: str) -> str:
    return "\t".join(["train", method, str(data), "--out", str(out), "--size", "tiny", "--steps", str(STEPS if method != "lost" else 0),
                      "--quiet", "--set", "batch_size=9", "--set", "clip_norm=1", *more])  # fmt: skip


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def far(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """Largest relative difference of the losses, and of all other numbers relative to 1, of two runs."""
    assert [x["step"] for x in a] == [x["step"] for x in b] == list(range(1, STEPS + 1))
    worst = max(abs(x["loss"] - y["loss"]) / abs(x["loss"]) for x, y in zip(a, b, strict=True))
    return max([worst] + [abs(x[k] - y[k]) for x, y in zip(a, b, strict=True) for k in x if isinstance(x[k], float)])


@pytest.fixture(scope="module")
def elastic(start_ranks: Start, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every method: `straight` by one process; `ddp` and `fsdp` by one, then by two, then by one process again."""
    root = tmp_path_factory.mktemp("elastic")

    def do(world: int, seen: str, commands: list[str], harm: str = "", code: int = 0) -> None:
        (root / seen).mkdir(exist_ok=True)
        found = finished(start_ranks([PROGRAM], world, COMMANDS="\n".join(commands), HARM=harm, EXACT="1", SEEN=str(root / seen)))
        for got, text in found:
            assert got == code and f"CODES {[code] * len(commands)}" in text, text[-5000:]

    def needs(name: str) -> list[str]:
        return [part for need in needs_at_tiny(name) for part in ("--need", f"{need}={root / 'straight' / NEEDS[need]}")]

    do(1, "seen-straight", [command(m, data, root / "straight" / m, *needs(m)) for m in (*METHODS[:3], "lost", *METHODS[3:])])
    do(1, "seen-ddp", [command(m, data, root / "ddp" / m, *needs(m)) for m in METHODS], f"stop:0:{STOPS[0] - 1}", 143)
    shutil.copytree(root / "ddp", root / "fsdp")
    # Only the second process is asked to stop.
    do(2, "seen-ddp", ["\t".join(["resume", str(root / "ddp" / m)]) for m in METHODS], f"stop:1:{STOPS[1] - 1}", 143)
    do(2, "seen-fsdp", ["\t".join(["resume", str(root / "fsdp" / m), "--sharding", "fsdp"]) for m in METHODS],
       f"stop:1:{STOPS[1] - 1}", 143)  # fmt: skip
    do(1, "seen-ddp", ["\t".join(["resume", str(root / kind / m)]) for m in METHODS for kind in ("ddp", "fsdp")])
    return root


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", METHODS)
def test_one_then_two_then_one_process_train_the_same(elastic: Path, name: str, kind: str) -> None:
    straight, other = elastic / "straight" / name, elastic / kind / name
    assert far(lines(straight), lines(other)) < 1e-6
    (first, state), (second, other_state) = newest(straight), newest(other)
    assert state["step"] == other_state["step"] == STEPS and first.keys() == second.keys()
    for part in first:
        assert first[part].keys() == second[part].keys()
        for key, value in first[part].items():
            assert second[part][key].shape == value.shape and second[part][key].dtype == value.dtype
            if key == "whitening.matrix":  # unique up to turns among equal eigenvalues
                value, second[part][key] = value @ value.T, second[part][key] @ second[part][key].T
            if part == "model":
                torch.testing.assert_close(second[part][key], value, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    log = (other / "log.txt").read_text()
    assert f"step {STOPS[0]}/{STEPS}, 2 processes ({kind})" in log and f"step {STOPS[1]}/{STEPS}\n" in log
    assert load_method(other) is not None
    assert sorted(p.name for p in (other / "pictures").iterdir()) == sorted(p.name for p in (straight / "pictures").iterdir())


def batches(folder: Path) -> dict[tuple[str, int], list[str]]:
    """(method/player, step) -> numbers of its pictures, in the order of ranks."""
    found: dict[tuple[str, int], list[str]] = {}
    for path in sorted(folder.iterdir()):
        for line in path.read_text().splitlines():
            name, step, *numbers = line.split()
            found.setdefault((name, int(step)), []).extend(numbers)
    return found


def test_they_look_at_the_same_pictures(elastic: Path) -> None:
    straight, together = batches(elastic / "seen-straight"), batches(elastic / "seen-fsdp")
    players = {name for name, _ in straight}
    assert {name.split("/")[0] for name in players} == set(METHODS) and len(players) == len(METHODS) + 1, "MOVE has two"
    assert len(straight) == STEPS * len(players) and all(len(v) == 9 for v in straight.values())
    middle = {(name, s) for name in players for s in range(STOPS[0], STOPS[1])}
    assert set(together) == middle and all(together[key] == straight[key] for key in middle)


class Straight:
    """A DINO run of two processes without harm, and the start of one with it."""

    def __init__(self, start: Start, data: Path, root: Path):
        self.start, self.data, self.root = start, data, root
        self.run = root / "straight"
        for code, text in finished(self.begin(self.run)):
            assert code == 0, text

    def begin(self, run: Path, harm: str = "", **environment: str) -> list[Program]:
        commands = command("dino", self.data, run)
        return self.start([PROGRAM], 2, COMMANDS=commands, HARM=harm, SAVE_OFTEN="1", **environment)

    def goes_on(self, run: Path) -> None:
        """The same command again ends with the same run, bit for bit."""
        for code, text in finished(self.begin(run)):
            assert code == 0, text
        assert differing(run, self.run) == [] and lines(run) == lines(self.run)
        assert not list((run / "checkpoints").glob(".tmp*"))


@pytest.fixture(scope="module")
def straight(start_ranks: Start, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return Straight(start_ranks, data, tmp_path_factory.mktemp("harm"))


def survivor_ends(processes: list[Program], victim: int) -> tuple[int, str]:
    """Wait for the victim's death; return exit code and output of the other, which must end in time."""
    processes[victim].wait(timeout=3000)
    begin_s = time.monotonic()
    (found,) = finished([processes[1 - victim]], timeout=END_S)
    assert time.monotonic() - begin_s < END_S
    return found


@pytest.mark.parametrize(("harm", "victim", "step"), [("kill:1:6", 1, 6), ("save:0:5", 0, 4)])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(straight: Straight, harm: str, victim: int, step: int) -> None:
    run = straight.root / harm.replace(":", "-")
    processes = straight.begin(run, harm)
    code, text = survivor_ends(processes, victim)
    assert processes[victim].returncode == -9
    assert code == 7, text
    # Rank 0 takes the store with it; on its own machine the dead process is still found by its number.
    assert f"rank {victim} (process {processes[victim].pid} on " in text and "is gone" in text
    assert "the run goes on from its last checkpoint" in text and "Traceback" not in text
    assert newest(run)[1]["step"] == step
    straight.goes_on(run)


def test_an_error_of_one_process_is_told_by_the_other(straight: Straight) -> None:
    run = straight.root / "raise"
    processes = straight.begin(run, "raise:1:3")
    code, text = survivor_ends(processes, 1)
    assert code == 1 and "rank 1 (" in text and "OSError: the disk of this machine is broken" in text and "Traceback" not in text
    straight.goes_on(run)


def test_a_frozen_process_is_noticed(straight: Straight) -> None:
    run = straight.root / "freeze"
    processes = straight.begin(run, "freeze:1:4", SELFTAUGHT_SILENCE_S="6")
    while Path(f"/proc/{processes[1].pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":  # stopped
        time.sleep(0.05)
    begin_s = time.monotonic()
    ((code, text),) = finished(processes[:1], timeout=END_S)
    assert time.monotonic() - begin_s > 4, "a slow process is not a dead one"
    assert code == 7 and "rank 1 (" in text and "no sign of life for 6 s" in text, text
    processes[1].kill()


def test_torchrun_ends_and_starts_again(straight: Straight, data: Path) -> None:
    run = straight.root / "torchrun"
    environment = {**os.environ, "COMMANDS": command("dino", data, run), "HARM": "kill:1:6", "SAVE_OFTEN": "1", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", PROGRAM]
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=3000)
    # Who notices first ends the other process: itself, and then it says who is gone, or torchrun, which says what killed it.
    told = ("rank 1 (" in done.stderr and "is gone" in done.stderr) or re.search(
        r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9 ", done.stderr
    )
    assert done.returncode != 0 and told, done.stderr[-3000:]
    environment["HARM"] = ""
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    assert differing(run, straight.run) == []


def test_what_cannot_be_done_together_is_refused(start_ranks: Start, data: Path, tmp_path: Path) -> None:
    commands = "\n".join(["\t".join(["learn", str(data), "--out", str(tmp_path / "run")]),
                          "\t".join(["train", "mae", str(data), "--out", str(tmp_path / "one"), "--size", "tiny",
                                     "--set", "batch_size=1"])])  # fmt: skip
    for code, text in finished(start_ranks([PROGRAM], 2, COMMANDS=commands)):
        assert code == 2 and "CODES [2, 2]" in text, text
        assert "runs in one process, and torchrun started 2" in text and "2 processes cannot share 1 pictures" in text
    assert not (tmp_path / "run").exists() and not (tmp_path / "one" / "config.json").exists()


def test_the_sharding_of_a_run_is_kept(elastic: Path) -> None:
    assert read_json(elastic / "fsdp" / "dino" / "config.json")["sharding"] == "fsdp"
    assert read_json(elastic / "ddp" / "dino" / "config.json")["sharding"] == "ddp"
