"""viewpoint: its loss against the formula, its stages on cars, and that shuffled or missing order teaches nothing."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from selftaught.core.rows import evenly
from selftaught.data.cache import build_cache
from selftaught.data.sources import open_data
from selftaught.evaluate import evaluate
from selftaught.measure.viewpoint import azimuth_of, azimuth_scores
from selftaught.method import Progress, SeesViewpoints
from selftaught.shape3d.viewpoint import FEWEST, Viewpoint, angular_loss, find_circle
from selftaught.train import train
from selftaught.worlds.meshes import writing

TINY = Viewpoint.sizes["tiny"]
MODULE = sys.modules[Viewpoint.__module__]


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cars") / "cars"
    writing.make("cars", folder, 300, 0, "tiny", ["px=48", "supersample=2"])
    return folder


def test_the_loss_is_the_loop_of_the_formula() -> None:
    random = torch.Generator().manual_seed(0)
    found, angle, weight = (
        torch.randn(6, 2, generator=random),
        torch.randn(6, generator=random),
        torch.rand(6, generator=random),
    )
    total = 0.0
    for k in range(6):
        predicted = math.atan2(float(found[k, 1]), float(found[k, 0]))
        length = math.hypot(float(found[k, 0]), float(found[k, 1]))
        cosine = math.cos(predicted - float(angle[k])) * length / math.sqrt(length**2 + 0.01)
        total += float(weight[k]) * math.sqrt(1 - cosine + 0.01)
    assert float(angular_loss(found, angle, weight)) == pytest.approx(total / float(weight.sum()), rel=1e-5)
    # Wrong targets pull no harder than others: the slope at 120 degrees is not above that at 30.
    turned = torch.tensor([0.5, 2.1], requires_grad=True)
    pair = torch.stack([turned.cos(), turned.sin()], 1)
    angular_loss(pair, torch.zeros(2), torch.ones(2)).backward()
    assert turned.grad is not None and float(turned.grad[1]) < float(turned.grad[0])
    # Nor do answers that are nearly 0: their gradient is bounded.
    short = torch.tensor([[1e-6, 0.0], [0.5, 0.0]], requires_grad=True)
    angular_loss(short, torch.full((2,), math.pi / 2), torch.ones(2)).backward()
    assert short.grad is not None and float(short.grad[0].norm()) < 10 * float(short.grad[1].norm())
    assert math.isfinite(float(angular_loss(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))))


def test_too_few_or_blank_pictures_have_no_viewpoints_and_say_so() -> None:
    said: list[str] = []
    noise = torch.randint(0, 255, (FEWEST - 1, 3, 32, 32), dtype=torch.uint8)
    assert find_circle(noise, TINY, said.append) is None
    assert find_circle(torch.full((40, 3, 32, 32), 7, dtype=torch.uint8), TINY, said.append) is None
    assert "too few" in said[0] and "look the same" in said[1]


def test_a_large_pile_is_laid_on_a_circle_that_some_of_it_showed(tmp_path: Path) -> None:
    pile = torch.randint(0, 255, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    class Images:
        asked: ClassVar[list[int]] = []

        def __len__(self) -> int:
            return len(pile)

        def batch(self, rows: np.ndarray) -> torch.Tensor:
            self.asked.append(len(rows))
            return pile[torch.from_numpy(rows)]

    few = dataclasses.replace(TINY, most=60)
    said: list[str] = []
    method = Viewpoint(few)
    method.begin(Images(), tmp_path, said.append)
    assert max(Images.asked) <= 256 and Images.asked[0] == 60 and "60 of 300" in said[0]
    rows = evenly(300, 60)
    circle = find_circle(pile[torch.from_numpy(rows)], few, lambda text: None)
    assert circle is not None and method.targets is not None and method.targets.shape == (300, 2)
    np.testing.assert_allclose(method.targets[rows], circle.place(pile[torch.from_numpy(rows)]), atol=1e-5)


def test_pictures_of_nothing_in_particular_give_finite_angles() -> None:
    noise = torch.randint(0, 255, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    circle = find_circle(noise, TINY, lambda text: None)
    assert circle is not None
    found = circle.place(noise)
    assert (
        found.shape == (60, 2) and np.isfinite(found).all() and ((found[:, 1] >= 0) & (found[:, 1] <= 1 + 1e-6)).all()
    )


@pytest.mark.nightly
def test_the_order_of_cars_is_found_and_runs_the_right_way_round(tmp_path: Path) -> None:
    writing.make("cars", tmp_path / "many", 2500, 0, "small")
    source = open_data(tmp_path / "many", "train")
    images = build_cache(source, 64)
    true = azimuth_of(np.stack([source.truth(i).view.rotation for i in range(len(source))]))  # type: ignore[union-attr]
    said: list[str] = []
    pictures = images.batch(np.arange(len(images)))
    circle = find_circle(pictures, Viewpoint.sizes["small"], said.append)  # type: ignore[arg-type]
    assert circle is not None
    found = circle.place(pictures)
    scores = azimuth_scores(found[:, 0], true)
    assert scores["azimuth_median_deg"].value < 10 < scores["mirrored_deg"].value and scores["acc30"].value > 0.9
    assert any("azimuth grows" in text for text in said)


def test_the_network_learns_what_it_is_told_and_not_what_is_shuffled(
    cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second half of the method alone: with true angles as targets it must learn, with shuffled ones it cannot."""
    source = open_data(cars, "train")
    true = azimuth_of(np.stack([source.truth(i).view.rotation for i in range(len(source))]))  # type: ignore[union-attr]
    settings = ["image_px=48", "net_px=32", "lr=0.004", "batch_size=32"]
    scores = {}
    for name, angles in (("told", true), ("shuffled", np.random.RandomState(0).permutation(true))):
        targets = np.stack([angles, np.ones_like(angles)], 1).astype(np.float32)
        monkeypatch.setattr(MODULE, "kept_array", lambda *given, targets=targets: targets)
        run = train("viewpoint", cars, tmp_path / name, size="tiny", steps=150, set=settings, quiet=True)
        scores[name] = evaluate(run)["azimuth_median_deg"]
    assert scores["told"].value < 0.5 * scores["told"].baselines["constant"]
    assert scores["shuffled"].value > 50


