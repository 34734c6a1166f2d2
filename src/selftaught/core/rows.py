"""Which rows of many to look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """All of `count` rows when they are at most `most`, else `most` of them from the first to the last, rising; none twice."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
