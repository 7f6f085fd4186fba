"""Learned step sizes: the derivative with respect to them, and their way through training and adaptation."""

import pytest
import torch

from nufed.common.config import MethodConfig
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.meta.meta_sgd import STEP_SIZE, meta_sgd, split_step_sizes, with_step_sizes
from nufed.common.meta.objective import build_objective, fine_tune, initial_params
from nufed.common.meta.unrolled import unrolled
from nufed.common.rng import torch_generator
from nufed.common.steps.eager_steps import eager_steps
from tests import oracles
from tests.common.meta.problems import (
    CountingLoss,
    model_problem,
    random_batches,
    random_examples,
    relative_difference,
)


def different_sizes(params, scale=0.3):
    """Return joint parameters whose step sizes all differ."""
    generator = torch_generator(2, "test", "sizes")
    sizes = {STEP_SIZE + n: scale * torch.rand(t.shape, generator=generator, dtype=t.dtype) for n, t in params.items()}
    return {**params, **sizes}


def outer_loss(loss, joint, batches):
    """Return f(w_ν; O) after steps w - a ∘ ∇f(w; I_j), differentiable in w and a."""
    point, sizes = split_step_sizes(joint)
    for batch in batches.inner:
        gradients = torch.autograd.grad(loss(point, batch), list(point.values()), create_graph=True)
        point = {name: point[name] - sizes[name] * g for name, g in zip(point, gradients, strict=True)}
    return loss(point, batches.outer)


def test_the_step_sizes_gradient_on_a_parabola_is_what_the_hand_finds():
    """F(w, a) = 1/2 k (1 - ak)² (w - c)², so dF/da = -k² (1 - ak) (w - c)², dF/dw = k (1 - ak)² (w - c)."""
    k, c, w, a = 1.5, 0.5, 2.0, 0.2
    batch = oracles.quadratic_batch(torch.tensor([[k]]).double(), torch.tensor([c]).double())
    joint = {"w": torch.tensor([w], dtype=torch.float64), STEP_SIZE + "w": torch.tensor([a], dtype=torch.float64)}

    gradient = meta_sgd(oracles.quadratic_loss, has_curvature=True)(
        joint, MetaBatches((batch,), batch, (batch,))
    ).gradient

    assert float(gradient[STEP_SIZE + "w"]) == pytest.approx(-(k**2) * (1 - a * k) * (w - c) ** 2, rel=1e-12)
    assert float(gradient["w"]) == pytest.approx(k * (1 - a * k) ** 2 * (w - c), rel=1e-12)
    assert float(gradient[STEP_SIZE + "w"]) < 0  # a longer step is better where the parabola's bottom is not reached


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_both_gradients_are_those_of_finite_differences(nu):
    """In float64, along random directions of w alone and of a alone."""
    loss, params, shape = model_problem("mlp")
    joint, batches = different_sizes(params), random_batches(nu, shape, coupled=True)

    gradient = meta_sgd(loss, has_curvature=True)(joint, batches).gradient

    generator = torch_generator(4, "test", "direction")
    for part in (lambda name: name.startswith(STEP_SIZE), lambda name: not name.startswith(STEP_SIZE)):
        direction = {n: torch.randn(t.shape, generator=generator).double() * part(n) for n, t in joint.items()}
        ends = []
        for sign in (1, -1):
            moved = {n: (t + sign * 1e-5 * direction[n]).requires_grad_(True) for n, t in joint.items()}
            ends.append(float(outer_loss(loss, moved, batches).detach()))
        slope = sum(float((gradient[n] * direction[n]).sum()) for n in joint)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_both_gradients_are_those_of_autograd_through_the_loop(name):
    loss, params, shape = model_problem(name)
    joint, batches = different_sizes(params), random_batches(3, shape, coupled=True)

    estimate = meta_sgd(loss, has_curvature=True)(joint, batches)

    leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in joint.items()}
    expected = torch.autograd.grad(outer_loss(loss, leaves, batches), list(leaves.values()))
    assert relative_difference(estimate.gradient, dict(zip(leaves, expected, strict=True))) < 1e-12
    assert list(estimate.gradient) == list(joint)


