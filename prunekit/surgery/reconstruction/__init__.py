"""Reconstruction: layers behind a cut are refitted to what the dense network puts out."""

from prunekit.surgery.reconstruction.base import (
    RECONSTRUCTIONS,
    Reconstruction,
    Refitted,
    RefittedLayer,
    Sample,
    reconstruction_of,
)
from prunekit.surgery.reconstruction.least_squares import LeastSquares
from prunekit.surgery.reconstruction.merge import Merge, Merged

__all__ = [
    "RECONSTRUCTIONS",
    "LeastSquares",
    "Merge",
    "Merged",
    "Reconstruction",
    "Refitted",
    "RefittedLayer",
    "Sample",
    "reconstruction_of",
]
