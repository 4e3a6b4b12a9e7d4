"""The comments behind the keys of config files: read for help, and kept equal to the schema.

They are what a command says of its settings, since the classes that know more import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WIDE = 96
_APART = "_global_"
_NARROW = 34  # columns; comments of a mapping begin below each other behind lines up to this


@dataclass(frozen=True)
class Key:
    """A key in a line of its own: whose it is, and where the comment behind it begins.

    `owner` is the `_target_` of its mapping, or the dotted path of one without. `flow` is a value
    in braces, which is commented only where the line stays short.
    """

    owner: str
    name: str
    line: int
    column: int
    flow: bool = False


def keys(text: str, package: str = "") -> list[Key]:
    """The keys of a file whose content lies at the dotted path `package`."""
    tree = yaml.compose(text, _LOADER)
    return list(_keys(tree, package)) if tree is not None else []


def _keys(node: yaml.Node, path: str) -> Iterator[Key]:
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return
    values = {key.value: value for key, value in node.value}
    owner = values["_target_"].value if "_target_" in values else path
    for key, value in node.value:
        below = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if below else value.end_mark
        if getattr(value, "style", None) not in ("|", ">"):
            flow = isinstance(value, yaml.MappingNode) and not below
            yield Key(owner, key.value, end.line, end.column + below, flow)
        yield from _keys(value, f"{path}.{key.value}".lstrip("."))


def meanings(*directories: Path) -> dict[tuple[str, str], str]:
    """(owner, key) -> the first comment behind that key in the files of these directories."""
    found: dict[tuple[str, str], str] = {}
    for directory in directories:
        for file in sorted(directory.rglob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            at = package(directory, file, text)
            if at == _APART and "_target_" not in text:
                continue  # an experiment; what is behind its keys is about their values
            lines = text.splitlines()
            for key in keys(text, at):
                comment = lines[key.line][key.column :].strip().removeprefix("#").strip()
                if comment:
                    found.setdefault((key.owner, key.name), comment)
    return found


def package(directory: Path, file: Path, text: str) -> str:
    """Where Hydra puts what a file says: the groups it lies in.

    A file that says other groups' settings for its own sake, as experiments do, is a place apart.
    """
    if re.match(r"\s*# @package _global_", text):
        return _APART
    return ".".join(file.relative_to(directory).parent.parts)


def commented(text: str, told: Mapping[tuple[str, str], str], at: str = "") -> str:
    """The text with these comments behind its keys, each once, in place of those that are known."""
    lines = text.splitlines()
    found = [key for key in keys(text, at) if (key.owner, key.name) in told]
    wanted = {key: told[key.owner, key.name] for key in _first(found)}
    wanted = {key: c for key, c in wanted.items() if not key.flow or key.column + len(c) < _WIDE}
    for key, comment in wanted.items():
        beside = [k for k in wanted if k.owner == key.owner and k.column <= _NARROW]
        column = max([key.column, *(k.column for k in beside)])
        lines[key.line] = f"{lines[key.line][: key.column]:<{column}}  # {comment}"
    return "\n".join(lines) + "\n"


def _first(found: list[Key]) -> list[Key]:
    """The first key of every name and owner."""
    first: dict[tuple[str, str], Key] = {}
    for key in found:
        first.setdefault((key.owner, key.name), key)
    return list(first.values())
