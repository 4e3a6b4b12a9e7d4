"""All methods on the same network, data, budget, tuning and seeds, as jobs.

At equal cost in epochs: methods that sparsify get half of the epochs for that and half for tuning,
all others tune for the whole. Those start from a trained network, which plain training before the
cut would teach little; twice the tuning makes the floor as high as it can be. All tune by one
schedule (cosine with a warm-up) and at one rate, but for networks of two thin convolutions, which
learn best at a third of it (chosen on validation images, see `hinge_resnet20`). Criteria and SSR
keep the same widths, so that they differ in what they keep and how they trained; slimming and Hinge
find theirs. What all must beat: random channels, the L1 norm, and the small network from scratch,
which trains as long as all stages of the others, the published weights' own training aside.

Measured on 2 cores without bfloat16, two jobs at a time: ResNet-20 136 minutes (65 jobs), LeNet 43
(81 jobs). Both can be interrupted and continued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from exact_resnets import TINY, WEIGHTS
from measured import metrics
from tables import TAIL, Job, widths_setting

TABLE = "head_to_head"
SCRATCH = "from scratch"
FLOOR = ("L1 norm", "random channels", SCRATCH)


@dataclass(frozen=True)
class Method:
    """How a method differs from the others: overrides of all its jobs.

    One that has `strengths` trains under a penalty before it is cut; that serves all budgets unless
    it is `aimed` at one, a share of the multiply-adds. Of several strengths the one is taken whose
    tuned network does best on the validation images, at the first budget with the first seed.
    """

    settings: tuple[str, ...]
    strengths: tuple[float, ...] = ()
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


def penalised(strengths: tuple[float, ...], *settings: str) -> Method:
    """Sparsified on all layers at once, then cut by what that left."""
    return Method(("criterion=stored", *settings), strengths)


def scored(name: str, *settings: str) -> Method:
    """Cut by a criterion on the network as it is."""
    return Method((f"criterion={name}", "regularizer=none", *settings))


def slimmed(penalty: str, lam: float, rate: float) -> Method:
    """One threshold over all batch-norm scales, after training under a penalty on them."""
    return Method(
        (
            *(f"regularizer={penalty}", "solver=slimming", "criterion=bn_scale"),
            *("selection.scope=global", "selection.normalise=null"),
            f"schedule.sparsify.optimizer.lr={rate:g}",
        ),
        (lam,),
    )


def hinge(lam: float, *settings: str) -> Method:
    """Both convolutions of every block decomposed, the search aimed at the budget."""
    return Method(
        (
            *("regularizer=hinge_lp", "solver=hinge", "order=hinge", "selection=threshold"),
            *("schedule.sparsify.batch=64", *settings),
            *("schedule.sparsify.optimizer.lr=0.003", "schedule.finetune.optimizer.lr=0.003"),
        ),
        (lam,),
        aimed=True,
    )


BASELINES = {
    "FPGM": scored("fpgm"),
    "Taylor": scored("taylor"),
    "L1 norm": scored("l1_norm"),
    "random channels": scored("random"),
    SCRATCH: scored("random", "criterion.name=scratch"),
}
STREAMS = "criterion.shared=sum"  # streams of residual stages go too, as by the other criteria


def with_norms(pull: float, rate: float, placement: str) -> dict[str, Method]:
    """The methods on networks with batch norms, strengths those of five epochs times `pull`.

    Those of slimming and Hinge are those of their own tables, scaled to five epochs. SSR trains
    with live norms: with frozen ones ResNet-20 fell to chance within five epochs at 0.2.
    """
    return {
        "SSR-L2,1": penalised(tuple(pull * lam for lam in (0.05, 0.1, 0.2)), "regularizer=l21"),
        "SSR-L2,0": penalised((0.3, 0.6, 1.0), "regularizer=l20"),
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
    with_norms(1.0, 0.05, "rows_rows"),
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
        "SSR-L2,1": penalised((0.06,), "regularizer=l21"),
        "SSR-L2,0": penalised((0.56,), "regularizer=l20"),
        "SSL": penalised((0.06,), "regularizer=l21", "solver=subgradient"),
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
    methods = with_norms(PULL, 0.05, placement)
    return Network(name, settings, methods, macs(0.3, 0.5, 0.7), 80, 240)


def tiny(network: Network) -> Network:
    """The same in as few epochs as there can be, without weights, two strengths at most."""
    methods = {m: replace(how, strengths=how.strengths[:2]) for m, how in network.methods.items()}
    return replace(network, methods=methods, epochs=1, scratch_epochs=1, weights="")


_SMALL = ("schedule.pretrain.epochs=1", "schedule.sparsify.epochs=1", "schedule.finetune.epochs=1")
SCALES = {
    "short": Extent(
        "Published weights; the exact CIFAR-10 images; 5 + 5 epochs.",
        seeds=(0, 1, 2),
        networks=(RESNET20,),
        overrides=("latency.seconds=3",),
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


def named(network: Network, method: str, budget: str, seed: int, lam: float | None = None) -> str:
    """The run of a method, where it has one at a strength, at a budget with a seed."""
    label = folder(method) if lam is None else f"{folder(method)}-{lam:g}"
    return f"{TABLE}/{network.name}/seed{seed}/{label}/{folder(budget)}"


def dense(extent: Extent, network: Network, seed: int, data: str) -> Job:
    """The network that every method of a seed starts from."""
    shared = (*network.settings, *extent.overrides)
    if not network.weights:
        place = f"{TABLE}/{network.name}/seed{seed}/dense"
        return Job(place, (*shared, f"seed={seed}"), ("pretrain",))
    given = f"weights={Path(data).parent / 'weights' / network.weights}"
    return Job(f"{TABLE}/{network.name}/given", (*shared, given), ("pretrain",))


@dataclass(frozen=True)
class Entry:
    """One method with one seed on one network, at a strength where it has one."""

    extent: Extent
    network: Network
    method: str
    seed: int
    data: str
    lam: float | None = None

    def jobs(self, budgets: Sequence[str]) -> list[Job]:
        """What it takes to bring it to these budgets."""
        apart = self._how().strengths and not self._how().aimed
        return [*([self.sparse()] if apart else []), *(self.cell(budget) for budget in budgets)]

    def sparse(self) -> Job:
        """The network trained under the penalty, which is cut to every budget."""
        return Job(self._named("sparse"), self._shared(), ("sparsify",), self._start())

    def cell(self, budget: str) -> Job:
        """Cut to the budget, tuned, measured."""
        name, how, whole = self._named(budget), self._how(), self.network.epochs
        if how.aimed:
            aim = next(w for w in self.network.budgets[budget] if w.startswith("selection.keep="))
            return Job(name, (*self._shared(), aim), ("sparsify", *TAIL), self._start())
        settings = self._shared(*self.network.budgets[budget])
        if self.method == SCRATCH:
            tuned = (_epochs(self.network.scratch_epochs), *self.network.scratch)
            return Job(name, (*settings, *tuned), TAIL)
        if how.strengths:
            return Job(name, settings, TAIL, self._named("sparse"))
        return Job(name, (*settings, _epochs(whole)), TAIL, self._start())

    def _how(self) -> Method:
        return self.network.methods[self.method]

    def _named(self, budget: str) -> str:
        return named(self.network, self.method, budget, self.seed, self.lam)

    def _start(self) -> str:
        return dense(self.extent, self.network, self.seed, self.data).name

    def _shared(self, *budget: str) -> tuple[str, ...]:
        """Overrides of all jobs; the method's own come last, since some need their own scope."""
        strength = () if self.lam is None else (f"regularizer.lam={self.lam:g}",)
        head = (*self.network.settings, *self.extent.overrides, f"seed={self.seed}")
        return (*head, *budget, *self._how().settings, *strength)


