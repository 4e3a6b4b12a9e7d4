"""sGLP-IB and sTLP-IB: structured lasso on Gram matrices of a layer's channels."""

from prunekit.methods.gram_lasso.criterion import APIB, MaxCKA, Representatives, StructuredLasso
from prunekit.methods.gram_lasso.entry import EntryOrder, LambdaBisection, Ordering, lasso_path
from prunekit.methods.gram_lasso.features import Calibration, Maps, Responses, WholeOutput
from prunekit.methods.gram_lasso.grams import ClassBlocks, Columns, Grams, RawMaps
from prunekit.methods.gram_lasso.graph_admm import GraphADMM
from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.kernels import (
    HKH,
    Centring,
    Gaussian,
    Kernel,
    Laplacian,
    Linear,
    Sigmoid,
    Unbiased,
)
from prunekit.methods.gram_lasso.proximal_gradient import FISTA, SmoothingProximalGradient
from prunekit.methods.gram_lasso.regression import Regression, RegressionSolver, Solution
from prunekit.methods.gram_lasso.statistics import (
    ClassProfiles,
    Statistics,
    Tables,
    compute_tables,
)
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
    "LambdaBisection",
    "Laplacian",
    "Linear",
    "Maps",
    "MaxCKA",
    "Nearest",
    "Ordering",
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
    "compute_tables",
    "lasso_path",
]
