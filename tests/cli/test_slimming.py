"""Network slimming from the command line, on toy images."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from prunekit.data import Synthetic
from prunekit.models import PreResNet
from prunekit.surgery import load_model
from prunekit.training import evaluate, recompute_statistics

TINY = (
    *("dataset.train=96", "dataset.val=32", "dataset.test=40", "dataset.channels=3"),
    *("dataset.image_size=16", "latency.batch=2", "criterion=bn_scale", "regularizer=slim_l1"),
    *("solver=subgradient", "solver.threshold=0"),
)
RESNET = (*TINY, "model=resnet20", "selection=macs", "selection.normalise=null")
KEPT = "reconstruct=none"  # layers keep their weights although no fine-tuning follows
FIGURES = ("dropped", "absorbed", "dropped_recomputed", "absorbed_recomputed")


def report(stage: Path) -> dict:
    return json.loads((stage / "report.json").read_text())


@pytest.fixture
def run(cli):
    def go(command: str, *settings: str):
        found = cli(command, *settings, "name=a")
        assert found.code == 0, found.err
        return found

    return go


def data():
    sizes = {"train": 96, "val": 32, "test": 40}
    return Synthetic(channels=3, image_size=16, **sizes).load()


class TestAfterPruning:
    """Four figures, each that of a network which can be made by hand."""

    def test_they_are_those_of_the_networks(self, run, tmp_path):
        stages = "pipeline=[pretrain,sparsify,prune]"
        found = run("run", *RESNET, stages, "absorb=false", "regularizer.lam=0.3", KEPT)
        place = tmp_path / "outputs/a"
        values = report(place / "prune")["metrics"]
        assert {f"after/{name}" for name in FIGURES} <= values.keys()
        assert {f"val_after/{name}" for name in FIGURES} <= values.keys()
        assert values["after/dropped"] == values["top1"]
        sets, narrow = data(), load_model(place / "prune/model.pt").model
        assert evaluate(narrow, sets.test, "cpu")["top1"] == pytest.approx(values["after/dropped"])
        recompute_statistics(narrow, sets.train, 2048)
        again = evaluate(narrow, sets.test, "cpu")["top1"]
        assert again == pytest.approx(values["after/dropped_recomputed"])
        assert "with constants dropped" in found.out and "statistics recomputed" in found.out

    def test_the_one_that_is_written(self, run, tmp_path):
        run("run", *RESNET, "pipeline=[pretrain,sparsify]", "regularizer.lam=0.3")
        source, place = "source=outputs/a/sparsify", tmp_path / "outputs/a/prune"
        run("prune", *RESNET, source, "absorb=true", "statistics=recomputed", KEPT)
        values = report(place)["metrics"]
        assert values["top1"] == values["after/absorbed_recomputed"]
        assert values["val_top1"] == pytest.approx(values["val_after/absorbed_recomputed"])

    def test_none_where_they_are_not_wanted(self, run, tmp_path):
        run("run", *RESNET, "pipeline=[pretrain,prune]", "diagnose=false", KEPT)
        values = report(tmp_path / "outputs/a/prune")["metrics"]
        assert "top1" in values and not any("after" in key for key in values)

    def test_two_without_batch_norm(self, run, tmp_path):
        lenet = ("model.widths=[6,8,20]", "selection=per_layer", "criterion=l1_norm")
        found = run("run", *lenet, "pipeline=[pretrain,prune]", KEPT)
        values = report(tmp_path / "outputs/a/prune")["metrics"]
        assert {key for key in values if key.startswith("after/")} == {
            *("after/dropped", "after/absorbed")
        }
        assert "recomputed" not in found.out

    def test_layers_are_refitted_on_request(self, run, tmp_path):
        run("run", *RESNET, "pipeline=[pretrain]")
        half = ("criterion=l1_norm", "selection=per_layer", "selection.keep=0.5")
        refit = ("reconstruct=least_squares", "reconstruct.images=32")
        found = run("prune", *TINY, "source=outputs/a/pretrain", *half, *refit)
        place = tmp_path / "outputs/a/prune"
        values, saved = report(place)["metrics"], load_model(place / "model.pt")
        assert values["after/refitted"] == values["top1"]
        assert "with layers refitted" in found.out and "layers refitted on 32 inputs" in found.out
        assert evaluate(saved.model, data().test, "cpu")["top1"] == pytest.approx(values["top1"])
        settings = json.loads((place / "settings.json").read_text())
        assert settings["reconstruct"]["images"] == 32
        assert values["refit_change"] > 0 and values["refit_after"] < values["refit_before"]
        assert values["refit_images"] == 32 and values["refit_seconds"] > 0
        layers = pd.read_csv(place / "refit.csv")
        assert [*layers] == ["layer", "before", "after", "rows", "unknowns"]
        assert len(layers) == values["refit_layers"]
        assert layers["after"].mean() == pytest.approx(values["refit_after"])
        assert (place / "refit.png").read_bytes().startswith(b"\x89PNG")
        assert "float32; before layers were refitted" in found.out
        run("report", "outputs/a")
        assert "Errors of layers behind the cut" in (tmp_path / "outputs/a/report.html").read_text()

    def test_layers_are_refitted_where_no_fine_tuning_follows(self, run, tmp_path):
        run("run", *RESNET, "pipeline=[pretrain]")
        half = ("criterion=l1_norm", "selection=per_layer", "selection.keep=0.5")
        prune = ("prune", *TINY, "source=outputs/a/pretrain", *half, "diagnose=false")
        found = run(*prune)
        settings = json.loads((tmp_path / "outputs/a/prune/settings.json").read_text())
        assert settings["reconstruct"]["images"] == 1000
        assert "reconstruct=none leaves layers as they are" in found.out
        assert "finished before" in run(*prune, "reconstruct=least_squares").out
        kept = run(*prune, KEPT, "overwrite=true")
        assert "refitted" not in kept.out

    def test_a_run_without_the_setting_is_one_that_refits_nothing(self, run, cli, tmp_path):
        run("run", *RESNET, "pipeline=[pretrain,prune]", "diagnose=false", KEPT)
        file = tmp_path / "outputs/a/prune/settings.json"
        settings = json.loads(file.read_text())
        del settings["reconstruct"]
        file.write_text(json.dumps(settings))
        found = run("run", *RESNET, "pipeline=[pretrain,prune]", "diagnose=false", KEPT)
        assert "cached" in found.out or "finished" in found.out
        other = cli("prune", *RESNET, "diagnose=false", "reconstruct=least_squares", "name=a")
        assert other.code == 1 and "reconstruct" in other.err

    def test_a_wrong_choice_is_named(self, cli):
        found = cli("prune", *RESNET, "statistics=fresh")
        assert found.code == 1 and "statistics='fresh'" in found.err


def test_sparse_training_from_scratch(run, tmp_path):
    """As network slimming is published: there is no pre-trained network."""
    run("run", *RESNET, "pipeline=[sparsify,prune,finetune,measure]", "seed=3")
    place = tmp_path / "outputs/a"
    assert not (place / "pretrain").exists()
    found = report(place / "sparsify")
    assert found["settings"]["model"]["name"] == "resnet20" and found["source"] is None
    assert {f"below/1e-0{digit}" for digit in range(2, 7)} <= found["metrics"].keys()
    run("sparsify", *RESNET, "seed=3", "name=a")  # finished: the same command does nothing
    first = load_model(place / "sparsify/model.pt").model
    run("run", *RESNET, "pipeline=[sparsify]", "seed=3", "root=again")
    second = load_model(tmp_path / "again/a/sparsify/model.pt").model
    assert all(
        torch.equal(one, two)
        for one, two in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


DENSE = """
name: small
_target_: prunekit.models.{network}
classes: 10
scale: 0.5
"""
NETWORKS = {"DenseNet": "layers: 2", "PreResNet": "blocks: 1"}


@pytest.fixture
def small(tmp_path):
    """Small networks of the published kinds, as a folder of settings."""

    def settings(network: str) -> tuple[str, ...]:
        folder = tmp_path / "cfg/model"
        folder.mkdir(parents=True, exist_ok=True)
        text = DENSE.format(network=network) + NETWORKS[network] + "\n"
        (folder / "small.yaml").write_text(text)
        return ("--config-dir", str(tmp_path / "cfg"), *TINY, "model=small", "absorb=false")

    return settings


class TestChannelSelection:
    """One setting puts it in; the scales of every norm are then pruned on their own."""

    @pytest.mark.parametrize("network", NETWORKS)
    def test_all_stages(self, run, small, tmp_path, network):
        stages = "pipeline=[sparsify,prune,finetune,measure]"
        chosen = (stages, "channel_selection=true", "selection=slimming", "selection.ratio=0.4")
        run("run", *small(network), *chosen, "selection.on_empty=keep_best")
        place = tmp_path / "outputs/a"
        pruned = load_model(place / "prune/model.pt")
        values = report(place / "prune")["metrics"]
        scales = _scales(place / "sparsify")
        assert _scales(place / "prune") == scales - int(0.4 * scales)
        assert values["surgery_error"] < 1e-4
        assert [edit.kind for edit in pruned.edits] == ["select", "narrow"]

    def test_prune_by_itself_puts_it_in_too(self, run, small, tmp_path):
        settings = small("PreResNet")
        run("run", *settings, "pipeline=[pretrain,sparsify]")
        run("prune", *settings, "channel_selection=true", "selection=slimming", KEPT)
        kinds = [e.kind for e in load_model(tmp_path / "outputs/a/prune/model.pt").edits]
        assert kinds == ["select", "narrow"]

    def test_exact_zeros_need_no_threshold(self, run, small, tmp_path):
        """Scores of the splitting, learned behind selections, fit the network that is pruned."""
        split = (
            "solver=palm",
            "solver.spread=0.5",
            "regularizer.lam=90",
            "criterion=stored",
            "selection=zeros",
        )
        both = ("channel_selection=true", "pipeline=[sparsify,prune]")
        plain = [s for s in small("PreResNet") if not s.startswith(("solver", "criterion"))]
        run("run", *plain, *both, *split)
        place = tmp_path / "outputs/a"
        scored = sum(report(place / "sparsify")["metrics"][key] for key in _alive(place))
        assert 0 < scored <= _scales(place / "prune") < _scales(place / "sparsify")

    def test_refused_where_nothing_is_read_past_a_norm(self, cli):
        found = cli("prune", *RESNET, "channel_selection=true")
        assert found.code == 1
        assert "no channels of a batch norm are read past it" in found.err


def _alive(place: Path) -> list[str]:
    return [key for key in report(place / "sparsify")["metrics"] if key.startswith("alive/")]


def _scales(stage: Path) -> int:
    model = load_model(stage / "model.pt").model
    return sum(m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_a_penalty_without_effect_is_told_and_kept_in_the_report(run, tmp_path):
    flat = ("regularizer=mcp", "regularizer.flat=0.01", "regularizer.lam=1e-4")
    tiny = [item for item in RESNET if not item.startswith("regularizer")]
    found = run("run", *tiny, *flat, "pipeline=[sparsify]")
    line = "MCP is flat from 0.01 on and the smallest of 688 rows is 1: it does nothing"
    assert found.err.count(line) == 1
    notes = report(tmp_path / "outputs/a/sparsify")["notes"]
    assert sum(note.startswith(line) for note in notes) == 1


def test_no_strength_fits_a_penalty_that_is_flat_where_all_rows_are(cli):
    tiny = [item for item in RESNET if not item.startswith("regularizer")]
    found = cli("run", *tiny, "regularizer=mcp", "regularizer.flat=0.01", "pipeline=[sparsify]")
    assert found.code == 1
    assert "no strength of MCP fits" in found.err and "flat from 0.01 on: raise it" in found.err


class TestOnEmpty:
    """A network one of whose blocks is worth nothing."""

    @pytest.fixture
    def emptied(self, tmp_path):
        torch.manual_seed(0)
        model = PreResNet(blocks=2, widths=(4, 4, 4), stem=4, scale=0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
        torch.nn.init.constant_(model.layer2[1].bn2.weight, 1e-3)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        folder = tmp_path / "cfg/model"
        folder.mkdir(parents=True)
        text = DENSE.format(network="PreResNet") + "blocks: 2\nwidths: [4, 4, 4]\nstem: 4\n"
        (folder / "small.yaml").write_text(text)
        chosen = ("model=small", "weights=weights.pt", "selection=slimming", "absorb=false")
        return ("--config-dir", str(tmp_path / "cfg"), *TINY, *chosen, "channel_selection=true")

    def test_error_names_the_layer(self, cli, emptied):
        found = cli("prune", *emptied, "selection.ratio=0.1", "selection.on_empty=error")
        assert found.code == 1
        assert "would leave nothing of layer2.1.conv1" in found.err
        assert "on_empty=keep_best" in found.err

    def test_keep_best(self, run, emptied, tmp_path):
        run("prune", *emptied, "selection.ratio=0.1", "selection.on_empty=keep_best")
        narrow = load_model(tmp_path / "outputs/a/prune/model.pt").model
        assert narrow.layer2[1].conv1.out_channels == 1

    def test_skip_block(self, run, emptied, tmp_path):
        found = run("prune", *emptied, "selection.ratio=0.1", "selection.on_empty=skip_block")
        assert "block layer2.1 was removed whole" in found.out
        place = tmp_path / "outputs/a/prune"
        narrow = load_model(place / "model.pt").model
        assert isinstance(narrow.layer2[1], torch.nn.Identity)
        values = report(place)["metrics"]
        assert values["kept/layer2.1.conv1"] == values["kept/layer2.1.conv2"] == 0
        assert values["surgery_error"] < 1e-5
        run("finetune", *emptied)
        run("measure", *emptied)


def test_after_a_warning_other_settings_may_follow(run, cli, tmp_path):
    tiny = [item for item in RESNET if not item.startswith("regularizer")]
    flat = (*tiny, "regularizer=mcp", "pipeline=[sparsify]", "name=a")
    wrong = cli("run", *flat, "regularizer.flat=0.01", "schedule.sparsify.optimizer.lr=1e30")
    assert wrong.code == 1 and "does nothing" in wrong.err and "lower the rate" in wrong.err
    run("run", *flat, "regularizer.flat=100")
    assert not any("flat" in note for note in report(tmp_path / "outputs/a/sparsify")["notes"])
