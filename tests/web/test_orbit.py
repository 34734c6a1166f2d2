"""The page that turns objects, in a real browser: the mouse and the keys turn, textures are swapped, nothing is asked of anyone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from selftaught.method import Shapes
from selftaught.nets.renderer import uv_sphere
from selftaught.web.orbit import Shown, orbit_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = os.environ.get("SELFTAUGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (or name one in SELFTAUGHT_CHROMIUM)")
PIXEL = "Array.from(document.getElementById('solid').getContext('2d').getImageData({}, 320, 1, 1).data.slice(0, 3))"


def ball(left: tuple[float, float, float], right: tuple[float, float, float]) -> Shapes:
    """A sphere of two colours: its own left (+X, to the right when seen from the front) and right half."""
    points, faces, uv, uv_faces = uv_sphere(8, 16)
    which = torch.zeros(len(uv), dtype=torch.long)
    which[uv_faces.reshape(-1)] = faces.reshape(-1)
    texture = torch.tensor(right)[:, None, None].repeat(1, 8, 16)
    texture[:, :, 8:] = torch.tensor(left)[:, None, None]
    still, picture = torch.eye(3)[None], torch.rand(1, 3, 8, 8)
    position, fov = torch.tensor([[0.0, 0.0, -5.0]]), torch.tensor([0.5])
    return Shapes(points[which][None], uv_faces, uv, texture[None], still, position, fov, picture[:, 0], picture, picture)


def test_objects_are_turned_and_wear_other_textures(tmp_path: Path) -> None:
    objects = [("a", ball((1, 0, 0), (0, 0, 1))), ("b", ball((0, 1, 0), (0, 1, 0)))]
    (tmp_path / "index.html").write_text(orbit_page([Shown(k, torch.rand(3, 8, 8), s) for k, s in objects], 5.0, 4.0, True))
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1000, "height": 700}, reduced_motion="reduce")
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url))
        page.goto((tmp_path / "index.html").as_uri())
        page.wait_for_function("orbit.frames > 0")

        def colour(x: int) -> list[int]:
            found: list[int] = page.evaluate(PIXEL.format(x))
            return found

        page.evaluate("orbit.state.azimuth = 0; orbit.state.elevation = 0; turn(0, 0)")
        assert colour(420)[0] > 100 > colour(420)[2] and colour(220)[2] > 100 > colour(220)[0], "red on the picture's right"
        assert colour(5) == [255, 255, 255]
        box = page.locator("#solid").bounding_box()
        page.mouse.move(box["x"] + 150, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 150 + 157, box["y"] + 200, steps=4)  # 0.01 rad a pixel: a quarter turn to the right
        page.mouse.up()
        assert abs(page.evaluate("orbit.state.azimuth") - 1.57) < 0.02
        assert colour(330)[2] > 100, "the object's right side is seen now"
        page.locator("#solid").focus()
        page.keyboard.press("ArrowUp")
        assert page.evaluate("orbit.state.elevation") == pytest.approx(-0.1)
        page.locator("#textures button").nth(1).click()
        page.wait_for_function("orbit.state.texture === 1")
        page.wait_for_timeout(100)
        assert colour(330)[1] > 100 > max(colour(330)[0], colour(330)[2]), "the other's green"
        # The first texture is there at once, one that has to be read comes later and is not wanted any more.
        page.evaluate("objects[1].pixels = null; Promise.all([choose(0, 1), choose(0, 0)])")
        assert [page.locator("#textures button").nth(i).get_attribute("aria-pressed") for i in (0, 1)] == ["true", "false"]
        page.evaluate("choose(0, 1)")
        page.locator("#grey").check()
        r, g, b = colour(330)
        assert r == g == b and 80 < r < 240
        browser.close()
    assert not problems, problems
