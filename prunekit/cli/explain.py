"""One line for every error of a command that the user can mend."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from prunekit.cli.arguments import plain_arguments
from prunekit.config import config_dir, describe_reference, groups, resolve, unwrap, user_folders
from prunekit.errors import PrunekitError, one_of

_UNREADABLE = (
    "missing EQUAL at|no viable alternative|mismatched input|extraneous input|Lexer|"
    "token recognition"
)
_EXTRAS = {  # launchers and sweepers of other packages -> the extra that installs them
    "joblib": "joblib",
    "submitit": "submitit",
    "ray": "ray",
    "optuna": "optuna",
    "tpe": "optuna",
}


def admit_own_arguments(command: str, argv: Sequence[str]) -> list[str]:
    """Put + before arguments of a class of the user's own that no config file holds.

    Such a class is named by a `_target_` in `argv`, or by a file in --config-dir.
    """
    from hydra.errors import HydraException

    folders = [groups(folder) for folder in user_folders(argv) if folder.is_dir()]
    chosen = [argument.partition("=") for argument in argv]
    own = {key.removesuffix("_target_") for key, _, _ in chosen if key.endswith("._target_")}
    own |= {f"{key}." for key, _, choice in chosen for f in folders if choice in f.get(key, ())}
    arguments = [key for key, _, _ in chosen if key.startswith(tuple(own))]
    if not own or not arguments:
        return [*argv]
    try:
        known = {*_keys(command, argv)}
    except (HydraException, OmegaConfBaseException):
        return [*argv]  # a choice that does not exist; the command itself says so
    new = {key for key in arguments if key not in known}
    return [f"+{a}" if key in new else a for a, (key, _, _) in zip(argv, chosen, strict=True)]


def explain(error: Exception, command: str, argv: Sequence[str]) -> str | None:
    """Return one line about an error that the user can mend, None for any other error."""
    from hydra.errors import HydraException

    text = " ".join(str(error).split())
    if isinstance(error, PrunekitError):
        return _with_custom(text, argv)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _explain_choice(text, argv) or _explain_key(text, command, argv)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = error.filename or "a file"
        return f"{place} cannot be written: no space left on the device; free some and repeat"
    if isinstance(error, OSError):
        place = error.filename or "a file"
        return f"{place} cannot be used: {error.strerror or text}; mend that, or choose root=..."
    # Hydra reads model=3 as a number and raises a plain ValueError
    return _explain_choice(text, argv) if isinstance(error, ValueError) else None


def _with_custom(text: str, argv: Sequence[str]) -> str:
    """Add which choice takes classes of the user's own, where another one set the argument."""
    refused = re.match(r"(\w+)\.\w+ is no setting of", text)
    group = refused[1] if refused else ""
    own = any(argument.startswith(f"{group}._target_=") for argument in argv)
    if not own or "custom" not in groups().get(group, ()) or f"{group}=custom" in argv:
        return text
    return f"{text}; {group}=custom has no settings of another class"


def _explain_choice(text: str, argv: Sequence[str]) -> str | None:
    """Explain a group choice that does not exist, or an override without a name."""
    missing = re.search(r"Could not find '([\w./-]+)/([^/']+)'", text)
    if missing and missing.group(1).startswith("hydra/"):
        return _explain_plugin(*missing.groups())
    if missing:
        group, choice = missing.groups()
        return f"{group}={choice} is no choice; {one_of(choice, _available(argv).get(group, ()))}"
    if "Config group override must be a string" in text:
        built_in = groups()
        for override in argv:
            group, _, choice = override.lstrip("+").partition("=")
            if group in built_in and choice not in built_in[group]:
                return f"{override} is no choice; {one_of(choice, built_in[group])}"
        nameless = next((a for a in argv if a.lstrip("+").startswith("=")), "an override")
        return f"{nameless} has no name in front of its =; write KEY=VALUE"
    return None


def _explain_plugin(group: str, choice: str) -> str:
    """Explain a launcher or sweeper whose package is not installed."""
    extra = _EXTRAS.get(choice.split("_")[0])
    mend = f"pip install 'prunekit[{extra}]'" if extra else "install the package that brings it"
    return f"{group}={choice} is no part of Hydra itself; {mend}"


