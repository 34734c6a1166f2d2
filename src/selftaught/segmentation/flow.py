"""Optical flow between the frames of a clip, and graphs of patches from it.

The flow is TV-L1 (Zach, Pock, Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", 2007) from scikit-image: no network
that somebody trained with labels, as RAFT is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.core.errors import ConfigError


def optical_flow(frames: Tensor, gap: int = 1) -> Tensor:
    """Motion of what each frame shows until `gap` frames later: (T, 3, H, W) in [0, 1] to (T, 2, H, W) px, right then down.

    The last `gap` frames look back, and their motion is turned round. A clip of one frame does not move.
    Raises ConfigError when scikit-image is not installed.
    """
    try:
        from skimage.registration import optical_flow_tvl1
    except ImportError as error:
        raise ConfigError(
            "Optical flow needs scikit-image, which is not installed.", do="pip install 'selftaught[video]', or --set alpha=1"
        ) from error
    T = len(frames)
    grey = (frames.detach().cpu().float() * frames.new_tensor([0.299, 0.587, 0.114])[:, None, None].cpu()).sum(1).numpy()
    found = np.zeros((T, 2, *frames.shape[-2:]), np.float32)
    for t in range(T):
        other, turn = (t + gap, 1) if t + gap < T else (t - gap, -1)
        if other < 0:
            continue
        rows, columns = optical_flow_tvl1(grey[t], grey[other])
        found[t] = turn * np.stack([columns, rows])
    return torch.from_numpy(found).to(frames.device)


def same_motion(flow: Tensor, grid: tuple[int, int], sigma_px: float) -> Tensor:
    """How alike the motions of all patches of a clip are: (T, 2, H, W) px and (h, w) patches to (T h w, T h w) in [0, 1].

    exp(-|v_i - v_j|^2 / (2 sigma^2)) with v the patch's motion relative to its frame's median: a camera that moves
    differently from frame to frame then joins what it films all the same.
    """
    v = F.adaptive_avg_pool2d(flow.float(), grid).flatten(2)
    v = (v - v.median(2, keepdim=True).values).transpose(1, 2).flatten(0, 1)
    return (-torch.cdist(v, v).square() / (2 * sigma_px**2)).exp()
