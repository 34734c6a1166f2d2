"""The readings of "the box of a mask": hand-made masks, ties, empty and full ones, and what each rule leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from selftaught.measure.box_rules import DESCRIPTIONS, RULES, boxes_of, non_maximum
from selftaught.measure.boxes import box_iou, largest_component_box


def canvas(*blocks: tuple[int, int, int, int, float], size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """A soft mask of 0.1 with blocks (top, left, height, width, value)."""
    soft = np.full(size, 0.1)
    for top, left, height, width, value in blocks:
        soft[top : top + height, left : left + width] = value
    return soft


def test_the_rules_differ_where_they_should() -> None:
    # A compact block of 64 px, and a thin L of 39 px whose box is larger.
    soft = canvas((2, 2, 8, 8, 0.9), (20, 20, 1, 20, 0.7), (20, 20, 20, 1, 0.7))
    largest, refined, every = (boxes_of(soft, rule) for rule in RULES)  # type: ignore[arg-type]
    assert largest.boxes.tolist() == [[2, 2, 10, 10]] and largest.scores == pytest.approx([0.9])
    assert refined.boxes.tolist() == [[20, 20, 39, 39]] and refined.scores == pytest.approx([0.7]), "inclusive ends"
    assert every.boxes.tolist() == [[2, 2, 10, 10], [20, 20, 40, 40]] and every.scores == pytest.approx([0.9, 0.7])
    assert every.best is not None and every.best.tolist() == [2, 2, 10, 10]
    assert set(DESCRIPTIONS) == set(RULES)


def test_corners_join_pieces_under_refinement_only() -> None:
    soft = canvas((4, 4, 6, 6, 0.8), (10, 10, 6, 6, 0.8))
    assert boxes_of(soft, "refinement").boxes.tolist() == [[4, 4, 15, 15]]
    assert boxes_of(soft, "all").boxes.tolist() == [[4, 4, 10, 10], [10, 10, 16, 16]]


def test_small_pieces_are_left_out_as_each_rule_says() -> None:
    height = 40  # (0.05 * 40)^2 = 4 px^2 is not enough, 6 px^2 is
    soft = canvas((1, 1, 2, 2, 0.9), (10, 10, 2, 3, 0.6), size=(height, 60))
    assert boxes_of(soft, "refinement").boxes.tolist() == [[10, 10, 12, 11]]
    assert len(boxes_of(soft, "all", min_area_frac=5 / 2400).boxes) == 1
    assert len(boxes_of(soft, "all", min_area_frac=4 / 2400).boxes) == 2
    assert len(boxes_of(soft, "all", min_area_frac=0).boxes) == 2


def test_equal_pieces_the_first_in_reading_order_wins() -> None:
    soft = canvas((20, 5, 5, 5, 0.9), (3, 30, 5, 5, 0.6), (30, 50, 5, 5, 0.99))
    for rule in ("largest", "refinement"):
        (box,) = boxes_of(soft, rule).boxes  # type: ignore[arg-type]
        assert box[:2].tolist() == [30, 3]
    assert [b[1] for b in boxes_of(soft, "all").boxes] == [3, 20, 30]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_an_empty_mask(value: float) -> None:
    """0.5 itself is not above 0.5."""
    soft = np.full((30, 50), value)
    for rule in ("largest", "all"):
        found = boxes_of(soft, rule)  # type: ignore[arg-type]
        assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.best is None
    whole = boxes_of(soft, "refinement")
    assert whole.boxes.tolist() == [[0, 0, 50, 30]] and whole.scores.tolist() == [0.0]


def test_a_full_mask_and_a_single_pixel() -> None:
    full = np.ones((30, 50))
    assert boxes_of(full, "largest").boxes.tolist() == boxes_of(full, "all").boxes.tolist() == [[0, 0, 50, 30]]
    assert boxes_of(full, "refinement").boxes.tolist() == [[0, 0, 49, 29]]
    dot = canvas((7, 9, 1, 1, 1.0), size=(30, 50))
    assert boxes_of(dot, "largest").boxes.tolist() == [[9, 7, 10, 8]]
    assert boxes_of(dot, "all").boxes.shape == (0, 4), "one pixel of 1,500 is less than a thousandth"
    assert boxes_of(dot, "refinement").scores.tolist() == [0.0]


def test_largest_is_what_corloc_always_used() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        soft = rng.random((20, 30))
        box = largest_component_box(soft, 0.6)
        assert box is not None and boxes_of(soft, "largest", 0.6).boxes.tolist() == [box.tolist()]


@pytest.mark.parametrize(
    ("soft", "rule", "text"),
    [
        (np.zeros((3, 3, 3)), "largest", "expected a mask"),
        (np.zeros((0, 3)), "largest", "expected a mask"),
        (np.full((3, 3), np.nan), "largest", "finite"),
        (np.zeros((3, 3)), "biggest", "rule"),
    ],
)
def test_bad_input_is_refused(soft: np.ndarray, rule: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        boxes_of(soft, rule)  # type: ignore[arg-type]


def test_non_maximum_suppression_against_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    for count in (0, 1, 40):
        low = rng.integers(0, 30, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(5, 30, (count, 2))], 1).astype(float)
        scores = np.round(rng.random(count), 1)  # with ties
        left, want = sorted(range(count), key=lambda i: (-scores[i], i)), []
        while left:
            best = left.pop(0)
            want.append(best)
            left = [i for i in left if box_iou(boxes[best], boxes[i])[0, 0] <= 0.4]
        assert non_maximum(boxes, scores, 0.4).tolist() == want
    assert non_maximum([[0, 0, 4, 4], [0, 0, 4, 2]], [0.5, 0.9], 0.5).tolist() == [1, 0], "exactly at the limit it stays"
    with pytest.raises(ValueError, match="as many scores"):
        non_maximum(np.zeros((2, 4)), [1.0], 0.5)
