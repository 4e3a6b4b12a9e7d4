"""A second form of the check of exactness, which knows nothing of channel graphs.

What a narrow network has lost is read off its weights: with random numbers, rows and columns of a
weight are told apart by their entries. The dense network is silenced by hand, by zeros in place of
the columns that its narrow copy lost, and both must then compute the same.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)

Given = tuple[tuple[Any, ...], Mapping[str, Any]]  # the arguments of one call


@dataclass(frozen=True)
class Gaps:
    """Largest differences, relative to the largest entry; None where dense itself fails.

    `heard` is how much the dense network changed when it was silenced: near zero says nothing.
    """

    eval: float | None
    train: float | None
    resized: float | None
    heard: float | None

    @property
    def worst(self) -> float:
        """The largest of them; at least one must be known."""
        known = [gap for gap in (self.eval, self.train, self.resized) if gap is not None]
        assert known, "the dense network takes none of the inputs"
        return max(known)


def distinct(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in double precision, each weight random, so that its rows and columns differ."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for name, value in {**dict(model.named_parameters()), **floats(model)}.items():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            if value.ndim > 1:  # of the size that keeps activations alive
                bound = (3 / max(value[0].numel(), 1)) ** 0.5
                value.copy_((2 * noise - 1) * bound)
            else:
                value.copy_(noise + 0.5 if is_scale(name, value) else noise - 0.5)
    return model


def floats(model: nn.Module) -> dict[str, Tensor]:
    """Statistics of norms."""
    return {name: b for name, b in model.named_buffers() if name.endswith(("mean", "var"))}


def is_scale(name: str, value: Tensor) -> bool:
    """Whether a vector multiplies: variances, scales of norms."""
    return name.endswith("var") or (name.endswith("weight") and bool((value > 0).all()))


def gaps(
    dense: nn.Module,
    narrow: nn.Module,
    example: Any,
    resize: Callable[[Tensor], Tensor] | None = None,
    weights: Iterable[str] = (),
) -> Gaps:
    """How far the narrow network is from the silenced dense one, in eval and in train mode.

    Also, with `resize`, in eval mode on inputs of another size. `weights` are paths of bare
    parameters that a function takes as the weight of a convolution or linear map.
    """
    given, whole = arguments(example), dense
    dense = silenced(dense, narrow, weights)
    other = changed(given, resize) if resize else None
    return Gaps(
        eval=_gap(dense, narrow, given, False),
        train=_gap(dense, narrow, given, True),
        resized=_gap(dense, narrow, other, False) if other else None,
        heard=_gap(whole, dense, given, False),
    )


def silenced(dense: nn.Module, narrow: nn.Module, weights: Iterable[str] = ()) -> nn.Module:
    """A copy of the dense network that hears nothing from the channels that the narrow one lost."""
    dense = copied(dense)
    small = dict(narrow.named_modules())
    for name, layer in dense.named_modules():
        if isinstance(layer, LAYERS):
            _deafen(layer, small[name])
    with torch.no_grad():
        for path in weights:
            wide, less = dense.get_parameter(path), narrow.get_parameter(path)
            columns = kept_columns(wide, less, 1)
            wide *= _mask(columns, wide.shape, 1)
    return dense


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, with what is no leaf as numbers."""
    held = (t for module in model.modules() for t in vars(module).values() if _computed(t))
    return copy.deepcopy(model, {id(one): one.detach().clone() for one in held})


def share(dense: nn.Module, narrow: nn.Module, name: str) -> float:
    """The share of its outputs that a layer kept."""
    side = 1 if isinstance(dense.get_submodule(name), TRANSPOSED) else 0
    wide, less = (net.get_submodule(name).weight.shape[side] for net in (dense, narrow))
    return less / wide


