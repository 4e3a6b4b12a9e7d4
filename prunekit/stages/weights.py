"""What the settings of a model say: how it is built, and which weights it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.errors import ConfigError


def architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the model without its weights, which are no part of how it is built."""
    return {key: value for key, value in settings["model"].items() if key != "weights"}


def weights_of(settings: Mapping[str, Any]) -> str | None:
    """The file or pretrained weights that `weights` or `model.weights` name; None: random ones."""
    given = [settings.get("weights"), settings["model"].get("weights")]
    found = [str(weights) for weights in given if weights is not None]
    if len(found) > 1:
        raise ConfigError(f"weights={found[0]} and model.weights={found[1]} are both set; give one")
    return found[0] if found else None
