"""The runs behind every table and figure: plain data, one job a run directory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One `prunekit run`: where it goes, what it is started with, what must be there before.

    It starts from the last model of the run that it comes `after`, or from that of a `stage`, and
    reads what the runs that it `needs` have written.
    """

    name: str
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    after: str | None = None
    stage: str = ""
    needs: tuple[str, ...] = ()

    def waits_for(self) -> set[str]:
        """The runs that must be done before."""
        return {*self.needs, *((self.after,) if self.after else ())}

    def command(self, root: str) -> list[str]:
        """Arguments after `prunekit run`."""
        place = "/".join(filter(None, (root, self.after, self.stage)))
        source = [f"source={place}"] if self.after else []
        stages = f"pipeline=[{','.join(self.stages)}]"
        return [f"root={root}", f"name={self.name}", stages, *self.overrides, *source]


@dataclass(frozen=True)
class Scale:
    """How much is done: seeds (`extra_seeds` for the headline rows), overrides of every job.

    `scratch_epochs` is what a pruned network trains for in all its stages together.
    """

    seeds: tuple[int, ...]
    extra_seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    scratch_epochs: int = 0
    dense_tuning: tuple[str, ...] = ()
    convergence: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


SCALES = {  # of the tables of SSR
    "short": Scale(
        (0, 1, 2),
        (3, 4),
        (),
        32,
        ("schedule.finetune.epochs=5", "schedule.finetune.optimizer.lr=0.05"),
        ("schedule.sparsify.epochs=12",),
        ("schedule.sparsify.epochs=2",),
    ),
    "smoke": Scale(
        (0, 1), (), ("dataset=synthetic", "schedule=smoke", "latency.runs=5", "latency.batch=8"), 1
    ),
}
TAIL = ("prune", "finetune", "measure")
EXPERIMENT = ("experiment=ssr_lenet_mnist",)
TABLE_WIDTHS = ("3-11-108", "2-8-77")
FIGURE_WIDTHS = ("1-12-40", "4-12-120")
CRITERIA = ("random", "l1_norm", "apoz", "taylor")
SPARSE = {
    "l21": ("regularizer=l21",),
    "l20": ("regularizer=l20",),
    "ssl": ("regularizer=l21", "solver=subgradient"),
}
LABELS = {
    "l21": "SSR-L2,1",
    "l20": "SSR-L2,0",
    "l1": "SSR-L1",
    "ssl": "SSL",
    "random": "Random",
    "l1_norm": "L1",
    "apoz": "APoZ",
    "taylor": "TE",
    "scratch": "from scratch",
}


def widths_setting(widths: str, key: str = "selection.widths") -> str:
    """The widths 2-8-77, for instance, as an override."""
    first, second, hidden = widths.split("-")
    if key == "model.widths":
        return f"model.widths=[{first},{second},{hidden}]"
    return f"{key}={{conv1:{first},conv2:{second},fc1:{hidden}}}"


def dense(table: str, seed: int, scale: Scale) -> Job:
    """The pre-trained LeNet that every method of one seed starts from."""
    settings = (*EXPERIMENT, f"seed={seed}", *scale.overrides)
    return Job(f"{table}/seed{seed}/dense", settings, ("pretrain",))


def sparsified(table: str, seed: int, scale: Scale, method: str, *more: str) -> Job:
    """One sparsification, shared by all widths."""
    base = dense(table, seed, scale)
    settings = (*base.overrides, *SPARSE.get(method, (f"regularizer={method}",)), *more)
    return Job(f"{table}/seed{seed}/{method}", settings, ("sparsify",), base.name)


