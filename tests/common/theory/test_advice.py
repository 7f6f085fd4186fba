"""α and β for each ν: admissible, with the reason that holds."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.errors import ConfigError
from nufed.common.theory.advice import describe, recommend, recommended_inner_lr
from nufed.common.theory.constants import Constants, MetaStep, inner_growth
from nufed.common.theory.convergence import RunShape, convergence_bound, max_local_lr
from nufed.common.theory.estimate import Estimate

GENERAL = Constants(L=2.0, rho=1.0, B=1.0, sigma_g=0.5, sigma_h=0.5, gamma_g=0.3, gamma_h=0.2)
STEP = MetaStep(0, 0.0, "exact", 20, 20, 20)
RUN = RunShape(1.0, 1.0, 5, 1000, 20, 10)


@given(st.integers(0, 200), st.one_of(st.none(), st.floats(-2, 2)))
def test_the_recommended_inner_step_size_keeps_the_stretch_below_e_squared(nu, mu):
    constants = replace(GENERAL, mu=mu)

    alpha, _ = recommended_inner_lr(constants, nu)

    assert 0 < alpha <= 1 / constants.L
    assert inner_growth(constants, alpha) ** (2 * nu) <= math.e**2


@pytest.mark.parametrize(
    ("mu", "nu", "alpha", "reason"),
    [
        (None, 4, 1 / 8, r"1/\(ν L\): the losses are not convex"),
        (-1.0, 4, 1 / 4, r"1/\(ν \|μ\|\)"),
        (-0.1, 4, 1 / 2, "stability of a step binds"),
        (0.0, 4, 1 / 2, "the losses are convex"),
        (None, 0, 1 / 2, "plays no part"),
    ],
)
def test_the_reason_names_what_binds_alpha(mu, nu, alpha, reason):
    constants = replace(GENERAL, mu=mu)

    found = recommended_inner_lr(constants, nu)

    assert found[0] == pytest.approx(alpha)
    assert re.search(reason, found[1])


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.sampled_from(["exact", "first-order", "unrolled"]))
def test_the_recommended_local_step_size_is_covered_by_theorem_8(nus, estimator):
    advice = recommend(GENERAL, nus, replace(STEP, estimator=estimator), RUN)

    assert [entry.num_inner_steps for entry in advice] == nus
    for entry in advice:
        assert entry.local_lr_limit == max_local_lr(entry.objective, RUN.num_local_steps)
        assert 0 < entry.local_lr <= entry.local_lr_limit
        assert entry.terms == convergence_bound(entry.objective, replace(RUN, local_lr=entry.local_lr))


def test_smoothness_binds_beta_without_noise_and_heterogeneity():
    quiet = replace(GENERAL, gamma_g=0.0, gamma_h=0.0)

    (entry,) = recommend(quiet, [2], MetaStep(0, 0.0), RUN)

    assert entry.local_lr == entry.local_lr_limit
    assert entry.local_lr_reason.startswith("smoothness binds")


@pytest.mark.parametrize(
    ("constants", "run", "reason"),
    [
        (replace(GENERAL, sigma_g=50.0, rho=0.0, sigma_h=0.0), replace(RUN, num_local_steps=1, num_chosen=20), "noise"),
        (GENERAL, replace(RUN, num_local_steps=1, num_chosen=1), "sampling of clients"),
        (GENERAL, replace(RUN, num_local_steps=50, num_chosen=20), "drift"),
    ],
)
def test_the_reason_names_what_binds_beta(constants, run, reason):
    (entry,) = recommend(replace(constants, gamma_g=2.0) if reason != "noise" else constants, [1], STEP, run)

    assert entry.local_lr < entry.local_lr_limit
    assert entry.local_lr_reason.startswith(reason)


def test_a_given_inner_step_size_is_judged_against_the_recommended_one():
    (entry,) = recommend(GENERAL, [5], STEP, RUN, inner_lr=1.5)

    assert entry.inner_lr == 1.5
    assert "the recommendation is 0.1" in entry.inner_lr_reason
    assert any("q^2ν" in remark for remark in entry.remarks)
    assert any("αL = 3 exceeds 2" in remark for remark in entry.remarks)


@pytest.mark.parametrize(
    ("step", "inner_lr", "remark"),
    [
        (replace(STEP, estimator="first-order"), None, "falls with α alone"),
        (replace(STEP, estimator="unrolled"), None, "mini-batch fine-tuning"),
        (replace(STEP, estimator="hessian-free", delta=5.0), None, "smaller δ"),
        (STEP, 0.001, "one step of να = 0.003 does the same"),
    ],
)
def test_remarks_say_what_is_particular_to_a_choice(step, inner_lr, remark):
    (entry,) = recommend(GENERAL, [3], step, RUN, inner_lr)

    assert any(remark in text for text in entry.remarks)


def test_a_measurement_is_used_with_the_gradient_after_as_many_steps():
    estimate = Estimate(replace(GENERAL, B=3.0), (3.0, 2.0, 1.0), 1, 2, 10, 0.0)

    measured = recommend(estimate, [0, 2, 9], STEP, RUN)
    given_constants = [
        recommend(replace(GENERAL, B=bound), [nu], STEP, RUN)[0] for nu, bound in ((0, 3.0), (2, 1.0), (9, 3.0))
    ]

    assert measured == given_constants


def test_the_table_has_one_value_for_each_nu_and_totals_that_add_up():
    rows = describe(recommend(GENERAL, [0, 1, 5], STEP, RUN))
    by_symbol = {row.symbol: row.values for row in rows}

    assert all(len(row.values) == 3 for row in rows)
    parts = zip(*(by_symbol[name] for name in ("start", "noise", "sampling", "drift", "floor")), strict=True)
    assert [sum(column) for column in parts] == pytest.approx(by_symbol["total"])


def test_no_number_of_inner_steps_is_refused():
    with pytest.raises(ConfigError, match="at least one number of inner steps"):
        recommend(GENERAL, [], STEP, RUN)
