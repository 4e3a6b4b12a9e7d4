"""Other images make another run; the same images, wherever they lie, the same one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest
from faults.sets import MNIST, identity_of, reports
from toys import Brightest

from prunekit.data import CUB200, Digits, ImageFolder, ShapeOnly, Synthetic, TinyImageNet
from prunekit.data import files as files_module
from prunekit.data.files import IMAGES, identity_of_files
from prunekit.errors import DataError
from prunekit.reporting.collect import collect
from prunekit.stages.identity import StageInputs
from scripts.faults.sets import mnist

PRETRAIN = ("pretrain", "name=a", *MNIST)
DAY = 24 * 3600


@pytest.fixture(autouse=True)
def no_memory(tmp_path_factory, monkeypatch):
    """An empty cache, on the disk and in this process."""
    place = tmp_path_factory.mktemp("cache") / "images.json"
    monkeypatch.setattr(files_module, "_cache_file", lambda: place)
    monkeypatch.setattr(files_module, "_digests", {})
    return place


def test_the_memory_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files_module._cache_file() == tmp_path / "prunekit" / "images.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files_module._cache_file() == tmp_path / ".cache" / "prunekit" / "images.json"


@pytest.fixture
def roots(tmp_path):
    return mnist(tmp_path / "one", 1), mnist(tmp_path / "two", 2)


def test_a_finished_run_is_another_with_other_images(cli, roots):
    assert cli(*PRETRAIN, "dataset.root=one").code == 0
    before = reports(Path("outputs"))
    settings = json.loads(Path("outputs/a/pretrain/settings.json").read_text())
    assert settings["images"]["files"] == 4 and "root" not in settings["dataset"]
    other = cli(*PRETRAIN, "dataset.root=two")
    assert other.code == 1 and "images.content was sha256:" in other.err
    assert "images.bytes" not in other.err and other.err.count("\n") == 1
    assert reports(Path("outputs")) == before
    missing = cli(*PRETRAIN, "dataset.root=three")
    assert missing.code == 1 and "set dataset.root=... to the folder that holds it" in missing.err
    assert reports(Path("outputs")) == before


def test_the_same_images_and_a_moved_run_are_the_same_run(cli, roots):
    assert cli(*PRETRAIN, "dataset.root=one").code == 0
    before = reports(Path("outputs/a"))
    shutil.copytree("one", "elsewhere/copy")
    shutil.rmtree("one")
    Path("outputs/a").rename("outputs/b")
    again = cli(*PRETRAIN, "name=b", "dataset.root=elsewhere/copy")
    assert again.code == 0 and "finished before" in again.out, again.err
    assert reports(Path("outputs/b")) == before


def test_an_interrupted_run_goes_on_with_its_images_alone(cli, roots, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunekit.stages.pretrain.save_model", stopped)
        assert cli(*PRETRAIN, "dataset.root=one").code == 130
    checkpoint = Path("outputs/a/pretrain/last.pt")
    before = checkpoint.read_bytes()
    other = cli(*PRETRAIN, "dataset.root=two")
    assert other.code == 1 and "images.content was sha256:" in other.err
    assert checkpoint.read_bytes() == before and not reports(Path("outputs"))
    Path("one").rename("moved")
    assert cli(*PRETRAIN, "dataset.root=moved").code == 0
    assert reports(Path("outputs")) and not checkpoint.exists()


def test_a_sweep_over_two_roots_is_two_runs(cli, roots, tmp_path):
    shutil.copytree("one", tmp_path / "deep" / "one")
    line = ("pretrain", "-m", "name=s", *MNIST)
    found = cli(*line, "dataset.root=one,two,deep/one")
    assert found.code == 0, found.err
    runs = {place.name: place for place in (tmp_path / "outputs/s").iterdir() if place.is_dir()}
    ends = {name.partition("dataset.root=")[2].partition(",")[0]: name for name in runs}
    assert {*ends} == {"one", "two", "deep-one"}
    known = {key: report(runs[name]) for key, name in ends.items()}
    assert known["one"]["metrics"]["loss"] != known["two"]["metrics"]["loss"]
    assert known["one"]["settings"] == known["deep-one"]["settings"]
    assert len([*tmp_path.glob("outputs/.shared/pretrain-*")]) == 2
    rows = collect([tmp_path / "outputs/s"])
    assert rows["setting"].nunique() == 2 and rows["data"].nunique() == 2
    again = cli(*line, "dataset.root=one,two,deep/one")
    assert again.code == 0 and len([*tmp_path.glob("outputs/s/*/")]) == 3
    assert all("finished before" in (run / "log.txt").read_text() for run in runs.values())


def report(run: Path) -> dict:
    return json.loads((run / "pretrain" / "report.json").read_text())


def test_a_root_that_is_no_part_of_the_sweep_is_no_part_of_a_name(cli, roots, tmp_path):
    assert cli("pretrain", "-m", "name=s", *MNIST, "dataset.root=one", "seed=1").code == 0
    assert not any("dataset.root" in place.name for place in (tmp_path / "outputs/s").iterdir())


def test_of_images_that_nobody_knows_one_is_told(cli, tmp_path):
    """A data set of the user's that draws its images and gives no version."""
    target = "dataset._target_=toys.Brightest"
    drop = [f"~dataset.{key}" for key in ("classes", "channels", "image_size", "train", "test")]
    drop += [f"~dataset.{key}" for key in ("noise", "data_seed", "split_seed", "crop", "flip")]
    net = ("model=custom", "model._target_=toys.Reader", "~dataset.name")
    line = ("run", "pipeline=[pretrain,prune]", "name=a", "criterion=l1_norm", *net)
    found = cli(*line, "selection=per_layer", target, *drop, "dataset.val=60")
    assert found.code == 0, found.err
    assert found.err.count("the images of toys.Brightest are not known") == 1
    settings = json.loads(Path("outputs/a/prune/settings.json").read_text())
    assert settings["images"] == "not known"


