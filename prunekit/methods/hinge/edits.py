"""Edits that insert sparsity-inducing matrices behind convolutions, and fold them back in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph.arguments import Example
from prunekit.graph.layers import CONVOLUTIONS, layer_named
from prunekit.graph.slicing import like_strides
from prunekit.graph.whole_groups import WholeGroups, plain_groups, whole_groups
from prunekit.methods.hinge.matrices import Conv, Hinged, Site, hinged_modules
from prunekit.methods.hinge.placement import Placement
from prunekit.modes import duplicate, evaluating
from prunekit.surgery.edits import damaged_edit, register, replace_module
from prunekit.surgery.equivalence import Gap, check_inputs, compute_outputs

MAX_GAP = 1e-5  # relative: rounding of the weights moves outputs by less

_FOREIGN = "the edit was made for another network"


@register
@dataclass(frozen=True)
class InsertMatrices:
    """Inserts a matrix A behind the convolution of every site; outputs stay as they are.

    With the weights W as a (d, n) matrix of one column per filter, W and A are initialised as
    `Site.start` says; a singular value decomposition has rank min(d, n). The bias moves to A. If
    the layer of a site is itself the matrix, it is only wrapped. The convolutions named in `whole`
    lose whole groups from now on.
    """

    sites: tuple[Site, ...]
    whole: tuple[str, ...] = ()
    kind: ClassVar[str] = "attach"

    @classmethod
    def of(cls, model: nn.Module, example: Example, placement: Placement) -> InsertMatrices:
        """Return the edit for the sites of a placement, whose errors are raised."""
        sites = placement.sites(model, example)
        return cls(sites.sites, sites.whole)

    def apply(self, model: nn.Module) -> None:
        """Insert the matrices, wherever a layer is registered; raises SurgeryError."""
        layers = {site.layer: _convolution(model, site.layer) for site in self.sites}
        grouped = [_convolution(model, name) for name in self.whole]
        for site in self.sites:
            layer = layers[site.layer]
            conv, matrix = (None, layer) if site.start is None else factorize(layer, site.start)
            replace_module(model, layer, Hinged(conv, matrix, site).train(layer.training))
        for conv in grouped:
            replace_module(model, conv, whole_groups(conv))

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for every site, and the names of grouped convolutions."""
        sites = [{**vars(site), "sides": list(site.sides)} for site in self.sites]
        return {"edit": self.kind, "sites": sites, "whole": list(self.whole)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> InsertMatrices:
        """Rebuild the edit from `to_dict`; raises ArtifactError for damaged entries."""
        try:
            sites = [Site(**{**site, "sides": tuple(site["sides"])}) for site in plain["sites"]]
            return cls(tuple(sites), tuple(str(name) for name in plain["whole"]))
        except (KeyError, TypeError) as error:
            raise damaged_edit(cls.kind, error) from error


_FOLD_KEYS = ("merged", "parted", "marked")  # in model files, in the order of the fields of Fold


@register
@dataclass(frozen=True)
class Fold:
    """Folds the matrices of a network, which may have lost rows and columns, into plain layers.

    The layers in `merged` become one convolution with the weights W A. Those in `decomposed` stay
    two in sequence, `conv` and `matrix`. Those in `unwrapped` were their own matrix. The result has
    layers of torch.nn under the names that they had before the matrices were inserted; outputs stay
    as they are.
    """

    merged: tuple[str, ...]
    decomposed: tuple[str, ...]
    unwrapped: tuple[str, ...]
    kind: ClassVar[str] = "fold"

    @classmethod
    def of(cls, model: nn.Module) -> Fold:
        """Return the edit that merges wherever that takes no more multiply-adds."""
        names: dict[str, list[str]] = {"merged": [], "decomposed": [], "unwrapped": []}
        for name, module in hinged_modules(model).items():
            if module.conv is None:
                names["unwrapped"].append(name)
            else:
                cheaper = is_cheaper_merged(module.conv, module.matrix)
                names["merged" if cheaper else "decomposed"].append(name)
        return cls(**{field: tuple(layers) for field, layers in names.items()})

    def apply(self, model: nn.Module) -> None:
        """Fold in place; raises SurgeryError if a layer has no matrix."""
        for name in (*self.merged, *self.decomposed, *self.unwrapped):
            module = layer_named(model, name, _FOREIGN)
            if not isinstance(module, Hinged):
                raise SurgeryError(f"{name} is a {type(module).__name__}, no matrix; {_FOREIGN}")
            replace_module(model, module, self._folded(name, module).train(module.training))
        for conv in [m for m in model.modules() if isinstance(m, WholeGroups)]:
            replace_module(model, conv, plain_groups(conv))

    def _folded(self, name: str, module: Hinged) -> nn.Module:
        if module.conv is None:
            return module.matrix
        if name in self.merged:
            return merge(module.conv, module.matrix)
        return nn.Sequential(OrderedDict(conv=module.conv, matrix=module.matrix))

    def to_dict(self) -> dict[str, Any]:
        """Return the names of the layers."""
        names = zip(_FOLD_KEYS, (self.merged, self.decomposed, self.unwrapped), strict=True)
        return {"edit": self.kind, **{key: list(layers) for key, layers in names}}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Fold:
        """Rebuild the edit from `to_dict`; raises ArtifactError for damaged entries."""
        try:
            return cls(*(tuple(str(name) for name in plain[key]) for key in _FOLD_KEYS))
        except (KeyError, TypeError) as error:
            raise damaged_edit(cls.kind, error) from error


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded copy of a network, the edit that made it, and how far its outputs moved."""

    model: nn.Module
    edit: Fold
    gap: Gap

    def __str__(self) -> str:
        counts = {
            "merged into one convolution": self.edit.merged,
            "left as two": self.edit.decomposed,
            "were their own matrix": self.edit.unwrapped,
        }
        parts = ", ".join(f"{len(names)} {words}" for words, names in counts.items() if names)
        return f"matrices: {parts}; outputs moved by {self.gap.relative:.1e} (float64)"


def fold(model: nn.Module, batch: Example) -> Folded:
    """Fold a copy, and check on a batch that it is the same function.

    Both are compared in double precision, in eval mode. Raises SurgeryError if they differ.
    """
    edit, narrow = Fold.of(model), duplicate(model)
    edit.apply(narrow)
    pair = [duplicate(network).double() for network in (narrow, model)]
    inputs = check_inputs(batch).map_tensors(lambda x: x.double() if x.is_floating_point() else x)
    with evaluating(*pair):
        gap = Gap.between(*(compute_outputs(net, inputs, "the network in doubles") for net in pair))
    if gap.relative > MAX_GAP:
        raise SurgeryError(
            f"folding moved the outputs by {gap.relative:.2e} of the largest one (at most "
            f"{MAX_GAP:g}); please report the network"
        )
    return Folded(narrow, edit, gap)


@torch.no_grad()
def factorize(layer: Conv, start: str) -> tuple[Conv, Conv]:
    """Return a convolution and a 1 x 1 convolution that compute together what `layer` computes."""
    flat = layer.weight.flatten(1).T.double()  # (d, n)
    if start == "identity":
        left, right = flat, torch.eye(layer.out_channels, dtype=flat.dtype, device=flat.device)
    else:
        left, sizes, right = torch.linalg.svd(flat, full_matrices=False)
        if start == "svd":
            right = sizes[:, None] * right
        else:
            left = left * sizes
    return _with_filters(layer, left), _matrix(layer, right)


@torch.no_grad()
def merge(conv: Conv, matrix: Conv) -> Conv:
    """Return the one convolution with the weights W A, computed in float64."""
    right = matrix.weight.flatten(1).T.double()
    merged = _with_filters(conv, conv.weight.flatten(1).T.double() @ right)
    biases = [matrix.bias.double()] if matrix.bias is not None else []
    if conv.bias is not None:
        biases.append(right.T @ conv.bias.double())
    if biases:
        merged.bias = nn.Parameter(torch.stack(biases).sum(dim=0).to(conv.weight.dtype))
    return merged


def is_cheaper_merged(conv: Conv, matrix: Conv) -> bool:
    """Return whether one convolution takes no more multiply-adds than two: d m <= r (d + m)."""
    inner, inputs, *kernel = conv.weight.shape
    outputs, d = matrix.out_channels, inputs * prod(kernel)
    return d * outputs <= inner * (d + outputs)


def _with_filters(layer: Conv, flat: Tensor) -> Conv:
    """Return a convolution like `layer`, without bias, whose filters are the columns of `flat`."""
    inputs, kernel = layer.weight.shape[1], layer.weight.shape[2:]
    weight = flat.T.reshape(-1, inputs, *kernel)
    names = ("stride", "padding", "dilation", "padding_mode")
    return _convolution_of(weight, layer, **{name: getattr(layer, name) for name in names})


def _matrix(layer: Conv, right: Tensor) -> Conv:
    """Return the 1 x 1 convolution from the rows of `right` to its columns, with layer's bias."""
    kernel = (1,) * (layer.weight.ndim - 2)
    matrix = _convolution_of(right.T.reshape(*right.T.shape, *kernel), layer)
    matrix.bias = layer.bias
    return matrix


def _convolution_of(weight: Tensor, like: Conv, **settings: Any) -> Conv:
    """Return a convolution of the class, precision, memory format and mode of `like`."""
    outputs, inputs, *kernel = weight.shape
    kind: Callable[..., Conv] = type(like)
    conv = kind(inputs, outputs, tuple(kernel), bias=False, device="meta", **settings)
    trained = like.weight.requires_grad
    conv.weight = nn.Parameter(like_strides(weight.to(like.weight.dtype), like.weight), trained)
    return conv.train(like.training)


def _convolution(model: nn.Module, name: str) -> Conv:
    module = layer_named(model, name, _FOREIGN)
    if not isinstance(module, CONVOLUTIONS):
        raise SurgeryError(f"{name} is a {type(module).__name__}, no convolution; {_FOREIGN}")
    return module


def layers_with_matrix(model: nn.Module) -> list[str]:
    """Return the names of the layers that have a matrix."""
    return [*hinged_modules(model)]
