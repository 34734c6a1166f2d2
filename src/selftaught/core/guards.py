"""Guards of a run: finite numbers, collapse alarms, signals, and one process per run folder."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from selftaught.core.config import write_error
from selftaught.core.errors import EXIT_LOCKED, EXIT_SIGHUP, EXIT_SIGINT, EXIT_SIGTERM, ConfigError, RunError

if TYPE_CHECKING:
    from torch import Tensor

START_POINTS = 20
"""Points before the first verdict."""
WINDOW = 100
"""Points that the trend and the running median look at."""
RECENT = 10
"""Points whose median must break a rule, so that one odd batch raises no alarm."""

_FLAT_ADVICE = "If it stays so: train longer, raise the learning rate, or give more pictures."
_RISE_ADVICE = "Lower the learning rate, lengthen its warm-up, or clip gradients."
_POINT_ADVICE = "Check the stop-gradient, the predictor or negatives, and the strength of the augmentation."
_ONE_HOT_ADVICE = "Raise the teacher temperature or strengthen its centring or balancing."
_CODES_ADVICE = "Raise dead_below so that unused codes are moved sooner, or lower the learning rate."
_BLIND_ADVICE = "Lower the learning rate, raise the temperature, or give larger batches of more different pictures."
_UNIFORM_ADVICE = "Lower the teacher temperature, weaken its centring, or lower the learning rate."


class NotFinite(Exception):
    """A step met a number that is not finite, and was not taken; the loop decides what follows.

    `offender` says which number, `player` whose, `mine` whether the trouble arose on this rank.
    """

    def __init__(self, offender: str, player: str, loss: float, mine: bool = True) -> None:
        super().__init__(f"{offender} of {player} is not finite")
        self.offender, self.player, self.loss, self.mine = offender, player, loss, mine


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first floating tensor that holds NaN or infinity, or None."""
    import torch
    from torch.nn.utils import get_total_norm

    floating = [(name, value.detach()) for name, value in named if value.is_floating_point()]
    # The largest magnitude costs one pass and no name, and does not overflow; the search by name comes only after it.
    if not floating or bool(torch.isfinite(get_total_norm([value for _, value in floating], math.inf))):
        return None
    return next((name for name, value in floating if not bool(torch.isfinite(value).all())), None)


