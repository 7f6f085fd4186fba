"""Local updates against closed forms, and the draws they are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import MethodConfig
from nufed.common.errors import DataError
from nufed.common.examples import Examples
from nufed.common.meta.draw import (
    BatchPlan,
    Sources,
    batch_plan,
    batch_sources,
    draw_indices,
    draws_with_replacement,
    take_batches,
)
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_gradient import Costs
from nufed.common.params import add_scaled, norm
from tests import oracles
from tests.common.meta.problems import model_problem, random_examples

STREAM = Stream(seed=5, client_id="client-003", round=2)


def quadratic_client(matrix, center):
    """Return a loss that reads one quadratic whatever the batch, and examples to draw from."""

    def loss(params, batch):
        return oracles.quadratic_loss(params, oracles.quadratic_batch(matrix, center))

    return loss, Examples(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("tau", [1, 2, 5])
@pytest.mark.parametrize(
    ("estimator", "power"), [("exact", 4), ("unrolled", 4), ("hessian-free", 4), ("first-order", 2)]
)
def test_rounds_of_local_updates_settle_at_the_fixed_point_of_their_estimator(estimator, power, tau):
    alpha, beta = 0.3, 0.8
    matrices, centers = oracles.random_quadratics(4, 3, (0.4, 1.0), seed=1)
    method = MethodConfig(num_inner_steps=2, inner_lr=alpha, local_lr=beta, num_local_steps=tau, estimator=estimator)
    w = oracles.as_params(torch.zeros(3, dtype=torch.float64))

    for k in range(110 // tau + 5):
        updates = []
        for i, (matrix, center) in enumerate(zip(matrices, centers, strict=True)):
            loss, support = quadratic_client(matrix, center)
            updates.append(local_update(loss, w, support, method, Stream(0, f"client-{i}", k)).params)
        w = {name: torch.stack([update[name] for update in updates]).mean(0) for name in w}

    expected = oracles.fixed_point(matrices, centers, alpha, beta, tau, power)
    assert torch.linalg.vector_norm(oracles.flatten(w) - expected) < 1e-9
    if tau == 1 and estimator == "exact":
        assert torch.allclose(oracles.flatten(w), oracles.meta_optimum(matrices, centers, alpha, power), atol=1e-9)
    if estimator == "first-order":
        assert torch.linalg.vector_norm(expected - oracles.meta_optimum(matrices, centers, alpha, 4)) > 1e-3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_inner_steps_and_no_step_size_train_alike_bit_for_bit(estimator):
    loss, params, shape = model_problem("mlp")
    support = random_examples(30, shape)
    method = MethodConfig(estimator=estimator, num_local_steps=4, local_lr=0.2, batch_size=8)

    fedavg, still = (
        local_update(loss, params, support, method.model_copy(update=changes), STREAM).params
        for changes in ({"num_inner_steps": 0}, {"num_inner_steps": 3, "inner_lr": 0.0})
    )

    assert all(torch.equal(fedavg[name], still[name]) for name in fedavg)


def test_a_local_update_equals_its_steps_by_hand():
    loss, params, shape = model_problem("mlp")
    support = random_examples(30, shape)
    method = MethodConfig(
        num_inner_steps=2, inner_lr=0.3, num_local_steps=3, local_lr=0.2, batch_size=8, estimator="unrolled"
    )

    update = local_update(loss, params, support, method, STREAM)

    w = params
    sources, plan = batch_sources(30, 0.0, seed=5, client_id="client-003"), BatchPlan(2, 0, 8, 8, 8)
    for t in range(3):
        batches = take_batches(support, draw_indices(plan, sources, STREAM.step_seed(t)), 2, None)
        w = add_scaled(w, oracles.unrolled_meta_gradient(loss, w, batches.inner, batches.outer, 0.3), -0.2)
    assert all(torch.allclose(update.params[name], w[name], rtol=1e-12, atol=1e-14) for name in w)
    assert update.costs == Costs(9, 6)


def moved(update, params):
    return norm(add_scaled(update.params, params, -1.0))


def test_a_meta_gradient_that_is_too_long_is_shortened_and_keeps_its_direction():
    loss, params, shape = model_problem("mlp")
    support, free = random_examples(30, shape), MethodConfig(num_inner_steps=2, num_local_steps=1, local_lr=0.5)
    whole = local_update(loss, params, support, free, STREAM)
    length = moved(whole, params) / 0.5

    short = local_update(loss, params, support, free.model_copy(update={"max_grad_norm": length / 4}), STREAM)
    long = local_update(loss, params, support, free.model_copy(update={"max_grad_norm": length * 4}), STREAM)

    assert moved(short, params) == pytest.approx(0.5 * length / 4, rel=1e-9)
    expected = add_scaled(params, add_scaled(whole.params, params, -1.0), 0.25)
    assert all(torch.allclose(short.params[name], expected[name], rtol=1e-10) for name in params)
    assert all(torch.equal(long.params[name], whole.params[name]) for name in params)
    assert short.growth == whole.growth


def test_fedproxs_pull_counts_in_the_length_that_is_limited():
    loss, params, shape = model_problem("mlp")
    method = MethodConfig(
        num_inner_steps=0, num_local_steps=30, local_lr=0.5, max_grad_norm=0.01, proximal_strength=1.5
    )

    update = local_update(loss, params, random_examples(30, shape), method, STREAM)

    assert 0 < moved(update, params) <= 30 * 0.5 * 0.01 * (1 + 1e-9)


def test_the_stream_alone_decides_the_draws():
    loss, params, shape = model_problem("mlp")
    support, method = random_examples(30, shape), MethodConfig(batch_size=4)

    def change(stream):
        return local_update(loss, params, support, method, stream).params

    same, again = change(STREAM), change(Stream(5, "client-003", 2))
    others = [change(s) for s in (Stream(6, "client-003", 2), Stream(5, "client-004", 2), Stream(5, "client-003", 3))]

    assert all(torch.equal(same[name], again[name]) for name in same)
    assert all(norm(add_scaled(same, other, -1.0)) > 1e-6 for other in others)


@pytest.mark.parametrize("estimator", ["exact", "first-order"])
def test_inner_and_outer_batches_do_not_depend_on_the_estimator_nor_the_outer_one_on_nu(estimator):
    method = MethodConfig(num_inner_steps=3, batch_size=5, estimator=estimator)
    plan = batch_plan(method, uses_hessian_batches=ESTIMATORS[estimator].uses_hessian_batches)
    sources = batch_sources(40, 0.0, seed=0, client_id="a")

    drawn = draw_indices(plan, sources, step_seed=1)

    reference = draw_indices(BatchPlan(3, 0, 5, 5, 5), sources, step_seed=1)
    assert all(np.array_equal(left, right) for left, right in zip(drawn[:4], reference, strict=True))
    assert np.array_equal(drawn[0], draw_indices(BatchPlan(0, 0, 5, 5, 5), sources, step_seed=1)[0])


def test_fresh_hessian_batches_differ_from_each_other_and_from_the_inner_ones():
    plan = batch_plan(MethodConfig(num_inner_steps=4, batch_size=10), uses_hessian_batches=True)

    drawn = draw_indices(plan, batch_sources(200, 0.0, seed=0, client_id="a"), step_seed=3)

    assert len(drawn) == 9
    assert len({tuple(sorted(rows)) for rows in drawn}) == 9


def test_coupled_hessian_batches_are_the_inner_batches():
    plan = batch_plan(MethodConfig(num_inner_steps=2, hessian_batches="inner"), uses_hessian_batches=True)
    support = random_examples(30, (2,))

    batches = take_batches(support, draw_indices(plan, batch_sources(30, 0.0, seed=0, client_id="a"), 3), 2, None)

    assert batches.hessian is batches.inner


@given(size=st.integers(0, 40), count=st.integers(1, 30), num_inner=st.integers(0, 3), seed=st.integers(0, 2**40))
def test_a_batch_repeats_an_example_only_when_it_is_larger_than_the_data(size, count, num_inner, seed):
    plan, sources = BatchPlan(num_inner, num_inner, size, size, size), Sources(np.arange(count), np.arange(count))

    drawn = draw_indices(plan, sources, seed)

    for rows in drawn:
        assert len(rows) == (size or count)
        assert rows.min() >= 0
        assert rows.max() < count
        assert (len(set(rows)) == len(rows)) or size > count
    assert draws_with_replacement(plan, sources) == (size > count)


def test_a_client_with_too_little_data_trains_and_says_so():
    loss, params, shape = model_problem("mlp")
    method = MethodConfig(batch_size=8, num_local_steps=1)

    small, large = (local_update(loss, params, random_examples(n, shape), method, STREAM) for n in (3, 8))

    assert small.with_replacement
    assert not large.with_replacement
    assert norm(add_scaled(small.params, params, -1.0)) > 0


@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99))
def test_held_out_outer_rows_and_inner_rows_share_nothing_and_miss_nothing(count, fraction):
    sources = batch_sources(count, fraction, seed=1, client_id="a")

    assert sorted([*sources.inner, *sources.outer]) == list(range(count))
    assert len(sources.inner) >= 1
    assert len(sources.outer) >= 1


def test_one_example_cannot_be_held_out():
    with pytest.raises(DataError, match=r"'a' has 1 support examples.*outer-holdout-fraction"):
        batch_sources(1, 0.5, seed=0, client_id="a")


def test_dropout_masks_follow_the_stream():
    from nufed.common.examples import TaskInfo
    from nufed.common.params import model_params
    from nufed.common.task import make_loss
    from tests.common.meta.problems import mlp

    model = mlp(dropout=0.5).train()
    loss, support = make_loss(model, TaskInfo("classification", (1, 3, 3), 4)), random_examples(30, (1, 3, 3))
    stream = Stream(1, "a", 1, masks=True)

    first, second = (local_update(loss, model_params(model), support, MethodConfig(), stream).params for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)
