"""Ask a model that can be controlled the four questions on w-sprites, and write benchmarks/results/play.json (play_METHOD.json for
others than lapo).

    selftaught data make w-sprites runs/w-sprites --clips 3000 --seed 0
    python benchmarks/lapo.py runs/w-sprites --runs runs/bench           # or benchmarks/glass.py
    python benchmarks/play.py runs/w-sprites runs/bench/lapo-0 runs/bench/lapo-1 runs/bench/lapo-2

The world is redrawn with other actions, so every answer has an exact truth. Planning: the plan's actions, named by forty labelled steps,
are done in the world; beside it the oracle (the same planner in the world itself), random actions, and the plan with names that were
shuffled. Starts that are at the goal already are left out. `shuffled actions` is the control of the other questions: every action is one
that was parsed somewhere else. What a transferred clip shows is also read by a judge that never saw a model, between what it reads in
true clips and in clips where nothing is done; and the source's look is searched in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import selftaught
from selftaught.control import planning
from selftaught.control.habits import diversity, futures
from selftaught.control.naming import Names, few
from selftaught.control.planning import Budget, Plan, plan_cem
from selftaught.control.planning import plan as plan_in
from selftaught.control.stepping import acts_of, code_actions, pick, rollout, same_ground
from selftaught.control.whatif import counterfactual
from selftaught.core.config import read_json, write_json
from selftaught.measure.action_judge import ActionJudge, look_share, taught
from selftaught.measure.score import bootstrap_ci, wilson_ci
from selftaught.measure.video import centre_error, psnr
from selftaught.method import Actions
from selftaught.playing import Playable
from selftaught.report.films import sheet
from selftaught.worlds import making, w_sprites
from selftaught.worlds.sprites_play import SpritesPlay

RESULTS = Path(__file__).resolve().parent / "results"
PANELS = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "play"
GAP = 6
"""Steps of the true clip from start to goal."""
LABELS, FEW_LABELS = 40, 10


class Asked:
    """A run, the world, and test scripts; what each question answers are rows of numbers."""

    oracle: ClassVar[dict[int, Tensor]] = {}
    """Plans in the world itself, which are the same beside every run."""

    def __init__(self, data: str, run: Path, count: int) -> None:
        made, self.data = making.load(data), data
        self.recipe = made.recipe
        every = [s for s in made.scripts if s.part == "test"]
        # The camera stays: what is asked is what the figure does.
        self.scripts = [dataclasses.replace(s, windows=np.repeat(s.windows[:1], len(s), 0)) for s in every[:count]]
        self.world = SpritesPlay(self.recipe, self.scripts)
        self.run = Playable(run)
        self.model = self.run.model
        self.clips = torch.stack([self.drawn(s) for s in self.scripts])
        self.true = torch.from_numpy(np.stack([self.world.codes_of(s.moves[1:], s.locals[1:]) for s in self.scripts]))
        labelled = [dataclasses.replace(s, windows=s.windows) for s in every[count : count + 24]]
        clips = torch.stack([self.drawn(s) for s in labelled])
        parsed = self.model.parse(clips).actions
        true = np.concatenate([self.world.codes_of(s.moves[1:], s.locals[1:]) for s in labelled])
        ways, flat = np.array([pair[0] for pair in self.world.pairs]), Actions(*(x.flatten(0, 1) for x in parsed))
        self.named_right: dict[int, np.ndarray] = {}
        """By how many labelled steps: whether the way of each of the other steps of 24 clips is named right."""
        for count in (FEW_LABELS, LABELS):
            rows = torch.from_numpy(few(true, count))
            some = Actions(*(x[rows] for x in flat))
            self.names = Names.fit(some, torch.from_numpy(true)[rows], self.run.method.codes, len(ways), self.run.vectors())
            right = ways[self.names.label(flat).numpy()] == ways[true]
            self.named_right[count] = np.delete(right, rows).astype(float)

    def shuffled(self, actions: Actions) -> Actions:
        """Actions (N, n) in the place of others: as usual as they were, and told by nothing."""
        N, n = actions.codes.shape
        order = torch.randperm(N * n, generator=torch.Generator().manual_seed(1))
        return Actions(*(x.flatten(0, 1)[order].unflatten(0, (N, n)) for x in actions))

    def drawn(self, script: Any) -> Tensor:
        return torch.from_numpy(w_sprites.render(self.recipe, script).frames).permute(0, 3, 1, 2).float() / 255

    def planning(self) -> dict[str, Any]:
        """Success of plans to where the figure was six steps later, and (pose) doing what it did then."""
        found: dict[str, list[list[bool]]] = {k: [] for k in ("model", "oracle", "random", "shuffled names")}
        draw, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        L = len(self.world.pairs)
        others = torch.from_numpy(rng.permutation(L))
        for i in self.goals():
            start, goal = self.world.begin([i]), self.world.begin([i], GAP)
            named = self.names.label(self.planned(i)[0].actions)[0]
            if i not in self.oracle:
                self.oracle[i] = plan_cem(self.world, start, goal, Budget(horizon=8), seed=i).actions.codes[0]
            oracle = self.oracle[i]
            chosen = {
                "model": named,
                "oracle": oracle,
                "random": torch.randint(0, L, (GAP,), generator=draw),
                "shuffled names": others[named],
            }
            for name, codes in chosen.items():
                state = start
                for t in range(len(codes)):
                    state = self.world.step(state, acts_of(code_actions(codes[None]), t))
                found[name].append([bool(self.world.reached(state, goal, pose)) for pose in (False, True)])
        return {"rates": {name: np.array(rows, float) for name, rows in found.items()}}

    def goals(self) -> list[int]:
        """Clips that are not at the goal already."""
        return [i for i in range(len(self.scripts)) if not bool(self.world.reached(self.world.begin([i]), self.world.begin([i], GAP)))]

    def planned(self, i: int) -> tuple[Plan, float]:
        """The model's plan in a clip, and the processor's seconds that it took."""
        first, aim = self.clips[i : i + 1, 0], self.clips[i : i + 1, GAP]
        begin, model = time.process_time(), self.model
        plan = plan_in(model, model.start(first), model.start(same_ground(first, aim)), self.run.habits, "cem", Budget(horizon=8), i)
        return plan, time.process_time() - begin

    def speed(self, count: int = 2) -> dict[str, list[float]]:
        """Seconds of plans as they are made, and by turns as if every sequence were tried alone to its end; whether they are the same."""
        told: dict[str, list[float]] = {"now": [], "alone": [], "same": []}
        for i in self.goals()[:count]:
            with patch.object(planning, "costs", alone):
                slow, seconds = self.planned(i)
            told["alone"].append(seconds)
            plan, seconds = self.planned(i)
            told["now"].append(seconds)
            told["same"].append(float(torch.equal(plan.actions.codes, slow.actions.codes)))
        return told

    def transfer(self) -> dict[str, np.ndarray]:
        """PSNR at each step of a target doing what a source did, against the world redrawn so; beside copying and another source."""
        truth, films = self.transferred
        return {name: psnr(film[:, 1:].numpy(), truth[:, 1:].numpy()).mean(1) for name, film in films.items()}

    @cached_property
    def transferred(self) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, 9, 3, H, W) of targets that do what the next clip did: in the world; and by the model, with its controls."""
        N = len(self.scripts)
        truth = torch.stack([self.drawn(s) for s in self.redrawn(lambda i: {})])[:, :9]
        codes = self.model.parse(self.clips).actions
        first, films = self.model.start(self.clips[:, 0]), {}
        for name, step in (("model", 1), ("another source", 2)):
            rows = (torch.arange(N) + step) % N
            done = Actions(codes.shifts[rows, :8], torch.zeros(N, 8, 2), codes.codes[rows, :8])
            films[name] = rollout(self.model, first, done).frames
            if name == "model":
                films["shuffled actions"] = rollout(self.model, first, self.shuffled(done)).frames
        films["no action"] = self.clips[:, :1].expand(-1, 9, -1, -1, -1)
        return truth, films

    def redrawn(self, look: Callable[[int], dict[str, Any]]) -> list[Any]:
        """Scripts of every target with the actions of the next clip, and with the look that is given."""
        N = len(self.scripts)
        sources = [self.scripts[(i + 1) % N] for i in range(N)]
        return [
            w_sprites.changed(self.recipe, self.scripts[i], moves=s.moves, locals=s.locals, **look(i)) for i, s in enumerate(sources)
        ]

    def judged(self) -> dict[str, Any]:
        """What a judge reads in transferred clips; and whether the source's look comes through: in pictures, and in the actions."""
        truth, films = self.transferred
        N, L = len(self.scripts), len(self.world.pairs)
        rows = (torch.arange(N) + 1) % N
        judge, true = judge_of(self.data), self.true[rows, :8].numpy()
        ways = np.array([pair[0] for pair in self.world.pairs])
        read = {name: judge.read(film) for name, film in {**films, "true": truth}.items()}
        told: dict[str, Any] = {
            "judged_way": {k: (ways[x] == ways[true]).mean(1) for k, x in read.items()},
            "judged_action": {k: (x == true).mean(1) for k, x in read.items()}, "looks": {}, "chance": 1 / L,
        }  # fmt: skip
        for name, field in (("figure", "identity"), ("ground", "ground")):
            both = {}
            for whose, other in (("source", lambda i: (i + 1) % N), ("unrelated", self.stranger)):
                looks = self.redrawn(lambda i, other=other, field=field: {field: getattr(self.scripts[other(i)], field)})  # type: ignore[misc]
                both[whose] = look_share(films["model"], truth, torch.stack([self.drawn(s) for s in looks])[:, :9])
            known = np.isfinite(both["source"]) & np.isfinite(both["unrelated"])
            told["looks"][name] = {whose: x[known] for whose, x in both.items()}
        clad = [self.scripts[self.stranger(i)] for i in range(N)]
        again = [w_sprites.changed(self.recipe, s, identity=c.identity, ground=c.ground) for s, c in zip(self.scripts, clad, strict=True)]
        parsed, codes = self.model.parse(torch.stack([self.drawn(s) for s in again])).actions, self.model.parse(self.clips).actions
        done = Actions(parsed.shifts[rows, :8], torch.zeros(N, 8, 2), parsed.codes[rows, :8])
        film = rollout(self.model, self.model.start(self.clips[:, 0]), done).frames
        gap = [float((x - films["model"]).abs().mean()) for x in (film, films["another source"])]
        changed = (self.run.keys.of(parsed) != self.run.keys.of(codes)).float().mean()
        return {**told, "same": {"other look": gap[0] / max(gap[1], 1e-9), "keys": float(changed)}}

    def stranger(self, i: int) -> int:
        """A clip whose figure and ground are neither the target's nor the next one's."""
        N = len(self.scripts)
        mine = [self.scripts[i], self.scripts[(i + 1) % N]]
        others = [k % N for k in range(i + 2, i + N)]
        return next(k for k in others if all(self.scripts[k].identity != m.identity and self.scripts[k].ground != m.ground for m in mine))

    def whatif(self) -> dict[str, np.ndarray]:
        """The same beginning under the actions parsed from the next clip: contrast, direction and size of the effect, null intervention."""
        N, n = len(self.scripts), 4
        parsed = self.model.parse(self.clips).actions
        mine = Actions(parsed.shifts[:, :n], torch.zeros(N, n, 2), parsed.codes[:, :n])
        rows = (torch.arange(N) + 1) % N
        other = Actions(*(x[rows] for x in mine))
        state = self.model.start(self.clips[:, 0])
        both, null = counterfactual(self.model, state, mine, other), counterfactual(self.model, state, mine, mine)
        lost = counterfactual(self.model, state, self.shuffled(mine), self.shuffled(other))
        start = self.world.begin(range(N))
        F, G = (rollout(self.world, start, code_actions(self.true[r, :n])) for r in (torch.arange(N), rows))

        def centres(masks: Tensor) -> np.ndarray:
            from selftaught.measure.video import centres as of

            return np.asarray(of(masks[:, -1].numpy() > 0.5))

        true = centres(G.masks) - centres(F.masks)
        size = np.linalg.norm(true, axis=1)
        moved = size > self.recipe.step_px / 2
        scores: dict[str, np.ndarray] = {}
        for told, name in ((both, ""), (lost, "shuffled actions ")):
            found = np.nan_to_num(centres(told.other.masks) - centres(told.factual.masks))  # no agent has no effect
            cosine = (found * true).sum(1)[moved] / (np.linalg.norm(found, axis=1)[moved] * size[moved] + 1e-9)
            error = [psnr(x.frames[:, 1:].numpy(), G.frames[:, 1:].numpy()).mean(1) for x in (told.other, told.factual)]
            scores |= {
                f"{name}contrast_db": error[0] - error[1], f"{name}effect_direction": (cosine > np.sqrt(0.5)).astype(float),
                f"{name}effect_size": np.linalg.norm(found, axis=1)[moved] / size[moved],
                f"{name}centre_error_px": centre_error(told.other.masks[:, -1].numpy(), G.masks[:, -1].numpy()),
            }  # fmt: skip
        return scores | {"null_difference": np.array([float(null.difference.max())])}

    def energy(self, steps: int = 8) -> np.ndarray:
        """Of each clip, how the distance to a goal goes with the steps that are left to it (Spearman): 1 where less far is always nearer.

        NaN for clips whose goal looks as the start does in the world.
        """
        from scipy.stats import spearmanr

        found = []
        for i, clip in enumerate(self.clips):
            if bool(self.world.reached(self.world.begin([i]), self.world.begin([i], steps))):
                found.append(float("nan"))
                continue
            goal = self.model.start(clip[steps : steps + 1])
            away = self.model.distance(self.model.start(clip[:steps]), goal).numpy()
            found.append(float(spearmanr(np.arange(steps, 0, -1), away).statistic))
        return np.array(found)

    def prediction(self, count: int = 16) -> dict[str, Any]:
        """Best of several futures without being told anything, how they differ, and how well habits foretell what is done."""
        best, one, spread = [], [], []
        for i in range(len(self.scripts)):
            state = self.model.start(self.clips[i : i + 1, 0])
            played = futures(self.model, state, self.run.habits, 8, count, seed=i)
            values = psnr(
                played.frames[:, 1:].numpy(), self.clips[i : i + 1, 1:9].expand(count, -1, -1, -1, -1).numpy()
            ).mean(1)
            best.append(values.max())
            one.append(values[0])
            spread.append(diversity(played.frames))
        done = self.run.keys.of(self.model.parse(self.clips).actions)
        return {
            "best": np.array(best),
            "one": np.array(one),
            "diversity": float(np.mean(spread)),
            **self.run.habits.surprise(done),
        }


