"""Whether double backward gives the derivatives of a function's gradient.

With g(w) the gradient as one backward pass gives it, u and v two directions, and h small:

    ⟨u, double backward of ⟨g(w), v⟩⟩  =  ⟨v, (g(w + h u) - g(w - h u)) / 2h⟩.

Both sides are numbers, so that this also holds of gradients that are no function's, as behind a gradient reversal.
The difference is taken in float64. A kink between its ends spoils it, and so does rounding where a part is computed in
less than float64; hence several h, u and v: where the first do not agree, two others have to.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nufed.common.models.nearby import direction_at
from nufed.common.params import Params, leaves

ScalarFn = Callable[[Mapping[str, Tensor]], Tensor]

SIZES = (1e-8, 1e-9, 1e-10, 1e-6)
"""h, relative to the size of each tensor."""

COARSE_SIZES = (1e-3, 1e-2, 1e-4)
"""h where a part is computed in float32."""

TOLERANCE, COARSE_TOLERANCE = 1e-3, 2e-2


def is_differentiated_twice(function: ScalarFn, point: Mapping[str, Tensor], *, coarse: bool = False) -> bool:
    """Return whether double backward gives the derivative of the gradient at a point in float64.

    Args:
        function: from named tensors to a scalar.
        point: of type float64.
        coarse: whether a part is computed in less than float64.

    Raises:
        Exception: what the function raises, or its double backward.
    """
    sizes, tolerance = (COARSE_SIZES, COARSE_TOLERANCE) if coarse else (SIZES, TOLERANCE)
    num_agreeing, gradient = 0, _gradient(function, point)
    for number, size in enumerate(sizes):
        along, against = (_where_trained(direction_at(point, f"{name}-{number}"), gradient) for name in "uv")
        product = double_backward(function, point, against)
        plus, minus = (_gradient(function, _moved(point, along, sign * size)) for sign in (1, -1))
        by_product = _dot(along, product)
        by_difference = (_dot(against, plus) - _dot(against, minus)) / (2 * size)
        # Terms of both signs may cancel by chance, so that errors are held to the root of the sum of their squares too.
        scale = _size_of_terms(along, product)
        rounding = 1e-14 * _size_of_terms(against, plus) / size
        if abs(by_product - by_difference) <= tolerance * max(abs(by_product), abs(by_difference), scale) + rounding:
            num_agreeing += 1
            if number == 0 or num_agreeing == 2:
                return True
    return False


def double_backward(function: ScalarFn, point: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Params:
    """Return the gradient of ⟨g(w), v⟩; zero for tensors that it does not depend on."""
    at = leaves(point)
    gradients = torch.autograd.grad(function(at), list(at.values()), create_graph=True, materialize_grads=True)
    pairs = [
        (gradient, direction[name]) for name, gradient in zip(at, gradients, strict=True) if gradient.requires_grad
    ]
    if not pairs:
        return {name: torch.zeros_like(tensor) for name, tensor in at.items()}
    products = torch.autograd.grad(
        [gradient for gradient, _ in pairs],
        list(at.values()),
        grad_outputs=[own for _, own in pairs],
        materialize_grads=True,
    )
    return dict(zip(at, products, strict=True))


def _gradient(function: ScalarFn, point: Mapping[str, Tensor]) -> Params:
    at = leaves(point)
    gradients = torch.autograd.grad(function(at), list(at.values()), materialize_grads=True)
    return dict(zip(at, gradients, strict=True))


def _where_trained(direction: Params, gradient: Params) -> Params:
    """Return a direction without what has no gradient, such as an embedding's row for padding, which never moves."""
    return {name: torch.where(gradient[name] == 0, 0.0, tensor) for name, tensor in direction.items()}


def _moved(point: Mapping[str, Tensor], direction: Params, size: float) -> Params:
    return {name: torch.add(tensor, direction[name], alpha=size) for name, tensor in point.items()}


def _dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return sum(float((left[name] * right[name]).sum()) for name in left)


def _size_of_terms(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the root of the sum of the squared terms of ⟨left, right⟩."""
    return math.sqrt(sum(float((left[name] * right[name]).square().sum()) for name in left))
