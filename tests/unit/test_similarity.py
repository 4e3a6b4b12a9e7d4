"""Similarity tables against explicit matrices, and how they are taken from a network."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from torch import nn

from prunekit.data import Data, Normalize, ShapeOnly, TensorBatches, given_data
from prunekit.errors import ConfigError, DataError
from prunekit.graph import ChannelGraph
from prunekit.measure.memory import _Live
from prunekit.methods.gram_lasso import (
    Calibration,
    ClassBlocks,
    ClassProfiles,
    Gaussian,
    Grams,
    Laplacian,
    Linear,
    Maps,
    RawMaps,
    Sigmoid,
    Statistics,
    WholeOutput,
    tables_of,
)
from prunekit.methods.gram_lasso.features import members

KERNELS = {
    "linear": (Linear(), lambda x: x @ x.T),
    "gaussian": (Gaussian(), lambda x: np.exp(-cdist(x, x, "sqeuclidean") / spread(x))),
    "laplacian": (Laplacian(), lambda x: np.exp(-cdist(x, x) / spread(x) ** 0.5)),
    "sigmoid": (Sigmoid(), lambda x: np.tanh(x @ x.T / np.median((x**2).sum(1)))),
    "gaussian_apib": (
        Gaussian("apib"),
        lambda x: np.exp(-cdist(x, x, "sqeuclidean") / x.shape[1]),
    ),
    "laplacian_apib": (
        Laplacian("apib"),
        lambda x: np.exp(-cdist(x, x) / (2 * x.shape[1]) ** 0.5),
    ),
    "sigmoid_apib": (Sigmoid("apib"), lambda x: np.tanh(x @ x.T)),
}


def spread(x):
    return np.median(pdist(x, "sqeuclidean"))


def hkh(k):
    h = np.eye(len(k)) - 1 / len(k)
    return h @ k @ h


def unbiased(k):
    """U-centring entry by entry."""
    n = len(k)
    k = k - np.diag(np.diag(k))
    rows, total = k.sum(1), k.sum()
    out = np.zeros_like(k)
    for a in range(n):
        for b in range(n):
            if a != b:
                out[a, b] = k[a, b] - (rows[a] + rows[b]) / (n - 2) + total / ((n - 1) * (n - 2))
    return out


CENTRINGS = {"hkh": hkh, "unbiased": unbiased}


def vectors(maps, kernel, centre):
    """Unit vectors of the channels of (examples, channels, entries), in double precision."""
    columns = [centre(kernel(maps[:, k])).ravel() for k in range(maps.shape[1])]
    return np.stack([column / np.linalg.norm(column) for column in columns], 1)


def some_maps(seed=0, n=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(n, 5, 6, generator=generator, dtype=torch.float64) + x[:, :1, :6] + 3
    return x.to(dtype), (0.3 * y).to(dtype)


def made(x, y, columns, **options):
    """Tables of (examples, channels, entries)."""
    return tables_of(columns, Maps.of(x.transpose(0, 1)), Maps.of(y.transpose(0, 1)), **options)


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("name", KERNELS)
def test_tables_are_inner_products_of_explicit_matrices(name, centring):
    kernel, explicit = KERNELS[name]
    x, y = some_maps()
    tables = made(x, y, Grams(kernel, centring))
    k, ell = (vectors(maps.numpy(), explicit, CENTRINGS[centring]) for maps in (x, y))
    for found, expected in (
        (tables.inputs, k.T @ k),
        (tables.cross, k.T @ ell),
        (tables.outputs, ell.T @ ell),
    ):
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)
    assert torch.equal(tables.energy, torch.ones(5, dtype=torch.float64))
    assert tables.similarity is tables.outputs
    if (
        centring == "hkh"
    ):  # kernel matrices sum to zero, so an intercept is zero, CKA is Pearson's r
        np.testing.assert_allclose(k.sum(0), 0, atol=1e-13)
        pearson = np.corrcoef(np.hstack([k, ell]).T)
        np.testing.assert_allclose(tables.cross.numpy(), pearson[:4, 4:], atol=1e-13)


@pytest.mark.parametrize("name", KERNELS)
def test_single_precision_stays_near_double_also_with_large_means(name):
    kernel, explicit = KERNELS[name]
    x, y = some_maps(n=64, dtype=torch.float32)
    if kernel.shifts:
        y += 100
    found = made(x, y, Grams(kernel)).cross.numpy()
    k, ell = (vectors(maps.double().numpy(), explicit, hkh) for maps in (x, y))
    np.testing.assert_allclose(found, k.T @ ell, atol=2e-5)


@pytest.mark.parametrize("kernel", [Gaussian(), Laplacian(), Sigmoid()])
def test_the_scale_of_maps_does_not_matter_with_a_median_bandwidth(kernel):
    x, y = some_maps()
    scale = torch.tensor([1e-3, 1, 10, 1e4, 2.0], dtype=torch.float64)[:, None]
    plain, scaled = made(x, y, Grams(kernel)), made(1e3 * x, y * scale, Grams(kernel))
    torch.testing.assert_close(plain.cross, scaled.cross, rtol=0, atol=1e-9)


def test_fixed_bandwidths_saturate_with_the_scale_of_maps():
    x, y = some_maps()
    for kernel in (Gaussian("apib"), Laplacian("apib")):
        small, large = (
            made(x, scale * y, Grams(kernel)).outputs.triu(1).sum() / 10 for scale in (1, 100)
        )
        assert large > 0.999 > small  # any two channels look the same


def test_centring_with_a_bias_finds_noise_alike_and_without_it_does_not():
    """Figures of the specification for 128 examples of 64 independent normal numbers."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(128, 6, 64, generator=generator) for _ in range(2))
    for kernel, biased in ((Linear(), 0.34), (Gaussian(), 0.60), (Laplacian(), 0.85)):
        assert made(x, y, Grams(kernel)).cross.mean() == pytest.approx(biased, abs=0.03)
        assert made(x, y, Grams(kernel, "unbiased")).cross.abs().mean() < 0.02


