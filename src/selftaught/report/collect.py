"""Gather what a learned run has to show: objects, neighbours, map, clusters, curves, health, scores and cost."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from selftaught import __version__
from selftaught.core.config import read_json
from selftaught.core.rows import evenly
from selftaught.data.cache import ImageSet
from selftaught.data.evalset import EvalSet, open_eval
from selftaught.measure.masks import iou
from selftaught.report.content import (
    Cluster,
    Cost,
    DataSummary,
    FoundObject,
    Health,
    Neighbours,
    NextStep,
    ReportContent,
    SideBySide,
    by_lot,
)
from selftaught.report.pictures import fit, resize_mask
from selftaught.report.plots import project_2d, read_curves

Array = npt.NDArray[Any]
MAP_POINTS = 1000
OBJECTS = 300
KEPT_PX = 720
"""Longer side at which those pictures are kept, twice what the page shows: 300 photographs of 12 megapixels are 28 GB with their masks."""
AT_ONCE = 8
CLUSTERS = 12
STAGES = {"features": "features", "masks": "objects"}
MOVE_STAGES = {
    "masks": "objects, from the cut", "inpainter": "inpainter", "move": "MOVE", "masks_move": "objects, from MOVE",
}  # fmt: skip
COST_NAMES = {"move": "MOVE", "masks_move": "masks by MOVE"}
BASELINES = {
    "centre_box": "a box in the middle",
    "centre_ellipse": "an ellipse in the middle",
    "colour": "what differs in colour from the rim",
    "colour_otsu": "what differs in colour from the rim",
    "untrained_cut": "a cut by features of a network that was not trained",
    "untrained_teacher": "the same rule on features of a network that was not trained",
    "teacher": "the masks that it learned from",
}
"""Plain words for those who know nothing of the methods."""


class Learned(Protocol):
    """What `selftaught.load` gives."""

    def embed(self, images: Sequence[Array]) -> Array: ...
    def segment(self, images: Sequence[Array]) -> list[Array]: ...


def collect(
    run: Path, learned: Learned, data: Any, images: ImageSet, seconds: Mapping[str, float], peak_memory_gb: float,
    side_by_side: SideBySide | None = None,
) -> ReportContent:  # fmt: skip
    """Everything that the report of a run of `selftaught learn` shows; pictures are those held out from training.

    `side_by_side` compares two ways to find objects, where there were two.
    """
    test = open_eval(data, "test", images.image_px, MAP_POINTS, max_bad_frac=1.0)
    pictures = [test.images.images[i].transpose(1, 2, 0) for i in range(len(test))]
    embedding = learned.embed(pictures)
    points, kept = project_2d(embedding)
    objects = found_objects(learned, test)
    stages = STAGES if side_by_side is None else {**STAGES, **MOVE_STAGES}
    curves = {title: read_curves(run / part / "metrics.jsonl") for part, title in stages.items()}
    scores = read_json(run / "scores.json")
    labels = test.labels()
    return ReportContent(
        title=f"What was learned from {len(images):,} pictures of {images.name.partition(':')[0]}",
        learned=in_words(len(images), scores["scores"], bool(test.has_masks), labels is not None),
        objects=objects,
        comparison=side_by_side([objects[i] for i in by_lot(len(objects))], objects) if side_by_side else None,
        neighbours=nearest(embedding, pictures),
        embedding_2d=points,
        thumbnails=[pictures[i] for i in kept],
        clusters=clusters(embedding, pictures, labels),
        curves=curves,
        health=[verdict(title, curve) for title, curve in curves.items() if curve],
        scores=scores["scores"],
        data_summary=summary(images, test),
        cost=Cost(
            {COST_NAMES.get(k, k): v for k, v in seconds.items()}, peak_memory_gb, machine(),
            {"selftaught": __version__, "Python": platform.python_version()},
        ),
        how_to_go_on=next_steps(run),
        why_empty={"scores": "; ".join(scores.get("notes", [])) or "no truth was found with the data"},
    )  # fmt: skip


def found_objects(learned: Learned, test: EvalSet) -> list[FoundObject]:
    """Masks of held-out pictures, with their overlap with the truth at their own size where there is one."""
    indices = evenly(len(test), OBJECTS)
    found = []
    for start in range(0, len(indices), AT_ONCE):
        part = indices[start : start + AT_ONCE]
        pictures = [test.image(int(i)) for i in part]
        for i, picture, mask in zip(part, pictures, learned.segment(pictures), strict=True):
            truth = test.mask(int(i))
            overlap = None if truth is None else float(iou([mask], [truth])[0])
            inside = mask[mask > 0.5]
            confidence = float(inside.mean()) if inside.size else 0.0
            found.append(kept(FoundObject(picture, mask, truth, overlap, confidence, test.keys[int(i)])))
    return found


def kept(found: FoundObject) -> FoundObject:
    """The same with a longer side of at most `KEPT_PX`."""
    if max(found.picture.shape[:2]) <= KEPT_PX:
        return found
    picture, truth = fit(found.picture, KEPT_PX), found.truth
    h, w = picture.shape[:2]
    if truth is not None:
        truth = np.asarray(Image.fromarray(truth).resize((w, h), Image.Resampling.NEAREST))
    return found._replace(picture=picture, mask=resize_mask(found.mask, (h, w)), truth=truth)


def nearest(embedding: Array, pictures: Sequence[Array], queries: int = 8, neighbours: int = 8) -> list[Neighbours]:
    """For a few pictures spread over the set, those with the largest cosine."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True).clip(min=1e-9)
    rows = []
    for i in evenly(len(unit), queries):
        cosine = unit @ unit[i]
        cosine[i] = -2
        best = np.argsort(-cosine, kind="stable")[: min(neighbours, len(unit) - 1)]
        rows.append(Neighbours(pictures[i], [(pictures[j], float(cosine[j])) for j in best]))
    return rows


