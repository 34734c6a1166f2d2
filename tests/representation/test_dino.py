"""DINO: loss, Sinkhorn and KoLeo against slow loops, known values, teacher and centre, and the method class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught.method import EMA, Progress
from selftaught.representation.dino import DINO, DINOConfig, Head, dino_loss, koleo_loss, sinkhorn

TINY: Any = DINO.sizes["tiny"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_dino(teacher: Tensor, student: list[Tensor], tau: float) -> float:
    """Equation 3 in float64: all pairs of a large crop of the teacher and another crop of the student."""
    total, pairs = 0.0, 0
    for t in range(2):
        for v in range(len(student)):
            if v == t:
                continue
            pairs += 1
            B = len(student[v])
            for b in range(B):
                scores = [x / tau for x in student[v][b].double().tolist()]
                norm = math.log(sum(math.exp(x) for x in scores))
                total -= sum(p * (s - norm) for p, s in zip(teacher[t][b].tolist(), scores, strict=True)) / B
    return total / pairs


@pytest.mark.parametrize(("V", "B", "K"), [(2, 1, 2), (2, 3, 5), (4, 2, 3), (6, 4, 7)])
def test_the_loss_is_equation_3(V: int, B: int, K: int) -> None:
    for seed in range(3):
        draw = generator(seed)
        teacher = torch.softmax(3 * torch.randn(2, B, K, generator=draw, dtype=torch.float64), -1)
        student = [torch.randn(B, K, generator=draw, dtype=torch.float64) for _ in range(V)]
        assert float(dino_loss(teacher, student, 0.1)) == pytest.approx(slow_dino(teacher, student, 0.1), rel=2e-6)


def test_two_classes_by_hand() -> None:
    teacher = torch.tensor([[[0.75, 0.25]], [[1.0, 0.0]]])
    student = [torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])]
    # Teacher 0 meets student 1 (3/4, 1/4), teacher 1 meets student 0 (1/2, 1/2); temperature 1.
    expected = (-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - math.log(0.5)) / 2
    assert float(dino_loss(teacher, student, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_uniform_scores_cost_ln_k_and_order_does_not_matter() -> None:
    draw = generator(3)
    teacher = torch.softmax(torch.randn(2, 5, 6, generator=draw), -1)
    student = [torch.randn(5, 6, generator=draw) for _ in range(4)]
    assert float(dino_loss(teacher, [torch.zeros(5, 6)] * 3, 0.1)) == pytest.approx(math.log(6), abs=1e-6)
    loss, order = float(dino_loss(teacher, student, 0.1)), torch.randperm(5, generator=draw)
    assert float(dino_loss(teacher[:, order], [s[order] for s in student], 0.1)) == pytest.approx(loss, rel=1e-6)
    classes = torch.randperm(6, generator=draw)
    assert float(dino_loss(teacher[..., classes], [s[:, classes] for s in student], 0.1)) == pytest.approx(loss, rel=1e-6)
    assert float(dino_loss(teacher, [*student[:2], student[3], student[2]], 0.1)) == pytest.approx(loss, rel=1e-6)


def slow_sinkhorn(scores: list[list[float]], temperature: float, iterations: int) -> list[list[float]]:
    """Divide columns by K times their sum, then rows by B times theirs, again and again."""
    B, K = len(scores), len(scores[0])
    top = max(max(row) for row in scores)
    q = [[math.exp((x - top) / temperature) for x in row] for row in scores]
    for _ in range(iterations):
        for k in range(K):
            total = sum(q[b][k] for b in range(B))
            for b in range(B):
                q[b][k] /= total * K
        for b in range(B):
            total = sum(q[b])
            q[b] = [x / (total * B) for x in q[b]]
    return [[x * B for x in row] for row in q]


@pytest.mark.parametrize(("B", "K"), [(1, 2), (6, 3), (4, 8), (16, 4)])
def test_sinkhorn_is_the_slow_one(B: int, K: int) -> None:
    scores = torch.randn(B, K, generator=generator(B), dtype=torch.float64) * 0.1
    expected = slow_sinkhorn(scores.tolist(), 0.05, 3)
    np.testing.assert_allclose(sinkhorn(scores, 0.05).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_sinkhorn_balances_the_columns() -> None:
    scores = torch.randn(64, 8, generator=generator(0)) + torch.arange(8)  # the last column is everybody's first choice
    plain = torch.softmax(scores / 0.5, -1)
    balanced = sinkhorn(scores, 0.5, 50)
    torch.testing.assert_close(balanced.sum(1), torch.ones(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(balanced.sum(0), torch.full((8,), 8.0), rtol=0.01, atol=0)
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3).sum(1), torch.ones(64), rtol=0, atol=1e-5)
    assert plain.sum(0).max() > 20
    torch.testing.assert_close(sinkhorn(torch.full((5, 4), 3.0), 0.04), torch.full((5, 4), 0.25))


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_koleo_of_points_on_a_circle(n: int) -> None:
    angles = torch.arange(n) * 2 * math.pi / n
    points = torch.stack([angles.cos(), angles.sin()], 1) * 3
    assert float(koleo_loss(points)) == pytest.approx(-math.log(2 * math.sin(math.pi / n)), abs=1e-5)


def test_koleo_is_the_slow_one_and_spreads() -> None:
    x = torch.randn(9, 4, generator=generator(4), dtype=torch.float64)
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in x.tolist()]
    nearest = [min(math.dist(unit[i], unit[j]) for j in range(9) if j != i) for i in range(9)]
    assert float(koleo_loss(x)) == pytest.approx(-sum(map(math.log, nearest)) / 9, abs=1e-5)
    order = torch.randperm(9, generator=generator(5))
    assert float(koleo_loss(x[order])) == pytest.approx(float(koleo_loss(x)), abs=1e-5)
    y = x.clone().requires_grad_()
    koleo_loss(y).backward()
    assert y.grad is not None and float(koleo_loss(x - 0.01 * y.grad)) < float(koleo_loss(x))
    assert math.isfinite(float(koleo_loss(torch.ones(4, 3)))), "equal vectors"


def test_averages_at_their_limits() -> None:
    source, start = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for momentum in (0.0, 0.25, 1.0):
        average = EMA(start)
        source[1].running_mean += 1.0
        average.update(source, momentum)
        for mine, old, new in zip(average.parameters(), start.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(mine, momentum * old + (1 - momentum) * new, rtol=0, atol=1e-7)
            assert momentum not in (0.0, 1.0) or torch.equal(mine, old if momentum else new)
            assert not mine.requires_grad
        assert torch.equal(average.module[1].running_mean, source[1].running_mean), "buffers are copied"


def test_only_the_student_gets_gradients(pictures: Tensor) -> None:
    method = DINO(TINY).train()
    loss, _ = method.loss(method.prepare(pictures, np.arange(8)), "student", Progress(10, 20))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in method.teacher.parameters())
    trained = {name for name, _ in method.players()["student"].parameters}
    assert trained and not any(name.startswith("teacher.") for name in trained)
    for name, p in method.named_parameters():
        assert name not in trained or p.grad is not None, name


def test_prototypes_stay_fixed_at_first() -> None:
    head = Head(6, 8, 4, 5, False)
    x = torch.randn(3, 6, generator=generator(0))
    head(x, frozen=True).sum().backward()
    assert head.prototypes.grad is None and head.mlp[0].weight.grad is not None
    head(x).sum().backward()
    assert head.prototypes.grad is not None
    scores = head(x)
    assert scores.shape == (3, 5) and float(scores.detach().abs().max()) <= 1 + 1e-6, "cosines"


def test_teacher_and_centre_move_after_the_step(pictures: Tensor) -> None:
    method = DINO(replace(TINY, ema_start=0.9, centre_momentum=0.75)).train()
    with torch.no_grad():
        for p in method.head.parameters():
            p.add_(0.1)
    old = [p.clone() for p in method.teacher.parameters()]
    batch = method.prepare(pictures, np.arange(8))
    seen = method.target(torch.cat(batch[:2]))[1]
    method.loss(batch, "student", Progress(0, 20))
    method.after_step(Progress(0, 20))
    torch.testing.assert_close(method.centre, 0.25 * seen.mean(0), rtol=1e-4, atol=1e-6)
    assert float(method.score_count) == 0 and float(method.score_sum.abs().sum()) == 0
    student = list(method.backbone.parameters()) + list(method.head.parameters())
    for was, now, new in zip(old, method.teacher.parameters(), student, strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * new, rtol=1e-5, atol=1e-7)
    method.loss(batch, "student", Progress(20, 20))
    old = [p.clone() for p in method.teacher.parameters()]
    method.after_step(Progress(20, 20))
    for was, now in zip(old, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=0)


def test_centring_takes_away_what_all_pictures_share(pictures: Tensor) -> None:
    method = DINO(TINY).train()
    big = torch.cat(method.prepare(pictures, np.arange(8))[:2])
    scores = method.target(big)[1]
    method.centre += 50 * torch.eye(TINY.prototypes)[3]
    assert method.target(big)[0][..., 3].max() < 1e-6
    method.centre.copy_(scores.mean(0))
    shares = method.target(big)[0]
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 8))


@pytest.mark.parametrize("targets", ["centre", "sinkhorn"])
@pytest.mark.parametrize("koleo", [0.0, 0.1])
def test_tiny_trains_and_embeds(
    targets: str, koleo: float, train_steps: Callable[..., list[float]], pictures: Tensor
) -> None:
    method = DINO(replace(TINY, targets=targets, koleo=koleo))
    losses = train_steps(method, 3)
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    method.eval()
    with torch.no_grad():
        vectors, maps = method.embed(pictures.float() / 255), method.features(pictures.float() / 255)
    assert vectors.shape == (8, method.backbone.width)
    assert maps.shape == (8, method.backbone.width, 4, 4)
    assert method.encoder() is method.teacher.module["backbone"]  # type: ignore[index]


def test_crops_have_their_sizes_and_none_are_needed(pictures: Tensor) -> None:
    method = DINO(TINY)
    shapes = [tuple(x.shape[1:]) for x in method.prepare(pictures, np.arange(8))]
    assert shapes == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 2
    alone = DINO(replace(TINY, local_crops=0))
    loss, _ = alone.loss(alone.prepare(pictures, np.arange(8)), "student", Progress(0, 20))
    assert math.isfinite(float(loss.detach()))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teacher_temperature": 0.1}, "must be below"),
        ({"teacher_temperature": 0.0}, "above 0"),
        ({"prototypes": 1}, "at least 2 prototypes"),
        ({"local_px": 20}, "multiple of the patches' 8 px"),
        ({"targets": "center"}, "'centre' or 'sinkhorn'"),
        ({"stem": "convolution"}, "'linear' or 'conv'"),
        ({"patch_px": 5}, "not a multiple"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], text: str) -> None:
    config: DINOConfig = replace(TINY, **changes)
    with pytest.raises(ValueError, match=text):
        DINO(config)