def test_channels_that_do_not_vary_are_dead_and_everything_stays_finite():
    x, y = some_maps(n=8, dtype=torch.float32)
    x[:, 1] = 0
    x[:, 2] = 0.1  # kernels of the same number everywhere
    y[:, 3] = torch.linspace(-5, 5, 6)  # a border, alike for all examples
    for columns in (
        Grams(),
        Grams(Linear(), "unbiased"),
        Grams(Sigmoid()),
        Grams(Gaussian("apib")),
    ):
        tables = made(x, y, columns)
        assert tables.dead_inputs.tolist() == [False, True, True, False]
        assert tables.dead_outputs.tolist() == [False] * 3 + [True, False]
        for table in (tables.inputs, tables.cross, tables.outputs):
            assert table.isfinite().all()
        assert not tables.cross[1:3].any() and not tables.cross[:, 3].any()
        assert not tables.outputs[3].any() and tables.energy.tolist() == [1, 1, 1, 0, 1]


def test_a_filter_of_a_millionth_of_the_others_norm_is_dead_where_scales_count():
    x, y = some_maps()
    y = y - y.mean(0)
    y[:, 2] *= 1e-7
    assert made(x[..., :6], y, RawMaps()).dead_outputs.tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert not made(x, y, Grams()).dead_outputs.any()


def test_a_channel_that_is_silent_for_most_examples_takes_the_mean_as_its_bandwidth():
    x, y = some_maps(n=12, dtype=torch.float32)
    x[3:, 0] = 0
    maps = x[:, 0].double().numpy()
    mean = pdist(maps, "sqeuclidean").mean()
    k = hkh(np.exp(-cdist(maps, maps, "sqeuclidean") / mean)).ravel()
    ell = vectors(y.double().numpy(), KERNELS["gaussian"][1], hkh)
    found = made(x, y, Grams(Gaussian())).cross[0].numpy()
    np.testing.assert_allclose(found, k @ ell / np.linalg.norm(k), atol=1e-5)


def test_raw_maps_are_centred_columns_of_all_examples_and_positions():
    x, y = some_maps()
    x = x[..., :6]
    k, ell = (m.transpose(1, 2).reshape(-1, m.shape[1]).numpy() for m in (x, y))
    found = made(x, y, RawMaps()).cross.numpy()
    np.testing.assert_allclose(found, np.corrcoef(k.T, ell.T)[:4, 4:], atol=1e-13)


def test_class_blocks_are_block_means_of_the_centred_matrix():
    x, y = some_maps(n=12)
    labels = torch.tensor([4, 7, 4, 7, 9, 4, 9, 7, 9, 4, 4, 4])
    members = np.stack([labels.numpy() == label for label in (4, 7, 9)])
    mean = members / members.sum(1, keepdims=True)
    k, ell = (
        vectors(m.numpy(), KERNELS["laplacian"][1], lambda g: mean @ hkh(g) @ mean.T)
        for m in (x, y)
    )
    found = made(x, y, ClassBlocks(), labels=labels)
    np.testing.assert_allclose(found.cross.numpy(), k.T @ ell, atol=1e-13)
    np.testing.assert_allclose(found.outputs.numpy(), ell.T @ ell, atol=1e-13)
    with pytest.raises(ConfigError, match="needs examples of two classes and the batch has 1"):
        made(x, y, ClassBlocks(), labels=torch.zeros(12))


