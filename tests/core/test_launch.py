"""Two processes compute what one does: losses, gradients, statistics, draws; and what they tell each other.

This file is run by each of two processes as a program: it does every check in `CHECKS` and prints what failed. A batch of 9 is
divided 5 to 4.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forked import Program
from selftaught.core import draws, launch, seeds, shard
from selftaught.core.errors import RankError
from selftaught.data import image_ops
from selftaught.data.augment import augment, draw_view, simclr_view
from selftaught.method import Progress
from selftaught.nets.batchnorm import JoinedBatchNorm, join_batch_norms
from selftaught.registry import load_class
from selftaught.representation.dino import dino_loss, koleo_loss, sinkhorn
from selftaught.representation.mae import mae_loss
from selftaught.representation.simclr import nt_xent
from selftaught.segmentation.selfmask import ranking_loss

ROWS = 9
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Register a check that both processes do."""
    CHECKS[function.__name__] = function
    return function


class Alone:
    """A block in which a process computes as the only one."""

    def __enter__(self) -> None:
        launch._alone = True

    def __exit__(self, *_: Any) -> None:
        launch._alone = False


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Raise unless two tensors agree relative to the largest number in them."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    assert a.shape == b.shape, (a.shape, b.shape)
    assert (a - b).abs().max() <= tolerance * b.abs().max(), (a, b)


def same_loss_and_gradient(loss: Callable[..., Tensor], *inputs: Tensor, rows: int = 0) -> None:
    """Compare `loss` over the divided `inputs` with that over all of them; gradients of inputs stand for those of parameters."""
    with Alone():
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        wanted = loss(*leaves)
        wanted.backward()
    with draws.share(ROWS) as mine:
        here = (slice(None),) * rows + (mine,)
        own = [x[here].clone().requires_grad_(x.is_floating_point()) for x in inputs]
        value = loss(*own) * draws.weight(ROWS)
        value.backward()
    world = launch.place()[1]
    close(launch.all_reduce_sum(value) / world, wanted.detach())
    checked = 0
    for x, whole in zip(own, leaves, strict=True):
        if whole.grad is not None and whole.grad.abs().max() > 0:
            assert x.grad is not None
            close(x.grad / world, whole.grad[here])
            checked += 1
    assert checked, "no gradient at all"


@check
def nt_xent_tells_pictures_from_those_of_all() -> None:
    same_loss_and_gradient(lambda a, b: nt_xent(a, b, 0.2), made(ROWS, 6), made(ROWS, 6, seed=1))


@check
def koleo_looks_for_neighbours_everywhere() -> None:
    x = made(ROWS, 5)
    x[ROWS - 1] = x[0] + 0.01  # neighbours in different processes
    same_loss_and_gradient(koleo_loss, x)


def dino(targets: str) -> Callable[..., Tensor]:
    def loss(teacher: Tensor, *student: Tensor) -> Tensor:
        scores = teacher.detach()
        if targets == "sinkhorn":
            probabilities = [sinkhorn(s, 0.1) for s in scores.unbind(1)]
        else:
            count = launch.all_reduce_sum(torch.tensor(float(len(scores))))
            centre = launch.all_reduce_sum(scores.sum((0, 1))) / (2 * count)
            probabilities = list(torch.softmax((scores - centre) / 0.04, -1).unbind(1))
        return dino_loss(torch.stack(probabilities), list(student), 0.1)

    return loss


@check
def dino_with_a_centre() -> None:
    same_loss_and_gradient(dino("centre"), made(ROWS, 2, 7), *[made(ROWS, 7, seed=s) for s in (1, 2, 3)])


@check
def dino_with_sinkhorn() -> None:
    same_loss_and_gradient(dino("sinkhorn"), made(ROWS, 2, 7), *[made(ROWS, 7, seed=s) for s in (1, 2, 3)])
    scores = made(ROWS, 7)
    with Alone():
        wanted = sinkhorn(scores, 0.1)
    close(sinkhorn(scores[draws.part_of(ROWS)], 0.1), wanted[draws.part_of(ROWS)])


