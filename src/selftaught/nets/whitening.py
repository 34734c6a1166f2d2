"""Whitening of vectors by the statistics of a collection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WHITEN_FLOOR = 1e-3
"""Added to every variance, as a share of the largest, so that directions of noise are not blown up."""


class Whitening(nn.Module):
    """PCA whitening (x - mean) W with W = V (L + floor max(L))^(-1/2), V and L the eigenvectors and values of the covariance.

    Cosines of raw embeddings mostly see the few directions that vary most; what tells kinds of pictures apart is often
    elsewhere (Kessy et al., "Optimal whitening and decorrelation", 2018; used on features by Jegou and Chum, ECCV 2012).
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the statistics of (N, D) embeddings; fewer than two, or all alike, change nothing."""
        x = x.double()
        centred = x - x.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / max(len(x) - 1, 1))
        if len(x) < 2 or not float(values[-1]) > 0:
            return
        scale = (values.clamp(min=0) + WHITEN_FLOOR * values[-1]).rsqrt()
        self.mean.copy_(x.mean(0))
        self.matrix.copy_(vectors * scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.matrix
