"""How fast the server models approach a stationary point of F: Theorem 8, (11), and Corollary 9."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from nufed.common.errors import ConfigError
from nufed.common.theory.bounds import ObjectiveConstants

ADMISSIBLE = 1 / 5  # β L_F τ may not exceed it
BIAS_COEFFICIENT = 6.5
_STUCK = "1/K down to a level set by β"


@dataclass(frozen=True)
class RunShape:
    """What a run does, apart from its meta step.

    Attributes:
        initial_gap: Δ_F = F(w_0) - inf F.
        local_lr: β.
        num_local_steps: τ.
        num_rounds: K.
        num_clients: n.
        num_chosen: m, clients in a round, uniformly without replacement.
    """

    initial_gap: float
    local_lr: float
    num_local_steps: int
    num_rounds: int
    num_clients: int
    num_chosen: int

    def __post_init__(self) -> None:
        """Refuse runs that cannot be."""
        for name in ("initial_gap", "local_lr"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name}={value!r} is refused: expected a finite positive number. Give one.")
        for name in ("num_local_steps", "num_rounds", "num_clients", "num_chosen"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} is refused: expected 1 or more. Give a count.")
        if self.num_chosen > self.num_clients:
            raise ConfigError(
                f"num_chosen={self.num_chosen} is refused: only {self.num_clients} clients exist. Lower it."
            )

    @property
    def sampling_factor(self) -> float:
        """Return φ = (n - m) / (m (n - 1)): 0 for full participation, 1 for one client a round."""
        if self.num_chosen == self.num_clients:
            return 0.0
        return (self.num_clients - self.num_chosen) / (self.num_chosen * (self.num_clients - 1))


@dataclass(frozen=True)
class BoundTerms:
    """The right side of (11), term by term; they bound the mean over rounds of E‖∇F(w_k)‖².

    Attributes:
        start: 4Δ_F/(βτK), what is left of the initial gap.
        noise: 4βL_F v(1/n + 2φ), noise of the estimator.
        sampling: 8βL_F τφγ_F², clients differ and not all take part.
        drift: 11.2β²L_F²(τ-1)(v + 2τγ_F²), local steps go their own ways.
        floor: 6.5b², bias of the estimator; no step size or number of rounds removes it.
    """

    start: float
    noise: float
    sampling: float
    drift: float
    floor: float

    @property
    def total(self) -> float:
        """Return the right side of (11)."""
        return math.fsum((self.start, self.noise, self.sampling, self.drift, self.floor))

    @property
    def largest(self) -> str:
        """Return the name of the term that dominates."""
        terms = vars(self)
        return max(terms, key=lambda name: terms[name])


@dataclass(frozen=True)
class Rate:
    """One choice of β from Corollary 9 and what it gives.

    Attributes:
        name: key in `RATES`.
        local_lr: β.
        terms: (11) at this β.
        closed_form: the corollary's expression, which bounds `terms.total`.
        order: the expression's order in K, in words.
    """

    name: str
    local_lr: float
    terms: BoundTerms
    closed_form: float
    order: str


def max_local_lr(objective: ObjectiveConstants, num_local_steps: int) -> float:
    """Return 1/(5 L_F τ), the largest β that Theorem 8 covers."""
    return ADMISSIBLE / (objective.smoothness * num_local_steps)


def convergence_bound(objective: ObjectiveConstants, run: RunShape) -> BoundTerms:
    """Return the right side of Theorem 8, (11), term by term.

    Raises:
        ConfigError: β is above 1/(5 L_F τ), where the theorem says nothing.
    """
    limit = max_local_lr(objective, run.num_local_steps)
    if run.local_lr > limit * (1 + 1e-12):
        raise ConfigError(
            f"Expected a local step size of at most {limit:.3g} = 1/(5 L_F τ), but got {run.local_lr!r}; "
            f"Theorem 8 does not cover it. Lower local_lr to {limit:.3g} or fewer local steps."
        )
    x, tau, phi = run.local_lr * objective.smoothness, run.num_local_steps, run.sampling_factor
    v, spread = objective.variance, objective.heterogeneity**2
    return BoundTerms(
        start=4 * run.initial_gap / (run.local_lr * tau * run.num_rounds),
        noise=4 * x * v * (1 / run.num_clients + 2 * phi),
        sampling=8 * x * tau * phi * spread,
        drift=11.2 * x**2 * (tau - 1) * (v + 2 * tau * spread),
        floor=floor(objective),
    )


def floor(objective: ObjectiveConstants) -> float:
    """Return 6.5 b², what remains of (11) as K grows and β falls; Corollary 9.6."""
    return BIAS_COEFFICIENT * objective.bias**2


def local_average_bound(objective: ObjectiveConstants, run: RunShape) -> float:
    """Return a bound of the mean over rounds and local steps of E‖∇F‖² at the chosen clients' mean; Corollary 9.1."""
    x, tau = run.local_lr * objective.smoothness, run.num_local_steps
    wander = objective.variance + 2 * tau * (objective.bias**2 + objective.heterogeneity**2)
    return 2.32 * convergence_bound(objective, run).total + 4 * x**2 * (tau - 1) * wander


