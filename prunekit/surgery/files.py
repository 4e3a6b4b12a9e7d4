"""Model files of prunekit, and checkpoints of other tools."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.build import Settings, locate
from prunekit.errors import ArtifactError, PrunekitError, listed
from prunekit.graph.wrappers import network_in, renew, rewrapped
from prunekit.modes import duplicate
from prunekit.reasons import reason_of
from prunekit.renamed import current
from prunekit.surgery.edits import Edit, edit_from_dict
from prunekit.surgery.history import ATTRIBUTE, all_edits
from prunekit.surgery.rebuild import check_weights, in_proportion, rebuild, repeat
from prunekit.torch_io import read_safetensors, read_torch, write_torch

FORMAT = "prunekit-model-1"
_MEND = "save or compute it again"
_PARTS: dict[str, tuple[type, ...]] = {
    "arch": (Mapping, type(None)),
    "edits": (list, tuple),
    "weights": (Mapping,),
    "facts": (Mapping,),
}
_LONGEST = 60  # characters of a name in a message
_PLAIN = (bool, int, float, str, tuple, list, type(None))


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network read from a file, the settings it was built from, and the edits applied to it.

    `arch` is None where the file does not say how the network is built. `facts` are plain values
    and tensors stored with it.
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
    """Write a model file atomically; raise ArtifactError for values that a file cannot hold.

    `arch` are the settings from which `prunekit.build` makes the dense network: `_target_`, the
    dotted path of a class or function, and its arguments. Without them, the class is stored if it
    can be imported and makes the same network without arguments; files of other networks have to be
    loaded with `module=`. `edits` are all structural changes since then, in order; earlier ones
    that the network remembers, as after a second cut, are written too. `facts` are plain values or
    tensors to store with them. A network in wrappers is unwrapped first.
    """
    model = network_in(model)
    applied = all_edits(model, edits) if edits or arch is None else []
    content = {
        "format": FORMAT,
        "arch": _plain(_arch_of(model, applied) if arch is None else arch, "arch"),
        "class": _path_of(type(model)),
        "edits": applied,
        "weights": {name: _stored(name, value) for name, value in model.state_dict().items()},
        "facts": _plain(facts, "facts"),
    }
    write_torch(Path(path), content)


def load_model(
    path: str | Path, trust: Collection[str] = (), module: nn.Module | None = None
) -> SavedModel:
    """Read a model file: build the network, repeat the edits, load the weights (on the CPU).

    A file can name only classes of prunekit and torchvision.models, and those in `trust` (dotted
    paths of classes or packages). With `module`, the dense network as it was before any cut, or
    before the last ones, nothing is built: the edits that it lacks are repeated on a copy of it, on
    its device, and its weights are overwritten. Nothing is traced. Raises ArtifactError.
    """
    path = Path(path)
    content = read_torch(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} is not a prunekit model file: {_describe(content)}; give one of prunekit"
        )
    _check_parts(path, content)
    try:
        return _loaded(path, content, trust, module)
    except PrunekitError as error:
        if isinstance(error, ArtifactError) and str(error).startswith(str(path)):
            raise
        raise ArtifactError(f"{path} is a damaged model file: {error}; {_MEND}") from error
    except Exception as error:  # values of other kinds than `save_model` wrote raise anything
        raise ArtifactError(
            f"{path} is a damaged model file: {reason_of(error)}; {_MEND}"
        ) from error


def _check_parts(path: Path, content: Mapping[str, Any]) -> None:
    """Raise ArtifactError where a part of a model file is missing, or of another kind."""
    for key, kinds in _PARTS.items():
        if key not in content:
            raise ArtifactError(f"{path} is a damaged model file: it has no {key}; {_MEND}")
        if not isinstance(content[key], kinds):
            owner = type(content[key]).__name__
            raise ArtifactError(
                f"{path} is a damaged model file: {key} in it is of type {owner}; {_MEND}"
            )


def _loaded(
    path: Path, content: Mapping[str, Any], trust: Collection[str], module: nn.Module | None
) -> SavedModel:
    arch, weights, facts = current(content["arch"]), content["weights"], content["facts"]
    edits = tuple(edit_from_dict(plain) for plain in content["edits"])
    check_weights(path, weights)
    with in_proportion(weights):
        if module is None:
            model = rebuild(path, arch, trust, str(content.get("class") or "network"))
        else:
            model = duplicate(network_in(module))
        repeat(path, edits, model)
    renew(model)
    _refuse_others(model, weights, str(path))
    _cast(model, weights)
    model.load_state_dict(weights)
    return SavedModel(model if module is None else rewrapped(module, model), arch, edits, facts)


def _cast(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Cast parameters and buffers to their stored dtype, so that loading does not round."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        stored = weights.get(name)
        if isinstance(stored, Tensor) and isinstance(tensor, Tensor):
            tensor.data = tensor.data.to(stored.dtype)


def _arch_of(model: nn.Module, edits: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the class as settings if it makes the same network without arguments, else None."""
    path = _path_of(type(model))
    if path is None:
        return None
    try:
        inspect.signature(type(model)).bind()
        with torch.device("meta"), warnings.catch_warnings():  # no memory, no random numbers
            warnings.simplefilter("ignore")
            twin = type(model)()
        for edit in edits:
            edit_from_dict(edit).apply(twin)
    except Exception:  # a class of the user's may raise anything; it then has to be passed in
        return None
    return {"_target_": path} if _same_structure(model, twin) else None


