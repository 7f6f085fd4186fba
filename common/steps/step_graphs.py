"""The inner step as graphs of tensor operations: traced once, cut into the parts that the estimators call.

Traced together, with w the point, (x, y) the batch and v a direction:

    (w, x, y, v) ↦ (w - α ∇f(w), v - α ∇²f(w) v)

What depends on v is linear in it. Cut along that line, the first part gives the next point and the residuals, and the
second, with the residuals, pulls v back: the step and its derivative for any ν, without the first part computed twice.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from nufed.common.errors import ModelError
from nufed.common.examples import Batch
from nufed.common.params import Params
from nufed.common.task import LossFn
from nufed.common.trees import one_tensor

Nodes = list[fx.Node]

VIEWS = {
    torch.ops.aten.detach.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.squeeze.dim,
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
}


@dataclass(frozen=True)
class StepGraph:
    """The traced step, its inputs and outputs by what they are.

    Attributes:
        module: (w…, x, y, v…) -> (next point…, v pulled back…).
        point: inputs w and (x, y).
        direction: inputs v.
        moved: outputs w - α ∇f(w).
        pulled: outputs v - α ∇²f(w) v.
    """

    module: fx.GraphModule
    point: Nodes
    direction: Nodes
    moved: Nodes
    pulled: Nodes


def trace_step(loss: LossFn, inner_lr: float, params: Params, batch: Batch) -> StepGraph:
    """Return the traced step.

    Args:
        loss: the client's loss.
        inner_lr: α.
        params: shapes and types of the parameters; the values do not matter.
        batch: shapes and types of a batch; the values do not matter.

    Raises:
        ModelError: the step draws random numbers.
    """
    names = list(params)
    count = len(names)

    def step(*inputs: Tensor) -> list[Tensor]:
        point, examples = inputs[:count], Batch(inputs[count], inputs[count + 1])

        def gradient(*point: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.func.grad(loss)(dict(zip(names, point, strict=True)), examples).values())

        gradients, product = torch.func.vjp(gradient, *point)  # type: ignore[misc]
        direction = inputs[count + 2 :]
        moved = [w - inner_lr * g for w, g in zip(point, gradients, strict=True)]
        return moved + [v - inner_lr * h for v, h in zip(direction, product(direction), strict=True)]

    directions = [torch.zeros_like(tensor) for tensor in params.values()]
    module = _traced(step, [*params.values(), one_tensor(batch.inputs), one_tensor(batch.targets), *directions])
    inputs = module.graph.find_nodes(op="placeholder")
    outputs = list(module.graph.output_node().args[0])  # type: ignore[arg-type]
    return StepGraph(module, inputs[:-count], inputs[-count:], outputs[:count], outputs[count:])


def trace_gradient(loss: LossFn, params: Params, batch: Batch) -> fx.GraphModule:
    """Return (w…, x, y) -> (f(w), ∇f(w)…); arguments and errors as `trace_step`."""
    names = list(params)

    def value_and_gradient(*inputs: Tensor) -> list[Tensor]:
        point, examples = dict(zip(names, inputs, strict=False)), Batch(inputs[-2], inputs[-1])
        gradients, value = torch.func.grad_and_value(loss)(point, examples)
        return [value, *gradients.values()]

    return _traced(value_and_gradient, [*params.values(), one_tensor(batch.inputs), one_tensor(batch.targets)])


def descend_graph(step: StepGraph) -> fx.GraphModule:
    """Return (w…, x, y) -> next point…, the step alone."""
    return _extract(step.module, step.point, step.moved)


def pull_back_graph(step: StepGraph) -> fx.GraphModule:
    """Return (w…, x, y, v…) -> v pulled back…, the derivative alone."""
    return _extract(step.module, step.point + step.direction, step.pulled)


def linearize_graphs(step: StepGraph) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return (w…, x, y) -> (next point…, residuals…) and (w…, x, y, residuals…, v…) -> v pulled back…."""
    residuals = _residuals(step)
    first = _extract(step.module, step.point, step.moved + residuals)
    return first, _extract(step.module, step.point + residuals + step.direction, step.pulled)


def _traced(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> fx.GraphModule:
    with torch.no_grad():
        module: fx.GraphModule = make_fx(function)(*inputs)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ModelError(
                f"expected a model that draws no random numbers, but it calls {node.target}; "
                "set method.compile=off, or model.dropout=0"
            )
    return module


def _residuals(step: StepGraph) -> Nodes:
    """Return what the second part reads of the first; views are taken again there, and inputs are at hand."""
    of_direction = _reached(step.module.graph.nodes, step.direction)
    found: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        if node in of_direction or node.op in ("placeholder", "get_attr"):
            return
        if node.target in VIEWS:
            for source in node.all_input_nodes:
                visit(source)
        else:
            found[node] = None

    for node in step.module.graph.nodes:
        if node in of_direction and node.op != "output":
            for source in node.all_input_nodes:
                visit(source)
    for node in step.pulled:
        visit(node)
    return list(found)


def _reached(nodes: Iterable[fx.Node], sources: Nodes) -> set[fx.Node]:
    """Return the nodes that depend on `sources`, these included."""
    reached = set(sources)
    for node in nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return reached


def _extract(module: fx.GraphModule, inputs: Nodes, outputs: Sequence[fx.Node]) -> fx.GraphModule:
    """Return the part of a graph that leads from `inputs` to `outputs`."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"input_{number}") for number, node in enumerate(inputs)}
    wanted, pending = set(outputs), list(outputs)
    while pending:
        sources = [] if (node := pending.pop()) in copies else node.all_input_nodes
        pending += [source for source in sources if source not in wanted]
        wanted.update(sources)
    for node in module.graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output([copies[node] for node in outputs])
    graph.lint()
    return fx.GraphModule(module, graph)
