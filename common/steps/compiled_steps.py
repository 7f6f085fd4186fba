"""The inner step compiled by TorchInductor: equal to the eager one to rounding, without the overhead of autograd.

Each part of the step is compiled when it is first called, for the shapes of that call, and kept for the process.
Whatever cannot be compiled is computed eagerly, after one warning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, fx

from nufed.common.errors import ModelError
from nufed.common.examples import Batch
from nufed.common.params import Params, trained_parameters
from nufed.common.steps.cautions import caution
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.steps.step_graphs import (
    StepGraph,
    descend_graph,
    linearize_graphs,
    pull_back_graph,
    trace_gradient,
    trace_step,
)
from nufed.common.steps.steps import PullBack, Steps
from nufed.common.task import LossFn, ModelLoss
from nufed.common.trees import one_tensor

Compiled = Callable[..., list[Tensor]]

# Convolutions in PyTorch's own layout: double backward is slower in channels-last, which inductor would choose.
OPTIONS = {"layout_optimization": False, "compile_threads": 1}


@dataclass(frozen=True)
class Signature:
    """What compiled code is specific to, beside the loss and the step size.

    Attributes:
        inputs: shape and type of a batch's inputs.
        targets: shape and type of its targets.
        dtype: of the parameters.
        device: of all tensors.
        num_threads: of torch.
    """

    inputs: tuple[torch.Size, torch.dtype]
    targets: tuple[torch.Size, torch.dtype]
    dtype: torch.dtype
    device: torch.device
    num_threads: int


def compiled_steps(loss: LossFn, inner_lr: float) -> Steps:
    """Return the steps compiled, falling back to the eager ones where they cannot be."""
    eager = eager_steps(loss, inner_lr)
    if not isinstance(loss, ModelLoss):
        caution("method.compile: only losses made by nufed.common.task.make_loss are compiled; going on without.")
        return eager
    return _steps(loss, inner_lr, eager)


def _steps(loss: ModelLoss, inner_lr: float, eager: Steps) -> Steps:
    def value_and_gradient(params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Params]:
        if (run := _find(_gradient, loss, inner_lr, params, batch)) is None:
            return eager.value_and_gradient(params, batch)
        value, *gradients = run[0](*_arguments(params, batch))
        return value, dict(zip(params, gradients, strict=True))

    def descend(params: Mapping[str, Tensor], batch: Batch) -> Params:
        if (run := _find(_descend, loss, inner_lr, params, batch)) is None:
            return eager.descend(params, batch)
        return dict(zip(params, run[0](*_arguments(params, batch)), strict=True))

    def linearize(params: Mapping[str, Tensor], batch: Batch) -> tuple[Params, PullBack]:
        if (run := _find(_linearize, loss, inner_lr, params, batch)) is None:
            return eager.linearize(params, batch)
        first, second = run
        arguments = _arguments(params, batch)
        outputs = first(*arguments)
        count = len(params)
        known = (*arguments, *outputs[count:])

        def pull_back(direction: Params) -> Params:
            return dict(zip(params, second(*known, *_contiguous(direction, params)), strict=True))

        return dict(zip(params, outputs[:count], strict=True)), pull_back

    def pull_back(params: Mapping[str, Tensor], batch: Batch, direction: Params) -> Params:
        if (run := _find(_pull_back, loss, inner_lr, params, batch)) is None:
            return eager.pull_back(params, batch, direction)
        outputs = run[0](*_arguments(params, batch), *_contiguous(direction, params))
        return dict(zip(params, outputs, strict=True))

    return Steps(inner_lr, value_and_gradient, descend, linearize, pull_back)


Build = Callable[[ModelLoss, float, Signature], tuple[Compiled, ...]]


def _find(
    build: Build, loss: ModelLoss, inner_lr: float, params: Mapping[str, Tensor], batch: Batch
) -> tuple[Compiled, ...] | None:
    """Return the compiled part for these shapes, or None where it cannot be had."""
    if batch.mask_seed is not None:
        caution("method.compile: models with dropout are not compiled; going on without.")
        return None
    weight = next(iter(params.values()))
    inputs, targets = batch.inputs, batch.targets
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor) and batch.weights is None):
        caution("method.compile: examples of several tensors, or with weights, are not compiled; going on without.")
        return None
    signature = Signature(
        (inputs.shape, inputs.dtype),
        (targets.shape, targets.dtype),
        weight.dtype,
        weight.device,
        torch.get_num_threads(),
    )
    return _compiled(build, loss, inner_lr, signature)


@lru_cache(maxsize=64)
def _compiled(build: Build, loss: ModelLoss, inner_lr: float, signature: Signature) -> tuple[Compiled, ...] | None:
    try:
        return build(loss, inner_lr, signature)
    except (ModelError, RuntimeError, OSError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        caution(
            f"method.compile: this model's inner step cannot be compiled ({reason}); going on without. "
            "Set method.compile=off to silence this."
        )
        return None


def _gradient(loss: ModelLoss, _inner_lr: float, signature: Signature) -> tuple[Compiled, ...]:
    params, batch = _examples(loss, signature)
    return (_compile(trace_gradient(loss, params, batch), [*params.values(), *_tensors(batch)])[0],)


def _descend(loss: ModelLoss, inner_lr: float, signature: Signature) -> tuple[Compiled, ...]:
    params, batch = _examples(loss, signature)
    graph = descend_graph(_step(loss, inner_lr, signature))
    return (_compile(graph, [*params.values(), *_tensors(batch)])[0],)


def _linearize(loss: ModelLoss, inner_lr: float, signature: Signature) -> tuple[Compiled, ...]:
    params, batch = _examples(loss, signature)
    inputs = [*params.values(), *_tensors(batch)]
    first_graph, second_graph = linearize_graphs(_step(loss, inner_lr, signature))
    first, outputs = _compile(first_graph, inputs)
    second, _ = _compile(second_graph, [*inputs, *outputs[len(params) :], *params.values()])
    return first, second


def _pull_back(loss: ModelLoss, inner_lr: float, signature: Signature) -> tuple[Compiled, ...]:
    params, batch = _examples(loss, signature)
    graph = pull_back_graph(_step(loss, inner_lr, signature))
    return (_compile(graph, [*params.values(), *_tensors(batch), *params.values()])[0],)


def _step(loss: ModelLoss, inner_lr: float, signature: Signature) -> StepGraph:
    return trace_step(loss, inner_lr, *_examples(loss, signature))


def _compile(graph: fx.GraphModule, inputs: list[Tensor]) -> tuple[Compiled, list[Tensor]]:
    """Return the compiled graph and what it makes of `inputs`."""
    from torch import _inductor

    with torch.no_grad():
        run: Compiled = _inductor.compile(graph, [*inputs], options=OPTIONS)
        return run, list(run(*inputs))


def _examples(loss: ModelLoss, signature: Signature) -> tuple[Params, Batch]:
    """Return zeros of the shapes that a signature stands for."""
    kind = {"dtype": signature.dtype, "device": signature.device}
    params = {name: torch.zeros(tensor.shape, **kind) for name, tensor in trained_parameters(loss.model).items()}  # type: ignore[call-overload]
    (inputs, inputs_dtype), (targets, targets_dtype) = signature.inputs, signature.targets
    batch = Batch(
        torch.zeros(inputs, dtype=inputs_dtype, device=signature.device),
        torch.zeros(targets, dtype=targets_dtype, device=signature.device),
    )
    return params, batch


def _arguments(params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in (*params.values(), *_tensors(batch)))


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    return one_tensor(batch.inputs), one_tensor(batch.targets)


def _contiguous(direction: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(direction[name].contiguous() for name in params)
