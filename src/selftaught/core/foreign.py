"""Weights of other programs: the one place that opens a pickle, in a process that can do nothing else.

`import_weights` starts a fresh interpreter with limits on memory, time and file size, without network where the system
allows it, without the user's environment, and with a hook that ends it at the first attempt to start a program, to open
a connection or to write anywhere but to its result. Only there the file is read, with torch's own list of harmless
types. What comes back is a safetensors file, which this process checks before it gets its name.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from selftaught.core.atomic import replacing
from selftaught.core.config import read_json
from selftaught.core.errors import DataError, RunError, suggest

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT_S = 600
CPU_S = 600
SPARE_BYTES = 2**30
"""Memory beyond four times the file that reading it may take."""
MAX_TENSORS = 100_000
MAX_NAME_CHARS = 500
MAX_FILE_BYTES = 64 * 2**30
SAFE_TORCH = (2, 10)
"""From here on torch has no known way around its list of harmless types (CVE-2025-32434, CVE-2026-24747)."""
_DEPTH = 3
_NEWUSER, _NEWNET = 0x10000000, 0x40000000
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
_FORBIDDEN = re.compile(
    r"socket\.|subprocess\.|ctypes\.|pty\.|shutil\.|webbrowser\.|ftplib\.|smtplib\.|urllib\.|sqlite3\.|mmap\."
    r"|os\.(system|exec|posix_spawn|spawn|startfile|fork|forkpty|kill|killpg|remove|rename|rmdir|mkdir|link|symlink"
    r"|truncate|chmod|chown|chflags|lockf|putenv|unsetenv|setxattr|removexattr|utime)$"
)


def import_weights(
    path: str | os.PathLike[str], out: str | os.PathLike[str], key: str | None = None, strip_prefix: str = ""
) -> dict[str, Any]:
    """Convert a foreign file of tensors (.pth, .pt, .ckpt, .bin) to safetensors and return what it held.

    Args:
        path: The file to read; it is not trusted.
        out: The safetensors file to write; replaced only when everything is well.
        key: The entry of nested dictionaries that holds the tensors, e.g. "teacher" or "model.backbone"; may be left
            away when only one entry does.
        strip_prefix: Taken off the beginning of every name that has it, e.g. "module.".

    Returns:
        {"path", "out", "sha256" of the source, "key", "tensors", "parameters", "dtypes": {dtype: count},
        "shapes": {name: [sides]}, "not_finite": [names], "left_out": [other entries], "offline": whether the reading
        process had no network}.

    Raises DataError for a file that holds anything but tensors, is too large for its limits or cannot be read.
    """
    path, out = Path(path), Path(out)
    size = _checked_size(path)
    if out.suffix != ".safetensors":
        raise DataError(f"{out} has no known suffix.", expected="FILE.safetensors")
    source_sha256 = _sha256(path)
    with tempfile.TemporaryDirectory(prefix="selftaught-import-") as folder, replacing(out) as result:
        result.touch(exist_ok=False)
        order = {
            "path": str(path.resolve()), "result": str(result.resolve()), "answer": str(Path(folder) / "answer.json"),
            "key": key, "strip_prefix": strip_prefix, "size": size, "spare_bytes": SPARE_BYTES, "cpu_s": CPU_S,
            "metadata": {"format": "pt", "source": path.name, "source_sha256": source_sha256},
        }  # fmt: skip
        answer = _in_another_process(order, Path(folder))
        summary = _look_at(result, path)
    return {"path": str(path), "out": str(out), "sha256": source_sha256, **answer, **summary}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what `import_weights` found as lines for a terminal: every name with its shape."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["dtypes"].items())
    shapes = summary["shapes"].items()
    out = [f"{name}: {' x '.join(map(str, shape)) or 'one number'}" for name, shape in shapes]
    out.append(f"{summary['tensors']} tensors ({kinds}), {summary['parameters']:,} numbers, sha256 {summary['sha256']}")
    if summary["key"]:
        out.append(f"taken: {summary['key']}; left out: {', '.join(summary['left_out']) or 'nothing'}")
    if summary["not_finite"]:
        out.append(f"warning: NaN or infinite values in {', '.join(summary['not_finite'][:10])}")
    return [*out, f"wrote {summary['out']}"]


def _checked_size(path: Path) -> int:
    if not path.is_file():
        near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"There is no file '{path}'.{near}", expected="a .pth, .pt, .ckpt or .bin file of weights")
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise DataError(f"{path} has {size} bytes.", expected=f"1 to {MAX_FILE_BYTES} bytes")
    if path.suffix.lower() == ".pt2":
        raise DataError(f"{path} is a compiled program.", why="it cannot be opened safely", expected="a file of tensors")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size:
        raise DataError(f"{path} is a safetensors file already.", do="Use it as it is.")
    return size


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        state = hashlib.sha256()
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _in_another_process(order: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run `child` with an order; return its answer, or raise the error that it tells or died of."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path), "HOME": str(folder),
        "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", "from selftaught.core.foreign import child; child()"]
    name = order["path"]
    with open(folder / "errors.txt", "wb") as errors:
        try:
            done = subprocess.run(
                command, input=json.dumps(order).encode(), stdout=subprocess.DEVNULL, stderr=errors, cwd=folder,
                env=environment, timeout=TIMEOUT_S, close_fds=True, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DataError(f"{name} was not read within {TIMEOUT_S} s.", why="it may be made to take for ever") from None
    if done.returncode != 0 or not Path(order["answer"]).exists():
        last = (folder / "errors.txt").read_text(errors="replace")[-2000:].strip().splitlines()[-1:]
        died = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise DataError(
            f"{name} is refused: the process that read it ended with {died}.",
            why=last[0][:300] if last else "it went beyond the memory, time or actions that reading weights needs",
            do="Ask its author for a safetensors file.",
        )
    answer = read_json(order["answer"])
    if "error" in answer:
        told = {word: str(text) for word, text in answer["error"].items()}
        raise DataError(told["what"], expected=told.get("expected", ""), why=told.get("why", ""), do=told.get("do", ""))
    return answer


def _look_at(result: Path, path: Path) -> dict[str, Any]:
    """Check what the other process wrote, trusting none of it; return names, shapes, dtypes."""
    import torch
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    dtypes: dict[str, int] = {}
    not_finite = []
    try:
        with safe_open(result, "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                _check_name(name)
                shapes[name] = list(tensor.shape)
                kind = str(tensor.dtype).removeprefix("torch.")
                dtypes[kind] = dtypes.get(kind, 0) + 1
                # Types of one byte have no test of their own.
                wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
                if not bool(torch.isfinite(wide).all()):
                    not_finite.append(name)
    except DataError:
        raise
    except Exception as error:  # safetensors raises many kinds, one for each thing that is wrong
        raise RunError(f"What was read from {path} is no whole safetensors file.", why=str(error)) from error
    if not shapes:
        raise DataError(f"{path} holds no tensors.")
    count = sum(math.prod(shape) for shape in shapes.values())
    return {"tensors": len(shapes), "parameters": count, "dtypes": dtypes, "shapes": shapes, "not_finite": not_finite}


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME_CHARS or name == "__metadata__":
        raise DataError(f"It holds a tensor named {str(name)[:100]!r}.", expected="printable names")


# From here on: what runs in the other process.


def child() -> None:
    """Read the order from standard input, convert, and write the answer; run by `import_weights` only."""
    order = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = {"offline": leave_network()}
        _limit_early(order)
        import torch

        torch.set_num_threads(1)
        limit_memory(4 * order["size"] + order["spare_bytes"])
        with open(order["answer"], "w") as file, open(order["result"], "wb") as result:
            sys.addaudithook(guard)  # from here on nothing can be opened for writing
            try:
                answer |= _convert(order, result)
            except DataError as error:
                words = {"what": error.what, "expected": error.expected, "why": error.why, "do": error.do}
                answer = {"error": {word: text for word, text in words.items() if text}}
            json.dump(answer, file)
    except MemoryError:
        print("it needs more memory than four times its size", file=sys.stderr)
        sys.exit(1)


def leave_network() -> bool:
    """Move this process into a network without any connection, where the system allows that; return whether it did."""
    import ctypes

    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    return unshare is not None and (unshare(_NEWNET) == 0 or unshare(_NEWUSER | _NEWNET) == 0)


def _limit_early(order: Mapping[str, Any]) -> None:
    import resource

    limits = {"RLIMIT_CPU": order["cpu_s"], "RLIMIT_FSIZE": 4 * order["size"] + 2**24, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))


def limit_memory(more_bytes: int) -> None:
    """Allow `more_bytes` beyond what Python and torch have mapped so far."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux: the kernel would not keep to this limit anyway
        return
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """End the process at whatever reading weights does not need; Python offers no way to take the hook off again."""
    if event == "open":
        flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
        forbidden = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
    else:
        forbidden = _FORBIDDEN.match(event) is not None
    if forbidden:
        os.write(2, f"it tried to do more than to be read ({event})\n".encode())
        os._exit(1)


