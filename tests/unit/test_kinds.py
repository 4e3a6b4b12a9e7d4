"""Kinds of Python code in a forward, each with a small network around it.

Each is traced, cut, and compared with an oracle that does not use the graph. What is not followed
is refused or frozen with a note.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import oracle
import pytest
import torch
from kinds import IMAGES, Net, cut, exact, followed, frozen, larger
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.errors import TraceError


def test_any_number_of_arguments():
    class Two(Net):
        def forward(self, *args, **kwargs):
            x, *others = args
            for other in others:
                x = x + other
            return self.end(self.middle(self.start(x), **kwargs))

        def middle(self, *xs, **named):
            return xs[0] * named.get("scale", 1)

    followed(Two(), (IMAGES, IMAGES + 1))
    followed(Two(), (IMAGES,))


def test_arguments_by_name_that_are_passed_on():
    class Named(Net):
        def forward(self, **inputs):
            return self.end(self.start(inputs["pixels"]))

    followed(Named(), {"pixels": IMAGES})


def test_types_that_are_read_off():
    class Typed(Net):
        def middle(self, x):
            x = x.to(self.first.weight.dtype) if x.dtype != self.first.weight.dtype else x
            if x.is_floating_point() and self.last.weight.dtype == torch.float64:
                x = x.type(x.dtype)
            return x.to(self.last.weight.device)

    followed(Typed())


def test_group_norm_by_function():
    class Normed(Net):
        def middle(self, x):
            return F.group_norm(x, 4)

    net = oracle.distinct(Normed()).eval()
    narrow, graph = cut(net)
    exact(net, narrow)
    assert oracle.share(net, narrow, "first") <= 0.75 or graph.notes


@pytest.mark.parametrize("kind", ["rank", "number", "zeros", "view", "unpack"])
def test_code_about_shapes(kind):
    class Shaped(Net):
        def middle(self, x):
            b, c, h, w = x.shape
            if kind == "rank":
                assert len(x.shape) == 4 and x.dim() == 4 and x.ndim == 4
                return x.reshape(*x.shape[:2], -1).view(b, c, h, w)
            if kind == "number":
                assert isinstance(x.shape[1], int) and isinstance(c, int)
                return x.view(b, c, h * w).reshape(x.size(0), x.size(1), h, -1)
            if kind == "zeros":
                return torch.cat([x, torch.zeros(b, c, h, w, dtype=x.dtype)], 1)
            if kind == "view":
                return x.flatten(2).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)
            return x.view(*(int(n) if at == 0 else n for at, n in enumerate((b, c, h, w))))

    followed(Shaped(16 if kind == "zeros" else 8), layers="last" if kind == "zeros" else "first")


def test_drop_path():
    timm_layers = pytest.importorskip("timm.layers")

    class Dropped(Net):
        def middle(self, x):
            return x + self.path(torch.tanh(x))

    followed(Dropped(path=timm_layers.DropPath(0.3)))


@pytest.mark.parametrize("kind", ["dict", "list", "nested"])
def test_inputs_of_any_structure(kind):
    class Structured(Net):
        def forward(self, arguments):
            if kind == "dict":
                x = arguments["a"] + arguments.get("b", 0)
            elif kind == "list":
                x = torch.stack(list(arguments)).sum(0)
            else:
                x = arguments["all"][0] + arguments["all"][1]["b"]
            return self.end(self.start(x))

    arguments = {
        "dict": {"a": IMAGES, "b": IMAGES + 1},
        "list": [IMAGES, IMAGES * 2],
        "nested": {"all": [IMAGES, {"b": IMAGES}]},
    }
    followed(Structured(), (arguments[kind],))


@dataclass
class Answer:
    logits: Tensor
    maps: list[Tensor]


class Plain:
    def __init__(self, result: Tensor) -> None:
        self.result = result


@pytest.mark.parametrize("kind", ["dict", "list", "data class", "object", "generator"])
def test_outputs_of_any_structure(kind):
    class Structured(Net):
        def forward(self, x):
            x = self.last(self.start(x))
            result = self.head(x.mean((2, 3)))
            if kind == "dict":
                return {"logits": result, "more": {"maps": (x,)}}
            if kind == "list":
                return [result, [x]]
            if kind == "object":
                return Plain(result)
            return Answer(result, [x])

    net = Structured()
    graph = followed(net, layers="first")
    assert bool((graph.outs["last"] > 0).all()) is (kind == "object")


@pytest.mark.parametrize("kind", ["scale", "shift", "replace", "pre", "named"])
def test_hooks_that_change_data(kind):
    net = Net()
    vector = torch.rand(8, 1, 1, dtype=torch.float64) + 0.5
    if kind == "scale":
        net.bn.register_forward_hook(lambda module, args, out: out * 3)
    elif kind == "shift":
        net.first.register_forward_hook(lambda module, args, out: F.silu(out) + 1)
    elif kind == "replace":
        net.first.register_forward_hook(lambda module, args, out: out * vector)
    elif kind == "pre":
        net.last.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))
    else:
        net.bn.register_forward_hook(lambda m, args, kwargs, out: out + args[0], with_kwargs=True)
    if kind == "replace":
        frozen(net, "they meet what cannot be removed")
    else:
        followed(net)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


def test_weight_standardisation():
    net = Net()
    net.last = Standardised(8, 6, 3, padding=1)
    frozen(net, "last", layers="first")


@pytest.mark.parametrize("kind", ["if", "item", "numpy", "any"])
def test_branches_on_values(kind):
    class Deciding(Net):
        def middle(self, x):
            if kind == "if" and x.mean() > 0:
                return x * 2
            if kind == "item":
                return x * float(x.abs().max().item() > 100)
            if kind == "numpy":
                return x * int(x.detach().numpy().sum() > 0)
            return x if bool((x > 5).any()) else x + 1

    graph = frozen(Deciding(), "mixes" if kind != "numpy" else "numpy")
    assert any("reads values of tensors at test_kinds.py" in note for note in graph.notes)


def test_networks_of_torch_fx():
    followed(torch.fx.symbolic_trace(Net()))


def test_feature_extractors():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net = extraction.create_feature_extractor(Net(), {"bn": "features", "head": "logits"})
    followed(net, layers="last")


@pytest.mark.parametrize("kind", ["parallel", "compiled", "compiled in place"])
def test_wrappers_inside_a_network(kind):
    inner = nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
    layer = "wrapped.module.0" if kind == "parallel" else "wrapped._orig_mod.0"
    if kind == "parallel":
        wrapped = nn.DataParallel(inner)
    elif kind == "compiled":
        wrapped = torch.compile(inner, backend="eager")
    else:
        inner.compile(backend="eager")
        wrapped, layer = inner, "wrapped.0"

    class Wrapping(Net):
        def middle(self, x):
            return self.wrapped(x)

    followed(Wrapping(10, wrapped=wrapped), layers=f"first {layer} last")


@pytest.mark.parametrize("kind", ["rearrange", "reduce", "layer", "repeat"])
def test_einops(kind):
    einops = pytest.importorskip("einops")
    from einops.layers.torch import Rearrange

    class Written(Net):
        def middle(self, x):
            if kind == "rearrange":
                tokens = einops.rearrange(x, "b c h w -> b (h w) c")
                return einops.rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])
            if kind == "reduce":
                return x * einops.reduce(x, "b c h w -> b c 1 1", "mean")
            if kind == "repeat":
                return x + einops.repeat(x.mean((2, 3)), "b c -> b c h w", h=8, w=8)
            return self.back(self.there(x))

    there = Rearrange("b c h w -> b h w c")
    back = Rearrange("b h w c -> b c h w")
    followed(Written(there=there, back=back), resize=None if kind == "repeat" else larger)


@pytest.mark.parametrize("kind", ["all", "part", "index put", "rows"])
def test_assignment_to_items(kind):
    class Assigning(Net):
        def middle(self, x):
            out = torch.zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:], dtype=x.dtype)
            if kind == "all":
                out = torch.zeros_like(x)
                out[:] = x
            elif kind == "part":
                out[:, : x.shape[1]] = x
                out[:, x.shape[1] :] = -x
            elif kind == "rows":
                out = torch.zeros_like(x)
                out[:, :, ::2] = x[:, :, ::2]
            else:
                out[:, torch.arange(x.shape[1])] = x
            return out

    net = oracle.distinct(Assigning(8 if kind in ("all", "rows") else 16)).eval()
    narrow, graph = cut(net)
    exact(net, narrow)
    assert oracle.share(net, narrow, "first") <= 0.75 or any("setitem" in n for n in graph.notes)


def test_closures_and_lambdas():
    class Closing(Net):
        def middle(self, x):
            twice = lambda y: y + y  # noqa: E731
            scale = functools.partial(torch.mul, other=torch.tensor(2.0, dtype=x.dtype))

            def block(y, *, act=torch.tanh):
                return act(twice(y)) * x

            return functools.reduce(lambda a, f: f(a), [block, twice, scale], x)

    followed(Closing())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_custom_autograd_functions():
    class Custom(Net):
        def middle(self, x):
            return Doubled.apply(x)

    net = oracle.distinct(Custom()).eval()
    try:
        narrow, graph = cut(net)
    except TraceError as error:
        assert "not seen" in str(error) and "\n" not in str(error)
        return
    exact(net, narrow)
    assert oracle.share(net, narrow, "first") <= 0.75 or graph.notes


@torch.jit.script
def gated(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return torch.relu(self.conv(x))


@pytest.mark.parametrize("kind", ["function", "module"])
def test_scripted_code(kind):
    class Scripting(Net):
        def middle(self, x):
            return gated(x) if kind == "function" else self.inner(x)

    inner = {"inner": torch.jit.script(Inner().double())} if kind == "module" else {}
    net = oracle.distinct(Scripting(**inner)).eval()
    try:
        narrow, graph = cut(net)
    except TraceError as error:
        assert "\n" not in str(error)
        assert "compiled" in str(error)
        return
    exact(net, narrow)
    assert oracle.share(net, narrow, "first") <= 0.75 or graph.notes


def test_a_branch_on_size():
    class Sized(Net):
        def middle(self, x):
            return x * 2 if x.shape[-1] > 4 else x.flip(1)

    followed(Sized())


def test_a_branch_on_a_flag():
    class Flagged(Net):
        def forward(self, x, twice=False):
            x = self.start(x)
            return self.end(x + x if twice else x)

    followed(Flagged())
    followed(Flagged(), {"x": IMAGES, "twice": True})


def test_a_branch_on_gradients():
    class Graded(Net):
        def middle(self, x):
            return x + 1 if torch.is_grad_enabled() else x.tanh()

    followed(Graded())


def test_networks_that_find_nothing():
    """Tensors without entries belong to no channel and freeze none."""

    class Finding(Net):
        def forward(self, x):
            x = torch.relu(self.bn(self.first(x)))
            result = (x.mean((2, 3)) > 1e9).nonzero()[:, 0]
            scores = self.head(self.last(x).mean((2, 3)))
            return {"scores": scores, "found": scores[result], "boxes": x.mean((1, 2, 3))[result]}

    net = oracle.distinct(Finding()).eval()
    narrow, _ = cut(net)
    exact(net, narrow)
    assert oracle.share(net, narrow, "last") <= 0.75
