"""Frozen dataclasses as configuration: JSON in and out, overrides by text, help from the source, atomic files."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import hashlib
import inspect
import json
import math
import os
import stat
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from selftaught.core.errors import EXIT_DISK, ConfigError, RunError, suggest

C = TypeVar("C")

MAX_JSON_BYTES = 64 * 2**20
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null", ""}
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors that mean a full disk or a used-up quota."""


def to_json(config: Any) -> dict[str, Any]:
    """Return a dataclass as a dict of JSON values; tuples become lists, infinities and NaN become strings."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"{config!r} is not a config.", expected="an instance of a dataclass")
    return {field.name: _plain(getattr(config, field.name), keep=True) for field in _fields(type(config))}


def from_json(cls: type[C], values: dict[str, Any]) -> C:
    """Build `cls` from what `to_json` returned; fields that are absent keep their default.

    Raises ConfigError for an unknown key (with a suggestion), a missing field without default, or a wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__} is {_kind(values)}.", expected="an object with named fields")
    fields = {field.name: field for field in _fields(cls)}
    for key in values:
        if key not in fields:
            raise _unknown(cls, key, fields)
    hints = typing.get_type_hints(cls)
    return _build(cls, {key: _coerce(hints[key], value, f"{cls.__name__}.{key}") for key, value in values.items()})


