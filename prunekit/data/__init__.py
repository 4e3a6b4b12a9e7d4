"""Data sets: settings that load into training, validation and test batches."""

from prunekit.data.base import Batches, Data, Dataset, images_id
from prunekit.data.cub import CUB200
from prunekit.data.digits import Digits
from prunekit.data.folder import ImageFolder
from prunekit.data.from_batches import GivenBatches, given_data
from prunekit.data.in_memory import HorizontalFlip, Normalize, RandomCrop, TensorBatches
from prunekit.data.shapes_only import NoImages, ShapeOnly
from prunekit.data.synthetic import Synthetic
from prunekit.data.tiny_imagenet import TinyImageNet
from prunekit.data.vision import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST

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
    "GivenBatches",
    "HorizontalFlip",
    "ImageFolder",
    "NoImages",
    "Normalize",
    "RandomCrop",
    "ShapeOnly",
    "Synthetic",
    "TensorBatches",
    "TinyImageNet",
    "given_data",
    "images_id",
]
