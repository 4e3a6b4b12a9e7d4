"""Experiment files made small: narrow networks of the same kind, few drawn images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from prunekit.config import config_dir

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
class Experiment:
    """An experiment file and those it builds on, as far as it matters for a small run."""

    name: str
    network: str
    arch: str
    data: tuple[str, ...]
    pipeline: tuple[str, ...]
    layers: bool

    @classmethod
    def read(cls, name: str) -> Experiment:
        """Return the experiment of a file; what the file sets itself wins."""
        keys = merged(name)
        return cls(
            name,
            BARE.get(name, keys.get("override /model", "lenet5")),
            keys.get("model", {}).get("arch", ""),
            tuple(keys.get("dataset", ())),
            tuple(keys.get("pipeline", PIPELINE)),
            "layers" in keys.get("regularizer", {}).get("target", {}),
        )

    def small(self) -> tuple[str, ...]:
        """Return overrides for its own stages on a narrow network and drawn images."""
        model = (f"model={self.network}",) if self.name in BARE else ()
        own = SIMILAR if self.name.startswith(("sglp", "stlp", "slasso")) else ()
        return (f"experiment={self.name}", *model, *FEW, *own, *self._images(), *self._narrow())

    def _images(self) -> tuple[str, ...]:
        """Return images of the network's shape, without settings of the experiment's own data."""
        foreign = tuple(f"~dataset.{key}" for key in self.data if key not in ("val", "crop"))
        if self.network == "lenet5":
            return foreign
        return (*foreign, "dataset.channels=3", "dataset.image_size=32")

    def _narrow(self) -> tuple[str, ...]:
        """Return the same kind of network with few channels; of torchvision's some are replaced."""
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
    present = ("_target_", "classes", *_keys_of(network))
    head = (f"model._target_=prunekit.models.{name}", "model.classes=10")
    return (*head, *(f"{'' if k in present else '+'}model.{k}={v}" for k, v in sizes.items()))


def _keys_of(network: str) -> tuple[str, ...]:
    """Return the keys that the network's file has."""
    return tuple(yaml.safe_load((config_dir() / f"model/{network}.yaml").read_text()))


def merged(name: str) -> dict[str, Any]:
    """Return the keys of a file on those that it builds on, and its choices of groups."""
    content = yaml.safe_load((config_dir() / f"experiment/{name}.yaml").read_text())
    keys: dict[str, Any] = {}
    for entry in content.pop("defaults", ()):
        if isinstance(entry, Mapping):
            keys |= entry
        elif entry != "_self_":
            keys |= merged(entry)
    return keys | content


def small_overrides(name: str) -> tuple[str, ...]:
    """Return the overrides that make the experiment of a file small."""
    return Experiment.read(name).small()
