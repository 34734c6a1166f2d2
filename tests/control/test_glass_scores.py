"""What a run is scored by, on a model that reads everything from the pixels of a small world, and on models that read one thing wrongly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.control.glass_scores import code_effects, film_scores, glass_scores, score, separation
from selftaught.data.clip_truth import ClipTest, ClipTruth
from selftaught.measure.score import bootstrap_ci
from selftaught.method import Actions, Parsed, Played
from selftaught.nets.video_blocks import from_px, to_px

H, W, SIDE, T, N = 24, 32, 6, 9, 12
WAYS = torch.tensor([[-2, 0], [2, 0], [0, -2], [0, 2], [0, 0]])


def drawn(ground: Tensor, place: Tensor, code: int) -> Tensor:
    """A block (x, y) of one of three colours over a ground (3, H, W), which stays below 0.7."""
    frame = ground.clone()
    x, y = place.tolist()
    frame[:, max(y, 0) : max(y + SIDE, 0), max(x, 0) : max(x + SIDE, 0)] = 0.0
    frame[code, max(y, 0) : max(y + SIDE, 0), max(x, 0) : max(x + SIDE, 0)] = 1.0
    return frame


class World(ClipTest):
    """Clips of a block over a ground that turns by one pixel to the left in every step, with their truth."""

    def __init__(self, seed: int = 0, known: bool = True):
        draw = np.random.default_rng(seed)
        self.frames, masks = torch.zeros(N, T, 3, H, W), np.zeros((N, T, H, W), np.float32)
        moves, codes = draw.integers(0, 5, (N, T - 1)), np.repeat(draw.integers(0, 3, (N, (T + 1) // 2)), 2, 1)[:, : T - 1]
        for n in range(N):
            ground = torch.from_numpy(0.7 * draw.random((3, H, W), dtype=np.float32))
            places = [torch.tensor([W // 2, H // 2]) - SIDE // 2]
            for t in range(T - 1):
                inside = places[-1] + WAYS[moves[n, t]]
                if not (0 <= inside[0] <= W - SIDE and 0 <= inside[1] <= H - SIDE):
                    moves[n, t] = 4
                places.append(places[-1] + WAYS[moves[n, t]])
            for t, (x, y) in enumerate(places):
                self.frames[n, t] = drawn(ground.roll(-t, -1), places[t], int(codes[n, max(t - 1, 0)]))
                masks[n, t, y : y + SIDE, x : x + SIDE] = 1
        ground_px = np.broadcast_to(np.array([-1.0, 0.0]), (N, T - 1, 2))
        truth = ClipTruth(moves, codes, WAYS[torch.from_numpy(moves)].numpy().astype(float), ground_px, masks)
        windows: Any = SimpleNamespace(length=T, clips=SimpleNamespace(frames=np.zeros((1, 3, H, W), np.uint8)))
        super().__init__(Counted(windows), truth if known else None)  # type: ignore[arg-type]

    def batch(self, indices: Any) -> Tensor:
        return self.frames[torch.as_tensor(np.asarray(indices))]


class Counted(SimpleNamespace):
    """Windows, of which there are N."""

    def __init__(self, windows: Any):
        super().__init__(**vars(windows))

    def __len__(self) -> int:
        return N


class Reads:
    """Reads masks, motion and colour from the pixels and draws what it is told; `wrong` names the one thing that it reads wrongly."""

    codes, image_px, width_px, config = 3, H, W, SimpleNamespace(codes=3)

    def __init__(self, wrong: str = ""):
        self.wrong = wrong

    def parse(self, clips: Tensor) -> Parsed:
        B, T = clips.shape[:2]
        masks = (clips.amax(2) > 0.9).float()
        area = masks.sum((2, 3)).clamp(min=1)
        centre = torch.stack([(masks.sum(2) * torch.arange(W)).sum(2) / area, (masks.sum(3) * torch.arange(H)).sum(2) / area], 2)
        codes = (clips * masks[:, :, None]).sum((3, 4)).argmax(2)[:, 1:]
        shifts = centre.diff(dim=1)
        if self.wrong == "codes":
            codes = torch.from_numpy(np.random.default_rng(int(clips.sum())).integers(0, 3, codes.shape))
        if self.wrong == "direction":
            shifts = -shifts
        if self.wrong == "masks":
            masks = torch.ones_like(masks)
        ground = torch.tensor([-1.0, 0.0]).expand(B, T - 1, 2)
        actions = Actions(from_px(shifts, H, W), from_px(ground, H, W), codes)
        return Parsed(masks, clips * masks[:, :, None], clips * (1 - masks[:, :, None]), actions)

    def play(self, images: Tensor, actions: Actions, real: Tensor | None = None) -> Played:
        masks = (images.amax(1) > 0.9).float()
        shifts, ground = (to_px(x, H, W).round().long() for x in (actions.shifts, actions.ground_shifts))
        frames = images[:, None].repeat(1, actions.codes.shape[1] + 1, 1, 1, 1)
        for b in range(len(images)):
            y, x = (torch.nonzero(masks[b]).min(0).values + torch.tensor([0, 0])).tolist()
            for t in range(actions.codes.shape[1]):
                before = frames[b, t] if real is None else real[b, t]
                if real is not None:
                    y, x = torch.nonzero(before.amax(0) > 0.9).min(0).values.tolist()
                hole = before.clone()
                hole[:, y : y + SIDE, x : x + SIDE] = 0.35
                x, y = x + int(shifts[b, t, 0]), y + int(shifts[b, t, 1])
                moved = hole.roll((int(ground[b, t, 1]), int(ground[b, t, 0])), (1, 2))
                frames[b, t + 1] = drawn(moved, torch.tensor([x, y]), int(actions.codes[b, t]))
        return Played(frames, (frames.amax(2) > 0.9).float())


def test_a_model_that_reads_everything_gets_full_marks_and_beats_what_is_beside_it() -> None:
    s = glass_scores(Reads(), World())
    full = ("mask_iou", "global_direction", "ground_direction", "stay_recognised", "ami", "ami_stay", "consistency", "homogeneity_stay")
    for name in full:
        assert s[name].value == pytest.approx(1, abs=1e-3), name
    for name in ("global_shift_error_px", "ground_shift_error_px", "centre_error_ar_px", "dead_codes"):
        assert s[name].value == pytest.approx(0, abs=1e-3), name
    for h in range(1, 9):
        for regime in ("ar", "tf"):
            mine = s[f"psnr_{regime}_{h}"]
            assert mine.value > max(v for k, v in mine.baselines.items() if k != "oracle") and "bits" in mine.note
            nearer = (mine.value + mine.baselines["told_nothing"]) / 2
            assert mine.baselines["oracle"] > nearer, "codes that are right stand for the true actions"
    assert s["code_perplexity"].value > 2 and s["effect_separation"].value > 0.5 > s["effect_separation"].baselines["shuffled"]


@pytest.mark.parametrize(
    ("wrong", "below"),
    [("codes", {"ami": 0.1, "consistency": 0.5}), ("direction", {"global_direction": 0.01}), ("masks", {"mask_iou": 0.1})],
)  # fmt: skip
def test_what_is_read_wrongly_loses_its_score_and_no_other(wrong: str, below: dict[str, float]) -> None:
    s = glass_scores(Reads(wrong), World())
    assert all(s[name].value < most for name, most in below.items())
    assert all(s[k].value > 0.99 for k in {"ami", "global_direction", "mask_iou"} - set(below))


def test_an_interval_holds_the_mean_that_it_is_of() -> None:
    """Clips weigh by their transitions that count: the interval of the mean of clips' means did not hold the mean of transitions."""
    values = np.full((40, 11), np.nan)
    values[:20] = 1
    values[20:, 0] = 0
    found = score(values, "share")
    assert found.n == 40 and abs(found.value - 220 / 240) < 1e-9 and found.ci95[0] <= found.value <= found.ci95[1]
    even = np.random.default_rng(0).normal(size=(30, 5))
    assert np.allclose(score(even, "").ci95, bootstrap_ci(even.mean(1)), atol=1e-12)
    nothing = score(np.full((3, 2), np.nan), "")
    assert nothing.n == 0 and np.isnan(nothing.value) and np.isnan(nothing.ci95).all()


