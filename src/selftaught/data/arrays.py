"""Pictures that are already in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from selftaught.core.errors import DataError
from selftaught.data.base import Source, Truth, digest_of
from selftaught.data.readers import IGNORE_ID


class ArraySource(Source):
    """Pictures in memory: (N, H, W, 3), (N, 3, H, W), or grey (N, H, W), (N, H, W, 1), (N, 1, H, W).

    uint8, or float in [0, 1]. Numpy arrays and torch tensors. `labels` (N,), `masks` (N, H, W) of ids, both optional; masks of
    nothing but 0 and 255 are silhouettes of object 1.
    """

    def __init__(self, images: Any, labels: Any = None, masks: Any = None, *, name: str = "array") -> None:
        super().__init__()
        self.name = name
        self.images = _checked_images(_as_array(images))
        n = len(self.images)
        width = len(str(n - 1))
        self.keys = [f"{i:0{width}d}" for i in range(n)]
        self.labels = None if labels is None else [str(x) for x in _as_array(labels).reshape(-1).tolist()]
        self.masks = None if masks is None else _as_array(masks)
        if self.labels is not None and len(self.labels) != n:
            raise DataError(f"{len(self.labels)} labels for {n} pictures")
        if self.masks is not None and self.masks.shape != (n, *self._size()):
            raise DataError(f"masks have shape {self.masks.shape}", expected=f"{(n, *self._size())}")
        if self.masks is not None and self.masks.dtype not in (np.dtype(np.uint8), np.dtype(np.bool_)):
            raise DataError(f"masks have type {self.masks.dtype}", expected="uint8 ids (255 = ignore) or bool")
        self.has_labels, self.has_masks = self.labels is not None, self.masks is not None
        # Drawn silhouettes, as in files: masks that know 0 and 255 alone ignore nothing.
        self._silhouettes = self.masks is not None and not any(((mask > 0) & (mask < IGNORE_ID)).any() for mask in self.masks)

    def _size(self) -> tuple[int, int]:
        _, h, w, _ = self.images.shape
        return int(h), int(w)

    def image(self, i: int) -> np.ndarray:
        image = self.images[i]
        if image.dtype != np.uint8:
            image = np.rint(image.astype(np.float64) * 255.0).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(image, (*self._size(), 3)))

    def truth(self, i: int) -> Truth:
        mask = None if self.masks is None else (self.masks[i] > 0 if self._silhouettes else self.masks[i]).astype(np.uint8)
        return Truth(mask=mask, label=None if self.labels is None else self.labels[i])

    def fingerprint(self) -> str:
        content = hashlib.sha256()  # an array has no modification time: its bytes are all that names it
        for i in range(len(self.images)):
            content.update(np.ascontiguousarray(self.images[i]).data)
        return digest_of("array", [str(self.images.shape), str(self.images.dtype), content.hexdigest()])


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _checked_images(images: np.ndarray) -> np.ndarray:
    """Return the pictures as a channels-last view, after checking shape, type and range."""
    if images.ndim == 3 and images.dtype != object:
        images = images[..., None]
    if images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, -1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise DataError(f"pictures have shape {images.shape}", expected="(N, H, W, 3) or (N, 3, H, W), N at least 1")
    if images.dtype.kind == "f":
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # written so that NaN is refused as well
            raise DataError(
                f"float pictures have values from {low:g} to {high:g}",
                expected="finite values in [0, 1]",
                do="divide by 255, or give uint8",
            )
    elif images.dtype != np.uint8:
        raise DataError(f"pictures have type {images.dtype}", expected="uint8, or float in [0, 1]")
    return images
