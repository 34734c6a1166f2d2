"""Pictures with what is known about them, for evaluation only; training is given an ImageSet and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np
from PIL import Image

from selftaught.data.base import Source, Subset, Truth, ViewTruth
from selftaught.data.cache import ImageSet, Report, build_cache
from selftaught.data.readers import IGNORE_ID, BadFile
from selftaught.data.sources import open_data


class EvalSet:
    """An ImageSet and the truth of each of its pictures; index `i` is a row of `images`.

    `bad_truths` collects (key, reason) of truth files that were asked for and could not be used.
    """

    def __init__(self, images: ImageSet, source: Source) -> None:
        self.images = images
        self.source = source
        self.keys = images.keys
        self.name = images.name
        self.image_px = images.image_px
        self.sizes = images.sizes
        self.has_masks = source.has_masks
        self.has_labels = source.has_labels
        self.bad_truths: list[tuple[str, str]] = []
        self._told: list[Truth] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        """Return picture `i` at its original size, uint8 (H, W, 3)."""
        return self.source.image(int(self.images.source_index[i]))

    def truth(self, i: int) -> Truth:
        """Return what is known about picture `i`; broken truth files are noted in `bad_truths` and count as unknown."""
        try:
            truth = self.source.truth(int(self.images.source_index[i]))
        except BadFile as error:
            self._note(i, error.reason)
            return Truth()
        if truth.mask is not None and truth.mask.shape != tuple(self.sizes[i]):
            (h, w), (mh, mw) = self.sizes[i], truth.mask.shape
            self._note(i, f"the mask is {mw}x{mh}, the picture {w}x{h}")
            return dataclasses.replace(truth, mask=None)
        return truth

    def labels(self) -> np.ndarray | None:
        """Return the class of each picture as text (N,), "" where unknown; None when the data has no classes."""
        return self._texts("label") if self.has_labels else None

    def source_ids(self) -> np.ndarray:
        """Return the group of each picture as text (N,), "" where unknown; a split must not cut a group."""
        return self._texts("source_id")

    def object_ids(self) -> np.ndarray:
        """Return the object (or person) of each picture as text (N,), "" where unknown."""
        return self._texts("object_id")

    def mask(self, i: int) -> np.ndarray | None:
        """Return the map of ids of picture `i` at original size, uint8 (H, W), 255 = ignore; None when unknown."""
        return self.truth(i).mask if self.has_masks else None

    def views(self) -> list[ViewTruth] | None:
        """Return viewpoint, depth and normals of every picture; None when they are not known of all."""
        found = [self.truth(i).view for i in range(len(self))]
        known = [view for view in found if view is not None]
        return known if known and len(known) == len(found) else None

    def masks_at(self, px: int) -> np.ndarray:
        """Return all maps of ids stretched to uint8 (N, px, px) by nearest neighbour; 255 where unknown."""
        maps = np.full((len(self), px, px), IGNORE_ID, np.uint8)
        for i in range(len(self)):
            mask = self.mask(i)
            if mask is not None:
                maps[i] = np.asarray(Image.fromarray(mask).resize((px, px), Image.Resampling.NEAREST))
        return maps

    def _texts(self, field: str) -> np.ndarray:
        if self._told is None:  # masks are dropped: only the texts are kept in memory
            truths = (self.truth(i) for i in range(len(self)))
            self._told = [Truth(None, t.label, t.object_id, t.source_id) for t in truths]
        return np.array([getattr(truth, field) or "" for truth in self._told], dtype=np.str_)

    def _note(self, i: int, reason: str) -> None:
        if (self.keys[i], reason) not in self.bad_truths:
            self.bad_truths.append((self.keys[i], reason))


def open_eval(
    data: Any,
    split: str = "test",
    image_px: int = 128,
    limit: int | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    max_bad_frac: float = 0.2,
    report: Report | None = None,
) -> EvalSet:
    """Open one split with its truth, pictures at `image_px`; `limit` takes that many, the same ones each time.

    The pictures taken are those with the smallest hash of their key, in the order of the source, so that data sorted by
    class or by video still gives a fair part. Raises DataError as `open_data` and `build_cache` do.
    """
    source = open_data(data, split)
    if limit is not None and limit < len(source):
        by_hash = sorted(range(len(source)), key=lambda i: _key_hash(source.keys[i]))
        source = Subset(source, sorted(by_hash[: max(1, limit)]))
    images = build_cache(source, image_px, cache_dir=cache_dir, max_bad_frac=max_bad_frac, report=report)
    return EvalSet(images, source)


def _key_hash(key: str) -> bytes:
    # The prefix keeps this choice independent of the train and test split, which hashes the bare key.
    return hashlib.sha256(b"limit:" + key.encode("utf-8", "surrogateescape")).digest()
