"""Clips: exact frames from every kind of file, broken ones named, and a cache that is whole or not there."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clip_files import number_of, numbered, write_video
from PIL import Image

from selftaught.core.errors import ConfigError, DataError
from selftaught.data import clip_cache, clips
from selftaught.data.cache import build_cache
from selftaught.data.clip_cache import build_clips
from selftaught.data.clip_check import check_clips
from selftaught.data.clip_frames import FrameSource
from selftaught.data.clip_reader import ClipInfo, Decoder, Limits, Place, Want
from selftaught.data.clip_truth import open_clip_test
from selftaught.data.clips import is_clips, open_clips
from selftaught.data.readers import BadFile

pytest.importorskip("av")
T = 40
SMALL = Want(24, 40)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as one:
        yield one


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty numbered frames in every kind of file."""
    folder, frames = tmp_path_factory.mktemp("films"), numbered(T)
    write_video(folder / "b.mp4", frames, g="12", bf="3", crf="20")
    write_video(folder / "open.mp4", frames, g="10", bf="2", **{"x264-params": "open-gop=1:scenecut=0"})
    write_video(folder / "v.webm", frames, "libvpx", g="9", deadline="realtime")
    write_video(folder / "m.avi", frames, "mpeg4", g="7")
    write_video(folder / "f.mkv", frames, "ffv1")
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(folder / "g.gif", save_all=True, append_images=images[1:], duration=40, loop=0)
    return folder


@pytest.mark.parametrize("name", ["b.mp4", "open.mp4", "v.webm", "m.avi", "f.mkv", "g.gif"])
def test_the_number_of_a_frame_is_exact(films: Path, decoder: Decoder, name: str) -> None:
    place = Place(str(films / name))
    frames, info = decoder.read(place)
    assert [number_of(frame) for frame in frames] == list(range(T))
    assert (info.frames, info.height, info.width, info.variable) == (T, 48, 80, False) and info.fps == pytest.approx(25, 0.02)
    wanted = [37, 0, 12, 11, 36, 39, 5, 5]
    picked, _ = decoder.read(place, numbers=wanted)
    assert [number_of(frame) for frame in picked] == wanted
    np.testing.assert_array_equal(picked, frames[wanted])
    with pytest.raises(BadFile):
        decoder.read(place, numbers=[T])


def test_frames_are_brought_to_a_size(films: Path, decoder: Decoder) -> None:
    small, info = decoder.read(Place(str(films / "f.mkv")), SMALL)
    assert small.shape == (T, 24, 40, 3) and (info.height, info.width) == (48, 80)
    assert [number_of(frame) for frame in small] == list(range(T))
    square, _ = decoder.read(Place(str(films / "f.mkv")), Want(48, 48, fit="crop"))
    whole, _ = decoder.read(Place(str(films / "f.mkv")))
    np.testing.assert_array_equal(square, whole[:, :, 16:64])
    np.testing.assert_array_equal(whole, numbered(T))


def test_varying_rates_are_seen_and_evened_out(tmp_path: Path, decoder: Decoder) -> None:
    times = [0, 100, 200, 700, 800, 1000, 1050, 1100]
    path = write_video(tmp_path / "v.mkv", numbered(8), "ffv1", times=times)
    frames, info = decoder.read(Place(str(path)))
    assert info.variable and len(frames) == 8
    even, _ = decoder.read(Place(str(path)), Want(fps=10))
    shown = [max(n for n, time in enumerate(times) if time <= tick) for tick in range(0, 1101, 100)]
    assert [number_of(frame) for frame in even][:12] == shown
    half, _ = decoder.read(Place(str(path)), Want(fps=2))
    assert [number_of(frame) for frame in half][:3] == [0, 2, 5]


def test_a_film_that_was_turned_is_set_upright(tmp_path: Path, decoder: Decoder) -> None:
    path = write_video(tmp_path / "t.mp4", numbered(3))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    one = 1 << 16
    data[at : at + 36] = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
    frames, info = decoder.read(Place(str(path)))
    assert frames.shape[1:3] == (80, 48) and (info.height, info.width) == (80, 48) and info.rotation == 270
    assert [number_of(np.rot90(frame)) for frame in frames] == [0, 1, 2], "a quarter turn with the clock"


