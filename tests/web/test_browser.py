"""The page in a real browser: keys, undo, goal, record, reload, two tabs, a lost connection; no errors, and how fast a key is answered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra `web` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSER = (
    os.environ.get("SELFTAUGHT_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
SHOTS = os.environ.get("SELFTAUGHT_SCREENSHOTS")
"""A folder for pictures of the page, for a person to look at."""
TOKEN = "a-token-of-the-browser-tests"
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (or name one in SELFTAUGHT_CHROMIUM)"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
WAIT = 60_000


class Server:
    """`selftaught play` in a process of its own; it can be stopped and started again at the same port."""

    def __init__(self) -> None:
        self.port, self.process = 0, None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "selftaught", "play", "--port", str(self.port), "--token", TOKEN]
        self.process: Any = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if line.startswith("play: "):
                self.url = line.split()[1]
                self.port = int(self.url.split(":")[2].split("/")[0])
                return
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme="light", accept_downloads=True)
    found = opened(context, server)
    yield found
    context.close()


def opened(context: Any, server: Server) -> Any:
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.problems = []
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.goto(server.url)
    ready(page)
    return page


def until(page: Any, expression: str) -> None:
    """Wait until an expression is true; asked from outside, because the page's policy lets nothing be evaluated inside."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} did not come true; problems: {page.problems}"
        page.wait_for_timeout(15)


def ready(page: Any) -> None:
    until(page, "document.getElementById('link').textContent === 'connected' && window.playStats.frames > 0")


def press(page: Any, key: str) -> None:
    before = page.evaluate("playStats.frames")
    page.keyboard.press(key)
    until(page, f"playStats.frames > {before}")


def seen(page: Any) -> str:
    found: str = page.evaluate("document.getElementById('model').toDataURL()")
    return found


def done(page: Any) -> list[str]:
    found: list[str] = page.locator("#done .chip").all_inner_texts()
    return found