def files(root: Path, count: int = 3) -> dict[str, Path]:
    root.mkdir(exist_ok=True)
    found = {f"{index}.png": root / f"{index}.png" for index in range(count)}
    for name, file in found.items():
        file.write_bytes(name.encode() * 100)
    return found


def test_files_are_names_sizes_and_content(tmp_path):
    here = files(tmp_path / "here")
    first = identity_of_files(here)
    assert first["files"] == 3 and first["bytes"] == 3 * 500
    assert identity_of_files(files(tmp_path / "there")) == first
    here["1.png"].write_bytes(b"1.pnk" * 100)
    changed = identity_of_files(here)
    assert changed["bytes"] == first["bytes"] and changed["content"] != first["content"]
    renamed = {f"x{name}": file for name, file in files(tmp_path / "here").items()}
    assert identity_of_files(renamed)["content"] != first["content"]
    with pytest.raises(DataError, match=r"0\.png cannot be read: No such file"):
        identity_of_files({"0.png": tmp_path / "0.png"})


def test_of_large_sets_a_sample_is_read(tmp_path, monkeypatch):
    """Always the same one: 50,000 files cost no more than their names and sizes."""
    monkeypatch.setattr(files_module, "_WHOLE", (1, 10))
    monkeypatch.setattr(files_module, "_SAMPLED", 2)
    here = files(tmp_path / "here", 9)
    first = identity_of_files(here)
    assert identity_of_files(files(tmp_path / "there", 9)) == first
    seen = []
    for name, file in here.items():
        file.write_bytes(b"x" * 500)
        seen += [name] if identity_of_files(here)["content"] != first["content"] else []
        file.write_bytes(name.encode() * 100)
    assert len(seen) == 2
    here["0.png"].write_bytes(b"x" * 501)  # a size is seen of every file
    assert identity_of_files(here)["content"] != first["content"]


def test_of_a_large_file_both_ends_and_blocks_between_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "_WHOLE", (1, 10))
    monkeypatch.setattr(files_module, "_SAMPLED_BYTES", 1000)
    monkeypatch.setattr(files_module, "_BLOCK", 100)
    file = tmp_path / "large"
    content = bytes(10_000)

    def digest(at: int) -> str:
        file.write_bytes(content[:at] + b"x" + content[at + 1 :])
        return identity_of_files({"large": file})["content"]

    ends = {digest(0), digest(99), digest(9_950), digest(9_999)}
    file.write_bytes(content)
    plain = identity_of_files({"large": file})["content"]
    assert len(ends) == 4 and plain not in ends
    assert 5 <= sum(digest(100 * block) != plain for block in range(1, 99)) <= 8


def test_a_digest_is_remembered_until_a_file_changes(tmp_path, monkeypatch, no_memory):
    here = files(tmp_path / "here")
    read = []
    whole = files_module._content
    monkeypatch.setattr(files_module, "_content", lambda *a: read.append(1) or whole(*a))
    first = identity_of_files(here)
    assert identity_of_files(here) == first
    assert len(read) == 2 and not no_memory.exists(), "files this young could change unnoticed"
    now = files_module.time.time_ns
    monkeypatch.setattr(files_module.time, "time_ns", lambda: now() + DAY * 10**9)
    assert identity_of_files(here) == identity_of_files(here) == first
    assert len(read) == 3 and len(json.loads(no_memory.read_text())) == 1
    monkeypatch.setattr(files_module, "_digests", {})
    assert identity_of_files(here) == first and len(read) == 3, "the next process knows it too"
    stat = here["1.png"].stat()
    here["1.png"].write_bytes(b"1.pnk" * 100)
    os.utime(here["1.png"], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as copies of backups do
    assert identity_of_files(here)["content"] != first["content"] and len(read) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "unwritable"])
