"""Networks with several inputs and outputs: how they are cut, checked and measured."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunekit
from prunekit.errors import TraceError
from prunekit.measure import LatencyTest, fvcore_macs, layer_records, peak_memory
from prunekit.methods.slimming import slimming_flops
from prunekit.surgery import Gap, load_model

torch.set_num_threads(1)

Pair = namedtuple("Pair", ["one", "two"])


@dataclass
class Output(OrderedDict):
    """A dict and a dataclass at once, like the outputs of Hugging Face."""

    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        self.update(logits=self.logits, hidden=self.hidden)


class Box:
    """An object of no known library that holds a tensor."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.note = value, "plain"


OUTPUTS = {
    "tensor": lambda y, z: y,
    "dict": lambda y, z: {"z": z, "y": y},
    "named tuple": lambda y, z: Pair(y, [z]),
    "model output": lambda y, z: Output(y, (z,)),
    "object": lambda y, z: Box(y),
    "distribution": lambda y, z: torch.distributions.Normal(y, y.exp()),
}


class Two(nn.Module):
    """Two trunks on two images and an embedding of classes, whose outputs are joined."""

    def __init__(self, out: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.norm, self.mix = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.table, self.hidden = nn.Embedding(5, 4), nn.Linear(4, 6)
        self.head, self.out = nn.Linear(6, 3), out

    def joined(self, a: Tensor, b: Tensor, kind: Tensor | None = None) -> object:
        z = F.relu(self.norm(self.left(a) + self.right(b)))
        z = F.relu(self.mix(z)).mean((2, 3))
        if kind is not None:
            assert not kind.is_floating_point() and int(kind.max()) < 5
            z = z + F.relu(self.hidden(self.table(kind)))
        return OUTPUTS[self.out](self.head(z), z)


class ByName(Two):
    def forward(self, *, pixels: Tensor, other: Tensor, kind: Tensor | None = None) -> object:
        return self.joined(pixels, other, kind)


class InDict(Two):
    def forward(self, batch: dict[str, Tensor], scale: float = 1.0) -> object:
        return self.joined(batch["pixels"] * scale, batch["other"], batch.get("kind"))


class InList(Two):
    def forward(self, images: list[Tensor]) -> object:
        return self.joined(*images)


class InNest(Two):
    def forward(
        self, batch: tuple[dict[str, list[Tensor]], Tensor], extra: object = None
    ) -> object:
        return self.joined(batch[0]["images"][0], batch[0]["images"][1], batch[1])


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(batch)
    a = torch.randn(batch, 3, 8, 8, generator=source)
    b = torch.randn(batch, 1, 8, 8, generator=source)
    return a, b, torch.randint(5, (batch,), generator=source)


def cases(batch: int = 3) -> dict[str, tuple[type[Two], object]]:
    a, b, kind = inputs(batch)
    return {
        "by name": (ByName, {"pixels": a, "other": b}),
        "by name with integers": (ByName, {"pixels": a, "other": b, "kind": kind}),
        "a dict": (InDict, ({"pixels": a, "other": b},)),
        "a dict and a number": (InDict, ({"pixels": a, "other": b, "kind": kind}, 0.5)),
        "a list": (InList, ([a, b],)),
        "a nest": (InNest, (({"images": [a, b]}, kind), None)),
    }


def call(net: nn.Module, example: object) -> object:
    return net(**example) if isinstance(example, dict) else net(*example)


def floats(result: object) -> list[Tensor]:
    """Return the tensors that one of these networks returned, without a search."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Output):
        return [result.logits, *result.hidden]
    if isinstance(result, dict):
        return [result["z"], result["y"]]
    if isinstance(result, Pair):
        return [result.one, *result.two]
    return [result.value] if isinstance(result, Box) else [result.loc, result.scale]


@torch.no_grad()
def silenced(dense: nn.Module, result: prunekit.Pruned, example: object) -> list[Tensor]:
    """Return the outputs of a copy in which weights that read removed channels are zero.

    The layers are listed by hand: `mix` reads `left` and `right`; `head` reads `mix` and `hidden`.
    """
    net = copy.deepcopy(dense).eval()
    removed = result.masks.removed
    for name in ("mix", "head"):
        dropped = removed[result.graph.ins[name]]
        net.get_submodule(name).weight[:, dropped] = 0
    return floats(call(net, example))


def kept_alike(dense: nn.Module, result: prunekit.Pruned, example: object) -> None:
    with torch.no_grad():
        ours = floats(call(copy.deepcopy(result.model).eval(), example))
    for mine, theirs in zip(ours, silenced(dense, result, example), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(cases()))
def test_a_cut_is_the_silenced_network(name):
    kind, example = cases()[name]
    net = kind()
    result = prunekit.prune(net, example, keep=0.5, absorb=False)
    assert result.widths["left"] == (8, 4) and result.widths["mix"] == (6, 3)
    assert result.agreement.worst < 1e-5 and result.agreement.train is not None
    kept_alike(net, result, example)


@pytest.mark.parametrize("name", sorted(cases()))
def test_one_example_is_enough(name):
    kind, example = cases(1)[name]
    result = prunekit.prune(kind(), example, macs=0.6, scope="global")
    assert result.agreement.worst < 1e-5 and result.absorbed is not None
    assert result.after.macs <= 0.6 * result.before.macs


@pytest.mark.parametrize("out", sorted(OUTPUTS))
def test_outputs_of_any_structure(out):
    """If the features leave the network, the channels of `mix` are frozen too."""
    kind, example = cases()["by name"]
    net = kind(out)
    result = prunekit.prune(net, example, keep=0.5, absorb=False)
    assert result.widths["left"] == (8, 4)
    assert result.widths["mix"] == (
        (6, 3) if out in ("tensor", "object", "distribution") else (6, 6)
    )
    assert result.agreement.worst < 1e-5
    kept_alike(net, result, example)


def test_wrong_outputs_in_any_structure_are_seen():
    x = torch.ones(2, 3)
    for wrap in OUTPUTS.values():
        assert Gap.between(wrap(x, x), wrap(x, x)).absolute == 0
        assert Gap.between(wrap(x + 1, x), wrap(x, x)).absolute >= 1


def test_the_batch_of_given_data_takes_the_place_of_the_one_input():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, pixel_values: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.two(F.relu(self.one(pixel_values))).mean((2, 3))}

    data = [(torch.randn(6, 1, 8, 8), torch.arange(6) % 4)]
    example = {"pixel_values": torch.zeros(1, 1, 8, 8)}
    result = prunekit.prune(Named(), example, keep=0.5, criterion="apoz", data=data)
    assert result.widths["one"] == (8, 4) and result.agreement.worst < 1e-5
    (batch,) = result.pruning.dense.batch.tensors
    assert torch.equal(batch, data[0][0])


class Named(Two):
    """A network that calls its layers by position, or all of them by name."""

    names = False

    def forward(self, x: Tensor) -> Tensor:
        def on(layer: nn.Module, x: Tensor) -> Tensor:
            return layer(input=x) if self.names else layer(x)

        x = F.relu(on(self.norm, on(self.left, x)))
        return on(self.head, on(nn.ReLU(), on(self.mix, x)).mean((2, 3)))


def test_layers_that_are_called_by_name():
    x, reports = inputs(3)[0], []
    for names in (False, True):
        net = Named()
        net.names = names
        nn.init.uniform_(net.norm.bias, 0.5, 1.5)
        result = prunekit.prune(net, x, keep=0.5, absorb=True)
        assert result.agreement.worst < 1e-5 and result.widths["left"] == (8, 4)
        reports.append(
            [*map(str, result.absorbed.layers), slimming_flops(net, x), fvcore_macs(net, x)]
        )
        kept_alike(net, prunekit.prune(net, x, keep=0.5, absorb=False), (x,))
        assert prunekit.prune(net, x, latency=0.9, on_miss="nearest").budgets
    assert reports[0] == reports[1] and reports[0][0] == "mix -> bias: exact"


def test_types_of_inputs_stay():
    """Doubles, halves, integers and masks keep their type, also where noise is put in."""
    types_of_calls = []

    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)
            self.table = nn.Embedding(3, 4)

        def forward(self, x: Tensor, ids: Tensor, mask: Tensor, half: Tensor) -> Tensor:
            if not x.is_meta:
                types_of_calls.append((x.dtype, ids.dtype, mask.dtype, half.dtype))
            x = self.table(ids) + x + half.to(x.dtype)
            return self.two(F.relu(self.one(x)) * mask[..., None]).mean(1)

    types = (torch.float64, torch.int32, torch.bool, torch.float16)
    example = tuple(
        torch.zeros(1, 5, 4, dtype=t) if t.is_floating_point else torch.ones(1, 5).to(t)
        for t in types
    )
    result = prunekit.prune(Typed().double(), example, keep=0.5)
    assert result.agreement.worst < 1e-9 and result.agreement.train is not None
    assert types_of_calls and set(types_of_calls) == {types}


@pytest.mark.parametrize("name", sorted(cases()))
def test_costs(name):
    kind, example = cases(1)[name]
    net = kind()
    macs = 64 * 9 * (3 + 1) * 8 + 64 * 8 * 6 + 6 * 3
    macs += 4 * 6 if name in ("by name with integers", "a dict and a number", "a nest") else 0
    assert fvcore_macs(net, example) == macs
    assert prunekit.prune(net, example, keep=0.5).before.macs == macs
    assert slimming_flops(net, example) > 2 * macs
    images = 4 * 64 * 4
    assert peak_memory(net, example) >= images + 2 * 8 * 64 * 4
    test = LatencyTest(batch=7, runs=5, warmup=1)
    assert test.run({"a": net}, example)["a"].median_ms > 0
    rows = {row["layer"]: row for row in layer_records({"net": net}, example, test)}
    assert rows["mix"]["macs"] == 64 * 8 * 6 and rows["mix"]["cpu_ms"] > 0


def test_a_timed_batch_is_like_the_example():
    a, b, kind = inputs(2)
    result = LatencyTest(batch=5).inputs({"x": [a.double(), b], "kind": kind, "rate": 0.5})
    assert result.args == () and result.kwargs["rate"] == 0.5
    x, y = result.kwargs["x"]
    assert (x.shape, x.dtype, y.shape) == ((5, 3, 8, 8), torch.float64, (5, 1, 8, 8))
    assert torch.equal(result.kwargs["kind"], kind[[0, 1, 0, 1, 0]])


@pytest.mark.parametrize("name", ["by name", "a dict", "a list"])
def test_a_budget_of_latency(name):
    kind, example = cases(1)[name]
    result = prunekit.prune(kind(), example, latency=0.9, on_miss="nearest")
    assert result.budgets and result.agreement.worst < 1e-5


def test_files_and_copies(tmp_path):
    kind, example = cases()["a nest"]
    net = kind()
    result = prunekit.prune(net, example, keep=0.5)
    result.save(tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", module=net).model.eval()
    again = result.narrow_copy(net).eval()
    narrow = result.model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(*example), narrow(*example))
        torch.testing.assert_close(again(*example), narrow(*example))


@pytest.mark.parametrize(
    "example", [(), {}, {"pixels": "a"}, ([],), ({"pixels": torch.zeros(0, 3, 8, 8)},), None]
)
def test_what_holds_no_numbers_is_refused(example):
    with pytest.raises(TraceError, match="the example is"):
        prunekit.prune(InDict(), example, keep=0.5)
