"""Several clients trained as one batched computation end where each of them alone would."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Batch, Examples, TaskInfo
from nufed.common.meta.cohort import cohort_update, stacked_update
from nufed.common.meta.cohort_batches import Trainee, batch_sizes
from nufed.common.meta.cohort_curves import products_pay
from nufed.common.meta.estimators import ESTIMATORS, Estimator
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.objective import initial_params
from nufed.common.params import add_scaled, clipped, model_params, norm
from nufed.common.rng import seeded_torch
from nufed.common.steps.activations import ACTIVATION_DERIVATIVES, find_activation
from nufed.common.steps.cohort_dense import DenseKernel
from nufed.common.steps.cohort_kernel import clipped_each
from nufed.common.steps.cohort_module import ModuleKernel, maps_rightly
from nufed.common.steps.dense_layers import dense_layers
from nufed.common.task import make_loss
from tests.common.meta.problems import CLASSES, SHAPES, cnn, mlp, random_examples, relative_difference

TASK = TaskInfo("classification", SHAPES["mlp"], CLASSES)
METHOD = MethodConfig(
    num_inner_steps=2, inner_lr=0.2, local_lr=0.3, num_local_steps=3, batch_size=6, outer_batch_size=5
)
HEAD, LEARNED = {"adapted_part": "head"}, {"step_sizes": "learned"}
OTHER_STEPS = [
    {**HEAD, "num_inner_steps": 3},
    {**HEAD, "estimator": "first-order", "max_grad_norm": 0.3},
    {**HEAD, "estimator": "unrolled", "inner_schedule": "linear"},
    {**HEAD, "head": "1,4.bias"},
    {**LEARNED, "num_inner_steps": 3},
    {**LEARNED, "estimator": "first-order", "max_grad_norm": 0.3},
    {**LEARNED, "estimator": "unrolled", "proximal_strength": 0.5},
    {"step_sizes": "observed", "num_inner_steps": 0},
    {"trained_part": "body", "proximal_strength": 0.5, "local_optimizer": "momentum"},
]
SIZES = (4, 9, 13)
BATCHED = [name for name, estimator in ESTIMATORS.items() if estimator.of_steps]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def trainees(params, shape=SHAPES["mlp"], sizes=SIZES, dtype=torch.float64):
    """Return clients of different sizes; the first is smaller than a batch, so it draws with replacement."""
    return [
        Trainee(params, random_examples(size, shape, seed, dtype), Stream(7, f"client-{seed:03d}", 4))
        for seed, size in enumerate(sizes)
    ]


def alone(loss, clients, method):
    """Return each client's own update by autograd, which takes every loss that is not known to be a model's."""

    def unknown(params, batch):
        return loss(params, batch)

    return [local_update(unknown, each.params, each.support, method, each.stream) for each in clients]


def assert_same_updates(together, one_by_one, tolerance):
    assert len(together) == len(one_by_one)
    for ours, expected in zip(together, one_by_one, strict=True):
        assert list(ours.params) == list(expected.params)
        assert relative_difference(ours.params, expected.params) < tolerance
        assert ours.loss == pytest.approx(expected.loss, rel=tolerance)
        assert ours.growth == pytest.approx(expected.growth, rel=10 * tolerance)
        assert ours.costs == expected.costs
        assert ours.with_replacement == expected.with_replacement


def dense(model, task=TASK):
    return DenseKernel(dense_layers(model, task), task)


@pytest.mark.parametrize("estimator", BATCHED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_dense_kernel_trains_as_each_client_alone_would(estimator, dtype):
    """All estimators, clients of unequal size, in both precisions."""
    model = mlp(nn.ELU).to(dtype)
    clients = trainees(model_params(model), dtype=dtype)
    method = METHOD.model_copy(update={"estimator": estimator})

    together = cohort_update(dense(model), clients, method)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, method), TOLERANCE[dtype])


def test_hessian_free_in_float64_serves_float32_models():
    """Differences of gradients are taken in float64, and the result is rounded as for one client."""
    model = mlp(nn.ELU).float()
    clients = trainees(model_params(model), dtype=torch.float32)
    options = {"estimator": "hessian-free", "hessian_free_dtype": "float64", "hessian_free_displacement": "relative"}
    method = METHOD.model_copy(update=options)

    together = cohort_update(dense(model), clients, method)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, method), 1e-6)
    assert all(tensor.dtype == torch.float32 for tensor in together[0].params.values())


@pytest.mark.parametrize("activation", ACTIVATION_DERIVATIVES)
def test_every_activation_has_its_first_and_second_derivative(activation):
    """The hand-written products are those of double backward, for each activation that the kernel knows."""
    model = mlp(activation)
    clients = trainees(model_params(model))

    together = cohort_update(dense(model), clients, METHOD)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, METHOD), 1e-12)


@pytest.mark.parametrize("activation", ACTIVATION_DERIVATIVES)
def test_activations_are_torchs_own(activation):
    """Values and derivatives are autograd's, far from 0 and near it."""
    known, module = find_activation(activation()), activation()
    z = torch.linspace(-30, 30, 1201, dtype=torch.float64).add(1e-3).requires_grad_()

    value = known.value(z.detach())
    slope = known.slope(z.detach(), value)
    bend = known.bend(z.detach(), value, slope) if known.bend else torch.zeros_like(z)

    expected = module(z)
    (first,) = torch.autograd.grad(expected.sum(), z, create_graph=True)
    second = torch.zeros_like(z) if known.bend is None else torch.autograd.grad(first.sum(), z)[0]
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(slope, first.detach(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(bend, second, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("changes", [*({"estimator": name} for name in BATCHED), *OTHER_STEPS], ids=str)
@pytest.mark.parametrize(("build", "name"), [(mlp, "mlp"), (cnn, "cnn")])
def test_the_kernel_of_any_module_trains_as_each_client_alone_would(changes, build, name):
    """The mapped loss serves convolutions, all estimators, and inner steps of all kinds."""
    model, task = build(), TaskInfo("classification", SHAPES[name], CLASSES)
    method = METHOD.model_copy(update=changes)
    clients = trainees(initial_params(model_params(model), method), SHAPES[name])
    loss = make_loss(model, task)

    together = cohort_update(ModuleKernel(loss), clients, method)

    assert_same_updates(together, alone(loss, clients, method), 1e-10)


@pytest.mark.parametrize("estimator", BATCHED)
@pytest.mark.parametrize("by_hand", [True, False])
def test_nothing_is_read_from_a_device_on_the_way(estimator, by_hand):
    """Each number read would wait for all that was asked of a GPU; tensors without content can be computed with."""
    model = mlp(nn.ELU).to("meta")
    clients = [
        replace(each, params=model_params(model), support=each.support.to("meta"))
        for each in trainees(model_params(mlp(nn.ELU)))
    ]
    method = METHOD.model_copy(update={"estimator": estimator, "max_grad_norm": 1.0})

    update = stacked_update(dense(model) if by_hand else ModuleKernel(make_loss(model, TASK)), clients, method)

    assert {tensor.device.type for tensor in (*update.params.values(), update.losses, update.growth)} == {"meta"}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_inner_steps": 0},
        {"num_inner_steps": 5, "num_local_steps": 1},
        {"batch_size": 0},
        {"batch_size": 0, "outer_batch_size": 0},
        {"batch_size": 0, "outer_batch_size": 0, "hessian_batch_size": 3},
        {"hessian_batches": "inner"},
        {"max_grad_norm": 0.3, "num_local_steps": 4},
        {"hessian_batch_size": 11, "outer_holdout_fraction": 0.4},
        {"estimator": "hessian-free", "hessian_free_displacement": "absolute", "hessian_free_delta": 1e-3},
        {"estimator": "hessian-free", "hessian_free_displacement": "relative"},
        {"estimator": "hessian-free", "hessian_free_difference": "forward"},
        {"estimator": "hessian-free", "hessian_free_difference": "forward", "hessian_batches": "inner"},
        {"estimator": "hessian-free", "hessian_free_dtype": "float64", "hessian_batches": "inner"},
        *OTHER_STEPS,
    ],
    ids=str,
)
def test_every_way_of_drawing_batches_and_of_taking_steps_is_followed(changes):
    """Batches of all data are padded, held-out rows held out, fresh Hessian batches fresh."""
    model = mlp(nn.ELU)
    method = METHOD.model_copy(update=changes)
    clients = trainees(initial_params(model_params(model), method))

    together = cohort_update(dense(model), clients, method)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, method), 1e-10)


