"""Residual blocks whose branch a cut would empty: find them, and leave only their shortcut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError, one_of
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import layer_named
from prunekit.graph.recording.steps import STORED, Kind, Recording, Step
from prunekit.graph.table import all_operations, named_operation
from prunekit.modes import copy_hooks
from prunekit.surgery.edits import BiasMap, damaged_edit, groups_at, register, replace_module

ADDED = "+"  # the step at which the branch was added
FUNCTIONS: Mapping[str, type[nn.Module]] = {
    f"{name}()": entry.layer_class
    for entry in all_operations()
    if entry.layer_class is not None
    for name in entry.functions
}


class ChannelBias(nn.Module):
    """Add a number to every channel, which is trained as biases are."""

    def __init__(self, bias: Tensor, trained: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input plus the bias, which broadcasts over examples and positions."""
        return x + self.bias

    def extra_repr(self) -> str:
        """Return the number of channels."""
        return str(self.bias.numel())


@register
@dataclass(frozen=True)
class SkipBlock:
    """Replace a residual block by its shortcut and the modules that follow the addition.

    `steps` are names of direct children of the block, of functions ("relu()"), and `ADDED` where
    the branch was added. If `shift` is given, a `ChannelBias` of zeros of that shape is put there,
    or a `BiasMap` if the shape has positions. Modules keep their names.
    """

    block: str
    steps: tuple[str, ...]
    shift: tuple[int, ...] | None = None
    kind: ClassVar[str] = "skip_block"

    def apply(self, model: nn.Module) -> None:
        """Replace the block wherever it is registered; raise SurgeryError if it does not fit."""
        block = layer_named(model, self.block, "the edit was made for another network")
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for step in self.steps:
            part = self._part(block, step)
            if part is not None and type(part) is not nn.Identity:
                name = "shift" if step == ADDED else step.removesuffix("()")
                parts[name if name not in parts else f"{name}_{len(parts)}"] = part
        shortcut = nn.Sequential(parts) if parts else nn.Identity()
        shortcut.training = block.training
        copy_hooks(block, shortcut)
        replace_module(model, block, shortcut)

    def _part(self, block: nn.Module, step: str) -> nn.Module | None:
        if step == ADDED:
            return None if self.shift is None else _shift_module(block, self.shift)
        part = FUNCTIONS[step]() if step in FUNCTIONS else block._modules.get(step)
        if part is None:
            raise SurgeryError(
                f"{self.block} has no part {step!r}; {one_of(step, block._modules)}; the edit was "
                "made for another network"
            )
        if getattr(part, "inplace", False):
            # it could overwrite a tensor that the layer in front keeps for autograd
            vars(part)["inplace"] = False
        return part

    def to_dict(self) -> dict[str, Any]:
        """Return the block, its steps, and the shape of the shift if there is one."""
        shift = {} if self.shift is None else {"shift": list(self.shift)}
        return {"edit": self.kind, "block": self.block, "steps": list(self.steps), **shift}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SkipBlock:
        """Rebuild the edit that `to_dict` described; raise ArtifactError for damaged entries."""
        try:
            shift = tuple(map(int, plain["shift"])) if "shift" in plain else None
            return cls(str(plain["block"]), tuple(map(str, plain["steps"])), shift)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged_edit(cls.kind, error) from error


@dataclass(frozen=True)
class EmptyBlock:
    """A residual block whose branch puts out nothing that depends on the block's input.

    `steps` describe the rest of the block, as in `SkipBlock`. `end` is the module that puts out the
    branch; `end_layer` is the layer in it that determines the branch's output channels.
    """

    block: str
    steps: tuple[str, ...]
    end: str
    end_layer: str

    def removes(self, name: str) -> bool:
        """Return whether the layer or parameter of this name is removed with the branch."""
        inside = name.startswith(f"{self.block}.")
        return inside and name.removeprefix(f"{self.block}.").split(".")[0] not in self.steps

    def edit(self, shift: tuple[int, ...] | None = None) -> SkipBlock:
        """Return the edit that removes the branch, with room for constants of shape `shift`."""
        return SkipBlock(self.block, self.steps, shift)


def empty_blocks(graph: ChannelGraph, removed: Tensor) -> tuple[EmptyBlock, ...]:
    """Return the smallest residual blocks that contain every layer that would be emptied.

    A block is a module with one input and one output tensor that is a chain of modules and
    activations apart from the addition of the branch. Raises SurgeryError for an emptied layer that
    is in no such branch.
    """
    emptied = graph.emptied(removed)
    if not emptied:
        return ()
    recording = graph.recordings[0]
    blocks: dict[str, EmptyBlock] = {}
    for name in emptied:
        if not any(block.removes(name) for block in blocks.values()):
            block = _block_around(recording, name, emptied)
            if block is None or block.end_layer not in graph.outs:
                raise SurgeryError(_refusal(graph, name))
            blocks[block.block] = block
    return tuple(
        inner
        for inner in blocks.values()
        if not any(outer.removes(inner.block) for outer in blocks.values())
    )