def test_odd_sizes(tmp_path: Path, decoder: Decoder) -> None:
    odd = numbered(4, 37, 71)
    frames, _ = decoder.read(Place(str(write_video(tmp_path / "o.mkv", odd, "ffv1"))))
    np.testing.assert_array_equal(frames, odd)
    frames, _ = decoder.read(Place(str(write_video(tmp_path / "o.webm", odd, "libvpx", deadline="realtime"))))
    assert frames.shape == odd.shape and [number_of(f) for f in frames] == [0, 1, 2, 3]
    frames, _ = decoder.read(Place(str(write_video(tmp_path / "one.mkv", odd[:1], "ffv1"))), Want(8, 8, fps=20))
    assert frames.shape == (1, 8, 8, 3)


def broken_files(films: Path, folder: Path) -> dict[str, str]:
    """Write files that cannot be read; {name: a word of the reason}."""
    whole = (films / "b.mp4").read_bytes()
    at = whole.index(b"moov") - 4
    contents = {
        "empty.mp4": (b"", "empty"), "cut.mp4": (whole[: len(whole) // 2], "broken"), "text.mp4": (b"hello " * 99, "not a video"),
        "page.mp4": (b"<!DOCTYPE html><html></html>", "not a video"), "noise.mp4": (whole[:32] + bytes(range(256)) * 20, "broken"),
        "head.mp4": (whole[:at], "broken"), "jpeg.webm": (b"\xff\xd8\xff" + bytes(100), "not a video"), "gone.gif": (b"GIF89a", "broken"),
    }  # fmt: skip
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    return {name: word for name, (_, word) in contents.items()}


def test_broken_files_are_named_and_the_decoder_goes_on(films: Path, tmp_path: Path, decoder: Decoder) -> None:
    for name, word in broken_files(films, tmp_path).items():
        with pytest.raises(BadFile, match=word):
            decoder.read(Place(str(tmp_path / name)))
    for place in (Place(str(tmp_path)), Place(str(tmp_path / "none.mp4")), Place("/dev/zero"), Place("a\0b")):
        with pytest.raises(BadFile):
            decoder.read(place)
    assert len(decoder.read(Place(str(films / "b.mp4")))[0]) == T


def test_a_film_cut_short_behind_its_index_is_noticed(films: Path, tmp_path: Path, decoder: Decoder) -> None:
    import av

    path = tmp_path / "fast.mp4"
    with av.open(str(films / "b.mp4")) as old, av.open(str(path), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    whole = path.read_bytes()
    assert len(decoder.read(Place(str(path)))[0]) == T
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(BadFile, match="truncated|broken"):
        decoder.read(Place(str(path)))


def folder_of_frames(root: Path, names: list[str], size: tuple[int, int] = (80, 48)) -> None:
    root.mkdir(parents=True)
    for n, name in enumerate(names):
        Image.fromarray(numbered(n + 1)[n]).resize(size).save(root / name)


def test_folders_of_frames_are_clips_in_the_order_of_their_numbers(tmp_path: Path, decoder: Decoder) -> None:
    folder_of_frames(tmp_path / "d" / "a", [f"frame{n}.png" for n in range(12)])
    folder_of_frames(tmp_path / "d" / "deep" / "b", [f"{n:03d}.png" for n in range(3)])
    folder_of_frames(tmp_path / "d" / "single", ["x.png"])
    (tmp_path / "d" / "notes.txt").write_text("x")
    source = open_clips(tmp_path / "d")
    assert source.keys == ["a", "deep/b"] and any("one picture" in note for note in source.notes)
    frames, info = source.read(0, Want(), decoder)
    assert [number_of(frame) for frame in frames] == list(range(12)) and info.fps == 0
    assert source.read(1, SMALL, decoder)[0].shape == (3, 24, 40, 3)
    (tmp_path / "d" / "a" / "frame3.png").write_bytes(b"")
    with pytest.raises(BadFile, match="frame 3: empty file"):
        source.read(0, SMALL, decoder)
    with pytest.raises(DataError, match="no clips"):
        open_clips(tmp_path / "d" / "single")


def test_the_size_of_frames_is_known_without_decoding_the_clip(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(numbered(1)[0]).save(tmp_path / "0.png")
    Image.fromarray(numbered(1)[0]).save(tmp_path / "1.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "run/00.mp4", (films / "b.mp4").read_bytes())
    np.save(tmp_path / "c.npy", numbered(2))
    assert FrameSource(open_clips(tmp_path / "c.npy")).size(0) == (48, 80)
    monkeypatch.setattr(clips.FileClips, "read", None)
    for data in (films, tmp_path / "a.tar", films / "g.gif", tmp_path):
        source = FrameSource(open_clips(data))
        names = [i for i, key in enumerate(source.keys) if not key.startswith("c@")]  # arrays are read whole
        assert names and {source.size(i) for i in names} == {(48, 80)}
    assert FrameSource(open_clips(films, "train")).size(0) == (48, 80)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_tars_are_read_in_place(films: Path, tmp_path: Path, decoder: Decoder) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add(tar, "run/00.mp4", (films / "b.mp4").read_bytes())
        add(tar, "run/01.webm", (films / "v.webm").read_bytes())
        for n in range(3):
            stream = io.BytesIO()
            Image.fromarray(numbered(3)[n]).save(stream, "PNG")
            add(tar, f"ep/view0/{n}.png", stream.getvalue())
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        add(tar, "run/02.mp4", (films / "b.mp4").read_bytes())
        add(tar, "run/03.mp4", b"nothing")
    source = open_clips(tmp_path)
    assert source.keys == ["train/ep/view0", "train/run/00", "train/run/01", "test/run/02", "test/run/03"]
    for i, count in enumerate((3, T, T, T)):
        assert [number_of(frame) for frame in source.read(i, Want(), decoder)[0]] == list(range(count))
    with pytest.raises(BadFile, match="not a video"):
        source.read(4, Want(), decoder)
    assert open_clips(tmp_path, "test").keys == ["run/02", "run/03"] and is_clips(tmp_path / "train.tar")
    assert is_clips(tmp_path) and not is_clips(films / "g.gif")


def test_hidden_videos_and_rendered_objects_make_no_clips_of_pictures(films: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in (".trash/b.mp4", "__MACOSX/b.mp4", "._b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((films / "b.mp4").read_bytes())
    assert not is_clips(tmp_path)
    for kind, clip in (({"kind": "pictures of objects"}, False), ({"world": "arm"}, True)):
        (tmp_path / "world.json").write_text(json.dumps(kind))
        (tmp_path / "truth.npz").touch()
        assert is_clips(tmp_path) == clip


def test_arrays(tmp_path: Path, decoder: Decoder) -> None:
    frames = numbered(6)
    for data in (frames, frames.transpose(0, 3, 1, 2), (frames / np.float32(255)), [frames, frames[:2]]):
        np.testing.assert_array_equal(open_clips(data).read(0, Want(), decoder)[0], frames)
    assert len(open_clips(np.stack([frames, frames]))) == 2
    np.savez(tmp_path / "c.npz", clips=frames[None])
    np.save(tmp_path / "c.npy", frames)
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "one.npy", frames)
    np.save(tmp_path / "d" / "two.npy", np.array([{}], object), allow_pickle=True)
    for path in ("c.npz", "c.npy", "d"):
        np.testing.assert_array_equal(open_clips(tmp_path / path).read(0, Want(), decoder)[0], frames)
    with pytest.raises(BadFile, match="no Python objects"):
        open_clips(tmp_path / "d").read(1, Want(), decoder)
    with pytest.raises(BadFile):
        open_clips(np.zeros((4, 5, 6, 7), np.uint8))
    with pytest.raises(DataError):
        open_clips({"a": 1})


def test_frames_as_pictures_are_decoded_at_their_size_and_each_clip_once(films: Path, tmp_path: Path) -> None:
    """Whole frames of a longer video in HD have more bytes than are handed back."""
    with Decoder(Limits(max_bytes=T * 48 * 80 * 3 - 1)) as tight:
        source = FrameSource(open_clips(films / "b.mp4"))
        source._decoder = tight
        found = source.resized_many(range(4), 20)
    assert [number_of(frame) for frame, _ in found] == [5, 15, 25, 35] and {size for _, size in found} == {(48, 80)}
    asked: list[tuple[int, Want]] = []

    class Watched(clips.ArrayClips):
        def read(self, i: int, want: Want, decoder: Decoder) -> tuple[np.ndarray, ClipInfo]:
            asked.append((i, want))
            time.sleep(0.01)  # long enough for other threads to come in between
            return super().read(i, want, decoder)

    images = build_cache(FrameSource(Watched([numbered(8)] * 12)), 16, cache_dir=tmp_path)
    assert len(images) == 48 and sorted(asked, key=lambda one: one[0]) == [(i, Want(16, 16)) for i in range(12)]


def make_folder(films: Path, root: Path) -> Path:
    root.mkdir()
    for kind in ("run", "jump"):
        (root / kind).mkdir()
        for n, name in enumerate(("b.mp4", "f.mkv", "v.webm")):
            (root / kind / f"{n}{Path(name).suffix}").write_bytes((films / name).read_bytes())
    return root


def test_the_cache_holds_every_frame_and_cuts_windows_of_it(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(films, tmp_path / "d")
    (root / "run" / "bad.mp4").write_bytes(b"no")
    source = open_clips(root)
    assert source.label(0) == "jump" and source.keys[0] == "jump/0"
    calls: list[tuple[int, int]] = []
    found = build_clips(source, SMALL, cache_dir=tmp_path / "cache", report=lambda *a: calls.append(a))
    assert calls[-1] == (7, 7) and [key for key, _ in found.bad] == ["run/bad"]
    assert found.frames.shape == (6 * T, 3, 24, 40) and found.lengths.tolist() == [T] * 6
    windows = found.windows(5, every=2, step=3)
    assert set(windows[:, 1]) == set(range(6)) and len(windows) == 6 * 11
    batch = found.batch(windows[[0, 12, 65], 0], 5, every=2)
    assert batch.shape == (3, 5, 3, 24, 40)
    for cut, (first, clip) in zip(batch.numpy(), windows[[0, 12, 65]], strict=True):
        start = first - found.starts[clip]
        assert [number_of(f.transpose(1, 2, 0)) for f in cut] == [start + 2 * k for k in range(5)]
    with pytest.raises(DataError, match="has 50 frames"):
        found.windows(50)
    monkeypatch.setattr(clip_cache, "clips_in_order", None)  # a second time nothing is decoded
    again = build_clips(open_clips(root), SMALL, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(again.frames, found.frames)
    assert again.infos == found.infos and again.bad == found.bad
    index = json.loads((found.folder / "index.json").read_text())
    index["keys"][0] = "another"
    (found.folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(TypeError):  # noticed, and so decoded again
        build_clips(open_clips(root), SMALL, cache_dir=tmp_path / "cache")
    (root / "run" / "bad.mp4").write_bytes(b"other")
    assert open_clips(root).fingerprint() != source.fingerprint()


def test_an_interrupted_cache_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [numbered(n + 2) for n in range(6)]
    whole = build_clips(open_clips(arrays), SMALL, cache_dir=tmp_path / "a")
    monkeypatch.setattr(clip_cache, "_SYNC_CLIPS", 2)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_clips(open_clips(arrays), SMALL, cache_dir=tmp_path / "b", report=stop)
    seen: list[int] = []
    read = clips.ArrayClips.read
    monkeypatch.setattr(clips.ArrayClips, "read", lambda self, i, *rest: (seen.append(i), read(self, i, *rest))[1])
    found = build_clips(open_clips(arrays), SMALL, cache_dir=tmp_path / "b")
    assert sorted(seen) == [4, 5], "the first four are in the journal"
    np.testing.assert_array_equal(found.frames, whole.frames)
    assert found.infos == whole.infos and not list((tmp_path / "b").glob(".partial*"))


def test_the_folders_of_all_clips_are_looked_at_once() -> None:
    """For each clip anew it took minutes to look over some thousand clips."""

    class Counted(list[str]):
        walks = 0

        def __iter__(self) -> Iterator[str]:
            Counted.walks += 1
            return super().__iter__()

    source = open_clips([numbered(2)] * 4)
    source.keys = Counted(["a/0", "a/1", "b/0", "b/1"])
    assert [source.label(i) for i in range(4)] == ["a", "a", "b", "b"] and Counted.walks == 1


def test_too_many_broken_clips_stop(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.mp4").write_bytes(b"no")
    folder_of_frames(tmp_path / "good", ["0.png", "1.png"])
    with pytest.raises(DataError, match="clips cannot be read") as caught:
        build_clips(open_clips(tmp_path), SMALL, cache_dir=tmp_path / "cache")
    assert caught.value.exit_code == 3 and "not a video" in str(caught.value)


def test_check_says_what_is_there(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from selftaught import cli

    root = make_folder(films, tmp_path / "d")
    (root / "run" / "bad.mp4").write_bytes(b"no")
    np.save(root / "jump" / "still.npy", np.zeros((9, 20, 20, 3), np.uint8))
    cli.main(["data", "check", str(root), "--json", str(tmp_path / "r.json")])
    text = capsys.readouterr().out
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["total"], told["usable"], told["frames"]) == (8, 7, 6 * T + 9)
    assert told["codecs"]["h264"] == 2 and told["bad"][0][0] == "run/bad" and told["still"] == ["jump/still"]
    assert sorted(map(sorted, told["twice"])) == [["jump/0", "run/0"], ["jump/1", "run/1"], ["jump/2", "run/2"]]
    assert told["labels"] == {"jump": 4, "run": 4} and "run/bad: not a video" in text
    only = check_clips([numbered(3), numbered(4)])
    assert only.usable == 2 and not only.bad and "not known: 2" in "\n".join(only.lines())


def test_a_world_is_data(tmp_path: Path, decoder: Decoder, capsys: pytest.CaptureFixture[str]) -> None:
    from selftaught import cli

    cli.main(["data", "make", "w-sprites", str(tmp_path / "w"), "--clips", "5", "--size", "tiny", "--seed", "2"])
    assert "mp4" in capsys.readouterr().out and is_clips(tmp_path / "w")
    source = open_clips(tmp_path / "w")
    assert source.keys == [f"train/{n:06d}" for n in range(4)] + ["test/000004"]
    assert source.read(0, Want(), decoder)[0].shape == (8, 32, 32, 3)


def test_a_truth_of_another_kind_is_none(tmp_path: Path) -> None:
    folder_of_frames(tmp_path / "a", ["0.png", "1.png"])
    folder_of_frames(tmp_path / "b", ["0.png", "1.png"])
    np.savez(tmp_path / "truth.npz", boxes=np.zeros((2, 4)))
    test = open_clip_test(tmp_path, SMALL, every=1)
    assert len(test.windows) == 1 and test.truth is None


@pytest.mark.parametrize("wrong", [(0, 5, 0.0, "stretch"), (-1, -1, 0.0, "stretch"), (8, 8, -1.0, "stretch"), (8, 8, 0.0, "pad")])
def test_wishes_that_make_no_sense_are_refused(wrong: tuple[int, int, float, str]) -> None:
    with pytest.raises(ConfigError):
        Want(*wrong)  # type: ignore[arg-type]


def test_without_pyav_it_says_what_to_install(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "have_av", lambda: False)
    with pytest.raises(DataError, match="video files") as caught:
        open_clips(films)
    assert "selftaught[video]" in caught.value.do
