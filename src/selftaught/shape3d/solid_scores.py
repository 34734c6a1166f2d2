"""How good solid objects are that were made, or found in pictures: viewpoints, surfaces, masks, proportions. Truth is read here alone.

What was learned has a frame of its own: the rotation into the true one is found on every other picture, from viewpoints alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from selftaught.core.rows import evenly
from selftaught.measure.mesh import THICK_WITHIN, in_unit_cube, shape_scores, solid_thickness, thickness_error
from selftaught.measure.patches import patch_kid
from selftaught.measure.score import Score, score_of
from selftaught.measure.viewpoint import (
    angles_of,
    azimuth_correlation,
    azimuth_of,
    azimuth_scores,
    circular_correlation,
    common_frame,
    halves,
    known_views,
    rotation_scores,
)
from selftaught.method import EvalData
from selftaught.worlds.meshes.writing import solids_of

Array = np.ndarray
Surface = tuple[Array, Array]
FEWEST_COMPARED = 50
"""Fewest test pictures that made ones are compared with."""
SHAPES = 40
"""True shapes that made ones are held against."""


def viewpoints_of(method: Any, test: Any) -> Array:
    """Rotations (N, 3, 3) of all pictures of an EvalSet."""
    parts = np.array_split(np.arange(len(test)), -(-len(test) // 64))
    return np.concatenate([method.viewpoint(test.images.batch(rows).float() / 255).double().numpy() for rows in parts])


def untrained_of(method: Any, seed: int) -> Any:
    """An untrained copy that was told what `begin` tells before training: the colour of borders, the range of azimuths (all buffers)."""
    fresh = method.untrained(seed)
    for name, value in method.named_buffers():
        fresh.get_buffer(name).copy_(value)
    return fresh


def pose_scores(method: Any, data: EvalData) -> tuple[dict[str, Score], Array | None]:
    """Errors of viewpoints with their baselines, and the rotation (3, 3) from the true frame to the learned one."""
    views = known_views(data)
    if views is None:
        return {}, None
    true = np.stack([view.rotation for view in views])
    found, fresh = (viewpoints_of(one, data.test) for one in (method, untrained_of(method, data.seed)))
    scores = azimuth_scores(azimuth_of(found), azimuth_of(true), data.seed) | rotation_scores(found, true)
    scores["azimuth_correlation"] = azimuth_correlation(azimuth_of(found), azimuth_of(true))
    scores["circular_correlation"] = circular_correlation(azimuth_of(found), azimuth_of(true))
    other = azimuth_scores(azimuth_of(fresh), azimuth_of(true), data.seed)
    scores["azimuth_median_deg"].baselines["untrained"] = other["azimuth_median_deg"].value
    fit = halves(len(true))[0]
    return scores, common_frame(found[fit], true[fit])


def true_surfaces(data: EvalData, rows: Array) -> list[Surface] | None:
    """Points and faces of the true objects in some test pictures."""
    solids = solids_of(data.test, rows.tolist())
    return None if solids is None else [(solid.points.astype(np.float64), solid.faces) for solid in solids]


def mean_surface(surfaces: list[Surface]) -> Surface:
    """The mean of surfaces of one topology, each in its unit cube."""
    return np.mean([in_unit_cube(*one) for one in surfaces], 0), surfaces[0][1]


def generator_scores(method: Any, data: EvalData) -> dict[str, Score]:
    """Viewpoints as the discriminator reads them off test pictures; the mean of the made shapes, and made ones, against true ones."""
    scores, frame = pose_scores(method, data)
    if frame is None:
        return scores
    rows = evenly(len(data.test), SHAPES)
    truths = true_surfaces(data, rows)
    solids = method.sample(len(rows), data.seed)
    if truths is not None:
        faces = method.maker.topology.faces.numpy()
        points = solids.points.double().numpy() @ frame
        scores |= shape_scores([(points.mean(0), faces)] * len(truths), truths, mean_surface(truths))
        single = shape_scores([(one, faces) for one in points], truths)
        # Made objects are no one's in particular: nor are true ones that are held against each other.
        thick = [solid_thickness(*one) for one in truths]
        others = np.array([thickness_error(a, b) for a, b in zip(thick, thick[1:] + thick[:1], strict=True)])
        scores["thickness_error"], scores["thick_enough"] = single["thickness_error"], single["thick_enough"]
        scores["thickness_error"].baselines["another true object (oracle)"] = float(others.mean())
        scores["thick_enough"].baselines["another true object (oracle)"] = float((others < THICK_WITHIN).mean())
        first = method.untrained(data.seed).sample(len(rows), data.seed).points.double().numpy() @ frame
        beginning = shape_scores([(first.mean(0), faces)] * len(truths), truths)
        scores["chamfer"].baselines["untrained"] = beginning["chamfer"].value
        scores["spread_error"] = spread_error(points, truths)
    if data.test.has_masks:
        scores["area_error"] = area_error(method, data, solids)
    if len(data.test) >= FEWEST_COMPARED:
        scores["patch_kid"] = likeness(method, data)
    return scores


def likeness(method: Any, data: EvalData) -> Score:
    """KID of made pictures on features of patches that were learned from the real ones (`measure.patches`).

    Made pictures are seen from where the method says that the real ones are. Baselines: the untrained generator; real ones with real ones.
    """
    from selftaught.shape3d.mesh_generator import Solids, Views, draw_lights

    count, c = len(data.test), method.config
    real = method.reduced(data.test.images.batch(np.arange(count)).float() / 255)
    angles = torch.from_numpy(angles_of(viewpoints_of(method, data.test))).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        views = Views(angles, torch.zeros(count, 2), draw_lights(count, c.ambient, c.diffuse, c.light_spread))

    @torch.no_grad()
    def pictures(one: Any) -> torch.Tensor:
        solids, parts = one.sample(count, data.seed), []
        for rows in torch.arange(count).split(64):
            parts.append(one.maker.render(Solids(*(x[rows] for x in solids)), Views(*(x[rows] for x in views))).image)
        return torch.cat(parts).clamp(0, 1)

    made = {"made": pictures(method), "untrained": pictures(untrained_of(method, data.seed))}
    found = patch_kid(real, made)
    beside = {"untrained": found["untrained"], "real pictures": found["real"]}
    note = "features learned from the test pictures"
    return score_of(found["made"], better="lower", unit="squared distance", baselines=beside, note=note)


def autoencoder_scores(method: Any, data: EvalData) -> dict[str, Score]:
    """Viewpoints, mask IoU, the error of the picture, and each picture's shape and proportions against its own true ones."""
    scores, frame = pose_scores(method, data)
    if frame is None:
        return scores
    parts = np.array_split(np.arange(len(data.test)), -(-len(data.test) // 64))
    points, masks, errors = [], [], []
    for rows in parts:
        images = data.test.images.batch(rows).float() / 255
        solids, _, seen = method.explained(images)
        points.append(solids.points.double().numpy())
        masks.append((seen.mask > 0.5).numpy())
        errors.append((seen.image - method.generator.reduced(images)).abs().mean((1, 2, 3)).numpy())
    shapes = np.concatenate(points) @ frame
    scores["picture_error"] = score_of(np.concatenate(errors), better="lower", unit="of 1")
    if data.test.has_masks:
        scores["mask_iou"] = mask_iou(np.concatenate(masks), data.test.masks_at(method.maker.px) == 1)
    truths = true_surfaces(data, np.arange(len(data.test)))
    if truths is not None:
        rows = evenly(len(truths), SHAPES)
        faces = method.maker.topology.faces.numpy()
        true = [truths[i] for i in rows]
        scores |= shape_scores([(shapes[i], faces) for i in rows], true, mean_surface(truths))
        mean = shape_scores([(shapes.mean(0), faces)] * len(true), true)
        scores["chamfer"].baselines["mean of the found shapes"] = mean["chamfer"].value
        both = [proportions(shapes), proportions(np.stack([p for p, _ in truths]))]
        both = [np.concatenate([one, one[:, 1:] / one[:, :1]], 1) for one in both]
        for k, name in enumerate(("width_correlation", "depth_correlation", "depth_width_correlation")):
            pairs = np.stack([both[0][:, k], both[1][:, k]], 1)
            scores[name] = score_of(pairs, unit="correlation", statistic=_correlation, baselines={"mean shape": 0.0})
    return scores


def mask_iou(found: Array, true: Array) -> Score:
    """Intersection over union of masks (N, S, S); baselines: the pixels that are object more often than not, and all pixels."""
    usual = np.broadcast_to(true.mean(0) > 0.5, true.shape)

    def ious(masks: Array) -> Array:
        return (masks & true).sum((1, 2)) / np.maximum((masks | true).sum((1, 2)), 1)

    return score_of(ious(found), unit="share", baselines={"usual mask (oracle)": ious(usual), "whole picture": ious(np.ones_like(true))})


def _correlation(pairs: Array) -> float:
    return float(np.corrcoef(pairs.T)[0, 1]) if pairs.std(0).min() > 0 else 0.0


def proportions(points: Array) -> Array:
    """(N, 2) width over height and depth over height of the boxes of points (N, V, 3)."""
    size = points.max(1) - points.min(1)
    return size[:, [0, 2]] / size[:, 1:2]


def spread_error(points: Array, truths: list[Surface]) -> Score:
    """How far the deviation of the made shapes' width over height is from that of true ones, as a share of the latter."""
    true = float(proportions(np.stack([p for p, _ in truths]))[:, 0].std())
    own = proportions(points)[:, :1] / max(true, 1e-9)
    note = f"made shapes differ {own.std():.2f} times as much as true ones"
    return score_of(own, better="lower", unit="share", statistic=_from_one, baselines={"one shape": 1.0}, note=note)


def area_error(method: Any, data: EvalData, solids: Any) -> Score:
    """How far the share of the picture that made objects cover, seen from the front, is from that of true ones."""
    from selftaught.shape3d.mesh_generator import Views

    count = len(solids.points)
    light = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4)
    seen = method.maker.render(solids, Views(torch.zeros(count, 3), torch.zeros(count, 2), light)).mask.mean((1, 2)).numpy()
    true = float((data.test.masks_at(method.config.px) == 1).mean())
    errors = np.abs(seen / max(true, 1e-9) - 1)
    return score_of(errors, better="lower", unit="share", baselines={"all of it": 1 / max(true, 1e-9) - 1})


def _from_one(rows: Array) -> float:
    return abs(float(rows.std()) - 1)
