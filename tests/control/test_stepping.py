"""One interface for all models, LAPO, GLASS and the true world: stepping, planning, habits, parsing by trying, names, what if."""

from __future__ import annotations

import dataclasses
import itertools
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught.control import planning
from selftaught.control.glass import GLASS
from selftaught.control.habits import MAX_KEYS, Habits, Keys, diversity, futures
from selftaught.control.lapo import LAPO
from selftaught.control.naming import Names, few
from selftaught.control.planning import Budget, cost_of, costs, plan, plan_beam, plan_cem, tried
from selftaught.control.stepping import code_actions, controls_of, pick, picture_distance, rollout, same_ground
from selftaught.control.synthesis import by_synthesis, cheapest_path
from selftaught.control.whatif import changed_codes, counterfactual, transfer
from selftaught.core.errors import ConfigError, RunError
from selftaught.method import Actions, ActionSpace, Controls
from selftaught.worlds import w_sprites as ws
from selftaught.worlds.sprites_play import SpritesPlay

RECIPE = ws.SIZES["tiny"]


@lru_cache(maxsize=1)
def world(count: int = 6) -> SpritesPlay:
    return SpritesPlay(RECIPE, [ws.script(RECIPE, 0, i) for i in range(count)])


@lru_cache(maxsize=2)
def learned(name: str) -> Any:
    torch.manual_seed(3)
    if name == "lapo":
        return LAPO(LAPO.sizes["tiny"]).eval().requires_grad_(False)
    config = dataclasses.replace(GLASS.sizes["tiny"], perceptual="none")  # type: ignore[type-var]
    return GLASS(config).eval().requires_grad_(False)


def some_actions(model: Any, B: int = 2, n: int = 3) -> Actions:
    draw = torch.Generator().manual_seed(0)
    shifts = torch.rand(B, n, 2, generator=draw) * 0.2 - 0.1 if model.name == "glass" else torch.zeros(B, n, 2)
    ground = torch.tensor([2 / 32, 0.0]).expand(B, n, 2)
    return Actions(shifts, ground, torch.randint(0, model.codes, (B, n), generator=draw))


@pytest.mark.parametrize("name", ["lapo", "glass"])
def test_stepping_is_playing(name: str) -> None:
    model = learned(name)
    first, actions = torch.rand(2, 3, 32, 32), some_actions(model)
    controls = controls_of(model)
    assert isinstance(controls, Controls)
    stepped, played = rollout(controls, controls.start(first), actions), model.play(first, actions)
    assert torch.equal(stepped.frames, played.frames)
    assert torch.equal(stepped.masks[:, 1:], played.masks[:, 1:])


@pytest.mark.parametrize("name", ["lapo", "glass"])
def test_states_can_be_picked_and_are_their_own_goal(name: str) -> None:
    controls = controls_of(learned(name))
    state = controls.start(torch.rand(3, 3, 32, 32))
    swapped = pick(state, torch.tensor([2, 0, 0]))
    assert torch.equal(controls.render(swapped), controls.render(state)[[2, 0, 0]])
    away = controls.distance(state, pick(state, torch.tensor([1])))
    assert float(away[1]) == 0 and float(away[0]) > 0 and float(away[2]) > 0


@pytest.mark.parametrize("name", ["lapo", "glass"])
def test_a_start_from_a_clip_shows_its_last_frame(name: str) -> None:
    controls = controls_of(learned(name))
    clip = torch.rand(2, 3, 3, 32, 32)
    assert torch.equal(controls.render(controls.start(clip)), clip[:, -1])


@pytest.mark.parametrize("name", ["lapo", "glass"])
def test_a_picture_is_the_same_state_however_it_lies_in_memory(name: str) -> None:
    """On some processors a convolution rounds differently where channels lie last, as they do in what is read from files."""
    controls = controls_of(learned(name))
    frames = torch.rand(2, 3, 32, 32)
    first, other = controls.start(frames), controls.start(frames.contiguous(memory_format=torch.channels_last))
    assert torch.equal(controls.masks(first), controls.masks(other)) and not controls.distance(first, other).any()
    assert controls.render(other).is_contiguous(), "which tells on every processor"


