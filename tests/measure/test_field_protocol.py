"""The conventions, one by one: the same masks and boxes, and the other number that the other code would have printed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from selftaught.core.config import override
from selftaught.core.errors import ConfigError
from selftaught.data.field_sets import WrittenBox
from selftaught.measure.box_rules import FoundBoxes
from selftaught.measure.field_protocol import (
    PROTOCOLS,
    BoxTally,
    MaskTally,
    Protocol,
    fitted_boxes,
    fitted_mask,
    foreground,
    is_right,
    protocol_of,
    shown_picture,
    true_boxes,
)

PLAIN = Protocol()


def fixture() -> tuple[list[np.ndarray], np.ndarray]:
    """Two 8x8 predictions (uint8) and their truth, the worked example of the conventions of max F."""
    i, j = np.mgrid[:8, :8]
    truth = (i >= 2) & (i <= 5) & (j >= 1) & (j <= 4)
    first = np.where(truth, 100 + 10 * ((7 * i + 11 * j) % 13), 10 * ((5 * i + 3 * j) % 17))
    second = np.where(truth, 60 + 5 * ((7 * i + 11 * j) % 13), 40 + 6 * ((5 * i + 3 * j) % 17))
    return [first.astype(np.uint8), second.astype(np.uint8)], truth


def scored(protocol: Protocol) -> dict[str, float]:
    predictions, truth = fixture()
    tally = MaskTally(protocol)
    for grey in predictions:
        tally.add(grey / 255, truth * np.uint8(255))
    return {name: score.value for name, score in tally.scores().items()}


@pytest.mark.parametrize(
    ("changes", "max_f"),
    [
        ({}, 0.420726),
        ({"levels": 256}, 0.420726),
        ({"max_f": "per_image"}, 0.568692),
        ({"max_f": "per_image_b09"}, 0.615188),
        ({"stretch": True}, 0.458627),
    ],
)
def test_max_f_of_the_worked_example(changes: dict[str, Any], max_f: float) -> None:
    found = scored(replace(PLAIN, **changes))
    assert found["max_f"] == pytest.approx(max_f, abs=1e-6)
    assert found["iou"] == pytest.approx(0.222222, abs=1e-6) and found["accuracy"] == pytest.approx(0.718750)
    assert found["mae"] == pytest.approx(0.411540, abs=1e-6) and found["weighted_f"] == pytest.approx(0.443857, abs=1e-6)
    assert found["s_measure"] == pytest.approx(0.479489, abs=1e-6) and found["e_measure"] == pytest.approx(0.411225, abs=1e-6)


def test_the_presets_reproduce_the_numbers_of_their_codes() -> None:
    want = {"move": 0.420726, "tokencut": 0.420726, "talk": 0.420726, "selfmask": 0.615188, "pysodmetrics": 0.458627}
    assert set(want) == {name for name, kinds in PROTOCOLS.items() if "masks" in kinds}
    for name, value in want.items():
        assert scored(PROTOCOLS[name]["masks"])["max_f"] == pytest.approx(value, abs=1e-6), name


def test_grey_edges_of_the_truth() -> None:
    grey = np.array([[0, 1, 127, 128, 129, 255]], np.uint8)
    cuts = {cut: foreground(grey, replace(PLAIN, truth_cut=cut)).sum() for cut in ("half", "nonzero", "above_128")}  # type: ignore[arg-type]
    assert cuts == {"half": 3, "nonzero": 5, "above_128": 2}
    soft = (grey >= 128).astype(np.float32)
    for cut, value in (("half", 1.0), ("nonzero", 3 / 5)):
        tally = MaskTally(replace(PLAIN, truth_cut=cut))  # type: ignore[arg-type]
        tally.add(np.repeat(soft, 4, 0), np.repeat(grey, 4, 0))
        assert tally.scores()["iou"].value == pytest.approx(value)


@pytest.mark.parametrize(("empty", "value", "n"), [("one", 0.75, 2), ("zero", 0.25, 2), ("left_out", 0.5, 1)])
def test_a_picture_without_an_object(empty: Any, value: float, n: int) -> None:
    tally = MaskTally(replace(PLAIN, empty_iou=empty))
    grey = np.zeros((4, 4), np.uint8)
    tally.add(np.zeros((4, 4), np.float32), grey)
    grey = grey.copy()
    grey[:2, :2] = 255
    soft = np.zeros((4, 4), np.float32)
    soft[:2] = 1
    tally.add(soft, grey)
    score = tally.scores()["iou"]
    assert score.value == pytest.approx(value) and score.n == n


def test_the_threshold_is_strict_and_can_be_moved() -> None:
    soft, grey = np.full((4, 4), 0.5, np.float32), np.full((4, 4), 255, np.uint8)
    for threshold, value in ((0.5, 0.0), (0.4, 1.0)):
        tally = MaskTally(replace(PLAIN, threshold=threshold))
        tally.add(soft, grey)
        assert tally.scores()["iou"].value == value


@pytest.mark.parametrize(
    ("changes", "size", "inside"),
    [
        ({}, (33, 50), (33, 50)),
        ({"short_px": 66}, (66, 100), (66, 100)),
        ({"shown": "nearest", "multiple_px": 16}, (32, 48), (32, 48)),
        ({"shown": "pad_zero", "multiple_px": 16}, (48, 64), (33, 50)),
        ({"shown": "pad_reflect", "multiple_px": 8, "short_px": 44}, (48, 72), (44, 67)),
    ],
)
def test_what_the_method_is_shown(changes: dict[str, Any], size: tuple[int, int], inside: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (33, 50, 3)).astype(np.uint8)
    protocol = replace(PLAIN, **changes)
    shown, kept = shown_picture(image, protocol)
    assert shown.shape == (*size, 3) and kept == inside and shown.dtype == np.uint8
    if protocol.shown == "pad_zero":
        assert np.array_equal(shown[:33, :50], image) and not shown[33:].any() and not shown[:, 50:].any()
    if protocol.shown == "pad_reflect":
        assert np.array_equal(shown[44], shown[42]) and np.array_equal(shown[:, 67], shown[:, 65])
    # What lies in the padding never reaches the answer, whose size is that of the truth.
    soft = np.zeros(size, np.float32)
    soft[inside[0] :], soft[:, inside[1] :] = 1, 1
    fitted = fitted_mask(soft, kept, (33, 50), protocol)
    assert fitted.shape == (33, 50) and not fitted.any()
    boxes = fitted_boxes(FoundBoxes(np.array([[0.0, 0, size[1], size[0]]]), np.ones(1)), kept, (33, 50))
    np.testing.assert_allclose(boxes.boxes, [[0, 0, 50, 33]])


def test_a_picture_smaller_than_its_padding_can_be_shown() -> None:
    shown, inside = shown_picture(np.ones((3, 2, 3), np.uint8), Protocol("pad_reflect", multiple_px=8))
    assert shown.shape == (8, 8, 3) and inside == (3, 2) and shown.all()


def test_eight_bits_round_before_the_resize() -> None:
    soft = np.full((4, 4), 0.5, np.float32)
    assert fitted_mask(soft, (4, 4), (4, 4), PLAIN)[0, 0] == 0.5
    assert fitted_mask(soft, (4, 4), (4, 4), replace(PLAIN, eight_bit=True))[0, 0] == pytest.approx(128 / 255)


def test_corners_of_voc_and_coco() -> None:
    voc = [WrittenBox((1, 1, 60, 40)), WrittenBox((5, 6, 9, 9), hard=True)]
    assert true_boxes(voc, "voc07", PLAIN).tolist() == [[0, 0, 60, 40], [4, 5, 9, 9]]
    assert true_boxes(voc, "voc12", replace(PLAIN, voc_start="as_written")).tolist() == [[1, 1, 60, 40], [5, 6, 9, 9]]
    assert true_boxes(voc, "voc07", replace(PLAIN, hard="left_out")).tolist() == [[0, 0, 60, 40]]
    coco = [WrittenBox((1.4, 2.6, 10.2, 20.0)), WrittenBox((0, 0, 60, 40), crowd=True)]
    assert true_boxes(coco, "coco20k", PLAIN).tolist() == [[1, 3, 12, 23]]
    exact = true_boxes(coco, "coco20k", replace(PLAIN, coco_rounded=False, crowds="kept"))
    np.testing.assert_allclose(exact, [[1.4, 2.6, 11.6, 22.6], [0, 0, 60, 40]])
    assert true_boxes([], "coco20k", PLAIN).shape == (0, 4)


def test_a_box_at_exactly_the_limit() -> None:
    truth, half = np.array([[0.0, 0, 10, 10]]), np.array([0.0, 0, 10, 5])
    assert is_right(half, truth, PLAIN) == 1
    assert is_right(half, truth, replace(PLAIN, at_box_iou="wrong")) == 0, "the slides say greater than"
    assert is_right(half, truth, replace(PLAIN, iou_eps=1e-7)) == 0, "LOST's epsilon has the same effect"
    more = np.array([0.0, 0, 10, 5.1])
    assert all(is_right(more, truth, replace(PLAIN, **c)) for c in ({}, {"at_box_iou": "wrong"}, {"iou_eps": 1e-7}))  # type: ignore[arg-type]
    assert is_right(None, truth, PLAIN) == 0 and np.isnan(is_right(half, np.zeros((0, 4)), PLAIN))
    assert is_right(np.array([3.0, 3, 3, 3]), np.array([[3.0, 3, 3, 3]]), PLAIN) == 0, "boxes without area"


def test_one_pixel_of_the_corner_changes_corloc() -> None:
    """A box that is right when 1 is taken from xmin and ymin, and wrong when it is not."""
    written = [WrittenBox((1, 1, 4, 4))]
    box = np.array([0.0, 0.0, 4.0, 2.0])
    assert is_right(box, true_boxes(written, "voc07", PLAIN), PLAIN) == 1
    assert is_right(box, true_boxes(written, "voc07", replace(PLAIN, voc_start="as_written")), PLAIN) == 0


def test_corloc_takes_the_best_box_and_ap_takes_all() -> None:
    tally = BoxTally(PLAIN)
    truth = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    tally.add(FoundBoxes(np.array([[50.0, 50, 60, 60], [0, 0, 10, 10]]), np.array([0.4, 0.9])), truth)
    tally.add(FoundBoxes(np.array([[50.0, 50, 60, 60], [0, 0, 10, 10]]), np.array([0.9, 0.4])), truth)
    tally.add(FoundBoxes(np.zeros((0, 4)), np.zeros(0)), truth)
    tally.add(FoundBoxes(np.array([[0.0, 0, 9, 9]]), np.ones(1)), np.zeros((0, 4)))
    scores = tally.scores({"same": tally})
    assert scores["corloc"].value == pytest.approx(1 / 3) and scores["corloc"].n == 3
    assert scores["ar100"].value == pytest.approx(2 / 6)
    assert 0 < scores["ap50"].value < 1 and scores["ap50"].baselines["same"] == scores["ap50"].value
    nothing = BoxTally(PLAIN)
    nothing.add(FoundBoxes(np.zeros((0, 4)), np.zeros(0)), np.zeros((0, 4)))
    assert nothing.scores() == {} and MaskTally(PLAIN).scores() == {}


def test_names_values_and_what_is_printed() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'tokencut'"):
        protocol_of("tokenct", "masks")
    with pytest.raises(ConfigError, match="not for data sets with masks"):
        protocol_of("lost", "masks")
    changed = override(protocol_of("move", "masks"), ["truth_cut=nonzero", "levels=255"])
    assert (changed.truth_cut, changed.levels, changed.short_px) == ("nonzero", 255, 448)
    for wrong in (["truth_cut=third"], ["levels=100"], ["max_g=per_image"], ["threshold=1"]):
        with pytest.raises(ConfigError):
            override(protocol_of("move", "masks"), wrong)
    lines = changed.lines("masks")
    assert "truth_cut = nonzero" in lines and not any(line.startswith("voc_start") for line in lines)
    assert any(line.startswith("voc_start") for line in changed.lines("boxes"))
