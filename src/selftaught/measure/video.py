"""Scores of generated frames against true ones, frame by frame: PSNR, SSIM, masks, where the agent is."""

from __future__ import annotations

from typing import Any

import numpy as np

from selftaught.core.errors import ConfigError


def psnr(found: Any, true: Any) -> np.ndarray:
    """(...) peak signal-to-noise ratio in dB of (..., C, H, W) frames in [0, 1]; equal frames have 100.

    Raises ValueError for values outside of [0, 1]: a range that is guessed from the content changes the scores.
    """
    a, b = _frames(found), _frames(true)
    return -10 * np.log10(np.maximum(((a - b) ** 2).mean((-3, -2, -1)), 1e-10))


def difference_psnr(found: Any, true: Any) -> np.ndarray:
    """(B, T - 1) PSNR of the changes from frame to frame of (B, T, C, H, W): a frame that is merely repeated scores badly.

    Differences lie in [-1, 1] and are halved, so that the peak is 1.
    """
    a, b = _frames(found), _frames(true)
    return -10 * np.log10(np.maximum(((np.diff(a, axis=1) / 2 - np.diff(b, axis=1) / 2) ** 2).mean((-3, -2, -1)), 1e-10))


def ssim(found: Any, true: Any) -> np.ndarray:
    """(...) structural similarity of (..., C, H, W) frames in [0, 1] (Wang et al., 2004): Gaussian window of 11 pixels, by scikit-image."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ConfigError("SSIM needs scikit-image.", do="pip install 'selftaught[metrics]'") from error
    a, b = _frames(found), _frames(true)
    shape = a.shape[:-3]
    a, b = a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:])
    values = [
        structural_similarity(x, y, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for x, y in zip(a, b, strict=True)
    ]
    return np.array(values).reshape(shape)


def mask_iou(found: Any, true: Any, soft: bool = False) -> np.ndarray:
    """(...) intersection over union of masks (..., H, W) in [0, 1]: cut at 0.5, or soft, sum(m g) / sum(1 - (1 - m)(1 - g)).

    Where both are empty 1.
    """
    a, b = np.asarray(found, np.float64), np.asarray(true, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"expected masks of one shape, got {a.shape} and {b.shape}")
    if not soft:
        a, b = (a > 0.5).astype(np.float64), (b > 0.5).astype(np.float64)
    both, any_ = (a * b).sum((-2, -1)), (1 - (1 - a) * (1 - b)).sum((-2, -1))
    return np.where(any_ > 0, both / np.maximum(any_, 1e-12), 1.0)


def centres(masks: Any) -> np.ndarray:
    """(..., 2) centre of mass (x, y) in pixels of masks (..., H, W) >= 0; NaN where a mask is empty."""
    m = np.asarray(masks, np.float64)
    total = m.sum((-2, -1))
    total = np.where(total > 1e-6, total, np.nan)
    x = (m.sum(-2) * np.arange(m.shape[-1])).sum(-1) / total
    y = (m.sum(-1) * np.arange(m.shape[-2])).sum(-1) / total
    return np.stack([x, y], -1)


def centre_error(found: Any, true: Any) -> np.ndarray:
    """(...) distance in pixels of the centres of masks (..., H, W), cut at 0.5; NaN where one is empty."""
    a, b = (np.asarray(m) > 0.5 for m in (found, true))
    return np.linalg.norm(centres(a) - centres(b), axis=-1)


def _frames(values: Any) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim < 3 or not x.size or not (x.min() >= 0 and x.max() <= 1):  # written so that NaN is refused as well
        raise ValueError(f"expected frames (..., C, H, W) in [0, 1], got {x.shape}")
    return x
