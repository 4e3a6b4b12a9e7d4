"""The config files: their folder, and how composed ones become plain settings."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunekit.comments import read_comments, write_comments
from prunekit.console import complain
from prunekit.errors import ConfigError, one_of
from prunekit.validate import number

_NOT_REPEATED = (
    "overwrite=",
    "stage=",
    "search=",
    "launch=",
)  # overrides of a sweep, or of one attempt only
_WITHOUT_SETTINGS = ("experiment", "launch", "search")  # groups that set other ones
_SCHEDULES = "schedule"
_USER = "command-line"  # Hydra's name for the source that --config-dir adds
_NAME_BYTES = 200  # of a folder's name; most file systems allow 255


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


def top_names() -> frozenset[str]:
    """Return the names of all config groups and of the settings that belong to no group."""
    return frozenset(groups()) | _names_in(config_dir() / "config.yaml")


def _names_in(*files: Path) -> frozenset[str]:
    """Return the names that are not indented in files."""
    texts = (file.read_text(encoding="utf-8") for file in files)
    return frozenset(name for text in texts for name in re.findall(r"^(\w+):", text, re.MULTILINE))


def check_complete(config: Any, command: str) -> None:
    """Raise ConfigError where an override took out what every command reads, or added a name.

    A new name, as from +new=1, may serve other settings, which then refer to it: `${new}`.
    """
    known = top_names()
    for name in sorted(known - {*config, "defaults", "hydra", *_WITHOUT_SETTINGS}):
        raise ConfigError(f"~{name} takes out what {command} reads; choose another {name}=...")
    _refuse_unread(config, known, "", config)
    if isinstance(config.get(_SCHEDULES), DictConfig):  # no class takes its entries
        files = (config_dir() / _SCHEDULES).glob("*.yaml")
        _refuse_unread(config[_SCHEDULES], _names_in(*files) | {"name"}, f"{_SCHEDULES}.", config)


def _refuse_unread(node: Any, known: frozenset[str], prefix: str, config: Any) -> None:
    """Raise ConfigError for an entry that is not known, and that nothing else refers to."""
    for name in sorted({str(key) for key in node} - known):
        pattern = rf"\$\{{[^}}]*\b{re.escape(name)}\b"
        if not re.search(pattern, OmegaConf.to_yaml(config)):
            raise ConfigError(f"{prefix}{name} is no setting; {one_of(name, known - {'defaults'})}")


def resolve(config: Any) -> dict[str, Any]:
    """Return a DictConfig as nested dictionaries with interpolations resolved, without `hydra`."""
    try:
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(describe_reference(str(error)) or unwrap(str(error))) from error
    if not isinstance(settings, dict):
        raise ConfigError("the composed config is not a mapping")
    return {str(key): value for key, value in settings.items()}


def choose_reconstruction(settings: dict[str, Any], command: str) -> dict[str, Any]:
    """Return the settings with a choice in place of `reconstruct=auto`.

    Layers are refitted if there are images and no fine-tuning follows. The choice is part of the
    settings from here on, so that it is recorded and decides whether a stage is run again.
    """
    if settings["reconstruct"].get("name") != "auto":
        return settings
    is_tuned = command == "run" and "finetune" in settings["pipeline"]
    has_images = settings["dataset"].get("name") != "none"
    refits = has_images and not is_tuned and settings["absorb"] != "maps"
    file = config_dir() / "reconstruct" / f"{'least_squares' if refits else 'none'}.yaml"
    return {**settings, "reconstruct": yaml.safe_load(file.read_text(encoding="utf-8"))}


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


def concavity(flat: float, lam: float | None) -> float | None:
    """Return the gamma of MCP, or the a of SCAD, for which the penalty is constant above `flat`.

    It is None where the strength is, which is chosen later.

    `flat` is a magnitude of what is penalised, so that it means the same for every strength `lam`
    of a sweep. Configs call this function as `${concavity:FLAT,LAM}`.
    """
    number("regularizer.flat", flat, above=0)
    if lam is None:
        return None
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
    for folder in user_folders(argv):
        for group, choices in groups(folder).items() if folder.is_dir() else ():
            for choice in set(choices) & set(groups().get(group, ())):
                complain(f"{folder / group / choice}.yaml is ignored: {group}={choice} is built in")


def user_folders(argv: Sequence[str]) -> list[Path]:
    """Return the folders that --config-dir names; they need not exist."""
    folders = [a.split("=", 1)[1] for a in argv if a.startswith("--config-dir=")]
    folders += [argv[i + 1] for i, a in enumerate(argv[:-1]) if a in ("--config-dir", "-cd")]
    return [Path(folder) for folder in folders]


def unwrap(text: str) -> str:
    """Return the message of a function that an interpolation called, without OmegaConf's frame."""
    line = re.sub(r"\s+(full_key|object_type|reference_type)[:=].*", "", " ".join(text.split()))
    return re.sub(r"^\w+ raised while resolving interpolation: ", "", line)


def describe_reference(text: str, suspect: str = "a setting") -> str | None:
    """Return a message where a value is missing, or refers to what does not exist or to itself.

    `suspect` is the setting that is named where the error names a path that Hydra made of it.
    """
    full = re.search(r"full_key: ([\w.]+)", text)
    place = full[1] if full and not full[1].startswith("hydra.") else suspect
    if value := re.search(r"Missing mandatory value: ([\w.]+)", text):
        key = value[1] if "." in value[1] or full is None else full[1]
        return f"{key} is not set; give {key}=..."
    if variable := re.search(r"Environment variable '([^']*)' not found", text):
        name = variable[1]
        return (
            f"{place} reads the environment variable {name}, which is not set; set it, or write "
            f"${{oc.env:{name},DEFAULT}}"
        )
    if "Recursive interpolation" in text:
        return f"{place}=${{...}} refers to itself; give it a value"
    if resolver := re.search(r"Unsupported interpolation type (\S+)", text):
        return f"{place} calls ${{{resolver[1]}:...}}, which does not exist; give it a value"
    if unknown := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{place} refers to ${{{unknown[1]}}}, which is no setting; name another one"
    return None
