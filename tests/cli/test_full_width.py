"""Every experiment at full width: built as published, one step of each of its stages."""

from __future__ import annotations

import shutil

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.config import config_dir, groups, resolve
from scripts.reproduce import experiments

CIFAR = ("dataset.channels=3", "dataset.image_size=32")
ONE_STEP = (  # two images to train on, in batches of two; the published rates and decays stay
    *("dataset=synthetic", "dataset.train=4", "dataset.val=2", "dataset.test=2"),
    *(
        f"schedule.{phase}.{key}"
        for phase in ("pretrain", "sparsify", "finetune", "between")
        for key in ("epochs=1", "batch=2", "clip=0.1")  # unclipped, two images end some networks
    ),
    *("diagnose=false", "latency.batch=1", "latency.runs=5", "latency.warmup=0"),
)


def images(name, known, model):
    """Drawn ones of the network's shape and classes; ImageNet's are 64 x 64, which all take."""
    foreign = [f"~dataset.{key}" for key in known.get("dataset", ()) if key not in ("val", "crop")]
    classes = f"dataset.classes={classes_of(name, model)}"
    if known.get("override /model", "lenet5") == "lenet5" and not model:
        return [*foreign, classes]
    sizes = ("dataset.channels=3", "dataset.image_size=64") if "imagenet" in name else CIFAR
    return [*foreign, classes, *sizes]


def classes_of(name, model):
    """How many classes the experiment's network tells apart."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        found = resolve(compose("run", overrides=[f"experiment={name}", *model]))
    GlobalHydra.instance().clear()
    return found["model"].get("classes", 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(groups()["experiment"]))
def test_one_step_of_every_stage(cli, tmp_path, name):
    known = experiments.merged(name)
    model = [f"model={experiments.BARE[name]}"] if name in experiments.BARE else []
    similar = name.startswith(("sglp", "stlp", "slasso"))
    few = ["criterion.similarity.calibration.count=4"] if similar else []
    words = [f"experiment={name}", *model, *ONE_STEP, *images(name, known, model), *few, "name=a"]
    found = cli("run", *words, "runtime.threads=1", smoke=False)
    assert found.code == 0, found.err
    stages = known.get("pipeline", experiments.PIPELINE)
    assert all((tmp_path / "outputs/a" / stage / "report.json").is_file() for stage in stages)
    shutil.rmtree(tmp_path / "outputs")  # the widest take a gigabyte
