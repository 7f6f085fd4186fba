"""Every estimator against an independent oracle: unrolled autograd, quadratic closed forms, orders of convergence."""

import itertools
import math

import pytest
import torch
from torch import nn

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Batch, TaskInfo
from nufed.common.meta.estimators import ESTIMATORS, find_estimator
from nufed.common.meta.exact import exact
from nufed.common.meta.first_order import first_order
from nufed.common.meta.hessian_free import Difference, hessian_free
from nufed.common.meta.meta_gradient import Costs, MetaBatches
from nufed.common.meta.unrolled import unrolled
from nufed.common.params import add_scaled, model_params, norm
from nufed.common.steps.cautions import Caution, caution
from nufed.common.steps.differentiate import gradient, hessian_vector_product
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.task import make_loss
from tests import oracles
from tests.common.meta.problems import CountingLoss, mlp, model_problem, random_batches, relative_difference

ALPHA = 0.3


def build(name, loss, nu, alpha=ALPHA, **options):
    return ESTIMATORS[name].build(loss, MethodConfig(num_inner_steps=nu, inner_lr=alpha, **options))


@pytest.mark.parametrize("nu", range(6))
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("estimator", ["exact", "unrolled"])
def test_second_order_estimators_equal_autograd_through_the_unrolled_loop(estimator, model, nu):
    loss, params, shape = model_problem(model)
    batches = random_batches(nu, shape, coupled=True)

    estimate = build(estimator, loss, nu)(params, batches)

    oracle = oracles.unrolled_meta_gradient(loss, params, batches.inner, batches.outer, ALPHA)
    assert relative_difference(estimate.gradient, oracle) < 1e-10


@pytest.mark.parametrize("nu", [2, 5])
def test_the_reversed_product_is_told_from_the_right_one(nu):
    loss, params, shape = model_problem("mlp")
    batches = random_batches(nu, shape, coupled=True)
    path = [params]
    for batch in batches.inner:
        path.append(add_scaled(path[-1], gradient(loss, path[-1], batch), -ALPHA))

    direction = gradient(loss, path.pop(), batches.outer)
    for point, batch in zip(path, batches.inner, strict=True):  # first inner point first: wrong
        direction = add_scaled(direction, hessian_vector_product(loss, point, direction, batch), -ALPHA)

    oracle = oracles.unrolled_meta_gradient(loss, params, batches.inner, batches.outer, ALPHA)
    assert relative_difference(direction, oracle) > 1e-3


@pytest.mark.parametrize("nu", [1, 3])
def test_exact_evaluates_each_hessian_on_the_batch_of_its_own(nu):
    loss, params, shape = model_problem("mlp")
    batches = random_batches(nu, shape, coupled=False)
    path = [params]
    for batch in batches.inner:
        path.append(add_scaled(path[-1], gradient(loss, path[-1], batch), -ALPHA))

    estimate = exact(eager_steps(loss, ALPHA))(params, batches)

    sizes = [tensor.numel() for tensor in params.values()]
    direction = oracles.flatten(gradient(loss, path.pop(), batches.outer))
    for point, batch in reversed(list(zip(path, batches.hessian, strict=True))):
        flat = oracles.flatten(point)

        def flat_loss(w, batch=batch):
            parts = (part.view(t.shape) for part, t in zip(w.split(sizes), params.values(), strict=True))
            return loss(dict(zip(params, parts, strict=True)), batch)

        direction = direction - ALPHA * torch.autograd.functional.hessian(flat_loss, flat) @ direction
    assert torch.allclose(oracles.flatten(estimate.gradient), direction, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("nu", "alpha"), [(0, ALPHA), (4, 0.0)])
def test_without_inner_steps_or_step_size_every_estimator_is_the_plain_gradient_bit_for_bit(estimator, nu, alpha):
    loss, params, shape = model_problem("mlp")
    batches = random_batches(nu, shape, coupled=False)

    estimate = build(estimator, loss, nu, alpha)(params, batches)

    plain = eager_steps(loss, alpha).value_and_gradient(params, batches.outer)[1]
    assert all(torch.equal(estimate.gradient[name], plain[name]) for name in plain)
    assert relative_difference(plain, gradient(loss, params, batches.outer)) < 1e-14


