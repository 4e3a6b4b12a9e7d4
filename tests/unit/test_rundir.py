"""A stage directory is compared, skipped, resumed or refused, and never half written."""

from __future__ import annotations

import json

import pytest

from prunekit.atomic_write import replacing
from prunekit.errors import ArtifactError
from prunekit.runs.report import Outcome, Report, flatten
from prunekit.runs.rundir import RunDir, StageStatus, identity_of, model_file

SETTINGS = {"seed": 0, "model": {"_target_": "x.Net", "widths": [1, 2]}}


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def begin(stage, settings=SETTINGS, source=None, **options):
    identity = {**settings, "source": identity_of(source)}
    return stage.begin(identity, source=source, **options)


def finish(run, name, settings=SETTINGS, source=None):
    stage = run.stage(name)
    assert begin(stage, settings, source) is StageStatus.NEW
    (stage.path / "model.pt").write_bytes(name.encode())
    stage.complete(Outcome({"top1": 1.0}, ("a note",)))
    return stage


def test_new_then_resumed_then_done(run):
    stage = run.stage("pretrain")
    assert begin(stage) is StageStatus.NEW
    stage.checkpoint.path.write_bytes(b"progress")
    assert begin(run.stage("pretrain")) is StageStatus.RESUME
    assert not stage.finished
    report = stage.complete(Outcome({"top1": 1.0}))
    again = run.stage("pretrain")
    assert begin(again) is StageStatus.DONE
    assert again.report() == Report.from_dict(report.to_dict())
    assert {file.name for file in stage.path.iterdir()} == {"settings.json", "report.json"}


def test_other_settings_are_refused_with_both_values(run):
    finish(run, "pretrain")
    other = {"seed": 1, "model": {"_target_": "x.Net", "widths": [1, 3]}}
    with pytest.raises(ArtifactError) as caught:
        begin(run.stage("pretrain"), other)
    for part in ("seed was 0, now 1", "model.widths was [1, 2], now [1, 3]", "overwrite=true"):
        assert part in str(caught.value)


def test_settings_count_only_once_there_is_work(run):
    begin(run.stage("pretrain"))
    other = {**SETTINGS, "seed": 1}
    assert begin(run.stage("pretrain"), other) is StageStatus.NEW
    assert json.loads((run.path / "pretrain/settings.json").read_text())["seed"] == 1


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


OTHER = {**SETTINGS, "seed": 1}


def test_overwritten_work_is_back_where_nothing_new_was_done(run):
    stage = finish(run, "pretrain")
    before = contents(stage.path)
    assert begin(stage, OTHER, overwrite=True) is StageStatus.NEW
    assert set(contents(stage.path)) == {"settings.json"}
    stage.abandon()
    assert contents(stage.path) == before and len(list(stage.path.iterdir())) == len(before)
    assert begin(stage, OTHER, overwrite=True) is StageStatus.NEW  # and then the process is killed
    assert begin(run.stage("pretrain")) is StageStatus.DONE
    assert contents(stage.path) == before


def test_overwritten_work_goes_when_the_new_is_done(run):
    stage = finish(run, "pretrain")
    assert begin(stage, OTHER, overwrite=True) is StageStatus.NEW
    stage.checkpoint.path.write_bytes(b"progress")
    stage.abandon()
    assert begin(stage, OTHER, overwrite=True) is StageStatus.RESUME, "the same work is continued"
    assert begin(stage, {**SETTINGS, "seed": 2}, overwrite=True) is StageStatus.NEW
    stage.complete(Outcome({"top1": 2.0}))
    assert {path.name for path in stage.path.iterdir()} == {"settings.json", "report.json"}
    assert begin(stage, {**SETTINGS, "seed": 2}, overwrite=True) is StageStatus.DONE


