"""THE training loop: every method of every room goes through it.

    for step in range(done, total):
        seed torch, numpy and python from (seed, step)              # randomness is a function, not a state
        for player in players:
            batch = method.prepare(pictures number epoch_order(seed)[step])
            loss, parts = method.loss(batch, player)
            backward; clip; set the learning rate; step
        method.after_step()                                         # averages, queues, centres
        a number was not finite: nothing of the step stays; capture, skip or stop
        metrics.jsonl, progress, checkpoint now and then, stop politely on a signal

A run that was stopped, killed or crashed continues as if nothing had happened, bit for bit, on the same machine. With several processes
(torchrun) each takes its part of every batch; what is drawn and what is learned do not depend on their number, up to rounding.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import __version__
from selftaught.core import capture, checkpoint, draws, launch, shard
from selftaught.core.allocator import keep_memory
from selftaught.core.config import digest, from_json, override, read_json, to_json, write_json
from selftaught.core.errors import ConfigError, NumericError, RunError, SelftaughtError
from selftaught.core.guards import Collapse, NotFinite, RunLock, SignalFlag, check_step, finite, not_finite
from selftaught.core.record import Recorder
from selftaught.core.rows import evenly
from selftaught.core.seeds import batch_indices, seed_all
from selftaught.core.tune import Plan, choose, describe
from selftaught.core.undo import Undo
from selftaught.data.cache import ImageSet
from selftaught.data.clip_windows import WindowSet
from selftaught.loading import BUILD_ERRORS, fill, load_method, move_needs, open_needs, read_run
from selftaught.method import Method, Player, Progress
from selftaught.nets.batchnorm import join_batch_norms
from selftaught.registry import load_class
from selftaught.run_folder import check_pictures, refuse_folder, refuse_within
from selftaught.settings import (
    base_config,
    check_numbers,
    choose_device,
    choose_sharding,
    open_items,
    parse_needs,
    relative_to_run,
)

SCHEMA = 1
SAVE_EVERY_S = 60.0
SAVE_FRAC = 0.05
"""Largest share of the time that saving may take: where one save needs more, saves become rarer."""
BUILD_STEP = 10**12
"""The 'step' that seeds the weights; no training gets that far."""


class Stopped(SelftaughtError):
    """The run was asked to stop, saved its state and can be resumed."""


@dataclass
class Job:
    """What one run is: written to config.json, so that resuming needs only the folder."""

    method: str
    data: Any
    out: Path
    size: str
    seed: int
    config: Any
    needs: dict[str, str]
    device: str = "cpu"
    sharding: str = "ddp"

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        data = os.path.realpath(os.path.expanduser(self.data)) if is_path(self.data) else describe_data(self.data)
        return {
            "schema": SCHEMA, "method": self.method, "size": self.size, "seed": self.seed, "data": data,
            "config": to_json(self.config), "needs": self.needs, "device": self.device,
            "sharding": self.sharding,
            "versions": {"selftaught": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }  # fmt: skip


def is_path(data: Any) -> bool:
    """Whether `data` names a local path (and not a sample, a URL or an object)."""
    return isinstance(data, (str, Path)) and not str(data).startswith("sample:") and "://" not in str(data)


def describe_data(data: Any) -> str:
    """What config.json says about data that has no path."""
    return data if isinstance(data, str) else f"<{type(data).__name__} given from Python>"


@launch.together()
def train(
    method: str,
    data: Any,
    out: str | os.PathLike[str],
    size: str = "small",
    steps: int | None = None,
    seed: int = 0,
    set: Sequence[str] = (),
    need: Sequence[str] = (),
    device: str = "cpu",
    quiet: bool = False,
    sharding: str = "ddp",
) -> Path:
    """Train a method on unlabelled pictures; a run that exists and is the same is continued.

    Args:
        method: a name from `selftaught.methods()`.
        data: folder, tar, npz, list file, URL, list, array, or sample:NAME.
        out: the run folder.
        size: tiny, small or paper.
        steps: optimiser steps in all; the size's own number when None.
        set: "field=value" changes of the method's config.
        need: "NAME=RUN": what a method needs, already learned; trained on demand otherwise.
        device: cpu, cuda or auto.
        sharding: ddp (every process holds the whole model) or fsdp (each holds a part); matters with several processes only.

    Returns:
        The run folder. Raises SelftaughtError for anything that the user can mend; Stopped after a polite stop.
    """
    cls = load_class(method)
    config = override(base_config(method, size, data), set)
    if steps is not None:
        config = replace(config, steps=steps)
    out = Path(os.path.expanduser(out))
    refuse_within(out, data)
    given = parse_needs(need, cls.needs)
    needs = {name: relative_to_run(given[name], out) if name in given else f"needs/{name}" for name in cls.needs_of(config)}
    job = Job(method, data, out, size, seed, config, needs, choose_device(device, cls), choose_sharding(sharding))
    if launch.place()[0] == 0:
        refuse_folder(out, job.to_json())
    return run_job(job, quiet, new=True)


@launch.together()
def resume(
    run: str | os.PathLike[str], steps: int | None = None, quiet: bool = False, sharding: str | None = None, device: str | None = None
) -> Path:
    """Continue a run from its folder alone; `steps` may lengthen a run that is not finished or train it further.

    The number of processes, the `sharding` and the `device` may be others than before.
    """
    run = Path(os.path.expanduser(run))
    saved = read_run(run)
    cls = load_class(saved.method)
    config = from_json(cls.Config, saved.config)
    if steps is not None:
        config = replace(config, steps=steps)
    if saved.data.startswith("<"):
        raise RunError(f"{run} was trained on {saved.data}.", do="Call selftaught.train again with the same objects.")
    device, sharding = choose_device(device or saved.device, cls), choose_sharding(sharding or saved.sharding)
    job = Job(saved.method, saved.data, run, saved.size, saved.seed, config, saved.needs, device, sharding)
    return run_job(job, quiet)


def run_job(job: Job, quiet: bool, new: bool = False) -> Path:
    """Make sure that everything a job needs is there, then train; a `new` one must not take over the folder of another run."""
    if job.config.steps < 0 or not 1 <= job.config.accumulate <= job.config.batch_size:
        raise ConfigError("steps must be at least 0, accumulate at least 1 and at most batch_size.")
    keep_memory()
    rank, world = launch.place()
    if job.config.batch_size // job.config.accumulate < world:
        raise ConfigError(f"{world} processes cannot share {job.config.batch_size // job.config.accumulate} pictures.",
                          do="Raise batch_size, lower accumulate, or start fewer processes.")  # fmt: skip
    with launch.first():
        images = open_items(load_class(job.method), job.data, job.config)
    if world > 1:
        launch.same_everywhere("job", json.dumps(job.to_json()))
        launch.same_everywhere("set of pictures", f"{len(images)} pictures, {digest([images.keys, images.sizes.tolist()])}")
    train_needs(job, quiet)
    with RunLock(job.out) if rank == 0 else nullcontext():
        if new and rank == 0:  # once more: until the lock was held, another process may have made the folder its own
            refuse_folder(job.out, job.to_json())
        for folder in (job.out, job.out / "checkpoints", job.out / "pictures") if rank == 0 else ():
            checkpoint.remove_stale(folder)
        with Recorder(job.out, job.config.steps, quiet, job.config.batch_size, writes=rank == 0) as recorder:
            launch.seen_everywhere(job.out / "lock.json")
            if images.bad:
                recorder.say(f"{len(images.bad)} broken pictures left out, e.g. {images.bad[0][0]}: {images.bad[0][1]}")
            loop = Loop(job, images, recorder, rank, world)
            # Only now is it certain that the settings fit together; a refused start must not claim the folder.
            if rank == 0:
                write_json(job.out / "config.json", job.to_json())
            loop.run()
    return job.out


def train_needs(job: Job, quiet: bool) -> None:
    """Train what the method needs and nobody gave, in sub-runs that resume by themselves."""
    cls = load_class(job.method)
    for name, default in cls.needs_of(job.config).items():
        if job.needs[name] == f"needs/{name}":
            train(default, job.data, job.out / "needs" / name, job.size, None, job.seed, (), (), job.device, quiet, job.sharding)


class Loop:
    """State of one training: method, optimisers, guards. See the module's docstring for the loop itself."""

    def __init__(self, job: Job, images: ImageSet | WindowSet, recorder: Recorder, rank: int, world: int):
        self.job, self.images, self.recorder, self.rank, self.world = job, images, recorder, rank, world
        self.checkpoints = job.out / "checkpoints"
        self.total: int = job.config.steps
        self.pictures = images.mark()
        seed_all(job.seed, 0, BUILD_STEP)
        needs = open_needs(job.out, job.needs)
        try:
            self.method: Method = load_class(job.method)(job.config, needs).to(job.device)
        except BUILD_ERRORS as error:
            raise ConfigError(f"These settings do not fit together: {error}") from error
        self.folder = launch.tell_path(lambda: checkpoint.latest(self.checkpoints, recorder.say))
        if self.folder is None:
            self.method.start(recorder.say)
        if world > 1:
            join_batch_norms(self.method)
            if job.sharding == "fsdp":
                shard.shard(self.method, job.device)
        self.players: dict[str, Player] = self.method.players()
        check_numbers(job.config, self.players)
        self.step, self.skips, self.skips_in_row = 0, 0, 0
        self.plan = Plan()
        self.collapse = Collapse(self.total, self.method.loss_uniform)
        self.log_every = max(1, self.total // 200)
        self.started_at = self.saved_at = time.monotonic()
        self.save_s, self.saving_s = 0.0, 0.0
        self.verdict, self.reason = "starting", ""
        self.settled = False

    def run(self) -> None:
        """Train to the end, or to a polite stop."""
        with launch.first():
            self.method.begin(self.images, self.job.out, self.recorder.say)
        move_needs(self.method, self.job.device)  # until here they looked at the loader's pictures
        self.plan = self.choose_plan()
        self.plan.apply(self.method)
        self.optimizers = {name: p.build_optimizer() for name, p in self.players.items()}
        self.undo = Undo(self.method, list(self.optimizers.values())[:-1])
        if self.folder:
            self.restore(self.folder)
        self.recorder.rewind(self.step)
        say = self.recorder.say
        count = sum(p.numel() for p in self.method.parameters() if p.requires_grad)
        say(
            f"{self.job.method}: {count / 1e6:.2f} M parameters, {len(self.images)} pictures of "
            f"{self.images.image_px} px, step {self.step}/{self.total}"
            + (f", {self.world} processes ({self.job.sharding})" if self.world > 1 else "")
        )
        say(f"computed in {describe(self.plan)}: {self.plan.reason}")
        with SignalFlag(5.0 if self.world > 1 else 0.0) as flag:
            self.method.train()
            while self.players and self.step < self.total:
                self.one_step()
                stop, due = launch.agree(flag.requested, self.save_due())
                if stop:
                    self.save()
                    raise Stopped(f"Stopped at step {self.step} of {self.total}; the state is saved.",
                                  do=f"selftaught resume {self.job.out}", exit_code=stop)  # fmt: skip
                if due:
                    self.save()
        self.finish()

    def save_due(self) -> bool:
        """Whether the interval is over: SAVE_EVERY_S, or longer where a save takes more than its share of that."""
        interval_s = max(SAVE_EVERY_S, self.save_s / SAVE_FRAC) if SAVE_EVERY_S > 0 else 0.0
        return time.monotonic() - self.saved_at >= interval_s

    def one_step(self) -> None:
        """Do one step of every player, then what comes after it."""
        c = self.job.config
        progress = Progress(self.step, self.total)
        seed_all(self.job.seed, 0, self.step)
        turns = len(self.players) if self.method.alternate else 1
        batches = [batch_indices(len(self.images), c.batch_size, self.job.seed, self.step * turns + n) for n in range(turns)]
        logged: dict[str, float] = {}
        self.undo.remember()
        try:
            for number, (name, player) in enumerate(self.players.items()):
                logged |= self.move(name, player, batches[number % turns], progress)
        except NotFinite as found:
            # A step is taken by all players or by none, and statistics that saw NaN would stay NaN for ever.
            self.undo.back()
            logged = {}
            self.skip(found, np.concatenate(batches))
        else:
            self.skips_in_row = 0
            self.method.after_step(progress)
            spoiled = self.undo.spoiled()
            if spoiled:
                raise NumericError(f"{spoiled} was not finite after step {self.step}; the last good checkpoint is kept.",
                                   why="an average or queue met numbers that are too large")  # fmt: skip
        self.step += 1
        self.log(logged)

    def move(self, name: str, player: Player, indices: np.ndarray[Any, Any], progress: Progress) -> dict[str, float]:
        """One optimiser step of one player; returns the numbers to log."""
        optimizer = self.optimizers[name]
        parameters = [p for _, p in player.parameters]
        optimizer.zero_grad(set_to_none=True)
        pieces = np.array_split(indices, self.job.config.accumulate)
        loss, logged = 0.0, dict[str, float]()
        for piece in pieces:
            share = len(piece) / len(indices) * draws.weight(len(piece))
            total, parts = self.compute(name, piece, progress)
            (total * share).backward()
            loss += float(total.detach()) * share
            for key, value in parts.items():
                logged[key] = logged.get(key, 0.0) + value * share
        launch.average_gradients(parameters)
        check_step(finite(loss, shard.own_parts(player.parameters)) or self.undo.spoiled(), loss, name, self.job.device)
        loss, logged = launch.mean_numbers(loss, logged)
        if player.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, player.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = player.lr_at(progress) * group["lr_scale"]
        optimizer.step()
        prefix = "" if len(self.players) == 1 else f"{name}/"
        return {
            f"{prefix}loss": loss,
            **{prefix + k: v for k, v in logged.items()},
            f"{prefix}lr": player.lr_at(progress),
        }

    def compute(
        self, player: str, indices: np.ndarray[Any, Any], progress: Progress
    ) -> tuple[Tensor, dict[str, float]]:
        """Prepare this process's part of a batch and compute its loss under the plan."""
        with draws.share(len(indices)) as mine:
            pixels = self.images.batch(indices[mine]).to(self.job.device)
            batch = self.method.prepare(pixels, indices[mine])
            with self.plan.autocast(self.job.device):
                return self.method.loss(batch, player, progress)

    def skip(self, found: NotFinite, indices: np.ndarray[Any, Any]) -> None:
        """Keep what a step that is not finite was computed from, and count it; stop when too many come in a row."""
        self.skips += 1
        self.skips_in_row += 1
        what = f"{found.offender} of {found.player}"
        self.recorder.say(f"step {self.step}: {what} is not finite; the step is skipped, the weights are unchanged")
        contents = self.contents(list(self.players)[: list(self.players).index(found.player)])  # all gather what is sharded
        path = self.capture(found, indices, *contents) if found.mine else None
        if self.skips_in_row > self.job.config.max_skips:
            raise NumericError(
                f"{what} was not finite in {self.skips_in_row} steps in a row; stopped at step {self.step}.",
                why="the learning rate may be too high, or the data hold something odd",
                do=f"Lower lr, e.g. --set lr={self.job.config.lr / 3:.2g}; the last good checkpoint is kept."
                + (f" `selftaught replay {path}` shows where it began." if path else ""),
            )

    def capture(
        self, found: NotFinite, indices: np.ndarray[Any, Any], tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> Path | None:
        """Write what `selftaught replay` needs to compute this step again; says so when that is not possible."""
        tensors["batch"] = {"pixels": self.images.batch(indices), "indices": torch.from_numpy(indices)}
        info = {
            **state, "job": self.job.to_json(), "plan": asdict(self.plan), "rank": self.rank, "world": self.world,
            "offender": found.offender, "player": found.player, "loss": str(found.loss), "count": len(self.images),
            "pictures": [self.images.keys[int(i)] for i in indices],
        }  # fmt: skip
        folder = capture.folder_of(self.job.out, self.rank, self.world)
        path, problem = capture.write(folder, self.step, tensors, info)
        say = self.recorder.say
        say(f"step {self.step}: see `selftaught replay {path}`" if path else f"step {self.step}: not captured: {problem}")
        return path

    def log(self, logged: dict[str, float]) -> None:
        """Write metrics at the same steps in every repetition of the run, and show progress."""
        if not logged:
            return
        loss = logged.get("loss", sum(v for k, v in logged.items() if k.endswith("/loss")))
        if self.step % self.log_every == 0 or self.step == self.total:
            before = self.verdict
            self.verdict, self.reason = self.collapse.update(self.step, {**logged, "loss": loss})
            self.recorder.metrics(self.step, {"loss": loss, **logged, "health": self.verdict})
            if self.verdict in ("collapsing", "diverging") and self.verdict != before:
                self.recorder.say(f"step {self.step}: {self.verdict}: {self.reason}")
        self.recorder.progress(self.step, loss, self.verdict)

    def choose_plan(self) -> Plan:
        """The plan of this run: from its folder when it has one, measured otherwise."""
        path = self.job.out / "plan.json"
        kept = launch.tell_path(lambda: path if path.exists() else None)
        if kept:
            return from_json(Plan, read_json(path))
        if self.job.size == "tiny" or not self.players:
            plan = Plan(reason="a run this short does not pay for measuring")
        else:
            state = {k: v.clone() for k, v in self.method.state_dict().items()}
            plan = choose(self.method, self.trial)
            self.method.load_state_dict(state)
        if self.rank == 0:
            write_json(path, asdict(plan))
        return plan

    def trial(self, plan: Plan) -> None:
        """Forward and backward of one piece of a batch under a plan."""
        c = self.job.config
        seed_all(self.job.seed, 0, BUILD_STEP + 1)
        indices = batch_indices(len(self.images), max(c.batch_size // c.accumulate, 2), self.job.seed, 0)
        before, self.plan = self.plan, plan
        for name in self.players:
            loss, _ = self.compute(name, indices, Progress(0, max(self.total, 1)))
            loss.backward()  # type: ignore[no-untyped-call]
        self.plan = before
        self.method.zero_grad(set_to_none=True)

    def contents(self, players: Sequence[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The state: the state dict, the optimisers of `players`, and where the run is."""
        tensors: dict[str, dict[str, Tensor]] = {"model": shard.whole_state(self.method)}
        optimizers = {}
        for name in players:
            tensors[f"optim.{name}"], optimizers[name] = shard.whole_optimizer(self.optimizers[name])
        state = {
            "step": self.step, "optimizers": optimizers, "collapse": self.collapse.to_json(), "skips": self.skips,
            "skips_in_row": self.skips_in_row, "verdict": self.verdict, "reason": self.reason,
            "config": digest(self.job.config), "pictures": self.pictures, "done": self.step >= self.total, "settled": self.settled,
        }  # fmt: skip
        return tensors, state

    def save(self) -> None:
        """Write a checkpoint, unless a weight, average or moment is not finite."""
        begin = time.monotonic()
        tensors, state = self.contents(list(self.optimizers))
        weights = [(name, tensors["model"][name]) for name, _ in self.method.named_parameters()]
        learned = [*weights, *(x for k, v in tensors.items() if k != "model" for x in v.items())]
        offender = not_finite(learned)
        if offender:
            raise NumericError(f"{offender} was not finite at step {self.step}; the last good checkpoint is kept.")
        with launch.first():  # nobody ends before the checkpoint is whole
            if self.rank == 0:
                self.recorder.sync()
                checkpoint.save(self.checkpoints, self.step, {k: v for k, v in tensors.items() if v}, state)
        self.saved_at = time.monotonic()
        self.save_s = self.saved_at - begin
        self.saving_s += self.save_s

    def restore(self, folder: Path) -> None:
        """Take up the run where a checkpoint left it."""
        tensors, state = checkpoint.load(folder)
        check_pictures(self.job, state.get("pictures"), self.pictures, self.recorder.say)
        fill(self.method, tensors.get("model", {}), folder)
        try:
            for name, optimizer in self.optimizers.items():
                parts = shard.cut_optimizer(tensors.get(f"optim.{name}", {}), optimizer)
                checkpoint.restore_optimizer(optimizer, parts, state["optimizers"][name])
            self.step, self.skips = int(state["step"]), int(state["skips"])
            self.skips_in_row = int(state.get("skips_in_row", 0))
            if min(self.step, self.skips, self.skips_in_row) < 0:
                raise ValueError("a count below 0")
            self.verdict, self.reason = str(state["verdict"]), str(state["reason"])
            self.collapse.restore(state["collapse"])
            self.settled = bool(state.get("settled", False)) and self.step >= self.total
        except (*BUILD_ERRORS, AttributeError) as error:
            raise RunError(f"{folder}/{checkpoint.STATE} is not of this run.", why=f"{error!r}",
                           do="Remove that checkpoint; the one before it is used then.") from error  # fmt: skip

    def finish(self) -> None:
        """Settle and save the end, and draw the pictures a person should look at."""
        if not self.settled:
            self.method.eval().settle(self.images)
            self.settled = True
            self.save()
        with launch.first():  # nobody goes on with a run that the first process has not finished
            if self.rank == 0:
                seed_all(self.job.seed, 0, BUILD_STEP + 2)  # the same pictures, whatever was drawn before
                draw_pictures(load_method(self.job.out), self.images, self.job.out)
            self.recorder.say(f"done: {self.step} steps, health: {self.verdict}. {self.reason}".rstrip())
            if self.saving_s:
                share = self.saving_s / (time.monotonic() - self.started_at)
                self.recorder.say(f"saving took {self.saving_s:.2g} s, {share:.1%} of the time")


def draw_pictures(method: Method, images: ImageSet | WindowSet, out: Path, count: int = 12) -> None:
    """Write what `method.show` draws of a few pictures to RUN/pictures/NAME.png."""
    from selftaught.core.atomic import write_bytes
    from selftaught.report.pictures import encode

    indices = evenly(len(images), count)
    with torch.no_grad():
        for name, picture in method.show(images.batch(indices).float() / 255).items():
            write_bytes(out / "pictures" / f"{name}.png", encode(picture, "png"))


