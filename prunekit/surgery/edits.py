"""Structural changes as values: apply them to a network, store them in a file, apply them again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import singledispatch, wraps
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError, one_of
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import is_weighted, layer_named, widths
from prunekit.graph.slicing import kept_indices, narrow_tensor, put_weight_back, renumber
from prunekit.graph.table import Indices, layer_operation
from prunekit.reasons import reason_of
from prunekit.registry import load_methods
from prunekit.surgery.history import remember

_FOREIGN = "the edit was made for another network"


class Edit(Protocol):
    """A change of a network's structure; `kind` is its name in files."""

    kind: ClassVar[str]

    def apply(self, model: nn.Module) -> None:
        """Change `model` in place; raise SurgeryError if the edit does not fit it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: `{"edit": kind, ...}`."""

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Edit:
        """Rebuild the edit that `to_dict` described; raise ArtifactError for damaged entries."""


KINDS: dict[str, type[Edit]] = {}


def register(edit: type[Edit]) -> type[Edit]:
    """Register a class of edits under its `kind`, so that model files can hold them.

    Networks that it is applied to remember the edit.
    """
    KINDS[edit.kind], apply = edit, edit.apply

    @wraps(apply)
    def apply_and_remember(self: Edit, model: nn.Module) -> None:
        apply(self, model)
        remember(model, self)

    edit.apply = apply_and_remember  # type: ignore[method-assign]
    return edit


def damaged_edit(kind: str, error: Exception) -> ArtifactError:
    """Return the error for an edit whose entries are not those that `to_dict` writes."""
    return ArtifactError(f"an edit of kind {kind!r} is damaged: {reason_of(error)}")


