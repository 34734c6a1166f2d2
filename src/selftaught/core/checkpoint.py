"""Checkpoints as folders that are whole or not there: step-000123/ with tensors, state and a manifest written last."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftaught.core.config import FULL, digest, read_json, sync_folder, write_error
from selftaught.core.errors import RunError
from selftaught.core.guards import process_alive

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

SCHEMA = 1
MANIFEST = "manifest.json"
STATE = "state.json"

_log = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d{6,})(\.old)?")
# Folders of this module, and files of `core.atomic`, `write_json` and the records; the number is the writer's pid.
_TEMP = re.compile(r"\.tmp-step-\d+(?:\.old)?-(\d+)|\.tmp-(\d+)-.+", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def save(
    folder: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder`/step-000123/ with one NAME.safetensors per key of `tensors` and state.json; return that folder.

    After the new one verified, the newest `keep` good ones stay and the others go. Whatever fails, the older ones are
    untouched and nothing half-written stays. A full disk is tried once more without what dead writers left behind.
    Raises RunError, with exit code 5 when the disk is full.
    """
    folder = Path(folder)
    target = folder / f"step-{step:06d}"
    size = _size(tensors)
    try:
        try:
            _write_checkpoint(folder, target, size, step, tensors, state)
        except OSError as error:
            if error.errno not in FULL:
                raise
            _write_checkpoint(folder, target, size, step, tensors, state)
    except OSError as error:
        raise write_error(target, size, error) from error
    problems = verify(target)
    if problems:
        raise RunError(
            f"The checkpoint {target} does not read back as it was written.",
            why="; ".join(problems),
            do="Check the disk; older checkpoints were kept.",
        )
    # The new one is safe; what could not be removed now is removed after the next save.
    with contextlib.suppress(OSError):
        _retain(folder, target, keep)
    return target


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Return what is wrong with a checkpoint, each text beginning with the file's name; an empty list means good."""
    folder = Path(folder)
    try:
        manifest = read_json(folder / MANIFEST)
    except RunError as error:
        return [f"{MANIFEST}: {error.why or error.what}"]
    if manifest.get("schema") != SCHEMA:
        return [f"{MANIFEST}: schema {manifest.get('schema')!r} is not known here, expected {SCHEMA}"]
    # The manifest vouches for itself too: its bytes must be what its content, digest included, would be written as.
    try:
        same = (folder / MANIFEST).read_bytes() == _manifest_bytes(manifest)
    except (OSError, RecursionError):
        same = False
    if not same:
        return [f"{MANIFEST}: its content was changed"]
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files or not all(map(_is_entry, files.values())):
        return [f"{MANIFEST}: it lists no files"]
    named = _STEP.fullmatch(folder.name)
    if named and int(named[1]) != manifest.get("step"):
        return [f"{MANIFEST}: it belongs to step {manifest.get('step')}"]
    problems = []
    for name, entry in files.items():
        problem = _check_file(folder, name, entry)
        if problem:
            problems.append(f"{name}: {problem}")
    return problems


