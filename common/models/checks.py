"""What a model must be so that it can be meta-trained and averaged over clients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nufed.common.errors import ModelError
from nufed.common.examples import TaskInfo
from nufed.common.input_forms import described_inputs, dummy_inputs
from nufed.common.models.agreement import near
from nufed.common.models.frozen import changing_statistics
from nufed.common.params import trained_parameters
from nufed.common.rng import seeded_generators
from nufed.common.task import call_model
from nufed.common.tasks import find_task

_NUM_DUMMY = 3


def check_parameters(model: nn.Module) -> None:
    """Refuse parameters that are complex numbers, have no values, or no size yet.

    Raises:
        ModelError: naming the first and what to do.
    """
    for name, tensor in model.named_parameters():
        if nn.parameter.is_lazy(tensor):
            owner = name.rpartition(".")[0]
            raise ModelError(
                f"expected parameters of known shapes, but {name!r} of {_place(owner)} "
                f"({type(model.get_submodule(owner)).__name__}) gets its shape from the first inputs; give the sizes, "
                "with a module that is not lazy"
            )
        if tensor.is_complex() and tensor.requires_grad:
            raise ModelError(
                f"expected parameters that are real numbers, but {name!r} is complex; keep its real and imaginary "
                "parts as a real parameter (torch.view_as_real) and join them in forward (torch.view_as_complex)"
            )
        if tensor.is_meta:
            raise ModelError(
                f"expected parameters that have values, but {name!r} is on the device 'meta'; build the model on the "
                "CPU"
            )


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model itself, its parameters and buffers in a floating-point type; complex buffers stay complex.

    Raises:
        ModelError: it cannot be had in that type.
    """

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    try:
        model._apply(cast)  # type: ignore[no-untyped-call]
    except Exception as error:  # the user's model may raise anything
        raise ModelError(
            f"expected {type(model).__name__} to take parameters of type {str(dtype).removeprefix('torch.')}, but "
            f"{type(error).__name__} was raised: {error}; correct the model, or set model.dtype"
        ) from error
    return model


def check_model(model: nn.Module, task: TaskInfo) -> None:
    """Refuse a model that keeps statistics, has no parameters, does not use one, or has another output shape.

    Running statistics and other buffers that change in the forward pass are no parameters: they are neither averaged
    nor differentiated, and a second evaluation at the same parameters would give another loss.

    Raises:
        ModelError: naming the module or parameter and what to do.
    """
    for path, module in changing_statistics(model):
        raise ModelError(
            f"expected a model without running statistics, but {_place(path)} is a {type(module).__name__} that "
            "keeps them; use torch.nn.GroupNorm, or track_running_stats=False, or freeze it"
        )
    params = dict[str, Tensor](trained_parameters(model))
    if not params:
        number = len(list(model.parameters()))
        raise ModelError(
            f"expected a model with parameters to train, but all {number} of {type(model).__name__} are frozen; let "
            "some require gradients, or name them in model.trainable"
            if number
            else f"expected a model with parameters, but {type(model).__name__} has none; add a layer"
        )
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if not buffer.is_meta}
    outputs = _dummy_outputs(model, task, next(iter(params.values())))
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            owner = name.rpartition(".")[0]
            raise ModelError(
                f"expected buffers that stay as they are, but {name!r} of {_place(owner)} "
                f"({type(model.get_submodule(owner)).__name__}) changes in the forward pass; use a layer without "
                "state, such as torch.nn.GroupNorm"
            )
    _check_all_used(params, outputs)
    with _in_evaluation_mode(model):
        _check_all_used(params, _dummy_outputs(model, task, next(iter(params.values()))), ", also in evaluation mode")


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_same_outputs(one: nn.Module, other: nn.Module, task: TaskInfo) -> None:
    """Refuse two models of equal parameters and buffers that compute something else: part of them is kept elsewhere.

    Raises:
        ModelError: saying what to do.
    """
    like = next(iter(trained_parameters(one).values()))
    left, right = (_dummy_outputs(model, task, like).detach() for model in (one, other))
    if not near(left, right):
        raise ModelError(
            f"expected two models of one seed to give equal outputs, but those of {type(one).__name__} differ though "
            "parameters and buffers are equal; draw random numbers from the global generators of torch, NumPy or "
            "Python, which are seeded, both where the model is built and in its forward pass"
        )


def _dummy_outputs(model: nn.Module, task: TaskInfo, like: Tensor) -> Tensor:
    inputs, wanted = dummy_inputs(task, _NUM_DUMMY, like), find_task(task).output_shape
    try:
        with seeded_generators(0, (like.device,)):
            outputs = call_model(model, inputs)
    except Exception as error:  # the user's model may raise anything
        kind = "" if isinstance(error, RuntimeError) else f" {type(error).__name__}"
        raise ModelError(
            f"expected {type(model).__name__} to take inputs {described_inputs(task)}, but it raised"
            f"{kind}: {error}; choose another model.name, or change the model"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"expected outputs of shape [B, {_dims(wanted or ('…',))}] from {type(model).__name__}, but got "
            f"{type(outputs).__name__}; return one tensor"
        )
    if wanted is not None and outputs.shape != (_NUM_DUMMY, *wanted):
        batched = outputs.ndim > 0 and len(outputs) == _NUM_DUMMY
        came = _dims(("B", *outputs.shape[1:]) if batched else tuple(outputs.shape))
        raise ModelError(
            f"expected outputs of shape [B, {_dims(wanted)}] from {type(model).__name__}, but got [{came}]; let its "
            f"last layer have {task.num_outputs} outputs"
        )
    return outputs


def _check_all_used(params: dict[str, Tensor], outputs: Tensor, when: str = "") -> None:
    if not outputs.requires_grad:
        raise ModelError(f"expected outputs that depend on the parameters{when}, but they do not; do not detach them")
    try:
        gradients = torch.autograd.grad(outputs.sum(), list(params.values()), allow_unused=True)
    except Exception as error:  # the user's own backward passes may raise anything
        raise ModelError(
            f"expected outputs that can be differentiated, but {type(error).__name__} was raised: {error}; correct the "
            "model, or choose another model.name"
        ) from error
    unused = [name for name, gradient in zip(params, gradients, strict=True) if gradient is None]
    if unused:
        raise ModelError(
            f"expected every parameter to be used{when}, but the outputs do not depend on {unused[0]!r} (and "
            f"{len(unused) - 1} more); remove it, or freeze it"
        )


def _place(path: str) -> str:
    return repr(path) if path else "the model itself"


def _dims(shape: tuple[int | str, ...]) -> str:
    return ", ".join(map(str, shape))
