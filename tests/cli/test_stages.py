"""Every command on toy images: what it writes, and that the numbers are those of the network."""

from __future__ import annotations

import csv
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cli.conftest import call
from omegaconf import OmegaConf

from prunekit.config import config_dir, groups
from prunekit.models import LeNet5
from prunekit.surgery import load_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

TINY = (
    *("dataset=synthetic", "dataset.train=160", "dataset.val=32", "dataset.test=50"),
    *("model.widths=[6,8,20]", "schedule=smoke", "runtime.device=cpu", "runtime.threads=1"),
    *("latency.runs=5", "latency.warmup=0", "latency.batch=4", "solver=proximal"),
)
RESNET = (
    *(item for item in TINY if not item.startswith(("model", "dataset.t", "dataset.v"))),
    *("dataset.train=48", "dataset.val=16", "dataset.test=16", "schedule.pretrain.batch=16"),
    *("model=resnet20", "dataset.channels=3", "dataset.image_size=32"),
)
KEYS = {"stage", "settings", "source", "metrics", "notes", "environment", "seconds", "origin"}
KEYS |= {"command", "files", "digest"}
MODELS = ("pretrain", "sparsify", "prune", "finetune")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory that all tests of this module run in, each under names of its own."""
    found, before = tmp_path_factory.mktemp("stages"), os.getcwd()
    os.chdir(found)
    yield found
    os.chdir(before)


@pytest.fixture(scope="module")
def whole(place):
    """`prunekit run` through all stages; at this strength some filters vanish."""
    assert call("run", *TINY, "name=whole", "regularizer.lam=29", "selection=per_layer") == 0
    return place / "outputs/whole"


@pytest.fixture
def go(place, capfd):
    """Run a command there, expect it to work, and return what it printed."""

    def run(command: str, *overrides: str, settings: tuple[str, ...] = TINY) -> str:
        capfd.readouterr()
        code = call(command, *settings, *overrides)
        out, err = capfd.readouterr()
        assert code == 0, err
        return out + err

    return run


def multiply_adds(model: torch.nn.Module, channels: int, size: int) -> int:
    """What fvcore counts in convolutions and linear layers."""
    counted = FlopCountAnalysis(model.eval(), torch.zeros(1, channels, size, size))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(sum(counted.by_operator()[kind] for kind in ("conv", "linear")))


def report(stage: Path) -> dict:
    return json.loads((stage / "report.json").read_text())


def metrics(stage: Path) -> dict:
    return report(stage)["metrics"]


def plan(run: Path) -> dict[str, int]:
    groups = json.loads((run / "prune/plan.json").read_text())["groups"]
    return {name: group["kept"] for name, group in groups.items()}


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


class TestRun:
    """All stages in a row."""

    def test_files(self, whole):
        files = {"settings.json", "report.json"}
        trained = files | {"model.pt", "metrics.csv"}
        assert {stage.name: {f.name for f in stage.iterdir()} for stage in whole.glob("[!.]*")} == {
            "pretrain": trained,
            "sparsify": trained | {"scores.pt"},
            "prune": files | {"model.pt", "plan.json"},
            "finetune": trained,
            "measure": files | {"comparison.csv", "layers.csv", "correct.pt"},
        }

    @pytest.mark.parametrize("stage", [*MODELS, "measure"])
    def test_reports(self, whole, stage):
        found = report(whole / stage)
        assert set(found) == KEYS and found["stage"] == stage
        recorded = json.loads((whole / stage / "settings.json").read_text())
        assert {**found["settings"], "format": 2} == recorded
        assert found["seconds"] > 0 and found["environment"]["torch"] == torch.__version__
        assert {"top1", "top5", "loss", "params", "nonzero", "macs"} <= set(found["metrics"])
        assert 0 <= found["metrics"]["top1"] <= found["metrics"]["top5"] <= 100
        assert isinstance(found["notes"], list)
        before = {"pretrain": None, "sparsify": "pretrain", "prune": "sparsify"}
        before |= {"finetune": "prune", "measure": "finetune"}
        assert (found["source"] or "").split("/")[0] == (before[stage] or "")

    def test_a_stage_records_only_what_it_reads(self, whole):
        known = {stage: set(report(whole / stage)["settings"]) for stage in MODELS}
        read = {"seed", "model", "dataset", "schedule", "weights"}
        assert known["pretrain"] == read | {"source", "images", "numbers"}
        assert set(report(whole / "pretrain")["settings"]["schedule"]) == {"pretrain"}
        assert "regularizer" in known["sparsify"] and "regularizer" not in known["finetune"]

    @pytest.mark.parametrize("stage", MODELS)
    def test_counts_are_those_of_the_network_in_the_file(self, whole, stage):
        model = load_model(whole / stage / "model.pt").model
        found = metrics(whole / stage)
        assert found["macs"] == multiply_adds(model, 1, 28)
        assert found["params"] == sum(param.numel() for param in model.parameters())
        assert found["nonzero"] == sum(int(p.count_nonzero()) for p in model.parameters())

    @pytest.mark.parametrize("stage", ["pretrain", "sparsify", "finetune"])
    def test_one_line_per_epoch(self, whole, stage):
        rows = table(whole / stage / "metrics.csv")
        assert [row["epoch"] for row in rows] == ["1"]
        assert {"lr", "train_loss", "train_top1", "val_loss", "val_top1"} <= set(rows[0])
        assert ("rows" in rows[0]) == (stage == "sparsify")

    def test_the_plan_is_what_was_cut(self, whole):
        assert plan(whole) == {"conv1": 3, "conv2": 4, "fc1": 10}
        narrow = load_model(whole / "prune/model.pt").model
        assert narrow.conv1.weight.shape[0] == 3
        assert narrow.conv2.weight.shape[:2] == (4, 3)
        assert narrow.fc1.weight.shape == (10, 4 * 16)
        indices = json.loads((whole / "prune/plan.json").read_text())["groups"]["conv1"]["indices"]
        wide = load_model(whole / "sparsify/model.pt").model
        assert torch.equal(narrow.conv1.weight, wide.conv1.weight[indices])
        assert metrics(whole / "prune")["surgery_error"] < 1e-4
        assert metrics(whole / "prune")["kept/fc1"] == 10

    def test_the_comparison(self, whole):
        rows = {row["network"]: row for row in table(whole / "measure/comparison.csv")}
        assert list(rows) == ["dense", "pruned", "fine-tuned"]
        for label, stage in (
            ("dense", "pretrain"),
            ("pruned", "prune"),
            ("fine-tuned", "finetune"),
        ):
            for key in ("top1", "params", "macs", "nonzero"):
                assert float(rows[label][key]) == metrics(whole / stage)[key]
            assert rows[label]["macs"] == rows[label]["fvcore_macs"]
            size = (whole / stage / "model.pt").stat().st_size
            assert int(rows[label]["file_bytes"]) == size
            assert float(rows[label]["cpu_ms_q1"]) <= float(rows[label]["cpu_ms"])
            assert int(rows[label]["memory_bytes"]) > 0
        dense, narrow = rows["dense"], rows["fine-tuned"]
        for key, ratio in (("params", "params_ratio"), ("macs", "macs_ratio")):
            expected = float(dense[key]) / float(narrow[key])
            assert float(narrow[ratio]) == pytest.approx(expected, rel=1e-3) and expected > 1.5
        final = metrics(whole / "measure")
        assert final["top1"] == float(narrow["top1"])
        assert final["dense_params"] == float(dense["params"])
        assert final["speedup"] == pytest.approx(final["dense_cpu_ms"] / final["cpu_ms"], rel=1e-3)

    def test_per_image_results_add_up(self, whole):
        correct = torch.load(whole / "measure/correct.pt", weights_only=True)
        assert list(correct) == ["dense", "pruned", "fine-tuned"]
        shares = {label: 100 * float(right.double().mean()) for label, right in correct.items()}
        assert shares["fine-tuned"] == pytest.approx(metrics(whole / "measure")["top1"], abs=1e-3)
        assert shares["dense"] == pytest.approx(metrics(whole / "pretrain")["top1"], abs=1e-3)

    def test_the_table_on_the_screen(self, go, whole):
        out = go("run", "name=whole", "regularizer.lam=29", "selection=per_layer")
        for stage in (*MODELS, "measure"):
            line = next(line for line in out.splitlines() if line.startswith(stage))
            assert "finished before" in line and f"-> outputs/whole/{stage}" in line
            assert f"{metrics(whole / stage)['params']:,} parameters" in line
        rows = {
            line.split()[0]: line
            for line in out[out.index("dense and narrow") :].splitlines()
            if line.strip()
        }
        assert "params ratio" in rows["network"] and "CPU speed-up" in rows["network"]
        for label in ("dense", "pruned", "fine-tuned"):
            assert "x" in rows[label]
        assert f"{metrics(whole / 'finetune')['macs']:,}" in rows["fine-tuned"]


class TestCommands:
    """One stage at a time."""

    def test_the_stages_one_by_one_do_what_run_does(self, go, place, whole):
        settings = ("name=single", "regularizer.lam=29", "selection=per_layer")
        settings += ("reconstruct=none",)  # prune by itself does not know that tuning follows
        for command in (*MODELS, "measure"):
            out = go(command, *settings)
            assert out.startswith(f"{command} ") and ("dense and narrow" in out) == (
                command == "measure"
            )
            stages = {path.name for path in (place / "outputs/single").glob("[!.]*")}
            assert stages == {*(*MODELS, "measure")[: (*MODELS, "measure").index(command) + 1]}
        for stage in MODELS:
            one, other = (
                load_model(run / stage / "model.pt").model.state_dict()
                for run in (place / "outputs/single", whole)
            )
            assert all(torch.equal(one[key], other[key]) for key in other)

    def test_a_part_of_the_pipeline_in_any_order_written(self, go, place):
        go("run", "name=part", "pipeline=[prune,pretrain]", "criterion=l1_norm", "selection=global")
        assert {path.name for path in (place / "outputs/part").glob("[!.]*")} == {
            *("pretrain", "prune")
        }

    def test_no_penalty_leaves_sparsify_out(self, go, place):
        out = go("run", "name=none", "regularizer=none", "criterion=l2_norm", "selection=macs")
        assert not (place / "outputs/none/sparsify").exists() and "sparsify" not in out
        assert metrics(place / "outputs/none/measure")["macs_ratio"] >= 2
        assert report(place / "outputs/none/prune")["source"].startswith("pretrain/")

    def test_start_from_another_run(self, go, place, whole):
        tail = "pipeline=[prune,finetune,measure]"
        shared = (tail, "criterion=random", "selection=per_layer", "selection.keep=0.25")
        for index, source in enumerate(
            ("outputs/whole/pretrain", "outputs/whole/sparsify/model.pt")
        ):
            go("run", f"name=from{index}", f"source={source}", *shared)
            run = place / "outputs" / f"from{index}"
            assert report(run / "prune")["source"].startswith(
                f"{Path(source).name.split('.')[0]}"
            ) or ("sparsify" in report(run / "prune")["source"])
            assert plan(run) == {"conv1": 2, "conv2": 2, "fc1": 5}
        rows = [row["network"] for row in table(place / "outputs/from0/measure/comparison.csv")]
        assert rows[0] == "dense" and rows[-1] == "fine-tuned"

    def test_a_pruned_network_is_pruned_again(self, go, place, whole):
        go(
            "prune",
            "name=twice",
            "source=outputs/whole",
            "criterion=l1_norm",
            "selection=per_layer",
        )
        saved = load_model(place / "outputs/twice/prune/model.pt")
        assert len(saved.edits) == 2 and plan(place / "outputs/twice") == {
            **{"conv1": 2, "conv2": 2, "fc1": 5}
        }
        assert saved.model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)

    def test_report_lists_the_runs(self, go, whole):
        out = go("report", "outputs/whole", settings=())
        line = next(line for line in out.splitlines() if "l21" in line)
        assert "measure" in line and f"{metrics(whole / 'finetune')['params']:,}" in line

    def test_inspect_prints_and_writes_nothing(self, go, place, whole):
        before = set(place.rglob("*"))
        out = go("inspect", "name=looked/at")
        assert set(place.rglob("*")) == before
        readers = {"conv1": "conv2", "conv2": "fc1", "fc1": "fc2"}
        for name, width in (("conv1", 6), ("conv2", 8), ("fc1", 20)):
            row = [name, str(width), name, readers[name]]
            assert row in [line.split() for line in out.splitlines()]
        assert "stays: fc2: they leave the network" in out and "predicted cost" in out
        dense = metrics(whole / "pretrain")
        assert ["100%", f"{dense['params']:,}", f"{dense['macs']:,}"] in [
            line.split() for line in out.splitlines()
        ]
        # half of every group is what the run above kept
        narrow = metrics(whole / "prune")
        assert ["50%", f"{narrow['params']:,}", f"{narrow['macs']:,}"] in [
            line.split() for line in out.splitlines()
        ]

    def test_inspect_of_a_source_and_of_a_residual_network(self, go, place, whole):
        out = go("inspect", "source=outputs/whole")
        assert ["conv1", "3", "conv1", "conv2"] in [line.split() for line in out.splitlines()]
        out = go("inspect", settings=RESNET)
        stem = next(line for line in out.splitlines() if line.split()[:1] == ["conv1"])
        assert "conv1, layer1.0.conv2, layer1.1.conv2 and 7 more" in stem
        assert "stays: linear: they leave the network" in out

    def test_inspect_keeps_what_is_there(self, go, place, whole):
        before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
        go("inspect", "name=whole")
        assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


CRITERIA = {name: ("criterion=" + name,) for name in groups()["criterion"]}
CRITERIA["apoz"] += ("criterion.samples=40",)
CRITERIA["hrank"] += ("criterion.samples=40",)
CRITERIA["taylor"] += ("criterion.samples=40",)
SELECTIONS = {
    "zeros": (),
    "per_layer": ("selection.keep=0.5",),
    "global": ("selection.keep=0.5", "selection.min_keep=2"),
    "macs": ("selection.keep=0.4",),
    "slimming": ("selection.ratio=0.5", "selection.on_empty=keep_best"),
    "params": ("selection.keep=3000",),
    "threshold": ("selection.keep=0.6",),
    "latency": ("selection.keep=0.9", "selection.on_miss=nearest"),
    "budgets": ("selection.macs=0.6", "selection.params=0.3"),
    "widths": ("selection.widths={conv1: 2, fc1: 7}",),
    "like_run": ("selection.path=outputs/whole",),
}


class TestPrune:
    """Every criterion and every selection once."""

    @pytest.fixture
    def scored(self, go, place, whole):
        """The run of a criterion at the widths of the whole one; one that is there is kept."""

        def run(name):
            like = ("selection=like_run", "selection.path=outputs/whole")
            source = f"source={whole / 'sparsify'}"
            go("prune", f"name=criterion-{name}", source, *CRITERIA[name], *like)
            return place / f"outputs/criterion-{name}"

        return run

    @pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"bn_scale", "matrix"}))
    def test_criteria(self, scored, whole, name):
        assert plan(scored(name)) == plan(whole)

    def test_criteria_differ(self, scored):
        """Equal widths, other units."""
        names = ("random", "l1_norm", "apoz", "taylor")
        chosen = [json.loads((scored(name) / "prune/plan.json").read_text()) for name in names]
        kept = {tuple(one["groups"]["fc1"]["indices"]) for one in chosen}
        assert len(kept) >= 3

    @pytest.mark.parametrize("name", sorted(SELECTIONS))
    def test_selections(self, go, place, whole, name):
        go(
            "prune",
            f"name=selection-{name}",
            f"source={whole / 'sparsify'}",
            f"selection={name}",
            *SELECTIONS[name],
        )
        kept, found = (
            plan(place / f"outputs/selection-{name}"),
            metrics(place / f"outputs/selection-{name}/prune"),
        )
        dense = metrics(whole / "pretrain")
        alive = {n: max(1, metrics(whole / "sparsify")[f"alive/{n}"]) for n in kept}
        assert {
            "zeros": kept == alive,
            "per_layer": kept == {"conv1": 3, "conv2": 4, "fc1": 10},
            "global": sum(kept.values()) == 17 and min(kept.values()) >= 2,
            "slimming": 17 <= sum(kept.values()) <= 19 and min(kept.values()) >= 1,
            "macs": found["macs"] <= 0.4 * dense["macs"],
            "params": found["params"] <= 3000,
            "threshold": found.get("asked/MACs") == 0.6
            and found["reached/MACs"] == pytest.approx(0.6, abs=0.1)
            and found["macs"] == round(found["reached/MACs"] * dense["macs"]),
            "latency": found.get("asked/latency") == 0.9
            and found["predicted/latency"] > 0
            and found["reached/latency"] > 0,
            "budgets": found["macs"] <= 0.6 * dense["macs"]
            and found["params"] <= 0.3 * dense["params"],
            "widths": kept == {"conv1": 2, "conv2": 8, "fc1": 7},
            "like_run": kept == plan(whole),
        }[name]

    # of curves: test_sensitivity.py; of refits: test_refit_error.py
    ELSEWHERE = ("sensitivity", "refit_error")

    @pytest.mark.parametrize(
        ("group", "cases"), [("criterion", CRITERIA), ("selection", (*SELECTIONS, *ELSEWHERE))]
    )
    def test_no_criterion_or_selection_is_left_out(self, group, cases):
        """Files with numbers for one network share their class with a file tested above.

        So do files that build on another, which name none.
        """
        made = {
            name: OmegaConf.load(config_dir() / group / f"{name}.yaml").get("_target_")
            for name in groups()[group]
        }
        assert {made[name] for name in cases} | {None} == {*made.values(), None}

    def test_units_at_zero_go_and_nothing_else(self, go, place, whole):
        """Dropping zeros changes no prediction."""
        go("prune", "name=exact", f"source={whole / 'sparsify'}", "selection=zeros")
        before, after = metrics(whole / "sparsify"), metrics(place / "outputs/exact/prune")
        assert sum(plan(place / "outputs/exact").values()) < 34
        assert after["params"] < before["params"]
        if all(before[f"alive/{name}"] for name in ("conv1", "conv2", "fc1")):
            assert after["top1"] == before["top1"]
            assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)


class TestSettings:
    """Keys at the root, seen at work."""

    def state(self, run: Path, stage: str = "pretrain") -> dict[str, torch.Tensor]:
        return load_model(run / stage / "model.pt").model.state_dict()

    def test_seed(self, go, place, whole):
        go("pretrain", "name=seeded", "seed=1")
        assert not torch.equal(
            self.state(place / "outputs/seeded")["conv1.weight"], self.state(whole)["conv1.weight"]
        )

    def test_keep_zeros(self, go, place):
        """The entries that l1 removed are zero after fine-tuning, and only then."""
        l1 = ("regularizer=l1", "regularizer.lam=2", "pipeline=[pretrain,sparsify]")
        go("run", "name=entries", *l1)
        masks = {k: v == 0 for k, v in self.state(place / "outputs/entries", "sparsify").items()}
        gone = sum(int(mask.sum()) for mask in masks.values())
        assert gone > 100
        for flag in ("true", "false"):
            go("finetune", f"name=held-{flag}", "source=outputs/entries", f"keep_zeros={flag}")
            after = self.state(place / f"outputs/held-{flag}", "finetune")
            kept = sum(int((after[key][mask] == 0).sum()) for key, mask in masks.items())
            assert (kept == gone) == (flag == "true")
        held = metrics(place / "outputs/held-true/finetune")
        assert held["nonzero"] <= held["params"] - gone

    def test_weights(self, go, place):
        torch.manual_seed(3)
        given = LeNet5((6, 8, 20)).state_dict()
        torch.save(given, place / "given.pth")
        out = go("pretrain", "name=given", "weights=given.pth", "schedule.pretrain.epochs=0")
        found = self.state(place / "outputs/given")
        assert all(torch.equal(found[key], given[key]) for key in given)
        assert "note: started from given.pth" in out
        assert not (place / "outputs/given/pretrain/metrics.csv").exists()

    def test_epochs_zero_and_the_seed_alone_decide_the_start(self, go, place):
        go("pretrain", "name=zero", "schedule.pretrain.epochs=0")
        go("pretrain", "name=zero2", "schedule.pretrain.epochs=0", "runtime.threads=2")
        one, two = self.state(place / "outputs/zero"), self.state(place / "outputs/zero2")
        assert all(torch.equal(one[key], two[key]) for key in one)

    def test_the_name_is_made_of_labels(self, go, place):
        labels = ("model.name=m", "dataset.name=d", "regularizer.name=r")
        go("pretrain", *labels, "schedule.pretrain.epochs=0")
        assert (place / "outputs/m-d-r/pretrain/report.json").is_file()

    def test_layer_after_layer(self, go, place):
        between = "order.between=${schedule.finetune}"
        go("run", "name=layers", "pipeline=[pretrain,sparsify]", "order=layerwise", between)
        rows = table(place / "outputs/layers/sparsify/metrics.csv")
        assert [row["phase"] for row in rows] == [
            *("0-conv1", "1-tune", "1-conv2", "2-tune", "2-fc1", "3-tune")
        ]


def test_resnet_with_network_slimming(go, place):
    """Batch-norm scales are penalised, residual channels go together."""
    out = go(
        "run",
        "name=slim",
        "regularizer=slim_l1",
        "regularizer.lam=0.05",
        "selection=macs",
        settings=RESNET,
    )
    run = place / "outputs/slim"
    saved = load_model(run / "finetune/model.pt")
    found = metrics(run / "measure")
    assert found["macs"] == multiply_adds(saved.model, 3, 32) == found["fvcore_macs"]
    assert found["macs"] <= 0.5 * metrics(run / "pretrain")["macs"]
    assert metrics(run / "pretrain")["params"] == 269722
    assert "alive/conv1" in metrics(run / "sparsify") and "dense and narrow" in out
    go(
        "prune",
        "name=slim-bn",
        "source=outputs/slim/pretrain",
        *CRITERIA["bn_scale"],
        "selection=per_layer",
        settings=RESNET,
    )
    assert set(plan(place / "outputs/slim-bn")) == set(plan(run))


NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 5, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x):
        return self.head(self.pool(self.norm(self.conv(x)).relu()).flatten(1))
"""


def test_a_model_of_your_own(go, place, monkeypatch):
    """A class in a module of yours and a file in a config directory of yours are enough."""
    (place / "my_nets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(place))
    folder = place / "my_configs/model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: mine\n_target_: my_nets.Net\nwidth: 12\nclasses: 10\n")
    (folder / "lenet5.yaml").write_text("name: other\n_target_: my_nets.Net\n")
    settings = tuple(item for item in TINY if not item.startswith("model"))
    out = go(
        "run", "--config-dir", "my_configs", "model=mine", "selection=per_layer", settings=settings
    )
    run = place / "outputs/mine-synthetic-l21"
    assert plan(run) == {"conv": 6}
    assert metrics(run / "measure")["params"] == 6 * 26 + 2 * 6 + 10 * 25
    assert (
        out.count("is ignored") == 1 and "lenet5.yaml is ignored: model=lenet5 is built in" in out
    )
    saved = load_model(run / "finetune/model.pt", trust=["my_nets.Net"])
    assert type(saved.model).__module__ == "my_nets"
    sys.modules.pop("my_nets")
