"""What a GLASS run is measured by on test clips; truth is read here and nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.control.baselines import CopyLast, Model, Oracle, PhaseCorrelation, Predicts, Still, decoded
from selftaught.control.glass_figure import corners, cut
from selftaught.control.glass_gma import first_teacher
from selftaught.data.clip_truth import ClipTest, ClipTruth
from selftaught.measure import actions as act
from selftaught.measure.baselines import centre_box
from selftaught.measure.frechet import frechet_distance, motion_vectors
from selftaught.measure.score import Score, bootstrap_ci
from selftaught.measure.video import centre_error, difference_psnr, mask_iou, psnr, ssim
from selftaught.method import Actions
from selftaught.nets.video_blocks import to_px

BATCH = 32
HORIZON = 8
FILM_REACH_PX = 4
"""Largest displacement of a quarter of the frame that is told apart in films."""
FEWEST_FILMS = 6
"""Fewer films than this on a side have no distribution to be compared."""


def glass_scores(model: Any, data: ClipTest) -> dict[str, Score]:
    """All scores of a model on test clips; those that need truth only where it is known."""
    found = parse_all(model, data)
    scores = prediction_scores(model, data, found)
    scores |= code_scores(model, data, found)
    if data.truth is not None:
        scores |= layer_scores(data, data.truth, found)
        scores |= shift_scores(data, data.truth, found)
        scores |= action_scores(model, data.truth, found, data.seed)
    return {name: told(score) for name, score in scores.items() if np.isfinite(score.value)}


def told(score: Score) -> Score:
    """A score of all clips together has no interval: both ends are its value; baselines that no clip defines are left out."""
    ends = score.ci95 if np.isfinite(score.ci95).all() else (score.value, score.value)
    return replace(score, ci95=ends, baselines={k: v for k, v in score.baselines.items() if np.isfinite(v)})


class Found(dict[str, Any]):
    """Parses of all test clips, as arrays: masks, shifts_px, ground_px, codes, and `actions` as tensors."""


def chunks(data: ClipTest) -> Iterator[np.ndarray]:
    """Indices of test clips, some at a time."""
    n = len(data.windows)
    yield from np.array_split(np.arange(n), max(1, -(-n // BATCH)))


@torch.no_grad()
def parse_all(model: Any, data: ClipTest) -> Found:
    """Parse all test clips."""
    parsed = [model.parse(data.batch(rows)) for rows in chunks(data)]
    H, W = data.windows.clips.frames.shape[2:]
    actions = Actions(*(torch.cat(x) for x in zip(*(p.actions for p in parsed), strict=True)))
    return Found(
        masks=torch.cat([p.masks for p in parsed]).numpy(), actions=actions, codes=actions.codes.numpy(),
        shifts_px=to_px(actions.shifts, H, W).numpy(), ground_px=to_px(actions.ground_shifts, H, W).numpy(),
    )  # fmt: skip


def score(values: np.ndarray, unit: str, better: Any = "higher", note: str = "", **baselines: Any) -> Score:
    """A mean over all transitions that count (are finite), and the same means of baselines; the interval is of that mean, over clips."""
    counted = np.isfinite(values)
    n, clips = int(counted.any(1).sum()), np.stack([np.where(counted, values, 0).sum(1), counted.sum(1)], 1).astype(float)
    clips[~counted.any(1)] = np.nan
    mean = float(np.nanmean(values)) if n else float("nan")
    # Not of the mean of the clips' means: a clip with one transition that counts would weigh as much as one with all.
    interval = bootstrap_ci(clips, statistic=lambda picked: float(picked[:, 0].sum() / picked[:, 1].sum()))
    others = {k: float(np.nanmean(v)) for k, v in baselines.items() if np.isfinite(v).any()}
    return Score(mean, n, interval, better, unit, others, note)


def layer_scores(data: ClipTest, truth: ClipTruth, found: Found) -> dict[str, Score]:
    """Intersection over union of masks, hard and soft, against what moves otherwise than most of the frame, and a centred box."""
    N, T, H, W = truth.masks.shape
    box = np.broadcast_to(centre_box(H, W), truth.masks.shape)
    moving = np.zeros_like(truth.masks)
    for rows in chunks(data):
        if T > 2:
            moving[rows, 1:-1] = first_teacher(2 * data.batch(rows) - 1, 4)[1][:, :, 0].numpy()
    inner = slice(1, -1) if T > 2 else slice(None)
    iou = mask_iou(found["masks"], truth.masks)
    seen = mask_iou(moving, truth.masks)
    return {
        "mask_iou": score(iou, "IoU", note="moving_pixels is the first teacher, which sees the frames before and after; inner frames only",
                          centre_box=mask_iou(box, truth.masks), moving_pixels=seen[:, inner]),
        "mask_iou_soft": score(mask_iou(found["masks"], truth.masks, soft=True), "IoU"),
    }  # fmt: skip


def shift_scores(data: ClipTest, truth: ClipTruth, found: Found) -> dict[str, Score]:
    """Direction (within 45 degrees, where there is motion) and error of the agent's and the background's shifts."""
    H, W = truth.masks.shape[2:]
    whole = np.concatenate([to_px(PhaseCorrelation().shifts(data.batch(rows)), H, W).numpy() for rows in chunks(data)])
    scores: dict[str, Score] = {}
    for name, mine, true in (("global", found["shifts_px"], truth.shifts_px), ("ground", found["ground_px"], truth.ground_shifts_px)):
        shape = true.shape[:2]
        right, other = (act.direction_right(x, true).reshape(shape) for x in (mine, whole))
        error = act.shift_error(mine, true).reshape(shape)
        scores[f"{name}_direction"] = score(right, "share right", note="moving transitions only", phase_correlation=other)
        scores[f"{name}_shift_error_px"] = score(
            error, "px", "lower", phase_correlation=act.shift_error(whole, true).reshape(shape),
            no_motion=act.shift_error(np.zeros_like(true), true).reshape(shape),
        )  # fmt: skip
    still = act.shift_error(found["shifts_px"], np.zeros_like(truth.shifts_px)).reshape(truth.stays.shape)
    scores["stay_recognised"] = score(np.where(truth.stays, (still < 1).astype(float), np.nan), "share under 1 px", note="stays only")
    return scores


def action_scores(model: Any, truth: ClipTruth, found: Found, seed: int) -> dict[str, Score]:
    """Codes against true local actions, over all transitions and in stays only; what codes tell of the motion."""
    codes, stays = found["codes"], truth.stays
    K, scores = model.config.codes, {}
    for name, chosen in (("", np.ones_like(stays)), ("_stay", stays)):
        if not chosen.any():
            continue
        rows = chosen.any(1)
        g = act.grouping(truth.locals[chosen], codes[chosen], seed)

        def ami_of(picked: np.ndarray, chosen: np.ndarray = chosen) -> float:
            i = picked[:, 0].astype(int)
            return act.grouping(truth.locals[i][chosen[i]], codes[i][chosen[i]], rounds=1).ami

        at = np.flatnonzero(rows)[:, None].astype(float)
        interval = bootstrap_ci(at, n_boot=100, statistic=ami_of)
        note, base = f"{g.n} transitions, K = {K}", {"shuffled": g.permuted_ami}
        scores[f"ami{name}"] = Score(g.ami, int(rows.sum()), interval, "higher", "AMI", base, note)
        for key, value, base in (("nmi", g.nmi, {"shuffled": g.permuted_nmi}), ("homogeneity", g.homogeneity, {}),
                                 ("completeness", g.completeness, {}), ("purity", g.purity, {})):  # fmt: skip
            scores[f"{key}{name}"] = Score(value, int(rows.sum()), (float("nan"), float("nan")), "higher", "", base)
    d = truth.shifts_px
    low, high = act.delta_mse_bounds(d, K, seed)
    nan = (float("nan"), float("nan"))
    note = "of the agent's true displacement; GLASS's codes are meant not to tell it, its shifts do"
    bounds = {"kmeans_floor": low, "random_ceiling": high}
    scores["delta_mse"] = Score(act.delta_mse(d, codes), d.shape[0], nan, "lower", "share", bounds, note)
    low, high = act.delta_acc_bounds(d, codes, K, seed)
    bounds = {"most_frequent_floor": low, "kmeans_ceiling": high}
    scores["delta_acc"] = Score(act.delta_acc(d, codes, seed), d.shape[0], nan, "higher", "share", bounds, note)
    return scores


@torch.no_grad()
def code_scores(model: Any, data: ClipTest, found: Found) -> dict[str, Score]:
    """What needs no truth: use of the codes, what they do, and whether a generated clip is parsed as it was made."""
    K, codes, n = model.config.codes, found["codes"], len(data.windows)
    nan = (float("nan"), float("nan"))
    again, effects = [], []
    for rows in chunks(data):
        a = Actions(*(x[rows] for x in found["actions"]))
        clips = data.batch(rows)
        second = model.parse(model.play(clips[:, 0], a).frames).actions
        again.append((second.codes == a.codes).numpy())
        effects.append(code_effects(model, clips[:8, 0], K))
    same = np.concatenate(again)
    usual = np.bincount(codes.ravel(), minlength=K).max() / codes.size
    own, chance = separation(np.concatenate(effects))
    return {
        "code_perplexity": Score(act.perplexity(codes, K), n, nan, "higher", f"of {K}", {"one code": 1.0}),
        "dead_codes": Score(act.dead_share(codes, K), n, nan, "lower", "share"),
        "consistency": score(
            same.astype(float), "share equal", note="parse, generate, parse again", most_frequent=np.full_like(same, usual, dtype=float)
        ),
        "effect_separation": Score(
            own, sum(map(len, effects)), nan, "higher", "share", {"shuffled": chance}, "of what each code changes around the agent"
        ),
    }


def code_effects(model: Any, first: Tensor, count: int) -> np.ndarray:
    """(B, K, D): what each code, without any shift, changes in the next frame, in a square around the agent, at a quarter of the size.

    Around the agent, because it stands elsewhere in each clip: over whole frames one and the same effect never meets itself.
    """
    effects = []
    for k in range(count):
        codes = torch.full((len(first), 1), k)
        zero = torch.zeros(len(first), 1, 2)
        played = model.play(first, Actions(zero, zero, codes))
        side = 4 * round(first.shape[2] / 6)  # 32 of 48 px
        change = cut(played.frames[:, 1] - first, corners(played.masks[:, :1], side), side)
        effects.append(torch.nn.functional.avg_pool2d(change, 4).flatten(1))
    return torch.stack(effects, 1).numpy()


def separation(effects: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Effect separation of (N, K, D), and what it is by chance: with codes shuffled within each start."""
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(effects.shape[1]), (len(effects), 1)), axis=1)
    shuffled = np.take_along_axis(effects, orders[:, :, None], 1)
    return act.effect_separation(effects), act.effect_separation(shuffled)