def latest(folder: str | os.PathLike[str], warn: Callable[[str], None] | None = None) -> Path | None:
    """Return the newest checkpoint that verifies, or None; `warn` (default: logging) hears of each that does not."""
    for path in _steps(Path(folder)):
        problems = verify(path)
        if not problems:
            return path
        (warn or _log.warning)(f"Checkpoint {path} is not used: {'; '.join(problems)}.")
    return None


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint into (tensors, state) on the CPU; raises RunError naming each file that is not as written."""

    folder = Path(folder)
    problems = verify(folder)
    if problems:
        raise RunError(
            f"The checkpoint {folder} is damaged.", why="; ".join(problems), do="Use another checkpoint of the run."
        )
    tensors = {}
    for name in read_json(folder / MANIFEST)["files"]:
        if name == STATE:
            continue
        try:
            tensors[name.removesuffix(".safetensors")] = _read_tensors(folder / name)
        except Exception as error:  # safetensors raises many kinds for a made-up file, one for each thing that is wrong
            raise RunError(f"Cannot read {folder / name}.", why=str(error)) from error
    return tensors, read_json(folder / STATE)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; the library itself takes only paths that are UTF-8."""
    from safetensors.torch import load, load_file

    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return load(path.read_bytes())
    return load_file(path)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of that name is a half-written one of ours."""
    return bool(_TEMP.fullmatch(name))


def remove_stale(folder: str | os.PathLike[str]) -> None:
    """Remove temporary folders and files of this process and of dead ones, directly below `folder`.

    One that bears this process's own number is stale as well: in containers every run may have the same number. Call it
    where this process is the only writer.
    """
    for path in Path(folder).glob(".tmp-*"):
        match = _TEMP.fullmatch(path.name)
        pid = int(match[1] or match[2]) if match else 0
        if match and (pid == os.getpid() or not process_alive(pid)):
            _delete(path)


def flatten_optimizer(opt: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as flat tensors ("3.exp_avg": parameter 3) and JSON meta data.

    The tensors share memory with the optimiser. Raises RunError for state that is neither tensor nor JSON value.
    """
    from torch import Tensor

    tensors: dict[str, Tensor] = {}
    groups: list[dict[str, Any]] = []
    values: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(opt.param_groups):
        plain: dict[str, Any] = {"params": len(group["params"])}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group{number}.{key}"] = value.detach()
            elif key != "params":
                plain[key] = _json_value(opt, key, value)
        groups.append(plain)
    for index, parameter in enumerate(_parameters(opt)):
        if parameter not in opt.state:
            continue
        values[str(index)] = {}
        for key, value in opt.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach()
            else:
                values[str(index)][key] = _json_value(opt, key, value)
    return tensors, {"class": type(opt).__name__, "groups": groups, "state": values}


