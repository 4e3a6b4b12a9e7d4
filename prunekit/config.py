"""Where the configs lie, and how a composed config becomes plain settings."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunekit.comments import commented, meanings
from prunekit.console import complain
from prunekit.errors import ConfigError, PrunekitError, one_of
from prunekit.validate import number


def config_dir() -> Path:
    """The configs that ship with prunekit: bundled in a wheel, top-level in a checkout."""
    package = Path(__file__).resolve().parent
    bundled = package / "configs"
    return bundled if bundled.is_dir() else package.parent / "configs"


def resolve(config: Any) -> dict[str, Any]:
    """A DictConfig as plain nested dictionaries, interpolations resolved, `hydra` left out."""
    try:
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        raise ConfigError(_missing(str(error)) or _unwrapped(text)) from error
    if not isinstance(settings, dict):
        raise ConfigError("the composed config is not a mapping")
    return {str(key): value for key, value in settings.items()}


def command_of(stage: str, hydra: Any) -> str:
    """The line that makes this job again, and finds its directory again; `hydra` is its config.

    A job of a sweep is named by its directory, since alone it would lie in that of the sweep.
    """
    overrides = [line for line in hydra.overrides.task if not line.startswith(_NOT_AGAIN)]
    if str(hydra.mode).endswith("MULTIRUN"):
        inside = Path(hydra.sweep.subdir).parent
        overrides = [line for line in overrides if not line.startswith("name=")]
        overrides.append(f'name="{inside}"')
    places = [source.path for source in hydra.runtime.config_sources if source.provider == _USER]
    folders = [f"--config-dir={os.path.relpath(place)}" for place in places]
    return shlex.join(["prunekit", stage, *folders, *overrides])


_NOT_AGAIN = ("overwrite=", "stage=", "search=", "launch=")
_USER = "command-line"  # what Hydra calls the source that --config-dir adds


def concavity(flat: float, lam: float) -> float:
    """The gamma of MCP, or the a of SCAD, whose penalty of strength `lam` is constant past `flat`.

    `flat` is in units of what is penalised, so it means the same for every `lam` of a sweep.
    Configs call it as `${concavity:FLAT,LAM}`.
    """
    number("regularizer.flat", flat, above=0)
    try:
        return flat / number("regularizer.lam", lam, above=0)
    except ConfigError as error:
        raise ConfigError(
            f"{error}, where the penalty turns flat at regularizer.flat={flat}; for no penalty "
            "choose regularizer=none"
        ) from error


def fitting(name: str) -> str:
    """A name for a folder: itself, or its beginning and a digest where file systems refuse it.

    A folder of images in it is written without slashes, which would make folders of their own.
    """
    name = re.sub(r"(?<=dataset\.root=)[^,]*", lambda root: root[0].replace("/", "-"), name)
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: _LONGEST - 13].decode(errors='ignore')}-{digest}"


_LONGEST = 200  # bytes; 255 is what most file systems take


def documented(*, _root_: DictConfig) -> str:
    """The composed settings with what each means behind it, as the template of help takes text."""
    settings = OmegaConf.masked_copy(_root_, [key for key in _root_ if key != "hydra"])
    sources = [s.path for s in _root_.hydra.runtime.config_sources if s.schema == "file"]
    told = meanings(*map(Path, sources))
    return commented(OmegaConf.to_yaml(settings), told).replace("$", "$$")


OmegaConf.register_new_resolver("concavity", concavity, replace=True)
OmegaConf.register_new_resolver("fitting", fitting, replace=True)
OmegaConf.register_new_resolver("documented", documented, replace=True)


def _unwrapped(text: str) -> str:
    """What a function of an interpolation said, without OmegaConf's words in front of it."""
    return re.sub(r"^ConfigError raised while resolving interpolation: ", "", text)


def _missing(text: str) -> str | None:
    """Which ??? was not filled in, if that is what the error says."""
    found = re.search(r"Missing mandatory value: ([\w.]+)", text)
    full = re.search(r"full_key: ([\w.]+)", text)
    if found is None or full is None:
        return None
    key = found.group(1) if "." in found.group(1) else full.group(1)
    return f"{key} is not set; give {key}=..."


def groups(directory: Path | None = None) -> dict[str, list[str]]:
    """Every config group with the options in it; the folders are the registry."""
    root = directory or config_dir()
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