def test_the_world_steps_exactly_as_it_draws() -> None:
    w = world()
    codes = torch.from_numpy(np.stack([w.codes_of(s.moves[1:], s.locals[1:]) for s in w.scripts]))
    ground = torch.from_numpy(np.stack([s.ground_shifts_px for s in w.scripts])).float() / 16
    played = rollout(w, w.begin(range(len(w.scripts))), Actions(torch.zeros_like(ground), ground, codes))
    for i, script in enumerate(w.scripts):
        clip = ws.render(RECIPE, script)
        assert torch.equal(
            (played.frames[i] * 255).round().to(torch.uint8).permute(0, 2, 3, 1), torch.from_numpy(clip.frames)
        )
        assert torch.equal((played.masks[i] * 255).round().to(torch.uint8), torch.from_numpy(clip.masks))
    with pytest.raises(RunError, match="pixels"):
        w.parse(torch.rand(1, 2, 3, 32, 32))


@pytest.mark.parametrize("how", ["cem", "beam"])
def test_the_oracle_plans_to_its_goals(how: str) -> None:
    w = world()
    reached = []
    for i in range(len(w.scripts)):
        start, goal = w.begin([i]), w.begin([i], 6)
        if bool(w.reached(start, goal)):
            continue
        budget = Budget(sequences=64 if how == "cem" else 16, horizon=6)
        found = plan(w, start, goal, Habits.unknown(w.action_space()), how, budget, seed=i)  # type: ignore[arg-type]
        assert found.played.frames.shape[1] == len(found.distances) == found.actions.codes.shape[1] + 1
        assert float(found.distances[-1]) == float(found.distances.min())
        state = start
        for t in range(found.actions.codes.shape[1]):
            state = w.step(state, controls_act(found.actions, t))
        reached.append(bool(w.reached(state, goal)))
    assert len(reached) >= 3 and np.mean(reached) >= 0.75, reached


def controls_act(actions: Actions, t: int) -> Any:
    from selftaught.control.stepping import acts_of

    return acts_of(actions, t)


def test_random_actions_do_not_reach_them() -> None:
    w = world()
    draw = torch.Generator().manual_seed(0)
    near = []
    for i in range(len(w.scripts)):
        goal = w.begin([i], 6)
        if bool(w.reached(w.begin([i]), goal)):
            continue
        state = pick(w.begin([i]), torch.zeros(32, dtype=torch.int64))
        for _ in range(6):
            codes = torch.randint(0, len(w.pairs), (32, 1), generator=draw)
            state = w.step(state, controls_act(code_actions(codes), 0))
        near.append(float(w.reached(state, goal).float().mean()))
    assert np.mean(near) < 0.5, near


def test_trying_sequences_together_is_trying_them_alone() -> None:
    w = world()
    codes = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 2], [4, 4, 4]])
    together = tried(w, w.begin([0]), code_actions(codes), w.begin([0], 3))
    alone = torch.cat([tried(w, w.begin([0]), code_actions(c[None]), w.begin([0], 3)) for c in codes])
    assert torch.equal(together, alone)


class Counted:
    """Another model, and how many states it was asked to step."""

    def __init__(self, model: Controls) -> None:
        self.model, self.rows, self.acts = model, 0, list[Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def step(self, state: Any, act: Any) -> Any:
        self.rows += len(act.codes)
        self.acts.append(act)
        return self.model.step(state, act)


@pytest.mark.parametrize("name", ["lapo", "glass"])
def test_equal_beginnings_are_computed_once_and_that_changes_nothing(name: str) -> None:
    controls, frames = controls_of(learned(name)), torch.rand(2, 3, 32, 32)
    start, goal = controls.start(frames[:1]), controls.start(frames[1:])
    way = torch.tensor([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0]])
    keys = Keys(torch.tensor([0, 1, 1]), way) if name == "glass" else Keys(torch.arange(3), 0 * way)
    drawn = torch.randint(0, 3, (40, 4), generator=torch.Generator().manual_seed(0))
    counted, actions = Counted(controls), keys.actions(drawn)
    together = tried(counted, start, actions, goal)  # type: ignore[arg-type]
    assert counted.rows == sum(len(torch.unique(drawn[:, : t + 1], dim=0)) for t in range(4)) < drawn.numel()
    state, apart = pick(start, torch.zeros(40, dtype=torch.int64)), []
    for t in range(4):
        state = controls.step(state, controls_act(actions, t))
        apart.append(controls.distance(state, goal))
    assert torch.allclose(together, torch.stack(apart, 1), atol=1e-5)


