"""What the scripts that compare call different."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from golden import FINISHED
from scripts.golden.kept import ALIKE, differences, runs
from scripts.golden.weights import of_stage

KNOWN = {
    "python": {"l1_norm": {"zeros": "a 0-2/4", "global": "a 0/4", "slimming": "refused A: words"}},
    "cli": {"l1_norm": {"zeros": ALIKE}},
    "fragile": {"l1_norm": ["global"]},
}


@pytest.mark.parametrize(
    ("mask", "text"),
    [("1101", "0-1,3/4"), ("0000", "-/4"), ("1111", "0-3/4"), ("0100", "1/4"), ("", "-/0")],
)
def test_kept_units_are_written_as_runs(mask, text):
    assert runs([sign == "1" for sign in mask]) == text


@pytest.mark.parametrize(
    ("name", "text", "kinds"),
    [
        ("zeros", "a 0-2/4", []),
        ("zeros", "a 0-1/4", ["kept", "kept"]),  # of the command line, which kept the same, too
        ("zeros", "refused A: words", ["kept", "kept"]),
        ("global", "a 1/4", ["fragile"]),
        ("slimming", "refused A: other words", ["words"]),
        ("slimming", "refused B: words", ["kept"]),
    ],
)
def test_differences_of_kept_units_are_told_apart(name, text, kinds):
    new = json.loads(json.dumps(KNOWN))
    new["python"]["l1_norm"][name] = text
    assert [kind for kind, _ in differences(KNOWN, new)] == kinds


@pytest.fixture
def stage(tmp_path):
    """A copy of a finished stage."""
    shutil.copytree(FINISHED / "prune", tmp_path / "prune")
    return tmp_path / "prune"


def test_a_stage_equals_its_copy(stage):
    assert [*of_stage(FINISHED / "prune", stage)] == []


def test_one_changed_weight_is_found(stage):
    content = torch.load(stage / "model.pt", weights_only=True)
    weight = content["weights"]["conv2.weight"]
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    torch.save(content, stage / "model.pt")
    (found,) = of_stage(FINISHED / "prune", stage)
    assert found.startswith("conv2.weight: up to")


def test_other_kept_units_and_figures_are_found_but_no_times(stage):
    plan = json.loads((stage / "plan.json").read_text())
    plan["groups"]["conv1"]["indices"] = [0]
    (stage / "plan.json").write_text(json.dumps(plan))
    report = json.loads((stage / "report.json").read_text())
    report["metrics"] |= {"params": 1, "cpu_ms": 1.0}
    (stage / "report.json").write_text(json.dumps(report))
    found = [*of_stage(FINISHED / "prune", stage)]
    assert found[0] == "plan conv1"
    assert found[1].startswith("params: ") and len(found) == 2
