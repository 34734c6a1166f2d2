"""The server of `selftaught play`: one page and one WebSocket, on loopback only.

Who may ask: requests with the token, for this host, and WebSockets that come from this page. Messages have a size and a rate; a request
that a newer one overtook is not computed. One thread computes for all: what one tab asks waits for what another has begun, at most a plan.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from selftaught.core.errors import ConfigError, SelftaughtError
from selftaught.data.clip_reader import have_av
from selftaught.report.film_files import write_film
from selftaught.web.session import Session
from selftaught.web.stage import Stage

MAX_MESSAGE = 2_100_000
"""Characters of one message; a picture in base64 is the longest."""
RATE_PER_S, BURST = 40.0, 80.0
"""Messages of one connection: on average, and at once."""
MAX_SESSIONS = 16
MAX_CONNECTIONS = 24
OVERTAKE = ("act", "effects")
"""Requests of which only the newest matters: held keys come faster than they are drawn on a slow machine."""
MAX_WAITING = 8
FILM_FPS = 8
FILM_ZOOM = 4
_SESSION = re.compile(r"[A-Za-z0-9_-]{8,64}")
PAGE = Path(__file__).resolve().parent / "page.html"


class Sessions:
    """Sessions by name; of more than `MAX_SESSIONS` the one that was not used for the longest time goes."""

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self._found: OrderedDict[str, Session] = OrderedDict()

    def get(self, name: str) -> Session:
        """The session of a name, new when there is none."""
        if name not in self._found:
            self._found[name] = self._make()
            while len(self._found) > MAX_SESSIONS:
                self._found.popitem(last=False)
        self._found.move_to_end(name)
        return self._found[name]

    def known(self, name: str) -> Session | None:
        return self._found.get(name)

    def __len__(self) -> int:
        return len(self._found)


class Allowance:
    """A bucket of messages that fills with time."""

    def __init__(self) -> None:
        self.left, self.at = BURST, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.left = min(BURST, self.left + (now - self.at) * RATE_PER_S)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


def hosts_of(port: int) -> frozenset[str]:
    """How browsers name this machine; they leave out the port of HTTP itself."""
    names = ("127.0.0.1", "localhost")
    return frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == 80 else frozenset())


class Gate:
    """Who may ask."""

    def __init__(self, token: str, hosts: frozenset[str]) -> None:
        self.token, self.hosts = token, hosts

    def host(self, headers: Any) -> bool:
        """Whether a request is for this machine: a name that another site made point here is none of ours."""
        return headers.get("host", "") in self.hosts

    def origin(self, headers: Any) -> bool:
        """Whether a WebSocket was opened by our page."""
        scheme, _, place = headers.get("origin", "").partition("://")
        return scheme == "http" and place in self.hosts

    def knows(self, token: str | None) -> bool:
        return token is not None and secrets.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


def safe_id(value: Any) -> int | None:
    """The number of a request, where it has one that JavaScript can count to."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def answer_text(session: Callable[[], Session], request: dict[str, Any], hurried: Callable[[], bool] = lambda: False) -> str:
    """The answer to a request as JSON; whatever is wrong with it becomes a text in "error"."""
    begin = time.monotonic()
    try:
        found = session()
        found.hurried = hurried
        told = found.do(request)
        told["ms"] = round(1000 * (time.monotonic() - begin), 1)
        return json.dumps({"id": safe_id(request.get("id")), **told}, allow_nan=False)
    except SelftaughtError as error:
        text = str(error)
    # Whatever a model does must not end the server, and an answer must come: the page waits for it, and so does all that was asked after.
    except Exception as error:
        text = f"The model could not answer: {error}"
    return json.dumps({"id": safe_id(request.get("id")), "error": text})


