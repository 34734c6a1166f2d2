"""FreeSOLO's losses against hand-computed values and slow loops from the formulas, and which place learns which mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selftaught.measure.baselines import rgb_to_lab
from selftaught.nets.coarse_mask_loss import (
    axis_dice,
    boxes_of_masks,
    focal_loss,
    inside_boxes,
    pair_loss,
    places_of,
    projection_losses,
    same_colours,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_dice_of_two_lines_by_hand() -> None:
    p, t = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    assert float(axis_dice(p, t)) == pytest.approx(1 - 2 / (1.25 + 1), abs=1e-3)
    assert float(axis_dice(t, t)) == pytest.approx(0, abs=1e-6)
    assert float(axis_dice(torch.zeros(3), torch.zeros(3))) == pytest.approx(0, abs=1e-6)
    assert float(axis_dice(t, t.flip(0))) == pytest.approx(1, abs=1e-3)


def test_projections_by_hand() -> None:
    """A 2x2 object in a 4x4 picture and its lower left half: equal largest values along both axes, other means."""
    target, soft = torch.zeros(4, 4), torch.zeros(4, 4)
    target[1:3, 1:3] = 1
    soft[1, 1] = soft[2, 1] = soft[2, 2] = 1
    largest, means = projection_losses(soft, target)
    assert float(largest) == pytest.approx(0, abs=1e-6)
    # Rows: 1/4, 2/4 against 2/4, 2/4; columns: 2/4, 1/4 against the same.
    one = 1 - (2 * (1 / 8 + 1 / 4) + 1e-3) / (1 / 16 + 1 / 4 + 1 / 2 + 1e-3)
    assert float(means) == pytest.approx(2 * one, abs=1e-5)
    wide, _ = projection_losses(torch.ones(4, 4), target)
    assert float(wide) == pytest.approx(2 * (1 - (2 * 2 + 1e-3) / (4 + 2 + 1e-3)), abs=1e-5)


def test_projections_do_not_care_how_a_mask_fills_its_box() -> None:
    """What makes them fit coarse masks: a ring and a disc of one box have the same largest values."""
    yy, xx = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    away = ((yy - 4) ** 2 + (xx - 4) ** 2).sqrt()
    largest, means = projection_losses(((away <= 4) & (away >= 3)).float(), (away <= 4).float())
    assert float(largest) < 1e-6 < 0.05 < float(means)


def test_pairs_against_a_slow_loop() -> None:
    logits = torch.randn(2, 3, 6, 7, generator=generator(0)) * 2
    images = (torch.rand(2, 3, 1, 1, generator=generator(1)) + 0.05 * torch.rand(2, 3, 6, 7, generator=generator(2))).clamp(0, 1)
    boxes = torch.tensor([[[1.0, 1, 4, 5], [0, 0, 7, 6], [3, 2, 4, 3]]]).repeat(2, 1, 1)
    same = same_colours(images, (6, 7))
    inside = inside_boxes(boxes, (6, 7))
    found = pair_loss(logits, same, inside)
    m, counts = logits.sigmoid(), []
    for b in range(2):
        lab = rgb_to_lab(images[b].permute(1, 2, 0).numpy())
        for k in range(3):
            x0, y0, x1, y1 = boxes[b, k].tolist()
            terms = {}
            for y in range(6):
                for x in range(7):
                    for dy in (-2, 0, 2):
                        for dx in (-2, 0, 2):
                            v, u = y + dy, x + dx
                            if (dy, dx) == (0, 0) or not (0 <= v < 6 and 0 <= u < 7) or not (x0 <= x < x1 and y0 <= y < y1):
                                continue
                            if math.exp(-0.5 * float(np.linalg.norm(lab[y, x] - lab[v, u]))) < 0.3:
                                continue
                            p = float(m[b, k, y, x] * m[b, k, v, u] + (1 - m[b, k, y, x]) * (1 - m[b, k, v, u]))
                            terms[frozenset(((y, x), (v, u)))] = -math.log(p)  # every pair once
            counts.append(len(terms))
            want = sum(terms.values()) / max(len(terms), 1)
            assert float(found[b, k]) == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert max(counts) > 10 and len(set(counts)) > 2, "some pairs are of one colour, others are not"


def test_pairs_by_hand() -> None:
    """Two pixels two steps apart, one colour: sure and equal costs nothing, sure and unequal much, unsure log 2."""
    images, inside = torch.full((1, 3, 1, 3), 0.5), torch.ones(1, 1, 1, 3, dtype=torch.bool)
    same = same_colours(images, (1, 3))
    assert [s.shape[-2:] for s in same] == [(1, 1), (0, 3), (0, 1), (0, 1)]

    def cost(left: float, right: float) -> float:
        return float(pair_loss(torch.tensor([[[[left, 0.0, right]]]]), same, inside))

    assert cost(20, 20) == pytest.approx(0, abs=1e-4) and cost(-20, -20) == pytest.approx(0, abs=1e-4)
    assert cost(0, 0) == pytest.approx(math.log(2), abs=1e-5) and cost(20, -20) == pytest.approx(20 - math.log(2), abs=0.01)
    images[..., 2] = 0.9
    assert float(pair_loss(torch.tensor([[[[20.0, 0, -20]]]]), same_colours(images, (1, 3)), inside)) == 0, "other colours"


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3), math.log(3)])  # p = 1/2, 3/4, 3/4
    found = focal_loss(logits, torch.tensor([1.0, 1.0, 0.0]))
    want = [0.25 * 0.25 * math.log(2), 0.25 / 16 * math.log(4 / 3), 0.75 * 9 / 16 * math.log(4)]
    assert found.tolist() == pytest.approx(want, rel=1e-5)


def test_boxes_there_and_back() -> None:
    masks = torch.zeros(2, 2, 5, 6, dtype=torch.bool)
    masks[0, 0, 1:3, 2:6], masks[1, 1, 4, 0] = True, True
    boxes = boxes_of_masks(masks)
    assert boxes.tolist() == [[[2, 1, 6, 3], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 4, 1, 5]]]
    assert torch.equal(inside_boxes(boxes, (5, 6)), masks)


def test_which_place_learns_which_mask() -> None:
    masks = torch.zeros(1, 3, 24, 24, dtype=torch.bool)
    masks[0, 0, 2:6, 14:18] = True  # 4 of 24: the fine grid; centre (16, 4) of 24
    masks[0, 1, 0:20, 0:20] = True  # 20 of 24: the coarse grid; centre (10, 10)
    masks[0, 2, 6:10, 14:18] = True  # below the first one: two of its four cells are wanted by that one as well
    found = places_of(masks, (6, 3), (0.0, 0.4), (0.5, 1.0), 0.2)[0]
    fine, coarse = found[:36].view(6, 6), found[36:].view(3, 3)
    assert fine.flatten().unique().tolist() == [-1, 0, 2]
    assert fine[1, 4] == 0 and fine[0, 3] == 0, "0.2 of a box of 4 reaches over the border of four cells"
    assert {(int(y), int(x)) for y, x in (fine == 2).nonzero()} == {(2, 3), (2, 4)}, "the first of several is learned"
    assert {(int(y), int(x)) for y, x in (coarse == 1).nonzero()} == {(1, 1)}
    assert not (coarse == 0).any() and not (fine == 1).any()
    wide = places_of(masks[:, 1:2], (12,), (0.0,), (1.0,), 1.0)[0].view(12, 12)
    assert {(int(y), int(x)) for y, x in (wide == 0).nonzero()} == {(y, x) for y in (4, 5, 6) for x in (4, 5, 6)}, "3x3 at most"
    assert (places_of(torch.zeros(1, 2, 24, 24, dtype=torch.bool), (6,), (0.0,), (1.0,), 0.2) == -1).all()