@pytest.mark.parametrize("name", ["lapo", "glass"])
def test_rounds_that_begin_alike_are_computed_once_and_the_plan_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    controls, frames = controls_of(learned(name)), torch.rand(2, 3, 32, 32)
    start, goal = controls.start(frames[:1]), controls.start(frames[1:])
    way = torch.tensor([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0]])
    keys = Keys(torch.tensor([0, 1, 1]), way) if name == "glass" else Keys(torch.arange(3), 0 * way)
    plans, rows = [], []
    for most in (planning.MOST_KNOWN, 5, 0):
        monkeypatch.setattr(planning, "MOST_KNOWN", most)
        counted = Counted(controls)
        plans.append(plan_cem(counted, start, goal, Budget(sequences=24, horizon=6, rounds=3, elites=3), keys=keys))  # type: ignore[arg-type]
        rows.append(counted.rows)
    assert rows[0] < rows[1] < rows[2], rows
    for found in plans[1:]:
        assert torch.equal(found.actions.codes, plans[0].actions.codes) and torch.allclose(found.distances, plans[0].distances, atol=1e-5)


@pytest.mark.parametrize("switch", [0.0, 0.05])
def test_hopeless_sequences_are_given_up_and_the_best_stay_the_same(switch: float) -> None:
    w, budget, fewer = world(), Budget(sequences=48, horizon=8, elites=6, switch=switch), []
    for i in range(len(w.scripts)):
        start, goal = w.begin([i]), w.begin([i], 6)
        keys = Keys.of_space(w.action_space())
        actions = keys.actions(torch.randint(0, len(keys), (48, 8), generator=torch.Generator().manual_seed(i)))
        whole, cut = Counted(w), Counted(w)
        away = w.distance(start, goal)[0]
        want = cost_of(tried(whole, start, actions, goal), actions, away, budget)  # type: ignore[arg-type]
        found = costs(cut, start, actions, goal, away, budget)  # type: ignore[arg-type]
        best = want.argsort(stable=True)[:6]
        assert torch.equal(found.argsort(stable=True)[:6], best) and torch.equal(found[best], want[best])
        assert bool((want[torch.isinf(found)] > want[best].max()).all())
        fewer.append(cut.rows / whole.rows)
    assert max(fewer) <= 1 and np.mean(fewer) < 0.95, fewer
    last = dataclasses.replace(budget, objective="last")
    assert bool(torch.isfinite(costs(w, start, actions, goal, away, last)).all()), "only sums are known to grow"


def test_a_plan_over_keys_tries_keys_only_and_a_mixed_one_anything() -> None:
    controls, frames = controls_of(learned("glass")), torch.rand(2, 3, 32, 32)
    start, goal = controls.start(frames[:1]), controls.start(frames[1:])
    keys = Keys(torch.tensor([0, 1]), torch.tensor([[0.1, 0.0], [0.0, -0.1]]))
    habits, budget = Habits.fit(keys, torch.tensor([[0, 1, 1, 0]])), Budget(sequences=8, horizon=3, rounds=2, elites=2)
    for how in ("cem", "mixed"):
        counted = Counted(controls)
        plan(counted, start, goal, habits, how, budget, seed=1)  # type: ignore[arg-type]
        shifts = torch.cat([act.shifts for act in counted.acts])
        assert bool((shifts[:, None] == keys.shifts).all(-1).any(1).all()) == (how == "cem")


def test_a_plan_is_the_same_for_the_same_seed_and_shifts_stay_in_their_box() -> None:
    controls = controls_of(learned("glass"))
    first = torch.rand(2, 3, 32, 32)
    start, goal = controls.start(first[:1]), controls.start(first[1:])
    one, two = (
        plan_cem(controls, start, goal, Budget(sequences=6, horizon=3, rounds=2, elites=2), seed=5) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.actions, two.actions, strict=True))
    space = controls.action_space()
    assert space.shift_high is not None
    assert bool((one.actions.shifts.abs() <= torch.tensor(space.shift_high) + 1e-6).all())


@pytest.mark.parametrize(
    "wrong", [{"elites": 9, "sequences": 8}, {"horizon": 0}, {"objective": "most"}, {"rounds": 10**6}, {"smooth": 1.0}]
)
def test_budgets_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Budget(**wrong)


def test_an_unknown_planner_is_refused() -> None:
    w = world()
    with pytest.raises(ConfigError, match="cem, mixed or beam"):
        plan(w, w.begin([0]), w.begin([0], 2), Habits.unknown(w.action_space()), "magic")  # type: ignore[arg-type]