@torch.no_grad()
def prediction_scores(model: Any, data: ClipTest, found: Found) -> dict[str, Score]:
    """PSNR at every horizon, teacher-forced (`tf`) and autoregressive (`ar`), SSIM and the agent's place at the last, with baselines.

    The oracle is scored on one half of the clips with the codes' meaning taken from the other half, and the other way round.
    """
    usual = int(np.bincount(found["codes"].ravel()).argmax())
    models: dict[str, Predicts] = {"": Model(model), "copy_last": CopyLast(), "phase_correlation": PhaseCorrelation()}
    models["told_nothing"] = Still(model, code=usual)
    T = min(data.windows.length, HORIZON + 1)
    real = np.concatenate([data.batch(rows)[:, :T].numpy() for rows in chunks(data)])
    scores: dict[str, Score] = {}
    for forced, regime in ((False, "ar"), (True, "tf")):
        frames, masks = {}, {}
        for name, one in models.items():
            parts = [one.predict(data.batch(rows)[:, :T], forced) for rows in chunks(data)]
            frames[name], masks[name] = (np.concatenate([p[i].numpy() for p in parts]) for i in (0, 1))
        if data.truth is not None:
            frames["oracle"], masks["oracle"] = oracle(model, data, data.truth, found, T, forced)
        values = {k: psnr(f, real) for k, f in frames.items()}
        for h in range(1, T):
            others = {k: v[:, h : h + 1] for k, v in values.items() if k}
            scores[f"psnr_{regime}_{h}"] = score(values[""][:, h : h + 1], "dB", note=f"told per step: {models[''].bits}", **others)
        scores |= last_scores(frames, masks, real, data.truth, regime, T)
        scores |= film_scores(frames, real) if not forced else {}
    return scores


