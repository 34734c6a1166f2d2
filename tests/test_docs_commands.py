"""Every command of `selftaught` in the pages: its words are those of the command, its settings are those of the method."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from selftaught import cli, registry
from selftaught.core.config import override
from selftaught.worlds.meshes import scenes

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> Iterator[list[str]]:
    """Words behind `selftaught` of each command in the code blocks of a page; brackets around what may be left away are taken off."""
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\w+=\S+ |torchrun .*-m )*selftaught (.*)", line.strip())
            if found:
                yield shlex.split(re.sub(r" \[(--[^]]*)\]", r" \1", found[1]), comments=True)


def parsed(words: list[str]) -> dict[str, Any]:
    """What the verb would be called with."""
    verb = cli.VERBS[words[0]]
    seen: dict[str, Any] = {}

    @functools.wraps(verb)
    def stand_in(*args: Any, **kwargs: Any) -> None:
        seen.update(kwargs)
        seen["words"] = args

    cli._check_words(words)
    tyro.extras.subcommand_cli_from_dict({words[0]: stand_in, "other": cli.doctor}, args=words)
    return seen


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_commands_of_a_page_can_be_given(page: Path) -> None:
    for words in commands(page):
        given = parsed(words)
        if words[0] == "train":
            method = registry.load_class(words[1])
            override(method.sizes[given["size"]], given["set_fields"])
            assert {one.partition("=")[0] for one in given["need"]} <= set(method.needs), words
        elif words[:2] == ["data", "make"] and words[2] in ("heads", "cars", "chairs", "meshes"):
            override(scenes.recipe_of(words[2], given["size"]), given["set_fields"])


def test_there_are_commands() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 100
