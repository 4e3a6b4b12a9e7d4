"""What is done to whole networks: their mode, and copies of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put networks in evaluation mode; afterwards every module is back in the mode it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def muted(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Inside it, these modules put out zeros in place of what they compute."""
    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(_zeros)
            stack.callback(hook.remove)
        yield


def _zeros(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return torch.zeros_like(out)


def duplicate(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model.

    Tensors that a module computes and keeps, as the older weight normalisation does, are detached:
    torch refuses to copy them otherwise.
    """
    kept = [leaf for module in model.modules() for leaf in vars(module).values()]
    computed = [leaf for leaf in kept if isinstance(leaf, Tensor) and not leaf.is_leaf]
    return copy.deepcopy(model, {id(leaf): leaf.detach().clone() for leaf in computed})
