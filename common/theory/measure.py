"""What the Hessians and gradients are like at one point: `nufed.common.theory.estimate` takes the maxima."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nufed.common import trees
from nufed.common.errors import ConfigError
from nufed.common.examples import Batch
from nufed.common.params import Params, add_scaled, leaves, norm
from nufed.common.rng import derive_seed, torch_generator
from nufed.common.task import LossFn
from nufed.common.theory.spectrum import (
    Accuracy,
    Extremes,
    Operator,
    flat,
    gradient_and_hessian,
    operator_norm,
    second_moment,
)

ROUNDING_FACTOR = 2e3  # rounding of Hessian products in units of machine epsilon times the Hessian's norm, generously


@dataclass(frozen=True)
class Probe:
    """Where and how finely to measure.

    Attributes:
        seed: of directions, starting vectors and chosen examples.
        num_inner_steps: length ν of the inner paths from each point, along which gradients are bounded.
        inner_lr: α of those paths, full batch.
        mu: smallest eigenvalue where it is known (0 for a convex loss); None measures it.
        radius: length of a displacement for ρ and κ, relative to max(1, norm of the point).
        num_directions: random displacements for each point; the gradient's direction is always one more.
        num_examples: examples of each client for σ_G and σ_H; clients with fewer are taken whole.
        measure_kappa: whether to measure κ; leave it off for activations without a third derivative.
        tolerance: residual of eigenvalues, relative.
        max_products: Hessian products for one eigenvalue before giving up.
    """

    seed: int = 0
    num_inner_steps: int = 0
    inner_lr: float = 0.0
    mu: float | None = None
    radius: float = 1e-2
    num_directions: int = 2
    num_examples: int = 32
    measure_kappa: bool = False
    tolerance: float = 0.02
    max_products: int = 100

    def __post_init__(self) -> None:
        """Refuse probes that measure nothing."""
        for name, least in (("num_inner_steps", 0), ("num_directions", 0), ("num_examples", 2), ("max_products", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)!r} is refused: expected {least} or more. Raise it.")
        for name in ("radius", "tolerance"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} is refused: expected a share in (0, 1). Give one.")

    def at(self, *purpose: str | int) -> "Probe":
        """Return the same probe with a random stream of its own."""
        return replace(self, seed=derive_seed(self.seed, *purpose))


@dataclass(frozen=True)
class Measured:
    """Largest values seen so far (`mu`: smallest; `num_products`: their sum); fields as in `Constants`."""

    L: float = 0.0
    mu: float = float("inf")
    rho: float = 0.0
    kappa: float = 0.0
    sigma_g: float = 0.0
    sigma_h: float = 0.0
    gamma_g: float = 0.0
    gamma_h: float = 0.0
    num_products: int = 0
    largest_residual: float = 0.0

    def join(self, other: "Measured") -> "Measured":
        """Return what both have seen together."""
        values = {name: max(value, getattr(other, name)) for name, value in vars(self).items()}
        values["mu"] = min(self.mu, other.mu)
        values["num_products"] = self.num_products + other.num_products
        return Measured(**values)


def inner_path(
    loss: LossFn, point: Mapping[str, Tensor], batches: Sequence[Batch], probe: Probe
) -> list[tuple[Params, float]]:
    """Return w_0..w_ν of the mean loss over the batches, each with the norm of its gradient."""
    current, result = dict(point), []
    for _ in range(probe.num_inner_steps + 1):
        direction = _mean_gradient(loss, current, batches)
        result.append((current, norm(direction)))
        current = add_scaled(current, direction, -probe.inner_lr)
    return result


def measure_curvature(loss: LossFn, params: Mapping[str, Tensor], batch: Batch, probe: Probe) -> Measured:
    """Return L and mu at a point, ρ and κ along displacements from it.

    A residual counts as part of the norm, so that L errs upwards.
    """
    gradient, hessian = gradient_and_hessian(loss, params, batch)
    size = _extremes(hessian, gradient, probe, "a Hessian")
    found = _seen(size, L=size.norm, mu=size.smallest)
    length = probe.radius * max(1.0, norm(params))
    floor = _rounding(params) * size.norm
    for number, direction in enumerate(_directions(gradient, probe)):
        here = probe.at("direction", number)
        _, forth = gradient_and_hessian(loss, _displaced(params, direction, length), batch)
        difference = _combination((1.0, forth), (-1.0, hessian))
        first = _extremes(difference, gradient, here, "a difference of Hessians", floor)
        found = found.join(_seen(first, floor, rho=first.norm / length))
        if probe.measure_kappa:
            _, back = gradient_and_hessian(loss, _displaced(params, direction, -length), batch)
            difference = _combination((1.0, forth), (1.0, back), (-2.0, hessian))
            second = _extremes(difference, gradient, here, "a second difference of Hessians", floor)
            found = found.join(_seen(second, floor, kappa=second.norm / length**2))
    return found


def measure_noise(
    loss: LossFn, params: Mapping[str, Tensor], batch: Batch, probe: Probe, hessian_norm: float
) -> Measured:
    """Return σ_G and σ_H at a point, from the spread of single examples' gradients and Hessians.

    `hessian_norm`, L or so, says what rounding is: a spread below it is not resolved further.
    """
    total = len(batch)
    chosen = torch.randperm(total, generator=torch_generator(probe.seed, "examples"))[: probe.num_examples]
    if len(chosen) < 2:
        return Measured()  # one example: its batch is all data and has no noise
    singles = [
        gradient_and_hessian(loss, params, batch.rows(chosen[i : i + 1].to(trees.first_leaf(batch.targets).device)))
        for i in range(len(chosen))
    ]
    gradients = torch.stack([gradient for gradient, _ in singles])
    # the spread of a part about its own mean is too small by (count - 1)/count on average
    correction = len(chosen) / (len(chosen) - 1) if len(chosen) < total else 1.0
    variance = float((gradients - gradients.mean(0)).square().sum(1).mean()) * correction
    moment = second_moment([hessian for _, hessian in singles])
    negligible = (_rounding(params) * hessian_norm) ** 2
    spread = _extremes(moment, gradients[0], probe, "the spread of examples' Hessians", negligible)
    return _seen(
        spread, negligible, sigma_g=variance**0.5, sigma_h=(spread.norm * correction) ** 0.5, weight=len(chosen)
    )


def measure_gradient_heterogeneity(loss: LossFn, params: Mapping[str, Tensor], clients: Sequence[Batch]) -> Measured:
    """Return γ_G at a point: the root mean square over clients of ‖∇f_i - ∇f‖."""
    gradients = torch.stack([flat(list(_mean_gradient(loss, params, [batch]).values())) for batch in clients])
    return Measured(gamma_g=float((gradients - gradients.mean(0)).square().sum(1).mean()) ** 0.5)


def measure_hessian_heterogeneity(
    loss: LossFn, params: Mapping[str, Tensor], clients: Sequence[Batch], probe: Probe, hessian_norm: float
) -> Measured:
    """Return γ_H at a point: the root of the norm of the mean over clients of (∇²f_i - ∇²f)².

    `hessian_norm` as in `measure_noise`.
    """
    pairs = [gradient_and_hessian(loss, params, batch) for batch in clients]
    moment = second_moment([hessian for _, hessian in pairs])
    negligible = (_rounding(params) * hessian_norm) ** 2
    spread = _extremes(moment, pairs[0][0], probe, "the spread of clients' Hessians", negligible)
    return _seen(spread, negligible, gamma_h=spread.norm**0.5, weight=len(clients))


def _mean_gradient(loss: LossFn, params: Mapping[str, Tensor], batches: Sequence[Batch]) -> Params:
    """Return the gradient of the unweighted mean over batches, one batch in memory at a time."""
    variables = leaves(params)
    parts = [torch.autograd.grad(loss(variables, batch), list(variables.values())) for batch in batches]
    return {name: torch.stack(pieces).mean(0) for name, *pieces in zip(variables, *parts, strict=True)}


def _extremes(operator: Operator, like: Tensor, probe: Probe, what: str, negligible: float = 0.0) -> Extremes:
    accuracy = Accuracy(probe.tolerance, probe.max_products, negligible)
    return operator_norm(operator, len(like), accuracy, torch_generator(probe.seed, "lanczos", what), what)


def _seen(extremes: Extremes, negligible: float = 0.0, *, weight: int = 1, **values: float) -> Measured:
    """Return values with their cost and accuracy; one product of a second moment costs two of each member."""
    products = extremes.num_products * (1 if weight == 1 else 2 * weight)
    relative = extremes.residual / extremes.norm if extremes.norm > negligible else 0.0
    return replace(Measured(num_products=products, largest_residual=relative), **values)  # type: ignore[arg-type]


def _rounding(params: Mapping[str, Tensor]) -> float:
    return ROUNDING_FACTOR * max(torch.finfo(tensor.dtype).eps for tensor in params.values())


def _directions(gradient: Tensor, probe: Probe) -> list[Tensor]:
    """Return unit vectors: the gradient's direction, where there is one, and random ones."""
    generator = torch_generator(probe.seed, "directions")
    randoms = [
        torch.randn(len(gradient), dtype=torch.float64, generator=generator) for _ in range(probe.num_directions)
    ]
    return [vector / vector.norm() for vector in (gradient, *randoms) if vector.norm() > 0]


def _displaced(params: Mapping[str, Tensor], direction: Tensor, length: float) -> Params:
    pieces = torch.split(direction * length, [tensor.numel() for tensor in params.values()])
    return {
        name: tensor + piece.to(tensor).view_as(tensor)
        for (name, tensor), piece in zip(params.items(), pieces, strict=True)
    }


def _combination(*terms: tuple[float, Operator]) -> Operator:
    def product(v: Tensor) -> Tensor:
        return torch.stack([weight * operator(v) for weight, operator in terms]).sum(0)

    return product
