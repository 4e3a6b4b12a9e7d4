"""Checkpoints are whole or not there, and foreign ones are refused with a way out."""

import errno
import os

import pytest
import torch

from prunekit.errors import ArtifactError
from prunekit.training.checkpoint import load_checkpoint, save_checkpoint

STATE = {"done": False, "history": [{"epoch": 1}], "model": {}, "optimizer": {}, "solver": {}}


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "deeper" / "last.pt"
    state = STATE | {"model": {"weight": torch.arange(3.0)}}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path, "cpu")
    assert loaded["history"] == [{"epoch": 1}]
    assert torch.equal(loaded["model"]["weight"], torch.arange(3.0))


def test_strides_survive(tmp_path):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "last.pt", STATE | {"model": {"weight": weight}})
    found = load_checkpoint(tmp_path / "last.pt", "cpu")["model"]["weight"]
    assert found.stride() == weight.stride()


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"last.pt could not be written: No space left"):
        save_checkpoint(path, STATE | {"done": True})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"last.pt is damaged or no file of torch; delete it"):
        load_checkpoint(path, "cpu")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2)])
def test_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "last.pt"
    torch.save(content, path)
    with pytest.raises(ArtifactError, match=r"it is no training checkpoint; delete it to start"):
        load_checkpoint(path, "cpu")


def test_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"done": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(ArtifactError, match=r"is not loaded, since it could run code"):
        load_checkpoint(path, "cpu")


def test_folder_in_the_way_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"is no file"):
        load_checkpoint(tmp_path, "cpu")
