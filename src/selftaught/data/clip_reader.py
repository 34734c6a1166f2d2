"""Clips from video files, read by a process with limits: files of others meet FFmpeg there and nowhere else.

A `Decoder` starts one such process when it is first needed, hands it file after file, and starts another when one was
ended by a file. The process cannot write, has no network where the system allows that, a limit on memory, and a clock.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from selftaught.core.errors import ConfigError, DataError
from selftaught.core.foreign import KEPT_VARIABLES
from selftaught.data.readers import BadFile

MAX_CLIP_BYTES = 8 * 2**30
MAX_SENT_BYTES = 2**30
"""Size of a file that is no local one and goes through memory."""
START_S = 600.0
"""Time for starting the process: only a machine that is overloaded needs more than a second."""
_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What reading one file may take."""

    max_pixels: int = 36_000_000
    """Of one frame; 8K is 33 million."""
    max_frames: int = 200_000
    max_s: float = 86_400.0
    """Length that a file may claim."""
    max_bytes: int = 4 * 2**30
    """Pixels handed back."""
    memory_bytes: int = 3 * 2**29
    """Beyond what Python and FFmpeg take when nothing is read."""
    stall_s: float = 120.0
    """Time without a chunk of frames (4 MB)."""
    total_s: float = 3600.0


LIMITS = Limits()


@dataclass(frozen=True)
class Want:
    """How clips are read: `height` and `width` in pixels (0: the file's own), `fps` frames per second (0: every frame
    that is there), `fit` stretch, or crop for the middle of the same shape."""

    height: int = 0
    width: int = 0
    fps: float = 0.0
    fit: Literal["stretch", "crop"] = "stretch"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 0 or max(self.height, self.width) > 8192 or bool(self.height) != bool(self.width):
            raise ConfigError(f"Clips of {self.width}x{self.height} pixels.", expected="1 to 8192, or 0 and 0")
        if not 0 <= self.fps <= 1000 or self.fit not in ("stretch", "crop"):
            raise ConfigError(f"Clips at {self.fps} frames per second, fit '{self.fit}'.", expected="0 to 1000; stretch or crop")


WHOLE = Want()
"""Every frame at the file's own size."""


@dataclass(frozen=True)
class ClipInfo:
    """What a file said: frames handed back, size upright, mean frames per second, whether they vary, rotation, codec."""

    frames: int
    height: int
    width: int
    fps: float = 0.0
    variable: bool = False
    rotation: int = 0
    codec: str = ""


@dataclass(frozen=True)
class Place:
    """Where the bytes of a clip are: a whole file, a part of one, or `data` itself."""

    path: str = ""
    offset: int = 0
    size: int = -1
    data: bytes = b""


