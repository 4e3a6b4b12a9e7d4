"""The training loop; a solver only adds hooks before and after every optimizer step."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.console import track
from prunekit.data import Batches, Data
from prunekit.errors import TrainingError
from prunekit.solvers.base import Solver
from prunekit.training.checkpoint import Checkpoint
from prunekit.training.evaluation import evaluate, to_device
from prunekit.training.losses import CrossEntropy
from prunekit.training.schedule import (
    HALF_PRECISIONS,
    MEMORY_FORMAT,
    Schedule,
    precision_warning,
)

log = logging.getLogger(__name__)

EpochMetrics = dict[str, float]  # one line of metrics.csv
Loss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
Watch = Callable[[], tuple[EpochMetrics, bool]]  # metrics, and whether to stop
Batch = tuple[Tensor, Tensor]
Trainable = Tensor | dict[str, Any]  # a parameter, or a parameter group of the optimizer


def fit(
    model: nn.Module,
    data: Data,
    schedule: Schedule,
    *,
    solver: Solver | None = None,
    params: Iterable[Trainable] | None = None,
    frozen: Sequence[nn.Module] = (),
    loss: Loss | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
    label: str = "train",
    watch: Watch | None = None,
    on_epoch: Callable[[list[EpochMetrics]], None] | None = None,
) -> list[EpochMetrics]:
    """Train the model in place and return the metrics of every epoch.

    `params` are parameters or groups for the optimizer (default: all of the model); the rate of a
    group with an `lr_scale` is the schedule's times that. Modules in `frozen` stay in evaluation
    mode. `loss(model, x, y)` returns the loss and the logits. The `solver` must be bound, on
    `device`; the caller calls its `finish`. After every epoch `watch` returns further metrics and
    whether to stop, and `on_epoch` gets the metrics of all epochs.

    With a `checkpoint`, which is written after every epoch, a repeated call continues where the
    last call of the same identity stopped, and ends with the same weights; a finished one returns
    at once. Phases with the same `seed` train on the same batches. Raises TrainingError when the
    loss is not finite, ArtifactError when the checkpoint cannot be used.
    """
    model.to(device).to(memory_format=MEMORY_FORMAT)
    optimizer = schedule.optimizer(list(model.parameters() if params is None else params))
    loss = loss or CrossEntropy(schedule.label_smoothing)
    check_finite(model, label)
    trainer = _Trainer(model, schedule, optimizer, solver, tuple(frozen), loss, device, label)
    if solver:
        solver.expect(schedule.epochs * trainer.steps(data.train), optimizer)
    history, done = trainer.resume(checkpoint)
    if history and on_epoch:
        on_epoch(history)
    while not done and len(history) < schedule.epochs:
        epoch = len(history)
        seed_everything(mix_seeds(seed, 1, epoch))
        metrics = trainer.train(data.train, epoch, mix_seeds(seed, 0, epoch))
        metrics |= trainer.validate(data.val, epoch)
        watched, stop = watch() if watch else ({}, False)
        history.append(metrics | (solver.metrics() if solver else {}) | watched)
        done = stop or (solver is not None and solver.done)
        trainer.save(checkpoint, history, done)
        if on_epoch:
            on_epoch(history)
    return history


def _chunks(stream: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """Yield lists of `count` batches; the last list may be shorter."""
    rest = iter(stream)
    while chunk := list(islice(rest, count)):
        yield chunk


@dataclass
class _Trainer:
    model: nn.Module
    schedule: Schedule
    optimizer: Optimizer
    solver: Solver | None
    frozen: tuple[nn.Module, ...]
    loss: Loss
    device: torch.device | str
    label: str

    def __post_init__(self) -> None:
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        self.rates = [group["lr"] for group in groups]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.half = HALF_PRECISIONS.get(self.schedule.precision)
        self.device_type = torch.device(self.device).type
        if line := precision_warning(self.schedule.precision, self.device_type):
            log.warning(line)
        # float16 gradients would underflow below 6e-8; a disabled scaler changes nothing
        scales = self.half is torch.float16
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=scales)

    def train(self, batches: Batches, epoch: int, seed: int) -> EpochMetrics:
        """Train for one epoch."""
        self.model.train()
        for module in self.frozen:
            module.eval()
        count, steps = batches.steps(self.schedule.batch), self.steps(batches)
        losses, examples = torch.zeros(steps, device=self.device), 0
        hits = torch.zeros((), dtype=torch.long, device=self.device)
        label = f"{self.label} {epoch + 1}/{self.schedule.epochs}"
        stream = track(batches.epoch(self.schedule.batch, seed), label, count)
        for step, chunk in enumerate(_chunks(stream, self.schedule.accumulate)):
            self.set_rates(epoch + step / steps)
            losses[step], correct = self.step(chunk)
            hits += correct
            examples += sum(len(y) for _, y in chunk)
            # reading the loss would synchronise a GPU, so there it is checked after the epoch
            if self.device_type == "cpu" and not math.isfinite(losses[step]):
                self._diverged(epoch, f"step {step + 1}", float(losses[step]))
        for step, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                self._diverged(epoch, f"step {step + 1}", loss)
        lr = self.optimizer.param_groups[0]["lr"]
        return {
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": float(losses.mean()),
            "train_top1": 100 * int(hits) / examples,
        }

    def steps(self, batches: Batches) -> int:
        """Return the number of optimizer steps in an epoch."""
        return -(-batches.steps(self.schedule.batch) // self.schedule.accumulate)

    def step(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return the loss before it and the number of correct examples.

        The penalty is added once, after all batches, when the gradient is unscaled and clipped.
        """
        self.model.zero_grad()  # also of parameters that the optimizer does not train
        examples = sum(len(y) for _, y in batches)
        parts = [self._backward(x, y, len(y) / examples) for x, y in batches]
        self.scaler.unscale_(self.optimizer)
        if self.schedule.clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.schedule.clip)
        if self.solver:
            self.solver.before_step(self.optimizer)
        if self._optimizer_step() and self.solver:
            self.solver.after_step(self.optimizer)
        losses, hits = zip(*parts, strict=True)
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    def _backward(self, x: Tensor, y: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Add `share` times the gradient of a batch; return that part of the loss, and the hits."""
        x, y = to_device(x, self.device), y.to(self.device, non_blocking=True)
        with torch.autocast(self.device_type, self.half, enabled=self.half is not None):
            loss, logits = self.loss(self.model, x, y)
        loss = loss * share
        self.scaler.scale(loss).backward()
        return loss.detach(), (logits.detach().argmax(dim=1) == y).sum()

    def _optimizer_step(self) -> bool:
        """Take the optimizer's step; return False if it was skipped for an overflow in float16."""
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def set_rates(self, epoch: float) -> None:
        """Set the rate of every parameter group to that after `epoch` epochs."""
        factor = self.schedule.decay.factor(epoch, self.schedule.epochs)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def validate(self, batches: Batches, epoch: int) -> EpochMetrics:
        """Return loss and accuracy on the validation set; without one, only check the weights."""
        if not batches.size:
            if not all(bool(param.isfinite().all()) for param in self.trained):
                self._diverged(epoch, "after its last step", math.nan)
            return {}
        metrics = evaluate(self.model, batches, self.device, max(256, self.schedule.batch))
        if not math.isfinite(metrics["loss"]):
            self._diverged(epoch, "validation", metrics["loss"])
        return {"val_loss": metrics["loss"], "val_top1": metrics["top1"]}

    def resume(self, checkpoint: Checkpoint | None) -> tuple[list[EpochMetrics], bool]:
        """Load the checkpoint; return the metrics of its epochs, and whether training is done."""
        state = checkpoint.load(self.device) if checkpoint else None
        if checkpoint is None or state is None:
            return [], False
        epochs = len(state["history"])
        if epochs > self.schedule.epochs:
            reason = f"it holds {epochs} epochs, this schedule has {self.schedule.epochs}"
            raise checkpoint.mismatched(reason)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.solver:
                self.solver.load_state_dict(state["solver"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise checkpoint.mismatched(error) from error
        return state["history"], state["done"]

    def save(self, checkpoint: Checkpoint | None, history: list[EpochMetrics], done: bool) -> None:
        """Save the state after an epoch."""
        if checkpoint is None:
            return
        state = {"history": history, "done": done, "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        state["solver"] = self.solver.state_dict() if self.solver else {}
        state["scaler"] = self.scaler.state_dict()
        checkpoint.save(state)

    def _diverged(self, epoch: int, moment: str, loss: float) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        if epoch == 0 and moment == "step 1":  # nothing was trained yet, so no rate is to blame
            raise TrainingError(
                f"{self.label}: the loss is {loss} in the first step, before any update, with "
                "finite weights; look for nan or very large values in the images (dataset.mean, "
                "dataset.std) and in the network, or use precision=float32"
            )
        raise TrainingError(
            f"{self.label}: the loss is {loss} in epoch {epoch + 1}, {moment}, at learning rate "
            f"{lr:g}; lower the rate or set clip"
        )


def check_finite(model: nn.Module, label: str) -> None:
    """Raise TrainingError for a network with weights or statistics that are not finite."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).sum())
            raise TrainingError(
                f"{label}: {name} holds {count} values that are nan or infinite before the first "
                "step; start from other weights (weights=..., source=...)"
            )


def mix_seeds(*parts: int) -> int:
    """Hash integers to a seed of 63 bits, which is the same on every machine and version."""
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed PyTorch's global generators, which initialisation and dropout use."""
    torch.manual_seed(seed)
