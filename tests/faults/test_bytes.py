"""Bytes that changed are found before they are used, named, and set aside."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from cli.conftest import SMOKE, call
from faults.small import SMALL, refused, told

from prunekit.errors import DamageError
from prunekit.torch_io import read_torch, write_torch
from prunekit.training import Checkpoint
from scripts.faults.damage import files, flip, flip_digit, flip_letter, flip_weights, networks
from scripts.faults.results import plain


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory with one finished run, `outputs/whole`; copy it before a change."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        wanted = "pipeline=[pretrain,sparsify,sensitivity,prune,finetune,measure]"
        images = ("sensitivity.shares=[0.5]", "sensitivity.timing=null")
        assert call("run", *SMOKE, *SMALL, wanted, *images, "name=whole") == 0
    return place


@pytest.fixture
def run(cli, finished, tmp_path):
    """Call it for the copy of the finished run that lies in `tmp_path`."""
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    wanted = "pipeline=[pretrain,sparsify,sensitivity,prune,finetune,measure]"
    images = ("sensitivity.shares=[0.5]", "sensitivity.timing=null")
    return lambda *more: cli("run", *SMALL, wanted, *images, "name=whole", *more)


STATE = {
    "numbers": torch.arange(3000.0).reshape(30, 100),
    "more": [{"epoch": 1, "loss": 0.25}, torch.arange(7)],
    "text": "as it was",
}


class TestTorch:
    """Archives carry checksums, which torch does not look at."""

    def read(self, file: Path) -> object:
        try:
            return plain(read_torch(file))
        except DamageError:
            return None

    def test_no_flipped_bit_anywhere_gives_something_else(self, tmp_path):
        file = tmp_path / "file.pt"
        write_torch(file, STATE)
        content, whole = file.read_bytes(), self.read(file)
        assert whole == plain(STATE)
        draw, found, unchecked = random.Random(0), 0, 0
        for _ in range(400):
            place, bit = draw.randrange(len(content)), draw.randrange(8)
            flip(file, place, bit)
            seen = self.read(file)
            assert seen in (None, whole), f"bit {bit} of byte {place}"
            found += seen is None
            unchecked += plain(torch.load(file, weights_only=True)) != whole if seen else 0
            file.write_bytes(content)
        assert unchecked == 0 and found > 200, "most bytes are numbers"

    def test_an_entry_that_says_it_is_a_directory(self, tmp_path):
        """No checksum is on these attributes, and torch reads nothing of such an entry."""
        file = tmp_path / "file.pt"
        write_torch(file, STATE)
        content = file.read_bytes()
        places = [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]
        assert len(places) > 5
        for place in places:
            flip(file, place + 38, bit=4)
            assert self.read(file) is None
            file.write_bytes(content)

    def test_what_is_no_archive_is_read_as_it_was(self, tmp_path):
        file = tmp_path / "old.pth"
        torch.save(STATE, file, _use_new_zipfile_serialization=False)
        assert self.read(file) == plain(STATE)


class TestResuming:
    """A checkpoint of training."""

    LINE = ("pretrain", *SMALL, "schedule.pretrain.epochs=3", "name=a")

    def interrupted(self, cli, monkeypatch) -> Path:
        """Stopped after the second epoch."""
        save = Checkpoint.save

        def stop(kept, state):
            save(kept, state)
            if len(state["history"]) == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", stop)
            assert cli(*self.LINE).code == 130
        return Path("outputs/a/pretrain/last.pt")

    def test_a_flipped_bit(self, cli, monkeypatch):
        assert cli(*self.LINE, "name=whole").code == 0
        last = self.interrupted(cli, monkeypatch)
        flip_weights(last)
        damaged = last.read_bytes()
        found = cli(*self.LINE)
        line = "outputs/a/pretrain/last.pt is damaged and was set aside as last.pt.damaged; "
        assert f"{line}training starts anew" in "".join(told(found))
        assert Path("outputs/a/pretrain/last.pt.damaged").read_bytes() == damaged
        assert not last.exists()
        assert networks(Path("outputs/a")) == networks(Path("outputs/whole"))
        report = json.loads(Path("outputs/a/pretrain/report.json").read_text())
        assert any("training starts anew" in note for note in report["notes"])

    def test_that_of_another_run(self, cli, monkeypatch):
        """Of the same network: nothing in it but its identity says that it is another one's."""
        last = self.interrupted(cli, monkeypatch)
        assert cli(*self.LINE, "name=whole", "seed=1").code == 0
        other = Path("outputs/b/pretrain")
        shutil.copytree("outputs/a/pretrain", other)
        settings = json.loads((other / "settings.json").read_text()) | {"seed": 1}
        (other / "settings.json").write_text(json.dumps(settings))
        found = cli(*self.LINE, "name=b", "seed=1")
        assert "last.pt belongs to another run and was set aside" in "".join(told(found))
        assert (other / "last.pt.foreign").read_bytes() == last.read_bytes()
        assert networks(other) == networks(Path("outputs/whole/pretrain"))


