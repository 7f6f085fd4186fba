"""Theorem 8, (11), and Corollary 9: never exceeded by simulated runs, and consistent with each other."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.errors import ConfigError
from nufed.common.theory.bounds import ObjectiveConstants, objective_constants
from nufed.common.theory.constants import Constants, MetaStep
from nufed.common.theory.convergence import (
    RATES,
    RunShape,
    best_rate,
    convergence_bound,
    cube_root_rate,
    floor,
    local_average_bound,
    max_local_lr,
)
from tests.common.theory.simulation import Simulation
from tests.oracles import logistic_federation

NUM_CLIENTS, NUM_RUNS, NUM_ROUNDS, DIM = 10, 6, 60, 5
OBJECTIVE = ObjectiveConstants(smoothness=4.0, bias=0.2, variance=1.5, heterogeneity=0.8)
RUN = RunShape(2.0, 0.01, 5, 1000, 20, 10)

objectives = st.builds(ObjectiveConstants, st.floats(0.1, 10), st.floats(0, 3), st.floats(0, 10), st.floats(0, 5))


@st.composite
def runs(draw):
    clients = draw(st.integers(1, 50))
    return RunShape(
        draw(st.floats(0.01, 100)),
        1e-6,
        draw(st.integers(1, 50)),
        draw(st.integers(1, 10_000)),
        clients,
        draw(st.integers(1, clients)),
    )


@pytest.fixture(scope="module")
def problems():
    return logistic_federation(NUM_CLIENTS, 40, DIM, 1.0, seed=5)


def global_constants(problems):
    """Return constants that hold everywhere; γ_G <= 2B and γ_H <= 2L need no measurement."""
    largest = {name: max(getattr(problem, name) for problem in problems) for name in ("L", "rho", "B")}
    noise = {name: max(getattr(problem, name) for problem in problems) for name in ("sigma_g", "sigma_h")}
    return Constants(**largest, **noise, gamma_g=2 * largest["B"], gamma_h=2 * largest["L"], mu=0.0)


def simulate(simulation, step, run, w0):
    """Return the mean over rounds and independent runs of ‖∇F(w_k)‖²."""
    w, squares = w0.expand(NUM_RUNS, -1), []
    for k in range(run.num_rounds):
        if k % 6 == 0:
            gradients = [simulation.client_meta_gradients(row, step.num_inner_steps).mean(0) for row in w]
            squares.append(float(torch.stack(gradients).square().sum(1).mean()))
        chosen = torch.cat(
            [torch.randperm(NUM_CLIENTS, generator=simulation.generator)[: run.num_chosen] for _ in range(NUM_RUNS)]
        )
        local = w.repeat_interleave(run.num_chosen, 0)
        for _ in range(run.num_local_steps):
            v = simulation.meta_gradients(local, chosen, step.num_inner_steps, step.estimator, step.batch_size)
            local = local - run.local_lr * v
        w = local.view(NUM_RUNS, run.num_chosen, DIM).mean(1)
    return sum(squares) / len(squares)


@pytest.mark.parametrize(("tau", "chosen", "size"), [(1, NUM_CLIENTS, 0), (5, NUM_CLIENTS, 10), (5, 3, 10)])
@pytest.mark.parametrize("nu", [1, 2, 5])
@pytest.mark.parametrize("kind", ["exact", "first-order", "hessian-free"])
def test_no_simulated_run_exceeds_theorem_8(problems, kind, nu, tau, chosen, size):
    constants = global_constants(problems)
    step = MetaStep(nu, 1 / constants.L, kind, size, size, size)
    objective = objective_constants(constants, step)
    simulation = Simulation(problems, step.inner_lr, seed=nu)
    w0 = torch.full((DIM,), 2.0, dtype=torch.float64)
    gap = simulation.meta_loss(w0, nu)  # F* >= 0
    run = RunShape(gap, max_local_lr(objective, tau), tau, NUM_ROUNDS, NUM_CLIENTS, chosen)

    measured = simulate(simulation, step, run, w0)

    assert measured <= convergence_bound(objective, run).total


@pytest.mark.parametrize("nu", [1, 2, 5])
def test_gradient_descent_on_quadratics_converges_as_corollary_9_2_says(nu):
    # F = 1/2 Λ w² with Λ = 1 - a known L_F: the mean of ‖∇F‖² over rounds is a geometric sum
    smoothness, w0 = 1.0 / nu, 3.0
    objective = ObjectiveConstants(smoothness, 0.0, 0.0, 0.0)
    run = RunShape(0.5 * smoothness * w0**2, max_local_lr(objective, 1), 1, 200, 4, 4)
    contraction = 1 - run.local_lr * smoothness

    measured = sum((smoothness * w0 * contraction**k) ** 2 for k in range(200)) / 200

    bound = RATES["constant"](objective, run)
    assert bound.terms.total == pytest.approx(20 * smoothness * run.initial_gap / 200)
    assert 0.2 * bound.terms.total < measured <= bound.terms.total


def test_sampling_one_client_a_round_leaves_the_error_that_the_sampling_term_bounds():
    # F_i = 1/2 (w - c_i)²: stationary E‖∇F(w_k)‖² = (1 - a)/(1 + a) γ², a = (1 - β)^τ; remark after Corollary 9
    for beta, tau in ((1e-3, 1), (1e-3, 10), (1e-2, 10), (1e-2, 20)):
        a = (1 - beta) ** tau
        objective = ObjectiveConstants(1.0, 0.0, 0.0, heterogeneity=1.0)
        run = RunShape(1e-9, beta, tau, 1_000_000, 50, 1)

        stationary = (1 - a) / (1 + a)

        assert stationary == pytest.approx(beta * tau / 2, rel=0.15)
        assert stationary <= convergence_bound(objective, run).total


def test_the_terms_are_those_of_the_theorem():
    terms = convergence_bound(OBJECTIVE, RUN)
    phi = 10 / (10 * 19)

    assert RUN.sampling_factor == pytest.approx(phi)
    assert terms.start == pytest.approx(4 * 2.0 / (0.01 * 5 * 1000))
    assert terms.noise == pytest.approx(4 * 0.01 * 4.0 * 1.5 * (1 / 20 + 2 * phi))
    assert terms.sampling == pytest.approx(8 * 0.01 * 4.0 * 5 * phi * 0.64)
    assert terms.drift == pytest.approx(11.2 * (0.01 * 4.0) ** 2 * 4 * (1.5 + 2 * 5 * 0.64))
    assert terms.floor == pytest.approx(6.5 * 0.04)
    assert terms.total == pytest.approx(terms.start + terms.noise + terms.sampling + terms.drift + terms.floor)
    assert terms.largest == "drift"


@given(objectives, runs())
def test_every_rate_keeps_beta_admissible_and_its_closed_form_bounds_theorem_8(objective, run):
    for name, rate in RATES.items():
        if name == "cube-root" and (objective.variance > 0 or run.sampling_factor > 0):
            continue

        found = rate(objective, run)

        assert found.name == name
        assert 0 < found.local_lr <= max_local_lr(objective, run.num_local_steps) * (1 + 1e-12)
        assert found.terms.total <= found.closed_form * (1 + 1e-9)


@given(objectives, st.integers(1, 50), st.integers(1, 10_000), st.integers(1, 50))
def test_the_cube_root_rate_bounds_theorem_8_without_noise(objective, tau, rounds, clients):
    run = RunShape(1.0, 1e-6, tau, rounds, clients, clients)

    rate = cube_root_rate(replace(objective, variance=0.0), run)

    assert rate.terms.total <= rate.closed_form * (1 + 1e-9)


@given(objectives, runs(), st.floats(0.001, 1))
def test_no_admissible_beta_beats_the_best_rate(objective, run, share):
    other = replace(run, local_lr=share * max_local_lr(objective, run.num_local_steps))

    assert best_rate(objective, run).terms.total <= convergence_bound(objective, other).total * (1 + 1e-9)


def test_the_order_in_the_number_of_rounds_is_as_named():
    many, more = (replace(RUN, num_rounds=rounds) for rounds in (10**8, 10**10))
    noisy = replace(OBJECTIVE, bias=0.0)
    quiet, full = replace(noisy, variance=0.0), {"num_chosen": 20}

    def gain(name, objective, **changes):
        first, second = (RATES[name](objective, replace(run, **changes)).terms.total for run in (many, more))
        return math.log10(first / second)  # the power of K, over two decades

    assert gain("square-root", noisy) == pytest.approx(1.0, abs=0.01)
    assert gain("tuned", noisy) == pytest.approx(1.0, abs=0.01)
    assert gain("best", noisy) == pytest.approx(1.0, abs=0.01)
    assert gain("cube-root", quiet, **full) == pytest.approx(4 / 3, abs=0.01)
    assert gain("constant", quiet, num_local_steps=1, **full) == pytest.approx(2.0, abs=0.01)


def test_without_noise_and_sampling_the_tuned_step_size_leaves_the_drift_and_says_so():
    still = ObjectiveConstants(smoothness=1.0, bias=0.0, variance=0.0, heterogeneity=1.0)
    endless = RunShape(1.0, 1e-6, 2, 10**15, 4, 4)

    tuned, best = RATES["tuned"](still, endless), RATES["best"](still, endless)

    assert tuned.terms.total == pytest.approx(0.448)
    assert "level set by β" in tuned.order
    assert best.terms.total < 1e-8


def test_twice_the_clients_halve_the_leading_square_under_full_participation():
    objective = replace(OBJECTIVE, bias=0.0)
    few = replace(RUN, num_rounds=10**14, num_chosen=20)
    many = replace(few, num_clients=40, num_chosen=40)

    ratio = RATES["tuned"](objective, few).terms.total / RATES["tuned"](objective, many).terms.total

    assert ratio == pytest.approx(math.sqrt(2), rel=0.01)


@given(objectives, runs())
def test_the_floor_is_what_no_number_of_rounds_removes(objective, run):
    endless = replace(run, num_rounds=10**15)

    assert floor(objective) == pytest.approx(6.5 * objective.bias**2)
    assert best_rate(objective, endless).terms.total <= floor(objective) + 1e-2 * (1 + floor(objective))


@given(objectives, runs())
def test_local_averages_are_bounded_by_more_than_server_models(objective, run):
    run = replace(run, local_lr=max_local_lr(objective, run.num_local_steps))

    assert local_average_bound(objective, run) >= 2.32 * convergence_bound(objective, run).total


def test_a_step_size_that_the_theorem_does_not_cover_is_refused_with_the_limit():
    limit = max_local_lr(OBJECTIVE, RUN.num_local_steps)

    with pytest.raises(ConfigError, match=r"at most 0\.01 = 1/\(5 L_F τ\), but got 0\.0101"):
        convergence_bound(OBJECTIVE, replace(RUN, local_lr=1.01 * limit))


def test_the_cube_root_rate_is_refused_with_noise():
    with pytest.raises(ConfigError, match="Take 'tuned'"):
        cube_root_rate(OBJECTIVE, RUN)


@pytest.mark.parametrize(
    ("field", "value"),
    [("initial_gap", 0.0), ("local_lr", 0.0), ("num_rounds", 0), ("num_clients", 0), ("num_chosen", 21)],
)
def test_impossible_runs_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field}="):
        replace(RUN, **{field: value})
