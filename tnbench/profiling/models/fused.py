"""What a program that torch.compile has compiled keeps and takes, told from its graphs on fake tensors.

torch's own partitioner decides which tensors go from the forward to the backward graph. Inside a graph,
Inductor fuses: an elementwise operator or a reduction writes memory only where a result leaves the kernel,
that is for a matrix product, an opaque operator, a result of the graph, or a kernel that has to wait for one
of these. `walk` follows the bytes of a graph by that rule.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, Node
from torch.utils._python_dispatch import _disable_current_modes

from tnbench.profiling.models.tracing import Live, workspace

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "index_put", "cat", "sort")
"""ATen operators that are kernels of their own, whose operands and results lie in memory."""


class Graphs(NamedTuple):
    """A compiled function: both graphs, and how many of the forward graph's outputs are the function's."""

    forward: Graph
    backward: Graph
    outputs: int


class _Captured(Exception):
    """Carries the graphs out of the tracer, which has nothing more to do."""


def capture(function: Callable[..., Any], inputs: Sequence[Tensor], fake: FakeTensorMode) -> Graphs:
    """The graphs of `function`, as torch.compile's default partitioner cuts them.

    Args:
        function: of tensors alone, to a tensor or several.
        inputs: fake tensors of `fake`.
    """
    from torch._inductor.decomposition import select_decomp_table

    def partition(joint: Any, joint_inputs: Any, *, num_fwd_outputs: int, **options: Any) -> Any:
        forward, backward = min_cut_rematerialization_partition(
            joint, joint_inputs, num_fwd_outputs=num_fwd_outputs, **options
        )
        raise _Captured(Graphs(forward.graph, backward.graph, num_fwd_outputs))

    traced = aot_function(
        function, _never, _never, partition_fn=partition, decompositions=select_decomp_table()
    )
    with _disable_current_modes(), fake:
        try:
            # New tensors: the tracer leaves cycles behind, and would keep the inputs' storages alive in them.
            traced(*(_alike(x).requires_grad_(x.requires_grad) for x in inputs))
        except _Captured as captured:
            return captured.args[0]
    raise ValueError("the function has nothing to differentiate")


def _never(gm: Any, example_inputs: Any) -> Any:
    raise AssertionError("graphs are captured before they are compiled")


@dataclass
class Walk:
    """Bytes of a graph beyond those alive at its start."""

    early: int
    """At the peak of its first half."""
    late: int
    """At the peak of its second half."""


def walk(graph: Graph, held: set[str]) -> Walk:
    """Follow the bytes of a graph's tensors in the order of its operators.

    Args:
        graph: with example values in its nodes' metadata.
        held: names of inputs that stay alive; the others are freed after their last use.
    """
    nodes = list(graph.nodes)
    tensors = _Tensors(nodes)
    last = {source: place for place, node in enumerate(nodes) for source in tensors.reads(node)}
    now, peaks = 0, [0, 0]
    for place, node in enumerate(nodes):
        if node.op == "placeholder" or not tensors.real(node):
            continue
        dying = [
            source for source in tensors.reads(node) if last[source] == place and source.name not in held
        ]
        size = tensors.size(node)
        inside = _workspace(node) if tensors.kinds[node] == "kernel" else 0
        half = 2 * place >= len(nodes)
        if tensors.kinds[node] == "fused":  # its result may be written over an operand of its size
            reused = next((source for source in dying if tensors.size(source) == size), None)
            if reused is not None:
                dying.remove(reused)
                size = 0
        now += size
        peaks[half] = max(peaks[half], now + inside)
        now -= sum(tensors.size(source) for source in dying)
        if node not in last:
            now -= tensors.size(node)
    return Walk(*peaks)


class _Tensors:
    """Which nodes of a graph are tensors in memory."""

    def __init__(self, nodes: list[Node]) -> None:
        self.kinds = {node: _kind(node) for node in nodes}
        self.base: dict[Node, Node] = {}
        for node in nodes:
            self.base[node] = self.base[node.all_input_nodes[0]] if self.kinds[node] == "view" else node
        self._users: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            if self.kinds[node] != "view":
                for source in node.all_input_nodes:
                    self._users[self.base[source]].append(node)
        self._stages: dict[Node, int] = {}
        for node in nodes:
            self._stages[node] = self._stage(node)
        self._reads: dict[Node, set[Node]] = {}

    def real(self, node: Node) -> bool:
        """Whether the node writes memory."""
        kind = self.kinds[node]
        if kind != "fused":
            return kind in ("kernel", "input")
        users = self._users[node]
        if any(self.kinds[user] in ("kernel", "output") for user in users):
            return True
        waits = len({self._stages[user] for user in users}) > 1
        return waits and bool(node.all_input_nodes)  # a constant is computed again

    def size(self, node: Node) -> int:
        value = node.meta.get("val")
        parts = value if isinstance(value, tuple | list) else [value]
        return sum(part.numel() * part.itemsize for part in parts if isinstance(part, Tensor))

    def reads(self, node: Node) -> set[Node]:
        """The tensors in memory that a node's kernel reads, through what is fused into it."""
        if self.kinds[node] == "view":
            return set()
        if node not in self._reads:
            found: set[Node] = set()
            for source in (self.base[one] for one in node.all_input_nodes):
                found |= {source} if self.real(source) else self.reads(source)
            self._reads[node] = found
        return self._reads[node]

    def _stage(self, node: Node) -> int:
        """How many kernels of their own have to run before the node, one after another."""
        own = self.kinds[node] == "kernel"
        stages = [
            self._stages[source]
            + (self.kinds[self.base[source]] == "kernel" if not own else self.kinds[source] == "fused")
            for source in node.all_input_nodes
        ]
        return max(stages, default=0)


