"""SSR's tables II to VI, the networks on ImageNet: which runs stand behind their rows, and figures.

Which group of strengths made which row is not stated: here group 1 is set beside the first row of a
method and group 2, where there is one, beside the second. Selection baselines keep as many filters
of every layer as SSR-L2,1, as published. X-GAP is X on the convolutions alone, and then global
average pooling in place of the linear layers. None of it is possible without ImageNet and a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from every_experiment import Experiment
from measured import IMAGENET, NOT_RUN, Row, a_gpu, metrics, spread
from tables import TAIL, Job

EPOCHS = 60  # of AULM, whose number is ours, and of tuning
TITLES = (
    *("seeds", "top-1 increase", "top-5 increase", "MACs", "params", "CPU speed-up"),
    *("GPU speed-up", "needs"),
)
NETWORKS = {"AlexNet": "alexnet", "VGG-16": "vgg16", "ResNet-50": "resnet50"}
NETWORKS["GoogLeNet"] = "googlenet"
MACS = {"AlexNet": 714e6, "VGG-16": 15.47e9, "ResNet-50": 4.089e9, "GoogLeNet": 1.5e9}
SECOND = {  # strengths of group 2, where it is published
    "AlexNet": {
        **{"features.0": 0.4, "features.3": 0.5, "features.6": 0.7, "features.8": 0.6},
        **{"features.10": 0.1, "classifier.1": 0.3, "classifier.4": 0.3},
    },
    "ResNet-50": {
        f"layer{stage}.*.conv{place}": 0.5 if (stage < 3) == (place == 1) else 0.4
        for stage in (1, 2, 3, 4)
        for place in (1, 2)
    },
}
BASE = "SSR-L2,1"
PENALISED = {
    BASE: (),
    "SSR-L2,0": ("regularizer=l20",),
    "SSR-L1": ("regularizer=l1", "keep_zeros=true"),
    "SSL": ("solver=subgradient", "~solver.inner"),
}
CRITERIA = {"Random": "random", "L1": "l1_norm", "APoZ": "apoz", "TE": "taylor"}
POOLED = "-GAP"
METHODS = tuple(f"{name}{head}" for head in ("", POOLED) for name in (*PENALISED, *CRITERIA))
THINET = "reconstruction of the next layer's input, which is not built"


@dataclass(frozen=True)
class Extent:
    """Which methods are run; narrow networks and drawn images where `small`."""

    said: str
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    small: bool = False


SCALES = {
    "paper": Extent("Published strengths and rates.", (0,), METHODS),
    "smoke": Extent(
        "Narrow networks, drawn images.", (0,), (BASE, "SSR-L2,0", "L1", BASE + POOLED), True
    ),
}


@dataclass(frozen=True)
class Line:
    """One published row: its network, its method, and which of the method's rows it is."""

    network: str
    method: str
    group: int

    @property
    def head(self) -> str:
        """The ending of the method's name where linear layers give way to pooling."""
        return POOLED if self.method.endswith(POOLED) else ""

    @property
    def chooses(self) -> str:
        """What says which filters go, whatever the network ends in then."""
        return self.method.removesuffix(POOLED)

    @property
    def base(self) -> Line:
        """The row of SSR-L2,1 whose widths the baselines have."""
        return replace(self, method=BASE + self.head)

    def experiment(self) -> str:
        """The file with its settings."""
        return f"ssr_{NETWORKS[self.network]}{'_gap' if self.head else ''}_imagenet"

    def built(self) -> bool:
        """Whether the toolkit has what the row takes."""
        return self.method in METHODS and (self.group == 1 or self.network in SECOND)

    def run(self, seed: int) -> str:
        """Where its run goes."""
        method = self.method.replace(",", "").replace(" ", "-")
        return f"ssr_imagenet/{NETWORKS[self.network]}/seed{seed}/{method}-group{self.group}"


def lines(facts: list[Mapping[str, str]]) -> list[Line]:
    """The rows of a table; the second of the same method is another group of strengths."""
    seen: dict[str, int] = {}
    found = []
    for fact in facts:
        seen[fact["method"]] = seen.get(fact["method"], 0) + 1
        found.append(Line(fact["model"], fact["method"], seen[fact["method"]]))
    return found


