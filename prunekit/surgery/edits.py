"""Structural changes as values: apply them to a network, store them in a file, apply them again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError, one_of
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import layer_named, weighs, widths
from prunekit.graph.slicing import kept_indices, narrow_tensor, number_anew, put_back
from prunekit.graph.table import Indices, of_layer
from prunekit.registry import load_methods

_FOREIGN = "the edit was made for another network"


class Edit(Protocol):
    """A change of a network's structure; `kind` is its name in files."""

    kind: ClassVar[str]

    def apply(self, model: nn.Module) -> None:
        """Change `model` in place; raises SurgeryError if the edit does not fit it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, `{"edit": kind, ...}`."""

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Edit:
        """The inverse of `to_dict`."""


KINDS: dict[str, type[Edit]] = {}


def register(edit: type[Edit]) -> type[Edit]:
    """Make an edit known to model files, under its `kind`."""
    KINDS[edit.kind] = edit
    return edit


def edit_from_dict(plain: Mapping[str, Any]) -> Edit:
    """Rebuild an edit from `to_dict`; raises ArtifactError when its kind is unknown."""
    kind = plain.get("edit")
    if kind not in KINDS:
        load_methods()
    if kind not in KINDS:
        raise ArtifactError(f"edit {kind!r} is unknown; {one_of(kind, KINDS)}")
    return KINDS[kind].from_dict(plain)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module, which may contain the old one, wherever the old one is registered."""
    for parent in [parent for parent in model.modules() if parent is not new]:
        for attribute, child in parent._modules.items():
            if child is old:
                parent._modules[attribute] = new


@dataclass(frozen=True)
class KeptChannels:
    """The channels that a layer keeps, by index (None: all), out of `widths` (inputs, outputs)."""

    ins: tuple[int, ...] | None
    outs: tuple[int, ...] | None
    widths: tuple[int, int]


@dataclass(frozen=True)
class KeptEntries:
    """The entries that a parameter or buffer keeps along `dim`, out of `width`.

    Entries that are indices are numbered anew where only those in `among` are left to pick from.
    """

    dim: int
    kept: tuple[int, ...]
    width: int
    among: tuple[int, ...] | None = None


@register
@dataclass(frozen=True)
class Narrow:
    """Cut channels out of layers; layers that are not named keep all of theirs.

    `tensors` are parameters and buffers that belong to no layer, by their path.
    """

    keeps: Mapping[str, KeptChannels]
    tensors: Mapping[str, KeptEntries] = field(default_factory=dict)
    kind: ClassVar[str] = "narrow"

    @classmethod
    def of(cls, graph: ChannelGraph, drop: Tensor, without: Collection[str] = ()) -> Narrow:
        """Remove the units that are True in `drop`, wherever they sit.

        Layers and tensors `without` which the network will do are left as they are. Raises
        SurgeryError when another layer would lose all of its channels.
        """
        drop = drop.cpu()
        if drop.dtype != torch.bool or drop.shape != (graph.count,):
            raise SurgeryError(
                f"drop is {drop.dtype} of shape {tuple(drop.shape)}; it must be torch.bool of "
                f"shape ({graph.count},), as ChannelGraph.drop returns it"
            )
        if bool(drop[0]):
            raise SurgeryError("drop[0] is set, but unit 0 is what cannot be removed")
        _refuse_empty(graph, drop, without)
        keeps = {}
        for name, units in graph.ins.items():
            ins, outs = kept_indices(units, drop), kept_indices(graph.outs[name], drop)
            if name not in without and (ins is not None or outs is not None):
                keeps[name] = KeptChannels(ins, outs, (len(units), len(graph.outs[name])))
        tensors = {path: one for path, one in _entries(graph, drop) if path not in without}
        return cls(keeps, tensors)

    def apply(self, model: nn.Module) -> None:
        """Narrow the layers in place; nothing is changed if one of them does not fit."""
        modules = {name: layer_named(model, name, _FOREIGN) for name in self.keeps}
        for name, keep in self.keeps.items():
            _check(name, modules[name], keep)
        for path, entries in self.tensors.items():
            _check_tensor(model, path, entries)
        ties = _ties(model)
        for name, keep in self.keeps.items():
            try:
                narrow(modules[name], keep.ins, keep.outs)
            except SurgeryError as error:
                raise SurgeryError(f"{name}: {error}") from error
            put_back(model, name, modules[name])
        for path, entries in self.tensors.items():
            owner, _, leaf = path.rpartition(".")
            home = model.get_submodule(owner)
            narrow_tensor(home, leaf, entries.dim, entries.kept)
            if entries.among is not None:
                number_anew(getattr(home, leaf), entries.among)
        _tie_again(ties)

    def to_dict(self) -> dict[str, Any]:
        """For every layer its widths and the indices it keeps, left out where it keeps all."""
        layers = {}
        for name, keep in self.keeps.items():
            sides = {"in": keep.ins, "out": keep.outs}
            layers[name] = {side: list(kept) for side, kept in sides.items() if kept is not None}
            layers[name]["widths"] = list(keep.widths)
        tensors = {
            path: {"dim": entries.dim, "kept": list(entries.kept), "width": entries.width}
            | ({} if entries.among is None else {"among": list(entries.among)})
            for path, entries in self.tensors.items()
        }
        return {"edit": self.kind, "layers": layers, "tensors": tensors}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Narrow:
        """The inverse of `to_dict`."""
        try:
            return cls(
                {name: _keep(layer) for name, layer in plain["layers"].items()},
                {path: _keep_entries(one) for path, one in plain.get("tensors", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"an edit of kind 'narrow' is damaged: {error!r}") from error


def _keep(layer: Mapping[str, Any]) -> KeptChannels:
    sides = [tuple(map(int, layer[side])) if side in layer else None for side in ("in", "out")]
    inner, outer = layer["widths"]
    return KeptChannels(*sides, (int(inner), int(outer)))


def _keep_entries(plain: Mapping[str, Any]) -> KeptEntries:
    kept = tuple(map(int, plain["kept"]))
    among = tuple(map(int, plain["among"])) if "among" in plain else None
    return KeptEntries(int(plain["dim"]), kept, int(plain["width"]), among)


def _entries(graph: ChannelGraph, drop: Tensor) -> Iterator[tuple[str, KeptEntries]]:
    for path, sides in graph.tensors.items():
        for dim, units in enumerate(sides):
            if units is None:
                continue
            kept, among = kept_indices(units, drop), None
            if path in graph.picks:
                among = kept_indices(graph.picks[path], drop)
                kept = tuple(range(len(units))) if kept is None and among is not None else kept
            if kept is not None:
                yield path, KeptEntries(dim, kept, len(units), among)


def _refuse_empty(graph: ChannelGraph, drop: Tensor, without: Collection[str]) -> None:
    for name in graph.emptied(drop):
        if name in without:
            continue
        units = torch.cat([graph.ins[name], graph.outs[name]])
        groups = [group.name for group in graph.groups if torch.isin(units, group.units).any()]
        raise SurgeryError(
            f"{name} would be left without channels (of {len(graph.ins[name])} inputs and "
            f"{len(graph.outs[name])} outputs); keep more units of group {' or '.join(groups)}"
        )


def _check(name: str, module: nn.Module, keep: KeptChannels) -> None:
    try:
        found = widths(module)
    except AttributeError:
        return  # a layer of the user's own: its function for narrow checks it
    if found != keep.widths:
        raise SurgeryError(
            f"{name} has {found[0]} input and {found[1]} output channels, the edit was "
            f"made for {keep.widths[0]} and {keep.widths[1]}"
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


def _ties(model: nn.Module) -> list[tuple[nn.Parameter, list[tuple[nn.Module, str]]]]:
    """Parameters that are registered in more than one place, with these places."""
    places: dict[int, tuple[nn.Parameter, list[tuple[nn.Module, str]]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), (parameter, []))[1].append((module, name))
    return [entry for entry in places.values() if len(entry[1]) > 1]


def _tie_again(ties: list[tuple[nn.Parameter, list[tuple[nn.Module, str]]]]) -> None:
    for _, places in ties:
        module, name = places[0]
        for other, attribute in places[1:]:
            setattr(other, attribute, getattr(module, name))


@singledispatch
def narrow(module: nn.Module, keep_in: Indices = None, keep_out: Indices = None) -> None:
    """Keep these input and output channels of a layer, given by index (None: all).

    The layer is changed in place, as the table of operations says, and gets new parameters of the
    old type, on the old device, in memory in the old order, as frozen as before. Register a
    function for a class of your own with `@narrow.register`.
    """
    entry = of_layer(module)
    if entry is None or entry.narrow is None:
        raise SurgeryError(
            f"{type(module).__name__} cannot be narrowed; register a function for it with "
            "prunekit.surgery.narrow.register"
        )
    entry.narrow(module, keep_in, keep_out)


class BiasMap(nn.Module):
    """Add a fixed number at every channel and position; inputs must have the size of the map."""

    def __init__(self, bias_map: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias_map", bias_map)

    def forward(self, x: Tensor) -> Tensor:
        """The input plus the map, which is the same for all examples."""
        return x + self.bias_map

    def extra_repr(self) -> str:
        """The size of the map."""
        return "x".join(map(str, self.bias_map.shape))


@register
@dataclass(frozen=True)
class NewBiases:
    """Layers without a bias get one, of zeros, that is trained if the layer is."""

    names: tuple[str, ...]
    kind: ClassVar[str] = "new_biases"

    def apply(self, model: nn.Module) -> None:
        """Raises SurgeryError where a layer does not exist, or has a bias."""
        for module in [_layer(model, name) for name in self.names]:
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            trained = any(parameter.requires_grad for parameter in module.parameters())
            module.bias = nn.Parameter(_zeros(module, (width,)), requires_grad=trained)

    def to_dict(self) -> dict[str, Any]:
        """The names of the layers."""
        return {"edit": self.kind, "layers": list(self.names)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> NewBiases:
        """The inverse of `to_dict`."""
        try:
            return cls(tuple(str(name) for name in plain["layers"]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


@register
@dataclass(frozen=True)
class BiasMaps:
    """Behind every named layer comes a `BiasMap` of zeros, shaped as its output for one example.

    The layer itself is then called `name.0`, the map `name.1`, and the network is bound to one size
    of input.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kind: ClassVar[str] = "bias_maps"

    def apply(self, model: nn.Module) -> None:
        """Put them in place, everywhere a layer is registered; raises SurgeryError."""
        for name, shape in self.shapes.items():
            module = layer_named(model, name, "the edit was made for another network")
            if not weighs(module):
                raise SurgeryError(f"{name} is a {type(module).__name__}; it takes no bias map")
            both = nn.Sequential(module, BiasMap(_zeros(module, shape)))
            both.training = module.training
            both[1].train(module.training)
            replace_module(model, module, both)

    def to_dict(self) -> dict[str, Any]:
        """The shape for every layer."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"edit": self.kind, "layers": shapes}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> BiasMaps:
        """The inverse of `to_dict`."""
        try:
            return cls({str(n): tuple(map(int, shape)) for n, shape in plain["layers"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


def _layer(model: nn.Module, name: str) -> nn.Module:
    module = layer_named(model, name, "the edit was made for another network")
    if not weighs(module) or module.bias is not None:
        raise SurgeryError(
            f"{name} ({type(module).__name__}) should be a convolution or linear layer without a "
            "bias; the edit was made for another network"
        )
    return module


def _zeros(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    like = next(module.parameters())
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