def explain(error: Exception, command: str, argv: Sequence[str]) -> str | None:
    """One line for an error that the user can mend, None for any other error."""
    from hydra.errors import HydraException

    text = " ".join(str(error).split())
    if isinstance(error, PrunekitError):
        return text
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _refused(text, argv) or _composed(text, command, argv)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be used: {error.strerror or text}"
    # Hydra takes model=3 for a number and says so in a ValueError of its own
    return _refused(text, argv) if isinstance(error, ValueError) else None


def _refused(text: str, argv: Sequence[str]) -> str | None:
    """For a group choice that does not exist, or an override that cannot be read."""
    missing = re.search(r"Could not find '([\w./-]+)/([^/']+)'", text)
    if missing and missing.group(1).startswith("hydra/"):
        return _absent_plugin(*missing.groups())
    if missing:
        group, option = missing.groups()
        known = [file.stem for file in (config_dir() / group).glob("*.yaml")]
        return f"{group}={option} is no choice; {one_of(option, known)}"
    if "Config group override must be a string" in text:
        known = groups()
        for choice in argv:
            group, _, option = choice.lstrip("+").partition("=")
            if group in known and option not in known[group]:
                return f"{choice} is no choice; {one_of(option, known[group])}"
        return f"an override has no name in front of its '=': {' '.join(argv)}"
    return None


def _absent_plugin(group: str, option: str) -> str:
    """For a launcher or sweeper that is a package of its own."""
    extra = _EXTRAS.get(option.split("_")[0])
    way = f"pip install 'prunekit[{extra}]'" if extra else "install the package that brings it"
    return f"{group}={option} is no part of Hydra itself; {way}"


_EXTRAS = {
    "joblib": "joblib",
    "submitit": "submitit",
    "ray": "ray",
    "optuna": "optuna",
    "tpe": "optuna",
}


def _composed(text: str, command: str, argv: Sequence[str]) -> str:
    """For a key that does not exist, and whatever else Hydra finds while it composes."""
    if missing := _missing(text):
        return missing
    broken = re.search(r"missing EQUAL at|no viable alternative|mismatched input", text)
    if broken:
        unread = next((a for a in argv if "=" not in a and not a.startswith(("-", "~"))), None)
        place = f"{unread} has no value" if unread else f"{' '.join(argv)} cannot be read ({text})"
        return f"{place}; write KEY=VALUE, and quote lists and mappings"
    unknown = re.search(r"Could not (?:override|append) '([^']+)'", text) or re.search(
        r"Key '([^']+)' is not in struct", text
    )
    if unknown:
        key = unknown.group(1).split("@")[0]
        if any(argument.startswith(f"{key.split('.')[0]}._target_=") for argument in argv):
            return f"{key} is not in the file of that choice; +{key}=... gives it to your own class"
        hint = one_of(key, _keys(command, argv))
        return f"{key} is no setting of {command}; {hint} (prunekit {command} --help lists all)"
    return _unwrapped(text.split(" See https")[0])


def warn_about_shadowed(argv: Sequence[str]) -> None:
    """Say when a file in the user's --config-dir has the name of a built-in one, which wins."""
    for place in _user_directories(argv):
        for group, options in groups(place).items() if place.is_dir() else ():
            for option in set(options) & set(groups().get(group, ())):
                complain(f"{place / group / option}.yaml is ignored: {group}={option} is built in")


def _user_directories(argv: Sequence[str]) -> list[Path]:
    found = [a.split("=", 1)[1] for a in argv if a.startswith("--config-dir=")]
    found += [argv[i + 1] for i, a in enumerate(argv[:-1]) if a in ("--config-dir", "-cd")]
    return [Path(place) for place in found]


def _keys(command: str, argv: Sequence[str]) -> list[str]:
    """Groups and dotted keys of the config, as the choices on the command line compose it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    known = groups()
    choices = [a for a in argv if "," not in a and a.split("=")[0] in known and _known(a, known)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        config = compose(config_name=command, overrides=choices)
    return [*known, *_dotted(config)]


def _known(choice: str, known: Mapping[str, list[str]]) -> bool:
    group, _, option = choice.partition("=")
    return option in known[group]


def _dotted(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, DictConfig):
        return [prefix]
    plain = OmegaConf.to_container(node, resolve=False)
    children = [_dotted(node._get_node(k), f"{prefix}.{k}" if prefix else str(k)) for k in plain]
    return [*([prefix] if prefix else []), *(key for found in children for key in found)]