def jobs(rows: list[Line], extent: Extent) -> list[Job]:
    """The dense networks, what was sparsified, and every row that is cut from them."""
    wanted = [line for line in rows if line.built() and line.method in extent.methods]
    found: dict[str, Job] = {}
    for seed in extent.seeds:
        for line in wanted:
            for one in (dense(line.network, extent, seed), row(line.base, extent, seed)):
                found.setdefault(one.name, one)
        for line in wanted:
            found.setdefault(line.run(seed), row(line, extent, seed))
    return list(found.values())


def dense(network: str, extent: Extent, seed: int) -> Job:
    """The network of torchvision, with its weights."""
    weights = () if extent.small else ("model.weights=IMAGENET1K_V1", "schedule.pretrain.epochs=0")
    name = f"ssr_imagenet/{NETWORKS[network]}/seed{seed}/dense"
    plain = shared(Line(network, BASE, 1), extent, seed)
    return Job(name, (*plain, *weights), ("pretrain", "measure"))


def row(line: Line, extent: Extent, seed: int) -> Job:
    """One row: sparsified, or scored at the widths of SSR-L2,1; cut, tuned, measured."""
    plain = shared(line, extent, seed)
    start = f"{dense(line.network, extent, seed).name}/pretrain"
    if line.chooses in PENALISED:
        group = () if extent.small else _group(line)
        settings = (*plain, *PENALISED[line.chooses], *group)
        return Job(line.run(seed), settings, ("sparsify", *TAIL), _parent(start), "pretrain")
    like = line.base.run(seed)
    widths = ("selection=like_run", f"selection.path=${{root}}/{like}")
    settings = (*plain, "regularizer=none", f"criterion={CRITERIA[line.chooses]}", *widths)
    return Job(line.run(seed), settings, TAIL, _parent(start), "pretrain", (like,))


def _parent(start: str) -> str:
    return start.removesuffix("/pretrain")


def _group(line: Line) -> tuple[str, ...]:
    if line.group == 1:
        return ()
    weights = ",".join(f"{layer}:{weight}" for layer, weight in SECOND[line.network].items())
    return (f"regularizer.target.layers={{{weights}}}",)


def shared(line: Line, extent: Extent, seed: int) -> tuple[str, ...]:
    """What all runs of a network say."""
    name = line.experiment()
    small = Experiment.read(name).small().overrides if extent.small else (f"experiment={name}",)
    return (*small, f"seed={seed}")


def measured(root: Path, extent: Extent, line: Line) -> Row:
    """What the runs of a row found, over the seeds that have finished; else what it needs."""
    found = []
    for seed in extent.seeds if line.built() and line.method in extent.methods else ():
        before = metrics(root, dense(line.network, extent, seed).name, "measure")
        after = metrics(root, line.run(seed), "measure")
        found += [(before, after)] if before and after else []
    if not found:
        return {"seeds": 0, **dict.fromkeys(TITLES[1:-1], NOT_RUN), "needs": needs(line)}

    def over(key: str, form: str = "{:.2f}") -> str:
        values = [after.get(key) for _, after in found]
        return spread([value for value in values if value is not None], form)

    def increase(key: str) -> str:
        return spread([before[key] - after[key] for before, after in found], "{:+.2f}")

    cells = (len(found), increase("top1"), increase("top5"), over("macs", "{:,.0f}"))
    rest = (over("params", "{:,.0f}"), over("speedup"), over("gpu_speedup"), "")
    return dict(zip(TITLES, (*cells, *rest), strict=True))


def needs(line: Line) -> str:
    """What a run takes."""
    if "ThiNet" in line.method:
        return THINET
    if not line.built():
        return "strengths that were not published"
    return a_gpu("ImageNet", MACS[line.network], IMAGENET * EPOCHS)


def measured_dense(root: Path, extent: Extent, fact: Mapping[str, str]) -> Row:
    """Table II: the networks that all others start from."""
    done = [metrics(root, dense(fact["model"], extent, seed).name, "measure") for seed in (0,)]
    titles = ("seeds", "top-1 error", "top-5 error", "MACs", "params", "CPU ms")
    if not all(done):
        blank = dict.fromkeys(titles[1:], NOT_RUN)
        return {"seeds": 0, **blank, "needs": "ImageNet: the weights of torchvision, no training"}
    one = done[0]
    errors = (f"{100 - one[key]:.2f}" for key in ("top1", "top5"))
    cells = (1, *errors, one["macs"], one["params"], one["cpu_ms"])
    return {**dict(zip(titles, cells, strict=True)), "needs": ""}