def kept_columns(wide: Tensor, less: Tensor, groups: int) -> list[Tensor]:
    """For every group of the wide weight (outputs, inputs of a group, ...) the inputs it keeps."""
    wide, less = wide.detach(), less.detach()
    if wide.shape == less.shape:
        assert torch.equal(wide, less), "weights of one size have other numbers"
        return [torch.arange(wide.shape[1])] * groups
    rows, columns = _places(wide, less)
    found = [torch.arange(0)] * groups
    size = len(wide) // groups
    for row, mine in zip(rows.tolist(), columns, strict=True):
        known = found[row // size]
        assert not len(known) or torch.equal(known, mine), "rows of a group kept other columns"
        found[row // size] = mine
    return found


def _places(wide: Tensor, less: Tensor) -> tuple[Tensor, Tensor]:
    """The row of the wide weight that each narrow row is from, and the columns it kept."""
    flat, order = wide.flatten().sort()
    assert bool((flat[1:] != flat[:-1]).all()), "entries of the dense weight are not unique"
    at = order[torch.searchsorted(flat, less.flatten().contiguous()).clamp(max=len(flat) - 1)]
    assert torch.equal(wide.flatten()[at], less.flatten()), "entries that the dense weight has not"
    inner = wide[0, 0].numel()
    places = (at // inner).reshape(less.shape[0], less.shape[1], -1)
    rows, columns = places // wide.shape[1], places % wide.shape[1]
    assert bool((rows == rows[:, :1, :1]).all()), "a row is made of several"
    assert bool((columns == columns[:, :, :1]).all()), "a column is made of several"
    return rows[:, 0, 0], columns[:, :, 0]


def _deafen(layer: nn.Module, small: nn.Module) -> None:
    groups = getattr(layer, "groups", 1)
    wide, less = layer.weight.detach(), small.weight.detach()
    if isinstance(layer, TRANSPOSED):  # (inputs, outputs of a group, ...)
        wide, less = _turned(wide, groups), _turned(less, small.groups)
    columns = kept_columns(wide, less, groups)
    kept = torch.zeros(groups, wide.shape[1], dtype=torch.bool)
    for group, mine in enumerate(columns):
        kept[group, mine] = True
    if bool(kept.all()):
        return
    if "weight" in layer._parameters:
        with torch.no_grad():
            mask = _mask(columns, wide.shape, groups).to(layer.weight)
            turned = isinstance(layer, TRANSPOSED)
            layer.weight.mul_(_turned(mask, groups) if turned else mask)
        return
    flags = kept.flatten()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        dim = x.ndim - 1 if isinstance(module, nn.Linear) else x.ndim - module.weight.ndim + 1
        return (x * flags.to(x).reshape([-1 if d == dim else 1 for d in range(x.ndim)]), *others)

    layer.register_forward_pre_hook(hook)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """(inputs, outputs of a group, ...) as (outputs, inputs of a group, ...), and back."""
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return parts.reshape(-1, *parts.shape[2:])


def _mask(columns: list[Tensor], shape: torch.Size, groups: int) -> Tensor:
    mask = torch.zeros(groups, shape[1])
    for group, mine in enumerate(columns):
        mask[group, mine] = 1
    mask = mask.repeat_interleave(shape[0] // groups, 0)
    return mask.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))


def _gap(dense: nn.Module, narrow: nn.Module, given: Given, training: bool) -> float | None:
    found = []
    for network in (dense, narrow):
        network = in_mode(copied(network), training)
        args, kwargs = copy.deepcopy(given)
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                found.append(tensors_of(network(*args, **kwargs)))
        except Exception:
            if network is not None and not found:
                return None  # the dense network does not take this
            raise
    wide, less = found
    assert len(wide) == len(less) and wide, "the outputs have other parts"
    return max(distance(a, b) for a, b in zip(wide, less, strict=True))


def distance(expected: Tensor, found: Tensor) -> float:
    """The largest difference, relative to the largest entry; infinite for another shape."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    expected, found = expected.double(), found.double()
    known = expected.isfinite()
    if not bool(known.any()) or not torch.equal(expected[~known], found[~known]):
        return float("inf")
    size = float(expected[known].abs().max().clamp_min(1e-30))
    return float((expected - found)[known].abs().max()) / size


def in_mode(model: nn.Module, training: bool) -> nn.Module:
    """The model in that mode, but for what drops values at random."""
    model.train(training)
    for module in model.modules():
        if any(word in type(module).__name__ for word in ("Drop", "StochasticDepth")):
            module.eval()
    return model


def arguments(example: Any) -> Given:
    """A tensor is one argument, a tuple are several, a mapping has them by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple) else (example,)), {}


def changed(nest: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nest of arguments with other tensors."""
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, Mapping):
        return {key: changed(item, change) for key, item in nest.items()}
    if isinstance(nest, tuple | list):
        return type(nest)(changed(item, change) for item in nest)
    return nest


def tensors_of(found: Any) -> list[Tensor]:
    """All tensors that a network returned, in whatever they are."""
    if isinstance(found, Tensor):
        return [found.detach()]
    if isinstance(found, Mapping):
        inner: Iterable[Any] = found.values()
    elif isinstance(found, tuple | list):
        inner = found
    elif dataclasses.is_dataclass(found):
        inner = [getattr(found, field.name) for field in dataclasses.fields(found)]
    elif hasattr(found, "__dict__") and not isinstance(found, type | nn.Module):
        inner = vars(found).values()
    else:
        inner = ()
    return [tensor for one in inner for tensor in tensors_of(one)]


def _computed(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf
