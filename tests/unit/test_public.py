"""The public names: they are listed, they have types, and what documents name exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import prunekit

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def names() -> list[str]:
    """Every dotted name below prunekit in README.md, CONTRIBUTING.md and docs."""
    texts = [file.read_text() for file in DOCUMENTS]
    return sorted({name for text in texts for name in re.findall(r"\bprunekit(?:\.\w+)+", text)})


def resolve(name: str) -> object:
    """Return what a dotted name stands for; modules may need to be imported first."""
    value: object = prunekit
    path = "prunekit"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(path)
    return value


@pytest.mark.parametrize("name", names())
def test_documents_name_what_exists(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("name", prunekit.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(prunekit, name) is not None
    assert name in dir(prunekit)


def test_type_checkers_see_every_public_name():
    """They read the imports that do not run."""
    tree = ast.parse((ROOT / "prunekit" / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and "not" not in ast.unparse(n.test)]
    imported = {alias.asname: node.module for node in block.body for alias in node.names}
    assert imported.keys() == {*prunekit.__all__}
    assert (ROOT / "prunekit" / "py.typed").is_file()
    for name, module in imported.items():
        owner = prunekit._OWNERS.get(name)
        assert module == (f"prunekit.{owner}" if owner else "prunekit")