def test_each_client_is_held_to_the_largest_norm_by_itself():
    model, one_step = mlp(nn.ELU), METHOD.model_copy(update={"num_local_steps": 1})
    clients = trainees(model_params(model))
    free = cohort_update(dense(model), clients, one_step)
    lengths = [norm(add_scaled(update.params, clients[0].params, -1.0)) / METHOD.local_lr for update in free]
    limit = sum(lengths) / len(lengths)

    held = cohort_update(dense(model), clients, one_step.model_copy(update={"max_grad_norm": limit}))

    for update, length in zip(held, lengths, strict=True):
        now = norm(add_scaled(update.params, clients[0].params, -1.0)) / METHOD.local_lr
        assert now == pytest.approx(min(length, limit), rel=1e-9)
    assert min(lengths) < limit < max(lengths)


def test_regression_has_its_own_output_error():
    """Half the squared error summed over outputs, also through two inner steps."""
    task = TaskInfo("regression", (3,), 2)
    with seeded_torch(3):
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        data = [Examples(torch.randn(8, 3).double(), torch.randn(8, 2).double()) for _ in range(3)]
    clients = [Trainee(model_params(model), own, Stream(1, str(number), 1)) for number, own in enumerate(data)]

    together = cohort_update(dense(model, task), clients, METHOD)

    assert_same_updates(together, alone(make_loss(model, task), clients, METHOD), 1e-12)