class TestFinished:
    """Stages that are finished before are looked at before they are taken for that."""

    def test_nothing_is_said_of_what_is_as_it_was(self, run):
        before = files(Path("outputs"))
        found = run()
        assert told(found) == [] and found.out.count("finished before") == 6
        assert files(Path("outputs")) == before

    def test_every_file_that_decides(self, run):
        """All of them at once, each in its own stage; everything ends as it was."""
        place, before = Path("outputs/whole"), files(Path("outputs/whole"))
        for name in ("pretrain/model.pt", "sparsify/scores.pt", "finetune/model.pt"):
            flip_weights(place / name)
        for name in ("prune/plan.json", "sensitivity/sensitivity.csv", "measure/layers.csv"):
            flip_letter(place / name)
        broken = files(place)
        lines = told(run())
        for name in before:
            if before[name] == broken[name]:
                continue
            (line,) = (line for line in lines if line.startswith(f"outputs/whole/{name} "))
            stage, file = name.split("/")
            assert line.endswith(f"set aside as {file}.damaged; {stage} is computed anew")
            assert (place / f"{name}.damaged").read_bytes() == broken[name]
        assert sum(line.startswith("outputs/") for line in lines) == 6
        after = files(place)
        timed = ("report.json", "comparison.csv", "layers.csv")
        for name in before:
            assert name.endswith(timed) or after[name] == before[name], name
        assert told(run()) == []

    def test_what_a_person_edited_is_named_and_used(self, run):
        place = Path("outputs/whole")
        edited = ("pretrain/metrics.csv", "prune/plan.json", "measure/comparison.csv")
        for name in (*edited, "sparsify/report.json", "finetune/settings.json"):
            flip_digit(place / name)
        flip_letter(place / "sparsify/metrics.csv")  # nothing is made of it
        before = files(place)
        found = run()
        lines = told(found)
        assert found.out.count("finished before") == 6 and files(place) == before
        named = {line.split()[0].removeprefix("outputs/whole/") for line in lines}
        assert named == {
            *(*edited, "sparsify/report.json", "finetune/settings.json"),
            "sparsify/metrics.csv",
        }
        assert all(" was changed since " in line for line in lines)

    def test_a_report_names_them(self, run, cli):
        flip_digit(Path("outputs/whole/finetune/metrics.csv"))
        flip_digit(Path("outputs/whole/prune/report.json"))
        flip_weights(Path("outputs/whole/sparsify/scores.pt"))
        flip_weights(Path("outputs/whole/prune/model.pt"))
        lines = told(cli("report"))
        for stage, file in (
            *(("finetune", "metrics.csv"), ("prune", "report.json"), ("sparsify", "scores.pt")),
        ):
            assert f"changed since outputs/whole/{stage} was finished: {file}" in lines
        assert any("prune/model.pt is damaged" in line for line in lines), "it was to be drawn"


