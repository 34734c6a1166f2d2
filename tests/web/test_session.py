"""A session of play without any web: what each request answers, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.core.errors import SelftaughtError
from selftaught.playing import SHIPPED
from selftaught.web.session import UNDO, Session
from selftaught.web.stage import LABELLED, Scene, Stage, ways_of


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage.open(SHIPPED)


@pytest.fixture
def session(stage: Stage) -> Session:
    return Session(stage)


def pixels(text: str, channels: int = 3) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(48, 64, channels)


def test_hello_tells_all_that_the_page_draws(session: Session) -> None:
    told = session.do({"do": "hello"})
    json.dumps(told, allow_nan=False)
    about = told["about"]
    assert about["world"] and about["labelled"] == LABELLED and len(about["keys"]) == len(session.playable.keys)
    assert (
        len(told["scenes"]) == 8 and pixels(told["frame"]).shape == (48, 64, 3)
    )
    assert 0.03 < (pixels(told["mask"], 1) > 127).mean() < 0.3, "the figure is seen before it has moved"
    assert np.array_equal(pixels(told["frame"]), pixels(told["truth"])), "both begin with the same picture"
    assert len(told["parsed"]) == 11


def test_an_action_moves_model_and_world_and_is_taken_back(session: Session) -> None:
    begin = session.do({"do": "hello"})
    one = session.do({"do": "act", "key": 0})
    two = session.do({"do": "act", "key": 1})
    assert one["keys"] == [0] and two["keys"] == [0, 1] and one["frame"] != begin["frame"]
    assert session.do({"do": "undo"})["frame"] == one["frame"]
    back = session.do({"do": "undo"})
    assert (back["frame"], back["truth"], back["keys"]) == (begin["frame"], begin["truth"], [])
    assert session.do({"do": "undo"})["frame"] == begin["frame"], "there is nothing more to take back"
    assert session.do({"do": "act", "key": 0})["frame"] == one["frame"], "the same action does the same"


def test_the_world_does_what_the_named_keys_say(stage: Stage) -> None:
    """Keys that the labels name a walk move the true figure that way, and the model's figure as well."""
    names = stage.world.action_space().names
    walks = {"walk left": (-1, 0), "walk right": (1, 0), "walk up": (0, -1), "walk down": (0, 1)}
    found = [
        (stage.ways[k], walks[names[stage.world_key(k)]])
        for k in range(len(stage.ways))
        if names[stage.world_key(k)] in walks
    ]  # type: ignore[index]
    assert len({way for _, way in found}) >= 3, found
    agree = [way[0] * true[0] + way[1] * true[1] > 1 for way, true in found]
    assert np.mean(agree) > 0.7, found


def test_only_so_many_steps_are_kept(session: Session) -> None:
    for step in range(UNDO + 10):
        session.do({"do": "act", "key": step % 3})
    assert session.do({"do": "hello"})["undo"] == UNDO


def test_reset_scene_and_goal(session: Session) -> None:
    first = session.do({"do": "hello"})
    other = session.do({"do": "reset", "scene": 2})
    assert other["scene"] == 2 and other["frame"] != first["frame"] and other["goal"] != first["goal"]
    session.do({"do": "act", "key": 0})
    assert session.do({"do": "reset"})["frame"] == other["frame"]
    moved = session.do({"do": "act", "key": 1})
    assert session.do({"do": "goal", "from": "now"})["goal"] == moved["frame"]
    assert session.do({"do": "goal", "from": "clip"})["goal"] == other["goal"]


def test_a_goal_that_was_walked_to_is_planned_to_from_the_beginning(session: Session) -> None:
    for key in (0, 0, 1):
        session.do({"do": "act", "key": key})
    goal = session.do({"do": "goal", "from": "now"})["goal"]
    assert session.do({"do": "reset"})["goal"] == goal
    assert session.do({"do": "reset", "scene": 1})["goal"] != goal


def test_a_clip_s_goal_lies_on_the_ground_that_is_played_on(stage: Stage) -> None:
    rng = np.random.default_rng(0)
    wide = np.kron(rng.random((1, 3, 12, 20), np.float32), np.ones((1, 1, 6, 6), np.float32))
    views = [torch.tensor(wide[..., 8:56, 2 + t : 66 + t]) for t in range(7)]  # nothing but the camera moves
    own = Session(Stage(stage.playable, [Scene(torch.stack(views, 1))], ways=stage.ways))
    assert own.goal is not None and float((views[6] - views[0]).abs().mean()) > 0.1
    assert torch.equal(own.goal[..., 6:], views[0][..., 6:])
    assert pixels(own.do({"do": "hello"})["goal"]).shape == (48, 64, 3)


