"""The arguments of a command as Hydra takes them, from what people type."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from prunekit.errors import ConfigError, one_of

QUIET = "--quiet"
VERSION = "--version"
COMPLETION = ("-sc", "--shell-completion")
_SWITCHES = ("--help", "-h", "--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m")
_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i", *COMPLETION),
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    "--experimental-rerun",
)
_SHOWN = ("all", "hydra", "job")  # what --cfg prints
_GRAMMAR = frozenset("()[]{}")  # of lists, mappings and functions; Hydra reads such values itself
_TEXTS = ("name", "root", "source", "weights", "dataset.root")  # what people name as they like
_NOT_TEXT = re.compile(r"true|false|[\[{].*|[+-]?(\d|\.\d|inf|nan).*", re.IGNORECASE)
_UNREADABLE = re.compile(r"[^\w/\\.+$%*@?|:,\s-]", re.ASCII)  # in a value without quotes


def hydra_arguments(argv: Sequence[str], settings: Collection[str]) -> list[str]:
    """Return the arguments, with values in quotes where Hydra needs them.

    `settings` are the names of groups and of settings without a group. Raises ConfigError for flags
    that do not exist and for spaces around =.
    """
    _check_flags(argv, settings)
    _check_spaces(argv)
    separators = "," if {"-m", "--multirun"} & {*argv} else ""
    return [_quote(argument, separators) for argument in argv]


def is_override(argument: str) -> bool:
    """Return True for an override; Hydra 1.3 does not accept flags between overrides."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def plain_arguments(argv: Sequence[str]) -> list[str]:
    """Return the arguments that are neither flags nor the values of flags."""
    follows = [False, *(argument in _WITH_VALUE for argument in argv)]
    return [
        argument
        for argument, is_value in zip(argv, follows, strict=False)
        if not is_value and not argument.startswith("-")
    ]


def _quote(argument: str, separators: str) -> str:
    """Quote a value with characters that Hydra reads only in quotes, as in paths of sweeps.

    Values with characters of Hydra's grammar, or with separators of a sweep, stay as they are
    unless they are existing paths. A name stays as it was typed also where Hydra would read a
    number or a list.
    """
    key, _, value = argument.partition("=")
    if not is_override(argument) or {*value} & {*"'\"\\"}:
        return argument
    if key in _TEXTS and _NOT_TEXT.fullmatch(value) and not {*value} & {*"$,"}:
        return f'{key}="{value}"'
    if not _UNREADABLE.search(value):
        return argument
    plain = not {*value} & {*_GRAMMAR, *separators}
    return f'{key}="{value}"' if plain or os.path.exists(value) else argument


def _check_flags(argv: Sequence[str], settings: Collection[str]) -> None:
    """Raise ConfigError for a flag that neither prunekit nor Hydra has."""
    known = (*_SWITCHES, *_WITH_VALUE)
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, _, value = argument.partition("=")
        name = flag.lstrip("-")
        if flag in ("--cfg", "-c") and (shown := value or following) not in _SHOWN:
            raise ConfigError(f"{flag} {shown}: {one_of(shown, _SHOWN)}")
        if not flag.startswith("-") or flag in known:
            continue
        if f"-{flag}" in known:
            raise ConfigError(f"{flag} is no flag; did you mean -{flag}?")
        if name.split(".")[0] in settings:
            value = value or ("VALUE" if following.startswith("-") else following or "VALUE")
            raise ConfigError(f"{flag} is a setting, which has no dashes; write {name}={value}")
        flags = (word for word in (*known, QUIET, VERSION) if word.startswith("--"))
        raise ConfigError(f"{flag} is no flag; {one_of(flag, flags)}")


def _check_spaces(argv: Sequence[str]) -> None:
    """Raise ConfigError for KEY = VALUE, KEY= VALUE and KEY =VALUE, which are several words."""
    words = plain_arguments(argv)
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        name, value = (before, after) if word == "=" else (before, word[1:])
        if word.startswith("=") and before and "=" not in before:
            typed = f"{before} {word}{f' {after}' if word == '=' and after else ''}"
            raise ConfigError(f"{typed} has a space beside =; write {name}={value or 'VALUE'}")
        if word.endswith("=") and word != "=" and after and "=" not in after:
            raise ConfigError(f"{word} {after} has a space behind =; write {word}{after}")