def _convert(order: Mapping[str, Any], result: BinaryIO) -> dict[str, Any]:
    """Read, choose, rename and write; raises DataError."""
    import argparse

    import torch
    from safetensors.torch import save

    path, prefix = order["path"], order["strip_prefix"]
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < SAFE_TORCH:
        version = ".".join(map(str, SAFE_TORCH))
        raise DataError(f"torch {torch.__version__} opens such files unsafely.", expected=f"torch {version} or newer")
    # The settings that training scripts keep beside the weights; it only holds attributes.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        everything = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pickle raises whatever the file makes it raise
        raise DataError(
            f"{path} is refused: it holds more than tensors, or is no file of weights.",
            expected="a torch file of tensors in dictionaries",
            why=_short(str(error) or type(error).__name__),
            do="Ask its author for a safetensors file.",
        ) from error
    key, chosen = _choose(everything, order["key"], path)
    tensors = _plain_tensors(chosen, 4 * order["size"] + 2**20)
    renamed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(renamed) != len(tensors) or "" in renamed:
        raise DataError(f"Two tensors have one name once '{prefix}' is taken off.", do="Give another prefix, or none.")
    if prefix and renamed.keys() == tensors.keys():
        raise DataError(f"No name begins with '{prefix}'.", expected=f"names such as {', '.join(list(tensors)[:3])}")
    result.write(save(renamed, metadata=dict(order["metadata"])))
    others = [str(name)[:100] for name in everything if not f"{key}.".startswith(f"{name}.")] if key else []
    return {"key": key, "left_out": others[:1000]}


