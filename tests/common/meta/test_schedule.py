"""Inner steps whose sizes differ: in the objective and its gradient, at test time, alone and many at once."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Examples
from nufed.common.meta.cohort import cohort_update
from nufed.common.meta.local_update import Stream, local_update, private_update
from nufed.common.meta.objective import fine_tune
from nufed.common.meta.private_steps import Protection
from nufed.common.meta.schedule import inner_sizes
from nufed.common.params import model_params
from nufed.common.privacy.noise import random_source
from nufed.common.task import make_loss
from nufed.deploy.simulation.engines import simulate
from nufed.server.options import ServerOptions
from tests.common.meta.problems import mlp, relative_difference
from tests.common.meta.test_cohort import BATCHED, METHOD, TASK, alone, assert_same_updates, dense, trainees
from tests.common.meta.test_local_optimizer import CENTRES, CURVATURES, START, quadratic

ALPHA, BETA, NU, TAU = 0.4, 0.1, 3, 5
SIZES = {
    "linear": [ALPHA, ALPHA * 2 / 3, ALPHA / 3],
    "cosine": [ALPHA, ALPHA * 0.75, ALPHA * 0.25],
    "0.5,0.1,0.7": [0.5, 0.1, 0.7],
}
SUPPORT = Examples(*(torch.tensor([row] * 2, dtype=torch.float64) for row in (CURVATURES, CENTRES)))
PARAMS = {"w": torch.tensor(START, dtype=torch.float64)}
EXACT = ("exact", "unrolled", "hessian-free")


def method_of(schedule, **options):
    return MethodConfig(
        num_inner_steps=NU,
        inner_lr=ALPHA,
        inner_schedule=schedule,
        num_local_steps=TAU,
        local_lr=BETA,
        batch_size=0,
        hessian_free_delta=0.1,
        **options,
    )


def by_hand(sizes, *, first_order):
    """Return w after τ meta steps along (Π_j (1 - α_j a)) ∇f(w_ν), the product once more without Hessians left out."""
    w = list(START)
    for _ in range(TAU):
        for i, (a, c) in enumerate(zip(CURVATURES, CENTRES, strict=True)):
            shrunk = math.prod(1 - size * a for size in sizes)
            w[i] -= BETA * (1 if first_order else shrunk) * a * shrunk * (w[i] - c)
    return w


@pytest.mark.parametrize("schedule", SIZES)
@pytest.mark.parametrize("estimator", [*EXACT, "first-order"])
def test_the_gradient_is_that_of_the_loss_after_steps_of_these_sizes(schedule, estimator):
    method = method_of(schedule, estimator=estimator)

    update = local_update(quadratic, PARAMS, SUPPORT, method, Stream(0, "a", 1))

    expected = by_hand(SIZES[schedule], first_order=estimator == "first-order")
    np.testing.assert_allclose(update.params["w"].numpy(), expected, rtol=0, atol=1e-10)
    assert inner_sizes(method) == pytest.approx(SIZES[schedule], abs=1e-15)


def test_private_steps_have_these_sizes_too():
    protection = Protection(1e6, 1e6, 0.0, random_source())

    update = private_update(
        quadratic, PARAMS, SUPPORT, method_of("linear"), Stream(0, "a", 1), protection=protection, mapped=False
    )

    np.testing.assert_allclose(update.params["w"].numpy(), by_hand(SIZES["linear"], first_order=False), atol=1e-9)


@pytest.mark.parametrize("schedule", SIZES)
def test_at_test_time_steps_beyond_nu_have_the_last_size(schedule):
    *_, point = fine_tune(quadratic, PARAMS, [SUPPORT.as_batch()] * 5, ALPHA, method_of(schedule))

    sizes = [*SIZES[schedule], *[SIZES[schedule][-1]] * 2]
    expected = [
        c + math.prod(1 - size * a for size in sizes) * (w - c)
        for w, a, c in zip(START, CURVATURES, CENTRES, strict=True)
    ]
    np.testing.assert_allclose(point["w"].numpy(), expected, rtol=0, atol=1e-12)


def test_a_step_size_of_test_time_falls_as_that_of_the_objective_does():
    method = method_of("linear")

    *_, point = fine_tune(quadratic, PARAMS, [SUPPORT.as_batch()] * 2, 0.6, method)

    a, c, w = (np.array(values) for values in (CURVATURES, CENTRES, START))
    np.testing.assert_allclose(point["w"].numpy(), c + (1 - 0.6 * a) * (1 - 0.4 * a) * (w - c), rtol=0, atol=1e-12)


def test_a_moreau_envelope_is_solved_in_steps_of_these_sizes():
    options = {"objective": "moreau", "personal_strength": 2.0, "inner_schedule": "0.3,0.2", "num_inner_steps": 2}
    method = MethodConfig(num_local_steps=1, local_lr=0.5, batch_size=0, **options)

    update = local_update(quadratic, PARAMS, SUPPORT, method, Stream(0, "a", 1))

    a, c, w = (np.array(values) for values in (CURVATURES, CENTRES, START))
    inner = w
    for size in (0.3, 0.2):
        inner = inner - size * (a * (inner - c) + 2 * (inner - w))
    np.testing.assert_allclose(update.params["w"].numpy(), w - 0.5 * 2 * (w - inner), rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", BATCHED)
def test_many_clients_at_once_step_as_each_alone(estimator):
    model = mlp(nn.ELU)
    clients = trainees(model_params(model))
    method = METHOD.model_copy(update={"estimator": estimator, "inner_schedule": "0.3,0.05"})

    together = cohort_update(dense(model), clients, method)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, method), 1e-12)
    constant = cohort_update(dense(model), clients, method.model_copy(update={"inner_schedule": "constant"}))
    assert relative_difference(together[0].params, constant[0].params) > 1e-4


def test_curves_of_many_clients_at_once_are_those_of_each_alone(tmp_path):
    """Also beyond ν, and through inner products of the inputs."""
    config = RunConfig.parse(
        {
            "data.num-clients": 3,
            "data.num-new-clients": 1,
            "model.hidden-sizes": "64",
            "method.inner-schedule": "cosine",
            "method.inner-lr": 0.2,
            "federation.num-rounds": 1,
            "evaluation.num-adapt-steps": 6,
        }
    )
    for engine in ("local", "cohort"):
        simulate(config, ServerOptions(out=tmp_path / engine), engine=engine)

    rows = [next((tmp_path / engine).glob("*/clients.csv")).read_text().splitlines() for engine in ("local", "cohort")]

    columns = [index for index, name in enumerate(rows[0][0].split(",")) if name.startswith("loss_")]
    assert len(columns) == 7
    for both in zip(rows[0][1:], rows[1][1:], strict=True):
        apart, together = ([float(row.split(",")[index]) for index in columns] for row in both)
        assert apart == pytest.approx(together, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method.inner-schedule": "lineal"}, "give constant, linear, cosine or ν sizes"),
        ({"method.inner-schedule": "0.1,0.2"}, "has 2 sizes for 3 inner steps"),
        ({"method.inner-schedule": "0.1,-1,0.2"}, "out of range"),
        ({"method.inner-schedule": "0.1,nan,0.2"}, "out of range"),
        ({"method.inner-schedule": "linear", "method.num-inner-steps": 0}, "leave it at constant"),
        ({"method.inner-schedule": "linear", "method.step-sizes": "learned"}, "sizes of its own"),
        ({"method.inner-schedule": "linear", "method.compile": "on"}, "leave compile at off"),
        ({"method.inner-schedule": [0.1, 0.2, 0.3], "evaluation.adapt-lr": 0.1}, "leave adapt-lr at 0"),
    ],
)
def test_schedules_without_a_meaning_are_refused_with_the_way_out(options, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig.parse(options)
