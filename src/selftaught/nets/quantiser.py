"""From vectors to one of K codes: the nearest, with a straight-through gradient, or Gumbel-softmax; dead codes are born again.

VQ-VAE: van den Oord, Vinyals, Kavukcuoglu, NeurIPS 2017, eq. 3. Gumbel-softmax: Jang, Gu, Poole, ICLR 2017. Dead codes are moved to
vectors of recent batches, as in Jukebox (Dhariwal et al., 2020, section 3.1), and the codebook begins at k-means of the first ones.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from selftaught.core.launch import all_reduce_sum, gather

Convention = Literal["glass", "vqvae"]
RECENT = 512
"""Vectors that are remembered, for k-means and for codes that are born again."""


class Quantised(NamedTuple):
    """What became of (N, D) vectors."""

    codes: Tensor
    """(N,) int64: the nearest, or most likely, code."""
    vectors: Tensor
    """(N, D): the codes' vectors, through which gradients flow to the input."""
    loss: Tensor
    """Scalar; zero for Gumbel."""


def vq_loss(z: Tensor, q: Tensor, convention: Convention) -> Tensor:
    """The two terms of VQ-VAE's eq. 3, with the 0.25 at one of them; z (N, D) and the nearest codes q (N, D).

    vqvae: mean (sg[z] - q)^2 + 0.25 mean (z - sg[q])^2   (the encoder's commitment is the weak one)
    glass: 0.25 mean (sg[z] - q)^2 + mean (z - sg[q])^2   (as in the released GLASS: the codebook's is the weak one)
    """
    codebook, commitment = (z.detach() - q).square().mean(), (z - q.detach()).square().mean()
    return codebook + 0.25 * commitment if convention == "vqvae" else 0.25 * codebook + commitment


class Quantiser(nn.Module):
    """K codes of width D. `kind` is vq (z is (N, D)) or gumbel (z is turned into K logits first).

    Vectors are brought to mean 0 and variance 1 over the batch first, by a batch norm without weights: otherwise small vectors cost the
    least, and all fall onto one code. Moving statistics are not enough: vectors of a batch drift together, faster than they differ.
    """

    usage: Tensor
    recent: Tensor
    filled: Tensor
    started: Tensor
    since: Tensor

    def __init__(self, codes: int, width: int, kind: Literal["vq", "gumbel"] = "vq", convention: Convention = "vqvae"):
        super().__init__()
        if codes < 2:
            raise ValueError(f"there must be at least 2 codes, got {codes}")
        self.kind, self.convention = kind, convention
        self.codebook = nn.Parameter(torch.empty(codes, width).uniform_(-1 / codes, 1 / codes))
        self.logits = nn.Linear(width, codes) if kind == "gumbel" else None
        self.standard = nn.BatchNorm1d(width, affine=False)
        self.register_buffer("usage", torch.full((codes,), 1 / codes))
        self.register_buffer("recent", torch.zeros(RECENT, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))
        self.register_buffer("since", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor, temperature: float = 1.0, learn: bool = False) -> Quantised:
        """(N, D) to codes; `learn` remembers the vectors and counts the codes."""
        z = self.standard(z.float())
        if self.logits is not None:
            scores = self.logits(z)
            codes = scores.argmax(1)
            p = nn.functional.gumbel_softmax(scores, temperature) if learn else nn.functional.one_hot(codes, scores.shape[1]).float()
            found = Quantised(codes, p @ self.codebook, z.new_zeros(()))
        else:
            codes = torch.cdist(z.detach(), self.codebook.detach()).argmin(1)
            q = self.codebook[codes]
            found = Quantised(codes, z + (q - z).detach(), vq_loss(z, q, self.convention))
        if learn:
            self.remember(z.detach(), codes)
        return found

    def look_up(self, codes: Tensor) -> Tensor:
        """Vectors (..., D) of codes (...)."""
        return self.codebook[codes]

    @torch.no_grad()
    def remember(self, z: Tensor, codes: Tensor) -> None:
        """Count codes over all processes (an average over about 30 steps), and keep vectors, the newest first."""
        z = gather(z)
        counts = all_reduce_sum(torch.bincount(codes, minlength=len(self.codebook)).float())
        self.usage.lerp_(counts / counts.sum(), 0.03)
        self.recent.copy_(torch.cat([z, self.recent])[:RECENT])
        self.filled.copy_((self.filled + len(z)).clamp(max=RECENT))

    def perplexity(self) -> float:
        """exp of the entropy of how often the codes are used: 1 when one is used for everything, K when all are used alike."""
        return float(torch.exp(-(self.usage * self.usage.clamp(min=1e-9).log()).sum()))

    @torch.no_grad()
    def renew(self, threshold: float, every: int) -> int:
        """After a step: begin at k-means as soon as there are vectors enough; every so many steps move dead codes to recent vectors.

        Returns how many codes were moved. Random choices come from torch's generator, which the loop seeds for every step.
        """
        K = len(self.codebook)
        if int(self.filled) < min(RECENT, 16 * K):
            return 0
        if not int(self.started):
            self.started.fill_(1)
            if self.kind == "vq":
                self.codebook.copy_(k_means(self.recent[: int(self.filled)], K))
                self.usage.fill_(1 / K)
            return 0
        self.since += 1
        dead = torch.nonzero(self.usage < threshold).flatten()
        if self.kind != "vq" or int(self.since) < every or not len(dead):
            return 0
        self.since.zero_()
        vectors = self.recent[: int(self.filled)]
        # Far from all living codes: a copy of a crowded place would die again.
        far = torch.cdist(vectors, self.codebook).amin(1)
        picked = torch.multinomial(far + 1e-6, len(dead), replacement=len(dead) > len(vectors))
        self.codebook[dead] = vectors[picked]
        self.usage[dead] = 1 / K
        return len(dead)


def k_means(vectors: Tensor, count: int, rounds: int = 20) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds: (N, D) to (count, D); random numbers come from torch's generator."""
    centres = vectors[torch.randint(len(vectors), (1,))]
    for _ in range(count - 1):
        weight = torch.cdist(vectors, centres).amin(1).square()
        centres = torch.cat([centres, vectors[torch.multinomial(weight + 1e-9, 1)]])
    for _ in range(rounds):
        nearest = torch.cdist(vectors, centres).argmin(1)
        one = nn.functional.one_hot(nearest, count).float()
        sums, counts = one.T @ vectors, one.sum(0)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres
