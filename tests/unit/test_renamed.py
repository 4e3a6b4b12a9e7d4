"""Former paths of classes: refused with the present one, and equal to it in recorded settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.build import build, locate
from prunekit.errors import ConfigError
from prunekit.renamed import RENAMED, current

CHANGES = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("former", sorted(RENAMED))
def test_a_former_path_is_refused_with_the_present_one(former):
    present = RENAMED[former]
    assert callable(locate(present))
    with pytest.raises(ConfigError) as refusal:
        build({"_target_": former}, "part")
    assert str(refusal.value) == f"part._target_='{former}' is now {present}; write that"


@pytest.mark.parametrize("former", sorted(RENAMED))
def test_the_list_of_changes_names_it(former):
    assert f"| `{former}` | `{RENAMED[former]}` |" in CHANGES


def test_recorded_settings_are_read_by_present_paths():
    old = {
        "distill": {"_target_": "prunekit.stages.teacher.Distill", "weight": 0.4},
        "parts": [{"_target_": "prunekit.stages.sensitivity.Probe"}, "text", 1],
        "name": "prunekit.stages.sensitivity.Probe",
    }
    assert current(old) == {
        "distill": {"_target_": "prunekit.stages.finetune.Distill", "weight": 0.4},
        "parts": [{"_target_": "prunekit.stages.sensitivity.SensitivityGrid"}, "text", 1],
        "name": "prunekit.stages.sensitivity.Probe",
    }
