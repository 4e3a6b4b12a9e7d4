"""The config files: their folder, how composed ones become plain settings, and their errors."""

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

from prunekit.comments import read_comments, write_comments
from prunekit.console import complain
from prunekit.errors import ConfigError, PrunekitError, one_of
from prunekit.validate import number

_NOT_REPEATED = (
    "overwrite=",
    "stage=",
    "search=",
    "launch=",
)  # overrides of a sweep, or of one attempt only
_USER = "command-line"  # Hydra's name for the source that --config-dir adds
_NAME_BYTES = 200  # of a folder's name; most file systems allow 255
_EXTRAS = {  # launchers and sweepers of other packages -> the extra that installs them
    "joblib": "joblib",
    "submitit": "submitit",
    "ray": "ray",
    "optuna": "optuna",
    "tpe": "optuna",
}


def config_dir() -> Path:
    """Return the folder of the configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    bundled = package / "configs"
    return bundled if bundled.is_dir() else package.parent / "configs"


def groups(directory: Path | None = None) -> dict[str, list[str]]:
    """Return every config group with its choices, which are the folders and their files."""
    root = directory or config_dir()
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


def resolve(config: Any) -> dict[str, Any]:
    """Return a DictConfig as nested dictionaries with interpolations resolved, without `hydra`."""
    try:
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        raise ConfigError(_missing(str(error)) or _unwrap(text)) from error
    if not isinstance(settings, dict):
        raise ConfigError("the composed config is not a mapping")
    return {str(key): value for key, value in settings.items()}


def command_line(stage: str, hydra: Any) -> str:
    """Return the command that repeats this job in its own directory, from Hydra's config.

    The command of a job of a sweep names its directory, because a single command would otherwise
    use that of the sweep.
    """
    overrides = [line for line in hydra.overrides.task if not line.startswith(_NOT_REPEATED)]
    if str(hydra.mode).endswith("MULTIRUN"):
        name = Path(hydra.sweep.subdir).parent
        overrides = [line for line in overrides if not line.startswith("name=")]
        overrides.append(f'name="{name}"')
    paths = [source.path for source in hydra.runtime.config_sources if source.provider == _USER]
    folders = [f"--config-dir={os.path.relpath(path)}" for path in paths]
    return shlex.join(["prunekit", stage, *folders, *overrides])


def concavity(flat: float, lam: float) -> float:
    """Return the gamma of MCP, or the a of SCAD, for which the penalty is constant above `flat`.

    `flat` is a magnitude of what is penalised, so that it means the same for every strength `lam`
    of a sweep. Configs call this function as `${concavity:FLAT,LAM}`.
    """
    number("regularizer.flat", flat, above=0)
    try:
        return flat / number("regularizer.lam", lam, above=0)
    except ConfigError as error:
        raise ConfigError(
            f"{error}, where the penalty turns flat at regularizer.flat={flat}; for no penalty "
            "choose regularizer=none"
        ) from error


def filled(key: str, value: object) -> str:
    """Return the value of a setting as text; ConfigError where a path would begin with nothing.

    Otherwise `root=` would write below the root of the file system. Configs call this function as
    `${filled:root,${root}}`.
    """
    if value is None or not str(value).strip():
        raise ConfigError(f"{key}={value!r} is empty; give the name of a folder")
    return str(value)


def sweep_dir(config: Any) -> Path | None:
    """Return the directory of a sweep; None where it has none, which Hydra refuses later."""
    try:
        return Path(config.hydra.sweep.dir).resolve()
    except OmegaConfBaseException:
        return None


def safe_dirname(name: str) -> str:
    """Return the name of a folder; a name too long for file systems ends in a digest instead.

    Slashes in the value of `dataset.root` become dashes, so that they make no further folders.
    """
    name = re.sub(r"(?<=dataset\.root=)[^,]*", lambda root: root[0].replace("/", "-"), name)
    if len(name.encode()) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: _NAME_BYTES - 13].decode(errors='ignore')}-{digest}"


def commented_settings(*, _root_: DictConfig) -> str:
    """Return the composed settings as YAML with comments, for the template of Hydra's help."""
    settings = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    sources = [s.path for s in _root_.hydra.runtime.config_sources if s.schema == "file"]
    comments = read_comments(*map(Path, sources))
    return write_comments(OmegaConf.to_yaml(settings), comments).replace("$", "$$")


OmegaConf.register_new_resolver("concavity", concavity, replace=True)
OmegaConf.register_new_resolver("filled", filled, replace=True)
OmegaConf.register_new_resolver("safe_dirname", safe_dirname, replace=True)
OmegaConf.register_new_resolver("commented_settings", commented_settings, replace=True)