def _path_of(kind: type) -> str | None:
    """Return the dotted path from which a class can be imported, or None."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    with contextlib.suppress(PrunekitError):
        return path if kind.__module__ != "__main__" and locate(path) is kind else None
    return None


def _same_structure(model: nn.Module, twin: nn.Module) -> bool:
    """Return whether both have the same modules with equal plain attributes and tensor sizes."""
    modules, others = dict(model.named_modules()), dict(twin.named_modules())
    if [*modules] != [*others] or any(
        type(module) is not type(others[name]) or _settings(module) != _settings(others[name])
        for name, module in modules.items()
    ):
        return False
    states = [{k: _size(v) for k, v in net.state_dict().items()} for net in (model, twin)]
    return states[0] == states[1]


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module: plain values, and the types of all others."""
    return {
        key: value if isinstance(value, _PLAIN) else type(value)
        for key, value in vars(module).items()
        if key not in ("training", "_parameters", "_buffers", "_modules", ATTRIBUTE)
    }


def _size(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value)


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


def _describe(content: Any) -> str:
    if isinstance(content, dict) and str(content.get("format", "")).startswith("prunekit-model-"):
        return f"its format is {content['format']!r}, this version reads {FORMAT!r}"
    return describe_content(content)


_REAL = "real numbers"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of another tool into `model`, which must have the same parameters.

    The file is a state dict of torch or safetensors, alone or under `state_dict`, `model` and the
    like; prefixes of wrappers (`module.`, `_orig_mod.`, `model.`) are removed. Raises
    ArtifactError.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if not is_state_dict(content):
        raise ArtifactError(
            f"{path} holds no state dict: {describe_content(content)}; save one of tensors alone"
        )
    check_weights(path, content)
    own = model.state_dict()
    load_matching(model, _omitted(model, content) | strip_prefixes(content, own), str(path))


def read_checkpoint(path: Path) -> Any:
    """Return the content of a file; in nested dicts, descend to the one with the weights."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_torch(path, mend="save its state dict alone", foreign=True)
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    return content


def strip_prefixes(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under the names that the network itself uses."""
    named = dict(weights)
    while prefix := _prefix(named, own):
        # AveragedModel stores a counter next to its module
        named = {k.removeprefix(prefix): v for k, v in named.items() if k != "n_averaged"}
    if not any("_orig_mod." in name for name in own):  # parts that were compiled
        named = {name.replace("_orig_mod.", ""): value for name, value in named.items()}
    return _moved(named, own) or named


