import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError
from nufed.common.theory.constants import (
    Constants,
    MetaStep,
    geometric_double_sum,
    geometric_sum,
    inner_growth,
    power,
)

growths = st.floats(0, 3, allow_nan=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [("L", 0.0), ("L", -1.0), ("rho", -1.0), ("B", math.inf), ("sigma_g", math.nan), ("kappa", -1.0), ("mu", 3.0)],
)
def test_impossible_constants_are_refused_by_name(field, value):
    values = {"L": 2.0, "rho": 1.0, "B": 1.0, field: value}

    with pytest.raises(ConfigError, match=rf"^{field}="):
        Constants(**values)


def test_missing_numbers_are_refused():
    with pytest.raises(ConfigError, match="rho=None"):
        Constants(L=1.0, rho=None, B=1.0)


@pytest.mark.parametrize(("field", "value"), [("num_inner_steps", -1), ("inner_lr", -0.1), ("batch_size", -1)])
def test_impossible_meta_steps_are_refused_by_name(field, value):
    values = {"num_inner_steps": 1, "inner_lr": 0.1, field: value}

    with pytest.raises(ConfigError, match=f"^{field}="):
        MetaStep(**values)


def test_a_displacement_must_have_a_length():
    with pytest.raises(ConfigError, match="delta=0"):
        MetaStep(1, 0.1, delta=0)


def test_a_run_without_sizes_of_its_own_takes_the_inner_batch_size_and_the_default_displacement():
    step = MetaStep.from_config(MethodConfig(batch_size=20, hessian_batch_size=7), default_delta=1e-4)

    assert (step.batch_size, step.outer_batch_size, step.hessian_batch_size, step.delta) == (20, 20, 7, 1e-4)


@pytest.mark.parametrize(
    ("mu", "alpha", "expected"),
    [(None, 0.5, 2.0), (0.0, 0.5, 1.0), (0.0, 1.0, 1.0), (0.5, 0.5, 0.75), (-1.0, 0.5, 1.5), (0.0, 1.5, 2.0)],
)
def test_q_is_the_largest_factor_over_the_eigenvalues_from_mu_to_l(mu, alpha, expected):
    constants = Constants(L=2.0, rho=0.0, B=0.0, mu=mu)

    assert inner_growth(constants, alpha) == expected


@given(st.floats(-1, 1), st.floats(0, 3), st.floats(0, 1))
def test_q_bounds_the_factor_of_every_eigenvalue(mu, alpha, share):
    constants = Constants(L=1.0, rho=0.0, B=0.0, mu=mu)

    assert abs(1 - alpha * (mu + share * (1 - mu))) <= inner_growth(constants, alpha) * (1 + 1e-12)


@given(growths, st.integers(0, 30))
def test_geometric_sums_are_the_sums_they_are_named_after(x, count):
    direct = math.fsum(x**exponent for exponent in range(count))
    double = math.fsum(x**exponent for j in range(count) for exponent in range(j))

    assert geometric_sum(x, count) == pytest.approx(direct, rel=1e-9)
    assert geometric_double_sum(x, count) == pytest.approx(double, rel=1e-9)


def test_geometric_sums_are_accurate_where_q_is_almost_one():
    assert geometric_sum(1 + 1e-12, 5) == pytest.approx(5 + 1e-11, rel=1e-14)


@pytest.mark.parametrize("exceed", [lambda: power(2.0, 400), lambda: geometric_sum(2.0, 400)])
def test_bounds_beyond_meaning_are_refused_with_the_way_out(exceed):
    with pytest.raises(ConfigError, match="Lower the inner step size"):
        exceed()


def test_a_displacement_relative_to_the_parameters_has_no_bound_and_says_so():
    relative = {"hessian_free_displacement": "relative"}

    with pytest.raises(ConfigError, match="Take 'normalized'"):
        MetaStep.from_config(MethodConfig(estimator="hessian-free", **relative))
    assert MetaStep.from_config(MethodConfig(estimator="exact", **relative)).displacement == "normalized"
