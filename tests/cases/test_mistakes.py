"""What new users type by mistake, and the line that they should read."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from functools import partial

import pytest
import torch
from golden import INTERRUPTED
from torch import nn
from torch.utils.data import TensorDataset

import prunekit
from prunekit.cli.arguments import hydra_arguments
from prunekit.cli.explain import explain
from prunekit.data import data_from_batches
from prunekit.errors import ArtifactError, ConfigError, TrainingError
from prunekit.models import LeNet5
from prunekit.stages.export import slower_notes
from prunekit.surgery import load_weights
from prunekit.training import Schedule, fit
from scripts.golden.cli import call

TINY = (
    *("dataset=synthetic", "dataset.train=32", "dataset.val=0", "dataset.test=16"),
    *("schedule=smoke", "schedule.pretrain.batch=16", "schedule.sparsify.batch=16"),
    *("runtime=cpu", "runtime.threads=1", "latency.runs=5"),
)
NET = """
from torch import nn


class MyNet(nn.Sequential):
    def __init__(self, width=8, classes=10):
        super().__init__(
            nn.Conv2d(1, width, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(width, classes),
        )
"""
MINE = "name: mine\n_target_: mynet.MyNet\nwidth: 8\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a network and a config of one's own."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "my_configs" / "model").mkdir(parents=True)
    (tmp_path / "my_configs" / "model" / "mine.yaml").write_text(MINE)
    return tmp_path


def refused(place, *arguments: str, says: tuple[str, ...]) -> str:
    """Check that a command ends with one line that holds all parts; return the line."""
    ended = call(place, *arguments)
    assert ended.code != 0, ended.out
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("prunekit: "), ended.err
    for part in says:
        assert part in lines[0], lines[0]
    return lines[0]


OWN = ("--config-dir", "my_configs", "model=mine")
TYPED = [
    ("run --config-dir my_configs model=mine regularizer.lam = 0.1", "write regularizer.lam=0.1"),
    ("run regularizer.lam= 0.1", "regularizer.lam= 0.1", "write regularizer.lam=0.1"),
    ("run regularizer.lam =0.1", "regularizer.lam =0.1", "write regularizer.lam=0.1"),
    ("run --experiment demo", "--experiment is a setting", "write experiment=demo"),
    ("run --regularizer.lam=3", "write regularizer.lam=3"),
    ("run --seed 3", "write seed=3"),
    ("run experiment=demo -config-dir my_configs", "did you mean --config-dir?"),
    ("run --multirum", "--multirum is no flag", "--multirun"),
    ("prune trust=[mynet.MyNet]", "trust is no setting", "did you mean runtime.trust"),
    ("run model=resnet19", "model=resnet19", "did you mean resnet20 "),
    ("run model=vgg17", "did you mean vgg16 "),
    ("run name=a#(", "name=a#( cannot be read", "quote"),
    ("run --config-dir my_configs model=mime", "model=mime", "mine"),
    ("run model._target_=mynet.MyNet", "model.widths is no setting of MyNet", "model=custom"),
    (
        "run model=custom model._target_=mynet.MyNet model.widht=8",
        "model.widht is no setting of MyNet",
        "did you mean width",
    ),
    ("run model=custom model._target_=nonet.MyNet", "no nonet.py", "PYTHONPATH"),
    ("run +model=resnet20", "model=CHOICE without +"),
    ("run model=resnet20,lenet5", "model=resnet20,lenet5 holds several values", "add -m"),
    ("run ~foo", "~foo takes out what is not there"),
    ("run ~solver.inner", "~solver.inner takes out what is not there; it is null already"),
    ("run ~solver", "~solver takes out what run reads"),
    ("pretrain name=${foo}", "name refers to ${foo}, which is no setting"),
    ("pretrain name=${", "name=${ cannot be read"),
    ("run --config-dir nowhere model=mine", "there is no folder", "nowhere"),
    ("run --config-name foo", "leave --config-name"),
    ("run --cfg foo", "--cfg foo", "accepted: all, hydra, job"),
    (
        "pretrain dataset._target_=torchvision.datasets.FakeData",
        "torchvision.datasets.FakeData",
        "no method load",
    ),
]


@pytest.mark.parametrize(("typed", "says"), [(typed, says) for typed, *says in TYPED])
def test_a_slip_gets_one_line(place, typed, says):
    refused(place, *typed.split(), says=tuple(says))
    assert not (place / "outputs").exists()


def test_arguments_of_a_class_of_ones_own_need_no_plus(place):
    typed = ("model=custom", "model._target_=mynet.MyNet", "model.width=4", "name=target")
    ended = call(place, "pretrain", *TINY, *typed)
    assert ended.code == 0, ended.err
    ended = call(place, "pretrain", *TINY, *OWN, "model.width=4", "model.classes=10", "name=file")
    assert ended.code == 0, ended.err
    reports = [
        json.loads((place / "outputs" / n / "pretrain/report.json").read_text())
        for n in ("target", "file")
    ]
    assert reports[0]["metrics"]["params"] == reports[1]["metrics"]["params"] == 154


def test_a_model_file_of_ones_own_class_names_the_setting_that_trusts_it(place):
    ended = call(place, "pretrain", *TINY, *OWN, "name=own")
    assert ended.code == 0, ended.err
    cut = ("prune", *TINY, "source=outputs/own", "criterion=l1_norm", "selection=per_layer")
    refused(place, *cut, "name=cut", says=("mynet.MyNet", "runtime.trust=[mynet.MyNet]"))
    ended = call(place, *cut, "runtime.trust=[mynet.MyNet]", "name=cut")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        *((f"name={name}", f'name="{name}"') for name in ("[red]", "{a}", "true", "1e5", "0")),
        ("root=[a,b]", "root=[a,b]"),
        *((same, same) for same in ("name=a,b", "source=null", "name='q'", "name=${oc.env:X}")),
        *((same, same) for same in ("name=red", "seed=1", "pipeline=[prune]", "absorb=true")),
    ],
)
def test_a_name_is_what_was_typed_where_hydra_would_read_something_else(typed, passed):
    assert hydra_arguments([typed], ["name", "root", "seed"]) == [passed]


def test_odd_names_need_no_quotes(place):
    ended = call(place, "pretrain", *TINY, "name=a#b!")
    assert ended.code == 0, ended.err
    assert (place / "outputs" / "a#b!" / "pretrain" / "report.json").is_file()


def test_quiet_prints_nothing_but_errors(place):
    ended = call(place, "pretrain", *TINY, "name=q", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (place / "outputs" / "q" / "pretrain" / "report.json").is_file()
    refused(place, "pretrain", "--quiet", "criterion=foo", says=("criterion=foo",))


@pytest.mark.parametrize("typed", [("--version",), ("run", "--version"), ("report", "--version")])
def test_the_version_is_that_of_prunekit(place, typed):
    from prunekit import __version__

    ended = call(place, *typed)
    assert (ended.code, ended.out) == (0, f"prunekit {__version__}\n")


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("prunekit run model=len", {"model=lenet5", "model=lenet5_caffe"}),
        ("prunekit prune regularizer.la", {"regularizer.lam="}),
        ("prunekit ", {"run", "prune", "report"}),
        ("prunekit report ", set()),
    ],
)
def test_the_shell_gets_candidates(place, monkeypatch, line, candidates):
    monkeypatch.setenv("COMP_LINE", line)
    ended = call(place, "-sc", "query=bash")
    assert ended.code == 0, ended.err
    assert candidates <= {*ended.out.split()} and bool(candidates) == bool(ended.out.split())


def test_the_script_for_the_shell_completes_prunekit(place):
    ended = call(place, "run", "-sc", "install=bash")
    assert ended.out.rstrip().endswith("-F hydra_bash_completion prunekit")


@pytest.mark.slow
def test_two_strengths_with_the_same_result_are_told(place):
    """Fifty steps between two updates, and two steps of training: the strength does nothing."""
    swept = ("solver.inner=50", "regularizer.lam=0.1,0.2", "pipeline=[pretrain,sparsify]")
    ended = call(place, "run", "-m", *TINY, *swept, "name=s")
    assert ended.code == 0, ended.err
    (note,) = [line for line in ended.out.splitlines() if "made no difference" in line]
    assert "lam (0.1, 0.2) made no difference to sparsify" in note
    assert "pretrain" not in note.partition(" in ")[0]  # it is shared, not computed twice
    (log, _) = sorted(place.glob("outputs/s/*/log.txt"))
    assert (
        "0 updates of the sparse copy: solver.inner=50, but training has 2 steps" in log.read_text()
    )


def test_by_default_two_strengths_differ(place):
    swept = ("regularizer.lam=0.1,0.9", "pipeline=[pretrain,sparsify]")
    ended = call(place, "run", "-m", *TINY, *swept, "name=s")
    assert ended.code == 0 and "made no difference" not in ended.out, ended.err


@pytest.mark.parametrize("swept", ["seed=0,1", "regularizer.lam=0.1,0.2"])
def test_what_all_jobs_share_is_refused_once_and_before_them(place, swept):
    typed = ("run", "-m", *TINY, "latency.runs=3", swept)
    refused(place, *typed, says=("latency.runs=3 must be at least 5",))
    assert not [file for file in place.rglob("*.json")]


def test_a_cause_that_jobs_share_is_one_line_at_the_end(place):
    typed = ("run", "-m", *TINY, "latency.runs=3", "selection=zeros,per_layer", "name=s")
    ended = call(place, *typed)
    assert ended.code == 1
    lines = [line for line in ended.err.splitlines() if line.endswith("runs=3 must be at least 5")]
    assert len(lines) == 1 and "selection=zeros" in lines[0] and "per_layer" in lines[0]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("regularizer=slim_l1",), "LeNet5 has no batch norm with scales"),
        (("regularizer.target.layers={convX:1}",), "did you mean conv"),
        (("regularizer=hinge_l1", "solver=hinge"), "placement=auto"),
    ],
)
def test_a_target_that_the_network_lacks_is_refused_at_once(place, typed, says):
    refused(place, "run", *TINY, *typed, says=(says,))
    assert not (place / "outputs").exists()


@pytest.mark.parametrize("prefix", ["module.net.", "encoder.backbone."])
def test_weights_under_another_prefix_are_loaded(place, prefix):
    torch.manual_seed(1)
    weights = LeNet5().state_dict()
    torch.save({prefix + name: value for name, value in weights.items()}, place / "renamed.pt")
    model = LeNet5()
    load_weights(model, place / "renamed.pt")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    outer = nn.ModuleDict({"body": LeNet5()})  # and the other way round
    torch.save(weights, place / "plain.pt")
    load_weights(outer, place / "plain.pt")
    assert torch.equal(outer["body"].conv1.weight, weights["conv1.weight"])
    torch.save({f"{prefix}{name}": v for name, v in weights.items() if "1" in name}, place / "p")
    with pytest.raises(ArtifactError, match=r"missing: conv2\.weight"):
        load_weights(model, place / "p")


def test_weights_of_nan_do_not_blame_the_rate(place):
    weights = LeNet5().state_dict()
    weights["conv1.weight"][0] = float("nan")
    torch.save(weights, place / "nan.pt")
    line = refused(
        place, "pretrain", *TINY, "weights=nan.pt", says=("conv1.weight holds 25 values", "nan")
    )
    assert "lower the rate" not in line


def test_a_loss_of_nan_in_the_first_step_does_not_blame_the_rate():
    batch = torch.full((4, 1, 28, 28), 3e38), torch.zeros(4, dtype=torch.long)  # sums overflow
    schedule = Schedule(1, 4, partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(TrainingError, match=r"first step, before any update.*images") as caught:
        fit(LeNet5(), data_from_batches([batch], 4), schedule)
    assert "lower the rate" not in str(caught.value)


def test_a_rate_that_is_too_high_is_blamed(place):
    high = ("schedule.pretrain.optimizer.lr=1e8", "schedule.pretrain.epochs=4")
    refused(place, "pretrain", *TINY, *high, says=("at learning rate", "lower the rate"))


def test_a_full_disk_is_called_so(place, monkeypatch):
    """torch reports a full disk as an error of its own, without the reason."""

    def fail(*_args, **_options):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("", (), {"free": 0}))
    line = refused(place, "pretrain", *TINY, says=("no space left on the device", "free space"))
    assert "enforce" not in line
    error = OSError(errno.ENOSPC, "No space left on device", "outputs/log.txt")
    assert "outputs/log.txt cannot be written: no space left" in str(explain(error, "run", []))


def test_a_report_without_a_finished_stage_fails(place):
    shutil.copytree(INTERRUPTED / "sparsify", place / "outputs" / "a" / "sparsify")
    ended = call(place, "report", "outputs")
    assert ended.code == 1 and "no stage under outputs is finished" in ended.err
    assert "outputs/a/sparsify" in ended.err and not (place / "outputs" / "report.html").exists()


EXAMPLE = torch.zeros(1, 1, 28, 28)


def test_a_torch_data_set_is_read_in_batches():
    torch.manual_seed(0)
    images, labels = torch.randn(24, 1, 28, 28), torch.randint(0, 10, (24,))
    model = LeNet5()
    given = (TensorDataset(images, labels), [(images, labels)])
    kept = [
        prunekit.prune(model, EXAMPLE, keep=0.5, criterion="taylor", data=data).kept
        for data in given
    ]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[1])


def test_a_share_is_a_selection():
    model = LeNet5()
    sparse = prunekit.attach(model, EXAMPLE, penalty="l1", lam=0.1, solver="aulm")
    narrow = prunekit.shrink(model, sparse.graph, sparse.scores(), 0.5)
    assert narrow.conv1.out_channels == 10
    for wrong, says in ((3, "selection=3 must be at most 1"), (0, "selection=0 must be above 0")):
        with pytest.raises(ConfigError, match=says):
            prunekit.shrink(model, sparse.graph, sparse.scores(), wrong)
    with pytest.raises(ConfigError, match="graph is a Tensor, not a ChannelGraph"):
        prunekit.shrink(model, EXAMPLE, sparse.scores(), 0.5)


def test_classes_without_parentheses_are_named():
    for given, says in (
        ({"penalty": prunekit.penalties.L1, "solver": "aulm"}, r"L1\(...\) makes an object"),
        ({"penalty": "l1", "lam": 1, "solver": prunekit.solvers.AULM}, r"AULM\(...\) makes"),
        ({"penalty": "l1", "solver": "aulm"}, "needs lam"),
    ):
        with pytest.raises(ConfigError, match=says):
            prunekit.attach(LeNet5(), EXAMPLE, **given)


def test_shares_by_layer_say_what_they_go_with():
    for given, says in (
        ({"macs": 0.5}, r"beside macs=0.5: .* give that of all other layers, keep="),
        ({"keep": 0.5, "scope": "global"}, "beside scope='global'"),
        ({}, "keep=1 leaves all but the layers named"),
    ):
        with pytest.raises(ConfigError, match=says):
            prunekit.prune(LeNet5(), EXAMPLE, layers={"conv1": 0.8}, **given)


def test_an_int8_file_that_is_slower_is_said_to_be():
    (note,) = slower_notes({"int8_speedup": 0.85, "int8_ms": 2.0, "onnx_ms": 1.7})
    assert "model.int8.onnx is slower here: 2.0 ms against 1.7 ms" in note
    assert (
        slower_notes({"int8_speedup": 1.3, "int8_ms": 1.0, "onnx_ms": 1.3})
        == slower_notes({})
        == []
    )
