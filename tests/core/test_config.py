"""Configs go to JSON and back, take overrides by text, and files are whole or old."""

from __future__ import annotations

import errno
import math
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from selftaught.core import config as cfg
from selftaught.core.errors import ConfigError, RunError


@dataclass(frozen=True)
class View:
    """One view."""

    out_px: int = 64
    """Edge of the view."""
    scale: tuple[float, float] = (0.2, 1.0)


@dataclass(frozen=True)
class Base:
    """What all share."""

    steps: int = 100
    """Number of
    steps."""


@dataclass(frozen=True)
class Config(Base):
    """All kinds of fields."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    flip: bool = True
    name: str = "resnet"
    """Backbone."""
    widths: tuple[int, ...] = (1, 2)
    limit: int | None = None
    kind: Literal["a", "b", 3] = "a"
    view: View = field(default_factory=View)
    views: tuple[View, ...] = ()


ODD = Config(7, 0.1 + 0.2, False, "é", (5,), 3, 3, View(32, (0.05, math.inf)), (View(1), View(2)))


@pytest.mark.parametrize("config", [Config(), ODD])
def test_round_trip(config: Config, tmp_path: Path) -> None:
    assert cfg.from_json(Config, cfg.to_json(config)) == config
    finite = replace(config, view=View())
    cfg.write_json(tmp_path / "c.json", finite)
    assert cfg.from_json(Config, cfg.read_json(tmp_path / "c.json")) == finite


def test_absent_fields_keep_their_default() -> None:
    assert cfg.from_json(Config, {"steps": 3}) == Config(steps=3)


def test_integer_for_float_becomes_float() -> None:
    value = cfg.from_json(Config, {"learning_rate": 1}).learning_rate
    assert value == 1.0 and type(value) is float


def test_unknown_key_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'learning_rate'"):
        cfg.from_json(Config, {"learning_rat": 1.0})
    with pytest.raises(ConfigError, match="View has no field 'out_pxx'.*out_px"):
        cfg.from_json(Config, {"view": {"out_pxx": 3}})


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 1.5},
        {"steps": True},
        {"steps": "3"},
        {"learning_rate": "fast"},
        {"learning_rate": False},
        {"flip": 1},
        {"name": None},
        {"widths": [1, 2.5]},
        {"widths": "12"},
        {"limit": "x"},
        {"kind": "c"},
        {"view": 3},
        {"view": {"scale": [1.0]}},
        {"view": {"scale": [0.1, 0.2, 0.3]}},
    ],
)
def test_wrong_types_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        cfg.from_json(Config, values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=5", {"steps": 5}),
        ("steps=1e5", {"steps": 100_000}),
        ("learning-rate=1e-4", {"learning_rate": 1e-4}),
        ("learning_rate=3", {"learning_rate": 3.0}),
        ("flip=false", {"flip": False}),
        ("flip=ON", {"flip": True}),
        ("name=a=b", {"name": "a=b"}),
        ("widths=4,5,6", {"widths": (4, 5, 6)}),
        ("widths=(4,)", {"widths": (4,)}),
        ("widths=[]", {"widths": ()}),
        ("limit=9", {"limit": 9}),
        ("limit=none", {"limit": None}),
        ("kind=b", {"kind": "b"}),
        ("kind=3", {"kind": 3}),
        ("view.scale=0.1, 0.5", {"view": View(scale=(0.1, 0.5))}),
    ],
)
def test_override(text: str, expected: dict[str, Any]) -> None:
    start = replace(Config(), limit=1)
    changed = cfg.override(start, [text])
    assert changed == replace(start, **expected)
    name = next(iter(expected))
    assert type(getattr(changed, name)) is type(expected[name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps=5", "Did you mean 'steps'"),
        ("steps", "sets nothing"),
        ("steps=many", "expected: int"),
        ("steps=1.5", "expected: int"),
        ("steps=nan", "expected: int"),
        ("flip=maybe", "expected: bool"),
        ("learning_rate=", "expected: float"),
        ("view.scale=0.1", "expected: 2 values"),
        ("widths=1,x", r"widths\[1\]"),
        ("kind=c", "Literal"),
        ("view.out=3", "View has no field 'out'"),
        ("steps.x=3", "has no fields"),
        ("view=3", "expected: View"),
    ],
)
def test_override_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cfg.override(Config(), [text])


def test_a_refusal_by_the_config_itself_is_a_config_error() -> None:
    @dataclass(frozen=True)
    class Picky:
        size: int = 1

        def __post_init__(self) -> None:
            if self.size < 1:
                raise ValueError("size below 1")

    with pytest.raises(ConfigError, match="size below 1"):
        cfg.override(Picky(), ["size=0"])


def test_a_number_outside_of_its_range_is_named() -> None:
    @dataclass(frozen=True)
    class Picky:
        count: int = 1
        share: tuple[float, float] = (0.2, 0.8)

        def __post_init__(self) -> None:
            cfg.refuse_outside(self, "count", 1)
            cfg.refuse_outside(self, "count share", 0, 7)

    assert cfg.override(Picky(), ["count=7", "share=(0,7)"]).count == 7
    for text, message in (
        ("count=0", "count is 0; it must be at least 1"), ("count=8", "count is 8; it must be from 0 to 7"),
        ("share=(0.1,-1)", r"share is \(0.1, -1.0\); it must be from 0 to 7"), ("share=(nan,1)", "share is"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            cfg.override(Picky(), [text])


def test_a_field_without_default_must_be_given() -> None:
    @dataclass(frozen=True)
    class Strict:
        size: int

    with pytest.raises(ConfigError, match="no value for 'size'"):
        cfg.from_json(Strict, {})


def test_digest_sees_every_field_and_no_order() -> None:
    digests = {cfg.digest(config) for config in (Config(), Config(steps=101), Config(view=View(out_px=65)), ODD)}
    assert len(digests) == 4
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in digests)
    assert cfg.digest({"a": 1, "b": (2, 3)}) == cfg.digest({"b": [2, 3], "a": 1})
    assert cfg.digest({"x": math.inf}) != cfg.digest({"x": math.nan})
    # Written down, so that a change that would orphan every stored digest is seen.
    assert cfg.digest({"a": [1, 2.5, "é", None, True]}) == "64e904af38975654"


def test_field_help_reads_own_and_inherited_texts() -> None:
    assert cfg.field_help(Config) == {
        "steps": "Number of\nsteps.",
        "learning_rate": "Peak learning rate.",
        "name": "Backbone.",
    }


def test_written_json_is_what_browsers_read(tmp_path: Path) -> None:
    cfg.write_json(tmp_path / "new" / "s.json", {"a": np.float32(0.5), "b": math.nan, "c": np.arange(2), "d": tmp_path})
    read = cfg.read_json(tmp_path / "new" / "s.json")
    assert read == {"a": 0.5, "b": None, "c": [0, 1], "d": str(tmp_path)}
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        cfg.write_json(tmp_path / "t.json", {"a": object()})
    assert not (tmp_path / "t.json").exists()


def test_a_name_that_is_no_utf8_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    cfg.write_json(tmp_path / "s.json", {"name": name})
    assert cfg.read_json(tmp_path / "s.json") == {"name": name}


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 5), (errno.EACCES, 2)])
def test_a_failed_write_leaves_the_old_file(
    step: str, number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    cfg.write_json(path, {"a": 1})

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cfg.os, step, fail)
    with pytest.raises(RunError, match=r"s\.json") as caught:
        cfg.write_json(path, {"a": 2})
    assert caught.value.exit_code == code
    assert cfg.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["s.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff\xfe", b"\0\0\0", b"[" * 100_000])
def test_a_corrupt_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(RunError, match=r"s\.json is corrupt"):
        cfg.read_json(tmp_path / "s.json")


def test_file_and_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(cfg.os, "fsync", lambda handle: synced.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    cfg.write_json(tmp_path / "s.json", {"a": 1})
    assert synced == [False, True]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, number = os.fsync, errno.EINVAL

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(cfg.os, "fsync", fsync)
    cfg.write_json(tmp_path / "s.json", {"a": 1})
    assert cfg.read_json(tmp_path / "s.json") == {"a": 1}
    number = errno.EIO
    with pytest.raises(RunError):
        cfg.write_json(tmp_path / "s.json", {"a": 2})


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Cannot read .*s\.json"):
        cfg.read_json(tmp_path / "s.json")


@pytest.mark.parametrize("module", ["errors", "config", "seeds", "record", "guards", "checkpoint"])
def test_imports_no_torch(module: str) -> None:
    code = f"import sys, selftaught.core.{module}; sys.exit('torch' in sys.modules)"
    root = str(Path(cfg.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == 0