def test_a_source_is_known_by_its_content_not_by_its_place(run, tmp_path):
    source = finish(run, "pretrain").path / "model.pt"
    finish(run, "sparsify", source=source)
    moved = RunDir(run.path.rename(tmp_path / "moved"))
    source = moved.find_source("sparsify")
    assert begin(moved.stage("sparsify"), source=source) is StageStatus.DONE
    source.write_bytes(b"changed")
    with pytest.raises(ArtifactError, match=r"source was pretrain/model\.pt"):
        begin(moved.stage("sparsify"), source=source)


def test_the_nearest_finished_stage_is_the_source(run):
    with pytest.raises(ArtifactError, match="prune starts from a model"):
        run.find_source("prune")
    finish(run, "pretrain")
    assert run.find_source("prune") == run.path / "pretrain/model.pt"
    begin(run.stage("sparsify"))  # asked for, but nothing was done
    assert run.find_source("prune") == run.path / "pretrain/model.pt"
    run.stage("sparsify").checkpoint.path.write_bytes(b"progress")
    with pytest.raises(ArtifactError, match="unfinished; run sparsify again"):
        run.find_source("prune")


def test_leftovers_of_killed_processes_go(run):
    stage = finish(run, "pretrain")
    for name in (".model.pt.part1", "last.pt", "last-0-conv1.pt", "seconds"):
        (stage.path / name).write_bytes(b"{}")
    assert begin(stage) is StageStatus.DONE
    names = {file.name for file in stage.path.iterdir()}
    assert names == {"settings.json", "model.pt", "report.json"}


def test_one_process_at_a_time(run):
    refused = pytest.raises(ArtifactError, match="another process is working on")
    with run.lock(), refused, run.lock():
        pass
    with run.lock():
        pass


def test_model_file_of_a_file_a_stage_and_a_run(run, tmp_path):
    finish(run, "pretrain")
    stage = finish(run, "sparsify")
    file = stage.path / "model.pt"
    assert model_file(file) == model_file(stage.path) == model_file(run.path) == file
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(ArtifactError, match=f"source=.*{place}.*give a model.pt"):
            model_file(tmp_path / place)


def test_time_adds_up_over_interruptions(run):
    stage = run.stage("pretrain")
    begin(stage)
    (stage.path / "seconds").write_text('{"seconds": 100}')
    stage.note_time()
    assert 100 <= run.stage("pretrain").complete(Outcome({"top1": 1.0})).seconds < 110


def test_a_table_to_go_on_with_is_that_which_was_written(run, capsys):
    stage = run.stage("sensitivity")
    begin(stage)
    table = stage.path / "sensitivity.csv"
    table.write_text("a,b\n1,2\n")
    stage.note_time()
    assert begin(run.stage("sensitivity")) is StageStatus.RESUME and table.is_file()
    assert capsys.readouterr().err == ""
    table.write_text("a,b\n1,3\n")
    assert begin(run.stage("sensitivity")) is StageStatus.RESUME and not table.exists()
    assert "sensitivity.csv has changed and was set aside" in capsys.readouterr().err
    (stage.path / "seconds").write_bytes(b"\xff")
    assert begin(run.stage("sensitivity")) is StageStatus.RESUME
    assert "seconds is damaged and was set aside" in capsys.readouterr().err
    assert stage.complete(Outcome({"top1": 1.0})).seconds >= 0


def test_flat_keeps_lists_and_empty_mappings():
    node = {"a": {"b": {"c": (1, 2)}, "d": {}}, "e": None}
    assert flatten(node) == {"a.b.c": [1, 2], "a.d": {}, "e": None}


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    torch_says = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    for error, said in (
        (OSError(28, "No space left on device"), "No space left on device; free space"),
        (RuntimeError("no space\nmore"), "no space; free space"),
        (torch_says, "the disk or a quota may be full; free space"),
    ):
        line = f"could not be written: {said}"
        with pytest.raises(ArtifactError, match=line), replacing(file) as draft:
            draft.write_text("half")
            raise error
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]
    with replacing(file) as draft:
        draft.write_text("new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]