@pytest.mark.parametrize("columns", [Grams(), Grams(Sigmoid(), "unbiased")])
def test_memory_stays_within_the_bound_beyond_maps_and_tables(columns):
    n, channels = 512, 96  # all kernel matrices would be 192 MiB
    generator = torch.Generator().manual_seed(0)
    x, y = (Maps.of(torch.randn(channels, n, 4, generator=generator)) for _ in range(2))
    with _Live() as live:
        tables = tables_of(columns, x, y, memory=48)
    held = sum(table.nbytes for table in (tables.inputs, tables.cross, tables.outputs))
    assert live.peak - held < 48 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted in other units")
def test_resident_memory_of_a_process_stays_within_the_bound():
    """What tensors hold is one thing, what an allocator keeps of it another."""
    program = """
import resource, torch
from prunekit.methods.gram_lasso import Grams, Maps, tables_of
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
x, y = (Maps.of(torch.randn(1024, 256, 4)) for _ in range(2))
tables_of(Grams(), Maps.of(x.values[:9]), Maps.of(y.values[:9]))
before = peak()
tables_of(Grams(), x, y, memory=96)
print(peak() - before - 3 * 8 - 8)  # tables, and the copy that makes them symmetric
"""
    taken = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert float(taken.stdout) < 96  # all kernel matrices would be 512 MiB


