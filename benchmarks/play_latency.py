"""How fast the page of `selftaught play` answers, and whether it grows; writes benchmarks/results/play_latency.json.

    python benchmarks/play_latency.py                        # both, 10 minutes
    python benchmarks/play_latency.py --minutes 0            # latency and plans only; what was found of growth stays

A headless Chromium (SELFTAUGHT_CHROMIUM, or one that is found) plays the model that comes along, beside its true world. Key to new frame is
measured in the page, from the key to after the picture was shown. For the minutes of play keys are pressed about eight times a second, with
plans, resets, masks and recordings between; the memory of the server is what the system says, that of the page what is left after its
garbage was collected. Needs the packages `selftaught[web]`, playwright, and a Chromium.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import sync_playwright

import selftaught
from selftaught.core.config import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results"
TOKEN = "a-token-of-the-benchmark"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PLANS = 8


class Play:
    """The server in a process of its own, and the page in a browser."""

    def __init__(self, browser: Any) -> None:
        command = [sys.executable, "-m", "selftaught", "play", "--token", TOKEN]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.server.stdout is not None
        told = []
        for line in self.server.stdout:
            told.append(line)
            if line.startswith("play: "):
                break
        else:
            raise SystemExit(f"the server did not start:\n{''.join(told)}")
        url = told[-1].split()[1]
        self.page = browser.new_page(viewport={"width": 1280, "height": 860})
        self.problems: list[str] = []
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.goto(url)
        self.devtools = self.page.context.new_cdp_session(self.page)
        self.until("window.playStats.frames > 0")

    def until(self, expression: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            self.page.wait_for_timeout(10)

    def press(self, key: str) -> None:
        before = self.page.evaluate("playStats.frames")
        self.page.keyboard.press(key)
        self.until(f"playStats.frames > {before}")

    def server_mb(self) -> float:
        text = Path(f"/proc/{self.server.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024

    def page_mb(self) -> float:
        self.devtools.send("HeapProfiler.collectGarbage")
        return float(self.devtools.send("Runtime.getHeapUsage")["usedSize"]) / 2**20

    def close(self) -> None:
        self.server.terminate()
        self.server.communicate(timeout=60)


def latency(play: Play, keys: int, pause_ms: int = 0) -> list[float]:
    """Milliseconds from key to picture of `keys` keys, without the first ones; with a pause the films of actions come between."""
    draw, before = random.Random(0), len(play.page.evaluate("playStats.latencies"))
    for i in range(keys + 20):
        play.press(draw.choice("123456789"))
        play.page.wait_for_timeout(pause_ms * draw.uniform(0.8, 1.2))
        if i % 40 == 39:
            play.page.click("#reset")
            play.page.wait_for_timeout(100)
    play.page.wait_for_timeout(200)
    return [float(x) for x in play.page.evaluate("playStats.latencies")][before + 20 :]


def plans(play: Play) -> list[float]:
    """Seconds of plans, as the server tells them."""
    found = []
    for scene in range(PLANS):
        play.page.click(f"#scenes button >> nth={scene}")
        play.page.wait_for_timeout(300)
        found.append(play.page.evaluate("ask({do: 'plan'}).then(x => x.plan_ms)") / 1000)
    return found


def long_play(play: Play, minutes: float) -> list[tuple[float, float, float]]:
    """(minute, MB of the server, MB of the page) every ten seconds."""
    draw, begin, last, rows = random.Random(1), time.monotonic(), -10.0, []
    while (now := time.monotonic() - begin) < 60 * minutes:
        if now - last >= 10:
            last = now
            rows.append((now / 60, play.server_mb(), play.page_mb()))
            what = draw.choice(("#plan", "#reset", "#masks", "#record", "#undo", "#again", "#goal-now"))
            if not play.page.locator(what).is_disabled():
                play.page.click(what)
                play.page.wait_for_timeout(1500)
        play.page.keyboard.press(draw.choice("123456789"))
        play.page.wait_for_timeout(110)
    rows.append((minutes, play.server_mb(), play.page_mb()))
    return rows


def row(score: str, unit: str, values: list[float], baselines: dict[str, float], note: str) -> dict[str, Any]:
    return {"method": "lapo", "data": "w-sprites", "score": score, "unit": unit, "values": values, "baselines": baselines, "note": note,
            "summary": False}  # fmt: skip


def growth(rows: list[tuple[float, float, float]], column: int) -> tuple[float, dict[str, float]]:
    """MB of the last fifth of the time over those of the second fifth, and both; the first fifth fills what is kept for undo."""
    at, mb = np.array([r[0] for r in rows]), np.array([r[column] for r in rows])
    share = at / at[-1]
    early, late = float(np.median(mb[(share > 0.2) & (share <= 0.4)])), float(np.median(mb[share > 0.8]))
    return late - early, {"early": early, "late": late}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    a = parser.parse_args()
    found = os.environ.get("SELFTAUGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    begin = time.monotonic()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=FLAGS)
        play = Play(browser)
        try:
            ms, calm = latency(play, a.keys), latency(play, a.keys // 4, 850)
            seconds = plans(play)
            note_calm = f"{len(calm)} keys, each about 0.85 s after the last, when the films of all actions are drawn anew"
            note = f"{PLANS} plans of 64 sequences, horizon 8, 4 rounds"
            rows = [
                row("key_to_frame_p95_ms", "ms", [float(np.percentile(ms, 95))], {"median": float(np.median(ms))}, f"{len(ms)} keys"),
                row("key_between_films_p95_ms", "ms", [float(np.percentile(calm, 95))], {"median": float(np.median(calm))}, note_calm),
                row("plan_s", "s", [float(np.median(seconds))], {"slowest": max(seconds)}, note),
            ]
            if a.minutes:
                seen = long_play(play, a.minutes)
                for column, name in ((1, "server"), (2, "page")):
                    mb, beside = growth(seen, column)
                    frames = play.page.evaluate("playStats.frames")
                    rows.append(row(f"growth_{name}_mb", "MB", [mb], beside, f"{a.minutes:g} minutes, {frames} frames"))
            elif (RESULTS / "play_latency.json").exists():
                rows += [one for one in read_json(RESULTS / "play_latency.json")["rows"] if one["score"].startswith("growth")]
            if play.problems:
                raise SystemExit(f"problems of the page: {play.problems[:5]}")
        finally:
            play.close()
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {threads} thread(s)",
        "versions": {"selftaught": selftaught.__version__, "torch": torch.__version__},
        "seconds": time.monotonic() - begin, "rows": rows,
    }  # fmt: skip
    write_json(RESULTS / "play_latency.json", result)
    for one in rows:
        print(f"{one['score']}: {one['values'][0]:.2f} {one['unit']}; {one['baselines']}; {one['note']}", flush=True)


if __name__ == "__main__":
    main()