@check
def mae_with_unequal_masks() -> None:
    hidden = (torch.arange(12) < torch.arange(1, ROWS + 1)[:, None]).long()
    patches = made(ROWS, 12, 6).sigmoid()
    same_loss_and_gradient(lambda painted, p, h: mae_loss(painted, p.detach(), h, True), made(ROWS, 12, 6, seed=1), patches, hidden)


@check
def ranking_with_unequal_pairs() -> None:
    dice = made(ROWS, 4, seed=1)
    dice[:3] = 0.5  # ties are no pairs
    same_loss_and_gradient(lambda s, d: ranking_loss(s, d.detach()), made(ROWS, 4), dice)


@check
def batch_norm_sees_the_whole_batch() -> None:
    for shape, plain in (((ROWS, 4), nn.BatchNorm1d(4, momentum=None)), ((ROWS, 4, 3, 5), nn.BatchNorm2d(4)),
                         ((ROWS, 4), nn.BatchNorm1d(4, affine=False, momentum=0.3))):  # fmt: skip
        if plain.affine:
            plain.weight.data, plain.bias.data = made(4, seed=2), made(4, seed=3)
        x, wish = made(*shape) * 3 + 5, made(*shape, seed=4)
        joined = nn.Sequential(nn.ModuleDict({"a": type(plain)(4)})["a"])  # any tree
        joined[0] = type(plain)(4, affine=plain.affine, momentum=plain.momentum)
        joined[0].load_state_dict(plain.state_dict())
        names = list(joined.state_dict())
        join_batch_norms(joined)
        assert isinstance(joined[0], JoinedBatchNorm) and list(joined.state_dict()) == names
        mine = draws.part_of(ROWS)
        for _ in range(2):
            with Alone():
                whole = x.clone().requires_grad_()
                (plain(whole) * wish).mean().backward()
            own = x[mine].clone().requires_grad_()
            ((joined(own) * wish[mine]).mean() * draws.weight(ROWS)).backward()
            close(own.grad / launch.place()[1], whole.grad[mine])
        launch.average_gradients(list(joined.parameters()))
        for mine_too, wanted in zip(joined.parameters(), plain.parameters(), strict=True):
            close(mine_too.grad, wanted.grad)
        for key, value in plain.state_dict().items():
            close(joined.state_dict()[f"0.{key}"], value)
        with Alone():
            wanted_out = plain.eval()(x)
        close(joined.eval()(x), wanted_out)
        half = joined.train()(x[mine].bfloat16())
        assert half.dtype == torch.bfloat16


@check
def statistics_over_all_rows() -> None:
    x, mine = made(ROWS, 5) + 100, draws.part_of(ROWS)
    close(launch.deviation(x[mine]), x.std(0), 1e-4)
    close(launch.mean_rows(x[mine].mean(0), len(x[mine])), x.mean(0))
    assert launch.rows_before(len(x[mine])) == mine.start
    close(launch.gather(x[mine].T, dim=1), x.T, 0)
    assert float(launch.all_reduce_max(torch.tensor(float(mine.stop)))) == ROWS


@check
def the_same_is_drawn_for_a_picture_whoever_has_it() -> None:
    def drawn() -> list[Tensor]:
        return [draws.rand(B), draws.randn(3, B, rows=1), draws.randint(7, B, 2), torch.rand(1), draws.rand(2, B, rows=-1)]

    torch.manual_seed(3)
    B = ROWS
    with Alone():
        wanted = drawn()
        torch.manual_seed(3)
        plain = [torch.rand(B), torch.randn(3, B), torch.randint(7, (B, 2)), torch.rand(1), torch.rand(2, B)]
        assert all(map(torch.equal, wanted, plain)), "one process draws as torch does"
    torch.manual_seed(3)
    with draws.share(ROWS) as mine:
        B = mine.stop - mine.start
        found = drawn()
        for d, (f, w) in enumerate(zip(found, wanted, strict=True)):
            here = {1: (slice(None), mine), 3: (slice(None),), 4: (slice(None), mine)}.get(d, (mine,))
            assert torch.equal(f, w[here]), d
        try:
            draws.rand(B + 1)
        except ValueError as error:
            assert "draw for all" in str(error)
        else:
            raise AssertionError("a number that would depend on the division was drawn")


