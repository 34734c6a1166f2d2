"""The verbs of models that can be controlled: `selftaught parse`, `rollout`, `plan`, `transfer`, `whatif`, `play`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from selftaught.cli_checks import check_run
from selftaught.core.errors import ConfigError

Run = Positional[Annotated[str, arg(metavar="RUN")]]
Clip = Positional[Annotated[str, arg(metavar="CLIP")]]
Start = Positional[Annotated[str, arg(metavar="START")]]
Goal = Positional[Annotated[str, arg(metavar="GOAL")]]
Target = Positional[Annotated[str, arg(metavar="TARGET")]]
Actions = Annotated[str, arg(metavar="ACTIONS")]
Switch = FlagCreatePairsOff[bool]
SHIPPED = "sample:w-sprites"


def _playable(run: str) -> Any:
    if run != SHIPPED:
        check_run(run)
    from selftaught.playing import Playable

    return Playable(run)


def _apart(out: str, *clips: str) -> None:
    """Refuse to write films into a folder of frames or clips that was given, where they would be read as clips the next time."""
    from selftaught.run_folder import refuse_within

    for clip in clips:
        for folder in {clip, clip.rpartition("@")[0] or clip}:
            refuse_within(out, folder)


def _check_seed(seed: int) -> None:
    if not -(2**63) <= seed < 2**63:  # what torch takes
        raise ConfigError(f"--seed is {seed}.", expected="a whole number of at most 63 bits")


def _write(told: Any, out: str) -> None:
    report = told.report
    for note in report["notes"]:
        print(f"note: {note}")
    for name in ("keys", "factual", "other", "synthesised_keys"):
        if name in report:
            print(f"{name.replace('_', ' ')}: {' '.join(map(str, report[name]))}")
    for path in told.write(Path(out)):
        print(f"wrote {path}")


def parse(run: Run, clip: Clip, *, out: str, synthesis: Switch = False, switch: float = 0.0) -> None:
    """Say which actions a clip is made of and where the agent is; write films and report.json.

    Args:
        run: Folder of a run of glass or lapo; sample:w-sprites is the small model that comes along.
        clip: Video, folder of frames, or sample:w-sprites/NUMBER; with @N behind it from frame N on.
        out: Folder to write to.
        synthesis: Also try every action for every step, and say how far both ways agree.
        switch: Price of a change of action for --synthesis.
    """
    if not (math.isfinite(switch) and switch >= 0):
        raise ConfigError(f"--switch is {switch}.", expected="0 or more")
    _apart(out, clip)
    _write(_playable(run).parse(clip, synthesis, switch), out)


def rollout(
    run: Run,
    start: Start,
    *,
    out: str,
    actions: Actions | None = None,
    steps: int = 8,
    futures: int = 16,
    seed: int = 0,
) -> None:
    """Play actions from a first frame; without --actions show several futures that are usual.

    Args:
        run: Folder of a run of glass or lapo; sample:w-sprites is the small model that comes along.
        start: Picture, or clip whose first frame is taken; with @N behind it frame N.
        out: Folder to write to.
        actions: Numbers of actions, such as 0*4,2 for four times 0 and then 2.
        steps: Steps of the futures.
        futures: How many futures.
        seed: Seed of the futures.
    """
    _check_seed(seed)
    _apart(out, start)
    _write(_playable(run).rollout(start, actions, steps, futures, seed), out)


def plan(
    run: Run, start: Start, goal: Goal, *, out: str, planner: Literal["cem", "beam"] = "cem", horizon: int = 8, sequences: int = 64,
    rounds: int = 4, seed: int = 0,
) -> None:  # fmt: skip
    """Find actions that lead from a start to a goal.

    Args:
        run: Folder of a run of glass or lapo; sample:w-sprites is the small model that comes along.
        start: Picture, or clip whose first frame is taken; with @N behind it frame N.
        goal: The same.
        out: Folder to write to.
        planner: cem draws sequences, beam keeps the best states.
        horizon: Steps at most.
        sequences: Sequences in each round, or states kept.
        rounds: Rounds of cem.
        seed: Seed of cem.
    """
    _check_seed(seed)
    _apart(out, start, goal)
    playable = _playable(run)
    from selftaught.control.planning import Budget

    budget = Budget(sequences=sequences, horizon=horizon, rounds=rounds, elites=max(1, min(8, sequences)))
    _write(playable.plan(start, goal, planner, budget, seed), out)


def transfer(run: Run, source: Clip, target: Target, *, out: str, camera: Switch = False) -> None:
    """Let what a picture shows do what is done in a clip.

    Args:
        run: Folder of a run of glass or lapo; sample:w-sprites is the small model that comes along.
        source: Clip whose actions are taken.
        target: Picture, or clip whose first frame is taken; with @N behind it frame N.
        out: Folder to write to.
        camera: Take the motion of the background along.
    """
    _apart(out, source, target)
    _write(_playable(run).transfer(source, target, camera), out)


def whatif(run: Run, clip: Clip, *, out: str, actions: Actions, at: int = 0) -> None:
    """Say what would have happened in a clip, had other actions been done.

    Args:
        run: Folder of a run of glass or lapo; sample:w-sprites is the small model that comes along.
        clip: Clip whose beginning and whose actions are taken.
        out: Folder to write to.
        actions: Numbers of the other actions, such as 0*4,2.
        at: Step from which on they are done, counted from 0.
    """
    _apart(out, clip)
    _write(_playable(run).whatif(clip, actions, at), out)


def play(
    run: Positional[Annotated[str, arg(metavar="[RUN]")]] = SHIPPED,
    *,
    port: int = 0,
    browser: Switch = False,
    token: str | None = None,
) -> None:
    """Open a page on this machine to play a model with the keyboard, to plan with it, and to see what it sees.

    Args:
        run: Folder of a run of glass or lapo; the small model that comes along when not given.
        port: Port on this machine; 0 takes a free one.
        browser: Also open the page in the browser.
        token: Secret that the page's address must hold; a random one when not given.
    """
    if run != SHIPPED:
        check_run(run)
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}.", expected="0 to 65535")
    from selftaught.web.serving import serve

    serve(run, port=port, browser=browser, token=token)


VERBS = (parse, rollout, plan, transfer, whatif, play)
