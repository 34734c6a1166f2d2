"""What this machine can do for learning, and what to change where it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIN_MEMORY_GB = 4.0
"""What `selftaught learn` at size small may use."""
MIN_DISK_GB = 5.0
"""Room for the image cache, two checkpoints and a report."""
OPTIONAL = {
    "web": (("fastapi", "uvicorn", "websockets"), "`play`, the page on which a run is played"),
    "video": (("av", "skimage"), "clips from video files; optical flow and structural similarity"),
    "export": (("onnx", "onnxruntime", "onnxscript", "pyarrow"), "`export` as ONNX and Parquet"),
    "metrics": (("skimage", "py_sod_metrics", "faster_coco_eval"), "the field's own libraries, to check scores against"),
    "cloud": (("fsspec",), "tar shards from URLs"),
    "cluster": (("ray", "pyarrow"), "`embed` and `segment` with --engine ray"),
    "bench": (("lightly",), "a peer that benchmarks are measured against"),
    "fast": (("numba", "simplejpeg"), "faster rendering of meshes and decoding of JPEG"),
    "meshes": (("trimesh",), "`reconstruct`, and `data make meshes`"),
}
"""Every extra: the modules that it brings, and what they are for."""


@dataclass(frozen=True)
class Check:
    """One thing looked at: `bad` stops the work, `warn` makes it slower or leaves a part out."""

    name: str
    status: Literal["ok", "warn", "bad"]
    found: str
    do: str = ""


def examine() -> list[Check]:
    """Look at everything; a check that cannot be made on this system says so as a warning."""
    looks: list[Callable[[], list[Check]]] = [_python, _torch, _memory, _disk, _cache, _optional]
    return [check for look in looks for check in look()]


def lines(checks: list[Check]) -> list[str]:
    """The checks as text for a terminal, with a closing line."""
    text = []
    for check in checks:
        text.append(f"{check.status:<5} {check.name:<16} {check.found}")
        if check.do:
            text.append(f"      {'':<16} do: {check.do}")
    warned = sum(check.status == "warn" for check in checks)
    bad = sum(check.status == "bad" for check in checks)
    if bad:
        text.append(f"\n{bad} of {len(checks)} must be changed before anything can be learned here.")
    else:
        text.append(f"\nready ({warned} of {len(checks)} could be better)." if warned else "\nready.")
    return text


def _python() -> list[Check]:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] < (3, 14):
        return [Check("python", "ok", version)]
    return [Check("python", "bad", version, "use Python 3.10 to 3.13")]


def _torch() -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return [Check("torch", "bad", "not installed", "pip install selftaught")]
    import torch

    devices = "CPU"
    if torch.cuda.is_available():
        devices = f"{torch.cuda.device_count()} GPU(s), first: {torch.cuda.get_device_name(0)}"
    checks = [Check("torch", "ok", f"{torch.__version__}, {devices}"), _threads(torch.get_num_threads()), _bf16()]
    return checks + _torchvision()


def _threads(threads: int) -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"torch uses {threads} of {usable} processors"
    if threads > usable:
        return Check("threads", "warn", found, f"set OMP_NUM_THREADS={usable}: more threads than processors are slower")
    if threads * 2 < usable:
        return Check("threads", "warn", found, f"set OMP_NUM_THREADS={usable // 2} or more to use the processor")
    return Check("threads", "ok", found)


def _bf16() -> Check:
    flags = _cpu_flags()
    if flags is None:
        return Check("bf16", "warn", "cannot be seen on this system; chosen by measuring when training starts")
    fast = sorted(flags & {"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16", "svebf16"})
    if fast:
        return Check("bf16", "ok", f"fast on this processor ({', '.join(fast)})")
    return Check("bf16", "ok", "no instructions for it: training uses float32")


def _cpu_flags() -> set[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return set(line.partition(":")[2].split())
    return None


def _torchvision() -> list[Check]:
    if importlib.util.find_spec("torchvision") is None:
        return [Check("torchvision", "bad", "not installed", "pip install selftaught")]
    from selftaught.nets.torchvision_ops import make_torchvision_importable

    declared = make_torchvision_importable()
    import torchvision

    note = " (its compiled operators do not fit this torch; not needed here)" if declared else ""
    return [Check("torchvision", "ok", torchvision.__version__ + note)]


def _memory() -> list[Check]:
    available = _available_gb()
    if available is None:
        return [Check("memory", "warn", "cannot be seen on this system", f"have {MIN_MEMORY_GB:.0f} GB free")]
    found = f"{available:.1f} GB available"
    if available < MIN_MEMORY_GB:
        return [Check("memory", "warn", found, f"close programs until {MIN_MEMORY_GB:.0f} GB are free, or --size tiny")]
    return [Check("memory", "ok", found)]


def _available_gb() -> float | None:
    """Memory in GB that can be used: what the system calls available, or less when a container sets a limit."""
    try:
        entries = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = float(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available / 1e9
    return (available if limit == "max" else min(available, float(limit) - used)) / 1e9


def _disk() -> list[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    found = f"{free:.1f} GB free in the working folder"
    if free < MIN_DISK_GB:
        return [Check("disk", "warn", found, f"free {MIN_DISK_GB:.0f} GB, or give an --out on another disk")]
    return [Check("disk", "ok", found)]


def _cache() -> list[Check]:
    from selftaught.data.cache import cache_root

    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return [Check("cache", "bad", f"{folder}: {error.strerror}", "set SELFTAUGHT_CACHE to a folder you can write")]
    free = shutil.disk_usage(folder).free / 1e9
    status: Literal["ok", "warn"] = "ok" if free >= MIN_DISK_GB else "warn"
    return [Check("cache", status, f"{folder} is writable, {free:.1f} GB free")]


def _optional() -> list[Check]:
    checks = []
    for extra, (modules, purpose) in OPTIONAL.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            do = f'pip install "selftaught[{extra}]"'
            checks.append(Check(f"extra {extra}", "warn", f"missing {', '.join(missing)}; for {purpose}", do))
        else:
            checks.append(Check(f"extra {extra}", "ok", f"{', '.join(modules)}; for {purpose}"))
    return checks
