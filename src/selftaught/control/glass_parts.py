"""The networks of GLASS, built from its config."""

from __future__ import annotations

from typing import Any

from torch import nn

from selftaught.control.glass_gma import GMA, Inpainter, MaskNet, ShiftCorrelator, ShiftRegressor
from selftaught.control.glass_guess import FirstGuess
from selftaught.control.glass_lma import LMA, ActionNet, Dynamics, Renderer, StateNet
from selftaught.control.glass_slow import SlowCodes
from selftaught.nets.perceptual import FeatureDistance, PyramidDistance, VGGDistance
from selftaught.nets.quantiser import Quantiser


def build_gma(c: Any) -> GMA:
    """Masks, inpainting and two shift networks, for a `GLASSConfig`."""
    return GMA(
        MaskNet(c.mask_widths, c.mask_blocks, c.fold, c.norm),
        Inpainter(c.inpaint_widths, c.fold, c.norm),
        _shift(c, c.reach_px, False), _shift(c, c.ground_reach_px, True),
    )


def _shift(c: Any, reach_px: int, whole: bool) -> nn.Module:
    if c.shift == "regression":
        return ShiftRegressor(c.shift_widths, c.shift_hidden, c.fold, c.norm)
    if reach_px < 1 or min(c.image_px, c.width_px) <= 2 * reach_px:
        raise ValueError(f"frames must be more than twice as large as a reach of {reach_px} px, which is at least 1")
    return ShiftCorrelator(c.shift_widths[0] // 2, reach_px, whole)


def build_lma(c: Any) -> LMA:
    """States, actions, quantiser, dynamics and renderer, for a `GLASSConfig`."""
    width, slow = c.state_widths[2], c.coding == "slow"
    side = c.figure_px if c.draws == "agent" else 0
    guessed = slow and bool(side) and c.residual
    return LMA(
        StateNet(c.state_widths, c.compressed, c.fold, c.norm),
        None if slow else ActionNet(width, width, c.code_dim, c.bilinear, c.direction, c.norm),
        None if slow else Quantiser(c.codes, c.code_dim, c.quantiser, c.vq_convention),
        SlowCodes(c.codes, c.code_dim, c.figure_px, c.slow_dims, c.slow_apart, c.slow_who, c.slow_ridge) if slow else None,
        Dynamics(c.compressed, c.hidden, c.code_dim, c.conditioned, c.joint, c.norm),
        Renderer(c.hidden, c.render_widths, c.fold, c.norm, c.residual, guessed),
        FirstGuess(c.codes, side, c.window, c.guess_parts) if guessed else None, side,
    )


def perceptual_of(c: Any, features: Any) -> nn.Module:
    """What compares pictures, for a `GLASSConfig` and the need `features`."""
    if c.perceptual == "features":
        return FeatureDistance(features)
    if c.perceptual == "vgg":
        if not c.vgg_weights:
            raise ValueError("perceptual=vgg needs vgg_weights=FILE, a local file of torchvision's vgg19")
        return VGGDistance(c.vgg_weights)
    return PyramidDistance()