def _shift_module(block: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    like = next(block.parameters())
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if sum(size > 1 for size in shape) > 1:
        return BiasMap(zeros)
    return ChannelBias(zeros, any(parameter.requires_grad for parameter in block.parameters()))


def _refusal(graph: ChannelGraph, name: str) -> str:
    return (
        f"{name} would be left without channels (of {len(graph.ins[name])} inputs and "
        f"{len(graph.outs[name])} outputs), and is in no residual branch that could be removed "
        f"whole; keep more units of group {' or '.join(groups_at(graph, name))}, by "
        "selection.on_empty=keep_best or a lower ratio"
    )


def _block_around(recording: Recording, name: str, emptied: Collection[str]) -> EmptyBlock | None:
    """Return the smallest block with this layer in its branch."""
    module = name.rpartition(".")[0]
    while module:
        block = _ModuleCall(recording, module).empty_block(emptied)
        if block is not None and block.removes(name):
            return block
        module = module.rpartition(".")[0]
    return None


class _ModuleCall:
    """The steps of a recorded run that belong to the call of one module."""

    def __init__(self, recording: Recording, name: str) -> None:
        self.recording, self.name = recording, name
        self.steps = {
            step: None
            for step in recording.steps
            if step.kind not in STORED and name in _module_paths(step)
        }

    def empty_block(self, emptied: Collection[str]) -> EmptyBlock | None:
        """Return the block without its constant summand; None if it is no such residual block.

        The chain is followed from the output back to the input.
        """
        inputs, outputs = self._sources(self.steps), self._outputs()
        once = len(_calls(self.recording.steps, self.name)) == 1
        if not once or len(inputs) != 1 or len(outputs) != 1:
            return None
        (first,), (step,) = inputs, outputs
        dependent = self._dependent(first, emptied)
        parts: list[str] = []
        branch: Step | None = None
        while step is not first:
            summands = self._summands(step)
            if summands:
                constant = [summand for summand in summands if summand not in dependent]
                if len(constant) != 1 or branch is not None:
                    return None
                branch = constant[0]
                part, step = ADDED, next(summand for summand in summands if summand is not branch)
            else:
                link = self._link(step)
                if link is None:
                    return None
                part, step = link
            parts.append(part)
        return self._without(branch, tuple(reversed(parts))) if branch is not None else None

    def _without(self, branch: Step, parts: tuple[str, ...]) -> EmptyBlock | None:
        while self._child(branch) is None and _is_dropout(branch):
            (branch,) = self._sources({branch: None})
        end, layer = self._child(branch), _output_layer(branch)
        if end is None or layer is None:
            return None
        if any(len(_calls(self.recording.steps, name)) != 1 for name in (end, layer)):
            return None
        block = EmptyBlock(self.name, parts, end, layer)
        others = (step for step in self.recording.steps if step not in self.steps)
        shared = any(block.removes(layer) for step in others for layer in _layers(step))
        return None if shared else block

    def _dependent(self, first: Step, emptied: Collection[str]) -> set[Step]:
        """Return the steps whose values still depend on the input when `emptied` are empty."""
        dependent = {first}
        for step in self.steps:
            empty = any(layer in emptied for layer in _layers(step))
            if not empty and not step.is_query and any(n in dependent for n in step.sources):
                dependent.add(step)
        return dependent

    def _link(self, step: Step) -> tuple[str, Step] | None:
        """Return a direct child of the block or an activation, and the step it reads."""
        child = self._child(step)
        steps = {step: None}
        if child is not None:
            key = next(key for key, path in step.calls if path == child)
            steps = {n: None for n in self.steps if any(key == other for other, _ in n.calls)}
        sources = self._sources(steps)
        part = _activation(step) if child is None else child.removeprefix(f"{self.name}.")
        if len(sources) != 1 or part is None or "." in part:
            return None
        return part, sources[0]

    def _summands(self, step: Step) -> tuple[Step, ...]:
        """Return the two tensors that the block itself adds in this step; empty for others."""
        steps = tuple(arg for arg in step.args if isinstance(arg, Step))
        plain = self._child(step) is None and not step.kwargs and len(steps) == len(step.args) == 2
        return steps if plain and step.name == "add" else ()

    def _child(self, step: Step) -> str | None:
        """Return the child of the block that the step belongs to; None for the block itself."""
        paths = _module_paths(step)
        if self.name not in paths:
            return None
        depth = paths.index(self.name) + 1
        return paths[depth] if depth < len(paths) else None

    def _sources(self, steps: Collection[Step]) -> list[Step]:
        """Return the tensors other than parameters that these steps read from outside of them."""
        read = dict.fromkeys(source for step in steps for source in step.sources)
        return [n for n in read if n not in steps and n.kind not in STORED and not n.is_query]

    def _outputs(self) -> list[Step]:
        return [n for n in self.steps if any(user not in self.steps for user in n.users)]


def _is_dropout(step: Step) -> bool:
    """Return whether a step does nothing in evaluation mode."""
    entry = named_operation(step.name)
    return entry is not None and entry.is_dropout


def _module_paths(step: Step) -> list[str]:
    return [path for _, path in step.calls]


def _calls(steps: Collection[Step], name: str) -> set[int]:
    return {key for step in steps for key, path in step.calls if path == name}


def _activation(step: Step) -> str | None:
    """Return the name of an activation function that is called with its defaults only."""
    name = f"{step.name}()"
    if step.kind is Kind.LAYER or name not in FUNCTIONS or len(step.args) != 1:
        return None
    defaults = FUNCTIONS[name]()
    settings = {key: value for key, value in step.kwargs.items() if key != "inplace"}
    usual = all(getattr(defaults, key, None) == value for key, value in settings.items())
    return name if usual else None


def _layers(step: Step) -> list[str]:
    """Return the layer that a step calls, or the parameters it reads and their layers."""
    if step.kind is Kind.LAYER:
        return [str(step.target)]
    read = [str(source.target) for source in step.sources if source.kind is Kind.TENSOR]
    return [*read, *(path.rpartition(".")[0] for path in read)]


def _output_layer(step: Step) -> str | None:
    """Return the layer that made a tensor, behind any dropout."""
    while step.kind is Kind.CALL and _is_dropout(step):
        step = step.sources[0]
    return str(step.target) if step.kind is Kind.LAYER else next(iter(_layers(step)[1:]), None)
