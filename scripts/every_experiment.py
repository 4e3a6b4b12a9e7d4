"""Every experiment file through all of its stages on next to nothing: narrow networks, few images.

One job a file. It shows that what the file sets runs from start to end; the figures say nothing.
`paper` runs nothing: tests build every file at full width and take one step of every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from measured import NOT_RUN, Row, metrics, publish, write_markdown
from tables import Job

from prunekit.config import config_dir, groups
from prunekit.errors import ArtifactError

TABLE = "every"
VGG16 = "[[6,6],[8,8],[16,16,16],[24,24,24],[24,24,24]]"
VGG19 = "[[6,6],[8,8],[16,16,16,16],[24,24,24,24],[24,24,24,24]]"
NARROW = {  # the network of an experiment -> its class, and how narrow it is made
    "lenet5": ("LeNet5", {}),
    **dict.fromkeys(("resnet20", "resnet56", "resnet110"), ("ResNet", {"blocks": 1})),
    "resnet164": ("BottleneckResNet", {"blocks": 1, "widths": "[8,8,16]"}),
    **dict.fromkeys(
        ("resnext20", "resnext164"), ("ResNeXt", {"blocks": 1, "cardinality": 8, "stem": 8})
    ),
    "preresnet164": ("PreResNet", {"blocks": 1, "widths": "[4,4,6]", "stem": 6}),
    "densenet40": ("DenseNet", {"layers": 2, "growth": 4}),
    "wrn16_10": ("WideResNet", {"blocks": 1, "widen": 1}),
    "vgg16": ("VGG", {"blocks": VGG16}),
    "vgg16_two_linear": ("VGG", {"blocks": VGG16, "hidden": "[16]"}),
    "vgg16_three_linear": ("VGG", {"blocks": VGG16, "hidden": "[16,16]", "conv_bias": "true"}),
    "vgg19": ("VGG", {"blocks": VGG19, "average": "true"}),
    "googlenet": ("GoogLeNet", {"stem": 8, "stages": "[[[4,8,8,8,8,4]],[[4,8,8,8,8,4]]]"}),
}
STAND_IN = ("alexnet", "vgg16", "vgg16_bn")  # of torchvision, where they cannot be narrow
BARE = {"slimming": "vgg16", "hinge": "resnet20", "sglp": "resnet20", "stlp": "resnet20"}
PIPELINE = ("pretrain", "sparsify", "prune", "finetune", "measure")
PHASES = ("pretrain", "sparsify", "finetune", "between")
FEW = (
    *("dataset=synthetic", "dataset.train=96", "dataset.val=32", "dataset.test=32"),
    *("schedule=smoke", "diagnose=false", "latency.runs=5", "latency.batch=4"),
    *(f"schedule.{phase}.epochs=1" for phase in PHASES),
    *(f"schedule.{phase}.batch=32" for phase in PHASES),
)
SIMILAR = (  # a share may be out of reach of so few blocks; few images to compare, short paths
    *("selection.on_miss=nearest", "criterion.similarity.calibration.count=32"),
    *("criterion.order.points=4", "criterion.order.least=0.3"),
)


@dataclass(frozen=True)
class Extent:
    """Which experiments are run; all of them where none is named."""

    experiments: tuple[str, ...] = ()


SCALES = {"smoke": Extent(), "short": Extent(("demo",))}


@dataclass(frozen=True)
class Experiment:
    """What a file and those it builds on say, as far as it matters here."""

    name: str
    network: str
    arch: str
    data: tuple[str, ...]
    pipeline: tuple[str, ...]
    layers: bool

    @classmethod
    def read(cls, name: str) -> Experiment:
        """The file of this name; what it sets itself wins."""
        found = merged(name)
        return cls(
            name,
            BARE.get(name, found.get("override /model", "lenet5")),
            found.get("model", {}).get("arch", ""),
            tuple(found.get("dataset", ())),
            tuple(found.get("pipeline", PIPELINE)),
            "layers" in found.get("regularizer", {}).get("target", {}),
        )

    def small(self) -> Job:
        """Its own stages on a narrow network and drawn images."""
        model = (f"model={self.network}",) if self.name in BARE else ()
        own = SIMILAR if self.name.startswith(("sglp", "stlp", "slasso")) else ()
        chosen = (f"experiment={self.name}", *model, *FEW, *own, *self._images(), *self._narrow())
        return Job(f"{TABLE}/{self.name}", chosen, self.pipeline)

    def _images(self) -> tuple[str, ...]:
        """Images of the network's shape, without what only the experiment's own data set has."""
        foreign = tuple(f"~dataset.{key}" for key in self.data if key not in ("val", "crop"))
        if self.network == "lenet5":
            return foreign
        return (*foreign, "dataset.channels=3", "dataset.image_size=32")

    def _narrow(self) -> tuple[str, ...]:
        """The same kind of network with few channels; of torchvision's some are replaced."""
        if self.network == "resnet50":
            share = ("selection.keep=0.8",) if "hinge" in self.name else ()  # less is out of reach
            return ("model.classes=10", "+model.width_per_group=8", *share)
        if self.arch == "googlenet":
            return ("model.classes=10",)
        if self.arch in STAND_IN or self.network == "vgg16_imagenet":
            spared = ("selection.ignore=[classifier.*]",) if "lp_" in self.name else ()
            rows = ("~regularizer.target.layers",) if self.layers else ()
            own = ("~model.arch", "model.name=narrow", *_class("vgg16_two_linear"))
            return (*own, *spared, *rows)
        return _class(self.network)


def _class(network: str) -> tuple[str, ...]:
    name, sizes = NARROW[network]
    told = ("_target_", "classes", *_known(network))
    head = (f"model._target_=prunekit.models.{name}", "model.classes=10")
    return (*head, *(f"{'' if k in told else '+'}model.{k}={v}" for k, v in sizes.items()))


def _known(network: str) -> tuple[str, ...]:
    """The keys that the network's file has."""
    return tuple(yaml.safe_load((config_dir() / f"model/{network}.yaml").read_text()))


def merged(name: str) -> dict[str, Any]:
    """The keys of a file on those of the experiments it builds on, and its choices of groups."""
    content = yaml.safe_load((config_dir() / f"experiment/{name}.yaml").read_text())
    found: dict[str, Any] = {}
    for entry in content.pop("defaults", ()):
        if isinstance(entry, Mapping):
            found |= entry
        elif entry != "_self_":
            found |= merged(entry)
    return found | content


def jobs(extent: Extent) -> list[Job]:
    """One run a file, through the stages that it names."""
    return [Experiment.read(name).small() for name in extent.experiments or _files()]


def _files() -> list[str]:
    return sorted(groups()["experiment"])


def write_table(root: Path, out: Path, extent: Extent) -> None:
    """Which files ran from start to end; ArtifactError unless all did."""
    rows = [_row(root, job) for job in jobs(extent)]
    text = "Every experiment file on a narrow network and drawn images: whether it runs."
    write_markdown(out / f"{TABLE}.md", publish(out, TABLE, "every experiment", rows, text))
    absent = [row["experiment"] for row in rows if row["stages"] == NOT_RUN]
    if absent:
        raise ArtifactError(f"not run to the end: {', '.join(absent)}")


def _row(root: Path, job: Job) -> Row:
    done = [stage for stage in job.stages if metrics(root, job.name, stage)]
    cut = metrics(root, job.name, "prune") or {}
    return {
        "experiment": job.name.removeprefix(f"{TABLE}/"),
        "stages": " ".join(done) if len(done) == len(job.stages) else NOT_RUN,
        "parameters left": cut.get("params", NOT_RUN),
    }
