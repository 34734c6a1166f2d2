"""Video files that would fill the memory, never end or open others are refused; the process that reads can do nothing else."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.clip_decoding import kind_of
from selftaught.data.clip_reader import Decoder, Limits, Place
from selftaught.data.readers import BadFile

pytest.importorskip("av")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(Limits(memory_bytes=2**29, max_frames=1000)) as one:
        yield one


def film(path: Path, codec: str = "mpeg4", count: int = 12, side: int = 32, **options: str) -> bytes:
    import av

    frames = np.random.RandomState(0).randint(0, 255, (count, side, side, 3), np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.height = stream.width = side
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = options
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return path.read_bytes()


def huge_gif() -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 9, 9, 0) + b"\2\1\0;"


def huge_avi(folder: Path) -> bytes:
    """An AVI whose headers claim 60,000 x 60,000 pixels of raw video."""
    data = bytearray(film(folder / "a.avi"))
    at = data.index(b"strf") + 8
    data[at + 4 : at + 12] = struct.pack("<II", 60_000, 60_000)
    data[at + 14 : at + 20] = struct.pack("<H", 24) + bytes(4)
    return bytes(data)


def lying_avi(folder: Path) -> bytes:
    """An AVI of small frames in which one JPEG claims 60,000 x 60,000."""
    data = bytearray(film(folder / "j.avi", "mjpeg"))
    at = data.rindex(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def long_mp4(folder: Path) -> bytes:
    """An MP4 that claims to last for years."""
    data = bytearray(film(folder / "l.mp4"))
    for box in (b"mdhd", b"mvhd"):
        at = data.index(box) + 4 + 4 + 8
        data[at : at + 8] = struct.pack(">II", 1, 2**31 - 1)
    return bytes(data)


def many_mp4(folder: Path) -> bytes:
    """An MP4 whose table of sizes claims two thousand million frames of one byte each."""
    data = bytearray(film(folder / "n.mp4"))
    at = data.index(b"stsz") + 8
    data[at : at + 8] = struct.pack(">II", 1, 2**31 - 1)
    at = data.index(b"stts") + 8
    data[at : at + 12] = struct.pack(">III", 1, 2**31 - 1, 1)
    return bytes(data)


def long_mkv(folder: Path) -> bytes:
    """An MKV that claims to last for thirty years."""
    data = bytearray(film(folder / "l.mkv"))
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a double of milliseconds
    data[at : at + 8] = struct.pack(">d", 1e12)
    return bytes(data)


PLAYLISTS = {
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/hostname"/></svg>',
}


@pytest.mark.parametrize("name", ["gif", "avi", "jpeg", "seconds", "years", "frames"])
def test_a_film_that_claims_too_much_is_refused(tmp_path: Path, decoder: Decoder, name: str) -> None:
    data, reason = {
        "gif": (lambda f: huge_gif(), "million pixels|broken"), "avi": (huge_avi, "million pixels|broken"),
        "jpeg": (lying_avi, "million pixels|broken|memory"), "seconds": (long_mp4, "cut it into parts|broken|truncated"),
        "years": (long_mkv, "cut it into parts"), "frames": (many_mp4, "cut it into parts|broken|memory|truncated"),
    }[name]  # fmt: skip
    path = tmp_path / "bomb"
    path.write_bytes(data(tmp_path))
    with pytest.raises(BadFile, match=reason):
        decoder.read(Place(str(path)))


def test_more_frames_than_are_read_at_once(tmp_path: Path) -> None:
    film(tmp_path / "f.avi", count=12)
    with Decoder(Limits(max_frames=8)) as few, pytest.raises(BadFile, match="cut it into parts"):
        few.read(Place(str(tmp_path / "f.avi")))


@pytest.mark.parametrize("name", PLAYLISTS)
def test_lists_of_other_files_are_not_opened(tmp_path: Path, decoder: Decoder, name: str) -> None:
    (tmp_path / "x.mp4").write_bytes(PLAYLISTS[name])
    assert kind_of(PLAYLISTS[name][:16]) is None
    with pytest.raises(BadFile, match="not a video of a known format"):
        decoder.read(Place(str(tmp_path / "x.mp4")))


def test_memory_and_time_are_limited_and_the_next_file_is_read(tmp_path: Path) -> None:
    Image.new("P", (4000, 4000)).save(tmp_path / "large.gif")
    film(tmp_path / "f.avi")
    with Decoder(Limits(memory_bytes=48 * 2**20)) as small:
        with pytest.raises(BadFile, match="memory|ended"):
            small.read(Place(str(tmp_path / "large.gif")))
        assert len(small.read(Place(str(tmp_path / "f.avi")))[0]) == 12
        small.limits = Limits(memory_bytes=48 * 2**20, stall_s=0.2)
        assert small._process is not None
        os.kill(small._process.pid, signal.SIGSTOP)  # as a file does that is never done
        with pytest.raises(BadFile, match="not read in time"):
            small.read(Place(str(tmp_path / "f.avi")))
        assert small._process is None, "it was ended"
        small.limits = Limits(memory_bytes=48 * 2**20)
        assert len(small.read(Place(str(tmp_path / "f.avi")))[0]) == 12


def test_the_reading_process_has_nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    film(tmp_path / "f.avi")
    with Decoder() as one:
        one.read(Place(str(tmp_path / "f.avi")))
        assert one._process is not None and isinstance(one.offline, bool)
        if not sys.platform.startswith("linux"):
            return
        folder = Path("/proc") / str(one._process.pid)
        assert b"SECRET_TOKEN" not in (folder / "environ").read_bytes()
        limits = {line[:26].strip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()}
        assert limits["Max file size"] == "0" and limits["Max core file size"] == "0"
        assert limits["Max address space"] != "unlimited" and limits["Max cpu time"] != "unlimited"
        os.kill(one._process.pid, signal.SIGKILL)
        one._process.wait()
        assert len(one.read(Place(str(tmp_path / "f.avi")))[0]) == 12, "another process was started"


@pytest.mark.parametrize("action", ["open('x', 'w')", "__import__('socket').socket()", "__import__('os').system('true')", "None"])
def test_the_reading_process_can_do_nothing_else(tmp_path: Path, action: str) -> None:
    code = (
        "import sys, socket, os\nfrom selftaught.core import foreign\nfrom selftaught.data import clip_decoding as d\n"
        "d._warm()\nd._limit({'memory_bytes': 2**29})\nsys.addaudithook(foreign.guard)\n" + action + "\nos._exit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == (7 if action == "None" else 1), done.stderr
    assert ("it tried to do more" in done.stderr) == (action != "None")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv", "gif"])
def test_damaged_films_are_refused_or_read(tmp_path: Path, decoder: Decoder, suffix: str) -> None:
    path = tmp_path / f"f.{suffix}"
    if suffix == "gif":
        images = [Image.effect_noise((16, 16), n) for n in range(1, 7)]
        images[0].save(path, save_all=True, append_images=images[1:])
    else:
        film(path, count=6, side=16)
    whole = path.read_bytes()
    random = np.random.RandomState(len(whole))
    read = 0
    for _ in range(25):
        data = bytearray(whole)
        for _ in range(random.randint(1, 6)):
            data[random.randint(len(data))] = random.randint(256)
        if random.randint(4) == 0:
            data = data[: random.randint(8, len(data))]
        path.write_bytes(data)
        try:
            frames, info = decoder.read(Place(str(path)))
        except BadFile:
            continue
        read += 1
        assert frames.dtype == np.uint8 and frames.ndim == 4 and len(frames) == info.frames
    path.write_bytes(whole)
    assert len(decoder.read(Place(str(path)))[0]) == 6 and read < 25