def test_habits_predict_what_tends_to_follow() -> None:
    keys = Keys.of_space(ActionSpace(3))
    done = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]] * 8)
    habits = Habits.fit(keys, done)
    assert torch.allclose(habits.bigram.sum(1), torch.ones(3)) and torch.allclose(
        habits.unigram.sum(), torch.tensor(1.0)
    )
    told = habits.surprise(done)
    assert told["bigram"] < told["unigram"] < told["uniform"] + 1e-6
    counts = (done[:, :-1] == 0) & (done[:, 1:] == 1)
    want = (float(counts.sum()) + 3 * float(habits.unigram[1])) / (float((done[:, :-1] == 0).sum()) + 3)
    assert float(habits.bigram[0, 1]) == pytest.approx(want, rel=1e-5)
    again = Habits.from_json(habits.to_json(), ActionSpace(3))
    assert torch.allclose(again.bigram, habits.bigram)
    for damage in (
        {},
        {**habits.to_json(), "codes": [0, 1, 9]},
        {**habits.to_json(), "unigram": [1.0]},
        {**habits.to_json(), "bigram": "x"},
    ):
        with pytest.raises(RunError, match="habits"):
            Habits.from_json(damage, ActionSpace(3))


def test_keys_of_a_model_with_shifts_are_pairs() -> None:
    shifts = torch.tensor([[0.2, 0.0], [0.0, 0.2], [0.0, 0.0]])
    which, codes = torch.randint(0, 3, (4, 50)), torch.randint(0, 2, (4, 50))
    actions = Actions(shifts[which] + 0.001 * torch.randn(4, 50, 2), torch.zeros(4, 50, 2), codes)
    keys = Keys.fit(ActionSpace(2, (-1, -1), (1, 1)), actions, ways=3)
    assert len(keys) == 6
    done = keys.of(actions)
    back = keys.actions(done)
    assert torch.equal(back.codes, codes) and float((back.shifts - actions.shifts).abs().max()) < 0.01
    with pytest.raises(ConfigError):
        keys.actions(torch.tensor([[6]]))
    many = Actions(shifts[which.repeat(4, 3)], torch.zeros(16, 150, 2), torch.arange(16 * 150).view(16, 150) % 600)
    assert len(Keys.fit(ActionSpace(600, (-1, -1), (1, 1)), many, ways=3)) == MAX_KEYS, "where all are rare some are kept"


def test_futures_differ_and_are_repeatable() -> None:
    w = world()
    habits = Habits.unknown(w.action_space())
    one, two, other = (futures(w, w.begin([0]), habits, 4, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.frames, two.frames) and not torch.equal(one.frames, other.frames)
    assert diversity(one.frames) > 0 and diversity(one.frames[:1].expand(4, -1, -1, -1, -1)) == 0


def test_the_cheapest_path_is_that_of_trying_all() -> None:
    costs = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0))
    for switch in (0.0, 0.2, 5.0):
        found = cheapest_path(costs, switch)
        for b in range(3):

            def cost(path: Any, b: int = b, switch: float = switch) -> float:
                changes = sum(x != y for x, y in itertools.pairwise(path))
                return float(sum(costs[b, t, k] for t, k in enumerate(path))) + switch * changes

            best = min(itertools.product(range(3), repeat=4), key=cost)
            assert cost(found[b].tolist()) == pytest.approx(cost(best), rel=1e-5)
    assert (cheapest_path(costs, 5.0).diff(dim=1) == 0).all(), "dear changes are not made"


class Slide:
    """A model that is right by construction: code 0 moves the frame by 2 px to the right, 1 to the left, 2 not at all; parse says 2."""

    def action_space(self) -> ActionSpace:
        return ActionSpace(3)

    def start(self, frames: Tensor) -> tuple[Tensor]:
        return (frames[:, -1] if frames.ndim == 5 else frames,)

    def step(self, state: tuple[Tensor], act: Any) -> tuple[Tensor]:
        moved = torch.stack([torch.roll(x, (2, -2, 0)[int(k)], -1) for x, k in zip(state[0], act.codes, strict=True)])
        return (moved,)

    def render(self, state: tuple[Tensor]) -> Tensor:
        return state[0]

    def masks(self, state: tuple[Tensor]) -> Tensor:
        return torch.zeros_like(state[0][:, 0])

    def distance(self, state: tuple[Tensor], goal: tuple[Tensor]) -> Tensor:
        return picture_distance(state[0], goal[0])

    def parse(self, clips: Tensor) -> Any:
        from selftaught.method import Parsed

        B, T = clips.shape[:2]
        zero = torch.zeros(B, T - 1, 2)
        return Parsed(clips[:, :, 0] * 0, clips, clips, Actions(zero, zero, torch.full((B, T - 1), 2)))


