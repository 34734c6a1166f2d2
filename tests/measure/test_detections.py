"""ADD and MDR: against a slow loop, and of what a colour shows."""

from __future__ import annotations

import numpy as np
import pytest

from selftaught.measure.detections import add_mdr, colour_spots


def test_add_and_mdr_are_those_of_a_slow_loop() -> None:
    draw = np.random.default_rng(0)
    real, found = draw.uniform(0, 40, (2, 5, 7, 2))
    real[draw.random((5, 7)) < 0.2] = np.nan
    found[draw.random((5, 7)) < 0.3] = np.nan
    away, missed, seen = [], 0, 0
    for i in range(5):
        for t in range(7):
            if np.isnan(real[i, t, 0]):
                continue
            seen += 1
            if np.isnan(found[i, t, 0]):
                missed += 1
            else:
                away.append(float(((real[i, t] - found[i, t]) ** 2).sum()) ** 0.5)
    score = add_mdr(found, real)
    assert score.add_px == pytest.approx(np.mean(away)) and score.both == len(away)
    assert score.mdr == pytest.approx(100 * missed / seen)
    nothing = add_mdr(np.full((3, 2), np.nan), np.zeros((3, 2)))
    assert np.isnan(nothing.add_px) and nothing.mdr == 100
    assert add_mdr(real, real)[:2] == (0.0, 0.0)
    with pytest.raises(ValueError, match="centres"):
        add_mdr(np.zeros((3, 2)), np.zeros((2, 2)))


def test_the_largest_spot_of_a_colour_is_found() -> None:
    frames = np.zeros((2, 3, 20, 30))
    red = np.array([0.95, 0.4, 0.4])[:, None, None]
    frames[0, :, 4:9, 10:13] = red  # the figure
    frames[0, :, 15:17, 2:4] = red  # a smaller spot of the same colour
    frames[1, :, 4:5, 10:12] = red  # too small
    centres, sizes = colour_spots(frames, (244, 102, 102))
    np.testing.assert_allclose(centres[0], (11, 6))
    assert sizes.tolist() == [15, 0] and np.isnan(centres[1]).all()
    assert np.isnan(colour_spots(frames, (0, 255, 0))[0]).all()
    with pytest.raises(ValueError, match="frames"):
        colour_spots(np.zeros((4, 5)), (0, 0, 0))