def edit_from_dict(plain: Mapping[str, Any]) -> Edit:
    """Rebuild an edit from `to_dict`; raise ArtifactError when its kind is unknown."""
    kind = plain.get("edit") if isinstance(plain, Mapping) else None
    if kind not in KINDS:
        load_methods()
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArtifactError(f"edit {kind!r} is unknown; {one_of(kind, KINDS)}")
    return KINDS[kind].from_dict(plain)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new`, which may contain `old`, wherever `old` is registered."""
    for parent in [parent for parent in model.modules() if parent is not new]:
        for attribute, child in parent._modules.items():
            if child is old:
                parent._modules[attribute] = new


@singledispatch
def narrow(module: nn.Module, keep_in: Indices = None, keep_out: Indices = None) -> None:
    """Keep only these input and output channels of a layer, given by index (None: all).

    The layer is changed in place and gets new parameters with the old dtype, device, memory layout
    and `requires_grad`. The table of operations says how each class of torch is narrowed; register
    a function for a class of your own with `@narrow.register`. Raises SurgeryError for other
    classes.
    """
    entry = layer_operation(module)
    if entry is None or entry.narrow is None:
        raise SurgeryError(
            f"{type(module).__name__} cannot be narrowed; register a function for it with "
            "prunekit.surgery.narrow.register"
        )
    entry.narrow(module, keep_in, keep_out)


@dataclass(frozen=True)
class KeptChannels:
    """The channels that a layer keeps, by index (None: all), out of `widths` (inputs, outputs)."""

    ins: tuple[int, ...] | None
    outs: tuple[int, ...] | None
    widths: tuple[int, int]

    def to_dict(self) -> dict[str, list[int]]:
        """Return the widths and the indices of each side that does not keep all channels."""
        sides = {"in": self.ins, "out": self.outs}
        kept = {side: list(indices) for side, indices in sides.items() if indices is not None}
        return {**kept, "widths": list(self.widths)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> KeptChannels:
        """Rebuild the value that `to_dict` described."""
        ins, outs = (_indices(plain, side) for side in ("in", "out"))
        inner, outer = plain["widths"]
        return cls(ins, outs, (int(inner), int(outer)))


@dataclass(frozen=True)
class KeptEntries:
    """The entries that a parameter or buffer keeps along `dim`, out of `width`.

    For a tensor of channel indices, `among` lists the channels that remain; its entries are then
    renumbered to count positions in that list.
    """

    dim: int
    kept: tuple[int, ...]
    width: int
    among: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as numbers and lists, without `among` where it is None."""
        plain = {"dim": self.dim, "kept": list(self.kept), "width": self.width}
        return plain if self.among is None else {**plain, "among": list(self.among)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> KeptEntries:
        """Rebuild the value that `to_dict` described."""
        kept = tuple(map(int, plain["kept"]))
        return cls(int(plain["dim"]), kept, int(plain["width"]), _indices(plain, "among"))


@register
@dataclass(frozen=True)
class Narrow:
    """Remove channels from layers; layers that are not named keep all of theirs.

    `tensors` are parameters and buffers that belong to no layer, by path.
    """

    layers: Mapping[str, KeptChannels]
    tensors: Mapping[str, KeptEntries] = field(default_factory=dict)
    kind: ClassVar[str] = "narrow"

    @classmethod
    def of(cls, graph: ChannelGraph, removed: Tensor, excluded: Collection[str] = ()) -> Narrow:
        """Return the edit that removes the units that are True in `removed` (bool, unit ids).

        Layers and tensors in `excluded` are left as they are, since they leave the network with a
        block that is removed whole. Raises SurgeryError when another layer would be left without
        channels.
        """
        removed = removed.cpu()
        if removed.dtype != torch.bool or removed.shape != (graph.count,):
            raise SurgeryError(
                f"drop is {removed.dtype} of shape {tuple(removed.shape)}; it must be torch.bool "
                f"of shape ({graph.count},), as ChannelGraph.drop returns it"
            )
        if bool(removed[0]):
            raise SurgeryError("drop[0] is set, but unit 0 is what cannot be removed")
        _refuse_empty(graph, removed, excluded)
        layers = {}
        for name, units in graph.ins.items():
            ins, outs = kept_indices(units, removed), kept_indices(graph.outs[name], removed)
            if name not in excluded and (ins is not None or outs is not None):
                layers[name] = KeptChannels(ins, outs, (len(units), len(graph.outs[name])))
        tensors = {path: kept for path, kept in _entries(graph, removed) if path not in excluded}
        return cls(layers, tensors)

    def apply(self, model: nn.Module) -> None:
        """Narrow the layers in place; change nothing if one of them does not fit."""
        modules = {name: layer_named(model, name, _FOREIGN) for name in self.layers}
        for name, kept in self.layers.items():
            _check_layer(name, modules[name], kept)
        for path, entries in self.tensors.items():
            _check_tensor(model, path, entries)
        ties = _tied_parameters(model)
        for name, kept in self.layers.items():
            try:
                narrow(modules[name], kept.ins, kept.outs)
            except SurgeryError as error:
                raise SurgeryError(f"{name}: {error}") from error
            put_weight_back(model, name, modules[name])
        for path, entries in self.tensors.items():
            owner, _, leaf = path.rpartition(".")
            module = model.get_submodule(owner)
            narrow_tensor(module, leaf, entries.dim, entries.kept)
            if entries.among is not None:
                renumber(getattr(module, leaf), entries.among)
        _tie_again(ties)

    def to_dict(self) -> dict[str, Any]:
        """Return the kept channels of every layer and the kept entries of every tensor."""
        layers = {name: kept.to_dict() for name, kept in self.layers.items()}
        tensors = {path: kept.to_dict() for path, kept in self.tensors.items()}
        return {"edit": self.kind, "layers": layers, "tensors": tensors}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Narrow:
        """Rebuild the edit that `to_dict` described; raise ArtifactError for damaged entries."""
        layers, tensors = KeptChannels.from_dict, KeptEntries.from_dict
        try:
            return cls(
                {name: layers(kept) for name, kept in plain["layers"].items()},
                {path: tensors(kept) for path, kept in plain.get("tensors", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged_edit(cls.kind, error) from error


class BiasMap(nn.Module):
    """Add a fixed number at every channel and position; inputs must have the size of the map."""

    bias_map: Tensor

    def __init__(self, bias_map: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias_map", bias_map)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input plus the map, which is the same for all examples."""
        return x + self.bias_map

    def extra_repr(self) -> str:
        """Return the size of the map."""
        return "x".join(map(str, self.bias_map.shape))


@register
@dataclass(frozen=True)
class NewBiases:
    """Give layers without a bias one of zeros, which is trained if the layer is."""

    names: tuple[str, ...]
    kind: ClassVar[str] = "new_biases"

    def apply(self, model: nn.Module) -> None:
        """Add the biases; raise SurgeryError where a layer does not exist or has a bias."""
        for module in [_layer_without_bias(model, name) for name in self.names]:
            trained = any(parameter.requires_grad for parameter in module.parameters())
            zeros = _zeros(module, (widths(module)[1],))
            module.bias = nn.Parameter(zeros, requires_grad=trained)

    def to_dict(self) -> dict[str, Any]:
        """Return the names of the layers."""
        return {"edit": self.kind, "layers": list(self.names)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> NewBiases:
        """Rebuild the edit that `to_dict` described; raise ArtifactError for damaged entries."""
        try:
            return cls(tuple(str(name) for name in plain["layers"]))
        except (KeyError, TypeError) as error:
            raise damaged_edit(cls.kind, error) from error


@register
@dataclass(frozen=True)
class BiasMaps:
    """Put a `BiasMap` of zeros behind every named layer, in the shape of its output per example.

    Afterwards the layer itself is called `name.0` and the map `name.1`, and the network accepts
    inputs of one size only.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kind: ClassVar[str] = "bias_maps"

    def apply(self, model: nn.Module) -> None:
        """Insert the maps everywhere a layer is registered; raise SurgeryError for other layers."""
        for name, shape in self.shapes.items():
            module = layer_named(model, name, _FOREIGN)
            if not is_weighted(module):
                raise SurgeryError(f"{name} is a {type(module).__name__}; it takes no bias map")
            pair = nn.Sequential(module, BiasMap(_zeros(module, shape)))
            pair.training = module.training
            pair[1].train(module.training)
            replace_module(model, module, pair)

    def to_dict(self) -> dict[str, Any]:
        """Return the shape of every map."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"edit": self.kind, "layers": shapes}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> BiasMaps:
        """Rebuild the edit that `to_dict` described; raise ArtifactError for damaged entries."""
        try:
            return cls({str(n): tuple(map(int, shape)) for n, shape in plain["layers"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged_edit(cls.kind, error) from error


def _indices(plain: Mapping[str, Any], key: str) -> tuple[int, ...] | None:
    return tuple(map(int, plain[key])) if key in plain else None


def _entries(graph: ChannelGraph, removed: Tensor) -> Iterator[tuple[str, KeptEntries]]:
    for path, sides in graph.tensors.items():
        for dim, units in enumerate(sides):
            if units is None:
                continue
            kept, among = kept_indices(units, removed), None
            if path in graph.picks:
                among = kept_indices(graph.picks[path], removed)
                kept = tuple(range(len(units))) if kept is None and among is not None else kept
            if kept is not None:
                yield path, KeptEntries(dim, kept, len(units), among)


def _refuse_empty(graph: ChannelGraph, removed: Tensor, excluded: Collection[str]) -> None:
    for name in graph.emptied(removed):
        if name not in excluded:
            raise SurgeryError(
                f"{name} would be left without channels (of {len(graph.ins[name])} inputs and "
                f"{len(graph.outs[name])} outputs); keep more units of group "
                f"{' or '.join(groups_at(graph, name))}"
            )


def groups_at(graph: ChannelGraph, layer: str) -> list[str]:
    """Return the names of the groups that have units among a layer's inputs and outputs."""
    units = torch.cat([graph.ins[layer], graph.outs[layer]])
    return [group.name for group in graph.groups if torch.isin(units, group.units).any()]


def _check_layer(name: str, module: nn.Module, kept: KeptChannels) -> None:
    try:
        inner, outer = widths(module)
    except AttributeError:
        return  # a layer of the user's own: its function for narrow checks it
    if (inner, outer) != kept.widths:
        raise SurgeryError(
            f"{name} has {inner} input and {outer} output channels, the edit was "
            f"made for {kept.widths[0]} and {kept.widths[1]}"
        )


def _check_tensor(model: nn.Module, path: str, entries: KeptEntries) -> None:
    owner, _, leaf = path.rpartition(".")
    tensor = getattr(layer_named(model, owner, _FOREIGN), leaf, None)
    if not isinstance(tensor, Tensor):
        raise SurgeryError(f"{type(model).__name__} has no tensor {path!r}; {_FOREIGN}")
    if entries.dim >= tensor.ndim or tensor.shape[entries.dim] != entries.width:
        raise SurgeryError(
            f"{path} has shape {tuple(tensor.shape)}, the edit was made for {entries.width} "
            f"entries in dimension {entries.dim}"
        )


def _tied_parameters(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Return the (module, attribute) pairs of every parameter that is registered more than once."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    return [pairs for pairs in owners.values() if len(pairs) > 1]


def _tie_again(ties: list[list[tuple[nn.Module, str]]]) -> None:
    for (module, name), *others in ties:
        for other, attribute in others:
            setattr(other, attribute, getattr(module, name))


def _layer_without_bias(model: nn.Module, name: str) -> nn.Module:
    module = layer_named(model, name, _FOREIGN)
    if not is_weighted(module) or module.bias is not None:
        raise SurgeryError(
            f"{name} ({type(module).__name__}) should be a convolution or linear layer without a "
            "bias; the edit was made for another network"
        )
    return module


def _zeros(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    like = next(module.parameters())
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
