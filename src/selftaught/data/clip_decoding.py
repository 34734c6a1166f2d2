"""From the bytes of one video file to pixels: what runs in the limited process of `clip_reader`.

The first bytes choose the one demuxer that ever sees a file, a list chooses the decoders, and sizes and lengths that
the file claims are held against the limits before anything is decoded. FFmpeg (through PyAV) is large and not ours: that
is why all of this happens in a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from selftaught.core import foreign
from selftaught.data.readers import MID_GREY, BadFile

CODECS = (
    "h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "msmpeg4v2", "msmpeg4",
    "mpeg1video", "mpeg2video", "mjpeg", "png", "ffv1", "theora", "rawvideo",
)  # fmt: skip
"""FFmpeg has several hundred decoders, many of them for formats that nobody has used in decades."""
CHUNK_BYTES = 1 << 22
_HEAD_BYTES = 16


def child() -> None:
    """Read orders from standard input, write frames to standard output; run by `clip_reader.Decoder` only."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    Image.preinit()
    offline = foreign.leave_network()
    _warm()
    first = json.loads(sys.stdin.buffer.readline())
    _limit(first)
    sys.addaudithook(foreign.guard)
    _say(answers, {"ready": True, "offline": offline})
    for line in sys.stdin.buffer:
        order = json.loads(line)
        _limit_time(order["cpu_s"])
        try:
            info = _answer(order, answers)
            _say(answers, {"end": info})
        except BadFile as error:
            _say(answers, {"bad": error.reason})
        except MemoryError:
            _say(answers, {"bad": f"it needs more than {first['memory_bytes'] // 2**20} MB of memory"})
        except Exception as error:  # whatever PyAV raises on a hostile file must stay one bad file
            _say(answers, {"bad": f"broken video ({_short(error)})"})


def _warm() -> None:
    """Load what reading needs now: later nothing else may be opened."""
    import encodings.idna  # noqa: F401

    try:
        import av
    except ImportError:  # GIFs are read without it
        return
    av.logging.set_level(av.logging.PANIC)
    av.VideoFrame(16, 16, "yuv420p").to_ndarray(format="rgb24")


def _limit(order: dict[str, Any]) -> None:
    import resource

    for name, limit in {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 32}.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    foreign.limit_memory(order["memory_bytes"])


def _limit_time(seconds: float) -> None:
    """Let this file take so much processor time; the parent's clock holds for those who take none."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime + seconds) + 1, hard))


def _say(answers: Any, message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    for part in (json.dumps(message).encode() + b"\n", payload):
        view = memoryview(part)
        while view:
            view = view[answers.write(view) :]


def _answer(order: dict[str, Any], answers: Any) -> dict[str, Any]:
    with _stream(order) as stream:
        kind = kind_of(stream.read(_HEAD_BYTES))
        stream.seek(0)
        if kind is None:
            raise BadFile("not a video of a known format (MP4, MOV, WebM, MKV, AVI, GIF)")
        out = _Out(order, answers)
        info = _gif(stream, order, out) if kind == "gif" else _video(stream, kind, order, out)
        out.flush()
    if not out.count:
        raise BadFile("it holds no frames")
    return {**info, "frames": out.count}


def kind_of(head: bytes) -> str | None:
    """Return the demuxer that a file of these first bytes meets, None for all others."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    return "gif" if head.startswith((b"GIF87a", b"GIF89a")) else None


