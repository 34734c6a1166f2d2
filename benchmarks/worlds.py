"""Score runs of one method on the worlds `arm` and `drawn-tennis`, and write benchmarks/results/arm.json or drawn_tennis.json.

    selftaught data make arm runs/arm --clips 400 --seed 0
    selftaught train lapo runs/arm --out runs/lapo-arm && selftaught evaluate runs/lapo-arm
    python benchmarks/worlds.py runs/arm runs/lapo-arm

Both: what codes tell of the true ways, and plans to places, done in the world by names from forty labelled steps. Tennis: average detection
distance (ADD) and missing detection rate (MDR) of clips generated from their first frame and parsed actions. Arm: the talk's question, what
happens to a thing that is put in front of the arm. `contact_recall` is the share of true pushes in which the thing moves as well, by more
than 2 px and not backwards; `phantom_motion` the share of cases in which it moves though the arm goes the other way and touches nothing;
`permanence` how much of its area is left. A model that draws one layer that acts before a ground fails the first by construction: to it the
thing is ground. `world` beside each is the same detector on true frames. Rows of other methods are kept.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import selftaught
from selftaught.control.naming import Names, few
from selftaught.control.planning import Budget, plan_cem
from selftaught.control.planning import plan as plan_in
from selftaught.control.stepping import acts_of, as_actions, code_actions, rollout
from selftaught.core.config import read_json, write_json
from selftaught.measure.detections import add_mdr, colour_spots
from selftaught.measure.score import bootstrap_ci, wilson_ci
from selftaught.method import Actions
from selftaught.playing import Playable
from selftaught.worlds import arm, making, tennis
from selftaught.worlds.arm_play import ArmPlay
from selftaught.worlds.tennis_play import TennisPlay

RESULTS = Path(__file__).resolve().parent / "results"
GAP, LABELS, PUSHES = 6, 40, 5
MOVED_PX = 2.0
FROM_RUN = ("move_decoded", "ami_move", "psnr_ar_8")


class Asked:
    """A run, its world, and test scripts."""

    def __init__(self, made: Any, run: Path, count: int) -> None:
        self.recipe, self.module = made.recipe, making.module_of(made.world)
        self.scripts = [s for s in made.scripts if s.part == "test"][:count]
        self.world: Any = (ArmPlay if made.world == "arm" else TennisPlay)(self.recipe, self.scripts)
        self.run, self.folder = Playable(run), run
        self.model = self.run.model
        self.clips = torch.stack([self.drawn(s) for s in self.scripts])
        self.parsed = self.model.parse(self.clips).actions
        # What names is not what is asked: steps of clips that are learned from, with their labels.
        labelled = [s for s in made.scripts if s.part == "train"][:24]
        parsed = self.model.parse(torch.stack([self.drawn(s) for s in labelled])).actions
        true = np.concatenate([self.world.codes_of(s) for s in labelled])
        rows = torch.from_numpy(few(true, LABELS))
        flat = Actions(*(x.flatten(0, 1)[rows] for x in parsed))
        L = self.world.action_space().codes
        self.names = Names.fit(flat, torch.from_numpy(true)[rows], self.run.method.codes, L, self.run.vectors())

    def drawn(self, script: Any) -> Tensor:
        return torch.from_numpy(self.module.render(self.recipe, script).frames).permute(0, 3, 1, 2).float() / 255

    def planning(self) -> dict[str, list[bool]]:
        """Whether plans to where the agent was six steps later come within a step of it; starts that are there are left out."""
        found: dict[str, list[bool]] = {k: [] for k in ("model", "oracle", "random", "shuffled names")}
        draw, L = torch.Generator().manual_seed(0), self.world.action_space().codes
        others = torch.from_numpy(np.random.default_rng(0).permutation(L))
        for i in range(len(self.scripts)):
            start, goal = self.world.begin([i]), self.world.begin([i], GAP)
            if bool(self.world.reached(start, goal)):
                continue
            first, aim = self.model.start(self.clips[i : i + 1, 0]), self.model.start(self.clips[i : i + 1, GAP])
            named = self.names.label(plan_in(self.model, first, aim, self.run.habits, "cem", Budget(), i).actions)[0]
            oracle = plan_cem(self.world, start, goal, Budget(sequences=32, rounds=3), seed=i).actions.codes[0]
            random = torch.randint(0, L, (GAP,), generator=draw)
            for name, codes in (("model", named), ("oracle", oracle), ("random", random), ("shuffled names", others[named])):
                state = start
                for t in range(len(codes)):
                    state = self.world.step(state, acts_of(code_actions(codes[None]), t))
                found[name].append(bool(self.world.reached(state, goal)))
        return found

    def detections(self) -> dict[str, tuple[float, float]]:
        """(ADD, MDR) of the player in generated clips, and of what needs no model."""
        real = self.clips[:, 1:9]
        true = colour_spots(real.numpy(), tennis.PLAYER)[0]
        order = torch.randperm(self.parsed.codes.numel(), generator=torch.Generator().manual_seed(1))
        shuffled = Actions(*(x.flatten(0, 1)[order].view_as(x) for x in self.parsed))
        first = self.model.start(self.clips[:, 0])
        made = {name: rollout(self.model, first, a).frames[:, 1:9] for name, a in (("model", self.parsed), ("shuffled actions", shuffled))}
        made["copy_last"] = self.clips[:, :1].expand_as(real)
        scores = {name: add_mdr(colour_spots(x.numpy(), tennis.PLAYER)[0], true)[:2] for name, x in made.items()}
        shirt = np.stack([s.rally.player[1:9] for s in self.scripts]) + np.array([-0.5, -0.11 * self.recipe.height - 0.5])
        return scores | {"world": add_mdr(true, shirt)[:2]}

    def in_the_way(self) -> dict[str, np.ndarray]:
        """A thing is put before the gripper, which goes towards it and away from it: what the world says, and the model."""
        rows: dict[str, list[float]] = {k: [] for k in ("recall", "phantom", "left", "error", "true recall", "true left")}
        reach = self.recipe.gripper_px + self.recipe.thing_px
        for one in self.scripts:
            for way in range(4):
                spare = one.gripper[0] + arm.WAYS[way] * (reach + 1)
                low, high = arm.bounds(self.recipe, self.recipe.thing_px)
                others = np.linalg.norm(one.things[0, :-1] - spare, axis=1)
                if not ((spare >= low) & (spare <= high)).all() or (others < 2 * self.recipe.thing_px + 1).any():
                    continue
                for towards in (True, False):
                    done = way if towards else way ^ 1
                    new = arm.changed(self.recipe, one, moves=np.array([arm.STAY] + PUSHES * [done]), spare=spare)
                    self.told(rows, new, done, towards)
        return {k: np.array(v) for k, v in rows.items()}

    def told(self, rows: dict[str, list[float]], new: Any, way: int, towards: bool) -> None:
        """What became of the thing in one case."""
        real, pushed = self.drawn(new), new.things[-1, -1] - new.things[0, -1]
        played = rollout(self.model, self.model.start(real[None, 0]), as_actions(PUSHES * [self.names.act(torch.tensor([way]))])).frames[0]
        for name, frames in (("", played), ("true ", real)):
            places, sizes = colour_spots(frames.numpy(), arm.SPARE)
            if not sizes[0]:
                return  # hidden under the arm
            moved = places[-1] - places[0] if sizes[-1] else np.full(2, np.nan)
            goes = bool(np.linalg.norm(np.nan_to_num(moved)) > MOVED_PX)
            if towards and np.linalg.norm(pushed) > MOVED_PX:
                rows[f"{name}recall"].append(float(goes and np.nan_to_num(moved) @ arm.WAYS[way] > 0))
                if not name:
                    rows["error"].append(float(np.linalg.norm(np.nan_to_num(moved) - pushed)))
            if not towards:
                rows[f"{name}left"].append(float(sizes[-1] / sizes[0]))
                if not name:
                    rows["phantom"].append(float(goes))


def row(
    method: str, data: str, score: str, unit: str, values: list[float], n: int, ci: Any, baselines: dict[str, float], note: str = ""
) -> dict[str, Any]:
    found = {"method": method, "data": data, "score": score, "unit": unit, "values": values, "n": n, "note": note, "baselines": baselines}
    return {**found, "summary": False} | ({} if ci is None else {"ci95": [float(ci[0]), float(ci[1])]})


def rows_of(asked: list[Asked], world: str) -> list[dict[str, Any]]:
    method, rows = asked[0].run.method.name, []
    for name in FROM_RUN:
        scores = [read_json(a.folder / "scores.json")["scores"] for a in asked]
        found = [s[name] for s in scores if name in s]
        if len(found) == len(asked):
            rows.append(row(method, world, name, found[0]["unit"], [f["value"] for f in found], found[0]["n"], None, found[0]["baselines"]))
    plans = [a.planning() for a in asked]
    hits, n = sum(sum(p["model"]) for p in plans), sum(len(p["model"]) for p in plans)
    beside = {k: float(np.mean([np.mean(p[k]) for p in plans])) for k in plans[0] if k != "model"}
    note = f"goal {GAP} steps away, one plan, names from {LABELS} labelled steps"
    reached = [float(np.mean(p["model"])) for p in plans]
    rows.append(row(method, world, "plan_place", "share reached", reached, n, wilson_ci(hits, n), beside, note))
    if world == "drawn-tennis":
        found_ = [a.detections() for a in asked]
        for at, name, unit in ((0, "add", "px"), (1, "mdr", "%")):
            beside = {k: float(np.mean([f[k][at] for f in found_])) for k in found_[0] if k != "model"}
            values = [f["model"][at] for f in found_]
            rows.append(row(method, world, name, unit, values, len(asked[0].scripts), None, beside, "eight steps"))
        return rows
    seen = [a.in_the_way() for a in asked]
    for key, name, unit, true in (
        ("recall", "contact_recall", "share of pushes", "true recall"), ("phantom", "phantom_motion", "share of other cases", ""),
        ("left", "permanence", "share of its area", "true left"), ("error", "thing_error", "px", ""),
    ):  # fmt: skip
        beside = {"world": float(np.mean([s[true].mean() for s in seen]))} if true else {}
        values = np.concatenate([s[key] for s in seen])
        rows.append(row(method, world, name, unit, [float(s[key].mean()) for s in seen], len(seen[0][key]), bootstrap_ci(values), beside))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=60, help="test clips that are asked about")
    a = parser.parse_args()
    begin, made = time.monotonic(), making.load(a.data)
    with torch.no_grad():
        rows = rows_of([Asked(made, run, a.clips) for run in a.runs], made.world)
    steps, path = read_json(a.runs[0] / "config.json")["config"]["steps"], RESULTS / f"{made.world.replace('-', '_')}.json"
    others = [r for r in read_json(path)["rows"] if r["method"] != rows[0]["method"]] if path.exists() else []
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), shared with other work",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
        "seconds": time.monotonic() - begin, "seeds": list(range(len(a.runs))),
        "rows": [*others, *({**r, "data": f"{r['data']}, {steps} steps"} for r in rows)],
    }  # fmt: skip
    write_json(path, result)
    for one in rows:
        print(f"{one['score']}: {', '.join(f'{v:.3f}' for v in one['values'])} {one.get('ci95', '')}; {one['baselines']}", flush=True)


if __name__ == "__main__":
    main()