def parsed_message(text: str) -> Any:
    """A message as Python values; raises ValueError for what is no JSON, RecursionError becomes one too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def number_of(text: str) -> Any:
    """The number of a request that is refused unread, so that whoever waits for it is told; None for what is long or no request."""
    try:
        request = parsed_message(text) if len(text) < 1000 else None
    except ValueError:
        return None
    return request.get("id") if isinstance(request, dict) else None


class Connection:
    """One WebSocket: reads all the time, computes one request after the other, and leaves out those that a newer one overtook."""

    def __init__(self, socket: Any, session: Callable[[], Session], worker: ThreadPoolExecutor) -> None:
        self.socket, self.session, self.worker = socket, session, worker
        self.waiting: deque[dict[str, Any]] = deque()
        self.news = asyncio.Event()
        self.allowance = Allowance()

    async def run(self) -> None:
        """Until the other side leaves."""
        from fastapi import WebSocketDisconnect

        computing = asyncio.create_task(self.compute())
        try:
            while True:
                text = await self.socket.receive_text()
                if len(text) > MAX_MESSAGE:
                    await self.say(error=f"A message of {len(text)} characters, the limit is {MAX_MESSAGE}.")
                    return await self.socket.close(1009)
                if not self.allowance.take():
                    await self.say(number_of(text), error="Too many messages.")
                    await asyncio.sleep(0.1)
                    continue
                await self.take(text)
        except (WebSocketDisconnect, RuntimeError, KeyError):
            return  # the other side is gone, or sent bytes where text was expected
        finally:
            computing.cancel()

    async def say(self, number: Any = None, **told: Any) -> None:
        """Send something that needs no computing."""
        await self.socket.send_text(json.dumps({"id": safe_id(number), **told}))

    async def take(self, text: str) -> None:
        """Let a message wait; it overtakes what waits and would be seen for a moment only."""
        try:
            request = parsed_message(text)
        except ValueError:
            return await self.say(error="The message is no JSON.")
        if not isinstance(request, dict):
            return await self.say(error="A message is a JSON object.")
        overtaken: list[dict[str, Any]] = []
        if request.get("do") in OVERTAKE:
            # Not past a request of another kind: an undo would take back something else than what was done before it.
            since = takewhile(lambda old: old.get("do") in OVERTAKE, reversed(self.waiting))
            overtaken = [old for old in since if old["do"] == request["do"]]
        if not overtaken and len(self.waiting) >= MAX_WAITING:
            overtaken = [self.waiting[0]]
        for old in overtaken:
            self.waiting.remove(old)
            await self.say(old.get("id"), stale=True)
        self.waiting.append(request)
        self.news.set()

    async def compute(self) -> None:
        """Answer what waits, one after the other."""
        from fastapi import WebSocketDisconnect

        loop = asyncio.get_running_loop()
        while True:
            await self.news.wait()
            self.news.clear()
            while self.waiting:
                request = self.waiting.popleft()
                text = await loop.run_in_executor(self.worker, answer_text, self.session, request, lambda: bool(self.waiting))
                try:
                    await self.socket.send_text(text)
                except (WebSocketDisconnect, RuntimeError):
                    return


def one_thread() -> ThreadPoolExecutor:
    """The thread that computes everything: torch uses the processors itself, and a session is not made for several threads.

    It opens the stage too. Each thread that computes gets a crew of its own from OpenMP, and with more of them than processors all of them
    sleep between two operations: plans then took a fifth longer.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="play")