def _moved(named: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the weights as those of a part of another network, or of one with such a part.

    The names then differ in one prefix, which all names of one side have. None where they do not.
    """
    theirs, ours = _common_prefix(named), _common_prefix(own)
    moved = {f"{ours}{name.removeprefix(theirs)}": value for name, value in named.items()}
    return moved if theirs != ours and moved.keys() <= own.keys() else None


def _common_prefix(names: Collection[str]) -> str:
    """Return the dotted prefix that all names have, with its last dot; empty if there is none."""
    first, last = min(names, default=""), max(names, default="")  # share what all names share
    pairs = enumerate(zip(first, last, strict=False))
    end = next((index for index, (a, b) in pairs if a != b), min(len(first), len(last)))
    return first[: first.rfind(".", 0, end) + 1]


def load_matching(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights; raise one ArtifactError that lists missing, unexpected and misshapen ones."""
    _refuse_others(model, weights, origin)
    model.load_state_dict(weights)


def _refuse_others(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Raise one ArtifactError that lists what is missing, unexpected, or of another kind."""
    own = model.state_dict()
    sizes = [
        f"{_short(name)} is {_shape(weights[name])} in the file, {_shape(own[name])} here"
        for name in own
        if name in weights and _shape(weights[name]) != _shape(own[name])
    ]
    kinds = [
        f"{_short(name)} holds {_numbers(weights[name])} in the file, {_numbers(own[name])} here"
        for name in own
        if name in weights and _numbers(own[name]) == _REAL != _numbers(weights[name])
    ]
    mismatches = [
        *_listing("missing", [_short(name) for name in own if name not in weights]),
        *_listing("unexpected", [_short(name) for name in weights if name not in own]),
        *_listing("of another size", sizes),
        *_listing("of another kind", kinds),
    ]
    if mismatches:
        raise ArtifactError(
            f"{origin} holds the weights of another network than this {type(model).__name__}: "
            + "; ".join(mismatches)
            + "; give the network that it belongs to"
        )


def is_state_dict(content: Any) -> bool:
    """Return whether the content is a mapping to tensors only."""
    return isinstance(content, Mapping) and bool(content) and _odd_entry(content) is None


def describe_content(content: Any) -> str:
    """Describe the content of a file that should have held something else, for messages."""
    if is_state_dict(content):
        return "it holds a bare state dict, which load_weights reads"
    if isinstance(content, Mapping):
        names = [_short(str(name)) for name in content]
        odd = _odd_entry(content)
        if odd is not None and any(isinstance(value, Tensor) for value in content.values()):
            return f"{_short(str(odd))} in it is no tensor"
        return f"it holds {', '.join(sorted(names)[:4]) or 'nothing'}"
    return f"it holds a {type(content).__name__}"


def _odd_entry(content: Mapping[Any, Any]) -> object | None:
    """Return the name of the first entry that is no named tensor."""
    named = ((name, isinstance(name, str), value) for name, value in content.items())
    return next((n for n, text, v in named if not text or not isinstance(v, Tensor)), None)


def _prefix(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> str | None:
    """Return a wrapper's prefix that all names have and none of the network's own names has."""
    names = [name for name in weights if name != "n_averaged"]
    for prefix in _PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return None if any(name.startswith(prefix) for name in own) else prefix
    return None


def _omitted(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries that files may omit: batch counters of norms, and tied weights.

    torch wrote no counters before 0.4.1, and safetensors stores tied weights under one name only.
    """
    own = model.state_dict(keep_vars=True)
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    named = strip_prefixes(weights, own)
    stored = {id(own[name]): value for name, value in named.items() if name in own}
    tied = {n: stored[id(v)] for n, v in own.items() if n not in named and id(v) in stored}
    return {**counters, **tied}


def _shape(value: Any) -> Any:
    return tuple(getattr(value, "shape", ()))


def _numbers(value: Any) -> str:
    """Return the kind of numbers of a tensor, which loading must not change."""
    if not isinstance(value, Tensor):
        return "no numbers"
    if value.is_complex():
        return "complex numbers"
    return _REAL if value.is_floating_point() else "whole numbers"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def _listing(label: str, names: Sequence[str]) -> list[str]:
    return [f"{label}: {listed(names)}"] if names else []
