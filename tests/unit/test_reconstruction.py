"""Refitting layers behind a cut, against independent least squares and the dense network."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from refits import EXACT, Block, cut_and_refit, lstsq, trained
from torch import Tensor, nn

import prunekit
from prunekit.errors import ConfigError, DataError
from prunekit.graph.arguments import Arguments
from prunekit.graph.linear_maps import LinearMap
from prunekit.graph.program import Program
from prunekit.graph.recording.passes import record_batch
from prunekit.surgery import load_model
from prunekit.surgery.reconstruction.least_squares import LeastSquares, refit
from prunekit.surgery.reconstruction.residual import Addition
from prunekit.surgery.reconstruction.ridge import GramRegression, RowRegression

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "tokens": (lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "1d": (lambda: nn.Conv1d(6, 4, 3, padding=1, stride=2), (6, 11)),
    "2d": (lambda: nn.Conv2d(6, 4, 3, padding=1), (6, 7, 5)),
    "3d": (lambda: nn.Conv3d(6, 4, (1, 3, 2), bias=False), (6, 3, 4, 4)),
    "dilated": (lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2, stride=2), (6, 9, 9)),
    "same": (lambda: nn.Conv2d(6, 4, (2, 4), padding="same"), (6, 5, 5)),
    "circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (6, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (6, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6, bias=False), (6, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1), (6, 4, 5)),
    "output padding": (
        lambda: nn.ConvTranspose1d(6, 4, 4, stride=3, output_padding=2, dilation=2, groups=2),
        (6, 5),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_the_matrix_are_the_layers_output(kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[kind][0]().double(), LAYERS[kind][1]
    x = torch.randn(3, *shape, dtype=torch.double)
    with torch.no_grad():
        output = layer(x)
        linear = LinearMap(layer)
        chosen = torch.randperm(linear.count_rows(output))
        rows = linear.input_rows(x, output, chosen) @ linear.matrix()
        if layer.bias is not None:
            rows = rows + layer.bias.reshape(linear.groups, 1, -1)
        torch.testing.assert_close(rows, linear.output_rows(output, chosen))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_matrix_that_is_read_can_be_written(kind: str) -> None:
    layer = LAYERS[kind][0]()
    other = copy.deepcopy(layer)
    nn.init.zeros_(other.weight)
    LinearMap(other).set_matrix(LinearMap(layer).matrix())
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize("kind", [GramRegression, RowRegression])
@pytest.mark.parametrize("rows", [40, 5])  # more and fewer than unknowns
@pytest.mark.parametrize("spread", [None, 0.1, 100])  # of the correction
def test_a_regression_equals_the_stacked_system(kind: type, rows: int, spread: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, rows, 7, dtype=torch.double) + 3
    old = torch.randn(3, 7, 2, dtype=torch.double)
    y = x @ old + torch.randn(3, rows, 2, dtype=torch.double)
    error = None if spread is None else spread * torch.randn(3, rows, 2, dtype=torch.double)
    regression = kind()
    for start in range(0, rows, 16):
        part = slice(start, start + 16)
        regression.add(x[:, part], y[:, part], None if error is None else error[:, part])
    bias = torch.ones(3, 2, dtype=torch.double)
    fit = regression.solve(old, bias, 0.01)
    targets = y
    if error is not None:  # it counts no more than the target itself
        share = (y.std(1, keepdim=True) / error.std(1, keepdim=True)).clamp_max(1)
        assert bool((share < 1).any()) == (spread == 100)
        targets = y + share * error
    for group in range(3):
        matrix, intercept = lstsq(x[group], targets[group], old[group], 0.01)
        torch.testing.assert_close(fit.matrix[group], matrix)
        torch.testing.assert_close(fit.intercept[group], intercept)
    variance = targets.var(1, correction=0).sum()
    before = (x @ old + bias[:, None] - targets).square().mean(1).sum() / variance
    after = (x @ fit.matrix + fit.intercept[:, None] - targets).square().mean(1).sum() / variance
    torch.testing.assert_close([fit.before, fit.after], [float(before), float(after)])


@pytest.mark.parametrize("kind", [GramRegression, RowRegression])
def test_constant_inputs_leave_weights_and_move_the_intercept(kind: type) -> None:
    regression, old = kind(), torch.ones(1, 3, 1, dtype=torch.double)
    for value in (1.0, 3.0):
        regression.add(torch.full((1, 4, 3), 2.0), torch.full((1, 4, 1), value), None)
    fit = regression.solve(old, torch.zeros(1, 1, dtype=torch.double), 1e-3)
    torch.testing.assert_close(fit.matrix, old)
    torch.testing.assert_close(fit.intercept, torch.tensor([[-4.0]], dtype=torch.double))


class Writes(nn.Module):
    """Changes tensors in place, in all the ways that forwards do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.register_buffer("offset", torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        y += self.offset
        z = torch.zeros(len(x), 4, 2)
        z[:, :, 0] = y.mean((2, 3))
        z[:, :, 1:] = y.amax((2, 3), keepdim=False).unsqueeze(2)
        return z.flatten(1)


@pytest.mark.parametrize("stop", [3, 6])
def test_a_recording_runs_on_numbers_from_any_step(stop: int) -> None:
    torch.manual_seed(0)
    network, x = Writes().eval(), torch.randn(5, 3, 6, 6)
    program = Program(network, record_batch(network, Arguments.of(x)))
    with torch.no_grad():
        values = program.start(Arguments.of(x))
        program.run(values, 0, stop)
        (result,) = program.run(values, stop, len(program.steps))
        torch.testing.assert_close(result, network(x))


def in_front(width: int, rank: int) -> nn.Module:
    """A layer whose channels are removed, in front of the one that is refitted."""
    kinds = {1: nn.Linear, 2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
    return nn.Linear(3, width) if rank == 1 else kinds[rank](3, width, 1)


@pytest.mark.parametrize("kind", [name for name in LAYERS if name != "tokens"])
def test_a_refitted_layer_solves_least_squares(kind: str) -> None:
    """The design matrix comes from the derivative of the layer by its weights."""
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    front, layer = in_front(6, len(shape)), make()
    network = nn.Sequential(front, nn.Tanh(), layer)
    if kind == "depthwise":  # its channels are those in front, and what leaves a network stays
        network.append(nn.Conv2d(12, 1, 1))
    network.double()
    x = torch.randn(30, 3, *shape[1:], dtype=torch.double)
    tied = kind in ("grouped", "depthwise", "output padding")
    keep = {} if tied else {"ignore": ["2"]}
    narrow, pruned, refitted = cut_and_refit(network, x, EXACT, keep=0.5, **keep)
    with torch.no_grad():
        target = network[:3](x)
        kept = (~pruned.masks.removed[pruned.graph.outs["2"]]).nonzero().flatten()
        target = target.index_select(1, kept)
        inputs = narrow[:2](x)
    design = torch.func.jacrev(
        lambda weight, bias: torch.func.functional_call(
            nn.Sequential(narrow[2]), {"0.weight": weight, "0.bias": bias}, inputs
        ),
        (0, 1),
    )(narrow[2].weight.detach(), torch.zeros(len(kept), dtype=torch.double))
    rows = torch.cat([part.reshape(target.numel(), -1) for part in design], 1)
    solution = torch.linalg.lstsq(rows, target.flatten()).solution
    best = (rows @ solution - target.flatten()).square().sum()
    with torch.no_grad():
        error = (narrow[:3](x) - target).square().sum()
    assert refitted.layers[0].layer == "2"
    torch.testing.assert_close(error, best, rtol=1e-6, atol=1e-12)


def test_without_a_cut_nothing_changes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    narrow, _, refitted = cut_and_refit(network, torch.randn(6, 3, 8, 8), LeastSquares(), keep=1.0)
    assert not refitted.layers
    for a, b in zip(network.state_dict().values(), narrow.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_channels_that_are_sums_of_others_are_made_up_for() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3)).double()
    with torch.no_grad():
        network[0].weight[3:] = 0.1 * torch.einsum(
            "ij,jchw->ichw", torch.randn(3, 3, dtype=torch.double), network[0].weight[:3]
        )
    x = torch.randn(12, 3, 8, 8, dtype=torch.double)
    narrow, _, _ = cut_and_refit(network, x, EXACT, keep=0.5, ignore=["2"])
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), network(x), rtol=1e-5, atol=1e-6)


