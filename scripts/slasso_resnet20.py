"""Criteria on similarities against others, at the same widths, on the exact CIFAR-10 images.

All start from published weights and keep as many channels per layer as the first run, in which
sGLP-IB keeps the same share of the inner channels of every block, at half of the multiply-adds.
What they keep differs. A seed is a calibration batch, and an order of images in tuning.
"""

from __future__ import annotations

from pathlib import Path

from exact_resnets import Extent, start
from tables import TAIL, Job

TABLE = "slasso_resnet20"
EXPERIMENT = ("experiment=slasso_resnet20_exact",)
KERNELS = ("linear", "gaussian", "sigmoid", "laplacian")
PUBLISHED_KERNEL = "laplacian"
STRUCTURED = {  # scored on similarities, with every kernel
    "sGLP-IB": "sglp",
    "sTLP-IB": "stlp",
    "sTLP-IB, blocks": "stlp_block",
    "sTLP-IB, mixed": "stlp_mixed",
    "max-CKA": "max_cka",
    "representatives": "representatives",
    "APIB": "apib",
}
PLAIN = {
    "L1 norm": ("criterion=l1_norm",),
    "HRank": ("criterion=hrank",),
    "random channels": ("criterion=random",),
}
_UNBIASED = "criterion.similarity.columns.centring=unbiased"
_PROFILES = "criterion/similarity=class_profiles"
_BLOCKS = "criterion/similarity=class_blocks"
VARIANTS = {  # name -> a method above, and what is changed in it, with the published kernel
    "sGLP-IB, unbiased": ("sGLP-IB", (_UNBIASED,)),
    "sTLP-IB, unbiased": ("sTLP-IB", (_UNBIASED,)),
    "max-CKA, unbiased": ("max-CKA", (_UNBIASED,)),
    "representatives, unbiased": ("representatives", (_UNBIASED,)),
    "sGLP-IB, kappa 1": ("sGLP-IB", ("criterion.structure.kappa=1.0",)),
    "sTLP-IB, single linkage": ("sTLP-IB", ("criterion.structure.linkage=single",)),
    "sGLP-IB, class profiles": ("sGLP-IB", (_PROFILES,)),
    "sTLP-IB, class profiles": ("sTLP-IB", (_PROFILES,)),
    "max-CKA, class blocks": ("max-CKA", (_BLOCKS,)),
    "sTLP-IB, class blocks": ("sTLP-IB", (_BLOCKS,)),
    **{
        f"{method}, batch {size}": (method, (f"criterion.similarity.calibration.count={size}",))
        for size in (64, 256, 512, 1024)
        for method in ("sGLP-IB", "sTLP-IB")
    },
}
TUNED = ("sGLP-IB", "sTLP-IB", "sTLP-IB, blocks", "max-CKA", "representatives", "APIB", *PLAIN)
LARGER = ("sGLP-IB", "sTLP-IB", "max-CKA", "representatives", "L1 norm", "random channels")
_NO_BUDGET = ("~selection.keep", "~selection.scope")  # of the experiment
SEARCHED = {  # widths are what the published search reaches
    f"{method}, published search": (
        f"criterion={STRUCTURED[method]}",
        "criterion/order=published_search",
        *("selection=zeros", *_NO_BUDGET),
    )
    for method in ("sGLP-IB", "sTLP-IB")
}
SCRATCH = ("schedule.finetune.epochs=9", "schedule.finetune.optimizer.lr=0.05")


def folder(method: str) -> str:
    """A method's name as a directory."""
    return method.replace(", ", "_").replace(" ", "-")


def named(method: str, seed: int, kernel: str = "", model: str = "resnet20") -> str:
    """The run of a method, a kernel where it has one, and a seed."""
    kernel = kernel or (PUBLISHED_KERNEL if method in STRUCTURED else "")
    return f"{TABLE}/{model}/seed{seed}/{folder(method)}{f'-{kernel}' if kernel else ''}"