class _Part(io.RawIOBase):
    """A part of a file, as if it were a file: members of a tar are read in place."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        self.file = open(path, "rb", buffering=0)
        self.offset, self.size, self.at = offset, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, at: int, whence: int = 0) -> int:
        self.at = max(0, at + (0, self.at, self.size)[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self.at)]
        self.file.seek(self.offset + self.at)
        got = self.file.readinto(view) or 0
        self.at += got
        return got

    def close(self) -> None:
        self.file.close()
        super().close()


def _stream(order: dict[str, Any]) -> BinaryIO:
    if order.get("bytes"):
        return io.BytesIO(sys.stdin.buffer.read(order["bytes"]))
    return io.BufferedReader(_Part(order["path"], order["offset"], order["size"]), 1 << 16)  # type: ignore[return-value]


class _Out:
    """Takes frames, picks them by time, fits them to the size asked for and sends them in chunks."""

    def __init__(self, order: dict[str, Any], answers: Any) -> None:
        self.answers = answers
        self.size = (order["height"], order["width"])
        self.fps, self.crop = order["fps"], order["fit"] == "crop"
        self.max_pixels, self.max_frames = order["max_pixels"], order["max_frames"]
        self.count, self.seen = 0, 0
        self.waiting: list[np.ndarray] = []
        self.held: tuple[float, np.ndarray] | None = None
        self.first_s = 0.0

    def take(self, frame: np.ndarray, at_s: float) -> None:
        """Take the next frame, which is shown from `at_s` on."""
        self.seen += 1
        if self.seen > self.max_frames:
            raise BadFile(f"more than {self.max_frames:,} frames; cut it into parts")
        if not self.fps:
            self.send(self.fitted(frame))
            return
        if self.held is None:
            self.first_s = at_s
        else:
            self.repeat(at_s)
        self.held = (at_s, self.fitted(frame))

    def repeat(self, until_s: float) -> None:
        """Send the held frame for every tick of the asked rate before `until_s`."""
        assert self.held is not None
        ticks = (until_s - self.first_s) * self.fps
        if ticks - self.count > self.max_frames:
            raise BadFile(f"its times span {until_s - self.first_s:.0f} s, more than {self.max_frames:,} frames; cut it into parts")
        while self.count < ticks - 1e-6:
            self.send(self.held[1])

    def finish(self, last_s: float) -> None:
        """The last frame is shown for `last_s`, and sent once at least."""
        if self.fps and self.held is not None:
            before = self.count
            self.repeat(self.held[0] + last_s)
            if self.count == before == 0:
                self.send(self.held[1])

    def fitted(self, frame: np.ndarray) -> np.ndarray:
        if frame.shape[0] * frame.shape[1] > self.max_pixels:
            raise BadFile(f"frames of {frame.shape[1]}x{frame.shape[0]}, more than {self.max_pixels / 1e6:g} million pixels")
        if not all(self.size):
            self.size = (frame.shape[0], frame.shape[1])
        return fit(frame, self.size[0], self.size[1], self.crop)

    def send(self, frame: np.ndarray) -> None:
        if self.count >= self.max_frames:
            raise BadFile(f"more than {self.max_frames:,} frames; cut it into parts")
        self.count += 1
        self.waiting.append(frame)
        if len(self.waiting) * frame.nbytes >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            block = np.stack(self.waiting)
            self.waiting.clear()
            _say(self.answers, {"frames": len(block), "height": block.shape[1], "width": block.shape[2]}, block.tobytes())


def fit(frame: np.ndarray, height: int, width: int, crop: bool) -> np.ndarray:
    """Stretch uint8 (H, W, 3) to (height, width, 3), or cut its middle of the same shape first; antialiased bilinear."""
    h, w = frame.shape[:2]
    if (h, w) == (height, width):
        return frame
    box = None
    if crop:
        across, down = (w, w * height / width) if w * height <= h * width else (h * width / height, h)
        box = ((w - across) / 2, (h - down) / 2, (w + across) / 2, (h + down) / 2)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR, box=box))


def _gif(stream: BinaryIO, order: dict[str, Any], out: _Out) -> dict[str, Any]:
    try:
        image = Image.open(stream, formats=("GIF",))
    except Image.DecompressionBombError as error:
        raise BadFile(f"more than {order['max_pixels'] / 1e6:g} million pixels") from error
    width, height = image.size
    _check_size(height, width, order)
    wanted, at_s, times = order["want"], 0.0, []
    got: dict[int, np.ndarray] = {}
    index = 0
    while True:
        try:
            image.seek(index)
        except EOFError:
            break
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (MID_GREY, MID_GREY, MID_GREY, 255))
        frame = np.asarray(Image.alpha_composite(ground, rgba).convert("RGB"))
        if wanted is None:
            out.take(frame, at_s)
        elif index in wanted:
            got[index] = out.fitted(frame)
        times.append(at_s)
        at_s += max(int(image.info.get("duration") or 100), 1) / 1000
        index += 1
    for number in wanted or ():
        if number not in got:
            raise BadFile(f"frame {number} of {index}")
        out.send(got[number])
    if wanted is None:
        out.finish(at_s - (times[-1] if times else 0.0))
    return _info(height, width, times, 0, "gif", index / at_s if at_s else 0.0)


def _video(stream: BinaryIO, kind: str, order: dict[str, Any], out: _Out) -> dict[str, Any]:
    try:
        import av
    except ImportError as error:
        raise BadFile("reading it needs PyAV: pip install 'selftaught[video]'") from error
    # Playlists and links inside a file would open others: no protocol may.
    with av.open(stream, "r", format=kind, options={"protocol_whitelist": "none"}) as file:
        if not file.streams.video:
            raise BadFile("no video in it")
        video = file.streams.video[0]
        if video.codec_context is None or video.codec_context.name not in CODECS:
            raise BadFile(f"video coded as {getattr(video.codec_context, 'name', 'something unknown')}, which is not read")
        _check_size(video.codec_context.height, video.codec_context.width, order)
        # WebM and MKV tell the length of the whole file only, in millionths of a second.
        seconds = max(float((video.duration or 0) * (video.time_base or 0)), (file.duration or 0) / 1e6)
        if video.frames > order["max_frames"] or seconds > order["max_s"]:
            raise BadFile(f"{video.frames:,} frames in {seconds:,.0f} s, more than is read at once; cut it into parts")
        video.codec_context.thread_count = 1
        if order["want"] is not None:
            return _chosen(file, video, order["want"], out)
        times: list[float | None] = []
        turn = 0
        size = (video.codec_context.height, video.codec_context.width)
        rate = float(video.average_rate or video.guessed_rate or 25)
        for frame in file.decode(video):
            turn = rotation_of(frame)
            _check_size(frame.height, frame.width, order)
            size = (frame.height, frame.width)
            time = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
            times.append(time)
            out.take(upright(frame.to_ndarray(format="rgb24"), turn), len(times) / rate if time is None else time)
        out.finish(1 / rate)
        if len(times) < video.frames - 1 and not _has_cut(video):
            raise BadFile(f"truncated: {len(times)} of {video.frames} frames")
        size = size[::-1] if turn % 180 else size
        return _info(*size, [t for t in times if t is not None], turn, video.codec_context.name, rate)


def _has_cut(video: Any) -> bool:
    """Whether the file tells players to leave out its beginning."""
    return bool(video.start_time)


def _check_size(height: int, width: int, order: dict[str, Any]) -> None:
    if height * width > order["max_pixels"]:
        raise BadFile(f"frames of {width}x{height}, more than {order['max_pixels'] / 1e6:g} million pixels")
    if height < 0 or width < 0 or max(height, width) > 32768:
        raise BadFile(f"frames of {width}x{height}")


def rotation_of(frame: Any) -> int:
    """Return by how many quarter turns, in degrees against the clock, a player turns the picture."""
    return round(getattr(frame, "rotation", 0) / 90) * 90 % 360


def upright(image: np.ndarray, degrees: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(image, degrees // 90)) if degrees else image


def _info(height: int, width: int, times: Sequence[float], turn: int, codec: str, rate: float) -> dict[str, Any]:
    gaps = np.diff(np.array(times)) if len(times) > 2 else np.zeros(0)
    span = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    mean = (len(times) - 1) / span if span > 0 else rate
    variable = bool(len(gaps) and gaps.max() - gaps.min() > max(0.004, 0.2 * float(np.median(gaps))))
    return {"height": height, "width": width, "fps": mean, "variable": variable, "rotation": turn, "codec": codec}


def _chosen(file: Any, video: Any, want: Sequence[int], out: _Out) -> dict[str, Any]:
    """Send the frames with these numbers, in order of showing; jumps to the nearest key frame before each."""
    pts, keys = [], []
    for packet in file.demux(video):
        if packet.size and not packet.is_discard:
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    beyond = [n for n in want if n >= len(pts)]
    if beyond:
        raise BadFile(f"frame {beyond[0]} of {len(pts)}")
    exact = None not in pts and len(set(pts)) == len(pts) and keys
    by_time = sorted(pts) if exact else list(range(len(pts)))
    got: dict[int, np.ndarray] = {}
    turn, info = 0, {}
    for number, frame in _numbered(file, video, by_time, sorted(set(want)), sorted(keys) if exact else None):
        turn = rotation_of(frame)
        got[number] = out.fitted(upright(frame.to_ndarray(format="rgb24"), turn))
        info = _info(frame.height, frame.width, [], turn, video.codec_context.name, float(video.average_rate or 0))
    for number in want:
        out.send(got[number])
    return info


def _numbered(file: Any, video: Any, by_time: list[int], want: list[int], keys: list[int] | None) -> Iterator[tuple[int, Any]]:
    """Yield (number, frame) for every number in `want`; without key frames and times everything is decoded."""
    if keys is None:
        file.seek(0)
        left = set(want)
        for number, frame in enumerate(file.decode(video)):
            if number in left:
                left.discard(number)
                yield number, frame
        if left:
            raise BadFile(f"frame {min(left)} is not there")
        return
    number_of = {time: number for number, time in enumerate(by_time)}
    at = 0
    while at < len(want):
        key = max((k for k in keys if k <= by_time[want[at]]), default=keys[0])
        file.seek(key, stream=video, backward=True)
        begun = at
        for frame in file.decode(video):
            here = -1 if frame.pts is None else number_of.get(frame.pts, -1)
            if here < 0 or here > want[at]:
                break
            if here == want[at]:
                yield here, frame
                at += 1
                if at == len(want) or max((k for k in keys if k <= by_time[want[at]]), default=0) > by_time[here]:
                    break  # the next one is behind another key frame: jump there
        if at == begun:
            # Decoded frames do not have the times that the file gives: only counting from the first is exact.
            yield from _numbered(file, video, by_time, want[at:], None)
            return


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0][:200]
