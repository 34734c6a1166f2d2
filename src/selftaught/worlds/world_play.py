"""What the worlds have in common that can be stepped like models: the truth beside learned models, and the oracle among planners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core.errors import RunError
from selftaught.method import Parsed


class WorldPlay(ABC):
    """A world knows what it draws and reads nothing from pixels, so it starts from scripts (`begin`) and not from frames."""

    @abstractmethod
    def _draw(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 (B, H, W, 3) and masks uint8 (B, H, W) of B states."""

    def parse(self, clips: Tensor) -> Parsed:
        raise RunError("The world does not read its actions from pixels.", do="Take them from its script.")

    def start(self, frames: Tensor) -> Any:
        raise RunError("The world does not start from pixels.", do="`begin` starts from a script.")

    def render(self, state: Any) -> Tensor:
        return torch.from_numpy(self._draw(state)[0]).permute(0, 3, 1, 2).float() / 255

    def masks(self, state: Any) -> Tensor:
        return torch.from_numpy(self._draw(state)[1]).float() / 255


def by_script(base: Tensor, draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draw B states script by script: `draw(number, rows)` gives the canvas of the rows that began with that script."""
    frames: list[Any] = [None] * len(base)
    masks: list[Any] = [None] * len(base)
    for number in torch.unique(base).tolist():
        rows = torch.nonzero(base == number).flatten().numpy()
        canvas = draw(number, rows)
        for i, frame, mask in zip(rows.tolist(), canvas.frames(), canvas.masks(), strict=True):
            frames[i], masks[i] = frame, mask
    return np.stack(frames), np.stack(masks)