def given(extent: Extent, data: str, model: str = "resnet20") -> Job:
    """The published weights, not trained any further."""
    return start(_given(model), _of(extent, model), extent.weights, data, model)


def scored(method: str, kernel: str) -> tuple[str, ...]:
    """The settings of a criterion on similarities: a method and a kernel."""
    return (
        f"criterion={STRUCTURED[method]}",
        f"criterion/similarity={kernel}",
    )


def reference(extent: Extent, model: str = "resnet20") -> Job:
    """The run whose widths all others have."""
    settings = (*_of(extent, model), *scored("sGLP-IB", PUBLISHED_KERNEL), "seed=0")
    return Job(named("sGLP-IB", 0, model=model), settings, TAIL, _given(model))


def cell(extent: Extent, method: str, seed: int, kernel: str = "", model: str = "resnet20") -> Job:
    """One method with one seed; it is tuned where the kernel is the published one."""
    name, first = named(method, seed, kernel, model), reference(extent, model)
    if name == first.name:
        return first
    settings = PLAIN.get(method) or scored(method, kernel or PUBLISHED_KERNEL)
    tuned = kernel in ("", PUBLISHED_KERNEL) and method in TUNED
    shared = (*_of(extent, model), *settings, *_like(first), f"seed={seed}")
    return Job(name, shared, TAIL if tuned else ("prune",), _given(model), needs=(first.name,))


def variant(extent: Extent, name: str, seed: int) -> Job:
    """A method with something changed, scored and cut only."""
    method, change = VARIANTS[name]
    first = reference(extent)
    settings = (f"criterion={STRUCTURED[method]}", *change, *_like(first), f"seed={seed}")
    shared = (*_of(extent, "resnet20"), *settings)
    return Job(named(name, seed), shared, ("prune",), _given("resnet20"), needs=(first.name,))


def searched(extent: Extent, name: str, seed: int) -> Job:
    """Algorithm 1 as published, layer by layer, with the widths that it reaches."""
    shared = (*_of(extent, "resnet20"), *SEARCHED[name], f"seed={seed}")
    return Job(named(name, seed), shared, ("prune",), _given("resnet20"))


def scratch(extent: Extent, seed: int) -> Job:
    """A network of these widths without the weights."""
    first = reference(extent)
    settings = (*_of(extent, "resnet20"), *PLAIN["random channels"], *_like(first), *SCRATCH)
    name = named("from scratch", seed)
    return Job(name, (*settings, f"seed={seed}"), TAIL, needs=(first.name,))


def alone(extent: Extent) -> list[Job]:
    """The runs that need no weights: none, since the widths come from weights."""
    return []


def comparison(extent: Extent, root: Path, data: str) -> list[Job]:
    """Every run, seed by seed; ResNet-56 after the first."""
    methods = (*STRUCTURED, *PLAIN)
    models = ("resnet20", "resnet56") if extent.larger else ("resnet20",)
    jobs = [job for m in models for job in (given(extent, data, m), reference(extent, m))]
    for seed in extent.seeds:
        jobs += [cell(extent, method, seed) for method in methods]
        jobs += [scratch(extent, seed)]
        jobs += [cell(extent, m, seed, k) for k in KERNELS[:-1] for m in STRUCTURED]
        jobs += [variant(extent, name, seed) for name in VARIANTS]
        jobs += [searched(extent, name, seed) for name in SEARCHED]
        if extent.larger and seed == extent.seeds[0]:
            jobs += [cell(extent, method, seed, model="resnet56") for method in LARGER]
    return [*{job.name: job for job in jobs}.values()]  # references are cells too


def _like(first: Job) -> tuple[str, ...]:
    return ("selection=like_run", *_NO_BUDGET, f"selection.path=${{root}}/{first.name}")


def _given(model: str) -> str:
    return f"{TABLE}/{model}/given"


def _of(extent: Extent, model: str) -> tuple[str, ...]:
    return (*EXPERIMENT, f"model={model}", *extent.overrides)
