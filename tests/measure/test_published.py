"""Frechet distance and KID against their identities; LPIPS, FID and FVD with weights of the right shapes that were drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from selftaught.core.errors import ConfigError
from selftaught.measure import published
from selftaught.measure.frechet import frechet_distance, kid, motion_frechet
from selftaught.nets.i3d import I3D, same_padding
from selftaught.nets.inception import FIDInception

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 5))


def test_frechet_distance_has_its_identities() -> None:
    assert frechet_distance(X, X) == 0 and frechet_distance(X, X[::-1]) == pytest.approx(0, abs=1e-5)
    v = np.array([1.0, -2, 0, 0.5, 3])
    assert frechet_distance(X, X + v) == pytest.approx(float(v @ v), rel=1e-4)
    white = X - X.mean(0)
    values, vectors = np.linalg.eigh(np.cov(white, rowvar=False))
    white = white @ vectors / np.sqrt(values)
    assert frechet_distance(white, 3 * white) == pytest.approx(4 * 5, rel=1e-4)
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(X, X[:, :3])


def test_frechet_distance_agrees_with_the_matrix_root() -> None:
    from scipy.linalg import sqrtm

    y = X @ RNG.standard_normal((5, 5)) + 1
    s, t = np.cov(X, rowvar=False), np.cov(y, rowvar=False)
    want = ((X.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_distance(X, y) == pytest.approx(want, rel=1e-4)


def test_kid_is_unbiased_where_nothing_differs() -> None:
    values = [kid(RNG.standard_normal((50, 4)), RNG.standard_normal((60, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5 and min(values) < 0
    assert kid(X, X + 1) > 0.5


def moving(speed: int, count: int = 12, shuffle: bool = False) -> np.ndarray:
    x = RNG.random((count, 1, 3, 32, 32)).repeat(6, 1)
    x = np.stack([np.roll(x[:, t], speed * t, -1) for t in range(6)], 1)
    return x[:, [0, 3, 1, 5, 2, 4]] if shuffle else x


def test_the_motion_distance_sees_motion_and_shuffled_time() -> None:
    floor = motion_frechet(moving(1), moving(1), 4)
    assert floor < 0.01 < motion_frechet(moving(1), moving(2), 4) and motion_frechet(moving(1), moving(1, shuffle=True), 4) > 0.5


def drawn(net: torch.nn.Module, path: Path, prefix: str = "") -> Path:
    torch.manual_seed(0)
    save_file({prefix + k: torch.rand_like(v) * 0.1 if v.is_floating_point() else v for k, v in net.state_dict().items()}, path)
    return path


def test_weights_that_are_missing_or_others_are_refused_with_the_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, variable in published.VARIABLES.items():
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(ConfigError, match="missing") as error:
            published.find_weights(kind, None)
        assert variable in str(error.value) and "under its own name" in str(error.value)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="holds no I3D"):
        published.fvd(np.zeros((2, 9, 3, 16, 16)), np.zeros((2, 9, 3, 16, 16)), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="no network"):
        published.LPIPS("resnet")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_formula(net: str, tmp_path: Path) -> None:
    backbone = published._alex() if net == "alex" else published._vgg16()
    widths = (64, 192, 384, 256, 256) if net == "alex" else (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}
    save_file(heads, tmp_path / "heads.safetensors")
    measure = published.LPIPS(net, drawn(backbone, tmp_path / "net.safetensors", "features."), tmp_path / "heads.safetensors")
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    found = measure(a, b)
    want = torch.zeros(2)
    x, y = ((v * 2 - 1 - measure.shift) / measure.scale for v in (a, b))
    depth = 0
    for i, layer in enumerate(measure.features):
        x, y = layer(x), layer(y)
        if i in measure.taps:
            for n in range(2):
                for row in range(x.shape[2]):
                    for column in range(0, x.shape[3]):
                        u, v = x[n, :, row, column], y[n, :, row, column]
                        gap = (u / (u.norm() + 1e-10) - v / (v.norm() + 1e-10)).square()
                        want[n] += float((gap * heads[f"lin{depth}.model.1.weight"].flatten()).sum()) / (x.shape[2] * x.shape[3])
            depth += 1
            if depth == 2:
                break  # the loops over deeper, wider maps say nothing new
    assert depth == 2 and float(measure(a, a).abs().max()) == 0
    shallow = measure.taps[:2]
    measure.taps = shallow
    assert torch.allclose(measure(a, b), want, rtol=1e-4) and bool((found > measure(a, b)).all())


def test_fid_and_fvd_read_weights_of_the_right_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "FIDInception", lambda: FIDInception(px=80))
    monkeypatch.setattr(published, "I3D", lambda: I3D(px=32))
    inception, i3d = drawn(FIDInception(), tmp_path / "a.safetensors"), drawn(I3D(), tmp_path / "b.safetensors")
    frames = RNG.random((4, 3, 24, 24))
    assert published.fid(frames, frames, inception) == 0
    clips = RNG.random((3, 9, 3, 16, 16))
    assert published.fvd(clips, clips, i3d) == 0
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        published.fid(frames * 255, frames, inception)
    with pytest.raises(ValueError, match="9 frames"):
        published.fvd(clips[:, :4], clips[:, :4], i3d)


def test_same_padding_is_tensorflow_s() -> None:
    for size in (7, 8, 9, 16, 17):
        for kernel, stride in ((7, 2), (3, 2), (3, 1), (2, 2)):
            padded = same_padding(torch.zeros(1, 1, size, size, size), (kernel,) * 3, (stride,) * 3)
            assert (padded.shape[2] - kernel) // stride + 1 == -(-size // stride)
