"""The inner step by hand: autograd's numbers for every dense network, and autograd itself for everything else."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nufed.common.config import MethodConfig
from nufed.common.examples import Batch, TaskInfo
from nufed.common.meta.adapt import adapt
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.params import model_params
from nufed.common.rng import GLOBAL_STATE, seeded_torch, torch_generator
from nufed.common.steps.activations import ACTIVATION_DERIVATIVES
from nufed.common.steps.dense_steps import dense_steps
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.steps.kept_graphs import KeptGraphs
from nufed.common.steps.steps import SizedPullBack, autograd_steps
from nufed.common.task import make_loss
from tests.common.meta.problems import SHAPES, cnn, mlp, model_problem, random_batches, relative_difference

ALPHA, CLASSES = 0.3, 4
TASK = TaskInfo("classification", SHAPES["mlp"], CLASSES)


def unknown(loss):
    """Return the loss as one that is not known to be a model's, which autograd takes."""

    def value(params, batch):
        return loss(params, batch)

    return value


def dense_problem(activation, widths, biases, kind, seed=0):
    """Return loss and parameters of a network in float64."""
    layers = []
    with seeded_torch(seed):
        for (before, after), bias in zip(pairwise(widths), biases, strict=True):
            layers += [nn.Linear(before, after, bias=bias), activation()]
        model = nn.Sequential(*layers[:-1]).double()
    return make_loss(model, TaskInfo(kind, (widths[0],), widths[-1])), model_params(model)


def noise(loss, size, seed=0):
    generator, task = torch_generator(seed, "test", "noise"), loss.task
    inputs = torch.randn(size, *task.input_shape, generator=generator, dtype=torch.float64)
    if task.kind == "regression":
        return Batch(inputs, torch.randn(size, task.num_outputs, generator=generator, dtype=torch.float64))
    return Batch(inputs, torch.randint(0, task.num_outputs, (size,), generator=generator))


def close(found, expected, tolerance=1e-10):
    return list(found) == list(expected) and all(
        torch.allclose(found[name], expected[name], rtol=tolerance, atol=1e-3 * tolerance) for name in expected
    )