def test_without_truth_only_what_needs_none_is_scored() -> None:
    s = glass_scores(Reads(), World(known=False))
    assert {"psnr_ar_8", "psnr_tf_8", "consistency", "code_perplexity", "motion_frechet_ar"} <= set(s)
    assert not {"mask_iou", "ami", "global_direction", "centre_error_ar_px"} & set(s) and "oracle" not in s["psnr_ar_8"].baselines


def test_films_that_move_as_real_ones_are_near_and_still_or_shuffled_ones_far() -> None:
    real = World().frames.numpy()
    found = film_scores({"": real, "copy_last": np.repeat(real[:, :1], T, 1)}, real)["motion_frechet_ar"]
    assert found.value == found.baselines["real"], "the films are the real ones"
    assert 3 * found.value < min(found.baselines["copy_last"], found.baselines["real, frames shuffled"])
    assert film_scores({"": real[:11]}, real[:11]) == {}, "too few to be compared"


def test_effects_of_codes_are_cut_out_around_the_agent() -> None:
    world = World()
    assert world.truth is not None
    first = world.frames[world.truth.locals[:, 0] == 0, 0]  # what a code changes depends on the colour that is there before
    effects = code_effects(Reads(), first, 3)
    own, chance = separation(effects)
    assert len(first) > 2 and effects.shape[:2] == (len(first), 3) and own > 0.9 > 0.5 > chance
