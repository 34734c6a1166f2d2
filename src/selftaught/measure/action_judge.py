"""A judge of made clips that never saw what made them: it learned on true clips which action leads from one frame to the next.

For evaluation only: it is taught with true actions, on figures that are in no test clip. What it reads in true clips is the most that a
model can reach, what it reads where nothing is done the least. `look_share` says whether a made clip looks like something it should not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 64
LEARNING_RATE = 3e-3
WIDTHS = (16, 24, 32, 48)


class ActionJudge(nn.Module):
    """Two frames (N, 3, H, W) in [0, 1] to logits (N, A) of the action between them."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip((9, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.LeakyReLU(0.2), nn.Conv2d(b, b, 3, 1, 1), nn.LeakyReLU(0.2)]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(2 * WIDTHS[-1], actions)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        y = self.body(torch.cat([before - 0.5, after - 0.5, 4 * (after - before)], 1))
        return torch.as_tensor(self.head(torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)))

    @torch.no_grad()
    def read(self, clips: Tensor) -> np.ndarray:
        """Actions (B, T - 1) int64 of clips (B, T, 3, H, W) in [0, 1]."""
        rows = [self(one[:-1], one[1:]).argmax(1) for one in clips]
        return torch.stack(rows).numpy()


def taught(clips: Tensor, actions: Tensor, count: int, *, steps: int = 600, seed: int = 0) -> ActionJudge:
    """A judge of `count` actions from clips (B, T, 3, H, W) uint8 and their true actions (B, T - 1); Adam with a falling rate.

    Half of the clips are blurred and all get some noise: how sharp a picture is must not decide. Raises ValueError for other shapes.
    """
    B, T = clips.shape[:2]
    if actions.shape != (B, T - 1):
        raise ValueError(f"{B} clips of {T} frames and actions {tuple(actions.shape)}: expected one between each two frames")
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        judge = ActionJudge(count)
        optimiser = torch.optim.Adam(judge.parameters(), lr=LEARNING_RATE)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / steps)
            b, t = rng.integers(0, B, BATCH), rng.integers(0, T - 1, BATCH)
            before, after = (_worn(clips[b, t + k].float() / 255) for k in (0, 1))
            loss = F.cross_entropy(judge(before, after), actions[b, t])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return judge.eval().requires_grad_(False)


def _worn(frames: Tensor) -> Tensor:
    half = len(frames) // 2  # rows are drawn at random
    frames = torch.cat([F.avg_pool2d(frames[:half], 3, 1, 1), frames[half:]])
    return frames + 0.02 * torch.randn_like(frames)


def look_share(made: Tensor, truth: Tensor, other: Tensor) -> np.ndarray:
    """(B,) how far made clips go from their truth towards another look of it, all (B, ...): 0 not at all, 1 the whole way.

    sum (made - truth)(other - truth) / sum (other - truth)^2; NaN where both looks are the same. Errors of any kind lie along every look a
    little, so compare with a look that the model never saw.
    """
    error, way = (made - truth).flatten(1).double(), (other - truth).flatten(1).double()
    size = way.square().sum(1)
    return torch.where(size > 0, (error * way).sum(1) / size, torch.nan).numpy()
