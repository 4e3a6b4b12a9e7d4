"""Model files: how to build the network, what was changed, and the weights."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.build import Settings, build, locate
from prunekit.errors import ArtifactError, ConfigError, PrunekitError
from prunekit.graph.wrappers import network_in, renew, rewrapped
from prunekit.modes import duplicate
from prunekit.surgery.edits import Edit, edit_from_dict
from prunekit.surgery.weights import contents, load_matching
from prunekit.torch_io import read_torch, write_torch

FORMAT = "prunekit-model-1"
_OURS = ("prunekit.", "torchvision.models.")
_FETCHED = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
_PLAIN = (bool, int, float, str, tuple, list, type(None))


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network read from a file, with the settings it was built from and what was done to it.

    `arch` is None where the file does not say how the network is built.
    """

    model: nn.Module
    arch: Settings | None
    edits: tuple[Edit, ...]
    facts: Mapping[str, Any]


def save_model(
    path: str | Path,
    model: nn.Module,
    arch: Settings | None = None,
    edits: Sequence[Edit] = (),
    **facts: Any,
) -> None:
    """Write a model file; it appears whole or not at all.

    `arch` are the settings `prunekit.build` made the network from: `_target_`, the dotted path of
    a class or function, and its arguments. Without them, a class that can be imported and makes
    the same network without arguments is noted; for any other one the file has to be loaded with
    `module=`. `edits` are all changes since, in order, `facts` plain values or tensors to keep
    beside. A network in wrappers is taken out of them. Raises ArtifactError.
    """
    model = network_in(model)
    content = {
        "format": FORMAT,
        "arch": _plain(_arch_of(model, edits) if arch is None else arch, "arch"),
        "class": _path_of(type(model)),
        "edits": [edit.to_dict() for edit in edits],
        "weights": {name: _stored(name, value) for name, value in model.state_dict().items()},
        "facts": _plain(facts, "facts"),
    }
    write_torch(Path(path), content)


def load_model(
    path: str | Path, trust: Collection[str] = (), module: nn.Module | None = None
) -> SavedModel:
    """Read a model file: build the network, repeat the edits, load the weights (on the CPU).

    A file can name classes of prunekit and torchvision.models only, and those in `trust` (dotted
    paths of classes or of packages). With a `module`, the dense network as it was before it was
    cut, nothing is built: the edits are repeated on a copy of it, on its device; its weights play
    no part. Nothing is traced. Raises ArtifactError.
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
    if module is None:
        model = _rebuild(path, arch, trust, str(content.get("class") or "network"))
    else:
        model = duplicate(network_in(module))
    _repeat(path, edits, model)
    renew(model)
    _cast(model, weights)
    load_matching(model, weights, str(path))
    return SavedModel(model if module is None else rewrapped(module, model), arch, edits, facts)


def _rebuild(path: Path, arch: Settings | None, trust: Collection[str], kind: str) -> nn.Module:
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
        raise ArtifactError(f"{path} cannot be rebuilt: {error}") from error
    return model


def _repeat(path: Path, edits: Sequence[Edit], model: nn.Module) -> None:
    try:
        with torch.random.fork_rng(devices=[]):  # new layers draw numbers that are overwritten
            for edit in edits:
                edit.apply(model)
    except PrunekitError as error:
        raise ArtifactError(
            f"{path} was cut from another network than this {type(model).__name__}: {error}"
        ) from error


def _cast(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Give parameters and buffers the precision they are stored in, or loading would round."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        stored = weights.get(name)
        if isinstance(stored, Tensor) and isinstance(tensor, Tensor):
            tensor.data = tensor.data.to(stored.dtype)


def _arch_of(model: nn.Module, edits: Sequence[Edit]) -> dict[str, Any] | None:
    """The class alone, where it makes this network without being told anything."""
    path = _path_of(type(model))
    if path is None:
        return None
    try:
        inspect.signature(type(model)).bind()
        with torch.device("meta"), warnings.catch_warnings():  # no memory, no random numbers
            warnings.simplefilter("ignore")
            twin = type(model)()
        for edit in edits:
            edit.apply(twin)
    except Exception:  # whatever a class of the user's raises: then it has to be passed in
        return None
    return {"_target_": path} if _alike(model, twin) else None


def _path_of(kind: type) -> str | None:
    """The dotted path under which a class is imported, None where there is none."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    with contextlib.suppress(PrunekitError):
        return path if kind.__module__ != "__main__" and locate(path) is kind else None
    return None


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether networks have the same modules with the same plain attributes and tensor sizes."""
    pairs = (dict(one.named_modules()), dict(other.named_modules()))
    if [*pairs[0]] != [*pairs[1]] or any(
        type(pairs[0][name]) is not type(pairs[1][name])
        or _settings(pairs[0][name]) != _settings(pairs[1][name])
        for name in pairs[0]
    ):
        return False
    states = [{k: _size(v) for k, v in net.state_dict().items()} for net in (one, other)]
    return states[0] == states[1]


def _settings(module: nn.Module) -> dict[str, Any]:
    """What decides how a module computes, as far as it can be compared."""
    return {
        key: value if isinstance(value, _PLAIN) else type(value)
        for key, value in vars(module).items()
        if key not in ("training", "_parameters", "_buffers", "_modules")
    }


def _size(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value)


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
    if not isinstance(arch, Mapping):
        return arch
    target = str(arch.get("_target_", ""))
    if not target.startswith("torchvision.models."):
        return {key: _offline(value) for key, value in arch.items()}
    kept = {key: _offline(value) for key, value in arch.items() if key not in _FETCHED}
    # fetched unless told otherwise
    backbone = "weights_backbone" in inspect.signature(locate(target)).parameters
    return kept | ({"weights_backbone": None} if backbone else {})


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


def _stored(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArtifactError(
            f"the network keeps {name}, a {type(value).__name__}, in its state; a model file holds "
            "tensors only"
        )
    return value.detach().cpu()


def _what(content: Any) -> str:
    if isinstance(content, dict) and str(content.get("format", "")).startswith("prunekit-model-"):
        return f"its format is {content['format']!r}, this version reads {FORMAT!r}"
    return contents(content)
