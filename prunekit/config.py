"""Where the configs lie, and how a composed config becomes plain settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit.errors import ConfigError


def config_dir() -> Path:
    """The configs that ship with prunekit: bundled in a wheel, top-level in a checkout."""
    package = Path(__file__).resolve().parent
    bundled = package / "configs"
    return bundled if bundled.is_dir() else package.parent / "configs"


def resolve(config: Any) -> dict[str, Any]:
    """A DictConfig as plain nested dictionaries, interpolations resolved, `hydra` left out."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if not isinstance(settings, dict):
        raise ConfigError("the composed config is not a mapping")
    return {str(key): value for key, value in settings.items()}


def groups(directory: Path | None = None) -> dict[str, list[str]]:
    """Every config group with the options in it; the folders are the registry."""
    root = directory or config_dir()
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }
