"""Scores of frames against scikit-image and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from selftaught.measure.video import centre_error, centres, difference_psnr, mask_iou, psnr, ssim

RNG = np.random.default_rng(0)
A = RNG.random((2, 3, 3, 24, 32))
B = np.clip(A + 0.1 * RNG.standard_normal(A.shape), 0, 1)


def test_psnr_and_ssim_are_scikit_image_s() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    for b in range(2):
        for t in range(3):
            assert psnr(B, A)[b, t] == pytest.approx(metrics.peak_signal_noise_ratio(A[b, t], B[b, t], data_range=1.0))
    grey = np.repeat(A[:, :, :1], 3, 2)
    assert ssim(A, A) == pytest.approx(np.ones((2, 3))) and (ssim(B, A) < 0.999).all()
    assert ssim(grey, grey * 0.5).shape == (2, 3)
    assert (psnr(A, A) == 100).all()


def test_frames_out_of_range_are_refused() -> None:
    for bad in (A * 2 - 1, A * 255, np.where(A > 0.99, np.nan, A)):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            psnr(bad, A)


def test_a_copied_frame_scores_badly_on_changes() -> None:
    copied = np.repeat(A[:, :1], 3, 1)
    assert (difference_psnr(copied, A) < difference_psnr(B, A)).all()
    want = -10 * np.log10((((copied[0, 1] - copied[0, 0]) / 2 - (A[0, 1] - A[0, 0]) / 2) ** 2).mean())
    assert difference_psnr(copied, A)[0, 0] == pytest.approx(want)


def test_masks_and_centres() -> None:
    m = np.zeros((3, 10, 12))
    m[0, 2:6, 3:9] = 1
    m[1, 2:6, 3:9] = 0.6
    other = np.zeros((3, 10, 12))
    other[:2, 2:6, 5:11] = 1
    assert mask_iou(m, other) == pytest.approx([4 / 8, 4 / 8, 1]), "two empty masks are alike"
    a, b = m[1], other[1]
    assert mask_iou(m, other, soft=True)[1] == pytest.approx((a * b).sum() / (1 - (1 - a) * (1 - b)).sum())
    assert centres(m)[0] == pytest.approx([5.5, 3.5]) and np.isnan(centres(m)[2]).all()
    assert centre_error(m, other)[:2] == pytest.approx([2, 2]) and np.isnan(centre_error(m, other)[2])
    with pytest.raises(ValueError, match="one shape"):
        mask_iou(m, other[:2])
