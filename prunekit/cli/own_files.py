"""Check the files in --config-dir before Hydra reads them, which trusts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from prunekit.config import user_folders
from prunekit.errors import ConfigError

_DEEPEST = 40  # levels of lists and mappings
_MOST = 20_000  # values, with those that aliases repeat
_PLAIN_TAG = "tag:yaml.org,2002:"
_OF_PYTHON = f"{_PLAIN_TAG}python/"


def check_own_files(argv: Sequence[str]) -> None:
    """Raise ConfigError for a chosen file in --config-dir that is no plain YAML with settings.

    Files that its defaults name are checked too. Nothing is built from them: aliases that repeat
    each other would fill the memory, and tags of Python would make objects.
    """
    for folder in user_folders(argv):
        for argument in argv:
            group, _, choices = argument.lstrip("+").partition("=")
            for choice in choices.split(","):
                _check(folder, folder / group / f"{choice}.yaml", ())


def _check(folder: Path, file: Path, before: tuple[Path, ...]) -> None:
    """Check a file and those that its defaults name; `before` are the files that led to it."""
    if not file.is_file():
        return  # Hydra says so, or the choice is built in
    if file in before:
        raise ConfigError(f"the defaults of {file} lead back to it; take that entry out")
    content = file.read_bytes()
    try:
        _check_nodes(file, content)
        settings = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML{_place(error)}; write KEY: VALUE lines") from error
    entries = settings.get("defaults") if isinstance(settings, dict) else None
    for name in _named(folder, file.parent, entries if isinstance(entries, list) else []):
        _check(folder, name, (*before, file))


def _place(error: yaml.YAMLError) -> str:
    """Return where the error is and what it is, as far as the error says so."""
    mark = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None)
    return f"{line}: {problem}" if problem else line


def _named(folder: Path, here: Path, entries: Sequence[Any]) -> Iterator[Path]:
    """Return the paths that the entries of a list of defaults stand for; they need not exist."""
    for entry in entries:
        pairs = entry.items() if isinstance(entry, dict) else [("", entry)]
        for key, choice in pairs:
            group = str(key).split("@")[0].removeprefix("override ").removeprefix("optional ")
            base = folder if group.startswith("/") else here
            yield base / group.strip("/ ") / f"{choice}.yaml"


def _check_nodes(file: Path, content: bytes) -> None:
    """Raise ConfigError for tags of Python, deep nesting, repeated aliases, and other documents."""
    open_nodes: list[list[Any]] = []  # anchor and number of values of lists and mappings around
    sizes: dict[str, int] = {}
    documents = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise ConfigError(f"{file} holds several documents; write one, without ---")
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor] = size
            _count(file, open_nodes, size)
        elif isinstance(event, yaml.NodeEvent):
            _check_node(file, event, open_nodes)
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append([event.anchor, 1])
            else:
                alias = isinstance(event, yaml.AliasEvent)
                size = sizes.get(str(event.anchor), 1) if alias else 1
                _count(file, open_nodes, size)


def _check_node(file: Path, event: yaml.NodeEvent, around: Sequence[Sequence[Any]]) -> None:
    line = event.start_mark.line + 1 if event.start_mark else 0
    tag = str(getattr(event, "tag", None) or "")
    if tag.startswith(_OF_PYTHON):
        raise ConfigError(
            f"{file}, line {line}: !!{tag.removeprefix(_PLAIN_TAG)} makes an object of Python; "
            "write plain values"
        )
    if len(around) > _DEEPEST:
        raise ConfigError(f"{file}, line {line} is nested too deeply; write fewer levels")
    if isinstance(event, yaml.AliasEvent) and event.anchor in [anchor for anchor, _ in around]:
        raise ConfigError(f"{file}, line {line}: *{event.anchor} holds itself; write a value")
    mapping = isinstance(event, yaml.MappingStartEvent)
    empty = isinstance(event, yaml.ScalarEvent) and not event.value
    if not around and not mapping and not empty:
        raise ConfigError(f"{file} holds no settings; write KEY: VALUE lines")


def _count(file: Path, around: Sequence[list[Any]], size: int) -> None:
    """Add the number of values of a node to the list or mapping around it."""
    if around:
        around[-1][1] += size
        if around[-1][1] > _MOST:
            raise ConfigError(f"{file} holds more than {_MOST:,} values; write fewer aliases")
