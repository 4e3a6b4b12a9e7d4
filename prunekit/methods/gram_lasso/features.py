"""The images that similarities are computed on, and the feature maps of layers on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.data import Batches
from prunekit.data.base import balanced_indices, sample_indices
from prunekit.errors import ConfigError, DataError, one_of
from prunekit.graph.layers import CONVOLUTIONS
from prunekit.schema import Checked, Range, Whole

OnCall = Callable[[str, nn.Module, Tensor, Tensor], None]
"""A function of a layer's name, the layer, its input and its output."""
_READ_AT_ONCE = 32  # examples
_PER_CLASS = 8  # with fewer examples of each class, balancing is off by default


@dataclass(frozen=True, eq=False)
class Maps:
    """Flattened feature maps: `values` (channels, examples, entries), a view where possible.

    `sizes` (channels,) counts the entries that belong to a channel; the others are zero padding.
    """

    values: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Maps:
        """Wrap maps without padding."""
        sizes = torch.full((len(values),), values.shape[2], device=values.device)
        return cls(values, sizes)

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of computations: double for double maps, single for all others."""
        return torch.float64 if self.values.dtype == torch.float64 else torch.float32


def channel_maps(layer: nn.Module, tensor: Tensor) -> Maps:
    """Return the input or output of a layer by channel.

    Channels are dimension 1 for convolutions and the last one for linear layers; all positions are
    entries of one map.
    """
    if isinstance(layer, nn.Linear):
        return Maps.of(tensor.reshape(len(tensor), -1, tensor.shape[-1]).permute(2, 0, 1))
    return Maps.of(tensor.flatten(2).transpose(0, 1))


def input_maps(layer: nn.Module, tensor: Tensor, units: Tensor) -> tuple[Maps, Tensor]:
    """Return the input of a layer by channel, and the unit of each channel.

    `units` has the unit of every input (`ChannelGraph.ins`). Inputs of a linear layer that share a
    unit, such as those of a flattened map, form one channel; frozen inputs (unit 0) are a channel
    each.
    """
    maps = channel_maps(layer, tensor)
    if not isinstance(layer, nn.Linear):
        return maps, units
    inputs, owners = inputs_by_unit(units)
    if inputs.shape[1] == 1:
        return maps, owners
    padded = F.pad(tensor.reshape(len(tensor), -1, tensor.shape[-1]), (0, 1))
    gathered = padded[..., inputs.to(tensor.device)]  # index -1 is the zero padding
    positions = padded.shape[1]
    values = gathered.permute(2, 0, 1, 3).flatten(2)
    sizes = (inputs >= 0).sum(1).to(tensor.device) * positions
    return Maps(values, sizes), owners


def inputs_by_unit(units: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input indices of every unit, padded with -1, and the ids of the units.

    The indices are (units, largest number of inputs). Units are ordered by their first input; every
    frozen input (id 0) counts as a unit of its own.
    """
    distinct = torch.where(units == 0, -1 - torch.arange(len(units)), units)
    ids, owner, counts = torch.unique(distinct, return_inverse=True, return_counts=True)
    by_owner = owner.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(units)) - starts.repeat_interleave(counts)
    inputs = torch.full((len(ids), int(counts.max())), -1)
    inputs[owner[by_owner], column] = by_owner
    order = inputs[:, 0].argsort()
    return inputs[order], ids[order].clamp_min(0)


class Responses:
    """Selects the responses of the regression: every output channel of a layer is one."""

    def __call__(self, maps: Maps) -> Maps:
        """Return the maps unchanged."""
        return maps


class WholeOutput(Responses):
    """Makes the whole output of a layer a single response, as in APIB."""

    def __call__(self, maps: Maps) -> Maps:
        """Return one channel that concatenates the maps of all channels."""
        return Maps.of(maps.values.transpose(0, 1).flatten(1)[None])


@dataclass(frozen=True)
class Calibration(Checked):
    """A sample of training images, drawn with `seed` and not augmented.

    `balance` draws equally many images of every class (labels are used for nothing else). By
    default it is on if every class gets at least eight images.
    """

    count: Annotated[int, Range(at_least=2), "training images"] = 128
    seed: Annotated[Whole, "seed of the draw"] = 0
    balance: Annotated[
        bool | None, "equally many images of every class; null: if a class gets 8 or more"
    ] = None

    def indices(self, batches: Batches) -> Tensor:
        """Return the indices of the sample; a set with no more than `count` images is permuted.

        Raises ConfigError if classes cannot be balanced.
        """
        if self.balance is False:
            return sample_indices(batches.size, self.count, self.seed)
        classes = _count_classes(batches.labels)
        if self.balance and not 0 < classes <= self.count:
            raise ConfigError(
                f"count={self.count} is a batch smaller than the {classes} classes it is to "
                "balance; raise it, or set balance=false"
                if classes
                else "balance=true needs labels that are whole numbers; set balance=false"
            )
        if self.balance or 0 < classes <= self.count / _PER_CLASS:
            return balanced_indices(batches.labels, self.count, self.seed)
        return sample_indices(batches.size, self.count, self.seed)

    def batch(self, batches: Batches, min_examples: int) -> tuple[Tensor, Tensor]:
        """Return images and labels; raises DataError for fewer than `min_examples`."""
        indices = self.indices(batches)
        if len(indices) < min_examples:
            raise DataError(
                f"statistics need at least {min_examples} examples and there are {len(indices)}; "
                "give more data, or raise count"
            )
        inputs, labels = zip(*batches.pick(indices, _READ_AT_ONCE), strict=True)
        return torch.cat(inputs), torch.cat(labels)


def _count_classes(labels: Tensor) -> int:
    """Return the number of classes; 0 if the labels are not integers."""
    integers = labels.dim() == 1 and not (labels.is_floating_point() or labels.is_complex())
    return len(torch.unique(labels)) if integers else 0


@contextmanager
def hook_first_calls(
    model: nn.Module, layers: Collection[str], on_call: OnCall
) -> Iterator[dict[str, int]]:
    """Run `on_call` at the first call of each layer inside the `with` block.

    Yields the number of calls of each layer, which keeps counting. Raises ConfigError if a layer is
    missing or is neither a convolution nor linear.
    """
    calls = dict.fromkeys(layers, 0)

    def hook_of(name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
        ) -> None:
            calls[name] += 1
            if calls[name] == 1:
                on_call(name, module, args[0] if args else kwargs["input"], out)

        return hook

    with ExitStack() as stack:
        for name in calls:
            handle = _layer(model, name).register_forward_hook(hook_of(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


def _layer(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    layers = {path: layer for path, layer in modules.items() if _has_filters(layer)}
    if name in layers:
        return layers[name]
    what = f"a {type(modules[name]).__name__}" if name in modules else "no layer of the network"
    raise ConfigError(
        f"statistics are taken of convolutions and linear layers, and {name!r} is {what}; "
        + one_of(name, layers)
    )


def _has_filters(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))
