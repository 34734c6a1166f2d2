"""Measure a run on held-out pictures, with the baselines beside; truth is read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught.core.config import override, to_json, write_json
from selftaught.core.errors import ConfigError, RunError
from selftaught.data.clip_reader import Want
from selftaught.data.clip_truth import ClipTest, open_clip_test
from selftaught.data.evalset import open_eval
from selftaught.data.field_sets import FieldSet, open_field_set
from selftaught.data.sources import open_data
from selftaught.loading import load_method, objects_part, part_of, read_run
from selftaught.measure.baselines import centre_box, whole_image
from selftaught.measure.box_rules import FoundBoxes, boxes_of
from selftaught.measure.box_scores import detect_all, objects_all
from selftaught.measure.boxes import mask_to_box
from selftaught.measure.field_protocol import (
    STANDARD,
    BoxTally,
    MaskTally,
    Protocol,
    fitted_boxes,
    fitted_mask,
    protocol_of,
    shown_picture,
    true_boxes,
)
from selftaught.measure.mask_scores import segment_all
from selftaught.measure.score import Score
from selftaught.method import EvalData, Method


def evaluate(
    run: str | os.PathLike[str], data: Any = None, json: str | os.PathLike[str] | None = None, limit: int | None = None
) -> dict[str, Score]:
    """Score a run; of a folder of `selftaught learn`, its features and its masks.

    Args:
        run: run folder.
        data: pictures with truth; the data that the run was trained on when None. Official or made splits are kept: the test part is
            scored, the training part serves as bank of nearest neighbours.
        json: write {"run", "data", "scores": {name: {"value", "n", "ci95", "better", "baselines"}}} there too.
        limit: use at most so many pictures of each part.

    Of methods that see viewpoints or solid objects, `run`/report.html is written as well: reconstructions, panels, scores and curves.

    Returns:
        name -> Score; empty where the data hold no truth that the method can be measured with.
    """
    check_limit(limit)
    run = Path(os.path.expanduser(run))
    read_only = os.path.isdir(run) and not os.access(run, os.W_OK)
    if read_only and json is None:  # said now, not after the scoring
        raise RunError(f"{run} cannot be written, where the scores would go.", do="Name a file for them: --json FILE.")
    parts = [
        part
        for part in ("features", objects_part(run), "actions")
        if (run / "learn.json").exists() and (run / part / "config.json").exists()
    ]
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for folder in [run / part for part in parts] or [part_of(run)]:
        saved = read_run(folder)
        if data is None and saved.data.startswith("<"):
            raise RunError(f"{folder} was trained on {saved.data}.", do="Give the data to score on.")
        method = load_method(folder)
        opened: EvalData | ClipTest
        if method.reads == "clips":
            opened = open_clips_for(saved.data if data is None else data, method, limit, saved.seed)
        else:
            opened = open_for(saved.data if data is None else data, method.config.image_px, limit, saved.seed)
        with torch.no_grad():
            scores |= method.evaluate(opened)
        notes += [note for note in opened.notes if note not in notes]
    if data is None:
        data = saved.data
    named = str(data) if isinstance(data, (str, os.PathLike)) else f"<{type(data).__name__} given from Python>"
    result = {
        "run": run.name,
        "data": Path(named).name,
        "notes": notes,
        "scores": {k: s.to_json() for k, s in scores.items()},
    }
    for path in (json, None if read_only else run / "scores.json"):
        if path is not None:
            write_json(path, result)
    if isinstance(opened, EvalData) and "viewpoint" in method.capabilities and not read_only:
        from selftaught.solid_report import report_solids

        report_solids(run, method, opened, result)
    return scores


def check_limit(limit: int | None) -> None:
    """Raise ConfigError for a number of pictures that leaves none."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}.", expected="at least 1")


def open_clips_for(data: Any, method: Method, limit: int | None, seed: int) -> ClipTest:
    """Open test clips, with the truth of a world's folder, as a method of clips reads them."""
    c: Any = method.config
    return open_clip_test(data, Want(c.image_px, c.width_px, c.fps), c.every, seed, limit)


def open_for(data: Any, image_px: int, limit: int | None, seed: int) -> EvalData:
    """Open the bank and the test part of some data for evaluation; broken pictures are left out and noted."""
    labelled = open_data(data, "train").has_labels
    # A test part may be so small that one broken picture is a large share of it.
    bank = open_eval(data, "train", image_px, limit, max_bad_frac=1.0) if labelled else None
    test = open_eval(data, "test", image_px, limit, max_bad_frac=1.0)
    bad = test.images.bad
    notes = [f"{len(bad)} test pictures cannot be read, e.g. {bad[0][0]}: {bad[0][1]}"] if bad else []
    return EvalData(bank, test, seed, isinstance(data, str) and data.startswith("sample:"), notes)