def restore_optimizer(opt: Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Put back, bit for bit, what `flatten_optimizer` returned; raises RunError when the optimiser is another one.

    torch's own load_state_dict is not used because it casts state to the type of its parameter.
    """
    import torch

    parameters = _parameters(opt)
    _check_same(opt, parameters, tensors, meta)
    for number, (group, saved) in enumerate(zip(opt.param_groups, meta["groups"], strict=True)):
        for key, value in saved.items():
            if key != "params":
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        for name, tensor in _below(tensors, f"group{number}"):
            old = group.get(name)
            group[name] = tensor.to(old.device if isinstance(old, torch.Tensor) else "cpu", copy=True)
    owner = {id(parameter): group for group in opt.param_groups for parameter in group["params"]}
    opt.state.clear()
    for index, parameter in enumerate(parameters):
        if str(index) not in meta["state"]:
            continue
        state = dict(meta["state"][str(index)])
        group = owner[id(parameter)]
        for name, tensor in _below(tensors, str(index)):
            # torch keeps the step counter on the CPU unless a fused or captured kernel reads it.
            stays = name == "step" and not (group.get("capturable") or group.get("fused"))
            device = tensor.device if stays else parameter.device
            if tensor.shape == parameter.shape:  # the parameter's memory format, so that kernels take the same path
                state[name] = torch.empty_like(parameter, dtype=tensor.dtype, device=device).copy_(tensor)
            else:
                state[name] = tensor.to(device, copy=True)
        opt.state[parameter] = state


def _size(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for group in tensors.values() for tensor in group.values())


def _write_checkpoint(
    folder: Path,
    target: Path,
    size: int,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Fill a temporary sibling of `target` and give it that name; raises OSError and leaves `target` as it was."""
    temp = folder / f".tmp-{target.name}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    _check_space(folder, size)
    try:
        temp.mkdir()
        _fill(temp, step, tensors, state)
        _install(temp, target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _check_space(folder: Path, size: int) -> None:
    """Raise OSError unless 1.2 times the tensors' bytes are free; some network file systems tell nothing (0 in all)."""
    usage, needed = shutil.disk_usage(folder), int(1.2 * size)
    if usage.total and usage.free < needed:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {usage.free} are free")


def _fill(temp: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write all files of a checkpoint into an empty folder, the manifest last."""
    files = {}
    for name, group in tensors.items():
        if not _NAME.fullmatch(name):
            raise RunError(f"'{name}' cannot name a file of a checkpoint.", expected="letters, digits, _ . -")
        files[f"{name}.safetensors"] = _write(temp / f"{name}.safetensors", _tensor_bytes(group))
    # Infinities stay in state.json (a best loss so far may be one); only this module reads it.
    files[STATE] = _write(temp / STATE, (json.dumps(state, indent=1) + "\n").encode())
    _write(temp / MANIFEST, _manifest_bytes({"schema": SCHEMA, "step": step, "files": files}))
    sync_folder(temp)


def _tensor_bytes(group: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save as to_bytes

    seen: set[int] = set()
    separate = {}
    for name, tensor in group.items():
        tensor = tensor.detach()
        place = tensor.untyped_storage().data_ptr()
        # safetensors refuses tied weights and views of one storage.
        separate[name] = tensor.clone().contiguous() if place in seen else tensor.contiguous()
        seen.add(place)
    return to_bytes(separate, metadata={"format": "pt"})


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write one file through to the disk; return its manifest entry."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return (json.dumps({**content, "digest": digest(content)}, indent=1, sort_keys=True) + "\n").encode()


def _install(temp: Path, target: Path) -> None:
    """Rename the finished folder to its name; an older one of that name stays readable as NAME.old until then."""
    old = target.with_name(f"{target.name}.old")
    if target.exists():
        # An old one that is still there is the better of the two when what replaced it is damaged.
        _discard(target if old.exists() and verify(target) else old)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(temp, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    sync_folder(target.parent)


def _retain(folder: Path, new: Path, keep: int) -> None:
    """Keep the new checkpoint and the newest good ones up to `keep`; delete the rest, damaged ones included."""
    good = 0
    for path in _steps(folder):
        if path == new:
            good += 1
        elif path != new.with_name(f"{new.name}.old") and good < keep and not verify(path):
            good += 1
        else:
            _discard(path)


def _discard(path: Path) -> None:
    """Delete a checkpoint under another name, so that a kill midway leaves no half of one under its own."""
    if path.exists():
        doomed = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        _delete(doomed)
        os.rename(path, doomed)
        _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a file or folder; what cannot be deleted stays and is met again at the next start."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _steps(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, key=lambda one: (int(one[0][1]), one[0][2] is None), reverse=True)]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and {"size", "sha256"} <= set(entry)


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> str:
    if Path(name).name != name:
        return "a checkpoint holds no folders"
    try:
        info = (folder / name).stat()
        size = info.st_size
        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
            return "it is no file"
        if size != entry["size"]:
            return f"{size} bytes long, expected {entry['size']}"
        sha = hashlib.sha256()
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:
        return "a name that no file can have"
    return "" if sha.hexdigest() == entry["sha256"] else "its content was changed"


def _parameters(opt: Optimizer) -> list[Tensor]:
    return [parameter for group in opt.param_groups for parameter in group["params"]]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> list[tuple[str, Tensor]]:
    return [(key[len(prefix) + 1 :], value) for key, value in tensors.items() if key.startswith(f"{prefix}.")]


def _json_value(opt: Optimizer, key: str, value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise RunError(f"{type(opt).__name__} keeps '{key}', which cannot be saved.", why=str(error)) from error
    return list(value) if isinstance(value, tuple) else value


def _check_same(
    opt: Optimizer, parameters: list[Tensor], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Raise RunError unless the saved state belongs to such an optimiser over such parameters."""
    saved, mine = [group["params"] for group in meta["groups"]], [len(group["params"]) for group in opt.param_groups]
    if meta["class"] != type(opt).__name__ or saved != mine:
        raise RunError(
            f"The saved optimiser is {meta['class']} over {saved} parameters.",
            expected=f"{type(opt).__name__} over {mine}",
            do="Resume with the configuration that the run was started with.",
        )
    for index, parameter in enumerate(parameters):
        for name, tensor in _below(tensors, str(index)):
            if tensor.dim() == parameter.dim() > 0 and tensor.shape != parameter.shape:
                raise RunError(
                    f"Saved '{name}' of parameter {index} has shape {tuple(tensor.shape)}.",
                    expected=str(tuple(parameter.shape)),
                    do="Resume with the configuration that the run was started with.",
                )
