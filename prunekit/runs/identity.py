"""The identity of a run: digests of the files and code that decide its result."""

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
from torch.nn.parameter import is_lazy

from prunekit.build import build
from prunekit.errors import ArtifactError, PrunekitError
from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.passes import record
from prunekit.runs.files import sha256_of
from prunekit.runs.report import Settings

UNKNOWN = "not known"
# functions that build networks of other packages by name
_PACKAGES = {
    "prunekit.models.torchvision_model": "torchvision",
    "prunekit.models.timm_model": "timm",
}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def content_of(file: Path) -> str:
    """Return the digest of a file's content; ArtifactError if it cannot be read."""
    try:
        return f"sha256:{sha256_of(file)[:32]}"
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}; make it again") from error


def without(settings: Settings, keys: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Return nested settings without those at the given dotted keys."""
    rest = {key: node for key, node in settings.items() if f"{prefix}{key}" not in keys}
    return {
        key: without(node, keys, f"{prefix}{key}.") if isinstance(node, Mapping) else node
        for key, node in rest.items()
    }


def network_of(arch: Settings, shape: tuple[int, ...]) -> dict[str, str]:
    """Return the identity of a network as far as its settings do not determine it.

    This is empty for networks of prunekit, and the package's version for torchvision and timm. For
    other classes it is a digest of the state, the modules and the steps of a recorded run on one
    example of the given shape, so that edited code makes another network, unless it is inside a
    function that the graph records as one step. Raises ConfigError if the network cannot be built.
    """
    targets = {*targets_in(arch)}
    packages = {_PACKAGES[target] for target in targets if target in _PACKAGES}
    identity = {package: _version(package) for package in sorted(packages)}
    if any(is_foreign(target) for target in targets):
        identity["structure"] = _structure(_build_light(arch), shape)
    return identity


def targets_in(node: Any) -> Iterator[str]:
    """Yield every `_target_` of nested settings."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from targets_in(child)


def is_foreign(target: str) -> bool:
    """Return whether a class is not part of prunekit: its code may change between two runs."""
    return not target.startswith("prunekit.")


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return "absent"


def _build_light(arch: Settings) -> nn.Module:
    """Build the network on the meta device if its constructor allows that, else on the CPU."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they appear again when the stage builds it
        with suppress(Exception), torch.device("meta"):  # constructors of users raise anything
            return build(arch, "model")
        return build(arch, "model")


def _structure(model: Any, shape: tuple[int, ...]) -> str:
    """Return a digest of the state's names, shapes and types, the modules, and the graph."""
    if not isinstance(model, nn.Module):
        return UNKNOWN  # the stage that uses it raises the error
    state = [f"{name} {_kind(value)}" for name, value in sorted(model.state_dict().items())]
    modules = [
        f"{name} {type(module).__qualname__} {module.extra_repr()}"
        for name, module in model.named_modules()
    ]
    text = "\n".join([*state, *modules, *_steps(model, shape)])
    return f"sha256:{hashlib.sha256(_ADDRESS.sub('', text).encode()).hexdigest()[:32]}"


def _kind(value: Any) -> str:
    has_shape = isinstance(value, Tensor) and not is_lazy(value)
    return f"{tuple(value.shape)} {value.dtype}" if has_shape else type(value).__name__


def _steps(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Return the recorded steps in eval and train mode, none if the model cannot be traced."""
    with suppress(PrunekitError):
        runs = record(model, Arguments.of(torch.empty(1, *shape, device="meta")))
        return [line for run in runs for line in run.lines()]
    return []
