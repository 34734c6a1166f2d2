"""One fuzzer per reader, and the process that runs their cases: `python hostile_readers.py READER FIRST COUNT`.

A case may end well or with a SelftaughtError. Anything else is a failure: another exception, a crash, more than five
seconds of work, or an answer that breaks what the reader promises. The last line of output is a JSON object.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_mutations import damage, damage_text, mend_png, mend_tar
from PIL import Image

from selftaught.core.errors import SelftaughtError
from selftaught.data import readers
from selftaught.data.readers import BadFile
from selftaught.data.sources import NpzSource, TarSource, open_data

CASE_S = 5.0
"""A case that computes longer is a hang."""
WAIT_S = 120.0
"""A case that takes longer waits for something; a busy machine is no reason for so much."""
MEMORY_BYTES = 3 * 2**30
"""What the process may map beyond its start; a protection of the machine, not the bar of the test."""
MAX_FAILURES = 5

Case = Callable[[random.Random], None]


def picture(px: int = 24) -> Image.Image:
    y, x = np.mgrid[0:px, 0:px]
    return Image.fromarray(np.stack([x * 9, y * 9, (x * y) % 256], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture_seeds(kind: str) -> list[bytes]:
    """Small files that use what a format offers."""
    rgb, exif = picture(), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a text"
    frames = [rgb.rotate(90 * turn) for turn in range(3)]
    rgba = rgb.convert("RGBA")
    rgba.putalpha(100)
    wide = Image.fromarray((np.arange(576, dtype=np.uint16) * 100).reshape(24, 24))
    many: dict[str, list[bytes]] = {
        "JPEG": [encoded(rgb, "JPEG"), encoded(rgb, "JPEG", progressive=True, exif=exif, icc_profile=b"x" * 200),
                 encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb.convert("L"), "JPEG", restart_marker_blocks=1)],
        "PNG": [encoded(rgb, "PNG", exif=exif, icc_profile=b"y" * 100), encoded(rgba, "PNG"), encoded(wide, "PNG"),
                encoded(rgb.quantize(16), "PNG", transparency=3, bits=4),
                encoded(rgb, "PNG", save_all=True, append_images=frames), encoded(rgb.convert("1"), "PNG")],
        "WEBP": [encoded(rgb, "WEBP"), encoded(rgba, "WEBP", lossless=True, exif=exif),
                 encoded(rgb, "WEBP", save_all=True, append_images=frames)],
        "TIFF": [encoded(rgb, "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]
        + [encoded(wide, "TIFF"), encoded(rgb.convert("F"), "TIFF"), encoded(rgba, "TIFF", exif=exif),
           encoded(rgb.convert("1"), "TIFF", compression="group4"), encoded(rgb, "TIFF", big_tiff=True)],
        "GIF": [encoded(rgb, "GIF", interlace=1), encoded(rgb, "GIF", save_all=True, append_images=frames, transparency=0)],
        "BMP": [encoded(rgb, "BMP"), encoded(rgba, "BMP"), encoded(rgb.quantize(16), "BMP"), encoded(rgb.convert("1"), "BMP")],
        "PPM": [encoded(rgb, "PPM"), b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12", b"P1 4 2 01010101", b"P5 3 1 65535 abcdef"],
    }  # fmt: skip
    return many[kind]


def fuzz_picture(kind: str) -> Callable[[Path], Case]:
    def start(folder: Path) -> Case:
        seeds = picture_seeds(kind)

        def case(draw: random.Random) -> None:
            data = damage(draw.choice(seeds), draw)
            if kind == "PNG" and draw.random() < 0.7:
                data = mend_png(data)
            given: Any = data
            if draw.random() < 0.2:
                given = folder / "a.img"
                given.write_bytes(data)
            way = draw.randrange(4)
            if way == 0:
                out = readers.decode(given)
                assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3
            elif way == 1:
                out, size = readers.decode_resized(given, 16)
                assert out.shape == (16, 16, 3) and out.dtype == np.uint8 and size[0] * size[1] <= readers.MAX_PIXELS
            elif way == 2:
                assert readers.read_header(given).width > 0
            else:
                mask = readers.decode_mask(given)
                assert mask.dtype == np.uint8 and mask.ndim == 2

        return case

    return start


def look_at(source: Any) -> None:
    """Read a source as learning and scoring would; broken pictures are counted there, so they are fine here."""
    source.fingerprint()
    assert len(set(source.keys)) == len(source.keys)
    good = 0
    for i in range(min(len(source), 6)):
        for read in (lambda i: source.resized(i, 8)[0].shape == (8, 8, 3), source.truth, source.image):
            try:
                assert read(i) is not False
                good += 1
            except BadFile as error:
                assert error.reason
    if not good:
        raise BadFile("nothing in it can be read")


def fuzz_tar(folder: Path) -> Case:
    seeds = []
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=style) as tar:
            long = "folder/" + "n" * 150 + ".png" if style != tarfile.USTAR_FORMAT else "folder/b.png"
            files = {"a/1.jpg": encoded(picture(), "JPEG"), "a/1.json": b'{"label": "cat", "source": "x"}', long: encoded(picture(), "PNG"),
                     "a/1.png": encoded(picture().convert("L"), "PNG"), "b/2.cls": b"7", "b/2.gif": encoded(picture(), "GIF")}  # fmt: skip
            for name, data in files.items():
                member = tarfile.TarInfo(name if len(name) < 90 else name + "\u00e9")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("b/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "2.gif"
            tar.addfile(link)
        seeds.append(stream.getvalue())

    def case(draw: random.Random) -> None:
        data = bytearray(draw.choice(seeds))
        if draw.random() < 0.6:  # inside one header
            heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
            at = draw.choice(heads)
            field = draw.choice(((0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (0, 512)))
            part = slice(at + field[0], at + sum(field))
            new = damage(bytes(data[part]), draw)
            data[part] = (new + bytes(field[1]))[: field[1]]
        else:
            data = bytearray(damage(bytes(data), draw))
        path = folder / "a.tar"
        path.write_bytes(mend_tar(bytes(data)) if draw.random() < 0.7 else bytes(data))
        look_at(TarSource(path))

    return case


def fuzz_npz(folder: Path) -> Case:
    rng = np.random.default_rng(0)
    files = [encoded(picture(), kind) for kind in ("JPEG", "PNG")]
    contents: list[dict[str, Any]] = [
        {"images": rng.integers(0, 255, (3, 6, 5, 3)).astype(np.uint8), "labels": np.array([0, 1, 0]), "classes": np.array(["a", "b"]),
         "masks": np.ones((3, 6, 5), np.uint8)},
        {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offset": np.cumsum([0, *map(len, files)]), "y": np.arange(2)},
        {"x": np.asfortranarray(rng.random((2, 4, 4))), "label": np.array(["u", "v"])},
    ]  # fmt: skip
    inner = []
    for arrays in contents:
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        with zipfile.ZipFile(stream) as archive:
            inner.append({name: archive.read(name) for name in archive.namelist()})

    def case(draw: random.Random) -> None:
        members = dict(draw.choice(inner))
        path = folder / "a.npz"
        way = draw.randrange(3)
        if way == 0:
            path = folder / "a.npy"
            name = draw.choice(list(members))
            path.write_bytes(damage_text(members[name], draw))
        else:
            if way == 1:  # a whole zip around a broken array
                name = draw.choice(list(members))
                head, body = members[name][:10], members[name][10:]
                members[name] = head + damage_text(body, draw) if draw.random() < 0.7 else damage(head + body, draw)
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
            path.write_bytes(stream.getvalue() if way == 1 else damage(stream.getvalue(), draw))
        look_at(NpzSource(path))

    return case


def fuzz_list(folder: Path) -> Case:
    for name in ("a.png", "b c.jpg", "\u00e9.gif"):
        picture().save(folder / name)
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.png")
    text = "\n".join(["# pictures", "a.png", str(folder / "b c.jpg"), "\u00e9.gif", "sub", "pipe.png", "gone.png", "", "./a.png"]).encode()

    def case(draw: random.Random) -> None:
        path = folder / "list.txt"
        path.write_bytes(damage_text(damage_text(text, draw), draw))
        look_at(open_data(path))

    return case


def fuzz_film(kind: str) -> Callable[[Path], Case]:
    """Films of one container, read by the limited process; what ends that process is refused, and another one started."""

    def start(folder: Path) -> Case:
        from selftaught.data.clip_reader import Decoder, Limits, Place, Want

        seeds = film_seeds(folder, kind)
        decoder = Decoder(Limits(memory_bytes=2**28, stall_s=CASE_S, total_s=2 * CASE_S))
        for seed in seeds:
            assert len(decoder.read(Place(data=seed))[0]) == 6

        def case(draw: random.Random) -> None:
            want = Want(8, 8, draw.choice((0.0, 10.0)))
            numbers = [draw.randrange(7) for _ in range(3)] if not want.fps and draw.random() < 0.3 else None
            frames, info = decoder.read(Place(data=damage(draw.choice(seeds), draw)), want, numbers)
            if frames.dtype != np.uint8 or frames.shape != (info.frames, 8, 8, 3):
                raise AssertionError(f"frames of shape {frames.shape}, {frames.dtype}")

        return case

    return start


def film_seeds(folder: Path, kind: str) -> list[bytes]:
    """Small films of six frames in the containers and codings that people have."""
    import av

    frames = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3)).astype(np.uint8)
    found = []
    for codec in {"mp4": ("libx264", "mpeg4"), "mkv": ("libvpx", "ffv1", "libx264"), "avi": ("mpeg4", "mjpeg")}[kind]:
        path = folder / f"seed.{kind}"
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream(codec, rate=25)
            stream.height = stream.width = 16
            stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            for frame in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                    file.mux(packet)
            for packet in stream.encode(None):
                file.mux(packet)
        found.append(path.read_bytes())
    return found


def misbehave(way: str) -> Callable[[Path], Case]:
    """A reader that is wrong in one way from its thirtieth case on, to show that the test would see it."""

    def start(folder: Path) -> Case:
        kept: list[bytes] = []
        calls = 0

        def case(draw: random.Random) -> None:
            nonlocal calls
            calls += 1
            if calls < 30:
                return
            if way == "aborts":
                os.abort()
            while way == "spins":
                calls += 1
            if way == "hoards":
                kept.append(bytes([1]) * 2**24)
            if way == "raises":
                raise ValueError("not an error of ours")

        return case

    return start


STARTS: dict[str, Callable[[Path], Case]] = {
    **{kind: fuzz_picture(kind.upper()) for kind in ("jpeg", "png", "webp", "tiff", "gif", "bmp", "ppm")},
    "npz": fuzz_npz, "tar": fuzz_tar, "list": fuzz_list, **{kind: fuzz_film(kind) for kind in ("mp4", "mkv", "avi")},
    **{way: misbehave(way) for way in ("aborts", "spins", "hoards", "raises")},
}  # fmt: skip
NAMES = ("jpeg", "png", "webp", "tiff", "gif", "bmp", "ppm", "npz", "tar", "list", "mp4", "mkv", "avi", "checkpoint",
         "config.json", "learn.json", "plan.json", "metrics.jsonl", "lock.json", "index.json", "journal.jsonl")  # fmt: skip


def reader(name: str) -> Callable[[Path], Case]:
    """The fuzzer of a name; those of run folders import torch, so they are looked up only when asked for."""
    if name in STARTS:
        return STARTS[name]
    from hostile_run_readers import READERS

    return READERS[name]


def resident_bytes() -> int:
    """Memory that this process holds now. Its peak would not do where it can be avoided: a child inherits that of its parent."""
    if Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(name: str, first: int, count: int, folder: Path, case_s: float = CASE_S) -> dict[str, Any]:
    """Run cases `first` to `first + count` and return what happened."""
    case = reader(name)(folder)
    faulthandler.register(signal.SIGPROF, chain=True)  # says where, then the signal ends the process
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
    ended = {"well": 0, "refused": 0}
    failures: list[str] = []
    slowest, before, most = 0.0, 0, 0
    for number in range(first, first + count):
        os.pwrite(sys.stdin.fileno(), b"%-12d" % number, 0)  # the test gives a file as standard input
        faulthandler.dump_traceback_later(WAIT_S, exit=True)
        signal.setitimer(signal.ITIMER_PROF, case_s)
        begin = time.process_time()
        try:
            case(random.Random(f"{name}:{number}"))
            ended["well"] += 1
        except SelftaughtError as error:
            assert str(error)
            ended["refused"] += 1
        except Exception:
            failures.append(f"case {number}\n{traceback.format_exc()}")
        slowest = max(slowest, time.process_time() - begin)
        most = max(most, resident_bytes())
        if number == first + 20:  # what the libraries take once is no growth
            before = most
        if len(failures) >= MAX_FAILURES:
            break
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    return {**ended, "failures": failures, "slowest_s": round(slowest, 3), "growth_mb": round((most - before) / 2**20, 1)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        seconds = float(sys.argv[4]) if len(sys.argv) > 4 else CASE_S
        os.fsync = os.fstat  # type: ignore[assignment]  # waiting for the disk took most of the time of some readers
        print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(place), seconds)))
