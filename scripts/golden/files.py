"""Small model files and run directories as one version writes them, to be read by later ones.

They are made anew on purpose only: their worth is that an older prunekit wrote them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunekit
from prunekit import models
from prunekit.methods.slimming import Slimming
from scripts.golden.cli import call

FILES = Path(__file__).resolve().parents[2] / "tests" / "golden" / "files"
OUTPUTS = "outputs.json"
COLOURED, GREY = (2, 3, 16, 16), (2, 1, 28, 28)  # of the images that outputs are kept for
TINY = """\
# @package _global_
# LeNet with next to no channels on drawn images, every stage in a moment
defaults:
  - override /dataset: synthetic
  - override /solver: aulm_50
  - override /schedule: smoke
  - override /criterion: l1_norm
  - override /selection: per_layer
  - override /runtime: cpu
name: tiny
root: runs
dataset: {train: 96, val: 32, test: 32}
latency: {runs: 5, warmup: 1, batch: 4, seconds: 1}
sensitivity: {shares: [0.5], timing: null}
features: {perplexity: 5}
runtime: {threads: 1}
"""
SMALLEST = "model.widths=[3,4,8]"
QUICK = ("--config-dir=configs", "experiment=tiny")
IN_COLOUR = ("dataset.channels=3", "dataset.image_size=16", "diagnose=false")
SMALL_RESNET = ("model=resnet20", "model._target_=prunekit.models.ResNet", "+model.blocks=1")
SMALL_PRERESNET = ("model=preresnet164", "model._target_=prunekit.models.PreResNet")
STAGES = ("pretrain", "sparsify", "sensitivity", "prune", "features", "finetune", "measure")


def make(out: Path) -> None:
    """Write every fixture below `out`, in place of what is there."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "models").mkdir()
        (place / "configs" / "experiment").mkdir(parents=True)
        (place / "configs" / "experiment" / "tiny.yaml").write_text(TINY)
        for name, arguments in _COMMANDS.items():
            _by_command(place, name, arguments)
        for name, write in _CALLS.items():
            write(place / "models" / f"{name}.pt")
        shutil.rmtree(place / "runs")
        _runs(place)
        outputs = {file.stem: outputs_of(file) for file in sorted((place / "models").glob("*.pt"))}
        (place / OUTPUTS).write_text(json.dumps(outputs, indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(place, out, symlinks=True)


def images(shape: tuple[int, ...]) -> Tensor:
    """Return images that no generator of random numbers draws."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) * 0.7).sin().float().view(shape)


def outputs_of(file: Path) -> dict[str, Any]:
    """Return the outputs of the network of a model file, and the shape of its images."""
    dense = FOREIGN.get(file.stem)
    model = prunekit.load_model(file, module=dense() if dense else None).model.eval()
    shape = GREY if file.stem.startswith("lenet") else COLOURED
    with torch.no_grad():
        batch = images(shape).to(next(model.parameters()).dtype)
        values = model(batch).double()
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = [[float(f"{value:.7g}") for value in row] for row in values.tolist()]
    return {"shape": list(shape), "parameters": count, "outputs": rows}


def stack() -> nn.Module:
    """Return a network without a class of its own: its file does not say how it is built."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


FOREIGN: dict[str, Callable[[], nn.Module]] = {"stack_without_arch": stack}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a network with random weights, no two channels of its batch norms alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.4, 1.6)
                nn.init.normal_(module.bias, 0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model


def _saved(
    arch: dict[str, Any],
    shape: tuple[int, ...],
    half: bool = False,
    weak: tuple[str, ...] = (),
    **wish: Any,
) -> Callable[[Path], None]:
    """Return a function that writes the file of a network cut by `prunekit.prune`.

    The scales of `weak` norms are made small before.
    """

    def write(file: Path) -> None:
        plain = {key: value for key, value in arch.items() if key != "_target_"}
        model = seeded(lambda: getattr(models, arch["_target_"].rpartition(".")[2])(**plain))
        for name in weak:
            model.get_submodule(name).weight.data.mul_(0.01)
        if half:
            model = model.bfloat16()
        example = images(shape).to(next(model.parameters()).dtype)
        prunekit.prune(model, example, **wish).save(file, arch, note="golden", rate=0.5)

    return write


def _stack(file: Path) -> None:
    prunekit.prune(seeded(stack), images(COLOURED), keep=0.5, absorb=True).save(file)


def _dense(file: Path) -> None:
    model = seeded(lambda: models.LeNet5(widths=(3, 4, 8)))
    prunekit.save_model(file, model, {**LENET, "widths": [3, 4, 8]}, epochs=3, mean=torch.ones(2))


LENET = {"_target_": "prunekit.models.LeNet5", "widths": [4, 6, 12]}
RESNET = {"_target_": "prunekit.models.ResNet", "blocks": 1, "widths": [4, 6, 8]}
RESNET2 = {"_target_": "prunekit.models.ResNet", "blocks": 2, "widths": [4, 6, 8]}
VGG = {"_target_": "prunekit.models.VGG", "blocks": [[6, 6], [8], [8], [8]], "hidden": [8]}
DENSENET = {"_target_": "prunekit.models.DenseNet", "growth": 3, "layers": 2, "stem": 4}

# what edits each of these files holds is in its name
_CALLS: dict[str, Callable[[Path], None]] = {
    "lenet_dense": _dense,
    "lenet_narrow": _saved(LENET, GREY, keep=0.5, absorb=False),
    "resnet_narrow_biases": _saved(RESNET, COLOURED, keep=0.5, absorb=True),
    "resnet_narrow_bfloat16": _saved(RESNET, COLOURED, half=True, keep=0.6, absorb=False),
    "vgg_narrow_biasmaps": _saved(VGG, COLOURED, keep=0.5, absorb="maps"),
    "densenet_narrow_biases": _saved(DENSENET, COLOURED, macs=0.6, scope="global"),
    "resnet_skipblock": _saved(
        *(RESNET2, COLOURED),
        weak=("layer1.1.bn1", "layer2.1.bn1"),
        criterion="bn_scale",
        selection=Slimming(0.25, on_empty="skip_block"),
    ),
    "stack_without_arch": _stack,
}
_COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "preresnet_selections": (
        "prune",
        (
            *(*IN_COLOUR, *SMALL_PRERESNET, "+model.blocks=1", "+model.widths=[3,4,4]"),
            *("+model.stem=4", "channel_selection=true", "criterion=bn_scale"),
        ),
    ),
    "resnet_attached": (
        "sparsify",
        (
            *(*IN_COLOUR, *SMALL_RESNET, "+model.widths=[4,6,8]"),
            *("placement=rows_rows", "regularizer=hinge_l1", "solver=proximal"),
        ),
    ),
    "resnet_attached_folded": (
        "prune",
        (
            *(*IN_COLOUR, *SMALL_RESNET, "+model.widths=[4,6,8]"),
            *("placement=low_rank", "criterion=matrix"),
        ),
    ),
    "vgg_narrow_head": (
        "finetune",
        (*(*IN_COLOUR, "source=models/vgg_cut.pt", "head=pooled", "dataset.classes=5"),),
    ),
}


def _by_command(place: Path, name: str, words: tuple[str, tuple[str, ...]]) -> None:
    """Make a model file by a command; one of them goes on from a network that was cut before."""
    command, arguments = words
    before = place / "models" / "vgg_cut.pt"
    if f"source=models/{before.name}" in arguments:
        _saved(VGG, COLOURED, keep=0.5, absorb=True)(before)
    _do(place, command, *QUICK, *arguments, f"name={name}")
    shutil.move(place / "runs" / name / command / "model.pt", place / "models" / f"{name}.pt")
    before.unlink(missing_ok=True)


def _runs(place: Path) -> None:
    """Make a finished run, one that was killed in training, and a sweep that shared a stage."""
    _do(place, "run", *QUICK, SMALLEST, f"pipeline=[{','.join(STAGES)}]", "name=finished")
    _do(place, "run", "-m", *QUICK, SMALLEST, "name=sweep", "regularizer.lam=0.01,0.02")
    _interrupted(place, "run", *QUICK, SMALLEST, "schedule.sparsify.epochs=500", "name=interrupted")
    for pattern in ("multirun.yaml", "*.html", "*.png"):  # written for people, large, read by none
        for file in (place / "runs").rglob(pattern):
            file.unlink()
    for file in (place / "runs").rglob("report.json"):
        report = json.loads(file.read_text())
        report["environment"]["platform"] = "Linux"  # whose machine it was is nobody's business
        file.write_text(json.dumps(report, indent=2) + "\n")


def _do(place: Path, *arguments: str) -> None:
    ended = call(place, *arguments)
    if ended.code:
        raise SystemExit(f"prunekit {' '.join(arguments)}: {ended.err}")


def _interrupted(place: Path, *arguments: str) -> None:
    """Start a run and kill it once it has saved its progress in sparse training."""
    line = [sys.executable, "-m", "prunekit", *arguments]
    child = subprocess.Popen(line, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stage = place / "runs" / "interrupted" / "sparsify"
    while child.poll() is None and not (stage / "last.pt").is_file():
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for draft in stage.glob(".*.part*"):
        draft.unlink()
    if (stage / "report.json").is_file() or not (stage / "last.pt").is_file():
        raise SystemExit("the run ended before it could be interrupted; give it more epochs")
