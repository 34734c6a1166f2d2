"""The world w-sprites: what it says about itself is so, and the same numbers give the same clips."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.compositing import load_assets
from selftaught.worlds import flare, making, puppets, w_sprites
from selftaught.worlds.w_sprites import GLOBALS, LOCALS, SIZES, STAY, WAYS, changed, part_of, render, script, tiles_of

RECIPE = SIZES["small"]
TINY = SIZES["tiny"]


def centre(mask: np.ndarray) -> np.ndarray:
    y, x = np.indices(mask.shape)
    weight = mask.astype(np.float64)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def test_a_frame_is_the_figure_over_the_ground_in_every_channel() -> None:
    one = script(RECIPE, 1, 3)
    clip = render(RECIPE, one)
    ground = w_sprites.ground_of(*one.ground, one.part, RECIPE.height + 12, RECIPE.width + 12)
    for t in range(len(one)):
        wx, wy = one.windows[t]
        bare = ground[wy : wy + RECIPE.height, wx : wx + RECIPE.width].astype(np.float64)
        x, y = one.positions[t]
        tile = tiles_of("puppets", one.identity, 32)[one.locals[t], one.phases[t]].astype(np.float64)
        alpha = np.zeros((RECIPE.height, RECIPE.width))
        colour = np.zeros_like(bare)
        alpha[y : y + 32, x : x + 32], colour[y : y + 32, x : x + 32] = tile[..., 3] / 255, tile[..., :3]
        np.testing.assert_allclose(clip.frames[t], colour + (1 - alpha[..., None]) * bare, atol=0.51)
        np.testing.assert_array_equal(clip.masks[t], np.rint(alpha * 255))
        untouched = clip.masks[t] == 0
        np.testing.assert_array_equal(clip.frames[t][untouched], bare[untouched])


def test_colours_never_exceed_their_alpha_and_figures_stay_inside_their_square() -> None:
    for identity in range(6):
        tiles = puppets.puppet_tiles(identity, 32)
        assert tiles.shape == (9, 8, 32, 32, 4) and (tiles[..., :3] <= tiles[..., 3:]).all()
        alpha = tiles[..., 3]
        assert not any(edge.any() for edge in (alpha[:, :, [0, -1]], alpha[:, :, :, [0, -1]])), f"puppet {identity} is cut off"


def test_the_shifts_are_those_of_the_mask() -> None:
    """Where the drawing is the same one twice, its centre moves by exactly the shift; else by it within 3 px."""
    exact = 0
    for index in range(16):
        one = script(RECIPE, 2, index)
        masks = render(RECIPE, one).masks
        np.testing.assert_array_equal(np.diff(one.positions, axis=0), one.shifts_px)
        for t, shift in enumerate(one.shifts_px):
            gap = np.abs(centre(masks[t + 1]) - centre(masks[t]) - shift).max()
            assert gap < 4.5
            exact += gap < 0.5
    assert exact > 60
    frozen = changed(RECIPE, script(RECIPE, 2, 0), locals=np.zeros(12, np.int64))
    still = dataclasses.replace(frozen, phases=np.zeros(12, np.int64), locals=np.zeros(12, np.int64))
    masks = render(RECIPE, still).masks
    for t, shift in enumerate(still.shifts_px):
        np.testing.assert_allclose(centre(masks[t + 1]) - centre(masks[t]), shift, atol=1e-9)


def test_moves_steps_and_borders() -> None:
    room = np.array([RECIPE.width - 32, RECIPE.height - 32])
    seen = np.zeros(len(GLOBALS), int)
    for index in range(80):
        one = script(RECIPE, 3, index)
        assert (one.positions >= 0).all() and (one.positions <= room).all()
        assert one.moves[0] == STAY
        steps = np.abs(one.shifts_px).sum(1)
        np.testing.assert_array_equal(one.shifts_px, steps[:, None] * WAYS[one.moves[1:]])
        assert ((steps == 0) == (one.moves[1:] == STAY)).all() and (steps <= RECIPE.step_px).all()
        np.testing.assert_array_equal(one.shifts(RECIPE) * [32, 24], one.shifts_px)
        assert (np.abs(one.ground_shifts_px).sum(1) <= 1).all()
        assert (one.windows >= 0).all() and (one.windows <= RECIPE.margin_px).all()
        seen += np.bincount(one.moves[1:], minlength=5)
    assert (seen > 0.05 * seen.sum()).all()


def test_the_ground_moves_as_it_is_said() -> None:
    one = next(s for s in (script(RECIPE, 4, i) for i in range(50)) if s.ground_shifts_px.any(1).all())
    clip = render(RECIPE, one)
    for t, (dx, dy) in enumerate(one.ground_shifts_px):
        moved = np.roll(clip.frames[t], (dy, dx), (0, 1))
        bare = (np.roll(clip.masks[t], (dy, dx), (0, 1)) == 0) & (clip.masks[t + 1] == 0)
        bare[[0, -1]], bare[:, [0, -1]] = False, False
        np.testing.assert_array_equal(moved[bare], clip.frames[t + 1][bare])


def test_local_actions_follow_the_motion_and_phases_the_actions() -> None:
    for index in range(60):
        one = script(RECIPE, 5, index)
        for t in range(1, len(one)):
            if one.moves[t] != STAY:
                assert one.locals[t] == (1, 2, 0, 0)[one.moves[t]]
            else:
                assert one.locals[t] >= 3
            same = one.locals[t] == one.locals[t - 1]
            assert one.phases[t] == ((one.phases[t - 1] + 1) % 8 if same else 0)
    free = dataclasses.replace(RECIPE, correlated=False)
    pairs = {(int(m), int(k)) for i in range(60) for m, k in zip(*(lambda s: (s.moves[1:], s.locals[1:]))(script(free, 5, i)), strict=True)}
    assert len(pairs) == len(GLOBALS) * len(LOCALS)


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    first, again, other = (render(RECIPE, script(RECIPE, seed, 7)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.frames, again.frames)
    assert (first.frames != other.frames).any()
    puppets.puppet_tiles.cache_clear()
    w_sprites.ground_of.cache_clear()
    np.testing.assert_array_equal(first.frames, render(RECIPE, script(RECIPE, 0, 7)).frames)


def test_no_figure_and_no_photograph_is_in_both_parts() -> None:
    cast: dict[str, set[int]] = {"train": set(), "test": set()}
    for index in range(160):
        one = script(RECIPE, 0, index)
        assert one.part == part_of(index)
        cast[one.part].add(one.identity)
    assert not cast["train"] & cast["test"] and min(map(len, cast.values())) > 12
    grounds = load_assets().grounds
    assert not {g.photo for g in grounds["train"]} & {g.photo for g in grounds["test"]}
    looks = [puppets.look_of(i) for i in range(1296)]
    assert len({(k.skin, k.hair, k.style, k.top, k.bottom) for k in looks}) == 1296


def test_colours_are_apart_from_black_and_from_each_other() -> None:
    for palette in (puppets.SKINS, puppets.HAIRS, puppets.TOPS, puppets.BOTTOMS):
        values = np.array(palette)
        gaps = np.abs(values[:, None] - values[None]).max(-1) + 255 * np.eye(6, dtype=int)
        assert gaps.min() >= 24 and values.max(1).min() >= 24
        assert all(max(puppets.rim(colour)) >= 24 for colour in palette)


def test_counterfactuals_change_what_was_asked_and_nothing_else() -> None:
    old = script(RECIPE, 6, 1)
    was = render(RECIPE, old)
    stranger = render(RECIPE, changed(RECIPE, old, identity=999))
    both = (was.masks == 0) & (stranger.masks == 0)
    np.testing.assert_array_equal(was.frames[both], stranger.frames[both])
    assert (was.frames != stranger.frames).any()
    elsewhere = render(RECIPE, changed(RECIPE, old, ground=("texture", 5)))
    np.testing.assert_array_equal(was.masks, elsewhere.masks)
    opaque = was.masks == 255
    np.testing.assert_array_equal(was.frames[opaque], elsewhere.frames[opaque])
    new = changed(RECIPE, old, moves=np.full(12, 1), locals=np.full(12, 2))
    np.testing.assert_array_equal(render(RECIPE, new).frames[0], was.frames[0])
    assert (np.diff(new.positions[:, 0]) >= 0).all() and new.positions[-1, 0] == RECIPE.width - 32
    source = script(RECIPE, 6, 2)
    transfer = changed(RECIPE, old, moves=source.moves, locals=source.locals)
    np.testing.assert_array_equal(transfer.moves, source.moves)
    same = changed(RECIPE, old, moves=old.moves, locals=old.locals)
    np.testing.assert_array_equal(render(RECIPE, same).frames, was.frames)
    with pytest.raises(ConfigError):
        changed(RECIPE, old, moves=np.full(12, 5))


def test_a_distractor_is_seen_and_not_in_the_masks() -> None:
    recipe = dataclasses.replace(RECIPE, distractor=True)
    plain, busy = render(RECIPE, script(RECIPE, 0, 4)), render(recipe, script(recipe, 0, 4))
    np.testing.assert_array_equal(plain.masks, busy.masks)
    assert (plain.frames != busy.frames).any()


@pytest.mark.parametrize("wrong", ["sprite_px=4", "identities=3", "ground=sky", "sprites=cats", "frames=0", "inertia=2.0"])
def test_a_recipe_that_makes_no_clips_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        making.recipe_of("w-sprites", assignments=[wrong])


def decoded(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@pytest.mark.parametrize("with_av", [True, False])
def test_a_folder_of_clips_and_its_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_av: bool) -> None:
    if with_av:
        pytest.importorskip("av")
    else:
        monkeypatch.setattr(making.importlib.util, "find_spec", lambda name: None)
    folder, again = tmp_path / "w", tmp_path / "again"
    suffix = "mp4" if with_av else "npy"
    assert making.make("w-sprites", folder, clips=10, seed=3, size="tiny") == suffix
    made = making.load(folder)
    assert made.container == suffix
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob(f"*.{suffix}")) == sorted(f"{k}.{suffix}" for k in made.keys)
    assert [k for k in made.keys if k.startswith("test/")] == ["test/000004", "test/000009"]
    seen: dict[str, np.ndarray] = {}
    truth = np.load(folder / "truth.npz")
    masks = np.unpackbits(truth["mask_bits"], axis=-1, count=int(truth["mask_width"]))
    for i, one in enumerate(made.scripts):
        clip = render(made.recipe, one)
        np.testing.assert_array_equal(masks[i], clip.masks > 127)
        np.testing.assert_array_equal(truth["shifts_px"][i], one.shifts_px)
        np.testing.assert_array_equal(truth["locals"][i], one.locals)
        path = folder / f"{made.keys[i]}.{suffix}"
        if with_av:
            seen[made.keys[i]] = decoded(path)
            assert seen[made.keys[i]].shape == clip.frames.shape
            assert np.abs(seen[made.keys[i]].astype(int) - clip.frames).max() <= 3
        else:
            np.testing.assert_array_equal(np.load(path), clip.frames)
    making.make("w-sprites", again, clips=10, seed=3, size="tiny")
    assert [p.relative_to(again) for p in sorted(again.rglob("*"))] == [p.relative_to(folder) for p in sorted(folder.rglob("*"))]
    assert all((decoded(again / f"{key}.mp4") == frames).all() for key, frames in seen.items())
    other = np.load(again / "truth.npz")
    assert all((truth[name] == other[name]).all() for name in truth.files)
    with pytest.raises(DataError, match="not empty"):
        making.make("w-sprites", folder, clips=10)


def test_unknown_worlds_and_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="Did you mean 'w-sprites'"):
        making.make("w-sprite", tmp_path / "x", clips=5)
    monkeypatch.setenv("SELFTAUGHT_FLARE", str(tmp_path))
    with pytest.raises(DataError, match="apt install flare-game"):
        making.make("flare", tmp_path / "x", clips=5)
    assert not (tmp_path / "x").exists()


def test_flare_figures_when_the_package_is_there() -> None:
    try:
        flare.find()
    except DataError as error:
        pytest.skip(f"the Debian package flare-game is not installed: {error.what}")
    tiles = flare.flare_tiles(0, 32)
    assert tiles.shape == (9, 8, 32, 32, 4) and (tiles[..., :3] <= tiles[..., 3:]).all()
    assert 0.05 < (tiles[..., 3] > 127).mean() < 0.4
    assert len({flare.flare_tiles(i, 32).tobytes() for i in range(5)}) == 5
    recipe = making.recipe_of("flare")
    assert render(recipe, script(recipe, 0, 0)).frames.shape == (12, 48, 64, 3)


@pytest.mark.slow
def test_a_thousand_frames_a_second_on_one_core() -> None:
    """Processor time of this process, figures drawn before: over a set of clips their drawing is a small part."""
    recipe = dataclasses.replace(RECIPE, identities=10)
    for index in range(40):
        render(recipe, script(recipe, 0, index))
    best = 0.0
    for start in (100, 140, 180):
        began = time.process_time()
        for index in range(start, start + 30):
            render(recipe, script(recipe, 0, index))
        best = max(best, 30 * recipe.frames / (time.process_time() - began))
    assert best > 1000
