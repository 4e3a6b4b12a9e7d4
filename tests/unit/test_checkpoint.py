"""Checkpoints are whole or not there, and are continued by the run that wrote them only."""

import errno
import os

import pytest
import torch

from prunekit.errors import ArtifactError
from prunekit.training import Checkpoint

STATE = {
    **{"done": False, "history": [{"epoch": 1}], "model": {}, "optimizer": {}, "solver": {}},
    **{"scaler": {}, "progress": None},
}


@pytest.fixture
def kept(tmp_path):
    return Checkpoint(tmp_path / "last.pt", "this run")


def test_what_is_saved_comes_back(tmp_path):
    kept = Checkpoint(tmp_path / "deeper" / "last.pt", "this run")
    assert kept.load("cpu") is None
    kept.save(STATE | {"model": {"weight": torch.arange(3.0)}})
    loaded = kept.load("cpu")
    assert loaded.keys() == STATE.keys() and loaded["history"] == [{"epoch": 1}]
    assert torch.equal(loaded["model"]["weight"], torch.arange(3.0))


def test_strides_survive(kept):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    kept.save(STATE | {"model": {"weight": weight}})
    assert kept.load("cpu")["model"]["weight"].stride() == weight.stride()


def test_full_disk_leaves_the_old_file(kept, monkeypatch):
    kept.save(STATE)
    before = kept.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"last.pt could not be written: No space left"):
        kept.save(STATE | {"done": True})
    assert kept.path.read_bytes() == before
    assert list(kept.path.parent.iterdir()) == [kept.path]


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_truncated_file_is_set_aside(kept, caplog, keep):
    kept.save(STATE)
    content = kept.path.read_bytes()[:keep]
    kept.path.write_bytes(content)
    assert kept.load("cpu") is None
    (line,) = caplog.messages
    place = os.path.relpath(kept.path)
    assert line == f"{place} is damaged and was set aside as last.pt.damaged; training starts anew"
    assert kept.path.with_name("last.pt.damaged").read_bytes() == content
    assert not kept.path.exists()


def test_that_of_a_version_without_progress_within_epochs_is_continued(kept):
    kept.save({key: STATE[key] for key in STATE.keys() - {"progress"}})
    assert kept.load("cpu") == STATE


@pytest.mark.parametrize(
    "content",
    [
        *({"state_dict": {}}, [1, 2], torch.zeros(2)),
        *(STATE | {"identity": "this run", "history": odd} for odd in (3, [3], [{4: 5}])),
        STATE | {"identity": "this run", "done": 5},
    ],
)
def test_foreign_file_is_set_aside(kept, caplog, content):
    torch.save(content, kept.path)
    assert kept.load("cpu") is None
    assert "is no checkpoint of training and was set aside as last.pt.foreign" in caplog.text


def test_that_of_another_run_or_phase_is_set_aside(kept, caplog):
    """And none that was set aside before is lost."""
    other = Checkpoint(kept.path, "another run")
    for number, ending in enumerate(("foreign", "foreign-2", "foreign-3")):
        other.save(STATE | {"history": [{"epoch": number}]})
        assert kept.load("cpu") is None
        assert f"belongs to another run and was set aside as last.pt.{ending}" in caplog.text
    one, two = kept.phase("0-conv1"), kept.phase("1-conv2")
    assert [phase.path.name for phase in (one, two)] == ["last-0-conv1.pt", "last-1-conv2.pt"]
    one.save(STATE)
    one.path.rename(two.path)
    assert two.load("cpu") is None
    assert len(list(kept.path.parent.iterdir())) == 4


def test_that_of_an_earlier_version_is_refused_and_stays(kept):
    """It does not say what it belongs to."""
    torch.save({key: STATE[key] for key in STATE.keys() - {"scaler", "progress"}}, kept.path)
    before = kept.path.read_bytes()
    with pytest.raises(ArtifactError, match=r"last.pt was written by an earlier .*; delete it to"):
        kept.load("cpu")
    assert kept.path.read_bytes() == before


def test_file_that_would_run_code_is_refused(kept):
    torch.save({"done": torch.nn.Linear(1, 1)}, kept.path)
    with pytest.raises(ArtifactError, match=r"is not loaded, since it could run code"):
        kept.load("cpu")


def test_folder_in_the_way_is_named(kept):
    kept.path.mkdir()
    with pytest.raises(ArtifactError, match=r"is no file"):
        kept.load("cpu")
