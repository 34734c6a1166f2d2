"""MOVE that pastes objects onto other pictures: losses of both players by hand, ranked masks, and the wait before it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_move import learned, made
from torch import nn

from selftaught.method import Progress
from selftaught.nets.discriminators import unchanged_loss
from selftaught.segmentation.move import KINDS, Move, untouched
from selftaught.segmentation.move_scene import make_scene, ranked

LATER = Progress(60, 100)
EXCHANGE: dict[str, Any] = {
    "init": "none", "paste": "others", "discriminator": "places", "share_from": 0.1, "share_to": 0.3, "rim_frac": 0.1, "jitter": 0.0,
    "least_weight": 0.0, "binary_weight": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def needs() -> dict[str, Any]:
    return {"features": learned("dino"), "inpainter": learned("mae")}


def test_both_losses_are_the_formulas(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, **EXCHANGE)
    shares, onto = batch["shares"], torch.arange(8).roll(1)
    assert 0.1 <= float(shares.min()) < float(shares.max()) <= 0.3
    loss, told = method.loss(batch, "discriminator", LATER)
    with torch.no_grad():
        mask = ranked(method.net(batch["maps"], batch["pictures"]), shares, 0.1)
        scene = make_scene(batch["pictures"], mask, batch["shift"], needs["inpainter"], onto=onto)
        said = method.judge(torch.cat([getattr(scene, kind) for kind in KINDS]), method.encoder).chunk(4)
        expected = 0.5 * sum(float(unchanged_loss(x, scene.changed()[kind])) for x, kind in zip(said, KINDS, strict=True))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    region = scene.changed()["composite"]
    assert region is not None
    there = nn.functional.max_pool2d(region, 4) >= 0.5
    assert 0.02 < float(there.float().mean()) < 0.98, "some places are changed and some are not"
    assert told["right_composite"] == pytest.approx(float(((said[2] <= 0) == there).float().mean()), abs=1e-6)
    loss, parts = method.loss(batch, "segmenter", LATER)
    with torch.no_grad(), untouched(method.judge):
        fool = float(nn.functional.softplus(-method.judge(scene.composite, method.encoder)).mean())
    assert parts["fooled"] == pytest.approx(fool, rel=1e-4) == pytest.approx(float(loss.detach()), rel=1e-4)


def test_masks_in_use_cover_the_middle_share_and_leave_the_rim(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, **EXCHANGE)
    masks = method.eval().segment(batch["pictures"])
    np.testing.assert_allclose((masks > 0.5).float().mean((1, 2)).numpy(), 0.2, atol=2 / 1024)
    assert float(masks[:, :3].sum() + masks[..., -3:].sum()) == 0
    torch.testing.assert_close(method.segment_network(batch["pictures"]), masks)


def test_the_segmenter_waits(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, **EXCHANGE, wait_frac=0.5)
    optimizer = torch.optim.AdamW(method.net.parameters(), 1e-2)
    for step, waits in ((10, True), (49, True), (50, False)):
        before = torch.cat([p.detach().flatten().clone() for p in method.net.parameters()])
        optimizer.zero_grad()
        loss, parts = method.loss(batch, "segmenter", Progress(step, 100))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(Progress(step, 100))
        after = torch.cat([p.detach().flatten() for p in method.net.parameters()])
        assert torch.equal(before, after) == waits and parts["open"] == (0.0 if waits else 1.0)


@pytest.mark.parametrize("wrong", [
    {"share_to": 0.3}, {"share_from": 0.3, "share_to": 0.2}, {"share_from": 0.1, "share_to": 0.7, "rim_frac": 0.1},
    {"share_from": -0.1}, {"rim_frac": 0.5}, {"wait_frac": 1.5},
], ids=str)  # fmt: skip
def test_shares_that_cannot_be_meant_are_refused(wrong: dict[str, Any], needs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="share_from|rim_frac|wait_frac"):
        Move(replace(Move.sizes["tiny"], **wrong), needs)


def test_the_only_picture_of_a_piece_is_pasted_onto_itself(needs: dict[str, Any], tmp_path: Path) -> None:
    method, batch = made(needs, tmp_path, **EXCHANGE)
    one = {k: v[:1] for k, v in batch.items()}
    for player in ("discriminator", "segmenter"):
        loss, _ = method.loss(one, player, LATER)
        assert bool(loss.isfinite())


def test_chequered_holes_need_no_inpainter(needs: dict[str, Any], tmp_path: Path) -> None:
    alone = {"features": needs["features"]}
    method, batch = made(alone, tmp_path, **{**EXCHANGE, "paste": "own", "fill": "chequered", "hole": "pixels"})
    mask = torch.zeros(8, 1, 32, 32)
    mask[:, :, 8:16, 8:16] = 1
    scene = method.scene(batch["pictures"], mask, torch.tensor([[0, 12]]).expand(8, 2), exchange=True)
    left = scene.composite[:, :, 8:16, 8:16]
    assert set(left.flatten().tolist()) == {0.0, 1.0} and torch.equal(left[:, 0], 1 - left[:, 1]), "the object's old place shows it"
    torch.testing.assert_close(scene.composite[:, :, 8:16, 20:28], batch["pictures"][:, :, 8:16, 8:16])
    torch.testing.assert_close(scene.composite[:, :, 16:], batch["pictures"][:, :, 16:])
    loss, _ = method.loss(batch, "segmenter", LATER)
    loss.backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in method.net.parameters())
    assert set(Move.needs_of(method.config)) == {"features"} and set(Move.needs_of(Move.sizes["paper"])) == {"features", "inpainter"}
    with pytest.raises(ValueError, match="copy_real must be true"):
        Move(replace(method.config, copy_real=False), alone)
    with pytest.raises(ValueError, match="needs inpainter"):
        Move(replace(method.config, fill="inpainter"), alone)
