"""The stub and the extension list the same names, in both directions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pope_fast
from pope_fast import _core

STUB = Path(pope_fast.__file__).with_name("_core.pyi")


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def stub_names(body: list[ast.stmt]) -> set[str]:
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return public(names)


TREE = ast.parse(STUB.read_text(encoding="utf-8"))
CLASSES = [node for node in TREE.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def test_stub_and_extension_have_the_same_functions_and_classes() -> None:
    assert stub_names(TREE.body) == public(dir(_core))


@pytest.mark.parametrize("node", [node for node in CLASSES if hasattr(_core, node.name)], ids=lambda node: node.name)
def test_stub_and_extension_have_the_same_members(node: ast.ClassDef) -> None:
    assert stub_names(node.body) == public(list(vars(getattr(_core, node.name))))


def test_everything_in_the_extension_says_what_it_does() -> None:
    bare = [name for name in sorted(public(dir(_core))) if not (getattr(_core, name).__doc__ or "").strip()]
    assert not bare
