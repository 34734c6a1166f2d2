"""The server: who may ask, what is refused, and that it stays alive whatever it is sent."""

from __future__ import annotations

import json
import random
import re
import socket
import string
import sys
from collections.abc import Iterator
from typing import Any

import pytest

fastapi = pytest.importorskip("fastapi", reason="the extra `web` is not installed")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")
from fastapi.testclient import TestClient  # noqa: E402
from starlette.websockets import WebSocketDisconnect  # noqa: E402

from selftaught.core.errors import ConfigError  # noqa: E402
from selftaught.playing import SHIPPED  # noqa: E402
from selftaught.web import serving  # noqa: E402
from selftaught.web.serving import (  # noqa: E402
    BURST,
    MAX_MESSAGE,
    MAX_SESSIONS,
    Gate,
    Sessions,
    build,
    hosts_of,
    listening,
    one_thread,
    page_with_policy,
)
from selftaught.web.stage import Stage  # noqa: E402

TOKEN = "a-token-of-the-tests"
HOST = "127.0.0.1:8123"
ORIGIN = {"origin": f"http://{HOST}", "host": HOST}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    worker = one_thread()
    app = build(worker.submit(Stage.open, SHIPPED).result(), Gate(TOKEN, frozenset({HOST})), worker)
    with TestClient(app, base_url=f"http://{HOST}") as found:
        yield found


def test_the_port_of_http_may_be_left_out_and_no_other() -> None:
    assert Gate(TOKEN, hosts_of(80)).host({"host": "localhost"}) and Gate(TOKEN, hosts_of(80)).host({"host": "127.0.0.1:80"})
    assert not Gate(TOKEN, hosts_of(8123)).host({"host": "localhost"}) and Gate(TOKEN, hosts_of(8123)).host({"host": HOST})


def ws(
    client: TestClient, session: str = "session-one", token: str = TOKEN, headers: dict[str, str] | None = None
) -> Any:
    return client.websocket_connect(f"/ws?token={token}&session={session}", headers=headers or ORIGIN)


def ask(socket_: Any, **request: Any) -> dict[str, Any]:
    socket_.send_text(json.dumps(request))
    return json.loads(socket_.receive_text())  # type: ignore[no-any-return]


def alive(client: TestClient) -> bool:
    with ws(client, "session-alive") as socket_:
        return "frame" in ask(socket_, id=1, do="hello")


def test_the_page_comes_with_the_token_only(client: TestClient) -> None:
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"host": "evil.example"}).status_code == 403
    page = client.get(f"/?token={TOKEN}")
    assert page.status_code == 200 and "<canvas" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy and policy.count("sha256-") == 2
    assert client.get(f"/openapi.json?token={TOKEN}").status_code == 404


def test_the_page_takes_nothing_from_elsewhere() -> None:
    page, _ = page_with_policy()
    outside = re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)[^\"']+|https?://[^\s\"'`]+|@import|url\(", page)
    assert not outside, outside
    assert page.count("<script>") == 1 == page.count("<style>") and " style=" not in page and " onclick=" not in page


@pytest.mark.parametrize(
    ("token", "session", "headers"),
    [
        ("wrong", "session-one", ORIGIN),
        ("", "session-one", ORIGIN),
        (TOKEN, "session-one", {"host": HOST, "origin": "http://evil.example"}),
        (TOKEN, "session-one", {"host": HOST, "origin": f"https://{HOST}"}),
        (TOKEN, "session-one", {"host": HOST}),
        (TOKEN, "session-one", {"host": "evil.example:8123", "origin": f"http://{HOST}"}),
        (TOKEN, "short", ORIGIN),
        (TOKEN, "../../etc/passwd", ORIGIN),
    ],
)
def test_sockets_of_strangers_are_refused(
    client: TestClient, token: str, session: str, headers: dict[str, str]
) -> None:
    with pytest.raises(WebSocketDisconnect) as refused, ws(client, session, token, headers):
        pass
    assert refused.value.code == 1008
    assert alive(client)


def test_play_undo_reset(client: TestClient) -> None:
    with ws(client, "session-play") as socket_:
        begin = ask(socket_, id=1, do="hello")
        one = ask(socket_, id=2, do="act", key=0)
        assert one["id"] == 2 and one["keys"] == [0] and one["ms"] >= 0
        assert ask(socket_, id=3, do="undo")["frame"] == begin["frame"]
        ask(socket_, id=4, do="act", key=1)
        assert ask(socket_, id=5, do="reset")["keys"] == []


def test_a_session_outlives_its_connection_and_two_do_not_mix(client: TestClient) -> None:
    with ws(client, "session-a-aa") as a, ws(client, "session-b-bb") as b:
        ask(a, id=1, do="act", key=0)
        assert ask(b, id=1, do="hello")["keys"] == []
    with ws(client, "session-a-aa") as again:
        assert ask(again, id=1, do="hello")["keys"] == [0]


def test_a_film_is_fetched_with_the_token(client: TestClient) -> None:
    with ws(client, "session-film") as socket_:
        ask(socket_, id=1, do="record", on=True)
        ask(socket_, id=2, do="act", key=0)
        ask(socket_, id=3, do="record", on=False)
    film = client.get(f"/film/session-film?token={TOKEN}")
    assert (
        film.status_code == 200
        and film.headers["content-type"] in ("video/mp4", "image/gif")
        and len(film.content) > 500
    )
    assert client.get("/film/session-film?token=wrong").status_code == 403
    assert client.get(f"/film/session-none?token={TOKEN}").status_code == 404
    assert client.get(f"/film/..%2f..%2fetc?token={TOKEN}").status_code == 404


def test_a_message_that_is_too_large_ends_its_connection_and_nothing_else(client: TestClient) -> None:
    with ws(client, "session-large") as socket_:
        socket_.send_text("x" * (MAX_MESSAGE + 1))
        assert "limit" in json.loads(socket_.receive_text())["error"]
        with pytest.raises(WebSocketDisconnect) as ended:
            socket_.receive_text()
        assert ended.value.code == 1009
    assert alive(client)


def test_bytes_end_their_connection_and_nothing_else(client: TestClient) -> None:
    with ws(client, "session-bytes") as socket_:
        socket_.send_bytes(b"\x00" * 100)
    assert alive(client)


def test_a_thousand_odd_messages_and_the_server_lives(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.Allowance, "take", lambda self: True)
    draw = random.Random(0)
    odd: list[Any] = [
        None,
        True,
        -1,
        2**70,
        1e308,
        "",
        "act",
        [],
        {},
        {"do": "act"},
        [[[]]],
        "\u0000",
        "é" * 50,
        {"key": {"key": []}},
    ]

    def message() -> str:
        kind = draw.randrange(6)
        if kind == 0:
            return "".join(draw.choice(string.printable) for _ in range(draw.randrange(60)))
        if kind == 1:
            return json.dumps(draw.choice(odd))
        if kind == 2:
            return "[" * 3000 + "]" * draw.randrange(3000)
        verb = draw.choice(
            ["hello", "reset", "upload", "act", "undo", "goal", "record", "ACT", "plan ", "__init__", "_begin", ""]
        )
        names = ["key", "scene", "picture", "from", "on", "how", "do", "id"]
        body: dict[str, Any] = {"do": verb, "id": draw.choice([1, "x", None, 2**60, -5, 1.5])}
        body |= {
            name: draw.choice([*odd, 0, 1, 2, "now", "clip", "cem", "../x"])
            for name in draw.sample(names, draw.randrange(4))
        }
        if body["do"] == "hello":
            body["do"] = "undo"  # the same, and less to send
        text = json.dumps(body)
        return text[: draw.randrange(len(text))] if kind == 3 else text

    answers = 0
    with ws(client, "session-fuzz") as socket_:
        for _ in range(1000):
            socket_.send_text(message())
            told = json.loads(socket_.receive_text())
            answers += 1
            assert {"error", "stale", "frame", "goal", "effects", "plan"} & set(told), told
            assert "Traceback" not in told.get("error", "")
        assert "frame" in ask(socket_, id=7, do="hello")
    assert answers == 1000 and alive(client)


