"""`nufed.meta_gradient` against autograd through the unrolled loop, in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import nufed

ALPHA = 0.1


@pytest.fixture
def problem():
    """A net, its loss, and ν + 1 = 4 batches of a type of our own."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    batches = [{"x": part, "y": part[:, :2].tanh()} for part in inputs]

    def loss_fn(params, batch):
        return (functional_call(model, dict(params), (batch["x"],)) - batch["y"]).square().mean()

    return model, loss_fn, batches


def unrolled_by_autograd(model, loss_fn, batches):
    start = {name: tensor.detach().requires_grad_() for name, tensor in model.named_parameters()}
    point = start
    for batch in batches[:-1]:
        gradients = torch.autograd.grad(loss_fn(point, batch), list(point.values()), create_graph=True)
        point = {name: tensor - ALPHA * g for (name, tensor), g in zip(point.items(), gradients, strict=True)}
    loss = loss_fn(point, batches[-1])
    return loss.item(), dict(zip(start, torch.autograd.grad(loss, list(start.values())), strict=True))


@pytest.mark.parametrize(
    ("estimator", "options", "rtol"),
    [
        ("exact", {}, 1e-10),
        ("exact", {"memory": "fast"}, 1e-10),
        ("unrolled", {"memory": "low"}, 1e-10),
        ("hessian-free", {}, 1e-6),
        ("hessian-free", {"hessian_free_difference": "forward", "hessian_free_delta": 1e-7}, 1e-4),
    ],
)
def test_it_is_the_gradient_through_the_unrolled_loop(problem, estimator, options, rtol):
    loss, expected = unrolled_by_autograd(*problem)
    model, loss_fn, batches = problem

    estimate = nufed.meta_gradient(loss_fn, model, batches, inner_lr=ALPHA, estimator=estimator, **options)

    assert estimate.outer_loss.item() == pytest.approx(loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(estimate.gradient[name], gradient, rtol=rtol, atol=rtol)


def test_first_order_is_another_gradient(problem):
    _, expected = unrolled_by_autograd(*problem)
    model, loss_fn, batches = problem

    estimate = nufed.meta_gradient(loss_fn, model, batches, inner_lr=ALPHA, estimator="first-order")

    assert not torch.allclose(estimate.gradient["0.weight"], expected["0.weight"], rtol=1e-2)


def test_hessian_batches_of_their_own_are_used(problem):
    model, loss_fn, (first, second, outer, hessian) = problem
    own = nufed.MetaBatches((first, second), outer, (hessian, hessian))

    fresh = nufed.meta_gradient(loss_fn, model, own, inner_lr=ALPHA)
    coupled = nufed.meta_gradient(loss_fn, model, [first, second, outer], inner_lr=ALPHA)

    assert fresh.outer_loss == coupled.outer_loss
    assert not torch.allclose(fresh.gradient["0.weight"], coupled.gradient["0.weight"], rtol=1e-3)


def loss_of_w(params, batch):
    return params["w"].square().sum()


W = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    ("loss_fn", "params", "batches", "options", "kind", "said"),
    [
        (loss_of_w, W, [0], {"estimator": "exakt"}, nufed.ConfigError, "Did you mean 'exact'"),
        (loss_of_w, W, [0], {"inner_lr": -1.0}, nufed.ConfigError, "inner_lr=-1.0"),
        (loss_of_w, W, [], {}, nufed.ConfigError, "ν . 1 batches"),
        (loss_of_w, W, [0], {"batch_size": 3}, nufed.ConfigError, "Unknown option 'batch_size'"),
        (loss_of_w, W, nufed.MetaBatches((0,), 0, ()), {}, nufed.ConfigError, "a Hessian batch for each of 1"),
        (loss_of_w, W, 3, {}, nufed.ConfigError, "batches expects a list, but got int"),
        (loss_of_w, torch.ones(2), [0], {}, nufed.ModelError, "module or tensors by name, but got Tensor"),
        (None, W, [0], {}, nufed.ModelError, "loss_fn to be a function of .params, batch., but got None"),
        (loss_of_w, {}, [0], {}, nufed.ModelError, "params is empty"),
        (loss_of_w, {"w": torch.ones(2, dtype=torch.int64)}, [0], {}, nufed.ModelError, "parameter 'w' is torch.int64"),
        (loss_of_w, {**W, "v": torch.ones(1)}, [0], {}, nufed.ModelError, "does not depend on 'v'"),
        (lambda params, batch: params["w"], W, [0], {}, nufed.ModelError, r"got a tensor of shape \[2\]"),
        (lambda params, batch: 3.0, W, [0], {}, nufed.ModelError, "got float"),
        (lambda params, batch: torch.zeros(()), W, [0], {}, nufed.ModelError, "without a gradient"),
    ],
)
def test_what_cannot_be_differentiated_is_said(loss_fn, params, batches, options, kind, said):
    with pytest.raises(kind, match=said):
        nufed.meta_gradient(loss_fn, params, batches, **{"inner_lr": 0.1, **options})