def override(config: C, assignments: Iterable[str]) -> C:
    """Return a copy with ["field=value", ...] applied; values are parsed by the field's type.

    "a.b=value" reaches into a nested config. Tuples are written "0.2,1"; an optional field takes "none".
    Raises ConfigError for text without "=", an unknown field (with a suggestion) or a value that does not parse.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' sets nothing.", expected="field=value")
        config = _assign(config, name.strip().lstrip("-").replace("-", "_").split("."), text.strip())
    return config


def refuse_outside(config: Any, names: str, low: float, high: float = math.inf) -> None:
    """Raise ValueError for the first of the settings `names`, with spaces between, of which a number is not from `low` to `high`, or NaN.

    For `__post_init__`: who builds a config from text turns it into a ConfigError.
    """
    for name in names.split():
        value = getattr(config, name)
        if not all(low <= one <= high for one in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} is {value}; it must be " + (f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"))


def digest(obj: Any) -> str:
    """Return the first 16 hex digits of the sha256 of the canonical JSON of a config or any JSON value."""
    text = json.dumps(_plain(obj, keep=True), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def field_help(cls: type) -> dict[str, str]:
    """Return {field: the string written under it}, own and inherited fields; {} when the source is not there."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for node, below in zip(body, body[1:], strict=False):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                if isinstance(below.value.value, str):
                    texts[node.target.id] = inspect.cleandoc(below.value.value)
    return texts


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` (config or JSON value) so that a reader sees the old file or the new one, never a part.

    NaN and infinities become null, because browsers refuse them. Raises RunError, with exit code 5 for a full disk.
    """
    # ASCII escapes, because a path may hold bytes that are no UTF-8.
    text = json.dumps(_plain(obj, keep=False), indent=2, allow_nan=False) + "\n"
    path = Path(path)
    temp = path.with_name(f".tmp-{os.getpid()}-{path.name}"[:255])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise write_error(path, len(text), error) from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object; raises RunError naming the file when it is absent, unreadable, huge or corrupt."""
    path = Path(path)
    try:
        info = path.stat()
        # Opening a pipe would wait for ever, and reading a device would never end.
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_JSON_BYTES:
            expected = f"a file of at most {MAX_JSON_BYTES // 2**20} MB"
            raise RunError(f"{path} is not read.", expected=expected, why=f"it has {info.st_size} bytes")
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise RunError(f"Cannot read {path}.", why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is corrupt.", expected="a JSON object", why=str(error)) from error
    if not isinstance(values, dict):
        raise RunError(f"{path} is corrupt.", expected="a JSON object", why=f"it holds {_kind(values)}")
    return values


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut."""
    if os.name == "nt":  # Windows cannot open a folder for this.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot sync a folder (some network ones) say so with EINVAL
            raise
    finally:
        os.close(handle)


def write_error(path: Path, size_bytes: int, error: OSError) -> RunError:
    """Return the RunError for a failed write of `size_bytes` to `path`; exit code 5 when the disk or quota is full."""
    why = error.strerror or str(error)
    if error.errno in FULL:
        return RunError(
            f"The disk is full: cannot write {size_bytes} bytes to {path}.",
            why=why,
            do="Free some space, then run the same command again; a training goes on from its last checkpoint.",
            exit_code=EXIT_DISK,
        )
    return RunError(f"Cannot write {size_bytes} bytes to {path}.", why=why, do="Check the folder and its permissions.")


def _fields(cls: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _plain(value: Any, *, keep: bool) -> Any:
    """Return JSON values only; non-finite floats become strings when `keep`, else None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), keep=keep) for field in _fields(type(value))}
    if isinstance(value, dict):
        return {str(key): _plain(item, keep=keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, keep=keep) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else (str(float(value)) if keep else None)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays, without importing either
        return _plain(value.tolist(), keep=keep)
    raise ConfigError(f"{_kind(value)} cannot be written as JSON.", expected="numbers, text, lists, objects")


def _build(cls: type[C], values: dict[str, Any]) -> C:
    for field in _fields(cls):
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name not in values and no_default:
            raise ConfigError(f"{cls.__name__} has no value for '{field.name}'.", expected=f"{field.name}=...")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{cls.__name__} refuses these values.", why=str(error)) from error


def _assign(config: C, names: list[str], text: str) -> C:
    cls = type(config)
    fields = {field.name: field for field in _fields(cls)}
    if names[0] not in fields:
        raise _unknown(cls, names[0], fields)
    if len(names) > 1:
        inner = getattr(config, names[0])
        if not dataclasses.is_dataclass(inner):
            raise ConfigError(f"{cls.__name__}.{names[0]} has no fields.", expected=f"{names[0]}=value")
        value: Any = _assign(inner, names[1:], text)
    else:
        value = _parse(typing.get_type_hints(cls)[names[0]], text, f"{cls.__name__}.{names[0]}")
    current = {name: getattr(config, name) for name in fields}
    return _build(cls, {**current, names[0]: value})


def _unknown(cls: type, key: str, fields: Iterable[str]) -> ConfigError:
    names = list(fields)
    return ConfigError(
        f"{cls.__name__} has no field '{key}'.{suggest(key, names)}", expected="one of " + ", ".join(names)
    )


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Check a JSON value against a type; lists become tuples, integers become floats where a float is asked."""
    if hint is Any:
        return value
    members = _members(hint)
    if len(members) > 1:
        for member in members:
            try:
                return _coerce(member, value, where)
            except ConfigError:
                continue
        raise _mismatch(hint, value, where)
    if _is_plain(hint, value):
        return value
    if hint is float and (type(value) in (int, float) or value in ("inf", "-inf", "nan")):
        return float(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_json(hint, value)
    origin = typing.get_origin(hint) or hint
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        return origin(_items(hint, list(value), where, _coerce))
    if origin is dict and isinstance(value, dict):
        inner = (*typing.get_args(hint), Any, Any)[1]
        return {key: _coerce(inner, item, f"{where}[{key!r}]") for key, item in value.items()}
    raise _mismatch(hint, value, where)


def _is_plain(hint: Any, value: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return any(type(value) is type(one) and value == one for one in typing.get_args(hint))
    return hint in (bool, int, str, type(None)) and type(value) is hint


def _parse(hint: Any, text: str, where: str) -> Any:
    """Parse the text of an override by type."""
    members = _members(hint)
    if type(None) in members and text.lower() in _NONE:
        return None
    refusal = _mismatch(hint, text, where)
    for member in members:
        try:
            return _parse_one(member, text, where)
        except ConfigError as error:
            refusal = error
        except (ValueError, OverflowError):
            continue
    raise refusal


def _parse_one(hint: Any, text: str, where: str) -> Any:
    if hint is bool and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if hint is int:
        return _parse_int(text)
    if hint is float:
        return float(text)
    if hint is str or hint is Any:
        return text
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        named = {str(one): one for one in typing.get_args(hint)}
        if text in named:
            return named[text]
    if origin in (tuple, list):
        inside = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        parts = [part.strip() for part in inside.split(",")]
        while parts and not parts[-1]:  # "(1,)" and "()"
            parts.pop()
        return origin(_items(hint, parts, where, _parse))
    raise ValueError(text)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        if float(text).is_integer():  # people write 1e5
            return int(float(text))
        raise


def _items(hint: Any, values: list[Any], where: str, read: Callable[[Any, Any, str], Any]) -> list[Any]:
    """Read the items of a tuple or list type."""
    arguments = typing.get_args(hint) or (Any, ...)
    open_ended = arguments[-1] is Ellipsis or (typing.get_origin(hint) or hint) is list
    hints = [arguments[0]] * len(values) if open_ended else list(arguments)
    if len(hints) != len(values):
        raise ConfigError(f"{where} has {len(values)} values.", expected=f"{len(hints)} values")
    return [read(one, value, f"{where}[{i}]") for i, (one, value) in enumerate(zip(hints, values, strict=True))]


def _mismatch(hint: Any, value: Any, where: str) -> ConfigError:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
    return ConfigError(f"{where} is {value!r} ({_kind(value)}).", expected=name)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