class Decoder:
    """Reads clips in a process with limits; not for several threads at once. Use as a context, or `close` it."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.offline: bool | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def read(self, place: Place, want: Want = WHOLE, numbers: Sequence[int] | None = None) -> tuple[np.ndarray, ClipInfo]:
        """Return uint8 (T, H, W, 3), upright, and what the file said; raises BadFile.

        `numbers` asks for single frames by their place in the order of showing, from 0.
        """
        if numbers is not None and (len(numbers) == 0 or min(numbers) < 0 or want.fps):
            raise ConfigError("Single frames are asked for by numbers from 0, without fps.")
        order = self._order(place, want, numbers)
        deadline = time.monotonic() + self.limits.total_s
        try:
            self._start()
            self._send(json.dumps(order).encode() + b"\n" + place.data)
            return self._receive(want, deadline)
        except BadFile as error:
            if self._process is not None and self._process.poll() is not None:
                self.close()
            raise error
        except BaseException:
            self.close()  # half an answer may be in the pipe
            raise

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        self._buffer.clear()
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        continue  # what was not sent is lost with it
            process.wait()

    def _order(self, place: Place, want: Want, numbers: Sequence[int] | None) -> dict[str, Any]:
        size = len(place.data) if place.data else checked_size(place)
        if place.data and size > MAX_SENT_BYTES:
            raise BadFile(f"{size / 2**20:.0f} MB, the limit for what is no local file is {MAX_SENT_BYTES // 2**20} MB")
        return {
            "path": os.path.abspath(place.path) if place.path else "", "offset": place.offset, "size": size,
            "bytes": len(place.data), "height": want.height, "width": want.width, "fps": want.fps, "fit": want.fit,
            "want": None if numbers is None else [int(n) for n in numbers], "max_pixels": self.limits.max_pixels,
            "max_frames": self.limits.max_frames, "max_s": self.limits.max_s, "cpu_s": self.limits.total_s,
        }  # fmt: skip

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path), "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from selftaught.data.clip_decoding import child; child()"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, close_fds=True, start_new_session=True,
        )  # fmt: skip
        self._send(json.dumps({"memory_bytes": self.limits.memory_bytes}).encode() + b"\n")
        message = self._line(time.monotonic() + START_S, START_S)
        if not message.get("ready"):
            raise DataError("The process that reads clips does not start.", do="`selftaught doctor`")
        self.offline = bool(message.get("offline"))

    def _send(self, data: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _receive(self, want: Want, deadline: float) -> tuple[np.ndarray, ClipInfo]:
        blocks: list[np.ndarray] = []
        total = 0
        while True:
            message = self._line(deadline)
            if "bad" in message:
                raise BadFile(str(message["bad"])[:300])
            if "end" in message:
                break
            count, height, width = (int(message[name]) for name in ("frames", "height", "width"))
            size = count * height * width * 3
            total += size
            if min(count, height, width) < 1 or total > self.limits.max_bytes:
                self.close()
                raise BadFile(f"more than {self.limits.max_bytes // 2**20} MB of pixels at this size; cut it into parts")
            blocks.append(np.frombuffer(self._take(size, deadline), np.uint8).reshape(count, height, width, 3))
        told = message["end"]
        shapes = {block.shape[1:3] for block in blocks}
        if len(shapes) != 1 or (want.height and shapes != {(want.height, want.width)}):
            raise BadFile("frames of several sizes")
        frames = np.concatenate(blocks)
        info = ClipInfo(
            len(frames), int(told["height"]), int(told["width"]), float(told["fps"]), bool(told["variable"]),
            int(told["rotation"]), str(told["codec"])[:40],
        )  # fmt: skip
        return frames, info

    def _line(self, deadline: float, stall_s: float | None = None) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LINE_BYTES:
                raise self._died()
            self._more(deadline, stall_s)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            return dict(json.loads(line))
        except (ValueError, RecursionError, TypeError):
            raise self._died() from None

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._more(deadline)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _more(self, deadline: float, stall_s: float | None = None) -> None:
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        left = min(stall_s or self.limits.stall_s, deadline - time.monotonic())
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            self.close()
            raise BadFile(f"it was not read in time ({self.limits.stall_s:g} s for the next frames, {self.limits.total_s:g} s in all)")
        data = os.read(pipe, 1 << 20)
        if not data:
            raise self._died()
        self._buffer += data

    def _died(self) -> BadFile:
        """Return the error for a file at which the process ended."""
        code: int | None = None
        if self._process is not None:
            try:
                code = self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                code = None
        self.close()
        how = "" if code is None else f" with signal {-code}" if code < 0 else f" with exit code {code}"
        return BadFile(f"the process that read it ended{how}: it is broken, or made to do harm")


def checked_size(place: Place) -> int:
    """Return how many bytes of a local file are the clip's; raises BadFile for what is no file, empty or too large."""
    path = Path(place.path)
    try:
        if not path.is_file():
            raise BadFile("not a regular file" if path.exists() else "the file does not exist")
        whole = path.stat().st_size
    except (OSError, ValueError) as error:
        raise BadFile(f"cannot be opened ({getattr(error, 'strerror', '') or error})") from error
    if not os.access(path, os.R_OK):
        raise BadFile("no permission to read it")
    size = whole - place.offset if place.size < 0 else place.size
    if size <= 0:
        raise BadFile("empty file")
    if place.offset + size > whole:
        raise BadFile("truncated: the file is shorter than when it was opened")
    if size > MAX_CLIP_BYTES:
        raise BadFile(f"file of {size / 2**30:.0f} GB, the limit is {MAX_CLIP_BYTES // 2**30} GB")
    return size


def read_clip(path: str | os.PathLike[str], want: Want = WHOLE, *, limits: Limits = LIMITS) -> tuple[np.ndarray, ClipInfo]:
    """Read one video file to uint8 (T, H, W, 3); raises BadFile. For many files keep one `Decoder`."""
    with Decoder(limits) as decoder:
        return decoder.read(Place(os.fspath(path)), want)


def read_frames(path: str | os.PathLike[str], numbers: Sequence[int], want: Want = WHOLE) -> np.ndarray:
    """Read the frames with these numbers (from 0, in order of showing) to uint8 (N, H, W, 3); raises BadFile."""
    with Decoder() as decoder:
        return decoder.read(Place(os.fspath(path)), want, numbers)[0]


def have_av() -> bool:
    """Whether PyAV is installed: without it only GIFs, folders of frames and arrays are read."""
    return importlib.util.find_spec("av") is not None
