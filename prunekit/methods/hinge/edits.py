"""Edits that attach sparsity-inducing matrices to convolutions, and fold them in again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph.arguments import Example
from prunekit.graph.layers import CONVOLUTIONS, layer_named
from prunekit.graph.strides import arranged
from prunekit.graph.whole_groups import WholeGroups, plain_groups, whole_groups
from prunekit.methods.hinge.module import Hinged, Site
from prunekit.methods.hinge.placement import Placement
from prunekit.modes import duplicate, evaluating
from prunekit.surgery.edits import register, replace_module
from prunekit.surgery.equivalence import Gap, inputs_of, run_on

MOVED = 1e-5  # what weights that are rounded once may move outputs by

_FOREIGN = "the edit was made for another network"


@register
@dataclass(frozen=True)
class InsertMatrices:
    """Every site's convolution W gets a matrix A behind it; outputs stay as they are.

    With W flattened to (d, n), a column for each filter: W <- U and A <- S V^T of its singular
    value decomposition, of rank min(d, n), or W stays and A is the identity. The bias moves behind
    A. A site whose layer is the matrix itself is only marked. The convolutions named in `whole`
    lose whole groups from now on.
    """

    sites: tuple[Site, ...]
    whole: tuple[str, ...] = ()
    kind: ClassVar[str] = "attach"

    @classmethod
    def of(cls, model: nn.Module, example: Example, placement: Placement) -> InsertMatrices:
        """Where a placement puts matrices in this network; raises ConfigError as it does."""
        found = placement.sites(model, example)
        return cls(found.sites, found.whole)

    def apply(self, model: nn.Module) -> None:
        """Put the matrices in place, wherever a layer is registered; raises SurgeryError."""
        layers = {site.layer: _convolution(model, site.layer) for site in self.sites}
        grouped = [_convolution(model, name) for name in self.whole]
        for site in self.sites:
            layer = layers[site.layer]
            parts = (None, layer) if site.start is None else factors(layer, site.start)
            replace_module(model, layer, Hinged(*parts, site).train(layer.training))
        for conv in grouped:
            replace_module(model, conv, whole_groups(conv))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for every site, and the names of grouped convolutions."""
        sites = [{**vars(site), "sides": list(site.sides)} for site in self.sites]
        return {"edit": self.kind, "sites": sites, "whole": list(self.whole)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> InsertMatrices:
        """The inverse of `to_dict`."""
        try:
            sites = [Site(**{**one, "sides": tuple(one["sides"])}) for one in plain["sites"]]
            return cls(tuple(sites), tuple(str(name) for name in plain["whole"]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


@register
@dataclass(frozen=True)
class Fold:
    """The inverse of `InsertMatrices` for a network whose matrices may have lost rows and columns.

    The layers in `merged` become one convolution with the weights W A, those in `parted` stay two
    in a row, `conv` and `matrix`, and `marked` ones, which were their own matrix, are unwrapped.
    What is left are layers of torch.nn under their old names; outputs stay as they are.
    """

    merged: tuple[str, ...]
    parted: tuple[str, ...]
    marked: tuple[str, ...]
    kind: ClassVar[str] = "fold"

    @classmethod
    def of(cls, model: nn.Module) -> Fold:
        """Merge what costs no more multiply-adds as one convolution (d m <= r (d + m))."""
        hinged = {n: m for n, m in model.named_modules() if isinstance(m, Hinged)}
        marked = {name for name, module in hinged.items() if module.conv is None}
        merged = {n for n, m in hinged.items() if n not in marked and cheaper_merged(m)}
        parts = (merged, hinged.keys() - merged - marked, marked)
        return cls(*(tuple(name for name in hinged if name in part) for part in parts))

    def apply(self, model: nn.Module) -> None:
        """Fold in place; raises SurgeryError where a name has no matrix."""
        for name in (*self.merged, *self.parted, *self.marked):
            module = layer_named(model, name, _FOREIGN)
            if not isinstance(module, Hinged):
                raise SurgeryError(f"{name} is a {type(module).__name__}, no matrix; {_FOREIGN}")
            replace_module(model, module, self._folded(name, module).train(module.training))
        for conv in [m for m in model.modules() if isinstance(m, WholeGroups)]:
            replace_module(model, conv, plain_groups(conv))

    def _folded(self, name: str, module: Hinged) -> nn.Module:
        if name in self.merged:
            return merge(module)
        if module.conv is None:
            return module.matrix
        return nn.Sequential(OrderedDict(conv=module.conv, matrix=module.matrix))

    def to_dict(self) -> dict[str, Any]:
        """The names of the layers."""
        return {"edit": self.kind, **{part: list(names) for part, names in vars(self).items()}}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Fold:
        """The inverse of `to_dict`."""
        try:
            parts = (plain[part] for part in ("merged", "parted", "marked"))
            return cls(*(tuple(str(name) for name in names) for names in parts))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded copy of a network, the edit that makes it, and how far its outputs moved."""

    model: nn.Module
    edit: Fold
    gap: Gap

    def __str__(self) -> str:
        counts = {
            "merged into one convolution": self.edit.merged,
            "left as two": self.edit.parted,
            "were their own matrix": self.edit.marked,
        }
        told = ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
        return f"matrices: {told}; outputs moved by {self.gap.relative:.1e} (float64)"


def fold(model: nn.Module, batch: Example) -> Folded:
    """Fold a copy, and prove by numbers that it is the same function.

    Compared in double precision, in eval mode. SurgeryError where it is another function.
    """
    edit, narrow = Fold.of(model), duplicate(model)
    edit.apply(narrow)
    pair = [duplicate(net).double() for net in (narrow, model)]
    inputs = inputs_of(batch).changed(lambda x: x.double() if x.is_floating_point() else x)
    with evaluating(*pair):
        gap = Gap.between(*(run_on(net, inputs, "the network in doubles") for net in pair))
    if gap.relative > MOVED:
        raise SurgeryError(
            f"folding moved the outputs by {gap.relative:.2e} of the largest one (at most "
            f"{MOVED:g}); please report the network"
        )
    return Folded(narrow, edit, gap)


@torch.no_grad()
def factors(layer: nn.Module, start: str) -> tuple[nn.Module, nn.Module]:
    """A convolution and a 1 x 1 convolution that do together what `layer` does."""
    flat = layer.weight.flatten(1).T.double()  # (d, n)
    if start == "identity":
        left, right = flat, torch.eye(layer.out_channels, dtype=flat.dtype, device=flat.device)
    else:
        left, sizes, right = torch.linalg.svd(flat, full_matrices=False)
        if start == "svd":
            right = sizes[:, None] * right
        else:
            left = left * sizes
    return _with_weights(layer, left), _matrix(layer, right)


@torch.no_grad()
def merge(module: Hinged) -> nn.Module:
    """The one convolution with the weights W A, in float64 until the end."""
    conv, matrix = module.conv, module.matrix
    right = matrix.weight.flatten(1).T.double()
    one = _with_weights(conv, conv.weight.flatten(1).T.double() @ right)
    constants = [bias.double() for bias in (matrix.bias,) if bias is not None]
    if conv.bias is not None:
        constants.append(right.T @ conv.bias.double())
    if constants:
        one.bias = nn.Parameter(torch.stack(constants).sum(dim=0).to(conv.weight.dtype))
    return one


def cheaper_merged(module: Hinged) -> bool:
    """Whether one convolution takes no more multiply-adds than two."""
    inner, inputs, *kernel = module.conv.weight.shape
    outputs, d = module.matrix.out_channels, inputs * prod(kernel)
    return d * outputs <= inner * (d + outputs)


def _with_weights(layer: nn.Module, flat: Tensor) -> nn.Module:
    """A convolution without bias like `layer`, with the filters in the columns of `flat`."""
    inputs, kernel = layer.weight.shape[1], layer.weight.shape[2:]
    weight = flat.T.reshape(-1, inputs, *kernel)
    names = ("stride", "padding", "dilation", "padding_mode")
    given = {name: getattr(layer, name) for name in names}
    return _filled(type(layer), weight, layer, **given)


def _matrix(layer: nn.Module, right: Tensor) -> nn.Module:
    """A 1 x 1 convolution from the rows of `right` to its columns, with the bias of `layer`."""
    kernel = (1,) * (layer.weight.ndim - 2)
    made = _filled(type(layer), right.T.reshape(*right.T.shape, *kernel), layer)
    made.bias = layer.bias
    return made


def _filled(kind: type[nn.Module], weight: Tensor, like: nn.Module, **settings: Any) -> nn.Module:
    outputs, inputs, *kernel = weight.shape
    made = kind(inputs, outputs, tuple(kernel), bias=False, device="meta", **settings)
    trained = like.weight.requires_grad
    made.weight = nn.Parameter(arranged(weight.to(like.weight.dtype), like.weight), trained)
    return made.train(like.training)


def _convolution(model: nn.Module, name: str) -> nn.Module:
    module = layer_named(model, name, _FOREIGN)
    if not isinstance(module, CONVOLUTIONS):
        raise SurgeryError(f"{name} is a {type(module).__name__}, no convolution; {_FOREIGN}")
    return module


def layers_with_matrix(model: nn.Module) -> Sequence[str]:
    """The names of the layers in whose place a matrix stands."""
    return [name for name, module in model.named_modules() if isinstance(module, Hinged)]