@pytest.mark.parametrize("nu", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("estimator", "gradients", "hvps", "evaluations"),
    [
        ("exact", lambda nu: nu + 1, lambda nu: nu, lambda nu: 2 * nu + 1),  # a product recomputes its forward pass
        ("unrolled", lambda nu: nu + 1, lambda nu: nu, lambda nu: nu + 1),
        ("first-order", lambda nu: nu + 1, lambda nu: 0, lambda nu: nu + 1),
        ("hessian-free", lambda nu: 3 * nu + 1, lambda nu: 0, lambda nu: 3 * nu + 1),
    ],
)
def test_costs_are_those_of_the_table_and_really_spent(estimator, gradients, hvps, evaluations, nu):
    loss, params, shape = model_problem("mlp")
    counting = CountingLoss(loss)

    estimate = build(estimator, counting, nu)(params, random_batches(nu, shape, coupled=False))

    assert estimate.costs == Costs(gradients(nu), hvps(nu))
    assert counting.evaluations == evaluations(nu)


def test_hessian_free_reads_one_batch_at_both_ends_and_a_fresh_one_for_each_inner_point():
    loss, params, shape = model_problem("mlp")
    counting, batches = CountingLoss(loss), random_batches(3, shape, coupled=False)

    hessian_free(eager_steps(counting, ALPHA))(params, batches)

    assert [counting.batches[id(batch)] for batch in batches.hessian] == [2, 2, 2]
    assert [counting.batches[id(batch)] for batch in (*batches.inner, batches.outer)] == [1, 1, 1, 1]


@pytest.mark.parametrize("nu", [1, 2, 5])
def test_quadratic_closed_forms(nu):
    matrices, centers = oracles.random_quadratics(1, 6, (-0.4, 1.0), seed=3)
    params = oracles.as_params(torch.linspace(-1, 1, 6, dtype=torch.float64), 4, 2)
    batch = oracles.quadratic_batch(matrices[0], centers[0])
    batches, twice = (MetaBatches((batch,) * n, batch, (batch,) * n) for n in (nu, 2 * nu))

    gradients = {name: build(name, oracles.quadratic_loss, nu, 0.5)(params, batches).gradient for name in ESTIMATORS}
    doubled = first_order(eager_steps(oracles.quadratic_loss, 0.5))(params, twice).gradient

    w = oracles.flatten(params)
    expected = oracles.meta_gradient(matrices[0], centers[0], w, 0.5, 2 * nu)
    biased = oracles.meta_gradient(matrices[0], centers[0], w, 0.5, nu)
    for name, form in {
        "exact": expected,
        "unrolled": expected,
        "hessian-free": expected,
        "first-order": biased,
    }.items():
        tolerance = 1e-9 if name == "hessian-free" else 1e-13
        assert torch.linalg.vector_norm(oracles.flatten(gradients[name]) - form) < tolerance * form.norm()
    assert torch.allclose(oracles.flatten(doubled), expected, rtol=1e-12, atol=1e-14)
    assert torch.linalg.vector_norm(biased - expected) > 1e-2 * expected.norm()


def test_hessian_free_converges_at_order_two_in_the_displacement():
    loss, params, shape = model_problem("mlp")
    batches = random_batches(2, shape, coupled=True)
    oracle = oracles.unrolled_meta_gradient(loss, params, batches.inner, batches.outer, ALPHA)

    errors = [
        relative_difference(
            hessian_free(eager_steps(loss, ALPHA), difference=Difference(delta))(params, batches).gradient, oracle
        )
        for delta in (1e-1, 1e-2, 1e-3)
    ]

    assert [coarse / fine for coarse, fine in itertools.pairwise(errors)] == pytest.approx([100, 100], abs=5)


def test_hessian_free_default_in_float32_is_within_a_thousandth_of_exact():
    model = mlp().float()
    loss, params = make_loss(model, TaskInfo("classification", (1, 3, 3), 4)), model_params(model)
    double = random_batches(2, (1, 3, 3), coupled=True)
    inner = tuple(Batch(batch.inputs.float(), batch.targets) for batch in double.inner)
    batches = MetaBatches(inner, Batch(double.outer.inputs.float(), double.outer.targets), inner)

    estimate = hessian_free(eager_steps(loss, ALPHA))(params, batches)

    assert relative_difference(estimate.gradient, exact(eager_steps(loss, ALPHA))(params, batches).gradient) < 1e-3


