"""Codes: both conventions of the loss, the straight-through gradient, use, and codes that are born again."""

from __future__ import annotations

import pytest
import torch

from selftaught.nets.quantiser import Quantiser, k_means, vq_loss


def test_both_conventions_are_the_formulas() -> None:
    torch.manual_seed(0)
    z, q = torch.randn(5, 3), torch.randn(5, 3)
    distance = sum(float((a - b) ** 2) for x, y in zip(z, q, strict=True) for a, b in zip(x, y, strict=True)) / 15
    for convention, on_z, on_q in (("vqvae", 0.25, 1.0), ("glass", 1.0, 0.25)):
        a, b = z.clone().requires_grad_(), q.clone().requires_grad_()
        loss = vq_loss(a, b, convention)  # type: ignore[arg-type]
        assert float(loss.detach()) == pytest.approx(1.25 * distance, rel=1e-5)
        loss.backward()
        assert torch.allclose(a.grad, on_z * 2 * (z - q) / 15) and torch.allclose(b.grad, on_q * 2 * (q - z) / 15)


def test_the_nearest_code_is_taken_and_the_gradient_passes_straight_through() -> None:
    torch.manual_seed(1)
    quantiser = Quantiser(4, 3).eval()  # the statistics that it has been born with: mean 0, variance 1
    z = torch.randn(7, 3, requires_grad=True)
    found = quantiser(z)
    for row, code in zip(z.detach(), found.codes.tolist(), strict=True):
        assert code == min(range(4), key=lambda k: float((row - quantiser.codebook[k].detach()).square().sum()))
    assert torch.allclose(found.vectors, quantiser.look_up(found.codes), atol=1e-6)
    weight = torch.randn(7, 3)
    (gradient,) = torch.autograd.grad((found.vectors * weight).sum(), z)
    assert torch.allclose(gradient, weight, rtol=1e-4)


def test_vectors_that_hardly_differ_still_get_different_codes() -> None:
    """Standardised over the batch, small vectors are as good as large ones: shrinking them is no way out."""
    torch.manual_seed(6)
    quantiser, z = Quantiser(4, 3), torch.randn(64, 3)
    large, small = quantiser(z), quantiser(7 + 0.01 * z)
    assert torch.equal(large.codes, small.codes) and len(large.codes.unique()) > 1


def test_gumbel_answers_are_sharp_when_it_does_not_learn() -> None:
    torch.manual_seed(2)
    quantiser = Quantiser(4, 3, "gumbel")
    z = torch.randn(6, 3)
    found = quantiser(z)
    assert torch.allclose(found.vectors, quantiser.look_up(found.codes)) and float(found.loss) == 0
    soft = quantiser(z, 1.0, learn=True)
    assert not torch.allclose(soft.vectors, quantiser.look_up(soft.codes))


def test_dead_codes_are_born_again_and_used() -> None:
    torch.manual_seed(3)
    quantiser = Quantiser(6, 2)
    places = torch.tensor([[5.0, 5], [-5, 5], [5, -5], [-5, -5], [0, 9], [9, 0]])
    moved = 0
    for step in range(120):
        torch.manual_seed(step)
        quantiser(places.repeat(4, 1) + 0.1 * torch.randn(24, 2), learn=True)
        if int(quantiser.filled) >= 96 and not int(quantiser.started):
            quantiser.started.fill_(1)  # leave k-means out: all codes but the first are far away
            quantiser.codebook.data[1:] = 100.0
        moved += quantiser.renew(0.01, 20)
    assert moved >= 5 and quantiser.perplexity() > 5


def test_it_begins_at_k_means_of_what_it_saw() -> None:
    quantiser = Quantiser(3, 2)
    places = torch.tensor([[5.0, 5], [-5, 5], [5, -5]])
    torch.manual_seed(4)
    for _ in range(4):
        quantiser(places.repeat(8, 1) + 0.01 * torch.randn(24, 2), learn=True)
        quantiser.renew(0.01, 100)
    assert int(quantiser.started) == 1
    seen = quantiser.standard(places)
    assert float(torch.cdist(seen, quantiser.codebook.detach()).amin(1).max()) < 0.1
    assert torch.allclose(quantiser.standard(places).std(0, correction=0), torch.ones(2), atol=0.05), "vectors have variance 1"


def test_perplexity_is_one_for_one_code_and_k_for_all() -> None:
    quantiser = Quantiser(5, 2)
    assert quantiser.perplexity() == pytest.approx(5)
    quantiser.usage.copy_(torch.tensor([1.0, 0, 0, 0, 0]))
    assert quantiser.perplexity() == pytest.approx(1)


def test_k_means_agrees_with_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    torch.manual_seed(5)
    vectors = torch.randn(200, 3) + 4 * torch.randint(0, 2, (200, 3))
    ours = min(float(torch.cdist(vectors, k_means(vectors, 8)).amin(1).square().sum()) for _ in range(5))
    theirs = float(KMeans(8, n_init=5, random_state=0).fit(vectors.numpy()).inertia_)
    assert ours < 1.05 * theirs


def test_too_few_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 codes"):
        Quantiser(1, 4)