def build(stage: Stage, gate: Gate, worker: ThreadPoolExecutor) -> Any:
    """The FastAPI application on a stage, with the thread that opened it."""
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route, WebSocketRoute

    page, policy = page_with_policy()
    sessions = Sessions(lambda: Session(stage))
    open_now = [0]
    safe = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    def index(request: Any) -> Response:
        if not gate.host(request.headers) or not gate.knows(request.query_params.get("token")):
            return PlainTextResponse("The address of this page is the one that `selftaught play` printed.", 403, safe)
        return HTMLResponse(page, headers=safe)

    async def film(request: Any) -> Response:
        name = request.path_params["name"]
        if not gate.host(request.headers) or not gate.knows(request.query_params.get("token")):
            return PlainTextResponse("No.", 403, safe)
        session = sessions.known(name) if _SESSION.fullmatch(name) else None
        if session is None or not session.film:
            return PlainTextResponse("There is no film.", 404, safe)
        loop = asyncio.get_running_loop()
        data, suffix = await loop.run_in_executor(worker, film_bytes, list(session.film))
        kind = "video/mp4" if suffix == ".mp4" else "image/gif"
        return Response(
            data, media_type=kind, headers={**safe, "Content-Disposition": f'attachment; filename="play{suffix}"'}
        )

    async def ws(websocket: Any) -> None:
        name = websocket.query_params.get("session", "")
        allowed = (
            gate.host(websocket.headers)
            and gate.origin(websocket.headers)
            and gate.knows(websocket.query_params.get("token"))
        )
        if not allowed or not _SESSION.fullmatch(name) or open_now[0] >= MAX_CONNECTIONS:
            return await websocket.close(1008)
        open_now[0] += 1
        try:
            await websocket.accept()
            await Connection(websocket, lambda: sessions.get(name), worker).run()
        finally:
            open_now[0] -= 1

    # Routes by hand: FastAPI reads the types of arguments from a module's names, and this one does without FastAPI until it is needed.
    routes = [Route("/", index), Route("/film/{name}", film), WebSocketRoute("/ws", ws)]
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None, routes=routes)


def page_with_policy() -> tuple[str, str]:
    """The page, and a policy that lets it run its own script and style and nothing else."""
    page = PAGE.read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        inner = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode() + "'"

    policy = f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; connect-src 'self'"
    return page, policy + "; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def film_bytes(frames: list[np.ndarray]) -> tuple[bytes, str]:
    """A recording as a file's bytes, and its suffix: .mp4, or .gif without PyAV."""
    suffix = ".mp4" if have_av() else ".gif"
    height, width = (max(f.shape[i] for f in frames) for i in (0, 1))
    # A scene with the world beside is wider than a picture of one's own.
    padded = [np.pad(f, ((0, height - f.shape[0]), (0, width - f.shape[1]), (0, 0))) for f in frames]
    large = np.stack(padded).repeat(FILM_ZOOM, 1).repeat(FILM_ZOOM, 2)
    with TemporaryDirectory() as folder:
        return write_film(Path(folder) / f"film{suffix}", large, FILM_FPS).read_bytes(), suffix


def listening(port: int) -> socket.socket:
    """A socket on loopback; raises ConfigError when the port is taken."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
        found.listen()  # until then a second server could take the same port
    except OSError as error:
        found.close()
        raise ConfigError(
            f"Port {port} cannot be used.", why=str(error.strerror), do="Leave --port away: a free one is taken."
        ) from error
    return found


def serve(run: str, *, port: int = 0, browser: bool = False, token: str | None = None) -> None:
    """Serve the page until it is interrupted; prints its address. Raises ConfigError where the extra `web` is missing."""
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", token):
        raise ConfigError("The token is too short, or has odd letters.", expected="16 to 128 letters, digits, - and _")
    try:
        import fastapi  # noqa: F401
        import uvicorn
        import websockets  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "The page needs packages that are not there.", why=str(error), do="pip install 'selftaught[web]'"
        ) from error
    bound = listening(port)
    port, token = bound.getsockname()[1], token or secrets.token_urlsafe(24)
    print("opening the model ...", flush=True)
    worker = one_thread()
    stage = worker.submit(Stage.open, run).result()
    for note in stage.playable.notes:
        print(f"note: {note}")
    app = build(stage, Gate(token, hosts_of(port)), worker)
    address = f"http://127.0.0.1:{port}/?token={token}"
    print(f"play: {address}\n(Ctrl+C ends it)", flush=True)
    if browser:
        import webbrowser

        webbrowser.open(address)
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_max_size=MAX_MESSAGE,
        ws="auto",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[bound])
