"""ResNet-20 on the exact CIFAR-10 images: penalties on batch-norm scales at equal cost, as jobs.

Strengths are chosen by validation accuracy on a network that was trained from scratch without the
validation images; the published weights, which have seen them, are pruned at these strengths.
"""

from __future__ import annotations

from pathlib import Path

from tables import Job, Scale

TABLE = "slim_resnet20"
EXPERIMENT = (f"experiment={TABLE}_exact",)
WEIGHTS = "weights/resnet20-12fca82f.th"  # beside the data
STRENGTHS = (0.006, 0.012, 0.02)
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


def scratch(scale: Scale) -> Job:
    """The network that strengths are chosen on."""
    return Job(f"{TABLE}/scratch", (*EXPERIMENT, *scale.overrides), ("pretrain",))


def given(scale: Scale, weights: str) -> Job:
    """The published weights, not trained any further."""
    start = (f"weights={weights}", "schedule.pretrain.epochs=0")
    return Job(f"{TABLE}/given", (*EXPERIMENT, *scale.overrides, *start), ("pretrain",))


def setting(method: str, lam: float) -> tuple[str, ...]:
    """The overrides of a penalty and its strength; without a penalty it is l1 of strength 0."""
    return (*PENALTIES.get(method, PENALTIES["l1"]), f"regularizer.lam={lam}")


def trial(scale: Scale, method: str, lam: float) -> Job:
    """One strength of one penalty on the network trained here."""
    name = f"{TABLE}/choose/{folder(method)}-{lam:g}"
    settings = (*EXPERIMENT, *scale.overrides, *setting(method, lam))
    return Job(name, settings, TRIED, scratch(scale).name)


def run(scale: Scale, method: str, lam: float, seed: int, weights: str) -> Job:
    """The published weights, pruned and tuned at the chosen strength."""
    base = given(scale, weights)
    settings = (*EXPERIMENT, *scale.overrides, *setting(method, lam), f"seed={seed}")
    return Job(f"{TABLE}/seed{seed}/{folder(method)}", settings, (*TRIED, "measure"), base.name)


def folder(method: str) -> str:
    """A method's name as a directory."""
    return method.replace("/", "-").replace(" ", "-")


def choosing(scale: Scale) -> list[Job]:
    """What must be run before strengths are known."""
    strengths = [(method, lam) for lam in STRENGTHS for method in PENALTIES]
    return [scratch(scale), *(trial(scale, method, lam) for method, lam in strengths)]


def judged(scale: Scale, chosen: dict[str, float], weights: Path | str) -> list[Job]:
    """Every penalty at its strength and the network without one, seed by seed."""
    methods = {NONE: 0.0, **chosen}
    runs = [
        run(scale, method, lam, seed, str(weights))
        for seed in scale.seeds
        for method, lam in methods.items()
    ]
    return [given(scale, str(weights)), *runs]
