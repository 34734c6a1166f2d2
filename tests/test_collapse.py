"""Trainings that are built to fail raise the alarm within 200 steps; healthy ones of five seeds raise none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selftaught import registry, representation
from selftaught.core.errors import ConfigError
from selftaught.representation.dino import DINO, dino_loss
from selftaught.representation.encoder import embedding_health
from selftaught.representation.simclr import SimCLR
from selftaught.train import Loop, Stopped, train

pytestmark = pytest.mark.slow
STEPS = 200
ALARMS = ("collapsing", "diverging")
METERED = ("simclr", "dino", "mae")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 smooth pictures of many colours with some noise."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.random((64, 3, 5, 5), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").permute(0, 2, 3, 1).numpy()
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=(255 * np.clip(smooth + 0.05 * draw.standard_normal(smooth.shape), 0, 1)).astype(np.uint8))
    return path


class NoNegatives(SimCLR):
    """Two views attract; nothing repels, nothing is stopped."""

    def loss(self, batch: Any, player: str, progress: Any) -> Any:
        z = self.backbone.pooled(batch["views"])
        return -torch.nn.functional.cosine_similarity(*z.chunk(2)).mean(), embedding_health(z)


class NoStopGradient(DINO):
    """The teacher is the student itself, and learns to be predicted."""

    def loss(self, batch: list[Tensor], player: str, progress: Any) -> Any:
        c, pooled = self.config, self.backbone.pooled(torch.cat(batch[:2]))
        outputs = list(self.head(pooled).chunk(2))
        teacher = torch.stack([torch.softmax(scores / c.teacher_temperature, -1) for scores in outputs])
        outputs += self.head(self.backbone.pooled(torch.cat(batch[2:]))).chunk(len(batch) - 2)
        self.score_count += 1
        return dino_loss(teacher, outputs, c.student_temperature), self.meters(teacher.detach(), pooled)


def verdicts(method: str, data: Path, out: Path, *settings: str, seed: int = 0, steps: int = STEPS) -> list[str]:
    """The verdict of each step, up to the tenth alarm."""
    log, alarms = Loop.log, [0]

    def stop_early(self: Loop, logged: dict[str, float]) -> None:
        log(self, logged)
        alarms[0] += self.verdict in ALARMS
        if alarms[0] == 10:
            raise Stopped("the alarm was heard")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "log", stop_early)
        try:
            train(method, data, out, size="tiny", steps=steps, seed=seed, set=["batch_size=16", *settings], quiet=True)
        except Stopped:
            pass
    return [json.loads(line)["health"] for line in (out / "metrics.jsonl").read_text().splitlines()]


BUILT_TO_FAIL = {
    "no negatives": ("no-negatives", (), "collapsing"),
    "no stop-gradient": ("no-stop-gradient", (), "collapsing"),
    "no stop-gradient, no batch norm": ("no-stop-gradient", ("head_norm=false",), "collapsing"),
    "no centring": ("dino", ("centre_momentum=1", "head_norm=false"), "collapsing"),
    "teacher temperature near 0": ("dino", ("teacher_temperature=0.0001",), "collapsing"),
    "huge learning rate of dino": ("dino", ("lr=10",), "collapsing or diverging"),
    "huge learning rate of simclr": ("simclr", ("lr=10",), "collapsing"),
    "temperature of simclr near 0": ("simclr", ("temperature=0.0001",), "diverging"),
}


@pytest.mark.parametrize("case", BUILT_TO_FAIL)
def test_trainings_that_are_built_to_fail_raise_the_alarm(
    case: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, cls in (("no-negatives", NoNegatives), ("no-stop-gradient", NoStopGradient)):
        monkeypatch.setitem(representation.METHODS, name, registry.Entry(f"{__name__}:{cls.__name__}", "a test"))
    method, settings, verdict = BUILT_TO_FAIL[case]
    found = verdicts(method, data, tmp_path / "run", *settings)
    alarms = [word for word in found if word in ALARMS]
    assert len(alarms) == 10 and set(alarms) <= set(verdict.split(" or ")), found
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"{alarms[-1]}: " in log and any(word in log for word in ("Check", "Raise", "Lower")), "with advice"


@pytest.mark.parametrize("setting", ["teacher_temperature=0.1", "teacher_temperature=0.5"])
def test_a_teacher_that_is_no_sharper_than_its_student_is_refused(setting: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="below the student's"):
        verdicts("dino", data, tmp_path / "run", setting)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", METERED)
def test_healthy_trainings_raise_no_alarm(name: str, seed: int, data: Path, tmp_path: Path) -> None:
    # 16 pictures are too few for a contrastive loss: it stays above that of knowing nothing, and the alarm is right.
    found = verdicts(name, data, tmp_path / "run", "batch_size=32", seed=seed, steps=STEPS // 2)
    assert len(found) == STEPS // 2 and not set(ALARMS) & set(found), found
    assert "learning" in found