def warn_about_shadowed(argv: Sequence[str]) -> None:
    """Warn about files in the user's --config-dir with the name of a built-in file, which wins."""
    for folder in _user_folders(argv):
        for group, choices in groups(folder).items() if folder.is_dir() else ():
            for choice in set(choices) & set(groups().get(group, ())):
                complain(f"{folder / group / choice}.yaml is ignored: {group}={choice} is built in")


def _user_folders(argv: Sequence[str]) -> list[Path]:
    folders = [a.split("=", 1)[1] for a in argv if a.startswith("--config-dir=")]
    folders += [argv[i + 1] for i, a in enumerate(argv[:-1]) if a in ("--config-dir", "-cd")]
    return [Path(folder) for folder in folders]


def explain(error: Exception, command: str, argv: Sequence[str]) -> str | None:
    """Return one line about an error that the user can mend, None for any other error."""
    from hydra.errors import HydraException

    text = " ".join(str(error).split())
    if isinstance(error, PrunekitError):
        return text
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _explain_choice(text, argv) or _explain_key(text, command, argv)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be used: {error.strerror or text}"
    # Hydra reads model=3 as a number and raises a plain ValueError
    return _explain_choice(text, argv) if isinstance(error, ValueError) else None


def _explain_choice(text: str, argv: Sequence[str]) -> str | None:
    """Explain a group choice that does not exist, or an override without a name."""
    missing = re.search(r"Could not find '([\w./-]+)/([^/']+)'", text)
    if missing and missing.group(1).startswith("hydra/"):
        return _explain_plugin(*missing.groups())
    if missing:
        group, choice = missing.groups()
        choices = [file.stem for file in (config_dir() / group).glob("*.yaml")]
        return f"{group}={choice} is no choice; {one_of(choice, choices)}"
    if "Config group override must be a string" in text:
        built_in = groups()
        for override in argv:
            group, _, choice = override.lstrip("+").partition("=")
            if group in built_in and choice not in built_in[group]:
                return f"{override} is no choice; {one_of(choice, built_in[group])}"
        return f"an override has no name in front of its '=': {' '.join(argv)}"
    return None


def _explain_plugin(group: str, choice: str) -> str:
    """Explain a launcher or sweeper whose package is not installed."""
    extra = _EXTRAS.get(choice.split("_")[0])
    mend = f"pip install 'prunekit[{extra}]'" if extra else "install the package that brings it"
    return f"{group}={choice} is no part of Hydra itself; {mend}"


def _explain_key(text: str, command: str, argv: Sequence[str]) -> str:
    """Explain a missing or unknown key, or an override that cannot be read."""
    if missing := _missing(text):
        return missing
    if re.search(r"missing EQUAL at|no viable alternative|mismatched input", text):
        unread = next((a for a in argv if "=" not in a and not a.startswith(("-", "~"))), None)
        where = f"{unread} has no value" if unread else f"{' '.join(argv)} cannot be read ({text})"
        return f"{where}; write KEY=VALUE, and quote lists and mappings"
    unknown = re.search(r"Could not (?:override|append) '([^']+)'", text) or re.search(
        r"Key '([^']+)' is not in struct", text
    )
    if unknown:
        key = unknown.group(1).split("@")[0]
        if any(argument.startswith(f"{key.split('.')[0]}._target_=") for argument in argv):
            return f"{key} is not in the file of that choice; +{key}=... gives it to your own class"
        hint = one_of(key, _keys(command, argv))
        return f"{key} is no setting of {command}; {hint} (prunekit {command} --help lists all)"
    return _unwrap(text.split(" See https")[0])


def _unwrap(text: str) -> str:
    """Return the message of a function that an interpolation called, without OmegaConf's prefix."""
    prefix = "ConfigError raised while resolving interpolation: "
    return text.removeprefix(prefix).split(" full_key: ")[0] if text.startswith(prefix) else text


def _missing(text: str) -> str | None:
    """Return a message that names the mandatory value that is missing, if the error is of one."""
    value = re.search(r"Missing mandatory value: ([\w.]+)", text)
    full = re.search(r"full_key: ([\w.]+)", text)
    if value is None or full is None:
        return None
    key = value.group(1) if "." in value.group(1) else full.group(1)
    return f"{key} is not set; give {key}=..."


def _keys(command: str, argv: Sequence[str]) -> list[str]:
    """Return the groups and dotted keys of the config that the choices in `argv` compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    built_in = groups()
    choices = [argument for argument in argv if _is_choice(argument, built_in)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        config = compose(config_name=command, overrides=choices)
    return [*built_in, *_dotted(config)]


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