@check
def views_do_not_depend_on_the_division() -> None:
    images = torch.randint(255, (ROWS, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = simclr_view(16, blur=True)
    torch.manual_seed(5)
    with Alone():
        wanted = [augment(images, view) for _ in range(2)]
    torch.manual_seed(5)
    with draws.share(ROWS) as mine:
        for w in wanted:
            assert torch.equal(augment(images[mine], view), w[mine])


@check
def gradients_that_only_one_has_are_averaged() -> None:
    p = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float32, torch.float64, torch.float32)]
    rank = launch.place()[0]
    p[0].grad = torch.full((3,), 2.0 + rank)
    if rank == 1:
        p[1].grad = torch.full((3,), 4.0)
    p[2].grad = torch.full((3,), 6.0 + rank, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "MESSAGE_NUMBERS", 4)
        launch.average_gradients(p)
    assert [None if x.grad is None else float(x.grad[2]) for x in p] == [2.5, 2.0, 6.5, None]


@check
def they_agree_and_tell() -> None:
    rank = launch.place()[0]
    assert launch.agree(rank, 5 - rank) == [1, 5]
    assert launch.tell(f"rank {rank}") == "rank 0"
    assert launch.mean_numbers(rank, {"a": 2.0 * rank}) == (0.5, {"a": 1.0})
    assert launch.tell_path(lambda: Path(f"of rank {rank}")) == Path("of rank 0") and launch.tell_path(lambda: None) is None
    launch.same_everywhere("word", "same")
    try:
        launch.same_everywhere("word", f"word {rank}")
    except RankError as error:
        assert rank == 1 and "word 1" in str(error) and "word 0" in str(error)
    else:
        assert rank == 0
    path = Path(os.environ["OUT"]) / "order"
    with launch.first():
        assert launch.place() == (0, 1) and path.exists() == (rank == 1)
        path.write_text("here")
        with launch.first():  # nothing waits for a process that waits
            assert launch.tell(f"own {rank}") == f"own {rank}"
    launch.seen_everywhere(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "DISK_S", 0.2)
        try:
            launch.seen_everywhere(path if rank == 0 else path.with_name("elsewhere"))
        except RankError as error:
            assert rank == 1 and "share" in error.expected


