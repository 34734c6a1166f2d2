"""TokenCut on clips: the graph written out densely, flow of known motions, and clips in which looks alone cannot tell."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.segmentation.flow import optical_flow, same_motion
from selftaught.segmentation.tokencut_video import TokenCutVideo, TokenCutVideoConfig, smooth_in_time


class Colours(nn.Module):
    """Features of 4x4 patches: mean colour and a constant."""

    image_px, patch_px = 32, 4

    def features(self, images: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(images, 4)
        return torch.cat([means, torch.full_like(means[:, :1], 0.3)], 1)


def moving(seed: int = 0, frames: int = 6, step: tuple[int, int] = (2, 1)) -> tuple[Tensor, np.ndarray]:
    """A square of noise that moves over noise of the same kind that moves the other way: (T, 3, 32, 32) and masks (T, 32, 32)."""
    rng = np.random.default_rng(seed)
    smooth = nn.functional.interpolate(torch.from_numpy(rng.random((2, 3, 24, 24))).float(), (96, 96), mode="bicubic").clamp(0, 1)
    clip, masks = torch.empty(frames, 3, 32, 32), np.zeros((frames, 32, 32), bool)
    for t in range(frames):
        clip[t] = smooth[0, :, 40 - t : 72 - t, 40:72]
        y, x = 4 + step[1] * t, 4 + step[0] * t
        clip[t, :, y : y + 12, x : x + 12] = smooth[1, :, :12, :12]
        masks[t, y : y + 12, x : x + 12] = True
    return clip, masks


def video(**changes: object) -> TokenCutVideo:
    return TokenCutVideo(TokenCutVideoConfig(image_px=32, **changes), {"features": Colours()})  # type: ignore[arg-type]


def overlap(found: Tensor, truth: np.ndarray) -> float:
    cut = found.numpy() > 0.5
    return float((cut & truth).sum() / (cut | truth).sum())


def test_the_flow_of_a_known_motion() -> None:
    clip, masks = moving()
    flow = optical_flow(clip)
    inside, outside = flow.movedim(1, -1)[masks], flow.movedim(1, -1)[~masks]
    assert flow.shape == (6, 2, 32, 32)
    assert inside.median(0).values.tolist() == pytest.approx([2, 1], abs=0.3)
    assert outside.median(0).values.tolist() == pytest.approx([0, 1], abs=0.3), "right, then down"
    assert not optical_flow(clip[:1]).any(), "a clip of one frame does not move"


def test_motion_is_compared_relative_to_the_camera() -> None:
    still = torch.zeros(2, 2, 8, 8)
    still[1] += 5  # the camera moves in the second frame
    assert torch.allclose(same_motion(still, (2, 2), 1.0), torch.ones(8, 8))
    still[0, 0, :4, :4] = 3
    alike = same_motion(still, (2, 2), 1.0)
    assert torch.allclose(alike[0, 1:], torch.full((7,), float(np.exp(-4.5)))) and torch.allclose(alike, alike.T)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equals_the_graph_written_out(alpha: float) -> None:
    torch.manual_seed(1)
    keys, flow = torch.randn(3, 5, 4, 4), torch.randn(3, 2, 16, 16)
    found = video(alpha=alpha, tau=0.2).cut_clip(keys, flow)
    rows = keys - keys.mean((0, 2, 3), keepdim=True)
    rows = nn.functional.normalize(rows.permute(0, 2, 3, 1).flatten(0, 2), dim=1).double()
    v = nn.functional.adaptive_avg_pool2d(flow, 4).double().flatten(2)
    v = (v - v.median(2, keepdim=True).values).transpose(1, 2).flatten(0, 1)
    motion = torch.exp(-((v[:, None] - v[None]) ** 2).sum(-1) / (2 * 0.7**2))
    graph = np.where((alpha * rows @ rows.T + (1 - alpha) * motion).numpy() > 0.2, 1.0, 1e-5)
    degree = np.diag(graph.sum(1))
    x = scipy.linalg.eigh(degree - graph, degree, subset_by_index=[1, 1])[1][:, 0]
    side = x > x.mean()
    side = side if side[np.abs(x).argmax()] else ~side
    assert np.array_equal(found.flatten().numpy(), side)


def test_motion_tells_what_looks_cannot() -> None:
    clip, masks = moving()
    both = overlap(video(alpha=0.25).segment_clip(clip), masks)
    looks = overlap(video(alpha=1.0).segment_clip(clip), masks)
    frozen = overlap(video(alpha=0.25).segment_clip(clip[:1].expand(6, -1, -1, -1)), masks)
    assert both > 0.6 and both > looks + 0.2 and both > frozen + 0.2


def test_long_clips_are_cut_in_parts_and_pictures_one_by_one() -> None:
    clip, masks = moving()
    parts = video(max_patches=3 * 64).segment_clip(clip)
    halves = [video().segment_clip(clip)[:0], *(video(max_patches=192).cut_clip(Colours().features(c), optical_flow(clip)[s])
              for c, s in ((clip[:3], slice(0, 3)), (clip[3:], slice(3, 6))))]  # fmt: skip
    assert torch.equal(parts, nn.functional.interpolate(torch.cat(halves[1:])[:, None].float(), (32, 32))[:, 0])
    assert video().segment(clip[:2]).shape == (2, 32, 32)
    with pytest.raises(ConfigError, match="Raise max_patches"):
        video(max_patches=60).segment_clip(clip)


def test_a_median_in_time_takes_away_what_flickers() -> None:
    masks = np.zeros((5, 4, 4), np.float32)
    masks[:, :2] = 1
    flicker = masks.copy()
    flicker[2] = 1 - flicker[2]
    assert np.array_equal(smooth_in_time(flicker, 3), masks)
    assert np.array_equal(smooth_in_time(flicker, 1), flicker)
    for wrong in (0, 2, -1):
        with pytest.raises(ConfigError, match="odd number"):
            smooth_in_time(masks, wrong)


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"alpha": 1.5}, {"flow_gap": 0}, {"motion_px": 0.0}):
        with pytest.raises(ValueError, match="alpha must be in"):
            TokenCutVideoConfig(**wrong)
    with pytest.raises(ConfigError, match="tau is 2"):
        TokenCutVideoConfig(tau=2)


def test_without_scikit_image_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.registration", None)
    with pytest.raises(ConfigError, match="pip install 'selftaught\\[video\\]', or --set alpha=1"):
        optical_flow(moving()[0])
    assert video(alpha=1.0).segment_clip(moving()[0]).shape == (6, 32, 32)
