"""One process or many: joins the processes that torchrun started, and hides the rest behind a few functions.

What every method may rely on, with any number of processes:
- a batch is divided over the processes in order (`core/draws.py`), and the numbers that are drawn for a picture do not depend on how;
- a loss is the mean over the process's own pictures; the loss of the batch, its gradients and the logged numbers are the means over the
  processes, weighted with their pictures. A loss that is a plain mean over pictures therefore needs nothing from here;
- a loss in which pictures meet each other takes them from everywhere: `gather` (with gradient), `all_reduce_sum`, `divisor`.

Gradients are averaged here rather than by torch's DistributedDataParallel: a method is trained through `loss(batch, player)`
and not through `forward`, players alternate, parts of a network stand still for a while, and the parts of a batch are summed
first. DDP also divides the gradients into new buckets after its first step, and the order of a sum over three or more
processes depends on where in a message a number lies: a resumed run would no longer be the same bit for bit. Messages of one
fixed layout keep that promise; they cost the overlap of sending with the backward pass.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from selftaught.core.errors import ConfigError, RankError
from selftaught.core.watch import Group, broken_connection

MESSAGE_NUMBERS = 8 * 2**20
"""Gradients go in messages of at most so many numbers."""
PATIENCE = timedelta(minutes=30)
"""How long a process that lives may keep the others waiting; one that is dead or frozen is noticed in seconds (core/watch.py)."""

DISK_S = 60.0
"""Seconds in which a file that one machine wrote must appear on the others; network disks keep old views for a while."""

_group: Group | None = None
_inside = False
_alone = False


def place() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) for one process, and for what a process does alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() and not _alone else (0, 1)


@contextmanager
def together() -> Iterator[None]:
    """Be one of torchrun's processes for the time of a block: join them at first, tell them of an error that ends this one.

    Raises RankError, with exit code 7, when another process was lost. Blocks may be nested. One process alone notices nothing.
    """
    global _inside
    if _inside or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    group, _inside = _group or join(), True
    try:
        yield
    except BaseException as error:
        lost = group.who_is_lost() if broken_connection(error) else None
        group.fail(lost or error)
        if lost is not None:
            raise lost from error
        raise
    finally:
        _inside = False


def join() -> Group:
    """Make the process group from torchrun's environment: gloo for CPU tensors, nccl for those on a GPU."""
    global _group
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set.",
            do="Start with `torchrun --nproc-per-node N -m selftaught train ...`, or unset WORLD_SIZE.",
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
        # Drawn anew by every start: torchrun keeps one store over restarts, with what dead processes wrote.
        mark = torch.tensor([int.from_bytes(os.urandom(7), "little")])
        dist.broadcast(mark, 0)
    except RuntimeError as error:
        raise RankError("The processes did not find each other.", why=str(error)[:500],
                        do="Look at the others' messages first, then at MASTER_ADDR and the network.") from error  # fmt: skip
    _group = Group(*place(), mark=str(int(mark)))
    atexit.register(leave)
    return _group


def leave() -> None:
    """Take leave of the other processes at the end; nothing for one process."""
    global _group
    if _group is not None:
        whole = _group.leave()
        _group = None
        if whole:
            dist.destroy_process_group()


@contextmanager
def first() -> Iterator[None]:
    """Let the first process do a block alone, then the others: what it wrote, they find. Waits as long as the first lives.

    Inside, every process is alone (`place()` is (0, 1)), so that nothing in it waits for a process that waits here.
    """
    global _alone
    if _group is None or _alone:
        yield
        return
    if _group.rank > 0:
        _group.wait_for_first()
    _alone = True
    try:
        yield
    finally:
        _alone = False
    if _group.rank == 0:
        _group.first_is_done()


def tell(text: str) -> str:
    """The first process's `text`, in every process."""
    return text if _group is None or _alone else _group.tell(text)


def tell_path(find: Callable[[], Path | None]) -> Path | None:
    """What the first process found, in every process; only that one looks."""
    found = tell(str(find() or "") if place()[0] == 0 else "")
    return Path(found) if found else None


def same_everywhere(what: str, text: str) -> None:
    """Raise RankError in every process that has another `text` than the first: it would train something else."""
    said = tell(text)
    if said != text:
        raise RankError(f"Process {place()[0]} has another {what} than process 0: {text[:200]}", expected=said[:200],
                        do="All machines need the same command, versions, data and run folder (a shared disk).")  # fmt: skip


def seen_everywhere(path: Path) -> None:
    """Raise RankError in every process that does not find a file as the first process wrote it: it has other disks."""
    if place()[1] == 1:
        return
    said = tell(path.read_text() if place()[0] == 0 else "")
    end_s = time.monotonic() + DISK_S
    while not (path.exists() and path.read_text() == said):
        if time.monotonic() > end_s:
            raise RankError(f"Process {place()[0]} does not see {path} as process 0 wrote it.",
                            expected="a run folder on a disk that all machines share, at the same path")  # fmt: skip
        time.sleep(0.1)


