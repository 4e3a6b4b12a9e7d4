"""What new users type by mistake, and the line that they should read."""

from __future__ import annotations

import json

import pytest

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
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "mynet", raising=False)
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
