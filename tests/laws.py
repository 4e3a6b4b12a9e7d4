"""What must hold for every network and every cut, checked against independent oracles."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, fvcore_macs
from prunekit.selection.base import protect_units
from prunekit.surgery import Narrow, edit_from_dict, load_model, save_model

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


@dataclass(frozen=True, eq=False, repr=False)
class Cut:
    """A dense network, what is removed of it, and the network that is left."""

    dense: nn.Module
    example: tuple[Tensor, ...]
    graph: ChannelGraph
    chosen: Mapping[str, Tensor]
    drop: Tensor
    edit: Narrow
    narrow: nn.Module

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print what hypothesis shows; field by field, the recorded steps take it forever."""
        units = {
            name: removed.nonzero().flatten().tolist() for name, removed in self.chosen.items()
        }
        printer.text(f"without {units}: {self.dense}")

    @classmethod
    def random(
        cls,
        dense: nn.Module,
        example: Sequence[Tensor],
        seed: int = 0,
        share: float = 0.5,
        least: int = 1,
    ) -> Cut:
        """Remove about this share of every group, at random; each layer keeps a channel."""
        graph = ChannelGraph.trace(dense, tuple(example))
        chosen = masks(graph, seed, share, least)
        drop = graph.drop(chosen)
        edit = Narrow.of(graph, drop)
        narrow = twin(dense)
        edit.apply(narrow)
        return cls(dense, tuple(example), graph, chosen, drop, edit, narrow)


def twin(model: nn.Module) -> nn.Module:
    """A copy; weights that hooks compute, which torch refuses to copy, are copied as numbers."""
    computed = (
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    )
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def masks(graph: ChannelGraph, seed: int, share: float, least: int = 1) -> dict[str, Tensor]:
    """For every group what to remove: all but the best of random scores."""
    source = torch.Generator().manual_seed(seed)
    scores = {
        g.name: torch.rand(len(g.units), generator=source, dtype=torch.float64)
        for g in graph.groups
    }
    stays = protect_units(scores, graph, least)
    return {
        name: ~stays[name] & (score.argsort().argsort() < share * len(score))
        for name, score in scores.items()
    }


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Train mode, but for dropout."""
    model.train()
    for module in model.modules():
        if "Drop" in type(module).__name__ or "StochasticDepth" in type(module).__name__:
            module.eval()
    yield
    model.eval()


def leaves(outputs: Any) -> list[Tensor]:
    """All tensors of a nested output, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, list | tuple):
        return []
    return [leaf for item in outputs for leaf in leaves(item)]


