"""Ask a model that can be controlled the four questions on w-sprites, and write benchmarks/results/play.json (play_METHOD.json for
others than lapo).

    selftaught data make w-sprites runs/w-sprites --clips 3000 --seed 0
    python benchmarks/lapo.py runs/w-sprites --runs runs/bench
    python benchmarks/play.py runs/w-sprites runs/bench/lapo-0 runs/bench/lapo-1 runs/bench/lapo-2

The world is redrawn with other actions, so every answer has an exact truth. Planning: the plan's actions, named by forty labelled steps,
are done in the world; beside it the oracle (the same planner in the world itself), random actions, and the plan with names that were
shuffled. Starts that are at the goal already are left out. `shuffled actions` is the control of the other questions: every action is one
that was parsed somewhere else.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import selftaught
from selftaught.control.habits import diversity, futures
from selftaught.control.naming import Names, few
from selftaught.control.planning import Budget, plan_cem
from selftaught.control.planning import plan as plan_in
from selftaught.control.stepping import acts_of, code_actions, rollout, same_ground
from selftaught.control.whatif import counterfactual
from selftaught.core.config import write_json
from selftaught.measure.score import bootstrap_ci, wilson_ci
from selftaught.measure.video import centre_error, psnr
from selftaught.method import Actions
from selftaught.playing import Playable
from selftaught.report.films import sheet
from selftaught.worlds import making, w_sprites
from selftaught.worlds.sprites_play import SpritesPlay

RESULTS = Path(__file__).resolve().parent / "results"
PANEL = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "play" / "transfer.png"
GAP = 6
"""Steps of the true clip from start to goal."""
LABELS = 40


class Asked:
    """A run, the world, and test scripts; what each question answers are rows of numbers."""

    def __init__(self, data: str, run: Path, count: int) -> None:
        made = making.load(data)
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
        rows = torch.from_numpy(few(true, LABELS))
        flat = Actions(*(x.flatten(0, 1) for x in parsed))
        L = len(self.world.pairs)
        self.names = Names.fit(
            Actions(*(x[rows] for x in flat)),
            torch.from_numpy(true)[rows],
            self.run.method.codes,
            L,
            self.run.vectors(),
        )
        ways = np.array([pair[0] for pair in self.world.pairs])
        self.named_right = (ways[self.names.label(flat).numpy()] == ways[true]).astype(float)

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
        L, cpu = len(self.world.pairs), 0.0
        others = torch.from_numpy(rng.permutation(L))
        budget = Budget(horizon=8)
        for i in range(len(self.scripts)):
            start, goal = self.world.begin([i]), self.world.begin([i], GAP)
            if bool(self.world.reached(start, goal)):
                continue
            first, aim = self.clips[i : i + 1, 0], self.clips[i : i + 1, GAP]
            begin = time.process_time()
            plan = plan_in(
                self.model,
                self.model.start(first),
                self.model.start(same_ground(first, aim)),
                self.run.habits,
                "cem",
                budget,
                i,
            )
            cpu += time.process_time() - begin
            named = self.names.label(plan.actions)[0]
            oracle = plan_cem(self.world, start, goal, Budget(horizon=8), seed=i).actions.codes[0]
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
        rates = {name: np.array(rows, float) for name, rows in found.items()}
        return {"rates": rates, "cpu_s": cpu / max(1, len(rates["model"]))}

    def transfer(self) -> dict[str, np.ndarray]:
        """PSNR at each step of a target doing what a source did, against the world redrawn so; beside copying and another source."""
        N = len(self.scripts)
        out: dict[str, list[Tensor]] = {"model": [], "no action": [], "another source": [], "shuffled actions": []}
        truths = []
        for i in range(N):
            source = self.scripts[(i + 1) % N]
            truths.append(
                self.drawn(w_sprites.changed(self.recipe, self.scripts[i], moves=source.moves, locals=source.locals))
            )
        truth = torch.stack(truths)[:, 1:9]
        codes = self.model.parse(self.clips).actions
        first = self.model.start(self.clips[:, 0])
        for name, step in (("model", 1), ("another source", 2)):
            rows = (torch.arange(N) + step) % N
            done = Actions(codes.shifts[rows], torch.zeros_like(codes.ground_shifts), codes.codes[rows])
            out[name].append(rollout(self.model, first, done).frames[:, 1:9])
            if name == "model":
                out["shuffled actions"].append(rollout(self.model, first, self.shuffled(done)).frames[:, 1:9])
        out["no action"].append(self.clips[:, :1].expand(-1, 8, -1, -1, -1))
        return {name: psnr(x[0].numpy(), truth.numpy()).mean(1) for name, x in out.items()}

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


def rows_of(asked: list[Asked]) -> list[dict[str, Any]]:
    plans = [a.planning() for a in asked]
    moved, what, futures_ = [a.transfer() for a in asked], [a.whatif() for a in asked], [a.prediction() for a in asked]
    energies = [a.energy() for a in asked]
    known = [e[np.isfinite(e)] for e in energies]
    note = "of a clip's frames: distance to the one eight steps on, against the steps left"
    rows = [
        row("energy_order", "Spearman", [float(e.mean()) for e in known], len(known[0]), bootstrap_ci(np.concatenate(known)), {}, note)
    ]
    for at, name in ((0, "plan_position"), (1, "plan_pose")):
        mine = [p["rates"]["model"][:, at] for p in plans]
        beside = {
            k: float(np.mean([p["rates"][k][:, at].mean() for p in plans]))
            for k in ("oracle", "random", "shuffled names")
        }
        beside["normalised"] = (float(np.mean([m.mean() for m in mine])) - beside["random"]) / max(
            beside["oracle"] - beside["random"], 1e-9
        )
        hits, n = int(sum(m.sum() for m in mine)), sum(len(m) for m in mine)
        note = f"goal {GAP} steps away, one plan, names from {LABELS} labelled steps"
        rows.append(
            row(name, "share reached", [float(m.mean()) for m in mine], n, wilson_ci(hits, n), beside, note, at == 0)
        )
    rows.append(
        row(
            "plan_cpu_s",
            "s",
            [p["cpu_s"] for p in plans],
            len(plans[0]["rates"]["model"]),
            None,
            {},
            "64 sequences, horizon 8, 4 rounds",
        )
    )
    right = [float(a.named_right.mean()) for a in asked]
    rows.append(
        row(
            "named_way",
            "share right",
            right,
            len(asked[0].named_right),
            None,
            {},
            f"{LABELS} labelled steps name all codes",
        )
    )
    gains = [m["model"] - m["no action"] for m in moved]
    other = {
        k: float(np.mean([m[k].mean() - m["no action"].mean() for m in moved]))
        for k in ("another source", "shuffled actions")
    }
    interval = bootstrap_ci(np.concatenate(gains))
    rows.append(
        row(
            "transfer_gain_db",
            "dB over no action",
            [float(g.mean()) for g in gains],
            len(gains[0]),
            interval,
            other,
            main=True,
        )
    )
    for key, unit in (
        ("contrast_db", "dB"),
        ("effect_direction", "share within 45 degrees"),
        ("effect_size", "ratio"),
        ("centre_error_px", "px"),
    ):
        values = [w[key][np.isfinite(w[key])] for w in what]
        lost = {"shuffled actions": float(np.mean([np.nanmean(w[f"shuffled actions {key}"]) for w in what]))}
        rows.append(
            row(key, unit, [float(v.mean()) for v in values], len(values[0]), bootstrap_ci(np.concatenate(values)), lost)
        )
    rows.append(
        row(
            "null_difference",
            "",
            [float(w["null_difference"][0]) for w in what],
            len(what),
            None,
            {},
            "largest difference, exactly 0",
        )
    )
    best = [f["best"] for f in futures_]
    beside = {
        "one future": float(np.mean([f["one"].mean() for f in futures_])),
        "diversity": float(np.mean([f["diversity"] for f in futures_])),
    }
    rows.append(
        row(
            "best_of_16_db",
            "dB",
            [float(b.mean()) for b in best],
            len(best[0]),
            bootstrap_ci(np.concatenate(best)),
            beside,
        )
    )
    beside = {k: float(np.mean([f[k] for f in futures_])) for k in ("unigram", "uniform")}
    rows.append(
        row(
            "surprise",
            "nats per action",
            [f["bigram"] for f in futures_],
            len(best[0]),
            None,
            beside,
            "of what follows what",
        )
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=100, help="test clips that are asked about")
    a = parser.parse_args()
    begin = time.monotonic()
    with torch.no_grad():
        asked = [Asked(a.data, run, a.clips) for run in a.runs]
        method = asked[0].run.method.name
        if method == "lapo":
            panel(asked[0], PANEL)
        rows = [{**r, "method": method} for r in rows_of(asked)]
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
        "seconds": time.monotonic() - begin, "seeds": list(range(len(a.runs))), "rows": rows,
    }  # fmt: skip
    write_json(RESULTS / ("play.json" if method == "lapo" else f"play_{method}.json"), result)
    for one in rows:
        print(
            f"{one['score']}: {', '.join(f'{v:.3f}' for v in one['values'])} {one.get('ci95', '')}; {one['baselines']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