def finite(total: Tensor | float, named_parameters: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None when all numbers are finite.

    Call it after the backward pass and before the step. The order is that of cause: weights ("NAME"), the loss
    ("loss"), gradients ("gradient of NAME"), then norms that overflow though each number is finite ("norm of the
    gradients", "norm of the weights": above 1.8e19 in float32). Clipping by such a norm makes all gradients zero, and
    Adam squares them: one of them would end in its moments as infinity. Integer tensors are skipped.
    """
    import torch
    from torch.nn.utils import get_total_norm

    floating = [(name, value) for name, value in named_parameters if value.is_floating_point()]
    weights = [(name, value.detach()) for name, value in floating]
    gradients = [(f"gradient of {name}", value.grad) for name, value in floating if value.grad is not None]
    loss = torch.as_tensor(total).detach()
    wide = [
        words
        for words, group in (("norm of the gradients", gradients), ("norm of the weights", weights))
        if group and not bool(torch.isfinite(get_total_norm([value for _, value in group])))
    ]
    if not wide and bool(torch.isfinite(loss).all()):
        return None
    return not_finite([*weights, ("loss", loss), *gradients]) or wide[0]


def check_step(offender: str | None, loss: float, player: str, device: Any = "cpu") -> None:
    """Raise NotFinite on every rank when any of them has an offender, so that all take a step or none does.

    `mine` is true where the loss itself is not finite, or, when no rank has such a loss, where there is an offender:
    averaged gradients carry the trouble of one rank to all.
    """
    import torch

    from selftaught.core.launch import all_reduce_sum

    bad_loss = not math.isfinite(loss)
    flags = torch.tensor([float(offender is not None), float(bad_loss)], device=device)
    anywhere, losses = (float(x) for x in all_reduce_sum(flags))
    if anywhere:
        mine = bad_loss if losses else offender is not None
        raise NotFinite(offender or "a number on another rank", player, loss, mine)


class Collapse:
    """Judges from the logged numbers of a run whether it learns.

    `total_steps` is the length of the run (0: unknown). `loss_uniform` is the loss of a model that knows nothing, ln K
    for K classes, clusters or candidates; a part of that name replaces it.
    """

    def __init__(self, total_steps: int = 0, loss_uniform: float | None = None) -> None:
        self.total_steps = total_steps
        self.loss_uniform = loss_uniform
        self._points = 0
        self._history: dict[str, list[float]] = {}

    def update(self, step: int, parts: Mapping[str, float]) -> tuple[str, str]:
        """Take the numbers of one logged step; return (verdict, reason with advice).

        Read are `loss` and, where a method logs them, `std_z` (mean over dimensions of the standard deviation of
        L2-normalised embeddings) with `dim`, `entropy_frac` (teacher entropy / ln K), `usage_frac`, `rank_frac`,
        `positive_cosine` (of two views of a picture), `loss_uniform`, `code_perplexity` (1 when one code is given to
        everything) and `phase` (when it changes the loss is another one, and is judged anew). Verdicts: starting, learning, slow,
        collapsing, diverging. Raises ConfigError without `loss`.
        """
        if "loss" not in parts:
            raise ConfigError("The logged numbers hold no loss.", expected="a part named 'loss'")
        bad = [name for name, value in parts.items() if not math.isfinite(value)]
        if bad:
            return "diverging", f"{bad[0]} is {parts[bad[0]]}. {_RISE_ADVICE}"
        if "phase" in parts and self._history.get("phase", [parts["phase"]])[-1] != parts["phase"]:
            self._points, self._history = 0, {}
        self._points += 1
        for name, value in parts.items():
            self._history.setdefault(name, []).append(float(value))
            del self._history[name][:-WINDOW]
        if self._points < START_POINTS:
            return "starting", f"{self._points} of {START_POINTS} points."
        return self._collapsing(step) or self._diverging() or self._trend()

    def to_json(self) -> dict[str, Any]:
        """Return what a resumed run needs to give the same verdicts, as JSON values."""
        return {"points": self._points, "history": {name: list(values) for name, values in self._history.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_json` returned."""
        self._points = int(state["points"])
        self._history = {name: [float(value) for value in values] for name, values in state["history"].items()}

    def _recent(self, name: str) -> float | None:
        values = self._history.get(name)
        return statistics.median(values[-RECENT:]) if values else None

    def _collapsing(self, step: int) -> tuple[str, str] | None:
        std_z, dim, entropy = self._recent("std_z"), self._recent("dim"), self._recent("entropy_frac")
        if std_z is not None and dim and std_z < 0.1 / math.sqrt(dim):
            healthy = 1 / math.sqrt(dim)
            reason = f"All embeddings fall onto one point: their spread is {std_z:.2g}, healthy is near {healthy:.2g}."
            return "collapsing", f"{reason} {_POINT_ADVICE}"
        codes = self._recent("code_perplexity")
        if codes is not None and codes < 1.1:
            return "collapsing", f"One code is given to everything: their perplexity is {codes:.2f}. {_CODES_ADVICE}"
        if entropy is None:
            return self._blind()
        if entropy < 0.05:
            reason = f"The teacher gives every picture one class: its entropy is {entropy:.1%} of the maximum."
            return "collapsing", f"{reason} {_ONE_HOT_ADVICE}"
        loss, uniform = self._recent("loss"), self._recent("loss_uniform") or self.loss_uniform
        if loss is None or not uniform or step < 0.1 * self.total_steps:
            return None
        if abs(loss - uniform) < 0.01 * abs(uniform) and entropy > 0.995:
            reason = f"The loss {loss:.4g} is that of a uniform answer and the teacher's entropy is {entropy:.1%}."
            return "collapsing", f"{reason} {_UNIFORM_ADVICE}"
        return None

    def _blind(self) -> tuple[str, str] | None:
        """Views of one picture are alike, and a contrastive loss says that those of different pictures are as well."""
        loss, alike = self._recent("loss"), self._recent("positive_cosine")
        uniform = self._recent("loss_uniform") or self.loss_uniform
        if loss is None or alike is None or not uniform or alike < 0.8 or not 0.95 < loss / uniform < 1.05:
            return None
        reason = f"All pictures are alike: the cosine of two views is {alike:.2f}, yet the loss {loss:.4g} is that of a blind guess."
        return "collapsing", f"{reason} {_BLIND_ADVICE}"

    def _diverging(self) -> tuple[str, str] | None:
        losses, uniform = self._history["loss"], self._recent("loss_uniform") or self.loss_uniform
        median, recent = statistics.median(losses), self._recent("loss")
        if uniform and recent is not None and recent > 3 * uniform:
            reason = f"The loss {recent:.4g} is {recent / uniform:.0f} times that of a model that knows nothing."
            return "diverging", f"{reason} {_BLIND_ADVICE}"
        now = statistics.median(losses[-RECENT // 2 :])
        # Near a loss of zero half the median is less than the noise, so the rise must leave the noise as well.
        if now - median > max(0.5 * abs(median), 4 * _jitter(losses)):
            return "diverging", f"The loss rose to {now:.4g}; its running median is {median:.4g}. {_RISE_ADVICE}"
        return None

    def _trend(self) -> tuple[str, str]:
        losses = self._history["loss"]
        slope_t, change = _slope(losses)
        note = self._note()
        if slope_t < -3:
            return "learning", f"The loss fell by {-change:.2g} over the last {len(losses)} points.{note}"
        if slope_t > 3:
            return "slow", f"The loss rises slowly, by {change:.2g} over {len(losses)} points.{note} {_RISE_ADVICE}"
        return "slow", f"The loss is flat over the last {len(losses)} points.{note} {_FLAT_ADVICE}"

    def _note(self) -> str:
        """Mention what is odd without being proof: few used codes may only mean a small batch."""
        usage, rank = self._recent("usage_frac"), self._recent("rank_frac")
        note = f" Only {usage:.0%} of the prototypes are used." if usage is not None and usage < 0.2 else ""
        return note + (f" Only {rank:.0%} of the dimensions are used." if rank is not None and rank < 0.1 else "")


def _jitter(values: list[float]) -> float:
    """Return the noise from one point to the next, blind to slow change."""
    return statistics.median(abs(b - a) for a, b in zip(values, values[1:], strict=False))


def _slope(values: list[float]) -> tuple[float, float]:
    """Return (t value of the least-squares slope, change of the fitted line over the window)."""
    n = len(values)
    mean_x, mean_y = (n - 1) / 2, statistics.fmean(values)
    spread_x = n * (n * n - 1) / 12
    slope = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values)) / spread_x
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in enumerate(values))
    error = math.sqrt(residual / (n - 2) / spread_x)
    change = slope * (n - 1)
    if abs(change) <= 1e-6 * max(abs(mean_y), 1e-12):  # rounding, not learning
        return 0.0, change
    return (slope / error if error > 0 else math.copysign(math.inf, slope)), change


_EXITS = {int(signal.SIGINT): EXIT_SIGINT, int(signal.SIGTERM): EXIT_SIGTERM}
if hasattr(signal, "SIGHUP"):  # Windows has none
    _EXITS[int(signal.SIGHUP)] = EXIT_SIGHUP


class SignalFlag:
    """Context manager that turns the first SIGINT, SIGTERM or SIGHUP into a wish and obeys the second at once.

    `requested` is 0, or the exit code that the run owes after saving: 130, 143 or 129. Outside of the main thread, where
    Python allows no handlers, it stays 0. A SIGHUP that is ignored (`nohup`) stays ignored. A second signal within
    `patience_s` is the first one's echo and not obeyed: torchrun passes on what the terminal has sent to everybody already.
    """

    def __init__(self, patience_s: float = 0.0) -> None:
        self.requested = 0
        self._patience_s, self._first_s = patience_s, 0.0
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> SignalFlag:
        if threading.current_thread() is threading.main_thread():
            for number in _EXITS:
                if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked data worker: Ctrl-C is the parent's affair, the others must end it
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.requested:
            if time.monotonic() - self._first_s < self._patience_s:
                return
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(_EXITS[number])
        self._first_s = time.monotonic()
        self.requested = _EXITS[number]


class RunLock:
    """Context manager that lets one process at a time work on a run folder, through RUN/lock.json.

    The file holds pid, host and start time. A lock of a dead process of this host is taken over; a live one, and one of
    another host (whose processes cannot be seen from here), raises RunError with exit code 6.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.path = Path(run_dir) / "lock.json"
        self._mine: bytes | None = None

    def __enter__(self) -> RunLock:
        mine = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "birth": _birth(os.getpid()),
        }
        text = (json.dumps(mine) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = _open_exclusively(self.path)
            try:
                self._refuse_if_held(os.read(handle, 65536), str(mine["host"]))
                try:
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, text, 0)
                    os.fsync(handle)
                except OSError:
                    self.path.unlink(missing_ok=True)  # or this process would look like an owner as long as it lives
                    raise
            finally:
                os.close(handle)
        except OSError as error:
            raise write_error(self.path, len(text), error) from error
        self._mine = text
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._mine is not None and self.path.read_bytes() == self._mine:
                self.path.unlink()
        except OSError:  # the run folder was deleted meanwhile, or cannot be written: then the next start sees a dead owner
            pass
        self._mine = None

    def _refuse_if_held(self, text: bytes, host: str) -> None:
        try:
            owner = json.loads(text)
            pid, owner_host = int(owner["pid"]), str(owner["host"])
            birth, started = str(owner["birth"]), str(owner["started_utc"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return  # empty or torn: its writer died before it had the lock
        if owner_host == host and not process_alive(pid, birth):
            return
        where = "this machine" if owner_host == host else f"the machine {owner_host}"
        raise RunError(
            f"The run {self.path.parent} is in use by process {pid} on {where}, since {started}.",
            expected="one process per run folder",
            do=f"Wait for it or stop it. If it no longer exists, delete {self.path}.",
            exit_code=EXIT_LOCKED,
        )


def process_alive(pid: int, birth: str = "") -> bool:
    """Return whether a process of this machine lives; `birth`, when known, tells it from a later one of that pid."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it lives and belongs to somebody else
    now = _birth(pid)
    if now == "zombie":
        return False
    return not (birth and now) or birth == now


def _birth(pid: int) -> str:
    """Return what tells two processes of one pid apart on Linux, "zombie" for a dead one, "" where nothing is known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "zombie" if fields[0] in ("Z", "X") else f"{boot}:{fields[19]}"


def _open_exclusively(path: Path) -> int:
    """Open (or create) a file and hold the kernel's lock on it until the handle is closed."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError):  # no such locks here: two starts in the same millisecond may then collide
            return handle
        try:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the former owner removed the file while this process waited for it