def test_with_one_size_for_all_the_models_part_is_the_unrolled_estimate():
    loss, params, shape = model_problem("mlp")
    batches = random_batches(3, shape, coupled=True)

    found = meta_sgd(loss, has_curvature=True)(with_step_sizes(params, 0.2), batches).gradient

    expected = unrolled(eager_steps(loss, 0.2))(params, batches).gradient
    assert relative_difference(split_step_sizes(found)[0], expected) < 1e-12


def test_first_order_leaves_the_hessians_out_of_both():
    """There, v is ∇f(w_ν) throughout: the step sizes' gradient is -Σ_j ∇f(w_j) ∘ ∇f(w_ν), and no product is made."""
    a, c = (part[0] for part in oracles.random_quadratics(1, 3, (0.3, 1.2), seed=1))
    w, size = torch.tensor([1.0, -2.0, 0.5]).double(), 0.4
    batch = oracles.quadratic_batch(a, c)
    joint = with_step_sizes({"w": w}, size)

    estimate = meta_sgd(oracles.quadratic_loss, has_curvature=False)(
        joint, MetaBatches((batch,) * 2, batch, (batch,) * 2)
    )

    first = a @ (w - c)
    second = a @ (w - size * first - c)
    outer = a @ (w - size * first - size * second - c)
    torch.testing.assert_close(estimate.gradient["w"], outer, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(estimate.gradient[STEP_SIZE + "w"], -(first + second) * outer, rtol=1e-12, atol=1e-12)
    assert (estimate.costs.gradient_evaluations, estimate.costs.hvps) == (3, 0)


def test_costs_are_what_is_evaluated():
    loss, params, shape = model_problem("mlp")
    counting = CountingLoss(loss)

    costs = meta_sgd(counting, has_curvature=True)(
        with_step_sizes(params, 0.1), random_batches(3, shape, coupled=False)
    ).costs

    assert (costs.gradient_evaluations, costs.hvps) == (4, 3)
    assert counting.evaluations == 7


def test_training_lowers_the_loss_after_adaptation_and_moves_every_step_size():
    loss, params, shape = model_problem("mlp")
    support = random_examples(30, shape)
    method = MethodConfig(step_sizes="learned", num_inner_steps=1, num_local_steps=60, batch_size=0, local_lr=0.2)
    start = initial_params(params, method)

    trained = local_update(loss, start, support, method, Stream(0, "client-0", 1)).params

    def after_adaptation(joint):
        *_, last = fine_tune(loss, joint, [support.as_batch()], 99.0, method)
        return float(loss(last, support.as_batch()))

    assert after_adaptation(trained) < 0.9 * after_adaptation(start)
    assert all(not torch.equal(trained[name], start[name]) for name in start)


def test_at_test_time_the_learned_sizes_are_used_and_stay_behind():
    """One step is w - a ∘ ∇f(w); what is judged has the model's parameters alone."""
    a, c = (part[0] for part in oracles.random_quadratics(1, 3, (0.3, 1.2), seed=1))
    w, sizes = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.1, 0.0, 0.7]).double()
    method = MethodConfig(step_sizes="learned")

    points = list(
        fine_tune(
            oracles.quadratic_loss, {"w": w, STEP_SIZE + "w": sizes}, [oracles.quadratic_batch(a, c)], 99.0, method
        )
    )

    assert [list(point) for point in points] == [["w"], ["w"]]
    torch.testing.assert_close(points[1]["w"], w - sizes * (a @ (w - c)), rtol=1e-12, atol=1e-12)


def test_a_run_starts_from_step_sizes_that_all_are_the_inner_step_size():
    params = {"w": torch.ones(2), "b": torch.zeros(1)}

    joint = initial_params(params, MethodConfig(step_sizes="learned", inner_lr=0.25))

    model, sizes = split_step_sizes(joint)
    assert list(model) == list(sizes) == ["w", "b"]
    assert all(bool((size == 0.25).all()) for size in sizes.values())
    assert initial_params(params, MethodConfig()) is params


@pytest.mark.parametrize(("estimator", "hessian"), [("exact", 3), ("unrolled", 0), ("first-order", 0)])
def test_batches_are_those_of_the_estimator(estimator, hessian):
    method = MethodConfig(step_sizes="learned", estimator=estimator)

    plan = build_objective(oracles.quadratic_loss, method).plan

    assert (plan.num_inner, plan.num_hessian) == (3, hessian)
