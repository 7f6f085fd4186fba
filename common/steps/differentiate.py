"""Gradients and Hessian-vector products of a loss at named parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nufed.common.examples import Batch
from nufed.common.params import Params, leaves
from nufed.common.task import LossFn


def value_and_gradient(loss: LossFn, params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Params]:
    """Return the loss (scalar) and its gradient at `params`, both detached."""
    point = leaves(params)
    value = loss(point, batch)
    gradients = torch.autograd.grad(value, list(point.values()))
    return value.detach(), dict(zip(point, gradients, strict=True))


def gradient(loss: LossFn, params: Mapping[str, Tensor], batch: Batch) -> Params:
    """Return the gradient of the loss at `params`, detached."""
    return value_and_gradient(loss, params, batch)[1]


def gradient_graph(loss: LossFn, params: Mapping[str, Tensor], batch: Batch) -> tuple[Params, Params]:
    """Return (point, gradient at it), the gradient still differentiable with respect to the point's tensors."""
    point = leaves(params)
    gradients = torch.autograd.grad(loss(point, batch), list(point.values()), create_graph=True)
    return point, dict(zip(point, gradients, strict=True))


def gradient_graph_product(point: Params, gradients: Params, direction: Mapping[str, Tensor]) -> Params:
    """Return the Hessian times `direction` from a differentiable gradient, whose graph is freed.

    Parameters that the gradient does not depend on, as in a loss linear in them, have a zero product. The direction is
    0 for parameters that it lacks.
    """
    wanted = [name for name, tensor in gradients.items() if tensor.requires_grad and name in direction]
    if not wanted:
        return {name: torch.zeros_like(tensor) for name, tensor in point.items()}
    products = torch.autograd.grad(
        [gradients[name] for name in wanted],
        list(point.values()),
        grad_outputs=[direction[name] for name in wanted],
        materialize_grads=True,
    )
    return dict(zip(point, products, strict=True))


def hessian_vector_product(
    loss: LossFn, params: Mapping[str, Tensor], direction: Mapping[str, Tensor], batch: Batch
) -> Params:
    """Return the Hessian of the loss at `params` times `direction`, by double backward, detached."""
    return gradient_graph_product(*gradient_graph(loss, params, batch), direction)
