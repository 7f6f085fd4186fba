"""Compiled inner steps: the same numbers, shared code, and a way back where there is no compiler."""

import warnings

import pytest
import torch
from torch import nn

from nufed.common.config import MethodConfig
from nufed.common.examples import Batch, TaskInfo
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.params import model_params
from nufed.common.steps import compiled_steps
from nufed.common.steps.cautions import Caution, caution
from nufed.common.task import make_loss
from tests.common.meta.problems import mlp, random_batches, relative_difference

SHAPE, TASK = (1, 3, 3), TaskInfo("classification", (1, 3, 3), 4)


@pytest.fixture(autouse=True)
def _nothing_compiled_nor_said_before():
    compiled_steps._compiled.cache_clear()
    caution.cache_clear()
    yield
    compiled_steps._compiled.cache_clear()
    caution.cache_clear()


@pytest.fixture
def compilations(monkeypatch):
    """Take traced graphs as they are for compiled ones, and list them."""
    graphs = []

    def as_traced(graph, inputs):
        graphs.append(graph)
        with torch.no_grad():
            return torch.no_grad()(graph), list(graph(*inputs))

    monkeypatch.setattr(compiled_steps, "_compile", as_traced)
    return graphs


def meta_gradient(model, option, estimator, nu=3, **options):
    method = MethodConfig(num_inner_steps=nu, inner_lr=0.3, estimator=estimator, compile=option, **options)
    return ESTIMATORS[estimator].build(make_loss(model, TASK), method)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_has_the_numbers_of_eager_steps(estimator, coupled, compilations):
    model, batches = mlp(), random_batches(3, SHAPE, coupled=coupled)
    options = {"hessian_batches": "inner" if coupled else "fresh"}

    compiled = meta_gradient(model, "on", estimator, **options)(model_params(model), batches)

    eager = meta_gradient(model, "off", estimator, **options)(model_params(model), batches)
    assert compilations
    assert relative_difference(compiled.gradient, eager.gradient) < 1e-9
    assert torch.allclose(compiled.outer_loss, eager.outer_loss, rtol=1e-12)
    assert compiled.costs == eager.costs


def test_one_compilation_serves_all_numbers_of_inner_steps_and_all_losses_of_a_model(compilations):
    model = mlp()

    for nu in (1, 2, 5):
        meta_gradient(model, "on", "unrolled", nu)(model_params(model), random_batches(nu, SHAPE, coupled=True))

    assert len(compilations) == 3  # the step, its derivative, the outer gradient


def test_another_shape_of_batch_is_compiled_for_itself(compilations):
    model = mlp()
    run = meta_gradient(model, "on", "first-order", 1)

    for size in (6, 7, 6):
        run(model_params(model), random_batches(1, SHAPE, coupled=True, size=size))

    assert len(compilations) == 4


def test_parameters_and_batches_of_other_strides_are_taken(compilations):
    model, batches = mlp(), random_batches(1, SHAPE, coupled=True)
    targets = batches.outer.targets
    strided = {name: tensor.t().contiguous().t() for name, tensor in model_params(model).items() if tensor.dim() == 2}
    params = {**model_params(model), **strided}
    outer = Batch(batches.outer.inputs[:1].expand(6, 1, 3, 3), targets)

    compiled, eager = (
        meta_gradient(model, option, "unrolled", 1)(params, MetaBatches(batches.inner, outer, batches.inner))
        for option in ("on", "off")
    )

    assert relative_difference(compiled.gradient, eager.gradient) < 1e-10


def test_without_a_compiler_the_run_goes_on_eagerly_after_one_warning(monkeypatch):
    def no_compiler(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled_steps, "_compile", no_compiler)
    model, batches = mlp(), random_batches(2, SHAPE, coupled=False)

    with pytest.warns(Caution, match="No working C") as said:
        compiled = meta_gradient(model, "on", "exact", 2)(model_params(model), batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = meta_gradient(model, "on", "exact", 2)(model_params(model), batches)

    eager = meta_gradient(model, "off", "exact", 2)(model_params(model), batches)
    assert len(said) == 1
    for estimate in (compiled, again):
        assert all(torch.equal(estimate.gradient[name], eager.gradient[name]) for name in eager.gradient)


def test_dropout_is_computed_eagerly_with_the_batchs_masks(compilations):
    model = mlp(dropout=0.4).train()
    plain = random_batches(1, SHAPE, coupled=True)
    inner = tuple(Batch(batch.inputs, batch.targets, 7) for batch in plain.inner)
    batches = MetaBatches(inner, Batch(plain.outer.inputs, plain.outer.targets, 99), inner)

    with pytest.warns(Caution, match="dropout"):
        compiled = meta_gradient(model, "on", "unrolled", 1)(model_params(model), batches)

    eager = meta_gradient(model, "off", "unrolled", 1)(model_params(model), batches)
    assert not compilations
    assert all(torch.equal(compiled.gradient[name], eager.gradient[name]) for name in eager.gradient)


def test_a_model_whose_path_depends_on_its_values_goes_on_eagerly(compilations):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(9, 4).double()

        def forward(self, inputs):
            outputs = self.layer(inputs.flatten(1))
            return outputs if outputs.sum() > 0 else outputs.square()

    model = Branching()

    with pytest.warns(Caution, match="cannot be compiled"):
        compiled = meta_gradient(model, "on", "exact", 1)(model_params(model), random_batches(1, SHAPE, coupled=True))

    eager = meta_gradient(model, "off", "exact", 1)(model_params(model), random_batches(1, SHAPE, coupled=True))
    assert all(torch.equal(compiled.gradient[name], eager.gradient[name]) for name in eager.gradient)


def test_a_loss_that_is_not_a_models_is_computed_eagerly():
    with pytest.warns(Caution, match="make_loss"):
        steps = compiled_steps.compiled_steps(lambda params, batch: params["w"].sum(), 0.1)

    assert steps.descend({"w": torch.ones(2)}, Batch(torch.ones(1), torch.ones(1)))["w"].tolist() == pytest.approx(
        [0.9, 0.9]
    )


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_compiles_the_step_and_agrees_in_float64():
    model, batches = mlp(), random_batches(3, SHAPE, coupled=True)

    compiled = meta_gradient(model, "on", "unrolled")(model_params(model), batches)

    eager = meta_gradient(model, "off", "unrolled")(model_params(model), batches)
    assert relative_difference(compiled.gradient, eager.gradient) < 1e-12
    assert compiled_steps._compiled.cache_info().currsize == 2  # linearize and the outer gradient, neither given up
