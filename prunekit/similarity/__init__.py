"""How alike the channels of a layer are: kernels, centring, tables from one forward pass."""

from prunekit.similarity.calibration import Calibration
from prunekit.similarity.centring import HKH, Centring, Unbiased
from prunekit.similarity.columns import ClassBlocks, Columns, Grams, RawMaps
from prunekit.similarity.kernels import Gaussian, Kernel, Laplacian, Linear, Sigmoid
from prunekit.similarity.maps import Maps, Responses, WholeOutput
from prunekit.similarity.profiles import ClassProfiles
from prunekit.similarity.statistics import Statistics
from prunekit.similarity.tables import Tables, tables_of

__all__ = [
    "HKH",
    "Calibration",
    "Centring",
    "ClassBlocks",
    "ClassProfiles",
    "Columns",
    "Gaussian",
    "Grams",
    "Kernel",
    "Laplacian",
    "Linear",
    "Maps",
    "RawMaps",
    "Responses",
    "Sigmoid",
    "Statistics",
    "Tables",
    "Unbiased",
    "WholeOutput",
    "tables_of",
]
