"""From constants to step sizes: α and β for each ν with the reasoning in words, and a table of what they give."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from nufed.common.errors import ConfigError
from nufed.common.theory.bounds import ObjectiveConstants, hessian_free_gap, objective_constants
from nufed.common.theory.constants import Constants, MetaStep, inner_growth, power
from nufed.common.theory.convergence import BoundTerms, Rate, RunShape, best_rate, max_local_lr
from nufed.common.theory.estimate import Estimate
from nufed.common.theory.trial_steps import TrialSteps

GROWTH_LIMIT = math.e**2  # of q^2ν, reached as ν grows with α = 1/(ν|μ|)
STABLE = 2.0  # of αL, beyond which a gradient step on a quadratic moves away from its minimum
ONE_STEP_LIMIT = 0.1  # below ναL = 0.1, ν steps of α and one of να have nearly the same meta-gradient


@dataclass(frozen=True)
class Advice:
    """Step sizes for one ν, why, and what Theorem 8 says of them.

    Attributes:
        num_inner_steps: ν.
        inner_lr: α.
        inner_lr_reason: what binds α.
        local_lr: β.
        local_lr_limit: 1/(5 L_F τ).
        local_lr_reason: what binds β.
        growth: q.
        objective: L_F, b, v, γ_F.
        terms: the right side of (11) at this β.
        remarks: what else the theory says of this choice, in sentences.
        trial_inner_lr: α that short training was best with (`nufed.common.theory.trial_steps`); None if not measured.
        trial_local_lr: β that it was best with; None if not measured, or if F does not change along a step.
        is_vacuous: whether the bound is no smaller than what holds at the start, so that it says nothing.
    """

    num_inner_steps: int
    inner_lr: float
    inner_lr_reason: str
    local_lr: float
    local_lr_limit: float
    local_lr_reason: str
    growth: float
    objective: ObjectiveConstants
    terms: BoundTerms
    remarks: tuple[str, ...]
    trial_inner_lr: float | None = None
    trial_local_lr: float | None = None
    is_vacuous: bool = False


@dataclass(frozen=True)
class Row:
    """One quantity for all ν.

    Attributes:
        symbol: as in docs/theory.md.
        meaning: in words.
        source: equation or statement in docs/theory.md.
        values: one for each ν.
    """

    symbol: str
    meaning: str
    source: str
    values: tuple[float, ...]


def recommend(
    source: Constants | Estimate,
    nus: Iterable[int],
    step: MetaStep,
    run: RunShape,
    inner_lr: float | None = None,
) -> list[Advice]:
    """Return α and β for each ν.

    Args:
        source: constants, or a measurement of them (whose B is then the one after ν steps).
        nus: values of ν.
        step: estimator and batches; its ν and α are replaced.
        run: gap, τ, K, n, m; its β is replaced by the one that makes (11) smallest.
        inner_lr: α to judge; None recommends one for each ν.

    Raises:
        ConfigError: no ν, or constants so large that the bounds mean nothing.
    """
    nus = list(nus)
    if not nus:
        raise ConfigError("Expected at least one number of inner steps, but got none. Give for example 1, 2, 5.")
    return [_advise(source, replace(step, num_inner_steps=nu), run, inner_lr) for nu in nus]


def recommended_inner_lr(constants: Constants, num_inner_steps: int) -> tuple[float, str]:
    """Return the largest α that keeps q^2ν <= e² and every inner step stable, and the reason in words.

    That is 1/L for convex losses, and min(1/L, 1/(ν|μ|)) otherwise, which is 1/(νL) where μ is not known; section 4.
    """
    stable, lowest = 1 / constants.L, constants.smallest_eigenvalue
    if num_inner_steps == 0:
        return stable, "without inner steps α plays no part in training; 1/L suits a first adaptation step"
    if lowest >= 0:
        return stable, "α = 1/L: the losses are convex, so q <= 1 for every ν and only stability of a step binds"
    gentle = 1 / (num_inner_steps * -lowest)
    if gentle >= stable:
        return stable, f"α = 1/L: stability of a step binds; μ = {lowest:.3g} allows up to 1/(ν|μ|) = {gentle:.3g}"
    name = "1/(ν L)" if constants.mu is None else "1/(ν |μ|)"
    return gentle, f"α = {name}: the losses are not convex, and a larger α lets q^2ν, hence L_F, grow beyond e² ≈ 7.4"


def describe(advice: Sequence[Advice]) -> list[Row]:
    """Return the numbers of the advice as rows of a table, one column for each ν."""

    def row(symbol: str, meaning: str, source: str, values: Iterable[float]) -> Row:
        return Row(symbol, meaning, source, tuple(values))

    terms = [entry.terms for entry in advice]
    tried = [
        row("α try", "α to begin with", "measured", (e.trial_inner_lr or math.nan for e in advice)),
        row("β try", "β to begin with", "measured", (e.trial_local_lr or math.nan for e in advice)),
    ]
    return [
        *(tried if any(entry.trial_local_lr is not None for entry in advice) else []),
        row("α", "inner step size", "section 4", (entry.inner_lr for entry in advice)),
        row("q", "stretch of one inner step", "section 2", (entry.growth for entry in advice)),
        row("L_F", "smoothness of F", "(4)", (entry.objective.smoothness for entry in advice)),
        row("b", "bias of the estimator", "(5), (8), (9)", (entry.objective.bias for entry in advice)),
        row("√v", "noise of the estimator", "(7), (8), (9)", (math.sqrt(e.objective.variance) for e in advice)),
        row("γ_F", "heterogeneity of F", "(10)", (entry.objective.heterogeneity for entry in advice)),
        row("β max", "largest β covered", "Theorem 8", (entry.local_lr_limit for entry in advice)),
        row("β", "local step size", "Corollary 9.7", (entry.local_lr for entry in advice)),
        row("start", "bound: initial gap", "(11)", (term.start for term in terms)),
        row("noise", "bound: noise", "(11)", (term.noise for term in terms)),
        row("sampling", "bound: clients left out", "(11)", (term.sampling for term in terms)),
        row("drift", "bound: local steps", "(11)", (term.drift for term in terms)),
        row("floor", "bound: bias", "(11)", (term.floor for term in terms)),
        row("total", "bound of mean E‖∇F‖²", "(11)", (term.total for term in terms)),
    ]


def _advise(source: Constants | Estimate, step: MetaStep, run: RunShape, inner_lr: float | None) -> Advice:
    constants = source.after(step.num_inner_steps) if isinstance(source, Estimate) else source
    alpha, reason = recommended_inner_lr(constants, step.num_inner_steps)
    if inner_lr is not None:
        reason = f"given; the recommendation is {alpha:.3g} ({reason})"
        alpha = inner_lr
    step = replace(step, inner_lr=alpha)
    objective = objective_constants(constants, step)
    rate, limit = best_rate(objective, run), max_local_lr(objective, run.num_local_steps)
    return Advice(
        step.num_inner_steps,
        alpha,
        reason,
        rate.local_lr,
        limit,
        _local_lr_reason(rate, limit),
        inner_growth(constants, alpha),
        objective,
        rate.terms,
        (*_silence(constants, step, objective, run, rate.terms), *_remarks(constants, step, rate.terms)),
        is_vacuous=rate.terms.total >= known_at_start(objective, run),
    )


def with_trial(advice: Advice, trial: TrialSteps, steepness: float) -> Advice:
    """Return the advice with the α and β that short training found, and whether the bound says more than its start.

    Args:
        advice: what the theory says.
        trial: what short training found.
        steepness: ‖∇F‖² at the start, with the advice's α.
    """
    remarks, is_vacuous = advice.remarks, advice.is_vacuous
    if not is_vacuous and advice.terms.total >= steepness:
        said = f"The theory has nothing to say here: its bound of E‖∇F‖², {advice.terms.total:.3g}, is not below the "
        remarks, is_vacuous = (f"{said}{steepness:.3g} measured at the start.", *remarks), True
    beta = trial.local_lr if math.isfinite(trial.local_lr) else None
    if beta is not None:
        found = f"Begin with α = {trial.inner_lr:.3g}, β = {beta:.3g}: of {trial.num_tried} pairs tried in up to "
        gain = f"{trial.num_rounds} rounds, this one leaves adapted models with the lowest loss, {trial.after:.3g}"
        remarks = (f"{found}{gain} ({trial.before:.3g} before).", *remarks)
    return replace(advice, remarks=remarks, trial_inner_lr=trial.inner_lr, trial_local_lr=beta, is_vacuous=is_vacuous)


def known_at_start(objective: ObjectiveConstants, run: RunShape) -> float:
    """Return 2 L_F Δ_F, which ‖∇F‖² does not exceed at the start, before any training."""
    return 2 * objective.smoothness * run.initial_gap


def _silence(
    constants: Constants, step: MetaStep, objective: ObjectiveConstants, run: RunShape, terms: BoundTerms
) -> Iterator[str]:
    """Yield why the theory has nothing to say, where it has not."""
    if terms.total >= (known := known_at_start(objective, run)):
        yield (
            f"The theory has nothing to say here: its bound of E‖∇F‖², {terms.total:.3g}, is not below 2 L_F Δ_F = "
            f"{known:.3g}, which holds before training."
        )
    if step.num_inner_steps and step.inner_lr * constants.L > STABLE:
        yield "Nor does it cover fine-tuning that may diverge: α is beyond 2/L."


def _local_lr_reason(rate: Rate, limit: float) -> str:
    if rate.local_lr >= limit:
        return "smoothness binds: β = 1/(5 L_F τ)"
    terms = {"noise": rate.terms.noise, "sampling of clients": rate.terms.sampling, "drift": rate.terms.drift}
    binding = max(terms, key=lambda name: terms[name])
    return f"{binding} binds: β balances it with the start of the run, below 1/(5 L_F τ) = {limit:.3g}"


def _remarks(constants: Constants, step: MetaStep, terms: BoundTerms) -> list[str]:
    nu, alpha = step.num_inner_steps, step.inner_lr
    stretch = power(inner_growth(constants, alpha), 2 * nu)
    remarks = [f"The term '{terms.largest}' dominates the bound."]
    if stretch > GROWTH_LIMIT:
        remarks.append(f"Inner factors may stretch the meta-gradient up to q^2ν = {stretch:.3g} times; lower α.")
    if alpha * constants.L > STABLE:
        remarks.append(f"αL = {alpha * constants.L:.3g} exceeds 2: a single inner step may increase its loss.")
    if nu > 1 and 0 < nu * alpha * constants.L <= ONE_STEP_LIMIT:
        remarks.append(
            f"ναL = {nu * alpha * constants.L:.3g} is small: one step of να = {nu * alpha:.3g} does the same."
        )
    if step.estimator == "first-order" and nu > 0:
        remarks.append("The floor of 'first-order' falls with α alone, not with batch sizes, rounds or β.")
    if step.estimator == "unrolled":
        remarks.append("The numbers describe the loss after mini-batch fine-tuning, and need batch-wise L, ρ and μ.")
    if step.estimator == "hessian-free" and (gap := hessian_free_gap(constants, step)) > 0.1 * math.sqrt(terms.total):
        remarks.append(f"Finite differences add up to {gap:.3g} to the bias; a smaller δ lowers it down to rounding.")
    return remarks
