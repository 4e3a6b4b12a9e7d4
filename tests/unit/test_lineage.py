"""The dense network behind a model file is found by content, wherever the runs lie together."""

from __future__ import annotations

import json
import shutil

import pytest

from prunekit.errors import ArtifactError
from prunekit.runs.provenance import dense_file
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import RunDir, identity_of


def begin(stage, source=None, teacher=None, seed=0, **options):
    identity = {"seed": seed, "source": identity_of(source)}
    identity |= {} if teacher is None else {"teacher": identity_of(teacher)}
    return stage.begin(identity, source=source, teacher=teacher, **options)


def finish(run, name, source=None):
    """A stage whose model file is of its own content; returns the file."""
    stage = run.stage(name)
    begin(stage, source)
    file = stage.path / "model.pt"
    file.write_bytes(f"{run.path.name}/{name}".encode())
    stage.complete(Outcome({"top1": 1.0}))
    return file


def chain(run, *names, source=None):
    files = []
    for name in names:
        files.append(finish(run, name, files[-1] if files else source))
    return files


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "runs/one")


def test_stages_of_one_run_lead_to_its_first(run):
    files = chain(run, "pretrain", "sparsify", "prune", "finetune")
    assert [dense_file(file) for file in files] == [files[0]] * 4


def test_sources_in_other_runs_are_followed(run, tmp_path):
    """A run that starts from the end of another, which starts from a third."""
    dense = finish(run, "pretrain")
    second = chain(RunDir(tmp_path / "runs/deep/two"), "sparsify", "prune", source=dense)
    third = chain(RunDir(tmp_path / "elsewhere/three"), "prune", source=second[-1])
    assert dense_file(third[-1]).samefile(dense)


def test_a_file_that_no_stage_made_is_the_end(run, tmp_path):
    given = tmp_path / "given.pt"
    given.write_bytes(b"given")
    files = chain(run, "sparsify", "prune", source=given)
    assert dense_file(files[-1]) == dense_file(given) == given


def test_the_name_of_the_stage_alone_does_not_decide(run, tmp_path):
    """This run has a pretrain of its own, but was pruned from another one."""
    finish(run, "pretrain")
    other = finish(RunDir(tmp_path / "runs/two"), "pretrain")
    assert dense_file(finish(run, "prune", other)).samefile(other)


def test_runs_that_are_moved_together_keep_their_chain(run, tmp_path):
    dense = finish(run, "pretrain")
    chain(RunDir(tmp_path / "runs/two"), "prune", source=dense)
    (tmp_path / "runs").rename(tmp_path / "moved")
    found = dense_file(tmp_path / "moved/two/prune/model.pt")
    assert found.samefile(tmp_path / "moved/one/pretrain/model.pt")


def test_directories_that_are_links_are_followed(run, tmp_path):
    dense = finish(run, "pretrain")
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    file = finish(RunDir(tmp_path / "link/two"), "prune", dense)
    assert dense_file(file).samefile(dense)


def test_reports_that_do_not_say_where_the_source_lay(run):
    """They are older; the source is in the same run then, or it is not found."""
    files = chain(run, "pretrain", "prune")
    report = files[1].parent / "report.json"
    values = json.loads(report.read_text())
    assert values.pop("origin") == "../pretrain/model.pt"
    report.write_text(json.dumps(values))
    assert dense_file(files[1]).samefile(files[0])


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_lost_source_is_named_with_the_way_out(run, change):
    files = chain(run, "pretrain", "sparsify", "prune")
    files[1].unlink() if change == "gone" else files[1].write_bytes(b"other")
    with pytest.raises(ArtifactError) as caught:
        dense_file(files[2])
    for part in ("prune was made from sparsify/model.pt (", "gone or has changed", "distill.teach"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_was_built_within_a_stage_has_no_file(run, tmp_path):
    file = finish(run, "prune")
    later = finish(RunDir(tmp_path / "runs/two"), "finetune", file)
    with pytest.raises(
        ArtifactError, match=r"prune/model\.pt was built in prune and no file keeps"
    ):
        dense_file(later)


def test_a_teacher_is_part_of_what_a_stage_is(run, tmp_path):
    dense, narrow = chain(run, "pretrain", "prune")
    stage = run.stage("finetune")
    begin(stage, narrow, dense)
    assert stage.teacher == dense
    (stage.path / "last.pt").write_bytes(b"progress")
    moved = shutil.copytree(dense.parent, tmp_path / "copy/pretrain") / "model.pt"
    begin(run.stage("finetune"), narrow, moved)  # the same content
    with pytest.raises(ArtifactError, match=r"teacher was pretrain/model\.pt .*, now None"):
        begin(run.stage("finetune"), narrow)
    moved.write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"teacher was pretrain/model\.pt .*, now pretrain/mod"):
        begin(run.stage("finetune"), narrow, moved)


def test_a_teacher_in_the_stage_that_it_teaches_survives_overwrite(run):
    dense, _, tuned = chain(run, "pretrain", "prune", "finetune")
    with pytest.raises(ArtifactError, match=r"distill\.teacher=.* lies in the directory"):
        begin(run.stage("finetune"), dense, tuned, seed=1, overwrite=True)
    assert tuned.is_file()
