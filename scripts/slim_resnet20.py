"""ResNet-20 on the exact CIFAR-10 images: penalties on batch-norm scales at equal cost, as jobs.

Strengths are chosen by validation accuracy on a network that was trained from scratch without the
validation images; the published weights, which have seen them, are pruned at these strengths, and
once more, with one seed, at the strongest, where scales become small before they are cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exact_resnets import TINY, start
from measured import metrics
from tables import TAIL, Job

TABLE = "slim_resnet20"
EXPERIMENT = (f"experiment={TABLE}_exact",)
PENALTIES = {
    "l1": ("regularizer=slim_l1",),
    "l1/2": ("regularizer=lp", "regularizer.penalty.p=0.5"),
    "l3/4": ("regularizer=lp", "regularizer.penalty.p=0.75"),
    "TL1": ("regularizer=tl1", "regularizer.penalty.a=1.0"),
    "MCP": ("regularizer=mcp",),
    "SCAD": ("regularizer=scad",),
}
NONE = "no penalty"  # the same training and the same threshold
TRIED = ("sparsify", "prune", "finetune")


@dataclass(frozen=True)
class Extent:
    """How much is done: seeds, penalties and strengths, and overrides of every job.

    Without `weights` a network that is trained here takes the place of the published one.
    """

    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    penalties: tuple[str, ...] = tuple(PENALTIES)
    overrides: tuple[str, ...] = ()
    weights: bool = True


SCALES = {
    "short": Extent((0, 1, 2), (0.006, 0.012, 0.02)),
    "smoke": Extent(
        seeds=(0,),
        strengths=(0.01, 0.1),
        penalties=("l1", "TL1"),
        overrides=TINY,
        weights=False,
    ),
}


def scratch(extent: Extent) -> Job:
    """The network that strengths are chosen on."""
    return Job(f"{TABLE}/scratch", (*EXPERIMENT, *extent.overrides), ("pretrain",))


def given(extent: Extent, data: str) -> Job:
    """The published weights, not trained any further."""
    return start(f"{TABLE}/given", (*EXPERIMENT, *extent.overrides), extent.weights, data)


def trial(extent: Extent, method: str, lam: float) -> Job:
    """One strength of one penalty on the network trained here."""
    name = f"{TABLE}/choose/{folder(method)}-{lam:g}"
    settings = (*EXPERIMENT, *extent.overrides, *_setting(method, lam))
    return Job(name, settings, TRIED, scratch(extent).name)


def judged(extent: Extent, name: str, method: str, lam: float, seed: int) -> Job:
    """The published weights, pruned and tuned."""
    settings = (*EXPERIMENT, *extent.overrides, *_setting(method, lam), f"seed={seed}")
    return Job(name, settings, ("sparsify", *TAIL), f"{TABLE}/given")


def named(method: str, seed: int) -> str:
    """The run of a method at its strength, and a seed."""
    return f"{TABLE}/seed{seed}/{folder(method)}"


def strong(extent: Extent, root: Path, method: str) -> str:
    """The run of a method at the strongest strength, with the first seed."""
    if chosen(extent, root).get(method) == max(extent.strengths):
        return named(method, extent.seeds[0])
    return f"{TABLE}/strong/{folder(method)}"


def folder(method: str) -> str:
    """A method's name as a directory."""
    return method.replace("/", "-").replace(" ", "-")


def choosing(extent: Extent) -> list[Job]:
    """What must be run before strengths are known."""
    pairs = [(method, lam) for lam in extent.strengths for method in extent.penalties]
    return [scratch(extent), *(trial(extent, method, lam) for method, lam in pairs)]


def judging(extent: Extent, root: Path, data: str) -> list[Job]:
    """No penalty and every penalty at its strength, seed by seed, then at the strongest."""
    methods, most, first = (
        {NONE: 0.0, **chosen(extent, root)},
        max(extent.strengths),
        extent.seeds[0],
    )
    jobs = [
        judged(extent, named(method, seed), method, lam, seed)
        for seed in extent.seeds
        for method, lam in methods.items()
    ]
    names = {strong(extent, root, method): method for method in extent.penalties}
    jobs += [judged(extent, name, method, most, first) for name, method in names.items()]
    return [given(extent, data), *dict.fromkeys(jobs)]


def chosen(extent: Extent, root: Path) -> Mapping[str, float]:
    """The strength of each penalty whose tuned network does best on the validation images.

    Of equally good ones the weakest; penalties none of whose trials has finished are left out.
    """
    found = {}
    for method in extent.penalties:
        tuned = {
            lam: done["val_top1"]
            for lam in sorted(extent.strengths)
            if (done := metrics(root, trial(extent, method, lam).name, "finetune"))
        }
        if tuned:
            found[method] = max(tuned, key=lambda lam: tuned[lam])
    return found


def _setting(method: str, lam: float) -> tuple[str, ...]:
    """The overrides of a penalty and its strength; without a penalty it is l1 of strength 0."""
    return (*PENALTIES.get(method, PENALTIES["l1"]), f"regularizer.lam={lam}")
