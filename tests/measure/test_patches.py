"""Features from patches: distances fall where pictures are alike, and what they are made of is what the formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selftaught.measure.patches import PatchDictionary, patch_kid


def bars(count: int, seed: int, upright: bool = True, colour: float = 1.0) -> np.ndarray:
    """Pictures (N, 3, 16, 16) of one bar each, on noise."""
    random = np.random.RandomState(seed)
    found = random.uniform(0.3, 0.4, (count, 3, 16, 16))
    for one, at in zip(found, random.randint(2, 12, count), strict=True):
        one[:, :, at : at + 3] = colour * np.array([1.0, 0.2, 0.1])[:, None, None]
    return found if upright else found.swapaxes(2, 3)


def test_features_are_those_of_the_formula() -> None:
    x = bars(12, 0)
    words = PatchDictionary.learned(x, size=4, count=5, patches=500)
    found = words.features(x)
    assert found.shape == (12, 20)
    near = np.zeros((5, 13, 13))
    for i in range(13):
        for j in range(13):
            patch = torch.from_numpy(x[3, :, i : i + 4, j : j + 4].reshape(-1)).float()
            away = ((patch - words.mean) @ words.whiten - words.centres).square().sum(1).sqrt().numpy()
            near[:, i, j] = np.maximum(away.mean() - away, 0)
    parts = [near[:, a, b].mean((1, 2)) for a in (slice(0, 7), slice(6, 13)) for b in (slice(0, 7), slice(6, 13))]
    np.testing.assert_allclose(found[3].reshape(5, 4), np.stack(parts, 1), rtol=1e-3, atol=1e-4)
    # Whitened: the patches' covariance is nearly the unit matrix where they vary.
    rows = torch.nn.functional.unfold(torch.from_numpy(x).float(), 4).transpose(1, 2).flatten(0, 1)
    spread = torch.cov(((rows - words.mean) @ words.whiten).T)
    assert float(torch.linalg.eigvalsh(spread)[-1]) == pytest.approx(1.0, abs=0.35)


def test_what_looks_alike_is_near_and_what_does_not_is_far() -> None:
    others = {
        "alike": bars(120, 1), "across": bars(120, 1, upright=False), "dull": bars(120, 1, colour=0.6), "one": bars(1, 1).repeat(120, 0),
    }  # fmt: skip
    found = patch_kid(bars(120, 0), others)
    assert all(each.shape == (5,) for each in found.values())
    far = min(found[name].mean() for name in ("across", "dull", "one"))
    assert abs(found["alike"].mean()) < 0.2 * far and abs(found["real"].mean()) < 0.2 * far


@pytest.mark.parametrize(
    "bad", [np.zeros((9, 3, 8, 8)), np.zeros((9, 1, 16, 16)), np.full((9, 3, 16, 16), np.nan), np.zeros((3, 3, 16, 16))]
)
def test_unfit_pictures_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        patch_kid(bad, {"made": bars(9, 0)})
