"""Data sets: settings from which training, validation and test batches are loaded."""

from prunekit.data.base import Batches, Data, Dataset, images_id
from prunekit.data.folder import ImageFolder
from prunekit.data.in_memory import (
    Digits,
    HorizontalFlip,
    Normalize,
    RandomCrop,
    Synthetic,
    TensorBatches,
)
from prunekit.data.photographs import CUB200, TinyImageNet
from prunekit.data.vision import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST
from prunekit.data.without_files import FixedBatches, NoImages, ShapeOnly, data_from_batches

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CUB200",
    "MNIST",
    "SVHN",
    "Batches",
    "Data",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "FixedBatches",
    "HorizontalFlip",
    "ImageFolder",
    "NoImages",
    "Normalize",
    "RandomCrop",
    "ShapeOnly",
    "Synthetic",
    "TensorBatches",
    "TinyImageNet",
    "data_from_batches",
    "images_id",
]