def test_answers_are_rotations_about_the_upright_axis() -> None:
    torch.manual_seed(0)
    method = Viewpoint(TINY).eval()
    images = torch.rand(5, 3, 40, 30)
    found = method.viewpoint(images)
    assert isinstance(method, SeesViewpoints)
    torch.testing.assert_close(found[:, 1], torch.tensor([0.0, 1.0, 0.0]).expand(5, 3))
    np.testing.assert_allclose(azimuth_of(found.numpy()), method.azimuth(images).numpy(), atol=1e-6)
    sheet = method.show(images)["viewpoints"]
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"cell_px": 0}, {"cell_px": 20}, {"components": 0}, {"neighbours": 0}, {"harmonics": 0}, {"looks": -1}, {"rounds": -1},
        {"net_px": 0}, {"turn_rad": 0.0}, {"jitter": -1.0},
        {"most": FEWEST - 1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(TINY, **wrong)


def test_a_file_of_viewpoints_that_does_not_fit_is_made_again(tmp_path: Path) -> None:
    images = build_cache(
        open_data(np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3)).astype(np.uint8), "train"), 32
    )
    said: list[str] = []
    torch.manual_seed(0)
    method = Viewpoint(TINY)
    with pytest.raises(RuntimeError, match="begin"):
        method.prepare(images.batch([0]), np.array([0]))
    method.begin(images, tmp_path, said.append)
    first = (tmp_path / "viewpoints.npy").read_bytes()
    for damage in (first[:40], b"nothing"):
        (tmp_path / "viewpoints.npy").write_bytes(damage)
        method.begin(images, tmp_path, said.append)
        assert (tmp_path / "viewpoints.npy").read_bytes() == first
    assert sum("made again" in text for text in said) == 2
    batch = method.prepare(images.batch(np.arange(4)), np.arange(4))
    loss, parts = method.loss(batch, "network", Progress(0, 1))
    loss.backward()
    assert all(math.isfinite(v) for v in parts.values())