def constant_rate(objective: ObjectiveConstants, run: RunShape) -> Rate:
    """Return β = 1/(5 L_F τ); Corollary 9.2: 20 L_F Δ_F/K without noise, with full participation and τ = 1."""
    run = replace(run, local_lr=max_local_lr(objective, run.num_local_steps))
    terms = convergence_bound(objective, run)
    persistent = terms.noise + terms.sampling + terms.drift
    order = "1/K" if persistent == 0 else _STUCK
    return Rate("constant", run.local_lr, terms, _start(objective, run) + persistent + terms.floor, order)


def square_root_rate(objective: ObjectiveConstants, run: RunShape) -> Rate:
    """Return β = 1/(5 L_F τ √K); Corollary 9.3, for any run."""
    tau, rounds, phi = run.num_local_steps, run.num_rounds, run.sampling_factor
    v, spread = objective.variance, objective.heterogeneity**2
    run = replace(run, local_lr=max_local_lr(objective, tau) / math.sqrt(rounds))
    leading = 20 * objective.smoothness * run.initial_gap + 1.6 * phi * spread
    leading += 0.8 * (1 / run.num_clients + 2 * phi) * v / tau
    drift = 0.448 * (tau - 1) * (v + 2 * tau * spread) / (tau**2 * rounds)
    bound = leading / math.sqrt(rounds) + drift + floor(objective)
    return Rate("square-root", run.local_lr, convergence_bound(objective, run), bound, "1/√K")


def cube_root_rate(objective: ObjectiveConstants, run: RunShape) -> Rate:
    """Return β = 1/(5 L_F τ K^(1/3)); Corollary 9.4.

    Raises:
        ConfigError: with noise or partial participation, where it does not hold.
    """
    if objective.variance > 0 or run.sampling_factor > 0:
        raise ConfigError(
            "Expected no noise and full participation for the rate 'cube-root', but "
            f"v={objective.variance:g} and φ={run.sampling_factor:g}. Take 'tuned' or 'square-root'."
        )
    third = run.num_rounds ** (1 / 3)
    run = replace(run, local_lr=max_local_lr(objective, run.num_local_steps) / third)
    leading = 20 * objective.smoothness * run.initial_gap + 0.9 * objective.heterogeneity**2
    return Rate(
        "cube-root",
        run.local_lr,
        convergence_bound(objective, run),
        leading / third**2 + floor(objective),
        "1/K^(2/3)",
    )


def tuned_rate(objective: ObjectiveConstants, run: RunShape) -> Rate:
    """Return β = min(1/(5 L_F τ), √(4Δ_F/(τKC))) with C = 4L_F(v(1/n + 2φ) + 2φτγ_F²); Corollary 9.5.

    Where C = 0 and τ > 1 this β does not fall with K and the drift of local steps stays: take `best_rate`.
    """
    tau, phi = run.num_local_steps, run.sampling_factor
    spread = objective.heterogeneity**2
    level = objective.variance * (1 / run.num_clients + 2 * phi) + 2 * phi * tau * spread
    level *= 4 * objective.smoothness
    limit = max_local_lr(objective, tau)
    balanced = math.sqrt(4 * run.initial_gap / (tau * run.num_rounds * level)) if level > 0 else math.inf
    run = replace(run, local_lr=min(limit, balanced))
    terms = convergence_bound(objective, run)
    leading = _start(objective, run) + 4 * math.sqrt(run.initial_gap * level / (tau * run.num_rounds))
    order = "1/√K" if balanced < limit else _STUCK if terms.drift else "1/K"
    return Rate("tuned", run.local_lr, terms, leading + terms.drift + terms.floor, order)


def best_rate(objective: ObjectiveConstants, run: RunShape) -> Rate:
    """Return the β in (0, 1/(5 L_F τ)] that makes (11) smallest; Corollary 9.7.

    (11) is c_0/β + c_1β + c_2β² + 6.5b², convex in β; its derivative has one root, found by bisection.
    """
    limit = max_local_lr(objective, run.num_local_steps)
    terms = convergence_bound(objective, replace(run, local_lr=limit))
    # at x = β/limit the slope in x, times x², is (noise + sampling) x² + 2 drift x³ - start
    steady = terms.noise + terms.sampling
    low, high = 0.0, 1.0
    if steady + 2 * terms.drift > terms.start:
        for _ in range(60):
            middle = (low + high) / 2
            if steady * middle**2 + 2 * terms.drift * middle**3 > terms.start:
                high = middle
            else:
                low = middle
    run = replace(run, local_lr=high * limit)
    terms = convergence_bound(objective, run)
    order = "1/K" if high == 1.0 else "1/√K" if terms.noise + terms.sampling > terms.drift else "1/K^(2/3)"
    return Rate("best", run.local_lr, terms, terms.total, order)


RATES: dict[str, Callable[[ObjectiveConstants, RunShape], Rate]] = {
    "constant": constant_rate,
    "square-root": square_root_rate,
    "cube-root": cube_root_rate,
    "tuned": tuned_rate,
    "best": best_rate,
}


def _start(objective: ObjectiveConstants, run: RunShape) -> float:
    return 20 * objective.smoothness * run.initial_gap / run.num_rounds
