"""Frozen parameters are neither differentiated nor sent, and both sides have the same ones."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nufed.common.config import MethodConfig, ModelConfig
from nufed.common.errors import ConfigError, ModelError
from nufed.common.examples import TaskInfo
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.meta.parts import check_head
from nufed.common.models import build_model, check_model, examine
from nufed.common.models.frozen import (
    check_frozen,
    freeze_all_but,
    frozen_hash,
    in_training_mode,
    load_frozen,
)
from nufed.common.params import add_scaled, model_params
from nufed.common.settings import exported
from nufed.common.steps.cohort_kernel import CohortBatch, stack_params
from nufed.common.steps.cohort_module import ModuleKernel
from nufed.common.steps.dense_layers import dense_layers
from nufed.common.steps.dense_steps import dense_steps
from nufed.common.steps.differentiate import gradient
from nufed.common.task import make_loss
from tests import oracles
from tests.common.meta.problems import cnn, mlp, random_batches, random_examples, relative_difference

TASK = TaskInfo("classification", (1, 3, 3), 4)
MODEL = mlp()


def with_frozen_body(dtype=torch.float64):
    model = copy.deepcopy(MODEL).to(dtype)
    model[1].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


def with_batch_norm():
    """A backbone with running statistics, frozen, below a head."""
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU()).requires_grad_(False)
    backbone[1].running_mean += 0.3
    return nn.Sequential(backbone, nn.Flatten(), nn.Linear(4, 4))


@pytest.mark.parametrize("nu", [0, 1, 3])
@pytest.mark.parametrize("estimator", ["exact", "unrolled", "hessian-free"])
def test_estimators_give_the_gradient_of_the_trained_part_alone(estimator, nu):
    model = with_frozen_body()
    loss, batches = make_loss(model, TASK), random_batches(nu, (1, 3, 3), coupled=True)
    method = MethodConfig(num_inner_steps=nu, inner_lr=0.3, estimator=estimator)

    found = ESTIMATORS[estimator].build(loss, method)(model_params(model), batches).gradient

    oracle = oracles.unrolled_meta_gradient(loss, model_params(model), batches.inner, batches.outer, 0.3)
    assert list(found) == ["4.weight", "6.weight", "6.bias"]
    assert relative_difference(found, oracle) < (1e-5 if estimator == "hessian-free" else 1e-10)


def test_a_frozen_part_is_read_in_the_precision_of_the_parameters():
    """So that hessian-free-dtype=float64 computes all of a model of float32 in float64."""
    model = with_frozen_body(torch.float32)
    params = {name: tensor.double() for name, tensor in model_params(model).items()}
    batch = random_examples(6, (1, 3, 3)).as_batch()

    found = make_loss(model, TASK)(params, batch)

    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float(make_loss(model.double(), TASK)(params, batch)), rel=1e-14)


def test_hand_written_kernels_are_for_models_without_a_frozen_part():
    """They have no place for it."""
    model = with_frozen_body()

    assert dense_layers(model, TASK) is None
    assert dense_steps(make_loss(model, TASK), 0.1) is None
    assert dense_layers(mlp(), TASK) is not None


def test_a_frozen_part_is_shared_by_the_clients_of_a_cohort():
    model = with_frozen_body()
    loss, params = make_loss(model, TASK), model_params(model)
    points = [params, add_scaled(params, params, 0.1)]
    batches = [random_examples(5, (1, 3, 3), seed).as_batch() for seed in range(2)]
    inputs, targets = (torch.stack([getattr(each, part) for each in batches]) for part in ("inputs", "targets"))

    tape = ModuleKernel(loss).tape(
        stack_params(points), CohortBatch(inputs, targets, torch.full((2, 5), 0.2)), curvature=True
    )

    for number, (point, batch) in enumerate(zip(points, batches, strict=True)):
        own = {name: tensor[number] for name, tensor in tape.gradient().items()}
        assert relative_difference(own, gradient(loss, point, batch)) < 1e-12


def test_names_of_what_is_trained_are_patterns():
    model = mlp()

    freeze_all_but(model, "6.*, 1.w*")

    assert list(model_params(model)) == ["1.weight", "6.weight", "6.bias"]
    with pytest.raises(ConfigError, match=r"no parameter of Sequential fits 'head\.\*'. It has: 1.weight"):
        freeze_all_but(model, "6.*,head.*")


@pytest.mark.parametrize("trainable", ["", "2.weight"])
def test_running_statistics_of_a_frozen_layer_stay_as_they_are(trainable):
    model = with_batch_norm()
    if trainable:
        freeze_all_but(model, trainable)
    before = model[0][1].running_mean.clone()
    in_training_mode(model)

    check_model(model, TASK)
    examine(model, TASK, random_examples(4, (1, 3, 3), dtype=torch.float32), twice=True)

    assert model.training
    assert torch.equal(model[0][1].running_mean, before)
    freeze_all_but(model, "*")
    with pytest.raises(ModelError, match=r"without running statistics, but '0.1' is a BatchNorm2d .* or freeze it"):
        check_model(in_training_mode(model), TASK)


def test_a_model_of_which_nothing_is_trained_is_refused():
    with pytest.raises(ModelError, match="parameters to train, but all 6 of Sequential are frozen"):
        check_model(mlp().float().requires_grad_(False), TASK)


@pytest.mark.parametrize("method", [{"adapted_part": "head"}, {"trained_part": "body"}])
def test_a_method_that_treats_the_head_otherwise_needs_a_trained_one(method):
    model = mlp()
    check_head(model, MethodConfig(**method))
    freeze_all_but(model, "1.*")

    with pytest.raises(ModelError, match=r"the model's last layer, '6.weight', is frozen; name it in model.trainable"):
        check_head(model, MethodConfig(**method))
    check_head(model, MethodConfig())


def test_the_hash_is_of_the_frozen_part_alone():
    one, other = with_frozen_body(), with_frozen_body()
    with torch.no_grad():
        other[6].weight += 1

    assert frozen_hash(one) == frozen_hash(other) != ""
    assert frozen_hash(mlp()) == ""

    with torch.no_grad():
        other[4].bias[0] = torch.nextafter(other[4].bias[0], torch.tensor(9.0, dtype=torch.float64))
    assert frozen_hash(one) != frozen_hash(other)
    one.register_buffer("scale", torch.ones(2), persistent=False)
    assert frozen_hash(one) == frozen_hash(with_frozen_body())  # computed anew by each side
    one.register_buffer("kept", torch.ones(2))
    assert frozen_hash(one) != frozen_hash(with_frozen_body())


def test_a_difference_is_told_with_the_way_out_and_may_be_sent():
    with pytest.raises(
        ModelError, match=r"\(BLAKE2b bb\), but the one built here is another \(none\).*--frozen"
    ) as said:
        check_frozen("", "bb", "the server's model")

    assert said.value.sendable


def test_a_frozen_part_is_read_from_a_file_on_each_machine(tmp_path):
    trained = {name: tensor + 1 for name, tensor in cnn().float().state_dict().items()}
    save_file({**trained, "of another head": torch.ones(3)}, tmp_path / "trained.safetensors")
    task = TaskInfo("classification", (1, 8, 8), 4)
    config = ModelConfig(name="cnn", trainable="*.bias")
    seeded = build_model(config, task, seed=0)
    save_file({name: tensor + 1 for name, tensor in seeded.state_dict().items()}, tmp_path / "all.safetensors")

    with exported(frozen=tmp_path / "all.safetensors"):
        model = build_model(config, task, seed=0)

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, seeded.state_dict()[name] + (0 if name.endswith("bias") else 1))
    with exported(frozen=tmp_path / "trained.safetensors"), pytest.raises(ModelError, match="is missing"):
        build_model(config, task, seed=0)
    with pytest.raises(ModelError, match="every parameter is trained"):
        load_frozen(mlp(), tmp_path / "all.safetensors")
