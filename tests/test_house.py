"""The rules of the house: who imports whom, how long things are, what belongs to a method, what must not be."""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import selftaught
from selftaught import registry
from selftaught.core.config import field_help

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "selftaught"
FOUNDATION = ("core", "data", "nets", "measure")
IMPORTER = SOURCE / "core" / "foreign.py"
FUNCTION_LINES = 60
FILE_LINES = 500
CACHES = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
SKIPPED_FOLDERS = {".git", ".venv", "runs", "build", "dist", *CACHES}
ROOMS = ("representation", "segmentation", "control", "shape3d")
DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "normal", "multinomial"}
VAGUE_NAMES = ("utils.py", "util.py", "helpers.py", "helper.py", "common.py")


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All of a module."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def ours() -> Iterator[Path]:
    """Every file that belongs to the repository, tracked or not yet."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.endswith(".egg-info")]
        yield from (Path(folder) / name for name in files)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import of a module, also inside functions; relative ones are made absolute."""
    package = ["selftaught", *path.relative_to(SOURCE).parts[:-1]]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of_import(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "selftaught" and parts[1] in registry.ROOMS else None


def test_the_foundation_and_the_report_import_no_room() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        if path.relative_to(SOURCE).parts[0] in (*FOUNDATION, "report")
        for line, name in imported(path)
        if room_of_import(name)
    ]
    assert not wrong, wrong


def test_rooms_do_not_import_each_other() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        if path.relative_to(SOURCE).parts[0] in registry.ROOMS
        for line, name in imported(path)
        if room_of_import(name) not in (None, path.relative_to(SOURCE).parts[0])
    ]
    assert not wrong, wrong


def test_the_import_rules_would_see_a_wrong_import() -> None:
    assert room_of_import("selftaught.segmentation.lost.Lost") == "segmentation"
    assert room_of_import("selftaught.segmentation") == "segmentation"
    assert room_of_import("selftaught.core.errors") is None
    found = [name for _, name in imported(SOURCE / "cli.py")]
    assert "selftaught.train.train" in found, "imports inside functions count"


def test_functions_are_short() -> None:
    long = []
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert not long, long


def test_files_are_short_and_have_telling_names() -> None:
    long = [
        f"{path.relative_to(ROOT)} has {lines} lines"
        for path in [*modules(), *sorted((ROOT / "tests").rglob("*.py"))]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES
    ]
    assert not long, long
    vague = [str(path) for path in ours() if path.name in VAGUE_NAMES]
    assert not vague, vague


def test_no_pickle_anywhere() -> None:
    wrong = []
    for path in modules():
        for line, name in imported(path):
            if name.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
        safe = [id(node.func) for node in nodes(path) if path == IMPORTER and _loads_weights_only(node)]
        assert len(safe) == (path == IMPORTER), "one safe torch.load in the module for foreign weights, none elsewhere"
        for node in nodes(path):
            if id(node) in safe:
                continue
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save") and _is_torch(node.value):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses torch.{node.attr}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is_false(node.value):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} allows pickle")
    assert not wrong, wrong


def _loads_weights_only(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" and "weights_only=True" in ast.unparse(node)


def _is_torch(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_rooms_draw_by_the_share_of_each_process() -> None:
    """`core.draws` (or a generator) in the trainings: with torch's own every process draws the same numbers for other pictures."""
    wrong = []
    for path in (path for path in modules() if path.relative_to(SOURCE).parts[0] in ROOMS):
        calls = [node for node in nodes(path) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        weights = {id(part) for node in calls if node.func.attr == "Parameter" for part in ast.walk(node)}
        for node in calls:
            if _is_torch(node.func.value) and node.func.attr in DRAWS and id(node) not in weights:
                if not any(k.arg == "generator" for k in node.keywords):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}")
    assert not wrong, wrong


def test_no_error_is_swallowed_and_nothing_is_left_unfinished() -> None:
    wrong = []
    unfinished = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "place" + "holder")
    for path in modules():
        text = path.read_text(encoding="utf-8")
        wrong += [f"{path.relative_to(ROOT)} holds {word}" for word in unfinished if word in text]
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                if node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} swallows every error")
    assert not wrong, wrong


