"""Files that are complete or absent, in folders that are still there."""

from __future__ import annotations

import shutil

import pytest

from prunekit.atomic_write import guarded, replacing
from prunekit.errors import ArtifactError


def test_a_folder_that_is_lost_while_a_file_is_written_is_the_reason(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def check() -> None:
        if not folder.exists():
            raise ArtifactError("the folder was removed")

    lost = pytest.raises(ArtifactError, match="the folder was removed")
    with guarded(folder, check), lost, replacing(folder / "model.pt") as draft:
        shutil.rmtree(folder)
        draft.write_bytes(b"weights")
    assert not folder.exists()


def test_another_failure_names_the_file_and_keeps_the_old_one(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"old")
    refused = pytest.raises(ArtifactError, match=r"model\.pt could not be written: no idea; free")
    with refused, replacing(file) as draft:
        draft.write_bytes(b"new")
        raise RuntimeError("no idea\nwhy")
    assert file.read_bytes() == b"old" and [*tmp_path.iterdir()] == [file]