def test_absolute_displacement_moves_by_delta_times_the_direction():
    loss, params, shape = model_problem("mlp")
    batches = random_batches(1, shape, coupled=True)
    outer = gradient(loss, add_scaled(params, gradient(loss, params, batches.inner[0]), -ALPHA), batches.outer)

    absolute = hessian_free(eager_steps(loss, ALPHA), difference=Difference(0.01, "absolute"))(params, batches)

    same = hessian_free(eager_steps(loss, ALPHA), difference=Difference(0.01 * norm(outer)))(params, batches)
    assert relative_difference(absolute.gradient, same.gradient) < 1e-10


def test_forward_differences_converge_at_order_one_in_the_displacement():
    loss, params, shape = model_problem("mlp")
    batches = random_batches(2, shape, coupled=True)
    oracle = oracles.unrolled_meta_gradient(loss, params, batches.inner, batches.outer, ALPHA)

    errors = [
        relative_difference(
            hessian_free(eager_steps(loss, ALPHA), difference=Difference(delta, sides="forward"))(
                params, batches
            ).gradient,
            oracle,
        )
        for delta in (1e-2, 1e-3, 1e-4)
    ]

    assert [coarse / fine for coarse, fine in itertools.pairwise(errors)] == pytest.approx([10, 10], rel=0.1)


@pytest.mark.parametrize(("coupled", "gradients"), [(True, 7), (False, 10)])
def test_forward_differences_reuse_the_inner_gradients_of_coupled_batches(coupled, gradients):
    loss, params, shape = model_problem("mlp")
    counting, difference = CountingLoss(loss), Difference(sides="forward")

    estimate = hessian_free(eager_steps(counting, ALPHA), difference=difference)(
        params, random_batches(3, shape, coupled=coupled)
    )

    assert (counting.evaluations, estimate.costs) == (gradients, Costs(gradients))


def test_relative_displacement_is_measured_in_the_norm_of_the_parameters():
    loss, params, shape = model_problem("mlp")
    batches = random_batches(1, shape, coupled=True)

    relative = hessian_free(eager_steps(loss, ALPHA), difference=Difference(0.01, "relative"))(params, batches)

    same = Difference(0.01 * (1 + norm(params)))
    expected = hessian_free(eager_steps(loss, ALPHA), difference=same)(params, batches)
    assert relative_difference(relative.gradient, expected.gradient) < 1e-10


def test_float64_differences_of_a_float32_relu_network_are_right_to_float32():
    model = mlp(nn.ReLU).float()
    loss, params = make_loss(model, TaskInfo("classification", (1, 3, 3), 4)), model_params(model)
    double = random_batches(2, (1, 3, 3), coupled=True)
    inner = tuple(Batch(batch.inputs.float(), batch.targets) for batch in double.inner)
    batches = MetaBatches(inner, Batch(double.outer.inputs.float(), double.outer.targets), inner)
    difference = Difference(displacement="relative", dtype="float64")

    estimate = hessian_free(eager_steps(loss, ALPHA), difference=difference)(params, batches)

    oracle = exact(eager_steps(loss, ALPHA))(params, batches).gradient
    assert relative_difference(estimate.gradient, oracle) < 1e-5
    assert all(tensor.dtype == torch.float32 for tensor in estimate.gradient.values())


def test_float32_differences_across_kinks_are_said_once():
    caution.cache_clear()
    loss = make_loss(mlp(nn.ReLU).float(), TaskInfo("classification", (1, 3, 3), 4))

    with pytest.warns(Caution, match="kinks of ReLU") as said:
        build("hessian-free", loss, 1)
    build("hessian-free", loss, 1)  # a second warning would be an error here

    assert len(said) == 1


@pytest.mark.parametrize(
    ("model", "dtype"), [(mlp().float(), "same"), (mlp(nn.ReLU), "same"), (mlp(nn.ReLU).float(), "float64")]
)
def test_smooth_models_and_float64_raise_no_caution(model, dtype):
    caution.cache_clear()
    loss = make_loss(model, TaskInfo("classification", (1, 3, 3), 4))

    estimator = build("hessian-free", loss, 1, hessian_free_dtype=dtype)

    assert callable(estimator)


