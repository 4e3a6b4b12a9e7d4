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

__all__ = [
    "RECONSTRUCTIONS",
    "LeastSquares",
    "Reconstruction",
    "Refitted",
    "RefittedLayer",
    "Sample",
    "reconstruction_of",
]