def test_layers_may_lack_a_bias():
    """As the linear model of regression does."""
    with seeded_torch(4):
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 5, bias=False), nn.ELU(), nn.Linear(5, 4)).double()
    clients = trainees(model_params(model))

    together = cohort_update(dense(model), clients, METHOD)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, METHOD), 1e-12)


def test_clients_may_start_from_different_models():
    """Nothing assumes that the server sent one model to all."""
    model = mlp(nn.ELU)
    clients = [
        replace(each, params={name: tensor * (1 + number) for name, tensor in each.params.items()})
        for number, each in enumerate(trainees(model_params(model)))
    ]

    together = cohort_update(dense(model), clients, METHOD)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, METHOD), 1e-12)


def test_a_client_that_diverges_spoils_nobody_else():
    """NaN stays with its client."""
    model = mlp(nn.ELU)
    clients = trainees(model_params(model))
    spoiled = Examples(torch.full_like(clients[1].support.inputs, torch.nan), clients[1].support.targets)

    together = cohort_update(dense(model), [clients[0], replace(clients[1], support=spoiled), clients[2]], METHOD)

    undisturbed = cohort_update(dense(model), clients, METHOD)
    [expected] = alone(make_loss(model, TASK), [replace(clients[1], support=spoiled)], METHOD)
    assert not all(torch.isfinite(tensor).all() for tensor in together[1].params.values())
    assert together[1].growth == expected.growth
    assert_same_updates([together[0], together[2]], [undisturbed[0], undisturbed[2]], 1e-15)


def test_what_came_in_is_not_changed():
    """The server's model and the clients' examples are as before."""
    model = mlp(nn.ELU)
    clients = trainees(model_params(model))
    before = [tensor.clone() for tensor in (*clients[0].params.values(), clients[0].support.inputs)]

    cohort_update(dense(model), clients, METHOD)

    after = (*clients[0].params.values(), clients[0].support.inputs)
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))


def test_batch_sizes_say_who_can_be_batched_without_padding():
    """A batch of all data is as large as the client's data; others are alike."""
    clients = trainees(model_params(mlp()))

    fixed = {batch_sizes(each, METHOD) for each in clients}
    ragged = [batch_sizes(each, METHOD.model_copy(update={"batch_size": 0})) for each in clients]

    assert fixed == {(5, 6, 6, 6, 6)}
    assert ragged == [(5, *[size] * 4) for size in SIZES]


