"""Weights of other tools: state dicts, however they are wrapped and prefixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit.errors import ArtifactError, listed
from prunekit.torch_io import read_safetensors, read_torch

_WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of another tool into `model`, which must have the same parameters.

    Reads a state dict of torch or of safetensors, alone or under `state_dict`, `model` and the
    like; the prefixes of wrappers (`module.`, `_orig_mod.`, `model.`) are taken off. Raises
    ArtifactError.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if not is_state_dict(content):
        raise ArtifactError(f"{path} holds no state dict: {contents(content)}")
    own = model.state_dict()
    load_matching(model, _fillers(model, content) | unwrapped(content, own), str(path))


def read_checkpoint(path: Path) -> Any:
    """What a file holds; of nested dicts the one with the weights, where there is one."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_torch(path, mend="save its state dict alone", foreign=True)
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    return content


def unwrapped(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under the names that the network itself has for them."""
    found = dict(weights)
    while prefix := _prefix(found, own):
        # the counter of an averaged model lies beside its module
        found = {k.removeprefix(prefix): v for k, v in found.items() if k != "n_averaged"}
    if not any("_orig_mod." in name for name in own):  # parts that were compiled
        found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    return found


def load_matching(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights into a model; one line with all that is missing, too much or of another size."""
    own = model.state_dict()
    sizes = [
        f"{name} is {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} here"
        for name in own
        if name in weights and _shape(weights[name]) != _shape(own[name])
    ]
    trouble = [
        *_some("missing", [name for name in own if name not in weights]),
        *_some("unexpected", [name for name in weights if name not in own]),
        *_some("of another size", sizes),
    ]
    if trouble:
        raise ArtifactError(
            f"{origin} holds the weights of another network than this {type(model).__name__}: "
            + "; ".join(trouble)
        )
    model.load_state_dict(weights)


def is_state_dict(content: Any) -> bool:
    """Whether it maps names to tensors, and to nothing else."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def contents(content: Any) -> str:
    """A few words on what a file holds that was expected to hold something else."""
    if is_state_dict(content):
        return "it holds a bare state dict, which load_weights reads"
    if isinstance(content, Mapping):
        return f"it holds {', '.join(sorted(map(str, content))[:4]) or 'nothing'}"
    return f"it holds a {type(content).__name__}"


def _prefix(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> str | None:
    """A wrapper's prefix that all names have, and none of the network's own."""
    names = [name for name in weights if name != "n_averaged"]
    for prefix in _PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return None if any(name.startswith(prefix) for name in own) else prefix
    return None


def _fillers(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What files leave out: the counters of norms before torch 0.4.1, and tied weights.

    Nothing depends on the first; of the second safetensors stores one name only.
    """
    own = model.state_dict(keep_vars=True)
    found = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    named = unwrapped(given, own)
    present = {id(own[name]): value for name, value in named.items() if name in own}
    tied = {n: present[id(v)] for n, v in own.items() if n not in named and id(v) in present}
    return {**found, **tied}


def _shape(value: Any) -> Any:
    return tuple(getattr(value, "shape", ()))


def _some(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what}: {listed(names)}"] if names else []
