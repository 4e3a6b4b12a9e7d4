"""Every experiment at full width: built as published, one step of each of its stages."""

from __future__ import annotations

import shutil

import pytest
import yaml

from prunekit.config import config_dir, groups

BARE = {"slimming": "vgg16", "hinge": "resnet20", "sglp": "resnet20", "stlp": "resnet20"}
CIFAR = ("dataset.channels=3", "dataset.image_size=32")
ONE_STEP = (  # two images to train on, in batches of two; the published rates and decays stay
    *("dataset=synthetic", "dataset.train=4", "dataset.val=2", "dataset.test=2"),
    *(
        f"schedule.{phase}.{key}"
        for phase in ("pretrain", "sparsify", "finetune", "between")
        for key in ("epochs=1", "batch=2")
    ),
    *("diagnose=false", "latency.batch=1", "latency.runs=5", "latency.warmup=0"),
)


def content(name):
    """The keys of an experiment file on those of the ones that it builds on."""
    found = yaml.safe_load((config_dir() / f"experiment/{name}.yaml").read_text())
    merged = {}
    for entry in found.pop("defaults", ()):
        if isinstance(entry, dict):
            merged |= entry
        elif entry != "_self_":
            merged |= content(entry)
    return merged | found


def shape(name):
    """Images of the network's shape; those of ImageNet are 64 x 64, which all of them take."""
    known = content(name)
    foreign = [f"~dataset.{key}" for key in known.get("dataset", ()) if key not in ("val", "crop")]
    if name == "demo" or "lenet" in name:
        return foreign
    sizes = ("dataset.channels=3", "dataset.image_size=64") if "imagenet" in name else CIFAR
    return [*foreign, *sizes]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(groups()["experiment"]))
def test_one_step_of_every_stage(cli, tmp_path, name):
    model = [f"model={BARE[name]}"] if name in BARE else []
    similar = name.startswith(("sglp", "stlp", "slasso"))
    few = ["criterion.similarity.calibration.count=4"] if similar else []
    words = [f"experiment={name}", *model, *ONE_STEP, *shape(name), *few, "name=a"]
    found = cli("run", *words, "runtime.threads=1", smoke=False)
    assert found.code == 0, found.err
    stages = content(name).get("pipeline", ("pretrain", "sparsify", "prune", "finetune", "measure"))
    assert all((tmp_path / "outputs/a" / stage / "report.json").is_file() for stage in stages)
    shutil.rmtree(tmp_path / "outputs")  # the widest take a gigabyte