def to_widths(table: str, seed: int, scale: Scale, method: str, widths: str) -> Job:
    """Prune to the widths, fine-tune, measure: one cell of a table."""
    base = dense(table, seed, scale)
    name = f"{table}/seed{seed}/{method}/{widths}"
    if method in CRITERIA:
        settings = (*base.overrides, f"criterion={method}", widths_setting(widths))
        return Job(name, settings, TAIL, base.name)
    if method == "scratch":
        recipe = tuple(
            f"schedule.pretrain.{key}=${{schedule.finetune.{key}}}"
            for key in ("batch", "optimizer", "decay")
        )
        epochs = f"schedule.pretrain.epochs={scale.scratch_epochs}"
        small = widths_setting(widths, "model.widths")
        return Job(name, (*base.overrides, small, *recipe, epochs), ("pretrain", "measure"))
    parent = sparsified(table, seed, scale, method)
    return Job(name, (*parent.overrides, widths_setting(widths)), TAIL, parent.name)


def unstructured(table: str, seed: int, scale: Scale) -> list[Job]:
    """SSR-L1 removes weights, not filters; its zeros are held while it is tuned."""
    parent = sparsified(table, seed, scale, "l1")
    tune = ("selection=zeros", "keep_zeros=true", *scale.dense_tuning)
    return [parent, Job(f"{parent.name}/zeros", (*parent.overrides, *tune), TAIL, parent.name)]


def table1(scale: Scale) -> list[Job]:
    """Every run of SSR's table I; the headline, which has more seeds, comes first."""
    jobs: list[Job] = []
    for seed in (*scale.seeds, *scale.extra_seeds):
        jobs += [dense("ssr_t1", seed, scale), *_method_jobs(seed, scale, ("l21", "l20"))]
        jobs += [to_widths("ssr_t1", seed, scale, "scratch", widths) for widths in TABLE_WIDTHS]
    for seed in scale.seeds:
        jobs += [
            *_method_jobs(seed, scale, ("ssl", *CRITERIA)),
            *unstructured("ssr_t1", seed, scale),
        ]
    return jobs


def _method_jobs(seed: int, scale: Scale, methods: tuple[str, ...]) -> list[Job]:
    sparse = [sparsified("ssr_t1", seed, scale, method) for method in methods if method in SPARSE]
    return sparse + [
        to_widths("ssr_t1", seed, scale, method, widths)
        for widths in reversed(TABLE_WIDTHS)
        for method in methods
    ]


def figure3(scale: Scale) -> list[Job]:
    """Error against compression: more widths, the first seed, on table I's sparsified networks."""
    seed = scale.seeds[0]
    parents = [dense("ssr_t1", seed, scale)]
    parents += [sparsified("ssr_t1", seed, scale, method) for method in SPARSE]
    methods = (*SPARSE, *CRITERIA, "scratch")
    return parents + [
        to_widths("ssr_t1", seed, scale, method, widths)
        for widths in (*FIGURE_WIDTHS, *TABLE_WIDTHS)
        for method in methods
    ]


def figure5(scale: Scale) -> list[Job]:
    """Convergence of AULM, ADMM and SGD on l2,1, and of AULM on l2,0: sparsification alone."""
    seed = scale.seeds[0]
    base = dense("ssr_t1", seed, scale)
    settings = (*base.overrides, *scale.convergence)
    curves = {
        "aulm-l21": ("regularizer=l21", "solver=aulm"),
        "admm-l21": ("regularizer=l21", "solver=admm"),
        "sgd-l21": ("regularizer=l21", "solver=subgradient"),
        "aulm-l20": ("regularizer=l20", "solver=aulm"),
    }
    return [
        base,
        *(
            Job(f"ssr_f56/{name}", (*settings, *choice), ("sparsify",), base.name)
            for name, choice in curves.items()
        ),
    ]


def lambda_groups(scale: Scale) -> list[Job]:
    """The published strengths per layer, run as they are and pruned at exact zeros."""
    seed = scale.seeds[0]
    base = dense("ssr_t1", seed, scale)
    shared = (f"seed={seed}", *scale.overrides, *scale.groups)
    return [
        base,
        *(
            Job(
                f"ssr_lambda/{penalty}-group{index}",
                (f"experiment=ssr_lenet_group{index}", f"regularizer={penalty}", *shared),
                ("sparsify",),
                base.name,
            )
            for penalty in ("l21", "l20")
            for index in range(1, 7)
        ),
    ]