def test_an_estimator_that_is_computed_for_one_client_at_a_time_is_refused(monkeypatch):
    single = Estimator("one by one", uses_hessian_batches=False, step_cost=float, of_loss=lambda *_: None)
    monkeypatch.setitem(ESTIMATORS, "single", single)

    for name, reason in (("single", "one client at a time only"), ("exakt", "Did you mean 'exact'")):
        with pytest.raises(ConfigError, match=reason):
            cohort_update(dense(mlp()), trainees(model_params(mlp())), METHOD.model_copy(update={"estimator": name}))


def test_a_step_whose_growth_is_no_number_does_not_hide_the_growth_before_it():
    """One example is not a number: from the step that draws it on, so is all that is computed, for that client."""
    method = METHOD.model_copy(update={"batch_size": 1, "outer_batch_size": 1, "num_local_steps": 12})
    clients = trainees(model_params(mlp()), sizes=(30, 30))
    clients[0].support.inputs[17] = torch.nan
    model = mlp()

    together = cohort_update(DenseKernel(dense_layers(model, TASK), TASK), clients, method)

    one_by_one = [
        local_update(make_loss(model, TASK), each.params, each.support, method, each.stream) for each in clients
    ]
    assert torch.isnan(together[0].params["1.weight"]).any()
    assert together[0].growth > 0
    assert [each.growth for each in together] == pytest.approx([each.growth for each in one_by_one], rel=1e-9)


def test_clipping_leaves_a_gradient_whose_norm_is_no_number_as_it_is():
    """Its other elements are not made to look as if they had none either; a longer one beside it is scaled down."""
    broken, long = {"w": torch.tensor([torch.nan, 3.0])}, {"w": torch.tensor([3.0, 4.0])}

    each = clipped_each({"w": torch.stack([broken["w"], long["w"]])}, 1.0)["w"]

    assert clipped(broken, 1.0)["w"][1] == 3.0
    assert (each[0, 1].item(), each[1].tolist()) == (3.0, pytest.approx([0.6, 0.8]))


def test_parameters_without_dimensions_are_trained_together():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.tensor(0.7)), nn.Linear(9, CLASSES)

        def forward(self, inputs):
            return self.head(torch.tanh(self.scale * inputs.flatten(1)))

    with seeded_torch(0):
        model = Scaled().double()
    loss, method = make_loss(model, TASK), METHOD.model_copy(update={"max_grad_norm": 0.1})
    clients = trainees(model_params(model), sizes=(9, 9))

    together = cohort_update(ModuleKernel(loss), clients, method)

    assert_same_updates(together, alone(loss, clients, method), 1e-12)


def test_curves_of_clients_with_many_examples_keep_no_products_of_all_pairs():
    """Fewer multiplications, but at 20,000 examples they would take 2.4 GB."""
    layers = dense_layers(nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, CLASSES)), TASK)
    kernel = DenseKernel([replace(layers[0], shape=(80_000, 40_000)), layers[1]], TASK)

    assert products_pay(kernel, 5_000, 5_000, 10)
    assert not products_pay(kernel, 20_000, 10_000, 10)


def with_hook():
    layer = nn.Tanh()
    layer.register_full_backward_hook(lambda _, found, __: (0.5 * found[0],))
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(9, CLASSES))


def with_padding():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, CLASSES)

        def forward(self, inputs):
            return self.head(torch.tanh(self.words((inputs > 0).long().flatten(1))).mean(1))

    return Words()


@pytest.mark.parametrize(("build", "is_right"), [(cnn, True), (with_hook, False), (with_padding, False)])
def test_layers_that_lose_something_when_they_are_mapped_are_noticed(build, is_right):
    """`torch.vmap` trains the row for padding, and does not call hooks."""
    with seeded_torch(0):
        model = build().double()
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.Unflatten(1, (1, 3, 3))).double()
    model = nn.Sequential(hidden, model) if build is with_hook else model
    loss = make_loss(model, TASK)
    (trainee,) = trainees(model_params(model), SHAPES["cnn"] if build is cnn else SHAPES["mlp"], sizes=(5,))
    examples = trainee.support

    found = maps_rightly(loss, trainee.params, Batch(examples.inputs, examples.targets), curvature=True)

    assert found is is_right