def test_a_damaged_memory_is_no_memory(tmp_path, monkeypatch, no_memory, damage):
    here = files(tmp_path / "here")
    first = identity_of_files(here)
    now = files_module.time.time_ns
    monkeypatch.setattr(files_module.time, "time_ns", lambda: now() + DAY * 10**9)
    if damage == "unwritable":
        no_memory.mkdir(parents=True)
    else:
        identity_of_files(here)
        text = no_memory.read_text()
        digest = first["content"].removeprefix("sha256:")
        worse = {
            "flipped": text.replace(digest, ("0" if digest[0] != "0" else "1") + digest[1:]),
            "cut": text[: len(text) // 2],
            "foreign": "[1, 2]",
        }
        assert worse[damage] != text
        no_memory.write_text(worse[damage])
    monkeypatch.setattr(files_module, "_digests", {})
    assert identity_of_files(here) == first


def test_images_are_what_torchvision_takes_for_one():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert IMAGES == IMG_EXTENSIONS


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1 a/0.jpg" if name.endswith("txt") else name.encode())


def test_folders_of_images(tmp_path):
    touch(tmp_path, "train/a/0.jpg", "train/b/0.JPEG", "val/a/0.png", "train/a/notes.md")
    dataset = ImageFolder(root=str(tmp_path))
    assert {*dataset.files()} == {"train/a/0.jpg", "train/b/0.JPEG", "val/a/0.png"}
    first = dataset.identity()
    touch(tmp_path, "train/.thumbs.db", "train/a/more.txt")
    assert replace(dataset, image_size=8).identity() == first
    (tmp_path / "train/a/0.jpg").rename(tmp_path / "train/b/0.jpg")  # another label
    assert dataset.identity() != first
    with pytest.raises(DataError, match=r"no folder .*test/ or val/"):
        ImageFolder(root=str(tmp_path / "val")).identity()


@pytest.mark.parametrize(
    ("kind", "lists"),
    [
        (CUB200, ("images.txt", "train_test_split.txt")),
        (TinyImageNet, ("wnids.txt", "val/val_annotations.txt")),
    ],
)
def test_lists_of_images_count_as_images_do(tmp_path, kind, lists):
    dataset = kind(root=str(tmp_path))
    with pytest.raises(DataError, match=r"set dataset\.root="):
        dataset.identity()
    names = ("images/a/0.jpg", "train/a/0.jpg", "val/images/0.jpg")
    touch(tmp_path, *lists, *names[:1] if kind is CUB200 else names[1:])
    first = dataset.identity()
    for name in lists:
        touch(tmp_path, name)
        assert dataset.identity() == first
        (tmp_path / name).write_text("1 b/0.jpg")
        assert dataset.identity() != first
        touch(tmp_path, name)


def test_who_draws_other_images_raises_the_version():
    """These are of version 1."""
    images = Synthetic(train=3, test=2).read().test.images
    assert Synthetic.version == "1"
    assert images[1, 0, 20, 5:8].tolist() == pytest.approx(DRAWN, abs=1e-3)


DRAWN = [0.4291, 1.2245, 0.7612]


@dataclass(frozen=True)
class Own(Brightest):
    """A data set of the user's that reads what is in `root`."""

    root: str = "."


class Versioned(Own):
    version = "2"


class Read(Own):
    def files(self):
        return {"all.csv": Path(self.root) / "all.csv"}


def test_a_place_counts_as_long_as_its_images_are_not_known(tmp_path):
    """Two roots of a set that says nothing of its images, or only a version, are two runs."""
    for name in ("one", "two"):
        touch(tmp_path / name, "all.csv")
    known = {}
    for kind in (Own, Versioned, Read):
        target = f"{__name__}.{kind.__name__}"
        roots = [{"_target_": target, "root": str(tmp_path / name)} for name in ("one", "two")]
        start = StageInputs(None, None, tmp_path)
        with patch("prunekit.build.locate", return_value=kind):
            known[kind] = [identity_of({"dataset": root}, start) for root in roots]
    assert [known[kind][0] == known[kind][1] for kind in known] == [False, False, True]
    images = [known[kind][0]["images"] for kind in known]
    assert images[:2] == ["not known", {"version": "2"}] and images[2]["files"] == 1


def test_sets_without_files_of_the_users():
    assert Digits().identity()["files"] == 1
    assert Synthetic().identity() == {"version": "1"} and ShapeOnly().identity() == {}
