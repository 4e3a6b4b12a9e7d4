"""Structural changes as values: they can be applied, stored in a file, and applied again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError, one_of
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import layer_named, widths
from prunekit.graph.slicing import kept_indices, narrow_tensor, number_anew, put_back
from prunekit.registry import load_methods
from prunekit.surgery.narrow import narrow

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
class Keep:
    """The channels that a layer keeps, by index (None: all), out of `widths` (inputs, outputs)."""

    ins: tuple[int, ...] | None
    outs: tuple[int, ...] | None
    widths: tuple[int, int]


@dataclass(frozen=True)
class KeepEntries:
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

    keeps: Mapping[str, Keep]
    tensors: Mapping[str, KeepEntries] = field(default_factory=dict)
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
                keeps[name] = Keep(ins, outs, (len(units), len(graph.outs[name])))
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


def _keep(layer: Mapping[str, Any]) -> Keep:
    sides = [tuple(map(int, layer[side])) if side in layer else None for side in ("in", "out")]
    inner, outer = layer["widths"]
    return Keep(*sides, (int(inner), int(outer)))


def _keep_entries(plain: Mapping[str, Any]) -> KeepEntries:
    kept = tuple(map(int, plain["kept"]))
    among = tuple(map(int, plain["among"])) if "among" in plain else None
    return KeepEntries(int(plain["dim"]), kept, int(plain["width"]), among)


def _entries(graph: ChannelGraph, drop: Tensor) -> Iterator[tuple[str, KeepEntries]]:
    for path, sides in graph.tensors.items():
        for dim, units in enumerate(sides):
            if units is None:
                continue
            kept, among = kept_indices(units, drop), None
            if path in graph.picks:
                among = kept_indices(graph.picks[path], drop)
                kept = tuple(range(len(units))) if kept is None and among is not None else kept
            if kept is not None:
                yield path, KeepEntries(dim, kept, len(units), among)


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


def _check(name: str, module: nn.Module, keep: Keep) -> None:
    try:
        found = widths(module)
    except AttributeError:
        return  # a layer of the user's own: its function for narrow checks it
    if found != keep.widths:
        raise SurgeryError(
            f"{name} has {found[0]} input and {found[1]} output channels, the edit was "
            f"made for {keep.widths[0]} and {keep.widths[1]}"
        )


def _check_tensor(model: nn.Module, path: str, entries: KeepEntries) -> None:
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