@dataclass
class FieldResult:
    """Scores of a run on one of the field's data sets, and by which conventions they were computed."""

    title: str
    kind: str
    count: int
    name: str
    """Of the preset, with "changed" where a convention was set."""
    protocol: Protocol
    scores: dict[str, Score]
    notes: list[str]

    def lines(self) -> list[str]:
        """What is printed above the scores."""
        head = f"{self.title}: {self.count} pictures, conventions of {self.name}:"
        return [head, *(f"  {line}" for line in self.protocol.lines(self.kind)), *self.notes]


@torch.no_grad()
def evaluate_field(
    run: str | os.PathLike[str],
    dataset: str,
    root: str | os.PathLike[str],
    *,
    protocol: str = "",
    set: Sequence[str] = (),
    json: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> FieldResult:
    """Score a run on a data set of the field, in its official layout, by named conventions.

    Args:
        run: run folder; of a folder of `selftaught learn`, its masks.
        dataset: ecssd, duts-te, dut-omron (masks), voc07, voc12, coco20k (boxes); see `data.field_sets`.
        root: folder of the data set.
        protocol: preset of `measure.field_protocol`; the one of MOVE when empty.
        set: "field=value" changes of it.
        json: write conventions, notes and scores there too.
        limit: use the first so many pictures only.

    Baselines beside: the whole picture and a centred box. Raises DataError for another layout, RunError for a run that
    cannot give what the data set asks for.
    """
    check_limit(limit)
    opened = open_field_set(dataset, root)
    chosen = override(protocol_of(protocol or STANDARD, opened.spec.kind), set)
    opened = opened if limit is None or limit >= len(opened) else opened.first(limit)
    method = load_method(part_of(Path(os.path.expanduser(run))))
    wanted = ("segment",) if opened.spec.kind == "masks" else ("detect", "objects", "segment")
    if not any(capability in method.capabilities for capability in wanted):
        raise RunError(f"{run} cannot {' or '.join(wanted)}: it holds {method.name}.", expected="a run that finds objects")
    scores = (_field_masks if opened.spec.kind == "masks" else _field_boxes)(method, opened, chosen)
    notes = list(opened.notes)
    notes.append(f"{method.name} itself stretches what it is shown to squares of {getattr(method, 'image_px', method.config.image_px)} px")
    named = f"{protocol or STANDARD}{', changed' if set else ''}"
    result = FieldResult(opened.spec.title, opened.spec.kind, len(opened), named, chosen, scores, notes)
    if json is not None:
        write_json(json, {
            "run": Path(run).name, "data": dataset, "pictures": len(opened), "protocol": named, "conventions": to_json(chosen),
            "notes": notes, "scores": {k: s.to_json() for k, s in scores.items()},
        })  # fmt: skip
    return result


def _field_masks(method: Any, opened: FieldSet, protocol: Protocol) -> dict[str, Score]:
    own, others = MaskTally(protocol), {name: MaskTally(protocol) for name in ("whole_image", "centre_box")}
    for i in range(len(opened)):
        grey = opened.grey(i)
        shown, inside = shown_picture(opened.image(i), protocol)
        own.add(fitted_mask(segment_all(method, [shown])[0], inside, grey.shape, protocol), grey)
        others["whole_image"].add(whole_image(*grey.shape), grey)
        others["centre_box"].add(centre_box(*grey.shape), grey)
    return own.scores(others)


def _field_boxes(method: Method, opened: FieldSet, protocol: Protocol) -> dict[str, Score]:
    own, others = BoxTally(protocol), {name: BoxTally(protocol) for name in ("whole_image", "centre_box")}
    for i in range(len(opened)):
        image = opened.image(i)
        truths = true_boxes(opened.boxes[i], opened.name, protocol)
        own.add(_boxes_in(method, image, protocol), truths)
        height, width = image.shape[:2]
        for name, box in (("whole_image", [0.0, 0, 1, 1]), ("centre_box", [0.2, 0.2, 0.8, 0.8])):
            others[name].add(FoundBoxes(np.array([box]) * [width, height, width, height], np.ones(1)), truths)
    return own.scores(others)


def _boxes_in(method: Any, image: np.ndarray[Any, Any], protocol: Protocol) -> FoundBoxes:
    """The boxes of one picture in its own pixels: a detector's, those of objects told apart, or those of the mask by the rule."""
    shown, inside = shown_picture(image, protocol)
    size = (int(image.shape[0]), int(image.shape[1]))
    if "detect" in method.capabilities:
        return fitted_boxes(detect_all(method, [shown])[0], inside, size)
    if "objects" in method.capabilities:
        masks, scores = objects_all(method, [shown])[0]
        boxes = [mask_to_box(fitted_mask(m, inside, size, protocol) > protocol.threshold) for m in masks]
        kept = [k for k, box in enumerate(boxes) if box is not None]
        return FoundBoxes(np.array([boxes[k] for k in kept], dtype=np.float64).reshape(-1, 4), scores[kept])
    soft = fitted_mask(segment_all(method, [shown])[0], inside, size, protocol)
    return boxes_of(soft, protocol.box_rule, protocol.threshold)
