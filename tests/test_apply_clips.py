"""`segment` on clips: a mask per frame, objects, a film to look at; broken clips are named; nothing is left half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught import apply_clips, cli
from selftaught.core.errors import ConfigError, DataError
from selftaught.data.clip_reader import have_av, read_clip
from selftaught.report.film_files import write_film


class Bright:
    """Segments what is bright, picture by picture."""

    capabilities = ("segment",)

    def segment(self, images: Any) -> list[np.ndarray]:
        return [image[..., 0].astype(np.float32) / 255 for image in images]

    def provider(self, capability: str) -> Any:
        return self


class Whole(Bright):
    """Sees clips whole, and answers with the mean over their time."""

    def segment_clip(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, 0].mean(0, keepdim=True).expand(len(frames), -1, -1)


def clip(frames: int = 5, flicker: int = -1) -> np.ndarray:
    """A bright square on black that moves one pixel a frame; in the frame `flicker` all is black."""
    film = np.zeros((frames, 16, 20, 3), np.uint8)
    for t in range(frames):
        film[t, 4:10, 2 + t : 9 + t] = 255 * (t != flicker)
    return film


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, film in (("a", clip()), ("b/c", clip(7, flicker=3))):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "clips" / f"{name}.npy", film)
    return tmp_path / "clips"


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> Bright:
    learned = Bright()
    monkeypatch.setattr(apply_clips, "load_capable", lambda run, capability: learned)
    return learned


def mask(out: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(out / "masks" / name))


def test_masks_objects_and_a_film_per_clip(bright: Bright, folder: Path, tmp_path: Path) -> None:
    out = apply_clips.segment_clips("run", folder, tmp_path / "out", quiet=True)
    assert sorted(p.relative_to(out / "masks").as_posix() for p in (out / "masks").rglob("*.png")) == [
        *(f"a/{t:06d}.png" for t in range(5)), *(f"b/c/{t:06d}.png" for t in range(7))]  # fmt: skip
    assert np.array_equal(mask(out, "a/000002.png"), clip()[2, ..., 0])
    assert mask(out, "b/c/000003.png").any(), "the median fills the frame that flickers"
    coco = json.loads((out / "objects.coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]][:2] == ["a/000000", "a/000001"] and len(coco["images"]) == 12
    assert coco["annotations"][0]["bbox"] == [2, 4, 7, 6]
    films = sorted(p.relative_to(out / "clips").as_posix() for p in (out / "clips").rglob("*.*"))
    assert films == (["a.mp4", "b/c.mp4"] if have_av() else ["a.gif", "b/c.gif"])
    assert len(read_clip(out / "clips" / films[0])[0]) == 5


def test_no_median_when_one_frame_is_asked_for(bright: Bright, folder: Path, tmp_path: Path) -> None:
    out = apply_clips.segment_clips("run", folder, tmp_path / "out", smooth=1, quiet=True)
    assert not mask(out, "b/c/000003.png").any()


@pytest.mark.parametrize("smooth", [0, 2, -1])
def test_a_median_without_a_middle_is_refused_before_any_work(smooth: int, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="odd number"):  # there is no such run: nothing was opened yet
        apply_clips.segment_clips("no run", folder, tmp_path / "out", smooth=smooth, quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_method_that_sees_clips_is_asked_for_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = clip(7)
    whole = film[..., 0].astype(np.float32) / 255
    assert np.allclose(apply_clips.clip_masks(Whole(), film), whole.mean(0)), "without a median of its own"
    monkeypatch.setattr(apply_clips, "AT_ONCE_PX", 3 * 16 * 20)
    found = apply_clips.clip_masks(Whole(), film)
    parts = [whole[s].mean(0, keepdims=True).repeat(len(whole[s]), 0) for s in apply_clips.pieces(7, 16 * 20)]
    assert len(parts) == 3 and np.allclose(found, np.concatenate(parts))
    assert [s.stop - s.start for s in apply_clips.pieces(5, 10**9)] == [2, 3] and list(apply_clips.pieces(1, 10**9)) == [slice(0, 1)]


def test_broken_clips_are_named_and_all_broken_is_an_error(
    bright: Bright, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.npy").write_bytes(b"\x93NUMPY no array")
    out = apply_clips.segment_clips("run", folder, tmp_path / "out")
    assert not (out / "masks" / "a").exists() and (out / "masks" / "b" / "c").is_dir()
    assert "skipped 1 of 2" in (said := capsys.readouterr().err) and "  a: " in said
    (folder / "b" / "c.npy").write_bytes(b"")
    with pytest.raises(DataError) as error:
        apply_clips.segment_clips("run", folder, tmp_path / "out2", quiet=True)
    assert error.value.exit_code == 3


@pytest.mark.skipif(not have_av(), reason="PyAV is not installed")
def test_the_command_takes_a_folder_with_videos_as_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_film(tmp_path / "films" / "one.mp4", np.repeat(np.repeat(clip(), 4, 1), 4, 2), 5)
    monkeypatch.setattr(apply_clips, "load_capable", lambda run, capability: Bright())
    monkeypatch.setattr(cli, "check_run", lambda run: None)
    cli.main(["segment", "run", str(tmp_path / "films"), "--out", str(tmp_path / "out")])
    assert "wrote" in capsys.readouterr().out and (tmp_path / "out" / "clips" / "one.mp4").exists()
    assert read_clip(tmp_path / "out" / "clips" / "one.mp4")[1].fps == 5
    with pytest.raises(SystemExit):
        cli.main(["segment", "run", str(tmp_path / "films"), "--out", str(tmp_path / "o"), "--boxes", "all"])
    assert "--boxes, --engine and --workers are for pictures" in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--boxes", "all"), ("--engine", "ray"), ("--workers", "2")])
def test_smoothing_takes_data_as_clips_and_ignores_nothing(
    more: tuple[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "check_run", lambda run: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["segment", "run", str(folder), "--out", str(folder.parent / "o"), "--smooth", "3", *more])
    assert stop.value.code == 2 and "--smooth takes the data as clips" in capsys.readouterr().err


def test_films_of_odd_sizes_and_wrong_arrays(tmp_path: Path) -> None:
    film = np.random.default_rng(0).integers(0, 256, (3, 17, 21, 3), np.uint8)
    assert read_clip(write_film(tmp_path / "a.gif", film, 8))[0].shape == (3, 17, 21, 3)
    if have_av():
        assert read_clip(write_film(tmp_path / "a.mp4", film, 8))[0].shape == (3, 16, 20, 3)
    for wrong, name in ((film.astype(float), "b.gif"), (film[:0], "b.gif"), (film[..., :1], "b.gif"), (film, "b.avi")):
        with pytest.raises(ConfigError, match="film"):
            write_film(tmp_path / name, wrong, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["a.gif"], ["a.gif", "a.mp4"])