def shot(page: Any, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def test_keys_undo_reset_and_buttons(page: Any) -> None:
    first = seen(page)
    press(page, "1")
    one = seen(page)
    press(page, "2")
    assert one != first and len(done(page)) == 2
    press(page, "Backspace")
    assert seen(page) == one
    page.click("#undo")
    until(page, "document.querySelectorAll('#done .chip')[0].textContent === 'nothing yet'")
    assert seen(page) == first
    page.click("#keys button >> nth=3")
    until(page, "playStats.latencies.length >= 3")
    page.click("#reset")
    until(page, "document.querySelectorAll('#done .chip')[0].textContent === 'nothing yet'")
    assert seen(page) == first
    assert page.locator("#undo").is_disabled()
    until(page, "films.length > 0")
    shot(page, "desktop-light")
    assert page.problems == [] and page.evaluate("playStats.errors") == []


def test_arrow_keys_take_the_action_that_goes_that_way(page: Any) -> None:
    ways = page.evaluate("about.keys.map(k => k.way)")
    if max(x for x, _ in ways) < 1:
        pytest.skip("no action of this model goes right")
    before = page.evaluate("playStats.frames")
    page.keyboard.press("ArrowRight")
    until(page, f"playStats.frames > {before}")
    assert "→" in done(page)[0] or "↗" in done(page)[0] or "↘" in done(page)[0]


def test_a_goal_is_planned_to_and_walked_to(page: Any) -> None:
    page.click("#goal-clip")
    page.click("#plan")
    until(page, "document.getElementById('planned').textContent.startsWith('Tried')")
    until(page, "!document.querySelector('#planned .chip.next')")
    shot(page, "planned")
    assert page.problems == []


def test_what_is_done_while_it_thinks_is_not_undone_by_the_plan(page: Any) -> None:
    page.click("#goal-clip")
    page.click("#plan")
    page.keyboard.press("3")
    until(page, "document.getElementById('planned').textContent.startsWith('Something else')")
    page.wait_for_timeout(400)
    assert len(done(page)) == 1, "the key alone; the plan was for where it was before"
    assert not page.locator("#plan").is_disabled() and page.problems == []


def test_a_page_that_may_keep_nothing_still_plays(browser: Any, server: Server) -> None:
    context = browser.new_context()
    refuse = "Object.defineProperty(window, '%s', { get() { throw new DOMException('no', 'SecurityError'); } });"
    context.add_init_script(refuse % "sessionStorage" + refuse % "localStorage")
    page = opened(context, server)
    press(page, "1")
    was = page.evaluate("document.documentElement.dataset.theme")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") != was and page.problems == []
    context.close()


def test_a_recording_is_downloaded(page: Any) -> None:
    page.click("#record")
    until(page, "document.getElementById('record').getAttribute('aria-pressed') === 'true'")
    press(page, "1")
    press(page, "2")
    with page.expect_download() as waiting:
        page.click("#record")
    name = waiting.value.suggested_filename
    assert name in ("play.mp4", "play.gif") and Path(waiting.value.path()).stat().st_size > 500
    assert page.problems == []


def test_a_picture_of_one_s_own_is_begun_from_and_what_is_none_is_refused(page: Any, tmp_path: Path) -> None:
    first, good, bad = seen(page), tmp_path / "own.png", tmp_path / "bad.png"
    Image.fromarray(np.full((300, 400, 3), (30, 90, 200), np.uint8)).save(good)
    bad.write_bytes(b"no picture")
    page.set_input_files("#file", bad)
    until(page, "document.getElementById('toast').textContent.startsWith('This file is no picture')")
    assert seen(page) == first
    page.set_input_files("#file", good)
    until(page, "document.getElementById('parsed').textContent.startsWith('a single picture')")
    blue = page.evaluate("[...document.getElementById('model').getContext('2d').getImageData(20, 20, 1, 1).data.slice(0, 3)]")
    assert np.abs(np.array(blue) - (30, 90, 200)).max() < 6
    assert page.locator("#plan").is_disabled() and page.locator("#again").is_disabled() and page.problems == []


def test_the_actions_read_from_a_clip_are_done(page: Any) -> None:
    read = page.locator("#parsed .chip").all_inner_texts()
    page.click("#again")
    until(page, f"document.querySelectorAll('#done .chip').length >= {len(read)}")
    assert done(page) == read and page.problems == []


def test_reload_and_a_second_tab(page: Any, server: Server) -> None:
    press(page, "1")
    now, steps = seen(page), done(page)
    page.reload()
    ready(page)
    assert seen(page) == now and done(page) == steps, "a reload goes on where it was"
    other = opened(page.context, server)
    assert done(other) == ["nothing yet"], "another tab is another play"
    press(other, "2")
    assert done(page) == steps and other.problems == [] and page.problems == []
    other.close()


def test_dark_phone_and_mask(browser: Any, server: Server) -> None:
    for scheme, width, height in (("dark", 1280, 860), ("light", 390, 844), ("dark", 390, 844)):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = opened(context, server)
        press(page, "1")
        page.click("#masks")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at the side"
        small = page.evaluate(
            "[...document.querySelectorAll('main button')].filter(b => b.offsetParent && b.offsetHeight < 34).length"
        )
        assert small == 0, "buttons can be touched"
        tops = "new Set([...document.querySelectorAll('#undo, #reset, #masks, #record')].map(b => b.offsetTop)).size"
        page.click("#record")
        until(page, "document.getElementById('record').textContent.startsWith('Stop')")
        assert page.evaluate(tops) == 1, "recording moves nothing on the page"
        until(page, "films.length > 0")
        shot(page, f"{'phone' if width < 800 else 'desktop'}-{scheme}-mask")
        assert page.problems == []
        context.close()


def test_a_key_is_answered_fast(page: Any) -> None:
    for i in range(40):
        press(page, "123456"[i % 6])
    found = sorted(page.evaluate("playStats.latencies"))
    p50, p95 = found[len(found) // 2], found[int(0.95 * len(found))]
    print(f"key to new frame in the browser, {len(found)} keys: median {p50:.0f} ms, p95 {p95:.0f} ms")
    assert p50 < 1000, "a machine that is busy may be slow; benchmarks/play_latency.py measures it"


def test_a_lost_connection_comes_back(page: Any, server: Server) -> None:
    press(page, "1")
    server.stop()
    until(page, "document.getElementById('link').textContent.startsWith('connection lost')")
    assert page.locator("#undo").is_disabled() and page.locator("#file").is_disabled()
    shot(page, "lost")
    server.start()
    ready(page)
    until(page, "document.querySelectorAll('#done .chip')[0].textContent === 'nothing yet'")
    press(page, "1")
    assert len(done(page)) == 1
