"""The house rules that a machine can check: sizes, names, docstrings, and bounds that are there once."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tickerplant import limits

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("tickerplant", "feeds", "subscribers")
FILES = [path for folder in (*PRODUCT, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
FORBIDDEN_WORDS = {"manager", "handler", "helper", "helpers", "util", "utils"}
_WORD = re.compile(r"[A-Z]?[a-z]+")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


@cache
def definitions(path: Path) -> list[Definition]:
    """Functions and classes of a file, inner ones too, but for those inside expressions, where none can be."""
    found: list[Definition] = []
    open_blocks: list[ast.AST] = [parsed(path)]
    while open_blocks:
        for node in statements(open_blocks.pop()):
            open_blocks.append(node)
            if isinstance(node, Definition):
                found.append(node)
    return found


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Those directly in `node`, and its blocks that hold some."""
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield from block


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in FILES
        if (lines := len(path.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert not long


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": lines
        for path in FILES
        for node in definitions(path)
        if not isinstance(node, ast.ClassDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not long


def words(name: str) -> set[str]:
    """Of a name in any spelling."""
    return {word.lower() for word in _WORD.findall(name)}


def test_names_say_what_a_thing_is() -> None:
    """`StandardLibraryHandler` is what the standard library calls its own kind."""
    vague = {
        f"{path.relative_to(ROOT)}:{name}"
        for path in FILES
        for name in (path.stem, *(node.name for node in definitions(path)))
        if words(name) & FORBIDDEN_WORDS and name != "StandardLibraryHandler"
    }
    assert not vague


def test_each_file_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in FILES
        if path.read_text().strip() and not ast.get_docstring(parsed(path))
    ]
    assert not silent


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in FILES if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def bounds_of(module: str) -> set[str]:
    """The constants of a module that are written in capitals."""
    return {name for name in vars(importlib.import_module(module)) if name.isupper()}


@pytest.mark.parametrize(
    "part",
    [f"tickerplant.limits.{module.name}" for module in pkgutil.iter_modules(limits.__path__)],
)
def test_bounds_are_in_one_part_each_and_in_limits(part: str) -> None:
    others = {
        name
        for module in pkgutil.iter_modules(limits.__path__)
        if (other := f"tickerplant.limits.{module.name}") != part
        for name in bounds_of(other)
    }
    assert bounds_of(part)
    assert bounds_of(part) <= bounds_of("tickerplant.limits")
    assert not bounds_of(part) & others
