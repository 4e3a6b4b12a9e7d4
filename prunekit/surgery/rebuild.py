"""Build the network that a model file describes, without trust in the file.

A file may only name classes of prunekit and torchvision.models, and those that the caller trusts.
Nothing is downloaded, and no network is allocated that is out of proportion to the file's weights.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from prunekit.build import Settings, build, locate
from prunekit.errors import ArtifactError, ConfigError, PrunekitError
from prunekit.surgery.edits import Edit
from prunekit.surgery.history import not_applied

_OURS = ("prunekit.", "torchvision.models.")
_FETCHED = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
_TIMES_STORED = 256  # how many times larger than the stored weights a dense network may be
_SMALL = 1 << 30  # bytes that a dense network may have in any case
_MEND = "save or compute it again"
_MODULES = 10_000  # modules that it may have in any case, and 100 more for each stored tensor


def rebuild(path: Path, arch: Settings | None, trust: Collection[str], kind: str) -> nn.Module:
    """Build the dense network from the settings of a file; raise ArtifactError."""
    if arch is None:
        raise ArtifactError(
            f"{path} does not say how its {kind} is built; pass the dense network, "
            f"load_model(path, module={kind.rpartition('.')[2]}(...))"
        )
    for target in _targets(arch):
        _check_target(path, target, trust)
    try:
        with torch.random.fork_rng(devices=[]):  # the numbers drawn here are overwritten
            model = build(_offline(arch), "arch")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"arch describes a {type(model).__name__}, not a network")
    except PrunekitError as error:
        raise ArtifactError(f"{path} cannot be rebuilt: {error}; {_MEND}") from error
    return model


def repeat(path: Path, edits: Sequence[Edit], model: nn.Module) -> None:
    """Apply the edits of a file that a network lacks, in place; raise ArtifactError."""
    try:
        with torch.random.fork_rng(devices=[]):  # new layers draw numbers that are overwritten
            for edit in not_applied(model, edits):
                edit.apply(model)
    except PrunekitError as error:
        raise ArtifactError(
            f"{path} was cut from another network than this {type(model).__name__}: {error}; "
            f"give that network, or make the file again"
        ) from error


@contextmanager
def in_proportion(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise ArtifactError inside the context when a network grows out of proportion to weights.

    Parameters and buffers are counted as they are registered. By then torch has reserved their
    memory but written nothing to it, so that a size that nobody stored takes no memory.
    """
    stored = sum(value.numel() * value.element_size() for value in weights.values())
    most = max(_SMALL, _TIMES_STORED * stored)
    modules = _MODULES + 100 * len(weights)
    thread, sizes, count = threading.get_ident(), {0: 0}, {0: 0}

    def add_tensor(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if threading.get_ident() != thread or tensor is None or is_lazy(tensor):
            return
        sizes[0] += tensor.numel() * tensor.element_size()
        if sizes[0] > most:
            raise ArtifactError(
                f"the network takes more than {most / 1e9:.3g} GB, but the file holds "
                f"{stored / 1e9:.3g} GB of weights; it is damaged, or not to be trusted"
            )

    def add_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        count[0] += threading.get_ident() == thread
        if count[0] > modules:
            raise ArtifactError(
                f"the network has more than {modules:,} modules, but the file holds "
                f"{len(weights)} tensors; it is damaged, or not to be trusted"
            )

    with ExitStack() as stack:
        for handle in (
            torch_module.register_module_parameter_registration_hook(add_tensor),
            torch_module.register_module_buffer_registration_hook(add_tensor),
            torch_module.register_module_module_registration_hook(add_module),
        ):
            stack.callback(handle.remove)
        yield


def check_weights(path: Path, weights: Mapping[Any, Any]) -> None:
    """Raise ArtifactError unless these are plain tensors by name, as large as they claim to be."""
    for name, value in weights.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not isinstance(name, str) or not plain or value.is_meta or value.is_quantized:
            raise ArtifactError(f"{path} is damaged: {name!r} in it is no plain tensor; {_MEND}")
    claimed = sum(value.numel() * value.element_size() for value in weights.values())
    held = path.stat().st_size
    if claimed > 4 * held + (64 << 20):  # entries of an expanded tensor are stored once
        raise ArtifactError(
            f"{path} is damaged: it claims {claimed:,} bytes of weights in {held:,}; {_MEND}"
        )


def _targets(node: Any) -> Iterator[str]:
    children: Sequence[Any] = ()
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        children = list(node.values())
    elif isinstance(node, list | tuple):
        children = node
    for child in children:
        yield from _targets(child)


def _check_target(file: Path, target: str, trust: Collection[str]) -> None:
    """Raise ArtifactError for anything but networks: a foreign file must not call other code."""
    if any(target == path or target.startswith(f"{path}.") for path in trust):
        return
    if target.startswith(_OURS) and _makes_networks(locate(target, str(file))):
        return
    raise ArtifactError(
        f"{file} wants to call {target!r}, which is no network of prunekit or torchvision.models; "
        f"if you trust the file, load it with trust=[{target!r}] (in settings "
        f"runtime.trust=[{target}])"
    )


def _makes_networks(target: Callable[..., Any]) -> bool:
    module = f"{getattr(target, '__module__', '')}."
    if isinstance(target, type):
        return issubclass(target, nn.Module) and module.startswith(_OURS)
    return module.startswith(("prunekit.models.", "torchvision.models."))


def _offline(node: Any) -> Any:
    """Return the settings without pretrained weights, which torchvision would download."""
    if isinstance(node, list | tuple):
        return [_offline(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    settings = {key: _offline(value) for key, value in node.items()}
    target = str(settings.get("_target_", ""))
    if not target.startswith("torchvision.models."):
        return settings
    kept = {key: value for key, value in settings.items() if key not in _FETCHED}
    # the backbone's weights are downloaded by default
    backbone = "weights_backbone" in inspect.signature(_builder(target, settings)).parameters
    return kept | ({"weights_backbone": None} if backbone else {})


def _builder(target: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that builds the network; `get_model` calls another one by its name."""
    from torchvision import models

    builder: Callable[..., Any] = locate(target, "arch")
    if builder is not models.get_model:
        return builder
    try:
        found: Callable[..., Any] = models.get_model_builder(str(settings.get("name")))
    except ValueError as error:
        raise ConfigError(f"arch.name={settings.get('name')!r}: {error}") from error
    return found
