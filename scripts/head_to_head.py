"""All methods on the same network, data, budget, tuning and seeds, as jobs.

At equal cost in epochs: methods that sparsify get half of the epochs for that and half for tuning,
all others tune for the whole. Those start from a trained network, which plain training before the
cut would teach little; twice the tuning makes the floor as high as it can be. All tune by one
schedule (cosine with a warm-up) and at one rate, but for networks of two thin convolutions, which
learn best at a third of it (chosen on validation images, see `hinge_resnet20`). Criteria and SSR
keep the same widths, so that they differ in what they keep and how they trained; slimming and Hinge
find theirs. What all must beat: random channels, the L1 norm, and the small network from scratch,
which trains as long as all stages of the others, the published weights' own training aside.

Estimated from single runs, in minutes of one core: ResNet-20 and a seed 5 (methods that sparsify)
or 3, so 12 methods and 3 seeds are about 2.5 core-hours; LeNet 1 to 2 a run, 1.5 core-hours in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from exact_resnets import TINY, WEIGHTS
from tables import TAIL, Job, widths_setting

TABLE = "head_to_head"
SCRATCH = "from scratch"
FLOOR = ("L1 norm", "random channels", SCRATCH)


@dataclass(frozen=True)
class Method:
    """How a method differs from the others: overrides of all its jobs.

    One that `sparsifies` trains under a penalty before it is cut; that serves all budgets unless it
    is `aimed` at one, a share of the multiply-adds.
    """

    settings: tuple[str, ...]
    sparsifies: bool = False
    aimed: bool = False


@dataclass(frozen=True)
class Network:
    """One network on one data set: settings of all its jobs, its methods, and what they leave.

    `budgets` are overrides by name. `epochs` is what a network tunes for that was not sparsified,
    `scratch_epochs` one that starts from nothing. `weights` is a file beside the folder of the
    data, which is trained no further; without it every seed trains its own.
    """

    name: str
    settings: tuple[str, ...]
    methods: Mapping[str, Method]
    budgets: Mapping[str, tuple[str, ...]]
    epochs: int
    scratch_epochs: int
    scratch: tuple[str, ...] = ()
    weights: str = ""


@dataclass(frozen=True)
class Extent:
    """How much is done: seeds, networks, and overrides of every job."""

    said: str
    seeds: tuple[int, ...]
    networks: tuple[Network, ...]
    overrides: tuple[str, ...] = ()


def penalised(*settings: str) -> Method:
    """Sparsified on all layers at once, then cut by what that left."""
    return Method(("criterion=stored", *settings), sparsifies=True)


def scored(name: str, *settings: str) -> Method:
    """Cut by a criterion on the network as it is."""
    return Method((f"criterion={name}", "regularizer=none", *settings))


def slimmed(penalty: str, lam: float, rate: float) -> Method:
    """One threshold over all batch-norm scales, after training under a penalty on them."""
    return Method(
        (
            *(f"regularizer={penalty}", f"regularizer.lam={lam:g}", "solver=slimming"),
            *("criterion=bn_scale", "selection.scope=global", "selection.normalise=null"),
            f"schedule.sparsify.optimizer.lr={rate:g}",
        ),
        sparsifies=True,
    )


def hinge(lam: float, *settings: str) -> Method:
    """Both convolutions of every block decomposed, the search aimed at the budget."""
    return Method(
        (
            *("regularizer=hinge_lp", f"regularizer.lam={lam:g}", "solver=hinge", "order=hinge"),
            *("selection=threshold", "schedule.sparsify.batch=64", *settings),
            *("schedule.sparsify.optimizer.lr=0.003", "schedule.finetune.optimizer.lr=0.003"),
        ),
        sparsifies=True,
        aimed=True,
    )


BASELINES = {
    "FPGM": scored("fpgm"),
    "Taylor": scored("taylor"),
    "L1 norm": scored("l1_norm"),
    "random channels": scored("random"),
    SCRATCH: scored("random"),
}
STREAMS = "criterion.shared=sum"  # streams of residual stages go too, as by the other criteria
FROZEN = "order.norms=frozen"  # else the norm of a filter before a batch norm says nothing


def on_residual_networks(pull: float, rate: float, placement: str) -> dict[str, Method]:
    """The methods, with strengths of ResNet-20's five epochs times `pull`.

    Those of slimming and Hinge are those of their own tables, scaled to five epochs.
    """
    return {
        "SSR-L2,1": penalised("regularizer=l21", f"regularizer.lam={0.2 * pull:g}", FROZEN),
        "SSR-L2,0": penalised("regularizer=l20", "regularizer.lam=1.0", FROZEN),
        "slimming, l1": slimmed("slim_l1", 0.0072 * pull, rate),
        "slimming, MCP": slimmed("mcp", 0.0072 * pull, rate),
        "Hinge": hinge(1.2 * pull, f"placement={placement}"),
        "sGLP-IB": scored("sglp", STREAMS),
        "sTLP-IB": scored("stlp", STREAMS),
        **BASELINES,
    }


def macs(*shares: float) -> dict[str, tuple[str, ...]]:
    """Budgets: at most these shares of the multiply-adds, the same share of every layer."""
    settings = ("selection=macs", "selection.keep={:g}", "selection.scope=local")
    return {f"{s:.0%} of MACs": tuple(w.format(s) for w in settings) for s in shares}


RESNET20 = Network(
    "resnet20",
    ("experiment=head_to_head_resnet20",),
    on_residual_networks(1.0, 0.05, "rows_rows"),
    macs(0.5),
    epochs=10,
    scratch_epochs=10,
    scratch=("schedule.finetune.optimizer.lr=0.05",),
    weights=WEIGHTS["resnet20"],
)
LENET = Network(
    "lenet",
    ("experiment=ssr_lenet_mnist", "schedule.sparsify.epochs=5", "schedule.finetune.epochs=5"),
    {  # no batch norm for slimming, and Hinge searches for a share of multiply-adds alone
        "SSR-L2,1": penalised("regularizer=l21"),
        "SSR-L2,0": penalised("regularizer=l20"),
        "SSL": penalised("regularizer=l21", "solver=subgradient"),
        "sGLP-IB": scored("sglp"),
        "sTLP-IB": scored("stlp"),
        "APoZ": scored("apoz"),
        **BASELINES,
    },
    {  # widths of SSR's table I, and twice as many
        "10x fewer parameters": (widths_setting("4-16-154"),),
        "39x fewer parameters": (widths_setting("2-8-77"),),
    },
    epochs=10,
    scratch_epochs=16,
)
JPEG = (  # all 60,000 images, as a folder; 40 + 40 epochs on 45,000 of them
    *("dataset=image_folder", "dataset.image_size=32", "dataset.val=0.1", "~dataset.only_exact"),
    *("schedule=cifar160", "schedule.pretrain.epochs=160", "schedule.sparsify.epochs=40"),
    *("schedule.finetune.epochs=40", "schedule.finetune.optimizer.lr=0.05"),
)
PULL = 0.02  # of strengths, whose steps are fifty times as many


def on_jpeg(name: str, placement: str) -> Network:
    """A network on the JPEG images, which no public weights have seen."""
    settings = ("experiment=head_to_head_resnet20", f"model={name}", *JPEG)
    methods = on_residual_networks(PULL, 0.05, placement)
    return Network(name, settings, methods, macs(0.3, 0.5, 0.7), 80, 240)


def tiny(network: Network) -> Network:
    """The same, in as few epochs as there can be, without weights."""
    return replace(network, epochs=1, scratch_epochs=1, weights="")


_SMALL = ("schedule.pretrain.epochs=1", "schedule.sparsify.epochs=1", "schedule.finetune.epochs=1")
SCALES = {
    "short": Extent(
        "Published weights; the exact CIFAR-10 images; 5 + 5 epochs.",
        seeds=(0, 1, 2),
        networks=(RESNET20,),
        overrides=("latency.seconds=5",),
    ),
    "gpu": Extent(
        "CIFAR-10 (JPEG), 160 epochs, then 40 + 40; strengths are scaled, not tuned.",
        seeds=(0, 1, 2),
        networks=(on_jpeg("resnet56", "rows_rows"), on_jpeg("vgg16", "rows_columns")),
    ),
    "smoke": Extent(
        "Synthetic images: shows that all runs, and nothing else.",
        seeds=(0,),
        networks=(tiny(RESNET20),),
        overrides=(*TINY, *_SMALL),
    ),
}
LENET_SCALES = {
    "short": Extent("MNIST, 6 epochs, then 5 + 5.", (0, 1, 2), (LENET,), ("latency.seconds=3",)),
    "smoke": Extent(
        "Synthetic images: shows that all runs, and nothing else.",
        seeds=(0,),
        networks=(tiny(LENET),),
        overrides=(
            *("dataset=synthetic", "schedule=smoke", "diagnose=false"),
            *("latency.runs=5", "latency.batch=8", *_SMALL),
        ),
    ),
}


def folder(label: str) -> str:
    """A method's or budget's name as a directory."""
    return label.replace(", ", "_").replace(",", "").replace(" ", "-").replace("%", "pct")


def named(network: Network, method: str, budget: str, seed: int) -> str:
    """The run of a method at a budget with a seed."""
    return f"{TABLE}/{network.name}/seed{seed}/{folder(method)}/{folder(budget)}"


def dense(extent: Extent, network: Network, seed: int, data: str) -> Job:
    """The network that every method of a seed starts from."""
    shared = (*network.settings, *extent.overrides)
    if not network.weights:
        place = f"{TABLE}/{network.name}/seed{seed}/dense"
        return Job(place, (*shared, f"seed={seed}"), ("pretrain",))
    given = f"weights={Path(data).parent / 'weights' / network.weights}"
    return Job(f"{TABLE}/{network.name}/given", (*shared, given), ("pretrain",))


def sparse(extent: Extent, network: Network, method: str, seed: int, data: str) -> Job:
    """The network trained under a penalty, which is cut to every budget."""
    settings = (*network.settings, *extent.overrides, *network.methods[method].settings)
    name = named(network, method, "sparse", seed)
    start = dense(extent, network, seed, data).name
    return Job(name, (*settings, f"seed={seed}"), ("sparsify",), start)


def cell(extent: Extent, network: Network, method: str, budget: str, seed: int, data: str) -> Job:
    """One method at one budget with one seed: cut, tuned, measured."""
    how, start = network.methods[method], dense(extent, network, seed, data).name
    shared = (*network.settings, *extent.overrides, f"seed={seed}")
    job = partial(Job, named(network, method, budget, seed))
    if how.aimed:
        return job((*shared, *how.settings, _aim(network, budget)), ("sparsify", *TAIL), start)
    settings = (*shared, *network.budgets[budget], *how.settings)
    if method == SCRATCH:
        return job((*settings, _epochs(network.scratch_epochs), *network.scratch), TAIL)
    if how.sparsifies:
        return job(settings, TAIL, sparse(extent, network, method, seed, data).name)
    return job((*settings, _epochs(network.epochs)), TAIL, start)


def jobs(extent: Extent, data: str) -> list[Job]:
    """Every run, seed by seed, so that an interrupted comparison has whole seeds."""
    found: list[Job] = []
    for seed in extent.seeds:
        for network in extent.networks:
            found.append(dense(extent, network, seed, data))
            for method, how in network.methods.items():
                if how.sparsifies and not how.aimed:
                    found.append(sparse(extent, network, method, seed, data))
                found += [cell(extent, network, method, b, seed, data) for b in network.budgets]
    return list(dict.fromkeys(found))  # given weights serve all seeds


def alone(extent: Extent) -> list[Job]:
    """The runs that need no weights: none, the jobs ask where the data lies."""
    return []


def comparison(extent: Extent, root: Path, data: str) -> list[Job]:
    """Every run of the table."""
    return jobs(extent, data)


def _aim(network: Network, budget: str) -> str:
    return next(word for word in network.budgets[budget] if word.startswith("selection.keep="))


def _epochs(count: int) -> str:
    return f"schedule.finetune.epochs={count}"
