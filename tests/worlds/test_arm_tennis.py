"""The worlds `arm` and `drawn-tennis`: physics, what is written, counterfactuals, and stepping."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selftaught.control.habits import Habits
from selftaught.control.planning import Budget, plan
from selftaught.control.stepping import code_actions, pick, rollout
from selftaught.core.errors import ConfigError, DataError, RunError
from selftaught.data.clip_reader import Want
from selftaught.data.clip_truth import open_clip_test
from selftaught.measure.detections import add_mdr, colour_spots
from selftaught.method import Controls
from selftaught.worlds import arm, making, tennis
from selftaught.worlds.arm_play import ArmPlay
from selftaught.worlds.tennis_play import TennisPlay
from selftaught.worlds.w_sprites import STAY, WAYS

ARM, COURT = arm.SIZES["small"], tennis.SIZES["small"]


def world(name: str, count: int = 8) -> Any:
    if name == "arm":
        return ArmPlay(ARM, [arm.script(ARM, 0, i) for i in range(count)])
    return TennisPlay(COURT, [tennis.script(COURT, 0, i) for i in range(count)])


def test_what_is_pushed_moves_as_the_gripper_does_and_nothing_lies_in_anything() -> None:
    pushed = 0
    for index in range(40):
        one = arm.script(ARM, 1, index)
        reach = ARM.gripper_px + ARM.thing_px
        there = one.things[:, : ARM.things]
        away = np.linalg.norm(there - one.gripper[:, None], axis=2)
        assert away.min() > reach - 1e-6, "the gripper is never in a thing"
        assert np.linalg.norm(there[:, 0] - there[:, 1], axis=1).min() > 2 * ARM.thing_px - 0.5
        low, high = arm.bounds(ARM, ARM.thing_px)
        assert (there >= low - 1e-9).all() and (there <= high + 1e-9).all()
        steps = np.linalg.norm(np.diff(one.gripper, axis=0), axis=1)
        assert steps.max() < 2 * ARM.step_px and (one.things[:, -1] == arm.AWAY).all()
        moved = np.abs(np.diff(there, axis=0)).max(2) > 1e-9
        np.testing.assert_array_equal(moved, one.contacts[1:, : ARM.things])
        assert not moved[one.moves[1:] == STAY].any(), "nothing moves by itself"
        pushed += int(moved.any(1).sum())
    assert pushed > 40, "contacts are not rare"


def test_a_thing_in_the_way_is_pushed_ahead_and_stopped_at_the_edge() -> None:
    """By hand: a thing right in front of the gripper is carried along by whole steps, until the edge stops both."""
    recipe = dataclasses.replace(ARM, things=0)
    old = arm.script(recipe, 0, 4)
    start = np.array([20.0, 24.0])
    old = dataclasses.replace(old, gripper=np.repeat(start[None], len(old), 0))
    reach = recipe.gripper_px + recipe.thing_px
    spare = start + np.array([reach + 1, 0])
    one = arm.changed(recipe, old, moves=np.array([STAY] + 12 * [1]), spare=spare)
    np.testing.assert_allclose(one.gripper[1], start + [3, 0])
    np.testing.assert_allclose(one.things[1, 0], spare + [2, 0])  # 1 px of room, then 2 px of pushing
    np.testing.assert_allclose(one.things[2, 0], spare + [5, 0])
    np.testing.assert_allclose(one.things[-1, 0], [recipe.width - recipe.thing_px, 24])
    np.testing.assert_allclose(one.gripper[-1], one.things[-1, 0] - [reach, 0])
    away = arm.changed(recipe, old, moves=np.array([STAY] + 4 * [0]), spare=spare)
    assert (away.things == spare).all() and not away.contacts.any()
    for wrong in ((0.0, 0.0), tuple(start + 1), (1.0, 2.0, 3.0)):
        with pytest.raises(ConfigError, match="thing"):
            arm.changed(recipe, old, spare=np.array(wrong))
    with pytest.raises(ConfigError):
        arm.changed(recipe, old, moves=np.array([4, 7]))


def test_the_arm_s_parts_are_where_they_are_said_to_be() -> None:
    one = next(s for s in (arm.script(ARM, 0, i) for i in range(40)) if s.contacts.any())
    clip = arm.render(ARM, one)
    shoulder, elbow = arm.elbow(ARM, one.gripper)
    lengths = np.linalg.norm(elbow - shoulder, axis=1), np.linalg.norm(one.gripper - elbow, axis=1)
    np.testing.assert_allclose(lengths[0], lengths[1])
    np.testing.assert_allclose(lengths[0], lengths[0][0])
    for t in range(len(one)):
        x, y = one.gripper[t].astype(int)
        assert clip.masks[t, y, x] == 255
        np.testing.assert_allclose(clip.frames[t, y, x], (250, 214, 60), atol=2)
    bits = np.unpackbits(clip.extra["thing_bits"], axis=-1, count=ARM.width)
    assert bits.shape == (len(one), ARM.things, 48, 64) and not (bits.any(1) & (clip.masks > 127)).any()
    whole = 0
    for t, k in np.ndindex(bits.shape[:2]):
        if bits[t, k].sum() >= 76:  # the rest lies under the arm in part
            spot = np.array(np.nonzero(bits[t, k])).mean(1)[::-1] + 0.5
            np.testing.assert_allclose(spot, one.things[t, k], atol=0.3)
            whole += 1
    assert whole > 5


def test_a_game_of_tennis_is_played() -> None:
    returns = serves = swings = 0
    for index in range(80):
        one = tennis.script(COURT, 0, index)
        r = one.rally
        for x, own in ((r.player, True), (r.opponent, False)):
            low, high = tennis.half(COURT, own)
            assert (x >= low - 1e-9).all() and (x <= high + 1e-9).all()
        steps = np.diff(r.player, axis=0)
        ways = WAYS[one.moves[1:]] * COURT.step_px
        assert (np.abs(steps) <= np.abs(ways) + 1e-9).all() and (steps * ways >= 0).all()
        new = np.diff(r.flights) > 0
        returns += int((new & ~r.to_player[1:]).sum())
        serves += int((new & r.to_player[1:] & r.to_player[:-1]).sum())
        swings += int(one.locals.sum())
        assert ((one.locals == 1) == (r.swing > 0)).all()
        assert (r.done < 1 + tennis._SERVE_AFTER * r.speed).all(), "what nobody returns is served again"
        for t in np.flatnonzero(new & ~r.to_player[1:]):
            assert one.locals[t + 1] == 1 and np.linalg.norm(r.player[t + 1] - r.goes[t]) <= 0.2 * COURT.height
    assert returns > 5 and serves > 20 and swings > 60, (returns, serves, swings)


def test_without_an_opponent_nothing_moves_but_the_player() -> None:
    alone = tennis.render(dataclasses.replace(COURT, opponent=False), tennis.script(COURT, 0, 0))
    played = tennis.render(COURT, tennis.script(COURT, 0, 0))
    ground = tennis.court_of(COURT, tennis.script(COURT, 0, 0).identity)
    away = alone.masks == 0
    assert (alone.frames[away] == np.broadcast_to(ground, alone.frames.shape)[away]).all()
    assert (played.frames[played.masks == 0] != np.broadcast_to(ground, played.frames.shape)[played.masks == 0]).any()


def test_the_player_is_found_by_its_colour() -> None:
    """The floor of ADD: within a pixel of the shirt's true centre, in all frames; the opponent's colour is not taken for it."""
    found, true = [], []
    for index in range(12):
        one = tennis.script(COURT, 0, index)
        clip = tennis.render(COURT, one)
        found.append(colour_spots(clip.frames.transpose(0, 3, 1, 2) / 255, tennis.PLAYER)[0])
        true.append(one.rally.player + np.array([-0.5, -0.11 * COURT.height - 0.5]))
    score = add_mdr(np.stack(found), np.stack(true))
    assert score.mdr == 0 and score.add_px < 1, score


@pytest.mark.parametrize("name", ["arm", "drawn-tennis"])
def test_worlds_step_exactly_as_they_draw(name: str) -> None:
    w = world(name)
    assert isinstance(w, Controls)
    module = making.module_of(name)
    codes = torch.from_numpy(np.stack([w.codes_of(s) for s in w.scripts]))
    played = rollout(w, w.begin(range(len(w.scripts))), code_actions(codes))
    for i, script in enumerate(w.scripts):
        clip = module.render(w.recipe, script)
        np.testing.assert_array_equal((played.frames[i] * 255).round().permute(0, 2, 3, 1).numpy(), clip.frames)
        np.testing.assert_array_equal((played.masks[i] * 255).round().numpy(), clip.masks)
    twice = pick(w.begin([3, 1]), torch.tensor([1, 0, 1]))
    assert torch.equal(w.render(twice), w.render(w.begin([1, 3, 1])))
    for ask in (w.parse, w.start):
        with pytest.raises(RunError, match="pixels"):
            ask(torch.rand(1, 2, 3, 48, 64))


@pytest.mark.parametrize("name", ["arm", "drawn-tennis"])
def test_the_oracle_plans_to_goals(name: str) -> None:
    w = world(name, 10)
    reached = []
    for i in range(10):
        start, goal = w.begin([i]), w.begin([i], 6)
        if bool(w.reached(start, goal)):
            continue
        found = plan(w, start, goal, Habits.unknown(w.action_space()), "cem", Budget(sequences=32, horizon=6, rounds=3), seed=i)
        state = start
        for t in range(found.actions.codes.shape[1]):
            state = w.step(state, type("A", (), {"codes": found.actions.codes[:, t]}))
        reached.append(bool(w.reached(state, goal)))
    assert len(reached) >= 5 and np.mean(reached) >= 0.8, reached


@pytest.mark.parametrize("name", ["arm", "drawn-tennis"])
def test_clips_and_truth_are_written_and_read(name: str, tmp_path: Path) -> None:
    making.make(name, tmp_path / "w", clips=10, seed=3, size="tiny")
    made = making.load(tmp_path / "w")
    assert made.world == name and len(made.scripts) == 10
    told = json.loads((tmp_path / "w" / "world.json").read_text())
    assert told["world"] == name and len(told["locals"]) == 2
    test = open_clip_test(str(tmp_path / "w"), Want(32, 32, 0.0), 1)
    assert test.truth is not None and len(test.windows) == 2
    own = [s for s in made.scripts if s.part == "test"]
    np.testing.assert_array_equal(test.truth.moves, np.stack([s.moves[1:] for s in own]))
    module = making.module_of(name)
    drawn = np.stack([module.render(made.recipe, s).masks for s in own])
    np.testing.assert_array_equal(test.truth.masks > 0.5, drawn > 127)
    arrays = np.load(tmp_path / "w" / "truth.npz")
    if name == "arm":
        np.testing.assert_array_equal(arrays["contacts"], np.stack([s.contacts[:, :1] for s in made.scripts]))
        assert arrays["thing_bits"].shape == (10, 8, 1, 32, 4)
    else:
        np.testing.assert_allclose(arrays["player_px"], np.stack([s.rally.player for s in made.scripts]), rtol=1e-6)
    again = module.script(made.recipe, 3, 7)
    np.testing.assert_array_equal(module.render(made.recipe, again).frames, module.render(made.recipe, made.scripts[7]).frames)


def test_counterfactuals_of_tennis_begin_alike_and_nothing_but_the_actions_differs() -> None:
    old = tennis.script(COURT, 0, 2)
    same = tennis.changed(COURT, old, actions=old.actions)
    np.testing.assert_array_equal(tennis.render(COURT, same).frames, tennis.render(COURT, old).frames)
    other = tennis.changed(COURT, old, actions=np.full(len(old), 1))
    assert (np.diff(other.rally.player[:, 0]) >= 0).all()
    elsewhere = tennis.changed(COURT, old, actions=old.actions, court=3)
    np.testing.assert_array_equal(elsewhere.rally.player, old.rally.player)
    assert (tennis.render(COURT, elsewhere).frames != tennis.render(COURT, old).frames).any()
    with pytest.raises(ConfigError):
        tennis.changed(COURT, old, actions=np.array([0, 6]))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("arm", "thing_px=40"), ("arm", "step_px=0"), ("arm", "things=9"), ("arm", "ground=sea"), ("arm", "height=4"),
     ("drawn-tennis", "step_px=30"), ("drawn-tennis", "chase_frac=2"), ("drawn-tennis", "width=5")],
)  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(name: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError)):
        making.make(name, tmp_path / "w", clips=1, assignments=[wrong])
    assert not (tmp_path / "w").exists()
