"""The training loop; a solver only adds hooks before and after every optimizer step."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.console import track
from prunekit.data import Batches, Data
from prunekit.data.folder_batches import explain_lost_workers
from prunekit.errors import ArtifactError, TrainingError
from prunekit.outputs import auxiliary_logits
from prunekit.solvers.base import Solver
from prunekit.termination import Terminated, postponed
from prunekit.training.checkpoint import Checkpoint
from prunekit.training.evaluation import evaluate, to_device
from prunekit.training.failures import explain_single_examples, refuse_bad_inputs
from prunekit.training.losses import AUXILIARY_WEIGHT, CrossEntropy, Distillation
from prunekit.training.progress import EpochProgress, restore_random_states
from prunekit.training.schedule import (
    HALF_PRECISIONS,
    MEMORY_FORMAT,
    Schedule,
    precision_warning,
)

log = logging.getLogger(__name__)
# what torch and solvers raise for the state of another network or optimizer
_UNFIT = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError)

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

    With a `checkpoint`, which is written after every epoch, at times within it, and on SIGTERM
    after the present step, a repeated call continues where the last call of the same identity
    stopped, and ends with the same weights; a finished one returns at once. Phases with the same
    `seed` train on the same batches. Raises TrainingError when the loss is not finite, DataError
    when inputs are the reason, ArtifactError when the checkpoint cannot be used.
    """
    model.to(device).to(memory_format=MEMORY_FORMAT)
    optimizer = schedule.optimizer(list(model.parameters() if params is None else params))
    loss = loss or CrossEntropy(schedule.label_smoothing)
    check_finite(model, label)
    trainer = _Trainer(
        model, schedule, optimizer, solver, tuple(frozen), loss, device, label, checkpoint
    )
    if solver:
        solver.expect(schedule.epochs * trainer.steps(data.train), optimizer)
    history, done = trainer.resume(data.train)
    if history and on_epoch:
        on_epoch(history)
    while not done and len(history) < schedule.epochs:
        epoch = len(history)
        seed_everything(mix_seeds(seed, 1, epoch))
        with trainer.saved_on_termination(history):
            with explain_lost_workers():
                metrics = trainer.train(data.train, history, mix_seeds(seed, 0, epoch))
            metrics |= trainer.validate(data.val, epoch)
            watched, stop = watch() if watch else ({}, False)
            with postponed():
                history.append(metrics | (solver.metrics() if solver else {}) | watched)
                done = stop or (solver is not None and solver.done)
                trainer.end_epoch(history, done)
                if on_epoch:
                    on_epoch(history)
    return history


