"""First-order changes of the loss under the removal of single units, example by example.

A removed unit puts out a constant at every layer that has it as an output channel: the bias, or the
shift of a norm. Gates interpolate between this constant and what the layer puts out. Where a unit
passes several such layers (a convolution, then its norm), the last one before the layers that read
the unit decides what they get, so gates act up to the next such layer only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.criteria.base import sum_by_unit
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import channel_dim, layer_named
from prunekit.graph.table import layer_operation
from prunekit.outputs import logits_of
from prunekit.surgery.layer_hooks import Forward, dense_readers, reading_inputs


@dataclass(frozen=True, eq=False)
class RemovalEffects:
    """Computes how the loss changes, to first order, when a unit is removed.

    With `absorb` the constants of removed units stay, as where they are absorbed into the next
    layer; without it they are lost too. The network must be in evaluation mode.
    """

    model: nn.Module
    graph: ChannelGraph
    absorb: bool
    _called: set[str] = field(default_factory=set, init=False)

    def of_batch(self, x: Tensor, y: Tensor) -> Tensor:
        """Return minus the change of each example's cross-entropy, (examples, graph.count)."""
        inputs: list[Tensor] = []
        with torch.enable_grad(), self._reading(inputs, detached=False):
            loss = functional.cross_entropy(logits_of(self.model(x)), y, reduction="sum")
        total = torch.zeros(self.graph.count, len(x), dtype=torch.float64)
        if not inputs:
            return total.T
        slopes = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        gated_inputs: list[Tensor] = []
        gates: list[tuple[str, Tensor, int]] = []
        with torch.enable_grad(), self._gated(gates), self._reading(gated_inputs, detached=True):
            self.model(x)
        pairs = [(z, s) for z, s in zip(gated_inputs, slopes, strict=True) if z.requires_grad]
        if not pairs:
            return total.T
        reached, weights = zip(*pairs, strict=True)
        factors = [gate for _, gate, _ in gates]
        grads = torch.autograd.grad(reached, factors, weights, allow_unused=True)
        for (name, _, dim), grad in zip(gates, grads, strict=True):
            if grad is not None:
                self._called.add(name)
                channels = grad.double().movedim(dim, -1).cpu()
                effect = channels.reshape(len(x), -1, channels.shape[-1]).sum(1)
                total.index_add_(0, self.graph.outs[name].cpu(), effect.T)
        return total.T

    def gate_counts(self) -> Tensor:
        """Return how many layers decided so far what readers of each unit got, per unit id."""
        outs = self.graph.outs
        return sum_by_unit(self.graph, {name: torch.ones(len(outs[name])) for name in self._called})

    @cached_property
    def _readers(self) -> dict[str, nn.Module]:
        """The layers that compute other channels from units."""
        return dense_readers(self.model, self.graph)

    @cached_property
    def _emitters(self) -> dict[str, nn.Module]:
        """The layers that put out constants for removed units."""
        outs = self.graph.outs
        layers = {n: layer_named(self.model, n) for n, units in outs.items() if bool(units.any())}
        return {
            name: layer
            for name, layer in layers.items()
            if name in self.graph.inexact or _emits_constants(layer)
        }

    @contextmanager
    def _reading(self, inputs: list[Tensor], detached: bool) -> Iterator[None]:
        """Append what every reader gets to `inputs`; `detached` hides it from gradients behind."""

        def read(name: str, forward: Forward, x: Tensor) -> Tensor:
            own = x.clone()  # operations in place may overwrite x
            inputs.append(own if own.requires_grad or detached else own.requires_grad_())
            return own.detach() if detached else own

        with reading_inputs(self.model, self.graph, self._readers, read):
            yield

    @contextmanager
    def _gated(self, gates: list[tuple[str, Tensor, int]]) -> Iterator[None]:
        """Put a gate of one behind every call of every emitter, cut off from what is before it."""
        with ExitStack() as stack:
            for name, layer in self._emitters.items():
                if name not in self.graph.functional:
                    hook = layer.register_forward_hook(self._gate_hook(name, gates))
                    stack.callback(hook.remove)
            yield

    def _gate_hook(
        self, name: str, gates: list[tuple[str, Tensor, int]]
    ) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            dim = channel_dim(module, out.dim())
            shape = [n if axis in (0, dim) else 1 for axis, n in enumerate(out.shape)]
            gate = out.new_ones(shape, requires_grad=True)
            bias = getattr(module, "bias", None) if self.absorb else None
            own = out.detach()
            varying = own if bias is None else own - _along(bias.detach(), dim, out.dim())
            gates.append((name, gate, dim))
            return own + (gate - 1) * varying

        return hook


def _emits_constants(layer: nn.Module) -> bool:
    entry = layer_operation(layer)
    return entry is not None and entry.emits_bias


def _along(values: Tensor, dim: int, rank: int) -> Tensor:
    """Return a vector shaped to be added along a dimension."""
    return values.reshape([-1 if axis == dim else 1 for axis in range(rank)])
