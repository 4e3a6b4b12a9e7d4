"""Model files: how to build the network, what was changed, and the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.build import Settings, build, locate
from prunekit.errors import ArtifactError, ConfigError, PrunekitError
from prunekit.surgery.edits import Edit, edit_from_dict
from prunekit.torchfile import read_torch, write_torch

FORMAT = "prunekit-model-1"
_OURS = ("prunekit.", "torchvision.models.")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network read from a file, with the settings it was built from and what was done to it."""

    model: nn.Module
    arch: Settings
    edits: tuple[Edit, ...]
    facts: Mapping[str, Any]


def save_model(
    path: str | Path, model: nn.Module, arch: Settings, edits: Sequence[Edit] = (), **facts: Any
) -> None:
    """Write a model file; it appears whole or not at all.

    `arch` are the settings `prunekit.build` made the network from, `edits` all changes since, in
    order. `facts` are plain values or tensors to keep beside. Raises ArtifactError.
    """
    content = {
        "format": FORMAT,
        "arch": _plain(arch, "arch"),
        "edits": [edit.to_dict() for edit in edits],
        "weights": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "facts": _plain(facts, "facts"),
    }
    write_torch(Path(path), content)


def load_model(path: str | Path, trust: Collection[str] = ()) -> SavedModel:
    """Read a model file: build the network, repeat the edits, load the weights (on the CPU).

    A file can name classes of prunekit and torchvision.models only, and those in `trust` (dotted
    paths of classes or of packages). Raises ArtifactError.
    """
    path = Path(path)
    content = read_torch(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{path} is not a prunekit model file: {_what(content)}")
    try:
        arch, weights, facts = content["arch"], content["weights"], content["facts"]
        edits = tuple(edit_from_dict(plain) for plain in content["edits"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is a damaged model file: {error!r}") from error
    model = _rebuild(path, arch, edits, trust)
    _fit(model, weights, path)
    return SavedModel(model, arch, edits, facts)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of another tool into `model`, which must have the same parameters.

    Reads a state dict, alone or under `state_dict`, `model` or `weights`; a prefix `module.` is
    taken off. Raises ArtifactError.
    """
    path = Path(path)
    content = read_torch(path, mend="save its state dict alone")
    for key in ("state_dict", "model", "weights"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not _is_state_dict(content):
        raise ArtifactError(f"{path} holds no state dict: {_what(content)}")
    counters = {  # checkpoints from before torch 0.4.1 lack them, and nothing depends on them
        name: value
        for name, value in model.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    weights = {name.removeprefix("module."): value for name, value in content.items()}
    _fit(model, counters | weights, path)


def _rebuild(
    path: Path, arch: Settings, edits: Sequence[Edit], trust: Collection[str]
) -> nn.Module:
    for target in _targets(arch):
        _check_target(path, target, trust)
    try:
        with torch.random.fork_rng(devices=[]):  # the numbers drawn here are overwritten
            model = build(_offline(arch), "arch")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"arch describes a {type(model).__name__}, not a network")
        for edit in edits:
            edit.apply(model)
    except PrunekitError as error:
        raise ArtifactError(f"{path} cannot be rebuilt: {error}") from error
    return model


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


def _check_target(path: Path, target: str, trust: Collection[str]) -> None:
    """Refuse what a stranger's file must not call: all but networks, however they are spelt."""
    if any(target == one or target.startswith(f"{one}.") for one in trust):
        return
    if target.startswith(_OURS) and _makes_networks(locate(target, str(path))):
        return
    raise ArtifactError(
        f"{path} wants to call {target!r}, which is no network of prunekit or torchvision.models; "
        f"if you trust the file, load it with trust=[{target!r}]"
    )


def _makes_networks(found: Callable[..., Any]) -> bool:
    home = f"{getattr(found, '__module__', '')}."
    if isinstance(found, type):
        return issubclass(found, nn.Module) and home.startswith(_OURS)
    return home.startswith(("prunekit.models.", "torchvision.models."))


def _offline(arch: Any) -> Any:
    """The settings without pretrained weights of torchvision: the file brings its own."""
    if isinstance(arch, Mapping):
        theirs = str(arch.get("_target_", "")).startswith("torchvision.models.")
        return {
            key: None if theirs and key in ("weights", "weights_backbone") else _offline(value)
            for key, value in arch.items()
        }
    return arch


def _fit(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    sizes = [
        f"{name} is {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} here"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    trouble = [
        *_some("missing", [name for name in own if name not in weights]),
        *_some("unexpected", [name for name in weights if name not in own]),
        *_some("of another size", sizes),
    ]
    if trouble:
        raise ArtifactError(
            f"{path} holds the weights of another network than this {type(model).__name__}: "
            + "; ".join(trouble)
        )
    model.load_state_dict(weights)


def _some(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what}: {', '.join(names[:3])}{more}"] if names else []


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}.{index}") for index, item in enumerate(value)]
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ArtifactError(
        f"{where} is a {type(value).__name__}; a model file holds numbers, strings, lists, dicts "
        "and tensors only"
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _what(content: Any) -> str:
    if _is_state_dict(content):
        return "it holds a bare state dict, which load_weights reads"
    if isinstance(content, dict) and str(content.get("format", "")).startswith("prunekit-model-"):
        return f"its format is {content['format']!r}, this version reads {FORMAT!r}"
    if isinstance(content, dict):
        return f"it holds {', '.join(sorted(map(str, content))[:4]) or 'nothing'}"
    return f"it holds a {type(content).__name__}"
