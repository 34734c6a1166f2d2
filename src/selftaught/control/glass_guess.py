"""How an agent looks under each code, in closed form: a first guess that the drawing begins from.

In some hundred steps nothing teaches a network to draw codes. A frame looks nearly as the one before, whose picture it is given, so the
code is worth little, and what it is worth is spread over all places where limbs may be. But how an agent looks under a code is nearly a
linear map of its picture, where it is always in the middle: colours stay, places change. So each code gets a ridge regression between
principal components of two pictures of one clip, from any frame to one that has the code. It is supposed that two frames of a clip show
the same agent, nothing else. The network then draws what the guess leaves out, and chooses between it and the last picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selftaught.control.glass_slow import SlowCodes, looks, solid
from selftaught.core.launch import gather

KEPT = 256
"""Clips whose figures are remembered."""
SOFT = 0.1
"""Ridge, as a share of the mean variance."""


class FirstGuess(nn.Module):
    """Figures of the newest clips; once codes stand, `start` makes of them the map from a figure and a code to a figure."""

    kept: Tensor
    filled: Tensor
    started: Tensor
    middle: Tensor
    basis: Tensor
    maps: Tensor

    def __init__(self, codes: int, side: int, frames: int, parts: int):
        super().__init__()
        self.parts = parts
        self.register_buffer("kept", torch.zeros(KEPT, frames, 4 * side**2, dtype=torch.uint8))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))
        self.register_buffer("middle", torch.zeros(4 * side**2))
        self.register_buffer("basis", torch.zeros(4 * side**2, parts))
        self.register_buffer("maps", torch.zeros(codes, parts + 1, parts))

    @torch.no_grad()
    def remember(self, squares: Tensor) -> None:
        """Keep squares (B, T, 4, S, S) of foregrounds in [-1, 1] and masks in [0, 1], the newest first."""
        new = gather(((squares.flatten(2) + 1) * 127.5).round().to(torch.uint8))[:KEPT]
        self.kept.copy_(torch.cat([new, self.kept])[:KEPT])
        self.filled.copy_((self.filled + len(new)).clamp(max=KEPT))

    @torch.no_grad()
    def start(self, slow: SlowCodes) -> None:
        """Make the maps, once, from what is kept and its codes; nothing when there are no codes yet."""
        n = int(self.filled)
        if int(self.started) or not int(slow.started) or n < 2:
            return
        x = self.kept[:n].flatten(0, 1).float() / 127.5 - 1
        squares = x.unflatten(1, (4, slow.side, slow.side))
        codes = slow(looks(solid(squares))).unflatten(0, (n, -1))
        with torch.autocast(x.device.type, enabled=False):
            self.middle.copy_(x.mean(0))
            basis = torch.svd_lowrank(x - self.middle, q=min(self.parts, *x.shape), niter=3)[2]
            self.basis.zero_()[:, : basis.shape[1]] = basis
            self.maps.copy_(maps_of(((x - self.middle) @ self.basis).unflatten(0, (n, -1)), codes, len(self.maps)))
        self.started.fill_(1)
        self.kept.zero_()

    def who(self, squares: Tensor) -> Tensor:
        """Squares (B, 4, S, S) to what the guess needs of them (B, parts)."""
        with torch.autocast(squares.device.type, enabled=False):
            return (squares.float().flatten(1) - self.middle) @ self.basis

    def forward(self, who: Tensor, chosen: Tensor, like: Tensor) -> Tensor:
        """How the one of `who` (B, parts) looks under codes, one-hot (B, K): (B, 4, S, S), as `like`; zeros where there is none yet."""
        with torch.autocast(who.device.type, enabled=False):
            z = torch.cat([who, torch.ones_like(who[:, :1])], 1)
            found = torch.einsum("bk,kij,bi->bj", chosen.float(), self.maps, z) @ self.basis.T + self.middle
        known = (self.started * chosen.sum(1)).clamp(max=1)[:, None]
        x = (found * known).view_as(like)
        return torch.cat([x[:, :3].clamp(-1, 1), x[:, 3:].clamp(0, 1)], 1)


def maps_of(z: Tensor, codes: Tensor, count: int) -> Tensor:
    """(K, P + 1, P): for each code the ridge regression from any frame of a clip to those frames of it that have the code.

    z: components (N, T, P) of N clips, codes (N, T).
    A_k = (sum_i n_ik sum_s x_is x_is' + ridge)^-1 sum_i (sum_s x_is) (sum_{t of code k} z_it)'
    where x is z with a one behind it and n_ik counts the frames of clip i with code k: all pairs of frames, without listing them. The one
    has no ridge, so that a code that is hardly used gets its mean look.
    """
    N, T, P = z.shape
    x = torch.cat([z, z.new_ones(N, T, 1)], 2).double()
    has = torch.nn.functional.one_hot(codes, count).double()
    squares = torch.einsum("nsi,nsj->nij", x, x)
    left = torch.einsum("nk,nij->kij", has.sum(1), squares)
    right = torch.einsum("ni,ntk,ntj->kij", x.sum(1), has, z.double())
    soft = SOFT * z.double().square().mean() * T * has.sum((0, 1)) + 1e-6
    ridge = torch.ones(P + 1, dtype=torch.float64, device=z.device)
    ridge[-1] = 1e-6
    return torch.linalg.solve(left + soft[:, None, None] * torch.diag(ridge), right).float()
