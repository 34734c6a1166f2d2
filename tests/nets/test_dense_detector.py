"""The one-stage detector: targets and losses against slow loops, gradients, answers on hand-made grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.measure.box_rules import non_maximum
from selftaught.measure.boxes import box_iou
from selftaught.nets.dense_detector import DenseHead, best_boxes, dense_loss, pair_iou, targets_of


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(seed: int, *shape: int, side: int = 32) -> Tensor:
    u = torch.rand(*shape, 4, generator=generator(seed), dtype=torch.float64) * side
    return torch.cat([torch.minimum(u[..., :2], u[..., 2:]), torch.maximum(u[..., :2], u[..., 2:])], -1)


def test_pair_iou_is_box_iou_and_giou_is_the_formula() -> None:
    a, b = random_boxes(0, 30), random_boxes(1, 30)
    iou, giou = pair_iou(a, b)
    np.testing.assert_allclose(iou.numpy(), np.diag(box_iou(a, b)), atol=1e-9)
    for i in range(30):
        (x0, y0, x1, y1), (u0, v0, u1, v1) = a[i].tolist(), b[i].tolist()
        hull = (max(x1, u1) - min(x0, u0)) * (max(y1, v1) - min(y0, v0))
        both = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
        union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both
        assert float(giou[i]) == pytest.approx(both / union - (hull - union) / hull, abs=1e-9)
    far = pair_iou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([9.0, 9, 10, 10]))
    assert float(far[0]) == 0 and float(far[1]) == pytest.approx(-0.98)
    empty = torch.zeros(4)
    assert [float(x) for x in pair_iou(empty, empty)] == [0.0, 0.0]


def test_targets_against_a_slow_loop() -> None:
    head = DenseHead(3, 4, 1)
    places = head.places(8, 8).double()
    boxes = random_boxes(2, 5, 3)
    boxes[0, 1] = 0  # no box
    boxes[1] = 0
    found = targets_of(places, boxes, 4)
    for b in range(5):
        for n, (x, y) in enumerate(places.tolist()):
            best, area, inside = None, math.inf, False
            for x0, y0, x1, y1 in boxes[b].tolist():
                if x1 <= x0 or y1 <= y0:
                    continue
                inside |= x0 <= x <= x1 and y0 <= y <= y1
                half_w, half_h = max((x1 - x0) / 4, 2), max((y1 - y0) / 4, 2)
                middle = abs(x - (x0 + x1) / 2) <= half_w and abs(y - (y0 + y1) / 2) <= half_h
                if middle and (x1 - x0) * (y1 - y0) < area:
                    best, area = [x0, y0, x1, y1], (x1 - x0) * (y1 - y0)
            assert bool(found.positive[b, n]) == (best is not None)
            assert bool(found.ignored[b, n]) == (inside and best is None)
            if best:
                assert found.boxes[b, n].tolist() == best
    assert not found.positive[1].any() and not found.ignored[1].any()


def test_a_box_smaller_than_a_cell_is_learned_by_one_place() -> None:
    places = DenseHead(3, 4, 1).places(4, 4)
    found = targets_of(places, torch.tensor([[[5.0, 5.0, 7.0, 7.0]]]), 4)
    assert found.positive.sum() == 1 and places[found.positive[0]].tolist() == [[6, 6]]


@pytest.mark.parametrize("drop_iou", [-1.0, 0.01])
def test_the_losses_against_a_slow_loop(drop_iou: float) -> None:
    B, N, K = 3, 25, 2
    scores = torch.randn(B, N, generator=generator(0), dtype=torch.float64)
    found, boxes = random_boxes(1, B, N, side=20), random_boxes(2, B, K, side=20)
    boxes[2] = 0
    places = (torch.stack(torch.meshgrid(torch.arange(5), torch.arange(5), indexing="xy"), -1).reshape(-1, 2) + 0.5) * 4
    targets = targets_of(places.double(), boxes, 4)
    about_scores, about_boxes, _ = dense_loss(scores, found, boxes, targets, drop_iou)
    want_scores, want_boxes = 0.0, 0.0
    for b in range(B):
        count = int(targets.positive[b].sum())
        if count == 0:
            continue
        for n in range(N):
            iou, giou = (float(x) for x in pair_iou(found[b, n], targets.boxes[b, n]))
            positive = bool(targets.positive[b, n])
            s, y = 1 / (1 + math.exp(-float(scores[b, n]))), iou if positive else 0.0
            near = max(float(pair_iou(found[b, n], boxes[b, k])[0]) for k in range(K))
            if not targets.ignored[b, n] and (positive or near > drop_iou):
                want_scores += abs(y - s) ** 2 * -(y * math.log(s) + (1 - y) * math.log(1 - s)) / count / B
            want_boxes += (1 - giou) / count / B if positive else 0.0
    assert float(about_scores) == pytest.approx(want_scores, rel=1e-9)
    assert float(about_boxes) == pytest.approx(want_boxes, rel=1e-9)


def test_a_picture_without_a_box_teaches_nothing() -> None:
    scores = torch.zeros(1, 9, requires_grad=True)
    found = torch.zeros(1, 9, 4, requires_grad=True)
    boxes = torch.zeros(1, 2, 4)
    targets = targets_of(DenseHead(3, 4, 1).places(3, 3), boxes, 4)
    total = sum(dense_loss(scores, found, boxes, targets)[:2])
    total.backward()  # type: ignore[union-attr]
    assert float(total) == 0 and not scores.grad.any() and not found.grad.any()  # type: ignore[union-attr, arg-type]


def test_gradients_pass_finite_differences() -> None:
    boxes = torch.tensor([[[3.0, 2.0, 13.0, 12.0]]], dtype=torch.float64)
    targets = targets_of(DenseHead(3, 4, 1).places(4, 4).double(), boxes, 4)
    scores = torch.randn(1, 16, generator=generator(3), dtype=torch.float64, requires_grad=True)
    found = random_boxes(4, 1, 16, side=16).requires_grad_()
    # The IoU that scores learn is held fixed, so the two are looked at apart.
    assert torch.autograd.gradcheck(lambda s: dense_loss(s, found.detach(), boxes, targets)[0], scores)
    assert torch.autograd.gradcheck(lambda f: dense_loss(scores.detach(), f, boxes, targets)[1], found)


def test_the_head_says_boxes_around_its_places() -> None:
    torch.manual_seed(0)
    head = DenseHead(5, 8, 1)
    scores, boxes = head(torch.randn(2, 5, 4, 6), torch.rand(2, 3, 32, 48))
    assert scores.shape == (2, 8 * 12) and boxes.shape == (2, 96, 4)
    at = head.places(8, 12)
    assert at[0].tolist() == [2, 2] and at[13].tolist() == [6, 6]
    assert bool(((boxes[..., :2] < at) & (boxes[..., 2:] > at)).all())
    assert float(scores.sigmoid().mean()) == pytest.approx(0.05, abs=0.02)


def test_answers_are_those_of_plain_suppression() -> None:
    scores = torch.rand(4, 60, generator=generator(5))
    scores[3] = 0.005  # nothing is sure enough
    boxes = random_boxes(6, 4, 60).float() * 1.2 - 3  # some reach beyond the picture
    out, values = best_boxes(scores, boxes, 32, 10, 0.01, 0.4)
    assert out.shape == (4, 10, 4) and values.shape == (4, 10)
    for b in range(3):
        clipped = boxes[b].clamp(0, 32)
        real = np.flatnonzero(((clipped[:, 2:] > clipped[:, :2]).all(1) & (scores[b] > 0.01)).numpy())
        kept = real[non_maximum(clipped[real], scores[b][real], 0.4)][:10]
        np.testing.assert_array_equal(values[b, : len(kept)], scores[b][kept])
        np.testing.assert_array_equal(out[b, : len(kept)], clipped[kept])
        assert not values[b, len(kept) :].any() and not out[b, len(kept) :].any()
    assert not out[3].any() and not values[3].any()


def test_fewer_places_than_answers_are_filled_up() -> None:
    out, values = best_boxes(torch.tensor([[0.9, 0.8]]), torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 3]]]), 8, 5, 0.0, 0.5)
    assert out.shape == (1, 5, 4) and values.tolist() == [pytest.approx([0.9, 0, 0, 0, 0])]
