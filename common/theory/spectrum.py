"""Extreme eigenvalues of Hessians and of combinations of them, from products with vectors alone.

Symmetric operators are functions from a flat float64 vector to one. Lanczos' method with full reorthogonalization
gives Ritz values inside the spectrum and, with each, a residual r such that an eigenvalue lies within r of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nufed.common.errors import ModelError, RunError
from nufed.common.examples import Batch
from nufed.common.params import leaves
from nufed.common.task import LossFn

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest Ritz value of a symmetric operator.

    Attributes:
        smallest: Ritz value.
        largest: Ritz value.
        residual: an eigenvalue lies within it of each of the two (it says nothing of eigenvalues beyond them).
        num_products: products with the operator that it took.
        converged: whether the residual fell below what was asked for.
    """

    smallest: float
    largest: float
    residual: float
    num_products: int
    converged: bool

    @property
    def norm(self) -> float:
        """Return the largest magnitude, plus the residual."""
        return max(abs(self.smallest), abs(self.largest)) + self.residual


@dataclass(frozen=True)
class Accuracy:
    """When an eigenvalue is good enough.

    Attributes:
        tolerance: residual relative to the largest magnitude found.
        max_products: products with the operator before giving up.
        negligible: magnitude below which an absolute residual of `tolerance` times it is enough.
    """

    tolerance: float = 0.02
    max_products: int = 100
    negligible: float = 0.0


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors' content as one float64 vector [d] on the CPU."""
    return torch.cat([tensor.detach().reshape(-1).double().cpu() for tensor in tensors])


def gradient_and_hessian(loss: LossFn, params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Operator]:
    """Return ∇f [d] and the operator v -> ∇²f v of the batch's loss at `params`, both float64.

    The graph of the gradient is kept, so that each product costs one backward pass.

    Raises:
        ModelError: loss or gradient is not finite.
    """
    variables = leaves(params)
    value = loss(variables, batch)
    gradients = torch.autograd.grad(value, list(variables.values()), create_graph=True)
    gradient = flat(gradients)
    if not (torch.isfinite(value).all() and torch.isfinite(gradient).all()):
        raise ModelError(
            f"Expected a finite loss and gradient to measure curvature, but the loss is {float(value.detach())!r}. "
            "Measure at smaller parameters, or lower the inner step size."
        )
    sizes = [tensor.numel() for tensor in variables.values()]

    def product(v: Tensor) -> Tensor:
        pieces = [
            piece.to(tensor).view_as(tensor)
            for piece, tensor in zip(torch.split(v, sizes), variables.values(), strict=True)
        ]
        inner = torch.stack([(g * piece).sum() for g, piece in zip(gradients, pieces, strict=True)]).sum()
        if not inner.requires_grad:  # a gradient that does not depend on the parameters: a linear loss
            return torch.zeros_like(v)
        result = torch.autograd.grad(
            inner, list(variables.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return flat(result)

    return gradient, product


def extreme_eigenvalues(operator: Operator, dim: int, accuracy: Accuracy, generator: torch.Generator) -> Extremes:
    """Return the extreme Ritz values after as many Lanczos steps as the accuracy asks for; check `converged`."""
    start = torch.randn(dim, dtype=torch.float64, generator=generator)
    basis = [start / start.norm()]
    diagonal: list[float] = []
    below: list[float] = []
    result = Extremes(0.0, 0.0, math.inf, 0, converged=False)
    for count in range(1, min(dim, accuracy.max_products) + 1):
        image = operator(basis[-1])
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # twice is enough to keep the basis orthogonal to rounding
            for vector in basis:
                image = image - (image @ vector) * vector
        remainder = float(image.norm())
        result = _ritz(diagonal, below, remainder, accuracy)
        if result.converged or count == dim:
            break
        below.append(remainder)
        basis.append(image / remainder)
    return result


def operator_norm(operator: Operator, dim: int, accuracy: Accuracy, generator: torch.Generator, what: str) -> Extremes:
    """Return converged extremes of an operator.

    Args:
        operator: symmetric.
        dim: d.
        accuracy: asked for.
        generator: of the starting vector.
        what: the operator in words, for the message.

    Raises:
        RunError: not converged.
    """
    result = extreme_eigenvalues(operator, dim, accuracy, generator)
    if not result.converged:
        raise RunError(
            f"Expected the extreme eigenvalues of {what} to within {accuracy.tolerance:g} of their size, but after "
            f"{result.num_products} products the residual is {result.residual:.3g} at {result.norm:.3g}. "
            "Raise max_products or tolerance, or measure in float64."
        )
    return result


def second_moment(operators: Sequence[Operator]) -> Operator:
    """Return v -> mean_i (T_i - T̄)² v, whose norm is sup over unit v of the mean ‖(T_i - T̄)v‖²."""

    def mean(vectors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(vectors)).mean(0)

    def product(v: Tensor) -> Tensor:
        images = [operator(v) for operator in operators]
        center = mean(images)
        deviations = [image - center for image in images]
        twice = [operator(deviation) for operator, deviation in zip(operators, deviations, strict=True)]
        # mean_i T̄(T_i - T̄)v = 0, so that the outer mean needs no products of its own
        return mean(twice)

    return product


def _ritz(diagonal: list[float], below: list[float], remainder: float, accuracy: Accuracy) -> Extremes:
    """Return the extremes of the tridiagonal matrix; the residual of a Ritz pair is |remainder · last component|."""
    side = torch.tensor(below, dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(side, 1) + torch.diag(side, -1)
    values, vectors = torch.linalg.eigh(matrix)
    residual = remainder * float(vectors[-1, [0, -1]].abs().max())
    scale = max(float(values.abs().max()), accuracy.negligible)
    converged = residual <= accuracy.tolerance * scale
    return Extremes(float(values[0]), float(values[-1]), residual, len(diagonal), converged)
