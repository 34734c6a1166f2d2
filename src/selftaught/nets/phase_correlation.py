"""Motion between two frames by correlation over all displacements at once: no weights, used as baseline, as first teacher and in networks.

Phase correlation: Kuglin and Hines, "The Phase Correlation Image Alignment Method", 1975.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def phase_correlation(a: Tensor, b: Tensor, reach_px: int, window: bool = True) -> Tensor:
    """Shift in pixels (B, 2) as (x, y) that brings `a` onto `b`, both (B, C, H, W); at most `reach_px` in each direction.

    r = ifft(conj(A) B / |conj(A) B|), summed over channels; the peak is refined by a parabola in each direction. `window` multiplies
    by a Hann window first, because the Fourier transform takes frames to be periodic.
    """
    r = correlation_surface(_tapered(a) if window else a, _tapered(b) if window else b, reach_px, whiten=True)
    B, n, _ = r.shape
    best = r.flatten(1).argmax(1)
    y, x = best // n, best % n
    return torch.stack([_peak(r, y, x, 1), _peak(r, y, x, 0)], 1)


def correlation_surface(a: Tensor, b: Tensor, reach_px: int, whiten: bool = False) -> Tensor:
    """Cyclic cross-correlation (B, 2R + 1, 2R + 1) of two (B, C, H, W): entry [R + dy, R + dx] = sum_p a(p) b(p + d).

    Frames must be larger than 2R in both directions. Differentiable without `whiten`.
    """
    H, W = a.shape[2:]
    if min(H, W) <= 2 * reach_px:
        raise ValueError(f"a reach of {reach_px} px needs frames larger than {2 * reach_px} px, these are {W}x{H}")
    if whiten:
        cross = torch.fft.rfft2(a.float()).conj() * torch.fft.rfft2(b.float())
        full = torch.fft.irfft2((cross / (cross.abs() + 1e-6)).sum(1), s=(H, W))
    else:
        full = _Correlation.apply(a.float(), b.float())  # type: ignore[no-untyped-call]
    full = torch.roll(full, (reach_px, reach_px), (1, 2))
    return full[:, : 2 * reach_px + 1, : 2 * reach_px + 1]


def neighbour_surfaces(clip: Tensor, reach_px: int) -> Tensor:
    """`correlation_surface` of each frame of (B, T, C, H, W) and the next one: (B, T - 1, 2R + 1, 2R + 1); each is transformed once."""
    full = torch.roll(_Neighbours.apply(clip.float()), (reach_px, reach_px), (2, 3))  # type: ignore[no-untyped-call]
    return full[:, :, : 2 * reach_px + 1, : 2 * reach_px + 1]


class _Correlation(torch.autograd.Function):
    """s(d) = sum_cp a_c(p) b_c(p + d), cyclic, of two (B, C, H, W); `a` may be one for all.

    Gradients are correlations as well, da(p) = sum_d g(d) b(p + d) and db(p) = sum_d g(d) a(p - d): transforms of real numbers, where
    the gradient of a transform would be one of complex numbers.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        one, two = torch.fft.rfft2(a), torch.fft.rfft2(b)
        ctx.save_for_backward(one, two)
        ctx.size = (a.shape[2], a.shape[3])
        return torch.fft.irfft2((one.conj() * two).sum(1), s=ctx.size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        one, two = ctx.saved_tensors
        g = torch.fft.rfft2(gradient)[:, None]
        da = torch.fft.irfft2(g.conj() * two, s=ctx.size) if ctx.needs_input_grad[0] else None
        db = torch.fft.irfft2(g * one, s=ctx.size) if ctx.needs_input_grad[1] else None
        return da if da is None or len(one) == len(two) else da.sum(0, keepdim=True), db


class _Neighbours(torch.autograd.Function):
    """The same of frames (B, T, C, H, W) and those after them."""

    @staticmethod
    def forward(ctx: Any, clip: Tensor) -> Tensor:  # type: ignore[override]
        spectra = torch.fft.rfft2(clip)
        ctx.save_for_backward(spectra)
        ctx.size = (clip.shape[3], clip.shape[4])
        return torch.fft.irfft2((spectra[:, :-1].conj() * spectra[:, 1:]).sum(2), s=ctx.size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (spectra,) = ctx.saved_tensors
        g = torch.fft.rfft2(gradient)[:, :, None]
        out = torch.zeros_like(spectra)
        out[:, :-1] = g.conj() * spectra[:, 1:]
        out[:, 1:] += g * spectra[:, :-1]
        return torch.fft.irfft2(out, s=ctx.size)


@torch.no_grad()
def robust_match(a: Tensor, b: Tensor, reach_px: int, cap: float = 0.06, stride: int = 1) -> Tensor:
    """Whole-pixel shift (B, 2) as (x, y) that brings most pixels of `a` onto `b`, both (B, C, H, W): the motion of most of the frame.

    argmin_d mean_p min(|a(p) - b(p + d)|, cap) over the part in which the frames overlap. The cap keeps a sharp small thing that moves
    otherwise from counting more than a wide even ground: phase correlation and squared differences follow such a thing. With a `stride`
    only every so many rows and columns are compared, which costs less.
    """
    H, W = a.shape[2:]
    costs, places = [], []
    # One place for all differences: fresh memory for each costs more than the subtraction.
    a, b = torch.broadcast_tensors(a, b)
    every, mean = a.new_empty(a.numel()), a.new_empty(a[:, 0].numel())
    for dy in range(-reach_px, reach_px + 1):
        for dx in range(-reach_px, reach_px + 1):
            one = a[:, :, max(0, -dy) : H - max(0, dy) : stride, max(0, -dx) : W - max(0, dx) : stride]
            two = b[:, :, max(0, dy) : H - max(0, -dy) : stride, max(0, dx) : W - max(0, -dx) : stride]
            apart = torch.sub(one, two, out=every[: one.numel()].view(one.shape)).abs_()
            shape = one[:, 0].shape
            costs.append(torch.mean(apart, 1, out=mean[: shape.numel()].view(shape)).clamp_(max=cap).mean((1, 2)))
            places.append((dx, dy))
    # Where all displacements cost the same the least motion is taken.
    reach = torch.tensor(places, dtype=torch.float32, device=a.device)
    cost = torch.stack(costs, 1) + 1e-6 * reach.abs().sum(1)
    return reach[cost.argmin(1)]


def _tapered(x: Tensor) -> Tensor:
    H, W = x.shape[2:]
    taper = torch.hann_window(H, periodic=False, device=x.device)[:, None] * torch.hann_window(W, periodic=False, device=x.device)
    return (x - x.mean((2, 3), keepdim=True)) * taper


def _peak(r: Tensor, y: Tensor, x: Tensor, axis: int) -> Tensor:
    """Place of the peak along an axis (0 = y, 1 = x) relative to no motion, refined by the parabola through its neighbours."""
    n = r.shape[1]
    rows = torch.arange(len(r), device=r.device)
    at = (y, x)[axis]
    inside = (at > 0) & (at < n - 1)
    middle = at.clamp(1, n - 2)
    low, mid, high = (r[rows, middle + k, x] if axis == 0 else r[rows, y, middle + k] for k in (-1, 0, 1))
    curve = low - 2 * mid + high
    fraction = torch.where(inside & (curve < 0), 0.5 * (low - high) / curve.clamp(max=-1e-12), 0.0)
    return at - (n - 1) // 2 + fraction.clamp(-0.5, 0.5)