class Net(nn.Module):
    """Two convolutions, one of them strided and called twice, and two linear layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, stride=1, padding=1)
        self.third = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.unused = nn.Conv2d(3, 3, 1)
        self.hidden = nn.Linear(4 * 9, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu_()
        x = self.second(self.second(x).relu()).relu()
        x = self.third(x).relu().flatten(1)
        return self.last(self.hidden(x).relu())


def data_of(count=48, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=generator)
    batches = TensorBatches(
        images, torch.arange(count) % classes, Normalize((0.5,) * 3, (0.3,) * 3)
    )
    return Data(batches, batches, batches, classes, (3, 6, 6))


@pytest.fixture
def net():
    torch.manual_seed(3)
    model = Net().train()
    return model, ChannelGraph.trace(model, torch.zeros(1, 3, 6, 6))


def test_tables_of_a_network_are_those_of_what_enters_and_leaves_its_layers(net, caplog):
    model, graph = net
    calibration = Calibration(count=24, seed=5)
    layers = ["last", "first", "second", "third", "hidden", "unused"]
    with caplog.at_level(logging.WARNING):
        found = Statistics(calibration=calibration).of(model, graph, data_of(), "cpu", layers)
    assert list(found) == ["first", "second", "third", "hidden", "last"]
    assert [r.getMessage() for r in caplog.records] == [
        "second: called more than once; the first call is looked at"
    ]
    assert model.training and not any(m._forward_hooks for m in model.modules())

    x, _ = calibration.batch(data_of().train, 2)
    with torch.no_grad():
        seen = [x, model.first(x)]
        seen += [seen[1].relu(), model.second(seen[1].relu())]
        once = model.second(seen[3].relu()).relu()
        seen += [once, model.third(once)]
        flat = seen[5].relu().reshape(24, 4, 9)
        hidden = model.hidden(flat.flatten(1))
    pairs = {"first": seen[:2], "second": seen[2:4], "third": seen[4:6]}
    pairs["hidden"] = flat, hidden[..., None]
    pairs["last"] = hidden.relu()[..., None], model.last(hidden.relu()).detach()[..., None]
    for name, (before, after) in pairs.items():
        expected = made(before.flatten(2), after.flatten(2), Grams())
        for table in ("inputs", "cross", "outputs"):
            torch.testing.assert_close(
                getattr(found[name], table), getattr(expected, table), rtol=0, atol=1e-6
            )
    assert torch.equal(found["third"].input_units, graph.ins["third"])
    assert torch.equal(found["hidden"].input_units, graph.outs["third"])
    assert found["first"].input_units.tolist() == [0, 0, 0]


def test_inputs_of_a_linear_layer_that_are_one_unit_are_one_channel():
    inputs, owners = members(torch.tensor([5, 5, 0, 9, 5, 0, 2]))
    assert owners.tolist() == [5, 0, 9, 0, 2]
    assert inputs.tolist() == [[0, 1, 4], [2, -1, -1], [3, -1, -1], [5, -1, -1], [6, -1, -1]]


def test_the_whole_output_is_one_response(net):
    model, graph = net
    settings = Statistics(Grams(Gaussian("apib")), responses=WholeOutput())
    found = settings.of(model, graph, data_of(), "cpu", ["third"])["third"]
    assert found.cross.shape == (6, 1) and found.outputs.shape == (1, 1)
    x, _ = settings.calibration.batch(data_of().train, 2)
    after = []
    hook = model.third.register_forward_hook(lambda m, i, o: after.extend([i[0], o]))
    model(x)
    hook.remove()
    expected = made(after[0].flatten(2), after[1].flatten(1)[:, None], settings.columns)
    torch.testing.assert_close(found.cross, expected.cross, rtol=0, atol=1e-6)


def test_raw_maps_leave_strided_layers_out_and_say_so(net, caplog):
    model, graph = net
    settings = Statistics(RawMaps())
    with caplog.at_level(logging.WARNING):
        found = settings.of(model, graph, data_of(), "cpu", ["first", "third"])
    assert list(found) == ["first"]
    assert caplog.records[-1].getMessage() == (
        "columns=RawMaps cannot compare channels of third (third: maps of 36 positions become maps "
        "of 9); they have no tables"
    )
    with pytest.raises(
        ConfigError, match=r"cannot compare channels of third .*; use columns=Grams"
    ):
        settings.of(model, graph, data_of(), "cpu", ["third"])


def test_class_profiles_tie_filters_by_correlated_class_means(net):
    model, graph = net
    profiles = ClassProfiles(Calibration(count=48, balance=False), batch=10)
    found = Statistics(profiles=profiles).of(model, graph, data_of(), "cpu", ["first", "third"])
    x, y = next(data_of().train.epoch(48, None))
    with torch.no_grad():
        means = model.eval().first(x).mean((2, 3))
    classes = torch.stack([means[y == label].mean(0) for label in range(3)])
    expected = np.corrcoef(classes.double().numpy().T)
    np.testing.assert_allclose(found["first"].similarity.numpy(), expected, atol=1e-4)
    assert not torch.equal(found["first"].similarity, found["first"].outputs)
    with pytest.raises(ConfigError, match="class profiles need examples of three classes"):
        profiles.of(model, data_of(classes=2).train, "cpu", ["first"])


def test_a_filter_that_is_off_has_no_profile_and_is_dead(net):
    model, graph = net
    with torch.no_grad():
        model.first.weight[2] = 0
    settings = Statistics(profiles=ClassProfiles(Calibration(count=48)))
    found = settings.of(model, graph, data_of(), "cpu", ["first"])["first"]
    assert found.dead_outputs.tolist() == [False, False, True, False, False, False]
    assert not found.similarity[2].any()


def test_balanced_batches_have_as_many_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 3)
    batches = TensorBatches(torch.zeros(143, 1, 1, 1), labels, Normalize((0.0,), (1.0,)))
    drawn = {
        seed: Calibration(count=25, seed=seed).indices(batches).sort().values for seed in (0, 1)
    }
    for indices in drawn.values():
        assert labels[indices].bincount().tolist() == [11, 11, 3]
    assert not torch.equal(*drawn.values())
    free = Calibration(count=60, balance=False).indices(batches)
    assert labels[free].bincount()[0] > 30
    few = Calibration(count=8).indices(batches)  # fewer than eight of a class: not balanced
    assert torch.equal(few, torch.randperm(143, generator=torch.Generator().manual_seed(0))[:8])


def test_bad_settings_and_batches_are_refused_in_one_line(net):
    model, graph = net
    train = data_of(classes=20).train
    with pytest.raises(ConfigError, match=r"^count=8 is a batch smaller than the 20 classes it is"):
        Calibration(count=8, balance=True).indices(train)
    soft = given_data([(torch.zeros(4, 3, 6, 6), torch.rand(4))], 4)
    with pytest.raises(ConfigError, match="balance=true needs labels that are whole numbers"):
        Calibration(count=8, balance=True).indices(soft.train)
    with pytest.raises(DataError, match="need at least 4 examples and there are 3"):
        Statistics(Grams(centring="unbiased")).of(model, graph, data_of(3), "cpu", ["first"])
    with pytest.raises(DataError, match="dataset=none has none"):
        Statistics().of(model, graph, ShapeOnly(shape=[3, 6, 6]).load(), "cpu", ["first"])
    for name, what in (("fist", "no layer of the network; did you mean first"), ("", "a Net")):
        with pytest.raises(ConfigError, match=f"{name!r} is {what}"):
            Statistics().of(model, graph, data_of(), "cpu", [name])
    for make in (
        lambda: Gaussian("mean"),
        lambda: Grams(centring="none"),
        lambda: Grams(kernel="linear"),
        lambda: Calibration(count=1),
        lambda: Calibration(balance=2),
        lambda: Statistics(columns=Laplacian()),
        lambda: Statistics(memory=0),
        lambda: ClassProfiles(batch=0),
    ):
        with pytest.raises(ConfigError):
            make()


def test_weights_that_are_not_finite_name_the_layer(net):
    model, graph = net
    with torch.no_grad():
        model.second.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConfigError, match=r"what enters or leaves second is not finite"):
        Statistics().of(model, graph, data_of(), "cpu", ["first", "second"])