def agree(*numbers: int) -> list[int]:
    """The largest of each number over all processes."""
    if place()[1] == 1:
        return list(numbers)
    largest = torch.tensor(numbers)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def slowest(seconds: float) -> float:
    """The longest of the processes' times, so that all of them decide alike."""
    return agree(round(seconds * 1e9))[0] / 1e9


def mean_numbers(loss: float, numbers: dict[str, float]) -> tuple[float, dict[str, float]]:
    """The means over processes of a loss and of named numbers that all of them have."""
    if place()[1] == 1:
        return loss, numbers
    sums = all_reduce_sum(torch.tensor([loss, *numbers.values()], dtype=torch.float64))
    mean, *means = (sums / place()[1]).tolist()
    return mean, dict(zip(numbers, means, strict=True))


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over all processes, without gradient; the tensor itself when there is one process."""
    return _reduced(x, dist.ReduceOp.SUM)


def all_reduce_max(x: Tensor) -> Tensor:
    """Largest over all processes, without gradient; the tensor itself when there is one process."""
    return _reduced(x, dist.ReduceOp.MAX)


def divisor(own: Tensor, rows: int) -> Tensor:
    """What a loss divides by that is a sum over pictures divided by another sum over pictures.

    The mean over processes of sum(a) / divisor(sum(b), pictures), weighted with their pictures, is sum(a) / sum(b) over everything.
    `own` is sum(b) of this process's `rows` pictures, without gradient.
    """
    if place()[1] == 1:
        return own
    total, count = all_reduce_sum(torch.stack([own.detach(), own.new_tensor(rows)]))
    return total * rows / count


def mean_rows(own: Tensor, rows: int) -> Tensor:
    """The mean over all pictures, without gradient, of what is `own`, a mean over this process's `rows` pictures."""
    if place()[1] == 1:
        return own
    sums = all_reduce_sum(torch.cat([own.detach().flatten() * rows, own.new_tensor([rows])]))
    return (sums[:-1] / sums[-1]).view_as(own)


def joined_moments(mean: Tensor, var: Tensor, count: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance per column (C,) of all processes' numbers and their count (), from those of each; one message."""
    C = len(mean)
    parts = gather(torch.cat([mean, var, mean.new_tensor([count])]).detach()[None])
    means, variances, counts = parts.double().split([C, C, 1], 1)
    total = counts.sum()
    joined = (means * counts).sum(0) / total
    spread = ((variances + (means - joined).square()) * counts).sum(0) / total
    return joined.to(mean.dtype), spread.to(mean.dtype), total


def deviation(x: Tensor) -> Tensor:
    """Standard deviation (D,) over the rows of all processes' (B, D), unbiased, without gradient."""
    if place()[1] == 1:
        return x.std(0)
    var, mean = torch.var_mean(x.detach(), 0, correction=0)
    _, joined, total = joined_moments(mean, var, len(x))
    return (joined * total.to(joined.dtype) / (total - 1).to(joined.dtype)).sqrt()


def rows_before(rows: int) -> int:
    """How many rows stand before this process's `rows` when `gather` joins them."""
    return int(gather(torch.tensor([rows]))[: place()[0]].sum())


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """Join the tensors of all processes along `dim`, in the order of ranks; they may differ in size there.

    Gradients flow back to the process that each part came from, summed over the processes that used it.
    """
    return x if place()[1] == 1 else _Gather.apply(x, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        rank, world = place()
        x = x.movedim(dim, 0).contiguous()
        sizes = torch.zeros(world, dtype=torch.int64, device=x.device)
        sizes[rank] = len(x)
        dist.all_reduce(sizes)
        ctx.dim, ctx.sizes = dim, sizes.tolist()
        padded = x.new_zeros(max(ctx.sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        whole = torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])
        return whole.movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.movedim(ctx.dim, 0).clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.sizes)[place()[0]].movedim(0, ctx.dim), None


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients over all processes; a parameter that none of them used keeps none.

    Parameters that are sharded (core/shard.py) have been averaged by the backward pass and are left alone.
    """
    rank, world = place()
    if world == 1:
        return
    whole = [p for p in parameters if not hasattr(p, "device_mesh")]
    used = all_reduce_sum(torch.tensor([p.grad is not None for p in whole], dtype=torch.int32)).tolist()
    for p, count in zip(whole, used, strict=True):
        if count and p.grad is None:
            p.grad = torch.zeros_like(p)
    messages: list[tuple[list[Tensor], Tensor, Any]] = []
    for gradients in _bundles([p.grad for p in whole if p.grad is not None]):
        flat = torch.cat([g.flatten() for g in gradients])
        messages.append((gradients, flat, dist.all_reduce(flat, async_op=True)))
    for gradients, flat, work in messages:
        work.wait()
        flat /= world
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def _bundles(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in their order, in bundles of one type and of at most MESSAGE_NUMBERS (or a single larger one)."""
    bundle: list[Tensor] = []
    for g in gradients:
        if bundle and (g.dtype != bundle[0].dtype or sum(b.numel() for b in bundle) + g.numel() > MESSAGE_NUMBERS):
            yield bundle
            bundle = []
        bundle.append(g)
    if bundle:
        yield bundle


def _reduced(x: Tensor, how: Any) -> Tensor:
    if place()[1] == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, how)
    return x