def _kind(node: Node) -> str:
    """`input`, `output`, `view`, `kernel` (opaque), `fused` (elementwise and reductions) or `none`."""
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    target = node.target
    if target is operator.getitem:
        return "view"
    if not isinstance(target, torch._ops.OpOverload):
        return "none"
    name = target._schema.name.split("::")[1]
    if target.is_view or name in ("_unsafe_view", "reshape", "detach"):
        return "view"
    own = target.namespace not in ("aten", "prims") or name in PRODUCTS or "attention" in name
    return "kernel" if own else "fused"


def _workspace(node: Node) -> int:
    arguments = torch.fx.map_arg(node.args, lambda source: source.meta["val"])
    return workspace(node.target, tuple(arguments))  # type: ignore[arg-type]


class Compiled:
    """Stands for torch.compile(function): shows a `Live` the bytes of its graphs, and computes nothing.

    Args:
        function: of tensors, None, and at most one module, whose parameters it uses.
        model: the module whose parameters it uses where none is among its arguments.
        live, fake: the modes that calls happen under.
        phases: whether the backward pass is two phases, its first and second half.
        checkpointed: whether the backward pass recomputes what the function's tensors do not tell.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        model: nn.Module,
        live: Live,
        fake: FakeTensorMode,
        *,
        phases: bool,
        checkpointed: bool,
    ) -> None:
        self.function, self.model, self.live, self.fake = function, model, live, fake
        self.phases, self.checkpointed = phases, checkpointed

    def __call__(self, *args: Any) -> Any:
        owner = next((x for x in args if isinstance(x, nn.Module)), self.model)
        named = dict(_Holder(owner, self.function).named_parameters())
        named |= dict(_Holder(owner, self.function).named_buffers())
        tensors = [x for x in args if isinstance(x, Tensor)]

        def flat(*values: Tensor) -> Any:
            weights = dict(zip(named, values, strict=False))
            rest = iter(values[len(named) :])
            filled = [next(rest) if isinstance(x, Tensor) else x for x in args]
            return torch.func.functional_call(_Holder(owner, self.function), weights, tuple(filled))

        inputs = [*named.values(), *tensors]
        return _Run.apply(self, capture(flat, inputs, self.fake), *inputs)


class _Holder(nn.Module):
    """A function as a module, so that torch can put other weights into it."""

    def __init__(self, owner: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class _Run(torch.autograd.Function):
    """A call of a compiled function."""

    @staticmethod
    def forward(ctx: Any, run: Compiled, graphs: Graphs, *inputs: Tensor) -> Any:
        given = dict(zip(graphs.forward.find_nodes(op="placeholder"), inputs, strict=True))
        results = [node for node in graphs.forward.output_node().args[0] if isinstance(node, Node)]  # type: ignore[union-attr]
        steps = walk(graphs.forward, {node.name for node in given})
        run.live.note(max(steps.early, steps.late))
        tensors, made = _Tensors(list(graphs.forward.nodes)), dict(given)
        for node in results:
            base = tensors.base[node]
            if base not in made:
                value = base.meta["val"]
                single = isinstance(value, Tensor)
                made[base] = _alike(value) if single else torch.empty(tensors.size(base), dtype=torch.uint8)
        found = tuple(
            made[node] if node in made else _alike(node.meta["val"]) for node in results[: graphs.outputs]
        )
        ctx.held = [made[tensors.base[node]] for node in results[graphs.outputs :]]
        ctx.recomputed = 0
        if run.checkpointed:
            ctx.recomputed = sum(tensors.size(base) for base in made if base not in given)
            activations = [x for x in inputs if x.grad_fn is not None]
            ctx.held = [torch.empty_like(activations[0])] if len(activations) > 1 else activations
        ctx.run, ctx.names = run, {node.name for node in given}
        ctx.graph = graphs.backward
        ctx.inputs = [(x.shape, x.dtype) for x in inputs]
        return found[0] if len(found) == 1 else found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        live, graph = ctx.run.live, ctx.graph
        tangents = {node.name for node in graph.find_nodes(op="placeholder") if "tangent" in node.name}
        steps = walk(graph, ctx.names | tangents)
        for half, beyond in enumerate((steps.early, steps.late)):
            if ctx.run.phases:
                live.mark(f"backward, half {half}")
            live.note(beyond + ctx.recomputed)
        ctx.held = None
        given = graph.output_node().args[0]  # None for inputs that the function does not use
        made = (
            torch.empty(shape, dtype=dtype) if needed and node is not None else None
            for node, (shape, dtype), needed in zip(given, ctx.inputs, ctx.needs_input_grad[2:], strict=True)
        )
        return None, None, *made


def _alike(value: Tensor) -> Tensor:
    """A new tensor of the same shape, strides and dtype."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