def test_who_sends_too_fast_is_told_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "RATE_PER_S", 0.0)
    with ws(client, "session-fast") as socket_:
        for _ in range(int(BURST)):
            ask(socket_, id=1, do="undo")
        told = ask(socket_, id=77, do="undo")
        assert told == {"id": 77, "error": "Too many messages."}, "whoever waits for number 77 is told"
        assert serving.number_of("[1") is None and serving.number_of("[]") is None and serving.number_of("9" * 2000) is None


def test_overtaken_requests_are_not_computed() -> None:
    import asyncio

    sent: list[dict[str, Any]] = []

    class Fake:
        async def send_text(self, text: str) -> None:
            sent.append(json.loads(text))

    async def fill() -> serving.Connection:
        connection = serving.Connection(Fake(), lambda: None, None)  # type: ignore[arg-type, return-value]
        for number, verb in enumerate(["act", "undo", "act", "effects", "act"]):
            await connection.take(json.dumps({"do": verb, "id": number}))
        return connection

    connection = asyncio.run(fill())
    left = [(r["do"], r["id"]) for r in connection.waiting]
    assert left == [("act", 0), ("undo", 1), ("effects", 3), ("act", 4)], "an undo takes back what was done before it"
    assert sent == [{"id": 2, "stale": True}]


def test_what_is_computed_knows_that_something_waits() -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    seen: list[tuple[str, bool]] = []

    class Asked:
        hurried: Any = None

        def do(self, request: dict[str, Any]) -> dict[str, Any]:
            seen.append((request["do"], self.hurried()))
            return {}

    class Fake:
        async def send_text(self, text: str) -> None:
            pass

    async def play() -> None:
        with ThreadPoolExecutor(1) as worker:
            connection = serving.Connection(Fake(), Asked, worker)  # type: ignore[arg-type]
            for verb in ("effects", "act"):
                await connection.take(json.dumps({"do": verb}))
            computing = asyncio.create_task(connection.compute())
            while len(seen) < 2:
                await asyncio.sleep(0.005)
            computing.cancel()

    asyncio.run(asyncio.wait_for(play(), 30))
    assert seen == [("effects", True), ("act", False)]


def test_whatever_goes_wrong_is_answered() -> None:
    class Broken:
        def do(self, request: Any) -> Any:
            raise OSError("the disk is gone")

    told = json.loads(serving.answer_text(Broken, {"id": 3, "do": "act"}))  # type: ignore[arg-type]
    assert told["id"] == 3 and "the disk is gone" in told["error"]


def test_sessions_are_few() -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return object()

    sessions = Sessions(make)
    first = sessions.get("session-0")
    for i in range(1, MAX_SESSIONS):
        sessions.get(f"session-{i}")
    assert sessions.get("session-0") is first and len(made) == MAX_SESSIONS
    sessions.get("one-more")
    assert (
        len(sessions) == MAX_SESSIONS and sessions.known("session-1") is None and sessions.known("session-0") is first
    )


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "websockets"])
def test_a_package_that_is_missing_is_named_before_anything_is_opened(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match="packages that are not there") as error:
        serving.serve("no-run")
    assert package in str(error.value) and "selftaught[web]" in str(error.value)


def test_a_port_that_is_taken_gives_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be used"):
            listening(taken.getsockname()[1])
    bound = listening(0)
    assert bound.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match="cannot be used"):
        listening(bound.getsockname()[1])
    bound.close()
