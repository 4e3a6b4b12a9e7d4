"""Networks that pruning papers report on, each built from plain numbers."""

from prunekit.models.lenet import LeNet5
from prunekit.models.resnet import ResNet, resnet20, resnet32, resnet56, resnet110
from prunekit.models.vgg import VGG, vgg16, vgg16_three_linear, vgg16_two_linear, vgg19

__all__ = [
    "VGG",
    "LeNet5",
    "ResNet",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "vgg16",
    "vgg16_three_linear",
    "vgg16_two_linear",
    "vgg19",
]
