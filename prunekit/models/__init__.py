"""Networks built from plain numbers: those that pruning papers report on, and others by name."""

from prunekit.models.bottleneck import BottleneckResNet, resnet164
from prunekit.models.densenet import DenseNet, densenet40
from prunekit.models.external import (
    timm_model,
    timm_weights,
    torchvision_model,
    torchvision_weights,
)
from prunekit.models.googlenet import GoogLeNet, Inception, googlenet
from prunekit.models.lenet import LeNet5
from prunekit.models.preresnet import PreResNet, preresnet164
from prunekit.models.resnet import ResNet, resnet20, resnet32, resnet56, resnet110
from prunekit.models.resnext import ResNeXt, resnext20, resnext164
from prunekit.models.vgg import VGG, vgg16, vgg16_three_linear, vgg16_two_linear, vgg19
from prunekit.models.wideresnet import WideResNet, wrn16_10

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