def equal(found, expected):
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@settings(max_examples=60)
@given(
    activation=st.sampled_from(list(ACTIVATION_DERIVATIVES)),
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    kind=st.sampled_from(["classification", "regression"]),
    size=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_all_four_forms_of_the_step_are_those_of_autograd(activation, widths, biases, kind, size, seed):
    """Any depth and widths, with or without biases, every activation, both tasks, in float64."""
    loss, params = dense_problem(activation, widths, biases[: len(widths) - 1], kind, seed)
    batch, direction = noise(loss, size, seed), {name: tensor.cos() for name, tensor in params.items()}
    ours, autograd = dense_steps(loss, ALPHA), autograd_steps(loss, ALPHA)

    value, gradient = ours.value_and_gradient(params, batch)
    moved, pull_back = ours.linearize(params, batch)

    expected_value, expected_gradient = autograd.value_and_gradient(params, batch)
    assert value.shape == expected_value.shape
    assert torch.allclose(value, expected_value, rtol=1e-10)
    assert close(gradient, expected_gradient)
    assert close(moved, autograd.descend(params, batch))
    assert equal(moved, ours.descend(params, batch))
    assert close(pull_back(direction), autograd.pull_back(params, batch, direction))
    assert equal(pull_back(direction), ours.pull_back(params, batch, direction))


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("nu", range(6))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_has_the_numbers_of_autograd(estimator, nu, coupled):
    """Meta-gradient, losses, growth and costs, for ν = 0 … 5."""
    loss, params, shape = model_problem("mlp")
    batches = random_batches(nu, shape, coupled=coupled)
    method = MethodConfig(num_inner_steps=nu, inner_lr=ALPHA, estimator=estimator)

    found, expected = (ESTIMATORS[estimator].build(each, method)(params, batches) for each in (loss, unknown(loss)))

    tolerance = 1e-8 if estimator == "hessian-free" else 1e-10  # differences of rounded gradients
    assert relative_difference(found.gradient, expected.gradient) < tolerance
    assert float(found.outer_loss) == pytest.approx(float(expected.outer_loss), rel=1e-10)
    assert found.growth() == pytest.approx(expected.growth(), rel=tolerance)
    assert found.costs == expected.costs


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("activation", ACTIVATION_DERIVATIVES)
def test_float32_agrees_to_its_precision(activation, estimator):
    """The type that runs train in; differences in float64, which ReLU needs."""
    model = mlp(activation).float()
    loss, wide = make_loss(model, TASK), random_batches(3, SHAPES["mlp"], coupled=True)
    inner = tuple(Batch(batch.inputs.float(), batch.targets) for batch in wide.inner)
    batches = MetaBatches(inner, Batch(wide.outer.inputs.float(), wide.outer.targets), inner)
    options = {"hessian_free_dtype": "float64", "hessian_free_displacement": "relative"}
    method = MethodConfig(num_inner_steps=3, inner_lr=ALPHA, estimator=estimator, **options)
    params = model_params(model)

    found, expected = (ESTIMATORS[estimator].build(each, method)(params, batches) for each in (loss, unknown(loss)))

    assert relative_difference(found.gradient, expected.gradient) < 1e-5
    assert all(tensor.dtype == torch.float32 for tensor in found.gradient.values())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_dense_network_is_trained_and_adapted_without_its_module(estimator):
    """So threads that share a model need no turns, and nothing of autograd is paid for."""
    loss, params, shape = model_problem("mlp")

    def refuse(params, inputs):
        raise AssertionError("the module was called")

    unusable, batches = replace(loss, outputs=refuse), random_batches(2, shape, coupled=False)
    method = MethodConfig(num_inner_steps=2, inner_lr=ALPHA, estimator=estimator)

    estimate = ESTIMATORS[estimator].build(unusable, method)(params, batches)
    *_, adapted = adapt(unusable, params, batches.inner, ALPHA)

    assert list(estimate.gradient) == list(adapted) == list(params)


def hooked():
    model = mlp()
    model[1].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return model


def with_shared_weights():
    with seeded_torch(3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.ELU(), nn.Linear(9, 9), nn.ELU(), nn.Linear(9, 4))
    model[3].weight = model[1].weight
    return model.double()


@pytest.mark.parametrize(
    ("build", "shape"),
    [(hooked, "mlp"), (with_shared_weights, "mlp"), (lambda: mlp(dropout=0.4).train(), "mlp"), (cnn, "cnn")],
)
def test_other_models_are_computed_by_autograd(build, shape):
    """Hooks, shared weights, dropout and convolutions: the same bits as if there were no kernel."""
    model = build()
    loss, params = make_loss(model, TaskInfo("classification", SHAPES[shape], CLASSES)), model_params(model)
    plain = random_batches(1, SHAPES[shape], coupled=True).outer
    batch = Batch(plain.inputs, plain.targets, mask_seed=5)

    found = eager_steps(loss, ALPHA)

    expected = autograd_steps(loss, ALPHA)
    assert dense_steps(loss, ALPHA) is None
    assert equal(found.descend(params, batch), expected.descend(params, batch))
    assert equal(found.pull_back(params, batch, params), expected.pull_back(params, batch, params))


class Marked(Tensor):
    """A tensor of another class, which may mean other arithmetic."""


def in_type(dtype):
    return lambda batch: replace(batch, inputs=batch.inputs.to(dtype))


CHANGES = {
    "dropout masks": lambda batch: replace(batch, mask_seed=3),
    "probabilities of classes": lambda batch: replace(batch, targets=torch.softmax(batch.inputs.flatten(1)[:, :4], 1)),
    "inputs of another class": lambda batch: replace(batch, inputs=batch.inputs.as_subclass(Marked)),
    "targets of another class": lambda batch: replace(batch, targets=batch.targets.as_subclass(Marked)),
    "inputs of another shape": lambda batch: replace(batch, inputs=batch.inputs.reshape(-1, 9)),
    "bfloat16": in_type(torch.bfloat16),
    "float16": in_type(torch.float16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_batches_are_computed_by_autograd(change):
    """What the kernel was not written for is done as if there were no kernel, to the same bits."""
    loss, params, shape = model_problem("mlp")
    batch = CHANGES[change](random_batches(1, shape, coupled=True).outer)
    params = {name: tensor.to(batch.inputs.dtype) for name, tensor in params.items()}
    ours, autograd = dense_steps(loss, ALPHA), autograd_steps(loss, ALPHA)

    (moved, pull_back), (value, gradient) = ours.linearize(params, batch), ours.value_and_gradient(params, batch)

    expected_value, expected_gradient = autograd.value_and_gradient(params, batch)
    assert not isinstance(pull_back, SizedPullBack)
    assert torch.equal(value, expected_value)
    assert equal(gradient, expected_gradient)
    assert equal(moved, autograd.descend(params, batch))
    assert equal(ours.descend(params, batch), moved)
    assert equal(ours.pull_back(params, batch, params), autograd.pull_back(params, batch, params))


def test_a_batch_of_no_examples_has_no_mean_by_hand_either():
    """As cross-entropy has it."""
    loss, params, _ = model_problem("mlp")
    batch = Batch(torch.empty(0, *SHAPES["mlp"], dtype=torch.float64), torch.empty(0, dtype=torch.int64))

    value, _ = dense_steps(loss, ALPHA).value_and_gradient(params, batch)

    assert value.isnan()


def test_values_of_another_shape_than_the_outputs_are_broadcast_as_ever():
    """Targets [B] against outputs [B, 1] are B x B differences in PyTorch, whatever one thinks of that."""
    loss, params = dense_problem(nn.Tanh, [3, 2, 1], [True, True], "regression")
    plain = noise(loss, 5)
    batch = replace(plain, targets=plain.targets.flatten())

    value, _ = dense_steps(loss, ALPHA).value_and_gradient(params, batch)

    assert float(value) == pytest.approx(float(loss(params, batch)), rel=1e-12)


def test_parameters_that_are_not_the_models_are_refused_as_by_autograd():
    """Too few are missed by name, and one too many is not used."""
    loss, params, shape = model_problem("mlp")
    batch, steps = random_batches(1, shape, coupled=True).outer, dense_steps(loss, ALPHA)
    few = {name: tensor for name, tensor in params.items() if name != "1.bias"}

    with pytest.raises(KeyError, match=r"1\.bias"):
        steps.descend(few, batch)
    with pytest.raises(RuntimeError, match="to not have been used"):
        steps.descend({**params, "another": params["1.bias"]}, batch)


def test_results_follow_the_order_of_the_parameters():
    """Sums over all tensors, such as norms, then do not depend on who computed them."""
    loss, params, shape = model_problem("mlp")
    batch, backwards = random_batches(1, shape, coupled=True).outer, dict(reversed(params.items()))
    steps = dense_steps(loss, ALPHA)

    results = [steps.value_and_gradient(backwards, batch)[1], steps.descend(backwards, batch)]
    results += [steps.linearize(backwards, batch)[0], steps.pull_back(backwards, batch, backwards)]

    assert all(list(found) == list(backwards) for found in results)


def test_results_are_new_tensors_that_no_later_call_changes():
    """Neither point, batch and direction nor earlier results are written to."""
    loss, params, shape = model_problem("mlp")
    first, second, _ = (random_batches(3, shape, coupled=True)).inner
    steps, direction = dense_steps(loss, ALPHA), {name: tensor.sin() for name, tensor in params.items()}
    moved, pull_back = steps.linearize(params, first)
    results = [moved, pull_back(direction), steps.value_and_gradient(params, first)[1], steps.descend(params, first)]
    given = [params, direction, {"inputs": first.inputs, "targets": first.targets}]
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in (*results, *given)]

    steps.pull_back(moved, second, direction)
    steps.value_and_gradient(steps.linearize(moved, second)[0], second)
    again = pull_back(direction)

    assert all(map(equal, (*results, *given), before))
    assert equal(again, results[1])
    owned = [tensor.untyped_storage().data_ptr() for each in (*results, *given) for tensor in each.values()]
    assert len(set(owned)) == len(owned)
    assert not any(tensor.requires_grad for each in results for tensor in each.values())


def test_parameters_that_require_gradients_leave_no_graph():
    """As a model's own parameters do."""
    model = mlp()
    loss, batch = make_loss(model, TASK), random_batches(1, SHAPES["mlp"], coupled=True).outer

    moved, pull_back = dense_steps(loss, ALPHA).linearize(dict(model.named_parameters()), batch)

    assert not any(tensor.requires_grad for tensor in (*moved.values(), *pull_back(moved).values()))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_tape_tells_the_bytes_that_it_keeps(kind):
    """Sums and deltas of all layers; values, slopes and products of the hidden ones; and the classes' probabilities."""
    widths, size = [9, 7, 5, 4], 6
    loss, params = dense_problem(nn.Tanh, widths, [True] * 3, kind)

    _, pull_back = dense_steps(loss, ALPHA).linearize(params, noise(loss, size))

    each_example = 2 * sum(widths[1:]) + 3 * sum(widths[1:-1]) + (widths[-1] if kind == "classification" else 0)
    assert pull_back.num_bytes() == 8 * size * each_example


@pytest.mark.parametrize(("tapes_that_fit", "kept"), [(3.5, 3), (1.5, 1), (0.1, 1), (100, 6)])
def test_auto_keeps_the_last_tapes_that_fit_in_the_budget(tapes_that_fit, kept, monkeypatch):
    """Memory is bounded for tapes as for graphs."""
    loss, params, shape = model_problem("mlp")
    batches, steps = random_batches(6, shape, coupled=True).inner, dense_steps(loss, ALPHA)
    size = steps.linearize(params, batches[0])[1].num_bytes()
    monkeypatch.setattr("nufed.common.steps.kept_graphs.GRAPH_BUDGET", int(tapes_that_fit * size))
    graphs = KeptGraphs("auto")

    pull_backs = [graphs.step(steps, params, batch, 5 - number)[1] for number, batch in enumerate(batches)]

    assert [pull_back is not None for pull_back in pull_backs] == [False] * (6 - kept) + [True] * kept


def test_threads_compute_at_the_same_time_and_each_its_own():
    """Another thread's forward pass through a shared module holds nobody up."""
    loss, params, shape = model_problem("mlp")
    batch, steps = random_batches(1, shape, coupled=True).outer, dense_steps(loss, ALPHA)
    points = [{name: tensor * scale for name, tensor in params.items()} for scale in (0.5, 1.0, 2.0, 4.0)]
    alone = [steps.pull_back(point, batch, point) for point in points]
    taken, done = threading.Event(), threading.Event()

    def hold_the_module():
        with GLOBAL_STATE:
            taken.set()
            assert done.wait(timeout=60)

    with ThreadPoolExecutor(5) as pool:
        holder = pool.submit(hold_the_module)
        assert taken.wait(timeout=60)
        turns = [pool.submit(steps.pull_back, points[i % 4], batch, points[i % 4]) for i in range(400)]
        found = [turn.result(timeout=50) for turn in turns]
        done.set()
        holder.result()

    assert all(equal(each, alone[i % 4]) for i, each in enumerate(found))
