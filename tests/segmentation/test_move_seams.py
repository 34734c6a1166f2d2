"""Judging MOVE's seams alone, and random blobs beside the segmenter's own masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_move import TINY, made, needs
from torch import Tensor

from selftaught.method import Progress
from selftaught.nets.discriminators import fooled, hinge_real
from selftaught.segmentation.move import Move

__all__ = ["needs"]


def test_a_segmenter_that_waits_learns_nothing_and_the_discriminator_sees_blobs(
    needs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = made(needs, tmp_path, init="none", wait_frac=0.5, blobs_frac=0.5)
    seen: list[Tensor] = []
    scene = Move.scene
    monkeypatch.setattr(Move, "scene", lambda self, pictures, mask, by: (seen.append(mask), scene(self, pictures, mask, by))[1])
    optimizer = method.players()["segmenter"].build_optimizer()
    before = [p.detach().clone() for p in method.net.parameters()]
    for frac, waits in ((10, True), (90, False)):
        loss, parts = method.loss(batch, "segmenter", Progress(frac, 100))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(Progress(frac, 100))
        same = all(torch.equal(p, q) for p, q in zip(method.net.parameters(), before, strict=True))
        assert same == waits and ("fooled" in parts) != waits
        method.loss(batch, "discriminator", Progress(frac, 100))
    own = method.net(batch["maps"], batch["pictures"]).sigmoid()
    first, later = seen[0], seen[-1]
    assert not torch.isclose(first, own).flatten(1).all(1).any(), "before the segmenter learns every picture is cut along a blob"
    assert torch.allclose(later[4:], own[4:], atol=1e-5) and not torch.isclose(later[:4], own[:4]).flatten(1).all(1).any()


def test_seams_alone_count(needs: dict[str, Any], tmp_path: Path) -> None:
    method, _ = made(needs, tmp_path, discriminator="patches", seams_only=True)
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, :, :, :4] = 1
    weight = method.told(torch.zeros(2, 1, 4, 4), mask, torch.zeros_like(mask))
    assert weight is not None and weight.shape == (2, 1, 4, 4)
    assert float(weight[0, 0, :, 0].min()) == 1 and float(weight[0, 0, :, 1:].sum()) == 0
    assert float(weight[1].sum()) == 0
    logits = torch.tensor([-3.0, 5.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert float(hinge_real(logits, weight)) == pytest.approx(0.5 * 4), "a picture without a seam says nothing"
    assert float(fooled(logits, weight)) == pytest.approx(0.5 * 3)
    assert method.config.seams_only and Move(replace(TINY, discriminator="patches"), needs).told(logits, mask) is None
    for refused in ({"discriminator": "features", "seams_only": True}, {"init": "cut", "wait_frac": 0.1}):
        with pytest.raises(ValueError, match="seams_only|wait_frac"):
            Move(replace(TINY, **refused), needs)