@pytest.mark.parametrize("name", list(registry.methods()))
def test_every_method_has_its_four_files(name: str) -> None:
    module, _, attribute = registry.find(name).path.partition(":")
    room = registry.room_of(name)
    assert module == f"selftaught.{room}.{name}"
    source = SOURCE / room / f"{name}.py"
    assert source.is_file()
    assert any(
        isinstance(node, ast.ClassDef) and node.name == attribute
        for node in ast.parse(source.read_text(encoding="utf-8")).body
    ), f"{source} defines no class {attribute}"
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()
    assert (ROOT / "tests" / room / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", list(registry.methods()))
def test_every_setting_has_its_words(name: str) -> None:
    settings = registry.load_class(name).Config
    words = field_help(settings)
    assert {field.name for field in dataclasses.fields(settings)} == words.keys() and min(map(len, words.values())) > 10


@pytest.mark.parametrize("name", list(registry.methods()))
def test_every_docs_page_has_the_form(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "The idea",
        "Usage",
        "What each logged number means",
        "Implementation details",
        "Results",
        "Limits",
    ]
    assert f"<!-- results:{name} -->\n" in text and "<!-- /results -->" in text
    assert f"(methods/{name}.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"docs/methods/{name}.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_between_pages_lead_somewhere() -> None:
    import re

    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken, broken


def test_no_path_of_a_machine() -> None:
    wrong = []
    # Put together here, so that this file does not hold them itself.
    machines = ["/" + name for name in ("work/", "tmp/bash", "root/", "home/")]
    for path in ours():
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".html", ".yml", ".cfg", "") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            wrong += [f"{path.relative_to(ROOT)} holds {name}" for name in machines if name in text]
    assert not wrong, wrong


def test_nothing_big_is_committed() -> None:
    sizes = {path: path.stat().st_size for path in ours() if path.is_file()}
    big = [f"{path.relative_to(ROOT)}: {size / 1e6:.1f} MB" for path, size in sizes.items() if size > 2_000_000]
    assert not big, big
    assets = sum(size for path, size in sizes.items() if SOURCE in path.parents and path.suffix != ".py")
    assert assets < 15_000_000


def test_the_public_api_is_what_it_was() -> None:
    assert dir(selftaught) == ["__version__", "learn", "load", "methods", "train"]
    cuts = ["lost", "tokencut", "tokencut_video", "spectral", "selfmask", "move", "move_video", "cutler", "freesolo", "cad", "solo"]
    solids = ["shape_gan", "shape_autoencoder"]
    assert list(selftaught.methods()) == ["simclr", "dino", "mae", "pretrained", *cuts, "glass", "lapo", "viewpoint", "unsup3d", *solids]
    with pytest.raises(AttributeError, match="has no attribute 'lern'"):
        selftaught.lern  # noqa: B018


def test_public_names_stay_functions_when_their_modules_are_imported() -> None:
    code = (
        "import importlib, selftaught\n"
        "for name in ('train', 'learn'):\n"
        "    module = importlib.import_module('selftaught.' + name)\n"
        "    assert callable(getattr(selftaught, name)), name\n"
        "    assert getattr(selftaught, name) is getattr(module, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["selftaught", "selftaught.cli", "selftaught.registry", "selftaught.doctor"])
def test_importing_is_light(module: str) -> None:
    code = (
        f"import sys, {module}, selftaught\n"
        "selftaught.methods()\n"
        "heavy = {'torch', 'timm', 'sklearn', 'scipy', 'matplotlib', 'PIL', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_tables_of_the_docs_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_docs_tables.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
