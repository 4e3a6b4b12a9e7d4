"""The first pass over recorded runs: gives out labels and unites those that meet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prunekit.errors import PrunekitError, TraceError, listed
from prunekit.graph.calls import Call
from prunekit.graph.costs import counted
from prunekit.graph.layers import TRANSPOSED, channel_dim, weighs, widths
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.ops.weights import weight_path
from prunekit.graph.partition import FIXED, Partition
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.run import Run
from prunekit.graph.table import of_layer
from prunekit.graph.uncalled import Reach, fits
from prunekit.graph.values import Value, each, fixed, spread, values_in
from prunekit.graph.whole_groups import goes_whole

Tables = dict[str, dict[int, Tensor]]

_MODES = ("", "train mode", "gradients")  # runs whose outputs need no words


class Discovery(Run):
    """The first pass: gives out labels and unites those that meet.

    The first graph is the network in eval mode, whose costs count; further graphs only add ties.
    """

    def __init__(
        self,
        twin: nn.Module,
        recordings: Sequence[Recording],
        over_norms: bool = False,
    ) -> None:
        super().__init__(twin, recordings, over_norms)
        self.parts = Partition()
        self.ins: dict[str, Tensor] = {}
        self.outs: dict[str, Tensor] = {}
        self.held: Tables = {}  # parameters and buffers of the user's own: dimension -> labels
        self.ranks: dict[str, int] = {}
        self.adopted = False  # whether a parameter got labels after it may have been used
        self.producers: dict[str, Tensor] = {}  # layers that made labels, with these labels
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.uses: dict[str, int] = {}
        self.fixed_macs = 0
        self.inexact: dict[str, None] = {}
        self.whole: dict[str, str] = {}  # layer or parameter -> why it keeps its size
        self.calls: dict[Step, Call] = {}
        self._costed = set(recordings[0].steps)
        self.noted: dict[str, dict[str, None]] = {}  # why -> the layers it is about
        self.reasons: dict[int, str] = {}  # label -> why it stays
        self._starts: list[int] = []
        self._makers: list[str] = []
        self._exposed: set[int] = set()
        self.functional: dict[str, None] = {}
        self.picks: dict[str, Tensor] = {}  # buffers of indices -> labels of what they pick from
        self._own = _user_tensors(twin)

    def play(self) -> None:
        """Play every step; raises TraceError where that cannot be."""
        for step in self.steps:
            try:
                self.results[step] = self.step(step)
            except PrunekitError:
                raise
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else repr(error)
                raise TraceError(
                    f"{type(self.twin).__name__} fails on the example at {self._place(step)}: "
                    f"{reason}"
                ) from error
            self._remember(step)
        self._tie()
        self._name_uncalled()

    def call(self, call: Call) -> Any:
        """Keep the call for the passes to come."""
        call = replace(call, recorded=True)
        self.calls[call.step] = call
        return super().call(call)

    def executed(self, call: Call) -> Any:
        """What was recorded."""
        return call.step.result

    def blank(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """Labels that nothing has, until something is written there."""
        return self.parts.fresh(meta.shape[dim])

    def outcome(self, call: Call) -> Any:
        """Run what is not followed on shapes, and count its costs."""
        result, macs = counted(call)
        self.fixed_macs += macs if self._counts(call) else 0
        self._name_unfollowed(call)
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

    def layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Record what goes in, label what comes out; a second call unites with the first."""
        name, module = call.layer, call.module
        meta = call.on_meta()
        groups = getattr(module, "groups", 1)
        self._pass(self.ins, name, incoming, call)
        rows, whole = incoming.reshape(groups, -1), goes_whole(module)
        self.unite(rows, rows[:, :1] if whole else rows[:1], call)  # or all groups lose the same
        width = meta.shape[channel_dim(module, meta.ndim)]
        if name not in self.outs:
            passed = rows[:, 0].repeat_interleave(width // groups)
            self.outs[name] = passed if whole else self._made(name, groups, width)
        if call.owner:
            self.functional[name] = None
            self.shapes.setdefault(name, tuple(meta.shape))
        if self._counts(call) and weighs(module):
            counted = call.values[0].meta if isinstance(module, TRANSPOSED) else meta
            channels = counted.shape[channel_dim(module, counted.ndim)]
            self.uses[name] = self.uses.get(name, 0) + counted.numel() // channels
        return meta, self.outs[name]

    def norm(self, call: Call, labels: Tensor) -> None:
        """Record the same labels on both sides."""
        width = widths(call.module)[0]
        if len(labels) != width:
            raise ValueError(f"it has {width} channels and gets {len(labels)}")
        name = call.layer
        if call.owner:
            self.functional[name] = None
            self.shapes.setdefault(name, tuple(call.values[0].meta.shape))
        if not call.entry.shifts and call.entry.norm and bool((labels != FIXED).any()):
            self.inexact[name] = None
        for table in (self.ins, self.outs):
            self._pass(table, name, labels, call)

    def attribute(self, step: Step) -> Any:
        """Entries along the only long dimension of a parameter can go where channels go."""
        path = str(step.target)
        found = _attribute(self.twin, path)
        if not isinstance(found, Tensor):
            return found
        meta = found.to("meta")
        long = [dim for dim, size in enumerate(meta.shape) if size > 1]
        if path not in self._own or any(weight_path(self.twin, u) == path for u in step.users):
            return fixed(meta)
        self.ranks[path] = meta.ndim
        if len(long) == 1 and path not in self.held:
            self.held[path] = {long[0]: self.parts.fresh(meta.shape[long[0]])}
        labels = [spread(own, dim, meta.ndim) for dim, own in self.held.get(path, {}).items()]
        numbers = None if found.is_meta else found
        return Value(meta, labels[0] if labels else fixed(meta).labels, path, numbers)

    def picked(self, call: Call, value: Value, dim: int, index: Value) -> Tensor | None:
        """The entries of a buffer of indices vanish with the channels that they pick."""
        path, numbers = str(index.source), index.constant
        before = self.picks.setdefault(path, value.along(dim))
        if index.source is None or numbers is None or len(before) != value.meta.shape[dim]:
            return None
        if bool((numbers < 0).any()) or path not in self.held:
            return None
        labels = value.along(dim)[numbers]
        self.unite(labels, index.along(0), call)
        self.unite(before, value.along(dim), call)
        return labels

    def adopt(self, call: Call) -> Call:
        """A parameter with several long dimensions follows the channels it meets first."""
        strangers = [v for v in call.values if v.source and not v.varying and v.meta.numel() > 1]
        if not strangers:
            return call
        adopted = {id(value): self._adopted(value, call.values) for value in strangers}

        def swap(value: Value) -> Value:
            return adopted.get(id(value), value)

        args, kwargs = each((call.args, call.kwargs), swap, Value)
        self.calls[call.step] = replace(call, args=args, kwargs=kwargs)
        return self.calls[call.step]

    def _adopted(self, value: Value, others: Sequence[Value]) -> Value:
        path = str(value.source)
        rank = max(other.meta.ndim for other in others)
        for other in others:
            for dim in other.varying:
                own = dim - other.meta.ndim + value.meta.ndim
                fits = own >= 0 and value.meta.shape[own] == other.meta.shape[dim]
                if fits and rank == max(other.meta.ndim, value.meta.ndim) and path not in self.held:
                    labels = self.parts.fresh(value.meta.shape[own])
                    self.held[path] = {own: labels}
                    self.adopted = True
                    grown = Value(value.meta, spread(labels, own, value.meta.ndim), source=path)
                    for step in self.results:
                        if step.kind is Kind.TENSOR and step.target == path:
                            self.results[step] = grown
                    return grown
        return value

    def output(self, step: Step, result: Any) -> Any:
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
            self.noted.setdefault(f"channels are frozen by {why}", {})[name] = None

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for every reason."""
        return tuple(f"{listed([*names])}: {why}" for why, names in self.noted.items())

    def owners(self, labels: Iterable[int]) -> list[str]:
        """The layers that made these labels."""
        found: dict[str, None] = {}
        for one in sorted(set(labels) - {FIXED}):
            at = bisect_right(self._starts, one) - 1
            if at >= 0 and one - self._starts[at] < len(self.producers[self._makers[at]]):
                found[self._makers[at]] = None
        return [*found]

    def _counts(self, call: Call) -> bool:
        return call.step in self._costed

    def _made(self, name: str, groups: int, width: int) -> Tensor:
        made = self.parts.fresh(width)
        self.producers[name] = made
        self._starts.append(int(made[0]))
        self._makers.append(name)
        if groups > 1:
            self.parts.unite(made.reshape(groups, -1), made.reshape(groups, -1)[:1])
        return made

    def _pass(self, table: dict[str, Tensor], name: str, labels: Tensor, call: Call) -> None:
        known = table.setdefault(name, labels)
        if known is not labels:
            self.unite(known, labels, call)

    def _remember(self, step: Step) -> None:
        result = self.results[step]
        if step.kind is Kind.TENSOR and not self._belongs(step):
            self._exposed.add(id(_attribute(self.twin, step.target)))
        if step.kind is Kind.LAYER and isinstance(result, Value):
            self.shapes.setdefault(step.target, tuple(result.meta.shape))
            if step.target not in self.outs and result.meta.ndim > 1:
                dim = next(iter(result.varying), 1)
                if set(result.varying) <= {dim}:
                    self.outs[step.target] = result.along(dim)

    def _belongs(self, step: Step) -> bool:
        """Whether a parameter is only used as the weight or bias of a layer, by functions."""
        return all(
            (weight_path(self.twin, user) or norm_owner(self.twin, user)) is not None
            for user in step.users
            if not user.asks
        )

    def _tie(self) -> None:
        """Parameters that belong to several layers keep the layers alike."""
        owners: dict[int, list[tuple[str, str]]] = {}
        for name, module in self.twin.named_modules():
            for kind, parameter in module._parameters.items():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append((name, kind))
        for key, places in owners.items():
            names = [name for name, _ in places]
            if len(places) > 1 or key in self._exposed:
                self._tie_layers(names, key in self._exposed)

    def _tie_layers(self, names: list[str], exposed: bool) -> None:
        sides = [
            tuple(table[name] for table in (self.ins, self.outs) if name in table) for name in names
        ]
        alike = len({tuple(len(side) for side in pair) for pair in sides}) == 1 and sides[0]
        modules = [self.twin.get_submodule(name) for name in names]
        known = all(_holds_channels(module) for module in modules)
        if alike and known and not exposed:
            for pair in sides[1:]:
                for one, other in zip(sides[0], pair, strict=True):
                    self.parts.unite(one, other)
            return
        lost = [one for pair in sides for side in pair for one in self.parts.freeze(side)]
        if lost:
            self.note(lost, f"a parameter of {', '.join(names)} that is also used elsewhere")

    def _name_uncalled(self) -> None:
        tensors = (step for step in self.steps if step.kind is Kind.TENSOR)
        weights = {str(step.target).rpartition(".")[0]: step for step in tensors}
        reach = Reach(self.recordings, self.results)
        for name, module in self.twin.named_modules():
            if weighs(module) and name not in self.shapes:
                users = weights[name].users if name in weights else ()
                user = next((one for one in users if not one.asks), None)
                why = f"its weights go into {user}, which is not followed" if user else ""
                self._keep_whole(name, why or "not called in eval or train mode")
                if not why:
                    self._keep_readable(name, module, reach)

    def _keep_readable(self, name: str, module: nn.Module, reach: Reach) -> None:
        """What a layer that no run called could read stays, so that it fits when it is called."""
        lost = [
            one
            for value in reach.of(name)
            if fits(module, value)
            for one in self.parts.freeze(value.labels)
        ]
        if lost:
            self.note(lost, f"{name}, which reads as many channels and is not called in any run")

    def _name_unfollowed(self, call: Call) -> None:
        """Weights that no rule follows stay, and are named even where no channel meets them."""
        if call.module is None or call.owner:
            for value in call.values:
                if value.source and sum(size > 1 for size in value.meta.shape) > 1:
                    self._keep_whole(value.source, f"goes into {call.title}, which is not followed")
        elif call.entry is None and any(True for _ in call.module.parameters()):
            kind = type(call.module).__name__
            self._keep_whole(call.layer, f"{kind} is not a layer that is followed")

    def _keep_whole(self, name: str, why: str) -> None:
        self.whole[name] = why
        self.noted.setdefault(f"{why}, keeps its size", {})[name] = None

    def _place(self, step: Step) -> str:
        module = self.twin.get_submodule(step.target) if step.kind is Kind.LAYER else None
        small = module is not None and not [*module.children()]
        return f"{step}, {module!r}" if small else str(step)


def _user_tensors(twin: nn.Module) -> set[str]:
    """Parameters and buffers of modules that are no layers: the forward uses them by itself."""
    return {
        f"{name}.{leaf}" if name else leaf
        for name, module in twin.named_modules()
        if not _holds_channels(module)
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _holds_channels(module: nn.Module) -> bool:
    """Whether a layer of this class has numbers for every channel."""
    entry = of_layer(module)
    return (
        entry is not None and (entry.weighs or entry.shifts or entry.alike) and bool(entry.narrow)
    )


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