def clusters(embedding: Array, pictures: Sequence[Array], labels: Array | None, shown: int = 10) -> list[Cluster]:
    """k-means groups of the embeddings, largest first, each with the pictures nearest to its centre."""
    from sklearn.cluster import KMeans

    k = min(CLUSTERS, max(len(embedding) // 10, 1))
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True).clip(min=1e-9)
    model = KMeans(k, n_init=4, random_state=0).fit(unit)
    groups = []
    for c in np.argsort(-np.bincount(model.labels_, minlength=k), kind="stable"):
        members = np.flatnonzero(model.labels_ == c)
        distance = ((unit[members] - model.cluster_centers_[c]) ** 2).sum(1)
        purity = None
        known = [] if labels is None else labels[members][labels[members] != ""]
        if len(known):
            purity = float(np.unique(known, return_counts=True)[1].max() / len(known))
        groups.append(Cluster(len(members), [pictures[i] for i in members[np.argsort(distance)][:shown]], purity))
    return groups


def verdict(title: str, curve: Mapping[str, Any]) -> Health:
    """The last health word of a stage."""
    words = curve.get("health", ([], []))[1]
    loss = curve.get("loss", ([], []))[1]
    reason = f"loss {loss[0]:.3g} at the start, {loss[-1]:.3g} at the end" if len(loss) > 1 else ""
    return Health(title, words[-1] if len(words) else "unknown", reason)


def in_words(count: int, scores: Mapping[str, Any], masks: bool, labels: bool) -> str:
    """One paragraph for people who know nothing of the methods."""
    text = (
        f"The machine looked at {count:,} pictures without any label. It learned to tell which pictures show alike things, and to "
        "outline the main object of a picture. "
    )
    if labels and "knn20" in scores:
        s = scores["knn20"]
        text += (
            f"Asked for the class of a new picture by its nearest neighbours, it is right in {100 * s['value']:.0f} % of the cases; "
            f"comparing raw pixels gives {100 * s['baselines'].get('raw_pixels', float('nan')):.0f} %. "
        )
    if masks and "iou" in scores:
        s = scores["iou"]
        name, best = max(s["baselines"].items(), key=lambda x: x[1])
        text += (
            f"Its outlines overlap with the true ones by {s['value']:.2f}; "
            f"the best of what it is compared with ({BASELINES.get(name, name.replace('_', ' '))}) reaches {best:.2f}. "
        )
    if not masks and not labels:
        text += "No truth came with the pictures, so look for yourself: nothing here was scored. "
    return text + "The pictures below were kept out of the training."


def summary(images: ImageSet, test: EvalSet) -> DataSummary:
    """What was found in the data."""
    low, high = images.sizes.min(0), images.sizes.max(0)
    counts = {
        "pictures to learn from": len(images),
        "pictures kept out": len(test),
        "sizes": f"{low[1]} x {low[0]} to {high[1]} x {high[0]} px, learned at {images.image_px} x {images.image_px}",
        "truth for scoring": ", ".join(
            [w for w, there in (("masks", test.has_masks), ("classes", test.has_labels)) if there]
        )
        or "none",
    }
    return DataSummary(counts, [*images.bad, *test.images.bad, *test.bad_truths])


def machine() -> str:
    """The machine in a few words."""
    return f"{platform.machine()} with {os.cpu_count()} cores, {platform.system()}"


def next_steps(run: Path) -> list[NextStep]:
    """Commands that continue from here."""
    return [
        NextStep(
            f"selftaught segment {run} PICTURES --out masks",
            "outline the objects of other pictures: PNG masks and COCO JSON",
        ),
        NextStep(
            f"selftaught embed {run} PICTURES --out vectors.parquet",
            "one vector per picture, for search and clustering",
        ),
        NextStep(
            f"selftaught evaluate {run} DATA --json scores.json", "score it on pictures with masks or class folders"
        ),
        NextStep(
            "selftaught learn PICTURES --out runs/mine --minutes 60",
            "learn from your own pictures, or for longer: both help most",
        ),
    ]
