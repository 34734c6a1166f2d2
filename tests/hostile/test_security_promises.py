"""Every promise of SECURITY.md names tests, and every test that it names is there and is run by default."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
WITHOUT_TEST = {
    "Nothing is sent anywhere. The network is used only for data URLs that you give.": "no test can show that something never happens",
}
"""Promises without a test, each with the reason."""


def promises() -> list[str]:
    """The bullet points of the sections that promise something."""
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    kept = [section for section in sections if not section.startswith("What is not promised")]
    assert len(kept) == len(sections) - 1
    return [" ".join(point.split()) for section in kept for point in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]


def links(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)


def resolves(path: str, name: str, root: Path = ROOT) -> bool:
    """Whether a file has a test function of that name that neither a mark nor a nest keeps from running."""
    if not (root / path).is_file():
        return False
    for node in ast.parse((root / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name and name.startswith("test_"):
            marks = " ".join(ast.unparse(mark) for mark in node.decorator_list)
            return not re.search(r"mark\.(skip|xfail|nightly)\b", marks)
    return False


@pytest.mark.parametrize("promise", promises(), ids=lambda text: text[:40])
def test_every_promise_names_a_test(promise: str) -> None:
    assert links(promise) or promise in WITHOUT_TEST, promise


@pytest.mark.parametrize("link", links(TEXT), ids="::".join)
def test_every_named_test_is_there(link: tuple[str, str]) -> None:
    assert resolves(*link), "::".join(link)


def test_the_check_would_see_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    body = "import pytest\ndef test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass\nclass C:\n    def test_c(self): pass\n"
    (tmp_path / "tests" / "test_x.py").write_text(body)
    found = [resolves("tests/test_x.py", name, tmp_path) for name in ("test_a", "test_b", "test_c", "test_d")]
    assert found == [True, False, False, False] and not resolves("tests/test_y.py", "test_a", tmp_path)
    assert len(promises()) >= 15 and len(links(TEXT)) >= 25 and not links("a promise without one")
