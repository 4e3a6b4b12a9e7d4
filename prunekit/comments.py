"""The comments behind the keys of config files: read for help, and kept equal to the schema.

`--help` reads the comments, because the classes that declare the settings import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WIDTH = 96  # columns that a line with a value in braces and its comment may take
_GLOBAL = "_global_"
_ALIGNED = 34  # columns; comments of a mapping are aligned behind lines up to this


@dataclass(frozen=True)
class Key:
    """A key on a line of its own: its owner, and the position of the comment behind it.

    `owner` is the `_target_` of its mapping, or the dotted path of a mapping without one. `flow`
    marks a value in braces, which gets a comment only where the line stays short.
    """

    owner: str
    name: str
    line: int
    column: int
    flow: bool = False


def keys(text: str, package: str = "") -> list[Key]:
    """Return the keys of a file whose content lies at the dotted path `package`."""
    tree = yaml.compose(text, _LOADER)
    return list(_keys(tree, package)) if tree is not None else []


def _keys(node: yaml.Node, path: str) -> Iterator[Key]:
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return
    values = {key.value: value for key, value in node.value}
    owner = values["_target_"].value if "_target_" in values else path
    for key, value in node.value:
        nested = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if nested else value.end_mark
        if getattr(value, "style", None) not in ("|", ">"):
            flow = isinstance(value, yaml.MappingNode) and not nested
            yield Key(owner, key.value, end.line, end.column + nested, flow)
        yield from _keys(value, f"{path}.{key.value}".lstrip("."))


def read_comments(*directories: Path) -> dict[tuple[str, str], str]:
    """Return (owner, key) -> the first comment behind that key in the files of directories."""
    comments: dict[tuple[str, str], str] = {}
    for directory in directories:
        for file in sorted(directory.rglob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            path = package(directory, file, text)
            if path == _GLOBAL and "_target_" not in text:
                continue  # the comments of an experiment are about its values
            lines = text.splitlines()
            for key in keys(text, path):
                comment = lines[key.line][key.column :].strip().removeprefix("#").strip()
                if comment:
                    comments.setdefault((key.owner, key.name), comment)
    return comments


def package(directory: Path, file: Path, text: str) -> str:
    """Return the dotted path at which Hydra places the content of a file.

    It is the path of its groups. Files that set other groups, such as experiments, are global.
    """
    if re.match(r"\s*# @package _global_", text):
        return _GLOBAL
    return ".".join(file.relative_to(directory).parent.parts)


def write_comments(text: str, comments: Mapping[tuple[str, str], str], path: str = "") -> str:
    """Return the text with these comments behind its keys, in place of earlier ones.

    Each comment is written once, behind the first key that it belongs to.
    """
    lines = text.splitlines()
    first = _first([key for key in keys(text, path) if (key.owner, key.name) in comments])
    written = {key: comments[key.owner, key.name] for key in first}
    written = {k: c for k, c in written.items() if not k.flow or k.column + len(c) < _WIDTH}
    for key, comment in written.items():
        aligned = [k for k in written if k.owner == key.owner and k.column <= _ALIGNED]
        column = max([key.column, *(k.column for k in aligned)])
        lines[key.line] = f"{lines[key.line][: key.column]:<{column}}  # {comment}"
    return "\n".join(lines) + "\n"


def _first(candidates: Sequence[Key]) -> list[Key]:
    """Return the first key of every owner and name."""
    first: dict[tuple[str, str], Key] = {}
    for key in candidates:
        first.setdefault((key.owner, key.name), key)
    return list(first.values())
