"""Networks of pruning papers, built from plain settings, and networks of torchvision and timm."""

from prunekit.models.densenet import DenseNet, densenet40
from prunekit.models.external import (
    timm_model,
    timm_weights,
    torchvision_model,
    torchvision_weights,
)
from prunekit.models.googlenet import GoogLeNet, Inception, googlenet
from prunekit.models.lenet import LeNet5
from prunekit.models.preresnet import PreResNet, WideResNet, preresnet164, wrn16_10
from prunekit.models.resnet import (
    BottleneckResNet,
    ResNet,
    ResNeXt,
    resnet20,
    resnet32,
    resnet56,
    resnet110,
    resnet164,
    resnext20,
    resnext164,
)
from prunekit.models.vgg import VGG, vgg16, vgg16_three_linear, vgg16_two_linear, vgg19

__all__ = [
    "VGG",
    "BottleneckResNet",
    "DenseNet",
    "GoogLeNet",
    "Inception",
    "LeNet5",
    "PreResNet",
    "ResNeXt",
    "ResNet",
    "WideResNet",
    "densenet40",
    "googlenet",
    "preresnet164",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "resnet164",
    "resnext20",
    "resnext164",
    "timm_model",
    "timm_weights",
    "torchvision_model",
    "torchvision_weights",
    "vgg16",
    "vgg16_three_linear",
    "vgg16_two_linear",
    "vgg19",
    "wrn16_10",
]