def _choose(everything: Any, key: str | None, path: str) -> tuple[str, Mapping[Any, Any]]:
    """Return (key, dictionary of tensors): the one that was asked for, or the only one there is; raises DataError."""
    if not isinstance(everything, dict):
        raise DataError(f"{path} holds a {type(everything).__name__}.", expected="tensors in dictionaries")
    found = dict(_holders(everything, "", 0))
    listed = ", ".join(f"{name or 'the top'} ({_count(node)} tensors)" for name, node in list(found.items())[:20])
    if key is not None:
        if key not in found:
            raise DataError(f"{path} has no tensors at '{key}'.{suggest(key, found)}", expected=listed or "tensors")
        return key, found[key]
    if not found:
        raise DataError(f"{path} holds no tensors with names.", expected="tensors in dictionaries")
    if len(found) > 1:
        raise DataError(f"{path} holds several sets of tensors: {listed}.", do="Choose one with --key.")
    return next(iter(found.items()))


def _holders(node: Mapping[Any, Any], name: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield (dotted key, dictionary) of those that hold tensors themselves."""
    if _count(node):
        yield name, node
    for key, value in node.items():
        if isinstance(key, str) and isinstance(value, dict) and depth < _DEPTH:
            yield from _holders(value, f"{name}.{key}" if name else key, depth + 1)


def _count(node: Mapping[Any, Any]) -> int:
    import torch

    return sum(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in node.items())


def _plain_tensors(chosen: Mapping[Any, Any], max_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a dictionary, contiguous and each with memory of its own; raises DataError for the rest."""
    import torch

    if len(chosen) > MAX_TENSORS:
        raise DataError(f"It holds {len(chosen)} tensors.", expected=f"at most {MAX_TENSORS}")
    total = 0
    for name, value in chosen.items():
        _check_name(name)
        if not isinstance(value, torch.Tensor):
            raise DataError(f"'{name}' is no tensor but a {type(value).__name__}.", expected="nothing but tensors")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise DataError(f"'{name}' is a tensor of a special kind ({value.layout}).", expected="plain dense tensors")
        total += value.numel() * value.element_size()
    if total > max_bytes:
        raise DataError(f"Its tensors claim {total:,} bytes.", expected=f"at most {max_bytes:,}, four times the file")
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in chosen.items()}


def _short(text: str) -> str:
    """Return the reason in torch's message without its advice on how to open the file all the same."""
    called = re.search(r"unsupported global:? (?:GLOBAL )?([\w.]{1,200})", text, re.IGNORECASE)
    if called:
        return f"it calls {called[1]}"
    found = re.search(r"WeightsUnpickler error: ([^\n]{1,200})", text)
    reason = found[1] if found else text.strip().partition("\n")[0][:200]
    return "it is no list of tensors" if "weights_only" in reason else reason