def test_training_mode_agrees_after_refitting() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    network = trained(Block(), x)
    narrow, pruned, refitted = cut_and_refit(network, x, LeastSquares(), keep=0.5)
    assert {layer.layer for layer in refitted.layers} == {"enter", "conv1", "conv2", "head"}
    with torch.no_grad():
        dense, plain, after = network(x), pruned.model.eval()(x), narrow.eval()(x)
        in_training = copy.deepcopy(narrow).train()(x)
    torch.testing.assert_close(in_training, after, rtol=1e-3, atol=1e-4)
    assert (after - dense).norm() < 0.5 * (plain - dense).norm()


def test_a_shortcut_whose_error_is_known_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    network = trained(Block(), x)
    errors = []
    for _ in range(2):
        narrow, _, _ = cut_and_refit(network, x, LeastSquares(), keep=0.75, ignore=["enter"])
        with torch.no_grad():
            errors.append(float((narrow.stream(x) - network.stream(x)).norm()))
        monkeypatch.setattr(Addition, "behind", classmethod(lambda *args: None))
    assert errors[0] < errors[1]


class ShortcutLast(nn.Module):
    """A block whose shortcut is computed after the branch, and has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.enter = nn.Conv2d(8, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shortcut = nn.Identity()
        self.head = nn.Linear(8, 5)

    def stream(self, x: Tensor) -> Tensor:
        """What the block puts out."""
        x = self.enter(self.stem(x))
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        out += self.shortcut(x)[:, :, ::1]
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stream(x).relu().mean((2, 3)))


def test_a_shortcut_that_is_computed_after_the_branch_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    network = trained(ShortcutLast(), x)
    errors = []
    for _ in range(2):
        narrow, pruned, _ = cut_and_refit(network, x, LeastSquares(), keep=0.75)
        kept = pruned.masks["enter"]
        with torch.no_grad():
            errors.append(float((narrow.stream(x) - network.stream(x)[:, kept]).norm()))
        monkeypatch.setattr(Addition, "behind", classmethod(lambda *args: None))
    assert errors[0] < 0.999 * errors[1]


def test_a_small_memory_gives_the_same_network() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 3, 8, 8)
    network = trained(Block(), x)
    small = LeastSquares(memory=1e-4)  # no state fits, the Gram matrices do
    first, _, _ = cut_and_refit(network, x, LeastSquares(), keep=0.5)
    second, _, _ = cut_and_refit(network, x, small, keep=0.5)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


class Twice(nn.Module):
    """Calls one layer twice; the second call reads what the first put out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.shared = nn.Linear(4, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.enter(x).tanh())
        return self.head(self.shared(y.tanh()).tanh())