def test_the_films_of_actions_are_what_they_do(session: Session) -> None:
    for key in (0, 3):
        session.do({"do": "act", "key": key})
    films = session.do({"do": "effects"})["effects"]
    one = pixels(session.do({"do": "act", "key": 2})["frame"]).astype(int)
    assert np.abs(pixels(films[2][0]).astype(int) - one).max() <= 1, "from where the play is, not from its last picture alone"


def test_films_are_given_up_when_something_else_is_asked(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = [], session.playable.model.step
    monkeypatch.setattr(session.playable.model, "step", lambda *a: steps.append(0) or step(*a))
    session.hurried = lambda: len(steps) >= 2
    assert session.do({"do": "effects"}) == {"stale": True} and len(steps) == 2
    session.hurried = lambda: False
    assert len(session.do({"do": "effects"})["effects"]) == len(session.playable.keys)


def test_a_plan_is_made_of_keys_that_come_nearer(session: Session) -> None:
    told = session.do({"do": "plan"})
    assert all(0 <= k < len(session.playable.keys) for k in told["plan"])
    assert told["tried"] == 64 * 8 * 4
    assert len(told["distances"]) == len(told["plan"]) + 1 and told["distances"][-1] == min(told["distances"])
    for key in told["plan"]:
        session.do({"do": "act", "key": key})


def test_recording_is_what_was_seen(session: Session) -> None:
    session.do({"do": "act", "key": 0})
    assert session.do({"do": "record", "on": True})["recorded"] == 1
    session.do({"do": "act", "key": 1})
    told = session.do({"do": "record", "on": False})
    assert told["film"] == 2 and not told["recording"]
    assert session.film[0].shape == (48, 2 * 64, 3), "the model, and the true world beside it"
    now = pixels(session.do({"do": "hello"})["frame"])
    assert np.array_equal(session.film[1][:, :64], now)


def test_long_play_takes_no_more_memory(session: Session) -> None:
    """Undo steps and recordings have an end; what is played after that takes the place of what was. Ten minutes of it are a benchmark."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("this system does not tell how much memory a process has")

    def megabytes() -> float:
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    session.do({"do": "record", "on": True})
    for i in range(70):
        session.do({"do": "act", "key": i % 6})
    before = megabytes()
    for i in range(150):
        session.do({"do": "act", "key": i % 5})
        if i % 50 == 0:
            session.do({"do": "reset", "scene": i // 50})
    grown = megabytes() - before
    assert len(session.moments) <= 65 and grown < 25, f"{grown:.1f} MB more after 150 steps"


def test_a_picture_of_one_s_own(session: Session) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 50, 3), 200, np.uint8)).save(buffer, "PNG")
    told = session.do({"do": "upload", "picture": base64.b64encode(buffer.getvalue()).decode()})
    assert told["truth"] is None and told["parsed"] == [] and told["scene"] is None and told["goal"] is None
    assert (pixels(told["frame"]) == 200).all()
    assert session.do({"do": "act", "key": 0})["truth"] is None
    with pytest.raises(SelftaughtError, match="no goal"):
        session.do({"do": "plan"})


@pytest.mark.parametrize(
    "request_",
    [
        {}, {"do": None}, {"do": "eval"}, {"do": ["act"]}, {"do": "act"}, {"do": "act", "key": -1}, {"do": "act", "key": 10**9},
        {"do": "act", "key": "1"}, {"do": "act", "key": 1.0}, {"do": "act", "key": True}, {"do": "reset", "scene": 99},
        {"do": "reset", "scene": "x"},
        {"do": "goal"}, {"do": "goal", "from": "../../etc"}, {"do": "plan", "how": "magic"}, {"do": "plan", "how": ["cem"]},
        {"do": "record"},
        {"do": "record", "on": 1}, {"do": "upload"}, {"do": "upload", "picture": "?"}, {"do": "upload", "picture": "aGFsbG8="},
        {"do": "upload", "picture": "A" * 3_000_000}, {"do": "upload", "picture": 5},
    ],
)  # fmt: skip
def test_requests_that_make_no_sense_are_refused_and_change_nothing(session: Session, request_: dict[str, Any]) -> None:
    before = session.view()
    with pytest.raises(SelftaughtError):
        session.do(request_)
    assert session.view() == before


def test_the_way_of_an_action_is_how_far_its_mask_goes() -> None:
    masks = torch.zeros(3, 4, 16, 16)
    for t in range(1, 4):
        masks[0, t, 4:8, 2 * t : 2 * t + 4] = 1
        masks[1, t, 8 - t : 12 - t, 4:8] = 1
    ways = ways_of(masks)
    assert (
        ways[0] == pytest.approx((2, 0), abs=1e-3) and ways[1] == pytest.approx((0, -1), abs=1e-3) and ways[2] == (0, 0)
    )
