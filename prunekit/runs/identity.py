"""What a run is: everything that decides its result, by content and not by where it lies."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from prunekit.build import build
from prunekit.errors import ArtifactError, PrunekitError
from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.runs import record
from prunekit.runs.digests import sha256_of

Settings = Mapping[str, Any]
UNKNOWN = "not known"
# networks of other packages, which prunekit builds by name
_NAMED = {
    "prunekit.models.torchvision_model": "torchvision",
    "prunekit.models.timm_model": "timm",
}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def content_of(file: Path) -> str:
    """A digest of all that a file holds; ArtifactError where it cannot be read."""
    try:
        return f"sha256:{sha256_of(file)[:32]}"
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}; make it again") from error


def without(settings: Settings, places: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Nested settings without those at the dotted keys `places`."""
    kept = {key: node for key, node in settings.items() if f"{prefix}{key}" not in places}
    return {
        key: without(node, places, f"{prefix}{key}.") if isinstance(node, Mapping) else node
        for key, node in kept.items()
    }


def network_of(arch: Settings, shape: tuple[int, ...]) -> dict[str, str]:
    """What settings leave open about the network that they build; `shape` is one example's.

    Nothing for those of prunekit; the version of the package for torchvision and timm. Of any other
    class the state, the modules, and the steps of a recorded run: code that is edited is
    another network, unless it is inside a function that stays one step of the graph. ConfigError
    where it cannot be built.
    """
    targets = {*targets_in(arch)}
    packages = {_NAMED[target] for target in targets if target in _NAMED}
    found = {package: _version(package) for package in sorted(packages)}
    if any(is_foreign(target) for target in targets):
        found["structure"] = _structure(_light(arch), shape)
    return found


def targets_in(node: Any) -> Iterator[str]:
    """Every `_target_` of nested settings."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from targets_in(child)


def is_foreign(target: str) -> bool:
    """Whether a class is none of prunekit's, so that its code may change between two runs."""
    return not target.startswith("prunekit.")


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return "absent"


def _light(arch: Settings) -> nn.Module:
    """The network without memory for its numbers, where its constructor allows that."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the network is built to be used
        with suppress(Exception), torch.device("meta"):  # whatever a class of the user's raises
            return build(arch, "model")
        return build(arch, "model")


def _structure(model: Any, shape: tuple[int, ...]) -> str:
    """A digest of names, shapes and types of the state, of the modules, and of the graph."""
    if not isinstance(model, nn.Module):
        return UNKNOWN  # it is refused where it is used
    state = [f"{name} {_kind(value)}" for name, value in sorted(model.state_dict().items())]
    modules = [
        f"{name} {type(module).__qualname__} {module.extra_repr()}"
        for name, module in model.named_modules()
    ]
    text = "\n".join([*state, *modules, *_steps(model, shape)])
    return f"sha256:{hashlib.sha256(_ADDRESS.sub('', text).encode()).hexdigest()[:32]}"


def _kind(value: Any) -> str:
    plain = isinstance(value, Tensor) and not isinstance(value, UninitializedTensorMixin)
    return f"{tuple(value.shape)} {value.dtype}" if plain else type(value).__name__


def _steps(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """What the forward calls on what, in eval and train mode; nothing where it cannot be traced."""
    with suppress(PrunekitError):
        runs = record(model, Arguments.of(torch.empty(1, *shape, device="meta")))
        return [line for run in runs for line in run.lines()]
    return []
