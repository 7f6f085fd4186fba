"""Head-only fine-tuning: projected steps, and a derivative that still reaches the body."""

import pytest
import torch

from nufed.common.config import MethodConfig
from nufed.common.errors import ModelError
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.meta.objective import fine_tune, step_direction
from nufed.common.meta.parts import head_names, without_body, without_head
from tests import oracles
from tests.common.meta.problems import model_problem, random_batches, random_examples, relative_difference

ALPHA, BODY, HEAD = 0.4, 3, 2
KINDS = ["exact", "unrolled", "first-order"]


def quadratic_problem():
    a, c = oracles.random_quadratics(1, BODY + HEAD, (0.3, 1.5), seed=8)
    w = torch.linspace(-1, 1, BODY + HEAD, dtype=torch.float64)
    return a[0], c[0], w


def as_parts(w):
    return {"body.w": w[:BODY].clone(), "head.w": w[BODY:].clone()}


def build(estimator, loss, nu, alpha=ALPHA):
    return ESTIMATORS[estimator].build(
        loss, MethodConfig(num_inner_steps=nu, inner_lr=alpha, adapted_part="head", estimator=estimator)
    )


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (["1.weight", "1.bias", "3.weight", "3.bias"], ["3.weight", "3.bias"]),
        (["net.body.0.weight", "net.head.weight"], ["net.head.weight"]),
        (["1.weight"], ["1.weight"]),
    ],
)
def test_the_head_is_the_last_layer(names, head):
    assert head_names(names) == head


@pytest.mark.parametrize("nu", [0, 1, 2, 4])
@pytest.mark.parametrize("estimator", KINDS)
def test_on_quadratics_it_is_projected_gradient_descent(estimator, nu):
    """w_ν - c = (I - αPA)^ν (w - c), gradient ((I - αPA)^ν)' A (w_ν - c); without its factor in first order."""
    a, c, w = quadratic_problem()
    batch = oracles.quadratic_batch(a, c)

    estimate = build(estimator, oracles.quadratic_loss, nu)(
        as_parts(w), MetaBatches((batch,) * nu, batch, (batch,) * nu)
    )

    projection = torch.diag(torch.tensor([0.0] * BODY + [1.0] * HEAD, dtype=torch.float64))
    step = torch.linalg.matrix_power(torch.eye(BODY + HEAD, dtype=a.dtype) - ALPHA * projection @ a, nu)
    outer = a @ step @ (w - c)
    expected = outer if estimator == "first-order" else step.T @ outer
    torch.testing.assert_close(oracles.flatten(estimate.gradient), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "unrolled"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_it_is_autograd_through_steps_of_the_head(name, estimator):
    loss, params, shape = model_problem(name)
    batches = random_batches(3, shape, coupled=True)

    found = build(estimator, loss, 3)(params, batches).gradient

    leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in params.items()}
    current, head = dict(leaves), head_names(leaves)
    for batch in batches.inner:
        gradients = torch.autograd.grad(loss(current, batch), [current[key] for key in head], create_graph=True)
        current |= {key: current[key] - ALPHA * g for key, g in zip(head, gradients, strict=True)}
    expected = torch.autograd.grad(loss(current, batches.outer), list(leaves.values()))
    assert relative_difference(found, dict(zip(leaves, expected, strict=True))) < 1e-12


def test_the_derivative_through_the_heads_steps_reaches_the_body():
    """Otherwise it would be first order in the body, which differs here."""
    loss, params, shape = model_problem("mlp")
    batches = random_batches(3, shape, coupled=True)

    exact, first = (without_head(build(kind, loss, 3)(params, batches).gradient) for kind in ("exact", "first-order"))

    assert relative_difference(first, exact) > 1e-2


def test_at_test_time_the_body_stays_as_it_is_and_the_head_goes_its_own_way():
    a, c, w = quadratic_problem()
    method = MethodConfig(adapted_part="head")

    points = list(fine_tune(oracles.quadratic_loss, as_parts(w), [oracles.quadratic_batch(a, c)] * 500, ALPHA, method))

    assert [list(point) for point in points] == [["body.w", "head.w"]] * 501
    assert all(torch.equal(point["body.w"], w[:BODY]) for point in points)
    least = c[BODY:] - torch.linalg.solve(a[BODY:, BODY:], a[BODY:, :BODY] @ (w[:BODY] - c[:BODY]))
    torch.testing.assert_close(points[-1]["head.w"], least, rtol=1e-9, atol=1e-10)


def test_training_the_body_leaves_the_shared_head_as_the_server_sent_it():
    """FedRep: every client fits its head from the same start, and only the body goes back changed."""
    loss, params, shape = model_problem("mlp")
    method = MethodConfig(adapted_part="head", trained_part="body", estimator="first-order", batch_size=5)

    update = local_update(loss, params, random_examples(20, shape), method, Stream(0, "client-0", 1))

    head = head_names(params)
    assert all(torch.equal(update.params[name], params[name]) for name in head)
    assert all(not torch.equal(update.params[name], params[name]) for name in params if name not in head)


def test_the_parts_of_a_direction_add_up_to_it():
    direction = as_parts(torch.arange(5.0))

    parts = without_head(direction), without_body(direction)

    assert all(torch.equal(parts[0][name] + parts[1][name], direction[name]) for name in direction)
    assert parts[0]["head.w"].count_nonzero() == parts[1]["body.w"].count_nonzero() == 0


def test_a_model_without_a_body_cannot_have_it_trained():
    method = MethodConfig(trained_part="body")
    one_layer = {"1.weight": torch.ones(2)}

    with pytest.raises(ModelError, match=r"several layers for method\.trained-part=body"):
        step_direction(one_layer, one_layer, one_layer, method)