def choosing(extent: Extent) -> list[Job]:
    """The runs before weights and strengths are known: the networks from scratch."""
    return [
        job
        for seed in extent.seeds
        for network in extent.networks
        for job in Entry(extent, network, SCRATCH, seed, "").jobs(tuple(network.budgets))
    ]


def trials(extent: Extent, root: Path, data: str) -> list[Job]:
    """Every strength of every method that has several, at the first budget with the first seed."""
    seed = extent.seeds[0]
    found = [dense(extent, network, seed, data) for network in extent.networks]
    for network in extent.networks:
        for method, how in network.methods.items():
            for lam in how.strengths if len(how.strengths) > 1 else ():
                found += Entry(extent, network, method, seed, data, lam).jobs(
                    [*network.budgets][:1]
                )
    return found


def chosen(root: Path, extent: Extent, network: Network, method: str) -> float | None:
    """The strength of a method; of several, the best on validation images, or the first."""
    strengths = network.methods[method].strengths
    if len(strengths) < 2:
        return strengths[0] if strengths else None
    budget, seed = next(iter(network.budgets)), extent.seeds[0]
    runs = {lam: named(network, method, budget, seed, lam) for lam in strengths}
    tuned = {lam: metrics(root, run, "finetune") for lam, run in runs.items()}
    done = {lam: found["val_top1"] for lam, found in tuned.items() if found}
    return max(done, key=lambda lam: done[lam]) if done else strengths[0]


def comparing(extent: Extent, root: Path, data: str) -> list[Job]:
    """Every run at the chosen strengths, seed by seed, so that a part of it has whole seeds."""
    found: list[Job] = []
    for seed, network in product(extent.seeds, extent.networks):
        found.append(dense(extent, network, seed, data))
        for method in network.methods:
            lam = chosen(root, extent, network, method)
            found += Entry(extent, network, method, seed, data, lam).jobs(tuple(network.budgets))
    return list(dict.fromkeys(found))  # given weights serve all seeds


def _epochs(count: int) -> str:
    return f"schedule.finetune.epochs={count}"
