"""Films to look at: MP4 that browsers play, or GIF where PyAV is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selftaught.core.atomic import replacing
from selftaught.core.errors import ConfigError


def write_film(path: Path, frames: np.ndarray, fps: int) -> Path:
    """Write frames (T, H, W, 3) uint8 to `path`, which ends in .mp4 or .gif; an odd side loses its last row or column in MP4.

    The file is there whole or not at all. Raises ConfigError for other arrays and names.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames) or min(frames.shape[1:3]) < 2:
        raise ConfigError(f"A film of {frames.dtype} {frames.shape}.", expected="uint8 (T, H, W, 3), H and W at least 2")
    if path.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"A film cannot be written to {path.name}.", expected="a name that ends in .mp4 or .gif")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temp:
        if path.suffix == ".gif":
            _write_gif(temp, frames, fps)
        else:
            _write_mp4(temp, frames, fps)
    return path


def _write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    import av

    height, width = (side // 2 * 2 for side in frames.shape[1:3])  # colours have half the pixels in 4:2:0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream: Any = file.add_stream("libx264", rate=max(1, fps))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        for frame in frames:
            packets = stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24"))
            file.mux(packets)
        file.mux(stream.encode(None))


def _write_gif(path: Path, frames: np.ndarray, fps: int) -> None:
    # Browsers take less than 20 ms for a tenth of a second.
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=max(20, round(1000 / max(1, fps))), loop=0)