@contextmanager
def exactly() -> Iterator[None]:
    """Compute whole methods in double precision: in single, DINO's sharp answers blow up the rounding of a sum in another order."""
    separable = image_ops._separable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(image_ops, "_separable", lambda x, rows, columns: separable(x, rows.to(x), columns.to(x)))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def built(name: str) -> tuple[Any, Tensor]:
    """A method at size tiny with a batch of pictures, as the loop would have them."""
    images = torch.randint(255, (ROWS, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    seeds.seed_all(0, 0, 0)
    cls = load_class(name)
    needs = {n: load_class("dino")(load_class("dino").sizes["tiny"]).eval().requires_grad_(False) for n in cls.needs_of(cls.sizes["tiny"])}
    method = cls(cls.sizes["tiny"], needs)
    if needs:
        method.pseudo = np.random.default_rng(0).integers(0, 2, (ROWS, 4, 4)).astype(np.uint8) * 255
    return method.train(), images


def gradients(name: str, sharded: bool, part: slice | None) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """Loss, logged numbers and gradients of a method over its part of a batch (all of it when None)."""
    method, images = built(name)
    if part is not None:
        join_batch_norms(method)
        if sharded:
            shard.shard(method, "cpu")
    (player,) = method.players()
    seeds.seed_all(0, 0, 1)
    part = part or slice(0, ROWS)
    method.zero_grad()
    with draws.share(ROWS):
        batch = method.prepare(images[part], np.arange(ROWS)[part])
        loss, parts = method.loss(batch, player, Progress(8, 10))
    weight = draws.weight(ROWS)
    (loss * weight).backward()
    launch.average_gradients(list(method.parameters()))
    value, parts = launch.mean_numbers(float(loss.detach()) * weight, {k: v * weight for k, v in parts.items()})
    return value, parts, shard.whole_tensors({n: p.grad for n, p in method.named_parameters() if p.grad is not None})


def method_check(name: str, sharded: bool) -> Callable[[], None]:
    def compare() -> None:
        with exactly():
            with Alone():
                wanted, wanted_parts, wanted_gradients = gradients(name, False, None)
            value, parts, found = gradients(name, sharded, draws.part_of(ROWS))
        close(value, wanted, 1e-7)
        for key, number in wanted_parts.items():
            close(parts[key], number, 1e-7)
        assert found.keys() == wanted_gradients.keys() and len(found) > 10
        largest = max(float(g.abs().max()) for g in wanted_gradients.values())
        for key, g in wanted_gradients.items():
            assert (found[key] - g).abs().max() <= 1e-7 * largest, key

    compare.__name__ = f"{name}_{'sharded' if sharded else 'divided'}"
    return compare


TRAINED = ("simclr", "dino", "mae", "selfmask")
for _name in TRAINED:
    for _sharded in (False, True):
        check(method_check(_name, _sharded))


@pytest.fixture(scope="module")
def results(start_ranks: Callable[..., list[Program]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What failed in each of two processes, by check."""
    found = start_ranks([__file__], OUT=str(tmp_path_factory.mktemp("ranks")))
    answers = [process.communicate(timeout=3000) for process in found]
    for process, text in zip(found, answers, strict=True):
        assert process.returncode == 0, text[-5000:]
    return [json.loads(text.rpartition("RESULTS ")[2].splitlines()[0]) for text in answers]


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(results: list[dict[str, str]], name: str) -> None:
    for rank, result in enumerate(results):
        assert result[name] == "", f"rank {rank}: {result[name]}"


def test_one_process_needs_no_group(tmp_path: Path) -> None:
    x = torch.ones(3, requires_grad=True)
    assert launch.place() == (0, 1) and launch.gather(x) is x and launch.agree(3) == [3]
    assert launch.all_reduce_sum(x) is x and launch.divisor(x, 3) is x and launch.mean_rows(x, 3) is x
    assert launch.tell("word") == "word" and draws.part_of(9) == slice(0, 9) and draws.weight(9) == 1
    with launch.together(), launch.first():
        launch.average_gradients([x])
    launch.seen_everywhere(tmp_path / "nothing")
    torch.manual_seed(0)
    first = draw_view(4, 9, 9, simclr_view(4))
    torch.manual_seed(0)
    with draws.share(4):
        assert torch.equal(draw_view(4, 9, 9, simclr_view(4)).boxes, first.boxes)


def test_parts_cover_a_batch_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (1, 2, 3, 7):
        seen: list[int] = []
        for rank in range(world):
            monkeypatch.setattr(draws, "place", lambda r=rank, w=world: (r, w))
            seen += range(20)[draws.part_of(20)]
        assert seen == list(range(20))


def test_the_formulas_of_the_batch_norm_pass_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    from selftaught.nets.batchnorm import _Normalise

    x, weight, bias = made(5, 3, 2).double().requires_grad_(), made(3, seed=1).double().requires_grad_(), made(3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, w, b: _Normalise.apply(a, w, b, 1e-5)[0], (x, weight, bias))


def test_half_a_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    from selftaught.core.errors import ConfigError

    with pytest.raises(ConfigError, match="MASTER_ADDR.* is not set"), launch.together():
        pass


def main() -> None:
    """Do all checks in this process and print {name: traceback or ""}."""
    torch.set_num_threads(1)
    launch.PATIENCE = timedelta(minutes=3)  # a check that fails in one process makes the other wait
    found = {}
    with launch.together():
        for name, function in CHECKS.items():
            print(name, flush=True)  # says which check hangs
            try:
                function()
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
    print("RESULTS", json.dumps(found))


if __name__ == "__main__":
    main()
    sys.exit(0)
