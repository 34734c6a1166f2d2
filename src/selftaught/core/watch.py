"""Whether the other processes of a training live: heartbeats through torchrun's store, and who says what when one is lost.

Every process counts upwards in the store every second and watches the next rank's count. A count that stands still for
`silence_s`, a store that does not answer for so long, or another process's last words end this process with a message and exit
code 7: a collective operation that waits for the dead cannot be interrupted from Python, so the process is ended from a
thread. Checkpoints are written so that this is harmless.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from selftaught.core.errors import EXIT_RANK, RankError, SelftaughtError
from selftaught.core.guards import process_alive

BEAT_S = 1.0
GRACE_S = 5.0
"""Seconds in which a process that hears of another's end may still end by itself, with its own message."""
LEAVE_S = 60.0
"""Seconds for which the first process, which may hold the store, waits for the others at the end."""
STORE_GONE = "The process that keeps the addresses of all (rank 0, or its torchrun) is gone."
AGAIN = "Start the same command again: the run goes on from its last checkpoint, with any number of processes."


def silence_s() -> float:
    """Seconds without a sign of life after which a process counts as lost; at least 5 beats."""
    return float(os.environ.get("SELFTAUGHT_SILENCE_S", "20"))


def broken_connection(error: BaseException) -> bool:
    """Whether an error is that of a collective operation whose other end is gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text))


class Group:
    """The processes of one training, by their notes in the store under the prefix `mark`, which is new with every start."""

    def __init__(self, rank: int, world: int, mark: str):
        self.rank, self.world = rank, world
        self.turn = 0
        self.store, self.thread_store = _connect(mark), _connect(mark)
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        self.store.set(f"who/{rank}", json.dumps(me))
        self.store.set(f"beat/{rank}", "0")
        self.people: list[dict[str, Any]] = [json.loads(self.store.get(f"who/{r}")) for r in range(world)]
        self.ended = threading.Event()
        self.answered_s = time.monotonic()
        self.changed_s, self.count = time.monotonic(), b""
        for work in (self._beat, self._guard):
            threading.Thread(target=work, daemon=True, name=f"selftaught{work.__name__}").start()

    def name(self, rank: int) -> str:
        """A process as people find it."""
        return f"rank {rank} (process {self.people[rank]['pid']} on {self.people[rank]['host']})"

    def wait_for_first(self) -> None:
        """Wait until the first process has called `first_is_done` as often as this one has waited; for ever, while it lives."""
        self.turn += 1
        self._wait(f"turn/{self.turn}")

    def first_is_done(self) -> None:
        """Let those go on that wait for the first process."""
        self.turn += 1
        self.store.set(f"turn/{self.turn}", "")

    def tell(self, text: str) -> str:
        """The first process's text."""
        self.turn += 1
        key = f"turn/{self.turn}"
        if self.rank == 0:
            self.store.set(key, text)
            return text
        self._wait(key)
        return self.store.get(key).decode()

    def _wait(self, key: str) -> None:
        pause_s = 0.002
        while not self.store.check([key]):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    def fail(self, error: BaseException) -> None:
        """Leave last words for the others, and watch them no more."""
        self.ended.set()
        if isinstance(error, RankError):
            self._say(error, self.store)
        else:
            text = str(error) if isinstance(error, SelftaughtError) else f"{type(error).__name__}: {error}"
            code = error.exit_code if isinstance(error, SelftaughtError) else 1
            self._say(_lost(f"{self.name(self.rank)} ended: {text}", code=code), self.store)

    def _say(self, error: RankError, store: Any) -> None:
        """Tell all others why this process ends, unless another was first: what follows from a loss would hide its cause."""
        try:
            if store.add("failures", 1) == 1:
                store.set("failed", json.dumps([error.what, error.why, error.exit_code]))
        except RuntimeError:  # the store is gone with its process
            pass

    def leave(self) -> bool:
        """Say goodbye; whether everybody did. The first process waits for the others, since it may hold the store."""
        if self.ended.is_set():
            return False
        self.ended.set()
        try:
            self.store.set(f"left/{self.rank}", "")
            end_s = time.monotonic() + LEAVE_S
            keys = [f"left/{r}" for r in range(self.world)] if self.rank == 0 else []
            while keys and not self.store.check(keys):
                if time.monotonic() > end_s or self.store.check(["failed"]):
                    return False
                time.sleep(0.02)
        except RuntimeError:
            return False
        return True

    def who_is_lost(self) -> RankError:
        """Find out why a connection broke: somebody's last words, a dead process of this machine, or a silent one."""
        others = [r for r in range(self.world) if r != self.rank]
        counts: dict[int, bytes] = {}
        end_s = time.monotonic() + silence_s() + 2 * BEAT_S
        while True:
            try:
                found = self._last_words(self.store)
                counts = counts or {r: self.store.get(f"beat/{r}") for r in others}
                still = [r for r in others if self.store.get(f"beat/{r}") == counts[r]]
            except RuntimeError:
                found, still, end_s = _lost(STORE_GONE), [], 0.0
            dead = next((error for r in others if (error := self._dead(r))), None)
            if dead or found:
                return dead if dead and (found is None or found.what == STORE_GONE) else found  # type: ignore[return-value]
            if time.monotonic() > end_s:
                return self._silent(still[0]) if still else _lost("The connection to another process broke.")
            time.sleep(0.1)

    def _dead(self, rank: int) -> RankError | None:
        person = self.people[rank]
        if person["host"] != self.people[self.rank]["host"] or process_alive(person["pid"]):
            return None
        return _lost(f"{self.name(rank)} is gone.", why="it was killed or crashed; its own message, if any, is above")

    def _silent(self, rank: int) -> RankError:
        return _lost(f"{self.name(rank)} has given no sign of life for {silence_s():.0f} s.",
                     why="it was killed or stopped, or its machine or the network is gone")  # fmt: skip

    def _last_words(self, store: Any) -> RankError | None:
        if not store.check(["failed"]):
            return None
        what, why, code = json.loads(store.get("failed"))
        return _lost(what, why, code)

    def _beat(self) -> None:
        """Give signs of life and look for those of the next rank."""
        number, other = 0, (self.rank + 1) % self.world
        while not self.ended.wait(BEAT_S):
            number += 1
            try:
                self.thread_store.set(f"beat/{self.rank}", str(number))
                count = self.thread_store.get(f"beat/{other}")
                # One that has left in peace stands still for good.
                if count != self.count or self.thread_store.check([f"left/{other}"]):
                    self.count, self.changed_s = count, time.monotonic()
                words = self._last_words(self.thread_store)
                if words and not self.ended.wait(GRACE_S):
                    self._end(words)
            except RuntimeError:
                if not self.ended.wait(GRACE_S):
                    self._end(_lost(STORE_GONE))
            self.answered_s = time.monotonic()

    def _guard(self) -> None:
        """End this process when the store or the next rank is silent. A thread of its own: one that asks a store without answer hangs."""
        allowed_s = max(silence_s(), 5 * BEAT_S)
        while not self.ended.wait(BEAT_S):
            now_s = time.monotonic()
            if now_s - self.answered_s > allowed_s + GRACE_S:
                self._end(_lost(f"The store of the processes has not answered for {allowed_s:.0f} s.",
                                why="the machine of rank 0 or the network is gone"))  # fmt: skip
            elif now_s - self.changed_s > allowed_s and now_s - self.answered_s < allowed_s / 2:
                error = self._silent((self.rank + 1) % self.world)
                self._say(error, self.thread_store)
                self._end(error)

    def _end(self, error: RankError) -> None:
        """End this process, which may hang where Python has no say."""
        print(f"selftaught: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def _connect(mark: str) -> Any:
    """A connection of its own to the store that torchrun (or rank 0) holds."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
        timeout=timedelta(seconds=max(silence_s(), 20)),
    )  # fmt: skip
    return dist.PrefixStore(f"selftaught/{mark}", store)


def _lost(what: str, why: str = "", code: int = EXIT_RANK) -> RankError:
    return RankError(what, why=why, do=AGAIN, exit_code=code)
