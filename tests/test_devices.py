"""What is trained can be trained on another device than the one that pictures are read on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from other_device import OtherDevice, on_gpu
from selftaught.core.config import read_json, write_json
from selftaught.core.errors import ConfigError
from selftaught.loading import move_needs
from selftaught.method import Progress
from selftaught.registry import load_class
from selftaught.settings import choose_device
from selftaught.train import resume, train
from trained_runs import SMALL, newest, structured_noise


class Pictures:
    """Eight pictures as a loader gives them: on the CPU."""

    def __init__(self) -> None:
        self.images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return self.images[torch.as_tensor(np.asarray(indices))]


def tiny(name: str, needs: dict[str, Any] | None = None, **changes: Any) -> Any:
    cls = load_class(name)
    return cls(dataclasses.replace(cls.sizes["tiny"], **changes), needs)


def test_a_number_that_was_left_behind_is_noticed() -> None:
    x = on_gpu(torch.ones(3))
    with OtherDevice():
        assert x.device.type == "cuda" and (2 * x).device.type == "cuda" and x.cpu().device.type == "cpu"
        assert (x + torch.ones(3).to(x.device)).sum().item() == 6 and torch.zeros(3, device=x.device).is_cuda
        assert x[torch.tensor([0, 2])].is_cuda, "an index may lie on the CPU"
        for wrong in (lambda: x + torch.ones(3), lambda: x.numpy(), lambda: torch.cat([x, torch.ones(1)])):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()


def test_what_is_needed_comes_along() -> None:
    features = tiny("simclr")
    method = tiny("cad", {"masks": tiny("tokencut", {"features": features})})
    assert not any("meta" in str(p.device) for p in features.parameters())
    move_needs(method, "meta")
    assert all("meta" in str(p.device) for p in features.parameters()), "what a need needs as well"
    assert not any("meta" in str(p.device) for p in method.parameters())


SLOW = {"perceptual": "pyramid", "coding": "slow", "draws": "agent", "figure_px": 24, "slow_apart": 2, "drawn": 3, "warm_frac": 0.5}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("simclr", {"rotation": 1.0}), ("dino", {"targets": "sinkhorn", "koleo": 0.1}), ("mae", {}),
        ("mae", {"block_prob": 1.0, "critic_weight": 0.01, "critic_from": 0.0}), ("selfmask", {}), ("cad", {"drop_loss": True}),
        ("solo", {}), ("unsup3d", {}), ("viewpoint", {}),
        ("lapo", {}), ("lapo", {"quantised_frac": 0.5}), ("glass", {"perceptual": "pyramid"}), ("glass", {**SLOW, "swap_frac": 0.5}),
    ],
)  # fmt: skip
def test_a_step_is_computed_where_the_network_is(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    cls, needs = load_class(name), {}
    if "features" in cls.needs or "masks" in cls.needs:
        needs["features"] = tiny("simclr").eval()
        needs["masks"] = tiny("freesolo" if name == "solo" else "tokencut", {"features": needs["features"]})
    method = tiny(name, needs if cls.needs else None, **changes).train()
    pictures, c = Pictures(), method.config
    batch = pictures.images
    if cls.reads == "clips":
        batch = torch.randint(0, 256, (4, c.window, 3, c.image_px, c.width_px), dtype=torch.uint8)
    else:
        method.begin(pictures, tmp_path, print)
    for part in (method, *needs.values()):
        on_gpu(part)
    with OtherDevice():
        for step in (0, 19):
            seen = method.prepare(on_gpu(batch), np.arange(len(batch)))
            for player in method.players():
                loss, _ = method.loss(seen, player, Progress(step, 20))
                assert loss.is_cuda and bool(torch.isfinite(loss))
            method.after_step(Progress(step, 20))
        if cls.reads == "pictures":
            method.eval().settle(pictures)


def test_a_method_that_computes_on_the_cpu_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("shape_gan", "shape_autoencoder"):
        assert choose_device("auto", load_class(name)) == "cpu"
        with pytest.raises(ConfigError, match="is trained on the CPU alone"):
            choose_device("cuda", load_class(name))
    assert choose_device("auto", load_class("simclr")) == choose_device("cuda", load_class("simclr")) == "cuda"


def test_a_run_from_a_gpu_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = train("simclr", structured_noise(16), tmp_path / "run", size="tiny", steps=1, set=SMALL, quiet=True)
    write_json(run / "config.json", {**read_json(run / "config.json"), "device": "cuda", "data": "sample:things:16"})
    with pytest.raises(ConfigError, match="no GPU") as error:
        resume(run, quiet=True)
    assert "--device cpu" in error.value.do
    resume(run, steps=2, device="cpu", quiet=True)
    assert read_json(run / "config.json")["device"] == "cpu" and newest(run)[1]["step"] == 2
