"""What ν inner steps do to smoothness, bias, variance and heterogeneity: equations (4) to (10) and (15).

Abbreviations of docs/theory.md used below: q (`inner_growth`), S_j (`geometric_sum`), R_ν (`geometric_double_sum`),
s = ασ_G/√D (noise of one inner step), h = ασ_H/√D'' (noise of one Hessian factor), q_h = √(q² + h²).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.theory.constants import (
    Constants,
    MetaStep,
    geometric_double_sum,
    geometric_sum,
    inner_growth,
    power,
)


def smoothness(constants: Constants, inner_lr: float, num_inner_steps: int) -> float:
    """Return L_F(ν) = L q^2ν + αρB q^(ν-1) S_ν(q), a Lipschitz constant of every ∇F_i; Lemma 2, (4).

    ν = 1, α = 1/L, general losses: 4L + αρB, as Fallah et al. (2020). ν = 0: L. Convex quadratics (ρ = 0, μ >= 0) with
    α <= 1/L have the curvature of (15), which falls with ν.
    """
    q, nu = inner_growth(constants, inner_lr), num_inner_steps
    if nu == 0:
        return constants.L
    if constants.rho == 0 and constants.smallest_eigenvalue >= 0 and 0 < inner_lr * constants.L <= 1:
        return min(constants.L * power(q, 2 * nu), max_curvature(inner_lr, nu))
    drift = inner_lr * constants.rho * constants.B * power(q, nu - 1) * geometric_sum(q, nu)
    return constants.L * power(q, 2 * nu) + drift


def max_curvature(inner_lr: float, num_inner_steps: int) -> float:
    """Return the largest a(1 - αa)^2ν over a in [0, 1/α], the curvature of F for convex quadratics; (15)."""
    if inner_lr <= 0:
        raise ConfigError(f"inner_lr={inner_lr!r} is refused: expected a positive step size for (15). Give one.")
    p = 2 * num_inner_steps
    return float((p / (p + 1)) ** p / (inner_lr * (p + 1)))


def path_error(constants: Constants, step: MetaStep, num_steps: int) -> float:
    """Return s √S_j(q²), a bound of the root mean square distance of noisy and true path after j steps; Lemma 3."""
    q = inner_growth(constants, step.inner_lr)
    noise = step.inner_lr * math.sqrt(_gradient_noise(constants, step.batch_size))
    return noise * math.sqrt(geometric_sum(q * q, num_steps))


def exact_bias(constants: Constants, step: MetaStep) -> float:
    """Return b_ex(ν), a bound of ‖E G - ∇F_i‖ for fresh batches; Lemma 4, (5).

    ν = 1, α = 1/L, general losses: 2αLσ_G/√D, as Fallah et al. (2020).
    """
    q, nu = inner_growth(constants, step.inner_lr), step.num_inner_steps
    if nu == 0:
        return 0.0
    along_path = math.fsum(path_error(constants, step, j) for j in range(1, nu))
    at_end = constants.L * power(q, nu) * path_error(constants, step, nu)
    return at_end + step.inner_lr * constants.rho * constants.B * power(q, nu - 1) * along_path


def exact_conditional_variance(constants: Constants, step: MetaStep) -> float:
    """Return V(ν) = q_h^2ν (B² + σ_G²/D') - q^2ν B², the variance given the noisy path; Lemma 4, (6)."""
    q, nu, square = inner_growth(constants, step.inner_lr), step.num_inner_steps, constants.B**2
    outer = _gradient_noise(constants, step.outer_batch_size)
    noisy = power(_noisy_growth(constants, step), 2 * nu)
    return noisy * outer + square * (noisy - power(q, 2 * nu))


def exact_error(constants: Constants, step: MetaStep) -> float:
    """Return V(ν) + b_ex(ν)², a bound of E‖G - ∇F_i‖² and so of the variance; Lemma 4, (7)."""
    return exact_conditional_variance(constants, step) + exact_bias(constants, step) ** 2


def first_order_bias(constants: Constants, step: MetaStep) -> float:
    """Return b_FO(ν) = L s √S_ν(q²) + αLB S_ν(q); Lemma 5, (8). The second part does not fall with batch sizes."""
    q, nu = inner_growth(constants, step.inner_lr), step.num_inner_steps
    dropped = step.inner_lr * constants.L * constants.B * geometric_sum(q, nu)
    return constants.L * path_error(constants, step, nu) + dropped


def first_order_variance(constants: Constants, step: MetaStep) -> float:
    """Return σ_G²/D' + L² s² S_ν(q²), a bound of the variance about the estimator's own mean; Lemma 5, (8)."""
    path = constants.L * path_error(constants, step, step.num_inner_steps)
    return _gradient_noise(constants, step.outer_batch_size) + path**2


def hessian_free_gap(constants: Constants, step: MetaStep) -> float:
    """Return d_HF(ν, δ), a bound of the finite differences' error in root mean square; Lemma 6, (9).

    Of order δ² for central differences where κ is known, and of order δ otherwise.

    Raises:
        ConfigError: an absolute displacement δv with noisy batches, whose error needs higher moments than A4 gives.
    """
    q, nu = inner_growth(constants, step.inner_lr), step.num_inner_steps
    if step.displacement == "absolute":
        _refuse_noise(constants, step)
        total = math.fsum(
            power(q, j) * _curvature_error(constants, step, power(q, nu - 1 - j) * constants.B) for j in range(nu)
        )
        return step.inner_lr * total
    noisy = _noisy_growth(constants, step)
    norm = math.sqrt(constants.B**2 + _gradient_noise(constants, step.outer_batch_size))
    total = math.fsum(power(q, j) * power(noisy, nu - 1 - j) for j in range(nu))
    return step.inner_lr * _curvature_error(constants, step, 1.0) * total * norm


def hessian_free_bias(constants: Constants, step: MetaStep) -> float:
    """Return b_HF = b_ex + d_HF; Lemma 6."""
    return exact_bias(constants, step) + hessian_free_gap(constants, step)


def hessian_free_error(constants: Constants, step: MetaStep) -> float:
    """Return (√(V + b_ex²) + d_HF)², a bound of E‖G_HF - ∇F_i‖² and so of the variance; Lemma 6."""
    return (math.sqrt(exact_error(constants, step)) + hessian_free_gap(constants, step)) ** 2


def unrolled_error(constants: Constants, step: MetaStep) -> float:
    """Return a bound of E‖G - ∇F_i‖² for Hessian factors on the inner batches themselves; Lemma 6', (9').

    q (through L and mu) must hold for every batch's loss. By Jensen its root bounds ‖∇F_i^sgd - ∇F_i‖ too.
    """
    q, nu = inner_growth(constants, step.inner_lr), step.num_inner_steps
    outer = math.sqrt(first_order_variance(constants, step))
    if nu == 0:
        return outer**2
    factor_noise = constants.sigma_h / math.sqrt(step.batch_size) if step.batch_size else 0.0
    factors = math.fsum(factor_noise + constants.rho * path_error(constants, step, j) for j in range(nu))
    return (power(q, nu) * outer + step.inner_lr * constants.B * power(q, nu - 1) * factors) ** 2


def heterogeneity(constants: Constants, inner_lr: float, num_inner_steps: int) -> float:
    """Return γ_F(ν), a bound of the root mean square over clients of ‖∇F_i - ∇F‖; Lemma 7, (10). ν = 0: γ_G."""
    q, nu = inner_growth(constants, inner_lr), num_inner_steps
    if nu == 0:
        return constants.gamma_g
    gradients = power(q, nu) * constants.gamma_g * (1 + inner_lr * constants.L * geometric_sum(q, nu))
    paths = inner_lr * constants.rho * constants.gamma_g * geometric_double_sum(q, nu)
    return gradients + inner_lr * constants.B * power(q, nu - 1) * (nu * constants.gamma_h + paths)


@dataclass(frozen=True)
class ObjectiveConstants:
    """The four numbers through which ν and the estimator act in Theorem 8.

    Attributes:
        smoothness: L_F.
        bias: b, bound of the estimator's conditional bias.
        variance: v, bound of its variance about its conditional mean.
        heterogeneity: γ_F.
    """

    smoothness: float
    bias: float
    variance: float
    heterogeneity: float


def objective_constants(constants: Constants, step: MetaStep) -> ObjectiveConstants:
    """Return L_F, b, v and γ_F of one estimator; the table before Theorem 8.

    For `unrolled` they describe F^sgd, the loss after ν steps of mini-batch fine-tuning, of which the estimator is
    unbiased; its heterogeneity is at most γ_F + √(E‖G - ∇F_i‖²).

    Raises:
        ConfigError: unknown estimator.
    """
    if step.estimator not in ESTIMATOR_BOUNDS:
        raise ConfigError(
            f"Expected an estimator that the theory has bounds for, got {step.estimator!r}."
            f"{nearest_match_hint(step.estimator, ESTIMATOR_BOUNDS)}"
        )
    bias, variance = ESTIMATOR_BOUNDS[step.estimator]
    spread = heterogeneity(constants, step.inner_lr, step.num_inner_steps)
    if step.estimator == "unrolled":
        spread += math.sqrt(unrolled_error(constants, step))
    return ObjectiveConstants(
        smoothness(constants, step.inner_lr, step.num_inner_steps),
        bias(constants, step),
        variance(constants, step),
        spread,
    )


def _unbiased(constants: Constants, step: MetaStep) -> float:  # noqa: ARG001 - one signature for all estimators
    return 0.0


_Bound = Callable[[Constants, MetaStep], float]
ESTIMATOR_BOUNDS: dict[str, tuple[_Bound, _Bound]] = {
    "exact": (exact_bias, exact_error),
    "unrolled": (_unbiased, unrolled_error),
    "first-order": (first_order_bias, first_order_variance),
    "hessian-free": (hessian_free_bias, hessian_free_error),
}


def _gradient_noise(constants: Constants, batch_size: int) -> float:
    """Return σ_G²/D, or 0 for a full batch."""
    return constants.sigma_g**2 / batch_size if batch_size else 0.0


def _noisy_growth(constants: Constants, step: MetaStep) -> float:
    """Return q_h = √(q² + α²σ_H²/D'')."""
    size = step.hessian_batch_size
    noise = step.inner_lr * constants.sigma_h / math.sqrt(size) if size else 0.0
    return math.hypot(inner_growth(constants, step.inner_lr), noise)


def _curvature_error(constants: Constants, step: MetaStep, norm: float) -> float:
    """Return a bound of the difference quotient's error for a vector displaced by δ times itself.

    With δ the norm of the displacement and `norm` 1 this is ε(δ) = ρδ/2, or κδ²/6 for central differences with κ.
    """
    if constants.kappa is None or step.difference == "forward":
        return constants.rho * step.delta / 2 * norm**2
    return constants.kappa * step.delta**2 / 6 * norm**3


def _refuse_noise(constants: Constants, step: MetaStep) -> None:
    outer = constants.sigma_g if step.outer_batch_size else 0.0
    factors = constants.sigma_h if step.hessian_batch_size else 0.0
    if outer or factors:
        raise ConfigError(
            "Expected outer and Hessian batches without noise for the displacement 'absolute', but "
            f"σ_G={outer:g} and σ_H={factors:g}. Take displacement 'normalized', or batch sizes 0 (all examples)."
        )
