"""The first pass over recorded runs: gives out labels and unites those that meet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from prunekit.errors import PrunekitError, TraceError, listed
from prunekit.graph.calls import Call
from prunekit.graph.costs import counted
from prunekit.graph.layers import TRANSPOSED, channel_dim, is_weighted, widths
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.ops.weights import weight_path
from prunekit.graph.own import has_channel_parameters, user_tensors
from prunekit.graph.partition import FROZEN, Partition
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.repeats import Repeats, concatenate_labels
from prunekit.graph.run import Replay
from prunekit.graph.uncalled import ModuleValues, could_read
from prunekit.graph.values import LabeledTensor, frozen_tensor, map_only, spread, values_in
from prunekit.graph.whole_groups import removes_whole_groups

Tables = dict[str, dict[int, Tensor]]

_MODES = ("", "train mode", "gradients")  # runs whose outputs need no words


class Dependencies(Replay):
    """The first pass: gives out labels and unites those that meet.

    The first graph is the network in eval mode, whose costs count; further graphs only add ties.
    """

    def __init__(
        self,
        network: nn.Module,
        recordings: Sequence[Recording],
        over_norms: bool = False,
    ) -> None:
        super().__init__(network, recordings, over_norms)
        self.parts = Partition()
        self.ins: dict[str, Tensor] = {}
        self.outs: dict[str, Tensor] = {}
        self.tensors: Tables = {}  # parameters and buffers of the user's own: dimension -> labels
        self.ranks: dict[str, int] = {}
        self.parameters_labeled_late = (
            False  # whether a parameter got labels after it may have been used
        )
        self.producers: dict[str, Tensor] = {}  # layers that made labels, with these labels
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.uses: dict[str, int] = {}
        self.fixed_macs = 0
        self.inexact: dict[str, None] = {}
        self.full_size: dict[str, str] = {}  # layer or parameter -> why it keeps its size
        self.calls: dict[Step, Call] = {}
        self._costed = set(recordings[0].steps)
        self.repeats = Repeats(self.results)
        self.layers_of_reason: dict[str, dict[str, None]] = {}  # why -> the layers it is about
        self.reasons: dict[int, str] = {}  # label -> why it stays
        self._starts: list[int] = []
        self._start_layers: list[str] = []
        self._used_directly: set[int] = set()
        self.functional: dict[str, None] = {}
        self.picks: dict[str, Tensor] = {}  # buffers of indices -> labels of what they pick from
        self._own = user_tensors(network)

    def play(self) -> None:
        """Play every step; raises TraceError where that cannot be."""
        costed, others = self.steps[: len(self._costed)], self.steps[len(self._costed) :]
        for step in costed:
            self._play(step)
            if others:
                self.repeats.remember(step)
        for step in others:
            before = self.repeats.repeated(step)
            if before is None:
                self._play(step)
            else:
                self._reuse(step, before)
        self._unite_shared()
        self._report_uncalled()

    def _play(self, step: Step) -> None:
        try:
            self.results[step] = self.evaluate_step(step)
        except PrunekitError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise TraceError(
                f"{type(self.network).__name__} fails on the example at {self._describe(step)}: {reason}"
            ) from error
        self._remember(step)

    def _reuse(self, step: Step, before: Step) -> None:
        """Take over what an equal step of an earlier recording gave."""
        self.results[step] = self.results[before]
        if before in self.calls:
            self.calls[step] = self.calls[before]
        self._remember(step)

    def evaluate(self, call: Call) -> Any:
        """Keep the call for the passes to come."""
        call = replace(call, recorded=True)
        self.calls[call.step] = call
        return super().evaluate(call)

    def execute(self, call: Call) -> Any:
        """What was recorded."""
        return call.step.result

    def blank_labels(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """Labels that nothing has, until something is written there."""
        return self.parts.new_ids(meta.shape[dim])

    def unfollowed_result(self, call: Call) -> Any:
        """Run what is not followed on shapes, and count its costs."""
        result, macs = counted(call)
        self.fixed_macs += macs if self._is_costed(call) else 0
        self._report_unfollowed(call)
        return result

    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Merge classes; what meets a fixed channel is fixed from then on."""
        lost = self.parts.unite(a, b)
        if lost:
            self.note(lost, f"{call.title}: they meet what cannot be removed")

    def freeze(self, labels: Tensor, call: Call | None, why: str | None) -> None:
        """Merge the classes of `labels` into the fixed one."""
        lost = self.parts.freeze(labels)
        if lost and why:
            self.note(lost, why if call is None else f"{call.title}: {why}")

    def visit_layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Record what goes in, label what comes out; a second call unites with the first."""
        name, module = call.layer, call.module
        meta = call.meta_result()
        groups = getattr(module, "groups", 1)
        self._connect(self.ins, name, incoming, call)
        rows, whole = incoming.reshape(groups, -1), removes_whole_groups(module)
        self.unite(rows, rows[:, :1] if whole else rows[:1], call)  # or all groups lose the same
        width = meta.shape[channel_dim(module, meta.ndim)]
        if name not in self.outs:
            passed = rows[:, 0].repeat_interleave(width // groups)
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
        """Record the same labels on both sides."""
        width = widths(call.module)[0]
        if len(labels) != width:
            raise ValueError(f"it has {width} channels and gets {len(labels)}")
        name = call.layer
        if call.owner:
            self.functional[name] = None
            self.shapes.setdefault(name, tuple(call.values[0].meta.shape))
        if not call.entry.emits_bias and call.entry.normalizes and bool((labels != FROZEN).any()):
            self.inexact[name] = None
        for table in (self.ins, self.outs):
            self._connect(table, name, labels, call)

    def visit_tensor(self, step: Step) -> Any:
        """Entries along the only long dimension of a parameter can go where channels go."""
        path = str(step.target)
        found = _attribute(self.network, path)
        if not isinstance(found, Tensor):
            return found
        meta = found.to("meta")
        long = [dim for dim, size in enumerate(meta.shape) if size > 1]
        if path not in self._own or any(weight_path(self.network, u) == path for u in step.users):
            return frozen_tensor(meta)
        self.ranks[path] = meta.ndim
        if len(long) == 1 and path not in self.tensors:
            self.tensors[path] = {long[0]: self.parts.new_ids(meta.shape[long[0]])}
        labels = [spread(own, dim, meta.ndim) for dim, own in self.tensors.get(path, {}).items()]
        numbers = None if found.is_meta else found
        return LabeledTensor(
            meta, labels[0] if labels else frozen_tensor(meta).labels, path, numbers
        )

    def picked_labels(
        self, call: Call, value: LabeledTensor, dim: int, index: LabeledTensor
    ) -> Tensor | None:
        """The entries of a buffer of indices vanish with the channels that they pick."""
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
        """A parameter with several long dimensions follows the channels it meets first."""
        strangers = [v for v in call.values if v.source and not v.varying and v.meta.numel() > 1]
        if not strangers:
            return call
        adopted = {id(value): self._labeled_parameter(value, call.values) for value in strangers}

        def swap(value: LabeledTensor) -> LabeledTensor:
            return adopted.get(id(value), value)

        args, kwargs = map_only((call.args, call.kwargs), swap, LabeledTensor)
        self.calls[call.step] = replace(call, args=args, kwargs=kwargs)
        return self.calls[call.step]

    def _labeled_parameter(
        self, value: LabeledTensor, others: Sequence[LabeledTensor]
    ) -> LabeledTensor:
        path = str(value.source)
        rank = max(other.meta.ndim for other in others)
        for other in others:
            for dim in other.varying:
                own = dim - other.meta.ndim + value.meta.ndim
                matches = own >= 0 and value.meta.shape[own] == other.meta.shape[dim]
                if (
                    matches
                    and rank == max(other.meta.ndim, value.meta.ndim)
                    and path not in self.tensors
                ):
                    labels = self.parts.new_ids(value.meta.shape[own])
                    self.tensors[path] = {own: labels}
                    self.parameters_labeled_late = True
                    grown = LabeledTensor(
                        value.meta, spread(labels, own, value.meta.ndim), source=path
                    )
                    for step in self.results:
                        if step.kind is Kind.TENSOR and step.target == path:
                            self.results[step] = grown
                    return grown
        return value

    def visit_output(self, step: Step, result: Any) -> Any:
        """Nothing that leaves the network can vanish, nor what a run that failed read last."""
        run = next(one for one in self.recordings if one.output is step)
        for value in values_in(result):
            lost = self.parts.freeze(value.labels)
            if lost and run.failed is not None:
                self.note(lost, f"{run.under}, which {run.failed}")
            elif lost and run.under not in _MODES:
                self.note(lost, f"leaving the network with {run.under}")
            else:
                self.reasons.update(dict.fromkeys(lost, "they leave the network"))
        return result

    def note(self, lost: Sequence[int], why: str) -> None:
        """Keep why channels stay."""
        self.reasons.update(dict.fromkeys(lost, why))
        for name in self.owners(lost):
            self.layers_of_reason.setdefault(f"channels are frozen by {why}", {})[name] = None

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for every reason."""
        return tuple(f"{listed([*names])}: {why}" for why, names in self.layers_of_reason.items())

    @cached_property
    def all_labels(self) -> tuple[Tensor, Tensor]:
        """The labels of all values one behind another, and to which value each belongs.

        Equal ones stand there once. Only to be asked for after everything was played.
        """
        return concatenate_labels(values_in(*self.results.values()))

    def owners(self, labels: Iterable[int]) -> list[str]:
        """The layers that made these labels."""
        found: dict[str, None] = {}
        end, maker = 0, ""
        for one in sorted(set(labels) - {FROZEN}):
            if one >= end:
                at = bisect_right(self._starts, one) - 1
                maker = self._start_layers[at] if at >= 0 else ""
                end = self._starts[at] + len(self.producers[maker]) if maker else 0
            if one < end:
                found[maker] = None
        return [*found]

    def _is_costed(self, call: Call) -> bool:
        return call.step in self._costed

    def _new_channels(self, name: str, groups: int, width: int) -> Tensor:
        made = self.parts.new_ids(width)
        self.producers[name] = made
        self._starts.append(int(made[0]))
        self._start_layers.append(name)
        if groups > 1:
            self.parts.unite(made.reshape(groups, -1), made.reshape(groups, -1)[:1])
        return made

    def _connect(self, table: dict[str, Tensor], name: str, labels: Tensor, call: Call) -> None:
        known = table.setdefault(name, labels)
        if known is not labels:
            self.unite(known, labels, call)

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
        """Whether a parameter is only used as the weight or bias of a layer, by functions."""
        return all(
            (weight_path(self.network, user) or norm_owner(self.network, user)) is not None
            for user in step.users
            if not user.is_query
        )

    def _unite_shared(self) -> None:
        """Parameters that belong to several layers keep the layers alike."""
        owners: dict[int, list[tuple[str, str]]] = {}
        for name, module in self.network.named_modules():
            for kind, parameter in module._parameters.items():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append((name, kind))
        for key, places in owners.items():
            names = [name for name, _ in places]
            if len(places) > 1 or key in self._used_directly:
                self._tie_layers(names, key in self._used_directly)

    def _tie_layers(self, names: list[str], exposed: bool) -> None:
        sides = [
            tuple(table[name] for table in (self.ins, self.outs) if name in table) for name in names
        ]
        alike = len({tuple(len(side) for side in pair) for pair in sides}) == 1 and sides[0]
        modules = [self.network.get_submodule(name) for name in names]
        known = all(has_channel_parameters(module) for module in modules)
        if alike and known and not exposed:
            for pair in sides[1:]:
                for one, other in zip(sides[0], pair, strict=True):
                    self.parts.unite(one, other)
            return
        lost = [one for pair in sides for side in pair for one in self.parts.freeze(side)]
        if lost:
            self.note(lost, f"a parameter of {', '.join(names)} that is also used elsewhere")

    def _report_uncalled(self) -> None:
        tensors = (step for step in self.steps if step.kind is Kind.TENSOR)
        weights = {str(step.target).rpartition(".")[0]: step for step in tensors}
        reach = ModuleValues(self.recordings, self.results)
        for name, module in self.network.named_modules():
            if is_weighted(module) and name not in self.shapes:
                users = weights[name].users if name in weights else ()
                user = next((one for one in users if not one.is_query), None)
                why = f"its weights go into {user}, which is not followed" if user else ""
                self._keep_full_size(name, why or "not called in eval or train mode")
                if not why:
                    self._freeze_readable(name, module, reach)

    def _freeze_readable(self, name: str, module: nn.Module, reach: ModuleValues) -> None:
        """What a layer that no run called could read stays, so that it fits when it is called."""
        lost = [
            one
            for value in reach.reachable(name)
            if could_read(module, value)
            for one in self.parts.freeze(value.labels)
        ]
        if lost:
            self.note(lost, f"{name}, which reads as many channels and is not called in any run")

    def _report_unfollowed(self, call: Call) -> None:
        """Weights that no rule follows stay, and are named even where no channel meets them."""
        if call.module is None or call.owner:
            for value in call.values:
                if value.source and sum(size > 1 for size in value.meta.shape) > 1:
                    self._keep_full_size(
                        value.source, f"goes into {call.title}, which is not followed"
                    )
        elif call.entry is None and any(True for _ in call.module.parameters()):
            kind = type(call.module).__name__
            self._keep_full_size(call.layer, f"{kind} is not a layer that is followed")

    def _keep_full_size(self, name: str, why: str) -> None:
        self.full_size[name] = why
        self.layers_of_reason.setdefault(f"{why}, keeps its size", {})[name] = None

    def _describe(self, step: Step) -> str:
        module = self.network.get_submodule(step.target) if step.kind is Kind.LAYER else None
        small = module is not None and not [*module.children()]
        return f"{step}, {module!r}" if small else str(step)


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