@pytest.mark.parametrize("estimator", ["exact", "unrolled", "hessian-free"])
def test_dropout_masks_belong_to_the_batch(estimator):
    model = mlp(dropout=0.4).train()
    loss = make_loss(model, TaskInfo("classification", (1, 3, 3), 4))
    plain = random_batches(2, (1, 3, 3), coupled=True)
    inner = tuple(Batch(batch.inputs, batch.targets, 7 + j) for j, batch in enumerate(plain.inner))
    batches = MetaBatches(inner, Batch(plain.outer.inputs, plain.outer.targets, 99), inner)

    estimate = build(estimator, loss, 2, hessian_free_delta=1e-4)(model_params(model), batches)

    oracle = oracles.unrolled_meta_gradient(loss, model_params(model), batches.inner, batches.outer, ALPHA)
    assert relative_difference(estimate.gradient, oracle) < (1e-6 if estimator == "hessian-free" else 1e-10)


def test_masks_differ_between_batches():
    model = mlp(dropout=0.4).train()
    loss, batch = (
        make_loss(model, TaskInfo("classification", (1, 3, 3), 4)),
        random_batches(0, (1, 3, 3), coupled=True).outer,
    )

    losses = [float(loss(model_params(model), Batch(batch.inputs, batch.targets, seed))) for seed in (1, 2, 1)]

    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parameters_and_model_are_left_as_they_were(estimator):
    loss, params, shape = model_problem("mlp")
    before = {name: tensor.clone() for name, tensor in params.items()}

    build(estimator, loss, 2)(params, random_batches(2, shape, coupled=False))

    assert all(torch.equal(params[name], before[name]) and not params[name].requires_grad for name in before)


def test_a_loss_that_is_linear_in_the_parameters_has_no_hessian():
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def loss(params, batch):
        return (params["w"] * batch.inputs).sum()

    batch = Batch(weights, torch.zeros(1))
    batches = MetaBatches((batch,), batch, (batch,))

    gradients = [build(name, loss, 1)({"w": torch.zeros(2).double()}, batches).gradient["w"] for name in ESTIMATORS]

    assert all(torch.allclose(found, weights, atol=1e-9) for found in gradients)


def test_a_vanished_outer_gradient_leaves_hessian_free_finite():
    batch = Batch(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    params = oracles.as_params(torch.zeros(3, dtype=torch.float64))

    estimate = hessian_free(eager_steps(oracles.quadratic_loss, 0.5))(params, MetaBatches((batch,), batch, (batch,)))

    assert norm(estimate.gradient) == 0
    assert estimate.growth() == 1


def test_growth_is_the_ratio_of_meta_gradient_to_outer_gradient():
    matrix, center = 0.5 * torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    batch = oracles.quadratic_batch(matrix, center)
    params = oracles.as_params(torch.ones(2, dtype=torch.float64))

    estimate = exact(eager_steps(oracles.quadratic_loss, 1.0))(params, MetaBatches((batch,) * 3, batch, (batch,) * 3))

    assert math.isclose(estimate.growth(), 0.5**3)


def test_first_and_second_order_differ_on_the_task_used():
    loss, params, shape = model_problem("mlp")
    batches = random_batches(2, shape, coupled=True)

    first = first_order(eager_steps(loss, ALPHA))(params, batches).gradient

    assert relative_difference(first, unrolled(eager_steps(loss, ALPHA))(params, batches).gradient) > 0.05


def test_an_unknown_estimator_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        find_estimator("exakt")


def test_a_relu_network_is_differentiated_within_its_pieces():
    model = mlp(nn.ReLU)
    loss, params = make_loss(model, TaskInfo("classification", (1, 3, 3), 4)), model_params(model)
    batches = random_batches(2, (1, 3, 3), coupled=True)

    estimate = exact(eager_steps(loss, ALPHA))(params, batches)

    oracle = oracles.unrolled_meta_gradient(loss, params, batches.inner, batches.outer, ALPHA)
    assert relative_difference(estimate.gradient, oracle) < 1e-10


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_says_whether_it_differentiates_twice(name):
    """Autograd records a backward pass that is itself going to be differentiated, and no other."""
    params, batches = {"w": torch.tensor([0.5, -1.0]).double()}, random_batches(2, (1, 1, 2), coupled=True)
    recorded = []

    class SumOfSquares(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            ctx.save_for_backward(w)
            return (w * w).sum()

        @staticmethod
        def backward(ctx, above):
            recorded.append(torch.is_grad_enabled())
            return 2 * above * ctx.saved_tensors[0]

    build(name, lambda params, batch: SumOfSquares.apply(params["w"]), 2)(params, batches)

    assert any(recorded) == ESTIMATORS[name].differentiates_twice