def test_a_layer_that_is_called_twice_is_refitted_on_both_calls() -> None:
    torch.manual_seed(0)
    x = torch.randn(90, 4)
    narrow, pruned, refitted = cut_and_refit(Twice(), x, LeastSquares(), keep=0.5)
    (shared,) = [layer for layer in refitted.layers if layer.layer == "shared"]
    assert shared.rows == 180
    assert shared.after <= shared.before
    with torch.no_grad():
        dense = pruned.dense(x)
        assert (narrow(x) - dense).norm() < (pruned.model(x) - dense).norm()


def test_a_layer_whose_weight_another_one_has_is_left_as_it_is() -> None:
    """A refit of one of them would change what the other puts out, before or after its own."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 2))
    network[2].weight = network[1].weight
    _, _, refitted = cut_and_refit(network, torch.randn(90, 4), LeastSquares(), keep=0.5)
    assert [layer.layer for layer in refitted.layers] == ["3"]
    notes = "\n".join(refitted.notes)
    assert (
        "1 was not refitted: it shares its weight or bias with 2" in notes and "2 was not" in notes
    )


def test_what_is_not_finite_is_named() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(9, 3)
    x[7] = torch.nan
    with pytest.raises(DataError, match=r"^2 cannot be refitted: .* NaN"):
        cut_and_refit(network, x, LeastSquares(), keep=0.5)


def test_prune_refits_on_batches_and_saves_what_it_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    network, labels = trained(Block(), x), torch.zeros(60, dtype=torch.long)
    batches = [*zip(x.chunk(3), labels.chunk(3), strict=True)]
    plain, refitted = (
        prunekit.prune(network, x[:2], keep=0.5, data=batches, reconstruct=reconstruct)
        for reconstruct in (None, "least_squares")
    )
    assert plain.refitted is None
    layers = [layer.layer for layer in refitted.refitted.layers]
    assert layers == ["enter", "conv1", "conv2", "head"]
    assert refitted.distance.gap.relative < plain.distance.gap.relative
    assert "4 layers refitted on 60 inputs" in str(refitted)
    assert any("before they were refitted" in note for note in refitted.notes)
    refitted.save(tmp_path / "narrow.pt")
    loaded = load_model(tmp_path / "narrow.pt", module=Block()).model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), refitted.model.eval()(x))


def test_refitting_without_data_and_with_bias_maps_is_refused() -> None:
    network, x = Block(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"reconstruct .* give data"):
        prunekit.prune(network, x, keep=0.5, reconstruct="least_squares")
    with pytest.raises(ConfigError, match="absorb=maps"):
        prunekit.prune(network, x, keep=0.5, reconstruct="least_squares", absorb="maps")
    with pytest.raises(ConfigError, match="reconstruct='lasso' is unknown"):
        prunekit.prune(network, x, keep=0.5, reconstruct="lasso")


def test_without_images_nothing_can_be_refitted() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    pruned = prunekit.prune(network, torch.randn(2, 3), keep=0.5)
    with pytest.raises(DataError, match="no images"):
        refit(network, pruned.model, pruned.graph, pruned.masks.removed, list, LeastSquares())