def film_scores(frames: dict[str, Any], real: Any, seed: int = 0) -> dict[str, Score]:
    """Whether films that are made of first frames move as real ones do: `motion_frechet`, which is not FVD and needs no weights.

    One half of the films is compared with the other half of the real clips; so are, at equal numbers, the real clips of the first half (the
    floor), and the same with their frames in random order.
    """
    half = len(real) // 2
    if half < FEWEST_FILMS:
        return {}
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(real.shape[1]), (half, 1)), axis=1)
    films = {k: f[:half] for k, f in frames.items()} | {"real": real[:half], "real, frames shuffled": real[np.arange(half)[:, None], order]}
    other = motion_vectors(real[half : 2 * half], FILM_REACH_PX)
    away = {k: frechet_distance(motion_vectors(f, FILM_REACH_PX), other) for k, f in films.items()}
    nan, note = (float("nan"), float("nan")), f"{half} films against {half} real clips, from the first frame alone"
    return {"motion_frechet_ar": Score(away.pop(""), half, nan, "lower", "distance of motion vectors", away, note)}


def last_scores(frames: dict[str, Any], masks: dict[str, Any], real: Any, truth: ClipTruth | None, regime: str, T: int) -> dict[str, Score]:
    """PSNR of changes, SSIM (where scikit-image is installed) and agent-centre error at the last horizon."""
    changes = {k: difference_psnr(f, real)[:, -1:] for k, f in frames.items()}
    scores = {f"difference_psnr_{regime}": score(changes.pop(""), "dB", "higher", "", **changes)}
    if importlib.util.find_spec("skimage") and min(real.shape[-2:]) >= 11:
        alike = {k: ssim(f[:, -1:], real[:, -1:]) for k, f in frames.items()}
        scores[f"ssim_{regime}_{T - 1}"] = score(alike.pop(""), "SSIM", "higher", "", **alike)
    if truth is not None:
        true = truth.masks[:, T - 1 : T]
        away = {k: centre_error(m[:, -1:], true) for k, m in masks.items() if k in ("", "oracle", "told_nothing")}
        stays = centre_error(truth.masks[:, :1], true)
        scores[f"centre_error_{regime}_px"] = score(away.pop(""), "px", "lower", "", copy_last=stays, **away)
    return scores


def oracle(model: Any, data: ClipTest, truth: ClipTruth, found: Found, T: int, forced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Predictions under true actions; each half of the clips with the table of the other."""
    n = len(data.windows)
    half = np.arange(n) % 2
    tables = [decoded(truth.moves[half != k], truth.locals[half != k], found["codes"][half != k]) if n > 1 else {} for k in (0, 1)]
    frames: dict[int, np.ndarray] = {}
    masks: dict[int, np.ndarray] = {}
    for k in (0, 1):
        mine = np.flatnonzero(half == k)
        for rows in np.array_split(mine, max(1, -(-len(mine) // BATCH))) if len(mine) else []:
            cut = (rows, slice(0, T - 1))
            one = Oracle(model, decoder=tables[k], moves=truth.moves[cut], locals=truth.locals[cut], shifts=truth.shifts_px[cut],
                         ground_shifts=truth.ground_shifts_px[cut])  # fmt: skip
            f, m = one.predict(data.batch(rows)[:, :T], forced)
            frames |= dict(zip(rows.tolist(), f.numpy(), strict=True))
            masks |= dict(zip(rows.tolist(), m.numpy(), strict=True))
    return np.stack([frames[i] for i in range(n)]), np.stack([masks[i] for i in range(n)])