def gap(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry of the tensor it is in."""
    pairs = [*zip(leaves(found), leaves(expected), strict=True)]
    assert pairs and all(a.shape == b.shape for a, b in pairs)
    assert all(bool(b.isfinite().all()) for _, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


@torch.no_grad()
def gaps(cut: Cut) -> tuple[float, float]:
    """The gap between the narrow and the silenced network, in eval and in train mode."""
    found = []
    for mode in ("eval", "train"):
        dense, narrow = twin(cut.dense).eval(), twin(cut.narrow).eval()
        inputs = [tuple(x.clone() for x in cut.example) for _ in range(2)]
        if mode == "train":
            with training(dense), training(narrow), cut.graph.silencer(dense, cut.drop):
                found.append(gap(narrow(*inputs[0]), dense(*inputs[1])))
        else:
            with cut.graph.silencer(dense, cut.drop):
                found.append(gap(narrow(*inputs[0]), dense(*inputs[1])))
    return found[0], found[1]


def check_masked(cut: Cut, tolerance: float = 1e-9) -> None:
    """Cutting equals silencing, in eval and in train mode, and the outputs are no constants."""
    assert max(gaps(cut)) <= tolerance, gaps(cut)


def check_sizes(cut: Cut) -> None:
    """Tracing what is left finds the kept sizes everywhere.

    A layer with one channel left can look like another layer (PReLU with one slope for all), so
    groups should have kept two.
    """
    again = ChannelGraph.trace(cut.narrow, cut.example)
    kept = {name: int((~mask).sum()) for name, mask in cut.chosen.items()}
    if _depthwise_names(cut.narrow) == _depthwise_names(cut.dense):  # else groups became units
        assert {group.name: len(group.units) for group in again.groups} == kept
    for side, before in ((again.ins, cut.graph.ins), (again.outs, cut.graph.outs)):
        assert {name: len(units) for name, units in side.items()} == {
            name: int((~cut.drop[units]).sum()) for name, units in before.items()
        }
    assert again.uses == cut.graph.uses


def check_costs(cut: Cut, counters: str = "fvcore torch") -> None:
    """The cost model knows the narrow network before it exists; the other counters agree."""
    before = CostModel(cut.dense, cut.graph)
    one = tuple(x[:1] for x in cut.example)
    after = CostModel(cut.narrow, ChannelGraph.trace(cut.narrow, one))
    size = sum(parameter.numel() for parameter in cut.narrow.parameters())
    assert before.params(cut.drop) == after.params() == size
    assert before.macs(cut.drop) == after.macs()
    for counter in counters.split():
        assert after.macs() == COUNTERS[counter](cut.narrow, one), counter


def counted_by_torch(model: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Multiply-adds of layers and products by torch's own counter."""
    net = twin(model).eval()  # with gradients: attention has a path without, which is not counted
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(*(x.clone() for x in example))
    return int(counter.get_total_flops() // 2)


COUNTERS = {"fvcore": fvcore_macs, "torch": counted_by_torch}


def check_saved(cut: Cut, arch: Mapping[str, Any], trust: Sequence[str]) -> None:
    """The edit survives being written down, and a file brings the same outputs back."""
    assert edit_from_dict(cut.edit.to_dict()) == cut.edit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save_model(path, cut.narrow, dict(arch), [cut.edit])
        saved = load_model(path, trust=[*trust]).model
    saved = saved.to(next(cut.narrow.parameters()).dtype).eval()
    with torch.no_grad():
        assert gap(saved(*cut.example), twin(cut.narrow).eval()(*cut.example)) == 0


def unexplained(graph: ChannelGraph, model: nn.Module, outputs: Sequence[str]) -> list[str]:
    """Layers that keep channels for no reason: several of them, no output, and nothing says why."""
    told = " ".join([*graph.notes, *graph.frozen])
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
        and not (name in graph.outs and bool((graph.outs[name] > 0).all()))
        and name not in outputs
        and getattr(module, "out_channels", 2) > 1 < getattr(module, "out_features", 2)
        and not _depthwise(module)  # then its inputs are explained, or not
        and not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", told)
    ]


def outputs(model: nn.Module, width: int) -> list[str]:
    """The layers of this many outputs, which tell classes apart."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and len(module.weight) == width
    ]


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) and 1 < getattr(module, "groups", 1) == module.in_channels


def _depthwise_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if _depthwise(module)}


def ties(model: nn.Module) -> list[set[str]]:
    """Names of parameters that are one."""
    places: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), set()).add(name)
    return [names for names in places.values() if len(names) > 1]


def check_kept(cut: Cut) -> None:
    """Ties, frozen parameters and types are as before, and the dense network is untouched."""
    assert ties(cut.narrow) == ties(cut.dense)
    for (name, one), (other, two) in zip(
        cut.dense.named_parameters(), cut.narrow.named_parameters(), strict=True
    ):
        assert (name, one.requires_grad, one.dtype) == (other, two.requires_grad, two.dtype)


def check_trainable(cut: Cut) -> None:
    """A training step runs, and reaches every parameter that a dense step reaches."""
    reached = []
    for net in (twin(cut.dense), twin(cut.narrow)):
        with training(net), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = [leaf for leaf in leaves(net(*cut.example)) if leaf.requires_grad]
            if parts:
                sum(leaf.square().sum() for leaf in parts).backward()
        reached.append({name for name, p in net.named_parameters() if p.grad is not None})
    assert reached[0] == reached[1]
