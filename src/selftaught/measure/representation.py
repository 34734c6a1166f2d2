"""How good an embedding is: nearest neighbours, linear probe and rank, against raw pixels, HOG and the untrained network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch

from selftaught.core.rows import evenly
from selftaught.measure.features import feature_scores, rank_me
from selftaught.measure.pixels import hog, raw_pixels
from selftaught.measure.score import Score, jackknife_ci

if TYPE_CHECKING:
    from selftaught.data.cache import ImageSet
    from selftaught.method import Embeds, EvalData

MAX_BANK = 10_000
MAX_TEST = 5_000


@torch.no_grad()
def embed_all(
    method: Embeds,
    images: ImageSet,
    batch_size: int = 256,
    take: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> np.ndarray[Any, Any]:
    """(N, D) float32 embeddings of cached pictures, or what `take` makes of them."""
    take = take or method.embed
    parts = [
        take(images.batch(np.arange(i, min(i + batch_size, len(images)))).float() / 255).float().cpu().numpy()
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def pooled_all(method: Embeds, images: ImageSet) -> np.ndarray[Any, Any]:
    """(N, D) vectors of a method before they are whitened, where it does that."""
    return embed_all(method, images, take=getattr(method, "pooled", method.embed))


def whitened(method: Embeds, pooled: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the method makes of its pooled vectors, so that no picture is looked at twice."""
    take = getattr(method, "whitened", None)
    return pooled if take is None else take(torch.from_numpy(pooled)).numpy()


def rank_score(rows: np.ndarray[Any, Any], beside: np.ndarray[Any, Any], note: str) -> Score:
    """RankMe of a method's and the untrained network's vectors before they were whitened, which gives any vectors full rank."""
    note = f"of {rows.shape[1]} dimensions; {note}"
    ci95 = jackknife_ci(rows, rank_me)
    return Score(rank_me(rows), len(rows), ci95, "higher", "dimensions", {"untrained": rank_me(beside)}, note)


def representation_scores(method: Embeds, untrained: Embeds, data: EvalData) -> dict[str, Score]:
    """Scores `knn20`, `knn200`, `linear_probe`, `rank_me`; only `rank_me` where no labels exist.

    The bank are at most 10,000 training pictures, the test set at most 5,000 test pictures, spread evenly: sets may come sorted.
    """
    test_labels = data.test.labels()
    bank_labels = data.train.labels() if data.train is not None else None
    if data.train is None or not several(bank_labels) or test_labels is None or not (test_labels != "").any():
        why = "the training pictures have fewer than two classes, so neighbours could not be scored"
        images, _ = spread((data.train or data.test).images, None, MAX_BANK)
        return {"rank_me": rank_score(pooled_all(method, images), pooled_all(untrained, images), why)}
    train, bank_labels = spread(data.train.images, bank_labels, MAX_BANK)
    test, test_labels = spread(data.test.images, test_labels, MAX_TEST)
    ours, beside = ([pooled_all(m, x) for x in (train, test)] for m in (method, untrained))
    if hasattr(untrained, "settle_on"):
        untrained.settle_on(torch.from_numpy(beside[0]))
    baselines: dict[str, Any] = {
        "raw_pixels": tuple(raw_pixels(x.images) for x in (train, test)),
        "hog": tuple(hog(x.images) for x in (train, test)),
        "untrained": tuple(whitened(untrained, rows) for rows in beside),
    }
    bank, asked = (whitened(method, rows) for rows in ours)
    scores = feature_scores(bank, bank_labels, asked, test_labels, baselines, data.seed)
    scores["rank_me"] = rank_score(ours[0], beside[0], "comparable within one method and width only")
    return scores


def several(labels: np.ndarray[Any, Any] | None) -> TypeGuard[np.ndarray[Any, Any]]:
    """Whether there are at least two classes, "" being none."""
    return labels is not None and len(set(labels.tolist()) - {""}) > 1


class Spread:
    """Some pictures of an evaluation set, with the interface that embedding needs."""

    def __init__(self, images: ImageSet, indices: np.ndarray[Any, Any]):
        self._all, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def images(self) -> np.ndarray[Any, Any]:
        """(N, 3, S, S) uint8, read anew each time: a copy of all would stay in memory while networks look at parts."""
        return np.asarray(self._all.images[self._indices])

    def batch(self, indices: np.ndarray[Any, Any]) -> torch.Tensor:
        """(B, 3, S, S) uint8."""
        return self._all.batch(self._indices[indices])


def spread(images: ImageSet, labels: np.ndarray[Any, Any] | None, limit: int) -> tuple[Any, Any]:
    """At most `limit` pictures, of the labelled ones where there are labels, evenly spread over the set, as (pictures, labels)."""
    known = np.arange(len(images)) if labels is None else np.flatnonzero(labels.astype(str) != "")
    indices = known[evenly(len(known), limit)]
    return Spread(images, indices), None if labels is None else labels[indices]
