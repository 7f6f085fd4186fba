"""Keeping gradient graphs or making them again: the same numbers, other work."""

import sys

import pytest
import torch

from nufed.common.config import MethodConfig
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.meta.exact import exact
from nufed.common.meta.unrolled import unrolled
from nufed.common.steps import kept_graphs
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.steps.kept_graphs import KeptGraphs
from nufed.common.steps.steps import autograd_steps
from tests.common.meta.problems import CountingLoss, model_problem, random_batches, relative_difference

ALPHA = 0.3


@pytest.mark.parametrize("nu", [0, 1, 2, 5])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_what_is_kept_changes_no_bit_of_the_meta_gradient(model, nu):
    loss, params, shape = model_problem(model)
    batches = random_batches(nu, shape, coupled=True)

    found = [unrolled(eager_steps(loss, ALPHA), memory=memory)(params, batches) for memory in ("low", "fast", "auto")]

    assert all(torch.equal(found[0].gradient[name], other.gradient[name]) for other in found for name in params)
    recomputed = exact(eager_steps(loss, ALPHA))(params, batches)
    assert relative_difference(found[0].gradient, recomputed.gradient) < 1e-14


@pytest.mark.parametrize(
    ("memory", "evaluations"), [("fast", lambda nu: nu + 1), ("low", lambda nu: 2 * nu), ("auto", lambda nu: nu + 1)]
)
@pytest.mark.parametrize("nu", [1, 2, 5])
def test_a_graph_that_is_not_kept_costs_one_more_evaluation(memory, evaluations, nu):
    loss, params, shape = model_problem("mlp")
    counting = CountingLoss(loss)
    method = MethodConfig(estimator="unrolled", memory=memory)

    ESTIMATORS["unrolled"].build(counting, method)(params, random_batches(nu, shape, coupled=True))

    assert counting.evaluations == evaluations(nu)


@pytest.mark.parametrize(("memory", "evaluations"), [("fast", 4), ("low", 7), ("auto", 7)])
def test_exact_with_coupled_batches_keeps_graphs_only_when_asked_to(memory, evaluations):
    loss, params, shape = model_problem("mlp")
    counting = CountingLoss(loss)
    method = MethodConfig(estimator="exact", hessian_batches="inner", memory=memory)

    ESTIMATORS["exact"].build(counting, method)(params, random_batches(3, shape, coupled=True))

    assert counting.evaluations == evaluations


@pytest.mark.parametrize(("graphs_that_fit", "again"), [(3.5, 3), (1.5, 5), (0.1, 5), (100, 0)])
def test_auto_keeps_the_last_graphs_that_fit_in_the_budget(graphs_that_fit, again, monkeypatch):
    loss, params, shape = model_problem("mlp")
    counting, batches = CountingLoss(loss), random_batches(6, shape, coupled=True)
    *_, size = kept_graphs._measured(autograd_steps(loss, ALPHA), params, batches.inner[0])
    monkeypatch.setattr(kept_graphs, "GRAPH_BUDGET", int(graphs_that_fit * size))

    unrolled(eager_steps(counting, ALPHA), memory="auto")(params, batches)

    assert counting.evaluations == 7 + again
    assert [counting.batches[id(batch)] for batch in batches.inner] == [2] * again + [1] * (6 - again)


def test_the_measured_size_grows_with_the_batch_and_leaves_out_parameters():
    loss, params, shape = model_problem("mlp")
    steps = autograd_steps(loss, ALPHA)

    sizes = [
        kept_graphs._measured(steps, params, random_batches(1, shape, coupled=True, size=size).outer)[2]
        for size in (1, 50, 100)
    ]

    assert 1.8 < sizes[2] / sizes[1] < 2.2
    assert sizes[0] < 100 * 8 * sum(tensor.numel() for tensor in params.values())


def test_fast_sets_no_limit():
    assert KeptGraphs("fast")._limit == sys.maxsize
