"""Files in a run that prunekit did not write, or not like this: one line, and nothing outside."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from prunekit.errors import ArtifactError, DamageError
from prunekit.reporting.collect import collect
from prunekit.runs.files import read_json
from prunekit.runs.layout import back_up, restore_backup
from prunekit.runs.report import Outcome, Report
from prunekit.runs.rundir import RunDir, StageStatus
from prunekit.stages.pipeline import StageResult, _announce, _objective_values
from prunekit.torch_io import read_torch

SETTINGS = {"seed": 0, "source": None}


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def finish(run: RunDir, name: str = "pretrain"):
    stage = run.stage(name)
    stage.begin(SETTINGS, source=None)
    (stage.path / "model.pt").write_bytes(b"weights")
    stage.complete(Outcome({"top1": 1.0, "params": 5, "macs": 7}, ("a note",)))
    return stage


@pytest.mark.parametrize("depth", [60, 900, 200_000])
def test_json_that_is_nested_deeply_is_damaged(tmp_path, depth):
    """The json of Python gives up at a thousand levels, others before and after it."""
    file = tmp_path / "deep.json"
    file.write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(ArtifactError, match=r"deep\.json is damaged .*; delete it and run again"):
        read_json(file)
    file.write_text('{"a":' * 40 + "[1]" + "}" * 40)
    assert "a" in read_json(file)


@pytest.mark.parametrize(
    "change",
    [
        *({key: 5} for key in ("stage", "settings", "metrics", "files", "environment", "source")),
        *({key: None} for key in ("seconds", "notes", "environment")),
        *(
            {"notes": [[]]},
            {"metrics": {"top1": [1]}},
            {"metrics": {"macs": 10**400}},
            {"files": {"model.pt": 3}},
        ),
        *({"files": {name: "0"}} for name in ("../mine", "/etc/passwd", "a/b", "..", ".")),
    ],
    ids=str,
)
def test_a_report_of_other_types_is_none(run, change):
    stage = finish(run)
    file = stage.path / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ArtifactError):
        stage.report()
    (line,) = collect([run.path]).to_dict("records")
    assert line["status"] == "damaged" and line["reason"]


def test_a_report_cannot_have_files_outside_set_aside(run, tmp_path):
    mine = tmp_path / "mine.pt"
    mine.write_text("mine")
    stage = finish(run)
    file = stage.path / "report.json"
    values = json.loads(file.read_text())
    values["files"]["../../mine.pt"] = "0" * 16
    file.write_text(json.dumps(values))
    assert run.stage("pretrain").begin(SETTINGS, source=None) is StageStatus.NEW
    assert mine.read_text() == "mine"
    assert (stage.path / "report.json.damaged").is_file()


def test_digests_do_not_depend_on_the_order_of_keys(run):
    report = finish(run).report()
    values = report.to_dict()
    assert not Report.from_dict(dict(reversed(values.items()))).edited
    assert Report.from_dict(values | {"seconds": 99.0}).edited
    odd = Report("prune", {10: {"b": 1, "a": 2}, 9: (1, 2)}, None, {"top1": 1.0}).with_digest()
    assert not Report.from_dict(json.loads(json.dumps(odd.to_dict()))).edited


@pytest.mark.parametrize("metrics", [{}, {"top1": "<b>", "params": None, "macs": "many"}])
def test_metrics_that_were_edited_away_are_unknown(run, metrics, capsys):
    report = Report("prune", {}, None, metrics)
    _announce(run, report, StageResult.CACHED)
    said = capsys.readouterr().out
    assert "not measured" in said and said.count("unknown") == 2
    assert _objective_values(report, ("val_top1",)) != 0


@pytest.mark.parametrize("name", ["seconds", ".warnings"])
@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"seconds": "x", "lines": 5}', '{"files": [1], "lines": {}}', "[" * 9000],
)
def test_progress_that_cannot_be_read_is_set_aside(run, name, content, capsys):
    stage = run.stage("pretrain")
    stage.begin(SETTINGS, source=None)
    stage.checkpoint.path.write_bytes(b"progress")
    (stage.path / name).write_text(content)
    again = run.stage("pretrain")
    assert again.begin(SETTINGS, source=None) is StageStatus.RESUME
    assert f"{name} is damaged and was set aside as {name}.damaged" in capsys.readouterr().err
    again.note_time()
    again.record_warning("a line")
    assert again.complete(Outcome({})).notes == ("a line",)


class TestLinks:
    """Nothing is written, moved or deleted where a link leads out of a run."""

    @pytest.fixture
    def outside(self, tmp_path):
        folder = tmp_path / "outside"
        folder.mkdir()
        for name in ("model.pt", "report.json", "last.pt", ".model.pt.part7"):
            (folder / name).write_text("mine")
        return folder

    def content(self, folder: Path) -> dict[str, str]:
        return {file.name: file.read_text() for file in folder.iterdir()}

    def test_a_stage(self, run, outside):
        before = self.content(outside)
        run.path.mkdir()
        (run.path / "pretrain").symlink_to(outside)
        for overwrite, said in ((False, "holds work"), (True, "is a link to a directory outside")):
            with pytest.raises(ArtifactError, match=said):
                run.stage("pretrain").begin(SETTINGS, source=None, overwrite=overwrite)
        (outside / "report.json").unlink()
        del before["report.json"]
        with pytest.raises(ArtifactError, match="is a link to a directory outside"):
            run.stage("pretrain").begin(SETTINGS, source=None)
        assert self.content(outside) == before

    def test_a_finished_stage_that_runs_share_is_used(self, run, tmp_path):
        shared = finish(RunDir(tmp_path / "other"))
        run.path.mkdir()
        (run.path / "pretrain").symlink_to(shared.path)
        assert run.stage("pretrain").begin(SETTINGS, source=None) is StageStatus.DONE

    def test_the_backup(self, run, outside):
        before = self.content(outside)
        stage = finish(run)
        (stage.path / ".former").symlink_to(outside)
        with pytest.raises(ArtifactError, match=r"\.former is a link.*delete it"):
            back_up(stage.path)
        restore_backup(stage.path)
        assert self.content(outside) == before and stage.finished


class TestArchives:
    def archive(self, file: Path, method: int = zipfile.ZIP_STORED) -> zipfile.ZipFile:
        return zipfile.ZipFile(file, "w", method)

    def test_one_that_unpacks_to_more_than_it_is(self, tmp_path):
        file = tmp_path / "bomb.pt"
        with self.archive(file, zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data/0", bytes(10_000_000))
        assert file.stat().st_size < 20_000
        with pytest.raises(DamageError, match=r"bomb\.pt is damaged"):
            read_torch(file)

    def test_one_that_lists_an_entry_often(self, tmp_path):
        file = tmp_path / "bomb.pt"
        with self.archive(file) as archive:
            archive.writestr("a/data/0", bytes(100_000))
            archive.filelist += archive.filelist * 50
            archive._didModify = True
        with pytest.raises(DamageError, match=r"bomb\.pt is damaged"):
            read_torch(file)

    def test_those_of_torch_are_read(self, tmp_path):
        for content in ({}, torch.zeros(3), {"a": torch.arange(10**6)}):
            torch.save(content, tmp_path / "fine.pt")
            read_torch(tmp_path / "fine.pt")
