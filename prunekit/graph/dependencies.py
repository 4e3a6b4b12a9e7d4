"""The first replay: find which channels depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from prunekit.errors import PrunekitError, TraceError
from prunekit.graph.calls import Call, count_macs
from prunekit.graph.dataflow import ModuleValues, could_read
from prunekit.graph.labels import (
    FROZEN,
    FreezeLog,
    LabeledTensor,
    Partition,
    frozen_tensor,
    map_only,
    spread,
    values_in,
)
from prunekit.graph.layers import (
    TRANSPOSED,
    channel_dim,
    has_channel_parameters,
    is_weighted,
    user_tensors,
    widths,
)
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.ops.weights import weight_path
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.replay import Repeats, Replay, concatenate_labels
from prunekit.graph.whole_groups import removes_whole_groups
from prunekit.reasons import reason_of

LabelTables = dict[str, dict[int, Tensor]]

_MODES = ("", "train mode", "gradients")  # passes that messages about outputs do not name


class Dependencies(Replay):
    """Gives every channel a label and unites the labels of channels that meet.

    The first recording is the network in eval mode, whose costs count; the others only add ties.
    `ins` and `outs` have the labels of the channels of every layer, `tensors` those of parameters
    and buffers of the user's own modules by dimension, `producers` those that a layer created.
    """

    def __init__(
        self,
        network: nn.Module,
        recordings: Sequence[Recording],
        over_norms: bool = False,
    ) -> None:
        super().__init__(network, recordings, over_norms)
        self.parts = Partition()
        self.log = FreezeLog()
        self.ins: dict[str, Tensor] = {}
        self.outs: dict[str, Tensor] = {}
        self.tensors: LabelTables = {}
        self.ranks: dict[str, int] = {}
        self.labeled_late = False  # a parameter got labels after it may have been used
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.uses: dict[str, int] = {}
        self.fixed_macs = self.product_macs = 0
        self.inexact: dict[str, None] = {}
        self.calls: dict[Step, Call] = {}
        self.functional: dict[str, None] = {}
        self.picks: dict[str, Tensor] = {}  # buffers of indices -> labels of what they pick from
        self.repeats = Repeats(self.results)
        self._costed = set(recordings[0].steps)
        self._used_directly: set[int] = set()  # ids of parameters
        self._user_tensors = user_tensors(network)

    @property
    def producers(self) -> dict[str, Tensor]:
        """The labels that each layer created."""
        return self.log.producers

    def play(self) -> None:
        """Replay every step; raises TraceError where one fails."""
        costed, others = self.steps[: len(self._costed)], self.steps[len(self._costed) :]
        for step in costed:
            self._play(step)
            if others:
                self.repeats.remember(step)
        for step in others:
            original = self.repeats.repeated(step)
            if original is None:
                self._play(step)
            else:
                self._reuse(step, original)
        self._unite_shared()
        self._report_uncalled()

    def _play(self, step: Step) -> None:
        try:
            self.results[step] = self.evaluate_step(step)
        except PrunekitError:
            raise
        except Exception as error:
            raise TraceError(
                f"{type(self.network).__name__} fails on the example at {self._describe(step)}: "
                f"{reason_of(error)}; give an example that the network takes, or mend that layer"
            ) from error
        self._remember(step)

    def _reuse(self, step: Step, original: Step) -> None:
        """Take over the result of an equal step of an earlier recording."""
        self.results[step] = self.results[original]
        if original in self.calls:
            self.calls[step] = self.calls[original]
        self._remember(step)

    def evaluate(self, call: Call) -> Any:
        """Keep the call for the later replays, and return its result."""
        call = replace(call, recorded=True)
        self.calls[call.step] = call
        return super().evaluate(call)

    def execute(self, call: Call) -> Any:
        """Return the recorded result."""
        return call.step.result

    def blank_labels(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """Return new labels, which are united with those of whatever is written there."""
        return self.parts.new_ids(meta.shape[dim])

    def unfollowed_result(self, call: Call) -> Any:
        """Return the result on shapes, and count the costs."""
        if self._is_costed(call):
            macs = count_macs(call)
            self.fixed_macs += macs.weights
            self.product_macs += macs.products
        self._report_unfollowed(call)
        return call.meta_result()

    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Unite labels; what meets a frozen channel is frozen from then on."""
        ids = self.parts.unite(a, b)
        if ids:
            self.log.note(ids, f"{call.title}: they meet what cannot be removed")

    def freeze(self, labels: Tensor, call: Call | None, reason: str | None) -> None:
        """Freeze labels and everything that is united with them."""
        ids = self.parts.freeze(labels)
        if ids and reason:
            self.log.note(ids, reason if call is None else f"{call.title}: {reason}")

    def visit_layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Register the input labels and create output labels; a second call unites both."""
        name, module = call.layer, call.module
        meta = call.meta_result()
        groups = getattr(module, "groups", 1)
        self._connect(self.ins, name, incoming, call)
        by_group, whole = incoming.reshape(groups, -1), removes_whole_groups(module)
        # either whole groups are removed, or all groups lose the same channels
        self.unite(by_group, by_group[:, :1] if whole else by_group[:1], call)
        width = meta.shape[channel_dim(module, meta.ndim)]
        if name not in self.outs:
            passed = by_group[:, 0].repeat_interleave(width // groups)
            self.outs[name] = passed if whole else self._new_channels(name, groups, width)
        if call.owner:
            self.functional[name] = None
            self.shapes.setdefault(name, tuple(meta.shape))
        if self._is_costed(call) and is_weighted(module):
            counted = call.values[0].meta if isinstance(module, TRANSPOSED) else meta
            channels = counted.shape[channel_dim(module, counted.ndim)]
            self.uses[name] = self.uses.get(name, 0) + counted.numel() // channels
        return meta, self.outs[name]

    def visit_norm(self, call: Call, labels: Tensor) -> None:
        """Register the same labels for inputs and outputs."""
        width = widths(call.module)[0]
        if len(labels) != width:
            raise ValueError(f"it has {width} channels and gets {len(labels)}")
        name, entry = call.layer, call.entry
        if call.owner:
            self.functional[name] = None
            self.shapes.setdefault(name, tuple(call.values[0].meta.shape))
        inexact = entry is not None and entry.normalizes and not entry.emits_bias
        if inexact and bool((labels != FROZEN).any()):
            self.inexact[name] = None
        for table in (self.ins, self.outs):
            self._connect(table, name, labels, call)

    def visit_tensor(self, step: Step) -> Any:
        """Return a parameter; entries along its only long dimension may be removed."""
        path = str(step.target)
        tensor = _attribute(self.network, path)
        if not isinstance(tensor, Tensor):
            return tensor
        meta = tensor.to("meta")
        long = [dim for dim, size in enumerate(meta.shape) if size > 1]
        is_weight = any(weight_path(self.network, user) == path for user in step.users)
        if path not in self._user_tensors or is_weight:
            return frozen_tensor(meta)
        self.ranks[path] = meta.ndim
        if len(long) == 1 and path not in self.tensors:
            self.tensors[path] = {long[0]: self.parts.new_ids(meta.shape[long[0]])}
        sides = self.tensors.get(path, {}).items()
        labels = [spread(ids, dim, meta.ndim) for dim, ids in sides]
        numbers = None if tensor.is_meta else tensor
        return LabeledTensor(
            meta, labels[0] if labels else frozen_tensor(meta).labels, path, numbers
        )

    def picked_labels(
        self, call: Call, value: LabeledTensor, dim: int, index: LabeledTensor
    ) -> Tensor | None:
        """Remove entries of a buffer of indices together with the channels that they pick."""
        path, numbers = str(index.source), index.constant
        before = self.picks.setdefault(path, value.along(dim))
        if index.source is None or numbers is None or len(before) != value.meta.shape[dim]:
            return None
        if bool((numbers < 0).any()) or path not in self.tensors:
            return None
        labels = value.along(dim)[numbers]
        self.unite(labels, index.along(0), call)
        self.unite(before, value.along(dim), call)
        return labels

    def label_parameters(self, call: Call) -> Call:
        """Give a parameter with several long dimensions the channels that it meets first."""
        unlabeled = [v for v in call.values if v.source and not v.varying and v.meta.numel() > 1]
        if not unlabeled:
            return call
        labeled = {id(value): self._labeled_parameter(value, call.values) for value in unlabeled}

        def swap(value: LabeledTensor) -> LabeledTensor:
            return labeled.get(id(value), value)

        args, kwargs = map_only((call.args, call.kwargs), swap, LabeledTensor)
        self.calls[call.step] = replace(call, args=args, kwargs=kwargs)
        return self.calls[call.step]

    def _labeled_parameter(
        self, value: LabeledTensor, others: Sequence[LabeledTensor]
    ) -> LabeledTensor:
        path = str(value.source)
        rank = max(other.meta.ndim for other in others)
        for other in others:
            for other_dim in other.varying:
                dim = other_dim - other.meta.ndim + value.meta.ndim
                same = dim >= 0 and value.meta.shape[dim] == other.meta.shape[other_dim]
                largest = rank == max(other.meta.ndim, value.meta.ndim)
                if same and largest and path not in self.tensors:
                    return self._label_dimension(path, value.meta, dim)
        return value

    def _label_dimension(self, path: str, meta: Tensor, dim: int) -> LabeledTensor:
        """Label a dimension of a parameter, also where it was read before."""
        labels = self.parts.new_ids(meta.shape[dim])
        self.tensors[path] = {dim: labels}
        self.labeled_late = True
        labeled = LabeledTensor(meta, spread(labels, dim, meta.ndim), source=path)
        for step in self.results:
            if step.kind is Kind.TENSOR and step.target == path:
                self.results[step] = labeled
        return labeled

    def visit_output(self, step: Step, result: Any) -> Any:
        """Freeze what leaves the network, and what the last step of a failed pass read."""
        recording = next(other for other in self.recordings if other.output is step)
        for value in values_in(result):
            ids = self.parts.freeze(value.labels)
            if ids and recording.failed is not None:
                self.log.note(ids, f"{recording.under}, which {recording.failed}")
            elif ids and recording.under not in _MODES:
                self.log.note(ids, f"leaving the network with {recording.under}")
            else:
                self.log.explain(ids, "they leave the network")
        return result

    @cached_property
    def all_labels(self) -> tuple[Tensor, Tensor]:
        """The distinct labels of all values in one vector, and the number of the value of each.

        It is computed once, so it may be read only after everything was replayed.
        """
        return concatenate_labels(values_in(*self.results.values()))

    def _is_costed(self, call: Call) -> bool:
        return call.step in self._costed

    def _new_channels(self, name: str, groups: int, width: int) -> Tensor:
        labels = self.parts.new_ids(width)
        self.log.add_producer(name, labels)
        if groups > 1:
            self.parts.unite(labels.reshape(groups, -1), labels.reshape(groups, -1)[:1])
        return labels

    def _connect(self, table: dict[str, Tensor], name: str, labels: Tensor, call: Call) -> None:
        before = table.setdefault(name, labels)
        if before is not labels:
            self.unite(before, labels, call)

    def _remember(self, step: Step) -> None:
        result = self.results[step]
        if step.kind is Kind.TENSOR and not self._is_layer_parameter(step):
            self._used_directly.add(id(_attribute(self.network, step.target)))
        if step.kind is Kind.LAYER and isinstance(result, LabeledTensor):
            self.shapes.setdefault(step.target, tuple(result.meta.shape))
            if step.target not in self.outs and result.meta.ndim > 1:
                dim = next(iter(result.varying), 1)
                if set(result.varying) <= {dim}:
                    self.outs[step.target] = result.along(dim)

    def _is_layer_parameter(self, step: Step) -> bool:
        """Return whether functions use a parameter only as the weight or bias of its layer."""
        return all(
            (weight_path(self.network, user) or norm_owner(self.network, user)) is not None
            for user in step.users
            if not user.is_query
        )

    def _unite_shared(self) -> None:
        """Unite the channels of layers that share a parameter."""
        owners: dict[int, list[str]] = {}
        for name, module in self.network.named_modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append(name)
        for key, names in owners.items():
            if len(names) > 1 or key in self._used_directly:
                self._unite_layers(names, key in self._used_directly)

    def _unite_layers(self, names: list[str], used_directly: bool) -> None:
        sides = [
            tuple(table[name] for table in (self.ins, self.outs) if name in table) for name in names
        ]
        same_widths = len({tuple(len(side) for side in pair) for pair in sides}) == 1 and sides[0]
        modules = [self.network.get_submodule(name) for name in names]
        if same_widths and not used_directly and all(map(has_channel_parameters, modules)):
            for pair in sides[1:]:
                for first, other in zip(sides[0], pair, strict=True):
                    self.parts.unite(first, other)
            return
        ids = [unit for pair in sides for side in pair for unit in self.parts.freeze(side)]
        if ids:
            self.log.note(ids, f"a parameter of {', '.join(names)} that is also used elsewhere")

    def _report_uncalled(self) -> None:
        tensors = (step for step in self.steps if step.kind is Kind.TENSOR)
        weights = {str(step.target).rpartition(".")[0]: step for step in tensors}
        values = ModuleValues(self.recordings, self.results)
        for name, module in self.network.named_modules():
            if is_weighted(module) and name not in self.shapes:
                users = weights[name].users if name in weights else ()
                user = next((user for user in users if not user.is_query), None)
                if user is not None:
                    reason = f"its weights go into {user}, which is not followed"
                    self.log.keep_full_size(name, reason)
                else:
                    self.log.keep_full_size(name, "not called in eval or train mode")
                    self._freeze_readable(name, module, values)

    def _freeze_readable(self, name: str, module: nn.Module, values: ModuleValues) -> None:
        """Freeze what an uncalled layer could read, so that it fits when it is called."""
        ids = [
            unit
            for value in values.reachable(name)
            if could_read(module, value)
            for unit in self.parts.freeze(value.labels)
        ]
        if ids:
            reason = f"{name}, which reads as many channels and is not called in any run"
            self.log.note(ids, reason)

    def _report_unfollowed(self, call: Call) -> None:
        """Report weights that no rule follows, also where no channel meets them."""
        if call.module is None or call.owner:
            for value in call.values:
                if value.source and sum(size > 1 for size in value.meta.shape) > 1:
                    reason = f"goes into {call.title}, which is not followed"
                    self.log.keep_full_size(value.source, reason)
        elif (call.entry is None or not (call.entry.macs or call.entry.narrow)) and any(
            True for _ in call.module.parameters()
        ):
            kind = type(call.module).__name__
            self.log.keep_full_size(call.layer, f"{kind} is not a layer that is followed")

    def _describe(self, step: Step) -> str:
        module = self.network.get_submodule(step.target) if step.kind is Kind.LAYER else None
        small = module is not None and not [*module.children()]
        return f"{step}, {module!r}" if small else str(step)


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
