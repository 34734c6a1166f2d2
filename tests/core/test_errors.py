"""Errors carry four texts and an exit code, and survive the way out of a worker."""

from __future__ import annotations

import copy

import pytest

from selftaught.core import errors


def test_text_joins_only_what_is_given() -> None:
    error = errors.DataError("No pictures.", expected="a folder", why="it is empty", do="Give another.")
    assert str(error) == "No pictures.\nexpected: a folder\nwhy: it is empty\ndo: Give another."
    assert str(errors.RunError("Only this.")) == "Only this."


def test_exit_codes() -> None:
    assert errors.ConfigError("x").exit_code == 2
    assert errors.NumericError("x").exit_code == 4
    assert errors.RunError("x", exit_code=errors.EXIT_DISK).exit_code == 5
    codes = [errors.EXIT_USAGE, errors.EXIT_DATA, errors.EXIT_NONFINITE, errors.EXIT_DISK, errors.EXIT_LOCKED]
    assert [*codes, errors.EXIT_SIGINT, errors.EXIT_SIGTERM] == [2, 3, 4, 5, 6, 130, 143]


@pytest.mark.parametrize("kind", [errors.DataError, errors.NumericError])
def test_a_copy_as_a_worker_sends_it_keeps_everything(kind: type[errors.SelftaughtError]) -> None:
    error = kind("a", expected="b", why="c", do="d", exit_code=3)
    twin = copy.copy(error)
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert twin.exit_code == 3
    assert twin.args == ("a",)


def test_suggest() -> None:
    assert errors.suggest("simclrr", ["simclr", "move"]) == " Did you mean 'simclr'?"
    assert errors.suggest("MOVE", ["simclr", "move"]) == " Did you mean 'move'?"
    assert errors.suggest("zzz", ["simclr", "move"]) == ""
