"""Small video files for tests, each frame with its number burnt in as ten black or white blocks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

BITS = 10
HEIGHT, WIDTH = 48, 80


def numbered(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frames uint8 (count, height, width, 3): a bar that moves, and the frame's number in blocks along the top."""
    frames = np.full((count, height, width, 3), 96, np.uint8)
    block = width // BITS
    for n in range(count):
        for bit in range(BITS):
            frames[n, : height // 3, bit * block : (bit + 1) * block] = 235 if n >> bit & 1 else 20
        at = (3 * n) % (width - 8)
        frames[n, height // 2 :, at : at + 8] = (200, 60, 40)
    return frames


def number_of(frame: np.ndarray) -> int:
    """Read the burnt-in number of one frame of any size."""
    height, width = frame.shape[:2]
    block = width / BITS
    row = frame[height // 8 : height // 4].astype(int).mean((0, 2))
    return sum(int(row[int((bit + 0.3) * block) : int((bit + 0.7) * block) + 1].mean() > 128) << bit for bit in range(BITS))


def write_video(
    path: Path, frames: np.ndarray, codec: str = "libx264", times: list[int] | None = None, fps: int = 25, **options: str
) -> Path:
    """Write frames with a codec; `times` are those of each frame in milliseconds."""
    import av

    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.options = options
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for n, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[n], Fraction(1, 1000)
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return path
