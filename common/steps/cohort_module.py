"""The batched kernel of any network: the loss mapped over the clients (`torch.func.vmap`), differentiated by autograd.

The sum of the clients' losses has each client's gradient as its own block, and a block-diagonal Hessian, so one
backward pass serves all of them. On a GPU this fills the device; on a CPU it gains nothing over one client at a time,
and convolutions lose, for a convolution with weights of its own for each client is a grouped one.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from nufed.common.examples import Batch
from nufed.common.models.agreement import gradients_near
from nufed.common.models.nearby import direction_at, moved
from nufed.common.params import Params, add_scaled, leaves
from nufed.common.steps.cohort_kernel import CohortBatch, Stacked, stack_params
from nufed.common.steps.differentiate import gradient, gradient_graph_product, hessian_vector_product
from nufed.common.task import LossFn
from nufed.common.trees import Tree, first_leaf, stack


class ModuleKernel:
    """Maps one client's loss over m of them; holds that loss, which must draw no masks."""

    takes_padding = False

    def __init__(self, loss: LossFn) -> None:
        """Serve clients of this loss, a mean over the examples of a batch."""

        def one(params: Mapping[str, Tensor], inputs: Tree, targets: Tree, weights: Tensor | None) -> Tensor:
            return loss(params, Batch(inputs, targets, weights=weights))

        self._losses = torch.vmap(lambda params, inputs, targets: one(params, inputs, targets, None))
        self._weighted_losses = torch.vmap(one)

    def start_step(self) -> None:
        """Do nothing: autograd's results have memory of their own."""

    def tape(
        self, params: Stacked, batch: CohortBatch, *, curvature: bool, moved: Collection[str] | None = None
    ) -> "ModuleTape":
        """Evaluate the losses and their gradients at `params`; the shares are not read."""
        wanted = params if curvature or moved is None else {name: params[name] for name in params if name in moved}
        leaf = leaves(wanted)
        point = {name: leaf.get(name, tensor) for name, tensor in params.items()}
        if batch.own_weights is None:
            losses = self._losses(point, batch.inputs, batch.targets)
        else:
            losses = self._weighted_losses(point, batch.inputs, batch.targets, batch.own_weights)
        gradients = torch.autograd.grad(losses.sum(), list(leaf.values()), create_graph=curvature)
        return ModuleTape(point, losses.detach(), dict(zip(leaf, gradients, strict=True)), moved)


def maps_rightly(loss: LossFn, params: Params, batch: Batch, *, curvature: bool) -> bool:
    """Return whether mapping over clients gives a client the gradient, and the product, that it gets alone.

    `torch.vmap` passes over what some layers do beside arithmetic: an embedding's row for padding, hooks of modules.

    Args:
        loss: a client's loss.
        params: a point; another near it is taken too.
        batch: a few examples of a client.
        curvature: whether the loss is going to be differentiated twice.

    Raises:
        Exception: what the loss raises, or its mapping.
    """
    points: list[Mapping[str, Tensor]] = [params, moved(params)]
    shares = torch.full((2, len(batch)), 1 / len(batch), device=first_leaf(batch.targets).device)
    own = None if batch.weights is None else torch.stack([batch.weights] * 2)
    pair = CohortBatch(stack([batch.inputs] * 2), stack([batch.targets] * 2), shares, own)
    tape = ModuleKernel(loss).tape(stack_params(points), pair, curvature=curvature)
    mapped, found = [tape.gradient()], [[gradient(loss, point, batch) for point in points]]
    if curvature:
        along = direction_at(params)
        mapped.append(tape.contract(stack_params([along, along]), 1.0))
        found.append([add_scaled(along, hessian_vector_product(loss, at, along, batch), -1.0) for at in points])
    return all(
        gradients_near({name: tensor[client] for name, tensor in together.items()}, alone[client])
        for together, alone in zip(mapped, found, strict=True)
        for client in range(2)
    )


class ModuleTape:
    """One forward and backward pass; holds the point, and the gradients with their graph if asked for curvature."""

    def __init__(self, point: Params, losses: Tensor, gradients: Params, moved: Collection[str] | None) -> None:
        """Keep what the pass gave."""
        self._point, self._losses, self._gradients, self._moved = point, losses, gradients, moved

    def losses(self) -> Tensor:
        """Return f_i, [m]."""
        return self._losses

    def gradient(self) -> Params:
        """Return ∇f_i."""
        return {name: tensor.detach() for name, tensor in self._gradients.items()}

    def descend(self, step_size: float) -> Params:
        """Return x_i - step_size ∇f_i of what is moved, and the rest as it is, detached."""
        if self._moved is None:
            return add_scaled(self._point, self._gradients, -step_size)
        part = {name: tensor for name, tensor in self._point.items() if name in self._moved}
        rest = {name: tensor.detach() for name, tensor in self._point.items()}
        return {**rest, **add_scaled(part, self._gradients, -step_size)}

    def contract(self, direction: Params, step_size: float, onto: Params | None = None) -> Params:
        """Return onto_i - step_size ∇²f_i v_i; frees the graph, so once only."""
        product = gradient_graph_product(self._point, self._gradients, direction)
        return add_scaled(direction if onto is None else onto, product, -step_size)
