"""Every estimator on every task and kind of model, against autograd that knows nothing of NuFed's losses."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nufed.common.config import MethodConfig
from nufed.common.examples import Examples
from nufed.common.meta.cohort import cohort_update
from nufed.common.meta.cohort_batches import Trainee
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.meta.hessian_free import default_delta
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.models import examine
from nufed.common.params import model_params, norm
from nufed.common.steps.cohort_dense import DenseKernel
from nufed.common.steps.cohort_module import ModuleKernel
from nufed.common.steps.dense_layers import dense_layers
from nufed.common.task import make_loss
from tests import oracles
from tests.common.meta.problems import relative_difference
from tests.common.tasks.problems import MODEL_PROBLEMS, PROBLEMS, TASK_PROBLEMS

ALPHA = 0.1


def called(model, params, inputs):
    """Return the outputs by torch's own way of exchanging parameters."""
    if isinstance(inputs, dict):
        outputs = torch.func.functional_call(model, params, (), inputs)
    else:
        outputs = torch.func.functional_call(model, params, inputs)
    return getattr(outputs, "logits", outputs)


def reference_loss(problem, model):
    """Return the weighted mean of the reference's losses, attention computed so that it can be differentiated twice."""

    def loss(params, batch):
        with sdpa_kernel(SDPBackend.MATH):
            losses = problem.reference(called(model, params, batch.inputs), batch.targets)
        return losses.mean() if batch.weights is None else (losses * batch.weights).mean()

    return loss


def gradient_of(loss, params, batch):
    at = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in params.items()}
    found = torch.autograd.grad(loss(at, batch), list(at.values()), materialize_grads=True)
    return dict(zip(at, found, strict=True))


def moved(params, direction, size):
    return {name: tensor + size * direction[name] for name, tensor in params.items()}


def by_differences(loss, params, batches):
    """Return (I - αH(w_0)) … ∇f(w_ν), every H v a central difference of gradients at a distance of δ."""
    path = [params]
    for batch in batches.inner:
        path.append(moved(path[-1], gradient_of(loss, path[-1], batch), -ALPHA))
    direction = gradient_of(loss, path.pop(), batches.outer)
    for point, batch in reversed(list(zip(path, batches.inner, strict=True))):
        step = default_delta(torch.float64) / norm(direction)
        ahead, behind = (gradient_of(loss, moved(point, direction, sign * step), batch) for sign in (1, -1))
        product = {name: (ahead[name] - behind[name]) / (2 * step) for name in ahead}
        direction = moved(direction, product, -ALPHA)
    return direction


def drawn(problem, nu, *, weighted):
    sets = [problem.draw(5, seed) for seed in range(nu + 1)]
    if weighted:
        sets = [replace(each, weights=torch.linspace(0.2, 1.8, 5, dtype=torch.float64)) for each in sets]
    outer, *inner = [each.as_batch() for each in sets]
    return MetaBatches(tuple(inner), outer, tuple(inner))


CASES = [(name, nu, False) for name in PROBLEMS for nu in (1, 3)] + [(name, 3, True) for name in TASK_PROBLEMS]


@pytest.mark.parametrize(("name", "nu", "weighted"), CASES)
def test_every_estimator_equals_autograd_on_every_task_and_kind_of_model(name, nu, weighted):
    problem = PROBLEMS[name]
    model, batches = problem.build(), drawn(problem, nu, weighted=weighted)
    params = model_params(model)
    traits = examine(model, problem.info, problem.draw(5), twice=True)
    loss, reference = make_loss(model, problem.info, traits), reference_loss(problem, model)
    adapted = params
    for batch in batches.inner:
        adapted = moved(adapted, gradient_of(reference, adapted, batch), -ALPHA)
    second_order = oracles.unrolled_meta_gradient(reference, params, batches.inner, batches.outer, ALPHA)
    first_order = gradient_of(reference, adapted, batches.outer)
    expected = {
        "exact": second_order,
        "unrolled": second_order,
        "first-order": first_order,
        "hessian-free": by_differences(reference, params, batches),
    }

    found = {
        name: estimator.build(loss, MethodConfig(num_inner_steps=nu, inner_lr=ALPHA))(params, batches)
        for name, estimator in ESTIMATORS.items()
    }

    for estimator, estimate in found.items():
        assert relative_difference(estimate.gradient, expected[estimator]) < 1e-10, estimator
        assert float(estimate.outer_loss) == pytest.approx(float(reference(adapted, batches.outer)), rel=1e-10)
    assert relative_difference(first_order, second_order) > 1e-6


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.is_mapped])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("estimator", ["exact", "hessian-free"])
def test_several_clients_at_once_end_where_each_would_alone(name, weighted, estimator):
    problem = PROBLEMS[name]
    model = problem.build()
    loss, params = make_loss(model, problem.info), model_params(model)
    method = MethodConfig(num_inner_steps=2, inner_lr=ALPHA, num_local_steps=2, batch_size=4, estimator=estimator)

    def support(seed):
        weights = torch.linspace(0.5, 1.5, 7, dtype=torch.float64) if weighted else None
        return Examples(problem.draw(7, seed).inputs, problem.draw(7, seed).targets, weights)

    clients = [Trainee(params, support(seed), Stream(7, f"client-{seed}", 1)) for seed in range(3)]
    layers = dense_layers(model, problem.info)
    kernels = [ModuleKernel(loss)] + ([DenseKernel(layers, problem.info)] if layers else [])

    alone = [local_update(loss, each.params, each.support, method, each.stream) for each in clients]

    for kernel in kernels:
        for ours, theirs in zip(cohort_update(kernel, clients, method), alone, strict=True):
            assert relative_difference(ours.params, theirs.params) < 1e-9
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)


def test_plain_classes_and_squared_errors_alone_have_kernels_by_hand():
    by_hand = {name for name, problem in PROBLEMS.items() if dense_layers(problem.build(), problem.info)}

    assert by_hand == {"classification", "regression"}
    assert not by_hand & MODEL_PROBLEMS.keys()
