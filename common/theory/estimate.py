"""L, ρ, κ, B, σ_G, σ_H, γ_G, γ_H measured on a model and data.

What is measured are local estimates: maxima over the points, inner paths and directions that were looked at, hence
lower bounds of the suprema that the assumptions speak of. They say how large the quantities are where training
happens; they prove nothing about points that were not visited.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nufed.common.errors import ConfigError
from nufed.common.examples import Batch
from nufed.common.task import LossFn
from nufed.common.theory.constants import Constants
from nufed.common.theory.measure import (
    Measured,
    Probe,
    inner_path,
    measure_curvature,
    measure_gradient_heterogeneity,
    measure_hessian_heterogeneity,
    measure_noise,
)


@dataclass(frozen=True)
class Estimate:
    """Constants as measured, and how.

    Attributes:
        constants: maxima over everything visited; B over all steps of the inner paths.
        gradient_by_step: largest ‖∇f_i‖ after j = 0..ν inner steps; the theory needs the one at j = ν alone.
        num_points: points given.
        num_clients: clients given.
        num_products: products of a Hessian with a vector, single examples' included.
        largest_residual: of any eigenvalue, relative to its size; every one converged to the probe's tolerance.
    """

    constants: Constants
    gradient_by_step: tuple[float, ...]
    num_points: int
    num_clients: int
    num_products: int
    largest_residual: float

    def after(self, num_inner_steps: int) -> Constants:
        """Return the constants with B after that many inner steps; beyond the measured path, the largest along it."""
        if num_inner_steps >= len(self.gradient_by_step):
            return self.constants
        return replace(self.constants, B=self.gradient_by_step[num_inner_steps])


def estimate_constants(
    loss: LossFn, points: Sequence[Mapping[str, Tensor]], clients: Sequence[Batch], probe: Probe
) -> Estimate:
    """Return the constants of assumptions A2 to A5 at and around the points, for these clients.

    From each point, every client's own inner path gives L, ρ, κ, σ_G and σ_H (at its two ends) and B (everywhere);
    the path of the mean loss gives γ_G and B (everywhere) and γ_H (at its two ends).

    Args:
        loss: mean over the examples of a batch.
        points: parameters, e.g. server models of a run.
        clients: each client's examples.
        probe: where and how finely.

    Raises:
        ConfigError: no point, no client, or no curvature anywhere.
        ModelError: loss or gradient is not finite at a visited point.
        RunError: an eigenvalue did not converge.
    """
    if not points or not clients:
        raise ConfigError(
            f"Expected at least one point and one client, but got {len(points)} and {len(clients)}. Give both."
        )
    found, gradients = Measured(), [0.0] * (probe.num_inner_steps + 1)
    for number, point in enumerate(points):
        visits = [
            _visit_client(loss, point, batch, probe.at("theory", number, "client", index))
            for index, batch in enumerate(clients)
        ]
        size = max(seen.L for seen, _ in visits)
        visits.append(_visit_federation(loss, point, clients, probe.at("theory", number, "mean"), size))
        for seen, norms in visits:
            found = found.join(seen)
            gradients = [max(pair) for pair in zip(gradients, norms, strict=True)]
    return Estimate(
        _constants(found, max(gradients), probe),
        tuple(gradients),
        len(points),
        len(clients),
        found.num_products,
        found.largest_residual,
    )


def gradient_after(loss: LossFn, point: Mapping[str, Tensor], clients: Sequence[Batch], probe: Probe) -> float:
    """Return B at a point: the largest norm of a client's gradient after the probe's ν steps of the probe's α.

    Args:
        loss: mean over the examples of a batch.
        point: parameters.
        clients: each client's examples.
        probe: ν and α.

    Raises:
        ModelError: loss or gradient is not finite on the way.
    """
    ends = [inner_path(loss, point, [batch], probe)[-1][1] for batch in clients]
    return max(*ends, inner_path(loss, point, clients, probe)[-1][1])


def _visit_client(
    loss: LossFn, point: Mapping[str, Tensor], batch: Batch, probe: Probe
) -> tuple[Measured, list[float]]:
    path = inner_path(loss, point, [batch], probe)
    found = Measured()
    for step in sorted({0, probe.num_inner_steps}):
        here, params = probe.at("step", step), path[step][0]
        found = found.join(measure_curvature(loss, params, batch, here))
        found = found.join(measure_noise(loss, params, batch, here, found.L))
    return found, [size for _, size in path]


def _visit_federation(
    loss: LossFn, point: Mapping[str, Tensor], clients: Sequence[Batch], probe: Probe, hessian_norm: float
) -> tuple[Measured, list[float]]:
    path = inner_path(loss, point, clients, probe)
    found = Measured()
    for params, _ in path:
        found = found.join(measure_gradient_heterogeneity(loss, params, clients))
    for step in sorted({0, probe.num_inner_steps}):
        here, params = probe.at("step", step), path[step][0]
        found = found.join(measure_hessian_heterogeneity(loss, params, clients, here, hessian_norm))
    return found, [size for _, size in path]


def _constants(found: Measured, largest_gradient: float, probe: Probe) -> Constants:
    if found.L == 0:
        raise ConfigError(
            "Expected a loss with curvature, but all Hessians measured are 0, so that any inner step size suits. "
            "Measure at other points."
        )
    return Constants(
        L=found.L,
        rho=found.rho,
        B=largest_gradient,
        sigma_g=found.sigma_g,
        sigma_h=found.sigma_h,
        gamma_g=found.gamma_g,
        gamma_h=found.gamma_h,
        kappa=found.kappa if probe.measure_kappa else None,
        mu=max(-found.L, min(found.L, found.mu)) if probe.mu is None else probe.mu,
    )