def test_parsing_by_trying_finds_what_was_done() -> None:
    model, frame = Slide(), torch.rand(2, 3, 16, 16)
    done = torch.tensor([[0, 0, 1, 2], [1, 2, 2, 0]])
    clips = rollout(model, model.start(frame), code_actions(done)).frames  # type: ignore[arg-type]
    found = by_synthesis(model, clips, Keys.of_space(ActionSpace(3)))  # type: ignore[arg-type]
    assert torch.equal(found.keys, done)
    assert found.agreement.tolist() == [0.25, 0.5], "the amortised parse says 2 throughout"


def test_beam_search_finds_the_only_way() -> None:
    model, frame = Slide(), torch.rand(1, 3, 16, 16)
    goal = model.start(torch.roll(frame, 6, -1))
    found = plan_beam(model, model.start(frame), goal, Keys.of_space(ActionSpace(3)), Budget(sequences=8, horizon=5))  # type: ignore[arg-type]
    assert found.actions.codes.tolist() == [[0, 0, 0]] and float(found.distances[-1]) == 0


@pytest.mark.parametrize("name", ["lapo", "glass"])
def test_a_null_intervention_changes_nothing_and_another_one_does(name: str) -> None:
    model = learned(name)
    controls, actions = controls_of(model), some_actions(model)
    state = controls.start(torch.rand(2, 3, 32, 32))
    same = counterfactual(controls, state, actions, Actions(*(x.clone() for x in actions)))
    assert float(same.difference.abs().max()) == 0
    new = changed_codes(actions, 1, (actions.codes[:, 1:2] + 1) % model.codes)
    other = counterfactual(controls, state, actions, new)
    assert float(other.difference[:, :2].max()) == 0, "nothing differs before the intervention"
    if name == "lapo":
        assert float(other.difference[:, 2].min()) > 0
    with pytest.raises(ConfigError):
        changed_codes(actions, 2, torch.zeros(2, 5, dtype=torch.int64))


def test_transfer_does_the_source_s_actions_from_the_target() -> None:
    model = learned("lapo")
    controls = controls_of(model)
    source, target = torch.rand(1, 4, 3, 32, 32), torch.rand(2, 3, 32, 32)
    actions, played = transfer(controls, source, target)
    want = model.parse(source).actions.codes
    assert torch.equal(actions.codes, want.expand(2, -1)) and not actions.ground_shifts.any()
    assert torch.equal(played.frames[:, 0], target)
    with pytest.raises(ConfigError):
        transfer(controls, torch.rand(3, 4, 3, 32, 32), target)


def test_ten_labels_name_the_codes() -> None:
    draw = np.random.default_rng(0)
    labels = torch.from_numpy(draw.integers(0, 4, 500))
    codes = torch.tensor([2, 0, 5, 3])[labels]
    noise = torch.from_numpy(draw.random(500) < 0.05)
    codes = torch.where(noise, torch.ones_like(codes), codes)
    zero = torch.zeros(500, 2)
    chosen = torch.from_numpy(few(labels.numpy(), 10))
    assert len(torch.unique(labels[chosen])) == 4, "every label is among the ten"
    actions = Actions(zero, zero, codes)
    names = Names.fit(Actions(*(x[chosen] for x in actions)), labels[chosen], codes=6, count=5)
    right = float((names.label(actions) == labels)[~noise].float().mean())
    assert right == 1.0 and names.known() == [0, 1, 2, 3]
    assert names.act(torch.arange(4)).codes.tolist() == [2, 0, 5, 3]
    with pytest.raises(ConfigError):
        Names.fit(actions, labels[:10], 6)


def test_names_tell_shifts_apart_where_codes_are_the_same() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    shifts = torch.tensor([[0.2, 0.0], [0.21, 0.0], [-0.2, 0.0], [-0.19, 0.0]])
    names = Names.fit(Actions(shifts, shifts * 0, torch.zeros(4, dtype=torch.int64)), labels, codes=2)
    assert names.label(Actions(shifts, shifts * 0, torch.zeros(4, dtype=torch.int64))).tolist() == labels.tolist()


def test_a_goal_is_brought_onto_the_background_of_the_start() -> None:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    frame = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    goal = torch.roll(frame, (0, 3), (2, 3))
    inner = slice(5, 27)
    assert torch.allclose(same_ground(frame, goal)[..., inner, inner], frame[..., inner, inner], atol=1e-5)


def test_models_that_cannot_be_stepped_are_refused() -> None:
    with pytest.raises(RunError, match="cannot be stepped"):
        controls_of(torch.nn.Linear(1, 1))