def _report_auxiliary_heads(model: nn.Module) -> None:
    """Log at the next call of the network which of its outputs are trained as auxiliary heads."""

    def report(module: nn.Module, inputs: object, output: object) -> None:
        hook.remove()
        if names := [*auxiliary_logits(output)]:
            log.warning(
                f"{AUXILIARY_WEIGHT} times the loss of each auxiliary head is added to the loss: "
                f"{', '.join(names)}"
            )

    hook = model.register_forward_hook(report)


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
    checkpoint: Checkpoint | None

    def __post_init__(self) -> None:
        self.progress: EpochProgress | None = None  # of the epoch that was begun, None between two
        self.random_states: dict[str, Tensor] = {}  # of an epoch that is resumed
        self.is_resumed = False  # until the first step that works
        self.saved_at = time.monotonic()
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

    def train(self, batches: Batches, history: list[EpochMetrics], seed: int) -> EpochMetrics:
        """Train for one epoch, or for the rest of a resumed one."""
        self.model.train()
        for module in self.frozen:
            module.eval()
        epoch, steps = len(history), self.steps(batches)
        if epoch == 0 and isinstance(self.loss, CrossEntropy | Distillation):
            _report_auxiliary_heads(self.model)
        progress = self.progress = self.progress or EpochProgress.start(steps, self.device)
        for chunk in self._remaining_chunks(batches, epoch, seed):
            self.set_rates(epoch + progress.steps / steps)
            with postponed():
                loss, correct = self.step(chunk)
                progress.add(loss, correct, sum(len(y) for _, y in chunk))
            # reading the loss would synchronise a GPU, so there it is checked after the epoch
            if self.device_type == "cpu" and not math.isfinite(loss):
                refuse_bad_inputs(batches, "training")
                self._diverged(epoch, f"step {progress.steps}", float(loss))
            self._save_at_times(history)
        for step, value in enumerate(progress.losses.tolist()):
            if not math.isfinite(value):
                refuse_bad_inputs(batches, "training")
                self._diverged(epoch, f"step {step + 1}", value)
        lr = self.optimizer.param_groups[0]["lr"]
        return {
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": float(progress.losses.mean()),
            "train_top1": 100 * int(progress.hits) / progress.examples,
        }

    def steps(self, batches: Batches) -> int:
        """Return the number of optimizer steps in an epoch."""
        return -(-batches.steps(self.schedule.batch) // self.schedule.accumulate)

    def _remaining_chunks(self, batches: Batches, epoch: int, seed: int) -> Iterator[list[Batch]]:
        """Yield the batches of every step that the epoch still lacks.

        Those of earlier steps are read, too, so that all random numbers are those of an epoch that
        was never interrupted.
        """
        assert self.progress is not None
        states, self.random_states = self.random_states, {}
        if self.progress.complete:
            return
        label = f"{self.label} {epoch + 1}/{self.schedule.epochs}"
        count = batches.steps(self.schedule.batch)
        stream = track(batches.epoch(self.schedule.batch, seed), label, count)
        chunks = _chunks(stream, self.schedule.accumulate)
        for _ in islice(chunks, self.progress.steps):
            pass
        restore_random_states(states)
        yield from chunks

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
        half = torch.autocast(self.device_type, self.half, enabled=self.half is not None)
        with half, explain_single_examples(self.label):
            loss, logits = self.loss(self.model, x, y)
        loss = loss * share
        self.scaler.scale(loss).backward()
        return loss.detach(), (logits.detach().argmax(dim=1) == y).sum()

    def _optimizer_step(self) -> bool:
        """Take the optimizer's step; return False if it was skipped for an overflow in float16."""
        before = self.scaler.get_scale()
        try:
            self.scaler.step(self.optimizer)
        except _UNFIT as error:  # optimizers look at the shapes of a loaded state only now
            if self.checkpoint and self.is_resumed:
                raise self.checkpoint.mismatched("its optimizer is another one") from error
            raise
        self.is_resumed = False
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

    def resume(self, batches: Batches) -> tuple[list[EpochMetrics], bool]:
        """Load the checkpoint; return the metrics of its epochs, and whether training is done."""
        checkpoint = self.checkpoint
        state = checkpoint.load(self.device) if checkpoint else None
        if checkpoint is None or state is None:
            return [], False
        epochs = len(state["history"])
        if epochs > self.schedule.epochs:
            reason = f"it holds {epochs} epochs, this schedule has {self.schedule.epochs}"
            raise checkpoint.mismatched(reason)
        parts: dict[str, Callable[[Any], object]] = {
            "model": self.model.load_state_dict,
            "optimizer": self.optimizer.load_state_dict,
            "solver": self.solver.load_state_dict if self.solver else lambda saved: None,
            "scaler": self.scaler.load_state_dict,
            "progress": partial(self._load_progress, self.steps(batches)),
        }
        for name, load in parts.items():
            try:
                load(state[name])
            except ArtifactError as error:
                raise checkpoint.mismatched(str(error)) from error
            except _UNFIT as error:
                raise checkpoint.mismatched(f"its {name} is another one") from error
        self.is_resumed = True
        return state["history"], state["done"]

    def _load_progress(self, steps: int, saved: dict[str, Any] | None) -> None:
        """Continue an epoch of so many steps; None where no epoch was begun."""
        if saved is None:
            return
        self.progress = EpochProgress.start(steps, self.device)
        self.progress.load_state_dict(saved)
        self.random_states = saved["random"]
        restore_random_states(self.random_states)  # to find damage before training

    def end_epoch(self, history: list[EpochMetrics], done: bool) -> None:
        """Save the state after an epoch, with the metrics of all epochs so far."""
        self.progress = None
        self._save(history, done)

    @contextmanager
    def saved_on_termination(self, history: list[EpochMetrics]) -> Iterator[None]:
        """Save the steps of an unfinished epoch when SIGTERM ends the block."""
        try:
            yield
        except Terminated:
            if self.progress is not None and self.progress.steps:
                self._save(history, done=False)
            raise

    def _save_at_times(self, history: list[EpochMetrics]) -> None:
        """Save the state within an epoch if the last time was long ago."""
        if self.checkpoint and time.monotonic() - self.saved_at >= self.checkpoint.interval:
            self._save(history, done=False)

    def _save(self, history: list[EpochMetrics], done: bool) -> None:
        if self.checkpoint is None:
            return
        state = {"history": history, "done": done, "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        state["solver"] = self.solver.state_dict() if self.solver else {}
        state["scaler"] = self.scaler.state_dict()
        state["progress"] = self.progress.state_dict() if self.progress else None
        with postponed():
            self.checkpoint.save(state)
        self.saved_at = time.monotonic()

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