class TestSources:
    """What another run starts from."""

    @pytest.mark.usefixtures("run")
    def test_a_model_or_its_scores(self, cli):
        place = Path("outputs/whole/sparsify")
        line = ("prune", *SMALL, "source=outputs/whole/sparsify", "name=b")
        for name in ("model.pt", "scores.pt"):
            whole = (place / name).read_bytes()
            flip_weights(place / name)
            before = files(Path("outputs"))
            said = refused(cli(*line))
            assert f"sparsify/{name} is damaged" in said and "run" in said
            assert files(Path("outputs")) == before, "nothing is made, nothing moved"
            (place / name).write_bytes(whole)
        flip(place / "model.pt", 60)  # where no checksum of its own is
        assert "model.pt is damaged" in refused(cli(*line))

    def test_the_nearest_stage_of_the_same_run(self, run, cli):
        flip_weights(Path("outputs/whole/prune/model.pt"))
        shutil.rmtree("outputs/whole/finetune")
        said = refused(cli("finetune", *SMALL, "name=whole"))
        assert "outputs/whole/prune/model.pt is damaged" in said
        assert "run that stage again" in said

    def test_a_report_beside_it_that_says_nothing(self, run, cli):
        """The model file carries checksums of its own, so it is used, and a note says so."""
        Path("outputs/whole/sparsify/report.json").write_text("{")
        found = cli("prune", *SMALL, "source=outputs/whole/sparsify", "name=b")
        assert "cannot be checked" in "".join(told(found))

    def test_weights(self, run, cli):
        given = shutil.copy("outputs/whole/pretrain/model.pt", "given.pt")
        flip_weights(Path(given))
        before = files(Path())
        assert "given.pt is damaged" in refused(cli("pretrain", *SMALL, "weights=given.pt"))
        assert files(Path()) == before


class TestPool:
    """Stages that runs of sweeps share."""

    LINE = ("run", "-m", *SMALL, "pipeline=[pretrain,sparsify]", "name=s", "solver=proximal")

    @pytest.fixture
    def swept(self, cli, tmp_path):
        assert cli(*self.LINE, "regularizer.lam=0.1,0.2").code == 0
        (entry,) = (tmp_path / "outputs/.shared").glob("pretrain-*/pretrain")
        return entry

    def logs(self) -> str:
        return "".join(file.read_text() for file in Path("outputs/s").rglob("log.txt"))

    @pytest.mark.parametrize("name", ["model.pt", "metrics.csv", "report.json"])
    def test_what_it_hands_out_is_whole(self, cli, swept, name):
        """A csv that was edited in one run is edited in all that have links to it."""
        before, models = files(swept), networks(Path("outputs/s"))
        first = next(Path("outputs/s").glob("*0.1*/pretrain"))
        linked = name != "report.json"  # every run has a report of its own
        damage = flip_weights if name == "model.pt" else flip_digit
        damage((first if linked else swept) / name)
        assert files(swept)[name] != before[name], "one file under two names"
        assert cli(*self.LINE, "regularizer.lam=0.3").code == 0
        assert f"{name} of outputs/.shared/{swept.parent.name}/pretrain" in self.logs()
        assert files(swept.with_name("pretrain.damaged"))[name] != before[name]
        new = next(Path("outputs/s").glob("*0.3*/pretrain"))
        assert files(new)["model.pt"] == before["model.pt"] == files(swept)["model.pt"]
        assert cli(*self.LINE, "regularizer.lam=0.1,0.2").code == 0
        after = networks(Path("outputs/s"))
        assert {key: after[key] for key in models} == models
        if name == "model.pt":
            assert self.logs().count("model.pt is damaged and was set aside") == 2, "both runs"
        elif linked:
            assert self.logs().count("metrics.csv was changed since pretrain") == 2
