"""The assumptions of the theory as records, and the three quantities that every formula is made of: q, S_j, R_ν."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError

Displacement = Literal["normalized", "absolute"]
Difference = Literal["central", "forward"]
LARGEST_EXPONENT = 230.0  # e^230 = 1e100, so that products and squares of bounds stay finite


@dataclass(frozen=True)
class Constants:
    """The constants of assumptions A2 to A5 (docs/theory.md, section 2), for all clients at once.

    All bounds are local: constants of a set suffice if server models, local iterates, inner points and the segments
    between compared points stay in it.

    Attributes:
        L: bound of the Hessians' norm.
        rho: ρ, Lipschitz constant of the Hessians.
        B: bound of the gradient's norm; only gradients after adaptation enter.
        sigma_g: σ_G, a batch gradient of D examples has variance at most σ_G²/D.
        sigma_h: σ_H, a batch Hessian of D examples times a fixed unit vector has variance at most σ_H²/D.
        gamma_g: γ_G, root mean square over clients of ‖∇f_i - ∇f‖.
        gamma_h: γ_H, bound over unit vectors u of the root mean square over clients of ‖(∇²f_i - ∇²f)u‖.
        kappa: κ, Lipschitz constant of the third derivatives; None where they have none (ELU, ReLU).
        mu: smallest eigenvalue of any client's Hessian, in [-L, L]: 0 for convex losses, positive for strongly
            convex ones, None where only |eigenvalue| <= L is known.
    """

    L: float
    rho: float
    B: float
    sigma_g: float = 0.0
    sigma_h: float = 0.0
    gamma_g: float = 0.0
    gamma_h: float = 0.0
    kappa: float | None = None
    mu: float | None = None

    def __post_init__(self) -> None:
        """Refuse constants that no loss can have."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if not (isinstance(value, int | float) and math.isfinite(value)):
                raise ConfigError(f"{field.name}={value!r} is refused: expected a finite number. Measure or bound it.")
            if value < 0 and field.name != "mu":
                raise ConfigError(f"{field.name}={value!r} is refused: expected a number from 0 up. Give its bound.")
        if self.L == 0:
            raise ConfigError("L=0 is refused: expected a positive bound of the Hessians' norm. Give any positive one.")
        if self.mu is not None and not -self.L <= self.mu <= self.L:
            raise ConfigError(
                f"mu={self.mu!r} is refused: an eigenvalue lies in [-L, L] = [{-self.L:g}, {self.L:g}]. "
                "Give the smallest eigenvalue, or leave it out."
            )

    @property
    def smallest_eigenvalue(self) -> float:
        """Return `mu`, or -L where it is not known."""
        return -self.L if self.mu is None else self.mu


@dataclass(frozen=True)
class MetaStep:
    """What one meta step of a client computes; names and the meaning of 0 as in `nufed.common.config.MethodConfig`.

    Attributes:
        num_inner_steps: ν.
        inner_lr: α.
        estimator: exact, unrolled, first-order or hessian-free.
        batch_size: D, examples in an inner batch; 0 takes all of them, so there is no noise.
        outer_batch_size: D'.
        hessian_batch_size: D''.
        delta: δ, norm of the Hessian-free displacement.
        displacement: by δv/‖v‖ (`normalized`) or by δv (`absolute`).
        difference: of both sides of the point (`central`) or of one (`forward`), which κ does not help.
    """

    num_inner_steps: int
    inner_lr: float
    estimator: str = "exact"
    batch_size: int = 0
    outer_batch_size: int = 0
    hessian_batch_size: int = 0
    delta: float = 1e-2
    displacement: Displacement = "normalized"
    difference: Difference = "central"

    def __post_init__(self) -> None:
        """Refuse counts and step sizes below 0."""
        for name in ("num_inner_steps", "inner_lr", "batch_size", "outer_batch_size", "hessian_batch_size"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is refused: expected a number from 0 up. "
                    "For batch sizes, 0 takes all examples."
                )
        if not self.delta > 0:
            raise ConfigError(f"delta={self.delta!r} is refused: expected a positive norm. Give 1e-2 in float32.")

    @classmethod
    def from_config(cls, method: MethodConfig, default_delta: float = 1e-2) -> "MetaStep":
        """Return the meta step of a run; `default_delta` is taken where the run leaves δ at 0.

        Raises:
            ConfigError: a Hessian-free displacement relative to the parameters' norm, which no constant bounds.
        """

        def resolved(size: int) -> int:
            return method.batch_size if size == -1 else size

        displacement = method.hessian_free_displacement
        if displacement == "relative":
            if method.estimator == "hessian-free":
                raise ConfigError(
                    "Expected a displacement that does not depend on the parameters, but hessian-free-displacement is "
                    "'relative'. Take 'normalized' with hessian-free-delta at the largest δ(1 + ‖w‖) that you expect."
                )
            displacement = "normalized"  # other estimators displace nothing
        return cls(
            method.num_inner_steps,
            method.inner_lr,
            method.estimator,
            method.batch_size,
            resolved(method.outer_batch_size),
            resolved(method.hessian_batch_size),
            method.hessian_free_delta or default_delta,
            displacement,
            method.hessian_free_difference,
        )


def inner_growth(constants: Constants, inner_lr: float) -> float:
    """Return q, the largest factor by which one inner step stretches the distance of two points.

    q = sup ‖I - αH‖ over Hessians H with eigenvalues in [mu, L], which is 1 + αL in general, 1 for convex losses with
    α <= 2/L and 1 - αμ for μ-strongly convex ones with α <= 2/(L + μ).
    """
    return max(abs(1 - inner_lr * constants.smallest_eigenvalue), abs(1 - inner_lr * constants.L))


def power(base: float, exponent: int) -> float:
    """Return `base ** exponent`, refusing bounds too large to mean anything.

    Raises:
        ConfigError: the result would exceed 1e100.
    """
    if base > 0 and exponent * math.log(base) > LARGEST_EXPONENT:
        raise ConfigError(
            f"Expected bounds below 1e100, but {exponent} inner factors of {base:.3g} exceed it. "
            "Lower the inner step size (for losses that are not convex to 1/(ν L)) or take fewer inner steps."
        )
    return float(base**exponent)


def geometric_sum(x: float, num_terms: int) -> float:
    """Return S_j(x) = 1 + x + … + x^(j-1) for x >= 0; 0 for j = 0."""
    if x == 1 or num_terms == 0:
        return float(num_terms)
    if x < 0.5:
        return (1 - x**num_terms) / (1 - x)
    power(x, num_terms)  # refuses what would overflow
    return math.expm1(num_terms * math.log1p(x - 1)) / (x - 1)


def geometric_double_sum(x: float, num_terms: int) -> float:
    """Return R_ν(x) = S_0(x) + … + S_{ν-1}(x); the coefficient of x^l is ν - 1 - l."""
    return math.fsum((num_terms - 1 - exponent) * power(x, exponent) for exponent in range(num_terms))