def _explain_key(text: str, command: str, argv: Sequence[str]) -> str:
    """Explain a missing or unknown key, or an override that cannot be read."""
    referring = (a.lstrip("+").partition("=") for a in argv if "${" in a)
    suspect = next((key for key, _, _ in referring), "a setting")
    if missing := describe_reference(text, suspect):
        return missing
    if re.search(_UNREADABLE, text):
        unread = next((a for a in plain_arguments(argv) if "=" not in a and a[0] != "~"), None)
        if unread:
            return f"{unread} has no value; write KEY=VALUE, and quote lists and mappings"
        typed = _first_unreadable(argv) or next((a for a in argv if a in text), "an override")
        key, _, value = typed.partition("=")
        return f"{typed} cannot be read; quote the value: '{key}=\"{value}\"'"
    if again := re.search(r"An item is already at '([^']+)'", text):
        return f"{again[1]} is there already; write {again[1]}=... without +"
    unknown = re.search(r"Could not (?:override|append) '([^']+)'", text) or re.search(
        r"Key '([^']+)' is not in struct", text
    )
    if unknown:
        key = unknown.group(1).split("@")[0]
        if any(argument.startswith(f"{key.split('.')[0]}._target_=") for argument in argv):
            return f"{key} is not in the file of that choice; +{key}=... gives it to your own class"
        hint = one_of(key, _keys(command, argv))
        return f"{key} is no setting of {command}; {hint} (prunekit {command} --help lists all)"
    return _explain_override(text, command, argv) or unwrap(text.split(" See https")[0])


def _first_unreadable(argv: Sequence[str]) -> str | None:
    """Return the first override that Hydra cannot parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for argument in argv:
        try:
            if not argument.startswith("-"):
                parser.parse_override(argument)
        except HydraException:
            return argument
    return None


def _explain_override(text: str, command: str, argv: Sequence[str]) -> str | None:
    """Explain an override that Hydra reads but cannot apply."""
    if twice := re.search(r"Multiple values for ([\w/]+)", text):
        return f"{twice[1]} has a choice already; {twice[1]}=CHOICE without + replaces it"
    if several := re.search(r"Ambiguous value for argument '(.+?)'", text):
        key, _, values = several[1].partition("=")
        mend = "" if key in groups() else f", or write {key}=[{values}] for a list"
        return f"{several[1]} holds several values; add -m for one job per value{mend}"
    if absent := re.search(r"Could not delete.*? '([^']+)'", text):
        keys = _keys(command, argv)
        mend = "it is null already" if absent[1] in keys else one_of(absent[1], keys)
        return f"~{absent[1]} takes out what is not there; {mend}"
    if lacking := re.search(r"In '([^']+)': Could not (?:load|find) '([^']+)'", text):
        return (
            f"{lacking[1]}.yaml names {lacking[2]} in its defaults, which does not exist; mend it"
        )
    if folder := re.search(r"Additional config directory '([^']+)' not found", text):
        return f"--config-dir: there is no folder {folder[1]}"
    if "Cannot find primary config" in text:
        return f"prunekit {command} has its own config; leave --config-name and --config-path out"
    return None


def _keys(command: str, argv: Sequence[str]) -> list[str]:
    """Return the groups and dotted keys of the config that the choices in `argv` compose."""
    available = _available(argv)
    choices = [argument for argument in argv if _is_choice(argument, available)]
    return [*available, *_dotted(_compose(command, argv, choices))]


def compose_settings(command: str, argv: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings that these overrides compose, with the folders that `argv` names."""
    return resolve(_compose(command, argv, overrides))


def _compose(command: str, argv: Sequence[str], overrides: Sequence[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folders = [folder.resolve() for folder in user_folders(argv) if folder.is_dir()]
    places = ",".join(f"'file://{folder}'" for folder in folders)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return compose(command, overrides=[*overrides, f"hydra.searchpath=[{places}]"])


def _available(argv: Sequence[str]) -> dict[str, list[str]]:
    """Return every group with its choices, also those in the folders that --config-dir names."""
    available = groups()
    for folder in user_folders(argv):
        for group, files in groups(folder).items() if folder.is_dir() else ():
            available[group] = [*available.get(group, ()), *files]
    return available


def _is_choice(argument: str, built_in: Mapping[str, list[str]]) -> bool:
    group, _, choice = argument.partition("=")
    return "," not in argument and choice in built_in.get(group, ())


def _dotted(node: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of a config, those of mappings before those in them."""
    if not isinstance(node, DictConfig):
        return [prefix]
    start = f"{prefix}." if prefix else ""
    children = [_dotted(node._get_node(key), start + str(key)) for key in node]
    return [*([prefix] if prefix else []), *(key for keys in children for key in keys)]