def alone(model: Any, state: Any, actions: Actions, goal: Any, start: Tensor, budget: Budget, reached: Any = None) -> Tensor:
    """`planning.costs` without anything that is shared or given up."""
    state, away = pick(state, torch.zeros(len(actions.codes), dtype=torch.int64)), []
    for t in range(actions.codes.shape[1]):
        state = model.step(state, acts_of(actions, t))
        away.append(model.distance(state, goal))
    return planning.cost_of(torch.stack(away, 1), actions, start, budget)


@cache
def judge_of(data: str, count: int = 500) -> ActionJudge:
    """A judge of the world's actions: training clips whose camera stays, each with the actions of another, as transferred clips have."""
    made = making.load(data)
    train = [s for s in made.scripts if s.part == "train"][:count]
    world, clips, codes = SpritesPlay(made.recipe, train[:1]), [], []
    for one, other in zip(train, [*train[1:], train[0]], strict=True):
        still = dataclasses.replace(one, windows=np.repeat(one.windows[:1], len(one), 0))
        script = w_sprites.changed(made.recipe, still, moves=other.moves, locals=other.locals)
        clips.append(w_sprites.render(made.recipe, script).frames)
        codes.append(world.codes_of(script.moves[1:], script.locals[1:]))
    frames = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
    return taught(frames, torch.from_numpy(np.stack(codes)), len(world.pairs))


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old rows with the new ones in their places; what is new altogether comes after the row that it was measured behind."""
    rows = list(old)
    for k, one in enumerate(new):
        at = next((i for i, r in enumerate(rows) if r["score"] == one["score"]), None)
        if at is not None:
            rows[at] = one
        else:
            behind = next((i for i, r in enumerate(rows) if k and r["score"] == new[k - 1]["score"]), len(rows) - 1)
            rows.insert(behind + 1, one)
    return rows


def panel(asked: Asked, path: Path, pairs: int = 3) -> None:
    """The talk's picture of action transfer: a source clip; the target as the model plays it; the target in the world.

    Sources are the clips in which most happens; targets those that begin nearest to them, because the world has a border where figures stop
    and the model has none. Every other frame.
    """
    from PIL import Image

    much = [np.abs(np.diff(s.shifts_px, axis=0)).sum() + np.abs(s.shifts_px[:8]).sum() for s in asked.scripts]
    busy = np.argsort(-np.array(much), kind="stable")
    at, rows = slice(0, 9, 2), []
    starts = np.stack([s.positions[0] for s in asked.scripts]).astype(float)
    for source in busy[:pairs].tolist():
        away = np.linalg.norm(starts - starts[source], axis=1)
        away[[i for i, s in enumerate(asked.scripts) if s.identity == asked.scripts[source].identity]] = np.inf
        target = int(away.argmin())
        one, other = asked.scripts[source], asked.scripts[target]
        done = asked.model.parse(asked.clips[source : source + 1]).actions
        done = Actions(done.shifts, torch.zeros_like(done.ground_shifts), done.codes)
        made = rollout(asked.model, asked.model.start(asked.clips[target : target + 1, 0]), done).frames[0]
        true = asked.drawn(w_sprites.changed(asked.recipe, other, moves=one.moves, locals=one.locals))
        rows += [asked.clips[source, at], made[at], true[at]]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(torch.stack(rows), gap=2, zoom=2)).save(path, optimize=True)


def row(
    score: str,
    unit: str,
    values: list[float],
    n: int,
    ci: Any,
    baselines: dict[str, float],
    note: str = "",
    main: bool = False,
) -> dict[str, Any]:
    found = {
        "method": "",
        "data": "w-sprites",
        "score": score,
        "unit": unit,
        "values": values,
        "n": n,
        "note": note,
        "baselines": baselines,
    }
    return {**found, "summary": main} | ({} if ci is None else {"ci95": [float(ci[0]), float(ci[1])]})


def baseline(found: list[dict[str, np.ndarray]], *names: str) -> dict[str, float]:
    """Means over runs."""
    return {name: float(np.mean([np.nanmean(f[name]) for f in found])) for name in names}


def energy_rows(asked: list[Asked]) -> list[dict[str, Any]]:
    known = [e[np.isfinite(e)] for e in (a.energy() for a in asked)]
    note = "of a clip's frames: distance to the one eight steps on, against the steps left"
    return [row("energy_order", "Spearman", [float(e.mean()) for e in known], len(known[0]), bootstrap_ci(np.concatenate(known)), {}, note)]


def plan_rows(asked: list[Asked]) -> list[dict[str, Any]]:
    plans, rows = [a.planning() for a in asked], []
    for at, name in ((0, "plan_position"), (1, "plan_pose")):
        mine = [p["rates"]["model"][:, at] for p in plans]
        beside = baseline([{k: x[:, at] for k, x in p["rates"].items()} for p in plans], "oracle", "random", "shuffled names")
        mean = float(np.mean([m.mean() for m in mine]))
        beside["normalised"] = (mean - beside["random"]) / max(beside["oracle"] - beside["random"], 1e-9)
        hits, n = int(sum(m.sum() for m in mine)), sum(len(m) for m in mine)
        note = f"goal {GAP} steps away, one plan, names from {LABELS} labelled steps"
        rows.append(row(name, "share reached", [float(m.mean()) for m in mine], n, wilson_ci(hits, n), beside, note, at == 0))
    return rows


def name_rows(asked: list[Asked]) -> list[dict[str, Any]]:
    many, ten = ([float(a.named_right[count].mean()) for a in asked] for count in (LABELS, FEW_LABELS))
    beside, note = {f"{FEW_LABELS} labelled steps": float(np.mean(ten))}, f"{LABELS} labelled steps name all codes"
    return [row("named_way", "share right", many, len(asked[0].named_right[LABELS]), None, beside, note)]


def speed_rows(asked: list[Asked]) -> list[dict[str, Any]]:
    told = [a.speed() for a in asked]
    beside = baseline(told, "alone", "same")
    now, n = [float(np.mean(t["now"])) for t in told], len(told[0]["now"])
    beside = {"every sequence alone": beside["alone"], "ratio": float(np.mean(now)) / beside["alone"], "same plans": beside["same"]}
    note = "64 sequences, horizon 8, 4 rounds; both by turns in one process"
    return [row("plan_cpu_s", "s", now, n, None, beside, note)]


def transfer_rows(asked: list[Asked]) -> list[dict[str, Any]]:
    moved = [a.transfer() for a in asked]
    gains = [m["model"] - m["no action"] for m in moved]
    other = {k: x - baseline(moved, "no action")["no action"] for k, x in baseline(moved, "another source", "shuffled actions").items()}
    values, interval = [float(g.mean()) for g in gains], bootstrap_ci(np.concatenate(gains))
    rows = [row("transfer_gain_db", "dB over no action", values, len(gains[0]), interval, other, main=True)]
    read = [a.judged() for a in asked]
    for name, what in (("judged_way", "which way"), ("judged_action", "which action")):
        mine = [r[name]["model"] for r in read]
        beside = baseline([r[name] for r in read], "true", "no action", "another source", "shuffled actions")
        note = f"{what} the source did, read in transferred clips by a network that learned on true clips of other figures"
        interval = bootstrap_ci(np.concatenate(mine))
        rows.append(row(name, "share right", [float(m.mean()) for m in mine], len(mine[0]), interval, beside, note))
    for name, what in (("figure", "figure"), ("ground", "ground")):
        mine = [r["looks"][name]["source"] for r in read]
        note = f"how far transferred clips go from the target's {what} to the source's; unrelated: to one that the model never saw"
        rows.append(
            row(f"leak_{name}", "share of the way", [float(m.mean()) for m in mine], len(mine[0]), bootstrap_ci(np.concatenate(mine)),
                baseline([r["looks"][name] for r in read], "unrelated"), note)
        )  # fmt: skip
    mine = [r["same"]["other look"] for r in read]
    note = "difference made by the source's look, its actions being the same, over that made by another source"
    rows.append(row("look_effect", "ratio", [float(m) for m in mine], len(asked[0].scripts), None,
                    {"keys that change": float(np.mean([r["same"]["keys"] for r in read])), "another source": 1.0}, note))  # fmt: skip
    return rows


def whatif_rows(asked: list[Asked]) -> list[dict[str, Any]]:
    what, rows = [a.whatif() for a in asked], []
    units = {"contrast_db": "dB", "effect_direction": "share within 45 degrees", "effect_size": "ratio", "centre_error_px": "px"}
    for key, unit in units.items():
        values = [w[key][np.isfinite(w[key])] for w in what]
        lost = {"shuffled actions": baseline(what, f"shuffled actions {key}")[f"shuffled actions {key}"]}
        rows.append(row(key, unit, [float(v.mean()) for v in values], len(values[0]), bootstrap_ci(np.concatenate(values)), lost))
    null = [float(w["null_difference"][0]) for w in what]
    rows.append(row("null_difference", "", null, len(what), None, {}, "largest difference, exactly 0"))
    return rows


def prediction_rows(asked: list[Asked]) -> list[dict[str, Any]]:
    found = [a.prediction() for a in asked]
    best = [f["best"] for f in found]
    beside = baseline(found, "one", "diversity")
    beside = {"one future": beside["one"], "diversity": beside["diversity"]}
    rows = [row("best_of_16_db", "dB", [float(b.mean()) for b in best], len(best[0]), bootstrap_ci(np.concatenate(best)), beside)]
    surprise, beside = [f["bigram"] for f in found], baseline(found, "unigram", "uniform")
    rows.append(row("surprise", "nats per action", surprise, len(best[0]), None, beside, "of what follows what"))
    return rows


QUESTIONS = {
    "energy": energy_rows, "plan": plan_rows, "names": name_rows, "speed": speed_rows, "transfer": transfer_rows, "whatif": whatif_rows,
    "prediction": prediction_rows,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=100, help="test clips that are asked about")
    parser.add_argument("--only", nargs="*", choices=list(QUESTIONS), default=list(QUESTIONS), help="ask these; the other rows stay")
    a = parser.parse_args()
    begin = time.monotonic()
    with torch.no_grad():
        asked = [Asked(a.data, run, a.clips) for run in a.runs]
        method = asked[0].run.method.name
        behind = "" if method == "lapo" else f"_{method}"
        panel(asked[0], PANELS / f"transfer{behind}.png")
        path = RESULTS / f"play{behind}.json"
        before = read_json(path) if path.is_file() and len(a.only) < len(QUESTIONS) else {"rows": [], "seconds": 0.0}
        for name in a.only:
            new = [{**r, "method": method} for r in QUESTIONS[name](asked)]
            before["rows"] = merged(before["rows"], new)
            write_json(path, {
                "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work",
                "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
                "seconds": before["seconds"] + time.monotonic() - begin, "seeds": list(range(len(a.runs))), "rows": before["rows"],
            })  # fmt: skip
            for one in new:
                values = ", ".join(f"{v:.3f}" for v in one["values"])
                print(f"{one['score']}: {values} {one.get('ci95', '')}; {one['baselines']}", flush=True)


if __name__ == "__main__":
    main()
