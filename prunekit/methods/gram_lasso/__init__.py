"""sGLP-IB and sTLP-IB: structured lasso on Gram matrices of a layer's channels."""

from prunekit.methods.gram_lasso.calibration import Calibration
from prunekit.methods.gram_lasso.centering import HKH, Centring, Unbiased
from prunekit.methods.gram_lasso.class_profiles import ClassProfiles
from prunekit.methods.gram_lasso.criterion import APIB, Representatives, StructuredLasso
from prunekit.methods.gram_lasso.entry import EntryOrder, Ordering, PublishedSearch
from prunekit.methods.gram_lasso.features import Maps, Responses, WholeOutput
from prunekit.methods.gram_lasso.gram_criterion import MaxCKA
from prunekit.methods.gram_lasso.gram_tables import Tables, tables_of
from prunekit.methods.gram_lasso.grams import ClassBlocks, Columns, Grams, RawMaps
from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.kernels import Gaussian, Kernel, Laplacian, Linear, Sigmoid
from prunekit.methods.gram_lasso.regression import (
    FISTA,
    GraphADMM,
    Regression,
    RegressionSolver,
    SmoothingProximalGradient,
    Solution,
    lasso_path,
)
from prunekit.methods.gram_lasso.statistics import Statistics
from prunekit.methods.gram_lasso.structures import (
    Above,
    Graph,
    Hierarchy,
    Nearest,
    Strongest,
    Structure,
)
from prunekit.methods.gram_lasso.tree_lasso import BlockTreeLasso, Tree, TreeLasso

__all__ = [
    "APIB",
    "FISTA",
    "HKH",
    "Above",
    "BlockTreeLasso",
    "Calibration",
    "Centring",
    "ClassBlocks",
    "ClassProfiles",
    "Columns",
    "Edges",
    "EntryOrder",
    "Gaussian",
    "Grams",
    "Graph",
    "GraphADMM",
    "GraphLasso",
    "Hierarchy",
    "Kernel",
    "Laplacian",
    "Linear",
    "Maps",
    "MaxCKA",
    "Nearest",
    "Ordering",
    "PublishedSearch",
    "RawMaps",
    "Regression",
    "RegressionSolver",
    "Representatives",
    "Responses",
    "Sigmoid",
    "SmoothingProximalGradient",
    "Solution",
    "Statistics",
    "Strongest",
    "Structure",
    "StructuredLasso",
    "Tables",
    "Tree",
    "TreeLasso",
    "Unbiased",
    "WholeOutput",
    "lasso_path",
    "tables_of",
]
