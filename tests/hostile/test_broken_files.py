"""A thousand pictures of which some are odd and some broken: exact counts, an exact list, and the same run after a stop."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught import cli
from selftaught.core import checkpoint
from selftaught.data.base import split_indices
from selftaught.data.cache import build_cache
from selftaught.data.check import check
from selftaught.data.sources import FolderSource, open_data
from selftaught.train import Loop, Stopped, base_config, resume, train

COUNT, ODD_EVERY, PX = 1000, 20, 16
NOBODY = 65534
STEPS, BATCH = 14, 64
"""One epoch of the training part, about 800 pictures, and a little of the next."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (PX, PX, 3)).astype(np.uint8))


def huge() -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + bytes(4) + b"IDAT"


def rotated(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture.crop((0, 0, PX, PX // 2)), "JPEG", exif=exif)


def sixteen_bit(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 2**16, (PX, PX)).astype(np.uint16))


KINDS: dict[str, tuple[str, str, Callable[[int], bytes | None]]] = {
    # name: (suffix, reason when it cannot be read, content)
    "empty": (".png", "empty file", lambda i: b""),
    "truncated": (".png", "truncated PNG file", lambda i: encoded(noise(i), "PNG")[:400]),
    "wrong extension": (".png", "", lambda i: encoded(noise(i), "JPEG")),
    "cmyk": (".jpg", "", lambda i: encoded(noise(i).convert("CMYK"), "JPEG")),
    "sixteen bits": (".png", "", lambda i: encoded(sixteen_bit(i), "PNG")),
    "palette": (".png", "", lambda i: encoded(noise(i).quantize(8), "PNG", transparency=0)),
    "animated": (".gif", "", lambda i: encoded(noise(i), "GIF", save_all=True, append_images=[noise(i + 1), noise(i + 2)])),
    "rotated": (".jpg", "", lambda i: rotated(noise(i))),
    "huge": (".png", "more than 64 million pixels", lambda i: huge()),
    "page": (".jpg", "an HTML page, not a picture", lambda i: b"<!DOCTYPE html><html><body>404</body></html>"),
    "locked": (".png", "no permission to read it", lambda i: encoded(noise(i), "PNG")),
    "dangling": (".png", "dangling link", lambda i: None),
}  # fmt: skip


def fill(folder: Path, count: int, odd: Callable[[int], str | None]) -> tuple[dict[str, str], dict[str, int]]:
    """Write pictures; returns {key: reason} of those that cannot be read, and how many there are of each kind."""
    bad, kinds = {}, dict.fromkeys(KINDS, 0)
    for i in range(count):
        kind = odd(i)
        suffix, reason, content = KINDS[kind] if kind else (".png", "", lambda i: encoded(noise(i), "PNG"))
        path, data = folder / f"{i:04d}{suffix}", content(i)
        if data is None:
            path.symlink_to(folder / "nowhere.png")
        else:
            path.write_bytes(data)
        if kind:
            kinds[kind] += 1
        if kind == "locked":
            path.chmod(0)
        if reason:
            bad[path.stem] = reason
    return bad, kinds


@contextmanager
def without_root() -> Iterator[None]:
    """Read as somebody to whom permissions apply."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if me == 0:
            os.seteuid(me)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that others can reach too, which those of pytest are not, with a cache of its own."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for part in ("cache", "pictures", "runs"):
            (root / part).mkdir()
            (root / part).chmod(0o777)
        monkeypatch.setenv("SELFTAUGHT_CACHE", str(root / "cache"))
        yield root


def bits(run: Path) -> dict[str, bytes]:
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None and folder.name == f"step-{STEPS:06d}"
    tensors, state = checkpoint.load(folder)
    found = {f"{part}.{k}": v.numpy().tobytes() for part, group in tensors.items() for k, v in group.items()}
    return {**found, "state": json.dumps(state).encode(), "metrics": (run / "metrics.jsonl").read_bytes()}


def test_a_thousand_files_of_which_fifty_are_odd(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(KINDS)
    folder = place / "pictures"
    bad, kinds = fill(folder, COUNT, lambda i: names[i // ODD_EVERY % len(names)] if i % ODD_EVERY == 7 else None)
    assert sum(kinds.values()) == COUNT // 20 and min(kinds.values()) >= 4
    with without_root():
        report = check(folder)
        source = FolderSource(folder)
        train_part = [source.keys[i] for i in split_indices(source.keys, "train")]
        images = build_cache(open_data(folder, "train"), base_config("simclr", "tiny", folder).image_px)
    assert report.total == COUNT and report.usable == COUNT - len(bad) and dict(report.bad) == bad and len(report.bad) == len(bad)
    assert len(report.wrong_suffix) == kinds["wrong extension"]
    assert dict(images.bad) == {key: why for key, why in bad.items() if key in train_part} and images.bad
    assert images.keys == [key for key in train_part if key not in bad] and STEPS * BATCH > len(images)

    settings = dict(size="tiny", steps=STEPS, set=[f"batch_size={BATCH}"], quiet=True)
    train("simclr", folder, place / "runs" / "straight", **settings)  # type: ignore[arg-type]
    log = Loop.log

    def log_and_stop(self: Loop, logged: dict[str, float]) -> None:
        log(self, logged)
        if self.step == STEPS // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "log", log_and_stop)
        with pytest.raises(Stopped):
            train("simclr", folder, place / "runs" / "stopped", **settings)  # type: ignore[arg-type]
    resume(place / "runs" / "stopped", quiet=True)
    assert bits(place / "runs" / "straight") == bits(place / "runs" / "stopped")
    said = (place / "runs" / "stopped" / "log.txt").read_text()
    assert f"{len(images.bad)} broken pictures left out, e.g. {images.bad[0][0]}: {images.bad[0][1]}" in said


@pytest.mark.parametrize("verb", [["train", "simclr"], ["learn"]])
def test_with_thirty_percent_broken_nothing_is_trained(
    verb: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [name for name, (_, reason, _) in KINDS.items() if reason and name != "locked"]
    bad, _ = fill(place / "pictures", 200, lambda i: broken[i // 10 % len(broken)] if i % 10 < 3 else None)
    assert len(bad) == 60
    monkeypatch.setattr(Loop, "one_step", lambda self: pytest.fail("it trained"))
    run = place / "runs" / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb, str(place / "pictures"), "--out", str(run), "--size", "tiny"])
    said = capsys.readouterr().err
    assert stop.value.code == 3
    assert "pictures cannot be read" in said and "at most 20% broken" in said and "repair or remove them" in said
    listed = [line.strip() for line in said.splitlines() if line.startswith("  ") and ": " in line]
    assert len(listed) == 10 and all(bad[line.split(": ")[0]] == line.split(": ", 1)[1] for line in listed)
    assert not list(run.rglob("config.json")) and not list(run.rglob("checkpoints"))


def test_with_ten_percent_broken_it_is_trained(place: Path) -> None:
    broken = [name for name, (_, reason, _) in KINDS.items() if reason and name != "locked"]
    bad, _ = fill(place / "pictures", 100, lambda i: broken[i // 10 % len(broken)] if i % 10 == 0 else None)
    assert len(bad) == 10
    train("simclr", place / "pictures", place / "runs" / "run", size="tiny", steps=1, set=["batch_size=8"], quiet=True)
    assert checkpoint.latest(place / "runs" / "run" / "checkpoints") is not None
